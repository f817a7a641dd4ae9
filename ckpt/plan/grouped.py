"""Open files that hang together (kinds/groups.py): which of a group stay, and the one sequence of calls that makes the others.

1. A member stays if it is matched and can be adjusted, if its kind lets it, and if those whose fate it shares stay as well. A listener
   stays so while the connections through it are made again: whoever is outside still reaches it.
2. All is made by one task; it must have what stays at some number, for the calls go through that.
3. A name in the file system is bound anew only where nothing stands or what the own dead process has left.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ckpt.kinds.base import CannotUndo, FdKind
from ckpt.kinds.groups import GroupKind, Kept
from ckpt.model import OpenFile, RemoteCall, Task
from ckpt.plan.sources import World

_CAP_SETGID, _CAP_SETUID = 6, 7


@dataclass(frozen=True, slots=True)
class Stays:
    """Members that stay, reached from one task."""

    pid: int
    kept: Mapping[int, Kept]
    adjust: Mapping[int, tuple[RemoteCall, ...]]


NOBODY = Stays(0, {}, {})


def who_stays(
    kind: FdKind,
    members: Sequence[OpenFile],
    matched: Mapping[int, OpenFile],
    at_now: Mapping[int, list[tuple[int, int]]],
    numbers: Mapping[int, int],
) -> Stays:
    """`at_now`: open file of now -> [(pid, fd)]. `numbers`: member -> the number at which it is adjusted."""
    assert isinstance(kind, GroupKind)
    adjust: dict[int, tuple[RemoteCall, ...]] = {}
    for member in members:
        source = matched.get(member.id)
        if source is None or not kind.stays(member):
            continue
        try:
            adjust[member.id] = tuple(kind.adjust(numbers[member.id], kind.quiet(source), kind.quiet(member)))
        except CannotUndo:
            continue
    pairs = list(kind.together(members))
    while lost := {one for pair in pairs for one in pair if one in adjust and not all(other in adjust for other in pair)}:
        for one in lost:
            del adjust[one]
    pids = [{pid for pid, _ in at_now[matched[identity].id]} for identity in adjust]
    common = set.intersection(*pids) if pids else set()
    if not common:
        return NOBODY
    pid = min(common)
    kept = {}
    for identity in adjust:
        source = matched[identity]
        kept[identity] = Kept(source, next(fd for holder, fd in at_now[source.id] if holder == pid))
    return Stays(pid, kept, adjust)


def may(task: Task | None, capability: int) -> bool:
    """Whether the task has a capability now (a newborn has what ckpt has). -1: none is needed."""
    known = task.threads[0].attributes.get("credentials", {}) if task and task.threads else {}
    return capability < 0 or bool(int(known.get("cap_effective", 0)) >> capability & 1)


def is_root(task: Task | None) -> bool:
    """Root in every respect: it can be somebody else for a moment and come back."""
    known = task.threads[0].attributes.get("credentials", {}) if task and task.threads else {}
    return known.get("uid") == [0] * 4 and known.get("gid") == [0] * 4 and may(task, _CAP_SETUID) and may(task, _CAP_SETGID)


def check_name(file: OpenFile, world: World, now: Sequence[OpenFile]) -> None:
    """Raises CannotUndo where the name in the file system that a socket is to be bound to is not free. `now`: the living tree's."""
    path = file.state.get("name", "")
    if not path:
        return
    if str(Path(path).parent) not in world:
        raise CannotUndo(f"{file.kind} socket: the folder of {path} is gone")
    there = world.get(path)
    own = {one.state["name_ino"] for one in (file, *now) if one.state.get("name") == path}
    if there is not None and there.ino & 0xFFFF_FFFF not in own:
        raise CannotUndo(f"{file.kind} socket: {path} is another file by now")
