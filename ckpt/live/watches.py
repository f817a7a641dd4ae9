"""Where what an inotify watches lies now: its inode and file handle (fdinfo) -> a path.

A file whose name the kernel has just forgotten (its dentry is no longer cached) has no path that a handle could give: then newborns
get a descriptor of it (O_PATH), and the path leads through that. A rollback has nothing of the sort, and refuses.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ckpt.kinds.fd.file import O_PATH
from ckpt.model import OpenFile, Snapshot

ABOVE = 200  #: numbers that newborns get them at, above those of streams.py
_NR_OPEN_BY_HANDLE = 304
_MINOR_BITS = 20  #: of the kernel's own dev_t, which fdinfo shows (include/linux/kdev_t.h)
_LIBC = ctypes.CDLL(None, use_errno=True)


def located(wanted: Snapshot, keep: list[int] | None = None) -> Snapshot:
    """The same; each watch of an inotify knows the `path` that leads to its object, if any does. `keep`: takes in descriptors of
    ours that newborns are to have."""
    if not any(file.kind == "inotify" and file.state["watches"] for file in wanted.files):
        return wanted
    mounts = _mounts()
    return replace(wanted, files=tuple(_with_paths(file, mounts, keep) if file.kind == "inotify" else file for file in wanted.files))


def _with_paths(file: OpenFile, mounts: Mapping[int, list[str]], keep: list[int] | None) -> OpenFile:
    watches = [{**watch, **({"path": path} if (path := _path(watch, mounts, keep)) else {})} for watch in file.state["watches"]]
    return replace(file, state={**file.state, "watches": watches})


def _path(watch: Mapping[str, Any], mounts: Mapping[int, list[str]], keep: list[int] | None) -> str | None:
    handle = bytes.fromhex(watch["handle"])
    packed = ctypes.create_string_buffer(struct.pack("<Ii", len(handle), watch["handle_type"]) + handle)
    for where in mounts.get(watch["sdev"], ()):
        with suppress(OSError):
            mount = os.open(where, os.O_RDONLY | os.O_CLOEXEC)
            try:
                found = _LIBC.syscall(_NR_OPEN_BY_HANDLE, mount, packed, O_PATH | os.O_CLOEXEC)
            finally:
                os.close(mount)
            if found < 0:
                continue
            try:
                return _by_name(found, watch["ino"]) or _by_number(found, keep)
            finally:
                os.close(found)
    return None


def _by_name(found: int, ino: int) -> str | None:
    path = str(Path(f"/proc/self/fd/{found}").readlink())
    with suppress(OSError):
        return path if os.stat(path).st_ino == ino else None
    return None


def _by_number(found: int, keep: list[int] | None) -> str | None:
    if keep is None or not os.fstat(found).st_nlink:
        return None
    keep.append(fcntl.fcntl(found, fcntl.F_DUPFD_CLOEXEC, ABOVE))
    return f"/proc/self/fd/{keep[-1]}"


def _mounts() -> dict[int, list[str]]:
    """Device, as the kernel encodes it -> where it is mounted."""
    found: dict[int, list[str]] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        words = line.split()
        major, minor = words[2].split(":")
        found.setdefault(int(major) << _MINOR_BITS | int(minor), []).append(words[4].replace("\\040", " "))
    return found
