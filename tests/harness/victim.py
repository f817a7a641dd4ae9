"""A workload as the tests see it: started, READY, asked, ended. The protocol stands in tests/workloads/victim.h.

A victim runs in a session of its own; ending it ends every process that is in the session or that descends from it, each by
a pidfd that was opened while the process was known to be ours. Nothing is ever ended by name.
"""

from __future__ import annotations

import contextlib
import os
import select
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.making import make

HERE = Path(__file__).resolve().parents[1] / "workloads"
BIN = HERE / "bin"
#: The victims' Python is the plain interpreter: a victim is not a test.
PYTHON = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable


class VictimError(AssertionError):
    """The victim did not say what it should have said."""


class Skipped(Exception):
    """The victim cannot run here (exit 77); `str()` is its reason."""


#: name -> command; {folder} is a scratch folder. Everything here answers "verify".
WORKLOADS: Mapping[str, tuple[str, ...]] = {
    "counter": ("bin/counter", "{folder}/counter.txt"),
    "threads4": ("bin/threads4",),
    "registers": ("bin/registers",),
    "mappings": ("bin/mappings", "{folder}"),
    "shared": ("bin/shared",),
    "threads200": ("bin/threads", "200", "sleepy"),
    "busy16": ("bin/threads", "16", "busy"),
    "family": ("bin/family",),
    "clan": ("bin/clan",),
    "sharing": ("bin/sharing",),
    "churn": ("bin/churn", "{folder}"),
    "sleeper": ("bin/sleeper", "10"),
    "epoll": ("bin/epoll",),
    "descriptors": ("bin/descriptors", "{folder}"),
    "waits": ("bin/waits",),
    "signals": ("bin/signals",),
    "queued": ("bin/queued",),
    "int80": ("bin/int80",),
    "rseq": ("bin/rseq",),
    "vdso": ("bin/vdso",),
    "sockets": ("bin/sockets", "{folder}"),
    "writers": ("bin/writers", "{folder}"),
    "python-threads": (PYTHON, "python_threads.py", "{folder}/progress.txt"),
    "python-asyncio": (PYTHON, "python_asyncio.py"),
    "redis": (PYTHON, "redis_victim.py", "{folder}", "2000"),
}
#: ckpt acts on this process, not on the one that speaks the protocol: redis is a child of its driver.
ROOT_IS_CHILD = {"redis"}
#: Has a child that the program itself has stopped; nobody else may stand still after ckpt was at work.
HAS_STOPPED = {"clan"}


#: A keeper (native/src/keeper.c) stops a thread for some 50 us; beside other work it may be kept from the CPU inside them.
KEEPERS_MOMENT_S = 0.5


def within(seconds: float, holds: Callable[[], bool]) -> bool:
    """Whether it comes to hold within that time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def build() -> None:
    """Builds the C victims (make does nothing where nothing changed)."""
    make(HERE)


def children(pid: int) -> list[int]:
    """Living children of all threads of a process."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            found += [int(word) for word in (thread / "children").read_text().split()]
    return found


