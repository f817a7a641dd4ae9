"""Attributes of a thread that only prctl(2) tells: signal at the parent's death, keep capabilities, timer slack, whether it may read
the time-stamp counter, how it dies of a machine check. A change of user ids clears the first: set after it."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_SET_PDEATHSIG, _GET_PDEATHSIG = 1, 2
_GET_KEEPCAPS, _SET_KEEPCAPS = 7, 8
_SET_TIMERSLACK, _GET_TIMERSLACK = 29, 30
_GET_TSC, _SET_TSC = 25, 26
_MCE_KILL, _MCE_KILL_SET, _MCE_KILL_GET = 33, 1, 34
_SET = {"keepcaps": _SET_KEEPCAPS, "timerslack": _SET_TIMERSLACK, "tsc": _SET_TSC, "pdeathsig": _SET_PDEATHSIG}


class ThreadBits:
    name = "prctl_thread"
    per_thread = True
    order = 95
    proc_files: tuple[str, ...] = ()
    questions = (
        Question(nr("prctl"), (_GET_PDEATHSIG, 0, 0, 0, 0), 1, 4),
        Question(nr("prctl"), (_GET_KEEPCAPS, 0, 0, 0, 0)),
        Question(nr("prctl"), (_GET_TIMERSLACK, 0, 0, 0, 0)),
        Question(nr("prctl"), (_GET_TSC, 0, 0, 0, 0), 1, 4),
        Question(nr("prctl"), (_MCE_KILL_GET, 0, 0, 0, 0)),
    )

    def parse(self, raw: RawTask) -> State:
        if not raw.answers:
            return {}
        death, keep, slack, tsc, check = raw.answers
        found = {
            "pdeathsig": int.from_bytes(death.data[:4], "little"),
            "keepcaps": keep.retval,
            "timerslack": slack.retval,
            "tsc": int.from_bytes(tsc.data[:4], "little") if tsc.retval == 0 else -1,
            "mce_kill": check.retval,
        }
        return {name: number for name, number in found.items() if number >= 0}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        differing = [(name, wanted[name]) for name in _SET if name in wanted and now.get(name) != wanted[name]]
        calls = [call(nr("prctl"), _SET[name], want, 0, 0, 0, note=f"{name} {want}") for name, want in differing]
        if "mce_kill" in wanted and now.get("mce_kill") != wanted["mce_kill"]:
            policy = wanted["mce_kill"]
            calls.append(call(nr("prctl"), _MCE_KILL, _MCE_KILL_SET, policy, 0, 0, note=f"mce_kill {policy}"))
        return calls

    def cleared(self, state: State) -> State:
        return {name: value for name, value in state.items() if name != "pdeathsig"}

    def in_clone(self, state: State) -> State:
        return {**state, "pdeathsig": 0}


KIND = ThreadBits()
