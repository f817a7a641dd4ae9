"""First writes as the fault tracepoints tell them, against what PAGEMAP_SCAN says was written; who, when, by which instruction."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

import bpf
from bpf.writes import Write
from ckpt.live import act, core
from ckpt.syscalls import names
from tests.harness import Victim

pytestmark = [pytest.mark.usefixtures("usable"), pytest.mark.skipif(os.geteuid() != 0, reason="needs root: acts on other processes")]

PAGE = 4096


@dataclass(frozen=True)
class Area:
    start: int
    pages: int
    tid: int

    def of(self, page: int) -> bool:
        return self.start <= page < self.start + self.pages * PAGE


def areas(victim: Victim) -> dict[str, Area]:
    words = victim.ask("where").split()[1:]
    return {words[at]: Area(*map(int, words[at + 1 : at + 4])) for at in range(0, len(words), 4)}


class Watched:
    """A victim whose writes are tracked, and the program that tells of them."""

    def __init__(self, victim: Victim, stack: ExitStack, ring_bytes: int = 1 << 20) -> None:
        self.victim = victim
        self.filter = stack.enter_context(bpf.Filter())
        self.writes = stack.enter_context(bpf.Writes(self.filter, ring_bytes))
        self.filter.add([victim.pid])
        self.tree = stack.enter_context(core.Tree(victim.pid))
        self.sink = stack.enter_context(core.Sink(4096, "/tmp"))
        self.track = self.tree.arm(victim.pid)
        self.protect()

    def protect(self) -> set[int]:
        """Addresses of the pages that were written since; from here on they are protected again. Events until here are dropped."""
        self.tree.freeze()
        found = self.scan(protect=True)
        self.writes.take()
        self.tree.thaw()
        return found

    def scan(self, *, protect: bool) -> set[int]:
        runs = act.pages_scan(self.tree, self.track, self.sink, protect=protect).runs
        return {(start + n) * PAGE for start, count, kind in struct.iter_unpack("<QII", runs) if kind == 0 for n in range(count)}

    def written(self) -> tuple[set[int], list[Write]]:
        """Since it was protected: what the scan says, and the events."""
        self.tree.freeze()
        found, events = self.scan(protect=False), self.writes.take()
        self.tree.thaw()
        return found, events


@pytest.fixture
def watched(victim: Callable[..., Victim]) -> Iterator[Watched]:
    with ExitStack() as stack:
        yield Watched(victim("writers"), stack)


def pages(events: list[Write]) -> set[int]:
    return {event.place & ~(PAGE - 1) for event in events}


def test_user_writes_are_what_the_scan_says(watched: Watched) -> None:
    """Anonymous, huge, of a private file, and never there before: set for set, over many rounds; and the whole memory besides."""
    where = areas(watched.victim)
    for number in range(1, 40):
        watched.protect()
        watched.victim.ask(f"round {number * 7919}")
        scanned, events = watched.written()
        for name, area in where.items():
            by = [event for event in events if area.of(event.place)]
            assert pages(by) == {page for page in scanned if area.of(page)}, name
            assert {event.tid for event in by} <= {area.tid}, name
            assert all(bool(event.place & 1) == (name == "read") for event in by), name
        assert any(where["huge"].of(page) for page in scanned)
        assert pages(events) == scanned, "the rest of it too: stacks, the heap, data"
    assert watched.writes.lost() == 0
    watched.victim.verify()


def test_protected_while_it_runs(watched: Watched) -> None:
    """Nobody is stopped and nothing is copied, and yet: what it counts is what was written, and what is written next tells of itself."""
    where = areas(watched.victim)
    for number in range(1, 20):
        watched.victim.ask(f"round {number * 7919}")
        before = watched.scan(protect=False)
        counted = watched.tree.protect(watched.track)
        assert len(before) <= counted <= len(before) + 8, "its stacks move a little meanwhile"
        watched.writes.take()
        watched.victim.ask(f"round {number * 104729}")
        scanned, events = watched.written()
        for name, area in where.items():
            assert pages([event for event in events if area.of(event.place)]) == {page for page in scanned if area.of(page)}, name
        assert any(where["huge"].of(page) for page in scanned)
    watched.victim.verify()


def test_the_instruction_and_the_time(watched: Watched) -> None:
    """Each mapping is written by one function; the kernel wrote for a read()."""
    functions = symbols(Path(f"/proc/{watched.victim.pid}/exe").resolve())
    base = min(
        int(line.split("-")[0], 16)
        for line in Path(f"/proc/{watched.victim.pid}/maps").read_text().splitlines()
        if line.endswith("/bin/writers")
    )
    before = time.monotonic_ns()
    watched.victim.ask("round 96")
    _, events = watched.written()
    after = time.monotonic_ns()
    for name, area in areas(watched.victim).items():
        by = [event for event in events if area.of(event.place)]
        assert by, name
        assert all(before < event.ns < after for event in by)
        if name == "read":
            assert {names.name(event.nr) for event in by} == {"read"}
            assert all(event.place & 1 for event in by)
            assert not any(event.ip >> 47 for event in by), "an instruction of the program"
        else:
            start, size = functions[f"scribble_{name}"]
            assert all(start <= event.ip - base < start + size and event.nr == -1 for event in by), name


def symbols(path: Path) -> dict[str, tuple[int, int]]:
    from elftools.elf.elffile import ELFFile

    with path.open("rb") as file:
        table = ELFFile(file).get_section_by_name(".symtab")
        return {symbol.name: (symbol["st_value"], symbol["st_size"]) for symbol in table.iter_symbols()}


def test_a_second_write_costs_no_event(watched: Watched) -> None:
    watched.victim.ask("round 96")
    first = watched.written()[1]
    watched.victim.ask("round 96")
    second = [event for event in watched.written()[1] if any(area.of(event.place) for area in areas(watched.victim).values())]
    assert len(first) > 100
    assert second == [], "the same pages once more"


def test_others_are_not_seen(watched: Watched, victim: Callable[..., Victim]) -> None:
    stranger = victim("writers")
    watched.writes.take()
    stranger.ask("round 5")
    assert {event.pid for event in watched.writes.take()} <= {watched.victim.pid}


def test_what_finds_no_room_is_counted(victim: Callable[..., Victim]) -> None:
    with ExitStack() as stack:
        watched = Watched(victim("writers"), stack, ring_bytes=4096)
        for number in range(1, 6):
            watched.victim.ask(f"round {96 * number}")
        events = watched.writes.take()
        assert len(events) == 4096 // 48
        assert watched.writes.lost() > 0
        watched.victim.ask("round 1")
        watched.victim.verify()
