"""A snapshot against a snapshot: every difference, page contents aside. Pure; `diff` prints it, `verify` demands that it is empty.

Processes are matched by pid, the root always with the root (a restored tree may have new pids). Threads by tid, descriptors
by number, mappings by where they start, attributes by kind. Identities that mean something only inside one snapshot
(OpenFile.id, spaces) are compared by what they say: which descriptors share one open file.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass
from struct import Struct
from typing import Any, TypeVar

from ckpt.model import Action, Descriptor, Mapping, OpenFile, Snapshot, State, Task, Thread

Item = TypeVar("Item")

#: struct user_regs_struct of x86-64, in order.
REGISTERS = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_REGS = Struct("<27Q")
_XSTATE_BV = slice(512, 520)  # the first word of the header behind the legacy area
_OF_TASK = ("pid", "start_ticks", "ppid", "pgid", "sid", "comm", "exit_signal", "stopped")
_OF_ZOMBIE = ("start_ticks", "ppid", "pgid", "sid", "comm", "status", "exit_signal", "uid")


@dataclass(frozen=True, slots=True)
class Field:
    """One value that changed. Values are JSON-plain; bytes are hex text."""

    name: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class Difference:
    category: str  #: "process" | "thread" | "mapping" | "descriptor" | "attribute" | "object"
    change: str  #: "added" | "removed" | "changed"
    pid: int  #: as in the later snapshot; 0: of no one process
    subject: str  #: what a person calls it: "thread 4122", "fd 7 (eventfd)"
    fields: tuple[Field, ...] = ()


def compare(before: Snapshot, after: Snapshot) -> list[Difference]:
    """All differences, process by process; empty if the two say the same."""
    found: list[Difference] = []
    for old, new in _pairs(before, after):
        if old is None and new is not None:
            found.append(Difference("process", "added", new.pid, f"process {new.pid} ({new.comm})"))
        elif new is None and old is not None:
            found.append(Difference("process", "removed", old.pid, f"process {old.pid} ({old.comm})"))
        elif old is not None and new is not None:
            found += _task(old, new, before, after)
    found += _zombies(before, after)
    found += _objects(before, after)
    return found


def _pairs(before: Snapshot, after: Snapshot) -> Iterator[tuple[Task | None, Task | None]]:
    """Tasks that are the same process then and now; root with root, whatever its pid has become."""
    same = {before.root.pid: after.root.pid}
    taken: set[int] = set()
    new_by_pid = {task.pid: task for task in after.tasks}
    for old in before.tasks:
        new = new_by_pid.get(same.get(old.pid, old.pid))
        if new is not None and new.pid not in taken:
            taken.add(new.pid)
            yield old, new
        else:
            yield old, None
    for task in after.tasks:
        if task.pid not in taken:
            yield None, task


def _task(old: Task, new: Task, before: Snapshot, after: Snapshot) -> Iterator[Difference]:
    pid = new.pid
    fields = _fields((name, getattr(old, name), getattr(new, name)) for name in _OF_TASK)
    fields += _fields([("pending", _hexes(old.pending), _hexes(new.pending)), ("shares", dict(old.shares), dict(new.shares))])
    fields += _fields([("memory", _with_memory(old, before), _with_memory(new, after))])
    if fields:
        yield Difference("process", "changed", pid, f"process {pid} ({new.comm})", fields)
    yield from _matched("thread", pid, _by(old.threads, lambda t: t.tid), _by(new.threads, lambda t: t.tid), _thread_name, _thread_fields)
    yield from _matched(
        "mapping", pid, _by(old.mappings, lambda m: m.start), _by(new.mappings, lambda m: m.start), mapping_title, _mapping_fields
    )
    yield from _descriptors(old, new, before, after)
    yield from _attributes(pid, "process", old.attributes, new.attributes)


def _with_memory(task: Task, snapshot: Snapshot) -> list[int]:
    """Other tasks with the same memory."""
    return sorted(other.pid for other in snapshot.tasks if other.mm == task.mm and other.pid != task.pid)


def _zombies(before: Snapshot, after: Snapshot) -> Iterator[Difference]:
    then, now = ({dead.pid: dead for dead in snapshot.zombies} for snapshot in (before, after))
    for pid in sorted(then.keys() | now.keys()):
        old, new = then.get(pid), now.get(pid)
        title = f"dead child {pid} ({(new or old or then[pid]).comm})"
        if old is None or new is None:
            yield Difference("process", "added" if old is None else "removed", pid, title)
        elif changed := _fields((name, getattr(old, name), getattr(new, name)) for name in _OF_ZOMBIE):
            yield Difference("process", "changed", pid, title, changed)


def _matched(
    category: str,
    pid: int,
    old: MappingABC[int, Item],
    new: MappingABC[int, Item],
    name: Callable[[Item], str],
    fields: Callable[[Item, Item], tuple[Field, ...]],
) -> Iterator[Difference]:
    for key in sorted(old.keys() | new.keys()):
        if key not in new:
            yield Difference(category, "removed", pid, name(old[key]))
        elif key not in old:
            yield Difference(category, "added", pid, name(new[key]))
        elif changed := fields(old[key], new[key]):
            yield Difference(category, "changed", pid, name(new[key]), changed)


def _by(items: Iterable[Item], key: Callable[[Item], int]) -> dict[int, Item]:
    return {key(item): item for item in items}


def _continues(action: Action) -> str:
    """Whether the call goes on or has its result; how its deadline is kept, or was put in place, is not the call's."""
    return str(Action.KEEP if action is Action.KEEP else Action.RESTART)


