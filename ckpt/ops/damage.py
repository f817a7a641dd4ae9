"""Whoever meets damage in the store wants to know what still works: the newest generation of that program that reads whole is looked
for, once nothing is half-made any more and nobody waits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ckpt.errors import CkptError, DamagedError
from ckpt.history.open import Mode, open_store


@contextmanager
def with_a_way_out(store: Path | None, spec: str, pid: int | None) -> Iterator[None]:
    """A DamagedError that passes learns what can be used instead of generation `spec`."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{error}; {way_out}" if (way_out := _way_out(store, spec, pid)) else str(error)) from error


def _way_out(store: Path | None, spec: str, pid: int | None) -> str:
    """Nothing where even that cannot be found out."""
    try:
        with open_store(store, Mode.READ) as history:
            generation = history.generation(history.resolve(spec, pid=pid))
            whole = history.newest_whole(generation.lineage)
    except CkptError:
        return ""
    if whole is None:
        return f"no generation of {generation.command} can be read whole"
    return f"generation {whole} is the newest of {generation.command} that can be read whole"
