"""Freezers of control groups: who stands in a frozen one, and the group by which a whole tree is stopped by one write.

What the kernel lets ptrace do there (measured on 6.18): a task frozen by v2 stops for us at once, shows its registers, and is frozen
again when it is let go; but it runs no call of ours until its group is open. One frozen by v1 sleeps in the freezer, uninterruptibly:
PTRACE_INTERRUPT is answered when it is thawed, so it is refused by name.

Invariants
 1. A group is shut and opened by the core alone (native/src/freezer.c), and only if every process in it is of the tree.
 2. Before it is touched a record names it, and how it is to be when nobody is at work. Whoever finds a record whose ckpt has died puts the
    group so: the command's front at once (ckpt/cli/front.py), else the next ckpt (ckpt/ops/settle.py).
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt.errors import PermissionDeniedError, RefusedError
from ckpt.live import cgroups, runtime
from ckpt.live.core import Tree
from ckpt.model import PidRef
from ckpt.procfs import parse_stat
from ckpt.procfs.cgroup import parse_cgroup

WAYS = ("auto", "cgroup", "ptrace")
THREADS_MAX = 32  #: of a tree that is stopped by its group unless somebody asks for it
_V1_FREEZER = "freezer"


@dataclass(frozen=True, slots=True)
class Frozen:
    """A task that somebody has frozen."""

    version: int
    group: str  #: path in its hierarchy
    folder: Path  #: where that lies

    def __str__(self) -> str:
        return f"is frozen by control group {self.group} (v{self.version})"

    @property
    def thaw(self) -> str:
        return f"echo THAWED > {self.folder}/freezer.state" if self.version == 1 else f"echo 0 > {self.folder}/cgroup.freeze"


def frozen(pid: int) -> Frozen | None:
    """Raises FileNotFoundError, ProcessLookupError when it is gone."""
    paths = _groups(pid)
    for hierarchy, path in paths.items():
        version = 2 if hierarchy == cgroups.V2 else 1 if _V1_FREEZER in hierarchy.split(",") else 0
        folder = _folder(hierarchy, path) if version and path != "/" else None
        if folder is not None and cgroups.is_frozen(folder):
            at = _cause(folder, version)
            return Frozen(version, _named(path, folder, at), at)
    return None


def _groups(pid: int) -> dict[str, str]:
    return {",".join(entry.controllers): entry.path for entry in parse_cgroup(Path(f"/proc/{pid}/cgroup").read_bytes())}


@cache
def _mounted() -> dict[str, tuple[str, str]]:
    return cgroups.mounted()


def _folder(hierarchy: str, path: str) -> Path | None:
    return cgroups.folder(_mounted().get(hierarchy), path)


def _cause(folder: Path, version: int) -> Path:
    """The group that was told to freeze: this one, or the one above that holds it."""
    name, shut = ("cgroup.freeze", "1") if version == 2 else ("freezer.self_freezing", "1")
    for one in (folder, *folder.parents):
        if not (one / name).exists():
            break
        if (one / name).read_text().strip() == shut:
            return one
    return folder


def _named(path: str, folder: Path, at: Path) -> str:
    up = len(folder.parts) - len(at.parts)
    return "/".join(path.split("/")[: -up or None]) or "/"


def members(folder: Path) -> set[int]:
    """Processes in a group of v2 and in those below it."""
    found: set[int] = set()
    for where, _folders, files in os.walk(folder):
        if "cgroup.procs" in files:
            with suppress(OSError):  # a group that went meanwhile, or one of threads
                found.update(int(word) for word in Path(where, "cgroup.procs").read_text().split())
    return found


def _living(tree: Tree) -> set[int]:
    return {thread.pid for thread in tree.threads()}


def _here(pid: int) -> bool:
    """Not gone; a zombie has left its group (v2)."""
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).state not in "ZX"
    except OSError:
        return False


def _strangers(folder: Path, tree: Tree) -> list[int]:
    """Who stands in the group and not in the tree. One that was born since the tree was looked at is its child, and no stranger."""
    inside = _living(tree)
    return sorted(pid for pid in members(folder) - inside if pid > 0 and _here(pid) and not _descends(pid, inside))


def _descends(pid: int, tree: set[int]) -> bool:
    while pid > 1 and pid not in tree:
        try:
            pid = parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).ppid
        except OSError:
            return True  # it has ended
    return pid in tree


def _who(pid: int) -> str:
    try:
        return f"task {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"task {pid}"


@dataclass(frozen=True, slots=True)
class Group:
    """A group that has the tree to itself."""

    path: str
    folder: Path
    theirs: bool  #: somebody has frozen it


def frozen_group(tree: Tree) -> Group | None:
    """The v2 group by which the tree is frozen. RefusedError where it cannot be opened for our questions without letting others run."""
    found = {pid: state for pid in sorted(_living(tree)) if (state := _frozen_if_alive(pid)) is not None}
    if not found:
        return None
    pid, state = next(iter(found.items()))
    name = f"{_who(pid)}: {state}"
    if state.version == 1:
        raise RefusedError(refusal(pid, state))
    if one := next((other for other in found.values() if other.folder != state.folder), None):
        raise RefusedError(f"{name}, another one of the tree by {one.group}: thaw one of them first")
    if outside := [other for other in sorted(_living(tree) - members(state.folder)) if _here(other)]:
        raise RefusedError(f"{name}, {_who(outside[0])} of the same tree is not: freeze or thaw both first")
    if strangers := _strangers(state.folder, tree):
        raise RefusedError(f"{name}, which holds {_who(strangers[0])} as well, who is not of the tree: thaw it first ({state.thaw})")
    if (above := _cause(state.folder.parent, 2)) != state.folder.parent or cgroups.is_frozen(above):
        raise RefusedError(f"{name}, and by one above it: thaw one of them first ({state.thaw})")
    return Group(state.group, state.folder, theirs=True)


def refusal(pid: int, state: Frozen) -> str:
    return f"{_who(pid)}: {state}: nobody can stop it there for a checkpoint: thaw it first ({state.thaw})"


def _frozen_if_alive(pid: int) -> Frozen | None:
    try:
        return frozen(pid)
    except (FileNotFoundError, ProcessLookupError):
        return None


def refuse_frozen(tree: Tree, what: str) -> None:
    """What changes the program, or watches it run, is not for one that somebody has frozen."""
    for pid in sorted(_living(tree)):
        state = _frozen_if_alive(pid)
        if state is not None:
            raise RefusedError(f"{_who(pid)}: {state}: no {what} of a frozen program: thaw it first ({state.thaw})")


def own_group(tree: Tree) -> Group:
    """The v2 group that the tree has to itself; RefusedError, PermissionDeniedError say what is in the way."""
    name = _who(tree.pid)
    path = _groups(tree.pid).get(cgroups.V2)
    folder = _folder(cgroups.V2, path) if path is not None else None
    if path is None or folder is None:
        raise RefusedError(f"{name}: there is no control group v2 here: use --freeze ptrace")
    if path == "/" or not (folder / "cgroup.freeze").exists():
        raise RefusedError(f"{name}: is in the root control group, which cannot be frozen: give the tree its own, or --freeze ptrace")
    if not os.access(folder / "cgroup.freeze", os.W_OK):
        raise PermissionDeniedError(f"{name}: its control group {path} may not be frozen by you: run as root, or use --freeze ptrace")
    if outside := [pid for pid in sorted(_living(tree) - members(folder)) if _here(pid)]:
        raise RefusedError(f"{_who(outside[0])}: is not in control group {path} as {name} is: move it there, or use --freeze ptrace")
    if strangers := _strangers(folder, tree):
        raise RefusedError(f"{_who(strangers[0])}: is in control group {path} and not of the tree of {name}: use --freeze ptrace")
    return Group(path, folder, theirs=False)


def _worth_it(tree: Tree) -> Group | None:
    """auto: several processes with few threads, where they have a group to themselves. One process gains nothing by it, and each
    sleeping thread costs 4 us more, for it is woken twice (200 of them: 2.2 ms in place of 1.4; four processes: 0.07 ms both ways)."""
    threads = tree.threads()
    if len(threads) > THREADS_MAX or all(thread.pid == tree.pid for thread in threads):
        return None
    try:
        return own_group(tree)
    except (RefusedError, PermissionDeniedError):
        return None


class Held:
    """A group in our hand: told to the core, and written down. To be entered before the tree is opened, so that it ends after the tree."""

    def __init__(self, ref: PidRef) -> None:
        self._record = runtime.folder() / f"{ref.pid}.{ref.start_ticks}.freezer"  # sweep() leaves it
        self._descriptor = -1
        self.group: Group | None = None

    def __enter__(self) -> Self:
        return self

    def take(self, tree: Tree, way: str) -> None:
        """`way`: one of WAYS. A group that somebody has frozen is taken in any case."""
        self.group = frozen_group(tree) or (own_group(tree) if way == "cgroup" else _worth_it(tree) if way == "auto" else None)
        if self.group is None:
            return
        file = self.group.folder / "cgroup.freeze"
        self._descriptor = os.open(file, os.O_RDWR | os.O_CLOEXEC)
        holder = [os.getpid(), runtime.start_ticks(os.getpid())]
        self._record.write_text(json.dumps({"holder": holder, "file": str(file), "then": str(int(self.group.theirs))}))
        tree.hold(self._descriptor, theirs=self.group.theirs)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._record.unlink(missing_ok=True)


def mend() -> None:
    """Groups that a dead ckpt was about to freeze or to open are left as they are to be."""
    for path in runtime.folder().glob("*.freezer"):
        for holder, start, file, then in _read(path):
            if runtime.lives(holder, start):
                continue
            with suppress(OSError):  # the group is gone
                Path(file).write_text(then)
            path.unlink(missing_ok=True)


def _read(path: Path) -> Iterator[tuple[int, int, str, str]]:
    with suppress(OSError, ValueError, TypeError, KeyError):
        raw = json.loads(path.read_text())
        holder, start = raw["holder"]
        yield int(holder), int(start), str(raw["file"]), "1" if raw["then"] == "1" else "0"
