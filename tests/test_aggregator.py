"""What the aggregator counts, keeps and publishes, without a hub: a plain recount, hostile
input, a broken disk.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import hashlib
import json
import os
import random
import re
import secrets
import signal
import sqlite3
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import ROOT, layout
from support.federation_feed import EXACT, NOON, UNLIMITED, Feed, Said, spoiled
from support.layout import RULE, findings, functions, sections, undocumented

import aggregator
import tbmon

MINUTE, HOUR, DAY = 60_000, 3_600_000, 86_400_000
WINDOW = 5 * MINUTE
MIDNIGHT = NOON + 12 * HOUR
NODE_FIGURES = ("activeNodes", "totalNodes")
SPREADS = {
    "executionTimeDistribution": "executionTimeBucket",
    "gasUsageDistribution": "gasUsedBucket",
    "memoryUsedDistribution": "memoryUsedBucket",
    "stepsComputedDistribution": "stepsComputedBucket",
    "taskTypeDistribution": "taskType",
}
Work = list[tuple[int, dict[str, Any]]]  # windows, and messages or their data
RESULTS = ("executionTimeDistribution", "gasUsageDistribution", "memoryUsedDistribution")


class Bench:
    """A store with its publisher, without a hub."""

    def __init__(self, folder: Path, **chosen: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.config = aggregator.Config(**{"db_path": str(folder / "a.db"), **UNLIMITED, **chosen})
        self.store = aggregator.Store(self.config)
        self.publisher = aggregator.Publisher(self.config, self.store)

    def take(self, at: int, *messages: Said) -> Bench:
        self.store.take([aggregator.Received(one.subject, one.payload, at) for one in messages])
        return self

    def publish(self, at: int) -> dict[str, Any]:
        """The figures of a publication at that time, as a monitor reads them."""
        payload = self.publisher.publication(at)
        data = tbmon.read_publication(payload)
        assert data is not None, payload
        return data

    def rows(self, table: str) -> list[tuple[Any, ...]]:
        return aggregator.read(self.store.path, f"SELECT * FROM {table}")

    def dropped(self) -> dict[str, int]:
        found = Counter[str]()
        for _, name, value, count in self.rows("tally"):
            found[value] += count if name == aggregator.DROPPED else 0
        return dict(+found)

    def prune(self, at: int, days: int = 30) -> None:
        for _ in self.store.prune(at, days):
            pass

    def close(self) -> None:
        self.store.close()


Make = Callable[..., Bench]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """Makes Counters, each with a file of its own, and closes them."""
    made: list[Bench] = []

    def one(**chosen: Any) -> Bench:
        made.append(Bench(tmp_path / f"store{len(made)}", **chosen))
        return made[-1]

    yield one
    for counter in made:
        counter.close()


def figures(data: dict[str, Any]) -> dict[str, Any]:
    """Those of tasks and invoices, and the peers: what a snapshot or a day holds."""
    return {name: value for name, value in data.items() if name not in NODE_FIGURES}


# Right numbers


class Recount:
    """The figures, counted again in the plainest way: every message is kept."""

    def __init__(self) -> None:
        self.ids: set[str] = set()
        self.work: Work = []  # window, message
        self.online: set[tuple[int, str]] = set()
        self.heard: dict[
            str, list[tuple[int, str]]
        ] = {}  # node: windows and kinds, in order of arrival
        self.dropped = 0

    def take(self, at: int, one: Said) -> None:
        message = json.loads(one.payload) if one.is_good else {}
        window = round(
            datetime.fromisoformat(message.get("timestamp", "1980-01-01T00:00Z")).timestamp() * 1000
        )
        if not at - 8 * DAY <= window <= at + 10 * MINUTE or message["id"] in self.ids:
            self.dropped += 1
        elif "status" in message["data"] and len(message["data"]) == 1:
            self.heard.setdefault(message["nodeId"], []).append((window, message["type"]))
            if message["data"]["status"] == "online":
                self.online.add((window, message["nodeId"]))
        else:
            self.ids.add(message["id"])
            self.work.append((window, message))

    def staying(self, now: int) -> dict[str, list[int]]:
        """The windows of those that did not leave before or in the running one."""
        found = self.heard.items()
        gone = {node for node, said in found if said[-1][1] == "node_left" and said[-1][0] <= now}
        return {node: [window for window, _ in said] for node, said in found if node not in gone}

    def nodes(self, now: int) -> tuple[int, int]:
        """(active in this window or the last one, heard of in the 24 h up to now)."""
        running = now // WINDOW * WINDOW
        staying = self.staying(running)
        active = {
            node
            for window, node in self.online
            if running - WINDOW <= window <= running and node in staying
        }
        heard = [
            said for said in staying.values() if min(said) <= running and max(said) > running - DAY
        ]
        return len(active), len(heard)

    def figures(self, now: int) -> dict[str, Any]:
        """What the publication must hold in exact mode, but peers and snapshotAt."""
        kinds: dict[str, Work] = {"task_received": [], "task_completed": [], "invoice_created": []}
        for window, message in self.work:
            kinds[message["type"]].append((window, message["data"]))
        received, finished, invoices = kinds.values()
        running = now // WINDOW * WINDOW
        last_day = [
            sum(running - DAY < window <= running for window, _ in one)
            for one in (received, invoices)
        ]
        good = sum(data["status"] == "completed" for _, data in finished)
        cached = sum(data["cached"] is True for _, data in finished)
        active, total = self.nodes(now)
        return {
            "activeNodes": active or None,
            "totalNodes": total or None,
            "totalTasks": len(received),
            "completedTasks": good,
            "failedTasks": len(finished) - good,
            "cachedTasks": cached,
            "tasksLast24h": last_day[0],
            "totalInvoices": len(invoices),
            "invoicesLast24h": last_day[1],
            "successRate": round(100 * good / len(finished), 2) if finished else None,
            "cacheHitRate": round(100 * cached / len(finished), 2) if finished else None,
            **{
                name: self.spread(field, received, finished, invoices)
                for name, field in SPREADS.items()
            },
        }

    def spread(self, field: str, *lists: Work) -> dict[str, int]:
        where = lists[0] if field == "taskType" else lists[1] + lists[2]
        return dict(Counter(data[field] for _, data in where if field in data))


HOSTILE = (
    Said("truebit.tasks.received", b"\xff\x00garbage", False),
    Said("truebit.heartbeat", b"", False),
    Said("truebit.tasks.received", b"[" * 2000, False),
    Said("truebit.tasks.completed", b"x" * 5000, False),
    spoiled(version="2.0"),
    spoiled(dataextra="x"),
    spoiled(datataskType="go"),
    spoiled(type="network_stats"),
    spoiled(nodeId="node-11111111-1111-4111-8111-111111111111"),
    spoiled(timestamp="2026-05-29T12:01:00.000Z"),
)
EDGES = (
    -8 * DAY,
    -8 * DAY - WINDOW,
    -8 * DAY + WINDOW,
    0,
    WINDOW,
    2 * WINDOW,
    3 * WINDOW,
    -DAY,
    WINDOW - DAY,
    -WINDOW,
)


def draw(feed: Feed, at: int, before: list[Said]) -> Said:
    """The next message that the hub has: new, late, at an edge, out of range, a repetition, or
    hostile.
    """
    dice, roll = feed.dice, feed.dice.random()
    if roll < 0.08 and before:
        return dice.choice(before)
    if roll < 0.12:
        return dice.choice(HOSTILE)
    if roll < 0.3:
        return feed.anything(at // WINDOW * WINDOW + dice.choice(EDGES))
    if roll < 0.33:
        return feed.anything(at + dice.choice((-1, 1)) * dice.randrange(9 * DAY))
    return feed.anything(at - int(dice.expovariate(1 / (6 * HOUR))))


def moments(dice: random.Random) -> list[int]:
    """When publications are made in three days: at edges of windows and days, a millisecond
    beside them, anywhere.
    """
    edges = [MIDNIGHT, MIDNIGHT + DAY, NOON + dice.randrange(3 * DAY) // WINDOW * WINDOW]
    within = [NOON + dice.randrange(3 * DAY) for _ in range(2)]
    return sorted([*within, *(edge + one for edge in edges for one in (-1, 0))])


def some(value: Any) -> Any:
    """A distribution without its empty ranges; anything else as it is."""
    return (
        {name: count for name, count in value.items() if count}
        if isinstance(value, dict)
        else value
    )


def check_sums(data: dict[str, Any]) -> None:
    """The distributions say as much as the counts."""
    finished = data["completedTasks"] + data["failedTasks"]
    assert sum(sum(data[name].values()) for name in RESULTS) == finished
    assert sum(data["stepsComputedDistribution"].values()) == data["totalInvoices"]
    assert sum(data["taskTypeDistribution"].values()) == data["totalTasks"]
    assert (data["activeNodes"] or 0) <= (data["totalNodes"] or 0)


@pytest.mark.slow
def test_100_000_random_messages_add_up_to_what_a_plain_recount_gives(make: Make) -> None:
    feed, counter, recount = Feed(51, nodes=40), make(**EXACT), Recount()
    dice, before = feed.dice, list[Said]()
    stops = [*moments(dice), NOON + 3 * DAY]
    stamps = sorted((NOON + dice.randrange(3 * DAY) for _ in range(100_000)), reverse=True)
    for stop in stops:
        batch: list[aggregator.Received] = []
        size = dice.randrange(1, 3000)
        while stamps and stamps[-1] <= stop:
            at = stamps.pop()
            one = draw(feed, at, before)
            before.append(one)
            recount.take(at, one)
            batch.append(aggregator.Received(one.subject, one.payload, at))
            if len(batch) >= size:
                counter.store.take(batch)
                batch, size = [], dice.randrange(1, 3000)
        counter.store.take(batch)
        data, expected = counter.publish(stop), recount.figures(stop)
        shown = {name: some(data[name]) for name in expected}
        assert shown == expected, datetime.fromtimestamp(stop / 1000, UTC)
        check_sums(data)
    assert not stamps and sum(counter.dropped().values()) == recount.dropped > 10_000
    assert len(recount.work) > 40_000


def test_a_message_counts_once_however_often_and_when_it_comes(make: Make) -> None:
    feed, counter = Feed(1, nodes=1), make(**EXACT)
    one, other = feed.completed(NOON), feed.completed(NOON)
    counter.take(NOON, one, one, other, one).take(NOON + HOUR, one).take(NOON + 7 * DAY, one, other)
    data = counter.take(NOON + 7 * DAY, feed.beat(feed.nodes[0], NOON + 7 * DAY)).publish(
        NOON + 7 * DAY
    )
    assert data["completedTasks"] + data["failedTasks"] == 2
    assert counter.dropped() == {"it was counted before": 5}


@pytest.mark.parametrize("edge", [NOON, MIDNIGHT])
def test_the_last_24_hours_end_with_the_running_window_and_begin_a_day_before_it(
    make: Make, edge: int
) -> None:
    feed, counter = Feed(2, nodes=1), make(**EXACT)
    for window in range(edge - DAY - 3 * WINDOW, edge + 3 * WINDOW, WINDOW):
        counter.take(edge, feed.received(window), feed.invoice(window), feed.invoice(window))
    for now, begin in (
        (edge - 1, edge - DAY - WINDOW),
        (edge, edge - DAY),
        (edge + WINDOW - 1, edge - DAY),
    ):
        data = counter.take(now, feed.beat(feed.nodes[0], now)).publish(now)
        expected = (now // WINDOW * WINDOW - begin) // WINDOW
        assert expected == 288
        assert (data["tasksLast24h"], data["invoicesLast24h"]) == (expected, 2 * expected)


def test_the_last_24_hours_lose_what_grows_older_and_the_totals_do_not(make: Make) -> None:
    feed, counter = Feed(3, nodes=1), make(**EXACT)
    counter.take(
        MIDNIGHT,
        feed.received(MIDNIGHT - WINDOW),
        feed.received(MIDNIGHT),
        feed.received(MIDNIGHT + WINDOW),
    )
    shown = []
    for now in (MIDNIGHT, *(MIDNIGHT + DAY + step * WINDOW for step in (-2, -1, 0, 1))):
        data = counter.take(now, feed.beat(feed.nodes[0], now)).publish(now)
        shown.append(data["tasksLast24h"])
        assert data["totalTasks"] == 3
    assert shown == [2, 3, 2, 1, 0]


def test_nodes_are_active_by_the_window_and_heard_of_for_a_day(make: Make) -> None:
    feed, counter = Feed(4, nodes=3), make(**EXACT)
    early, late, silent = feed.nodes
    offline = feed.presence("heartbeat", silent, NOON, is_online=False)
    counter.take(NOON, feed.beat(early, NOON - WINDOW), feed.beat(late, NOON), offline)
    shown = []
    for now in (
        NOON,
        NOON + WINDOW - 1,
        NOON + WINDOW,
        NOON + 2 * WINDOW,
        NOON + DAY - WINDOW - 1,
        NOON + DAY - 1,
    ):
        data = counter.publish(now)
        shown.append((data["activeNodes"], data["totalNodes"]))
    assert shown == [(2, 3), (2, 3), (1, 3), (None, 3), (None, 3), (None, 2)]
    assert counter.publish(NOON + DAY)["totalNodes"] is None


def test_a_node_that_leaves_is_gone_at_once_and_may_come_back(make: Make) -> None:
    feed, counter = Feed(5, nodes=3), make(**EXACT)
    leaver, *others = feed.nodes
    counter.take(NOON, *(feed.beat(node, NOON) for node in feed.nodes))

    def shown(now: int) -> tuple[Any, Any, int]:
        data = counter.publish(now)
        return data["activeNodes"], data["totalNodes"], len(data["peers"])

    assert shown(NOON) == (3, 3, 3)
    counter.take(NOON, feed.presence("node_left", leaver, NOON))
    assert shown(NOON) == (2, 2, 2)
    counter.take(NOON + WINDOW, *(feed.beat(node, NOON + WINDOW) for node in others))
    assert shown(NOON + WINDOW) == (2, 2, 2)
    counter.take(NOON + WINDOW, feed.presence("node_joined", leaver, NOON + WINDOW))
    assert shown(NOON + WINDOW) == (3, 3, 3)
    for kinds, expected in (
        ("node_left heartbeat node_left", 2),
        ("node_left heartbeat", 3),
        ("node_left", 2),
    ):
        counter.take(
            NOON + WINDOW, *(feed.presence(kind, leaver, NOON + WINDOW) for kind in kinds.split())
        )
        assert shown(NOON + WINDOW) == (expected, expected, expected)


def test_totals_outlive_a_restart_and_pruning(make: Make, tmp_path: Path) -> None:
    feed, counter = Feed(6, nodes=1), make(**EXACT)
    counter.take(NOON, *(feed.work(NOON) for _ in range(100)), feed.beat(feed.nodes[0], NOON))
    before = counter.publish(NOON)
    counter.store.close()
    later = NOON + 40 * DAY
    again = Bench(counter.store.path.parent, **EXACT)
    again.prune(later)
    after = again.take(later, feed.beat(feed.nodes[0], later)).publish(later)
    again.close()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"tasksLast24h", "invoicesLast24h", "peers", "snapshotAt"}
    assert after["tasksLast24h"] == after["invoicesLast24h"] == 0 != before["tasksLast24h"]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    count=st.integers(0, 120),
    nodes=st.integers(1, 30),
    least=st.integers(1, 12),
    step=st.sampled_from((1, 2, 10, 1000)),
    fresh=st.integers(0, 40),
    hours=st.integers(0, 48),
    shift=st.integers(-DAY, 3 * DAY),
)
def test_whatever_was_counted_a_monitor_accepts_the_publication(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    count: int,
    nodes: int,
    least: int,
    step: int,
    fresh: int,
    hours: int,
    shift: int,
) -> None:
    chosen = {
        "min_nodes": least,
        "stats_round_to": step,
        "stats_min_new_tasks": fresh,
        "stats_snapshot_hours": hours,
    }
    feed, counter = Feed(seed, nodes=nodes), Bench(tmp_path_factory.mktemp("any"), **chosen)
    with contextlib.closing(counter):
        for now in (NOON, NOON + shift, NOON + 2 * shift):
            data = counter.take(now, *(draw(feed, now, []) for _ in range(count))).publish(now)
            numbers = [value for value in data.values() if isinstance(value, int)]
            assert all(value >= 0 for value in numbers)
            assert (data["totalNodes"] or 0) % least == 0 and len(data["peers"] or ()) % least == 0
            if data["totalNodes"] is None:
                assert set(data.values()) == {None}


@pytest.mark.parametrize("least", [1, 5, 7])
def test_a_publication_with_hundreds_of_peers_fits_into_64_kib(make: Make, least: int) -> None:
    feed, counter = Feed(8, nodes=700), make(**{**EXACT, "min_nodes": least})
    counter.take(NOON, *(feed.beat(node, NOON - 13 * HOUR) for node in feed.nodes))
    counter.take(NOON, *(feed.work(NOON) for _ in range(300)))
    counter.take(NOON, *(feed.beat(node, NOON) for node in feed.nodes[:650]))
    payload = counter.publisher.publication(NOON + WINDOW)
    data = tbmon.read_publication(payload)
    assert data is not None and len(payload) <= 64 * 1024
    assert len(data["peers"]) == 500 // least * least
    assert data["totalNodes"] == 700 // least * least


# The default mode: withholding, snapshots and rounding


def beats(feed: Feed, now: int, count: int | None = None) -> list[Said]:
    """Heartbeats in the window before the running one, which a default publication counts."""
    return [feed.beat(node, now - WINDOW) for node in feed.nodes[:count]]


def test_below_min_nodes_only_that_is_said(make: Make) -> None:
    feed, counter = Feed(10, nodes=12), make()
    counter.take(NOON, *beats(feed, NOON, 4), *(feed.work(NOON) for _ in range(500)))
    assert set(counter.publish(NOON).values()) == {None}
    counter.take(NOON, *beats(feed, NOON))
    assert set(counter.publish(NOON).values()) == {
        None
    }  # the window was looked at; nobody learns who came within it
    data = counter.take(NOON + WINDOW, *beats(feed, NOON + WINDOW, 9)).publish(NOON + WINDOW)
    assert (data["totalNodes"], data["activeNodes"]) == (10, 5)
    assert data["totalTasks"] > 0 and len(data["peers"]) == 10
    data = counter.take(NOON + 2 * WINDOW, *beats(feed, NOON + 2 * WINDOW, 4)).publish(
        NOON + 2 * WINDOW
    )
    assert (data["totalNodes"], data["activeNodes"]) == (10, None)


def test_no_task_figure_before_enough_tasks_are_finished_and_then_rounded_ones(make: Make) -> None:
    feed, counter = Feed(11, nodes=5), make()
    counter.take(NOON, *beats(feed, NOON), *(feed.received(NOON) for _ in range(57)))
    counter.take(NOON, *(feed.invoice(NOON) for _ in range(33)))
    results = [feed.completed(NOON) for _ in range(20)]
    data = counter.take(NOON, *results[:19]).publish(NOON)
    assert {name for name, value in data.items() if value is not None} == {
        "activeNodes",
        "totalNodes",
        "peers",
    }
    later = NOON + WINDOW
    assert (
        counter.take(NOON, results[19], *beats(feed, NOON)).publish(later - 1)["snapshotAt"] is None
    )
    data = counter.publish(
        later
    )  # looked at when five minutes are over: the time of a message is not told
    found = [json.loads(one.payload)["data"] for one in results]
    recount = Counter(one["status"] for one in found)
    assert data["snapshotAt"] == tbmon.utc(later)
    assert (
        data["totalTasks"] == data["tasksLast24h"] == 50
        and data["totalInvoices"] == data["invoicesLast24h"] == 30
    )
    assert data["completedTasks"] == recount["completed"] // 10 * 10
    assert data["failedTasks"] == recount["failed"] // 10 * 10
    assert data["successRate"] is data["cacheHitRate"] is None  # five points of 20 are one
    spreads = [count for name in SPREADS for count in data[name].values()]
    assert {count % 10 for count in spreads} == {0} and any(spreads)


def test_rates_are_told_where_five_points_are_a_step_of_the_counts(make: Make) -> None:
    feed, counter = Feed(19, nodes=5), make()
    results = [feed.completed(NOON) for _ in range(200)]
    assert (
        counter.take(NOON, *beats(feed, NOON), *results[:199]).publish(NOON)["successRate"] is None
    )
    later = make()
    data = later.take(NOON, *beats(feed, NOON), *results).publish(NOON)
    found = [json.loads(one.payload)["data"] for one in results]
    completed = sum(one["status"] == "completed" for one in found)
    cached = sum(one["cached"] is True for one in found)
    assert (data["successRate"], data["cacheHitRate"]) == (
        5 * round(completed / 10),
        5 * round(cached / 10),
    )


def test_between_snapshots_the_task_figures_repeat_and_only_the_nodes_are_told(make: Make) -> None:
    feed, counter = Feed(12, nodes=23), make()
    counter.take(NOON, *beats(feed, NOON), *(feed.work(NOON) for _ in range(400)))
    first = counter.publish(NOON)
    assert first["completedTasks"] > 0
    for now in (NOON + 30_000, NOON + WINDOW, NOON + 3 * HOUR, NOON + 11 * HOUR):
        counter.take(now, *beats(feed, now, 12), *(feed.work(now) for _ in range(100)))
        assert figures(counter.publish(now)) == figures(first)
    assert counter.publish(NOON + 11 * HOUR)["activeNodes"] == 10


def test_a_snapshot_needs_both_the_hours_and_the_tasks(make: Make) -> None:
    feed, counter = Feed(13, nodes=5), make()

    def snapshot_at(now: int, fresh: int) -> str:
        counter.take(now, *beats(feed, now), *(feed.completed(now) for _ in range(fresh)))
        return str(counter.publish(now)["snapshotAt"])

    first = snapshot_at(NOON, 20)
    assert first == tbmon.utc(NOON)
    assert snapshot_at(NOON + DAY - 1, 500) == first
    assert snapshot_at(NOON + DAY, 0) == tbmon.utc(NOON + DAY)
    assert snapshot_at(NOON + 3 * DAY, 19) == tbmon.utc(NOON + DAY)
    late = NOON + 3 * DAY + WINDOW
    assert snapshot_at(late, 1) == tbmon.utc(late)


def test_a_clock_that_was_ahead_stops_no_snapshot(make: Make) -> None:
    feed, counter = Feed(20, nodes=5), make()
    ahead = NOON + 400 * DAY
    counter.take(NOON, *beats(feed, NOON), *(feed.completed(NOON) for _ in range(20)))
    counter.take(ahead, *beats(feed, ahead))
    assert counter.publish(ahead)["snapshotAt"] == tbmon.utc(ahead)
    counter.take(NOON, *(feed.completed(NOON) for _ in range(20)))
    assert counter.publish(NOON)["snapshotAt"] == tbmon.utc(NOON)


def test_what_comes_again_after_a_node_left_does_not_bring_it_back(make: Make) -> None:
    feed, counter = Feed(21, nodes=5), make(**EXACT)
    beat, left = feed.beat(feed.nodes[0], NOON), feed.presence("node_left", feed.nodes[0], NOON)
    counter.take(NOON, *beats(feed, NOON)).take(NOON + 1, beat).take(NOON + 2, left)
    assert counter.publish(NOON + 3)["totalNodes"] == 4
    assert (
        counter.take(NOON + 1, beat).publish(NOON + 4)["totalNodes"] == 4
    )  # not acknowledged before a crash
    assert counter.take(NOON + 5, beat).publish(NOON + 6)["totalNodes"] == 5


def test_a_snapshot_outlives_a_restart_of_the_aggregator(make: Make) -> None:
    feed, counter = Feed(14, nodes=6), make()
    before = counter.take(NOON, *beats(feed, NOON), *(feed.work(NOON) for _ in range(300))).publish(
        NOON
    )
    counter.store.close()
    again = Bench(counter.store.path.parent)
    again.take(
        NOON + HOUR, *beats(feed, NOON + HOUR), *(feed.work(NOON + HOUR) for _ in range(300))
    )
    assert figures(again.publish(NOON + HOUR)) == figures(before)
    again.close()


def test_peers_are_made_once_a_day_after_ten_past_midnight_under_new_handles(make: Make) -> None:
    feed, counter = Feed(15, nodes=13), make()
    handles = []
    for now in (
        NOON,
        MIDNIGHT - 1,
        MIDNIGHT,
        MIDNIGHT + 2 * WINDOW - 1,
        MIDNIGHT + 2 * WINDOW,
        MIDNIGHT + 20 * HOUR,
    ):
        here = feed.nodes if now < MIDNIGHT else feed.nodes[:8]
        peers = counter.take(
            now, *(feed.beat(node, now) for node in here), *beats(feed, now, 8)
        ).publish(now)["peers"]
        handles.append([one["handle"] for one in peers])
        assert handles[-1] == sorted(handles[-1]) and len(peers) == 10
        if now >= MIDNIGHT + 2 * WINDOW:
            assert 5 <= sum(one["seen"] == "today" for one in peers) <= 8
    assert handles[0] == handles[1] == handles[2] == handles[3]
    assert handles[4] == handles[5]
    assert not set(handles[0]) & set(handles[4])


def test_a_peer_was_seen_today_from_midnight_on_and_is_gone_after_yesterday(make: Make) -> None:
    feed, counter = Feed(17, nodes=4), make(**EXACT)
    heard = zip(
        feed.nodes,
        (MIDNIGHT - DAY - WINDOW, MIDNIGHT - DAY, MIDNIGHT - WINDOW, MIDNIGHT),
        strict=True,
    )
    counter.take(MIDNIGHT, *(feed.beat(node, at) for node, at in heard))
    peers = counter.publish(MIDNIGHT)["peers"]
    assert sorted(one["seen"] for one in peers) == ["today", "yesterday", "yesterday"]


def test_a_handle_is_of_a_key_that_nobody_else_has(make: Make) -> None:
    feed, counter = Feed(16, nodes=3), make(**EXACT)
    data = counter.take(NOON, *(feed.beat(node, NOON) for node in feed.nodes)).publish(NOON)
    key = bytes.fromhex(counter.store.state("peers")["key"])
    ids = [bytes.fromhex(node[5:].replace("-", "")) for node in feed.nodes]
    expected = sorted(hashlib.blake2b(one, digest_size=8, key=key).hexdigest() for one in ids)
    assert data["peers"] == [{"handle": handle, "seen": "today"} for handle in expected]
    assert len(key) == 32
    other = make(**EXACT).take(NOON, *(feed.beat(node, NOON) for node in feed.nodes)).publish(NOON)
    assert not {one["handle"] for one in other["peers"]} & set(expected)


# Privacy of what is published


class Plan:
    """A set of messages over three days, and the default publications made of it with the same
    random key.
    """

    TIMES = (NOON, NOON + 6 * HOUR, NOON + 6 * HOUR + 1, NOON + DAY, NOON + DAY + 30_000)

    def __init__(self, nodes: int, tasks: int) -> None:
        feed = Feed(31, nodes=nodes)
        windows = [at - WINDOW for at in self.TIMES]
        self.presence = {node: [(at, feed.beat(node, at)) for at in windows] for node in feed.nodes}
        begin = NOON - 6 * HOUR
        self.work = [
            (at, feed.work(at)) for at in (begin + feed.dice.randrange(DAY) for _ in range(tasks))
        ]

    def publish(self, counter: Bench, node: str = "", place: int = -1) -> list[dict[str, Any]]:
        """What is published without one node's presence, and without one message."""
        said = [one for name, some in self.presence.items() if name != node for one in some]
        said += [one for number, one in enumerate(self.work) if number != place]
        said.sort(key=lambda one: one[0])
        shown, done = [], 0
        for now in self.TIMES:
            part = [one for one in said[done:] if one[0] < now]
            done += len(part)
            counter.store.take(
                [aggregator.Received(one.subject, one.payload, at) for at, one in part]
            )
            shown.append(counter.publish(now))
        return shown


