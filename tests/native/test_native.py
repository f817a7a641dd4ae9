"""The core's own C under ASan and UBSan: freeze and thaw of victims that judge themselves, the sink, the parse of maps."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.harness import did

HERE = Path(__file__).resolve().parent

#: case -> iterations in an ordinary run; a soak multiplies them
FREEZES = {
    "busy": 300,
    "signals": 300,
    "churn": 30,
    "vfork": 20,
    "group-stop": 20,
    "killed": 10,
    "refusals": 1,
    "tracer-dies": 20,
    "tracer-dies-early": 20,
}


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("native")
    made = subprocess.run(["make", "-s", "-j2", "-C", str(HERE), f"OUT={out}"], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return out


def run(program: Path, *words: str, timeout: float) -> str:
    """Ends the whole group when it takes too long: victims hold the pipe open otherwise."""
    process = subprocess.Popen([str(program), *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        pytest.fail(f"{program.name} {' '.join(words)} took more than {timeout} s:\n{output}")
    assert process.returncode == 0, output
    return output


def test_sink_and_maps(programs: Path) -> None:
    assert run(programs / "test_sink", timeout=30).endswith("PASS\n")


def test_counts(programs: Path) -> None:
    """A count that is all of what a list of buffers holds, and one that is a part."""
    assert run(programs / "test_counts", timeout=30).endswith("PASS\n")


def test_operand(programs: Path) -> None:
    """What an instruction writes lies where operand.c says: the processor is the judge."""
    assert run(programs / "test_operand", timeout=60).endswith("PASS\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="ptrace of a kernel thread and SCHED_FIFO need root")
@pytest.mark.parametrize("case", FREEZES)
def test_freeze(programs: Path, case: str) -> None:
    assert run(programs / "test_freeze", case, str(FREEZES[case]), timeout=60).endswith("PASS\n")


@pytest.mark.soak
@pytest.mark.parametrize("case", ["busy", "signals", "churn", "tracer-dies"])
def test_freeze_soak(programs: Path, case: str) -> None:
    assert run(programs / "test_freeze", case, str(FREEZES[case] * 20), timeout=600).endswith("PASS\n")
    did(f"freezes of the native test {case}", FREEZES[case] * 20)
