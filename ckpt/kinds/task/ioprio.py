"""The priority of a thread's disk accesses (ioprio_get): class and level. Class 0: it follows from the nice value.

The real-time class needs CAP_SYS_ADMIN or CAP_SYS_NICE (block/ioprio.c, ioprio_check_cap): so before credentials are put on.
"""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_WHO_PROCESS = 1  #: one thread, in spite of its name; 0 = the caller


class IoPriority:
    name = "ioprio"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = (Question(nr("ioprio_get"), (_WHO_PROCESS, 0)),)

    def parse(self, raw: RawTask) -> State:
        return {"priority": raw.answers[0].retval} if raw.answers and raw.answers[0].retval >= 0 else {}

    def in_clone(self, state: State) -> State:
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("priority") == wanted["priority"]:
            return []
        return [call(nr("ioprio_set"), _WHO_PROCESS, 0, wanted["priority"], note=f"ioprio {wanted['priority']:#x}")]


KIND = IoPriority()
