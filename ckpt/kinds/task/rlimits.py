"""Resource limits of a process. A hard limit that was lowered cannot be raised again without CAP_SYS_RESOURCE."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs.limits import TITLES
from ckpt.syscalls.names import nr


class Limits:
    name = "rlimits"
    per_thread = False
    proc_files: tuple[str, ...] = ()
    questions = ()

    def parse(self, raw: RawTask) -> State:
        """RLIMIT_* number -> [soft, hard]; 2**64 - 1 is no limit."""
        return {str(number): list(pair) for number, pair in enumerate(raw.limits)}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        calls = []
        for number, (soft, hard) in wanted.items():
            if now.get(number) == [soft, hard]:
                continue
            title = TITLES[int(number)].lower() if int(number) < len(TITLES) else f"limit {number}"
            if number in now and now[number][1] < hard:
                raise CannotUndo(f"hard limit of {title.removeprefix('max ')} was lowered to {now[number][1]}")
            calls.append(call(nr("prlimit64"), 0, int(number), struct.pack("<QQ", soft, hard), 0, note=title))
        return calls


KIND = Limits()
