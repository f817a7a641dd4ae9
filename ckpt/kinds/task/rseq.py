"""Restartable sequences of a thread: where its struct rseq is registered (PTRACE_GET_RSEQ_CONFIGURATION)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_UNREGISTER = 1
_CONFIGURATION = struct.Struct("<QII")  #: struct ptrace_rseq_configuration: pointer, size, signature (flags and padding follow)


class Rseq:
    name = "rseq"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = ()

    def parse(self, raw: RawTask) -> State:
        data = raw.extra.get("rseq", b"")
        if len(data) < _CONFIGURATION.size:
            return {}
        pointer, size, signature = _CONFIGURATION.unpack_from(data)
        return {"pointer": pointer, "size": size, "signature": signature}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or dict(now) == dict(wanted):
            return []
        calls = []
        for state, flags, verb in ((now, _UNREGISTER, "unregister"), (wanted, 0, "register")):
            if state.get("pointer"):
                args = (state["pointer"], state["size"], flags, state["signature"])
                calls.append(call(nr("rseq"), *args, note=f"{verb} rseq at {state['pointer']:#x}"))
        return calls


KIND = Rseq()
