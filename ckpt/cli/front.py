"""A command that stops a program does so in a child: a kill -9 of the process that the user started reaches nobody who traces.

A tracer's death lets its threads go as they stand. Between a thread's stop and the write of how its call goes on (native/src/stop.c)
that is one EINTR for the program, and in the middle of a rollback it leaves the program stopped for the next ckpt. So

    front   the process that was started: waits, passes signals on, ends as the worker ends
    worker  its child, in the same process group and with the same descriptors: does everything

Invariants
 1. A signal that ends a command (SIGINT, SIGTERM, SIGHUP) is an exception in the worker: it comes between two steps of Python, never
    inside a call of the core, and sections that must not be left in the middle hold it back (ckpt/ops/interrupts.py).
 2. The front's death is a SIGIO for the worker: the other end of a pipe is closed, which needs no library, unlike prctl. Not SIGHUP, which
    nohup has ignored.
 3. A worker that was killed may have left a control group frozen: the front thaws it (ckpt/live/freezer.py).
 4. What the terminal sends, it sends to both (si_code SI_KERNEL): the front passes on what was meant for it alone.
"""

from __future__ import annotations

import fcntl
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from ckpt.ops.interrupts import Ended

#: Commands that stop a program, be it to finish what another ckpt began.
TRACING = frozenset({"check", "restore", "rollback", "snapshot", "trace", "verify"})
_PASSED_ON = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2})
_SI_KERNEL = 0x80
_ALIVE: list[int] = []  #: in the worker: the end of the pipe that tells of the front's death


def divide(arguments: Sequence[str]) -> None:
    """Returns in the process that is to do the work. The front never returns from here."""
    if next((word for word in arguments if not word.startswith("-")), "") not in TRACING:
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _PASSED_ON | {signal.SIGCHLD})
    alive, held = os.pipe()
    worker = os.fork()
    if worker:
        _wait(worker)
    os.close(held)
    _end_with(alive)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
            signal.signal(number, _ended)
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _ended(number: int, _frame: FrameType | None) -> None:
    raise Ended(number)


def _end_with(alive: int) -> None:
    """SIGIO for us when nobody holds the other end any more."""
    signal.signal(signal.SIGIO, _ended)
    fcntl.fcntl(alive, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(alive, fcntl.F_SETFL, os.O_ASYNC | os.O_NONBLOCK)
    _ALIVE.append(alive)
    with suppress(BlockingIOError):  # it may have died before
        os.read(alive, 1)
        os.kill(os.getpid(), signal.SIGIO)


def part() -> None:
    """From here on the front's death is nothing to us: we are the parent of a program that goes on."""
    for alive in _ALIVE:
        fcntl.fcntl(alive, fcntl.F_SETFL, os.O_NONBLOCK)


def _wait(worker: int) -> NoReturn:
    while True:
        came = signal.sigwaitinfo(_PASSED_ON | {signal.SIGCHLD})
        if came.si_signo != signal.SIGCHLD:
            if came.si_code != _SI_KERNEL:
                os.kill(worker, came.si_signo)
            continue
        pid, status = os.waitpid(worker, os.WNOHANG)
        if pid:
            _end_as(status)


def _tell(number: int) -> None:
    """The worker could not. What a killed rollback has left the next ckpt finishes; of a restore nothing is left (EXITKILL)."""
    why = " (kill -9, or no memory was left: the kernel's log says)" if number == signal.SIGKILL else ""
    line = f"ckpt: ended by {signal.Signals(number).name} at its work{why}: nothing half-made runs; try again\n"
    with suppress(OSError):
        os.write(2, line.encode())


def _end_as(status: int) -> NoReturn:
    """Nothing of the front's is to be flushed: it has written nothing."""
    if os.WIFSIGNALED(status):
        with suppress(Exception):  # nothing keeps it from ending as its worker did
            from ckpt.ops.settle import after_a_death  # code that nearly no front needs

            after_a_death()
        number = os.WTERMSIG(status)
        _tell(number)
        if number != signal.SIGKILL:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number})
        os.kill(os.getpid(), number)
    os._exit(os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 1)
