"""The page oracle: random programs of memory operations; after every few, an incremental snapshot that compares every page
of the tree, in the same freeze, with what the generation gives back. One wrong page fails.

300 snapshots in `make test`, the same ones each time; 10,000 new ones in `make soak`. They are taken in this process (an interpreter
for each would cost four times the snapshot); every BY_COMMAND-th program is snapshot by the command, each time in a new process. A
failure prints the program, which is all that is needed to run it again (`CKPT_SHRINK=1` makes hypothesis look for a shorter one).
`CKPT_SEED=N` takes other programs in `make test` too, the same ones for the same N; a soak prints its seed (CKPT_SOAK_SEED).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.harness import SOAK, Ckpt, Victim, did, progress, soak, time_is_up, times
from tests.harness.victim import HERE, build

STEPS = 6
PROGRAMS = times(50, 10_000 // STEPS + 1)
STORE_LASTS = 100  #: programs; then a new store, so that a soak does not fill the disk
BY_COMMAND = 25  #: one program in so many
SEED = soak.SEED if SOAK else int(os.environ.get("CKPT_SEED", "0"))

WILLNEED, DONTNEED, FREE, REMOVE, HUGEPAGE, NOHUGEPAGE, COLLAPSE = 3, 4, 8, 9, 14, 15, 25

slots = st.integers(0, 5)
at = st.integers(0, 40)
few = st.integers(1, 16)
seeds = st.integers(1, 9)
kinds = st.sampled_from(["anon", "private", "shared", "memfd", "sparse", "file"])
ways = st.sampled_from(["store", "thread", "read", "recv", "remote", "pwrite", "alias"])


def op(word: str, *parts: st.SearchStrategy[object]) -> st.SearchStrategy[str]:
    return st.tuples(*parts).map(lambda values: " ".join([word, *map(str, values)]))


#: Writes whose number of pages is known: what a snapshot may read after only these is bounded.
plain = st.one_of(
    op("write", slots, at, few, seeds, ways),
    op("write", slots, at, few, seeds, st.just("store")),
    op("scatter", slots, few, seeds),
    op("zero", slots, at, few),
    op("same", slots, at, few),
)
odd = st.one_of(
    op("map", slots, kinds, st.sampled_from([1, 7, 48, 56, 64])),
    op("map", slots, st.sampled_from(["anon", "shared", "memfd"]), st.just(1100)),
    op("map", slots, st.just("sparse"), st.just(1 << 20)),
    op("over", slots, at, few, kinds),
    op("unmap", slots, at, few),
    op("remap", slots, st.sampled_from([8, 40, 64, 90, 600])),
    op("move", slots),
    op("protect", slots, at, few, st.sampled_from([0, 1, 3, 3])),
    op("advise", slots, at, few, st.sampled_from([DONTNEED, DONTNEED, FREE, REMOVE, WILLNEED])),
    op("advise", slots, st.just(0), st.just(1100), st.sampled_from([HUGEPAGE, COLLAPSE, COLLAPSE, NOHUGEPAGE, DONTNEED])),
    op("write", slots, st.integers(0, 500), st.integers(100, 600), seeds, st.just("store")),
    op("punch", slots, at, few),
    op("brk", st.sampled_from([1, 8, 30, -1, -8])),
    op("stack", st.integers(1, 200)),
    op("background", st.just(12)),
    st.sampled_from(["fork", "exited", "reap", "reap", "exec", "closeall"]),
)
step = st.lists(st.one_of(plain, plain, odd), min_size=1, max_size=4)
programs = st.lists(step, min_size=STEPS, max_size=STEPS)

START = ["map 0 anon 64", "map 1 private 56", "map 2 memfd 48", "map 3 shared 48", "map 4 sparse 64", "map 5 anon 1100"]
FILL = [f"write {slot} 0 40 1 store" for slot in range(6)]
PLAIN_WORDS = {"write", "scatter", "zero", "same"}
#: After these the baseline is rightly gone (exec, its descriptor closed), or a new memory is in the tree.
FORCES = {"exec", "closeall", "fork", "exited", "reap"}


@dataclass
class Bench:
    """What outlives one program: the store, and the counts that the last test looks at."""

    folder: Path
    programs: int = 0
    snapshots: int = 0
    incremental: int = 0
    compared: int = 0
    trackers: set[str] = field(default_factory=set)
    commands: int = 0

    @property
    def store(self) -> Path:
        return self.folder / f"store-{self.programs // STORE_LASTS}.db"


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if os.geteuid() != 0:
        pytest.skip("needs root: acts on other processes")
    build()
    folder = tmp_path_factory.mktemp("oracle")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CKPT_RUNTIME_DIR", str(folder / "run"))
        yield (made := Bench(folder))
    did("snapshots with every page compared (page oracle)", made.snapshots)
    did("of them incremental", made.incremental)
    did("of them by the command, each in a new process", made.commands)
    did("pages compared by the page oracle", made.compared)


def touched(ops: Sequence[str]) -> int:
    """An upper bound of the pages that these plain operations write. Stacks and libraries of the victim come on top."""
    total = 0
    for words in map(str.split, ops):
        total += int(words[2 if words[0] == "scatter" else 3])
    return total


def snapshot(bench: Bench, pid: int, mode: str = "incremental") -> dict[str, object]:
    from ckpt.ops.snapshot import Request, snapshot

    if bench.programs % BY_COMMAND == 1:
        made = Ckpt(bench.folder, bench.store).json("snapshot", pid, "--paranoid", f"--{mode}")
        bench.commands += 1
    else:
        made = snapshot(Request(pid=pid, store=bench.store, mode=mode, paranoid=True)).json()
    assert made["paranoid"]["wrong"] == 0, made
    assert made["paranoid"]["compared"] > 0, made
    bench.snapshots += 1
    bench.incremental += made["kind"] == "incremental"
    bench.compared += made["paranoid"]["compared"]
    bench.trackers.add(made["tracker"])
    return made


def play(victim: Victim, ops: Sequence[str]) -> None:
    for one in ops:
        answer = victim.ask(one)
        assert answer.split()[0] in ("OK", "ERR", "READY"), f"{one}: {answer}"


def run(bench: Bench, program: Sequence[Sequence[str]]) -> None:
    bench.programs += 1
    files = bench.folder / f"files-{bench.programs}"
    files.mkdir()
    loose = False  # a thread that writes all the time, or a child: what is read cannot be bounded
    with Victim([str(HERE / "bin/memops"), str(files)]) as victim:
        play(victim, [*START, *FILL])
        made = snapshot(bench, victim.pid, "full")
        assert made["tracker"] == "uffd", made
        for ops in program:
            play(victim, ops)
            words = {one.split()[0] for one in ops}
            made = snapshot(bench, victim.pid)
            loose = (loose or bool(words & {"fork", "background"})) and "exec" not in words
            if not words & FORCES:
                assert made["kind"] == "incremental", made
                assert made["tracker"] == "uffd", made
            big = any(one.startswith("write") and int(one.split()[3]) > 64 for one in ops)
            if words <= PLAIN_WORDS and not loose and not big and not huge(victim.pid):
                pages = made["pages"]
                assert isinstance(pages, dict)
                assert pages["read"] <= touched(ops) + 64 + objects(victim.pid), (made, ops)
    for file in files.iterdir():
        file.unlink()


def huge(pid: int) -> bool:
    """Transparent huge pages are written, and so read, 512 pages at a time."""
    rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return any(int(line.split()[1]) > 0 for line in rollup.splitlines() if "HugePages" in line or "PmdMapped" in line)


def objects(pid: int) -> int:
    """Shared memory may be written from elsewhere, through no page table of the tree: it may be read whole."""
    total, shared = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and len(words) >= 5:
            shared = words[1][3] == "s"
        elif shared and words[0] == "Size:":
            total += int(words[1]) // 4
    return total


@pytest.mark.timeout(0 if SOAK else 600)
@seed(SEED)
@settings(
    max_examples=PROGRAMS,
    deadline=None,
    database=None,
    phases=[Phase.explicit, Phase.generate, *([Phase.shrink] if os.environ.get("CKPT_SHRINK") else [])],
    suppress_health_check=list(HealthCheck),
)
@given(program=programs)
def test_no_wrong_page(bench: Bench, program: list[list[str]]) -> None:
    if time_is_up():
        return  # the last test says how many there were
    run(bench, program)
    if bench.programs % 50 == 0:
        progress(f"page oracle: {bench.snapshots:,} snapshots, {bench.programs:,} of {PROGRAMS:,} programs, 0 wrong pages")


#: Programs that name one danger each, so that what fails is known at once.
NAMED = {
    "private file, MADV_DONTNEED": [["write 1 3 4 9 store"], ["advise 1 3 2 4"], ["write 1 3 1 8 store"], ["advise 1 0 50 4"]],
    "memfd written by pwrite": [["write 2 3 3 5 pwrite"], ["write 2 9 1 5 alias", "punch 2 3 2"], ["punch 2 0 40"]],
    "shared anonymous, MADV_REMOVE": [["write 3 1 9 4 store"], ["advise 3 2 4 9"], ["write 3 3 1 4 remote"]],
    "moved, grown, shrunk": [["write 0 1 9 4 store", "move 0"], ["remap 0 90"], ["write 0 60 20 2 store"], ["remap 0 40"], ["move 0"]],
    "mapped over": [["over 0 4 8 anon"], ["over 0 6 3 private", "write 0 6 1 3 store"], ["over 0 4 8 anon"], ["unmap 0 5 2"]],
    "protected and back": [["protect 0 3 9 0"], ["protect 0 3 9 1"], ["protect 0 3 9 3"], ["write 0 4 2 7 read"]],
    "brk up, down, up": [["brk 30"], ["brk -20"], ["brk 20"], ["brk -8"]],
    "huge pages": [
        ["advise 5 0 1100 14", "write 5 0 1100 3 store"],
        ["advise 5 0 1100 25"],
        ["scatter 5 5 3"],
        ["advise 5 700 3 4"],
        ["advise 5 0 1100 15", "protect 5 600 9 1"],
    ],
    "huge sparse": [["map 4 sparse 1048576", "scatter 4 16 3"], ["scatter 4 16 4"], ["advise 4 0 1000000 4"], ["scatter 4 3 5"]],
    "MADV_FREE": [["advise 0 0 40 8"], ["write 0 3 2 6 store"], ["advise 0 3 1 8", "zero 0 9 2"]],
    "exec": [["write 0 0 9 5 store"], ["exec"], [*START, *FILL], ["write 0 3 3 5 store"]],
    "closes its descriptors": [["closeall"], ["write 0 3 3 5 store"], ["closeall", "write 0 9 1 4 store"], ["write 0 3 3 6 store"]],
    "children": [["fork", "write 0 1 3 7 store"], ["write 0 2 2 5 store"], ["exited", "fork"], ["write 0 1 1 9 store"], ["reap"]],
    "by the kernel and by others": [["write 0 3 9 5 read"], ["write 0 3 9 6 recv"], ["write 0 3 9 7 remote"], ["write 0 3 9 8 thread"]],
    "always writing": [["background 12"], ["write 0 3 1 5 store"], ["background 12"], ["write 0 3 1 6 store"], ["same 0 3 1"]],
    "zeros and the same again": [["zero 0 3 9"], ["same 0 0 40"], ["zero 0 3 9"], ["write 0 3 3 1 store", "zero 0 3 3"]],
    "stack": [["stack 150"], ["stack 20"], ["stack 300"]],
    # The victim itself ended by these once, so that the programs around them were not judged.
    "a hole that another mapping could take": [["unmap 4 26 14", "background 12"], ["map 4 private 1"], ["write 4 0 1 3 store"]],
    "a memfd mapped beyond its end": [["remap 2 90"], ["write 2 40 16 3 alias"], ["write 2 40 16 4 store"], ["write 2 44 4 5 alias"]],
}


@pytest.mark.parametrize("name", NAMED)
def test_named_danger(bench: Bench, name: str) -> None:
    run(bench, NAMED[name])


def test_the_oracle_looked(bench: Bench) -> None:
    """Runs last: the numbers that the promise is about, and that they are not about nothing."""
    print(f"{bench.snapshots} snapshots of {bench.programs} programs, {bench.compared} pages compared, {bench.incremental} incremental")
    if bench.programs < PROGRAMS:
        pytest.skip(f"only {bench.programs} of {PROGRAMS} programs ran here")
    assert bench.snapshots >= PROGRAMS * STEPS
    assert bench.incremental > bench.snapshots // 2
    assert bench.trackers <= {"uffd"}
