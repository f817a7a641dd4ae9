"""The floor of the stop time reads what a capture reads: a file that a kind adds is added there as well, and none besides."""

from __future__ import annotations

import re
from pathlib import Path

from ckpt.kinds.table import table

FLOORS = Path(__file__).resolve().parents[1] / "bench" / "floors.c"


def listed(name: str) -> set[str]:
    found = re.search(rf"{name}\[\] = \{{([^}}]*)\}}", FLOORS.read_text())
    assert found, name
    return set(re.findall(r'"([^"]+)"', found[1]))


def test_the_floor_reads_the_files_that_a_capture_reads() -> None:
    assert listed("process_files") == {*table().process_files, "auxv"}  # the vdso's address (native/src/vdso.c)
    assert listed("thread_files") == {*table().thread_files, "children"}  # is the tree complete (native/src/discover.c)
