"""How long answers take when much is stored."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bench_parts import COMMON, PASSWORD, RARE, Asker, Monitor, Paced, laid_down, laid_name
from bench_table import Figure, spread
from support.node_words import header

CLIENTS = 4
LONGEST_S = 15  # for one kind of question, should the answers be slow
OPEN = {"X_Task_Data_Password": PASSWORD}


def paths(tasks: int) -> dict[str, tuple[str, str]]:
    """{what: (path, the p50 and p99 of the program that tbmon replaces)}"""
    return {
        "status": ("/api/status", "2,010 and 2,017 ms"),
        "tasks page": ("/api/tasks", "0.9 and 8 ms"),
        "task": (f"/api/tasks/{laid_name(tasks // 2)}", ""),
        "logs page": ("/api/logs", "1.1 and 9.8 ms"),
        "stats": ("/api/status/stats", "8.9 and 17.8 ms"),
    }


def serving(base: Path, folder: Path, rows: int, tasks: int) -> Monitor:
    """tbmon with that much stored, reading a folder of logs."""
    (folder / "logs").mkdir(exist_ok=True)
    limits = {"API_RATE_LIMIT": "0", "MAX_DB_BYTES": str(2**40)}
    return Monitor(laid_down(base, rows, tasks), LOG_DIR=str(folder / "logs"), **limits)


def talk(folder: Path) -> Paced:
    """A node that says a line each second, so that an answer is never the same for long."""

    def say() -> None:
        with (folder / "logs" / "now.log").open("a") as file:
            file.write(header("Heartbeat sent") + "\n")

    return Paced(say, 1)


def ask_at_once(port: int, path: str, count: int) -> list[float]:
    """Milliseconds of `count` answers, or those of LONGEST_S, to each of CLIENTS, who ask again at
    once.
    """
    taken, failures, end = list[float](), list[Exception](), time.monotonic() + LONGEST_S

    def work() -> None:
        try:
            with Asker(port, path, **OPEN) as asker:
                for _ in range(count):
                    taken.append(1000 * asker.ask())
                    if time.monotonic() > end:
                        return
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures, failures
    return taken


def answers(
    base: Path, folder: Path, rows: int, tasks: int, count: int, at: str = ""
) -> Iterator[Figure]:
    with serving(base, folder, rows, tasks) as program, talk(folder):
        for name, (path, replaced) in paths(tasks).items():
            ask_at_once(program.port, path, 10)
            taken = ask_at_once(program.port, path, count)
            yield from spread(
                f"{name}, {CLIENTS} clients", taken, "ms", {50: 3, 99: 15}, replaced, at
            )


def size(quick: bool) -> tuple[int, int]:
    return (100_000, 10_000) if quick else (1_000_000, 100_000)


def api(folder: Path, quick: bool) -> Iterator[Figure]:
    rows, tasks = size(quick)
    for figure in answers(folder.parent, folder, rows, tasks, 50 if quick else 250):
        yield replace(figure, measure=f"{rows:,} rows, {tasks:,} tasks: {figure.measure}")


def search(folder: Path, quick: bool) -> Iterator[Figure]:
    """One client, who asks for the newest 50 entries with a word."""
    rows, tasks = size(quick)
    with serving(folder.parent, folder, rows, tasks) as program, talk(folder):
        for name, word, replaced in (("rare", RARE, "89 ms"), ("common", COMMON, "28 ms")):
            with Asker(program.port, f"/api/logs?search={word}", **OPEN) as asker:
                taken = [1000 * asker.ask() for _ in range(20 if quick else 40)]
            what = f"{rows:,} rows: search for a {name} word"
            yield from spread(what, taken, "ms", {50: None, 95: 150}, f"{replaced} at 212,000 rows")


def api_growth(folder: Path, quick: bool) -> Iterator[Figure]:
    least = 10_000 if quick else 100_000
    for rows in (least, 10 * least, 100 * least):
        at = f" @{rows:,} rows, {rows // 10:,} tasks"
        yield from answers(folder, folder, rows, rows // 10, 100, at)
