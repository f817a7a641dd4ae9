"""/proc/PID/oom_score_adj. Lowering it below what a privileged process last set (0 where none did) needs CAP_SYS_RESOURCE: then it
stays, and the plan says so."""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call, result
from ckpt.kinds.task.capabilities import SYS_RESOURCE
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.syscalls.names import nr


class OomScore:
    name = "oom_score"
    per_thread = False
    proc_files = ("oom_score_adj", "status")
    questions = ()

    def parse(self, raw: RawTask) -> State:
        text = raw.files.get("oom_score_adj", b"").strip()
        may_lower = bool(parse_status(raw.files["status"]).cap_effective & SYS_RESOURCE)
        return {"adj": int(text), "may_lower": may_lower} if text else {}

    def caveats(self, now: State, wanted: State) -> Sequence[str]:
        if not wanted or not now or now.get("may_lower") or wanted["adj"] >= min(now["adj"], 0):
            return []
        stays = f"oom_score_adj stays {now['adj']}: lowering it to {wanted['adj']} needs CAP_SYS_RESOURCE"
        return [f"{stays}: run ckpt with it, or lower it from outside"]

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
