"""The store keeps one SQLite file of ours: whole, by one process, and nobody else's."""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbmon
from tbmon import Event, Store, Task, UserError

ROOT = Path(__file__).parent.parent
KEY = b"k" * 32
FOR_EVER = 4_000_000_000_000  # ms, beyond every time in these tests
Row = tuple[bytes, int, int, int, int, int, int, str | None, str]


def log_row(
    second: int,
    number: int,
    message: str = "words",
    *,
    seq: int = 0,
    at: int | None = None,
    source: int = tbmon.ENGINE,
    flags: int = 0,
    execution_id: str | None = None,
) -> Row:
    """A row of the log; `number` tells its key from others of the same second."""
    key = tbmon.key_of(second, number.to_bytes(12, "big"))
    return (
        key,
        seq,
        second * 1000 if at is None else at,
        3,
        1,
        source,
        flags,
        execution_id,
        message,
    )


def save(store: Store, *rows: Row) -> None:
    with store.write() as db:
        store.save_entries(db, rows)


def messages(store: Store, where: dict[str, object] | None = None) -> list[str]:
    return [row["message"] for row in store.entries(where or {}, 0, FOR_EVER, None, 1000)]


def pages(
    store: Store, limit: int, since: int = 0, until: int = FOR_EVER
) -> Iterator[list[sqlite3.Row]]:
    """Page after page, as a client asks for them, up to the first empty one."""
    before: tuple[bytes, int] | None = None
    while found := store.entries({}, since, until, before, limit):
        yield found
        before = found[-1]["key"], found[-1]["seq"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def invoice(
    invoice_id: str | None, *accounts: tuple[str, str, int], execution_id: str = "e1"
) -> Event:
    items = [
        {"operation": name, "account": who, "steps": steps, "memory_peak": 7}
        for name, who, steps in accounts
    ]
    fields: dict[str, Any] = {
        "invoice_id": invoice_id,
        "task_id": None,
        "at": 5,
        "step_gas_price": 0.5,
    }
    return Event("invoice", execution_id, {**fields, "line_items": items})


def run_child(code: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run `code` in another process, with tbmon imported and `path` in hand."""
    head = f"import os, sys; sys.path.insert(0, {str(ROOT)!r})\nimport pathlib, tbmon\n"
    head += f"path, key = pathlib.Path({str(path)!r}), {KEY!r}\n"
    return subprocess.run(
        [sys.executable, "-c", head + code], capture_output=True, text=True, timeout=30
    )


KILLED_IN_A_WRITE = """
store = tbmon.Store(path, key)
row = (tbmon.key_of(50, bytes(12)), 0, 50_000, 3, 1, 1, 0, None, "committed")
with store.write() as db:
    store.save_entries(db, [row])
with store.write() as db:
    store.save_entries(db, [(tbmon.key_of(51, bytes(12)), *row[1:8], "begun")])
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "tbmon.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    with contextlib.closing(Store(path, KEY)) as opened:
        yield opened


# The file


def test_a_new_file_carries_our_mark_and_schema(store: Store, path: Path) -> None:
    pragmas = {
        name: store.read(f"PRAGMA {name}")[0][0]
        for name in ("user_version", "auto_vacuum", "journal_mode")
    }
    assert pragmas == {
        "user_version": len(tbmon.MIGRATIONS),
        "auto_vacuum": 2,
        "journal_mode": "wal",
    }
    assert path.read_bytes()[68:72] == b"tbmn"
    assert set(tbmon.TASK_COLUMNS) < {row["name"] for row in store.read("PRAGMA table_info(task)")}
    assert store.first("quick_check") == "ok"


def test_what_was_kept_is_there_after_reopening(path: Path) -> None:
    with contextlib.closing(Store(path, KEY)) as store, store.write() as db:
        store.add_own(db, "wallet:1")
        store.put(db, "state", [("cursor", "here")])
    with contextlib.closing(Store(path, KEY)) as store:
        assert (store.first("state", "cursor"), store.own) == ("here", frozenset({"wallet:1"}))


def test_a_failing_migration_leaves_the_schema_before_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Store(path, KEY).close()
    monkeypatch.setattr(
        tbmon, "MIGRATIONS", (*tbmon.MIGRATIONS, "CREATE TABLE added (x); CREATE TABLE task (x)")
    )
    with pytest.raises(UserError, match="cannot be opened"):
        Store(path, KEY)
    monkeypatch.undo()
    with contextlib.closing(Store(path, KEY)) as store:
        assert store.read("PRAGMA user_version")[0][0] == len(tbmon.MIGRATIONS)
        assert store.read("SELECT * FROM sqlite_schema WHERE name = 'added'") == []


def test_only_its_owner_may_read_the_database(store: Store, path: Path) -> None:
    save(store, log_row(1, 1))
    files = [path, path.with_name("tbmon.db-wal"), path.with_name("tbmon.db-shm")]
    assert [file.stat().st_mode & 0o777 for file in files] == [0o600] * 3


@pytest.mark.parametrize("name", ["a b.db", "100%3f#x?mode=rw&.db", "größe.db"])
def test_any_file_name_can_be_used(tmp_path: Path, name: str) -> None:
    with contextlib.closing(Store(tmp_path / name, KEY)) as store:
        save(store, log_row(1, 1))
        assert messages(store) == ["words"] and (tmp_path / name).is_file()


@pytest.mark.parametrize("marked", [False, True], ids=["first start", "after a file of ours"])
@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_another_programs_database_is_refused_and_left_byte_for_byte(
    path: Path, mode: str, marked: bool
) -> None:
    path.parent.mkdir()
    if marked:
        path.with_name("tbmon.db-ours").touch()
    with contextlib.closing(sqlite3.connect(path)) as theirs:  # kept open, so that its -wal stays
        theirs.execute(f"PRAGMA journal_mode = {mode}")
        theirs.execute("CREATE TABLE tasks (x)")
        theirs.commit()
        before = contents(path.parent)
        with pytest.raises(UserError, match="another program's database"):
            Store(path, KEY)
        assert contents(path.parent) == before and ("tbmon.db-wal" in before) == (mode == "wal")


@pytest.mark.parametrize("content", [b"x", b"a diary\n" * 500, b"SQLite format 3\0", b"\0" * 4096])
def test_a_file_that_is_no_database_is_refused_and_left_byte_for_byte(
    path: Path, content: bytes
) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match="no SQLite database"):
        Store(path, KEY)
    assert contents(path.parent) == {"tbmon.db": content}


def test_an_empty_file_counts_as_new(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    with contextlib.closing(Store(path, KEY)) as store:
        assert store.read("PRAGMA auto_vacuum")[0][0] == 2


def test_a_newer_schema_is_refused(path: Path) -> None:
    with contextlib.closing(Store(path, KEY)) as store:
        store.db.execute(f"PRAGMA user_version = {len(tbmon.MIGRATIONS) + 1}")
    with pytest.raises(UserError, match="newer tbmon"):
        Store(path, KEY)


def test_another_local_key_is_refused_and_the_right_one_still_opens(path: Path) -> None:
    with contextlib.closing(Store(path, KEY)) as store:
        save(store, log_row(1, 1))
    with pytest.raises(UserError, match="local key"):
        Store(path, b"x" * 32)
    with contextlib.closing(Store(path, KEY)) as store:
        assert messages(store) == ["words"]


def test_the_key_file_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    file = tmp_path / "keys" / "local.key"
    first = tbmon.read_key_file(file, lambda: secrets.token_bytes(32))
    assert tbmon.read_key_file(file, lambda: secrets.token_bytes(32)) == first == file.read_bytes()
    assert file.stat().st_mode & 0o777 == 0o600
    assert contents(file.parent) == {"local.key": first}


def test_two_first_starts_at_once_agree_on_the_key(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)

    def make() -> bytes:
        with contextlib.suppress(
            threading.BrokenBarrierError
        ):  # broken where only one of them makes a key
            barrier.wait(0.3)
        return secrets.token_bytes(32)

    with ThreadPoolExecutor(2) as pool:
        keys = list(pool.map(lambda _: tbmon.read_key_file(tmp_path / "key", make), range(2)))
    assert keys == [(tmp_path / "key").read_bytes()] * 2


# One process


def test_a_second_store_is_refused_until_the_first_is_closed(path: Path) -> None:
    first = Store(path, KEY)
    with pytest.raises(UserError, match="in use by another tbmon"):
        Store(path, KEY)
    save(first, log_row(1, 1))
    first.close()
    with contextlib.closing(Store(path, KEY)) as second:
        assert messages(second) == ["words"]


def test_another_process_is_refused_until_the_store_is_closed(path: Path) -> None:
    store = Store(path, KEY)
    refused = run_child("tbmon.Store(path, key)", path)
    store.close()
    assert refused.returncode == 1 and "in use by another tbmon" in refused.stderr
    assert run_child("tbmon.Store(path, key).close()", path).returncode == 0


def test_a_second_name_of_the_same_file_is_refused_too(store: Store, path: Path) -> None:
    link = path.with_name("link.db")
    link.symlink_to(path)
    with pytest.raises(UserError, match="in use by another tbmon"):
        Store(link, KEY).close()


def test_a_killed_process_leaves_what_it_committed_and_no_lock(path: Path) -> None:
    assert run_child(KILLED_IN_A_WRITE, path).returncode == -signal.SIGKILL
    with contextlib.closing(Store(path, KEY)) as store:
        assert messages(store) == ["committed"]


@pytest.mark.parametrize("step", ["migrate", "check_key"])
def test_a_first_start_that_was_killed_is_taken_up_again(path: Path, step: str) -> None:
    code = f"tbmon.Store.{step} = lambda self, db: os.kill(os.getpid(), 9)\ntbmon.Store(path, key)"
    assert run_child(code, path).returncode == -signal.SIGKILL
    Store(path, KEY).close()


# Damage


def filled(path: Path) -> None:
    with contextlib.closing(Store(path, KEY)) as store:
        save(store, *(log_row(1000 + n // 10, n, "m" * 300) for n in range(2000)))


def damage(path: Path, kind: str) -> None:
    """Spoil a database file as disks and people do."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    if kind == "middle overwritten":
        content[third : 2 * third] = b"\xa5" * third
    elif kind == "cut off":
        del content[2 * third + 100 :]
    elif kind == "header overwritten":
        content[:4096] = b"\xa5" * 4096
    elif kind == "only a few bytes left":
        del content[40:]
    elif kind == "schema overwritten":
        name = b"tabletask_event"
        spot = content.index(name)  # SQLite's message about it is then no UTF-8
        content[spot : spot + len(name)] = b"\xa5" * len(name)
    path.write_bytes(content)


@pytest.mark.parametrize(
    "kind",
    [
        "middle overwritten",
        "cut off",
        "header overwritten",
        "only a few bytes left",
        "schema overwritten",
    ],
)
def test_a_damaged_database_is_moved_aside_for_a_fresh_one(
    path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(path)
    damage(path, kind)
    damaged = path.read_bytes()
    with contextlib.closing(Store(path, KEY)) as store:
        assert store.first("quick_check") == "ok" and messages(store) == []
        save(store, log_row(1, 1))
    kept = [
        file
        for file in path.parent.glob("tbmon.db.damaged-*Z")
        if file.read_bytes()[4096:] == damaged[4096:]
    ]
    assert len(kept) == 1
    assert [r.levelno for r in caplog.records] == [logging.ERROR] and kept[0].name in caplog.text
    with contextlib.closing(Store(path, KEY)) as store:
        assert messages(store) == ["words"]


def test_the_write_ahead_log_goes_with_its_damaged_database(path: Path) -> None:
    assert run_child(KILLED_IN_A_WRITE, path).returncode == -signal.SIGKILL
    log = path.with_name("tbmon.db-wal").read_bytes()
    damage(path, "header overwritten")
    with contextlib.closing(Store(path, KEY)) as store:
        assert messages(store) == []
    assert log and [file.read_bytes() for file in path.parent.glob("tbmon.db.damaged-*Z-wal")] == [
        log
    ]


def test_damage_found_while_running_is_dealt_with_at_the_next_start(path: Path) -> None:
    with contextlib.closing(Store(path, KEY)) as store:
        save(store, log_row(1, 1))
        store.mark_damaged()
    for _ in range(2):  # once is enough
        with contextlib.closing(Store(path, KEY)) as store:
            assert messages(store) == []
    assert len(list(path.parent.glob("tbmon.db.damaged-*Z"))) == 1


def test_the_check_tells_a_damaged_file_from_a_sound_one(path: Path) -> None:
    filled(path)
    with contextlib.closing(Store(path, KEY)) as store:
        assert store.is_sound()
        damage(path, "middle overwritten")
        assert not store.is_sound()


def test_the_write_ahead_log_stays_bounded_where_somebody_always_reads(path: Path) -> None:
    over = threading.Event()

    def read_on() -> None:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            while not over.is_set():
                db.execute("BEGIN")
                db.execute("SELECT COUNT(*) FROM log").fetchone()
                over.wait(0.02)
                db.execute("COMMIT")

    readers, lengths = [threading.Thread(target=read_on) for _ in range(6)], list[int]()
    with contextlib.closing(Store(path, KEY)) as store:
        for reader in readers:
            reader.start()
        for number in range(80):
            save(store, *(log_row(1000, 250 * number + n, "m" * 4000) for n in range(250)))
            lengths.append(path.with_name("tbmon.db-wal").stat().st_size)
        over.set()
        for reader in readers:
            reader.join()
    assert max(lengths) < 2 * tbmon.WAL_BYTES


# Writing and reading


def test_an_exception_in_a_write_block_leaves_nothing_of_it(store: Store) -> None:
    save(store, log_row(1, 1, "before"))
    with pytest.raises(ZeroDivisionError), store.write() as db:
        store.save_entries(db, [log_row(2, 2)])
        store.save_tasks(db, [Task("e1")])
        store.put(db, "counter", [("seen", 1)])
        store.add_own(db, "wallet:1")
        raise ZeroDivisionError
    assert (messages(store), store.task("e1"), store.get("counters")) == (["before"], None, [])
    assert (store.own, store.first("state", "own")) == (frozenset(), None)
    save(store, log_row(3, 3, "after"))
    assert messages(store) == ["after", "before"]


def test_a_failing_statement_leaves_nothing_of_its_block(store: Store) -> None:
    with pytest.raises(sqlite3.IntegrityError), store.write() as db:
        store.save_entries(db, [log_row(1, 1)])
        store.put(db, "gap", [(1, 2, None)])
    assert messages(store) == []


def test_nothing_of_a_block_is_seen_before_its_end(store: Store) -> None:
    with store.write() as db:
        store.save_entries(db, [log_row(1, 1)])
        assert messages(store) == []
    assert messages(store) == ["words"]


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM log",
        "INSERT INTO counter VALUES ('x', 1)",
        "CREATE TABLE x (y)",
        "PRAGMA user_version = 9",
    ],
)
def test_readers_cannot_write(store: Store, statement: str) -> None:
    save(store, log_row(1, 1))
    with pytest.raises(sqlite3.OperationalError, match="readonly"):
        store.read(statement)
    assert messages(store) == ["words"]


def test_threads_read_whole_blocks_while_others_write(store: Store) -> None:
    done = threading.Event()

    def read() -> set[int]:
        sizes = {len(messages(store))}
        while not done.is_set():
            sizes.add(len(messages(store)))
        return sizes

    def write(second: int) -> None:
        for part in range(10):
            save(store, *(log_row(second, 10 * part + n) for n in range(10)))

    with ThreadPoolExecutor(6) as pool:
        readers = [pool.submit(read) for _ in range(4)]
        for writer in [pool.submit(write, second) for second in (1, 2)]:
            writer.result()
        done.set()
        seen = set[int]().union(*(reader.result() for reader in readers))
    assert {size % 10 for size in seen} == {0} and len(messages(store)) == 200


# Log entries


@pytest.mark.parametrize(
    ("copies", "kept"),
    [
        (["one", "one\ntwo", "on"], "one\ntwo"),
        (["one\0two", "one\0two\nthree", "one"], "one\0two\nthree"),
        (["caf\ufffd\ufffd", "café", "caf\ufffd\ufffd"], "café"),  # cut inside a character
    ],
    ids=["grown", "with a NUL", "repaired"],
)
def test_the_longest_message_of_an_entry_wins(store: Store, copies: list[str], kept: str) -> None:
    for message in copies:
        save(store, log_row(1, 1, message))
    assert messages(store) == [kept]


def test_an_entry_remembers_every_source_that_had_it(store: Store) -> None:
    save(store, log_row(1, 1, source=tbmon.ENGINE))
    key = log_row(1, 1)[0]
    assert store.first("has_entry", key, tbmon.ENGINE) and not store.first(
        "has_entry", key, tbmon.FILES
    )
    save(store, log_row(1, 1, source=tbmon.FILES))
    assert store.first("has_entry", key, tbmon.ENGINE) and store.first(
        "has_entry", key, tbmon.FILES
    )


@pytest.mark.parametrize(
    ("copies", "left"),
    [
        ([tbmon.SUSPECT, 0], 0),
        ([0, tbmon.SUSPECT], 0),
        ([tbmon.SUSPECT, tbmon.SUSPECT], tbmon.SUSPECT),
        ([tbmon.SUSPECT | tbmon.UNRECOGNISED, tbmon.UNRECOGNISED], tbmon.UNRECOGNISED),
    ],
)
def test_a_believed_copy_clears_the_suspicion_for_good(
    store: Store, copies: list[int], left: int
) -> None:
    for flags in copies:
        save(store, log_row(1, 1, flags=flags))
    assert [row["flags"] for row in store.entries({}, 0, FOR_EVER, None, 10)] == [left]


def test_a_copy_without_an_execution_id_keeps_the_one_that_was_found(store: Store) -> None:
    save(store, log_row(1, 1))
    with store.write() as db:
        store.put(db, "binding", [("e1", log_row(1, 1)[0])])
    save(store, log_row(1, 1))
    assert messages(store, {"execution_id": "e1"}) == ["words"]


@pytest.mark.parametrize("text", ["%", "_", "!", "100%", "a_b", "!%", "!!", "%_", "axb"])
def test_a_search_takes_wildcards_literally(store: Store, text: str) -> None:
    kept = ["100%", "1000", "a_b", "axb", "wow!", "!%", "! %", "!!", "%_", "plain"]
    save(store, *(log_row(1, number, message) for number, message in enumerate(kept)))
    found = messages(store, {"search": tbmon.literal_like(text)})
    assert sorted(found) == sorted(message for message in kept if text in message)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with contextlib.closing(Store(tmp_path_factory.mktemp("shared") / "tbmon.db", KEY)) as opened:
        yield opened


places = st.tuples(
    st.integers(100, 103), st.integers(0, 4), st.integers(0, 20), st.integers(0, 999)
)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    found=st.lists(places, max_size=40, unique_by=lambda place: (place[0], place[2])),
    limit=st.integers(1, 9),
    since=st.integers(99_000, 105_000) | st.just(0),
    until=st.integers(99_000, 105_000) | st.just(FOR_EVER),
)
def test_paging_shows_every_entry_once_newest_first(
    shared: Store, found: list[tuple[int, int, int, int]], limit: int, since: int, until: int
) -> None:
    rows = [log_row(second, n, seq=seq, at=second * 1000 + ms) for second, seq, n, ms in found]
    with shared.write() as db:
        db.execute("DELETE FROM log")
        shared.save_entries(db, rows)
    shown = list(pages(shared, limit, since, until))
    expected = sorted(
        ((row[0][:4], row[1], row[0]) for row in rows if since <= row[2] < until), reverse=True
    )
    assert [(row["key"][:4], row["seq"], row["key"]) for page in shown for row in page] == expected
    assert all(len(page) == limit for page in shown[:-1])


@pytest.mark.parametrize("limit", [1, 99, 100, 101, 299, 300, 301, 1000])
def test_many_entries_of_one_second_page_without_loss(store: Store, limit: int) -> None:
    save(
        store,
        *(
            log_row(second, n, f"{second}.{n}", seq=n * 7 % 100)
            for second in (7, 8, 9)
            for n in range(100)
        ),
    )
    shown = [row["message"] for page in pages(store, limit) for row in page]
    order = sorted(
        ((second, n * 7 % 100, n) for second in (7, 8, 9) for n in range(100)), reverse=True
    )
    assert shown == [f"{second}.{n}" for second, _, n in order]


def test_a_page_of_a_second_with_very_many_entries_takes_only_what_it_shows(path: Path) -> None:
    """All that a program prints without a header has the second of the last header."""
    taken = list[int]()

    class Counting(Store):
        def read(self, sql: str, values: Any = ()) -> list[sqlite3.Row]:
            rows = super().read(sql, values)
            taken.append(len(rows))
            return rows

    with contextlib.closing(Counting(path, KEY)) as store:
        save(store, *(log_row(7, n, seq=n * 7 % 3000) for n in range(3000)))
        taken.clear()
        assert [row["seq"] for page in pages(store, 100) for row in page] == list(
            reversed(range(3000))
        )
    assert max(taken) <= 101


def test_entries_that_arrive_while_paging_do_not_shift_the_pages(store: Store) -> None:
    save(store, *(log_row(5, n, str(n), seq=n) for n in range(10)))
    shown: list[str] = []
    for number, page in enumerate(pages(store, 3)):
        shown += [row["message"] for row in page]
        save(
            store,
            log_row(5, 100 + number, "new", seq=100 + number),
            log_row(6 + number, 0, "newer"),
        )
    assert shown == [str(n) for n in reversed(range(10))]


# Tasks, invoices and the node


def test_a_task_comes_back_as_it_was_saved_and_is_replaced_by_its_newer_self(store: Store) -> None:
    task = Task("e1", task_id="t", received_at=1, gas_used=2**63 - 1, cached=0, evidence=3)
    for version in (Task("e1"), task):
        with store.write() as db:
            store.save_tasks(db, [version, Task("e2")])
        assert store.task("e1") == version
    assert len(store.page("task", {}, None, 9, 0)) == 2 and store.task("e3") is None


def overdue(store: Store, now: int, started_at: int = 0) -> list[str]:
    return sorted(row["execution_id"] for row in store.get("overdue", now, started_at))


def test_overdue_tasks_are_the_unfinished_ones_past_their_time_or_before_the_nodes_start(
    store: Store,
) -> None:
    received = 1_000_000
    limit = received + tbmon.TASK_TIMEOUT_MS + tbmon.TASK_GRACE_MS
    tasks = [
        Task("plain", received_at=received),
        Task("started", received_at=received, started_at=received, status="executing"),
        Task("short", received_at=received, timeout_ms=1),
        Task("undated"),
        *(
            Task(status, received_at=received, status=status)
            for status in ("completed", "failed", "lost")
        ),
    ]
    with store.write() as db:
        store.save_tasks(db, tasks)
    assert overdue(store, received, received) == []
    assert overdue(store, limit) == ["short"]
    assert overdue(store, limit + 1) == ["plain", "short", "started"]
    assert overdue(store, received, received + 1) == ["plain", "short", "started"]


def test_task_data_is_kept_verbatim_and_the_longer_text_wins(store: Store) -> None:
    data = {"input": "long input", "output": "\0binary", "error_text": ""}
    with store.write() as db:
        store.save_task_data(db, {"e1": {"input": data["input"]}})
        store.save_task_data(db, {"e1": {**data, "input": "short"}})
    row = store.get("task_data", "e1")[0]
    assert row is not None and {**row, "error_text": row["error_text"] or ""} == data


def test_totals_are_those_of_a_recount_whatever_changes(store: Store, path: Path) -> None:
    dice = random.Random(5)
    for _ in range(40):
        tasks = [
            Task(
                f"e{dice.randrange(20)}",
                status=dice.choice(tbmon.STATUSES),
                cached=dice.choice((None, 0, 1)),
                elapsed_ms=dice.choice((None, 0, 7, 10**9)),
                gas_used=dice.choice((None, 0, 10**11)),
            )
            for _ in range(9)
        ]
        with store.write() as db:
            store.save_tasks(db, tasks)
    recount = (
        "SELECT status, COUNT(*), SUM(IFNULL(cached, 0)), COUNT(elapsed_ms), "
        "IFNULL(SUM(elapsed_ms), 0),"
        " COUNT(gas_used), IFNULL(SUM(gas_used), 0) FROM task GROUP BY status ORDER BY status"
    )
    counted = [tuple(row) for row in store.read(recount)]
    assert [tuple(row) for row in store.get("task_totals") if row["tasks"]] == counted
    with store.write() as db:  # as a database of the schema before
        for statement in (
            "DROP TRIGGER task_added",
            "DROP TRIGGER task_changed",
            "DROP TABLE total",
            "DROP TABLE doubt",  # what came later
            "DROP TABLE waiting_words",
            "ALTER TABLE file DROP COLUMN tail_hash",
        ):
            db.execute(statement)
        step = next(script for script in tbmon.MIGRATIONS if "task_added" in script)
        for statement in tbmon.statements_of(step):
            db.execute(statement)
    store.close()
    with contextlib.closing(Store(path, KEY)) as again:
        assert [tuple(row) for row in again.get("task_totals")] == counted


def test_an_invoice_told_of_twice_is_kept_once_and_stays_confirmed(store: Store) -> None:
    for confirmed in (False, True, False):
        with store.write() as db:
            assert store.save_invoice(db, invoice("i1", ("pay", "wallet:1", 5)), confirmed) is None
    assert store.first("invoice_count") == 1 and store.first("invoice_of", "e1") == "i1"
    assert [row["confirmed"] for row in store.page("invoice", {}, None, 10, 0)] == [1]


def test_invoices_without_an_id_are_told_apart_by_their_content(store: Store) -> None:
    first, second = invoice(None, ("pay", "wallet:1", 5)), invoice(None, ("pay", "wallet:1", 6))
    elsewhere = invoice(None, ("pay", "wallet:1", 5), execution_id="e2")
    for event in (first, second, first, elsewhere, second):
        with store.write() as db:
            store.save_invoice(db, event, confirmed=False)
    assert store.first("invoice_count") == 3


def test_a_wallet_known_later_to_be_the_nodes_own_fills_earlier_invoices(store: Store) -> None:
    mixed = [("pay", "wallet:2", 5), ("pay", "wallet:1", 6), ("penalty", "wallet:1", 8)]
    with store.write() as db:
        store.save_invoice(db, invoice("i1", *mixed), confirmed=True)
        store.save_invoice(db, invoice("i2", ("pay", "wallet:2", 9)), confirmed=True)
    with store.write() as db:
        store.add_own(db, "wallet:1")
        own = store.save_invoice(db, invoice("i3", ("pay", "wallet:1", 3)), confirmed=True)
    rows = store.page("invoice", {}, None, 10, 0)
    kept = {row["invoice_id"]: (row["operation"], row["steps"], row["memory_peak"]) for row in rows}
    assert kept == {"i1": ("penalty", 8, 7), "i2": (None, 9, 7), "i3": ("pay", 3, 7)}
    assert own is not None and own["operation"] == "pay"
    numbers = {row["invoice_id"]: row["id"] for row in rows}
    others = {name: store.get("invoices_of_others", name) for name in ("wallet:1", "wallet:2")}
    assert {name: [row["id"] for row in found] for name, found in others.items()} == {
        "wallet:1": [],
        "wallet:2": [numbers["i2"]],
    }
    assert store.show("wallet:1, wallet:2") == "wallet:self, wallet:2"


def test_older_news_of_the_node_never_replace_newer(store: Store) -> None:
    for value, at in (("1.0", 10), ("0.9", 9), (None, 11), ("1.1", 11), ("0.8", 8)):
        with store.write() as db:
            store.save_node(db, {"version": (value, at), f"at {at}": (at, at)})
    assert store.node() == {"version": "1.1", "at 8": 8, "at 9": 9, "at 10": 10, "at 11": 11}


def test_pages_of_tasks_are_stable_and_newest_first_undated_ones_last(store: Store) -> None:
    with store.write() as db:
        store.save_tasks(db, [Task(f"e{n}", received_at=(None, 5, 5, 9)[n % 4]) for n in range(40)])
    shown: list[str] = []
    before: tuple[int, int] | None = None
    while rows := store.page("task", {}, before, 7, 0):
        shown += [row["execution_id"] for row in rows]
        before = rows[-1]["received_at"] or 0, rows[-1]["id"]
    assert shown == [
        f"e{n}" for n in sorted(range(40), key=lambda n: ((0, 5, 5, 9)[n % 4], n), reverse=True)
    ]


# Retention


def prune_all(store: Store, before: int, max_bytes: int) -> list[int]:
    """Prune until nothing is left to do; what each slice deleted."""
    slices: list[int] = []
    while gone := store.prune(before, max_bytes):
        slices.append(gone)
        assert len(slices) < 1000
    return slices


def test_entries_past_their_age_go_in_slices_and_tasks_and_invoices_stay(store: Store) -> None:
    save(store, *(log_row(1000 + n % 10, n) for n in range(1200)), log_row(1010, 1, "young"))
    with store.write() as db:
        store.save_tasks(db, [Task("e1", received_at=1)])
        store.save_invoice(db, invoice("i1"), confirmed=False)
    slices = prune_all(store, 1_010_000, 2**40)
    assert len(slices) >= 2 and max(slices) <= 1000  # nobody waits long for the lock
    assert messages(store) == ["young"]
    assert store.task("e1") is not None and store.first("invoice_count") == 1


def test_age_is_counted_in_utc_whatever_zone_the_stamps_are_in(store: Store) -> None:
    save(store, log_row(100_000, 1, "west", at=(100_000 + 8 * 3600) * 1000))
    prune_all(store, (100_000 + 3600) * 1000, 2**40)
    assert messages(store) == ["west"]


@pytest.mark.parametrize("length", [300, 6000])
def test_the_oldest_entries_go_and_the_file_shrinks_when_it_is_too_large(
    path: Path, length: int
) -> None:
    count, max_bytes = 20_000_000 // length, 8 * tbmon.MIB
    with contextlib.closing(Store(path, KEY)) as store:
        save(store, *(log_row(1000 + n, n, "m" * length) for n in range(count)))
        with store.write() as db:
            store.save_tasks(db, [Task("e1", received_at=1)])
        assert prune_all(store, 0, max_bytes)
        left = [row["at"] // 1000 for row in store.read("SELECT at FROM log ORDER BY key")]
        assert store.task("e1") is not None and store.first("quick_check") == "ok"
    assert 0 < len(left) < count and left == list(range(1000 + count - len(left), 1000 + count))
    assert path.stat().st_size <= max_bytes


def test_nothing_is_pruned_while_entries_are_young_and_the_file_is_small(store: Store) -> None:
    save(store, log_row(1000, 1))
    assert store.prune(1_000_000, 2**40) == 0 and messages(store) == ["words"]
