"""What a failed call of the core becomes: one line that says what, which resource, what to do; and its exit code."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from ckpt.errors import CkptError, NotFoundError, PermissionDeniedError, RefusedError

#: Steps of the core that name what a task is; the words of the pre-flight.
REFUSED = {
    "32-bit": "is a 32-bit program: not supported",
    "kernel thread": "is a kernel thread: give the pid of a program",
    "zombie": "is a zombie, its memory is gone: its parent has to wait for it",
}
_RIGHTS = "run as root, or as the target's own user with ptrace allowed"
_NOT_EVEN_ROOT = "not even root may: a security module, another user namespace or a missing CAP_SYS_PTRACE forbids it"


def _task(pid: int) -> str:
    try:
        return f"task {pid} ({Path(f'/proc/{pid}/comm').read_text().strip()})"
    except OSError:
        return f"task {pid}"


@dataclass(frozen=True, slots=True)
class Fault:
    """The detail behind a failed call, as the core recorded it."""

    error: int
    pid: int
    tid: int
    fd: int
    addr: int
    step: str
    name: str

    def describe(self) -> str:
        where = f"task {self.pid}" if self.pid else ""
        if self.tid and self.tid != self.pid:
            where += f" thread {self.tid}"
        if self.fd >= 0:
            where += f" fd {self.fd}"
        if self.addr:
            where += f" at {self.addr:#x}"
        what = f"{self.step} {self.name}".strip()
        return f"{where.strip()}: {what}: {os.strerror(-self.error) if self.error else 'failed'}".lstrip(": ")


def raise_fault(fault: Fault, code: int, what: str, root: int) -> NoReturn:
    """One line: what, which resource, what to do. `what` and `root` stand in where the core recorded no fault."""
    pid = fault.pid or root
    text = replace(fault, pid=pid).describe() if fault.error else f"task {pid}: {what}: {os.strerror(-code)}"
    if fault.step == "traced":
        raise RefusedError(f"{text.split(':')[0]}: already traced by {fault.name}: end that tracer first")
    if fault.step in REFUSED:
        raise RefusedError(f"{_task(fault.pid)}: {REFUSED[fault.step]}")
    if code == -errno.ESRCH:
        raise NotFoundError(f"{text}: it is gone or never was; give the pid of a living process")
    if code in (-errno.EPERM, -errno.EACCES):
        raise PermissionDeniedError(f"{text}: {_RIGHTS if os.geteuid() else _NOT_EVEN_ROOT}")
    if code == -errno.ENOMEM:
        raise CkptError(f"{text}: free some memory and try again")
    raise CkptError(f"{text}: try again; ckpt check {pid} looks for a reason")
