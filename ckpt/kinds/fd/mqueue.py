"""POSIX message queues: the name, the access mode, O_NONBLOCK, the sizes. Not the messages: a queue with a name belongs to the machine,
as a file does, and outlives its users. What has moved since is said; one that is gone by then is made anew if it was empty.

Measured on Linux 6.18: nothing looks at a message without taking it. recvfrom(MSG_PEEK) is ENOTSOCK, tee EINVAL, a read of the descriptor
gives the counts in text only ("QSIZE:5 NOTIFY:0 SIGNO:0 NOTIFY_PID:0"), and there is no mq_* call for it. To take the messages out and
send them again would lose them with a killed ckpt, and would fire and drop a notification (ipc/mqueue.c, __do_notify). So those are
refused (what mq_notify was given, sigev_value, is shown nowhere), and messages of a queue that is gone are named as what cannot be had.

The link is "/name", as of a regular file at the root: C tells them apart (Work.MQUEUE).
"""

from __future__ import annotations

import os
import re
import stat
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported, Wants, Work, call, result, same, set_flags
from ckpt.kinds.fd.file import path_of
from ckpt.model import OpenFile, RemoteCall
from ckpt.procfs import parse_fdinfo
from ckpt.syscalls.names import nr

ATTR = struct.Struct("<4q")  #: struct mq_attr: flags, maxmsg, msgsize, curmsgs
_ATTR_BYTES = 64
_NOTIFY_PID = re.compile(rb"NOTIFY_PID:(\d+)")


class MessageQueue:
    name = "mqueue"
    order = 39
    wants: tuple[Wants, ...] = ()  #: the row of regular files asks

    def recognises(self, raw: RawDescriptor) -> bool:
        return Work.MQUEUE in raw.work

    def check(self, raw: RawDescriptor) -> None:
        """For the pre-flight."""
        self.parse(raw)

    def caution(self, raw: RawDescriptor) -> str | None:
        count = ATTR.unpack_from(raw.work[Work.MQUEUE])[3]
        where = "they are lost with the last process that has it" if raw.nlink == 0 else "they stay in it"
        return f"POSIX message queue {path_of(raw)} holds {count} messages, which are not captured: {where}" if count else None

    def parse(self, raw: RawDescriptor) -> OpenFile:
        info, answer = parse_fdinfo(raw.fdinfo), raw.work[Work.MQUEUE]
        _flags, room, size, count = ATTR.unpack_from(answer)
        found = _NOTIFY_PID.search(answer, ATTR.size)
        if found is None:
            raise Unsupported(f"POSIX message queue {path_of(raw)}: who is notified cannot be read: not supported")
        if int(found[1]):
            raise Unsupported(
                f"POSIX message queue {path_of(raw)}: task {int(found[1])} is notified of messages (mq_notify): not supported"
            )
        state = {
            "queue": path_of(raw),
            "dev": raw.dev,
            "ino": raw.ino,
            "deleted": raw.nlink == 0,
            "mode": stat.S_IMODE(raw.mode),
            "room": room,
            "size": size,
            "count": count,
        }
        return OpenFile(raw.file, self.name, info.open_flags, 0, state)

    def with_others(self, files: Sequence[OpenFile]) -> Sequence[OpenFile]:
        """How often a queue is open: one that has no name any more can be made for one open file only."""
        known = Counter(file.state["ino"] for file in files)
        return [replace(file, state={**file.state, "opened": known[file.state["ino"]]}) for file in files]

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        return set_flags(fd, now.flags, wanted.flags)

    def caveats(self, now: OpenFile | None, wanted: OpenFile) -> Sequence[str]:
        then, here = wanted.state["count"], now.state["count"] if now else wanted.state.get("there", {}).get("count", 0)
        if then == here:
            return []
        return [f"POSIX message queue {wanted.state['queue']}: {then} messages then, {here} now: they are not taken back"]

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        state, there = wanted.state, wanted.state.get("there")
        queue = os.fsencode(state["queue"][1:]) + b"\0"
        lasting = wanted.flags & (os.O_ACCMODE | os.O_NONBLOCK)
        if there and not state["deleted"]:
            if (there["room"], there["size"]) != (state["room"], state["size"]):
                raise CannotUndo(f"POSIX message queue {state['queue']} is another one by now")
            return [call(nr("mq_open"), queue, lasting, 0, 0, note=f"mq_open {state['queue']}")]
        self._need_empty(wanted)
        attr = ATTR.pack(0, state["room"], state["size"], 0).ljust(_ATTR_BYTES, b"\0")
        made = call(nr("mq_open"), queue, lasting | os.O_CREAT, state["mode"], attr, note=f"make message queue {state['queue']}")
        calls = [made, call(nr("fchmod"), result(0), state["mode"], note=f"its mode {state['mode']:#o}")]
        if "owner" in state:
            calls.append(call(nr("fchown"), result(0), *state["owner"], note=f"its owner {state['owner']}"))
        if state["deleted"]:
            calls.append(call(nr("mq_unlink"), queue, note=f"unlink {state['queue']} again"))
        return [*calls, same(0)]

    def _need_empty(self, wanted: OpenFile) -> None:
        state = wanted.state
        name = f"POSIX message queue {state['queue']}"
        if state["count"] and not state.get("trial"):
            raise CannotUndo(f"{name} is gone with the {state['count']} messages that lay in it")
        if state["deleted"] and state.get("opened", 1) > 1:
            raise CannotUndo(f"{name} had been unlinked, and was open {state['opened']} times: not supported")
        if state["deleted"] and state.get("there"):
            raise CannotUndo(f"{name} had been unlinked, and another has its name by now: remove that (mq_unlink)")


KIND = MessageQueue()
