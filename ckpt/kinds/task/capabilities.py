"""Capability sets: their names for people, and the calls that set them (no kind of its own: see credentials.py).

Order matters (kernel/capability.c, security/commoncap.c): a capability may be made inheritable only while it is in the bounding
set, ambient only while it is permitted and inheritable, and leaving the bounding set or changing securebits needs CAP_SETPCAP.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from ckpt.kinds.base import call
from ckpt.model import RemoteCall, State
from ckpt.syscalls.names import nr

PR_CAPBSET_DROP, PR_CAP_AMBIENT = 24, 47
_AMBIENT_RAISE, _AMBIENT_LOWER = 2, 3
_VERSION_3 = 0x2008_0522
_NAMES = tuple(
    """
    chown dac_override dac_read_search fowner fsetid kill setgid setuid setpcap linux_immutable net_bind_service net_broadcast net_admin
    net_raw ipc_lock ipc_owner sys_module sys_rawio sys_chroot sys_ptrace sys_pacct sys_admin sys_boot sys_nice sys_resource sys_time
    sys_tty_config mknod lease audit_write audit_control setfcap mac_override mac_admin syslog wake_alarm block_suspend audit_read
    perfmon bpf checkpoint_restore
    """.split()  # noqa: SIM905
)
SETGID, SETUID, SETPCAP = 1 << 6, 1 << 7, 1 << 8
SYS_CHROOT, SYS_NICE, SYS_RESOURCE = 1 << 18, 1 << 23, 1 << 24


def title(bits: int) -> str:
    """ "CAP_SETUID, CAP_BPF"."""
    numbers = _numbers(bits)
    return ", ".join(f"CAP_{_NAMES[number].upper()}" if number < len(_NAMES) else f"capability {number}" for number in numbers)


def _numbers(bits: int) -> list[int]:
    return [number for number in range(bits.bit_length()) if bits >> number & 1]


def set_all(effective: int, permitted: int, inheritable: int) -> RemoteCall:
    words = [bits >> shift & 0xFFFF_FFFF for shift in (0, 32) for bits in (effective, permitted, inheritable)]
    return call(nr("capset"), struct.pack("<Ii", _VERSION_3, 0), struct.pack("<6I", *words), note="capset")


def change(now: State, wanted: State) -> Sequence[RemoteCall]:
    """From the sets of now, which still hold CAP_SETPCAP where the bounding set shrinks, to all but the last capset."""
    calls = []
    if now["cap_inheritable"] != wanted["cap_inheritable"]:
        calls.append(set_all(now["cap_effective"], now["cap_permitted"], wanted["cap_inheritable"]))
    kept = now["cap_ambient"] & wanted["cap_inheritable"]  # the kernel takes the others away by itself
    for number in _numbers(kept & ~wanted["cap_ambient"]):
        calls.append(_ambient(_AMBIENT_LOWER, number))
    for number in _numbers(wanted["cap_ambient"] & ~kept):
        calls.append(_ambient(_AMBIENT_RAISE, number))
    for number in _numbers(now["cap_bounding"] & ~wanted["cap_bounding"]):
        calls.append(call(nr("prctl"), PR_CAPBSET_DROP, number, 0, 0, 0, note=f"{title(1 << number)} out of the bounding set"))
    return calls


def _ambient(operation: int, number: int) -> RemoteCall:
    verb = "raise" if operation == _AMBIENT_RAISE else "lower"
    return call(nr("prctl"), PR_CAP_AMBIENT, operation, number, 0, 0, note=f"{verb} ambient {title(1 << number)}")
