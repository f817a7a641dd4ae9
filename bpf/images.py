"""Compiled programs: from the cache, else from the compiler. An image belongs to one kernel and one text of the program."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bpf import btf, cache, headers
from bpf.errors import BpfError

SOURCES = Path(__file__).resolve().parent / "src"
_COMPILER = Path(__file__).resolve().parent / "compiler.py"
#: Members that the programs read; each becomes a -D: "pt_regs.ip" is AT_PT_REGS_IP. What has another name in other kernels has both, and is
#: called by the first.
MEMBERS = (
    *(
        "task_struct.pid",
        "task_struct.tgid",
        "task_struct.exit_code",
        "task_struct.signal",
        "task_struct.mm",
        "task_struct.ptrace",
        "task_struct.stack",
        "task_struct.restart_block",
        "signal_struct.live",
        "restart_block.fn",
        "restart_block.nanosleep.clockid",
        "restart_block.nanosleep.expires",
        "restart_block.futex.time",
        "restart_block.poll.tv_sec|restart_block.poll.end_time",
        "hrtimer._softexpires",
        "hrtimer.base",
        "hrtimer_clock_base.offset",
        "timer_list.expires",
    ),
    *(f"pt_regs.{name}" for name in ("r10", "r9", "r8", "dx", "si", "di", "orig_ax", "ip", "sp")),
)


@dataclass(frozen=True, slots=True)
class MapSpec:
    name: str
    kind: int  #: BPF_MAP_TYPE
    key: int
    value: int
    entries: int
    flags: int


@dataclass(frozen=True, slots=True)
class Image:
    maps: tuple[MapSpec, ...]
    programs: Mapping[str, bytes]  #: function -> instructions; a reference to a map is its place in `maps`


def offsets(folder: Path) -> dict[str, int]:
    """Of MEMBERS on this kernel; read from BTF once (0.3 s), then from the cache."""
    path = folder / "offsets.json"
    try:
        known: dict[str, int] = json.loads(path.read_text())
    except (OSError, ValueError):
        known = {}
    if set(known) != set(MEMBERS):
        known = btf.offsets(MEMBERS)
        cache.write(path, json.dumps(known).encode())
    return known


def image(name: str) -> Image:
    """Of src/NAME.bpf.c. Raises BpfError: no-btf, no-bcc, cache, compile."""
    path = _path(name)
    with suppress(OSError, ValueError, KeyError, TypeError):  # not there, or not whole
        return _decode(path.read_bytes())
    made = _compiled(name, cache.folder())
    cache.write(path, made)
    return _decode(made)


def compiled(name: str) -> bool:
    """Whether loading it needs no compiler."""
    return _path(name).exists()


def failed(name: str) -> Path:
    """A file that is there where it did not compile here."""
    return _path(name).with_suffix(".failed")


def _sources(name: str) -> tuple[Path, ...]:
    return SOURCES / "tree.h", SOURCES / f"{name}.bpf.c"


def _path(name: str) -> Path:
    digest = hashlib.blake2b(digest_size=8)
    for path in (_COMPILER, Path(headers.__file__), *_sources(name)):
        digest.update(path.read_bytes())
    digest.update(repr(MEMBERS).encode())
    return cache.place() / f"{name}-{digest.hexdigest()}.json"


def _decode(raw: bytes) -> Image:
    made = json.loads(raw)
    return Image(tuple(MapSpec(**one) for one in made["maps"]), {name: bytes.fromhex(code) for name, code in made["programs"].items()})


def _compiled(name: str, folder: Path) -> bytes:
    places = offsets(folder)
    if importlib.util.find_spec("bcc") is None:
        raise BpfError("no-bcc", "the module bcc is not installed: apt-get install python3-bpfcc")
    flags = [f"-DAT_{member.partition('|')[0].replace('.', '_').upper()}={at}" for member, at in places.items()]
    command = [sys.executable, "-I", str(_COMPILER), *map(str, _sources(name)), *flags]
    tree = headers.tree(folder, os.uname().release)
    done = subprocess.run(command, env={**os.environ, "BCC_KERNEL_SOURCE": str(tree)}, capture_output=True, check=False)
    if done.returncode != 0:
        raise BpfError(*_complaint(name, done.stderr.decode(errors="replace")))
    return done.stdout


def _complaint(name: str, text: str) -> tuple[str, str]:
    """(kind, one line) of what clang, BCC or Python said."""
    lines = [line for line in text.splitlines() if line.strip()]
    if any("Operation not permitted" in line for line in lines):
        return "no-rights", "no right to make BPF maps: run as root, or with CAP_BPF and CAP_PERFMON"
    said = next((line for line in lines if "error:" in line), lines[-1] if lines else "no reason given")
    return "compile", f"{name}.bpf.c: BCC does not compile it for this kernel ({said.strip()}): everything but eBPF works without"
