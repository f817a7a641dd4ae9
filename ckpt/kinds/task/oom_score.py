"""/proc/PID/oom_score_adj. Lowering it below what a privileged process last set needs CAP_SYS_RESOURCE: then it stays."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call, result
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr


class OomScore:
    name = "oom_score"
    per_thread = False
    proc_files = ("oom_score_adj",)
    questions = ()

    def parse(self, raw: RawTask) -> State:
        text = raw.files.get("oom_score_adj", b"").strip()
        return {"adj": int(text)} if text else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or now.get("adj") == wanted["adj"]:
            return []
        text = str(wanted["adj"]).encode()
        return [
            call(nr("open"), b"/proc/self/oom_score_adj\0", os.O_WRONLY, 0, note="open oom_score_adj"),
            call(nr("write"), result(0), text, len(text), note=f"oom_score_adj {wanted['adj']}", expect=None),
            call(nr("close"), result(0), note="close oom_score_adj"),
        ]


KIND = OomScore()
