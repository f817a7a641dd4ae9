"""What a program sees of time over a restore: its clocks go on from the snapshot, in a time namespace; waits and timers keep what remained.

A reboot is stood in for by a program whose clocks are a day ahead of the machine's (`unshare --time`): restored without a namespace of
its own it would find itself a day back, and wait that day.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.e2e.test_restore import revive
from tests.harness import Ckpt, Victim, VictimError
from tests.harness.ckpt import COMMAND, Outcome
from tests.harness.victim import BIN, HERE, PYTHON, build

PAUSE_S = 1.4  #: between death and restore: must not be seen
JUMP_MS = 1000  #: what is a jump; the restore itself and a busy machine take less
DAY_S = 86_400
AHEAD = ("unshare", "--time", f"--monotonic={DAY_S}", f"--boottime={DAY_S + 7}")

pytestmark = [
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root: time namespaces"),
    pytest.mark.skipif(not Path("/proc/self/ns/time").exists(), reason="this kernel has no time namespaces"),
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare(1) is not there"),
]

Start = Callable[..., Victim]


@pytest.fixture
def started() -> Iterator[Start]:
    """started("unshare", ..., "clocks"): a workload by the words of its command, ended after the test."""
    victims: list[Victim] = []
    build()

    def start(*words: str) -> Victim:
        victims.append(Victim([*words[:-1], str(BIN / words[-1])] if (BIN / words[-1]).exists() else words))
        return victims[-1]

    yield start
    for victim in victims:
        victim.end()


def gaps(target: Victim) -> tuple[int, int]:
    """The largest steps of CLOCK_MONOTONIC and CLOCK_BOOTTIME since it was last asked, ms."""
    monotonic, boottime = map(int, target.ask("gaps").split())
    return monotonic, boottime


def took(target: Victim) -> dict[str, int]:
    return {name: int(ms) for name, ms in (word.split("=") for word in target.ask("report").split())}


def die(ckpt: Ckpt, target: Victim) -> int:
    made = ckpt.snapshot(target.pid, "--kill")
    target.kill()
    return int(made["generation"])


def namespace(pid: int | str) -> str:
    return os.readlink(f"/proc/{pid}/ns/time")


def stays_whole(target: Victim) -> None:
    """Nothing has jumped, all of it sees one clock."""
    assert max(gaps(target)) < JUMP_MS
    assert {namespace(pid) for pid in target.tree()} == {namespace(target.pid)} != {namespace("self")}
    target.verify()


@pytest.mark.parametrize("options", [(), ("--lazy",), ("--pid-namespace",), ("--new-pid",)], ids=lambda words: "".join(words) or "same")
@pytest.mark.parametrize("ahead", [False, True], ids=["now", "rebooted"])
def test_clocks_go_on(ahead: bool, options: tuple[str, ...], ckpt: Ckpt, started: Start) -> None:
    target = started(*(AHEAD if ahead else ()), "clocks")
    limit = 2500
    gaps(target)
    first = time.monotonic()
    assert target.ask(f"begin {limit}") == "BEGUN"
    time.sleep(0.5)
    generation = die(ckpt, target)
    before_s = time.monotonic() - first  # of its limit, at most
    time.sleep(PAUSE_S)
    assert ckpt.json("verify", generation)["differences"] == []
    begun = time.monotonic()
    done = revive(ckpt, target, generation, *options)
    assert done["clock"] == "continue"
    assert [one for one in done["warnings"] if "stale" not in one] == []
    found = took(target)
    assert time.monotonic() - begun > limit / 1000 - before_s - 0.1, "what remained is waited for, in the machine's time too"
    assert done["disturbed"] == []
    assert {name: ms for name, ms in found.items() if not limit <= ms < limit + JUMP_MS - 200} == {}
    stays_whole(target)
    assert 0 <= int(target.ask("age")) < 15_000, "it began when it was restored, by its own clock"


def test_each_restore_adds_up(ckpt: Ckpt, started: Start) -> None:
    """Three lives, snapshots of each, and a proof of each: of the machine's time only what it lived is seen."""
    target = started("clocks")
    gaps(target)
    spans = []
    for _ in range(3):
        target.ask("begin 60000")  # timers that have an instant, in every generation
        generation = die(ckpt, target)
        time.sleep(PAUSE_S)
        assert ckpt.json("verify", generation)["faithful"]
        revive(ckpt, target, generation)
        stays_whole(target)
        shown = ckpt.json("show", generation)["features"]["clocks"]
        spans.append(shown["monotonic"])
        assert shown["boottime"] - shown["monotonic"] - boot_ahead() < 50_000_000
    assert spans == sorted(spans)
    assert spans[-1] - spans[0] < 2 * 1e9 * (PAUSE_S + 0.5), "the pauses have not been seen"
    ckpt.sound()


