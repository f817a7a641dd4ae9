"""What smaps says after the thaw of mappings as they were when they stood still."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckpt.live.advice import Adviser
from ckpt.model import Backing, Mapping, PidRef
from ckpt.procfs import parse_status

RW, RO, NONE = 3, 1, 0
PRIVATE, SHARED = 0x22, 0x21
START, END = 0x7F0000000000, 0x7F0000004000


@pytest.mark.parametrize(
    ("prot", "flags", "later", "advice"),
    [
        (RW, PRIVATE, ("ac",), ("ac",)),
        (RW, PRIVATE, (), ("ac",)),  # protected meanwhile, before there was a page
        (RW, PRIVATE, ("nh",), ("ac", "nh")),
        (RW, PRIVATE, ("nr",), ()),  # nobody promises it
        (RO, PRIVATE, (), ()),
        (RO, PRIVATE, ("ac",), ("ac",)),  # was writable once
        (NONE, PRIVATE, (), ()),
        (RW, SHARED, ("mw",), ("mw",)),
    ],
)
def test_writable_memory_is_promised(
    prot: int, flags: int, later: tuple[str, ...], advice: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ckpt.live.advice._smaps", lambda _pid: {(START, END): later})
    monkeypatch.setattr("ckpt.live.core.guards", lambda _pid, _ranges: [])
    mapping = Mapping(START, END, prot, flags, Backing("anonymous"))
    (found,) = Adviser().advised(PidRef(1, 1), [mapping], parse_status(Path("/proc/self/status").read_bytes()))
    assert found.advice == advice
