"""The federation whole: monitors on stand-in nodes, the shipped hub, an aggregator, and what the monitors then show."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Node, discard, header, wait_for
from hub import Stepped, stepped
from hub_conf import AGGREGATOR, MONITOR, Server
from test_api import invoice, output, received
from test_federation import change, connected, see, soon

__all__ = ["stepped"]  # a fixture
AT_ONCE = "tbmon.due_after = lambda at, level, share: at"  # a delay takes an hour, or a day
TASKS = (("rs", 0, False), ("rs", 0, True), ("py", 0, False), ("js", 1, False))  # language, exit code, cached
EXACT = {"MIN_NODES": "1", "STATS_SNAPSHOT_HOURS": "0", "STATS_MIN_NEW_TASKS": "0", "STATS_ROUND_TO": "1"}


class Aggregator:
    """aggregator.py as its operator starts it, of a federation of one's own, so that its figures are exact."""

    def __init__(self, folder: Path, url: str) -> None:
        self.log = folder / "aggregator.log"
        self.env = {
            "PATH": os.environ["PATH"], "NATS_URL": url, "NATS_USER": "aggregator", "NATS_PASSWORD": AGGREGATOR,
            "DB_PATH": str(folder / "aggregator.db"), "PUBLISH_INTERVAL": "1100", **EXACT,
        }  # fmt: skip

    def start(self) -> Aggregator:
        words = (sys.executable, str(ROOT / "aggregator.py"))
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=self.env, stdout=log, stderr=log)
        return self


@pytest.fixture
def network(tmp_path: Path) -> Iterator[tuple[Server, Aggregator]]:
    server = Server(tmp_path)
    made = Aggregator(tmp_path, server.url())
    with contextlib.ExitStack() as stack:
        stack.callback(server.close)
        server.start()
        stack.callback(discard, [made])  # type: ignore[list-item]
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
            received(name, language), output(cached, code, executionId=name), f"Execution {name} completed",
            invoice(name, "pay", str(int(name[:8], 16))),
        ):  # fmt: skip
            node.say(header(line, soon()))


def figures(program: Stepped) -> dict[str, Any]:
    return dict(see(program, "network-stats"))


def has(program: Stepped, **wanted: object) -> bool:
    found = figures(program)
    return {name: found[name] for name in wanted} == wanted


def test_three_monitors_are_shown_the_right_numbers_of_all_of_them(
    network: tuple[Server, Aggregator], nodes: list[Node], stepped: Any
) -> None:
    server, aggregator = network
    hub = {"FEDERATION_NATS_URL": server.url("ws"), "FEDERATION_NATS_USER": "monitor",
           "FEDERATION_NATS_PASSWORD": MONITOR}  # fmt: skip
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
    assert has(programs[0], status="connected", activeNodes=3, failedTasks=2, cachedTasks=2, tasksLast24h=7)
    assert found["successRate"] == pytest.approx(100 * 5 / 7, abs=0.01)
    assert {name: count for name, count in found["taskTypeDistribution"].items() if count} == {
        "rust": 4, "python": 1, "javascript": 2,
    }  # fmt: skip
    spreads = ("executionTimeDistribution", "gasUsageDistribution", "memoryUsedDistribution")
    assert sum(sum(found[name].values()) for name in spreads) == 7
    assert found["stepsComputedDistribution"][">100B"] == 7
    assert [peer["seen"] for peer in found["peers"]] == ["today"] * 3

    aggregator.process.send_signal(signal.SIGKILL)  # what comes meanwhile waits at the hub
    aggregator.process.wait()
    execute(nodes[1], 2)
    change(programs[2], "disable")
    wait_for(lambda: server.ask("jsz?streams=1")["messages"] >= 3 * 8 + 3 + 1)
    aggregator.start()
    wait_for(lambda: has(programs[0], totalTasks=8, completedTasks=6, totalNodes=2))
    aggregator.process.send_signal(signal.SIGTERM)
    assert aggregator.process.wait(10) == 0
    assert "Traceback" not in aggregator.log.read_text()