def changes(name: str, before: Any, after: Any) -> float:
    """By how many rounding steps a figure differs."""
    if isinstance(before, dict):
        return float(sum(abs(before[one] - after[one]) for one in before) / 10)
    step = 5 if name in NODE_FIGURES or name.endswith("Rate") else 10
    return float(abs(before - after) / step)


CONCERNED = {
    "task_received": {"totalTasks", "tasksLast24h", "taskTypeDistribution"},
    "task_completed": {
        "completedTasks",
        "failedTasks",
        "cachedTasks",
        "successRate",
        "cacheHitRate",
        *RESULTS,
    },
    "invoice_created": {"totalInvoices", "invoicesLast24h", "stepsComputedDistribution"},
}


@pytest.fixture
def same_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The random keys and ids are the same in all publications, and the judgement of a message
    is remembered.
    """
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5a" * size)
    monkeypatch.setattr(aggregator, "judge", functools.lru_cache(10**5)(aggregator.judge))


@pytest.mark.parametrize("nodes", [60, 63])
def test_one_node_more_or_less_changes_whole_steps_and_handles_only(
    make: Make, same_key: None, nodes: int
) -> None:
    plan = Plan(nodes, 400)
    before, differ = plan.publish(make()), 0
    for node in plan.presence:
        for old, new in zip(before, plan.publish(make(), node=node), strict=True):
            changed = {name for name in old if old[name] != new[name]}
            differ += bool(changed)
            assert changed <= {"activeNodes", "totalNodes", "peers"}
            assert all(changes(name, old[name], new[name]) == 1 for name in changed - {"peers"})
            handles = [
                {(one["handle"], one["seen"]) for one in data["peers"]} for data in (old, new)
            ]
            assert (
                len(handles[1]) % 5 == 0
                and max(len(a - b) for a, b in (handles, handles[::-1])) <= 5
            )
    assert (
        differ or nodes % 5
    )  # with 63 it shows in the handles of those that were among the 60 only


def test_one_message_more_or_less_changes_one_step_of_its_own_figures_only(
    make: Make, same_key: None
) -> None:
    plan = Plan(30, 1500)
    before, differ = plan.publish(make()), 0
    assert before[0]["snapshotAt"] != before[3]["snapshotAt"]
    for place in random.Random(32).sample(range(1500), 70):
        after = plan.publish(make(), place=place)
        allowed = CONCERNED[json.loads(plan.work[place][1].payload)["type"]]
        for old, new in zip(before, after, strict=True):
            changed = {name for name in old if old[name] != new[name]}
            differ += bool(changed)
            assert changed <= allowed
            assert all(changes(name, old[name], new[name]) == 1 for name in changed)
        assert (
            figures(after[0]) == figures(after[1]) == figures(after[2])
        )  # between snapshots: nothing at all
        assert figures(after[3]) == figures(after[4])
    assert differ


# Hostile input


ODD = {
    "version": spoiled(version="1.1"),
    "type": spoiled(type=["task_received"]),
    "id": spoiled(id="A" * 32),
    "anonymous": spoiled(nodeId="node-11111111-1111-4111-8111-111111111111"),
    "data": spoiled(data=[]),
    "time": spoiled(timestamp="2026-05-29T12:01:00.000Z"),
    "day": spoiled(timestamp="2026-02-31T12:00:00.000Z"),
    "more": spoiled(dataextra=1),
    "language": spoiled(datataskType="go"),
    "hash": spoiled(datataskIdHash="0x" * 32),
    "surrogate": spoiled(id="\ud800" * 32),
    "empty": Said("truebit.heartbeat", b"", False),
    "number": Said("truebit.heartbeat", b"1e999", False),
    "null": Said("truebit.heartbeat", b"null", False),
    "deep": Said("truebit.heartbeat", b"[" * 2040, False),
    "digits": Said("truebit.heartbeat", b"9" * 2040, False),
    "long": Said("truebit.heartbeat", b" " * 2049, False),
    "huge": Said("truebit.heartbeat", b"{" * 10**6, False),
    "subject": Feed(0).received(NOON)._replace(subject="truebit.heartbeat", is_good=False),
    "space": Said("truebit.tasks.received", Feed(0).received(NOON).payload + b" ", False),
}


@pytest.mark.parametrize("name", ODD)
def test_what_is_not_in_the_schema_is_dropped_and_counted_by_reason(make: Make, name: str) -> None:
    counter, one = make(), ODD[name]
    counter.take(NOON, one, Feed(1).work(NOON), one)
    assert sum(counter.dropped().values()) == 2 and len(counter.dropped()) == 1
    assert len(counter.rows("seen")) == 1


@pytest.mark.parametrize(
    ("shift", "reason"),
    [
        (-8 * DAY, None),
        (-8 * DAY - WINDOW, "its time is too old"),
        (-3000 * DAY, "its time is too old"),
        (10 * MINUTE, None),
        (15 * MINUTE, "its time is in the future"),
        (20_000 * DAY, "its time is in the future"),
    ],
)
@pytest.mark.parametrize("kind", ["received", "invoice", "beat"])
def test_a_time_out_of_range_is_dropped(
    make: Make, kind: str, shift: int, reason: str | None
) -> None:
    feed, counter = Feed(41, nodes=1), make()
    build = functools.partial(feed.beat, feed.nodes[0]) if kind == "beat" else getattr(feed, kind)
    counter.take(NOON, build(NOON + shift))
    assert counter.dropped() == ({reason: 1} if reason else {})


def variants(payload: bytes, node: str) -> Iterator[bytes]:
    """The message itself, with each of its bytes changed or lost, and with the other sort of
    sender.
    """
    yield payload
    for at in range(len(payload)):
        for byte in (b"0", b"a", b"A", b"", b'"'):
            yield payload[:at] + byte + payload[at + 1 :]
    yield payload.replace(node.encode(), tbmon.ANONYMOUS.encode())
    yield payload.replace(tbmon.ANONYMOUS.encode(), node.encode())


@pytest.mark.parametrize("kind", tbmon.MESSAGES)
def test_a_message_is_judged_as_the_gate_alone_would_however_many_like_it_passed(kind: str) -> None:
    feed, place = Feed(44, nodes=1), tbmon.MESSAGES[kind]
    one = next(one for _ in range(1000) if (one := feed.anything(NOON)).subject == place.subject)
    passed = 0
    for payload in variants(one.payload, feed.nodes[0]):
        judged = aggregator.judge(aggregator.Received(place.subject, payload, NOON))
        refusal = tbmon.refusal_of(place.subject, payload)
        if refusal is not None or isinstance(judged, str):
            assert judged == refusal or (
                refusal is None and str(judged).startswith("its time is")
            ), payload
            continue
        passed += 1
        message = json.loads(payload)
        assert judged.key == int(message["id"][:16], 16) - 2**63
        assert judged.node == (
            bytes.fromhex(message["nodeId"][5:].replace("-", "")) if place.named else b""
        )
        values = [
            (f"{kind}.{name}", str(value))
            for name, value in message["data"].items()
            if "Hash" not in name
        ]
        assert [row[1:] for row in judged.rows] == [(kind, ""), *values]
    assert passed > 50  # each digit of the id, at least


SUBJECTS = st.sampled_from([kind.subject for kind in tbmon.MESSAGES.values()])
GARBAGE = st.binary(max_size=300) | st.text(max_size=100).map(
    lambda text: text.encode("utf-8", "replace")
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_no_bytes_stop_it_or_go_uncounted(tmp_path: Path, data: st.DataObject) -> None:
    feed = Feed(42, nodes=1)
    messages = [Said(*one) for one in data.draw(st.lists(st.tuples(SUBJECTS, GARBAGE), max_size=5))]
    for one in (feed.received(NOON), feed.completed(NOON), feed.invoice(NOON)):
        place, byte = (
            data.draw(st.integers(0, len(one.payload) - 1)),
            data.draw(st.binary(max_size=3)),
        )
        messages.append(one._replace(payload=one.payload[:place] + byte + one.payload[place + 1 :]))
    with contextlib.closing(Bench(tmp_path)) as counter:
        before = len(counter.rows("seen")) + sum(counter.dropped().values())
        counter.take(NOON, *messages)
        assert len(counter.rows("seen")) + sum(counter.dropped().values()) == before + len(messages)
        assert heard(counter) == 0


def heard(counter: Bench) -> int:
    return len(counter.rows("node"))


def test_too_many_at_once_are_dropped_with_budgets_apart(make: Make) -> None:
    feed, counter = (
        Feed(43, nodes=8),
        make(global_rate_limit=5, rate_limit_per_node=2, rate_limit_window=1000),
    )
    counter.take(NOON, *(feed.work(NOON) for _ in range(9)))
    assert counter.dropped() == {"too many at once": 4}
    counter.take(
        NOON + 999, *(feed.beat(feed.nodes[0], NOON) for _ in range(5))
    )  # 2 of one installation
    assert counter.dropped() == {"too many at once": 7}
    counter.take(NOON + 999, *(feed.beat(node, NOON) for node in feed.nodes[1:]))  # 3 more of all
    assert counter.dropped() == {"too many at once": 11} and heard(counter) == 4
    counter.take(NOON + 999, feed.work(NOON))
    counter.take(
        NOON + 1000,
        *(feed.work(NOON) for _ in range(5)),
        *(feed.beat(node, NOON) for node in feed.nodes[:5]),
    )
    assert counter.dropped() == {"too many at once": 12} and len(counter.rows("seen")) == 10


def test_hostile_messages_use_up_no_budget(make: Make) -> None:
    feed, counter = Feed(44, nodes=1), make(global_rate_limit=3, rate_limit_per_node=3)
    again = feed.work(NOON)
    counter.take(NOON, *HOSTILE * 10, again, again, again, feed.work(NOON), feed.work(NOON))
    assert "too many at once" not in counter.dropped() and len(counter.rows("seen")) == 3


def test_no_more_installations_than_the_limit_are_kept_and_those_known_go_on(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "MAX_NODES", 50)
    feed, counter = Feed(45, nodes=200), make(**EXACT)
    counter.take(NOON, *(feed.beat(node, NOON) for node in feed.nodes[:30]))
    for begin in range(0, 200, 40):
        counter.take(NOON, *(feed.beat(node, NOON) for node in feed.nodes[begin : begin + 40]))
    assert 45 <= heard(counter) <= 50 and len(counter.store.nodes) == heard(counter)
    assert set(counter.dropped()) == {"there are too many installations"}
    later = NOON + HOUR
    counter.take(later, *(feed.beat(node, later) for node in feed.nodes[:30]))
    assert counter.publish(later)["activeNodes"] == 30


def test_in_a_flood_the_oldest_ids_go_first_and_the_file_stays_small(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "MAX_KEYS", 4000)
    feed, counter, sizes, sent = Feed(46, nodes=1), make(**EXACT), [], list[Said]()
    for hour in range(12):
        now = NOON + hour * HOUR
        sent = [feed.received(now) for _ in range(1500)]
        for begin in range(0, 1500, 500):
            counter.take(now, *sent[begin : begin + 500])
        counter.prune(now)
        kept = {row[1] - NOON // HOUR for row in counter.rows("seen")}
        assert kept == set(range(max(0, hour - 1), hour + 1)) and len(counter.rows("seen")) <= 4000
        sizes.append(counter.store.db.execute("PRAGMA page_count").fetchone()[0])
    assert sizes[-1] <= 1.2 * max(sizes[:4])
    counter.take(NOON + 11 * HOUR, *sent)
    assert counter.dropped() == {"it was counted before": 1500}
    data = counter.take(NOON + 11 * HOUR, feed.beat(feed.nodes[0], NOON + 11 * HOUR)).publish(
        NOON + 11 * HOUR
    )
    assert data["totalTasks"] == 12 * 1500


def test_one_hour_of_flood_is_not_forgotten_whole(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(aggregator, "MAX_KEYS", 1000)
    feed, counter = Feed(47), make(**EXACT)
    sent = [feed.work(NOON) for _ in range(1500)]
    counter.take(NOON, *sent).prune(NOON)
    counter.take(NOON, *sent[-100:])
    assert counter.dropped() == {"it was counted before": 100}


def test_an_id_is_known_for_eight_days_and_presence_for_two(make: Make) -> None:
    feed, counter = Feed(48, nodes=1), make(**EXACT)
    early, late = feed.received(NOON), feed.received(NOON + 2 * HOUR)
    counter.take(NOON, early, feed.beat(feed.nodes[0], NOON)).take(NOON + 2 * HOUR, late)
    counter.prune(NOON + 2 * DAY)
    assert heard(counter) == 1 and counter.rows("present") == []
    counter.prune(NOON + 2 * DAY + WINDOW)
    assert heard(counter) == 0 and counter.store.nodes == set()
    counter.prune(NOON + 8 * DAY)
    counter.take(NOON + 8 * DAY, early, late)
    assert counter.dropped() == {"it was counted before": 2}
    counter.prune(NOON + 8 * DAY + HOUR)
    assert len(counter.rows("seen")) == 1
    counter.take(NOON + 8 * DAY + HOUR, early, late)
    assert counter.dropped() == {"it was counted before": 3, "its time is too old": 1}


def test_counts_of_windows_and_days_are_kept_as_long_as_retention_says(make: Make) -> None:
    feed, counter = Feed(49), make(**EXACT)
    for day in range(5):
        counter.take(NOON + day * DAY, feed.work(NOON + day * DAY), HOSTILE[0])
    counter.prune(NOON + 4 * DAY, days=2)
    kept = {at for at, *_ in counter.rows("tally") if at}
    assert kept == {
        NOON + 2 * DAY,
        NOON + 3 * DAY,
        NOON + 4 * DAY,
        MIDNIGHT + 2 * DAY,
        MIDNIGHT + 3 * DAY,
    }


# The store


def everything(counter: Bench) -> list[list[tuple[Any, ...]]]:
    return [counter.rows(table) for table in ("tally", "seen", "node", "present")]


def tbmons_own(path: Path) -> None:
    tbmon.Store(path, bytes(32)).close()


def anothers(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("CREATE TABLE seen (key, hour)")


def no_database(path: Path) -> None:
    path.write_bytes(b"not a database, but somebody's notes\n" * 200)


@pytest.mark.parametrize("write", [tbmons_own, anothers, no_database])
def test_another_programs_file_is_left_as_it_is(
    tmp_path: Path, write: Callable[[Path], None]
) -> None:
    path = tmp_path / "theirs.db"
    write(path)
    before = path.read_bytes()
    with pytest.raises(tbmon.UserError, match=r"theirs\.db"):
        aggregator.Store(aggregator.Config(db_path=str(path)))
    assert path.read_bytes() == before


def test_a_database_in_use_by_its_own_program_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with contextlib.closing(sqlite3.connect(path)) as db:
        db.executescript(
            "PRAGMA journal_mode = WAL; CREATE TABLE notes (text); INSERT INTO notes VALUES "
            "('mine')"
        )
        before = path.read_bytes(), path.with_name("theirs.db-wal").read_bytes()
        with pytest.raises(tbmon.UserError, match="another program's database"):
            aggregator.Store(aggregator.Config(db_path=str(path)))
        assert (path.read_bytes(), path.with_name("theirs.db-wal").read_bytes()) == before


def test_only_its_owner_may_read_the_database(make: Make) -> None:
    counter = make()
    assert counter.store.path.stat().st_mode & 0o077 == 0


def test_with_the_database_locked_nothing_is_counted_and_later_all_of_it_is(make: Make) -> None:
    feed, counter = Feed(61, nodes=5), make(**EXACT)
    counter.store.db.execute("PRAGMA busy_timeout = 20")
    batch = [feed.anything(NOON) for _ in range(300)]
    with contextlib.closing(sqlite3.connect(counter.store.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            counter.take(NOON, *batch)
        assert everything(counter) == [[], [], [], []]
        assert counter.store.nodes == set()
    counter.take(NOON, *batch)
    expected = make(**EXACT).take(NOON, *batch)
    assert everything(counter) == everything(expected)


def test_with_the_database_full_nothing_is_counted_and_later_all_of_it_is(make: Make) -> None:
    feed, counter = Feed(62), make(**EXACT)
    pages = counter.store.db.execute("PRAGMA page_count").fetchone()[0]
    counter.store.db.execute(f"PRAGMA max_page_count = {pages + 2}")
    batch = [feed.work(NOON) for _ in range(2000)]
    with pytest.raises(sqlite3.OperationalError, match="full"):
        counter.take(NOON, *batch)
    assert counter.rows("tally") == counter.rows("seen") == []
    counter.store.db.execute("PRAGMA max_page_count = 100000")
    assert len(counter.take(NOON, *batch).rows("seen")) == 2000


KILLED = """
import os, signal, sys
import aggregator
from support.federation_feed import NOON, Feed
from support.federation_feed import UNLIMITED
feed, config = Feed(63, nodes=9), aggregator.Config(db_path=sys.argv[1], **UNLIMITED)
store, step = aggregator.Store(config), 0
def batch():
    return [aggregator.Received(one.subject, one.payload, NOON) for one in (feed.anything(NOON) for _ in range(200))]
