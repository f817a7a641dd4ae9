"""What the kernel knows of a memory's layout beside the mappings: the exact program break, and where code, data, arguments
and environment lie (/proc/PID/stat; brk(0)). PR_SET_MM_MAP sets them all at once and needs no right to do so.

How much is locked (mlock) is only remembered, so that a plan can say that it is not brought back."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_stat, parse_status
from ckpt.syscalls.names import nr

PR_SET_MM, PR_SET_MM_MAP = 35, 14
#: The order of struct prctl_mm_map; brk stands among them.
_FIELDS = ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start", "arg_end", "env_start",
           "env_end")  # fmt: skip
_MAP = struct.Struct("<11QQII")  #: then auxv (NULL, 0: as it is) and exe_fd (-1: as it is)


class Memory:
    name = "memory"
    per_thread = False
    proc_files = ("stat", "status")
    questions = (Question(nr("brk"), (0,)),)

    def parse(self, raw: RawTask) -> State:
        stat = parse_stat(raw.files["stat"])
        state: dict[str, int] = {name: getattr(stat, name) for name in _FIELDS if name != "brk"}
        if locked := parse_status(raw.files["status"]).locked_kib:
            state["locked_kib"] = locked
        if raw.answers:
            state["brk"] = raw.answers[0].retval
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if "brk" not in wanted or all(now.get(name) == wanted[name] for name in _FIELDS):
            return []
        packed = _MAP.pack(*(wanted[name] for name in _FIELDS), 0, 0, 0xFFFF_FFFF)
        note = f"brk {wanted['brk']:#x} and where code, data, arguments lie"
        return [call(nr("prctl"), PR_SET_MM, PR_SET_MM_MAP, packed, _MAP.size, 0, note=note)]


KIND = Memory()
