"""/proc/PID/stat and /proc/PID/task/TID/stat (fs/proc/array.c, do_task_stat)."""

from __future__ import annotations

import os
from dataclasses import dataclass

PF_KTHREAD = 0x0020_0000  #: in `flags`: a kernel thread


@dataclass(frozen=True, slots=True)
class Stat:
    """The fields that are used here; the number is that of proc(5). Addresses are 0 without the right to ptrace."""

    pid: int  #: 1
    comm: str  #: 2
    state: str  #: 3: R S D T t Z X I
    ppid: int  #: 4
    pgid: int  #: 5
    sid: int  #: 6
    tty_nr: int  #: 7, of the controlling terminal
    tpgid: int  #: 8, its foreground group; -1: there is none
    flags: int  #: 9, PF_*
    utime: int  #: 14, clock ticks
    stime: int  #: 15, clock ticks
    nice: int  #: 19
    num_threads: int  #: 20
    start_ticks: int  #: 22, clock ticks since boot
    start_code: int  #: 26
    end_code: int  #: 27
    start_stack: int  #: 28
    exit_signal: int  #: 38, what the parent gets (SIGCHLD as a rule)
    rt_priority: int  #: 40
    policy: int  #: 41, SCHED_*
    start_data: int  #: 45
    end_data: int  #: 46
    start_brk: int  #: 47
    arg_start: int  #: 48
    arg_end: int  #: 49
    env_start: int  #: 50
    env_end: int  #: 51
    exit_code: int  #: 52, wait status of a zombie

    @property
    def kernel_thread(self) -> bool:
        return bool(self.flags & PF_KTHREAD)

    @property
    def zombie(self) -> bool:
        return self.state in "ZX"


_NUMBERS = {
    "ppid": 4, "pgid": 5, "sid": 6, "tty_nr": 7, "tpgid": 8, "flags": 9, "utime": 14, "stime": 15, "nice": 19, "num_threads": 20,
    "start_ticks": 22, "start_code": 26, "end_code": 27, "start_stack": 28, "exit_signal": 38, "rt_priority": 40, "policy": 41,
    "start_data": 45, "end_data": 46, "start_brk": 47, "arg_start": 48, "arg_end": 49, "env_start": 50, "env_end": 51,
    "exit_code": 52,
}  # fmt: skip


def parse_stat(text: bytes) -> Stat:
    """comm may hold anything, ") R 1" too: it ends at the last parenthesis."""
    opening, closing = text.find(b"("), text.rfind(b")")
    rest = text[closing + 1 :].split()
    if opening < 0 or closing < opening or len(rest) < 50:
        raise ValueError(f"stat: {len(rest)} fields after the name, expected 50 or more")
    numbers = {name: int(rest[field - 3]) for name, field in _NUMBERS.items()}
    return Stat(pid=int(text[:opening]), comm=os.fsdecode(text[opening + 1 : closing]), state=rest[0].decode("ascii"), **numbers)
