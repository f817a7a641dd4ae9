"""Programs of the tests are built when they are needed, by one of several runs of the tests at a time."""

from __future__ import annotations

import fcntl
import os
import subprocess
from functools import cache
from pathlib import Path


@cache
def make(folder: Path) -> None:
    """`make` in a folder, once in this process; it does nothing where nothing has changed."""
    seat = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(seat, fcntl.LOCK_EX)
        subprocess.run(["make", "-s", "-C", str(folder)], check=True)
    finally:
        os.close(seat)
