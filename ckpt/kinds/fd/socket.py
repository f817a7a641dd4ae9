"""Every other socket: refused by the name of its family. Asked after the kinds that know theirs."""

from __future__ import annotations

from collections.abc import Sequence

from ckpt.kinds.base import CannotUndo, RawDescriptor, Unsupported
from ckpt.kinds.fd import sockets as so
from ckpt.model import OpenFile, RemoteCall

_FAMILIES = {17: "packet", 29: "CAN", 31: "bluetooth", 38: "AF_ALG (kernel crypto)", 40: "vsock", 44: "XDP", 30: "TIPC"}
_SOCK_RAW = 3
_PROTOCOLS = {1: "ping", 58: "ping", 132: "SCTP", 262: "MPTCP", 33: "DCCP", 136: "UDP-lite"}


class OtherSocket:
    name = "socket"
    order = 39
    wants = so.WANTS

    def recognises(self, raw: RawDescriptor) -> bool:
        return so.is_socket(raw)

    def check(self, raw: RawDescriptor) -> None:
        """The pre-flight has no answers of C: from the outside nothing speaks against a socket."""
        if so.parse_socket(raw) is not None:
            self.parse(raw)

    def parse(self, raw: RawDescriptor) -> OpenFile:
        found = so.parse_socket(raw)
        if found is None:
            raise Unsupported("socket: nothing can be learnt of it")
        if found.domain in (2, 10):
            title = "raw" if found.type == _SOCK_RAW else _PROTOCOLS.get(found.protocol, f"protocol {found.protocol}")
        else:
            title = _FAMILIES.get(found.domain, f"family {found.domain}")
        raise Unsupported(f"{title} socket: not supported")

    def adjust(self, fd: int, now: OpenFile, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("not supported")

    def recreate(self, wanted: OpenFile) -> Sequence[RemoteCall]:
        raise CannotUndo("not supported")


KIND = OtherSocket()
