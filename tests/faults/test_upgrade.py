"""Databases of every earlier schema, kept as files in schemas/, opened by the present program; and
the same, killed.

`schemas/tbmon-N.db.gz` was written by the program of schema N itself: it read tests/samples and put
a row into each table that those do not fill. Its local key is KEY. Who adds a migration adds a file
of the schema before it changes.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.disks import memory_folder
from support.federation_feed import EXACT, NOON, UNLIMITED, Feed
from support.machine import length
from support.programs import Program
from support.schemas import ask, schema

import aggregator
import tbmon

FILES = Path(__file__).parent / "schemas"
KEY = bytes(range(32))
INSTRUCTIONS = 2500  # times SQLite looks up while it opens and migrates; no moment beyond them
VERSIONS = range(1, len(tbmon.MIGRATIONS) + 1)
Rows = dict[str, list[tuple[Any, ...]]]


def unpack(name: str, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.decompress((FILES / f"{name}.db.gz").read_bytes()))
    return path


def columns(path: Path) -> dict[str, list[str]]:
    """{table: its columns}"""
    return {
        name: [row[1] for row in ask(path, f"PRAGMA table_info({name})")]
        for kind, name, *_ in schema(path)
        if kind == "table" and not name.startswith("sqlite_")
    }


def contents(path: Path, known: dict[str, list[str]]) -> Rows:
    """All rows, of these tables and columns."""
    return {
        table: sorted(ask(path, f"SELECT {', '.join(names)} FROM {table}"), key=repr)
        for table, names in known.items()
    }


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file that the present program has just made."""
    path = tmp_path_factory.mktemp("fresh") / "t.db"
    tbmon.Store(path, KEY).close()
    return path


def test_there_is_a_file_of_every_schema() -> None:
    assert {path.name for path in FILES.iterdir()} == {
        "aggregator-1.db.gz",
        *(f"tbmon-{n}.db.gz" for n in VERSIONS),
    }


@pytest.mark.parametrize("version", VERSIONS)
def test_a_database_of_an_earlier_schema_keeps_every_row_and_gets_the_present_schema(
    version: int, fresh: Path, tmp_path: Path
) -> None:
    path = unpack(f"tbmon-{version}", tmp_path / "t.db")
    assert ask(path, "PRAGMA user_version") == [(version,)]
    known = columns(path)
    before = contents(path, known)
    assert all(before.values()), "a table without a row proves nothing"
    tbmon.Store(path, KEY).close()
    assert contents(path, known) == before
    assert schema(path) == schema(fresh)
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
    for pragma in ("user_version", "application_id", "auto_vacuum", "journal_mode"):
        assert ask(path, f"PRAGMA {pragma}") == ask(fresh, f"PRAGMA {pragma}")


@pytest.mark.parametrize("version", VERSIONS[:-1])
def test_the_program_shows_what_an_earlier_one_kept(
    version: int, program: Callable[..., Program], tmp_path: Path
) -> None:
    one = program(LOG_DIR=str(tmp_path), LOG_RETENTION_DAYS="3650")
    path = unpack(f"tbmon-{version}", one.folder / "t.db")
    (one.folder / "local.key").write_bytes(KEY)
    kept = {name: len(rows) for name, rows in contents(path, columns(path)).items()}
    one.start()
    lists = {"task": "tasks", "invoice": "invoices", "log": "logs"}
    shown = {table: one.private(f"/api/{name}?limit=100")[name] for table, name in lists.items()}
    assert {table: len(rows) for table, rows in shown.items()} == {
        table: kept[table] for table in lists
    }
    assert {task["status"] for task in shown["task"]} >= {"completed"}
    assert len(one.private("/api/logs/status")["gaps"]) == kept["gap"]
    assert one.get("/api/status")[1]["node"]["version"] == "1.120.0-beta.275"
    settings = one.get("/api/federation/settings")[1]
    assert (settings["enabled"], settings["privacyLevel"]) == (
        False,
        "maximum" if version >= 3 else "balanced",
    )
    assert one.end() == 0
    assert "Traceback" not in one.log.read_text() and not list(one.folder.glob("*damaged*"))


# Killed in the middle

