"""The command line's frame: discovery, one line per failure, exit codes, start-up cost."""

from __future__ import annotations

import importlib
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ckpt.cli import main as frame
from ckpt.errors import DamagedError, NotFoundError, PermissionDeniedError, RefusedError

ROOT = Path(frame.__file__).parents[2]


def ckpt(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ckpt.cli.main", *arguments],
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_every_command_is_listed_with_its_line_and_loads() -> None:
    helps = frame.command_help()
    listing = ckpt("--help").stdout
    assert {"log", "show", "diff", "tag", "rm", "gc", "fsck", "stats", "query"} <= set(helps)
    for name, line in helps.items():
        assert line
        assert f"\n  {name} " in listing
        assert len(line) < 90
        assert callable(importlib.import_module(f"ckpt.cli.{name}").command)


SNAPSHOT = ["snapshot", "999999999"]  # what was asked for is judged before the process is looked for


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["log", "--nosuch"], ["show"], ["rm"], ["log", "--pid", "many"]]
    + [[*SNAPSHOT, *more] for more in (["--tag", "12"], ["--tag", "latest"], ["--tag", ""], ["--keep", "bogus"], ["--precopy", "-1"])],
)
def test_usage_errors_are_one_line_and_2(arguments: list[str]) -> None:
    result = ckpt(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith("ckpt: ")
    assert result.stderr.count("\n") == 1


def test_an_error_with_json_is_one_object_and_one_line() -> None:
    result = ckpt("show", "--json")
    assert result.returncode == 2
    assert json.loads(result.stdout) == {"error": {"kind": "usage", "message": result.stderr[6:-1], "exit_code": 2}}


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def make_context(*arguments: Any) -> None:
        raise error

    monkeypatch.setattr(frame, "_group", lambda: SimpleNamespace(make_context=make_context))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RefusedError("fd 7 of task 4121 (worker): io_uring: not supported"), 3),
        (PermissionDeniedError("no"), 4),
        (DamagedError("no"), 5),
        (NotFoundError("no"), 6),
        (PermissionError(13, "Permission denied", "/x"), 4),
        (OSError(28, "No space left on device", "/x"), 1),
        (ValueError("two\nlines"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_failure_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException, code: int
) -> None:
    failing(monkeypatch, error)
    assert frame.run(["x", "--json"]) == code
    out, err = capsys.readouterr()
    assert err.startswith("ckpt: ")
    assert err.count("\n") == 1
    assert json.loads(out)["error"]["exit_code"] == code
    assert "Traceback" not in err


def test_traceback_on_request(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    failing(monkeypatch, ValueError("x"))
    monkeypatch.setenv("CKPT_TRACEBACK", "1")
    assert frame.run(["x"]) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error() -> None:
    """`ckpt --help | true`: the pipe breaks, nothing is said."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        result = subprocess.run(
            [sys.executable, "-m", "ckpt.cli.main", "--help"],
            cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert result.returncode == 141
    assert result.stderr == ""


def test_json_after_two_dashes_belongs_to_somebody_else() -> None:
    assert frame.wants_json(["log", "--json"])
    assert not frame.wants_json(["run", "--", "x", "--json"])


def test_help_is_cheap() -> None:
    """Processor time over that of bare Python in the same run: the design allows +150 ms."""

    def best(*command: str) -> float:
        times = []
        for _ in range(5):
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        return min(times)

    bare = best("-c", "pass")
    assert best("-m", "ckpt.cli.main", "--help") < bare + 0.15


def test_help_imports_no_wing() -> None:
    code = (
        "import sys; from ckpt.cli.main import run; run(['--help'])\n"
        "print([m for m in sys.modules if m.split('.')[0] in ('rich', 'store', 'native', 'bpf', 'sqlite3')], file=sys.stderr)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stderr.strip() == "[]"


LENT = """
import sys
from ckpt.cli import main
from ckpt.errors import RefusedError
from native._native import ffi

class Cycle: pass

def fail():
    view = memoryview(bytearray(160))  # the oldest of the cycle is cleared first
    one = Cycle()
    one.view, one.lent = view, ffi.from_buffer(view)
    error = RefusedError("refused here")
    one.error = error  # error -> traceback -> this frame -> error
    raise error

main._group = fail
main.main()
"""


def test_a_failure_that_still_lends_a_buffer_ends_with_its_code() -> None:
    result = subprocess.run([sys.executable, "-c", LENT], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stderr) == (RefusedError("").exit_code, "ckpt: refused here\n")
