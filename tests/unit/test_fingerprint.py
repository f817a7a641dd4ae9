"""What a fingerprint tells apart, and what it passes over."""

from __future__ import annotations

from ckpt.live.fingerprint import Fingerprint, fingerprint
from ckpt.live.records import FDINFO, HEADER, PROC_FILE, REGS

FILES = ("stat", "status", "maps")
STAT = b"7 (a) b) S 1 7 7 0 -1 4194304 %d 0 0 0 %d 2 0 0 20 0 3 0 555 1000 %d 18446744073709551615 1 2 3 4 5 0 0 0 0 0 0 0 17 1 0 0"
STATUS = (
    b"Name:\ta\nState:\tS (sleeping)\nTracerPid:\t%d\nUid:\t%d\t0\t0\t0\nSigQ:\t%d/96551\nSigPnd:\t%016x\nVmRSS:\t %d kB\n"
    b"voluntary_ctxt_switches:\t%d\nnonvoluntary_ctxt_switches:\t%d\n"
)


def stream(*records: tuple[int, int, int, bytes]) -> memoryview:
    out = b""
    for kind, fd, index, data in records:
        out += HEADER.pack(kind, 7, 7, fd, index, len(data)) + data + bytes(-len(data) % 8)
    return memoryview(out)


def look(
    stat: bytes = STAT % (1, 2, 3),
    status: bytes = STATUS % (5, 0, 4, 0, 1, 2, 3),
    maps: bytes = b"a",
    fdinfo: bytes = b"pos: 1",
    regs: bytes = b"r" * 216,
) -> Fingerprint:
    return fingerprint(
        stream((PROC_FILE, -1, 0, stat), (PROC_FILE, -1, 1, status), (REGS, -1, 0, regs), (PROC_FILE, -1, 2, maps), (FDINFO, 3, 0, fdinfo)),
        FILES,
        FILES,
    )


def test_what_moves_all_the_time_is_passed_over() -> None:
    assert look() == look(STAT % (9, 8, 7), STATUS % (6, 0, 9, 0, 9, 8, 7), regs=b"s" * 216)


def test_what_a_plan_changes_is_seen() -> None:
    assert look() != look(maps=b"b")
    assert look() != look(fdinfo=b"pos: 2")
    assert look() != look(status=STATUS % (5, 5, 4, 0, 1, 2, 3))
    assert look() != look(status=STATUS % (5, 0, 4, 8, 1, 2, 3))
    assert look() != look(stat=(STAT % (1, 2, 3)).replace(b" S 1 7 7 ", b" S 1 8 7 "))
    assert look() != look(stat=(STAT % (1, 2, 3)).replace(b"(a) b)", b"(c)"))
    assert look() != look(stat=(STAT % (1, 2, 3)).replace(b" 20 0 3 0 ", b" 20 0 4 0 "))
