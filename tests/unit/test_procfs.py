"""Text of /proc -> types: real samples, hostile names, unknown lines, and this very process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckpt.procfs import (
    parse_auxv,
    parse_cgroup,
    parse_fdinfo,
    parse_limits,
    parse_maps,
    parse_stat,
    parse_status,
    parse_syscall,
    parse_timers,
)

STAT = (
    "7824 (%s) R 7821 7820 2615 34816 -1 4194560 2154 0 2 0 3 1 0 0 20 -5 3 0 182081 18370560 3440 18446744073709551615 4321280 "
    "7148169 140722028249088 0 0 0 0 16781312 2 0 0 0 17 1 9 1 0 0 0 9723336 11027064 326639616 140722028255896 140722028255938 "
    "140722028255939 140722028257244 256"
)


def test_stat_fields() -> None:
    stat = parse_stat((STAT % "python").encode())
    assert (stat.pid, stat.comm, stat.state, stat.ppid, stat.pgid, stat.sid) == (7824, "python", "R", 7821, 7820, 2615)
    assert (stat.start_ticks, stat.exit_signal, stat.nice, stat.num_threads) == (182081, 17, -5, 3)
    assert (stat.start_code, stat.end_code, stat.start_stack) == (4321280, 7148169, 140722028249088)
    assert (stat.start_data, stat.end_data, stat.start_brk) == (9723336, 11027064, 326639616)
    assert (stat.arg_start, stat.arg_end) == (140722028255896, 140722028255938)
    assert (stat.env_start, stat.env_end, stat.exit_code) == (140722028255939, 140722028257244, 256)
    assert (stat.rt_priority, stat.policy) == (9, 1)
    assert not stat.kernel_thread
    assert not stat.zombie


@given(st.binary(max_size=15).filter(lambda name: b"\0" not in name))
def test_stat_any_name(comm: bytes) -> None:
    head, tail = (STAT.encode()).split(b"%s")
    stat = parse_stat(head + comm + tail)
    assert os.fsencode(stat.comm) == comm
    assert stat.start_ticks == 182081


def test_stat_cut() -> None:
    with pytest.raises(ValueError, match="stat"):
        parse_stat(b"12 (x) R 1 2 3")


STATUS = b"""Name:\tbad\x0bUid:\t9\t9\t9\t9
Umask:\t0027
State:\tS (sleeping)
Tgid:\t812
Ngid:\t0
Pid:\t813
PPid:\t1
TracerPid:\t55
Uid:\t1000\t1001\t1002\t1003
Gid:\t0\t0\t0\t5
FDSize:\t256
Groups:\t4 20 27 \nNStgid:\t812\t3
NSpid:\t813\t4
Threads:\t17
SigQ:\t0/96365
SigPnd:\t0000000000000200
ShdPnd:\t0000000000004000
SigBlk:\t0000000000004000
SigIgn:\t0000000001001000
SigCgt:\t0000000000004202
CapInh:\t0000000000000000
CapPrm:\t000001ffffffffff
CapEff:\t000001fffeffffff
CapBnd:\t000001ffffffffff
CapAmb:\t0000000000000001
NoNewPrivs:\t1
Seccomp:\t2
Seccomp_filters:\t3
Something_new:\tyes
"""


def test_status() -> None:
    status = parse_status(STATUS)
    assert (status.tgid, status.ppid, status.tracer_pid, status.threads, status.fd_size) == (812, 1, 55, 17, 256)
    assert (status.uid.real, status.uid.effective, status.uid.saved, status.uid.fs) == (1000, 1001, 1002, 1003)
    assert status.gid.fs == 5
    assert status.groups == (4, 20, 27)
    assert status.ns_pid == (813, 4)
    assert status.umask == 0o27
    assert (status.cap_permitted, status.cap_effective, status.cap_ambient) == (0x1FFFFFFFFFF, 0x1FFFEFFFFFF, 1)
    assert (status.no_new_privs, status.seccomp, status.seccomp_filters) == (True, 2, 3)


def test_deliverable_needs_a_handler_and_no_mask() -> None:
    assert parse_status(STATUS).deliverable == 0x200  # 0x4000 is blocked


MAPS = b"""00400000-0041f000 r--p 00000000 fe:00 260811                             /usr/bin/python3.11
27be0000-27c60000 rw-p 00000000 00:00 0                                  [heap]
7f0000000000-7f0000021000 rw-p 00000000 00:00 0 
7f0000021000-7f0000022000 ---p 00000000 00:00 0
7f1000000000-7f1000001000 rw-s 00000000 00:01 1027                       /dev/zero (deleted)
7f1000002000-7f1000003000 rw-s 00001000 00:01 1028                       /memfd:a b\\012c (deleted)
7f1000004000-7f1000005000 rw-p 00000000 00:01 1028                       /memfd:a (deleted)
7f1000006000-7f1000007000 rw-s 00000000 00:01 3                          /SYSV0000abcd (deleted)
7f1000008000-7f1000009000 r-xs 00002000 fe:01 77                         /tmp/two  spaces (deleted)
7f100000a000-7f100000b000 rw-s 00000000 00:0f 1038                       anon_inode:[io_uring]
7f100000c000-7f100000d000 rw-p 00000000 00:00 0                          [anon:arena]
7f100000e000-7f100000f000 rw-s 00000000 00:01 4                          [anon_shmem:x]
7ffc00000000-7ffc00021000 rw-p 00000000 00:00 0                          [stack]
7ffc00030000-7ffc00034000 r--p 00000000 00:00 0                          [vvar]
7ffc00034000-7ffc00036000 r-xp 00000000 00:00 0                          [vdso]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""


