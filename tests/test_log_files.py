"""Log files as they come: of any size, rotated, and beginning alike. What tbmon reads of them, what
it holds meanwhile, and how it knows them again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gzip
import re
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from support.engine import LOG_FOLDER, Node
from support.machine import figure_of, wait_for
from support.node_words import VERSION, header
from support.programs import Program, Watch, made_over_files

import tbmon

MOST_KIB = 128 * 1024  # that the program may ever hold
BANNER = [header(f"Starting services, step {number}", 1_790_000_000) for number in range(20)]
assert len("\n".join(BANNER)) > tbmon.HEAD_BYTES


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Watch]:
    """A monitor of a folder of log files, started by the test."""
    (tmp_path / "logs").mkdir()
    made = Watch(tmp_path / "data", log_dir=str(tmp_path / "logs"), log_retention_days=36500)
    yield made
    if made.threads:
        made.stop()


def folder_of(watch: Watch) -> Path:
    return Path(watch.config.log_dir)


def said(name: str, first: int, last: int) -> list[str]:
    """Lines that a file of this name says."""
    return [header(f"{name} {n}", 1_790_000_100 + n) for n in range(first, last)]


def append(path: Path, *lines: str) -> None:
    with path.open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def words(lines: list[str]) -> Counter[str]:
    return Counter(line.partition(f":{VERSION} ")[2] for line in lines)


def peak_kib(program: Program) -> int:
    return figure_of(program.process.pid, "VmHWM")


def bytes_read(program: Program) -> int:
    """What the process has read of files until now."""
    text = Path(f"/proc/{program.process.pid}/io").read_text()
    found = re.search(r"rchar: (\d+)", text)
    assert found is not None
    return int(found[1])


def has_entries(program: Program, number: int) -> bool:
    return entries(program) == number


def has_count(watch: Watch, number: int) -> bool:
    return watch.count() == number


def entries(program: Program) -> int:
    return int(program.rows("SELECT COUNT(*) FROM log")[0][0])


# What is held


def test_many_short_lines_of_a_file_are_taken_in_small_batches(
    program: Callable[..., Program],
) -> None:
    made = made_over_files(program)
    log = Path(made.env["LOG_DIR"]) / "a.log"
    log.write_text(header("first") + "\n" + "1\n" * 200_000 + header("last") + "\n")
    made.start()
    wait_for(lambda: entries(made) == 200_002, 120)
    assert peak_kib(made) < MOST_KIB


def test_many_short_lines_that_differ_are_counted_without_being_held(
    program: Callable[..., Program],
) -> None:
    made = made_over_files(program)
    log = Path(made.env["LOG_DIR"]) / "a.log"
    numbers = "".join(f"{number}\n" for number in range(140_000))
    log.write_text(header("first") + "\n" + 2 * numbers)
    made.start()
    wait_for(lambda: entries(made) == 280_001, 180)
    assert peak_kib(made) < MOST_KIB


class Chunks:
    """A stream that gives this many large chunks at once."""

    def __init__(self, count: int) -> None:
        self.left = count

    def chunks(self) -> Iterator[bytes]:
        while self.left:
            self.left -= 1
            yield b"1\n" * 128 * tbmon.KIB


def test_no_more_of_the_engines_log_is_taken_at_once_than_of_a_file() -> None:
    pipe = tbmon.Pipe(cast(tbmon.EngineStream, Chunks(20)))
    wait_for(lambda: pipe.ended)
    taken = []
    while (joined := pipe.get(0)) is not None:
        taken.append(len(joined))
    assert max(taken) <= tbmon.BATCH_BYTES + 256 * tbmon.KIB
    assert sum(taken) == 20 * 256 * tbmon.KIB


# What is read


def test_a_file_that_grows_is_read_from_where_it_was_left(program: Callable[..., Program]) -> None:
    made = made_over_files(program, LOG_RETENTION_DAYS="1")
    folder = Path(made.env["LOG_DIR"])
    old = [header(f"{number} " + "x" * 20_000, 1_700_000_000 + number) for number in range(1000)]
    (folder / "worker-2023-11-14.log.gz").write_bytes(gzip.compress("\n".join(old).encode(), 1))
    append(folder / "worker-2026-01-01.log", *old)
    append(folder / "worker-2026-01-01.log", header("first"))
    made.start()
    wait_for(lambda: entries(made) == 1, 60)
    before = bytes_read(made)
    for number in range(2, 6):
        append(folder / "worker-2026-01-01.log", header(f"more {number}"))
        wait_for(functools.partial(has_entries, made, number))
    assert bytes_read(made) - before < 10_000_000  # the file has 20 MB


# How files are known again


@pytest.mark.parametrize("order", ["ab", "ba"])
def test_files_that_begin_alike_are_two(files: Watch, order: str) -> None:
    first, second = (folder_of(files) / f"{name}.log" for name in order)
    append(first, *BANNER, *said("first", 0, 30))
    with files:
        wait_for(lambda: files.count() == 50)
        append(second, *BANNER, *said("second", 0, 5))
        wait_for(lambda: files.count() == 75)
        append(first, *said("first", 30, 40))
        append(second, *said("second", 5, 60))
        wait_for(lambda: files.count() == 140)
    append(second, *said("second", 60, 70))
    append(first, *said("first", 40, 50))
    first.rename(first.with_suffix(".1.log"))
    (folder_of(files) / f"{order[1]}.log.gz").write_bytes(gzip.compress(second.read_bytes()))
    second.unlink()
    with files:
        wait_for(lambda: files.count() == 160)
        append(folder_of(files) / "z.log", header("the end"))
        files.wait_for_message("the end")
        found = Counter(files.messages())
    expected = words(2 * BANNER + said("first", 0, 50) + said("second", 0, 70))
    assert found == expected + Counter(["the end"])


def test_files_that_have_only_begun_alike_are_two_when_they_differ(files: Watch) -> None:
    paths = [folder_of(files) / f"{name}.log" for name in "abc"]
    append(paths[0], *BANNER)
    with files:
        wait_for(lambda: files.count() == len(BANNER))
        append(paths[1], *BANNER, *said("b", 0, 9))
        wait_for(lambda: files.count() == 2 * len(BANNER) + 9)
        append(paths[2], *BANNER)
        append(paths[0], *said("a", 0, 9))
        wait_for(lambda: files.count() == 2 * len(BANNER) + 18)
        append(paths[2], *said("c", 0, 9))
        wait_for(lambda: files.count() == 3 * len(BANNER) + 27)
    expected = 3 * BANNER + said("a", 0, 9) + said("b", 0, 9) + said("c", 0, 9)
    with files:
        append(paths[1], header("the end"))
        files.wait_for_message("the end")
        assert Counter(files.messages()) == words(expected) + Counter(["the end"])


def test_many_files_that_begin_alike_at_length_are_all_read(files: Watch) -> None:
    long = [header(f"{number} " + "x" * 400, 1_790_000_000) for number in range(100)]
    paths = [folder_of(files) / f"{name}.log" for name in "abcdefgh"]
    for path in paths:
        append(path, *long, *said(path.stem, 0, 3))
    for more in (0, 2):
        for path in paths if more else ():
            append(path, *said(path.stem, 3, 5))
        with files:
            wait_for(functools.partial(has_count, files, 8 * (103 + more)))


def test_a_copy_that_is_made_and_a_file_that_is_then_cut_bring_nothing_twice(files: Watch) -> None:
    log, copy = (folder_of(files) / name for name in ("worker.log", "worker.1.log"))
    append(log, *BANNER, *said("one", 0, 30))
    with files:
        wait_for(lambda: files.count() == 50)
        whole = log.read_bytes()
        copy.write_bytes(whole[: len(whole) // 2])  # not all there yet
        append(log, *said("one", 30, 31))
        wait_for(lambda: files.count() == 51)
        copy.write_bytes(log.read_bytes())
        log.write_text("")
        append(log, *said("two", 0, 30))
        wait_for(lambda: files.count() == 81)
        assert Counter(files.messages()) == words(BANNER + said("one", 0, 31) + said("two", 0, 30))


def test_a_database_of_an_earlier_tbmon_keeps_the_places_of_files(files: Watch) -> None:
    log = folder_of(files) / "worker.log"
    append(log, *BANNER, *said("old", 0, 10))
    with files:
        wait_for(lambda: files.count() == 30)
    with contextlib.closing(sqlite3.connect(files.config.db_path)) as db:
        db.execute("UPDATE file SET tail_hash = ''")
        db.commit()
    append(log, *said("old", 10, 20))
    other = folder_of(files) / "worker2.log"
    append(other, *BANNER, *said("other", 0, 10))
    with files:
        wait_for(lambda: files.count() == 70)
        expected = 2 * BANNER + said("old", 0, 20) + said("other", 0, 10)
        assert Counter(files.messages()) == words(expected)


def test_files_in_the_container_that_begin_alike_are_two(node: Node, watch: Watch) -> None:
    watch.config = dataclasses.replace(watch.config, log_retention_days=36500)
    node.run()
    for name in ("a", "b"):
        lines = BANNER + said(name, 0, 30)
        node.put(f"{LOG_FOLDER}/{name}.log", "\n".join([*lines, ""]).encode())
    with watch:
        wait_for(lambda: watch.count() == 100)
        assert Counter(watch.messages()) == words(2 * BANNER + said("a", 0, 30) + said("b", 0, 30))
