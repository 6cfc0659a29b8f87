"""The aggregator: what it counts in a second, how soon it has a publication, and a network of
10,000 nodes.
"""

from __future__ import annotations

import contextlib
import functools
import random
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from bench_table import Figure
from support.federation_feed import UNLIMITED, Aggregation, Feed, Publisher
from support.hub_conf import Server
from support.machine import figure_of, wait_for

import aggregator
import tbmon

OLD_RATE = "8,400 to 20,600 messages/s"
OLD_PUBLICATION = {100_000: "145 ms", 1_000_000: "1,661 ms"}


def count(store: aggregator.Store, number: int) -> float:
    """Messages a second that the store takes, without the network."""
    feed, now = Feed(1, 10_000), int(time.time() * 1000)
    makes = (feed.work, feed.work, functools.partial(feed.beat, feed.nodes[0]))
    said = [aggregator.Received(*makes[number % 3](now)[:2], now) for number in range(number)]
    began = time.monotonic()
    for at in range(0, number, aggregator.BATCH):
        store.take(said[at : at + aggregator.BATCH])
    taken = time.monotonic() - began
    dropped = store.get("dropped", now // tbmon.DAY_MS * tbmon.DAY_MS)
    assert dropped == [], dropped
    return number / taken


def unlimited(path: Path) -> aggregator.Store:
    return aggregator.Store(aggregator.Config(db_path=str(path), **UNLIMITED))  # type: ignore[arg-type]


def counting(folder: Path, quick: bool) -> Iterator[Figure]:
    """The aggregator's own work on a message; the median of three stores."""
    rates = []
    for name in "abc":
        store = unlimited(folder / f"{name}.db")
        rates.append(count(store, 60_000 if quick else 200_000))
        store.close()
    rate = statistics.median(rates)
    yield Figure("aggregator: decode, gate and commit", rate, "messages/s", 40_000, True, OLD_RATE)


def publish(store: aggregator.Store, tasks: int, now: int) -> list[float]:
    """Milliseconds of 40 publications in a row; the slowest counts the nodes and makes a
    snapshot.
    """
    publisher, taken = aggregator.Publisher(aggregator.Config(), store), []
    for number in range(40):
        began = time.monotonic()
        payload = publisher.publication(now + number * 30_000)
        taken.append((time.monotonic() - began) * 1000)
    figures = tbmon.read_publication(payload)
    assert figures and (figures["totalTasks"], figures["totalNodes"]) == (tasks, 10_000)
    return taken


def publication(folder: Path, quick: bool) -> Iterator[Figure]:
    """Of 10,000 nodes."""
    now = this_window()
    for tasks in (10_000, 1_000_000 if quick else 10_000_000):
        store = aggregator.Store(aggregator.Config(db_path=str(folder / f"{tasks}.db")))
        fill(store, tasks, now)
        taken = publish(store, tasks, now)
        store.close()
        old = OLD_PUBLICATION.get(tasks, "1,661 ms at 1,000,000")
        what = f"aggregator: publication at {tasks:,} tasks"
        yield Figure(f"{what}, median of 40", statistics.median(taken), "ms", 5, replaced=old)
        yield Figure(f"{what}, slowest of 40", max(taken), "ms", 5, replaced=old)


def this_window() -> int:
    return int(time.time() * 1000) // tbmon.WINDOW_MS * tbmon.WINDOW_MS


def fill(store: aggregator.Store, tasks: int, now: int) -> None:
    """What the store holds after so many tasks of two weeks."""
    ranges = [
        (0, field, value) for field, values in aggregator.DISTRIBUTIONS.values() for value in values
    ]
    shares = Counter({("task_received.taskType"): len(tbmon.SHARED_LANGUAGES)})
    windows = [now - number * tbmon.WINDOW_MS for number in range(14 * 288)]
    nodes = [random.randbytes(16) for _ in range(10_000)]
    hour = now // tbmon.HOUR_MS
    store.put(
        tally=[(*one, tasks // (shares[one[1]] or 7)) for one in ranges]
        + [
            (0, "task_completed.status", "completed", tasks),
            (0, "task_completed.cached", "True", tasks // 2),
        ]
        + [
            (at, kind, "", tasks // len(windows))
            for at in windows
            for kind in ("task_received", "invoice_created")
        ],
        node=[(one, now - tbmon.WINDOW_MS, now, None, now) for one in nodes],
        present=[(now - at, one) for at in (0, tbmon.WINDOW_MS) for one in nodes],
        seen=((number * 9 * 10**10, hour) for number in range(tasks)),
    )


def hub_growth(folder: Path, quick: bool) -> Iterator[Figure]:
    """How both grow with what was counted before; ids of messages are remembered for eight days."""
    now, least = this_window(), 100_000 if quick else 1_000_000
    for tasks in (least, 10 * least, 100 * least):
        path = folder / f"{tasks}.db"
        store = unlimited(path)
        fill(store, tasks, now)
        taken, at = publish(store, tasks, now), f" @{tasks:,} tasks"
        yield Figure(f"aggregator: publication, median of 40{at}", statistics.median(taken), "ms")
        yield Figure(f"aggregator: publication, slowest of 40{at}", max(taken), "ms")
        yield Figure(
            f"aggregator: decode, gate and commit{at}", count(store, 100_000), "messages/s"
        )
        store.close()
        path.unlink()


def network(folder: Path, quick: bool, minutes: float = 1) -> Iterator[Figure]:
    """10,000 monitors' messages as they come, then what came during an absence; with the hub and
    processes.
    """
    feed, hub = Feed(2, 10_000), Server(folder)
    aggregation = Aggregation(folder / "aggregator", hub.url(), PUBLISH_INTERVAL="1000")
    with contextlib.ExitStack() as stack:
        stack.callback(hub.close)
        hub.start()
        stack.callback(aggregation.close)
        aggregation.start()
        publisher, sent = Publisher(hub.address), 0
        begun, seconds = time.monotonic(), int(10 if quick else 60 * minutes)
        for second in range(seconds):
            now = int(time.time() * 1000)
            beats = [
                feed.beat(feed.nodes[(second * 334 + number) % 10_000], now)
                for number in range(334)
            ]
            work = [feed.work(now) for _ in range(166)]
            publisher.publish(*beats, *work)
            sent += len(work)
            time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
        wait_for(lambda: aggregation.counted() == sent)
        assert len(aggregation.present()) == min(10_000, 334 * seconds)
        yield Figure(f"aggregator: 10,000 nodes for {seconds} s, messages lost", 0, "messages", 0)
        yield Figure("aggregator: peak RSS meanwhile", peak_mib(aggregation), "MiB", 120)
        assert aggregation.end() == 0
        number = 50_000 if quick else 300_000
        for _ in range(0, number, 1000):
            publisher.publish(*(feed.work(int(time.time() * 1000)) for _ in range(1000)))
        aggregation.start()
        before, begun = aggregation.counted(), time.monotonic()
        wait_for(lambda: aggregation.counted() == sent + number, 120)
        rate = (sent + number - before) / (time.monotonic() - begun)
        yield Figure(
            "aggregator: from the hub's stream to the commit", rate, "messages/s", replaced=OLD_RATE
        )
        yield Figure("aggregator: peak RSS with a backlog", peak_mib(aggregation), "MiB", 120)


def peak_mib(aggregation: Aggregation) -> float:
    assert aggregation.process is not None
    return figure_of(aggregation.process.pid, "VmHWM") / 1024
