"""The engine goes and comes back, or the container: the verdict says so in time, no line is lost or
doubled.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node, docker
from support.machine import LONG, cpu_s, length, wait_for
from support.node_words import header
from support.own_engine import (
    OwnEngine,
    Talk,
    await_line,
    await_verdict,
    follow,
    gaps,
    held,
    moment,
    numbers,
    say_and_await,
    stored,
    verdict,
)
from support.programs import Program

Make = Callable[..., Program]
WITHIN_S = 10  # for the verdict after a fault, and for the first new line after the engine's return


@pytest.fixture
def own(engine: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[bool], OwnEngine]]:
    """Makes an engine that the test may stop; all that talks to Docker in this process talks to it."""
    made: list[OwnEngine] = []

    def make(live_restore: bool) -> OwnEngine:
        made.append(OwnEngine(live_restore))
        made[-1].start()
        made[-1].load()
        monkeypatch.setenv("DOCKER_HOST", made[-1].url)
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize(
    ("number", "live_restore"),
    [
        (signal.SIGTERM, False),
        (signal.SIGKILL, True),
        *[(signal.SIGKILL, False), (signal.SIGTERM, True)] * LONG,
    ],
    ids=["stopped", "killed-and-restored", *["killed", "stopped-and-restored"] * LONG],
)
def test_an_engine_that_goes_and_comes_back(
    own: Callable[[bool], OwnEngine],
    tmp_path: Path,
    program: Make,
    figure: Any,
    number: int,
    live_restore: bool,
) -> None:
    ours, node = own(live_restore), Node(tmp_path / "io")
    node.run("--stop-timeout", "1")
    one = program(CONTAINER_NAME=node.name, DOCKER_HOST=ours.url, API_RATE_LIMIT="0").start()
    talk = Talk(node)
    await_line(one, "line 000100")
    await_verdict(one, "idle")

    gone_at = time.time()
    ours.end(number)
    ended = time.monotonic()
    blind = await_verdict(one, "blind", "does not answer")
    figure(f"engine {number} blind after s", round(time.monotonic() - ended, 1))
    assert gone_at - 3 < moment(blind["since"]) < time.time() + 1
    used, since, said = cpu_s(one.process.pid), time.monotonic(), one.log.read_text().count("\n")
    threading.Event().wait(length(3, 600))
    used = (cpu_s(one.process.pid) - used) / (time.monotonic() - since)
    figure(f"engine {number} CPU of a core while away %", round(100 * used, 2))
    assert used < 0.05
    assert one.log.read_text().count("\n") - said <= 2  # one cause, told once
    assert verdict(one)["since"] == blind["since"]

    ours.start()
    back = time.monotonic()
    docker("start", node.name)  # nothing, where the container outlived the engine
    mark = f"line {talk.said + 100:06d}"
    await_verdict(one, "idle")
    await_line(one, mark)
    took_s = time.monotonic() - back
    figure(f"engine {number} back after s", round(took_s, 1))
    assert took_s < length(30, WITHIN_S)
    talk.end()
    node.say(header("Heartbeat sent the last"))
    await_line(one, "the last")
    there = held(node)
    assert stored(one) == there and set(there.values()) == {1}
    assert gaps(one) == []
    assert one.end() == 0 and "Traceback" not in one.log.read_text()
    node.close()


@pytest.fixture
def followed(node: Node, program: Make) -> Callable[[], Program]:
    """Starts the node's container and a tbmon that follows it."""

    return lambda: follow(node, program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0"))


def test_the_container_is_stopped_in_every_way_and_comes_back(
    node: Node, followed: Callable[[], Program]
) -> None:
    one = followed()
    faults = (
        (("pause",), ("unpause",), "is paused"),
        (("stop", "-t", "0"), ("start",), "has exited: exit code 137"),
    )
    for number, (away, back, state) in enumerate(faults, 1):
        wait_for(lambda: docker(*away, node.name, check=False))  # noqa: B023 - a busy kernel may not freeze it at once
        down = await_verdict(one, "down", f"the container {state}")
        assert time.time() - moment(down["since"]) < WITHIN_S
        docker(*back, node.name)
        say_and_await(node, one, number)
        await_verdict(one, "idle")
    assert stored(one) == held(node) and gaps(one) == []
    assert one.end() == 0 and "Traceback" not in one.log.read_text()


def test_a_name_that_is_taken_by_another_and_given_back(
    node: Node, followed: Callable[[], Program]
) -> None:
    one = followed()
    docker("rename", node.name, f"{node.name}-old")
    try:
        await_verdict(one, "down", "the container is missing")
        node.say(header("Heartbeat sent line 000001"))  # said under another name
        docker("rename", f"{node.name}-old", node.name)
        await_verdict(one, "idle")
        say_and_await(node, one, 2)
        assert stored(one) == held(node) and gaps(one) == []

        docker("rename", node.name, f"{node.name}-old")
        node.run(script="echo '" + header("Heartbeat sent line 000003") + "'; exec sleep 60")
        await_line(one, "line 000003")
        node.remove()
        await_verdict(one, "down", "the container is missing")
        docker("rename", f"{node.name}-old", node.name)
        say_and_await(node, one, 4)
        assert stored(one) == held(node) + numbers("line 000003")
        assert {gap["reason"] for gap in gaps(one)} == {"the container was replaced"}
    finally:
        docker("rm", "-f", f"{node.name}-old", check=False)
    assert one.end() == 0 and "Traceback" not in one.log.read_text()


def test_a_container_that_is_removed_and_one_that_the_kernel_ends_for_its_hunger(
    node: Node, followed: Callable[[], Program]
) -> None:
    one = followed()
    removed_at = time.time()
    node.remove()
    await_verdict(one, "down", "the container is missing")
    hungry = 'read line </io/err; echo "$line"; x=xxxxxxxx; while :; do x=$x$x; done'
    node.run("--memory", "6m", script=hungry)
    run_at = time.time()
    node.say(header("Heartbeat sent line 000001"), "err")
    await_verdict(one, "down", "the container has exited: exit code 137, out of memory")
    assert (
        docker("inspect", "--format", "{{.State.OOMKilled}} {{.State.ExitCode}}", node.name)
        == "true 137"
    )
    await_line(one, "line 000001")
    assert stored(one) == numbers("line 000000 line 000001")
    (gap,) = gaps(one)
    assert gap["reason"] == "the container was replaced"
    assert moment(gap["from"]) < removed_at < moment(gap["to"]) < run_at
    assert one.end() == 0 and "Traceback" not in one.log.read_text()
