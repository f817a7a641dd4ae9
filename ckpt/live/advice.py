"""What /proc/PID/maps does not tell of mappings and shared objects: read after the thaw, never inside the frozen window.

smaps walks every page table (6 ms for 1 GiB of small pages), so an incremental snapshot of a big process does without where it can:

1. Up to SMALL_KIB of resident memory smaps is always read.
2. Beyond that only if the text of maps or the amount of locked memory (VmLck, of the frozen process) differs from the parent
   generation's; else what the parent knew of each mapping stands. What is not seen so: madvise() of a whole mapping of a big
   process whose layout has not changed since; the next change of the layout, or `snapshot --full`, sees it.
3. Guard pages change no text, so they are asked for each time (native/src/guards.c).

Between the thaw and the reading the program runs: a mapping that came, went or was advised in that moment is described as it
is then. Matched is by range, so a mapping that is no more keeps no advice of another. Only what the kernel never says of memory that was
writable when it stood still is not taken over: that nobody has promised it (protected meanwhile, before there was a page: mm/mprotect.c).

Not seen by anybody: mlockall(MCL_FUTURE) (of a restored program, mappings that come later are not locked by themselves).
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from stat import S_IMODE
from typing import Any

from ckpt.live import core
from ckpt.model import Mapping, PidRef, SharedObject, Snapshot, Task
from ckpt.procfs import Advice, Segment, Status, parse_segments, parse_smaps

SMALL_KIB = 256 << 10
MAP_SHARED, MAP_PRIVATE, MAP_GROWSDOWN, MAP_NORESERVE = 1, 2, 0x100, 0x4000
F_GET_SEALS = 1034
SYSV = "/SYSV"
_BY_FLAG = {"gd": MAP_GROWSDOWN, "nr": MAP_NORESERVE}
PROT_WRITE = 2


class Adviser:
    """`parent`: the generation whose words may stand (rule 2). `silent`: nothing is asked (of a newborn, whose mappings all go)."""

    def __init__(self, parent: Snapshot | None = None, *, silent: bool = False) -> None:
        self._parents = {task.ref: task for task in parent.tasks} if parent else {}
        self.silent = silent
        self._asked: dict[int, tuple[Advice, list[tuple[int, int]]]] = {}
        self.frozen = False  #: what was asked last stands: smaps is not read now

    def advised(self, ref: PidRef, mappings: Sequence[Mapping], status: Status) -> tuple[Mapping, ...]:
        """The mappings with all that is known of them."""
        if self.silent:
            return tuple(mappings)
        if self.frozen:
            advice, guards = self._asked.get(ref.pid, ({}, []))
            return _guarded(_told(mappings, advice), guards)
        parent = self._parents.get(ref)
        known = parent.mappings if parent and status.resident_kib > SMALL_KIB else ()
        guards = core.guards(ref.pid, [(m.start, m.end) for m in mappings if m.backing.kind != "kernel"])
        if _unchanged(mappings, known, status.locked_kib):
            told = tuple(replace(new, flags=old.flags, advice=old.advice) for new, old in zip(mappings, known, strict=True))
            return _guarded(told, guards)
        advice = _smaps(ref.pid)
        self._asked[ref.pid] = advice, guards
        return _guarded(_told(mappings, advice), guards)


def _unchanged(mappings: Sequence[Mapping], known: Sequence[Mapping], locked_kib: int) -> bool:
    if len(mappings) != len(known) or any(old.advice is None and old.backing.kind != "kernel" for old in known):
        return False
    locked = sum(old.end - old.start for old in known if old.advice and "lo" in old.advice)
    return locked == locked_kib << 10 and all(_line(new) == _line(old) for new, old in zip(mappings, known, strict=True))


def _line(mapping: Mapping) -> tuple[Any, ...]:
    backing = mapping.backing
    return mapping.start, mapping.end, mapping.prot, mapping.flags & (MAP_SHARED | MAP_PRIVATE), backing.dev, backing.ino, backing.offset


def _smaps(pid: int) -> Advice:
    try:
        return parse_smaps(Path(f"/proc/{pid}/smaps").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return {}


def _told(mappings: Iterable[Mapping], advice: Advice) -> tuple[Mapping, ...]:
    rows = iter(advice.items())
    row = next(rows, None)
    out = []
    for mapping in mappings:
        while row and row[0][1] <= mapping.start:
            row = next(rows, None)
        out.append(_with(mapping, row[1]) if row and row[0][0] <= mapping.start else mapping)
    return tuple(out)


def _with(mapping: Mapping, words: tuple[str, ...]) -> Mapping:
    if mapping.backing.kind == "kernel":
        return mapping
    flags = mapping.flags
    for word in words:
        flags |= _BY_FLAG.get(word, 0)
    other = "ac" if flags & MAP_SHARED else "mw"
    advice = {word for word in words if word not in _BY_FLAG and word != other}
    if _is_promised(mapping, flags):
        advice.add("ac")
    return replace(mapping, flags=flags, advice=tuple(sorted(advice)))


def _is_promised(mapping: Mapping, flags: int) -> bool:
    return mapping.backing.kind == "anonymous" and bool(mapping.prot & PROT_WRITE) and not flags & (MAP_SHARED | MAP_NORESERVE)


def _guarded(mappings: tuple[Mapping, ...], found: Sequence[tuple[int, int]]) -> tuple[Mapping, ...]:
    if not found:
        return mappings
    return tuple(
        replace(m, guards=tuple((max(low, m.start), min(high, m.end)) for low, high in found if low < m.end and high > m.start))
        for m in mappings
    )


# ---- shared objects ----


def described(objects: Sequence[SharedObject], tasks: Sequence[Task]) -> tuple[SharedObject, ...]:
    """Seals and mode of what is only mapped; identity, mode and owner of System V segments."""
    at = {(m.backing.dev, m.backing.ino): (task.pid, m) for task in reversed(tasks) for m in task.mappings if m.backing.kind != "anonymous"}
    return tuple(_described(item, *at[item.dev, item.ino]) if (item.dev, item.ino) in at else item for item in objects)


def _described(item: SharedObject, pid: int, mapping: Mapping) -> SharedObject:
    path = mapping.backing.path
    if path.startswith(SYSV):
        segment = segments(pid).get(item.ino)
        if segment is None:
            return item
        owner = {"uid": segment.uid, "gid": segment.gid}
        return replace(item, state={"shmid": segment.shmid, "key": segment.key, "mode": segment.mode, **owner})
    with suppress(OSError):
        file = os.open(f"/proc/{pid}/map_files/{mapping.start:x}-{mapping.end:x}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            if path.startswith("/memfd:"):
                return replace(item, state={"seals": fcntl.fcntl(file, F_GET_SEALS)})
            return replace(item, state={"mode": S_IMODE(os.fstat(file).st_mode)}) if mapping.backing.kind == "file" else item
        finally:
            os.close(file)
    return item


def segments(pid: int) -> dict[int, Segment]:
    """The System V segments that a process sees; none if it lives in another IPC namespace than ckpt."""
    try:
        same = os.readlink(f"/proc/{pid}/ns/ipc") == os.readlink("/proc/self/ns/ipc")
        return parse_segments(Path("/proc/sysvipc/shm").read_bytes()) if same else {}
    except OSError:
        return {}
