"""Kinds against the real capture core: a living program with one of everything, looked at twice, and the plan back."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckpt.model import OpenFile, Snapshot

pytest.importorskip("native._native", reason="the capture core is not built")
core = pytest.importorskip("ckpt.live.core")
if os.getuid() != 0:
    pytest.skip("freezing another process needs root", allow_module_level=True)

from ckpt.live.capture import Capture  # noqa: E402
from ckpt.live.preflight import examine  # noqa: E402
from ckpt.live.spaces import Spaces  # noqa: E402
from ckpt.plan import FileIdentity, paths_of, plan  # noqa: E402

TRACK_NONE = 3


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, str(Path(__file__).with_name("kinds_victim.py")), str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "READY\n"
        yield process
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(10) == 0


def look(pid: int) -> Snapshot:
    with core.Tree(pid) as tree, core.Sink(1024, "/tmp") as sink:
        capture = Capture(tree, [core.Track(pid, TRACK_NONE, -1, 0, False)])
        spaces = Spaces(tree.threads(), None)
        capture.run(sink)
        return capture.parse(sink, spaces)


def tell(victim: subprocess.Popen[str], word: str) -> None:
    assert victim.stdin is not None
    assert victim.stdout is not None
    victim.stdin.write(word + "\n")
    victim.stdin.flush()
    assert victim.stdout.readline() == "DONE\n"


def identities(paths: set[str]) -> dict[str, FileIdentity]:
    found = {path: Path(path).stat() for path in paths if Path(path).exists()}
    return {path: FileIdentity(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns) for path, stat in found.items()}


def of_kind(snapshot: Snapshot, kind: str) -> list[OpenFile]:
    return [file for file in snapshot.files if file.kind == kind]


def still(file: OpenFile) -> Any:
    """All but what runs by itself."""
    return (file.id, file.kind, file.flags, file.pos, None if file.kind == "timerfd" else file.state)


def test_everything_is_captured(victim: subprocess.Popen[str], tmp_path: Path) -> None:
    with core.Tree(victim.pid) as tree:
        assert [problem for problem in examine(tree) if problem.refuses] == []
    seen = look(victim.pid)
    (task,) = seen.tasks
    kinds = {file.kind for file in seen.files}
    assert kinds >= {"pipe", "eventfd", "timerfd", "epoll", "unix", "signalfd", "memfd", "file", "device", "directory", "tcp"}
    stdin, inner = of_kind(seen, "pipe")[0], [file for file in of_kind(seen, "pipe") if not file.state["outside"]]
    assert stdin.state["outside"]
    assert [bytes.fromhex(file.state["contents"]) for file in inner] == [b"in the pipe"] * 2
    assert sum(1 for descriptor in task.descriptors if descriptor.file == inner[0].id) == 2  # os.dup
    (epoll,) = of_kind(seen, "epoll")
    assert [entry["file"] for entry in epoll.state["entries"]] == [inner[0].id]
    queues = sorted((file.state["queue"] for file in of_kind(seen, "unix")), key=len)
    assert queues == [[], [], [b"queued".hex()], [b"one".hex(), b"two".hex()]]
    listener, *ends = sorted(of_kind(seen, "tcp"), key=lambda file: file.state["state"] != "LISTEN")
    assert (listener.state["backlog"], sorted(end.state["written"] for end in ends)) == (5, [0, 5])
    assert sorted(timer.state["absolute"] for timer in of_kind(seen, "timerfd")) == [False, True]
    assert next(timer.state["expires"] // 10**9 for timer in of_kind(seen, "timerfd") if timer.state["absolute"]) == 4_000_000_000
    assert task.attributes["cwd"] == {"path": str(Path.cwd())}
    assert "10" in task.attributes["sigactions"]["actions"]
    assert 0 < task.attributes["itimers"]["real"]["remaining_us"] <= 1_000_000_000
    assert all(thread.attributes["rseq"]["pointer"] and thread.attributes["robust_list"]["head"] for thread in task.threads)


def test_nothing_moves_while_nothing_happens(victim: subprocess.Popen[str]) -> None:
    first, second = look(victim.pid), look(victim.pid)
    assert [still(file) for file in first.files] == [still(file) for file in second.files]
    for before, after in zip(first.tasks, second.tasks, strict=True):
        assert {name for name in before.attributes if before.attributes[name] != after.attributes[name]} <= {"itimers"}
        assert [thread.attributes for thread in before.threads] == [thread.attributes for thread in after.threads]


def test_the_way_back_is_planned(victim: subprocess.Popen[str]) -> None:
    wanted = look(victim.pid)
    tell(victim, "spoil")
    now = look(victim.pid)
    found = plan(now, wanted, identities(paths_of(now, wanted)))
    assert found.refusals == ()
    notes = [call.note for stage in found.stages for call in stage.calls]
    for expected in ("drain the pipe", "the pipe's contents", "eventfd += 1", "memfd contents: 5000 bytes", "lseek to 10", "umask 0022",
                     "disposition of signal 10", "send 6 bytes again", "drop 14 bytes"):  # fmt: skip
        assert expected in notes, expected
    assert any("epoll" in note and "add fd" in note for note in notes)
    assert any(note.startswith("chdir") for note in notes)
    assert "send 5 bytes again to" in " ".join(notes)  # the connection with itself: read since, sent once more
