"""The nice value of the scheduler's autogroup, which a session shares (/proc/PID/autogroup: "/autogroup-12 nice 0").

It belongs to the session, so a rollback leaves it alone. A restored process that leads a session gets it back: `own`, which
ckpt/live/surroundings.py adds to the wanted state.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from ckpt.kinds.base import RawTask, call, result
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

_LINE = re.compile(rb"/autogroup-\d+ nice (-?\d+)")


class AutoGroup:
    name = "autogroup"
    per_thread = False
    proc_files: tuple[str, ...] = ()  #: the capture gives the text after the thaw (files["autogroup"]); absent: no autogroups
    questions = ()

    def parse(self, raw: RawTask) -> State:
        found = _LINE.match(raw.files.get("autogroup", b""))
        return {"nice": int(found[1])} if found else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted.get("own") or "nice" not in now or now["nice"] == wanted["nice"]:
            return []
        text = str(wanted["nice"]).encode()
        return [
            call(nr("open"), b"/proc/self/autogroup\0", os.O_WRONLY, 0, note="open autogroup"),
            call(nr("write"), result(0), text, len(text), note=f"autogroup nice {wanted['nice']}", expect=len(text)),
            call(nr("close"), result(0), note="close autogroup"),
        ]


KIND = AutoGroup()
