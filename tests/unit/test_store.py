"""The store's promises, one by one."""

from __future__ import annotations

import os
import random
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from store import Rows, Store, StoreError
from store.layouts import RUN
from store.packs import written_early
from store.writer import insert_rows
from tests.unit.stores import PAGE, ZERO, commit, contents, data_runs, flip, generation, layout, page, written


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store.db"


@pytest.fixture
def store(path: Path):  # type: ignore[no-untyped-def]
    with Store.open(path, create=True, timeout_s=0.3) as opened:
        yield opened


def error(kind: str):  # type: ignore[no-untyped-def]
    class Expect:
        def __enter__(self) -> Expect:
            return self

        def __exit__(self, _type: object, value: object, _traceback: object) -> bool:
            assert isinstance(value, StoreError), value
            assert value.kind == kind, value
            assert "\n" not in str(value)
            return True

    return Expect()


def test_the_file_is_the_owners_alone(store: Store, path: Path) -> None:
    commit(store, None, {1: page(1)})
    assert path.stat().st_mode & 0o777 == 0o600
    assert all(item.stat().st_mode & 0o077 == 0 for item in path.parent.iterdir())


def test_the_same_content_is_stored_once(store: Store) -> None:
    pages = {number: page(number + 1) for number in range(50)}
    first = commit(store, None, pages)
    with store.begin(first) as writer:
        counts = writer.add(0, *data_runs(pages))
        elsewhere = writer.add(9, *data_runs({1000: page(3), 1001: ZERO}))
        writer.finish(0, layout(pages))
        writer.finish(9, layout([1000, 1001]))
        second = writer.publish(generation(first), {})
    assert (counts.read, counts.deduplicated, counts.stored, counts.bytes_stored) == (50, 50, 0, 0)
    assert (elsewhere.zero, elsewhere.deduplicated, elsewhere.stored) == (1, 1, 0)
    assert [row for row in store.rows("page_runs", second) if row["space"] == 0] == []
    assert store.shared(first, 0, second, 9) == 1


def test_across_sessions_and_index_merges(store: Store) -> None:
    last = None
    everything: dict[int, bytes] = {}
    for number in range(30):
        fresh = {number * 40 + i: page(number * 40 + i + 1) for i in range(40)}
        last = commit(store, last, fresh, everything)
        everything |= fresh
    with store.sql() as connection:
        segments = connection.execute("SELECT count(*), sum(entries) FROM index_segments").fetchone()
    assert segments[0] < 10
    assert segments[1] == 1200
    with store.begin(None) as writer:
        assert writer.add(0, *data_runs(everything)).deduplicated == 1200
    assert last is not None
    assert contents(store, last) == everything
    assert store.fsck(full=True) == []


def test_large_segments_have_filters_that_do_not_lie(store: Store) -> None:
    noise = random.Random(5)
    pages = {number: noise.randbytes(64) + bytes(PAGE - 64) for number in range(6000)}
    first = commit(store, None, pages)
    with store.begin(first) as writer:
        counts = writer.add(0, *data_runs(pages | {7000: page(1)}))
    assert (counts.deduplicated, counts.stored) == (6000, 1)
    assert contents(store, first) == pages


def test_a_later_add_wins_and_what_is_not_named_goes(store: Store) -> None:
    with store.begin(None) as writer:
        writer.add(0, RUN.pack(1, 2, 0) + RUN.pack(5, 3, 1), page(1) + page(2))
        writer.add(0, RUN.pack(2, 1, 0), page(3))
        writer.finish(0, RUN.pack(1, 2, 2) + RUN.pack(6, 1, 2))
        number = writer.publish(generation(), {})
    assert contents(store, number) == {1: page(1), 2: page(3), 6: ZERO}


def test_an_unknown_same_page_is_refused(store: Store) -> None:
    with store.begin(None) as writer:
        writer.add(0, *data_runs({1: page(1)}))
        with pytest.raises(StoreError, match="space 0: page 0x2 is named"):
            writer.finish(0, layout([1, 2]))


@pytest.mark.parametrize(
    ("runs", "data"), [(RUN.pack(1, 2, 0), page(1)), (RUN.pack(5, 1, 1) + RUN.pack(5, 1, 1), b""), (RUN.pack(1, 1, 2), b""), (b"x", b"")]
)
def test_runs_that_make_no_sense(store: Store, runs: bytes, data: bytes) -> None:
    with store.begin(None) as writer, pytest.raises(ValueError, match="runs"):
        writer.add(0, runs, data)


