"""One generation being written: pages come in batches, packs go out as orphans, one transaction publishes.

Nothing that an unpublished writer leaves can be seen: packs that no generation names, found and dropped by gc. The index of
contents is written in the publishing transaction, so no later writer can build on an orphan.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import Any

from store import index, packs
from store._pages import ffi, lib
from store.database import PAGE_SIZE, transaction, translated, writer_lock
from store.layouts import EMPTY, Layout, check, runs_buffer
from store.manifests import Prepared, Stored, decode_stored, insert_changes, prepare, spent, store_layout, stored_rows
from store.records import Counts, Generation, Rows, StoreError
from store.tending import tend

__all__ = ["Writer"]

PAGE = 4096
#: Packs are kept until there is this much of them, so that a small generation costs one transaction only.
HELD_BYTES = 12 << 20
_TABLES = ("processes", "threads", "mappings", "descriptors", "writers", "page_writes")
_PAGES = ("resident", "dirty", "read", "zero", "deduplicated", "stored")


class Writer(AbstractContextManager["Writer"]):
    """Made by `Store.begin`. Leaving the `with` without `publish` abandons everything; after it, `tend_after`, it tends what is due."""

    def __init__(
        self, connection: sqlite3.Connection, path: str, descriptor: int, key: bytes, parent: int | None, timeout_s: float, tend_after: bool
    ) -> None:
        """`descriptor`: of the file, lent."""
        self._connection = connection
        self._descriptor = descriptor
        self._path = path
        self._parent = parent
        self._stack = ExitStack()
        self._published: int | None = None
        self.inserted: dict[str, int] = {}  #: plain table -> rows, once it is published
        self._tend_after = tend_after
        with translated(path):
            self._stack.enter_context(writer_lock(path, timeout_s))
        try:
            with translated(path):
                self._start(key)
        except BaseException:
            self._stack.close()
            raise

    def _start(self, key: bytes) -> None:
        execute = self._connection.execute
        if self._parent is not None and not execute("SELECT 1 FROM generations WHERE generation = ?", (self._parent,)).fetchone():
            raise StoreError("no-generation", f"{self._path}: no generation {self._parent}")
        out = ffi.new("st_writer **")
        check(lib.st_writer_new(ffi.from_buffer("uint8_t[]", key), packs.next_number(self._connection), PAGE_SIZE, out), "writer")
        self._writer = ffi.gc(out[0], lib.st_writer_free)
        self._segments = index.attach(self._connection, self._writer)
        # Layouts are decoded, compared and encoded by a thread of their own: nobody waits for the parent's while pages come in, nor for
        # the new ones' manifests while packs are written.
        self._layouter = ThreadPoolExecutor(1)
        self._stack.callback(self._layouter.shutdown)
        rows = stored_rows(self._connection, self._parent) if self._parent is not None else []
        self._parents: Future[dict[int, Stored]] = self._layouter.submit(decode_stored, self._parent or 0, rows)
        self._added: dict[int, Layout] = {}
        self._final: dict[int, Future[Prepared]] = {}
        self._held: list[packs.Pack] = []
        self._held_bytes = 0
        self._pool: ThreadPoolExecutor | None = None
        self._pending: Future[None] | None = None
        self._orphans: list[int] = []

    # ---- pages ----

    def add(self, space: int, runs: Any, data: Any) -> Counts:
        """DATA and ZERO runs, sorted, with the bytes of the DATA pages in order. What a later call says of a page wins.

        Raises ValueError for runs that are not sorted or do not fit the data, StoreError(full) when the disk is full.
        """
        before = self._counts()
        array, count = runs_buffer(runs)
        # Given back before this returns or raises: an exception's traceback must not keep what the caller frees.
        with array, ffi.from_buffer("uint8_t[]", data) as lent:
            if len(lent) % PAGE:
                raise ValueError(f"data: {len(lent)} bytes are not a whole number of pages")
            try:
                self._feed(array, count, lent, len(lent) // PAGE)
            finally:
                lib.st_writer_feed(self._writer, ffi.NULL, 0, ffi.NULL, 0)
        pointer = lib.st_writer_take_map(self._writer)
        if pointer == ffi.NULL:
            raise MemoryError("layout")
        layout = Layout(pointer)
        self._added[space] = self._added[space].overlay(layout) if space in self._added else layout
        after = self._counts()
        return Counts(*(a - b for a, b in zip(after, before, strict=True)))

    def _feed(self, runs: Any, count: int, data: Any, pages: int) -> None:
        if lib.st_writer_feed(self._writer, runs, count, data, pages) < 0:
            raise ValueError("runs are not sorted, hold something other than DATA and ZERO, or do not fit the data")
        with translated(self._path):
            while (step := check(lib.st_writer_step(self._writer), "writer")) != lib.ST_DONE:
                if step == lib.ST_BUCKETS:
                    index.load_needs(self._connection_idle(), self._writer, self._segments)
                else:
                    self._take_pack()

    def finish(self, space: int, runs: Any) -> None:
        """The complete layout of the space: DATA, ZERO and SAME runs; what is not named is gone.

        Raises StoreError(io) where a page is named that was neither added nor in the parent: the capture was wrong.
        """
        parent, added = self._parents.result().get(space), self._added.get(space, EMPTY)
        try:
            layout = (parent.layout if parent is not None else EMPTY).select(runs, added)
        except StoreError as error:
            raise StoreError(error.kind, f"space {space}: {error}") from None
        spent_bytes = spent(self._connection_idle(), parent) if parent is not None else 0
        self._final[space] = self._layouter.submit(prepare, layout, parent, spent_bytes)

    def _counts(self) -> tuple[int, ...]:
        out = ffi.new("struct st_counts *")
        lib.st_writer_counts(self._writer, out)
        return (out.read, out.zero, out.deduplicated, out.stored, out.bytes_stored)

    # ---- packs ----

    def _take_pack(self) -> None:
        number, blob, size, lengths = ffi.new("uint32_t *"), ffi.new("uint8_t **"), ffi.new("size_t *"), ffi.new("uint16_t **")
        frames = lib.st_writer_pack(self._writer, number, ffi.cast("uint8_t **", blob), size, ffi.cast("uint16_t **", lengths))
        if not frames:
            return
        if self._held_bytes >= HELD_BYTES:
            self._write_held()
        contents, sizes = packs.CONTENTS.pack(number[0], 0, frames), bytes(ffi.buffer(lengths[0], frames * 2))
        start = blob[0]
        taken = lib.st_writer_take_pack(self._writer)
        if taken == ffi.NULL:
            raise MemoryError("pack")
        # Not copied: fresh memory costs more here than anything else that is done with these bytes.
        owner = ffi.gc(taken, lib.st_free)
        self._held.append(packs.Pack(number[0], frames, contents, sizes, ffi.buffer(start, size[0]), owner))
        self._held_bytes += size[0]

    def _connection_idle(self) -> sqlite3.Connection:
        """The connection, when the thread that writes orphans has ended what it was doing."""
        if self._pending is not None:
            pending, self._pending = self._pending, None
            pending.result()
        return self._connection

    def _write_held(self) -> None:
        """Hands what is held to the thread that writes, after the last such work has ended (and raised, had it failed)."""
        connection = self._connection_idle()
        held, self._held, self._held_bytes = self._held, [], 0
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1)
            self._stack.callback(self._pool.shutdown)
        self._orphans += [pack.number for pack in held]
        self._pending = self._pool.submit(self._write_orphans, connection, held)

    def _write_orphans(self, connection: sqlite3.Connection, held: list[packs.Pack]) -> None:
        with packs.written_early(self._descriptor), transaction(connection):
            packs.insert(connection, held)

    # ---- the end ----

    def publish(self, generation: Generation, rows: Mapping[str, Sequence[Mapping[str, Any]] | Rows]) -> int:
        """Makes the generation visible, all of it or nothing, and returns its number.

        `rows`: {table: rows} for processes, threads, mappings, descriptors, writers and page_writes, without the generation's number.
        """
        if self._published is not None:
            raise RuntimeError("published already")
        unfinished = sorted(set(self._added) - set(self._final))
        if unfinished:
            raise ValueError(f"pages were added to spaces that were not finished: {unfinished}")
        with translated(self._path):
            self._take_pack()
            connection = self._connection_idle()
            with transaction(connection):
                packs.insert(connection, self._held)
                index.add_segment(connection, self._writer)
                number = self._insert_generation(connection, generation)
                changed = {space: old.layout.diff(EMPTY) for space, old in self._parents.result().items() if space not in self._final}
                for space, ready in sorted(self._final.items()):
                    store_layout(connection, number, space, ready.result())
                    changed[space] = ready.result().changed
                insert_changes(connection, number, changed)
                self.inserted = {table: insert_rows(connection, table, number, table_rows) for table, table_rows in rows.items()}
        self._published = number
        return number

    def _insert_generation(self, connection: sqlite3.Connection, g: Generation) -> int:
        cursor = connection.execute(
            "INSERT INTO generations (parent, lineage, incarnation, kind, tracker, pid, command, created_ns, stop_ns, total_ns, "
            'resident, dirty, "read", zero, deduplicated, stored, bytes_stored) VALUES (' + ", ".join("?" * 17) + ")",
            (
                *(self._parent, g.lineage, g.incarnation, g.kind, g.tracker, g.pid, g.command, g.created_ns, g.stop_ns, g.total_ns),
                *(g.pages.get(name, 0) for name in _PAGES),
                g.bytes_stored,
            ),
        )
        number = int(cursor.lastrowid or 0)
        connection.execute("INSERT INTO snapshots VALUES (?, ?)", (number, g.snapshot))
        connection.executemany("INSERT INTO phases VALUES (?, ?, ?)", [(number, name, ns) for name, ns in g.phases.items()])
        connection.executemany("INSERT OR REPLACE INTO tags VALUES (?, ?)", [(tag, number) for tag in g.tags])
        _, _, _, stored, size = self._counts()
        connection.execute("INSERT OR IGNORE INTO lineages VALUES (?, ?, ?, 0, 0, 0)", (g.lineage, g.command, g.created_ns))
        connection.execute(
            "UPDATE lineages SET untended = untended + ?, untended_bytes = untended_bytes + ? WHERE lineage = ?", (stored, size, g.lineage)
        )
        return number

    def close(self) -> None:
        """Abandons what was not published: its packs go, as far as the disk allows now, else with the next gc."""
        try:
            if self._published is None and (self._orphans or self._pending is not None):
                self._drop_orphans()
            if self._published is not None and self._tend_after:
                tend(self._connection, self._published)
                self._tend_after = False
        finally:
            self._stack.close()

    def _drop_orphans(self) -> None:
        try:
            connection = self._connection_idle()
            with transaction(connection):
                packs.delete(connection, self._orphans)
        except sqlite3.Error:
            pass  # the disk is full or failing: they stay orphans, which is safe

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None) -> None:
        self.close()


def insert_rows(connection: sqlite3.Connection, table: str, number: int, rows: Sequence[Mapping[str, Any]] | Rows) -> int:
    """Returns how many there are then."""
    if table not in _TABLES:
        raise ValueError(f"no such plain table: {table}")
    if not isinstance(rows, Rows):
        if not rows:
            return 0
        names = tuple(dict.fromkeys(name for row in rows for name in row))
        rows = Rows(names, [tuple(row.get(name) for name in names) for row in rows])
    known = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    if unknown := [name for name in rows.columns if name not in known]:
        raise ValueError(f"table {table} has no column {', '.join(unknown)}")
    columns = ", ".join(f'"{name}"' for name in ["generation", *rows.columns])
    # Only where one may stand there twice: in every other table that would be a fault.
    verb = "INSERT OR IGNORE" if table == "page_writes" else "INSERT"
    return connection.executemany(
        f"{verb} INTO {table} ({columns}) VALUES ({', '.join('?' * (len(rows.columns) + 1))})",
        ((number, *row) for row in rows.values),
    ).rowcount
