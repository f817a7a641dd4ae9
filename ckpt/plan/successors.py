"""Shared anonymous memory that a restore has made anew, known as what it stands for. Pure.

A generation of an earlier life names memory that is gone; what lives now at its place has another inode. Taken for different things the
living one would be unmapped and another made, in tasks that may have no right to hand it on (opening an entry of map_files needs
CAP_CHECKPOINT_RESTORE). One that is mapped whole, at the same place of the same task, is the same to every program that has it: its
contents are brought back where it is.
"""

from __future__ import annotations

from collections.abc import Mapping as MappingABC
from dataclasses import replace

from ckpt.model import Mapping, SharedObject, Snapshot, Task
from ckpt.plan.batch import MAP_SHARED, page_up

_ANONYMOUS = ("/dev/zero", "[anon_shmem")

Key = tuple[int, int]


def renamed(wanted: Snapshot, now: Snapshot) -> Snapshot:
    """`wanted` with the names that its shared anonymous memory has now, where it has a successor."""
    here = {_key(mapping) for task in now.tasks for mapping in task.mappings}
    at = {(task.pid, mapping.start): mapping for task in now.tasks for mapping in task.mappings if _is_shared(mapping)}
    named = {_key(item) for item in wanted.objects}
    found: dict[Key, Key] = {}
    for item in wanted.objects:
        if _key(item) in here:
            continue
        successors = {_key(there) for task in wanted.tasks for there in _in_place(item, task, at)}
        if len(successors) == 1:
            found[_key(item)] = successors.pop()
    claimed = list(found.values())
    found = {old: new for old, new in found.items() if claimed.count(new) == 1 and new not in named}
    if not found:
        return wanted
    names = [found.get(_key(item), _key(item)) for item in wanted.objects]
    objects = tuple(replace(item, dev=dev, ino=ino) for item, (dev, ino) in zip(wanted.objects, names, strict=True))
    return replace(wanted, tasks=tuple(_task(task, found) for task in wanted.tasks), objects=objects)


def _in_place(item: SharedObject, task: Task, at: MappingABC[tuple[int, int], Mapping]) -> list[Mapping]:
    """Living mappings of a whole object where the task had all of this one."""
    found = []
    for mapping in task.mappings:
        there = at.get((task.pid, mapping.start))
        whole = _is_shared(mapping) and _key(mapping) == _key(item) and mapping.end - mapping.start == page_up(item.size)
        if there is not None and whole and there.end == mapping.end:
            found.append(there)
    return found


def _is_shared(mapping: Mapping) -> bool:
    backing = mapping.backing
    return bool(backing.kind == "object" and not backing.offset and mapping.flags & MAP_SHARED and backing.path.startswith(_ANONYMOUS))


def _key(one: Mapping | SharedObject) -> Key:
    return (one.backing.dev, one.backing.ino) if isinstance(one, Mapping) else (one.dev, one.ino)


def _task(task: Task, found: MappingABC[Key, Key]) -> Task:
    def one(mapping: Mapping) -> Mapping:
        new = found.get(_key(mapping)) if mapping.backing.kind == "object" else None
        return replace(mapping, backing=replace(mapping.backing, dev=new[0], ino=new[1])) if new else mapping

    return replace(task, mappings=tuple(map(one, task.mappings)))
