"""How fast a history is read, from files and from the engine, and what that takes."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from bench_parts import Asker, Load, Monitor, Paced, container, write_log
from bench_table import Figure

STALL_S = 30.0  # without a new row, nothing more is expected to come


class Reading(NamedTuple):
    """One run: lines a second, seconds from first row to last, most MiB held, percent stored,
    slowest answer in ms.
    """

    rate: float
    rows_s: float
    peak_mib: float
    stored: float
    slowest_ms: float


def ingest(program: Monitor, name: str, load: Load) -> Reading:
    """Wait until an empty database holds `load`; the rate is that of the rows after the first
    commit seen.
    """
    first, first_at, stored, moved_at = 0, 0.0, 0, time.monotonic()
    taken = list[float]()
    with Asker(program.port, "/api/status") as asker, Paced(lambda: taken.append(asker.ask()), 0.1):
        while stored < load.entries and time.monotonic() < moved_at + STALL_S:
            time.sleep(0.01)
            # committed with the rows it counts
            sql = "SELECT json_extract(value, '$.seq') FROM state WHERE name = ?"
            row = program.db.execute(sql, (name,)).fetchone()
            if row is not None and row[0] > stored:
                stored, moved_at = row[0], time.monotonic()
                first, first_at = (first, first_at) if first else (stored, moved_at)
    assert stored > first, "too few rows came, or all at once"
    rate = load.lines * (stored - first) / load.entries / (moved_at - first_at)
    peak, share = program.memory_mib("VmHWM"), count_stored(program, name, load)
    return Reading(rate, moved_at - first_at, peak, share, 1000 * max(taken))


def count_stored(program: Monitor, name: str, load: Load) -> float:
    """The percentage of the entries that are stored, 100 only if their tasks are completed and none
    is odd.
    """
    rows, odd = program.db.execute("SELECT COUNT(*), TOTAL(flags != 0) FROM log").fetchone()
    (tasks,) = program.db.execute("SELECT COUNT(*) FROM task WHERE status = 'completed'").fetchone()
    if (rows, tasks, odd) != (load.entries, load.tasks, 0):
        print(
            f"{name}: NOT ALL STORED: {rows} of {load.entries} entries, {odd:.0f} of them suspect "
            f"or not recognised,"
            f" {tasks} of {load.tasks} tasks"
        )
    return float(100 * min(rows / load.entries, tasks / load.tasks, 1 - odd / rows))


def told(
    what: str, runs: list[Reading], rate: int, replaced: tuple[str, str, str, str]
) -> Iterator[Figure]:
    """The median of the rates; of everything else the worst."""
    yield Figure(
        f"{what}: rate",
        statistics.median(one.rate for one in runs),
        "lines/s",
        rate,
        True,
        replaced[0],
    )
    yield Figure(
        f"{what}: peak RSS", max(one.peak_mib for one in runs), "MiB", 80, replaced=replaced[1]
    )
    yield Figure(f"{what}: stored", min(one.stored for one in runs), "%", 100, True, replaced[2])
    slowest = max(one.slowest_ms for one in runs)
    yield Figure(f"{what}: slowest /api/status meanwhile", slowest, "ms", replaced=replaced[3])


def write_files(folder: Path, lines: int) -> Load:
    """History of five days in five files."""
    (folder / "log").mkdir()
    names = [
        folder / "log" / f"node-2026-01-0{day}.log" for day in range(1, 6)
    ]  # names only give the order
    return write_log(names, lines, 5 * 86400)


def files(folder: Path, quick: bool) -> Iterator[Figure]:
    lines, runs = 100_000 if quick else 1_000_000, list[Reading]()
    load = write_files(folder, lines)
    for number in range(3):
        with Monitor(
            folder / f"data{number}", LOG_DIR=str(folder / "log"), API_RATE_LIMIT="0"
        ) as program:
            runs.append(ingest(program, "files", load))
            assert program.end() == 0  # which empties the write-ahead log into the file
    old = ("6,200 lines/s", "365 MiB", "98.1 %", "no answer until all is read")
    yield from told(f"history of {lines:,} lines from files", runs, 120_000, old)
    share = Path(program.env["DB_PATH"]).stat().st_size / load.size
    yield Figure(
        f"database after {lines:,} lines, for each byte of them",
        share,
        "bytes",
        1.0,
        replaced="about 3",
    )


def engine(folder: Path, quick: bool) -> Iterator[Figure]:
    lines, runs = 100_000 if quick else 300_000, list[Reading]()
    with container(folder, lines) as (node, load):
        for number in range(3):
            with Monitor(
                folder / f"data{number}", CONTAINER_NAME=node.name, API_RATE_LIMIT="0"
            ) as program:
                runs.append(ingest(program, "engine", load))
    yield from told(
        f"history of {lines:,} lines from the engine",
        runs,
        60_000,
        ("stores nothing", "", "0 %", ""),
    )


def files_growth(folder: Path, quick: bool) -> Iterator[Figure]:
    for lines in (10_000, 100_000, 1_000_000) if quick else (100_000, 1_000_000, 10_000_000):
        place = folder / str(lines)
        place.mkdir()
        load = write_files(place, lines)
        limits = {"MAX_DB_BYTES": str(2**40), "API_RATE_LIMIT": "0"}
        with Monitor(place / "data", LOG_DIR=str(place / "log"), **limits) as program:
            run = ingest(program, "files", load)
        at = f" @{lines:,} lines"
        yield Figure(f"history from files: rate{at}", run.rate, "lines/s")
        yield Figure(f"history from files: peak RSS{at}", run.peak_mib, "MiB")
        yield Figure(f"history from files: stored{at}", run.stored, "%")
