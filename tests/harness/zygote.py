"""In a soak, what starts ckpt: an interpreter that has loaded everything once and forks for each command.

A command is a process of its own, as always; only the three tenths of a second are saved in which Python loads the same modules again. The
interposer (tests/faults/inject.c) is preloaded here and is told in the child which faults are wanted: `inject_again()`. One command
in BY_EXEC is started from the very beginning all the same (ckpt.py).

main() is that interpreter: one request a line on standard input ({"words", "env", "out", "err"}: the last two are files), answered
by the child's pid and, when it has ended, by its exit code (negative: a signal).
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, NoReturn

from tests.faults.faults import LIBRARY, build

ROOT = Path(__file__).resolve().parents[2]


class Zygote:
    """Started at the first command, ended with the tests' own process (its standard input closes)."""

    _process: subprocess.Popen[bytes] | None = None

    def _pipes(self) -> tuple[IO[bytes], IO[bytes]]:
        if self._process is None:
            build()
            environment = {**os.environ, "PYTHONPATH": str(ROOT), "LD_PRELOAD": str(LIBRARY)}
            command = [sys.executable, "-c", "from tests.harness.zygote import main; main()"]
            self._process = subprocess.Popen(  # unbuffered: select() must see an answer that has come
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, start_new_session=True
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        return self._process.stdin, self._process.stdout

    def run(self, words: Sequence[str], environment: Mapping[str, str], out: Path, err: Path, timeout_s: float) -> int | None:
        """The exit code; None = it hung, and was killed."""
        to, answers = self._pipes()
        to.write(json.dumps({"words": words, "env": dict(environment), "out": str(out), "err": str(err)}).encode() + b"\n")
        pid = int(answers.readline())
        hangs = not select.select([answers], [], [], timeout_s)[0]
        if hangs:
            os.kill(pid, 9)
        code = int(answers.readline())
        return None if hangs else code


def child(request: dict[str, Any]) -> NoReturn:
    from ckpt.cli.main import run

    code = 70
    try:
        for number, (path, flags) in enumerate(((os.devnull, os.O_RDONLY), (request["out"], os.O_WRONLY), (request["err"], os.O_WRONLY))):
            os.dup2(os.open(str(path), flags | os.O_CREAT, 0o600), number)
        sys.stdin, sys.stdout, sys.stderr = os.fdopen(0), os.fdopen(1, "w"), os.fdopen(2, "w")
        os.environ.clear()
        os.environ.update(request["env"])
        ctypes.CDLL(None).inject_again()
        code = run([str(word) for word in request["words"]])
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(code)


def main() -> None:
    import ckpt.cli.main
    import ckpt.ops.check
    import ckpt.ops.rollback
    import ckpt.ops.snapshot  # noqa: F401  (loaded here once)

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            child(json.loads(line))
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
