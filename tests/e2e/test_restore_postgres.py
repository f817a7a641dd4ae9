"""PostgreSQL: a tree of processes with shared memory, a listening TCP and unix socket, killed and restored."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.harness import Ckpt, times
from tests.harness.victim import children

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes"),
    pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed"),
]


@dataclass
class Server:
    folder: Path
    port: int
    pid: int

    def tree(self) -> list[int]:
        found = [self.pid]
        for pid in found:
            found += children(pid)
        return found

    def ask(self, text: str, host: str = "") -> str:
        words = [PROGRAMS[-1] / "psql", "-h", host or self.folder, "-p", str(self.port), "-U", "postgres", "-At", "-c", text]
        return subprocess.run(words, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    def kill(self) -> None:
        """Each by a pidfd that was opened while the whole tree was known to be ours; stopped first, for a child that sees the
        postmaster die takes files of shared memory away."""
        pidfds = [os.pidfd_open(pid) for pid in self.tree()]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pidfd in pidfds:
                with suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, number)
        with suppress(ChildProcessError):
            os.waitpid(self.pid, 0)
        deadline = time.monotonic() + 20
        while Path(f"/proc/{self.pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
        for pidfd in pidfds:
            os.close(pidfd)


@pytest.fixture
def server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="ckpt-postgres-"))
    shutil.chown(folder, "postgres", "postgres")
    who = {"user": "postgres", "group": "postgres", "extra_groups": []}
    quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    data = folder / "data"
    subprocess.run([PROGRAMS[-1] / "initdb", "-D", data, "-A", "trust", "-N"], check=True, cwd=folder, **who, **quiet)  # type: ignore[call-overload]
    words = [PROGRAMS[-1] / "postgres", "-D", data, "-k", folder, "-p", str(port), "-c", "listen_addresses=127.0.0.1"]
    started = subprocess.Popen(words, cwd=folder, start_new_session=True, **who, **quiet)  # type: ignore[call-overload]
    found = Server(folder, port, started.pid)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                found.ask("CREATE TABLE t AS SELECT generate_series(1, 1000) AS x")
                break
            except subprocess.CalledProcessError:
                assert time.monotonic() < deadline, "PostgreSQL does not answer"
                time.sleep(0.1)
        yield found
    finally:
        if Path(f"/proc/{found.pid}").exists():
            found.kill()
        shutil.rmtree(folder)


def test_the_whole_server_comes_back(ckpt: Ckpt, server: Server) -> None:
    """As test_cycles.py does it. Rolled back, to before it died, is the server at rest: files do not go back with it."""
    count = 1000
    for _ in range(times(2, 20)):
        made = ckpt.snapshot(server.pid)
        server.kill()
        done = ckpt.run("restore", made["generation"], "--json")
        assert done.code == 0, done.err
        assert ckpt.exact(server.pid)["parent"] == made["generation"]
        rolled = ckpt.run("rollback", made["generation"], "--pid", server.pid, "--json")
        assert rolled.code == 0, rolled.err
        count += 1
        server.ask("INSERT INTO t VALUES (5)")
        server.ask("CHECKPOINT")
        assert server.ask("SELECT count(*) FROM t", "127.0.0.1") == str(count)
        assert server.ask("SELECT pg_backend_pid() > 0") == "t"
        tracked = ckpt.exact(server.pid)
        assert (tracked["kind"], tracked["tracker"]) == ("incremental", "uffd")
        verdict = ckpt.json("verify", tracked["generation"])
        assert verdict["faithful"], verdict["differences"]
    ckpt.sound()
