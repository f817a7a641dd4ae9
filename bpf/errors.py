"""The one error that this room raises."""

from __future__ import annotations


class BpfError(Exception):
    """One line: what, and what to do. `kind`: no-bcc, no-rights, no-btf, namespace, cache, compile, load."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
