"""What starts ckpt in the tests: an interpreter that has loaded everything once and forks for each command.

A command is a process of its own, as always, divided into front and worker, with its own words and environment in /proc; only the three
tenths of a second are saved in which Python loads the same modules again. The interposer (tests/faults/inject.c) is preloaded here and is
told in the child which faults are wanted: `inject_again()`. One command in BY_EXEC is started from the very beginning (ckpt.py).

main() is that interpreter: one request a line on standard input ({"words", "env", "folder", "out", "err"}: the last two are files),
answered by the child's pid and, when it has ended, by its exit code (negative: a signal).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.faults.faults import LIBRARY, build

ROOT = Path(__file__).resolve().parents[2]
#: What is seen of a command in /proc must fit in what was given to the interpreter: its words, its environment (bytes).
ROOM = {"words": 8192, "env": 65536}


class Zygote:
    """Started at the first command, ended with the tests' own process (its standard input closes)."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = os.getpid()
        self._busy = threading.Lock()

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None:
            build()
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(LIBRARY), "CKPT_ROOM": "x" * ROOM["env"]}
            command = [sys.executable, "-c", "from tests.harness.zygote import main; main()", "x" * ROOM["words"]]
            self._process = subprocess.Popen(  # unbuffered: select() must see an answer that has come
                command,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                bufsize=0,
                start_new_session=True,
                preexec_fn=defaults,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def free(self) -> bool:
        """Takes it for one command, run() follows; False: a thread of the tests has it, or this is a child of theirs, with other limits."""
        return os.getpid() == self._owner and self._busy.acquire(blocking=False)

    def run(self, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path, timeout_s: float) -> int | None:
        """The exit code; None = it hung, and was killed."""
        try:
            to, answers = self._pipes()
            request = {"words": words, "env": dict(environment), "folder": str(Path.cwd()), "out": str(out), "err": str(err)}
            to.write(json.dumps(request).encode() + b"\n")
            pid = int(answers.readline())
            hangs = not select.select([answers], [], [], timeout_s)[0]
            if hangs:
                os.kill(pid, signal.SIGKILL)
            code = int(answers.readline())
            return None if hangs else code
        finally:
            self._busy.release()


def defaults() -> None:
    """Signals that end a command do so, whoever runs the tests (nohup, a shell's background)."""
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def show(words: Sequence[str], environment: Mapping[str, str]) -> None:
    """Writes them where /proc/self/cmdline and environ are read from (fields 48 to 51 of stat, proc(5)); prctl(PR_SET_MM) needs a right."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    places = [int(field) for field in fields[45:49]]
    texts = [sys.executable, "ckpt", *words], [f"{name}={value}" for name, value in environment.items()]
    for (start, end), strings in zip((places[:2], places[2:]), texts, strict=True):
        text = b"".join(os.fsencode(string) + b"\0" for string in strings)
        assert len(text) < end - start, "more than ROOM"
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


def child(request: dict[str, Any]) -> NoReturn:
    """The command: as main() is called, but for the end of the interpreter."""
    from ckpt.cli.main import main as command

    code: object = 70
    try:
        for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY), (request["err"], os.O_WRONLY))):
            opened = os.open(str(path), flags | os.O_CREAT, 0o600)
            os.dup2(opened, number)
            os.close(opened)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["env"])
        show(request["words"], request["env"])
        ctypes.CDLL(None).inject_again()
        sys.argv = ["ckpt", *request["words"]]
        command()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)


def main() -> None:
    import ckpt.cli.main
    import ckpt.ops.check
    import ckpt.ops.restore
    import ckpt.ops.rollback
    import ckpt.ops.snapshot
    import ckpt.ops.verify  # noqa: F401  (loaded here once)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
