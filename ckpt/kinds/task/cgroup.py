"""The control groups of a process: one path per hierarchy (v1), and that of the unified one (v2, under the name "").

Whoever runs the machine moves processes between groups; so a rollback leaves them where they are. A restored process joins the
groups of then: `enter`, which ckpt/live/surroundings.py adds to the wanted state, names their `cgroup.procs`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call, result
from ckpt.model import RemoteCall, State
from ckpt.procfs.cgroup import parse_cgroup
from ckpt.syscalls.names import nr


class ControlGroups:
    name = "cgroup"
    per_thread = False
    order = 10  #: what follows is accounted there; and a later root may not show the hierarchies
    proc_files: tuple[str, ...] = ()  #: the capture gives the text after the thaw (files["cgroup"])
    questions = ()

    def parse(self, raw: RawTask) -> State:
        text = raw.files.get("cgroup")
        return {"paths": {",".join(entry.controllers): entry.path for entry in parse_cgroup(text)}} if text else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        calls: list[RemoteCall] = []
        for path in wanted.get("enter", ()):
            at = len(calls)
            calls += [
                call(nr("open"), os.fsencode(path) + b"\0", os.O_WRONLY, 0, note=f"open {path}"),
                call(nr("write"), result(at), b"0", 1, note=f"enter the control group {path.removesuffix('/cgroup.procs')}", expect=1),
                call(nr("close"), result(at), note=f"close {path}"),
            ]
        return calls


KIND = ControlGroups()
