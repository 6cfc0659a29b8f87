"""The host's clock jumps under a real tbmon: it goes on, keeps every line once, and deletes nothing
by a wrong time.
"""

from __future__ import annotations

import contextlib
import http.client
import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import pytest
from support.engine import Node
from support.log_feed import Feed, frame
from support.machine import length, missing, wait_for
from support.node_words import header
from support.programs import Program
from support.streams import OPEN, Stream, login

import tbmon

HOUR, DAY, YEAR = 3600, 86_400, 365 * 86_400
JUMPS = (
    HOUR,
    -HOUR,
    YEAR,
    0,
    -YEAR,
    0,
)  # how far a clock is ahead of the true time, one after the other


class Clocked:
    """tbmon with a wall clock that a test sets; its monotonic clock goes on, as a kernel's does."""

    def __init__(self, program: Callable[..., Program], folder: Path, **settings: str) -> None:
        library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
        if library is None:
            missing("libfaketime (Debian's package faketime)")
        self.file = folder / "clock"
        self.ahead(0)
        self.program = program(
            LD_PRELOAD=str(library),
            FAKETIME_TIMESTAMP_FILE=str(self.file),
            FAKETIME_CACHE_DURATION="1",
            FAKETIME_DONT_FAKE_MONOTONIC="1",
            NO_FAKE_STAT="1",
            WS_MAX_CONNECTIONS="2",
            API_RATE_LIMIT="0",
            **settings,
        )

    def ahead(self, seconds: float) -> None:
        """Set the clock this far from the true time."""
        self.seconds = seconds
        part = self.file.with_suffix(".part")
        part.write_text(f"{seconds:+f}")
        part.replace(self.file)

    def jump(self, seconds: float) -> None:
        """The same under a program that runs; returns once that sees it."""
        self.ahead(seconds)
        wait_for(lambda: abs(self.now() - time.time() - seconds) < 60)

    def wait_for_second(self, second: float) -> None:
        wait_for(lambda: self.now() > second)

    def now(self) -> float:
        """What the program's clock shows."""
        cut = (
            http.client.IncompleteRead,
            ConnectionResetError,
        )  # the server may take what is on its way for too slow
        with contextlib.suppress(*cut):
            return datetime.fromisoformat(self.program.get("/health")[1]["timestamp"]).timestamp()
        return math.nan

    def restart(self, seconds: float) -> None:
        with self.stopped():
            self.ahead(seconds)

    @contextlib.contextmanager
    def stopped(self) -> Iterator[sqlite3.Connection]:
        """Between two runs, with the database at hand."""
        assert self.program.end() == 0
        with contextlib.closing(
            sqlite3.connect(self.program.folder / "t.db", isolation_level=None)
        ) as db:
            yield db
        self.program.start()

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.program.private("/api/logs?limit=1000")["logs"]]

    def wait_for_lines(self, *lines: str) -> None:
        """Until each is there; none may be there twice."""
        wait_for(lambda: set(lines) <= set(self.messages()))
        assert sorted(self.messages()) == sorted(lines)

    def wait_for_status(self) -> None:
        """Until upkeep has seen the clock: no verdict is from after the clock's own time."""

        def seen() -> bool:
            status = self.program.get("/api/status")[1]
            return bool(status["verdict"] and status["verdict"]["since"] <= status["timestamp"])

        wait_for(seen)


@pytest.fixture
def clocked(program: Callable[..., Program], tmp_path: Path) -> Callable[..., Clocked]:
    return lambda **settings: Clocked(program, tmp_path, **settings)


def test_jumps_lose_and_double_no_line_and_stop_nothing(
    node: Node, clocked: Callable[..., Clocked]
) -> None:
    node.run()
    clock = clocked(CONTAINER_NAME=node.name)
    clock.program.start()
    lines: list[str] = []

    def say(words: str) -> None:
        lines.append(words)
        node.say(header(words), stream=("out", "err")[len(lines) % 2])

    say("at first")
    clock.wait_for_lines(*lines)
    cookie = login(clock.program, OPEN["X-Task-Data-Password"])
    with Stream(clock.program, OPEN) as stream:
        for number, ahead in enumerate(JUMPS * length(1, 20)):
            clock.jump(ahead)
            say(f"jump {number}")
            stream.wait_for_message(lines[-1])
            if number in (0, 1):
                assert clock.program.get("/api/logs", Cookie=cookie)[0] == 200
            if ahead < 0:
                clock.wait_for_status()
    clock.wait_for_lines(*lines)
    for number, ahead in enumerate(length(1, 10) * JUMPS[1:3]):
        say(f"before start {number}")
        clock.restart(ahead)
        say(f"after start {number}")
        clock.wait_for_lines(*lines)


