"""Arming the trackers of a tree, and pre-copying what is dirty while it runs.

What falls back, and how it is said: a memory whose tracker cannot be armed is read whole at every snapshot
("compare"); the reason is kept as a warning. Page contents are the same either way, only slower.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from ckpt.errors import CkptError
from ckpt.live import core
from ckpt.live.runtime import TrackerSeat, start_ticks
from ckpt.procfs import parse_stat, parse_status

TRACKERS = {"uffd": core.UFFD, "softdirty": core.SOFT_DIRTY, "compare": core.COMPARE}
SINK_PAGES_MIN, SINK_PAGES_MAX = 1024, 3072  #: 4 MiB (two huge pages) to 12 MiB: what does not fit is written to a file while frozen
SINK_COMPARED_MAX = 24576  #: 96 MiB: with the rest of ckpt still well below 256 MB
PIECE_PAGES_MIN, PIECE_PAGES_MAX = 512, 2048  #: of pre-copy: 2 MiB (one huge page) to 8 MiB
ROUNDS_MAX = 4
#: Of a program that is no larger there is so little to copy while it runs that ckpt need not keep off its CPU for that; and a freeze that
#: begins on another CPU begins colder: 80 us of a CPython's stop.
SMALL_PAGES = 16384
CONVERGED = 256  #: pages: copying so many while frozen takes less than 0.4 ms


@dataclass(frozen=True, slots=True)
class Armed:
    tracks: tuple[core.Track, ...]  #: one per memory
    tracker: str  #: the weakest that is in use: "uffd", "softdirty" or "compare"
    injectable: bool  #: no task of the tree has a seccomp filter: calls may be run inside
    exact: bool  #: nothing was lost since the last snapshot's thaw: what is not dirty is as it was
    seats: tuple[TrackerSeat, ...]
    warnings: tuple[str, ...]


def may_inject(pid: int) -> bool:
    """A task under a seccomp filter is left alone: a call that the filter forbids would end it."""
    return parse_status(Path(f"/proc/{pid}/status").read_bytes()).seccomp == 0


def _may_inject_if_alive(tree: core.Tree, pid: int) -> bool:
    """True for a child that has ended: nothing will be injected there."""
    try:
        return may_inject(pid)
    except (FileNotFoundError, ProcessLookupError):
        if pid == tree.pid:
            raise
        return True


def arm(tree: core.Tree, wanted: str, seats: Sequence[TrackerSeat], *, still: bool = False) -> Armed:
    """Arms every memory of the tree; `seats` is where an earlier ckpt left its descriptors. `still`: no task of it can run a call for us
    now; then every page is read and compared."""
    known = {(seat.pid, seat.start_ticks): seat for seat in seats}
    tracks: list[core.Track] = []
    fresh_seats: list[TrackerSeat] = []
    warnings: list[str] = []
    owners = {thread.mm: thread.pid for thread in reversed(tree.threads())}
    for _mm, pid in sorted(owners.items()):
        try:
            start = start_ticks(pid)
            track, warning = _arm_one(tree, pid, "compare" if still else wanted, known.get((pid, start)))
        except (FileNotFoundError, ProcessLookupError, CkptError):
            if pid == tree.pid or _alive(pid):
                raise
            continue  # a child that has ended
        tracks.append(track)
        if track.remote_fd >= 0:
            fresh_seats.append(TrackerSeat(pid, start, track.remote_fd, track.remote_ino))
        if warning:
            warnings.append(warning)
    tree.armed()
    names = {number: name for name, number in TRACKERS.items()}
    weakest = "compare" if any(t.tracker == core.COMPARE for t in tracks) else names[tracks[0].tracker]
    # A new child is tracked anew and read whole; that takes nothing from what is known of the others.
    exact = not any(track.fresh for track in tracks if track.pid == tree.pid)
    injectable = all(_may_inject_if_alive(tree, thread.pid) for thread in tree.threads() if thread.pid == thread.tid)
    return Armed(tuple(tracks), weakest, injectable, exact, tuple(fresh_seats), tuple(warnings))


def _alive(pid: int) -> bool:
    try:
        return parse_stat(Path(f"/proc/{pid}/stat").read_bytes()).state not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _compared(pid: int, why: str) -> tuple[core.Track, str]:
    return core.Track(pid, core.COMPARE, -1, 0, fresh=True), f"task {pid}: {why}: every page is read and compared"


def _arm_one(tree: core.Tree, pid: int, wanted: str, seat: TrackerSeat | None) -> tuple[core.Track, str]:
    if wanted == "softdirty" and core.probe()["soft_dirty"] != 0:
        raise CkptError(f"task {pid}: this kernel has no soft-dirty bits (CONFIG_MEM_SOFT_DIRTY): use --tracker auto")
    if wanted in ("compare", "softdirty"):
        return core.Track(pid, TRACKERS[wanted], -1, 0, fresh=True), ""
    if not may_inject(pid):
        if wanted == "uffd":
            raise CkptError(f"task {pid}: has a seccomp filter, so nothing is injected: use --tracker auto or compare")
        return _compared(pid, "has a seccomp filter")
    try:
        return tree.arm(pid, seat.fd if seat else -1, seat.ino if seat else 0), ""
    except CkptError as error:
        if wanted == "uffd" or not _alive(pid):
            raise
        return _compared(pid, f"no tracking ({error})")


def sink_pages(expected: int) -> int:
    return max(SINK_PAGES_MIN, min(SINK_PAGES_MAX, expected + expected // 4 + 64))


def piece_pages(expected: int) -> int:
    """Pages of one piece of pre-copy: a quarter of a small round, so that storing begins early; whole huge pages, still in the
    processor's cache when they are hashed."""
    return max(PIECE_PAGES_MIN, min(PIECE_PAGES_MAX, -(-expected // 4 // PIECE_PAGES_MIN) * PIECE_PAGES_MIN))


def compared_pages(tracks: Sequence[core.Track]) -> int:
    """Room for what is read whole while frozen; beyond SINK_COMPARED_MAX it goes through the spill file."""
    whole = [one.pid for one in tracks if one.tracker == core.COMPARE]
    return min(sum(map(resident_pages, whole)), SINK_COMPARED_MAX)


def stand_aside(tree: core.Tree) -> None:
    """Before any work beside the running program."""
    if resident_pages(tree.pid) > SMALL_PAGES:
        tree.aside()


def resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


#: (track, sink) -> None: what takes a filled sink's pages away
Consumer = Callable[[core.Track, core.Sink], None]


class Precopy:
    """Rounds of pre-copy in pieces: while a thread of its own stores one, the next is filled. Leaving waits for the last."""

    def __init__(self, tree: core.Tree, expected: int, consume: Consumer, progress: Callable[[str, int, int], None]) -> None:
        """`expected`: pages that are dirty now."""
        self.tree, self.expected, self.consume, self.progress = tree, expected, consume, progress
        self.written = 0
        self.rounds = 0
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._sinks = [stack.enter_context(core.Sink(piece_pages(self.expected), None)) for _ in range(2)]
            self._waiting: list[Future[None] | None] = [None, None]
            self._pool = stack.enter_context(ThreadPoolExecutor(1))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        with self._stack:
            if error is None:
                for turn in range(2):
                    self._wait(turn)

    def run(self, tracks: Sequence[core.Track], rounds: int | None) -> None:
        """`rounds` None: as many as pay, up to ROUNDS_MAX."""
        last = self.expected
        while self.rounds < (ROUNDS_MAX if rounds is None else rounds):
            if rounds is None and last <= CONVERGED:
                break
            before = last
            last = sum(self._round(track, before) for track in tracks)
            self.written += last
            self.rounds += 1
            # What one round copied is what was written during the round before it; no gain, no more rounds.
            if rounds is None and self.rounds > 1 and last > before * 3 // 4:
                break

    def _round(self, track: core.Track, expected: int) -> int:
        if track.tracker == core.COMPARE:
            return 0
        cursor, written, turn = 0, 0, 0
        while cursor != core.CURSOR_END:
            self._wait(turn)
            sink = self._sinks[turn]
            sink.reset()
            cursor, result = self.tree.precopy(track, sink, cursor)
            written += result.written
            self.progress(f"copying while it runs, round {self.rounds + 1}", written, max(expected, written))
            self._waiting[turn] = self._pool.submit(self.consume, track, sink)
            turn ^= 1
        return written

    def _wait(self, turn: int) -> None:
        """Until that sink's pages are stored; raises what storing them raised."""
        busy, self._waiting[turn] = self._waiting[turn], None
        if busy is not None:
            busy.result()
