"""Resource limits of a process. A hard limit that is lower than the wanted one cannot be raised without CAP_SYS_RESOURCE."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawTask, call
from ckpt.kinds.task.capabilities import SYS_RESOURCE
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.procfs.limits import TITLES
from ckpt.syscalls.names import nr

_MAY_RAISE = "may_raise"
_UNLIMITED = 2**64 - 1


def _amount(limit: int) -> str:
    return "unlimited" if limit == _UNLIMITED else str(limit)


class Limits:
    name = "rlimits"
    per_thread = False
    proc_files = ("status",)
    questions = ()

    def parse(self, raw: RawTask) -> State:
        """RLIMIT_* number -> [soft, hard]; 2**64 - 1 is no limit."""
        limits = {str(number): list(pair) for number, pair in enumerate(raw.limits)}
        return {**limits, _MAY_RAISE: bool(parse_status(raw.files["status"]).cap_effective & SYS_RESOURCE)} if limits else {}

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        calls = []
        for number, pair in wanted.items():
            if number == _MAY_RAISE or now.get(number) == pair:
                continue
            soft, hard = pair
            title = TITLES[int(number)].lower() if int(number) < len(TITLES) else f"limit {number}"
            if number in now and now[number][1] < hard and not now.get(_MAY_RAISE):
                what = title.removeprefix("max ")
                limits = f"hard limit of {what}: {now[number][1]} now, {_amount(hard)} then"
                raise CannotUndo(
                    f"{limits}: raising it needs CAP_SYS_RESOURCE: run ckpt with it, or where that limit is as high (ulimit -H)"
                )
            calls.append(call(nr("prlimit64"), 0, int(number), struct.pack("<QQ", soft, hard), 0, note=title))
        return calls


KIND = Limits()
