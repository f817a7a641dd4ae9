"""A store of every format that was ever released opens, is whole, and goes on.

`python -m tests.unit.test_store_golden` writes the golden store of the present format; that of an older one is never written again.
"""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from store import Store
from store.database import FORMAT
from tests.unit.stores import commit, contents, page

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
        assert contents(store, commit(store, 2, {5: page(99)}, FIRST)) == FIRST | CHANGE | {5: page(99)}
        assert store.fsck(full=True) == []


def write_golden(path: Path) -> None:
    """The golden store of the present format."""
    scratch = path.with_suffix(".tmp")
    with Store.open(scratch, create=True) as store:
        commit(store, commit(store, None, FIRST), CHANGE, FIRST)
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
