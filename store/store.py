"""The store as its users see it: `Store.open`, generations, pages, tags, upkeep."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from os import PathLike, fspath
from types import TracebackType
from typing import Any

from store import fsck, tending, upkeep
from store.database import connect, open_database, raw_descriptor, return_descriptor, transaction, translated, writer_lock
from store.layouts import Layout
from store.manifests import load_layout, load_layouts
from store.reading import DamagedPageError, PageReader, Places
from store.records import GcResult, Generation, Problem, Progress, StoreError
from store.repair import rebuild
from store.wholeness import newest_whole
from store.writer import Writer

__all__ = ["Store"]

_COLUMNS = (
    "generation, parent, lineage, incarnation, kind, tracker, pid, command, created_ns, stop_ns, total_ns, "
    'resident, dirty, "read", zero, deduplicated, stored, bytes_stored'
)
_KEPT_LAYOUTS = 4
_PLAIN = ("processes", "threads", "mappings", "descriptors", "writers", "page_writes", "page_runs", "spaces", "phases")


class Store(AbstractContextManager["Store"]):
    """An open store. Not for use by two threads at once."""

    def __init__(self, connection: sqlite3.Connection, path: str, read_only: bool, timeout_s: float) -> None:
        self._connection = connection
        self.path = path
        self._read_only = read_only
        self._timeout_s = timeout_s
        info = dict(connection.execute("SELECT key, value FROM store_info"))
        self.uuid: str = info["uuid"]
        self._key: bytes = info["hash_key"]
        self.format: int = connection.execute("PRAGMA user_version").fetchone()[0]
        self._layouts: dict[tuple[int, int], Layout] = {}
        self._descriptor = raw_descriptor(path)
        self._places: Places | None = None

    @classmethod
    def open(cls, path: str | PathLike[str], *, create: bool = False, read_only: bool = False, timeout_s: float = 10.0) -> Store:
        """Opens the store, or makes it (mode 0600) where `create` allows. Raises StoreError for anything that is no good."""
        name = fspath(path)
        with translated(name):
            connection = open_database(name, create=create, read_only=read_only, timeout_s=timeout_s)
            try:
                return cls(connection, name, read_only, timeout_s)
            except BaseException:
                connection.close()
                raise

    def close(self) -> None:
        self._places = None
        self._connection.close()
        if self._descriptor >= 0:
            return_descriptor(self._descriptor)
        self._descriptor = -1

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()

    # ---- writing ----

    def begin(self, parent: int | None, *, tend: bool = True) -> Writer:
        """A writer of one generation. Raises StoreError locked, read-only, no-generation.

        Leaving it after the publication does what `tend` does; who has something to report first says False and calls `tend` then.
        """
        self._must_write()
        return Writer(self._connection, self.path, self._descriptor, self._key, parent, self._timeout_s, tend)

    def tend(self, number: int) -> bool:
        """After generation `number` was published and reported: puts together what is read together, where that has become due
        (tending.py; FORMAT.md, "Keeping together"). Returns whether it had. Another writer goes first: then it stays due."""
        self._must_write()
        try:
            with translated(self.path), writer_lock(self.path, 0.0):
                return tending.tend(self._connection, number)
        except StoreError as error:
            if error.kind != "locked":
                raise
            return False

    def remove(self, number: int) -> None:
        """Removes a generation; its children become its parent's. Space comes back with gc. Raises StoreError tagged."""
        self._must_write()
        with translated(self.path), writer_lock(self.path, self._timeout_s), transaction(self._connection):
            upkeep.remove(self._connection, number)

    def gc(self, progress: Progress | None = None) -> GcResult:
        """Drops contents that no generation names and gives their space back to the file system."""
        self._must_write()
        with translated(self.path), writer_lock(self.path, self._timeout_s):
            return upkeep.collect(self._connection, self.path, progress)

    def fsck(self, full: bool = False, repair: bool = False, progress: Progress | None = None) -> list[Problem]:
        """Checks every invariant of FORMAT.md; `full` reads and hashes every frame. `repair` drops what cannot be saved, and says so."""
        if not repair:
            with translated(self.path):
                return fsck.check(self._connection, self._key, full, progress)
        self._must_write()
        with translated(self.path), writer_lock(self.path, self._timeout_s):
            return rebuild(self._connection, self._key, full, progress)

    def tag(self, name: str, number: int) -> None:
        """Names a generation; a name that was another's moves."""
        self._must_write()
        self._must_exist(number)
        with translated(self.path), transaction(self._connection):
            self._connection.execute("INSERT OR REPLACE INTO tags VALUES (?, ?)", (name, number))

    def untag(self, name: str) -> None:
        self._must_write()
        with translated(self.path), transaction(self._connection):
            if not self._connection.execute("DELETE FROM tags WHERE tag = ?", (name,)).rowcount:
                raise StoreError("no-generation", f"{self.path}: no tag {name}")

    def _must_write(self) -> None:
        if self._read_only:
            raise StoreError("read-only", f"{self.path}: opened for reading only")

    def _must_exist(self, number: int) -> None:
        if not self._query("SELECT 1 FROM generations WHERE generation = ?", (number,)):
            raise StoreError("no-generation", f"{self.path}: no generation {number}")

    # ---- generations ----

    def _query(self, sql: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with translated(self.path):
            return self._connection.execute(sql, values).fetchall()

    def generation(self, number: int) -> Generation:
        """Raises StoreError no-generation."""
        found = self._query(f"SELECT {_COLUMNS} FROM generations WHERE generation = ?", (number,))
        if not found:
            raise StoreError("no-generation", f"{self.path}: no generation {number}")
        snapshot = self._query("SELECT snapshot FROM snapshots WHERE generation = ?", (number,))
        return self._generations(found, snapshot[0][0] if snapshot else b"")[0]

    def generations(self, lineage: str | None = None) -> list[Generation]:
        """All generations (of one lineage) by number, without their snapshots."""
        where, values = ("", ()) if lineage is None else ("WHERE lineage = ?", (lineage,))
        return self._generations(self._query(f"SELECT {_COLUMNS} FROM generations {where} ORDER BY generation", values), b"")

    def _generations(self, rows: list[Any], snapshot: bytes) -> list[Generation]:
        where, values = ("WHERE generation = ?", (rows[0][0],)) if len(rows) == 1 else ("", ())
        tags: dict[int, list[str]] = {}
        for name, number in self._query(f"SELECT tag, generation FROM tags {where} ORDER BY tag", values):
            tags.setdefault(number, []).append(name)
        phases: dict[int, dict[str, int]] = {}
        for number, phase, ns in self._query(f"SELECT generation, phase, ns FROM phases {where}", values):
            phases.setdefault(number, {})[phase] = ns
        names = ("resident", "dirty", "read", "zero", "deduplicated", "stored")
        return [
            Generation(
                number=row[0],
                parent=row[1],
                lineage=row[2],
                incarnation=row[3],
                kind=row[4],
                tracker=row[5],
                pid=row[6],
                command=row[7],
                created_ns=row[8],
                tags=tuple(tags.get(row[0], ())),
                stop_ns=row[9],
                total_ns=row[10],
                pages=dict(zip(names, row[11:17], strict=True)),
                bytes_stored=row[17],
                phases=phases.get(row[0], {}),
                snapshot=snapshot,
            )
            for row in rows
        ]

    def tags(self) -> dict[str, int]:
        return dict(self._query("SELECT tag, generation FROM tags ORDER BY tag"))

    def rows(self, table: str, generation: int) -> list[dict[str, Any]]:
        """Rows of a plain table for one generation."""
        if table not in _PLAIN:
            raise ValueError(f"no such plain table: {table}")
        with translated(self.path):
            cursor = self._connection.execute(f"SELECT * FROM {table} WHERE generation = ?", (generation,))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def sql(self) -> sqlite3.Connection:
        """A connection of its own for queries; it cannot write. The caller closes it."""
        with translated(self.path):
            return connect(self.path, writable=False, timeout_s=self._timeout_s)

    # ---- pages ----

    def spaces(self, number: int) -> list[int]:
        self._must_exist(number)
        return [row[0] for row in self._query("SELECT space FROM spaces WHERE generation = ? ORDER BY space", (number,))]

    def _layout(self, number: int, space: int) -> Layout:
        """Layouts never change and numbers are never used again, so the last few are kept; that they are still there is asked."""
        with translated(self.path):
            if (number, space) not in self._layouts:
                layout = load_layout(self._connection, number, space)
                while len(self._layouts) >= _KEPT_LAYOUTS:
                    del self._layouts[next(iter(self._layouts))]
                self._layouts[number, space] = layout
            else:
                self._must_exist(number)
            return self._layouts[number, space]

    def runs(self, number: int, space: int) -> bytes:
        """struct ckpt_run[] of DATA and ZERO: every page of the space."""
        return self._layout(number, space).runs()

    def read(self, number: int, space: int, runs: Any) -> Iterator[memoryview]:
        """Contents of all pages of these sorted runs, in order (zeros for a zero page), in pieces of at most 1 MiB.

        Raises StoreError no-generation; io for a page that the generation does not have; damaged, naming generation, space and page.
        """
        wanted = self._layout(number, space)
        try:
            wanted = wanted.select(_as_same(runs))
            with translated(self.path):
                yield from PageReader(self._current_places(), self._key, wanted).pieces()
        except DamagedPageError as error:
            self._must_exist(number)
            raise StoreError("damaged", f"{self.path}: generation {number}, space {space}: {error}") from None
        except StoreError as error:
            raise StoreError(error.kind, f"{self.path}: generation {number}, space {space}: {error}") from None

    def newest_whole(self, numbers: Iterable[int]) -> int | None:
        """The newest of these generations of which every page can be read; None: there is none."""

        def read(layout: Layout) -> None:
            for _piece in PageReader(self._current_places(), self._key, layout).pieces():
                pass

        with translated(self.path):
            return newest_whole(numbers, lambda number: load_layouts(self._connection, number), read)

    def _current_places(self) -> Places:
        """Where packs lie is kept from one read to the next while nobody writes."""
        if self._places is None or not self._places.current():
            self._places = Places(self._connection, self._descriptor, self._key)
        return self._places

    def diff(self, a: int, space_a: int, b: int, space_b: int) -> bytes:
        """struct ckpt_run[]: pages whose content differs. DATA and ZERO say what b has, ABSENT that only a has the page."""
        return self._layout(a, space_a).diff(self._layout(b, space_b)).runs()

    def shared(self, number: int, space: int, other: int, other_space: int) -> int:
        """Pages of the other space whose content is also in this one; zero pages do not count."""
        return self._layout(number, space).shared(self._layout(other, other_space))


def _as_same(runs: Any) -> Any:
    """The pages that runs name, whatever their content: what they hold is the generation's to say."""
    from store.layouts import RUN

    data = bytes(runs)
    if len(data) % RUN.size:
        raise ValueError(f"runs: {len(data)} bytes are not a whole number of runs")
    return b"".join(RUN.pack(page, count, 2) for page, count, _ in RUN.iter_unpack(data))
