"""What cannot be captured, each by a name that its user knows. Asked first, so that nothing below mistakes it for a file."""

from __future__ import annotations

import re
import stat
from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants
from ckpt.model import OpenFile, RemoteCall

SUPPORTED_ANON = ("[eventfd]", "[eventpoll]", "[timerfd]", "[signalfd]", "[pidfd]", "inotify", "[inotify]")
_ANON = {
    "io_uring": "io_uring",
    "fanotify": "fanotify",
    "userfaultfd": "userfaultfd",
    "perf_event": "perf event",
    "kvm-vm": "kvm",
    "landlock-ruleset": "landlock rule set",
    "seccomp notify": "seccomp listener",
    "mount_notify": "mount notification",
}
_NAMESPACE = re.compile(r"(cgroup|ipc|mnt|net|pid|time|user|uts):\[\d+\]")


def reason(raw: RawDescriptor) -> str | None:
    """Why this descriptor cannot be captured; None: another kind may know it."""
    link = raw.link
    if link.startswith("anon_inode:"):
        return _anonymous(link.removeprefix("anon_inode:"))
    if _NAMESPACE.fullmatch(link):
        return f"namespace handle {link}"
    if link.startswith("/secretmem"):
        return "memfd_secret"
    if stat.S_ISBLK(raw.mode):
        return f"block device {link}"
    return None


def _anonymous(name: str) -> str | None:
    if name in SUPPORTED_ANON:
        return None
    bare = name.strip("[]")
    if bare.startswith("bpf"):
        return f"bpf ({bare})"
    if bare.startswith("kvm"):
        return "kvm"
    return _ANON.get(bare, f"anonymous inode {bare}")


class Refused:
    name = "unsupported"
    order = 0
    wants: tuple[Wants, ...] = ()

    def recognises(self, raw: RawDescriptor) -> bool:
        return reason(raw) is not None

    def check(self, raw: RawDescriptor) -> None:
        """For the pre-flight, which has no answers of C: raises as parse would."""
        self.parse(raw)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        raise Unsupported(f"{reason(raw)}: not supported")

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("not supported")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("not supported")


KIND = Refused()
