"""Records and locks: what one ckpt leaves for the next."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckpt.errors import CkptError, NotFoundError
from ckpt.live import runtime
from ckpt.model import PidRef


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CKPT_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.fixture
def sleeper() -> Iterator[PidRef]:
    with subprocess.Popen(["sleep", "60"]) as process:
        yield PidRef(process.pid, runtime.start_ticks(process.pid))
        process.kill()


def test_record_round_trip(folder: Path, sleeper: PidRef) -> None:
    record = runtime.Record(runtime.incarnation(sleeper), "abc", "uuid", 7, (runtime.TrackerSeat(1, 2, 3, 4),))
    runtime.save(sleeper, record)
    assert runtime.load(sleeper) == record
    assert runtime.load(sleeper).consumed().generation == 0  # type: ignore[union-attr]


def test_a_record_of_another_process_does_not_match(folder: Path, sleeper: PidRef) -> None:
    runtime.save(sleeper, runtime.Record("boot:1:2:3:x", "abc", "uuid", 7))
    assert runtime.load(sleeper) is None


def test_a_torn_record_is_no_record(folder: Path, sleeper: PidRef) -> None:
    runtime.save(sleeper, runtime.Record(runtime.incarnation(sleeper), "abc"))
    path = next(folder.glob("*.json"))
    path.write_text(path.read_text()[:20])
    assert runtime.load(sleeper) is None


def test_exec_changes_the_incarnation_but_not_the_process(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "import os; input(); os.execvp('sleep', ['sleep', '60'])"], stdin=subprocess.PIPE
    ) as process:
        ref = PidRef(process.pid, runtime.start_ticks(process.pid))
        before = runtime.incarnation(ref)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        process.stdin.close()
        while Path(f"/proc/{process.pid}/comm").read_text() != "sleep\n":
            pass
        after = runtime.incarnation(ref)
        process.kill()
    assert before != after
    assert runtime.same_process(before, after)


def test_the_second_waits_and_is_told_who_holds_the_lock(folder: Path, sleeper: PidRef) -> None:
    with runtime.target_lock(sleeper), pytest.raises(CkptError, match=f"ckpt {os.getpid()} is at work"), runtime.target_lock(sleeper, 0.1):
        pass
    with runtime.target_lock(sleeper, 0.1):
        pass


def test_sweep_removes_only_what_is_dead(folder: Path, sleeper: PidRef) -> None:
    runtime.save(sleeper, runtime.Record(runtime.incarnation(sleeper), "abc"))
    (folder / "999999-5.json").write_text("{}")
    assert runtime.sweep() == 1
    assert runtime.load(sleeper) is not None


def test_no_such_process() -> None:
    with pytest.raises(NotFoundError, match="no process 4194304"):
        runtime.start_ticks(4194304)
