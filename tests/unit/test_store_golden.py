"""A store of every format that was ever released opens, is whole, and goes on.

`python -m tests.unit.test_store_golden` writes the golden store of the present format; that of an older one is never written again.
"""

from __future__ import annotations

import gzip
import os
import sys
from pathlib import Path

import pytest

from store import Store, StoreError
from store.database import FORMAT
from tests.unit.stores import commit, contents, page, written

DATA = Path(__file__).resolve().parent / "data"
FIRST = {number: page(number % 7) for number in range(100)}
CHANGE = {number: page(number + 50) for number in range(0, 100, 9)}


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_golden(tmp_path: Path, version: int) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(gzip.decompress((DATA / f"store-v{version}.db.gz").read_bytes()))
    with Store.open(path) as store:
        assert store.format == FORMAT
        assert store.tags() == {"golden": 1}
        assert contents(store, 1) == FIRST
        assert contents(store, 2) == FIRST | CHANGE
        assert store.fsck(full=True) == []
        assert [row["page"] for row in store.rows("page_writes", 2)] == ([] if version < 2 else sorted(CHANGE))
        third = commit(store, 2, {5: page(99)}, FIRST, rows=written([5], "late"))
        assert contents(store, third) == FIRST | CHANGE | {5: page(99)}
        assert [row["symbol"] for row in store.rows("writers", third)] == ["late"]
        assert store.fsck(full=True) == []


def test_a_reader_migrates_what_it_may_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "store.db"
    old = gzip.decompress((DATA / "store-v1.db.gz").read_bytes())
    path.write_bytes(old)
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with pytest.raises(StoreError, match="format 1 must be migrated"):
        Store.open(path, read_only=True)
    assert path.read_bytes() == old
    monkeypatch.undo()
    with Store.open(path, read_only=True) as store:
        assert (store.format, contents(store, 2)) == (FORMAT, FIRST | CHANGE)
        with pytest.raises(StoreError):
            store.tag("x", 1)


def write_golden(path: Path) -> None:
    """The golden store of the present format."""
    scratch = path.with_suffix(".tmp")
    with Store.open(scratch, create=True) as store:
        commit(store, commit(store, None, FIRST), CHANGE, FIRST, rows=written(sorted(CHANGE), "scribble"))
        store.tag("golden", 1)
    path.write_bytes(gzip.compress(scratch.read_bytes(), mtime=0))
    scratch.unlink()
    for beside in ("lock", "journal"):
        Path(f"{scratch}-{beside}").unlink()


if __name__ == "__main__":
    target = DATA / f"store-v{FORMAT}.db.gz"
    if target.exists():
        sys.exit(f"{target.name} is there: a golden store is written once")
    write_golden(target)
