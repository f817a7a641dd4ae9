"""Kinds of task attribute on this very process (in a forked child, which may be spoiled): ask, change, restore, ask again."""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from ckpt.kinds.base import CannotUndo, TaskKind, task_kinds
from ckpt.model import State
from ckpt.syscalls.names import nr
from tests.unit.here import ask, run

LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = (
    "altstack", "comm", "credentials", "cwd", "itimers", "memory", "oom_score", "personality", "posix_timers", "prctl", "prctl_thread",
    "rlimits", "robust_list", "root", "rseq", "scheduling", "sigactions", "tid_address", "umask",
)  # fmt: skip


def kind(name: str) -> TaskKind:
    return next(kind for kind in task_kinds() if kind.name == name)


def state(name: str) -> State:
    return kind(name).parse(ask(kind(name)))


def restore(name: str, wanted: State) -> State:
    run(kind(name).restore(state(name), wanted))
    return state(name)


def in_child(body: Callable[[], None]) -> None:
    """Runs body in a forked child; its failure is ours."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            body()
            code = 0
        except BaseException:
            traceback.print_exc(file=sys.__stderr__)
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_all_kinds_are_there_and_speak_json() -> None:
    assert tuple(kind.name for kind in task_kinds()) == NAMES
    for name in NAMES:
        found = state(name)
        assert json.loads(json.dumps(found)) == found, name
        if "timer" not in name:
            assert kind(name).restore(found, found) == [], name


def test_kinds_that_got_no_answers_do_nothing() -> None:
    """A target that may not be asked (seccomp) has no answers: nothing is invented, nothing is undone."""
    for name in NAMES:
        raw = ask(kind(name))
        silent = kind(name).parse(type(raw)(raw.pid, raw.tid, raw.files, [], raw.limits, {}))
        assert kind(name).restore(silent, silent) == [], name


def change_and_restore(name: str, change: Callable[[], object]) -> None:
    def body() -> None:
        wanted = state(name)
        change()
        assert state(name) != wanted, f"{name}: the change cannot be seen"
        assert restore(name, wanted) == wanted

    in_child(body)


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGCHLD, 40])
def test_signal_actions(number: int) -> None:
    def handler(*_: object) -> None: ...

    change_and_restore("sigactions", lambda: signal.signal(number, handler))
    change_and_restore("sigactions", lambda: signal.signal(number, signal.SIG_IGN))


def test_sigactions_keep_only_what_differs_from_the_default() -> None:
    def body() -> None:
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        actions = state("sigactions")["actions"]
        assert actions[str(int(signal.SIGUSR1))][0] == 1
        assert "45" not in actions  # nobody ever touched it

    in_child(body)


def test_altstack() -> None:
    room = ctypes.create_string_buffer(65536)
    stack = struct.pack("<QiiQ", ctypes.addressof(room), 0, 0, 65536)
    change_and_restore("altstack", lambda: LIBC.sigaltstack(stack, None))

    def body() -> None:
        LIBC.sigaltstack(stack, None)
        change = state("altstack")
        assert (change["sp"], change["size"]) == (ctypes.addressof(room), 65536)
        with pytest.raises(CannotUndo):
            kind("altstack").restore({**change, "in_use": True}, {**change, "size": 8192})

    in_child(body)


def test_tid_address_and_robust_list() -> None:
    change_and_restore("tid_address", lambda: LIBC.syscall(nr("set_tid_address"), ctypes.c_void_p(0x1000)))
    change_and_restore("robust_list", lambda: LIBC.syscall(nr("set_robust_list"), ctypes.c_void_p(0x1000), 24))


def test_rseq_is_registered_elsewhere() -> None:
    raw = ask(kind("rseq"))
    data = struct.pack("<QIIII", 0x7000, 32, 0x53053053, 0, 0)
    there = kind("rseq").parse(type(raw)(1, 1, {}, [], (), {"rseq": data}))
    assert there == {"pointer": 0x7000, "size": 32, "signature": 0x53053053}
    calls = kind("rseq").restore({**there, "pointer": 0x5000}, there)
    assert [[arg.value for arg in call.args] for call in calls] == [[0x5000, 32, 1, 0x53053053], [0x7000, 32, 0, 0x53053053]]
    assert len(kind("rseq").restore({}, there)) == 1


def test_itimers() -> None:
    def body() -> None:
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
        signal.setitimer(signal.ITIMER_REAL, 100, 7)
        wanted = state("itimers")
        assert 99e6 < wanted["real"]["remaining_us"] <= 100e6
        signal.setitimer(signal.ITIMER_REAL, 5, 1)
        after = restore("itimers", wanted)
        assert after["real"]["interval_us"] == 7_000_000
        assert 0 <= wanted["real"]["remaining_us"] - after["real"]["remaining_us"] < 1_000_000
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert kind("itimers").restore(state("itimers"), state("itimers")) == []

    in_child(body)


def create_timer(signo: int) -> int:
    number = ctypes.c_int(-1)
    event = struct.pack("<Qiii44x", 0x1234, signo, 0, 0)
    assert LIBC.syscall(nr("timer_create"), 1, event, ctypes.byref(number)) == 0
    return number.value


def set_timer(number: int, seconds: int) -> None:
    assert LIBC.syscall(nr("timer_settime"), number, 0, struct.pack("<4q", 3, 0, seconds, 0), None) == 0


def test_posix_timers() -> None:
    def body() -> None:
        first, second, idle = create_timer(40), create_timer(41), create_timer(42)
        set_timer(first, 100)
        set_timer(second, 200)
        wanted = state("posix_timers")
        assert set(wanted["timers"]) == {str(first), str(second), str(idle)}
        assert wanted["timers"][str(idle)]["remaining"] == 0
        set_timer(first, 5)
        assert LIBC.syscall(nr("timer_delete"), second) == 0
        later = create_timer(43)
        after = restore("posix_timers", wanted)
        assert set(after["timers"]) == set(wanted["timers"])
        assert str(later) not in after["timers"]
        for number, timer in wanted["timers"].items():
            got = after["timers"][number]
            assert {**got, "remaining": 0} == {**timer, "remaining": 0}
            assert 0 <= timer["remaining"] - got["remaining"] < 10**9

    in_child(body)


def test_memory_map_and_break() -> None:
    def body() -> None:
        wanted = state("memory")
        assert wanted["brk"] >= wanted["start_brk"] > 0
        moved = {**wanted, "arg_end": wanted["arg_end"] - 1, "start_data": wanted["start_data"] + 8}
        assert restore("memory", moved) == moved
        assert restore("memory", wanted) == wanted
        LIBC.sbrk(ctypes.c_long(4096 * 3))
        assert state("memory")["brk"] == wanted["brk"] + 4096 * 3

    in_child(body)


def test_umask_comm_personality_oom() -> None:
    change_and_restore("umask", lambda: os.umask(0o7))
    change_and_restore("comm", lambda: LIBC.prctl(15, b"another) R", 0, 0, 0))
    change_and_restore("personality", lambda: LIBC.personality(0x0040000))
    change_and_restore("oom_score", lambda: Path("/proc/self/oom_score_adj").write_text("700"))


def test_cwd(tmp_path: Path) -> None:
    change_and_restore("cwd", lambda: os.chdir("/"))

    def body() -> None:
        (tmp_path / "gone").mkdir()
        os.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
        there = state("cwd")
        assert there == {"path": None}
        with pytest.raises(CannotUndo, match="deleted"):
            kind("cwd").restore({"path": "/"}, there)

    in_child(body)


def test_root_that_changed_is_refused() -> None:
    assert kind("root").restore({"path": "/"}, {"path": "/"}) == []
    with pytest.raises(CannotUndo, match="from / to /srv"):
        kind("root").restore({"path": "/srv"}, {"path": "/"})


def test_rlimits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    change_and_restore("rlimits", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard)))

    def body() -> None:
        wanted = state("rlimits")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with pytest.raises(CannotUndo, match="hard limit of open files was lowered to 64"):
            kind("rlimits").restore(state("rlimits"), wanted)

    in_child(body)


def test_prctl_bits() -> None:
    for option, number in ((4, 0), (36, 1), (41, 1)):
        change_and_restore("prctl", lambda option=option, number=number: LIBC.prctl(option, number, 0, 0, 0))  # type: ignore[misc]
    for option, number in ((1, 9), (8, 1), (29, 123456)):
        change_and_restore("prctl_thread", lambda option=option, number=number: LIBC.prctl(option, number, 0, 0, 0))  # type: ignore[misc]


def test_scheduling() -> None:
    wanted = state("scheduling")
    change_and_restore("scheduling", lambda: os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}))
    if wanted["may_raise"]:
        change_and_restore("scheduling", lambda: os.nice(5))
    with pytest.raises(CannotUndo, match="nice 0 to 5"):
        kind("scheduling").restore({**wanted, "nice": 5, "may_raise": False}, {**wanted, "nice": 0})


@pytest.mark.skipif(os.getuid() != 0, reason="changes of user need root")
def test_credentials() -> None:
    change_and_restore("credentials", lambda: os.setgroups([4, 20]))
    change_and_restore("credentials", lambda: os.setresgid(5, 6, 7))
    change_and_restore("credentials", lambda: LIBC.prctl(28, 4, 0, 0, 0))

    def ids_with_their_capabilities() -> None:
        LIBC.prctl(28, 4, 0, 0, 0)  # SECBIT_NO_SETUID_FIXUP: the capabilities stay
        os.setresuid(1000, 1000, 1000)

    change_and_restore("credentials", ids_with_their_capabilities)

    def body() -> None:
        wanted = state("credentials")
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(CannotUndo, match="changed its user from 0 to 1000"):
            kind("credentials").restore(state("credentials"), wanted)
        LIBC.prctl(38, 1, 0, 0, 0)
        with pytest.raises(CannotUndo, match="no_new_privs"):
            kind("credentials").restore(state("credentials"), wanted)

    in_child(body)


def test_questions_are_few_and_fast() -> None:
    """All questions of all kinds to one thread: bounded, for they are put while the program stands still."""
    questions = [question for kind in task_kinds() for question in kind.questions]
    assert len(questions) < 128
    assert sum(question.answer_size for question in questions) < 8192
    start = time.perf_counter()
    for each in task_kinds():
        if not each.proc_files:
            ask(each)
    assert time.perf_counter() - start < 1
