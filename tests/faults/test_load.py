"""A node that says 5,000 lines a second while fifty streams and twenty callers look on and others
mean harm.
"""

from __future__ import annotations

import itertools
import os
import random
import sqlite3
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from bench_parts import Monitor, semaphore, task
from support.clients import Clients
from support.engine import Node
from support.machine import LONG, cpu_s, figure_of, length, wait_for
from support.node_words import header
from support.programs import Program
from support.streams import streams_of

import tbmon

Tell = Callable[[str, object], None]
PHASES = (
    [(600, 5000), (3000, 1000)] if LONG else [(60, 2500)]
)  # (seconds, lines in a second); other tests run too
SETTLED_S = length(20, 300)  # of the load, after which memory must not grow
GROWTH = 1.10 if LONG else 1.35
IDLE_S = length(6, 60)
SAMPLE_S = 0.5
SPARE = 4  # descriptors: connections to the engine come and go by themselves
KINDS = {"streams": 50, "private": 5, "callers": 20, "drips": 100, "blind": 5}
SIZE_CAP = 256 * tbmon.MIB  # in the long form, so that there is something to prune
SETTINGS = {"MAX_DB_BYTES": str(SIZE_CAP)} if LONG else {}


class Talker:
    """Writes a busy node's log: 70 % pulses, the rest tasks with all that belongs to them; each
    entry has a number.
    """

    def __init__(self, node: Node) -> None:
        self.node, self.dice = node, random.Random(3)
        self.lines = self.entries = self.tasks = self.pulses = 0

    def numbered(self, message: str) -> str:
        number, self.entries = self.entries, self.entries + 1
        self.lines += 1 + message.count("\n")
        return header(
            message.replace("{", f'{{"n": {number}, ', 1)
            if "{" in message
            else f"{message} n={number}"
        )

    def some(self, is_task: bool) -> list[str]:
        self.tasks += is_task
        self.pulses += 0 if is_task else 3
        return [self.numbered(message) for message in (task if is_task else semaphore)(self.dice)]

    def talk(self, seconds: float, rate: int) -> None:
        """Say `rate` lines in each second, as many at a time as the clock says are due."""
        began, before, pause = time.monotonic(), self.lines, threading.Event()
        while (passed := time.monotonic() - began) < seconds:
            said = list[str]()
            while self.lines - before < rate * passed:
                said += self.some(is_task=self.pulses > 0.7 * self.lines)
            if said:
                self.node.say("\n".join(said))
            pause.wait(0.02)

    def last_words(self) -> str:
        """Say one more task, whose name tells clients that they have heard everything."""
        said = self.some(is_task=True)
        self.node.say("\n".join(said))
        return next(line for line in said if " completed" in line).split("Execution ")[1].split()[0]


def taken(db: sqlite3.Connection) -> int:
    """How many entries were taken from the engine, repeats not counted."""
    row = db.execute(
        "SELECT json_extract(value, '$.seq') FROM state WHERE name = 'engine'"
    ).fetchone()
    return int(row[0]) if row else 0


def is_pruned(db: sqlite3.Connection) -> bool:
    """True if upkeep has nothing to do for the size cap."""
    names = "page_count", "freelist_count", "page_size"
    pages, free, size = (db.execute(f"PRAGMA {name}").fetchone()[0] for name in names)
    return bool(free == 0 and pages * size <= SIZE_CAP)


def number_of(message: str) -> int:
    """The number that a Talker gave an entry."""
    text = message.partition('"n": ' if "{" in message else " n=")[2]
    return int("".join(itertools.takewhile(str.isdigit, text)))


def held(program: Program) -> dict[str, int]:
    """The threads and descriptors of the process."""
    folder = Path(f"/proc/{program.process.pid}/fd")
    places = [
        os.readlink(folder / name) for name in os.listdir(folder) if (folder / name).is_symlink()
    ]
    files = sum(place.startswith(program.env["DB_PATH"]) for place in places)
    return {
        "threads": figure_of(program.process.pid, "Threads"),
        "files": files,
        "others": len(places) - files,
    }


