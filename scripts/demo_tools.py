"""What the parts of `make demo` share: the command line as a person calls it, a client of redis, who was started."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
console = Console()


class DemoError(Exception):
    """Something is not so."""


def require(fact: bool, text: str) -> None:
    if not fact:
        raise DemoError(text)
    console.print(f"  [green]✓[/] {text}")


class Ckpt:
    """The command line, as a person calls it."""

    def __init__(self, store: Path) -> None:
        self.command = [str(ROOT / ".venv/bin/ckpt")]
        self.environment = {**os.environ, "CKPT_STORE": str(store)}

    def json(self, *words: str) -> Any:
        done = subprocess.run([*self.command, *words, "--json"], env=self.environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"ckpt {' '.join(words)}: exit {done.returncode}: {done.stderr.strip() or done.stdout.strip()}")
        return json.loads(done.stdout)

    def show(self, *words: str) -> None:
        console.print(f"\n[bold]$ ckpt {' '.join(words)}[/]")
        environment = {**self.environment, "COLUMNS": str(console.width), "FORCE_COLOR": "1" if console.is_terminal else ""}
        if not console.is_terminal:
            del environment["FORCE_COLOR"]
        done = subprocess.run([*self.command, *words], env=environment, check=False)
        if done.returncode != 0:
            raise DemoError(f"ckpt {' '.join(words)}: exit {done.returncode}")


class Redis:
    """A client of its own: RESP over one socket."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=5)
        self.stream = self.socket.makefile("rb")

    @staticmethod
    def encode(*words: str) -> bytes:
        parts = [f"*{len(words)}\r\n".encode()]
        for word in words:
            data = word.encode()
            parts.append(b"$%d\r\n%s\r\n" % (len(data), data))
        return b"".join(parts)

    def answer(self) -> str | None:
        line = self.stream.readline()
        if not line.endswith(b"\r\n"):
            raise EOFError("the server ended the connection")
        if line[:1] == b"$":
            size = int(line[1:])
            return None if size < 0 else self.stream.read(size + 2)[:-2].decode()
        return line[1:-2].decode()

    def call(self, *words: str) -> str | None:
        self.socket.sendall(self.encode(*words))
        return self.answer()

    def fill(self, count: int) -> None:
        for start in range(0, count, 1000):
            batch = range(start, min(start + 1000, count))
            self.socket.sendall(b"".join(self.encode("SET", f"key:{n}", f"value-{n * 7919}" * 4) for n in batch))
            for _ in batch:
                self.answer()

    def info(self) -> dict[str, str]:
        text = self.call("INFO") or ""
        return dict(line.split(":", 1) for line in text.splitlines() if ":" in line)

    def close(self) -> None:
        self.stream.close()
        self.socket.close()


class Started:
    """Whoever the demo started, or brought back: ended by a pidfd at the end, and nobody else."""

    def __init__(self) -> None:
        self.processes: list[subprocess.Popen[bytes]] = []
        self.pidfds: dict[int, int] = {}

    def run(self, command: list[str], folder: Path) -> subprocess.Popen[bytes]:
        null = subprocess.DEVNULL
        process = subprocess.Popen(command, start_new_session=True, stdin=null, stdout=null, stderr=null, cwd=folder)
        self.processes.append(process)
        self.adopt(process.pid)
        return process

    def adopt(self, pid: int) -> None:
        self.gone(pid)
        self.pidfds[pid] = os.pidfd_open(pid)

    def gone(self, pid: int) -> None:
        if pid in self.pidfds:
            os.close(self.pidfds.pop(pid))

    def end(self, pid: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfds[pid], signal.SIGKILL)
        select.select([self.pidfds[pid]], [], [], 10)
        self.gone(pid)

    def end_all(self) -> None:
        for pid in list(self.pidfds):
            self.end(pid)
        for process in self.processes:
            process.wait()


def start_time(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_bytes().rsplit(b")", 1)[1].split()[19])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(what: str, ready: Any, seconds: float = 20) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError, ValueError, KeyError):
            value = ready()
            if value:
                return value
        time.sleep(0.05)
    raise DemoError(f"{what}: not within {seconds:.0f} s")
