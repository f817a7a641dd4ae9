"""The name of a thread (prctl PR_SET_NAME); the leader's is the process's."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_stat
from ckpt.syscalls.names import nr

PR_SET_NAME = 15


class Comm:
    name = "comm"
    per_thread = True
    proc_files = ("stat",)
    questions = ()

    def parse(self, raw: RawTask) -> State:
        return {"name": parse_stat(raw.files["stat"]).comm}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("name") == wanted["name"]:
            return []
        data = os.fsencode(wanted["name"])[:15].ljust(16, b"\0")
        return [call(nr("prctl"), PR_SET_NAME, data, 0, 0, 0, note=f"name {wanted['name']}")]


KIND = Comm()
