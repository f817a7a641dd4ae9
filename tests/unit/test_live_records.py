"""The record stream, spaces, batches: what C hands over becomes raw bytes in the right places."""

from __future__ import annotations

import struct

import pytest

from ckpt.kinds.base import RawDescriptor
from ckpt.live import pages, preflight, records, spaces
from ckpt.live.core import SpaceRuns, ThreadId
from ckpt.model import PAGE, Content, PidRef, Snapshot


def record(kind: int, pid: int, tid: int, fd: int, index: int, data: bytes) -> bytes:
    head = records.HEADER.pack(kind, pid, tid, fd, index, len(data))
    return (head + data).ljust((len(head) + len(data) + 7) & ~7, b"\0")


def test_decode_routes_every_kind_whatever_the_order() -> None:
    threads = records.THREAD_ID.pack(10, 10, 5, 0, 0) + records.THREAD_ID.pack(10, 11, 6, 0, 0)
    stream = b"".join(
        [
            record(records.REGS, 10, 11, -1, 0, b"r" * 216),
            record(records.PROC_FILE, 10, 0, -1, 1, b"maps text"),
            record(records.THREAD_FILE, 10, 11, -1, 0, b"odd"),
            record(records.PENDING_SHARED, 10, 0, -1, 0, b"a" * 128 + b"b" * 128),
            record(records.PENDING_THREAD, 10, 11, -1, 0, b"c" * 128),
            record(records.SIGMASK, 10, 10, -1, 0, (1 << 63).to_bytes(8, "little")),
            record(records.ANSWER, 10, 11, -1, 3, struct.pack("<q", -22) + b"xyz"),
            record(records.ANSWER, 10, 0, -1, 4, struct.pack("<q", 7)),
            record(records.FD, 10, 0, 5, 0, records.FD_HEAD.pack(1, 2, 3, 4, 1, 0o100644, 9, -1, 0) + b"/tmp/x"),
            record(records.FDINFO, 10, 0, 5, 0, b"pos:\t7\n"),
            record(records.FD_WORK, 10, 0, 5, 2, b"pipe"),
            record(records.LIMITS, 10, 0, -1, 0, struct.pack("<QQ", 1, 2)),
            record(records.DECISION, 10, 10, -1, 0, records.DECISION_BODY.pack(232, -4, -514, 1, 1)),
            record(records.OBJECT, 0, 0, -1, spaces.OBJECTS, records.OBJECT_HEAD.pack(1, 77, 8192)),
            record(records.THREADS, 0, 0, -1, 0, threads),
        ]
    )
    raw = records.decode(memoryview(stream), ["stat", "maps"], ["status"])
    assert raw.threads[11].regs == b"r" * 216
    assert raw.threads[11].files == {"status": b"odd"}
    assert raw.threads[11].pending == [b"c" * 128]
    assert (raw.threads[11].answers[3].retval, raw.threads[11].answers[3].data) == (-22, b"xyz")
    assert raw.threads[10].sigmask == 1 << 63
    assert raw.threads[10].decision == (232, -4, -514, 1, 1)
    process = raw.processes[10]
    assert process.files == {"maps": b"maps text"}
    assert [one[:1] for one in process.pending] == [b"a", b"b"]
    assert process.answers[4].retval == 7
    assert process.limits == ((1, 2),)
    assert process.fds[5].link == "/tmp/x"
    assert process.fds[5].fdinfo == "pos:\t7\n"
    assert process.fds[5].work == {2: b"pipe"}
    assert raw.objects[0].ino == 77


def snapshot_with(memories: dict[tuple[int, int], int]) -> Snapshot:
    class Task:
        def __init__(self, pid: int, start: int, mm: int) -> None:
            self.pid, self.start_ticks, self.mm = pid, start, mm

    tasks = tuple(Task(pid, start, mm) for (pid, start), mm in memories.items())
    return Snapshot(PidRef(1, 1), tasks, (), (), {}, 0)  # type: ignore[arg-type]


def test_a_memory_keeps_its_space_when_the_core_renumbers() -> None:
    parent = snapshot_with({(1, 1): 0, (2, 1): 1, (3, 1): 2})
    # child 2 has ended: the core now calls 3's memory 1
    found = spaces.Spaces([ThreadId(1, 1, 1, 0), ThreadId(3, 3, 1, 1)], parent)
    assert found.store(0) == 0
    assert found.store(1) == 2


def test_a_recycled_pid_gets_a_space_of_its_own() -> None:
    found = spaces.Spaces([ThreadId(1, 1, 1, 0), ThreadId(2, 2, 99, 1)], snapshot_with({(1, 1): 0, (2, 1): 1}))
    assert found.store(1) == 2


def test_processes_that_share_a_memory_share_the_space() -> None:
    found = spaces.Spaces([ThreadId(1, 1, 1, 0), ThreadId(2, 2, 1, 0)], None)
    assert found.store(0) == 0


class FakeSink:
    """Page data in a buffer of `room` pages and the rest spilled, like the core's."""

    def __init__(self, total: int, room: int, piece: int) -> None:
        self.bytes = b"".join(bytes([n % 251]) * PAGE for n in range(total))
        self.room, self.piece = room * PAGE, piece * PAGE

    def data(self, offset: int, size: int):  # type: ignore[no-untyped-def]
        end = offset + size
        if offset < self.room:
            yield memoryview(self.bytes[offset : min(end, self.room)])
            offset = min(end, self.room)
        while offset < end:
            yield memoryview(self.bytes[offset : min(offset + self.piece, end)])
            offset += self.piece


@pytest.mark.parametrize("room", [0, 1, 5, 9, 20])
@pytest.mark.parametrize("piece", [1, 2, 7])
def test_batches_give_every_page_its_own_bytes(room: int, piece: int) -> None:
    runs = [
        (100, 3, Content.DATA),
        (103, 2, Content.ZERO),
        (110, 6, Content.DATA),
        (120, 4, Content.SAME),
        (130, 1, Content.ZERO),
        (140, 2, Content.DATA),
    ]
    part = SpaceRuns(0, memoryview(b"".join(pages.RUN.pack(*run) for run in runs)), 0, 11, memoryview(b""), 0)
    seen: dict[int, int | None] = {}
    for packed, data in pages.batches(FakeSink(11, room, piece), part):  # type: ignore[arg-type]
        position = 0
        for page, count, content in pages.RUN.iter_unpack(packed):
            for number in range(page, page + count):
                if content == Content.DATA:
                    seen[number] = data[position]
                    position += PAGE
                elif content == Content.ZERO:
                    seen[number] = None
        assert position == len(data)
    wanted = dict(zip([100, 101, 102, *range(110, 116), 140, 141], range(11), strict=True)) | {103: None, 104: None, 130: None}
    assert seen == wanted


def test_a_descriptor_that_was_closed_between_two_looks_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = records.RawCapture()
    process = capture.processes.setdefault(10, records.RawProcess(10, records.Texts("task 10")))
    for fd, fdinfo in ((3, ""), (4, "pos:\t0\nflags:\t02\nmnt_id:\t1\n")):
        process.fds[fd] = records.RawFd(10, fd, (1, 2, 0, 0, 1, 0o100644, fd, -1, 0), "/tmp/x", fdinfo)
    monkeypatch.setattr(preflight, "_look", lambda _tree: capture)
    seen: list[RawDescriptor] = []
    tasks = {10: preflight.Looked("name", 64)}
    assert list(preflight._descriptors(None, tasks, seen)) == []  # type: ignore[arg-type]
    assert [raw.fd for raw in seen] == [4]
