"""The sockets that listen, as sock_diag and as /proc tell them."""

from __future__ import annotations

import socket
from pathlib import Path

from ckpt.live.diag import listening
from ckpt.procfs.net import LISTEN, parse_inet

LOOPBACK = bytes((127, 0, 0, 1))


def test_both_say_the_same() -> None:
    with socket.create_server(("127.0.0.1", 0)) as four, socket.create_server(("::", 0), family=socket.AF_INET6) as six:
        ports = {four.getsockname()[1], six.getsockname()[1]}
        texts = [Path(f"/proc/self/net/{name}").read_bytes() for name in ("tcp", "tcp6")]
        shown = [one for text in texts for one in parse_inet(text, ports) if one.state == LISTEN]
        told = [one for one in listening() if one.local[1] in ports]
    assert len(shown) == 2
    assert set(told) == set(shown)
    assert LOOPBACK in {one.local[0] for one in told}