class Sampler:
    """Looks at the process and its file while it is under load."""

    def __init__(self, program: Program, talker: Talker) -> None:
        self.program, self.talker, self.ended = program, talker, threading.Event()
        self.rss_kib, self.wal_bytes, self.behind = list[int](), list[int](), list[int]()
        self.thread = threading.Thread(target=self.run, daemon=True)

    def run(self) -> None:
        db, wal = self.program.reader(), Path(self.program.env["DB_PATH"] + "-wal")
        while not self.ended.wait(SAMPLE_S):
            said = self.talker.entries
            self.behind.append(max(0, said - taken(db)))
            self.rss_kib.append(figure_of(self.program.process.pid, "VmRSS"))
            self.wal_bytes.append(wal.stat().st_size)

    def __enter__(self) -> Sampler:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.thread.join()


@dataclass
class Run:
    """What became of a load."""

    talker: Talker
    sampler: Sampler
    before: dict[str, int]  # what was held when other clients had come and gone
    tasks_before: int
    after: dict[str, int] = field(default_factory=dict)
    seen: dict[str, Any] = field(default_factory=dict)  # by the clients
    streams_left: int = 0
    drained_s: float = 0.0
    idle: float = 0.0  # share of a core
    numbers: list[int] = field(default_factory=list)  # of the entries kept, in their order
    counts: dict[str, int] = field(default_factory=dict)