def _fields(triples: Iterable[tuple[str, Any, Any]]) -> tuple[Field, ...]:
    return tuple(Field(name, old, new) for name, old, new in triples if old != new)


def _hexes(blobs: Sequence[bytes]) -> list[str]:
    return [blob.hex() for blob in blobs]


# ---- threads ----


def _thread_name(thread: Thread) -> str:
    return f"thread {thread.tid}"


def registers(regs: bytes) -> dict[str, int]:
    """struct user_regs_struct by name; bytes of another size (another architecture) as one number."""
    if len(regs) != _REGS.size:
        return {"regs": int.from_bytes(regs, "little")}
    return dict(zip(REGISTERS, _REGS.unpack(regs), strict=True))


def _thread_fields(old: Thread, new: Thread) -> tuple[Field, ...]:
    then, now = registers(old.regs), registers(new.regs)
    fields = _fields((name, then.get(name), now.get(name)) for name in dict.fromkeys([*then, *now]))
    if _vectors(old.xstate) != _vectors(new.xstate):
        fields += _fields([("xstate", _digest(old.xstate), _digest(new.xstate))])
    fields += _fields((name, getattr(old, name), getattr(new, name)) for name in ("start_ticks", "sigmask"))
    fields += _fields([("pending", _hexes(old.pending), _hexes(new.pending))])
    fields += _fields((f"syscall.{name}", getattr(old.syscall, name), getattr(new.syscall, name)) for name in ("phase", "nr", "raw_retval"))
    fields += _fields([("syscall.args", list(old.syscall.args), list(new.syscall.args))])
    fields += _fields([("decision", _continues(old.decision.action), _continues(new.decision.action))])
    for kind in sorted(old.attributes.keys() | new.attributes.keys()):
        fields += _state_fields(f"{kind}.", old.attributes.get(kind, {}), new.attributes.get(kind, {}))
    return fields


def _vectors(xstate: bytes) -> bytes:
    """All contents, without XSTATE_BV. It says which components the processor has in use, and for one that holds its initial values that is
    up to the processor (Intel SDM 1, 13.6: XINUSE); what is not in use the kernel fills with those values (copy_xstate_to_uabi)."""
    return xstate[: _XSTATE_BV.start] + xstate[_XSTATE_BV.stop :]


def _digest(blob: bytes) -> str:
    """Kilobytes of vector registers are told apart, not printed. The two are known to differ."""
    return f"{len(blob)} bytes, {hash_text(blob)}"


def hash_text(blob: bytes) -> str:
    import hashlib

    return hashlib.blake2b(blob, digest_size=6).hexdigest()


# ---- mappings ----


