"""The disk under a running tbmon and a real container: full, read-only, slow, damaged, its files
taken away.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.disks import (
    Station,
    during,
    ext4_disk,
    fill,
    frozen,
    memory_disk,
    memory_folder,
    mounted,
    root,
    spoil,
)
from support.engine import Node
from support.machine import length, wait_for
from support.programs import Program
from support.schemas import schema

import tbmon

Make = Callable[..., Program]
On = Callable[..., Station]


@pytest.fixture
def fast() -> Iterator[Path]:
    with memory_folder() as folder:
        yield folder


@pytest.fixture
def on(node: Node, program: Make) -> Iterator[On]:
    """Makes Stations; what is left of them ends before their disk goes."""
    made: list[Station] = []

    def make(disk: Path) -> Station:
        disk.mkdir(exist_ok=True)
        node.run()
        made.append(Station(node, program, disk))
        return made[-1]

    yield make
    for station in made:
        station.close()


def ended_in_a_sentence(station: Station, *words: str) -> None:
    """It did not start, and said why in one line."""
    assert station.program.process.wait(10) == 2
    said = station.log().splitlines()[station.lines_before :]
    assert (
        len(said) == 1 and said[0].startswith("tbmon: ") and any(word in said[0] for word in words)
    ), said


# Full


def answers_and_says_so(here: Station) -> None:
    """The API while the disk is full."""
    one = here.program
    assert one.get("/health")[0] == 200 == one.get("/api/tasks")[0]
    found = [
        f for f in one.private("/api/doctor")["findings"] if "free for the database" in f["what"]
    ]
    assert found[0]["level"] == "fail" and found[0]["remedy"]
    known = len(one.private("/api/audit-log")["entries"])
    assert one.get("/api/logs", X_Task_Data_Password="wrong")[0] == 401
    assert len(one.private("/api/audit-log")["entries"]) == known + 1, (
        "the reserve leaves room for what people do"
    )


def test_a_full_disk_pauses_it_and_all_comes_when_there_is_room(on: On, tmp_path: Path) -> None:
    with (
        memory_disk(tmp_path / "disk", f"size={length(32, 99)}m") as disk,
        contextlib.closing(on(disk)) as here,
    ):
        one, ballast = here.start(), disk / "t.db-ballast"
        here.say(200)
        here.wait_for_all()
        for _ in range(length(1, 5)):
            wait_for(lambda: ballast.stat().st_blocks * 512 >= 2**22)
            first, filler = here.told, fill(disk / "filler")
            os.truncate(filler, filler.stat().st_size - 2**20)  # the log takes the rest
            here.say(9000, "x" * 900)  # more than what an emptied write-ahead log makes room for
            here.wait_until_blind("full", "No space left")
            wait_for(
                lambda: ballast.stat().st_size == 0
            )  # and is taken again where the log, once emptied, makes room
            here.say(1)
            answers_and_says_so(here)
            assert first - 1 <= here.shown() < here.told - 2, "ingest waits"
            filler.unlink()
            here.wait_for_all(40)
            wait_for(lambda: not here.reason())
        assert one.end() == 0 and "Traceback" not in here.log()
        assert here.log().count("trying again") <= 4 * length(1, 5)


def test_it_starts_on_a_full_disk_by_its_reserve_and_says_so(on: On, tmp_path: Path) -> None:
    with memory_disk(tmp_path / "disk") as disk, contextlib.closing(on(disk)) as here:
        one = here.start()
        here.say(200)
        here.wait_for_all()
        assert one.end() == 0
        filler = fill(disk / "filler")
        here.say(200)
        here.start()
        here.wait_until_blind("No space left")
        assert here.shown() == 199 and one.get("/health")[0] == 200
        filler.unlink()
        here.wait_for_all()
        assert one.end() == 0 and "Traceback" not in here.log()


def test_a_disk_that_is_full_at_the_first_start_is_told_in_one_sentence(
    on: On, tmp_path: Path
) -> None:
    with memory_disk(tmp_path / "disk") as disk, contextlib.closing(on(disk)) as here:
        filler = fill(disk / "filler")
        here.start()
        ended_in_a_sentence(here, "full", "No space left")
        filler.unlink()
        here.say(10)
        here.start()
        here.wait_for_all()


def test_a_disk_without_a_free_inode_is_told_and_what_runs_goes_on(on: On, tmp_path: Path) -> None:
    with (
        memory_disk(tmp_path / "disk", "size=16m,nr_inodes=20") as disk,
        contextlib.closing(on(disk)) as here,
    ):
        names = [disk / str(number) for number in range(30)]
        with contextlib.suppress(OSError):
            for name in names:
                name.touch()
        here.start()
        ended_in_a_sentence(here, "No space left")
        for name in names:
            name.unlink(missing_ok=True)
        here.start()
        wait_for((disk / "t.db-ballast").exists)
        with contextlib.suppress(OSError):
            for name in names:
                name.touch()
        here.say(3000)
        here.wait_for_all()
        assert here.program.end() == 0


# Refusing, read-only, slow


def test_a_disk_that_refuses_to_write_pauses_it_and_all_comes_when_it_writes_again(
    fast: Path, on: On
) -> None:
    here = on(fast)
    one = here.start()
    here.say(2000)  # from here on the write-ahead log is longer than what the limit allows
    here.wait_for_all()
    here.limit_file_size("65536")
    here.say(500)
    here.wait_until_blind("disk I/O error")
    assert one.get("/health")[0] == 200 == one.get("/api/tasks")[0] and here.shown() == 1999
    here.limit_file_size("unlimited")
    here.wait_for_all()
    wait_for(lambda: not here.reason())
    assert one.end() == 0 and "Traceback" not in here.log()


def test_a_disk_that_becomes_read_only_leaves_it_answering_and_it_goes_on_after_the_repair(
    fast: Path, on: On
) -> None:
    with ext4_disk(fast / "disk") as disk:
        here = on(disk)
        here.start()
        here.say(300)
        here.wait_for_all()
        device = (
            Path(f"/sys/dev/block/{os.major(disk.stat().st_dev)}:{os.minor(disk.stat().st_dev)}")
            .resolve()
            .name
        )
        root("sync", "--file-system", str(disk))  # what a power failure costs is another matter
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")
        here.say(300)
        here.wait_until_blind("readonly", "Read-only", "disk I/O error")
        assert here.program.get("/health")[0] == 200 and here.shown() == 299
        assert here.program.end() == 0
        here.start()
        ended_in_a_sentence(here, "Read-only", "readonly")
    repaired = str(
        shutil.copy(disk.with_suffix(".img"), fast / "repaired.img")
    )  # another's namespace may hold that
    root("e2fsck", "-fy", repaired, check=False)
    with mounted(disk, "-o", "loop", repaired), contextlib.closing(here):
        here.start()
        here.wait_for_all()
        assert here.program.end() == 0 and "Traceback" not in here.log() and not here.damaged()


def test_while_a_disk_stands_still_the_api_answers_and_then_ingest_goes_on(
    fast: Path, on: On
) -> None:
    with ext4_disk(fast / "disk") as disk, contextlib.closing(on(disk)) as here:
        one = here.start()
        here.say(300)
        here.wait_for_all()
        with frozen(disk):
            here.say(300)
            for _ in during(length(3, 20)):
                assert one.get("/api/tasks")[0] == 200 and here.shown() == 299
        here.wait_for_all()
        assert one.end() == 0 and "Traceback" not in here.log()


def test_while_another_process_holds_the_databases_lock_the_api_answers(fast: Path, on: On) -> None:
    here = on(fast)
    one = here.start()
    here.say(100)
    here.wait_for_all()
    with contextlib.closing(sqlite3.connect(here.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        here.say(100)
        for _ in during(length(3, 25)):
            assert one.get("/api/tasks")[0] == 200 == one.get("/health")[0] and here.shown() == 99
        other.execute("ROLLBACK")
    here.wait_for_all()
    assert one.end() == 0 and "Traceback" not in here.log()


# Damaged


def looked_over(here: Station) -> bool:
    """Ask for all there is, as people and pages do; whether it has ended."""
    for path in (
        "/api/tasks",
        "/api/invoices",
        "/api/logs?search=line",
        "/api/status/stats",
        "/api/audit-log",
    ):
        with contextlib.suppress(OSError):
            here.program.get(path, X_Task_Data_Password="open sesame")
    return here.program.process.poll() is not None


def test_a_file_damaged_at_random_pages_while_stopped_is_sound_or_moved_aside(
    fast: Path, on: On, figure: Callable[[str, object], None]
) -> None:
    here, dice, moved = on(fast), random.Random(1), 0
    here.start()
    here.say(2000)
    here.wait_for_all()
    assert here.program.end() == 0
    key = (here.disk / "local.key").read_bytes()
    for number in range(length(15, 300)):
        folder = fast / str(number)
        folder.mkdir()
        path = Path(shutil.copy(here.path, folder))
        (folder / "t.db-ours").touch()
        spoil(path, dice, dice.choice((1, 1, 2, 20)))
        with contextlib.closing(tbmon.Store(path, key)) as store:
            assert store.is_sound() and schema(path) == schema(here.path)
            rows = store.read(
                "SELECT message FROM log WHERE message LIKE 'line %' ORDER BY substr(key, 1, "
                "4), seq"
            )
            aside = list(folder.glob("*damaged*Z"))
            assert [row["message"] for row in rows] == (
                [] if aside else [f"line {n} " for n in range(2000)]
            )
        moved += len(aside)
        shutil.rmtree(folder)
    assert moved
    figure(
        "files damaged at random pages while stopped and moved aside at the start",
        f"{moved} of {number + 1}",
    )


def test_damaged_at_random_pages_while_it_runs_it_ends_and_brings_back_what_docker_holds(
    fast: Path, on: On, figure: Callable[[str, object], None]
) -> None:
    here, dice, noticed, rounds = on(fast), random.Random(2), 0, length(3, 100)
    for number in range(rounds):
        one = here.start()
        here.say(200)
        here.wait_for_all()
        hopeless = number % 10 == 2
        pages = 1000 if hopeless else dice.choice((1, 3, 20))
        spoil(here.disk / ("t.db" if hopeless else dice.choice(("t.db", "t.db-wal"))), dice, pages)
        here.say(20)
        with contextlib.suppress(AssertionError):  # what nobody reads is found at the next start
            wait_for(lambda: looked_over(here), 10 if hopeless else 3)
            noticed += 1
        ended = one.process.poll() is not None
        assert (one.process.wait(10) if ended else one.end()) in ((1,) if hopeless else (0, 1))
        for path in here.damaged()[:-1]:
            path.unlink()
    assert noticed and here.damaged() and "the next start moves it aside" in here.log()
    here.start()
    here.wait_for_all()
    assert here.program.end() == 0 and "Traceback" not in here.log()
    figure(
        "damages at random pages noticed while it ran, the others at the next start",
        f"{noticed} of {rounds}",
    )


# Files taken away


def test_files_taken_away_while_it_runs_are_noticed_and_nothing_is_lost(fast: Path, on: On) -> None:
    here = on(fast)
    backup = fast / "backup.db"
    for what in ("t.db", "t.db-wal", "t.db-shm", "replaced"):
        one = here.start()
        here.say(300)
        here.wait_for_all()
        if what == "replaced":
            os.replace(backup, here.path)
        else:
            if not backup.exists():
                with contextlib.closing(sqlite3.connect(here.path)) as db:
                    db.execute("VACUUM INTO ?", (str(backup),))
            (here.disk / what).unlink()
        here.say(100)
        assert one.process.wait(15) == 1
        assert "was removed or replaced" in here.log().splitlines()[-2]
    here.start()
    here.wait_for_all()
    assert here.program.end() == 0 and "Traceback" not in here.log() and not here.damaged()


def test_others_may_open_and_close_the_database_also_after_doctor(fast: Path, on: On) -> None:
    here = on(fast)
    one = here.start()
    here.say(50)
    here.wait_for_all()
    assert [
        f for f in one.private("/api/doctor")["findings"] if f["what"] == f"database {here.path}"
    ]
    before = [os.stat(f"{here.path}{suffix}").st_ino for suffix in ("", "-wal", "-shm")]
    with contextlib.closing(
        sqlite3.connect(here.path)
    ) as other:  # whoever closes it last deletes the -wal
        assert other.execute("SELECT COUNT(*) FROM log").fetchone()[0] == 50
    assert before == [os.stat(f"{here.path}{suffix}").st_ino for suffix in ("", "-wal", "-shm")]
    here.say(50)
    here.wait_for_all()
    assert one.end() == 0


def test_files_taken_away_after_a_crash_cost_nothing_that_docker_holds(fast: Path, on: On) -> None:
    here, dice = on(fast), random.Random(3)
    for what in ("t.db", "t.db-wal", "t.db-shm", "spoiled"):
        one = here.start()
        here.say(300)
        here.wait_for_all()
        one.end(signal.SIGKILL)
        if what == "spoiled":
            spoil(here.disk / "t.db-wal", dice, 20)
        else:
            (here.disk / what).unlink()
        here.say(100)
    here.start()
    here.wait_for_all()
    assert here.program.end() == 0 and "Traceback" not in here.log() and not here.damaged()
