"""The few headers that BCC wants to see before it compiles anything, for a machine that has none of the kernel's.

BCC looks for a whole kernel tree; what its own headers really use of one are these names. Kernel structs are not in it: the programs
read them by offsets from BTF (btf.py). Seen to be enough for BCC 0.26.
"""

from __future__ import annotations

import re
from pathlib import Path

from bpf import cache

_TYPES = """\
#pragma once
typedef unsigned char __u8, u8;
typedef signed char __s8, s8;
typedef unsigned short __u16, u16, __be16, __le16, __sum16;
typedef short __s16, s16;
typedef unsigned int __u32, u32, __be32, __le32, __wsum;
typedef int __s32, s32, pid_t;
typedef unsigned long long __u64, u64, __be64, __le64;
typedef long long __s64, s64;
typedef unsigned long size_t, uintptr_t;
typedef _Bool bool;
#define true 1
#define false 0
#define __aligned_u64 __u64 __attribute__((aligned(8)))
"""
_FILES = {
    "linux/kconfig.h": "#define CONFIG_BPF_SYSCALL 1\n",
    "linux/types.h": _TYPES,
    "linux/version.h": "#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))\n#define LINUX_VERSION_CODE {code}\n",
    "linux/bpf_common.h": "",
    "linux/log2.h": "",
    "uapi/linux/if_packet.h": "",
    "uapi/linux/bpf.h": "#include <linux/types.h>\n",
    "asm/page.h": "#define PAGE_SIZE 4096UL\n",
}


def version_code(release: str) -> int:
    """LINUX_VERSION_CODE of "6.18.44-something"; the last part stops at 255 as the kernel's does."""
    numbers = [int(number) for number in re.findall(r"\d+", release.split("-")[0])[:3]]
    major, minor, patch = [*numbers, 0, 0, 0][:3]
    return (major << 16) + (minor << 8) + min(patch, 255)


def tree(folder: Path, release: str) -> Path:
    """The tree below this folder, for BCC_KERNEL_SOURCE; made where it is not there."""
    root = folder / "headers"
    for name, text in _FILES.items():
        path = root / "include" / name
        content = text.replace("{code}", str(version_code(release))).encode()
        if not path.exists() or path.read_bytes() != content:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            cache.write(path, content)
    return root
