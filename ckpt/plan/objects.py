"""Shared memory that nobody of the tree holds any more, made once and handed to every mapping and descriptor that had it. Pure.

Each such object gets an *anchor*: a mapping of all of it, in the first task that had it, at a place that no layout has. While it
stands, mappings are duplicated from it (mremap with an old size of 0), and descriptors, other tasks and the writer of its
contents open it by its entry in /proc/PID/map_files. It is unmapped when the pages stand.

    memfd               memfd_create, ftruncate; seals are set by ckpt when the contents stand (they forbid writing them)
    shared anonymous    mmap: the anchor is the object
    System V segment    shmat of the same id; if it is gone, it is made again with that id (shm_next_id), key, mode, owner
    deleted file        created under its name where that is free, and unlinked

Invariants
 1. An object that some task of now has is never made: its pages are brought back where it is.
 2. A segment that others have attached keeps its contents: they are not of the tree.
 3. Whatever cannot be made as it was is refused by name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ckpt.model import PAGE, MadeObject, RemoteArg, SharedObject, Snapshot, State, Task
from ckpt.model import Mapping as MemoryMapping
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch, page_up
from ckpt.procfs import Segment

_NR_WRITE, _NR_SHMGET, _NR_SHMAT, _NR_SHMCTL, _NR_FTRUNCATE, _NR_UNLINK, _NR_FCHMOD, _NR_MEMFD_CREATE = 1, 29, 30, 31, 77, 87, 91, 319
_MODE = 0o600  #: of a file that is made anew, until it gets its own
_NOREPLACE, _O_TMPFILE, _O_CREAT, _O_EXCL = 0x100000, 0o20200000, 0o100, 0o200
_IPC_CREAT, _IPC_EXCL, _IPC_RMID, _IPC_SET, _SHM_DEST, _SHM_RDONLY, _SHM_REMAP = 0o1000, 0o2000, 0, 1, 0o1000, 0o10000, 0o40000
_MFD_CLOEXEC, _MFD_ALLOW_SEALING, _MFD_NOEXEC_SEAL, _SEAL_SEAL, _SEAL_EXEC = 1, 2, 8, 1, 0x20
_IPCMNI = 1 << 15  #: two segments whose ids are equal modulo this cannot both be
_RW = b.PROT_READ | b.PROT_WRITE
_LADDER, _LADDER_END = 0x3800_0000_0000, 0x3900_0000_0000
_MEMFD, _SYSV, _DELETED = "/memfd:", "/SYSV", " (deleted)"

Key = tuple[int, int]  #: device and inode in the generation


@dataclass(frozen=True, slots=True)
class Anchor:
    made: MadeObject
    sort: str  #: "memfd" | "anonymous" | "sysv" | "file"
    pid: int
    start: int
    end: int


@dataclass(slots=True)
class Objects:
    """What is made, for all tasks."""

    captured: frozenset[Key] = frozenset()  #: whose contents the generation holds, made anew or not
    anchors: dict[Key, Anchor] = field(default_factory=dict)
    first: dict[int, Batch] = field(default_factory=dict)  #: pid -> calls before anything is unmapped
    last: dict[int, Batch] = field(default_factory=dict)  #: pid -> calls when the pages stand
    refused: set[Key] = field(default_factory=set)
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def made(self) -> tuple[MadeObject, ...]:
        return tuple(anchor.made for anchor in self.anchors.values())

    def path(self, key: Key, pid: int) -> str | None:
        """Where a task can open an object that is made."""
        if key not in self.anchors:
            return None
        made = self.anchors[key].made
        return f"/proc/{'self' if made.pid == pid else made.pid}/{made.entry}"

    def duplicated(self, pid: int, mapping: MemoryMapping) -> Anchor | None:
        """The anchor that this mapping is a duplicate of; None: it has to be mapped from a descriptor."""
        anchor = self.anchors.get((mapping.backing.dev, mapping.backing.ino))
        if anchor is None or not mapping.flags & b.MAP_SHARED:
            return None
        return anchor if anchor.sort == "sysv" or (anchor.sort == "anonymous" and anchor.pid == pid) else None

    def put(self, pid: int, mapping: MemoryMapping, start: int, end: int, batch: Batch) -> bool:
        """Maps [start, end) of a wanted mapping as a duplicate of the anchor, if it is one."""
        anchor = self.duplicated(pid, mapping)
        if anchor is None:
            return False
        offset, size, place = mapping.backing.offset + start - mapping.start, end - start, f"{start:x}-{end:x}"
        whole = offset == 0 and size == anchor.end - anchor.start
        read_only = mapping.advice is not None and "mw" not in mapping.advice
        if anchor.sort == "sysv" and whole and (read_only or anchor.pid != pid):
            flags = _SHM_REMAP | (_SHM_RDONLY if read_only else 0)
            batch.add(_NR_SHMAT, mapping.backing.ino, start, flags, note=f"shmat {mapping.backing.ino} at {place}", expect=start)
        else:
            elsewhere = anchor.pid != pid
            if elsewhere:
                batch.add(_NR_SHMAT, mapping.backing.ino, anchor.start, 0, note="the segment here, too", expect=anchor.start)
            note = f"mmap {place} {mapping.backing.path}: more of the same"
            batch.add(b.NR_MREMAP, anchor.start + offset, 0, size, b.MREMAP_MAYMOVE | b.MREMAP_FIXED, start, note=note, expect=start)
            if elsewhere:
                batch.add(b.NR_MUNMAP, anchor.start, anchor.end - anchor.start, note="let go of it again")
        if mapping.prot != _RW:
            batch.add(b.NR_MPROTECT, start, size, mapping.prot, note=f"mprotect {place}")
        return True


def plan_objects(now: Snapshot, wanted: Snapshot, world: Iterable[str], segments: Mapping[int, Segment]) -> Objects:
    """`world`: paths under which something stands. `segments`: the System V segments of the tasks' namespace."""
    captured = frozenset((item.dev, item.ino) for item in wanted.objects)
    found = Objects(captured, {}, {task.pid: Batch() for task in wanted.tasks}, {task.pid: Batch() for task in wanted.tasks})
    here = {(m.backing.dev, m.backing.ino) for task in now.tasks for m in task.mappings if m.backing.kind in ("object", "file")}
    here |= {(file.state["dev"], file.state["ino"]) for file in now.files if "ino" in file.state}
    places = _Places((*now.tasks, *wanted.tasks))
    paths = set(world)
    for item in wanted.objects:
        held = None if (item.dev, item.ino) in here else _holder(item, wanted)
        if held is not None:
            _Maker(found, item, held, paths, segments).make(places)
    return found


