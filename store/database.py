"""The file: opening it, its identity and format, its locks, and SQLite's errors in the store's words.

Journal: a rollback journal, because pages that are appended (almost all that a snapshot writes) are then written once; WAL
writes them twice (tests/bench/bench_store.py). It is kept between transactions, its header cleared: making and removing a file
is a third of a small commit. synchronous=FULL: what was published survives a power cut. Pack bytes are read past SQLite
(store/src/reader.c), so a long read holds no lock.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

from store.records import StoreError

__all__ = [
    "FORMAT",
    "PAGE_SIZE",
    "connect",
    "open_database",
    "raw_descriptor",
    "return_descriptor",
    "transaction",
    "translated",
    "writer_lock",
]

APPLICATION_ID = 0x636B7074  # "ckpt"
FORMAT = 2
CACHE_KIB = 16384
PAGE_SIZE = 32768
JOURNAL_BYTES = 4 << 20  #: what may stay of the journal between transactions
MIGRATIONS = Path(__file__).resolve().parent / "migrations"

_KINDS = {
    sqlite3.SQLITE_BUSY: "locked",
    sqlite3.SQLITE_LOCKED: "locked",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "not-a-store",
    sqlite3.SQLITE_READONLY: "read-only",
    sqlite3.SQLITE_PERM: "permission",
    sqlite3.SQLITE_AUTH: "permission",
}
_TEXTS = {
    "locked": "another process holds the store",
    "full": "no space left for the store",
    "damaged": "the store's database is damaged",
    "not-a-store": "not a ckpt store",
    "read-only": "the store cannot be written",
}


@contextmanager
def translated(path: str) -> Iterator[None]:
    """What SQLite and the system raise inside leaves as a StoreError that names the file."""
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", None)
        kind = _KINDS.get(code & 0xFF, "io") if code is not None else "io"
        raise StoreError(
            kind, f"{path}: {_TEXTS.get(kind, str(error))}" + (f" ({error})" if kind in ("damaged", "read-only") else "")
        ) from error
    except PermissionError as error:
        raise StoreError("permission", f"{path}: {error.strerror}") from error
    except OSError as error:
        raise StoreError("full" if error.errno == 28 else "io", f"{path}: {error.strerror}") from error


def connect(path: str, *, writable: bool, timeout_s: float) -> sqlite3.Connection:
    """A connection for this store. A reader that may write the file still opens it so: a journal that a killed writer left
    must be rolled back before anybody can read."""
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    connection = sqlite3.connect(
        f"file:{quote(path)}?mode={mode}", uri=True, isolation_level=None, timeout=timeout_s, check_same_thread=False, cached_statements=64
    )
    if writable and mode == "ro":
        connection.close()
        raise StoreError("read-only", f"{path}: the store cannot be written")
    connection.execute("PRAGMA synchronous=FULL" if writable else "PRAGMA query_only=ON")
    if writable:
        connection.execute("PRAGMA secure_delete=FAST")
        connection.execute("PRAGMA journal_mode=PERSIST").fetchone()
        connection.execute(f"PRAGMA journal_size_limit={JOURNAL_BYTES}").fetchone()
    return connection


def bound_cache(connection: sqlite3.Connection) -> None:
    """SQLite turns the size into a number of pages when it is told, and keeps that number when it learns the page size: so it is
    told after the file's head was read. Told before (pages of 4 KiB assumed), the cache grew to eight times as much."""
    connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    connection.execute(f"PRAGMA cache_size=-{CACHE_KIB}")


def open_database(path: str, *, create: bool, read_only: bool, timeout_s: float) -> sqlite3.Connection:
    """An open, checked and (where that is allowed) migrated store."""
    if not Path(path).exists():
        if not create:
            raise StoreError("missing", f"{path}: no such store")
        os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
    elif not Path(path).is_file():
        raise StoreError("not-a-store", f"{path}: not a regular file")
    elif not os.access(path, os.R_OK):
        raise StoreError("permission", f"{path}: not yours to read")
    connection = connect(path, writable=not read_only, timeout_s=timeout_s)
    try:
        found = _format(connection, path, create and not read_only)
        if found < FORMAT:
            _bring_up(connection, path, found, read_only, timeout_s)
        bound_cache(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _bring_up(connection: sqlite3.Connection, path: str, found: int, read_only: bool, timeout_s: float) -> None:
    """Migrates an older store. One who only reads does so too where the file may be written: the first `ckpt log` after an update."""
    if not read_only:
        with writer_lock(path, timeout_s):
            _migrate(connection, path)
    elif found == 0:
        raise StoreError("not-a-store", f"{path}: an empty file")
    elif not os.access(path, os.W_OK):
        raise StoreError("read-only", f"{path}: format {found} must be migrated: open it for writing once")
    else:
        open_database(path, create=False, read_only=False, timeout_s=timeout_s).close()


def _format(connection: sqlite3.Connection, path: str, may_be_empty: bool) -> int:
    application = connection.execute("PRAGMA application_id").fetchone()[0]
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if application == 0 and version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
        if may_be_empty:
            return 0
        raise StoreError("not-a-store", f"{path}: an empty file, not a ckpt store")
    if application != APPLICATION_ID:
        raise StoreError("not-a-store", f"{path}: an SQLite file, but not a ckpt store")
    if version > FORMAT:
        raise StoreError("newer", f"{path}: format {version}, and this ckpt knows formats up to {FORMAT}")
    return version


def _migrate(connection: sqlite3.Connection, path: str) -> None:
    """Numbered migrations, each in a transaction of its own; the file of a number never changes."""
    found = _format(connection, path, True)
    if found == 0:
        connection.execute(f"PRAGMA page_size={PAGE_SIZE}")
        connection.execute("PRAGMA auto_vacuum=INCREMENTAL")
    for number in range(found + 1, FORMAT + 1):
        script = (MIGRATIONS / f"{number:04}.sql").read_text()
        with transaction(connection):
            for statement in script.split(";\n"):
                if statement.strip():
                    connection.execute(statement)
            if number == 1:
                info = {"uuid": str(uuid.uuid4()), "hash_key": secrets.token_bytes(32), "created_ns": time.time_ns()}
                connection.executemany("INSERT INTO store_info VALUES (?, ?)", info.items())
                connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={number}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of it or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


@contextmanager
def writer_lock(path: str, timeout_s: float) -> Iterator[None]:
    """The one writer: flock on PATH-lock, given back by the kernel when its holder dies."""
    descriptor = os.open(f"{path}-lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        end = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise StoreError("locked", f"{path}: another ckpt is writing to the store (waited {timeout_s:g} s)") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


# Closing any descriptor of a file drops every POSIX lock that the process holds on it, SQLite's too. So the descriptor for raw
# reads is one per file and process, shared, and closed only when the last Store of the file has closed its connection.
_raw: dict[tuple[int, int], list[int]] = {}


def raw_descriptor(path: str) -> int:
    """A descriptor for reading pack bytes past SQLite."""
    status = Path(path).stat()
    entry = _raw.setdefault((status.st_dev, status.st_ino), [-1, 0])
    if entry[1] == 0:
        entry[0] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    entry[1] += 1
    return entry[0]


def return_descriptor(descriptor: int) -> None:
    for key, entry in list(_raw.items()):
        if entry[0] == descriptor:
            entry[1] -= 1
            if entry[1] == 0:
                del _raw[key]
                os.close(descriptor)
