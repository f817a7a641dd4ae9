"""POSIX timers of a process: which there are (/proc/PID/timers), and what remains of each (timer_gettime).

Questions are put before anybody knows which timers there are, and the kernel numbers them from 0 up and reuses no number
soon: so the first numbers are asked. A timer beyond them is captured without its time; only a rollback that would have to
set it is refused. Whether a timer was set to an instant cannot be read: all get their remaining time back.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import PosixTimer, parse_timers
from ckpt.syscalls.names import nr

ASKED = 16
PR_TIMER_CREATE_RESTORE_IDS = 77  #: 6.16: timer_create takes the number that the caller presets
_ITIMERSPEC = struct.Struct("<4q")
_SECOND = 1_000_000_000
_NOTIFY = {"signal": 0, "none": 1, "thread": 2}
_SIGEV_THREAD_ID = 4
_IDENTITY = ("signo", "sigval", "notify", "tid", "clock")


class PosixTimers:
    name = "posix_timers"
    per_thread = False
    proc_files = ("timers",)
    questions = tuple(Question(nr("timer_gettime"), (number, 0), 1, _ITIMERSPEC.size) for number in range(ASKED))

    def parse(self, raw: RawTask) -> State:
        timers = parse_timers(raw.files.get("timers", b""))
        return {"timers": {str(timer.id): self._timer(timer, raw) for timer in timers}}

    def _timer(self, timer: PosixTimer, raw: RawTask) -> dict[str, Any]:
        state: dict[str, Any] = {key: getattr(timer, key) for key in _IDENTITY}
        state |= {"interval": None, "remaining": None}
        if timer.id < len(raw.answers) and raw.answers[timer.id].retval == 0:
            parts = _ITIMERSPEC.unpack(raw.answers[timer.id].data[: _ITIMERSPEC.size])
            state |= {"interval": parts[0] * _SECOND + parts[1], "remaining": parts[2] * _SECOND + parts[3]}
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        here, there = dict(now.get("timers", {})), wanted.get("timers", {})
        calls: list[RemoteCall] = []
        for number, timer in here.items():
            if number not in there or any(there[number][key] != timer[key] for key in _IDENTITY):
                calls.append(call(nr("timer_delete"), int(number), note=f"delete POSIX timer {number}"))
        for number, timer in sorted(there.items(), key=lambda item: int(item[0])):  # /proc lists the newest first
            kept = number in here and all(here[number][key] == timer[key] for key in _IDENTITY)
            if kept and here[number] == timer and not timer["remaining"] and not timer["interval"]:
                continue
            if timer["remaining"] is None:
                raise CannotUndo(f"POSIX timer {number}: its time is not known")
            calls += [] if kept else self._create(int(number), timer)
            # Expired, its signal still pending (and queued again): nothing remains, but a value of 0 would disarm it for good.
            remaining = timer["remaining"] or timer["interval"]
            if remaining or kept:
                spec = _ITIMERSPEC.pack(*divmod(timer["interval"], _SECOND), *divmod(remaining, _SECOND))
                note = f"POSIX timer {number}: {timer['remaining']} ns left"
                calls.append(call(nr("timer_settime"), int(number), 0, spec, 0, note=note))
        return calls

    def _create(self, number: int, timer: State) -> list[RemoteCall]:
        notify = _NOTIFY[timer["notify"]] | (_SIGEV_THREAD_ID if timer["tid"] else 0)
        event = struct.pack("<Qiii44x", timer["sigval"], timer["signo"], notify, timer["tid"])
        return [
            call(nr("prctl"), PR_TIMER_CREATE_RESTORE_IDS, 1, 0, 0, 0, note="timers may choose their number"),
            call(nr("timer_create"), timer["clock"], event, struct.pack("<i", number), note=f"create POSIX timer {number}"),
            call(nr("prctl"), PR_TIMER_CREATE_RESTORE_IDS, 0, 0, 0, 0, note="and no longer"),
        ]


KIND = PosixTimers()