def boot_ahead() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - time.monotonic_ns()


def test_the_hosts_clock_where_it_is_wanted(ckpt: Ckpt, started: Start) -> None:
    target = started("clocks")
    gaps(target)
    generation = die(ckpt, target)
    time.sleep(PAUSE_S)
    done = revive(ckpt, target, generation, "--clock", "host")
    assert done["clock"] == "host"
    assert done["warnings"] == []
    time.sleep(0.1)
    assert min(gaps(target)) >= PAUSE_S * 1000
    assert namespace(target.pid) == namespace("self")
    ckpt.run("restore", generation, "--clock", "mine").refused(2, "--clock mine", "continue", "host")


def test_without_the_right_it_is_said(ckpt: Ckpt, started: Start) -> None:
    without = ["setpriv", "--bounding-set=-sys_time"]
    target = started(*without, "clocks")
    gaps(target)
    generation = die(ckpt, target)
    time.sleep(PAUSE_S)

    def restore(words: Sequence[str]) -> int:
        done = run_as(ckpt, without, "restore", generation, *words, "--json").json
        assert done["clock"] == "host"
        assert len(done["warnings"]) == 1
        said = re.search(r"([\d.]+) s after that of the snapshot: .*CAP_SYS_TIME", done["warnings"][0])
        assert said is not None
        assert PAUSE_S <= float(said[1]) < PAUSE_S + 10
        return int(done["pid"])

    target.revive(restore)
    assert min(gaps(target)) >= PAUSE_S * 1000
    target.verify()


