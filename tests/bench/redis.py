"""A redis-server of the bench's own, on a free port, with no persistence."""

from __future__ import annotations

import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Self


class Redis:
    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        words = ["--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--enable-debug-command", "yes"]
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), *words],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self.keys = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.process.kill()
        self.process.wait()

    def _connect(self) -> socket.socket:
        end = time.monotonic() + 20
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port), timeout=120)
            except ConnectionRefusedError:
                if time.monotonic() > end:
                    raise
                time.sleep(0.05)

    def ask(self, *commands: str) -> list[bytes]:
        """Inline commands on a connection of their own, answered with status lines."""
        with self._connect() as connection:
            stream = connection.makefile("rb")
            answers = []
            for start in range(0, len(commands), 500):
                batch = commands[start : start + 500]
                connection.sendall("".join(command + "\r\n" for command in batch).encode())
                answers += [stream.readline() for _ in batch]
        wrong = [answer for answer in answers if answer[:1] == b"-" or not answer]
        if wrong:
            raise AssertionError(f"redis: {wrong[0]!r}")
        return answers

    def populate(self, keys: int, size: int) -> None:
        self.keys = keys
        self.ask(f"DEBUG POPULATE {keys} key {size}")

    def touch(self, count: int) -> None:
        """Rewrites so many values, spread over the keys: about a page each."""
        step = max(1, self.keys // count)
        self.ask(*(f"SETRANGE key:{number * step} 10 {time.time_ns()}" for number in range(count)))

    def resident(self) -> int:
        text = Path(f"/proc/{self.pid}/status").read_text()
        return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmRSS"))) << 10
