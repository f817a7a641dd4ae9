"""ckpt trace beside living programs: what it tells is so, and the program and its baseline do not notice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Ckpt, Outcome, Victim
from tests.harness.ckpt import COMMAND
from tests.harness.victim import children

pytestmark = pytest.mark.usefixtures("usable")

Start = Callable[..., Victim]
BIN = str(Path(__file__).resolve().parents[1] / "workloads/bin/writers")


def looks(ckpt: Ckpt, *words: str | int) -> list[dict[str, Any]]:
    done = ckpt.run("trace", *words, "--json")
    assert (done.code, done.err) == (0, ""), done.err
    return [json.loads(line) for line in done.out.splitlines()]


def trackers(pid: int) -> int:
    return sum(os.readlink(f"/proc/{pid}/fd/{fd}").endswith("[userfaultfd]") for fd in os.listdir(f"/proc/{pid}/fd"))


def started(ckpt: Ckpt, *words: str | int) -> tuple[subprocess.Popen[str], dict[str, Any]]:
    """A trace in the background, and its first look."""
    process = ckpt.start("trace", *words, "--json", "--every", "200ms")
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line, process.communicate()[1]
    return process, json.loads(line)


def test_who_writes_what(ckpt: Ckpt, victim: Start) -> None:
    target = victim("writers")
    words = target.ask("where").split()[1:]
    areas = {words[at]: (int(words[at + 1]), int(words[at + 2]), int(words[at + 3])) for at in range(0, len(words), 4)}
    target.ask("rate 30")
    found = looks(ckpt, target.pid, "--every", "300ms", "--for", "1500ms")
    assert len(found) == 5
    for look in found[1:]:
        writes = look["writes"]
        assert (look["tracking"], writes["lost"], look["pid"]) == ("anew", 0, target.pid)
        assert 0.2e9 < look["interval_ns"] < 3e9
        # Where one was preempted the kernel has written for it, too: to its rseq, on the way back.
        by = {one["symbol"]: one for one in writes["functions"] if one["call"] is None}
        mappings = {one["start"]: one for one in writes["mappings"]}
        for name in ("plain", "huge", "file", "fresh"):
            start, pages, tid = areas[name]
            function, mapping = by[f"scribble_{name}"], mappings[start]
            assert (function["file"], function["tids"]) == (BIN, [tid])
            assert 20 < function["pages"] == mapping["pages"] <= pages
        assert writes["pages"] == sum(one["pages"] for one in writes["functions"]) == sum(one["pages"] for one in writes["mappings"])
        assert writes["scanned"] >= writes["pages"] * 0.8, "what the scan says, a moment later"
        threads = {one["tid"]: one for one in look["threads"]}
        assert set(threads) == {area[2] for area in areas.values()}
        assert all(one["calls_per_s"] > 20 for one in threads.values())
    assert trackers(target.pid) == 0, "what was armed for the trace alone is taken away"
    assert list(ckpt.runtime.glob("*.json")) == []
    target.ask("rate 0")
    target.verify()
    made = ckpt.exact(target.pid)
    assert made["kind"] == "full"
    assert ckpt.exact(target.pid)["kind"] == "incremental"


NOTICE = ("churn", "clan", "sharing", "shared", "mappings", "registers", "signals", "sockets", "sleeper", "epoll", "family", "redis")


@pytest.mark.parametrize("name", NOTICE)
def test_nobody_notices(ckpt: Ckpt, victim: Start, name: str) -> None:
    target = victim(name)
    found = looks(ckpt, target.pid, "--every", "100ms", "--for", "2s")
    assert len(found) >= 5
    assert found[-1]["threads"]
    target.verify()
    made = ckpt.exact(target.pid)
    assert made["kind"] == "full"
    target.verify()


def test_threads_that_wait(ckpt: Ckpt, victim: Start) -> None:
    """Calls that began before ckpt came: known, but not for how long. Nothing of eleven kinds of waits ends by being looked at."""
    target = victim("waits")
    (look,) = looks(ckpt, target.pid, "--every", "1s", "--for", "500ms")
    calls = {one["call"] for one in look["threads"]}
    assert {"futex", "pause", "read", "epoll_wait"} & calls
    waiting = [one for one in look["threads"] if one["for_ns"] is None and one["call"]]
    assert waiting
    assert all(one["at_least_ns"] > 0.4e9 for one in waiting)
    looks(ckpt, target.pid, "--every", "100ms", "--for", "1s")
    target.verify()


def test_for_people(ckpt: Ckpt, victim: Start) -> None:
    target = victim("writers")
    target.ask("rate 30")
    done = ckpt.run("trace", target.pid, "--for", "600ms", "--every", "300ms")
    assert (done.code, done.err) == (0, "")
    for text in (f"ckpt trace {target.pid}", "scribble_huge", "private.bin", "CALLS/S", "futex", "PAGES/S"):
        assert text in done.out


def test_a_baseline_is_left_alone(ckpt: Ckpt, victim: Start) -> None:
    target = victim("writers")
    ckpt.snapshot(target.pid)
    target.ask("round 96")
    found = looks(ckpt, target.pid, "--every", "200ms", "--for", "600ms")
    assert {look["tracking"] for look in found} == {"since the last snapshot"}
    assert {look["writes"]["scanned"] for look in found} == {None}
    target.ask("round 95")
    made = ckpt.exact(target.pid)
    assert made["kind"] == "incremental"
    assert made["pages"]["dirty"] > 200, "what was written before, beside and after the trace"
    target.verify()


def test_asked_to_protect_anew_the_next_snapshot_reads_everything(ckpt: Ckpt, victim: Start) -> None:
    target = victim("writers")
    ckpt.snapshot(target.pid)
    target.ask("round 96")
    found = looks(ckpt, target.pid, "--rearm", "--every", "200ms", "--for", "600ms")
    assert {look["tracking"] for look in found} == {"anew"}
    assert trackers(target.pid) == 1, "it was there before"
    made = ckpt.exact(target.pid)
    assert made["kind"] == "full"
    target.ask("round 95")
    assert ckpt.exact(target.pid)["kind"] == "incremental"
    target.verify()
    ckpt.sound()


def test_snapshots_beside_it(ckpt: Ckpt, victim: Start) -> None:
    """The first snapshot makes the baseline its own; the trace goes on, and sees each page once after each snapshot."""
    target = victim("writers")
    process, first = started(ckpt, target.pid)
    assert first["tracking"] == "anew"
    for number in range(4):
        target.ask(f"round {96 + number}")
        made = ckpt.exact(target.pid)
        assert made["kind"] == ("full" if number == 0 else "incremental")
        time.sleep(0.3)
    target.ask("round 93")
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    done = ckpt.finish(process)
    assert (done.code, done.err) == (0, ""), "^C is how one leaves it"
    late = [json.loads(line) for line in done.out.splitlines()]
    assert late[-1]["tracking"] == "since the last snapshot"
    assert {one["symbol"] for look in late[-3:] for one in look["writes"]["functions"]} >= {"scribble_plain", "scribble_fresh"}
    assert trackers(target.pid) == 1, "the snapshots' own"
    assert ckpt.exact(target.pid)["kind"] == "incremental"
    target.verify()
    ckpt.sound()


def test_snapshots_do_not_begin_a_call_anew(ckpt: Ckpt, victim: Start) -> None:
    """Snapshots interrupt every call and put questions into every thread: what is told of the threads stays what it was."""
    target = victim("waits")
    ckpt.snapshot(target.pid)
    process, first = started(ckpt, target.pid)
    for _ in range(3):
        ckpt.snapshot(target.pid)
        time.sleep(0.25)
    process.send_signal(signal.SIGINT)
    last = json.loads(ckpt.finish(process).out.splitlines()[-1])
    told = [(one["tid"], one["call"], one["args"], one["for_ns"]) for one in first["threads"]]
    assert [(one["tid"], one["call"], one["args"], one["for_ns"]) for one in last["threads"]] == told
    assert {one["for_ns"] for one in last["threads"]} == {None}, "all of them began before"
    assert last["mapping_calls"] == {}, "a snapshot's own are not the program's"
    target.verify()


def test_a_family_is_followed(ckpt: Ckpt) -> None:
    """Children that come while it looks: seen coming, writing, going."""
    script = """
