"""The schema of a database, comparable."""

from __future__ import annotations

import contextlib
import re
import sqlite3
from pathlib import Path
from typing import Any


def ask(path: Path, sql: str) -> list[tuple[Any, ...]]:
    """The rows of a query, as sqlite3 itself gives them."""
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def schema(path: Path) -> list[tuple[Any, ...]]:
    """All that the database is made of; how its statements were laid out and explained is no part of it."""
    made = ask(path, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name")
    return [(*names, sql and plain(sql)) for *names, sql in made]


def plain(sql: str) -> str:
    """A statement without its comments, line breaks and blanks."""
    return re.sub(r"--[^\n]*|\s", "", sql)
