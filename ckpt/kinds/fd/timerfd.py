"""timerfd: clock, what remains, interval, expirations not read yet.

A relative timer gets its remaining time back. One that was set to an instant (TFD_TIMER_ABSTIME) keeps the instant: fdinfo
shows what remains in both cases, so the clock at that moment travels with the answer (Work.TIMERFD) and the sum is stored.
timerfd_settime clears the expirations, so they are set afterwards (TFD_IOC_SET_TICKS; 0 is EINVAL there).
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

TFD_TIMER_ABSTIME, TFD_TIMER_CANCEL_ON_SET = 1, 2
TFD_IOC_SET_TICKS = 0x4008_5400
_SECOND = 1_000_000_000
_ITIMERSPEC = struct.Struct("<4q")
#: clockid -> which of the readings (monotonic, realtime, boot time) it goes by; 8 and 9 are those that wake the machine
_CLOCKS = {0: 1, 1: 0, 7: 2, 8: 1, 9: 2}


def timespec(ns: int) -> tuple[int, int]:
    return divmod(ns, _SECOND)


class Timerfd:
    name = "timerfd"
    order = 12
    wants = (Wants(prefix="anon_inode:[timerfd]", work=Work.TIMERFD),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link == "anon_inode:[timerfd]"

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        timer, answer = info.timer, raw.work.get(Work.TIMERFD, b"")
        if timer is None:
            raise Unsupported("timerfd: its state cannot be read")
        interval, value = timer.interval, timer.value
        if len(answer) >= _ITIMERSPEC.size:
            parts = _ITIMERSPEC.unpack_from(answer)
            interval, value = parts[0] * _SECOND + parts[1], parts[2] * _SECOND + parts[3]
        absolute = bool(timer.settime_flags & TFD_TIMER_ABSTIME)
        expires = 0
        if absolute and value and timer.clockid in _CLOCKS and len(answer) >= _ITIMERSPEC.size + 24:
            expires = value + struct.unpack_from("<3Q", answer, _ITIMERSPEC.size)[_CLOCKS[timer.clockid]]
        state = {
            "clock": timer.clockid,
            "absolute": absolute,
            "cancel": bool(timer.settime_flags & TFD_TIMER_CANCEL_ON_SET),  # when the clock is set
            "remaining": value,
            "expires": expires,  # the instant, where it is absolute and known
            "interval": interval,
            "ticks": timer.ticks,
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        if now.state["clock"] != wanted.state["clock"]:
            raise CannotUndo("timerfd: it goes by another clock")
        idle = ("remaining", "interval", "ticks")
        same_idle = all(now.state[key] == wanted.state[key] for key in idle) and not wanted.state["remaining"]
        return [*([] if same_idle else self._set(fd, wanted)), *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        flags = wanted.flags & os.O_NONBLOCK
        made = call(nr("timerfd_create"), wanted.state["clock"], flags, note=f"timerfd of clock {wanted.state['clock']}")
        return [made, *self._set(result(0), wanted), same(0)]

    def _set(self, fd: int | RemoteArg, wanted: OpenFile) -> list[RemoteCall]:
        state = wanted.state
        instant = state["absolute"] and state["expires"]
        value = state["expires"] if instant else state["remaining"]
        spec = _ITIMERSPEC.pack(*timespec(state["interval"]), *timespec(value))
        note = f"timerfd at its instant {value} ns" if instant else f"timerfd with {value} ns left"
        flags = TFD_TIMER_ABSTIME | (TFD_TIMER_CANCEL_ON_SET if state.get("cancel") else 0) if instant else 0
        calls = [call(nr("timerfd_settime"), fd, flags, spec, 0, note=note)]
        if state["ticks"]:
            ticks = struct.pack("<Q", state["ticks"])
            calls.append(call(nr("ioctl"), fd, TFD_IOC_SET_TICKS, ticks, note=f"{state['ticks']} expirations not read yet"))
        return calls


KIND = Timerfd()
