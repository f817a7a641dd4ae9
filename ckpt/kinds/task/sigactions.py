"""Signal dispositions of a process: rt_sigaction(2) for each of the 64 signals. Only those that are not the default are kept."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

SIGNALS = range(1, 65)
_UNCHANGEABLE = (9, 19)  #: SIGKILL, SIGSTOP
_SIGSET = 8
_ACTION = struct.Struct("<4Q")  #: struct kernel_sigaction: handler, flags, restorer, mask
_DEFAULT = (0, 0, 0, 0)


class SignalActions:
    name = "sigactions"
    per_thread = False
    proc_files: tuple[str, ...] = ()
    questions = tuple(Question(nr("rt_sigaction"), (signal, 0, 0, _SIGSET), 2, _ACTION.size) for signal in SIGNALS)

    def parse(self, raw: RawTask) -> State:
        found = {}
        for signal, answer in zip(SIGNALS, raw.answers, strict=False):
            action = _ACTION.unpack(answer.data[: _ACTION.size]) if answer.retval == 0 else _DEFAULT
            if action != _DEFAULT:
                found[str(signal)] = list(action)
        return {"actions": found} if raw.answers else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        here, there = now.get("actions", {}), wanted.get("actions")
        if there is None:
            return []
        calls = []
        for signal in SIGNALS:
            want = tuple(there.get(str(signal), _DEFAULT))
            if signal not in _UNCHANGEABLE and tuple(here.get(str(signal), _DEFAULT)) != want:
                note = f"disposition of signal {signal}"
                calls.append(call(nr("rt_sigaction"), signal, _ACTION.pack(*want), 0, _SIGSET, note=note))
        return calls


KIND = SignalActions()
