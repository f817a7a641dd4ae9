"""ckpt trace: what a living tree does, look by look.

Each look covers the time since the last one: the calls that threads are in now, what was written first in between, who came and went.
Between two looks the ring of writes is emptied, so that it need not hold all of a long interval.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from ckpt.live import clock, runtime
from ckpt.live.activity import FunctionWrites, MappingWrites, by_function, by_mapping, layouts
from ckpt.live.blocked import USER
from ckpt.live.inflight import InFlight
from ckpt.live.protection import Protection
from ckpt.live.symbols import Symbols
from ckpt.live.telemetry import Change, Kind, Telemetry
from ckpt.model import PidRef
from ckpt.ops.interrupts import held
from ckpt.ops.periodic import DRAIN_S
from ckpt.ops.settle import settle
from ckpt.syscalls import names


@dataclass(frozen=True, slots=True)
class Look:
    pid: int
    now_ns: int  #: the machine's CLOCK_MONOTONIC
    interval_ns: int
    since_ns: int  #: when tracing began
    tracking: str  #: live/protection.py: ANEW, SINCE, NONE
    scanned: int | None  #: pages written by what the scan says, where it was asked
    lost: int  #: writes of which nothing is known but their number
    threads: tuple[InFlight, ...]
    ended: dict[int, int]  #: tid -> calls that ended in the interval
    mappings: tuple[MappingWrites, ...]
    functions: tuple[FunctionWrites, ...]
    pages: int  #: of which somebody wrote
    changes: tuple[Change, ...]  #: who came, executed, went
    calls: dict[str, int]  #: that changed mappings: name -> how many
    untold: int  #: changes that found no room
    warnings: tuple[str, ...]

    def rate(self, count: int) -> float:
        """A second."""
        return count * 1e9 / self.interval_ns

    def json(self) -> dict[str, Any]:
        return {
            "pid": self.pid,
            "time_ns": time.time_ns() - clock.now_ns() + self.now_ns,
            "interval_ns": self.interval_ns,
            "tracking": self.tracking,
            "threads": [self._thread(one) for one in self.threads],
            "writes": {
                "pages": self.pages,
                "per_s": round(self.rate(self.pages), 1),
                "scanned": self.scanned,
                "lost": self.lost,
                "mappings": [{**_plain(one), "per_s": round(self.rate(one.pages), 1)} for one in self.mappings],
                "functions": [{**_plain(one), "per_s": round(self.rate(one.pages), 1)} for one in self.functions],
            },
            "changes": [_change(one) for one in self.changes],
            "mapping_calls": self.calls,
            "changes_lost": self.untold,
            "warnings": list(self.warnings),
        }

    def duration_ns(self, thread: InFlight) -> int | None:
        """For how long it has been in its call; None: in none, or longer than we look."""
        return None if thread.nr == USER or thread.since_ns is None else max(0, self.now_ns - thread.since_ns)

    def _thread(self, one: InFlight) -> dict[str, Any]:
        blocked = one.nr is not None and one.nr != USER
        return {
            "pid": one.pid,
            "tid": one.tid,
            "command": one.command,
            "call": names.name(one.nr) if one.nr is not None and blocked else None,
            "nr": one.nr,
            "args": list(one.args) if blocked else [],
            "for_ns": self.duration_ns(one),
            "at_least_ns": self.now_ns - self.since_ns if blocked and one.since_ns is None else None,
            "last_call": names.name(one.last_nr) if one.last_nr != USER else None,
            "last_result": one.last_result if one.last_nr != USER else None,
            "calls_per_s": round(self.rate(self.ended.get(one.tid, 0)), 1),
        }


def _plain(one: MappingWrites | FunctionWrites) -> dict[str, Any]:
    return {name: getattr(one, name) for name in one.__slots__}


def mapping_calls(changes: Iterable[Change]) -> dict[str, int]:
    return dict(Counter(names.name(one.value) for one in changes if one.kind == Kind.MAPPING))


def _change(one: Change) -> dict[str, Any]:
    told: dict[str, Any] = {"kind": one.kind.name.lower(), "pid": one.pid, "tid": one.tid}
    if one.kind in (Kind.FORK, Kind.THREAD):
        told["parent"] = one.result
    elif one.kind == Kind.END:
        told |= {"status": one.value, "process": bool(one.result)}
    return told


def trace(pid: int, every_s: float, for_s: float | None, *, rearm: bool = False) -> Generator[Look, None, None]:
    """A look each `every_s` until the process ends or `for_s` is over. Raises NotFoundError (6), PermissionDeniedError (4), CkptError (1:
    BPF cannot be used here)."""
    settle(pid)
    ref = PidRef(pid, runtime.start_ticks(pid))
    protection = Protection(ref, rearm=rearm)
    with Telemetry(ref, calls=True) as telemetry:
        try:
            protection.again()
            telemetry.written()
            yield from _looks(ref, telemetry, protection, every_s, for_s)
        finally:
            with held():
                protection.close()


def _looks(ref: PidRef, telemetry: Telemetry, protection: Protection, every_s: float, for_s: float | None) -> Iterator[Look]:
    symbols = Symbols()
    start = last = clock.now_ns()
    end = start + int(for_s * 1e9) if for_s is not None else None
    due, before = start, dict[int, int]()
    lives = True
    while lives and (end is None or last < end):
        due = max(due + int(every_s * 1e9), clock.now_ns())
        lives = _wait(ref, telemetry, due if end is None else min(due, end))
        threads = telemetry.calls()
        now = clock.now_ns()
        written = telemetry.written()
        changes, untold = telemetry.changes()
        maps = layouts(written.first)  # before anything else: mappings go
        scanned = protection.again() if lives else None
        counts = {one.tid: one.count for one in threads}
        yield Look(
            pid=ref.pid,
            now_ns=now,
            interval_ns=max(now - last, 1),
            since_ns=telemetry.since_ns,
            tracking=protection.mode,
            scanned=scanned,
            lost=written.lost,
            threads=tuple(threads),
            ended={tid: count - before.get(tid, 0) for tid, count in counts.items()},
            mappings=tuple(by_mapping(written.first, maps)),
            functions=tuple(by_function(written.first, maps, symbols)),
            pages=len(written.first),
            changes=tuple(one for one in changes if one.kind != Kind.MAPPING),
            calls=mapping_calls(changes),
            untold=untold,
            warnings=protection.warnings,
        )
        last, before = now, counts


def _wait(ref: PidRef, telemetry: Telemetry, until_ns: int) -> bool:
    """Whether the process still lives."""
    while (left := until_ns - clock.now_ns()) > 0:
        time.sleep(min(left / 1e9, DRAIN_S))
        telemetry.drain()
        if not runtime.lives(ref.pid, ref.start_ticks):
            return False
    return runtime.lives(ref.pid, ref.start_ticks)