store.take(batch())
def trace(statement):
    global step
    step += 1
    if step == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
store.db.set_trace_callback(trace)
store.take(batch())
print("alive", step)
"""


def test_killed_within_a_batch_it_has_counted_all_of_it_or_nothing(tmp_path: Path) -> None:
    feed, expected = Feed(63, nodes=9), []
    with contextlib.closing(Bench(tmp_path / "own")) as counter:
        for _ in range(2):
            counter.take(NOON, *(feed.anything(NOON) for _ in range(200)))
            expected.append(everything(counter))
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    states = []
    for step in (1, 3, 60, 180, 10**9):
        path = tmp_path / f"killed{step}" / "a.db"
        words = (sys.executable, "-c", KILLED, str(path), str(step))
        done = subprocess.run(words, env=env, capture_output=True, text=True)
        assert done.returncode == (0 if step == 10**9 else -signal.SIGKILL), done.stderr
        with contextlib.closing(Bench(path.parent)) as found:
            states.append(everything(found))
    assert states == [expected[0]] * 4 + [expected[1]]


# The end


class Silent:
    """A connection on which nothing happens."""

    is_connected = True

    async def publish(self, subject: str, payload: bytes) -> None: ...


@pytest.mark.parametrize("turns", range(6))
def test_the_order_to_end_is_heard_in_the_moment_a_message_comes(make: Make, turns: int) -> None:
    counter = make()

    async def work() -> bool:
        wake = asyncio.Event()
        one = aggregator.Aggregator(counter.config, counter.store)
        task = asyncio.create_task(one.work(Silent(), [], wake))
        for _ in range(5):
            await asyncio.sleep(0)
        wake.set()
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task}, timeout=0.7)
        ended = task.cancelled()
        task.cancel()
        await asyncio.wait({task})
        return ended

    assert asyncio.run(work())


# Layout

NAME = ROOT / "aggregator.py"
HEADING = re.compile(r"^# (\d+)\. (\S.*) \(([a-z ]+)\)$", re.M)
EFFECTS = {
    "environment": "environment",
    "pure": "pure",
    "disk": "disk",
    "network": "network out",
    "process": "process",
}


def bannered() -> str:
    """The source with its headings as tbmon's checker knows them."""
    source = NAME.read_text("utf-8")
    assert {found[3] for found in HEADING.finditer(source)} <= set(EFFECTS)
    return HEADING.sub(
        lambda found: f"{RULE}\n# {found[1]}. {found[2]}  ({EFFECTS[found[3]]})\n{RULE}", source
    )


