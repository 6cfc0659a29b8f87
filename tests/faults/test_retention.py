"""Old entries go from under a real tbmon that follows a node and answers its clients, and nobody
waits for it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node
from support.machine import LONG, length, wait_for
from support.node_words import header
from support.programs import Program
from support.streams import OPEN, Stream

import tbmon

DAYS = 60
TASK = "0a7e0001-5b7a-4c11-9a60-0d5e8f7a1b2c"
# what pruning may add to anybody's waiting; asserted in the long form, on a machine of its own
SHARE_MS = 100
WAL_BYTES = (
    16 * tbmon.MIB
)  # of the write-ahead log when nobody reads for a moment; four times that with readers


def fill(path: Path, rows: int, words: str, days: int = DAYS) -> None:
    """A database with so many entries, evenly over so many days until now, and an old task with its
    invoice.
    """
    key = tbmon.read_key_file(path.with_name("local.key"), lambda: os.urandom(32))
    now, step = int(time.time()) - 60, days * 86_400_000 // rows
    found: dict[str, Any] = {
        "invoice_id": "i1",
        "task_id": None,
        "at": 1,
        "step_gas_price": None,
        "line_items": [],
    }
    with contextlib.closing(tbmon.Store(path, key)) as store:
        for begin in range(0, rows, 5000):
            times = [
                (number, now * 1000 - (rows - number) * step)
                for number in range(begin, min(rows, begin + 5000))
            ]
            with store.write() as db:
                keys = (
                    tbmon.key_of(at // 1000, number.to_bytes(12, "big")) for number, at in times
                )
                rest = ((number, at, 3, 1, 1, 0, None, f"{words} {number}") for number, at in times)
                store.save_entries(
                    db, [(key, *values) for key, values in zip(keys, rest, strict=True)]
                )
        with store.write() as db:
            store.save_tasks(db, [tbmon.Task(TASK, received_at=1)])
            store.save_invoice(db, tbmon.Event("invoice", TASK, found), confirmed=True)


class Look:
    """The database of a running tbmon, from outside."""

    def __init__(self, program: Program) -> None:
        self.path = program.folder / "t.db"
        self.db = program.reader()

    def first(self, sql: str, *values: object) -> Any:
        return next(iter(self.db.execute(sql, values).fetchone() or ()), None)

    def oldest_days(self) -> float:
        return (
            float(time.time() - self.first("SELECT at FROM log ORDER BY key LIMIT 1") / 1000)
            / 86_400
        )

    def read_lines(self) -> int:
        """How many entries the files have given."""
        return int(
            self.first("SELECT json_extract(value, '$.seq') FROM state WHERE name = 'files'") or 0
        )

    def used(self) -> int:
        return int(self.first("PRAGMA page_count") * self.first("PRAGMA page_size"))

    def size(self, suffix: str = "") -> int:
        return Path(f"{self.path}{suffix}").stat().st_size


@pytest.fixture
def look() -> Iterator[Callable[[Program], Look]]:
    made: list[Look] = []

    def open_one(program: Program) -> Look:
        made.append(Look(program))
        return made[-1]

    yield open_one
    for one in made:
        one.db.close()


class Clients:
    """Ask all the time until they are ended; keep how long each path's answers took, in ms."""

    def __init__(self, program: Program, *paths: str) -> None:
        self.program, self.took = program, {path: list[float]() for path in paths}
        self.over, self.failures = threading.Event(), list[object]()
        self.threads = [threading.Thread(target=self.ask, args=(path,)) for path in paths]
        for thread in self.threads:
            thread.start()

    def ask(self, path: str) -> None:
        page = path
        while not self.over.wait(0.2):
            began = time.monotonic()
            try:
                status, body = self.program.get(page, X_Task_Data_Password="open sesame")
            except (OSError, AssertionError) as error:
                self.failures.append(error)
                return
            self.took[path].append(1000 * (time.monotonic() - began))
            if status != 200:
                self.failures.append((status, body))
            following = body.get("pagination", {}).get("next")
            page = f"{path}&cursor={urllib.parse.quote(following)}" if following else path

    def end(self) -> None:
        self.over.set()
        for thread in self.threads:
            thread.join(30)
        assert not self.failures and all(self.took.values())