def run_as(ckpt: Ckpt, prefix: Sequence[str], *words: object) -> Outcome:
    command = [*prefix, *COMMAND, *map(str, words)]
    done = subprocess.run(command, env=ckpt.environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def test_rollbacks_leave_the_clock_alone(ckpt: Ckpt, started: Start) -> None:
    """Of this life and of the one before; only where the program remembers a later clock than it has that is said."""
    target = started("clocks")
    first = ckpt.snapshot(target.pid)["generation"]
    taken = time.monotonic()
    time.sleep(1)
    last = die(ckpt, target)
    time.sleep(PAUSE_S)
    revive(ckpt, target, last)
    done = ckpt.json("rollback", first)
    assert done["warnings"] == []
    time.sleep(0.1)
    gap, all_of_it = min(gaps(target)), 1000 * (time.monotonic() - taken)
    assert 1000 <= gap < all_of_it - 1000 * PAUSE_S, "it goes on, from a memory of more than a second before; the pause was never there"
    target.verify()
    target.kill()
    revive(ckpt, target, first)
    assert max(gaps(target)) < JUMP_MS
    done = ckpt.json("rollback", last)
    assert len(done["warnings"]) == 1
    assert "CLOCK_MONOTONIC is" in done["warnings"][0]
    assert "s behind" in done["warnings"][0]
    time.sleep(0.1)
    with pytest.raises(VictimError, match="went back from"):
        target.verify()


def test_ckpt_itself_may_stand_anywhere(ckpt: Ckpt, started: Start) -> None:
    """From inside a time namespace the same process is the same, its baseline and its deadlines are."""
    target = started("clocks")
    elsewhere = [*AHEAD[:2], "--monotonic=5000", "--boottime=7000"]
    assert target.ask("begin 4000") == "BEGUN"
    one = run_as(ckpt, elsewhere, "snapshot", target.pid, "--json").json
    two = ckpt.snapshot(target.pid, "--incremental")
    assert two["kind"] == "incremental"
    assert two["parent"] == one["generation"]
    three = run_as(ckpt, elsewhere, "snapshot", target.pid, "--incremental", "--paranoid", "--json").json
    assert (three["kind"], three["parent"], three["paranoid"]["wrong"]) == ("incremental", two["generation"], 0)
    clocks = [ckpt.json("show", n["generation"])["features"]["clocks"]["monotonic"] for n in (one, two, three)]
    assert clocks == sorted(clocks)
    assert clocks[-1] < time.monotonic_ns(), "as the program sees them, not as ckpt did"
    found = took(target)
    assert {name: ms for name, ms in found.items() if not 4000 <= ms < 4000 + JUMP_MS} == {}
    assert run_as(ckpt, elsewhere, "rollback", one["generation"], "--json").json["warnings"] == []
    target.verify()
    gaps(target)
    generation = die(ckpt, target)
    time.sleep(PAUSE_S)

    def restore(words: Sequence[str]) -> int:
        return int(run_as(ckpt, elsewhere, "restore", generation, *words, "--json").json["pid"])

    target.revive(restore)
    stays_whole(target)
    assert ckpt.exact(target.pid)["parent"] == generation


def test_a_deadline_is_kept_from_anywhere(ckpt: Ckpt, started: Start) -> None:
    """The keeper of a wait goes by the machine's clock, as what is known of the wait does."""
    wait = "epoll = select.epoll(); begun = time.monotonic(); epoll.poll(4); print(time.monotonic() - begun, flush=True)"
    target = started(PYTHON, "-c", f"import select, sys, time; print('READY', flush=True); {wait}; sys.stdin.read()")
    time.sleep(1)
    behind = -int(min(300, time.clock_gettime(time.CLOCK_MONOTONIC) / 2))  # no clock may stand before 0
    for prefix in ([], [*AHEAD[:2], "--monotonic=5000"], [*AHEAD[:2], f"--monotonic={behind}"]):
        assert run_as(ckpt, prefix, "snapshot", target.pid, "--json").code == 0
    assert 3.99 <= float(target.line()) < 4.5


def test_trees_of_two_clocks_are_refused(ckpt: Ckpt, started: Start) -> None:
    program = "import ctypes, sys; {}; print('READY', flush=True); sys.stdin.read()"
    apart = "import subprocess; p = subprocess.Popen(['unshare', '--time', '--monotonic=5', 'sleep', '60'])"
    parent = started(PYTHON, "-c", program.format(apart))
    time.sleep(0.3)
    (child,) = parent.tree()[1:]
    ckpt.run("snapshot", parent.pid).refused(3, f"task {child}", f"another time namespace than task {parent.pid}")
    assert ckpt.snapshot(child)["generation"] == 1
    between = started(PYTHON, "-c", program.format("ctypes.CDLL(None).unshare(0x80)"))
    ckpt.run("snapshot", between.pid).refused(3, f"task {between.pid}", "time namespace")
    assert between.alive()


def test_asyncio_after_a_reboot(ckpt: Ckpt, started: Start) -> None:
    """A loop that is a day ahead would sleep for a day."""
    target = started(*AHEAD, PYTHON, str(HERE / "python_asyncio.py"))
    target.verify()
    generation = die(ckpt, target)
    revive(ckpt, target, generation)
    target.verify()
    time.sleep(0.2)
    target.verify()


def test_redis_after_a_reboot(ckpt: Ckpt, tmp_path: Path) -> None:
    """What it does ten times a second, by CLOCK_MONOTONIC, sets its lru_clock; its uptime goes by CLOCK_REALTIME."""
    server = shutil.which("redis-server")
    if server is None:
        pytest.skip("redis-server is not there")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*AHEAD, server, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(tmp_path)]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    pid = process.pid
    try:
        before = info(port, "uptime_in_seconds")
        generation = ckpt.snapshot(pid, "--kill")["generation"]
        process.wait()
        time.sleep(PAUSE_S)
        assert ckpt.json("restore", generation)["pid"] == pid
        assert info(port, "uptime_in_seconds") > before
        deadline, first = time.monotonic() + 10, info(port, "lru_clock")
        while info(port, "lru_clock") < first + 2:
            assert time.monotonic() < deadline, "its clock stands still"
            time.sleep(0.1)
    finally:
        os.kill(pid, signal.SIGKILL)


def info(port: int, name: str) -> int:
    deadline = time.monotonic() + 10
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as asked:
                asked.sendall(b"INFO server\r\n")
                text = b""
                while not text.endswith(b"\r\n\r\n"):
                    text += asked.recv(65536)
            return int(text.partition(name.encode() + b":")[2].split()[0])
        except ConnectionRefusedError:
            assert time.monotonic() < deadline, "redis does not answer"
            time.sleep(0.05)
