"""Inputs and outputs of tasks have a retention and a share of the file of their own."""

from __future__ import annotations

import contextlib
import logging
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.programs import Program, end, over_files

import tbmon
from tbmon import DAY_MS, MIB, Store, Task

KEY = b"k" * 32
NOW = int(time.time() * 1000)
MOST = 16 * MIB  # of the file
COUNTED = "SELECT IFNULL(SUM(bytes), 0) FROM task_data_size"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path / "t.db", KEY)) as made:
        yield made


def name_of(number: int) -> str:
    return f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c"


def save(store: Store, number: int, at: int | None, size: int) -> None:
    with store.write() as db:
        store.save_tasks(db, [Task(name_of(number), received_at=at)])
        half = size // 2
        texts = {"input": "i" * half, "output": "ö" * (half // 2)}
        store.save_task_data(db, {name_of(number): texts})


def save_log(store: Store, count: int, size: int) -> None:
    """Entries of the last hour."""
    begin = NOW // 1000 - 3600
    rows = (
        (tbmon.key_of(begin + n % 3600, n.to_bytes(12, "big")), n, (begin + n % 3600) * 1000)
        for n in range(count)
    )
    with store.write() as db:
        store.save_entries(db, ((*row, 3, 1, 1, 0, "", "m" * size) for row in rows))


def monitor_of(store: Store, **settings: Any) -> tbmon.Monitor:
    config = tbmon.Config(**{"max_db_bytes": MOST, **settings})
    return tbmon.Monitor(config, store, tbmon.Redactor(KEY), None, threading.Event())


def with_data(store: Store) -> list[int]:
    rows = store.read("SELECT execution_id FROM task_data ORDER BY execution_id")
    return [int(row[0][:8], 16) for row in rows]


def entries(store: Store) -> int:
    return int(store.read("SELECT COUNT(*) FROM log")[0][0])


def test_task_data_beyond_its_share_goes_oldest_first_and_the_log_stays(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    save_log(store, 1000, 1000)
    for number in range(300):  # the newest first, so that order of time is none of the rows
        save(store, number, NOW - number * 60_000, 100_000)
    monitor = monitor_of(store)
    with caplog.at_level(logging.WARNING, "tbmon"):
        tbmon.log.propagate = True
        tbmon.prune(monitor)
        tbmon.prune(monitor)
        tbmon.log.propagate = False
    kept = with_data(store)
    assert entries(store) == 1000
    assert kept == list(range(len(kept))) and 60 < len(kept) < 90
    assert store.first("task_data_bytes") <= MOST // 2
    assert store.read("SELECT COUNT(*) FROM task")[0][0] == 300
    assert store.size_bytes() <= MOST
    assert [record.args for record in caplog.records] == [tbmon.PRUNED["data"]]


def test_task_data_past_its_days_goes_and_the_tasks_stay(store: Store) -> None:
    for number, days in enumerate((400, 366, 364, 1)):
        save(store, number, NOW - days * DAY_MS, 1000)
    save(store, 4, None, 1000)  # it came now, as far as is known
    tbmon.prune(monitor_of(store))
    assert with_data(store) == [2, 3, 4]
    tbmon.prune(monitor_of(store, task_data_retention_days=30))
    assert with_data(store) == [3, 4]
    assert store.read("SELECT COUNT(*) FROM task")[0][0] == 5
    assert tbmon.pruned_at(store.first) == {}


def test_waiting_words_are_part_of_the_share_and_of_the_days(store: Store) -> None:
    def wait(second: int, size: int) -> None:
        with store.write() as db:
            name = tbmon.key_of(second, b"w" * 12).hex()
            store.put(db, "waiting_words", [(name, "output", "w" * size)])

    now = NOW // 1000
    for number in range(120):
        wait(now - number, 100_000)
    wait(now - 400 * 86_400, 10)
    tbmon.prune(monitor_of(store))
    left = [int(row["name"][:8], 16) for row in store.get("waiting_words")]
    assert sorted(left, reverse=True) == [now - number for number in range(len(left))]
    assert 60 < len(left) < 90 and store.first("task_data_bytes") <= MOST // 2


def test_what_is_counted_is_what_is_there_whatever_changes(store: Store) -> None:
    def counted() -> bool:
        row, words = "task_data", "waiting_words"
        sql = f"""SELECT (SELECT IFNULL(SUM({tbmon.DATA_BYTES.format(row=row)}), 0) FROM {row})
            + (SELECT IFNULL(SUM({tbmon.WORDS_BYTES.format(row=words)}), 0) FROM {words})"""
        return bool(store.read(sql)[0][0] == store.first("task_data_bytes"))

    for number in range(9):
        save(store, number % 4, NOW, 100 * number)
        with store.write() as db:
            store.put(db, "waiting_words", [(f"n{number % 3}", "output", "ä" * number)])
            store.put(db, "forget_words", [(f"n{number % 2}",)] if number % 4 == 3 else [])
        assert counted()
    with store.write() as db:
        store.prune_task_data(db, 2**62)
    assert counted() and with_data(store) == []
    assert store.read(COUNTED)[0][0] == 0


def test_a_database_from_before_is_counted_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t.db"
    step = next(n for n, script in enumerate(tbmon.MIGRATIONS) if "task_data_total" in script)
    with monkeypatch.context() as patch:
        patch.setattr(tbmon, "MIGRATIONS", tbmon.MIGRATIONS[:step])
        with contextlib.closing(Store(path, KEY)) as before:
            for number in range(3):
                save(before, number, NOW - number * 500 * DAY_MS, 1000)
    with contextlib.closing(Store(path, KEY)) as store:
        assert store.first("task_data_bytes") == 3 * (1000 + 300)
        tbmon.prune(monitor_of(store))
        assert with_data(store) == [0]


def said(program: Program) -> list[str]:
    findings = program.private("/api/doctor")["findings"]
    return [f"{one['level']} {one['what']}" for one in findings]


def command_says(program: Program) -> list[str]:
    words = (sys.executable, "-m", "tbmon", "doctor")
    done = subprocess.run(words, env=program.env, capture_output=True, text=True)
    return done.stdout.splitlines()


@pytest.mark.parametrize("serving", [True, False])
def test_doctor_tells_that_data_goes_for_its_size(tmp_path: Path, serving: bool) -> None:
    program = over_files(tmp_path, MAX_DB_BYTES=str(MOST))
    program.start()
    assert not [line for line in said(program) if "TASK_DATA_RETENTION_DAYS" in line]
    end(program)
    key = (program.folder / "local.key").read_bytes()
    with contextlib.closing(Store(Path(program.env["DB_PATH"]), key)) as store:
        for number in range(120):
            save(store, number, NOW - number, 100_000)
        tbmon.prune(monitor_of(store))
        assert tbmon.pruned_at(store.first).keys() == {"data"}
    program.start()  # the command looks at a file that another process has open
    lines = said(program) if serving else command_says(program)
    end(program)
    assert [line for line in lines if "TASK_DATA_RETENTION_DAYS" in line and "WARN" in line.upper()]
    assert [line for line in lines if "inputs and outputs of tasks: 7 of 8 MiB" in line]


def test_nothing_is_told_of_a_file_that_is_not_there_or_not_ours(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    assert tbmon.peek(path, "task_data_bytes") is None and not path.exists()
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE other (x)")
    assert tbmon.pruned_at(lambda *what: tbmon.peek(path, *what)) == {}
