"""/proc/PID/status and /proc/PID/task/TID/status (fs/proc/array.c, proc_pid_status)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ids:
    real: int
    effective: int
    saved: int
    fs: int


@dataclass(frozen=True, slots=True)
class Status:
    """Signal sets and capability sets are bit masks: bit n-1 is signal n, bit n is capability n."""

    tgid: int
    ppid: int
    tracer_pid: int
    uid: Ids
    gid: Ids
    groups: tuple[int, ...]
    ns_pid: tuple[int, ...]  #: outermost pid namespace first; empty where the kernel has none
    fd_size: int  #: size of the descriptor table
    threads: int
    umask: int
    sig_pending: int  #: SigPnd, this thread's own
    shared_pending: int  #: ShdPnd, the whole process's
    sig_blocked: int  #: SigBlk: inside ppoll/sigsuspend the temporary one
    sig_ignored: int
    sig_caught: int
    cap_inheritable: int
    cap_permitted: int
    cap_effective: int
    cap_bounding: int
    cap_ambient: int
    no_new_privs: bool
    seccomp: int  #: 0 off, 1 strict, 2 filter
    seccomp_filters: int
    locked_kib: int  #: VmLck, what mlock() and its kin hold; 0 for a kernel thread or a zombie
    resident_kib: int = 0  #: VmRSS

    @property
    def deliverable(self) -> int:
        """Pending signals that have a handler and are not blocked: each would interrupt a call."""
        return (self.sig_pending | self.shared_pending) & ~self.sig_blocked & self.sig_caught


def _ids(text: str) -> Ids:
    real, effective, saved, fs = (int(word) for word in text.split()[:4])
    return Ids(real, effective, saved, fs)


def parse_status(text: bytes) -> Status:
    # "Name:" comes first and the kernel escapes newlines in it, so every other line is the kernel's own.
    lines = dict(line.split(":", 1) for line in text.decode("utf-8", "replace").split("\n") if ":" in line)
    if "Tgid" not in lines or "Uid" not in lines:
        raise ValueError("status: no Tgid or no Uid line")

    def decimal(name: str, default: int = 0) -> int:
        return int(lines.get(name, str(default)).split()[0])

    def bits(name: str) -> int:
        return int(lines.get(name, "0"), 16)

    return Status(
        tgid=decimal("Tgid"),
        ppid=decimal("PPid"),
        tracer_pid=decimal("TracerPid"),
        uid=_ids(lines["Uid"]),
        gid=_ids(lines["Gid"]),
        groups=tuple(int(word) for word in lines.get("Groups", "").split()),
        ns_pid=tuple(int(word) for word in lines.get("NSpid", "").split()),
        fd_size=decimal("FDSize"),
        threads=decimal("Threads", 1),
        umask=int(lines.get("Umask", "0"), 8),
        sig_pending=bits("SigPnd"),
        shared_pending=bits("ShdPnd"),
        sig_blocked=bits("SigBlk"),
        sig_ignored=bits("SigIgn"),
        sig_caught=bits("SigCgt"),
        cap_inheritable=bits("CapInh"),
        cap_permitted=bits("CapPrm"),
        cap_effective=bits("CapEff"),
        cap_bounding=bits("CapBnd"),
        cap_ambient=bits("CapAmb"),
        no_new_privs=decimal("NoNewPrivs") == 1,
        seccomp=decimal("Seccomp"),
        seccomp_filters=decimal("Seccomp_filters"),
        locked_kib=decimal("VmLck"),
        resident_kib=decimal("VmRSS"),
    )
