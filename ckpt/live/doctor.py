"""What this kernel and these rights allow, what follows from it, and what to do about it. Reads and probes; changes nothing."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ckpt.errors import CkptError
from ckpt.live import core, runtime
from ckpt.live.cgroups import V2, mounted


@dataclass(frozen=True, slots=True)
class Finding:
    name: str
    works: bool
    detail: str  #: what was seen
    follows: str = ""  #: what is lost without it
    remedy: str = ""  #: what to do about it


#: feature -> (what it is for, what is lost without it, what to do)
MEANING: dict[str, tuple[str, str, str]] = {
    "pagemap_scan": (
        "PAGEMAP_SCAN ioctl",
        "incremental snapshots read every page and compare (tracker: compare)",
        "a kernel of 6.7 or later",
    ),
    "uffd_wp_async": (
        "userfaultfd write-protect, asynchronous",
        "incremental snapshots read every page and compare (tracker: compare)",
        "a kernel of 6.7 or later with CONFIG_USERFAULTFD; as an ordinary user: sysctl vm.unprivileged_userfaultfd=1",
    ),
    "soft_dirty": ("soft-dirty bits", "nothing while userfaultfd works", ""),
    "pidfd_getfd": ("pidfd_getfd", "no snapshot of descriptors, no tracking from outside", "a kernel of 5.6 or later; ptrace rights"),
    "process_vm": ("process_vm_readv", "pages are read through /proc/PID/mem, at half the speed", "CONFIG_CROSS_MEMORY_ATTACH"),
    "kcmp": ("kcmp", "shared open files cannot be told from separate ones: no snapshot", "CONFIG_KCMP"),
    "clone3_set_tid": ("clone3 with set_tid", "rollback cannot bring ended threads back", "CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN"),
    "tcp_repair": ("TCP_REPAIR", "nothing in this version: moved connections are reset", "CAP_NET_ADMIN"),
    "sched_fifo": ("SCHED_FIFO for the frozen window", "stops of trees with spinning threads take longer", "CAP_SYS_NICE"),
    "suspend_seccomp": ("PTRACE_O_SUSPEND_SECCOMP", "nothing in this version", "CAP_SYS_ADMIN, CONFIG_CHECKPOINT_RESTORE"),
    "rseq_configuration": ("PTRACE_GET_RSEQ_CONFIGURATION", "ended threads come back without rseq", "a kernel of 5.13 or later"),
    "time_namespace": (
        "time namespaces",
        "a restored program sees the machine's clocks: CLOCK_MONOTONIC jumps from what it was at the snapshot",
        "CAP_SYS_ADMIN and CAP_SYS_TIME, and a kernel with CONFIG_TIME_NS",
    ),
    "vdso_tail": (
        "room for the stub behind the vdso",
        "nothing can be injected: every snapshot compares, no rollback",
        "a kernel whose vdso leaves 512 bytes free in its last page",
    ),
}


def _features() -> list[Finding]:
    findings = []
    for name, error in core.probe().items():
        title, lost, remedy = MEANING[name]
        detail = "works" if error == 0 else f"{os.strerror(error)}"
        findings.append(Finding(title, error == 0, detail, "" if error == 0 else lost, "" if error == 0 else remedy))
    return findings


def _freezer() -> Finding:
    """By which a tree with a control group of its own is stopped at one instant."""
    where = mounted().get(V2)
    title, lost = "control groups v2", "snapshot --freeze cgroup: trees are stopped thread by thread"
    if where is None:
        return Finding(title, False, "not mounted", lost, "mount -t cgroup2 none DIR")
    return Finding(title, True, f"works; mounted at {where[1]}")


def _bpf() -> Finding:
    """eBPF is the witness, never the dirty set: everything in snapshot and rollback works without it."""
    from bpf import compiled, missing

    error = missing()
    if error is None:
        when = "programs are compiled for this kernel" if compiled() else "programs are compiled at the first use"
        return Finding("eBPF (BCC)", True, f"works; {when}")
    detail, _, remedy = str(error).rpartition(": ")
    return Finding("eBPF (BCC)", False, detail, "ckpt trace, who wrote a page, and the kernel's own word on when waits end", remedy)


def _deadlines() -> Finding:
    sched = Path("/proc/self/sched")
    known = sched.exists() and "exec_start" in sched.read_text()
    lost = "when waits began: some finite ones (epoll_wait with a timeout) end late after a freeze by what they had waited"
    detail = "the scheduler tells when a thread went to sleep" if known else "there is no /proc/PID/sched"
    return Finding("deadlines of waits", known, detail, "" if known else lost, "" if known else "a kernel with CONFIG_SCHED_DEBUG")


def _rights() -> Finding:
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    level = scope.read_text().strip() if scope.exists() else "0"
    if os.geteuid() == 0:
        return Finding("ptrace", True, "root: any process may be checkpointed")
    if level == "0":
        return Finding("ptrace", True, "your own processes may be checkpointed", "other users' may not", "run as root")
    return Finding(
        "ptrace", False, f"yama.ptrace_scope is {level}", "only children may be traced", "run as root, or sysctl kernel.yama.ptrace_scope=0"
    )


def _folder() -> Finding:
    try:
        path = runtime.folder()
    except (OSError, CkptError) as error:
        lost = "no record of what was tracked: every snapshot reads everything"
        return Finding("run-time folder", False, str(error), lost, "set CKPT_RUNTIME_DIR to a folder of yours")
    return Finding("run-time folder", True, str(path))


def examine() -> tuple[str, Sequence[Finding]]:
    """(tracker that `--tracker auto` will take, findings)."""
    findings = [_rights(), _folder(), *_features(), _freezer(), _deadlines(), _bpf()]
    works = {finding.name: finding.works for finding in findings}
    uffd = works["PAGEMAP_SCAN ioctl"] and works["userfaultfd write-protect, asynchronous"] and works["room for the stub behind the vdso"]
    tracker = "uffd" if uffd else "softdirty" if works["soft-dirty bits"] else "compare"
    return tracker, findings


def machine() -> dict[str, str]:
    """What a snapshot says of the machine that it was taken on."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    host = os.uname()
    return {"kernel": host.release, "machine": host.machine, "boot_id": boot, "vdso": vdso()}


@cache
def vdso() -> str:
    """A digest of the code that the kernel maps into every process: programs bind themselves to its addresses."""
    with open("/proc/self/maps", "rb") as maps:  # noqa: PTH123
        line = next((line for line in maps if line.rstrip().endswith(b"[vdso]")), b"")
    if not line:
        return ""
    start, end = (int(edge, 16) for edge in line.split(b" ")[0].split(b"-"))
    with open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        memory.seek(start)
        return hashlib.blake2b(memory.read(end - start), digest_size=8).hexdigest()