def test_branches_removal_and_space_given_back(store: Store, path: Path) -> None:
    noise = random.Random(1)
    base = {number: noise.randbytes(PAGE) for number in range(3000)}
    first = commit(store, None, base)
    left = commit(store, first, {number: noise.randbytes(PAGE) for number in range(2500)}, base)
    wanted = contents(store, left)
    right = commit(store, first, {7: page(9)}, base)
    store.tag("keep", right)
    with error("tagged"):
        store.remove(right)
    store.remove(first)
    assert store.generation(left).parent is None
    assert contents(store, left) == wanted
    store.untag("keep")
    store.remove(right)
    before = path.stat().st_size
    result = store.gc()
    assert result.frames_dropped == 2501
    assert result.packs_rewritten + result.packs_removed >= 2
    assert path.stat().st_size <= before - 2400 * PAGE
    assert contents(store, left) == wanted
    assert store.fsck(full=True) == []
    with store.begin(left) as writer:
        assert writer.add(0, *data_runs({0: base[0], 2999: base[2999]})).stored == 1


def test_generations_tags_and_rows(store: Store) -> None:
    with store.begin(None) as writer:
        writer.add(0, *data_runs({1: page(1)}))
        writer.finish(0, layout([1]))
        row = {"pid": 7, "comm": "victim", "space": 0, "threads": 1}
        number = writer.publish(generation(pages={"resident": 1, "dirty": 1}, phases={"scan": 5}, snapshot=b"{}"), {"processes": [row]})
    found = store.generation(number)
    assert (found.pages["resident"], found.phases, found.snapshot, found.tags) == (1, {"scan": 5}, b"{}", ())
    assert store.rows("processes", number)[0]["comm"] == "victim"
    store.tag("a", number)
    assert store.tags() == {"a": number}
    assert store.generations()[0].tags == ("a",)
    store.untag("a")
    with error("no-generation"):
        store.generation(99)
    with error("no-generation"):
        store.tag("a", 99)
    with error("no-generation"), store.begin(99):
        pass
    with error("no-generation"):
        store.runs(99, 0)


def test_opening_what_is_no_store(tmp_path: Path, path: Path) -> None:
    with error("missing"):
        Store.open(path)
    path.write_bytes(b"no database at all, but long enough to look at" * 100)
    with error("not-a-store"):
        Store.open(path)
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE t (x)")
    with error("not-a-store"):
        Store.open(other, create=True)
    empty = tmp_path / "empty.db"
    empty.touch()
    with error("not-a-store"):
        Store.open(empty, read_only=True)


@pytest.mark.parametrize("read_only", [True, False])
def test_a_newer_format_is_refused(path: Path, read_only: bool) -> None:
    Store.open(path, create=True).close()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version=99")
    with error("newer"):
        Store.open(path, read_only=read_only)


def test_a_reader_cannot_write(store: Store, path: Path) -> None:
    commit(store, None, {1: page(1)})
    with Store.open(path, read_only=True) as reader:
        for what in (lambda: reader.begin(None), lambda: reader.remove(1), lambda: reader.gc()):
            with error("read-only"):
                what()
        with pytest.raises(sqlite3.Error), reader.sql() as connection:
            connection.execute("DELETE FROM generations")


def test_one_writer_at_a_time(store: Store, path: Path) -> None:
    with Store.open(path, timeout_s=0.1) as other, store.begin(None):
        with error("locked"):
            other.begin(None)
        with error("locked"):
            other.gc()
    commit(store, None, {1: page(1)})


def test_reading_while_writing(store: Store, path: Path) -> None:
    pages = {number: page(number + 1) for number in range(400)}
    first = commit(store, None, pages)
    failures: list[BaseException] = []

    def read() -> None:
        try:
            with Store.open(path, read_only=True) as reader:
                for _ in range(20):
                    assert contents(reader, first) == pages
        except BaseException as found:
            failures.append(found)

    thread = threading.Thread(target=read)
    thread.start()
    last = first
    for number in range(20):
        last = commit(store, last, {number: page(1000 + number)}, pages)
    thread.join()
    assert failures == []


