"""Names that a plan's sockets have to be bound to and that somebody outside the tree has: ports, paths, abstract names.

Looked at before anything is made, so that the refusal can say who has the name. What is bound meanwhile is found by bind itself, and so
is a port that somebody has without listening there: to see those the kernel walks its whole table, which only the failed and those who
are to be ended for a restore wait for.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

from ckpt.errors import CkptError, RefusedError
from ckpt.kinds.fd import sockets as so
from ckpt.live import core, diag
from ckpt.live.act import CallFailed
from ckpt.model import OpenFile, Snapshot
from ckpt.procfs.net import LISTEN, TIME_WAIT, InetSocket, parse_inet, parse_unix
from ckpt.syscalls.names import nr

_MAPPED = bytes(10) + b"\xff\xff"


def taken(pid: int, now: Snapshot, wanted: Snapshot, spared: Collection[int] | None = None) -> list[str]:
    """A line for each name that is taken, as seen by task `pid`. `spared`: inodes of sockets that will be gone by then, as their owner is
    to be ended; so it must be known for sure before."""
    own = {int(file.state["ino"]) for file in now.files if "ino" in file.state} | set(spared or ())
    net = _Net(pid, own, {port for file in wanted.files if (port := _port_of(file))}, thorough=spared is not None)
    return [_whose(file, wanted) + who for file in wanted.files if (who := net.holder(file)) is not None]


def met(pid: int, wanted: Snapshot, failed: CallFailed) -> RefusedError | None:
    """Where a call of task `pid` has failed because a port is taken: says by whom. None: that was not why."""
    if failed.result != -errno.EADDRINUSE or failed.call.nr not in (nr("bind"), nr("listen")):
        return None
    name = failed.call.args[1].data.hex()
    file = next((one for one in wanted.files if name and one.state.get("bound") == name), None)
    if file is None:
        return RefusedError(f"{failed}: end whoever has it")
    net = _Net(pid, sockets_of({pid}), {_port_of(file)}, thorough=True)
    return RefusedError(_whose(file, wanted) + (net.user(file) or f"{failed}: end whoever has it"))


def _whose(file: OpenFile, wanted: Snapshot) -> str:
    holder = next(((task, item.fd) for task in wanted.tasks for item in task.descriptors if item.file == file.id), None)
    return f"fd {holder[1]} of task {holder[0].pid} ({holder[0].comm}): " if holder else ""


def sockets_of(pids: Collection[int]) -> set[int]:
    """Inodes of the sockets that these processes have."""
    return {ino for pid in pids for ino in _inodes(pid)}


class _Net:
    """Read when the first socket asks."""

    def __init__(self, pid: int, own: Collection[int], ports: Collection[int], *, thorough: bool) -> None:
        self.pid, self.own, self.ports, self.thorough = pid, own, ports, thorough
        self.inet: dict[str, list[InetSocket]] = {}
        self.listeners: list[InetSocket] | None = None
        self.unix: dict[str, list[int]] | None = None

    def holder(self, file: OpenFile) -> str | None:
        """What stands in the way of this socket; None: nothing."""
        if file.kind == "unix" and file.state.get("local"):
            return self._unix(file)
        if file.kind == "tcp":
            return self._tcp(file)
        if file.kind == "udp" and not _set(file, "SO_REUSEADDR") and not _set(file, "SO_REUSEPORT"):
            return self._port(file, [one for one in self._sockets("udp") if one.ino])
        return None

    def user(self, file: OpenFile) -> str | None:
        """Whoever has its port in any way."""
        others = self._asked(diag.EVERY) if file.kind == "tcp" else self._sockets("udp")
        return self._port(file, [one for one in others if one.ino])

    def _tcp(self, file: OpenFile) -> str | None:
        local = _end(file.state["bound"])
        if file.state["state"] == "CLOSE" and self.thorough and not _set(file, "SO_REUSEADDR"):
            return self._port(file, self._asked(1 << LISTEN | diag.BOUND))
        if file.state["state"] != "LISTEN":
            far = _end(file.state.get("far", ""))
            same = [one for one in self._sockets("tcp") if far[1] and (one.local, one.remote) == (local, far) and one.state != TIME_WAIT]
            what = f"the connection {file.state['local']} to {file.state['peer']}"
            return next((f"{what} {self._has(one.ino)}" for one in same if one.ino and one.ino not in self.own), None)
        listening = self._listening()
        if self.thorough and not _set(file, "SO_REUSEADDR"):
            listening = [*listening, *self._asked(diag.BOUND)]
        who = None if _set(file, "SO_REUSEPORT") else self._port(file, listening)
        stands = any(one.ino in self.own and one.local == local for one in listening)
        if who is None and not stands and not _set(file, "SO_REUSEADDR"):
            left = [one for one in self._sockets("tcp") if one.state == TIME_WAIT and one.local[1] == local[1]]
            if left:
                return f"port {local[1]} is held by connections that have just ended (TIME_WAIT): try again in a minute"
        return who

    def _port(self, file: OpenFile, others: list[InetSocket]) -> str | None:
        address, port = _end(file.state["bound"])
        if not port:
            return None
        for one in others:
            overlap = not any(address) or not any(one.local[0]) or address == one.local[0]
            if one.local[1] == port and overlap and one.ino not in self.own:
                return f"port {port} {self._has(one.ino)}"
        return None

    def _unix(self, file: OpenFile) -> str | None:
        name = so.address(bytes.fromhex(file.state["local"]))
        if self.unix is None:
            self.unix = parse_unix(self._read("unix"))
        held = [ino for ino in self.unix.get(name.replace("\0", "@"), ()) if ino not in self.own and ino]
        return f"unix socket {name} {self._has(held[0])}" if held else None

    def _listening(self) -> list[InetSocket]:
        if self.listeners is None:
            self.listeners = self._asked(1 << LISTEN)
        return self.listeners

    def _asked(self, states: int) -> list[InetSocket]:
        try:
            with core.in_network_of(self.pid):
                return diag.listening(states)
        except (OSError, CkptError):
            return [one for one in self._sockets("tcp") if states >> one.state & 1]

    def _sockets(self, protocol: str) -> list[InetSocket]:
        if protocol not in self.inet:
            self.inet[protocol] = [one for name in (protocol, f"{protocol}6") for one in parse_inet(self._read(name), self.ports)]
        return self.inet[protocol]

    def _read(self, name: str) -> bytes:
        try:
            return Path(f"/proc/{self.pid}/net/{name}").read_bytes()
        except OSError:  # no IPv6 here
            return b""

    def _has(self, ino: int) -> str:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and ino in _inodes(int(entry.name)):
                with suppress(OSError):
                    return f"is in use by task {entry.name} ({(entry / 'comm').read_text().strip()}): end it"
        return "is in use by somebody who cannot be seen from here"


def _inodes(pid: int) -> Iterator[int]:
    with suppress(OSError):
        for entry in os.scandir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                link = os.readlink(entry.path)
                if link.startswith("socket:["):
                    yield int(link[8:-1])


def _port_of(file: OpenFile) -> int:
    """The port that it is bound to; 0: none."""
    return _end(str(file.state.get("bound", "")))[1] if file.kind in ("tcp", "udp") else 0


def _end(name: str) -> tuple[bytes, int]:
    """struct sockaddr (hex) as procfs shows it."""
    raw = bytes.fromhex(name)
    if len(raw) < 8:
        return b"", 0
    address = raw[4:8] if int.from_bytes(raw[:2], "little") == 2 else raw[8:24]
    return address[12:] if address[:12] == _MAPPED else address, so.port(raw)


def _set(file: OpenFile, option: str) -> bool:
    return any(bytes.fromhex(file.state["options"].get(option, "")))
