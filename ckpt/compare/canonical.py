"""A snapshot without the numbers that the kernel gives to what it makes: two snapshots of equal trees are equal then.

1. Open files are named by the first place that holds them (task, descriptor); epoll entries by the same names.
2. What has no name in a file system (pipes, sockets, memfds, shared memory) has a number that means nothing but "the same one":
   it becomes the order in which it is met.
3. Anonymous mappings that touch and say the same are one: the kernel merges them or not, as they happened to be made.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from ckpt.model import Mapping as Vma
from ckpt.model import OpenFile, SharedObject, Snapshot, State, Task

#: kind of descriptor -> keys of its state that are the kernel's numbers; the first is the thing's own, others name others of the kind
IDENTITIES: Mapping[str, tuple[str, ...]] = {
    "pipe": ("ino",),
    "unix": ("ino", "peer", "waiting", "pending"),
    "tcp": ("ino", "waiting"),
    "udp": ("ino",),
    "memfd": ("ino",),
    "mqueue": ("ino",),
    "netlink": ("ino",),
    "pidfd": ("ino",),
    "socket": ("ino",),
}
_UNNAMED = re.compile(r"/#\d+$")  #: O_TMPFILE: its name is its number
_PROC = re.compile(r"/proc/\d+/")
#: keys that say nothing: device numbers of the kernel's inner file systems, socket cookies; of a socket's name in a file system, its
#: number there (another each time it is bound)
NOISE = ("cookie", "dev", "name_ino")


def canonical(snapshot: Snapshot) -> Snapshot:
    return _Canon(snapshot).snapshot()


class _Canon:
    def __init__(self, snapshot: Snapshot) -> None:
        """Tasks are met in the order of their numbers: that of a list of children is the order of births."""
        tasks = sorted(snapshot.tasks, key=lambda task: (task.pid != snapshot.root.pid, task.pid))
        self.before = snapshot = replace(snapshot, tasks=tuple(tasks))
        self.names: dict[int, int] = {}
        for task in snapshot.tasks:
            for item in task.descriptors:
                self.names.setdefault(item.file, len(self.names) + 1)
        self.things: dict[tuple[str, Any], int] = {}

    def snapshot(self) -> Snapshot:
        files = sorted((file for file in self.before.files if file.id in self.names), key=lambda file: self.names[file.id])
        named = tuple(self._file(file) for file in files)
        tasks = tuple(self._task(task) for task in self.before.tasks)
        return replace(self.before, tasks=tasks, files=named, objects=tuple(self._object(item) for item in self.before.objects))

    def _thing(self, kind: str, number: Any) -> int:
        return self.things.setdefault((kind, number), len(self.things) + 1)

    def _file(self, file: OpenFile) -> OpenFile:
        state: dict[str, Any] = dict(file.state)
        for key in IDENTITIES.get(file.kind, ()):
            sort = "memory" if file.kind == "memfd" else "socket"
            if isinstance(state.get(key), list):
                state[key] = [self._thing(sort, number) for number in state[key]]
            elif state.get(key):
                state[key] = self._thing(sort, state[key])
        if file.kind == "file" and state.get("deleted"):
            state |= {"dev": 0, "ino": self._thing("memory", state["ino"]), "path": _UNNAMED.sub("/#", state["path"])}
        if file.kind == "file" and _PROC.match(str(state.get("path", ""))):
            state |= {"dev": 0, "ino": 0}  # named by its path: the kernel numbers what is in /proc when it is looked at
        if file.kind in IDENTITIES:
            state = {key: value for key, value in state.items() if key not in NOISE}
        if file.kind == "epoll":
            state["entries"] = self._entries(state["entries"])
        return replace(file, id=self.names[file.id], state=state)

    def _entries(self, entries: Iterable[State]) -> list[dict[str, Any]]:
        named = ({**entry, "file": self.names.get(entry["file"], -1)} for entry in entries)
        return sorted(named, key=lambda entry: (entry["fd"], entry["file"]))

    def _object(self, item: SharedObject) -> SharedObject:
        return replace(item, space=0, dev=0, ino=self._thing("memory", item.ino))

    def _task(self, task: Task) -> Task:
        descriptors = tuple(replace(item, file=self.names[item.file]) for item in task.descriptors)
        memory = next(other.pid for other in self.before.tasks if other.mm == task.mm)
        return replace(task, mm=memory, descriptors=descriptors, mappings=tuple(_merged(self._mapping(item) for item in task.mappings)))

    def _mapping(self, item: Vma) -> Vma:
        if item.backing.kind != "object" and not item.backing.deleted:
            return item
        path = _UNNAMED.sub("/#", item.backing.path)
        return replace(item, backing=replace(item.backing, dev=0, ino=self._thing("memory", item.backing.ino), path=path))


def _merged(mappings: Iterable[Vma]) -> Iterable[Vma]:
    last: Vma | None = None
    for item in mappings:
        if last is not None and item.backing.kind == "anonymous" and last.end == item.start and _says(last) == _says(item):
            last = replace(last, end=item.end)
            continue
        if last is not None:
            yield last
        last = item
    if last is not None:
        yield last


def _says(item: Vma) -> Vma:
    return replace(item, start=0, end=0)
