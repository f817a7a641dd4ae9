"""What the machine has, or ckpt makes, for open files of a restored tree that remote calls alone cannot make again."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ckpt.errors import RefusedError
from ckpt.live import processes, watches
from ckpt.live.terminals import Terminal
from ckpt.model import OpenFile, Snapshot


class Files:
    """`keep`: takes in descriptors of ours that newborns are to have. `wanted`: open files know what was found for them."""

    def __init__(self, wanted: Snapshot, keep: list[int]) -> None:
        self.warnings: list[str] = []
        self._keep = keep
        self._members = {thread.tid for task in wanted.tasks for thread in task.threads}
        self._names = _names(wanted)
        self._at = self._terminals(wanted)
        known: dict[str, Callable[[OpenFile], dict[str, Any]]] = {"pty": self._terminal, "pidfd": self._process}
        held = watches.located(wanted, keep)
        changed = (self._learnt(file, known[file.kind]) if file.kind in known and file.id in self._names else file for file in held.files)
        self.wanted = replace(held, files=tuple(changed))

    def _learnt(self, file: OpenFile, find: Callable[[OpenFile], dict[str, Any]]) -> OpenFile:
        try:
            return replace(file, state={**file.state, **find(file)})
        except RefusedError as error:
            raise RefusedError(f"{self._names[file.id]}: {error}") from None

    # ---- terminals ----

    def _terminals(self, wanted: Snapshot) -> dict[int, int]:
        """OpenFile.id -> our descriptor of a terminal's end."""
        ends = [file for file in wanted.files if file.kind == "pty" and file.id in self._names]
        found: dict[int, int] = {}
        for master in sorted((file for file in ends if file.state["master"]), key=lambda file: int(file.state["index"])):
            index = master.state["index"]
            made = Terminal(master, self._keep)
            found |= made.ends(master, [file for file in ends if not file.state["master"] and file.state["index"] == index])
            if made.index != index:
                self.warnings.append(f"{self._names[master.id]}: pty {index} is somebody else's by now: it is pty {made.index}")
        return found

    def _terminal(self, file: OpenFile) -> dict[str, Any]:
        return {"at": self._at[file.id]} if file.id in self._at else {}

    # ---- processes ----

    def _process(self, file: OpenFile) -> dict[str, Any]:
        if file.state["pid"] in self._members:
            return {}
        at = processes.outside(file) if file.state["pid"] > 0 else processes.ended()
        self._keep.append(at)
        fcntl.fcntl(at, fcntl.F_SETFL, file.flags & os.O_NONBLOCK)
        return {"at": at}


def _names(wanted: Snapshot) -> dict[int, str]:
    """OpenFile.id -> what a person calls it."""
    found: dict[int, str] = {}
    for task in wanted.tasks:
        for item in task.descriptors:
            found.setdefault(item.file, f"fd {item.fd} of task {task.pid} ({task.comm})")
    return found