import os, sys, time
sys.stdin.readline()
for _ in range(3):
    if (child := os.fork()) == 0:
        area = bytearray(1 << 20)
        time.sleep(0.3)
        os._exit(5)
    os.waitpid(child, 0)
print("done", flush=True)
sys.stdin.readline()
"""
    target = subprocess.Popen(["/usr/bin/python3", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process, _ = started(ckpt, target.pid)
        target.stdin.write("go\n")
        target.stdin.flush()
        assert target.stdout.readline() == "done\n"
        target.stdin.write("end\n")
        target.stdin.flush()
        assert target.wait(10) == 0
        done = ckpt.finish(process)  # it ends with the process
        assert (done.code, done.err) == (0, "")
    finally:
        target.kill()
        target.wait()
    found = [json.loads(line) for line in done.out.splitlines()]
    changes = [one for look in found for one in look["changes"]]
    born = [one["pid"] for one in changes if one["kind"] == "fork"]
    assert len(born) == 3
    assert {(one["pid"], os.waitstatus_to_exitcode(one["status"])) for one in changes if one["kind"] == "end"} >= {(pid, 5) for pid in born}
    assert sum(look["mapping_calls"].get("mmap", 0) for look in found) >= 3, "each has taken a megabyte"
    assert {look["changes_lost"] for look in found} == {0}
    assert {thread["pid"] for look in found for thread in look["threads"]} >= set(born)
    assert {one["pid"] for look in found for one in look["writes"]["mappings"]} >= set(born)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_other_signals_end_it_as_they_end_any_command(ckpt: Ckpt, victim: Start, number: signal.Signals) -> None:
    target = victim("counter")
    process, _ = started(ckpt, target.pid)
    process.send_signal(number)
    done = ckpt.finish(process)
    assert (done.code, done.err) == (128 + number, "ckpt: interrupted\n")
    assert trackers(target.pid) == 0
    target.verify()


def test_killed(ckpt: Ckpt, victim: Start) -> None:
    """The command: its worker hears of it, and tidies up."""
    target = victim("writers")
    process, _ = started(ckpt, target.pid)
    process.kill()
    process.communicate()
    until(lambda: trackers(target.pid) == 0)
    target.verify()


def test_its_worker_killed(ckpt: Ckpt, victim: Start) -> None:
    """The programs go with it; the tracker stays in the target, and the next snapshot makes its own instead."""
    target = victim("writers")
    process, _ = started(ckpt, target.pid)
    (worker,) = children(process.pid)
    os.kill(worker, signal.SIGKILL)
    assert ckpt.finish(process).code == -signal.SIGKILL or process.returncode == 128 + signal.SIGKILL
    target.ask("round 96")
    target.verify()
    assert trackers(target.pid) == 1
    assert ckpt.exact(target.pid)["kind"] == "full"
    assert trackers(target.pid) == 1
    target.ask("round 95")
    assert ckpt.exact(target.pid)["kind"] == "incremental"
    target.verify()


def until(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not what():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.02)


def test_without_the_right_to_load_programs(ckpt: Ckpt, victim: Start) -> None:
    """Root without CAP_SYS_ADMIN, CAP_PERFMON and CAP_BPF: as in many a container."""
    target = victim("counter")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    limited = ["setpriv", "--bounding-set", "-sys_admin,-perfmon,-bpf", *COMMAND]
    done = subprocess.run([*limited, "trace", str(target.pid)], env=ckpt.environment, capture_output=True, text=True, check=False)
    Outcome(done.returncode, done.stdout, done.stderr).refused(4, "no right to load BPF programs", "CAP_BPF")
    done = subprocess.run([*limited, "doctor", "--json"], env=ckpt.environment, capture_output=True, text=True, check=False)
    (found,) = [one for one in json.loads(done.stdout)["findings"] if one["name"] == "eBPF (BCC)"]
    assert (found["works"], found["remedy"]) == (False, "run as root, or with CAP_BPF and CAP_PERFMON")
    target.verify()


def test_what_is_refused(ckpt: Ckpt, victim: Start, tmp_path: Path) -> None:
    ckpt.run("trace", 2**22 + 7).refused(6, "no process")
    ckpt.run("trace", os.getpid(), "--every", "nonsense").refused(2, "--every nonsense")
    ckpt.run("trace", os.getpid(), "--for", "0").refused(2, "--for 0")
    target = victim("counter")
    ckpt.run("trace", target.pid, env={"CKPT_CACHE_DIR": "/proc/nowhere"}).refused(1, "eBPF", "CKPT_CACHE_DIR")
    open_to_all = tmp_path / "cache" / "bpf"
    open_to_all.mkdir(parents=True)
    open_to_all.chmod(0o777)
    ckpt.run("trace", target.pid, env={"CKPT_CACHE_DIR": str(open_to_all.parent)}).refused(1, "others may write")
    assert trackers(target.pid) == 0
    target.verify()
