"""What the kernel knows of a memory's layout beside the mappings: the exact program break, where code, data, arguments and
environment lie (/proc/PID/stat; brk(0)), the auxiliary vector, and which file it executes. PR_SET_MM_MAP sets them all at
once. It needs no right to do so, but for the executed file: CAP_CHECKPOINT_RESTORE, and no mapping of the old one may be
left (kernel/sys.c, prctl_set_mm_map; kernel/fork.c, replace_mm_exe_file).

How much is locked (mlock) is remembered beside it; the mappings say what."""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, buffer, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_stat, parse_status
from ckpt.syscalls.names import nr

PR_SET_MM, PR_SET_MM_MAP = 35, 14
#: The order of struct prctl_mm_map; brk stands among them.
_FIELDS = ("start_code", "end_code", "start_data", "end_data", "start_brk", "brk", "start_stack", "arg_start", "arg_end", "env_start",
           "env_end")  # fmt: skip
_MAP = struct.Struct("<11QQII")  #: then auxv (pointer, bytes; NULL, 0: as it is) and exe_fd (-1: as it is)
_AUXV_AT, _NO_FILE = 88, 0xFFFF_FFFF


def lay_out(wanted: State, *, auxv: bytes = b"", exe_fd: int = -1) -> RemoteCall:
    """prctl(PR_SET_MM, PR_SET_MM_MAP). `auxv`: b"" leaves it as it is; `exe_fd`: an open descriptor of the executed file."""
    fields = (int(wanted[name]) for name in _FIELDS)
    packed = _MAP.pack(*fields, 0, len(auxv), exe_fd & _NO_FILE)
    note = f"brk {wanted['brk']:#x} and where code, data, arguments lie"
    pointers = ((_AUXV_AT, auxv),) if auxv else ()
    return call(nr("prctl"), PR_SET_MM, PR_SET_MM_MAP, buffer(packed, pointers), _MAP.size, 0, note=note)


class Memory:
    name = "memory"
    per_thread = False
    proc_files = ("stat", "status", "auxv")
    questions = (Question(nr("brk"), (0,)),)

    def parse(self, raw: RawTask) -> State:
        stat = parse_stat(raw.files["stat"])
        state: dict[str, int | str] = {name: getattr(stat, name) for name in _FIELDS if name != "brk"}
        if locked := parse_status(raw.files["status"]).locked_kib:
            state["locked_kib"] = locked
        if raw.answers:
            state["brk"] = raw.answers[0].retval
        if "auxv" in raw.files:
            state["auxv"] = raw.files["auxv"].hex()
        if "exe" in raw.files:
            state["exe"] = os.fsdecode(raw.files["exe"])
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if "exe" in now and "exe" in wanted and now["exe"] != wanted["exe"]:
            raise CannotUndo(f"it executes {now['exe']}, then it was {wanted['exe']}")
        if "brk" not in wanted or all(now.get(name) == wanted[name] for name in _FIELDS):
            return []
        return [lay_out(wanted)]


KIND = Memory()