def test_old_entries_go_while_everybody_is_served(
    node: Node,
    program: Callable[..., Program],
    look: Callable[[Program], Look],
    tmp_path: Path,
    figure: Callable[[str, object], None],
) -> None:
    rows = length(200_000, 3_000_000)
    made = program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0")
    fill(made.folder / "t.db", rows, "an entry of usual length, with some words")
    size = (made.folder / "t.db").stat().st_size
    node.run()
    made.start()
    seen, began = look(made), time.monotonic()
    paths = "/api/status", *(f"/api/logs?limit={50 + number}" for number in range(length(2, 20)))
    with Stream(made, OPEN) as stream:

        def told(words: str) -> list[float]:
            return [event.at for event in stream.events if event.data.get("message") == words]

        def serve(goes_on: Callable[[int], bool]) -> dict[str, list[float]]:
            """How long rows and answers took meanwhile, in ms."""
            clients, took = Clients(made, *paths), list[float]()
            while goes_on(len(took)) or not (
                clients.failures or all(clients.took.values())
            ):  # may come late
                words, at = f"line {time.monotonic_ns()}", time.monotonic()
                node.say(header(words))
                took.append(1000 * (wait_for(functools.partial(told, words))[0] - at))
                stream.events.clear()
            clients.end()
            return {"log line to event": took, **clients.took}

        meanwhile = serve(lambda _: seen.oldest_days() > 30.01)
        took, size_wal = time.monotonic() - began, seen.size("-wal")
        lines = len(meanwhile["log line to event"])
        later = serve(lambda count: count < lines)
    wait_for(lambda: seen.first("PRAGMA freelist_count") == 0, 120)
    assert size_wal < 4 * WAL_BYTES
    figure(f"retention: {rows // 2} of {rows} rows gone in (s)", round(took, 1))
    figure("retention: write-ahead log meanwhile (MiB)", round(size_wal / tbmon.MIB, 1))
    for path in ("log line to event", *paths[:2]):
        here, there = (sorted(found[path]) for found in (meanwhile, later))
        shown = [
            f"{round(times[len(times) * 99 // 100])} ({round(times[-1])})"
            for times in (here, there)
        ]
        figure(
            f"retention: {path}, ms at the 99th percentile (worst) meanwhile, later",
            ", ".join(shown),
        )
        assert here[-1] < length(15_000, 5000)
        assert not LONG or here[len(here) * 99 // 100] < there[len(there) * 99 // 100] + SHARE_MS
    lines *= 2
    assert abs(seen.first("SELECT COUNT(*) FROM log") - lines - rows / 2) < rows / 100
    assert made.get("/api/tasks")[1]["tasks"][0]["execution_id"] == TASK
    assert made.get("/api/invoices/count")[1]["count"] == 1
    assert made.end() == 0
    assert (made.folder / "t.db").stat().st_size < 0.6 * size


def test_the_oldest_go_beyond_max_db_bytes(
    program: Callable[..., Program], look: Callable[[Program], Look]
) -> None:
    made = program(MAX_DB_BYTES=str(16 * tbmon.MIB), CONTAINER_NAME="none")
    fill(made.folder / "t.db", length(60_000, 600_000), "x" * 500, days=20)
    share = 16 * tbmon.MIB / (made.folder / "t.db").stat().st_size
    assert share < 0.5
    made.start()
    seen = look(made)
    wait_for(
        lambda: seen.used() <= 16 * tbmon.MIB and seen.first("PRAGMA freelist_count") == 0,
        length(60, 600),
    )
    assert (
        0.25 < seen.oldest_days() / (20 * share) < 1.25 and made.get(f"/api/tasks/{TASK}")[0] == 200
    )
    assert seen.first("PRAGMA quick_check") == "ok"
    assert made.end() == 0 and seen.size() <= 16 * tbmon.MIB


def test_the_write_ahead_log_grows_no_longer_than_a_reader_stays(
    program: Callable[..., Program],
    look: Callable[[Program], Look],
    tmp_path: Path,
    figure: Callable[[str, object], None],
) -> None:
    """A transaction that somebody holds open keeps all that is written meanwhile; then it comes
    down again.
    """
    logs = tmp_path / "logs"
    logs.mkdir()
    made = program(LOG_DIR=str(logs), API_RATE_LIMIT="0").start()
    seen, number = look(made), 0

    def write(lines: int) -> None:
        nonlocal number
        with (logs / "node.log").open("a") as file:
            file.writelines(header(f"{'w' * 4000} {number + n}") + "\n" for n in range(lines))
        number += lines
        wait_for(lambda: seen.read_lines() == number, length(60, 300))

    clients = Clients(made, *(f"/api/logs?limit={50 + n}" for n in range(length(2, 20))))
    for _ in range(length(3, 100)):
        write(500)
        assert seen.size("-wal") < 4 * WAL_BYTES
    held = look(made)
    held.db.execute("BEGIN")
    assert held.read_lines() == number
    write(length(6000, 60_000))
    grown = seen.size("-wal")
    assert held.read_lines() < number and grown > 1.2 * WAL_BYTES
    held.db.execute("COMMIT")
    clients.end()
    figure("retention: the write-ahead log with a reader that stays (MiB)", grown // tbmon.MIB)
    for _ in range(50):
        if seen.size("-wal") > WAL_BYTES:
            write(20)
    assert seen.size("-wal") <= WAL_BYTES
