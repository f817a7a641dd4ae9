"""/proc/PID/fdinfo/N: common lines, and those of epoll, eventfd, timerfd, signalfd, inotify and unix sockets.

Sources: fs/proc/fd.c (pos, flags, mnt_id, ino), fs/locks.c (lock:), fs/eventpoll.c, fs/eventfd.c, fs/timerfd.c,
fs/signalfd.c, fs/notify/fdinfo.c, net/unix/af_unix.c (scm_fds).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

O_CLOEXEC = 0o2000000


@dataclass(frozen=True, slots=True)
class EpollTarget:
    """One watched descriptor. `tfd` is the number at the time of EPOLL_CTL_ADD: it may name another file by now."""

    tfd: int
    events: int
    data: int
    pos: int
    ino: int
    sdev: int


@dataclass(frozen=True, slots=True)
class TimerFd:
    """Times in nanoseconds. `value` is what remains, whether or not the timer was set absolutely."""

    clockid: int
    ticks: int
    settime_flags: int
    value: int
    interval: int


@dataclass(frozen=True, slots=True)
class InotifyWatch:
    wd: int
    ino: int
    sdev: int
    mask: int
    handle_type: int = 0
    handle: bytes = b""  #: struct file_handle's own bytes


@dataclass(frozen=True, slots=True)
class FdInfo:
    pos: int
    flags: int  #: O_* with O_CLOEXEC, which belongs to the descriptor and stands nowhere else
    mnt_id: int
    ino: int
    scm_fds: int | None  #: descriptors in flight in a unix socket's queue
    locks: tuple[str, ...]  #: the text after "lock:", spaces folded
    eventfd_count: int | None
    eventfd_semaphore: bool
    epoll: tuple[EpollTarget, ...]
    timer: TimerFd | None
    sigmask: int | None
    inotify: tuple[InotifyWatch, ...]
    fields: tuple[tuple[str, str], ...]  #: every "name: value" line, in order, for what has no field here

    @property
    def cloexec(self) -> bool:
        return bool(self.flags & O_CLOEXEC)

    @property
    def open_flags(self) -> int:
        return self.flags & ~O_CLOEXEC

    def field(self, name: str) -> str | None:
        return next((value for key, value in self.fields if key == name), None)


_EPOLL = re.compile(
    r"tfd:\s*(\d+)\s+events:\s*([0-9a-f]+)\s+data:\s*([0-9a-f]+)(?:\s+pos:\s*(-?\d+)\s+ino:\s*([0-9a-f]+)\s+sdev:\s*([0-9a-f]+))?"
)
_INOTIFY = re.compile(
    r"inotify wd:([0-9a-f]+) ino:([0-9a-f]+) sdev:([0-9a-f]+) mask:([0-9a-f]+)"
    r"(?: ignored_mask:[0-9a-f]+ )?(?:\s*fhandle-bytes:[0-9a-f]+ fhandle-type:([0-9a-f]+) f_handle:([0-9a-f]*))?"
)
_TIMESPEC = re.compile(r"\(\s*(\d+)\s*,\s*(\d+)\s*\)")


def _nanoseconds(text: str) -> int:
    match = _TIMESPEC.search(text)
    if match is None:
        raise ValueError(f"fdinfo: not a time: {text!r}")
    return int(match[1]) * 1_000_000_000 + int(match[2])


def _epoll(line: str) -> EpollTarget | None:
    match = _EPOLL.match(line)
    if match is None:
        return None
    tfd, events, data, pos, ino, sdev = match.groups(default="0")
    return EpollTarget(int(tfd), int(events, 16), int(data, 16), int(pos), int(ino, 16), int(sdev, 16))


def _inotify(line: str) -> InotifyWatch | None:
    match = _INOTIFY.match(line)
    if match is None:
        return None
    wd, ino, sdev, mask, handle_type = (int(word, 16) for word in match.groups("0")[:5])
    return InotifyWatch(wd, ino, sdev, mask, handle_type, bytes.fromhex(match[6] or ""))


def _timer(found: dict[str, str]) -> TimerFd | None:
    if "clockid" not in found or "it_value" not in found:
        return None
    return TimerFd(
        clockid=int(found["clockid"]),
        ticks=int(found.get("ticks", "0")),
        settime_flags=int(found.get("settime flags", "0"), 8),
        value=_nanoseconds(found["it_value"]),
        interval=_nanoseconds(found.get("it_interval", "(0, 0)")),
    )


def parse_fdinfo(text: bytes | str) -> FdInfo:
    lines = (text.decode("utf-8", "replace") if isinstance(text, bytes) else text).split("\n")
    pairs = [(name.strip(), value.strip()) for name, colon, value in (line.partition(":") for line in lines) if colon]
    found = dict(reversed(pairs))  # the first line of a name wins
    if "pos" not in found or "flags" not in found:
        raise ValueError("fdinfo: no pos or no flags line")
    return FdInfo(
        pos=int(found["pos"]),
        flags=int(found["flags"], 8),
        mnt_id=int(found.get("mnt_id", "0")),
        ino=int(found.get("ino", "0")),
        scm_fds=int(found["scm_fds"]) if "scm_fds" in found else None,
        locks=tuple(" ".join(value.split()) for name, value in pairs if name == "lock"),
        eventfd_count=int(found["eventfd-count"], 16) if "eventfd-count" in found else None,
        eventfd_semaphore=found.get("eventfd-semaphore", "0") == "1",
        epoll=tuple(target for target in map(_epoll, lines) if target),
        timer=_timer(found),
        sigmask=int(found["sigmask"], 16) if "sigmask" in found else None,
        inotify=tuple(watch for watch in map(_inotify, lines) if watch),
        fields=tuple(pairs),
    )
