"""What a restored tree may say otherwise than its generation, each with the reason; everything else is a fault of the restore.

This is the one list. `unfaithful` is what `ckpt verify` demands to be empty. It compares what was captured with what a capture
of the restored tree shows before its first instruction, so nothing has had time to go on but the clocks.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Mapping as MappingABC
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from ckpt.compare.canonical import canonical
from ckpt.compare.snapshots import Difference, Field, compare
from ckpt.kinds.fd import tcp
from ckpt.kinds.fd.epoll import fired
from ckpt.kinds.fd.multicast import in_own_network, same_groups
from ckpt.kinds.fd.sigio import members as owners
from ckpt.model import Mapping, Snapshot, State, Task
from ckpt.syscalls import int80

SI_TIMER = -2
TICK = 10_000_000  #: live/clock.py, 3
SIGALRM, SI_KERNEL = 14, 0x80
NO_CALL = 2**64 - 1  #: orig_rax
RESTART_SYSCALL, RESTART_BLOCK_CALLS = 219, (7, 35, 202, 230)  #: poll, nanosleep, futex, clock_nanosleep


@dataclass(frozen=True, slots=True)
class Context:
    elapsed_ns: int  #: at most so much time has passed for the clocks of the restored tree
    members: frozenset[int]  #: pids of the tree
    owners: frozenset[tuple[str, int]] = frozenset()  #: who can be told of a descriptor, and is of the tree


Judge = Callable[[Any, Any, Context], bool]


@dataclass(frozen=True, slots=True)
class May:
    """A field that may differ. `subject`: the difference's subject has it ("" = any); `judge`: how far it may."""

    category: str
    name: str
    reason: str
    subject: str = ""
    judge: Judge = lambda _before, _after, _context: True


def _outside(before: Any, _after: Any, context: Context) -> bool:
    return before not in context.members


def _stranger(before: Any, after: Any, context: Context) -> bool:
    return after is None and tuple(before) not in context.owners


def _gone_on(before: Any, after: Any, context: Context) -> bool:
    """Times that remain, in nested states: they have gone on for as long as has passed, everything else is equal."""
    if isinstance(before, MappingABC) and isinstance(after, MappingABC):
        return before.keys() == after.keys() and all(
            _remains(before[key], after[key], key, context)
            if str(key).startswith("remaining")
            else _gone_on(before[key], after[key], context)
            for key in before
        )
    return bool(before == after)


def _remains(before: Any, after: Any, name: Any, context: Context) -> bool:
    if not isinstance(before, int) or not isinstance(after, int):
        return bool(before == after)
    unit = 1000 if str(name).endswith("_us") else 1
    # It may have expired and begun anew, which the interval would tell; so long is no verify.
    return -10_000_000 <= (before - after) * unit <= context.elapsed_ns or after == 0


def _remaining(before: Any, after: Any, context: Context) -> bool:
    return _remains(before, after, "remaining", context)


def _of_timers(before: Any, after: Any, _context: Context) -> bool:
    """Signals that a timer of the tree queued meanwhile, behind those that were there."""
    more = list(after)
    for info in before:
        if info not in more:
            return False
        more.remove(info)
    return all(_is_timers(bytes.fromhex(info)) for info in more)


def _is_timers(info: bytes) -> bool:
    number, code = int.from_bytes(info[:4], "little"), int.from_bytes(info[8:12], "little", signed=True)
    return code == SI_TIMER or (number == SIGALRM and code == SI_KERNEL)


def _restarted(before: Any, after: Any, _context: Context) -> bool:
    number = int80.BASE + after % int80.BASE if isinstance(after, int) else 0
    by_int80 = before in (int80.RESTART_SYSCALL, 0) and number in int80.RESTART_BLOCK_CALLS
    return (before == RESTART_SYSCALL and after in RESTART_BLOCK_CALLS) or by_int80


def _no_call(_before: Any, after: Any, _context: Context) -> bool:
    """Whether a call was under way is compared by itself (syscall.nr)."""
    return bool(after == NO_CALL)


