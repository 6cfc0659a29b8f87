"""What the dashboard's charts are made of: minutes, tasks and log entries in cells, and what setup
tells.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.asking import fetch
from support.hubs import Station
from support.machine import wait_for
from support.node_words import header, task
from support.programs import Program, Watch, follow

import tbmon

MINUTE, HOUR, DAY = tbmon.MINUTE_MS, tbmon.HOUR_MS, tbmon.DAY_MS
NOW = 1_800_000_000_000 // (8 * HOUR) * 8 * HOUR + 3 * HOUR  # three hours into a cell


@pytest.fixture
def store(tmp_path: Path) -> Iterator[tbmon.Store]:
    made = tbmon.Store(tmp_path / "t.db", b"k" * 32)
    yield made
    made.close()


def note(store: tbmon.Store, begin: int, minutes: int, up: bool, cpu: float | None = 5.0) -> None:
    with store.write() as db:
        rows = [(begin + number * MINUTE, up, cpu, 100 * tbmon.MIB) for number in range(minutes)]
        store.put(db, "sample", rows)


def test_uptime_is_of_what_was_seen_and_outages_are_counted_whole(store: tbmon.Store) -> None:
    note(store, NOW - 2 * DAY, 2 * 1440, True)
    note(store, NOW - 30 * HOUR, 40, False)
    note(store, NOW - 20 * MINUTE, 5, False)
    found = tbmon.uptime_json(store, NOW)
    assert (found["outages"], found["longest_outage_min"]) == (2, 40)
    assert (found["percent_24h"], found["percent_7d"]) == (99.65, 98.43)
    assert len(found["cells"]) == 90 and found["from"] == tbmon.utc(NOW - 3 * HOUR - 89 * 8 * HOUR)
    assert found["cells"][-1] == {"up": 175, "down": 5, "unknown": 1}
    assert found["cells"][0] == {"up": 0, "down": 0, "unknown": 480}


def test_uptime_that_is_not_known_is_null_and_not_a_hundred_percent(store: tbmon.Store) -> None:
    found = tbmon.uptime_json(store, NOW)
    assert [found[f"percent_{name}"] for name in ("24h", "7d", "30d")] == [None] * 3
    assert (found["outages"], found["longest_outage_min"]) == (0, 0)


def test_use_is_told_for_a_day_or_for_as_long_as_it_is_known(store: tbmon.Store) -> None:
    note(store, NOW - HOUR, 60, True, cpu=12.34)
    fresh = tbmon.usage_json(store, NOW)
    assert (fresh["cell_s"], fresh["cells"][-2]) == (120, {"cpu": 12.3, "memory_mb": 100.0})
    assert fresh["cells"][0] == {"cpu": None, "memory_mb": None}
    note(store, NOW - DAY, 1380, True, cpu=None)
    whole = tbmon.usage_json(store, NOW)
    assert (whole["cell_s"], len(whole["cells"]), whole["cells"][5]["cpu"]) == (1200, 72, None)
    assert whole["cells"][-2]["cpu"] == 12.3


def test_tasks_fall_into_the_cell_they_were_received_in_with_their_durations(
    store: tbmon.Store,
) -> None:
    cells = tbmon.cells_of(NOW, *tbmon.SPANS["24h"])
    made = [
        tbmon.Task(f"{number:036}", status="completed", elapsed_ms=number * 10)
        for number in range(1, 101)
    ]
    made += [tbmon.Task("f" * 36, status="failed"), tbmon.Task("l" * 36, status="lost")]
    with store.write() as db:
        store.save_tasks(db, [one._replace(received_at=cells[10] + 5) for one in made])
        early = tbmon.Task("e" * 36, status="completed", received_at=cells.start - 1, elapsed_ms=7)
        store.save_tasks(db, [early, tbmon.Task("o" * 36, status="executing", received_at=NOW)])
    found = tbmon.task_series(store, cells, "TimedCell")["cells"]
    nothing: dict[str, int | None] = dict.fromkeys(
        ("completed", "failed", "ended", "lost", "open"), 0
    )
    nothing |= {"p50_ms": None, "p95_ms": None}
    assert found[10] == {
        "completed": 100,
        "failed": 1,
        "ended": 0,
        "lost": 1,
        "open": 0,
        "p50_ms": 500,
        "p95_ms": 950,
    }
    assert found[0] == found[11] == nothing and found[-1] == {**nothing, "open": 1}


def test_charts_have_two_hundred_cells_at_most() -> None:
    assert max(number for number, _ in tbmon.SPANS.values()) <= 200


def test_upkeep_notes_each_minute_and_forgets_after_a_month(tmp_path: Path) -> None:
    watch, old = (
        Watch(tmp_path / "data", log_dir=str(tmp_path)),
        int(time.time() * 1000) - tbmon.SAMPLE_MS - HOUR,
    )
    (tmp_path / "a.log").write_text(header("Starting services") + "\n")
    with contextlib.closing(tbmon.Store(Path(watch.config.db_path), watch.key)) as store:
        note(store, old, 3, True)
    with watch:
        wait_for(lambda: watch.store.read("SELECT 1 FROM sample WHERE at > ?", (old + DAY,)))
        times = [row["at"] for row in watch.store.read("SELECT at FROM sample ORDER BY at")]
        assert all(at % MINUTE == 0 and at > old + DAY for at in times) and len(times) <= 2


def test_the_log_is_counted_by_the_clock_of_utc_and_within_bounds(
    program: Callable[..., Program],
) -> None:
    one = program(NODE_TIMEZONE="Asia/Kolkata")
    (one.folder / "logs").mkdir()
    one.env["LOG_DIR"] = str(one.folder / "logs")
    ahead = time.time() + 5.5 * 3600
    lines = [
        header(f"line {number}", ahead - 2 * 3600, "warn" if number % 3 else "error")
        for number in range(30)
    ]
    lines += [
        header(f"flood {number}", ahead - 5 * 3600) for number in range(tbmon.CELL_ENTRIES + 500)
    ]
    (one.folder / "logs" / "a.log").write_text("\n".join(sorted(lines)) + "\n")
    one.start()
    wait_for(lambda: len(one.private("/api/logs?search=line&limit=100")["logs"]) == 30)
    cells = one.private("/api/logs/chart?span=24h")["cells"]
    filled = {number: cell for number, cell in enumerate(cells) if cell["entries"]}
    assert [cell["entries"] for cell in filled.values()] == [tbmon.CELL_ENTRIES, 30]
    assert list(filled.values())[1] == {"entries": 30, "errors": 10, "warnings": 20}
    assert list(filled)[1] in (43, 44)  # two hours ago, in half hours


def test_now_goes_on_where_its_stream_begins(program: Callable[..., Program]) -> None:
    one = follow(program(), task("3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"))
    wait_for(lambda: one.get("/api/tasks/stats/summary")[1]["total"] == 1)
    now = one.get("/api/now")[1]
    assert sum(sum(cell.values()) for cell in now["activity"]["cells"]) == 1
    assert [row["execution_id"] for row in now["recent"] if row["what"] == "received"] == [
        "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"
    ]
    boot, _, number = now["stream"].partition("-")
    assert len(boot) == 8 and int(number) > 0


def test_setup_and_doctor_tell_how_this_tbmon_stands(program: Callable[..., Program]) -> None:
    one = follow(program(API_KEY="short"), "Starting services")
    key = {"Authorization": "Bearer short"}
    setup = one.get("/api/setup", **key)[1]
    expected = {
        "source": "directory",
        "host": "127.0.0.1",
        "apiKey": True,
        "dockerUrl": None,
        "dockerCalls": [],
    }
    assert {name: setup[name] for name in expected} == expected
    assert (
        setup["database"]["size_bytes"] > 0
        and "open sesame" not in str(setup)
        and "short" not in str(setup)
    )
    assert one.get("/api/doctor", **key)[0] == 401
    found = fetch(one, "/api/doctor", **key).json["findings"]
    whats = [row["what"] for row in found]
    assert (
        "API_KEY is short enough to be guessed" in whats
        and f"tbmon answers on port {one.port}" in whats
    )


def test_a_rate_is_of_all_only_if_none_failed(station: Callable[..., Station]) -> None:
    one = station("nats://127.0.0.1:1")
    names = [f"{number:08x}-1111-4000-8000-000000000000" for number in range(2500)]
    tasks = [tbmon.Task(name, status="completed", evidence=tbmon.IN_LOG) for name in names]
    with one.store.write() as db:
        one.store.save_tasks(db, [*tasks[1:], tasks[0]._replace(status="failed")])
    assert one.api.summary()["success_rate"] == 99.9