def test_a_damaged_frame_is_named_found_and_dropped_only_when_told(path: Path) -> None:
    with Store.open(path, create=True) as store:
        first = commit(store, None, {number: page(number) for number in range(1, 40)})
        second = commit(store, first, {3: page(101)}, range(1, 40))
        store.tag("tagged", first)
    flip(path, page(3)[:64])
    with Store.open(path) as store:  # anew: the first one's cache still had the right bytes
        with pytest.raises(StoreError, match=rf"generation {first}, space 0: page 0x3 ") as caught:
            contents(store, first)
        assert caught.value.kind == "damaged"
        assert contents(store, second)[3] == page(101)
        assert store.fsck() == []
        problems = store.fsck(full=True)
        assert {problem.invariant for problem in problems} == {10}
        assert [problem.generation for problem in problems if problem.generation] == [first]
        assert any(f"whole: {second}" in problem.message for problem in problems)
        assert len(store.generations()) == 2
        report = store.fsck(full=True, repair=True)
        assert any(problem.repaired and "was dropped" in problem.message for problem in report)
        assert [found.number for found in store.generations()] == [second]
        assert store.fsck(full=True) == []
        assert contents(store, second)[3] == page(101)
        assert commit(store, second, {3: page(3)}, range(1, 40)) > second


BREAK = {
    1: "DELETE FROM store_info WHERE key = 'uuid'",
    2: "UPDATE generations SET parent = 77 WHERE generation = 2",
    3: "DELETE FROM snapshots WHERE generation = 2",
    4: "DELETE FROM manifests WHERE manifest = (SELECT max(manifest) FROM manifests)",
    5: "UPDATE spaces SET pages = pages + 1 WHERE generation = 2",
    6: "UPDATE packs SET contents = x'0100000001000800' WHERE pack = 1",
    7: "UPDATE index_segments SET entries = entries + 1",
    8: "UPDATE packs SET bytes = bytes + 1 WHERE pack = 1",
    9: "DELETE FROM page_runs WHERE generation = 2",
    11: "DELETE FROM pack_blocks WHERE pack = 2",
    12: "DELETE FROM writers WHERE generation = 2",
}


@pytest.mark.parametrize("invariant", sorted(BREAK))
def test_fsck_sees_each_broken_invariant(store: Store, path: Path, invariant: int) -> None:
    first = commit(store, None, {number: page(number) for number in range(1, 9)})
    commit(store, first, {3: page(11)}, range(1, 9), rows=written([3], "f"))
    assert store.fsck(full=True) == []
    connection = sqlite3.connect(path)
    with connection:
        connection.execute(BREAK[invariant])
    connection.close()
    assert invariant in {problem.invariant for problem in store.fsck()}


def test_writes_without_a_writer_are_dropped_by_the_repair(store: Store, path: Path) -> None:
    first = commit(store, None, {number: page(number) for number in range(1, 9)})
    second = commit(store, first, {3: page(11)}, range(1, 9), rows=written([3], "f"))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(BREAK[12])
    assert [(problem.invariant, problem.repaired) for problem in store.fsck(repair=True)] == [(12, True)]
    assert (store.rows("page_writes", second), store.fsck(full=True)) == ([], [])
    assert contents(store, second)[3] == page(11)


def test_the_first_of_several_writes_of_a_page_stays(store: Store) -> None:
    columns = ("space", "page", "written_ns", "pid", "tid", "writer")
    writers = [{"writer": number, "ip": 1, "file": "f", "symbol": name, "offset": 0, "call": None} for number, name in enumerate("ab")]
    values = iter([(0, 1, 10, 7, 7, 1), (0, 2, 11, 7, 7, 0), (0, 1, 12, 7, 7, 0)])
    with store.begin(None) as writer:
        writer.add(0, *data_runs({1: page(1)}))
        writer.finish(0, layout([], [1]))
        number = writer.publish(generation(), {"writers": writers, "page_writes": Rows(columns, values)})
        assert writer.inserted == {"writers": 2, "page_writes": 2}
    assert [(row["page"], row["written_ns"], row["writer"]) for row in store.rows("page_writes", number)] == [(1, 10, 1), (2, 11, 0)]
    with pytest.raises(sqlite3.IntegrityError), store.begin(None) as writer:
        insert_rows(writer._connection, "writers", number, writers)


