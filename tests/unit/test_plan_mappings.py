"""The layout plan against a small model of the kernel: running its calls on `now` must give `wanted`, page by page."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from ckpt.model import PAGE, Arg, Backing, Mapping, OpenFile, RemoteCall, Task
from ckpt.plan import batch as b
from ckpt.plan.attributes import plan_attributes
from ckpt.plan.mappings import FileIdentity, World, paths_to_check, plan_layout

BASE = 0x5000_0000
FILES = {"/lib/one": (11, 101), "/lib/two": (11, 102)}
WORLD: World = {path: FileIdentity(dev, ino, 1 << 20, 5) for path, (dev, ino) in FILES.items()}
RW, RO, NONE = 3, 1, 0


def anon(first: int, pages: int, prot: int = RW, name: str = "", flags: int = 0x22) -> Mapping:
    start = BASE + first * PAGE
    return Mapping(start, start + pages * PAGE, prot, flags, Backing("anonymous"), name)


def of_file(first: int, pages: int, path: str = "/lib/one", prot: int = RO, flags: int = 2, offset: int = 0) -> Mapping:
    start = BASE + first * PAGE
    dev, ino = FILES.get(path, (99, 99))
    return Mapping(start, start + pages * PAGE, prot, flags, Backing("file", path, dev, ino, offset, 1 << 20, 5))


def task(*mappings: Mapping, brk: int | None = None) -> Task:
    attributes = {"memory": {"brk": brk}} if brk is not None else {}
    return Task(7, 1, 1, 7, 7, "prog", 0, (), tuple(sorted(mappings, key=lambda m: m.start)), (), (), attributes)


class Kernel:
    """Pages with what stands behind them. Knows mmap, munmap, mprotect, brk, open, close; refuses what Linux refuses."""

    def __init__(self, start: Task, brk: int) -> None:
        self.pages: dict[int, tuple[object, ...]] = {}
        self.brk = brk
        for mapping in start.mappings:
            self.put(mapping)
        self.fds: dict[int, str] = {}
        self.touched: set[int] = set()

    def put(self, mapping: Mapping) -> None:
        for address in range(mapping.start, mapping.end, PAGE):
            self.pages[address] = self.page(mapping, address)

    @staticmethod
    def page(mapping: Mapping, address: int) -> tuple[object, ...]:
        offset = mapping.backing.offset + address - mapping.start if mapping.backing.kind != "anonymous" else 0
        return mapping.backing.path, offset, mapping.prot, mapping.flags & 0x103

    def run(self, calls: list[RemoteCall]) -> None:
        results: list[int] = []
        for item in calls:
            args = [results[a.value] if a.form is Arg.RESULT else a.data if a.form is Arg.BUFFER else a.value for a in item.args]
            got = self.call(item.nr, args)
            assert item.expect is None or got >= item.expect, item.note
            results.append(got)
        assert not self.fds, "every descriptor that was opened is closed"

    def call(self, nr: int, args: list[object]) -> int:
        if nr == b.NR_OPEN:
            fd = 900 + len(self.fds)
            self.fds[fd] = bytes(args[0]).rstrip(b"\0").decode()  # type: ignore[arg-type]
            return fd
        start, length = int(args[0]), int(args[1]) if len(args) > 1 else 0  # type: ignore[call-overload]
        if nr == b.NR_CLOSE:
            del self.fds[start]
        elif nr == b.NR_BRK:
            return self.set_brk(start)
        elif nr == b.NR_MUNMAP:
            for address in range(start, start + length, PAGE):
                self.pages.pop(address, None)
                self.touched.add(address)
        elif nr == b.NR_MPROTECT:
            for address in range(start, start + length, PAGE):
                path, offset, _, flags = self.pages[address]
                self.pages[address] = path, offset, args[2], flags
                self.touched.add(address)
        elif nr == b.NR_MMAP:
            _, _, prot, flags, fd, offset = args
            assert int(flags) & b.MAP_FIXED  # type: ignore[call-overload]
            path = "" if int(flags) & b.MAP_ANONYMOUS else self.fds[int(fd)]  # type: ignore[call-overload]
            for address in range(start, start + length, PAGE):
                where = int(offset) + address - start if path else 0  # type: ignore[call-overload]
                self.pages[address] = path, where, prot, int(flags) & 0x103  # type: ignore[call-overload]
                self.touched.add(address)
            return start
        return 0

    def set_brk(self, wanted: int) -> int:
        old, new = b.page_up(self.brk), b.page_up(wanted)
        if new > old:
            if any(address in self.pages for address in range(old, new, PAGE)):
                return self.brk
            for address in range(old, new, PAGE):
                self.pages[address] = "", 0, RW, 2
        for address in range(new, old, PAGE):
            self.pages.pop(address, None)
        self.touched.update(range(min(old, new), max(old, new), PAGE))
        self.brk = wanted
        return wanted


def apply(now: Task, wanted: Task, now_brk: int = 0) -> Kernel:
    plan = plan_layout(now, wanted, (), WORLD)
    assert not plan.refusals
    kernel = Kernel(now, now_brk)
    kernel.run(plan.batch.calls)
    assert kernel.pages == Kernel(wanted, 0).pages
    return kernel


def test_equal_layouts_need_nothing() -> None:
    layout = task(anon(0, 4), of_file(10, 2))
    assert plan_layout(layout, layout, (), {}).batch.calls == []


def test_only_what_differs_is_touched() -> None:
    now = task(anon(0, 8, RW), anon(20, 4))
    wanted = task(anon(0, 3), anon(3, 2, RO), anon(5, 3), anon(20, 4), of_file(30, 2))
    kernel = apply(now, wanted)
    assert kernel.touched == {BASE + page * PAGE for page in (3, 4, 30, 31)}


def test_a_file_in_the_place_of_anonymous_memory_and_back() -> None:
    apply(task(anon(0, 8)), task(anon(0, 2), of_file(2, 3, offset=7 * PAGE), anon(5, 3)))
    apply(task(anon(0, 2), of_file(2, 3), anon(5, 3)), task(anon(0, 8)))


def test_one_mapping_is_never_put_together_of_several() -> None:
    """mremap over the border of two mappings fails: what was one is mapped as one, at the price of its pages."""
    for now in (task(anon(0, 3)), task(anon(0, 3), anon(3, 5)), task(anon(0, 3), anon(3, 5, RO))):
        (only,) = plan_layout(now, task(anon(0, 8)), (), WORLD).batch.calls
        assert (only.nr, only.args[0].value, only.args[1].value) == (b.NR_MMAP, BASE, 8 * PAGE)
    assert plan_layout(task(anon(0, 9)), task(anon(0, 8)), (), WORLD).batch.calls[0].nr == b.NR_MUNMAP


def test_same_file_at_another_offset_is_mapped_again() -> None:
    apply(task(of_file(0, 4, offset=0)), task(of_file(0, 4, offset=PAGE)))


def heap(pages: int) -> Mapping:
    return anon(100, pages, name="[heap]")


def test_heap_follows_brk_down_and_up() -> None:
    small, large = BASE + 101 * PAGE + 8, BASE + 109 * PAGE + 16
    apply(task(heap(10), brk=large), task(heap(2), brk=small), large)
    apply(task(heap(2), brk=small), task(heap(10), brk=large), small)


def test_a_mapping_in_the_way_of_the_heap_goes_first() -> None:
    small, large = BASE + 102 * PAGE, BASE + 110 * PAGE
    apply(task(heap(2), anon(105, 2, RO), brk=small), task(heap(10), brk=large), small)
    apply(task(heap(2), anon(105, 9), brk=small), task(heap(10), anon(112, 2), brk=large), small)


def test_brk_inside_one_page_moves_alone() -> None:
    now, wanted = BASE + 101 * PAGE + 8, BASE + 101 * PAGE + 4000
    calls = plan_layout(task(heap(2), brk=now), task(heap(2), brk=wanted), (), {}).batch.calls
    assert [(item.nr, item.args[0].value) for item in calls] == [(b.NR_BRK, wanted)]


def test_a_stack_that_has_grown_is_cut_back_and_the_rest_untouched() -> None:
    kernel = apply(task(anon(0, 10, name="[stack]", flags=0x122)), task(anon(6, 4, name="[stack]", flags=0x122)))
    assert kernel.touched == {BASE + page * PAGE for page in range(6)}


def test_the_kernels_own_mappings_are_never_touched() -> None:
    vdso = Mapping(BASE, BASE + 2 * PAGE, 5, 2, Backing("kernel"), "[vdso]")
    uprobes = Mapping(BASE + 9 * PAGE, BASE + 10 * PAGE, 5, 2, Backing("kernel"), "[uprobes]")
    plan = plan_layout(task(vdso, uprobes, anon(4, 1)), task(vdso, anon(4, 1)), (), {})
    assert plan.batch.calls == []
    assert not plan.refusals
    moved = replace(vdso, start=vdso.start + PAGE, end=vdso.end + PAGE)
    (line,) = plan_layout(task(vdso), task(moved), (), {}).refusals
    assert "vdso" in line
    assert "task 7 (prog)" in line


def test_a_file_that_is_gone_or_another_or_changed_is_refused_by_name() -> None:
    wanted = task(of_file(0, 1))
    assert paths_to_check(task(), wanted) == {"/lib/one"}
    (gone,) = plan_layout(task(), wanted, (), {}).refusals
    assert "/lib/one" in gone
    assert "gone" in gone
    (changed,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 101, 1 << 20, 6)}).refusals
    assert "changed" in changed
    (other,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 555, 1 << 20, 5)}).refusals
    assert "another" in other


def test_a_deleted_file_is_mapped_from_a_descriptor_or_from_a_mapping_that_still_is() -> None:
    backing = Backing("file", "/tmp/x", 5, 6, 0, deleted=True)
    mapping = Mapping(BASE, BASE + PAGE, RO, 2, backing)
    wanted = task(mapping)
    assert plan_layout(task(), wanted, (), {}).refusals
    from ckpt.model import Descriptor

    now = replace(task(), descriptors=(Descriptor(4, True, 1),))
    (call,) = plan_layout(now, wanted, (OpenFile(1, "regular", 2, 0, {"dev": 5, "ino": 6}),), {}).batch.calls
    assert call.args[4].value == 4
    still = task(replace(mapping, start=BASE + 8 * PAGE, end=BASE + 9 * PAGE))
    calls = plan_layout(still, wanted, (), {}).batch.calls
    assert [item.nr for item in calls] == [b.NR_OPEN, b.NR_MUNMAP, b.NR_MMAP, b.NR_CLOSE]
    assert b"map_files" in calls[0].args[0].data


def test_an_object_that_is_not_made_anew_is_refused_by_name() -> None:
    memfd = Mapping(BASE, BASE + PAGE, RW, 1, Backing("object", "/memfd:q", 1, 9, 0, deleted=True))
    (line,) = plan_layout(task(), task(memfd), (), {}).refusals
    assert "/memfd:q" in line


def test_what_has_changed_of_a_private_file_is_said() -> None:
    wanted = task(of_file(0, 2))
    (shorter,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 101, 4096, 5)}).refusals
    assert "4096 bytes, it had 1048576" in shorter
    (later,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 101, 1 << 20, 10**18)}).refusals
    assert "written 2001-09-" in later
    (other,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 555, 1 << 20, 5)}).refusals
    assert "inode 555, it was 101" in other
    (gone,) = plan_layout(task(), wanted, (), {}).refusals
    assert "is gone" in gone


def test_a_shared_file_is_mapped_as_it_is_now() -> None:
    wanted = task(of_file(0, 2, prot=RW, flags=1))
    plan = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 101, 8192, 10**18)})
    assert not plan.refusals
    (refusal,) = plan_layout(task(), wanted, (), {"/lib/one": FileIdentity(11, 101, 4096, 10**18)}).refusals
    assert "shorter (4096 bytes, it had 1048576)" in refusal
    assert any("not rolled back" in line for line in plan.warnings)


@st.composite
def layouts(draw: st.DrawFn) -> Task:
    mappings, page = [], 0
    for _ in range(draw(st.integers(0, 8))):
        page += draw(st.integers(0, 3))
        pages = draw(st.integers(1, 6))
        prot = draw(st.sampled_from((NONE, RO, RW)))
        if draw(st.booleans()):
            mappings.append(anon(page, pages, prot))
        else:
            path, offset = draw(st.sampled_from(sorted(FILES))), draw(st.sampled_from((0, PAGE, page * PAGE)))
            mappings.append(of_file(page, pages, path, prot, offset=offset))
        page += pages
    size = draw(st.integers(1, 6))
    return task(*mappings, heap(size), brk=BASE + (100 + size) * PAGE - draw(st.integers(0, 4095)))


@given(layouts(), layouts())
@settings(max_examples=300, deadline=None)
def test_any_layout_becomes_any_other(now: Task, wanted: Task) -> None:
    apply(now, wanted, now.attributes["memory"]["brk"])


def test_locked_memory_that_differs_is_named() -> None:
    def locked(kib: int) -> Task:
        return replace(task(), attributes={"memory": {"locked_kib": kib}} if kib else {})

    assert plan_attributes(locked(64), locked(64), ()).warnings == []
    (line,) = plan_attributes(locked(0), locked(64), ()).warnings
    assert "locked memory: not rolled back (0 KiB now, 64 KiB then)" in line
