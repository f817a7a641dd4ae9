"""From what a mapping of a file or of a shared object is mapped: a descriptor that the task has, the file's path, a mapping that
still is, or the anchor of an object that is made anew (objects.py).

A private mapping shows the file wherever the program has not written: so the file must be what it was, or the plan is refused by
what has changed. A shared one shows the file of now, as any program would see it.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from ckpt.kinds.base import value
from ckpt.model import PAGE, Backing, Mapping, OpenFile, RemoteArg, Task
from ckpt.plan import batch as b
from ckpt.plan.batch import Batch
from ckpt.plan.objects import Objects


@dataclass(frozen=True, slots=True)
class FileIdentity:
    """What stands under a path in the target's root, as the caller found it just now."""

    dev: int
    ino: int
    size: int
    mtime_ns: int
    locks: tuple[str, ...] = ()  #: that somebody has on it, as kinds/fd/locks.py writes them


_CAP_SYS_ADMIN, _CAP_CHECKPOINT_RESTORE = 21, 40
_ENTRIES = "CAP_CHECKPOINT_RESTORE"  #: wanted by the kernel of whoever opens an entry of map_files (fs/proc/base.c)

#: path in the target's root -> what stands there; a path that is not named is gone.
World = MappingABC[str, FileIdentity]


@dataclass(slots=True)
class LayoutPlan:
    batch: Batch = field(default_factory=Batch)
    finish: Batch = field(default_factory=Batch)  #: when the pages stand
    refusals: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


class Sources:
    def __init__(self, plan: LayoutPlan, now: Task, now_files: Sequence[OpenFile], world: World, objects: Objects, who: str) -> None:
        self._pid = now.pid
        self._plan, self._now, self._world, self._objects, self._who = plan, now, world, objects, who
        self._files = {file.id: file for file in now_files}
        self._found: dict[tuple[int, int, bool], RemoteArg] = {}
        self._opened: list[RemoteArg] = []

    def _key(self, mapping: Mapping) -> tuple[int, int, bool]:
        """Writable only where a write goes to the object: the access mode bounds later mprotects, as it did at first."""
        if mapping.advice is not None:
            writable = "mw" in mapping.advice
        else:
            writable = bool(mapping.prot & b.PROT_WRITE) or mapping.backing.kind == "object"
        return mapping.backing.dev, mapping.backing.ino, bool(mapping.flags & b.MAP_SHARED) and writable

    def of(self, mapping: Mapping) -> RemoteArg:
        return self._found[self._key(mapping)]

    def open(self, mapping: Mapping) -> None:
        key = self._key(mapping)
        if key in self._found or key[:2] in self._objects.refused or self._objects.duplicated(self._pid, mapping):
            return
        anchor = self._objects.path(key[:2], self._pid)
        if anchor is not None and not self._may_open_entries():
            self._plan.refusals.append(f"{self._name(mapping)}: to have it again the program needs {_ENTRIES}; ckpt restore --replace")
            return
        if anchor is not None:
            self._found[key] = self._open(anchor, key[2])
            return
        there = self._world.get(mapping.backing.path)
        same = there is not None and (there.dev, there.ino) == key[:2]
        if there is not None and same and (refusal := _unfit(there, mapping)):
            self._plan.refusals.append(f"{self._name(mapping)}: {refusal}")
            return
        found = self._held(mapping, key[2]) or self._by_path(mapping, key[2]) or self._by_mapping(mapping, key[2])
        if found is not None:
            self._found[key] = found
        elif not self._plan.refusals or not self._plan.refusals[-1].startswith(self._name(mapping)):
            self._plan.refusals.append(f"{self._name(mapping)}: {self._reason(mapping.backing)}")

    def _name(self, mapping: Mapping) -> str:
        return f"{self._who}: mapping {mapping.start:x}-{mapping.end:x} of {mapping.backing.path or 'a shared object'}"

    def _held(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        modes = (b.O_RDWR,) if writable else (b.O_RDWR, b.O_RDONLY)
        for descriptor in self._now.descriptors:
            file = self._files.get(descriptor.file)
            if file is None or file.flags & b.O_PATH or file.flags & b.O_ACCMODE not in modes:
                continue
            if (file.state.get("dev"), file.state.get("ino")) == (mapping.backing.dev, mapping.backing.ino):
                return value(descriptor.fd)
        return None

    def _by_path(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        backing = mapping.backing
        if backing.kind != "file" or backing.deleted:
            return None
        there = self._world.get(backing.path)
        if there is None or (there.dev, there.ino) != (backing.dev, backing.ino):
            return None
        return self._open(backing.path, writable)

    def _may_open_entries(self) -> bool:
        known = self._now.threads[0].attributes.get("credentials", {}) if self._now.threads else {}
        return not known or bool(int(known.get("cap_effective", 0)) & (1 << _CAP_SYS_ADMIN | 1 << _CAP_CHECKPOINT_RESTORE))

    def _by_mapping(self, mapping: Mapping, writable: bool) -> RemoteArg | None:
        for other in self._now.mappings:
            same = (other.backing.dev, other.backing.ino) == (mapping.backing.dev, mapping.backing.ino)
            if same and other.backing.kind in ("file", "object"):
                return self._open(f"/proc/self/map_files/{other.start:x}-{other.end:x}", writable)
        return None

    def _open(self, path: str, writable: bool) -> RemoteArg:
        flags = (b.O_RDWR if writable else b.O_RDONLY) | b.O_CLOEXEC
        opened = self._plan.batch.add(b.NR_OPEN, path.encode(errors="surrogateescape") + b"\0", flags, 0, note=f"open {path}")
        self._opened.append(opened)
        return opened

    def _reason(self, backing: Backing) -> str:
        if backing.kind != "file":
            return "the object is gone"
        there = self._world.get(backing.path)
        if backing.deleted or there is None:
            return "the file is gone: " + (
                "it had been deleted already, and its contents were not captured" if backing.deleted else "put it back"
            )
        return f"the file is another one by now (inode {there.ino}, it was {backing.ino}): move the old one back"

    def close(self) -> None:
        for opened in self._opened:
            self._plan.batch.add(b.NR_CLOSE, opened, note="close what was opened for mapping")


def _unfit(there: FileIdentity, mapping: Mapping) -> str:
    """Why the file of now cannot be mapped as the one of then was; nothing where it can."""
    changed, then = changes(there, mapping.backing), mapping.backing
    if changed and not mapping.flags & b.MAP_SHARED:
        return f"the file has changed since the generation ({changed}): put it back as it was"
    end = min(then.size, then.offset + mapping.end - mapping.start)
    if changed and _in_pages(there.size) < _in_pages(end):
        return f"the file has become shorter ({changed}), and what was mapped there would be SIGBUS: put back what is missing"
    return ""


def _in_pages(size: int) -> int:
    return -(-size // PAGE)


def changes(there: FileIdentity, then: Backing) -> str:
    """What has changed of a file, in words; nothing where nothing is known of it."""
    if not then.mtime_ns or (there.size, there.mtime_ns) == (then.size, then.mtime_ns):
        return ""
    if there.size != then.size:
        return f"{there.size} bytes, it had {then.size}"
    return f"written {_when(there.mtime_ns)}, before that {_when(then.mtime_ns)}"


def _when(mtime_ns: int) -> str:
    return datetime.fromtimestamp(mtime_ns / 1e9).astimezone().isoformat(sep=" ", timespec="milliseconds")
