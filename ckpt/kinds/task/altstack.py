"""The alternate signal stack of a thread, sigaltstack(2)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

SS_ONSTACK, SS_DISABLE = 1, 2
_STACK = struct.Struct("<QiiQ")  #: stack_t: sp, flags, padding, size


class AltStack:
    name = "altstack"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = (Question(nr("sigaltstack"), (0, 0), 1, _STACK.size),)

    def parse(self, raw: RawTask) -> State:
        if not raw.answers or raw.answers[0].retval:
            return {}
        sp, flags, _, size = _STACK.unpack(raw.answers[0].data[: _STACK.size])
        return {"sp": sp, "size": size, "flags": flags & ~SS_ONSTACK, "in_use": bool(flags & SS_ONSTACK)}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        keys = ("sp", "size", "flags")
        if not wanted or all(now.get(key) == wanted[key] for key in keys) or (not now and wanted["flags"] & SS_DISABLE):
            return []
        if now.get("in_use"):
            raise CannotUndo("the thread is on its alternate signal stack, which cannot be changed meanwhile")
        return [call(nr("sigaltstack"), _STACK.pack(wanted["sp"], wanted["flags"], 0, wanted["size"]), 0, note="alternate signal stack")]


KIND = AltStack()