def test_writes_are_handed_down_by_a_generation_that_goes(store: Store) -> None:
    """Its child's interval takes in its own: what both wrote, the child's function wrote later."""
    kept = range(1, 9)
    first = commit(store, None, {number: page(number) for number in kept}, rows=written([1], "loader"))
    second = commit(store, first, {3: page(11), 4: page(12)}, kept, rows=written([3, 4], "f"))
    third = commit(store, second, {4: page(13), 5: page(14)}, kept, rows=written([4, 5], "g"))
    other = commit(store, second, {6: page(15)}, kept)
    store.remove(second)
    for number, wanted in ((third, {3: "f", 4: "g", 5: "g"}), (other, {3: "f", 4: "f"}), (first, {1: "loader"}), (second, {})):
        with closing(store.sql()) as connection:
            rows = connection.execute("SELECT page, function FROM page_writers WHERE generation = ? ORDER BY page", (number,)).fetchall()
        assert dict(rows) == wanted
    assert store.fsck(full=True) == []


def test_chosen_contents_do_not_share_a_hash_between_stores(tmp_path: Path) -> None:
    entries = []
    for name in ("a", "b"):
        with Store.open(tmp_path / name, create=True) as store:
            commit(store, None, {1: page(1)})
            with store.sql() as connection:
                entries.append(connection.execute("SELECT entries FROM index_buckets").fetchone()[0][:16])
    assert entries[0] != entries[1]


def test_plain_tools_read_it(store: Store, path: Path) -> None:
    first = commit(store, None, {number: page(number) for number in range(1, 9)})
    commit(store, first, {3: page(11), 4: ZERO}, range(1, 9))
    with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT start, count, content FROM page_runs WHERE generation = 2").fetchall()
        assert rows == [(3, 1, "data"), (4, 1, "zero")]
        for view in ("latest_generations", "generation_summary", "changed_pages", "mapping_changes", "pack_usage", "page_writers"):
            connection.execute(f"SELECT * FROM {view}").fetchall()


def test_disk_full_leaves_the_store_whole(tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(mount)], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs the right to mount a tmpfs")
    try:
        path = mount / "store.db"
        with Store.open(path, create=True) as store:
            first = commit(store, None, {number: page(number) for number in range(1, 50)})
            noise = random.Random(2)
            with error("full"), store.begin(first) as writer:
                for start in range(0, 20000, 2000):
                    writer.add(0, RUN.pack(start, 2000, 0), noise.randbytes(2000 * PAGE))
                writer.finish(0, RUN.pack(0, 20000, 0))
                writer.publish(generation(first), {})
            assert contents(store, first) == {number: page(number) for number in range(1, 50)}
            store.gc()
            assert store.fsck(full=True) == []
            assert commit(store, first, {1: page(77)}, range(1, 50)) > first
    finally:
        subprocess.run(["umount", str(mount)], check=True)


def test_memory_stays_bounded(tmp_path: Path) -> None:
    """512 MiB in batches of 16: the writer's part stays under 150 MB."""
    script = (
        "import resource, sys, os\n"
        "from store import Store\nfrom store.layouts import RUN\nfrom tests.unit.stores import generation\n"
        "data = bytearray(os.urandom(16 << 20))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "with Store.open(sys.argv[1], create=True) as store, store.begin(None) as writer:\n"
        "    for batch in range(32):\n"
        "        for at in range(0, len(data), 4096): data[at:at + 4] = batch.to_bytes(4, 'little')\n"
        "        writer.add(0, RUN.pack(batch * 4096, 4096, 0), data)\n"
        "    writer.finish(0, RUN.pack(0, 32 * 4096, 0))\n"
        "    writer.publish(generation(), {})\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)\n"
    )
    run = subprocess.run([sys.executable, "-c", script, str(tmp_path / "store.db")], capture_output=True, text=True, check=True)
    assert int(run.stdout) < 150


def test_a_large_transaction_is_written_early_by_a_thread_that_ends_with_it(tmp_path: Path) -> None:
    """Also where nothing can be written early: a pipe is no file."""

    def threads() -> int:
        return len(list(Path("/proc/self/task").iterdir()))

    before, (reading, writing) = threads(), os.pipe()
    with (tmp_path / "file").open("wb") as file:
        for descriptor in (file.fileno(), reading, -1):
            with written_early(descriptor):
                file.write(bytes(1 << 20))
                file.flush()
                time.sleep(0.01)
            assert threads() == before
        with pytest.raises(ZeroDivisionError), written_early(file.fileno()):
            raise ZeroDivisionError
    assert threads() == before
    assert (tmp_path / "file").stat().st_size == 3 << 20
    os.close(reading)
    os.close(writing)
