"""Whether BPF can be used here, found out by use; and the compiling ahead of time."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence

from bpf import btf, calls, images
from bpf.errors import BpfError

PROGRAMS = ("lifecycle", "syscalls", "writes", "deadlines")
_NOTHING = bytes.fromhex("b7000000000000009500000000000000")  #: r0 = 0; exit
_INIT_PID_NAMESPACE = 0xEFFFFFFC  #: PROC_PID_INIT_INO


def missing(programs: Sequence[str] = PROGRAMS) -> BpfError | None:
    """The first thing that is in the way of these; None: everything is there, compiled or to be compiled at the first use."""
    try:
        if os.stat("/proc/self/ns/pid").st_ino != _INIT_PID_NAMESPACE:
            return BpfError("namespace", "this is a pid namespace whose numbers the kernel's events do not carry: trace from outside of it")
        os.close(calls.program_load(_NOTHING, "nothing"))
    except PermissionError:
        return BpfError("no-rights", "no right to load BPF programs: run as root, or with CAP_BPF and CAP_PERFMON")
    except OSError as error:
        return BpfError("load", f"this kernel loads no BPF programs ({error.strerror}): a kernel with CONFIG_BPF_SYSCALL")
    if not btf.KERNEL.exists():
        return BpfError("no-btf", "the kernel has no BTF: a kernel with CONFIG_DEBUG_INFO_BTF")
    try:
        if not compiled(programs) and importlib.util.find_spec("bcc") is None:
            return BpfError("no-bcc", "the module bcc is not installed: apt-get install python3-bpfcc")
    except BpfError as error:
        return error
    return None


def compiled(programs: Sequence[str] = PROGRAMS) -> bool:
    """Whether nothing needs a compiler any more. Raises BpfError: others may write where it is kept."""
    return all(map(images.compiled, programs))


def prepare(programs: Sequence[str] = PROGRAMS) -> None:
    """Raises what is missing; compiles what is not yet."""
    if (error := missing(programs)) is not None:
        raise error
    for name in programs:
        images.image(name)


def given_up(name: str) -> str:
    """Why it did not compile here when it was tried; "" where it was not."""
    try:
        return images.failed(name).read_text()
    except OSError:
        return ""


def compile_ahead(name: str) -> None:
    """For the next who wants it: nobody waits, and what cannot be compiled here is not tried each time. Raises BpfError."""
    if (error := missing((name,))) is not None:
        raise error
    if images.compiled(name) or given_up(name):
        return
    try:
        images.image(name)
    except BpfError as failed:
        if failed.kind == "compile":
            images.failed(name).write_text(str(failed))
        raise
