"""A program that reads with O_DIRECT is never pre-copied: a page that a device writes to would be protected behind its back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Ckpt, Victim

PROGRAM = """
import mmap, os, sys
os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | int(sys.argv[2]))
memory = mmap.mmap(-1, 8 << 20)
memory[:] = os.urandom(8 << 20)
print("READY", flush=True)
for line in sys.stdin:
    print("PASS", flush=True)
"""


@pytest.mark.parametrize(("flags", "precopied"), [(0, True), (0o40000, False)])
def test_direct_io_means_no_precopy(tmp_path: Path, flags: int, precopied: bool) -> None:
    file = Path.cwd() / "build" / "direct.bin"  # not on a tmpfs, which may refuse O_DIRECT
    file.parent.mkdir(exist_ok=True)
    with Victim([sys.executable, "-c", PROGRAM, str(file), str(flags)]) as victim:
        made = Ckpt(tmp_path).snapshot(victim.pid)
        assert ("precopied" in made["phases"]) is precopied
        assert made["pages"]["read"] >= 2048
    file.unlink()