def object_paths(wanted: Snapshot) -> set[str]:
    """Names that deleted files had, and their folders."""
    objects = {(item.dev, item.ino) for item in wanted.objects}
    paths = {str(file.state["path"]) for file in wanted.files if file.state.get("deleted") and "path" in file.state}
    paths |= {
        m.backing.path for task in wanted.tasks for m in task.mappings if m.backing.deleted and (m.backing.dev, m.backing.ino) in objects
    }
    return paths | {str(Path(path).parent) for path in paths}


@dataclass(frozen=True, slots=True)
class _Held:
    """Who had an object: the task, its name, and what is known of it."""

    task: Task
    path: str
    state: State
    noreserve: bool


def _holder(item: SharedObject, wanted: Snapshot) -> _Held | None:
    """The first task that maps it, or has a descriptor of it."""
    key = (item.dev, item.ino)
    files = {file.id: file for file in wanted.files if (file.state.get("dev"), file.state.get("ino")) == key}
    for task in wanted.tasks:
        for descriptor in task.descriptors:
            if descriptor.file in files:
                state = files[descriptor.file].state
                path = _MEMFD + str(state["name"]) if files[descriptor.file].kind == "memfd" else str(state.get("path", ""))
                return _Held(task, path, state, False)
        for mapping in task.mappings:
            if (mapping.backing.dev, mapping.backing.ino) == key and mapping.backing.kind in ("object", "file"):
                return _Held(task, mapping.backing.path, item.state, bool(mapping.flags & b.MAP_NORESERVE))
    return None


