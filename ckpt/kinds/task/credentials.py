"""Who a thread is: user and group ids, groups, capabilities, securebits, no_new_privs, seccomp (the kernel keeps them by thread).

Going back needs the rights that were given up. What the thread may still do itself is done; the rest is refused by name.
The order of the calls matters: securebits first, or a change of user ids would take the capabilities along; what needs
CAP_SETPCAP before the last capset; no_new_privs at the end.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.kinds.task import capabilities as caps
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.syscalls.names import nr

PR_GET_SECUREBITS, PR_SET_SECUREBITS, PR_SET_NO_NEW_PRIVS = 27, 28, 38
_SECBIT_NO_SETUID_FIXUP = 4
_CAPS = ("cap_permitted", "cap_effective", "cap_inheritable", "cap_ambient", "cap_bounding")


class Credentials:
    name = "credentials"
    per_thread = True
    order = 90  #: whatever needs a right comes before
    proc_files = ("status",)
    questions = (Question(nr("prctl"), (PR_GET_SECUREBITS, 0, 0, 0, 0)),)

    def parse(self, raw: RawTask) -> State:
        status = parse_status(raw.files["status"])
        return {
            "uid": [status.uid.real, status.uid.effective, status.uid.saved, status.uid.fs],
            "gid": [status.gid.real, status.gid.effective, status.gid.saved, status.gid.fs],
            "groups": list(status.groups),
            **{name: getattr(status, name) for name in _CAPS},
            "securebits": raw.answers[0].retval if raw.answers else 0,
            "no_new_privs": status.no_new_privs,
            "seccomp": [status.seccomp, status.seccomp_filters],
        }

    def in_clone(self, state: State) -> State:
        return state

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or not now or dict(now) == dict(wanted):
            return []
        self._refuse(now, wanted)
        calls: list[RemoteCall] = []
        ids = [key for key in ("gid", "uid") if now[key] != wanted[key]]
        if ids:
            calls.append(self._securebits(now["securebits"] | _SECBIT_NO_SETUID_FIXUP))
        if now["groups"] != wanted["groups"]:
            groups = wanted["groups"]
            calls.append(call(nr("setgroups"), len(groups), struct.pack(f"<{len(groups)}I", *groups) or bytes(4), note="setgroups"))
        for key in ids:
            real, effective, saved, fs = wanted[key]
            calls.append(call(nr(f"setres{key}"), real, effective, saved, note=f"setres{key} {real} {effective} {saved}"))
            calls.append(call(nr(f"setfs{key}"), fs, note=f"setfs{key} {fs}", expect=None))
        calls += caps.change(now, wanted)
        if ids or now["securebits"] != wanted["securebits"]:
            calls.append(self._securebits(wanted["securebits"]))
        if ids or any(now[name] != wanted[name] for name in _CAPS[:3]):
            calls.append(caps.set_all(wanted["cap_effective"], wanted["cap_permitted"], wanted["cap_inheritable"]))
        if wanted["no_new_privs"] and not now["no_new_privs"]:
            calls.append(call(nr("prctl"), PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, note="no_new_privs"))
        return calls

    def _refuse(self, now: State, wanted: State) -> None:
        """Raises CannotUndo for what the thread has not the right to take on."""
        if now["no_new_privs"] and not wanted["no_new_privs"]:
            raise CannotUndo("no_new_privs is set, which cannot be taken back")
        if now["seccomp"] != wanted["seccomp"]:
            raise CannotUndo("a seccomp filter can neither be taken back nor installed again")
        held = now["cap_effective"]
        if now["uid"] != wanted["uid"] and not held & caps.SETUID:
            raise CannotUndo(f"its user was {wanted['uid'][1]} and is {now['uid'][1]}: changing it needs CAP_SETUID")
        if (now["gid"] != wanted["gid"] or now["groups"] != wanted["groups"]) and not held & caps.SETGID:
            raise CannotUndo("its groups are others: changing them needs CAP_SETGID")
        if any(now[key] != wanted[key] for key in ("uid", "gid", "securebits", "cap_bounding")) and not held & caps.SETPCAP:
            raise CannotUndo("its ids, securebits or bounding set are others: changing them needs CAP_SETPCAP")
        for name in ("cap_permitted", "cap_bounding"):
            if gone := wanted[name] & ~now[name]:
                raise CannotUndo(f"it had {caps.title(gone)} ({name.removeprefix('cap_')}), which cannot be had back")
        raised = wanted["cap_inheritable"] & ~now["cap_inheritable"]
        if raised & ~(now["cap_bounding"] if held & caps.SETPCAP else now["cap_permitted"]):
            raise CannotUndo(f"it could pass on {caps.title(raised)}, which cannot be had back")

    def _securebits(self, bits: int) -> RemoteCall:
        return call(nr("prctl"), PR_SET_SECUREBITS, bits, 0, 0, 0, note=f"securebits {bits:#x}")


KIND = Credentials()
