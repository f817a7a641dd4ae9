"""Attributes of a task that is killed and restored: what the kernel says of it (raw /proc) and what it says itself, then and now."""

from __future__ import annotations

import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.e2e.asked import Asked
from tests.e2e.test_restore import revive
from tests.harness import Ckpt

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")

#: Lines of status that no restore can or should bring back: numbers of others, counters, what grows and shrinks by itself.
_PASSING = ("State", "TracerPid", "PPid", "NSsid", "NSpgid", "FDSize", "Vm", "Rss", "HugetlbPages", "Shd", "voluntary_ctxt", "nonvoluntary",
            "x86_", "Mems_allowed", "SigQ", "CoreDumping", "untag")  # fmt: skip
#: Fields of stat (counted from 3, the state) that are the same: flags aside, times and counters pass.
_STAT_LASTING = {"tty": 4, "priority": 15, "nice": 16, "threads": 17, "exit_signal": 35, "rt_priority": 37, "policy": 38}


def raw(pid: int) -> dict[str, object]:
    folder = Path(f"/proc/{pid}")
    found: dict[str, object] = {name: (folder / name).read_text() for name in ("limits", "oom_score_adj", "personality", "comm", "timers")}
    found |= {name: os.readlink(folder / name) for name in ("cwd", "root", "exe")}
    for thread in (folder / "task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        found |= {f"{thread.name} {line.split(':')[0]}": line for line in lines if not line.startswith(_PASSING)}
        stat = (thread / "stat").read_text().rpartition(")")[2].split()
        found |= {f"{thread.name} {name}": stat[index] for name, index in _STAT_LASTING.items()}
        found[f"{thread.name} comm"] = (thread / "comm").read_text()
    return found


@contextmanager
def reborn(ckpt: Ckpt, program: Asked, *, meanwhile: Callable[[], object] = lambda: None) -> Iterator[dict[str, object]]:
    """Snapshot, kill, restore; gives what ckpt said of it. What /proc shows must be the same."""
    before = raw(program.pid)
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    meanwhile()
    said = revive(ckpt, program, generation)
    after = raw(program.pid)
    assert {key: (before.get(key), after.get(key)) for key in before.keys() | after.keys() if before.get(key) != after.get(key)} == {}
    yield said
    assert program.tell("6 * 7") == 42


@pytest.fixture
def program() -> Iterator[Asked]:
    with Asked() as asked:
        yield asked


#: {0}: effective and inheritable, {1}: permitted as well
CAPSET = "libc.capset(struct.pack('<Ii', 0x20080522, 0), struct.pack('<6I', {0}, {0} | {1}, {0}, 0, 0, 0)) and 1 / 0"
#: what the program does to itself; an expression that it is asked then and now
CASES = {
    "another user": (
        "os.setgroups([4, 20]); os.setresgid(1, 2, 3); os.setresuid(1000, 1001, 1002)",
        "[os.getresuid(), os.getresgid(), os.getgroups(), libc.prctl(3, 0, 0, 0, 0)]",
    ),
    "another user that may be dumped": ("os.setuid(1000); libc.prctl(4, 1, 0, 0, 0)", "[os.getuid(), libc.prctl(3, 0, 0, 0, 0)]"),
    "few capabilities": (CAPSET.format(1 << 10, 1 << 13), "libc.prctl(47, 1, 10, 0, 0)"),
    "ambient": (CAPSET.format(1 << 10, 1 << 13) + "; libc.prctl(47, 2, 10, 0, 0)", "[libc.prctl(47, 1, cap, 0, 0) for cap in (10, 13)]"),
    "bounding": ("[libc.prctl(24, cap, 0, 0, 0) for cap in (1, 21)]", "[libc.prctl(23, cap, 0, 0, 0) for cap in (1, 10, 21)]"),
    "securebits": ("libc.prctl(28, 0x2f, 0, 0, 0)", "libc.prctl(27, 0, 0, 0, 0)"),
    "a user with capabilities": (
        "libc.prctl(28, 4, 0, 0, 0); os.setresuid(1000, 1000, 1000); libc.prctl(28, 0, 0, 0, 0); " + CAPSET.format(1 << 10, 0),
        "[os.getresuid(), libc.prctl(27, 0, 0, 0, 0)]",
    ),
    "no_new_privs": ("libc.prctl(38, 1, 0, 0, 0)", "libc.prctl(39, 0, 0, 0, 0)"),
    "limits": (
        "[resource.setrlimit(which, pair) for which, pair in ((resource.RLIMIT_NOFILE, (90, 100)), (resource.RLIMIT_CORE, (0, 5)), "
        "(resource.RLIMIT_STACK, (1 << 20, 1 << 21)), (resource.RLIMIT_NPROC, (7, 7)), (resource.RLIMIT_FSIZE, (4096, 8192)))]",
        "[resource.getrlimit(which) for which in range(16)]",
    ),
    "a high descriptor": (
        "resource.setrlimit(resource.RLIMIT_NOFILE, (resource.getrlimit(resource.RLIMIT_NOFILE)[1],) * 2); "
        "high = os.dup2(os.open('/etc/passwd', os.O_RDONLY), 3900)",
        "os.pread(high, 5, 0)",
    ),
    "umask": ("os.umask(0o27)", "[os.umask(mask) and 0 or mask for mask in [os.umask(0)]]"),
    "oom score": ("open('/proc/self/oom_score_adj', 'w').write('700')", "open('/proc/self/oom_score_adj').read()"),
    "nice": ("os.nice(7)", "os.nice(0)"),
    "a lower nice": ("os.nice(-7)", "os.nice(0)"),
    "batch": ("os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))", "os.sched_getscheduler(0)"),
    "round robin": (
        "os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(3))",
        "[os.sched_getscheduler(0), os.sched_getparam(0).sched_priority]",
    ),
    "affinity": ("os.sched_setaffinity(0, {1})", "os.sched_getaffinity(0)"),
    "disk priority": ("libc.syscall(251, 1, 0, 2 << 13 | 6)", "libc.syscall(252, 1, 0)"),
    "personality": ("libc.personality(0x0040000)", "libc.personality(0xffffffff)"),
    "subreaper": ("libc.prctl(36, 1, 0, 0, 0)", "[libc.prctl(37, ctypes.byref(got), 0, 0, 0), got.value]"),
    "huge pages off": ("libc.prctl(41, 1, 0, 0, 0)", "libc.prctl(42, 0, 0, 0, 0)"),
    "timer slack": ("libc.prctl(29, 123456, 0, 0, 0)", "libc.prctl(30, 0, 0, 0, 0)"),
    "machine checks": ("libc.prctl(33, 1, 1, 0, 0)", "libc.prctl(34, 0, 0, 0, 0)"),
    "comm": ("open('/proc/self/comm', 'w').write('a) R 1 (b')", "open('/proc/self/comm').read()"),
    "sigaction": ("old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)", "int(signal.getsignal(signal.SIGUSR1))"),
    "blocked and pending": (
        "old = signal.pthread_sigmask(signal.SIG_BLOCK, [10, 40, 41]); libc.pthread_kill(ctypes.c_ulong(threading.get_ident()), 40); "
        "os.kill(os.getpid(), 10); [libc.sigqueue(os.getpid(), 41, ctypes.c_void_p(value)) for value in (7, 8)]",
        "[sorted(map(int, each)) for each in (signal.sigpending(), signal.pthread_sigmask(signal.SIG_BLOCK, []))]",
    ),
    "interval timers": (
        "[signal.setitimer(which, 1000, 700) for which in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)]",
        "[[round(value / 100) for value in signal.getitimer(which)] for which in range(3)]",
    ),
    "POSIX timers": (
        "event = (ctypes.c_int * 16)(0, 0, 0, 1); timers = [ctypes.c_void_p() for _ in range(4)]; "
        "[libc.timer_create(clock, event, ctypes.byref(timer)) for clock, timer in zip((0, 1, 2, 7), timers)]; "
        "[libc.timer_settime(ctypes.c_void_p(timer.value), 0, (ctypes.c_long * 4)(3, 5, 1000, 7), None) for timer in timers[:3]]; "
        "libc.timer_delete(ctypes.c_void_p(timers[1].value))",
        "[[libc.timer_gettime(ctypes.c_void_p(timers[one].value), left), left[0], left[1], left[2] // 100] for one in (0, 2, 3)]",
    ),
    "a thread of another user": (
        "who = threading.Thread(target=lambda: (libc.syscall(117, 1000, 1000, 1000), os.sched_setaffinity(0, {0}), "
        "libc.setpriority(0, 0, 3), libc.prctl(15, b'other'), time.sleep(1000)), daemon=True); who.start(); time.sleep(0.1)",
        "[os.getuid(), who.is_alive()]",
    ),
    "threads of another user": (
        "threads = [threading.Thread(target=time.sleep, args=(1000,), daemon=True) for _ in range(3)]; [one.start() for one in threads]; "
        "os.setgroups([4]); os.setgid(5); os.setuid(1000)",
        "os.getresuid()",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_it_is_what_it_was(name: str, ckpt: Ckpt, program: Asked) -> None:
    change, probe = CASES[name]
    program.tell("import struct; got = ctypes.c_int(); left = (ctypes.c_long * 4)()")
    program.tell(change)
    before = program.tell(probe)
    with reborn(ckpt, program) as said:
        assert said["warnings"] == []
        assert program.tell(probe) == before


def test_queued_signals_keep_their_values(ckpt: Ckpt, program: Asked) -> None:
    program.tell("old = signal.pthread_sigmask(signal.SIG_BLOCK, [41])")
    for value in (5, 6, 7):
        program.tell(f"libc.sigqueue(os.getpid(), 41, ctypes.c_void_p({value}))")
    with reborn(ckpt, program):
        for value in (5, 6, 7):
            program.tell(
                "info = (ctypes.c_int * 32)(); mask = ctypes.c_ulong(1 << 40); "
                "libc.sigtimedwait(ctypes.byref(mask), info, (ctypes.c_long * 2)())"
            )
            assert program.tell("[info[0], info[2], info[6]]") == [41, -1, value]


def test_a_root_of_its_own_and_the_directory_in_it(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    (tmp_path / "jail/inner").mkdir(parents=True)
    program.tell(f"os.chroot({str(tmp_path / 'jail')!r}); os.chdir('/inner')")
    with reborn(ckpt, program):
        assert program.tell("os.getcwd()") == "/inner"
        assert program.tell("os.listdir('/')") == ["inner"]


def test_a_working_directory_that_is_gone_is_named(ckpt: Ckpt, program: Asked, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    program.tell(f"os.chdir({str(tmp_path / 'there')!r})")
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    (tmp_path / "there").rmdir()
    ckpt.run("restore", generation).refused(3, "cwd", str(tmp_path / "there"), "is gone")
    assert not Path(f"/proc/{program.pid}").exists()


def test_a_hard_limit_that_may_not_be_raised_is_named(ckpt: Ckpt, program: Asked) -> None:
    if int(next(line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("CapEff")), 16) >> 24 & 1:
        pytest.skip("CAP_SYS_RESOURCE is there: any limit may be raised")
    hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[1]
    generation = ckpt.snapshot(program.pid)["generation"]
    program.kill()
    pid = os.fork()
    if pid == 0:  # a ckpt that has less than the program had
        resource.setrlimit(resource.RLIMIT_MSGQUEUE, (hard - 1, hard - 1))
        try:
            ckpt.run("restore", generation).refused(
                3, "hard limit of msgqueue size", f"{hard - 1} now, {hard} then", "CAP_SYS_RESOURCE", "run ckpt"
            )
            os._exit(0)
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    revive(ckpt, program, generation)


def test_an_absent_control_group_is_told_and_a_living_one_joined(ckpt: Ckpt, program: Asked) -> None:
    top = next((path for path in (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup")) if (path / "cgroup.procs").exists()), None)
    if top is None:
        pytest.skip("no hierarchy of control groups is mounted")
    group = top / f"ckpt-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "cgroup.procs").write_text(str(program.pid))
    except OSError as error:
        pytest.skip(f"no control group can be made: {error}")
    try:
        there = Path(f"/proc/{program.pid}/cgroup").read_text()
        assert group.name in there
        with reborn(ckpt, program) as said:
            assert said["warnings"] == []
            assert Path(f"/proc/{program.pid}/cgroup").read_text() == there
        generation = ckpt.snapshot(program.pid)["generation"]
        program.kill()
        _emptied(group)
        (warning,) = revive(ckpt, program, generation)["warnings"]
        assert group.name in warning
        assert "is gone" in warning
    finally:
        program.end()
        if group.exists():
            _emptied(group)


def _emptied(group: Path) -> None:
    deadline = time.monotonic() + 10
    while True:
        try:
            return group.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