def _unseen(_before: Any, after: Any, _context: Context) -> bool:
    return after is None


def _instant(before: Any, after: Any, _context: Context) -> bool:
    return isinstance(before, int) and isinstance(after, int) and bool(before and after) and abs(before - after) < 1_000_000


def _on_loopback(before: Any, after: Any, _context: Context) -> bool:
    return same_groups(in_own_network(before or ()), after or ())


def _fired(before: Any, after: Any, _context: Context) -> bool:
    """Nothing but that such entries report errors and hang-ups again."""
    return [*before] == [{**new, "events": new["events"] & ~0x18} if fired(old) else new for old, new in zip(before, after, strict=False)]


_FIFO = ("path", "deleted", "ino")

MAY: tuple[May, ...] = (
    May("process", "start_ticks", "it is a new process"),
    May("thread", "start_ticks", "it is a new thread"),
    May("process", "ppid", "the parent is outside the tree", judge=_outside),
    May("process", "pgid", "the group is led from outside the tree", judge=_outside),
    May("process", "sid", "the session is led from outside the tree", judge=_outside),
    May("process", "pending", "timers run on while the process stands still", judge=_of_timers),
    May("thread", "pending", "timers run on while the process stands still", judge=_of_timers),
    May("attribute", "timers", "timers run on while the process stands still", "posix_timers", _gone_on),
    *(May("attribute", name, "timers run on, or are counted in whole ticks", "itimers", _gone_on) for name in ("real", "virtual", "prof")),
    May(
        "thread", "orig_rax", "what the kernel remembers of an interrupted wait cannot be given back: the call begins anew", "", _restarted
    ),
    May(
        "thread",
        "syscall.nr",
        "what the kernel remembers of an interrupted wait cannot be given back: the call begins anew",
        "",
        _restarted,
    ),
    *(
        May(
            "thread",
            name,
            "a wait that is just about to go on begins anew: what the kernel remembers of it cannot be given back",
            "",
            _restarted,
        )
        for name in ("rax", "syscall.raw_retval")
    ),
    May("thread", "orig_rax", "at the entry of a handler no call is under way: the number of the last one says nothing", "", _no_call),
    May("descriptor", "consumed", "a connection that is made again counts its bytes from none", "(tcp)"),
    May("descriptor", "written", "a connection that is made again counts its bytes from none", "(tcp)"),
    May("descriptor", "stream", "a connection that is made again counts its bytes from none", "(tcp)"),
    May("descriptor", "mode", "a socket's name is bound in a file system of its own while it is verified", "(unix)", _unseen),
    May("descriptor", "owner", "a socket's name is bound in a file system of its own while it is verified", "(unix)", _unseen),
    May("descriptor", "entries", "a one-shot that had fired cannot be made to fire where its file is not ready", "(epoll)", _fired),
    May("descriptor", "groups", "in a network of its own there are no interfaces of the machine", "(udp)", _on_loopback),
    May("descriptor", "count", "messages belong to the machine", "(mqueue)"),
    May("descriptor", "sigio_to", "whom it signals is outside the tree", judge=_stranger),
    May("descriptor", "size", "a file's contents are the file system's", "(file)"),
    May("descriptor", "locks", "locks are not taken, they would be seen outside", "(file)"),
    *(May("descriptor", name, "a FIFO of its own stands in: others would see what happens in the machine's", "(fifo)") for name in _FIFO),
    *(May("descriptor", name, "the number of a pty may be another's meanwhile", "(pty)") for name in ("index", "path")),
    May("attribute", "index", "the number of a pty may be another's meanwhile", "terminal of"),
    May("descriptor", "expires", "an instant is known as what remains and the clock, read one after the other", "timerfd", _instant),
    May("descriptor", "remaining", "timers run on while the process stands still", "timerfd", _remaining),
)