@pytest.fixture
def loops(monkeypatch: pytest.MonkeyPatch) -> None:
    """One loop runs everything, so that sections with effects may use asyncio; SQL includes
    VACUUM here.
    """
    monkeypatch.setitem(layout.ALLOWED, "asyncio", {"network out", "disk", "process"})
    monkeypatch.setitem(layout.ALLOWED, "signal", {"process"})
    pattern = layout.STATEMENT.pattern.replace("(?:SELECT|", "(?:VACUUM|SELECT|", 1)
    monkeypatch.setattr(layout, "STATEMENT", re.compile(pattern, re.S))


def test_its_sections_use_what_stands_above_and_have_the_effects_they_name(loops: None) -> None:
    found = sections(bannered())
    assert [one.number for one in found] == list(range(1, len(found) + 1)) and len(found) >= 5
    assert [one.name for one in found if one.label == "disk"] == ["Store"]
    assert findings(bannered()) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bad = Store", "uses Store of section"),
        ("bad = open('x')", "open in a section labelled pure"),
        ("bad = time.time()", "time.time in a section labelled pure"),
        ("bad = 'VACUUM INTO ?'", "SQL outside the store"),
        ("def bad(db): db.execute('x')", "execute() outside the store"),
        ("bad = asyncio.sleep", "labelled pure"),
    ],
)
def test_the_checker_sees_a_fault_in_it(loops: None, line: str, expected: str) -> None:
    source = bannered().replace("MESSAGE_BYTES = ", f"{line}\nMESSAGE_BYTES = ", 1)
    assert any(expected in one for one in findings(source)), findings(source)


def test_it_is_short_and_so_are_its_functions() -> None:
    source = NAME.read_text("utf-8")
    sizes = functions(ast.parse(source))
    assert {name: size for name, size in sizes.items() if size > 300} == {}
    assert statistics.median(sizes.values()) <= 75 and undocumented(ast.parse(source)) == []
