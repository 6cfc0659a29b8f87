"""The federation whole: monitors on stand-in nodes, the shipped hub, an aggregator, and what the
monitors then show.
"""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node
from support.federation_feed import Aggregation, Feed, Publisher
from support.hub_conf import MONITOR, Server
from support.hubs import Stepped
from support.machine import figure_of, wait_for
from support.node_words import header, invoice, output, received
from support.sharing import change, connected, see, soon

AT_ONCE = "tbmon.due_after = lambda at, level, share: at"  # a delay takes an hour, or a day
TASKS = (
    ("rs", 0, False),
    ("rs", 0, True),
    ("py", 0, False),
    ("js", 1, False),
)  # language, exit code, cached
NODES, BEATS, WORK = 10_000, 2, 10_000  # what such a network says in a minute


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[Server, Aggregation]]:
    """The shipped hub, and an aggregator of a federation of one's own, so that its figures are
    exact.
    """
    server = Server(tmp_path)
    made = Aggregation(tmp_path / "aggregator", server.url(), PUBLISH_INTERVAL="1100")
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        server.start()
        stack.callback(made.close)
        yield server, made.start()


@pytest.fixture
def nodes(engine: None, tmp_path: Path) -> Iterator[list[Node]]:
    made = [Node(tmp_path / f"io{number}") for number in range(3)]
    for one in made:
        one.run()
    yield made
    for one in made:
        one.close()


def execute(node: Node, *numbers: int) -> None:
    """Let a node do some of TASKS."""
    for number in numbers:
        language, code, cached = TASKS[number]
        name = str(uuid.uuid5(uuid.NAMESPACE_OID, f"{node.name} {number}"))
        for line in (
            received(name, language),
            output(cached, code, executionId=name),
            f"Execution {name} completed",
            invoice(name, "pay", str(int(name[:8], 16))),
        ):
            node.say(header(line, soon()))


def figures(program: Stepped) -> dict[str, Any]:
    return dict(see(program, "network-stats"))


def has(program: Stepped, **wanted: object) -> bool:
    found = figures(program)
    return {name: found[name] for name in wanted} == wanted


def test_three_monitors_are_shown_the_right_numbers_of_all_of_them(
    network: tuple[Server, Aggregation], nodes: list[Node], stepped: Any
) -> None:
    server, aggregator = network
    hub = {
        "FEDERATION_NATS_URL": server.url("ws"),
        "FEDERATION_NATS_USER": "monitor",
        "FEDERATION_NATS_PASSWORD": MONITOR,
    }
    programs = [stepped(AT_ONCE, **hub) for _ in nodes]
    for program, node in zip(programs, nodes, strict=True):
        program.env |= {"LOG_DIR": "", "CONTAINER_NAME": node.name}
        program.start()
        node.say(header("Starting services"))
    for program in programs:
        change(program, "enable")
        connected(program)
    wait_for(lambda: all(has(program, totalNodes=3) for program in programs))

    execute(nodes[0], 0, 1, 2, 3)
    execute(nodes[1], 0, 1)
    execute(nodes[2], 3)
    for program in programs:
        wait_for(functools.partial(has, program, totalInvoices=7, completedTasks=5, totalTasks=7))
    found = figures(programs[0])
    assert has(
        programs[0], status="connected", activeNodes=3, failedTasks=2, cachedTasks=2, tasksLast24h=7
    )
    assert found["successRate"] == pytest.approx(100 * 5 / 7, abs=0.01)
    assert {name: count for name, count in found["taskTypeDistribution"].items() if count} == {
        "rust": 4,
        "python": 1,
        "javascript": 2,
    }
    spreads = ("executionTimeDistribution", "gasUsageDistribution", "memoryUsedDistribution")
    assert sum(sum(found[name].values()) for name in spreads) == 7
    assert found["stepsComputedDistribution"][">100B"] == 7
    assert [peer["seen"] for peer in found["peers"]] == ["today"] * 3

    aggregator.kill()  # what comes meanwhile waits at the hub
    execute(nodes[1], 2)
    change(programs[2], "disable")
    wait_for(lambda: server.ask("jsz?streams=1")["messages"] >= 3 * 8 + 3 + 1)
    aggregator.start()
    wait_for(lambda: has(programs[0], totalTasks=8, completedTasks=6, totalNodes=2))
    assert aggregator.end() == 0
    assert "Traceback" not in aggregator.text()


def test_of_what_ten_thousand_nodes_say_in_a_minute_nothing_is_lost(
    network: tuple[Server, Aggregation],
) -> None:
    server, aggregator = network
    feed, now = Feed(3, NODES), int(time.time() * 1000)
    said = [feed.beat(node, now) for node in feed.nodes * BEATS] + [
        feed.work(now) for _ in range(WORK)
    ]
    feed.dice.shuffle(said)
    publisher = Publisher(server.address)
    for start in range(0, len(said), 1000):
        publisher.publish(*said[start : start + 1000])
    publisher.close()
    wait_for(lambda: aggregator.counted() == WORK and len(aggregator.present()) == NODES, 40)
    assert aggregator.dropped() == {}
    assert aggregator.process is not None
    assert figure_of(aggregator.process.pid, "VmHWM") < 120 * 1024
