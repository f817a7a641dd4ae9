"""The three interval timers of a process (getitimer): what remains and the interval, in microseconds. A rollback gives the
remaining time back."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_TIMERS = ("real", "virtual", "prof")  #: ITIMER_REAL 0, ITIMER_VIRTUAL 1, ITIMER_PROF 2
_ITIMERVAL = struct.Struct("<4q")  #: interval, value: struct timeval each
_MILLION = 1_000_000


class IntervalTimers:
    name = "itimers"
    per_thread = False
    proc_files: tuple[str, ...] = ()
    questions = tuple(Question(nr("getitimer"), (which, 0), 1, _ITIMERVAL.size) for which in range(len(_TIMERS)))

    def parse(self, raw: RawTask) -> State:
        found = {}
        for title, answer in zip(_TIMERS, raw.answers, strict=False):
            parts = _ITIMERVAL.unpack(answer.data[: _ITIMERVAL.size])
            found[title] = {"interval_us": parts[0] * _MILLION + parts[1], "remaining_us": parts[2] * _MILLION + parts[3]}
        return found

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        calls = []
        for which, title in enumerate(_TIMERS):
            want = wanted.get(title)
            if want is None or now.get(title, {"interval_us": 0, "remaining_us": 0}) == want:
                continue
            # Expired, its signal still pending (and queued again): nothing remains, but a value of 0 would disarm it for good.
            remaining = want["remaining_us"] or want["interval_us"]
            spec = _ITIMERVAL.pack(*divmod(want["interval_us"], _MILLION), *divmod(remaining, _MILLION))
            calls.append(call(nr("setitimer"), which, spec, 0, note=f"ITIMER_{title.upper()}: {want['remaining_us']} us left"))
        return calls


KIND = IntervalTimers()
