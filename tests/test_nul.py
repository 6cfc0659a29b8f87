"""A NUL in a log line hides nothing of it from a search, and changes nothing of who the entry is."""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from support.machine import wait_for
from support.node_words import header
from support.programs import Program, end, made_over_files, write

FIRST, SECOND = "Words before\0behind it", "More words \0\0 and what follows\0hidden"

BEGIN = int(time.time()) - 60


def messages(program: Program, search: str = "") -> list[str]:
    asked = f"&search={quote(search)}" if search else ""
    found: Any = program.private(f"/api/logs?limit=100{asked}")["logs"]
    return [one["message"] for one in found]


@pytest.mark.parametrize(
    ("search", "found"),
    [
        ("behind", [0]),
        ("before\u2400be", [0]),
        ("hidden", [1]),
        ("follows\u2400", [1]),
        ("words", [0, 1]),
        ("no such", []),
    ],
)
def test_what_stands_behind_a_nul_is_found(
    program: Callable[..., Program], search: str, found: list[int]
) -> None:
    one = made_over_files(program, API_RATE_LIMIT="0").start()
    write(one, header(FIRST, BEGIN), header(SECOND, BEGIN + 1))
    wait_for(lambda: messages(one, "hidden"))
    shown = [text.replace("\0", "\u2400") for text in (FIRST, SECOND)]
    wanted = sorted(shown[number] for number in found)
    assert sorted(messages(one, search)) == wanted
    end(one)


def test_entries_that_were_stored_with_a_nul_are_known_again(
    program: Callable[..., Program],
) -> None:
    one = made_over_files(program, API_RATE_LIMIT="0").start()
    write(one, header(FIRST, BEGIN))
    wait_for(lambda: messages(one))
    end(one)
    with contextlib.closing(sqlite3.connect(one.env["DB_PATH"])) as db:  # as earlier ones did
        db.execute("UPDATE log SET message = ?", (FIRST,))
        db.execute("DELETE FROM file")  # so that it is read again
        db.execute("DELETE FROM state WHERE name LIKE 'files%'")
        db.commit()
    one.start()
    write(one, header("The last", BEGIN + 9))
    wait_for(lambda: len(messages(one)) >= 2)
    assert len(messages(one)) == 2 and len(messages(one, "Words")) == 1
    end(one)