def unfaithful(wanted: Snapshot, found: Snapshot, elapsed_ns: int) -> list[Difference]:
    """Differences that no reason covers. Both with the same numbers of processes."""
    context = Context(elapsed_ns, frozenset(task.pid for task in wanted.tasks), owners(wanted))
    found = replace(found, tasks=tuple(_as_unknown(task, wanted) for task in found.tasks))
    left = []
    # Shared objects are compared by their pages and their sizes, where they are reached (ops/verify_pages.py).
    before = _plain(wanted)
    for difference in compare(before, _unexpired(before, _plain(found), elapsed_ns)):
        if difference.change == "changed":
            fields = tuple(field for field in difference.fields if not _may(difference, field, context))
            if not fields:
                continue
            difference = replace(difference, fields=fields)
        left.append(difference)
    return left


def _plain(snapshot: Snapshot) -> Snapshot:
    """Without what is told in another way: of a timer with an instant, what remained until then at the moment of the capture."""
    plain = canonical(snapshot)
    files = (replace(file, state={**file.state, "remaining": 0}) if file.state.get("expires") else file for file in plain.files)
    files = (replace(file, state=tcp.without_ways(file.state)) if file.kind == "tcp" and "away" in file.state else file for file in files)
    return replace(plain, objects=(), files=tuple(files))


def _unexpired(wanted: Snapshot, found: Snapshot, elapsed_ns: int) -> Snapshot:
    """Timerfds that have expired since they were set, as they were before: so often only as the time that passed allows."""
    then = {file.id: file.state for file in wanted.files if file.kind == "timerfd"}
    files = (replace(file, state=_set_back(then[file.id], file.state, elapsed_ns)) if file.id in then else file for file in found.files)
    return replace(found, files=tuple(files))


def _set_back(then: State, now: State, elapsed_ns: int) -> State:
    times, interval = now.get("ticks", 0) - then["ticks"], then["interval"]
    if times < 1 or times > (1 + elapsed_ns // interval if interval else 1):
        return now
    if interval:
        passed = times * interval
        return {**now, **{key: now[key] - passed for key in ("remaining", "expires") if now[key]}, "ticks": then["ticks"]}
    return {**now, "expires": then["expires"], "ticks": then["ticks"]} if then["expires"] or 0 < then["remaining"] <= elapsed_ns else now


def _as_unknown(task: Task, wanted: Snapshot) -> Task:
    """Where the generation does not know what a mapping was advised (it changed while it was looked at), nobody can compare."""
    before = next((one for one in wanted.tasks if one.pid == task.pid), None)
    unknown = [(item.start, item.end) for item in before.mappings if item.advice is None] if before else []
    if not unknown:
        return task
    pieces: list[Mapping] = []
    for item in task.mappings:
        edges = sorted({item.start, item.end, *(edge for span in unknown for edge in span if item.start < edge < item.end)})
        for start, end in pairwise(edges):
            inside = any(low <= start and end <= high for low, high in unknown)
            offset = item.backing.offset + start - item.start if item.backing.kind != "anonymous" else item.backing.offset
            piece = replace(item, start=start, end=end, backing=replace(item.backing, offset=offset))
            pieces.append(replace(piece, advice=None, guards=()) if inside else piece)
    return replace(task, mappings=tuple(pieces))


def clocks_go_on(wanted: Snapshot, found: Snapshot, elapsed_ns: int) -> list[Difference]:
    """Whether the clocks of a restored tree are where they were, and have gone on for no longer than it has been there."""
    then, here = wanted.features.get("clocks", {}), found.features.get("clocks", {})
    fields = [Field(name, then[name], here.get(name)) for name in then if not 0 <= here.get(name, -1) - then[name] <= elapsed_ns + TICK]
    return [Difference("process", "changed", found.root.pid, "clocks", tuple(fields))] if fields else []


def _may(difference: Difference, field: Field, context: Context) -> bool:
    return any(
        may.category == difference.category
        and may.name == field.name
        and may.subject in difference.subject
        and may.judge(field.before, field.after, context)
        for may in MAY
    )
