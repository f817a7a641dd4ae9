"""inotify: what is watched, each under its number (wd), for what.

fdinfo names a watched object by inode and file handle; ckpt/live/watches.py finds the path that leads to it (`path`). A number is
chosen by INOTIFY_IOC_SETNEXTWD, before each watch: a taken one would silently give the next. The queue cannot be looked at without
taking it away: what came since is drained, what lay in it is lost in a restore, and that is said.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping, Sequence
from typing import Any

from ckpt.kinds.base import CannotUndo, RawDescriptor, Wants, Work, call, result, same, set_flags
from ckpt.model import OpenFile, RemoteArg, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

SETNEXTWD = 0x4004_4900
_EVENT = 16  #: struct inotify_event without a name, as a removed watch leaves one


class Inotify:
    name = "inotify"
    order = 16
    wants = (Wants(prefix="anon_inode:inotify", work=Work.QUEUED),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link in ("anon_inode:inotify", "anon_inode:[inotify]")

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        answer = raw.work.get(Work.QUEUED, b"")
        queued = struct.unpack("<i", answer)[0] if len(answer) == 4 else 0
        watches = [
            {"wd": one.wd, "ino": one.ino, "sdev": one.sdev, "mask": one.mask, "handle_type": one.handle_type, "handle": one.handle.hex()}
            for one in sorted(info.inotify, key=lambda one: one.wd)
        ]
        return OpenFile(raw.file, self.name, info.open_flags, 0, {"watches": watches, "queued": max(queued, 0)})

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here = {one["wd"]: one for one in now.state["watches"]}
        there = {one["wd"]: one for one in wanted.state["watches"]}
        stale = [wd for wd, one in here.items() if wd not in there or _what(one) != _what(there[wd])]
        calls = [call(nr("inotify_rm_watch"), fd, wd, note=f"inotify {fd}: watch {wd} ends") for wd in stale]
        for wd, one in there.items():
            if wd not in here or wd in stale:
                calls += _add(fd, one)
        more = now.state["queued"] - wanted.state["queued"] + len(stale) * _EVENT
        if more > 0 and not wanted.state["queued"]:
            room = now.state["queued"] + len(stale) * _EVENT
            calls.append(call(nr("read"), fd, bytes(room), room, note="events that came since", expect=1))
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        calls = [call(nr("inotify_init1"), wanted.flags & os.O_NONBLOCK, note="inotify")]
        for one in wanted.state["watches"]:
            calls += _add(result(0), one)
        return [*calls, same(0)] if len(calls) > 1 else calls

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        there = now.state["queued"] if now else 0
        if not wanted.state["queued"] or there == wanted.state["queued"]:
            return []
        return [f"inotify: {wanted.state['queued']} bytes of events that lay in it unread are not brought back"]


def _what(watch: Mapping[str, Any]) -> tuple[object, ...]:
    return watch["ino"], watch["sdev"], watch["mask"]


def _add(fd: int | RemoteArg, watch: Mapping[str, Any]) -> list[RemoteCall]:
    path = watch.get("path")
    if path is None:
        raise CannotUndo(f"inotify: what it watches under number {watch['wd']} (inode {watch['ino']}) is gone")
    return [
        call(nr("ioctl"), fd, SETNEXTWD, watch["wd"], note=f"the next watch is number {watch['wd']}"),
        call(nr("inotify_add_watch"), fd, os.fsencode(path) + b"\0", watch["mask"], note=f"watch {path}", expect=watch["wd"]),
    ]


KIND = Inotify()