def mapping_title(mapping: Mapping) -> str:
    name = mapping.name or mapping.backing.path or f"[{mapping.backing.kind}]"
    return f"{mapping.start:x}-{mapping.end:x} {name}"


_IN_MAPS = 0x23  #: MAP_SHARED, MAP_PRIVATE, MAP_ANONYMOUS


def _ranges(mapping: Mapping) -> list[str]:
    return [f"{start:x}-{end:x}" for start, end in mapping.guards]


def _mapping_fields(old: Mapping, new: Mapping) -> tuple[Field, ...]:
    told = old.advice is not None and new.advice is not None  # older generations do not know it, nor the flags that it tells
    flags = [("flags", old.flags, new.flags)] if told else [("flags", old.flags & _IN_MAPS, new.flags & _IN_MAPS)]
    fields = _fields([*((name, getattr(old, name), getattr(new, name)) for name in ("end", "prot")), *flags, ("name", old.name, new.name)])
    if told:
        fields += _fields([("advice", " ".join(old.advice or ()), " ".join(new.advice or ())), ("guards", _ranges(old), _ranges(new))])
    backing = ("kind", "path", "dev", "ino", "offset", "size", "mtime_ns", "deleted")
    return fields + _fields((f"backing.{name}", getattr(old.backing, name), getattr(new.backing, name)) for name in backing)


# ---- descriptors and what they share ----


@dataclass(frozen=True, slots=True)
class _Open:
    """A descriptor with its open file, and the first descriptor of the snapshot that shares it."""

    descriptor: Descriptor
    file: OpenFile
    shares: tuple[int, int]  #: (place of the task in the snapshot, fd)


def _opened(task: Task, snapshot: Snapshot) -> dict[int, _Open]:
    files = {file.id: file for file in snapshot.files}
    first: dict[int, tuple[int, int]] = {}
    for place, each in enumerate(snapshot.tasks):
        for descriptor in each.descriptors:
            first.setdefault(descriptor.file, (place, descriptor.fd))
    return {item.fd: _Open(item, files[item.file], first[item.file]) for item in task.descriptors}


def _descriptors(old: Task, new: Task, before: Snapshot, after: Snapshot) -> Iterator[Difference]:
    def name(item: _Open) -> str:
        return f"fd {item.descriptor.fd} ({item.file.kind})"

    def fields(then: _Open, now: _Open) -> tuple[Field, ...]:
        changed = _fields([("cloexec", then.descriptor.cloexec, now.descriptor.cloexec)])
        changed += _fields((what, getattr(then.file, what), getattr(now.file, what)) for what in ("kind", "flags", "pos"))
        changed += _fields([("shares", list(then.shares), list(now.shares))])
        return changed + _state_fields("", then.file.state, now.file.state)

    yield from _matched("descriptor", new.pid, _opened(old, before), _opened(new, after), name, fields)


# ---- attributes, objects ----


def _attributes(pid: int, owner: str, old: MappingABC[str, State], new: MappingABC[str, State]) -> Iterator[Difference]:
    for kind in sorted(old.keys() | new.keys()):
        if changed := _state_fields("", old.get(kind, {}), new.get(kind, {})):
            yield Difference("attribute", "changed", pid, f"{kind} of the {owner}", changed)


def _state_fields(prefix: str, old: State, new: State) -> tuple[Field, ...]:
    return _fields((prefix + key, old.get(key), new.get(key)) for key in sorted(old.keys() | new.keys()))


def _objects(before: Snapshot, after: Snapshot) -> Iterator[Difference]:
    def key(item: Any) -> Hashable:
        return (item.dev, item.ino)

    then, now = {key(item): item for item in before.objects}, {key(item): item for item in after.objects}
    for identity in sorted(then.keys() | now.keys(), key=repr):
        item = now.get(identity) or then[identity]
        title = f"shared memory {item.dev:x}:{item.ino}"
        if identity not in now:
            yield Difference("object", "removed", 0, title)
        elif identity not in then:
            yield Difference("object", "added", 0, title)
        elif then[identity].size != item.size:
            yield Difference("object", "changed", 0, title, (Field("size", then[identity].size, item.size),))