def test_maps() -> None:
    maps = parse_maps(MAPS)
    kinds = [mapping.backing.kind for mapping in maps]
    assert kinds == [
        "file", "anonymous", "anonymous", "anonymous", "object", "object", "object", "object", "file", "kernel", "anonymous", "object",
        "anonymous", "kernel", "kernel", "kernel",
    ]  # fmt: skip
    python, heap, _, guard, zero, memfd = maps[:6]
    assert (python.backing.path, python.backing.dev, python.backing.ino) == ("/usr/bin/python3.11", os.makedev(0xFE, 0), 260811)
    assert (python.prot, python.flags) == (1, 2)
    assert (heap.name, heap.prot, heap.flags) == ("[heap]", 3, 0x22)
    assert guard.prot == 0
    assert (zero.flags, zero.backing.deleted) == (0x21, True)
    assert (memfd.backing.path, memfd.backing.offset, memfd.flags) == ("/memfd:a b\nc", 0x1000, 1)
    assert maps[6].flags == 2  # a private mapping of a memfd
    assert (maps[8].backing.path, maps[8].backing.deleted, maps[8].prot) == ("/tmp/two  spaces", True, 5)
    assert maps[12].flags == 0x122
    assert maps[-1].start == 0xFFFFFFFFFF600000


def test_maps_garbage_is_an_error() -> None:
    with pytest.raises(ValueError, match="maps"):
        parse_maps(b"hello\n")


def test_limits() -> None:
    limits = parse_limits(
        b"Limit                     Soft Limit           Hard Limit           Units     \n"
        b"Max cpu time              unlimited            unlimited            seconds   \n"
        b"Max open files            20000                40000                files     \n"
        b"Max nice priority         0                    1                    \n"
        b"Max of something new      3                    4                    \n"
    )
    assert sorted(limits) == [0, 7, 13]
    assert (limits[7].soft, limits[7].hard, limits[0].soft) == (20000, 40000, 2**64 - 1)


def test_cgroup() -> None:
    old, named, new = parse_cgroup(b"4:cpu,cpuacct:/a:b\n1:name=systemd:/\n0::/user.slice\n")
    assert (old.hierarchy, old.controllers, old.path) == (4, ("cpu", "cpuacct"), "/a:b")
    assert named.controllers == ("name=systemd",)
    assert (new.hierarchy, new.controllers, new.path) == (0, (), "/user.slice")


def test_timers() -> None:
    text = (
        b"ID: 0\nsignal: 14/0000000000001234\nnotify: signal/pid.7829\nClockID: 1\n"
        b"ID: 7\nsignal: 34/(null)\nnotify: none/tid.9\nClockID: -6\n"
    )
    first, second = parse_timers(text)
    assert (first.id, first.signo, first.sigval, first.notify, first.tid, first.clock) == (0, 14, 0x1234, "signal", 0, 1)
    assert (second.id, second.sigval, second.notify, second.tid, second.clock) == (7, 0, "none", 9, -6)
    assert parse_timers(b"") == ()


