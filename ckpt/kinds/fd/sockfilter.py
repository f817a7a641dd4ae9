"""Classic BPF programs on sockets (SO_ATTACH_FILTER, SO_LOCK_FILTER): of every kind of socket alike.

State: `filter`: the instructions (struct sock_filter[], hex); `filter_locked`. Each only where it is set. The filter is attached when
all sockets stand and hold what lay unread, for it judges what arrives: that had passed it once. An eBPF program (SO_ATTACH_BPF) cannot be
had back from the kernel: refused. What steers a group of sockets (SO_ATTACH_REUSEPORT_CBPF) no call shows.
"""

from __future__ import annotations

import struct
from dataclasses import replace

from ckpt.kinds.base import RawDescriptor, Unsupported, call
from ckpt.kinds.fd import sockets as so
from ckpt.kinds.fd.sockopts import SOL_SOCKET
from ckpt.model import Arg, OpenFile, RemoteArg, RemoteCall, State
from ckpt.syscalls.names import nr

_ATTACH, _DETACH, _LOCK = 26, 27, 44  #: include/uapi/asm-generic/socket.h
_INSTRUCTION = 8  #: bytes of struct sock_filter
_POINTER = 8  #: its offset in struct sock_fprog


def refuse(raw: RawDescriptor) -> None:
    """Raises Unsupported where there is a program that cannot be captured."""
    if so.is_socket(raw) and raw.options.get(so.OPTIONS.index(so.SO_GET_FILTER)) == b"":
        raise Unsupported("socket with an eBPF program on it (SO_ATTACH_BPF): not supported")


def with_filter(file: OpenFile, raw: RawDescriptor) -> OpenFile:
    refuse(raw)
    if not so.is_socket(raw):
        return file
    program, locked = so.option_data(raw, so.SO_GET_FILTER), so.option_data(raw, so.SO_LOCK_FILTER)
    found = {**({"filter": program.hex()} if program else {}), **({"filter_locked": True} if locked else {})}
    return replace(file, state={**file.state, **found}) if found else file


def cannot(now: OpenFile | None, wanted: OpenFile) -> str | None:
    """Why the filter of a socket that is kept cannot be what it was."""
    here, there = now.state if now else {}, wanted.state
    if here.get("filter_locked") and _of(here) != _of(there):
        return "its filter was locked since (SO_LOCK_FILTER)"
    return None


def restore(fd: int, now: OpenFile | None, wanted: OpenFile) -> list[RemoteCall]:
    """`now`: the open file that is kept; None: it is made anew."""
    here, there = now.state if now else {}, wanted.state
    calls = []
    program = bytes.fromhex(there.get("filter", ""))
    if here.get("filter", "") != program.hex():
        if program:
            length = len(program) // _INSTRUCTION
            argument = RemoteArg(Arg.BUFFER, 0, struct.pack("<H6xQ", length, 0), ((_POINTER, program),))
            note = f"fd {fd}: a filter of {length} instructions"
            calls.append(call(nr("setsockopt"), fd, SOL_SOCKET, _ATTACH, argument, len(argument.data), note=note))
        else:
            calls.append(call(nr("setsockopt"), fd, SOL_SOCKET, _DETACH, bytes(4), 4, note=f"fd {fd}: no filter"))
    if there.get("filter_locked") and not here.get("filter_locked"):
        calls.append(call(nr("setsockopt"), fd, SOL_SOCKET, _LOCK, struct.pack("<i", 1), 4, note=f"fd {fd}: its filter is locked"))
    return calls


def _of(state: State) -> tuple[object, object]:
    return state.get("filter"), state.get("filter_locked")
