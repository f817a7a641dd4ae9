"""/proc/PID/net/{tcp,tcp6,udp,udp6,unix}: who has which name in a network namespace (Documentation/networking/proc_net_tcp.rst)."""

from __future__ import annotations

import os
import struct
from collections.abc import Collection
from dataclasses import dataclass

LISTEN, TIME_WAIT = 10, 6  #: include/net/tcp_states.h
_MAPPED = bytes(10) + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class InetSocket:
    """Addresses are 4 or 16 bytes; an IPv4 address in IPv6's form is one of 4."""

    local: tuple[bytes, int]
    remote: tuple[bytes, int]
    state: int
    ino: int  #: 0: nobody has it any more


def parse_inet(text: bytes, ports: Collection[int] | None = None) -> list[InetSocket]:
    """`ports`: only those with one of these local ports; a machine may have very many others."""
    found = []
    ends = None if ports is None else {b":%04X" % port for port in ports}
    for line in text.splitlines()[1:]:
        words = line.split(None, 10)
        if len(words) > 9 and (ends is None or words[1][-5:] in ends):
            found.append(InetSocket(_end(words[1]), _end(words[2]), int(words[3], 16), int(words[9])))
    return found


def parse_unix(text: bytes) -> dict[str, list[int]]:
    """Name ("@..." if abstract) -> inodes of the sockets that show it."""
    found: dict[str, list[int]] = {}
    for line in text.splitlines()[1:]:
        fields = line.split(None, 7)
        if len(fields) == 8:
            found.setdefault(os.fsdecode(fields[7]), []).append(int(fields[6]))
    return found


def _end(text: bytes) -> tuple[bytes, int]:
    """Each 32-bit word of the address is written as the machine reads it."""
    address, port = text.split(b":")
    words = [int(address[at : at + 8], 16) for at in range(0, len(address), 8)]
    raw = struct.pack(f"<{len(words)}I", *words)
    return plain(raw), int(port, 16)


def plain(address: bytes) -> bytes:
    """An IPv4 address in IPv6's form as one of 4 bytes."""
    return address[12:] if address[:12] == _MAPPED else address
