"""Which space of the store a memory or a shared object of this capture is.

The core numbers memories by their place in the tree of the moment; a child that ends shifts the numbers of those behind
it. A space of the store must mean the same memory from generation to generation, or SAME pages would be somebody else's.
So a memory keeps the number that its process (pid and start time) had in the parent generation, an object the number of
its (device, inode); new ones get numbers that the parent does not use. A tree that was restored since has other start times: its
memories are those of the same pids.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.live.core import ThreadId
from ckpt.live.records import RawObject
from ckpt.model import Snapshot

OBJECTS = 1_000_000  #: the first number of an object space


class Spaces:
    def __init__(self, threads: Sequence[ThreadId], parent: Snapshot | None) -> None:
        born = {thread.pid: thread.start_ticks for thread in threads if thread.tid == thread.pid}
        restored = parent is not None and born.get(parent.root.pid, parent.root.start_ticks) != parent.root.start_ticks
        starts = born if restored else {}
        self._memories = {(t.pid, starts.get(t.pid, t.start_ticks)): t.mm for t in parent.tasks} if parent else {}
        self._objects = {(o.dev, o.ino): o.space for o in parent.objects} if parent else {}
        self._next = max(self._memories.values(), default=-1) + 1
        self._next_object = max(self._objects.values(), default=OBJECTS - 1) + 1
        self._by_native: dict[int, int] = {}
        self.learn(threads)

    def learn(self, threads: Sequence[ThreadId]) -> None:
        """Takes in tasks that were found later (a fork before the freeze). Leaders come first for each process."""
        for thread in threads:
            if thread.tid != thread.pid or thread.mm in self._by_native:
                continue
            known = self._memories.get((thread.pid, thread.start_ticks))
            if known is None or known in self._by_native.values():
                known, self._next = self._next, self._next + 1
            self._by_native[thread.mm] = known

    def learn_objects(self, objects: Sequence[RawObject]) -> None:
        for item in objects:
            known = self._objects.get((item.dev, item.ino))
            if known is None:
                known, self._next_object = self._next_object, self._next_object + 1
            self._by_native[item.space] = known

    def store(self, native: int) -> int:
        """The store's space for one of the core's."""
        return self._by_native[native]
