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

from ckpt.kinds.base import CannotUndo, RawTask, TaskKind, task_kinds
from ckpt.kinds.task.capabilities import set_all, title
from ckpt.model import State
from ckpt.plan.attributes import order_of
from ckpt.syscalls.names import nr
from tests.unit.here import ask, run

LIBC = ctypes.CDLL(None, use_errno=True)
NAMES = (
    "altstack", "autogroup", "cgroup", "comm", "credentials", "cwd", "ioprio", "itimers", "memory", "oom_score", "personality",
    "posix_timers", "prctl", "prctl_thread", "rlimits", "robust_list", "root", "rseq", "scheduling", "sigactions", "terminal",
    "tid_address", "umask",
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


def test_a_root_can_be_entered_but_not_left() -> None:
    assert kind("root").restore({"path": "/"}, {"path": "/"}) == []
    with pytest.raises(CannotUndo, match="its root was / and is /srv"):
        kind("root").restore({"path": "/srv"}, {"path": "/"})
    (entered,) = kind("root").restore({"path": "/"}, {"path": "/srv"})
    assert (entered.nr, entered.args[0].data) == (nr("chroot"), b"/srv\0")
    before = [each.name for each in sorted(task_kinds(), key=order_of)]
    assert before.index("oom_score") < before.index("root") < before.index("cwd") < before.index("credentials")


def test_rlimits() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    change_and_restore("rlimits", lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard)))

    def body() -> None:
        wanted = state("rlimits")
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
        with pytest.raises(CannotUndo, match=r"hard limit of open files: 64 now, .* needs CAP_SYS_RESOURCE"):
            kind("rlimits").restore({**state("rlimits"), "may_raise": False}, wanted)
        assert kind("rlimits").restore({**state("rlimits"), "may_raise": True}, wanted)

    in_child(body)


def test_an_oom_score_that_cannot_be_lowered_is_told() -> None:
    here = {"adj": 0, "may_lower": False}
    assert kind("oom_score").caveats(here, {"adj": -500, "may_lower": True}) == [  # type: ignore[attr-defined]
        "oom_score_adj stays 0: lowering it to -500 needs CAP_SYS_RESOURCE: run ckpt with it, or lower it from outside"
    ]
    assert kind("oom_score").caveats({**here, "may_lower": True}, {"adj": -500}) == []  # type: ignore[attr-defined]
    assert kind("oom_score").caveats({**here, "adj": 700}, {"adj": 0}) == []  # type: ignore[attr-defined]


def test_ioprio() -> None:
    change_and_restore("ioprio", lambda: LIBC.syscall(nr("ioprio_set"), 1, 0, 3 << 13))


def test_control_groups_are_entered_only_where_somebody_says_so(tmp_path: Path) -> None:
    """A rollback leaves a process in the group that it was moved to; a restore names the files."""
    found = kind("cgroup").parse(RawTask(1, 1, {"cgroup": b"4:memory:/a\n0::/b c\n"}, [], ()))
    assert found == {"paths": {"memory": "/a", "": "/b c"}}
    assert kind("cgroup").restore({"paths": {"": "/x"}}, found) == []
    file = tmp_path / "cgroup.procs"
    file.touch()
    run(kind("cgroup").restore({}, {**found, "enter": [str(file)]}))
    assert file.read_text() == "0"


def test_autogroup() -> None:
    found = kind("autogroup").parse(RawTask(1, 1, {"autogroup": b"/autogroup-93 nice -3\n"}, [], ()))
    assert found == {"nice": -3}
    assert kind("autogroup").restore({"nice": 0}, found) == []
    assert [each.note for each in kind("autogroup").restore({"nice": 0}, {**found, "own": True})][1] == "autogroup nice -3"


def test_prctl_bits() -> None:
    for option, number in ((4, 0), (36, 1), (41, 1), (67, 1)):
        change_and_restore("prctl", lambda option=option, number=number: LIBC.prctl(option, number, 0, 0, 0))  # type: ignore[misc]
    for option, number in ((1, 9), (8, 1), (29, 123456), (26, 2)):
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
    now = state("credentials")
    change_and_restore("credentials", lambda: os.setgroups([4, 20]))
    change_and_restore("credentials", lambda: os.setresgid(5, 6, 7))
    change_and_restore("credentials", lambda: LIBC.prctl(28, 4, 0, 0, 0))
    change_and_restore("credentials", lambda: run([set_all(now["cap_effective"], now["cap_permitted"], 1 << 10)]))

    def ids_with_their_capabilities() -> None:
        LIBC.prctl(28, 4, 0, 0, 0)  # SECBIT_NO_SETUID_FIXUP: the capabilities stay
        os.setresuid(1000, 1000, 1000)

    change_and_restore("credentials", ids_with_their_capabilities)

    def body() -> None:
        wanted = state("credentials")
        os.setresuid(1000, 1000, 1000)
        with pytest.raises(CannotUndo, match="its user was 0 and is 1000: changing it needs CAP_SETUID"):
            kind("credentials").restore(state("credentials"), wanted)
        LIBC.prctl(38, 1, 0, 0, 0)
        with pytest.raises(CannotUndo, match="no_new_privs"):
            kind("credentials").restore(state("credentials"), wanted)

    in_child(body)


@pytest.mark.skipif(os.getuid() != 0, reason="changes of user need root")
@pytest.mark.parametrize(
    "name", ["another user", "few capabilities", "ambient", "bounding", "securebits", "no_new_privs", "all of it", "root without any"]
)
def test_credentials_are_put_on_by_a_privileged_newborn(name: str) -> None:
    """What a restore does: from all that root has to what the program had."""
    now = state("credentials")
    port, raw = 1 << 10, 1 << 13
    user = {"uid": [1000, 1001, 1002, 1001], "gid": [5, 6, 7, 6], "groups": [4, 20]}
    none = {f"cap_{each}": 0 for each in ("permitted", "effective", "inheritable", "ambient")}
    few = {"cap_permitted": port | raw, "cap_effective": port, "cap_inheritable": port, "cap_ambient": 0}
    cases = {
        "another user": {**user, **none},
        "few capabilities": few,
        "ambient": {**few, "cap_ambient": port},
        "bounding": {"cap_bounding": now["cap_bounding"] & ~raw},
        "securebits": {"securebits": 0x2F, **few},
        "no_new_privs": {"no_new_privs": True},
        "all of it": {**user, **few, "cap_ambient": port, "cap_bounding": port, "securebits": 0x2F, "no_new_privs": True},
        "root without any": {**none, "cap_bounding": 0},
    }

    def body() -> None:
        wanted = {**now, **cases[name]}
        assert restore("credentials", wanted) == wanted

    in_child(body)


def test_capabilities_have_names() -> None:
    assert title(1 << 7 | 1 << 39 | 1 << 50) == "CAP_SETUID, CAP_BPF, capability 50"


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