@pytest.fixture(scope="module")
def ran(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    folder = tmp_path_factory.mktemp("load")
    node = Node(folder / "io")
    try:
        node.run()
        with Monitor(folder / "program", CONTAINER_NAME=node.name, **SETTINGS) as program:
            yield load(program, node)
            assert program.end() == 0
    finally:
        node.close()


def load(program: Monitor, node: Node) -> Run:
    talker = Talker(node)
    first = talker.last_words()
    wait_for(lambda: taken(program.db) == talker.entries)
    with Clients(program.port, {"callers": 40}) as early:  # what is made once is made by now
        talker.talk(1, 100)
        early.end(first)
    run = Run(talker, Sampler(program, talker), held(program), talker.tasks)
    with Clients(program.port, KINDS) as clients, run.sampler:
        for seconds, rate in PHASES:
            talker.talk(seconds, rate)
        began, last = time.monotonic(), talker.last_words()
        wait_for(lambda: taken(program.db) == talker.entries, 120)
        run.drained_s = time.monotonic() - began
        run.streams_left = streams_of(program)
        run.seen = clients.end(last)
    wait_for(lambda: streams_of(program) == 0)
    look(program, run)
    return run


def look(program: Monitor, run: Run) -> None:
    """What is there when all clients have gone."""
    whole = (
        "substr(key, 1, 4) > (SELECT substr(MIN(key), 1, 4) FROM log)" if LONG else "1"
    )  # one second is half pruned
    rows = program.db.execute(
        f"SELECT message FROM log WHERE {whole} ORDER BY substr(key, 1, 4), seq"
    )
    run.numbers = [number_of(row[0]) for row in rows]
    for name, sql in {
        "completed": "task WHERE status = 'completed'",
        "invoices": "invoice",
        "gaps": "gap",
    }.items():
        (run.counts[name],) = program.db.execute(f"SELECT COUNT(*) FROM {sql}").fetchone()
    wait_for(lambda: held(program)["others"] <= run.before["others"] + SPARE, 10)
    wait_for(lambda: not LONG or is_pruned(program.db), 180)
    run.after, spent = held(program), cpu_s(program.process.pid)
    threading.Event().wait(IDLE_S)
    run.idle = (cpu_s(program.process.pid) - spent) / IDLE_S


def test_under_load_every_line_is_stored_once_and_in_time(ran: Run, figure: Tell) -> None:
    figure("load: lines", ran.talker.lines)
    figure(
        "load: entries behind, median and most",
        (statistics.median(ran.sampler.behind), max(ran.sampler.behind)),
    )
    figure("load: seconds from the last line said to all stored", round(ran.drained_s, 2))
    assert ran.talker.lines > 0.9 * sum(seconds * rate for seconds, rate in PHASES)
    assert ran.numbers[-1] == ran.talker.entries - 1
    assert ran.numbers == list(range(0 if not LONG else ran.numbers[0], ran.talker.entries))
    assert ran.counts == {"completed": ran.talker.tasks, "invoices": ran.talker.tasks, "gaps": 0}
    assert ran.drained_s < length(45, 10)  # the short form runs beside other tests


def test_under_load_no_stream_has_a_gap_that_it_was_not_told_of(ran: Run, figure: Tell) -> None:
    streams, resets = ran.seen["streams"], {True: list[int](), False: list[int]()}
    assert [one["faults"] for one in streams if one["faults"]] == []
    assert [one["ended"] for one in streams] == [False] * KINDS["streams"]
    for one in streams:
        assert one["last"] or one["told"].get(
            "reset"
        )  # a stream that is behind may be sent beyond the last
        assert bool(one["told"].get("log")) == one["private"]
        resets[one["private"]].append(one["told"].get("reset", 0))
        if not resets[one["private"]][-1]:
            assert one["completed"] == one["invoices"] == ran.talker.tasks - ran.tasks_before
    figure("load: resets told to each stream with log", resets[True])
    figure("load: resets told to other streams, in all", sum(resets[False]))


def test_under_load_callers_are_answered(ran: Run, figure: Tell) -> None:
    assert ran.seen["faults"] == []
    for name, times in ran.seen["calls"].items():
        assert len(times) > 20
        cuts = [round(1000 * cut) for cut in statistics.quantiles(times, n=100)]
        figure(f"load: {name}, ms, p50 and p99 of {len(times)}", (cuts[49], cuts[98]))
        assert cuts[49] < 2000


def test_under_load_a_stream_that_is_never_read_is_cut(ran: Run) -> None:
    assert ran.streams_left == KINDS["streams"]
    assert all(0 <= sent < 8 * tbmon.MIB for sent in ran.seen["blind"])


def test_load_leaves_nothing_behind(ran: Run, figure: Tell) -> None:
    settled, last = (ran.sampler.rss_kib[int(at / SAMPLE_S)] for at in (SETTLED_S, -SAMPLE_S))
    figure(f"load: RSS in MiB after {SETTLED_S} s and at the end", (settled // 1024, last // 1024))
    figure("load: largest write-ahead log in MiB", max(ran.sampler.wal_bytes) // tbmon.MIB)
    assert last < GROWTH * settled
    assert max(ran.sampler.wal_bytes) < 128 * tbmon.MIB
    assert ran.after["threads"] == ran.before["threads"]
    assert ran.after["others"] <= ran.before["others"] + SPARE
    assert (
        ran.after["files"] <= 4 * tbmon.READERS
    )  # two for each reader kept; SQLite keeps some more for a while


def test_after_the_load_the_program_rests(ran: Run, figure: Tell) -> None:
    figure(f"load: CPU over {IDLE_S} s after it, % of a core", round(100 * ran.idle, 2))
    assert ran.idle < (
        0.005 if LONG else 0.02
    )  # of six seconds 0.005 is three ticks of the kernel's clock


def test_one_event_reaches_a_hundred_streams_together(
    node: Node, tmp_path: Path, figure: Tell
) -> None:
    node.run()
    talker, said_at = Talker(node), dict[int, float]()
    with Monitor(tmp_path / "program", CONTAINER_NAME=node.name) as program:
        talker.last_words()
        wait_for(lambda: taken(program.db) == talker.entries)
        with Clients(program.port, {"streams": 100, "private": 100}, keeps_times=True) as clients:
            for _ in range(length(12, 200)):
                said_at[talker.entries] = time.monotonic()
                node.say(talker.numbered("Heartbeat sent"))
                threading.Event().wait(0.15)
            seen = clients.end(talker.last_words())
        assert program.end() == 0
    assert [one["faults"] for one in seen["streams"] if one["faults"]] == []
    arrived = [sorted(one["arrived"][str(number)] for one in seen["streams"]) for number in said_at]
    last_ms = [
        1000 * (times[-1] - said) for times, said in zip(arrived, said_at.values(), strict=True)
    ]
    spread_ms = [1000 * (times[-1] - times[0]) for times in arrived]
    for name, values in {
        "from the node's write to the last": last_ms,
        "from the first to the last": spread_ms,
    }.items():
        figure(
            f"100 streams: {name}, ms, median and most",
            (round(statistics.median(values)), round(max(values))),
        )
    assert statistics.median(last_ms) < 2000