@pytest.mark.parametrize("jumps", [(YEAR, 0, YEAR), (-YEAR, 0)])
def test_a_year_in_the_wrong_deletes_nothing_that_is_young(
    clocked: Callable[..., Clocked], tmp_path: Path, jumps: tuple[int, ...]
) -> None:
    """By a start with a wrong clock; what is old by the right time goes all the same."""
    logs, now = tmp_path / "logs", int(time.time())
    logs.mkdir()
    days = [header(f"day {day}", now - day * DAY) for day in range(29, 0, -1)]
    (logs / "node.log").write_text("\n".join(days) + "\n")
    clock = clocked(LOG_DIR=str(logs))
    clock.program.start()
    lines = [f"day {day}" for day in range(29, 0, -1)]
    clock.wait_for_lines(*lines)
    for offset in jumps:
        with clock.stopped() as db:
            key, at = (now - 40 * DAY).to_bytes(4, "big") + b"an old entry", (now - 40 * DAY) * 1000
            db.execute(
                "INSERT OR IGNORE INTO log VALUES (?, 0, ?, 0, 0, 1, 0, NULL, 'old')", (key, at)
            )
            clock.ahead(offset)
        if offset >= 0:
            wait_for(lambda: not clock.program.rows("SELECT 1 FROM log WHERE message = 'old'"))
        lines.append(f"told {len(lines)}")
        with (logs / "node.log").open("a") as file:
            file.write(header(lines[-1]) + "\n")
        wait_for(lambda: set(lines) <= set(clock.messages()))
    clock.restart(0)
    wait_for(lambda: not clock.program.rows("SELECT 1 FROM log WHERE message = 'old'"))
    clock.wait_for_lines(*lines)


def test_a_new_time_is_believed_after_some_hours(tmp_path: Path) -> None:
    now = [time.time()]
    store = tbmon.Store(tmp_path / "t.db", b"k" * 32)
    with contextlib.closing(store):
        monitor = tbmon.Monitor(
            tbmon.Config(),
            store,
            tbmon.Redactor(b"k" * 32),
            None,
            threading.Event(),
            clock=lambda: now[0],
        )
        tbmon.prune(monitor)
        now[0] += 50 * DAY
        for _ in range(tbmon.DOUBT_LOOKS):
            tbmon.prune(monitor)
            assert monitor.oldest(0) < (now[0] - 49 * DAY) * 1000
        tbmon.prune(monitor)
        assert monitor.oldest(0) == int(now[0] * 1000)