class _Places:
    """Addresses where no task has anything, a free page on either side: neighbours never become one mapping."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self._taken = [(m.start, m.end) for task in tasks for m in task.mappings if m.start < _LADDER_END and m.end > _LADDER]
        self._at = _LADDER

    def take(self, size: int) -> int | None:
        while blocked := [end for start, end in self._taken if start < self._at + size + PAGE and self._at < end + PAGE]:
            self._at = max(blocked) + PAGE
        at, self._at = self._at, self._at + size + PAGE
        return at if self._at < _LADDER_END else None


class _Maker:
    def __init__(self, found: Objects, item: SharedObject, held: _Held, paths: set[str], segments: Mapping[int, Segment]) -> None:
        self.found, self.item, self.held, self.paths, self.segments = found, item, held, paths, segments
        self.batch = found.first[held.task.pid]
        self.seals, self.contents = 0, True

    def make(self, places: _Places) -> None:
        path, size = self.held.path, max(page_up(self.item.size), PAGE)
        at = places.take(size)
        if at is None or path.startswith("/anon_hugepage"):
            return self._refuse("huge pages of hugetlbfs: not supported" if at else "too large to be made anew")
        if path.startswith(_SYSV):
            sort, made = "sysv", self._segment(at)
        elif path.startswith(_MEMFD):
            sort, made = "memfd", self._file(at, size, self._memfd())
        elif path.startswith(("/dev/zero", "[anon_shmem")):
            sort, made = "anonymous", self._anonymous(at, size)
        else:
            sort, made = "file", self._file(at, size, self._with_mode(self._deleted()))
        if made:
            end = at + size
            task = self.held.task
            entry = f"map_files/{at:x}-{end:x}"
            one = MadeObject(self.item.space, self.item.dev, self.item.ino, task.pid, entry, self.seals, self.contents)
            self.found.anchors[self.item.dev, self.item.ino] = Anchor(one, sort, task.pid, at, end)
            self.found.last[task.pid].add(b.NR_MUNMAP, at, size, note=f"let go of {self._name()}")
        return None

    def _name(self) -> str:
        return self.held.path or "a shared object"

    def _refuse(self, reason: str) -> None:
        task = self.held.task
        self.found.refused.add((self.item.dev, self.item.ino))
        self.found.refusals.append(f"task {task.pid} ({task.comm}): {self._name()}: {reason}")

    def _warn(self, text: str) -> None:
        task = self.held.task
        self.found.warnings.append(f"task {task.pid} ({task.comm}): {self._name()}: {text}")

    # ---- files ----

    def _file(self, at: int, size: int, made: RemoteArg) -> bool:
        self.batch.add(_NR_FTRUNCATE, made, self.item.size, note=f"{self._name()}: {self.item.size} bytes")
        self._map(at, size, b.MAP_SHARED | b.MAP_FIXED | _NOREPLACE, made)
        self.batch.add(b.NR_CLOSE, made, note="close it")
        return True

    def _map(self, at: int, size: int, flags: int, made: RemoteArg | int) -> None:
        self.batch.add(b.NR_MMAP, at, size, _RW, flags, made, 0, note=f"make {self._name()} reachable at {at:x}", expect=at)

    def _memfd(self) -> RemoteArg:
        seals = int(self.held.state.get("seals", _SEAL_SEAL))
        flags = _MFD_CLOEXEC | (_MFD_NOEXEC_SEAL if seals & _SEAL_EXEC else 0)
        if seals & ~_SEAL_EXEC != _SEAL_SEAL:
            flags |= _MFD_ALLOW_SEALING
            self.seals = seals & ~_SEAL_EXEC
        name = self.held.path.removeprefix(_MEMFD).removesuffix(_DELETED)
        return self.batch.add(_NR_MEMFD_CREATE, os.fsencode(name) + b"\0", flags, note=f"memfd_create {name}")

    def _deleted(self) -> RemoteArg:
        path = self.held.path.removesuffix(_DELETED)
        folder = str(Path(path).parent)
        flags = b.O_RDWR | b.O_CLOEXEC
        nameless = Path(path).name == f"#{self.item.ino}"  # O_TMPFILE: it may be given a name yet
        if nameless and folder in self.paths:
            return self.batch.add(b.NR_OPEN, os.fsencode(folder) + b"\0", flags | _O_TMPFILE, _MODE, note=f"a nameless file in {folder}")
        if path not in self.paths and folder in self.paths:
            made = self.batch.add(b.NR_OPEN, os.fsencode(path) + b"\0", flags | _O_CREAT | _O_EXCL, _MODE, note=f"create {path}")
            self.batch.add(_NR_UNLINK, os.fsencode(path) + b"\0", note=f"delete {path} again")
            return made
        folder = folder if folder in self.paths else "/tmp"
        self._warn(f"its name is taken or its folder is gone: it has no name, in {folder}")
        return self.batch.add(b.NR_OPEN, os.fsencode(folder) + b"\0", flags | _O_TMPFILE, _MODE, note=f"a file without a name in {folder}")

    def _with_mode(self, made: RemoteArg) -> RemoteArg:
        mode = int(self.held.state.get("mode", _MODE))
        if mode != _MODE:
            self.batch.add(_NR_FCHMOD, made, mode, note=f"{self._name()}: mode {mode:#o}")
        return made

    def _anonymous(self, at: int, size: int) -> bool:
        extra = b.MAP_NORESERVE if self.held.noreserve else 0
        self._map(at, size, b.MAP_SHARED | b.MAP_ANONYMOUS | b.MAP_FIXED | _NOREPLACE | extra, -1)
        return True

    # ---- System V ----

    def _segment(self, at: int) -> bool:
        shmid, key = self.item.ino, int(self.held.path.removesuffix(_DELETED).removeprefix(_SYSV) or "0", 16)
        there = self.segments.get(shmid)
        if there is not None and (there.size != self.item.size or there.key & 0xFFFF_FFFF != key):
            self._refuse(f"System V segment {shmid} is another one by now")
            return False
        if there is not None:
            self.contents = there.attached == 0
            if not self.contents:
                self._warn(f"System V segment {shmid} is attached by others: its contents stay as they are")
        elif not self._make_segment(shmid, key):
            return False
        self.batch.add(_NR_SHMAT, shmid, at, 0, note=f"shmat {shmid}", expect=at)
        if there is None and int(self.held.state.get("mode", _SHM_DEST)) & _SHM_DEST:
            self.batch.add(_NR_SHMCTL, shmid, _IPC_RMID, 0, note=f"segment {shmid} goes with its last mapping")
        return True

    def _make_segment(self, shmid: int, key: int) -> bool:
        holder = next((one for one in self.segments.values() if one.shmid % _IPCMNI == shmid % _IPCMNI), None)
        namesake = next((one for one in self.segments.values() if key and one.key & 0xFFFF_FFFF == key), None)
        if holder or namesake:
            what = f"the place of its id {shmid}" if holder else f"its key {key:#x}"
            self._refuse(f"System V segment {(holder or namesake).shmid} has {what}: remove it (ipcrm)")  # type: ignore[union-attr]
            return False
        state, batch = self.held.state, self.batch
        mode = int(state.get("mode", 0o600)) & 0o777
        chosen = batch.add(b.NR_OPEN, b"/proc/sys/kernel/shm_next_id\0", b.O_WRONLY | b.O_CLOEXEC, 0, note="choose the segment's id")
        text = str(shmid).encode()
        batch.add(_NR_WRITE, chosen, text, len(text), note=f"it will be {shmid}", expect=len(text))
        batch.add(b.NR_CLOSE, chosen, note="chosen")
        made = batch.add(_NR_SHMGET, key, self.item.size, _IPC_CREAT | _IPC_EXCL | mode, note=f"shmget: segment {shmid}", expect=shmid)
        if state.get("uid") or state.get("gid"):
            perm = struct.pack("<4xII8xI88x", int(state["uid"]), int(state["gid"]), mode)
            batch.add(_NR_SHMCTL, made, _IPC_SET, perm, note=f"its owner: {state['uid']}:{state['gid']}")
        return True