def stat_fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third (state) on."""
    text = Path(f"/proc/{pid}/stat").read_text()
    return text[text.rindex(")") + 2 :].split()


def command_line(pid: int) -> bytes:
    """Empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def ticks_now() -> int:
    """Now as field 22 of /proc/PID/stat counts it."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


class Victim:
    """A running workload; a context manager. `pid` is the root of the tree that ckpt acts on."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str] | None = None, timeout_s: float = 60.0, child: bool = False
    ) -> None:
        self.command = list(command)
        self.timeout_s = timeout_s
        self._buffer = b""
        self._pidfds: dict[int, int] = {}
        self._since = ticks_now()
        self._killed, self._words = False, b""
        self.process: subprocess.Popen[bytes] | None = subprocess.Popen(
            self.command,
            cwd=HERE,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
            env={**os.environ, **(env or {})},
        )
        assert self.process is not None
        self.leader = self.process.pid
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._to, self._from = os.dup(self.process.stdin.fileno()), os.dup(self.process.stdout.fileno())
        self.process.stdin.close()
        self.process.stdout.close()
        try:
            first = self.line()
            if first.startswith("SKIP "):
                raise Skipped(first[5:])
            if first.split()[0] != "READY":
                raise VictimError(f"{self.command}: said {first!r} in place of READY")
            words = first.split()
            self.pid = int(words[1]) if child else self.leader
            self._words = command_line(self.leader)
            self.note()
        except BaseException:
            self.end()
            raise

    @classmethod
    def start(cls, name: str, folder: Path, **options: object) -> Victim:
        """A workload by its name in WORKLOADS."""
        build()
        folder.mkdir(parents=True, exist_ok=True)
        command = [word.replace("{folder}", str(folder)) for word in WORKLOADS[name]]
        if command[0].startswith("bin/"):
            command[0] = str(HERE / command[0])
        return cls(command, child=name in ROOT_IS_CHILD, **options)  # type: ignore[arg-type]

    @classmethod
    def beside(cls, other: Victim) -> Victim:
        """Nothing yet: what a restore makes of `other` while that lives on; to be revived."""
        made = cls.__new__(cls)
        made.command, made.timeout_s, made.process = other.command, other.timeout_s, None
        made._buffer, made._pidfds, made._to, made._from = b"", {}, -1, -1
        made.leader, made.pid, made._since = 0, 0, ticks_now()
        made._killed, made._words = False, b""
        return made

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.end()

    # ---- the protocol ----

    def line(self, timeout_s: float | None = None) -> str:
        """The next line that the victim says."""
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        with selectors.DefaultSelector() as selector:
            selector.register(self._from, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise VictimError(f"{self.command}: silent; {self.describe()}")
                got = os.read(self._from, 65536)
                if not got:
                    raise VictimError(f"{self.command}: ended with {self._exit()} after {self._buffer!r}")
                self._buffer += got
        line, self._buffer = self._buffer.split(b"\n", 1)
        return line.decode(errors="replace")

    def ask(self, question: str, timeout_s: float | None = None) -> str:
        """One question, one answer."""
        try:
            os.write(self._to, question.encode() + b"\n")
        except BrokenPipeError:
            raise VictimError(f"{self.command}: gone, exit {self._exit()}") from None
        return self.line(timeout_s)

    def verify(self) -> None:
        """Lets the victim check its own state; raises VictimError with its reason."""
        answer = self.ask("verify")
        if answer != "PASS":
            raise VictimError(f"{Path(self.command[0]).name}: {answer}")

    # ---- what it is ----

    def alive(self) -> bool:
        try:
            return stat_fields(self.pid)[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def start_ticks(self) -> int:
        return int(stat_fields(self.pid)[19])

    def tracer(self) -> int:
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("TracerPid"))

    def tids(self) -> set[int]:
        return {int(entry.name) for entry in Path(f"/proc/{self.pid}/task").iterdir()}

    def states(self) -> set[str]:
        """The states of all threads of the tree: a 't' or 'T' is a thread that somebody stopped."""
        found = set()
        for pid in self.tree():
            with contextlib.suppress(OSError):
                for thread in Path(f"/proc/{pid}/task").iterdir():
                    text = (thread / "stat").read_text()
                    found.add(text[text.rindex(")") + 2])
        return found

    def untraced(self) -> bool:
        """Whether nobody traces it; a keeper does so for a moment when a wait has come to its end."""
        return within(KEEPERS_MOMENT_S, lambda: self.tracer() == 0)

    def stands_still(self, but: Container[str] = ()) -> bool:
        """Whether a thread is stopped, for longer than a keeper's moment, that the program has not stopped; `but`: states it may show."""
        own = {"T"} if Path(self.command[0]).name in HAS_STOPPED else set()
        stopped = {"t", "T"} - own - {state for state in "tT" if state in but}
        return not within(KEEPERS_MOMENT_S, lambda: not self.states() & stopped)

    def tree(self) -> list[int]:
        """The root and all its living descendants."""
        found = [self.pid]
        for pid in found:
            found += [one for one in children(pid) if one not in found]
        return found

    def describe(self) -> str:
        try:
            fields = stat_fields(self.leader)
            return f"state {fields[0]}, tracer {self.tracer()}, exit {self._exit(0)}"
        except (OSError, StopIteration, AttributeError):
            return f"gone, exit {self._exit(0)}"

    # ---- death and rebirth ----

    def kill(self) -> None:
        """SIGKILL to every process of the victim, as a crash would end it; it may be revived."""
        self._kill_all()
        self._wait()
        self._reaped()
        self._killed = True

    def collect(self) -> None:
        """Waits for the process in a thread of its own, as a shell or an init would: its number is free once it has ended."""
        assert self.process is not None
        threading.Thread(target=self.process.wait, daemon=True).start()

    def revive(self, restore: Callable[[Sequence[str]], int]) -> None:
        """Calls `restore` with the words that connect the restored program's standard input and output with us; it gives the pid."""
        reading, to = os.pipe()
        source, writing = os.pipe()
        here = f"/proc/{os.getpid()}/fd"
        try:
            self.pid = restore(["--fd", f"0={here}/{reading}", "--fd", f"1={here}/{writing}", "--fd", "2=/dev/null"])
        finally:
            for mine in (reading, writing, self._to, self._from):
                if mine >= 0:
                    os.close(mine)
            self._to, self._from, self._buffer = to, source, b""
        self.leader, self._killed = self.pid, False
        self._words = command_line(self.leader)
        self.note()

    # ---- the end ----

    def _session(self) -> Iterable[int]:
        """Members of the victim's session. Session 0 is everybody's whom nobody put into one: never ours."""
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError, ValueError):
                    if int(stat_fields(int(entry.name))[3]) == self.leader:
                        yield int(entry.name)

    def note(self) -> None:
        """Opens a pidfd for every process that is ours now; none where nothing was started or revived yet."""
        if self.leader <= 1 or (self._killed and command_line(self.leader) != self._words):
            return  # or another one has the number by now, not one that a test has restored by itself
        queue = [self.leader, *self._session()]
        for pid in queue:
            queue += [one for one in children(pid) if one not in queue]
            known = self._pidfds.get(pid)
            if known is not None and select.select([known], [], [], 0)[0]:
                os.close(self._pidfds.pop(pid))  # it has ended, and another one has its number: a rollback made it again
                known = None
            if known is None:
                with contextlib.suppress(OSError):
                    pidfd = os.pidfd_open(pid)
                    if int(stat_fields(pid)[19]) >= self._since:
                        self._pidfds[pid] = pidfd
                    else:  # older than the victim: whatever it is, it is not ours
                        os.close(pidfd)

    def end(self) -> None:
        """SIGKILL to every process of the victim, and waits until each has ended."""
        self._kill_all()
        for pipe in (self._to, self._from):
            with contextlib.suppress(OSError):
                os.close(pipe)
        self._to = self._from = -1
        self._wait()
        self._reaped()

    def _exit(self, timeout_s: float = 10) -> int | None:
        """None: it lives, or is a restored one, which is no child of ours."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(timeout_s) if self.process is not None else None
        return None

    def _wait(self) -> None:
        if self.process is not None:
            self.process.wait(30)

    def _kill_all(self) -> None:
        for _ in range(3):  # a child may be born while we look
            self.note()
            for pidfd in self._pidfds.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)

    def _reaped(self) -> None:
        for pidfd in self._pidfds.values():
            select.select([pidfd], [], [], 30)  # readable once the process has ended; its parent need not have waited
            os.close(pidfd)
        self._pidfds.clear()