@pytest.mark.parametrize(
    ("second", "kept"), [(2**31, 2), (tbmon.END_MS // 1000, 1), (2**32, 0)][: length(2, 3)]
)
def test_it_lives_through_the_end_of_32_bits(
    clocked: Callable[..., Clocked], tmp_path: Path, second: int, kept: int
) -> None:
    """2038-01-19 is a second like others; 2105 is the last year of which a stamp is read, and 2106
    stops nothing.
    """
    logs = tmp_path / "logs"
    logs.mkdir()
    clock = clocked(LOG_DIR=str(logs))
    clock.ahead(second - 2 - time.time())
    clock.program.start()
    for moment in (second - 2, second + 2):
        with (logs / "node.log").open("a") as file:
            file.write(header("hello", moment) + "\n")
        clock.wait_for_second(moment + 1)
    for path in ("/api/status", "/api/status/stats", "/api/logs/status", "/metrics"):
        assert clock.program.get(path)[0] == 200
    wait_for(lambda: len(clock.messages()) >= kept)
    clock.restart(clock.seconds)
    found = clock.program.private("/api/logs")["logs"]
    assert [entry["timestamp"] for entry in found if entry["message"] == "hello"] == [
        f"{tbmon.second_text(at).replace(' ', 'T')}.000Z" for at in (second + 2, second - 2)
    ][2 - kept :]
    assert clock.program.end() == 0


LEAP = ("2016-12-31 23:59:59", "2016-12-31 23:59:60", "2017-01-01 00:00:00")


def test_a_leap_second_is_the_second_after(clocked: Callable[..., Clocked], tmp_path: Path) -> None:
    """Its entries are kept, each once and in order, over a start too."""
    logs, head = (
        tmp_path / "logs",
        header("x", 0).removeprefix("1970-01-01 00:00:00").removesuffix(" x"),
    )
    logs.mkdir()
    (logs / "node.log").write_text(
        "".join(f"{text}{head} {name}\n" for name, text in zip("abc", LEAP, strict=True))
    )
    clock = clocked(LOG_DIR=str(logs), LOG_RETENTION_DAYS="36500")
    clock.program.start()
    for _ in range(2):
        wait_for(lambda: len(clock.messages()) >= 3)
        found = [
            (entry["message"], entry["timestamp"][:19])
            for entry in clock.program.private("/api/logs")["logs"]
        ]
        assert found == [
            ("c", "2017-01-01T00:00:00"),
            ("b", "2017-01-01T00:00:00"),
            ("a", "2016-12-31T23:59:59"),
        ]
        clock.restart(YEAR)


# The engine's clock jumps too: what it holds is then not in the order of its stamps


class Engine(Feed):
    """An engine's log, line after line with the stamps of a clock that jumps, read over any number
    of connections.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.held: list[tuple[float, str]] = []
        self.place = 0

    def log(self, at: float, *words: str) -> None:
        self.held += [(at, one) for one in words]

    def begin(self, at: float) -> None:
        """Connect at a time of the host's clock."""
        self.monitor.clock = lambda: at
        self.connect()
        self.place = 0

    def go_on(self, until: int | None = None) -> None:
        """Take what the engine gives on this connection; to its end, or be killed after line
        `until`.
        """
        since, some = self.feed.since_s or 0, enumerate(self.held[self.place : until], self.place)
        given = [(number, at, words) for number, (at, words) in some if at >= since]
        lines = [
            (1, stamp(at, number).encode(), header(words, at).encode())
            for number, at, words in given
        ]
        for begin in range(0, len(lines), 500):
            self.feed.take_lines(lines[begin : begin + 500])
            self.feed.commit()
        self.place = len(self.held)
        if until is None:
            self.feed.go_live()
            self.feed.end_reread()
            self.feed.caught_up()

    def read(self, at: float, until: int | None = None) -> None:
        self.begin(at)
        self.go_on(until)

    def check(self) -> None:
        found = self.store.entries({}, 0, 2**42, None, 10**6)
        assert Counter(row["message"] for row in found) == Counter(words for _, words in self.held)


def stamp(second: float, number: int) -> str:
    return f"{tbmon.second_text(int(second)).replace(' ', 'T')}.{number:09d}Z"


@pytest.fixture
def engine_log(tmp_path: Path) -> Iterator[Engine]:
    made = Engine(tmp_path)
    yield made
    made.store.close()


BEGIN = int(time.time()) - 5 * DAY


@pytest.mark.parametrize("killed_at", [1, 777, 2222])
def test_a_kill_while_all_is_read_again_stores_nothing_twice(
    engine_log: Engine, killed_at: int
) -> None:
    for number in range(3000):
        engine_log.log(BEGIN + number // 500, "the same" if number % 5 == 0 else f"line {number}")
    engine_log.read(BEGIN + 60)
    engine_log.check()
    engine_log.read(BEGIN - HOUR, killed_at)
    engine_log.read(BEGIN + 60)
    engine_log.check()


@pytest.mark.parametrize("back", [30, HOUR, 10 * DAY])
def test_lines_of_a_clock_that_was_set_back_while_nobody_read_are_not_lost(
    engine_log: Engine, back: int
) -> None:
    for number in range(1000):
        engine_log.log(BEGIN + number // 100, f"before {number}", "the same")
    engine_log.read(BEGIN + 10)
    engine_log.log(BEGIN - back + 10, "set back, and read")
    engine_log.go_on()
    for number in range(100):
        engine_log.log(BEGIN - back + 11 + number / 100, f"set back {number}", "the same")
    engine_log.read(BEGIN + 100)
    engine_log.check()
    engine_log.log(BEGIN + 101, "where it was")
    engine_log.read(BEGIN + 102)
    engine_log.check()
    assert engine_log.feed.since_s is None
    engine_log.connect()
    assert engine_log.feed.since_s == BEGIN + 101 - tbmon.OVERLAP_S


def test_a_long_log_with_a_jump_in_it_is_read_again_without_a_double(engine_log: Engine) -> None:
    """Longer than what is remembered of equal headers."""
    for number in range(22_000):
        engine_log.log(
            BEGIN + number // 100 - (HOUR if number > 20_500 else 0), f"line {number % 20_000}"
        )
    for _ in range(2):
        engine_log.read(BEGIN - 2 * HOUR)
        engine_log.check()


class Halting:
    """An engine that gives its log in two parts, as a network may, and then ends the connection."""

    copies = 0

    def __init__(self, lines: list[tuple[float, str]]) -> None:
        started = int(lines[0][0] * 1000)
        self.container = tbmon.Container(
            "a" * 64, "n", "running", True, started, started, "x", 0, False, "json-file"
        )
        said = (
            f"{stamp(at, number)} {header(words, at)}\n" for number, (at, words) in enumerate(lines)
        )
        self.frames = [frame(1, line.encode()) for line in said]

    def inspect(self, name: str) -> tbmon.Container:
        return self.container

    def stat(self, name: str, path: str) -> None:
        return None

    def logs(self, name: str, since_s: int | None, follow: bool) -> Halting:
        assert since_s is None
        return self

    def chunks(self) -> Iterator[bytes]:
        yield b"".join(self.frames[:50])
        threading.Event().wait(0.1)  # what tbmon must not take for the end
        yield b"".join(self.frames[50:])

    def close(self) -> None:
        pass


def test_a_pause_while_all_is_read_again_is_not_taken_for_its_end(engine_log: Engine) -> None:
    now = int(time.time())
    lines: list[tuple[float, str]] = [
        (now + 7000 + number, f"ahead {number}") for number in range(100)
    ]
    lines += [(now - 100 + number, f"set right {number}") for number in range(90)]
    engine = Halting(lines)
    follower = tbmon.Follower(engine_log.monitor, cast(Any, engine))
    for _ in range(3):
        follower.step()
        assert Counter(
            row["message"] for row in engine_log.store.entries({}, 0, 2**42, None, 1000)
        ) == Counter(words for _, words in lines)
