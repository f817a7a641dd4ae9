"""Who a thread is: user and group ids, groups, capabilities, securebits, no_new_privs, seccomp (the kernel keeps them by thread).

Going back needs the rights that were given up. What the thread may still do itself is done; the rest is refused by name.
The order of the calls matters: securebits first, or a change of user ids would take the capabilities along.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, Question, RawTask, call
from ckpt.model import RemoteCall, State
from ckpt.procfs import parse_status
from ckpt.syscalls.names import nr

PR_GET_SECUREBITS, PR_SET_SECUREBITS = 27, 28
CAP_SETGID, CAP_SETUID, CAP_SETPCAP = 1 << 6, 1 << 7, 1 << 8
_SECBIT_NO_SETUID_FIXUP = 4
_CAPABILITY_VERSION_3 = 0x2008_0522
_CAPS = ("cap_permitted", "cap_effective", "cap_inheritable", "cap_ambient", "cap_bounding")


class Credentials:
    name = "credentials"
    per_thread = True
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

    def restore(self, now: State, wanted: State) -> Sequence[RemoteCall]:
        if not wanted or not now or dict(now) == dict(wanted):
            return []  # a thread that is made again is cloned from one that has them
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
        if ids or now["securebits"] != wanted["securebits"]:
            calls.append(self._securebits(wanted["securebits"]))
        if ids or any(now[name] != wanted[name] for name in _CAPS[:3]):
            calls.append(_capset(wanted))
        return calls

    def _refuse(self, now: State, wanted: State) -> None:
        """Raises CannotUndo for what the thread has no longer the right to take back."""
        if now["no_new_privs"] and not wanted["no_new_privs"]:
            raise CannotUndo("it has set no_new_privs since, which cannot be taken back")
        if now["seccomp"] != wanted["seccomp"]:
            raise CannotUndo("it has installed a seccomp filter since, which cannot be taken back")
        held = now["cap_effective"]
        if now["uid"] != wanted["uid"] and not held & CAP_SETUID:
            raise CannotUndo(f"it has changed its user from {wanted['uid'][1]} to {now['uid'][1]}")
        if (now["gid"] != wanted["gid"] or now["groups"] != wanted["groups"]) and not held & CAP_SETGID:
            raise CannotUndo("it has changed its groups")
        if any(now[key] != wanted[key] for key in ("uid", "gid", "securebits")) and not held & CAP_SETPCAP:
            raise CannotUndo("it has given up CAP_SETPCAP, without which its ids cannot be taken back")
        if wanted["cap_permitted"] & ~now["cap_permitted"]:
            raise CannotUndo(f"it has given up capabilities {wanted['cap_permitted'] & ~now['cap_permitted']:#x}")
        if now["cap_bounding"] != wanted["cap_bounding"] or now["cap_ambient"] != wanted["cap_ambient"]:
            raise CannotUndo("its bounding or ambient capabilities have changed")

    def _securebits(self, bits: int) -> RemoteCall:
        return call(nr("prctl"), PR_SET_SECUREBITS, bits, 0, 0, 0, note=f"securebits {bits:#x}")


def _capset(wanted: State) -> RemoteCall:
    words = []
    for shift in (0, 32):
        words += [wanted[name] >> shift & 0xFFFF_FFFF for name in ("cap_effective", "cap_permitted", "cap_inheritable")]
    return call(nr("capset"), struct.pack("<Ii", _CAPABILITY_VERSION_3, 0), struct.pack("<6I", *words), note="capset")


KIND = Credentials()
