"""Attributes of a process that only prctl(2) tells: dumpable, child subreaper, transparent huge pages disabled, pages merged (KSM).

A change of user ids clears dumpable (kernel/cred.c, commit_creds), so all this is set when every thread has its own."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_GET_DUMPABLE, _SET_DUMPABLE = 3, 4
_SET_SUBREAPER, _GET_SUBREAPER = 36, 37
_SET_THP_DISABLE, _GET_THP_DISABLE = 41, 42
_SET_MERGE, _GET_MERGE = 67, 68
_SET = {"child_subreaper": _SET_SUBREAPER, "thp_disable": _SET_THP_DISABLE, "memory_merge": _SET_MERGE, "dumpable": _SET_DUMPABLE}
_BY_KERNEL_ONLY = 2  #: SUID_DUMP_ROOT


class ProcessBits:
    name = "prctl"
    per_thread = False
    late = True
    proc_files: tuple[str, ...] = ()
    questions = (
        Question(nr("prctl"), (_GET_DUMPABLE, 0, 0, 0, 0)),
        Question(nr("prctl"), (_GET_SUBREAPER, 0, 0, 0, 0), 1, 4),
        Question(nr("prctl"), (_GET_THP_DISABLE, 0, 0, 0, 0)),
        Question(nr("prctl"), (_GET_MERGE, 0, 0, 0, 0)),
    )

    def parse(self, raw: RawTask) -> State:
        if not raw.answers:
            return {}
        dumpable, reaper, thp, merge = raw.answers
        found = {
            "dumpable": dumpable.retval,
            "child_subreaper": int.from_bytes(reaper.data[:4], "little"),
            "thp_disable": thp.retval,
            "memory_merge": merge.retval,
        }
        return {name: number for name, number in found.items() if number >= 0}

    def cleared(self, state: State) -> State:
        return {name: value for name, value in state.items() if name != "dumpable"}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        calls = []
        for name, option in _SET.items():
            want = wanted.get(name)
            if want is None or now.get(name) == want:
                continue
            if name == "dumpable" and want == _BY_KERNEL_ONLY:
                if name not in now:
                    continue  # the change of user ids has set it, as it did then
                raise CannotUndo("dumpable was 2, which only the kernel sets")
            calls.append(call(nr("prctl"), option, want, 0, 0, 0, note=f"{name} {want}"))
        return calls


KIND = ProcessBits()
