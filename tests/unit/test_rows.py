"""Plain rows: what SQL sees of a snapshot."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from ckpt.history.rows import mapping_name, permissions, plain_rows, write_rows, writer_rows
from ckpt.history.runs import PageSet, pack
from ckpt.model import PAGE, Backing, Evidence, Mapping, PageWrite, SharedObject, Writer
from tests.unit import samples


def sets(**spaces: list[tuple[int, int, int]]) -> defaultdict[int, PageSet]:
    made: defaultdict[int, PageSet] = defaultdict(PageSet)
    for name, runs in spaces.items():
        made[int(name[1:])].add(pack(runs))
    return made


def test_pages_are_counted_by_mapping() -> None:
    heap, stack = samples.HEAP.start // PAGE, samples.STACK.start // PAGE
    layout = sets(_0=[(heap, 8, 2), (stack + 2, 4, 0)])
    dirty = sets(_0=[(heap + 3, 1, 0)])
    rows = plain_rows(samples.snapshot(), layout, dirty)
    found = {row["name"]: (row["pages"], row["dirty"], row["permissions"]) for row in rows["mappings"]}
    assert found == {"/usr/bin/worker": (0, 0, "r-xp"), "[heap]": (8, 1, "rw-p"), "[stack]": (4, 0, "rw-p")}
    assert [(row["pages"], row["dirty"], row["threads"]) for row in rows["processes"]] == [(12, 1, 2)]


def test_a_shared_object_is_counted_by_offset() -> None:
    window = Mapping(0x7000_0000, 0x7000_2000, 3, 1, Backing("object", "/memfd:x", 5, 99, offset=0x1000))
    snapshot = samples.snapshot(replace(samples.task(), mappings=(window,)))
    snapshot = replace(snapshot, objects=(SharedObject(1_000_000, 5, 99, 4 * PAGE),))
    rows = plain_rows(snapshot, sets(_0=[], _1000000=[(0, 4, 0)]), sets(_1000000=[(2, 1, 0)]))
    (row,) = rows["mappings"]
    assert (row["space"], row["first_page"], row["pages"], row["dirty"], row["permissions"]) == (1_000_000, 1, 2, 1, "rw-s")


def test_who_wrote_stands_by_space_and_page() -> None:
    """A heap page that two processes of one memory wrote. A shared object by its offset. What is not mapped any more: not."""
    window = Mapping(0x7000_0000, 0x7000_2000, 3, 1, Backing("object", "/memfd:x", 5, 99, offset=0x1000))
    one, two = samples.task(10, mm=0), samples.task(20, mm=0)
    snapshot = samples.snapshot(replace(one, mappings=(window, *one.mappings)), two)
    snapshot = replace(snapshot, objects=(SharedObject(1_000_000, 5, 99, 4 * PAGE),))
    writers = (
        Writer(0x401000, "/bin/a", "late", 4, None),
        Writer(0x402000, "/bin/a", None, 0x2000, "read"),
        Writer(0x403000, "/bin/a", "gone", 0, None),
    )
    heap = samples.HEAP.start
    writes = (
        PageWrite(20, heap + PAGE, 500, 21, 1),
        PageWrite(10, heap + PAGE, 900, 11, 0),
        PageWrite(10, window.start + PAGE, 700, 12, 0),
        PageWrite(10, 0x10_0000, 100, 11, 2),
        PageWrite(99, heap, 100, 99, 2),
    )
    assert list(write_rows(snapshot, Evidence(writers, writes))) == [
        (0, heap // PAGE + 1, 500, 20, 21, 1),
        (0, heap // PAGE + 1, 900, 10, 11, 0),
        (1_000_000, 2, 700, 10, 12, 0),
    ]
    assert [(row["writer"], row["symbol"], row["offset"], row["call"]) for row in writer_rows(Evidence(writers))] == [
        (0, "late", 4, None),
        (1, None, 0x2000, "read"),
        (2, "gone", 0, None),
    ]


def test_every_value_fits_a_column_of_sqlite() -> None:
    vsyscall = Mapping(0xFFFF_FFFF_FF60_0000, 0xFFFF_FFFF_FF60_1000, 4, 2, Backing("kernel"), "[vsyscall]")
    rows = plain_rows(samples.snapshot(replace(samples.task(), mappings=(vsyscall,))), sets(), sets())
    values = [value for table in rows.values() for row in table for value in row.values()]
    assert all(isinstance(value, int | str) for value in values)
    assert all(-(2**63) <= value < 2**63 for value in values if isinstance(value, int))


def test_shared_descriptors_have_one_file() -> None:
    rows = plain_rows(samples.snapshot(), sets(), sets())["descriptors"]
    assert [(row["fd"], row["file"], row["kind"], row["summary"]) for row in rows] == [
        (0, 1, "chardev", "/dev/null"),
        (3, 2, "eventfd", "count=7"),
        (4, 2, "eventfd", "count=7"),
    ]


def test_words() -> None:
    assert permissions(samples.TEXT) == "r-xp"
    assert mapping_name(samples.TEXT) == "/usr/bin/worker"
    assert mapping_name(replace(samples.HEAP, name="")) == "[anonymous]"