KILLED = """
import json, os, shutil, signal, sqlite3, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import tbmon
source, path, key, moments = Path(sys.argv[2]), Path(sys.argv[3]), bytes(range(32)), json.loads(sys.argv[4])

class Dying(sqlite3.Connection):
    '''Kills its process: before a statement, or after so many instructions of SQLite's machine.'''
    left = 0

    def execute(self, *words):
        if way == "statement":
            count_down()
        return super().execute(*words)

def count_down():
    Dying.left -= 1
    if not Dying.left:
        os.kill(os.getpid(), signal.SIGKILL)

def connect(*words, **named):
    db = real(*words, **named, factory=Dying)
    if way == "instruction":
        db.set_progress_handler(count_down, 1)
    return db

def migrate(moment):
    '''True if it was killed before the end.'''
    Dying.left = moment
    if not (child := os.fork()):
        sqlite3.connect = connect
        tbmon.Store(path, key).close()
        os._exit(0)
    status = os.waitpid(child, 0)[1]
    assert status in (0, signal.SIGKILL), status
    return status == signal.SIGKILL

def check():
    '''What a killed migration left is a schema of its own, whole, and the next start ends it.'''
    before = sqlite3.connect(path)
    assert before.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    seen.add(before.execute("PRAGMA user_version").fetchone()[0])
    before.close()
    tbmon.Store(path, key).close()
    after = sqlite3.connect(path)
    assert after.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    dumps.add("\\n".join(after.iterdump()))
    after.close()

real, killed, seen, dumps = sqlite3.connect, 0, set(), set()
for way, moment in moments or (("statement", number) for number in range(1, 1000)):
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    shutil.copy(source, path)
    died = migrate(moment)
    check()
    killed += died
    if not died and not moments:
        break
print(json.dumps([killed, sorted(seen), sorted(dumps)]))
"""


def killed_at(version: int, moments: list[tuple[str, int]]) -> tuple[int, list[int], list[str]]:
    """Migrate and be killed at each moment (none named: before every statement), and start again.

    How many were killed, the schemas that were found then, and the different contents at the end.
    """
    with memory_folder() as folder:
        source = unpack(f"tbmon-{version}", folder / "source.db")
        words = (
            sys.executable,
            "-c",
            KILLED,
            str(ROOT),
            str(source),
            f"{folder}/t.db",
            json.dumps(moments),
        )
        done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    killed, seen, dumps = json.loads(done.stdout)
    return killed, seen, dumps


def test_a_migration_killed_before_any_of_its_statements_starts_again_and_ends_the_same() -> None:
    killed, seen, dumps = killed_at(1, [])
    statements = sum(script.count(";") + 2 for script in tbmon.MIGRATIONS[1:])
    assert killed > statements
    assert seen == list(VERSIONS)
    assert len(dumps) == 1 and "CREATE TABLE sample" in dumps[0] and "INSERT INTO" in dumps[0]


def test_a_migration_killed_at_random_moments_starts_again_and_ends_the_same(
    figure: Callable[[str, object], None],
) -> None:
    total = 0
    for version in VERSIONS[:-1]:
        dice = random.Random(version)
        moments = [("instruction", dice.randrange(1, INSTRUCTIONS)) for _ in range(length(5, 500))]
        killed, _, dumps = killed_at(version, moments)
        assert killed >= len(moments) // 2 and len(dumps) == 1
        total += killed
    figure("migrations killed in the middle, all of which ended at the next start", total)


# The aggregator's


def test_the_aggregators_earlier_database_keeps_its_rows_and_counts_on(tmp_path: Path) -> None:
    path = unpack("aggregator-1", tmp_path / "a.db")
    known = columns(path)
    before = contents(path, known)
    assert all(before.values())
    chosen: dict[str, Any] = {"db_path": str(path), **UNLIMITED, **EXACT}
    config = aggregator.Config(**chosen)
    with contextlib.closing(aggregator.Store(config)) as store:
        assert contents(path, known) == before
        figures = tbmon.read_publication(aggregator.Publisher(config, store).publication(NOON))
        one = Feed(99).work(NOON)
        store.take([aggregator.Received(one.subject, one.payload, NOON)])
        counted = tbmon.read_publication(aggregator.Publisher(config, store).publication(NOON))
    assert figures and counted and figures != counted
    aggregator.Store(aggregator.Config(db_path=str(tmp_path / "fresh.db"))).close()
    assert schema(path) == schema(tmp_path / "fresh.db")
    assert ask(path, "PRAGMA integrity_check") == [("ok",)]
