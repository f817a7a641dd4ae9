"""Text of /proc -> frozen types. Pure: bytes in, values out, no file is opened here.

1. A parser takes what the kernel wrote (`bytes`) and never asks the system anything.
2. Lines and fields that a parser does not know are skipped: newer kernels add them.
3. What must be there and is not raises `ValueError` naming the file: the text was cut, or it is not that file.
4. Names that the kernel writes as bytes (comm, paths) become `str` by `os.fsdecode`, so they go back unchanged.
"""

from __future__ import annotations

from ckpt.procfs.auxv import parse_auxv
from ckpt.procfs.cgroup import CgroupEntry, parse_cgroup
from ckpt.procfs.fdinfo import EpollTarget, FdInfo, InotifyWatch, TimerFd, parse_fdinfo
from ckpt.procfs.limits import Limit, parse_limits
from ckpt.procfs.maps import parse_maps
from ckpt.procfs.smaps import Advice, parse_smaps
from ckpt.procfs.stat import Stat, parse_stat
from ckpt.procfs.status import Ids, Status, parse_status
from ckpt.procfs.syscall import parse_syscall
from ckpt.procfs.sysvipc import Segment, parse_segments
from ckpt.procfs.timens import parse_offsets
from ckpt.procfs.timers import PosixTimer, parse_timers

__all__ = [
    "Advice",
    "CgroupEntry",
    "EpollTarget",
    "FdInfo",
    "Ids",
    "InotifyWatch",
    "Limit",
    "PosixTimer",
    "Segment",
    "Stat",
    "Status",
    "TimerFd",
    "parse_auxv",
    "parse_cgroup",
    "parse_fdinfo",
    "parse_limits",
    "parse_maps",
    "parse_offsets",
    "parse_segments",
    "parse_smaps",
    "parse_stat",
    "parse_status",
    "parse_syscall",
    "parse_timers",
]
