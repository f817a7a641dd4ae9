"""The way into the wing of the past: one open store, and what the rest of ckpt may ask of it.

`open_store` is the only place where a StoreError becomes an error with an exit code: whatever the store raises inside the
`with` leaves it as a CkptError. Nothing outside `ckpt.history` imports `store`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from ckpt.errors import CkptError, DamagedError, NotFoundError, PermissionDeniedError
from ckpt.history import codec, names
from ckpt.history.pages import GenerationPages
from ckpt.history.recording import Recording
from ckpt.model import Snapshot
from store import Generation, Store, StoreError

__all__ = ["Generation", "History", "Mode", "default_path", "open_store"]


class Mode(StrEnum):
    READ = "read"  #: readers never wait for a snapshot for long, and need no right to write
    WRITE = "write"  #: the store must be there: rm, gc, tag, fsck --repair
    CREATE = "create"  #: made when missing, mode 0600: snapshot


class History:
    """An open store, in the words of the domain."""

    def __init__(self, store: Store) -> None:
        self.store = store

    @property
    def path(self) -> Path:
        return Path(self.store.path)

    def generations(self, lineage: str | None = None) -> list[Generation]:
        """In order of their numbers."""
        return sorted(self.store.generations(lineage), key=lambda generation: generation.number)

    def generation(self, number: int) -> Generation:
        return self.store.generation(number)

    def load(self, number: int) -> tuple[Generation, Snapshot]:
        generation = self.store.generation(number)
        return generation, codec.decode(generation.snapshot)

    def pages(self, number: int) -> GenerationPages:
        """The generation's page contents, as a PageSource."""
        return GenerationPages(self.store, number)

    def resolve(self, spec: str, *, pid: int | None = None, lineage: str | None = None) -> int:
        """The number of the generation that GEN means; NotFoundError names what there is instead."""
        return names.resolve(spec, self.generations(), self.store.tags(), pid=pid, lineage=lineage)

    def newest_whole(self, lineage: str) -> int | None:
        """The newest generation of a program of which everything can be read: its document and each page."""
        usable = []
        for generation in self.store.generations(lineage):
            with suppress(CkptError, StoreError):
                usable.append(self.load(generation.number)[0].number)
        return self.store.newest_whole(usable)

    @contextmanager
    def begin(self, parent: int | None) -> Iterator[Recording]:
        """A new generation in the making; left without commit, nothing of it is there."""
        with self.store.begin(parent, tend=False) as writer:  # that comes after the report: `tend`
            yield Recording(writer, parent)

    def rows(self, table: str, generation: int) -> Sequence[dict[str, Any]]:
        """Plain rows of one generation: processes, threads, mappings, descriptors."""
        return self.store.rows(table, generation)


def default_path() -> Path:
    """$CKPT_STORE, else $XDG_STATE_HOME/ckpt/store.db, else ~/.local/state/ckpt/store.db."""
    if named := os.environ.get("CKPT_STORE"):
        return Path(named)
    state = os.environ.get("XDG_STATE_HOME")
    base = Path(state) if state and state.startswith("/") else Path.home() / ".local" / "state"
    return base / "ckpt" / "store.db"


@contextmanager
def open_store(path: Path | None = None, mode: Mode = Mode.READ, *, timeout_s: float = 10.0) -> Iterator[History]:
    """The store at `path` (default: `default_path()`), open as long as the `with` lasts.

    Raises DamagedError (5: damaged, not a store, newer), NotFoundError (6: missing), PermissionDeniedError (4: read-only,
    not ours to read), CkptError (1: locked, full, input/output error).
    """
    path = path or default_path()
    with translated(path):
        if mode is Mode.CREATE:
            _make_folder(path.parent)
        with Store.open(path, create=mode is Mode.CREATE, read_only=mode is Mode.READ, timeout_s=timeout_s) as store:
            yield History(store)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionDeniedError(f"{folder}: cannot be made ({error.strerror}): --store names another place") from error
    except OSError as error:
        raise CkptError(f"{folder}: cannot be made ({error.strerror}): --store names another place") from error


@contextmanager
def translated(path: Path) -> Iterator[None]:
    """Whatever the store raises inside leaves as an error with an exit code and a next step."""
    try:
        yield
    except StoreError as error:
        raise _translate(error, path) from error


_NEXT_STEPS: dict[str, tuple[type[CkptError], str]] = {
    "not-a-store": (DamagedError, "--store must name a file that ckpt made"),
    "newer": (DamagedError, "use the ckpt that wrote it, or a newer one"),
    "damaged": (DamagedError, "ckpt fsck --full tells what is lost, fsck --repair saves the rest"),
    "read-only": (PermissionDeniedError, "the file and its directory must be writable by this user"),
    "permission": (PermissionDeniedError, "the store holds memory of processes: its owner alone may open it"),
    "locked": (CkptError, "another ckpt is writing: try again when it has ended"),
    "full": (CkptError, "free some space, or ckpt rm and ckpt gc; nothing was changed"),
    "tagged": (CkptError, "ckpt tag --delete NAME lets it go"),
    "io": (CkptError, "see the kernel's log; ckpt fsck checks what is there"),
    "no-generation": (NotFoundError, "ckpt log shows what there is"),
}


def _translate(error: StoreError, path: Path) -> CkptError:
    kind, hint = _NEXT_STEPS.get(error.kind, (CkptError, ""))
    if error.kind == "missing":
        return NotFoundError(f"no store at {path}: ckpt snapshot makes one, --store names another")
    message = str(error).rstrip(".")
    if str(path) not in message:
        message = f"{path}: {message}"
    return kind(f"{message}; {hint}" if hint else message)
