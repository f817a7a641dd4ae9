"""How a thread is scheduled: policy, nice value, real-time priority (sched_getattr), and the CPUs that it may use.

Taking back a lowered priority needs CAP_SYS_NICE (or RLIMIT_NICE): a thread without it is refused by name.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.kinds.task.capabilities import SYS_NICE
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.syscalls.names import nr

_CPUS = 128  #: bytes: 1024 CPUs
_ATTR = struct.Struct("<IIQiIQQQII")  #: struct sched_attr
_FIELDS = ("policy", "flags", "nice", "priority", "runtime", "deadline", "period")
_RESET_ON_FORK = 1
_NORMAL = (0, 3)  #: SCHED_OTHER, SCHED_BATCH


class Scheduling:
    name = "scheduling"
    per_thread = True
    proc_files = ("status",)
    questions = (
        Question(nr("sched_getattr"), (0, 0, _ATTR.size, 0), 1, _ATTR.size),
        Question(nr("sched_getaffinity"), (0, _CPUS, 0), 2, _CPUS),
    )

    def parse(self, raw: RawTask) -> State:
        if not raw.answers or raw.answers[0].retval < 0:
            return {}
        _, *numbers = _ATTR.unpack(raw.answers[0].data[: _ATTR.size])
        affinity = raw.answers[1]
        return {
            **dict(zip(_FIELDS, numbers, strict=False)),
            "cpus": affinity.data[: affinity.retval].rstrip(b"\0").hex() if affinity.retval > 0 else "",
            "may_raise": bool(parse_status(raw.files["status"]).cap_effective & SYS_NICE),
        }

    def in_clone(self, state: State) -> State:
        return {} if state.get("flags", 0) & _RESET_ON_FORK else state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted:
            return []
        calls = []
        if wanted["cpus"] and now.get("cpus") != wanted["cpus"]:
            mask = bytes.fromhex(wanted["cpus"]).ljust(_CPUS, b"\0")
            calls.append(call(nr("sched_setaffinity"), 0, len(mask), mask, note=f"CPUs {wanted['cpus']}"))
        if any(now.get(field) != wanted[field] for field in _FIELDS):
            if now and not now["may_raise"] and self._higher(now, wanted):
                raise CannotUndo(f"it has lowered its priority (nice {wanted['nice']} to {now['nice']}) and may not raise it again")
            attr = _ATTR.pack(_ATTR.size, *(wanted[field] for field in _FIELDS), 0, 0)
            note = f"scheduling policy {wanted['policy']}, nice {wanted['nice']}, priority {wanted['priority']}"
            calls.append(call(nr("sched_setattr"), 0, attr, 0, note=note))
        return calls

    def _higher(self, now: State, wanted: State) -> bool:
        if now["policy"] in _NORMAL and wanted["policy"] in _NORMAL:
            return bool(wanted["nice"] < now["nice"])
        return bool(wanted["policy"] != now["policy"] or wanted["priority"] > now["priority"])


KIND = Scheduling()