def test_fdinfo_epoll_and_locks() -> None:
    info = parse_fdinfo(
        b"pos:\t12\nflags:\t02102002\nmnt_id:\t17\nino:\t1038\nlock:\t1: FLOCK  ADVISORY  WRITE 7829 fe:00:2146360 0 EOF\n"
        b"new thing:\t1\ntfd:        3 events:       19 data:     7fe000000003  pos:0 ino:3017 sdev:f\n"
        b"tfd:        5 events: c0000018 data:                5\n"
    )
    assert (info.pos, info.open_flags, info.cloexec) == (12, 0o102002, True)
    assert info.locks == ("1: FLOCK ADVISORY WRITE 7829 fe:00:2146360 0 EOF",)
    targets = [(t.tfd, t.events, t.data, t.ino, t.sdev) for t in info.epoll]
    assert targets == [(3, 0x19, 0x7FE000000003, 0x3017, 15), (5, 0xC0000018, 5, 0, 0)]
    assert info.field("new thing") == "1"


def test_fdinfo_timerfd() -> None:
    text = b"pos:\t0\nflags:\t02\nclockid: 1\nticks: 3\nsettime flags: 01\nit_value: (9, 999332626)\nit_interval: (2, 3)\n"
    timer = parse_fdinfo(text).timer
    assert timer is not None
    assert (timer.clockid, timer.ticks, timer.settime_flags, timer.value, timer.interval) == (1, 3, 1, 9_999_332_626, 2_000_000_003)


def test_fdinfo_signalfd_inotify_scm() -> None:
    info = parse_fdinfo(
        "pos:\t0\nflags:\t02\nsigmask:\t0000000000000200\nscm_fds: 2\ninotify wd:1a ino:3f7e8 sdev:fe00000 mask:2 ignored_mask:0 \n"
    )
    assert (info.sigmask, info.scm_fds, info.inotify[0].wd, info.inotify[0].ino) == (0x200, 2, 0x1A, 0x3F7E8)


def test_auxv_stops_at_null() -> None:
    data = b"".join(n.to_bytes(8, "little") for n in (33, 0x7FFF000, 6, 4096, 0, 0, 9, 9))
    assert parse_auxv(data) == ((33, 0x7FFF000), (6, 4096))
    assert parse_auxv(b"") == ()


def test_this_process_reads_the_same_as_the_system_says() -> None:
    proc = Path("/proc/self")
    stat, status = parse_stat((proc / "stat").read_bytes()), parse_status((proc / "status").read_bytes())
    assert (stat.pid, stat.ppid, stat.pgid, stat.sid) == (os.getpid(), os.getppid(), os.getpgrp(), os.getsid(0))
    assert (status.uid.real, status.gid.real) == (os.getuid(), os.getgid())
    assert set(status.groups) == set(os.getgroups())
    maps = parse_maps((proc / "maps").read_bytes())
    assert list(maps) == sorted(maps, key=lambda mapping: mapping.start)
    assert any(mapping.name == "[stack]" for mapping in maps)
    assert dict(parse_auxv((proc / "auxv").read_bytes()))[6] == os.sysconf("SC_PAGESIZE")


def test_syscall_of_a_thread() -> None:
    assert parse_syscall(b"running\n") is None
    assert parse_syscall(b"-1 0x7ffe0 0x401000\n") == (-1, ())
    assert parse_syscall(b"0 0x3 0x7ffd 0x4d 0x0 0x0 0x8 0x7ffe0 0x401000\n") == (0, (3, 0x7FFD, 77, 0, 0, 8))
    for text in (b"", b"0 0x3\n", b"nonsense\n"):
        with pytest.raises(ValueError, match="syscall"):
            parse_syscall(text)


def test_syscall_of_this_very_thread() -> None:
    found = parse_syscall(Path("/proc/thread-self/syscall").read_bytes())
    assert found is not None
    assert found[0] == 0, "it is reading"
