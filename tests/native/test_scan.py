"""The scan against random programs (scan_oracle.c says what is judged), and the probe."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from ckpt.errors import CkptError
from ckpt.live import act, core
from tests.harness import did, soak, time_is_up
from tests.harness.victim import children

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["-DSCAN_DENSE_PAGES=32u", "-DSCAN_PAIR_PAGES=256u", "-DCOPY_PAIR_PAGES=16u"]
#: A fault of the judge shows each time, not once in a hundred runs.
SANITIZE = ["-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


def compiled(name: str, out: Path, *flags: str) -> Path:
    sources = [str(path) for path in sorted((ROOT / "native/src").glob("*.c"))]
    common = ["-std=gnu11", "-O1", "-w", f"-I{ROOT / 'native'}", f"-I{ROOT / 'native/src'}", *flags]
    subprocess.run(["gcc", *common, "-o", str(out / name), str(ROOT / f"tests/native/{name}.c"), *sources, "-lpthread"], check=True)
    return out / name


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("scan_oracle", tmp_path_factory.mktemp("scan"), *SMALL, *SANITIZE)


@pytest.fixture(scope="module")
def race(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compiled("scan_race", tmp_path_factory.mktemp("race"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
@pytest.mark.parametrize("seed", [3, 14, 15])
def test_runs_give_back_every_page(oracle: Path, seed: int) -> None:
    done = subprocess.run([str(oracle), "25", str(seed)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["wrong"] == 0
    assert result["checked"] > 1000
    assert result["same"] > 3000, "nothing was incremental"


@pytest.mark.soak
@pytest.mark.parametrize("mode", ["incremental", "own", "compare"])
def test_many_runs_give_back_every_page(oracle: Path, mode: str) -> None:
    for turn in range(40):
        if time_is_up():
            break
        command = [str(oracle), "50", str(soak.SEED + turn), mode]
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert done.returncode == 0, f"{' '.join(command)}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert json.loads(done.stdout)["wrong"] == 0
        did(f"rounds of the scan's oracle, {mode}", 50)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
@pytest.mark.parametrize("mode", ["store", "string", "kernel", "signal", "altstack", "threads"])
def test_a_protection_that_lies(race: Path, mode: str) -> None:
    """Frozen between the fault on a discarded page and the repetition of the write (suspect.c): the page is new and protected."""
    for _ in range(16):  # on some machines the race is met once in a thousand freezes
        done = subprocess.run(
            [str(race), "2000" if mode == "store" else "500", mode], capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
        result = json.loads(done.stdout)
        assert result["wrong"] == 0
        assert result["checked"] > 10 * result["rounds"]
        if result["lies"] > 0 or mode == "kernel":
            break
    if mode == "kernel":
        assert result["lies"] == 0, "a call does not stop between fault and repetition"
    else:
        assert result["lies"] > 0, "the race was not met: trusting the protection would have passed too"
    assert result["read"] < 0.9 * result["checked"], "everything was read"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
def test_the_programs_own_userfaultfd_keeps_its_protection(oracle: Path) -> None:
    done = subprocess.run([str(oracle), "12", "7", "own"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["wrong"] == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
def test_without_tracking_everything_is_read(oracle: Path) -> None:
    done = subprocess.run([str(oracle), "20", "11", "compare"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert (result["wrong"], result["same"], result["precopied"]) == (0, 0, 0)
    assert result["checked"] > 1000


@pytest.mark.alone
def test_probe_is_quick_and_leaves_nothing() -> None:
    before, own = os.listdir("/proc/self/fd"), children(os.getpid())
    took = []
    for _ in range(3):  # a busy machine may spoil one
        start = time.perf_counter()
        answers = core.probe()
        took.append(time.perf_counter() - start)
    assert min(took) < 0.5
    assert set(answers) == set(core.FEATURES)
    assert all(value >= 0 for value in answers.values())
    assert len(os.listdir("/proc/self/fd")) == len(before)
    assert children(os.getpid()) == own


SPARSE = """
import mmap, sys
area = mmap.mmap(-1, 4096 * 2048, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
for page in range(0, 1600, 2):
    area[page * 4096] = 1
print("READY", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
def test_a_range_with_more_regions_than_the_kernel_collects_at_a_time() -> None:
    """800 separate pages: PAGEMAP_SCAN collects 512 at a time, and once left walk_end behind what it had reported."""
    victim = subprocess.Popen([sys.executable, "-c", SPARSE], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert victim.stdout is not None
        assert victim.stdout.readline() == b"READY\n"
        with core.Tree(victim.pid) as tree, core.Sink(4096, "/tmp") as sink:
            track = tree.arm(victim.pid)
            with pytest.raises(CkptError, match="it runs"):
                act.pages_scan(tree, track, sink, protect=True)
            tree.freeze()
            for protect in (False, True, False):
                runs = act.pages_scan(tree, track, sink, protect=protect).runs
                rows = list(struct.iter_unpack("<QII", runs))
                assert len(rows) > 800
                assert all(start + count <= after for (start, count, _), (after, _, _) in pairwise(rows))
                assert tree.scan_count(track).resident == sum(count for _, count, _ in rows)
    finally:
        victim.kill()
        victim.communicate()
