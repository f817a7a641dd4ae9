"""epoll: which descriptors are watched, for what.

fdinfo names a watched file by the number at the time of EPOLL_CTL_ADD; by now that number may be closed or name another
file, so C compares (kcmp KCMP_EPOLL_TFD) and says which open file it is (Work.EPOLL). The plan adjusts epolls last, when every
number stands where it belongs. An entry of an edge-triggered descriptor that is added again may report once more than it
would have, as epoll(7) allows.

A one-shot entry that has fired reports nothing, not even the errors and hang-ups that every other entry does: its events are its private
bits alone (fs/eventpoll.c, EP_PRIVATE_BITS), which no call can ask for. So it is made to fire: added for what its file is ready for
(`ready`, which the plan adds; readiness.py), before all others, then waited for once; an empty pipe is given a byte and read again
(`fed`). Where a file is ready for nothing (a listener, a timer) the entry reports errors and hang-ups once more, and that is said.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ckpt.kinds.base import CannotUndo, RawDescriptor, Wants, Work, call, result, set_flags
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

ADD, DEL, MOD = 1, 2, 3
O_CLOEXEC = 0o2000000
EXCLUSIVE, ONESHOT = 1 << 28, 1 << 30
IN = 1
_EVENT_BYTES = 12  #: struct epoll_event
_ALWAYS = 0x18  #: EPOLLERR and EPOLLHUP: the kernel adds them by itself
_PAIR = struct.Struct("<ii")

Entry = dict[str, Any]


class Epoll:
    name = "epoll"
    order = 13
    wants = (Wants(prefix="anon_inode:[eventpoll]", work=Work.EPOLL),)

    def recognises(self, raw: RawDescriptor) -> bool:
        return raw.link == "anon_inode:[eventpoll]"

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info = parse_fdinfo(raw.fdinfo)
        answer = raw.work.get(Work.EPOLL, b"")
        files = [file for _, file in _PAIR.iter_unpack(answer[: len(answer) // 8 * 8])]
        if len(files) < len(info.epoll):
            files += [-1] * (len(info.epoll) - len(files))
        entries = [
            {"fd": target.tfd, "file": file, "events": target.events, "data": target.data}
            for target, file in zip(info.epoll, files, strict=False)
        ]
        entries.sort(key=lambda entry: (entry["fd"], entry["file"]))
        return OpenFile(raw.file, self.name, info.open_flags, 0, {"entries": entries})

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        here = {(entry["fd"], entry["file"]): entry for entry in now.state["entries"]}
        there = {(entry["fd"], entry["file"]): entry for entry in wanted.state["entries"]}
        calls: list[RemoteCall] = []
        if firing := [there[key] for key in sorted(there) if _can_fire(there[key]) and not _alike(here.get(key), there[key])]:
            silent = {key: entry for key, entry in here.items() if fired(entry) and _alike(entry, there.get(key))}
            calls += [self._control(fd, DEL, here[key]) for key in sorted(here.keys() - silent.keys())]  # they would report to nobody
            calls += self._fire(fd, firing, len(calls))
            here = silent | {(entry["fd"], entry["file"]): entry for entry in firing}
        for key in sorted(here.keys() - there.keys()):
            calls.append(self._control(fd, DEL, here[key]))
        for key, entry in sorted(there.items()):
            if key not in here:
                calls += self._add(fd, entry, len(calls))
            elif not _alike(here[key], entry):
                calls += self._change(fd, here[key], entry)
        return [*calls, *set_flags(fd, now.flags, wanted.flags)]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        """Empty: what it watches is added by `settle` once every number is right. O_NONBLOCK says nothing on an epoll."""
        return [call(nr("epoll_create1"), 0, note="epoll")]

    def settle(self, fd: int, wanted: OpenFile) -> Sequence[RemoteCall]:
        return self.adjust(fd, replace(wanted, state={"entries": []}), wanted)

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        here = {entry["fd"]: entry for entry in now.state["entries"]} if now else {}
        lost = [entry for entry in wanted.state["entries"] if fired(entry) and not _can_fire(entry)]
        return [
            f"epoll: its one-shot entry of fd {entry['fd']} had fired: it reports errors and hang-ups once more"
            for entry in lost
            if not _alike(here.get(entry["fd"]), entry)
        ]

    def _fire(self, fd: int, entries: Sequence[Entry], first: int) -> list[RemoteCall]:
        """Adds them, and takes what they report. `first`: the index of its first call."""
        calls: list[RemoteCall] = []
        fed: list[tuple[int, int]] = []  #: a pipe's end that reads, and the index of the call that opened one that writes
        for entry in entries:
            if entry.get("fed"):
                end = entry["holder"] if "holder" in entry else entry["fd"]
                fed.append((end, first + len(calls)))
                path = f"/proc/self/fd/{end}".encode() + b"\0"
                calls.append(call(nr("open"), path, os.O_WRONLY | os.O_NONBLOCK, 0, note="the pipe's write end"))
                calls.append(call(nr("write"), result(fed[-1][1]), b"x", 1, note="a byte, for a moment", expect=1))
            armed = {**entry, "events": entry["events"] | (IN if entry.get("fed") else entry["ready"])}
            calls += self._add(fd, armed, first + len(calls))
        room = bytes(_EVENT_BYTES * len(entries))
        calls.append(call(nr("epoll_wait"), fd, room, len(entries), 0, note=f"epoll {fd}: they fire", expect=len(entries)))
        for end, writer in fed:
            calls.append(call(nr("read"), end, bytes(1), 1, note="take the byte back", expect=1))
            calls.append(call(nr("close"), result(writer), note="close that end"))
        return calls

    def _add(self, fd: int, entry: Entry, first: int) -> list[RemoteCall]:
        """`first`: the index of its first call. An entry keeps the number that its file had when it was added; where that number is
        free or another file's by now (`holder` has it elsewhere), the file stands there for a moment."""
        added, number = self._control(fd, ADD, entry), entry["fd"]
        if "holder" not in entry:
            return [added]
        lent = call(nr("dup3"), entry["holder"], number, 0, note=f"fd {number} for a moment", expect=number)
        if entry["cloexec"] is None:
            return [lent, added, call(nr("close"), number, note=f"close fd {number} again")]
        flags = O_CLOEXEC if entry["cloexec"] else 0
        return [
            call(nr("dup"), number, note=f"put fd {number} aside"),
            lent,
            added,
            call(nr("dup3"), result(first), number, flags, note=f"fd {number} again", expect=number),
            call(nr("close"), result(first), note="close the spare"),
        ]

    def _change(self, fd: int, here: Entry, there: Entry) -> list[RemoteCall]:
        if (here["events"] | there["events"]) & EXCLUSIVE:  # EPOLL_CTL_MOD refuses it
            return [self._control(fd, DEL, here), self._control(fd, ADD, there)]
        return [self._control(fd, MOD, there)]

    def _control(self, fd: int, operation: int, entry: Entry) -> RemoteCall:
        if entry["file"] < 0:
            raise CannotUndo(f"epoll: nobody in the tree holds what it watches as fd {entry['fd']}")
        event = struct.pack("<IQ", entry["events"] & ~_ALWAYS, entry["data"])
        verb = {ADD: "add", DEL: "delete", MOD: "change"}[operation]
        return call(nr("epoll_ctl"), fd, operation, entry["fd"], event, note=f"epoll {fd}: {verb} fd {entry['fd']}")


def fired(entry: Entry) -> bool:
    return bool(entry["events"] & ONESHOT) and not entry["events"] & _ALWAYS


def _can_fire(entry: Entry) -> bool:
    return fired(entry) and bool(entry.get("ready") or entry.get("fed"))


def _alike(here: Entry | None, there: Entry | None) -> bool:
    return here is not None and there is not None and (here["events"], here["data"]) == (there["events"], there["data"])


KIND = Epoll()
