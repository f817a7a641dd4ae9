"""clear_child_tid: the word that the kernel clears and wakes when the thread ends (set_tid_address, CLONE_CHILD_CLEARTID)."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

PR_GET_TID_ADDRESS = 40


class TidAddress:
    name = "tid_address"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = (Question(nr("prctl"), (PR_GET_TID_ADDRESS, 0), 1, 8),)

    def parse(self, raw: RawTask) -> State:
        if not raw.answers or raw.answers[0].retval:
            return {}
        return {"address": int.from_bytes(raw.answers[0].data[:8], "little")}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("address", 0) == wanted["address"]:
            return []
        return [call(nr("set_tid_address"), wanted["address"], note=f"clear_child_tid at {wanted['address']:#x}", expect=None)]


KIND = TidAddress()
