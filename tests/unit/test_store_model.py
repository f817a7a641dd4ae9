"""The store against an oracle: a dict of pages for each generation, under random histories."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from store import Store
from store.layouts import RUN
from tests.unit.stores import ZERO, contents, data_runs, generation, layout, page

PAGES = st.dictionaries(st.integers(0, 40), st.integers(0, 12), max_size=24)
SPACES = st.integers(0, 1)


class Model(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "store.db"
        self.store = Store.open(self.path, create=True)
        self.oracle: dict[int, dict[int, dict[int, bytes]]] = {}
        self.parents: dict[int, int | None] = {}

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    @rule(data=st.data(), space=SPACES, changes=st.lists(PAGES, min_size=1, max_size=3), drop=st.sets(st.integers(0, 40), max_size=8))
    def snapshot(self, data: st.DataObject, space: int, changes: list[dict[int, int]], drop: set[int]) -> None:
        parent = data.draw(st.sampled_from([None, *self.oracle]))
        pages = dict(self.oracle[parent].get(space, {})) if parent is not None else {}
        with self.store.begin(parent) as writer:
            for change in changes:
                fresh = {number: page(seed) for number, seed in change.items()}
                counts = writer.add(space, *data_runs(fresh))
                assert counts.read == len(fresh) == counts.zero + counts.deduplicated + counts.stored
                assert counts.zero == sum(content == ZERO for content in fresh.values())
                pages |= fresh
            pages = {number: content for number, content in pages.items() if number not in drop}
            writer.finish(space, layout(pages))
            number = writer.publish(generation(parent), {})
        assert not self.oracle or number > max(self.parents)
        self.oracle[number] = {space: pages}
        self.parents[number] = parent

    @rule(changes=PAGES)
    def abandon(self, changes: dict[int, int]) -> None:
        with self.store.begin(None) as writer:
            writer.add(0, *data_runs({number: page(seed + 100) for number, seed in changes.items()}))

    @precondition(lambda self: self.oracle)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.oracle)))
        self.store.remove(number)
        del self.oracle[number]
        parent = self.parents[number]
        self.parents |= {child: parent for child, its in self.parents.items() if its == number}
        for child in self.oracle:
            assert self.store.generation(child).parent == self.parents[child]

    @rule()
    def gc(self) -> None:
        self.store.gc()

    @rule()
    def open_again(self) -> None:
        self.store.close()
        self.store = Store.open(self.path)

    @precondition(lambda self: self.oracle)
    @rule(data=st.data(), space=SPACES)
    def compare(self, data: st.DataObject, space: int) -> None:
        a, b = (data.draw(st.sampled_from(sorted(self.oracle))) for _ in "ab")
        old, new = self.oracle[a].get(space, {}), self.oracle[b].get(space, {})
        wanted = {n: 3 if n not in new else 1 if new[n] == ZERO else 0 for n in old.keys() | new.keys() if old.get(n) != new.get(n)}
        found = {
            n: kind for start, count, kind in RUN.iter_unpack(self.store.diff(a, space, b, space)) for n in range(start, start + count)
        }
        assert found == wanted
        known = set(old.values())
        assert self.store.shared(a, space, b, space) == sum(content != ZERO and content in known for content in new.values())

    @invariant()
    def everything_reads_back(self) -> None:
        assert [generation.number for generation in self.store.generations()] == sorted(self.oracle)
        for number, spaces in self.oracle.items():
            assert self.store.spaces(number) == sorted(spaces)
            for space, pages in spaces.items():
                assert contents(self.store, number, space) == pages

    @invariant()
    def fsck_is_clean(self) -> None:
        assert self.store.fsck(full=True) == []


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=12, stateful_step_count=14, deadline=None, suppress_health_check=list(HealthCheck))
