"""The list of robust futexes of a thread (get_robust_list from outside, set_robust_list inside)."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_HEAD_SIZE = 24  #: sizeof(struct robust_list_head): set_robust_list accepts no other


class RobustList:
    name = "robust_list"
    per_thread = True
    proc_files: tuple[str, ...] = ()
    questions = ()

    def parse(self, raw: RawTask) -> State:
        data = raw.extra.get("robust", b"")
        return {"head": struct.unpack_from("<Q", data)[0]} if len(data) >= 16 else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("head", 0) == wanted["head"]:
            return []
        return [call(nr("set_robust_list"), wanted["head"], _HEAD_SIZE, note=f"robust list at {wanted['head']:#x}")]


KIND = RobustList()
