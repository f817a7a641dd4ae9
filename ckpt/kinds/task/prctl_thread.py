"""Attributes of a thread that only prctl(2) tells: signal at the parent's death, keep capabilities, timer slack."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_SET_PDEATHSIG, _GET_PDEATHSIG = 1, 2
_GET_KEEPCAPS, _SET_KEEPCAPS = 7, 8
_SET_TIMERSLACK, _GET_TIMERSLACK = 29, 30
_SET = {"keepcaps": _SET_KEEPCAPS, "timerslack": _SET_TIMERSLACK, "pdeathsig": _SET_PDEATHSIG}


class ThreadBits:
    name = "prctl_thread"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = (
        Question(nr("prctl"), (_GET_PDEATHSIG, 0, 0, 0, 0), 1, 4),
        Question(nr("prctl"), (_GET_KEEPCAPS, 0, 0, 0, 0)),
        Question(nr("prctl"), (_GET_TIMERSLACK, 0, 0, 0, 0)),
    )

    def parse(self, raw: RawTask) -> State:
        if not raw.answers:
            return {}
        death, keep, slack = raw.answers
        found = {"pdeathsig": int.from_bytes(death.data[:4], "little"), "keepcaps": keep.retval, "timerslack": slack.retval}
        return {name: number for name, number in found.items() if number >= 0}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        differing = [(name, wanted[name]) for name in _SET if name in wanted and now.get(name) != wanted[name]]
        return [call(nr("prctl"), _SET[name], want, 0, 0, 0, note=f"{name} {want}") for name, want in differing]


KIND = ThreadBits()
