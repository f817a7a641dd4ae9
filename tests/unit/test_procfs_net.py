"""/proc/PID/net: names and who has them."""

from __future__ import annotations

import socket
from pathlib import Path

from ckpt.procfs.net import LISTEN, TIME_WAIT, InetSocket, parse_inet, parse_unix

TCP = b"""  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3C48 00000000:0000 0A 00000000:00000000 00:00000000 00000000   101        0 545297 1 0000000067753626 100 0 0 10 0
   1: 0100007F:07E8 0200007F:1F90 06 00000000:00000000 03:00000D2A 00000000     0        0 0 3 00000000e49d0652
"""
TCP6 = b"""  sl  local_address                         remote_address                        st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 00000000000000000000000001000000:1F90 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 0000000000000000 100 0 0 10 0
   1: 0000000000000000FFFF00000100007F:1F90 0000000000000000FFFF00000100007F:D431 01 00000000:00000000 00:00000000 00000000     0        0 78 1 0000000000000000 20 4 30 10 -1
"""  # noqa: E501
UNIX = b"""Num       RefCount Protocol Flags    Type St Inode Path
000000004d4b666b: 00000003 00000000 00000000 0001 03 545211
00000000a1af05fc: 00000002 00000000 00010000 0001 01   1072 /run/a name with spaces
00000000a1af05fd: 00000003 00000000 00000000 0001 03  10729 /run/a name with spaces
00000000ac5ff78e: 00000002 00000000 00010000 0001 01 545210 @abstract
"""
LOOPBACK = socket.inet_aton("127.0.0.1")


def test_inet() -> None:
    assert parse_inet(TCP) == [
        InetSocket((LOOPBACK, 15432), (bytes(4), 0), LISTEN, 545297),
        InetSocket((LOOPBACK, 2024), (socket.inet_aton("127.0.0.2"), 8080), TIME_WAIT, 0),
    ]
    assert parse_inet(TCP6) == [
        InetSocket((socket.inet_pton(socket.AF_INET6, "::1"), 8080), (bytes(16), 0), LISTEN, 77),
        InetSocket((LOOPBACK, 8080), (LOOPBACK, 54321), 1, 78),
    ]


def test_unix() -> None:
    assert parse_unix(UNIX) == {"/run/a name with spaces": [1072, 10729], "@abstract": [545210]}


def test_as_this_kernel_writes_them() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        own = [one for one in parse_inet(Path("/proc/self/net/tcp").read_bytes()) if one.local == (LOOPBACK, server.getsockname()[1])]
        assert [one.state for one in own] == [LISTEN]
        link = str(Path(f"/proc/self/fd/{server.fileno()}").readlink())
        assert link == f"socket:[{own[0].ino}]"
