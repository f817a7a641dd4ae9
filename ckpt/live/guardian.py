"""A second holder of the userfaultfds, for the moment between the death of the server and the death of its program.

When the last holder of a userfaultfd goes, the kernel lets the missing pages read as zeros. A dying server closes its descriptors
before its tracees are killed (kernel/exit.c: exit_files comes before exit_notify): this process still holds them then, and
goes when that is over. It does nothing else.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress

_DONE, _LINGER_S = b"done", 5.0


class Guardian:
    """Made before the server has threads. It has `held` and nothing else of what is open by then; later ones are sent."""

    def __init__(self, held: Sequence[int]) -> None:
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.pid = os.fork()
        if self.pid == 0:
            _close_all_but((*held, theirs.fileno()))
            _guard(theirs)
        theirs.close()

    def hold(self, descriptor: int) -> None:
        with suppress(OSError):
            socket.send_fds(self._ours, [b"hold"], [descriptor])

    def release(self) -> None:
        """Everything is there: it may let go at once. Returns when it has."""
        with suppress(OSError):
            self._ours.send(_DONE)
        self._ours.close()
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _close_all_but(kept: Sequence[int]) -> None:
    """Whoever waits for the end of a stream of ours must not wait for the guardian."""
    start = 0
    for number in sorted(kept):
        os.closerange(start, number)
        start = number + 1
    os.closerange(start, os.sysconf("SC_OPEN_MAX"))


def _guard(server: socket.socket) -> None:
    """Never returns."""
    held = []
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        while True:
            message, fds, _flags, _address = socket.recv_fds(server, 16, 1)
            held += fds
            if message == _DONE:
                break
            if not message:
                time.sleep(_LINGER_S)
                break
    finally:
        os._exit(0)
