"""Tracking never splits a mapping: the program could not mremap() it any more (EFAULT)."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from ckpt.live import act, core
from tests.harness import Victim, did, times

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: takes a descriptor of another process")
AREA, PAGES = 0x6000_0000_0000, 1200  #: more than a dense stretch, so that the scan looks at it in parts
PROT_RW, MAP_FIXED_PRIVATE_ANONYMOUS = 3, 0x100032

#: "map A B": maps the area and writes its pages from A to B.
MAPPER = f"""
import ctypes, sys
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
print("READY", flush=True)
for line in sys.stdin:
    first, last = map(int, line.split()[1:])
    assert libc.mmap({AREA}, {PAGES} << 12, {PROT_RW}, {MAP_FIXED_PRIVATE_ANONYMOUS}, -1, 0) == {AREA}
    ctypes.memset({AREA} + (first << 12), 7, last - first << 12)
    print("PASS", flush=True)
"""


def lines(pid: int) -> list[str]:
    found = [line.split()[0] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
    return [line for line in found if AREA <= int(line.split("-")[0], 16) < AREA + (PAGES << 12)]


def protect(tree: core.Tree, track: core.Track, sink: core.Sink) -> None:
    tree.freeze()
    act.pages_scan(tree, track, sink, protect=True)
    tree.thaw()


@pytest.mark.parametrize(("first", "last"), [(0, PAGES - 1), (1, PAGES), (300, 900)])
def test_a_new_mapping_with_holes_at_its_ends(first: int, last: int) -> None:
    """What holds nothing is passed over, and the rest is registered: all of the mapping has to be."""
    with Victim([sys.executable, "-c", MAPPER]) as target, core.Tree(target.pid) as tree, core.Sink(4096, "/tmp") as sink:
        track = tree.arm(target.pid)
        protect(tree, track, sink)  # everything else is registered: only what is new is looked at one by one
        assert target.ask(f"map {first} {last}") == "PASS"
        tree.scan_count(track)
        protect(tree, replace(track, fresh=False), sink)
        assert lines(target.pid) == [f"{AREA:x}-{AREA + (PAGES << 12):x}"]


def test_a_look_at_a_running_program_changes_nothing(victim: Callable[..., Victim]) -> None:
    """It maps and unmaps meanwhile: whoever registers by a list that is a moment old cuts a new mapping in two."""
    target = victim("churn")
    until = time.monotonic() + times(4, 60)
    looks = 0
    while time.monotonic() < until:
        with core.Tree(target.pid) as tree, core.Sink(256, "/tmp") as sink:
            track = tree.arm(target.pid)
            protect(tree, track, sink)
            for _ in range(300):
                act.pages_scan(tree, track, sink, protect=False)
                looks += 1
        target.verify()
    did("looks at a running churn", looks)
