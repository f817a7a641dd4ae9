"""Back from the dead, in the ways that a restore can be asked for. All workloads, life after life: test_cycles.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.harness import WORKLOADS, Ckpt, Victim
from tests.harness.ckpt import COMMAND, ROOT
from tests.harness.victim import PYTHON

Start = Callable[..., Victim]
#: Of redis only the server dies (test_cycles.py).
#: Count an EINTR as wrong; a SIGSTOP and a SIGCONT end their calls (epoll_wait, semtimedop...) by one, without us (signal(7)).
TOLD_OF_STOPS = ("epoll", "waits", "int80")
ALONE = [name for name in WORKLOADS if name != "redis"]


def revive(ckpt: Ckpt, target: Victim, generation: int | str, *options: str) -> Any:
    """What ckpt said of it (--json)."""
    said = []

    def restore(words: Sequence[str]) -> int:
        end = time.monotonic() + 10
        while "is taken" in (done := ckpt.run("restore", generation, *words, *options, "--json")).err and time.monotonic() < end:
            time.sleep(0.1)  # a process of the moment has the number: those of other tests go round them all
        assert done.code == 0, f"exit {done.code}: {done.err}{done.out}"
        said.append(done.json)
        return int(done.json["pid"])

    target.revive(restore)
    return said[0]


#: threads4 and threads200 compare their thread numbers with what they remember: only a namespace keeps these.
BESIDE = [
    *(("--new-pid", name) for name in ("sleeper", "epoll", "registers", "family")),
    *(("--pid-namespace", name) for name in ("threads4", "threads200", "family", "sleeper", "signals")),
]


@pytest.mark.parametrize(("option", "name"), BESIDE)
def test_beside_the_living_original(name: str, option: str, ckpt: Ckpt, victim: Start) -> None:
    """The original lives on; what is restored has other numbers, or its own in a namespace."""
    target = victim(name)
    made = ckpt.snapshot(target.pid)
    second = Victim.beside(target)
    with second:
        revive(ckpt, second, made["generation"], option)
        assert second.pid != target.pid
        second.verify()
        target.verify()
        if option == "--pid-namespace":
            status = Path(f"/proc/{second.pid}/status").read_text()
            assert int(re.search(r"^NSpid:.*\s(\d+)$", status, re.M)[1]) == target.pid
        time.sleep(0.1)
        second.verify()
        ckpt.exact(second.pid)
        target.verify()


def test_replace_ends_the_living_one(ckpt: Ckpt, victim: Start) -> None:
    target = victim("threads4")
    made = ckpt.snapshot(target.pid)
    refused = ckpt.run("restore", made["generation"])
    refused.refused(3, str(target.pid), "living process", "--new-pid")
    target.verify()
    target.collect()
    before = target.start_ticks()
    revive(ckpt, target, made["generation"], "--replace")
    target.verify()
    assert target.start_ticks() != before
    again = ckpt.exact(target.pid)
    assert again["parent"] == made["generation"]


def test_a_refusal_leaves_the_living_one_alone(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    target = victim("counter")
    made = ckpt.snapshot(target.pid)
    next(tmp_path.rglob("counter.txt")).rename(tmp_path / "elsewhere")
    done = ckpt.run("restore", made["generation"], "--replace", "--fd", "2=/dev/null")
    done.refused(3, "counter.txt", "is gone")
    target.verify()


def test_foreground_passes_streams_and_status(ckpt: Ckpt, tmp_path: Path) -> None:
    """The program reads our standard input, writes our standard output, and its exit status is ours."""
    code = "import sys; print('up', flush=True); line = sys.stdin.readline(); print('got', line.strip(), flush=True); sys.exit(42)"
    with subprocess.Popen([PYTHON, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == b"up\n"
        made = ckpt.snapshot(first.pid)
        first.kill()
    for option in ((), ("--pid-namespace",)):
        done = subprocess.run(
            [*COMMAND, "restore", str(made["generation"]), "--foreground", *option],
            input="hello\n", capture_output=True, text=True, env=ckpt.environment, timeout=60, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stdout) == (42, "got hello\n"), done.stderr


@pytest.mark.parametrize("name", ["threads4", "churn", "family", "python-threads"])
def test_back_to_before_it_died(name: str, ckpt: Ckpt, victim: Start) -> None:
    """A restored program is rolled back to generations of its first life, and on to ones of its second."""
    target = victim(name)
    first = ckpt.snapshot(target.pid)["generation"]
    time.sleep(0.1)
    target.verify()
    second = ckpt.snapshot(target.pid, "--incremental")["generation"]
    target.kill()
    revive(ckpt, target, second)
    target.verify()
    time.sleep(0.1)
    third = ckpt.snapshot(target.pid)["generation"]
    for generation in (first, third, second):
        before = target.start_ticks()
        done = ckpt.run("rollback", generation, "--json")
        assert done.code == 0, done.err
        assert target.start_ticks() == before
        target.verify()
    assert ckpt.exact(target.pid)["parent"] == second


def test_an_executed_file_that_was_replaced(ckpt: Ckpt, tmp_path: Path) -> None:
    """As after an upgrade: its program goes on, and comes back, though nobody can execute that file again."""
    program = tmp_path / "program"
    shutil.copy(ROOT / "tests/workloads/bin/counter", program)
    with Victim([str(program), str(tmp_path / "counter.txt")]) as target:
        program.unlink()
        program.write_text("the new version")
        made = ckpt.snapshot(target.pid)
        target.verify()
        target.kill()
        said = revive(ckpt, target, made["generation"])["warnings"]
        assert any("the file that it executes is gone" in warning for warning in said)
        target.verify()
        assert ckpt.exact(target.pid)["parent"] == made["generation"]
