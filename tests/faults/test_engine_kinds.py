"""Engines of other versions, drivers and machines than the one at hand: what they give is read right."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import IMAGE, Node, docker
from support.machine import wait_for
from support.node_words import header
from support.own_engine import (
    OddEngine,
    OwnEngine,
    Spoil,
    await_verdict,
    follow,
    unspoilt,
    verdict,
)
from support.pages import Tab
from support.programs import Program, Watch

import tbmon

Make = Callable[..., Program]
MIB = 1024**2


@pytest.fixture
def odd(engine: None, tmp_path: Path) -> Iterator[OddEngine]:
    made = OddEngine(tmp_path / "odd.sock")
    yield made
    made.close()


def body_of(answer: Iterator[bytes]) -> bytes:
    return b"".join(answer).partition(b"\r\n\r\n")[2]


def response(body: bytes, status: int = 200) -> bytes:
    """An answer of the engine with JSON in it."""
    return (
        b"HTTP/1.1 %d Odd\r\nContent-Type: application/json\r\nConnection: close\r\n" % status
        + b"Content-Length: %d\r\n\r\n" % len(body)
        + body
    )


# Versions of the API


def of_version(odd: OddEngine, version: str, refused: list[str] | None = None) -> Spoil:
    """An engine that says it has this version of the API; one that has `refused` takes no 1.40."""

    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if call == "version":
            said = b'"ApiVersion":"%s"' % version.encode()
            yield b"".join(answer).replace(b'"ApiVersion":"1.41"', said)
        elif refused is not None and odd.asked.target.startswith(b"/v1.40/"):
            refused.append(call)
            words = "client version 1.40 is too old. Minimum supported API version is 1.41"
            yield response(json.dumps({"message": words}).encode(), 400)
        else:
            yield from answer

    return spoil


def test_an_engine_that_comes_back_newer_is_agreed_with_anew(
    odd: OddEngine, node: Node, tmp_path: Path
) -> None:
    """Behind a proxy no connection need tell that it is another engine."""
    refused: list[str] = []
    node.run()
    odd.spoil = of_version(odd, "1.40")
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        node.say(header("one"))
        watch.wait_for_message("one")
        wait_for(lambda: watch.monitor.container_error is None)
        odd.spoil = of_version(odd, "1.41", refused)
        wait_for(lambda: refused)
        wait_for(lambda: watch.monitor.container_error is None)
        node.say(header("two"))
        watch.wait_for_message("two")


def test_an_engine_that_comes_back_older_is_agreed_with_anew(
    odd: OddEngine, node: Node, tmp_path: Path
) -> None:
    """The engine here has 1.41; its own words refuse 1.42."""
    node.run()
    node.say(header("one"))
    odd.spoil = of_version(odd, "1.42")
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        wait_for(lambda: "1.42 is too new" in (watch.monitor.problem or ""))
        odd.spoil = unspoilt
        watch.wait_for_message("one")
        wait_for(lambda: watch.monitor.container_error is None)


# Figures


def with_figures(change: Callable[[dict[str, Any]], None]) -> Spoil:
    """An engine whose figures of one container in use are made: one core of four, and `change`."""
    seconds = itertools.count(1)

    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if call != "stats":
            yield from answer
            return
        found = json.loads(body_of(answer))
        second = 10**9 * next(seconds)
        use = {"total_usage": second, "percpu_usage": [second // 4] * 4}
        found["cpu_stats"] = {"cpu_usage": use, "system_cpu_usage": 4 * second, "online_cpus": 4}
        found["memory_stats"] = {"usage": 96 * MIB, "limit": 128 * MIB}
        change(found)
        yield response(json.dumps(found).encode())

    return spoil


def no_memory(found: dict[str, Any]) -> None:
    found["memory_stats"] = {}


def no_limit(found: dict[str, Any]) -> None:
    found["memory_stats"]["limit"] = 2**64 - 1


def no_limit_of_old(found: dict[str, Any]) -> None:
    found["memory_stats"]["limit"] = 2**63 - 4096


def no_count_of_cores(found: dict[str, Any]) -> None:
    del found["cpu_stats"]["online_cpus"]


def no_word_of_cores(found: dict[str, Any]) -> None:
    del found["cpu_stats"]["online_cpus"], found["cpu_stats"]["cpu_usage"]["percpu_usage"]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (no_memory, (100.0, None, None)),
        (no_limit, (100.0, 96 * MIB, None)),
        (no_limit_of_old, (100.0, 96 * MIB, None)),
        (no_count_of_cores, (100.0, 96 * MIB, 128 * MIB)),
        (no_word_of_cores, (None, 96 * MIB, 128 * MIB)),
    ],
    ids=["no-memory", "no-limit", "no-limit-of-old", "no-count-of-cores", "no-word-of-cores"],
)
def test_figures_that_an_engine_does_not_give_hide_no_others(
    odd: OddEngine,
    node: Node,
    change: Callable[[dict[str, Any]], None],
    expected: tuple[float | None, ...],
) -> None:
    node.run()
    odd.spoil = with_figures(change)
    engine = tbmon.DockerEngine(tbmon.Config(container_name=node.name, docker_host=odd.url))
    engine.stats(node.name)
    assert engine.stats(node.name) == expected


def test_a_missing_limit_is_told_as_unknown(odd: OddEngine, node: Node, program: Make) -> None:
    node.run()
    odd.spoil = with_figures(no_limit)
    one = program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0", DOCKER_HOST=odd.url).start()
    found = wait_for(lambda: one.get("/api/status")[1]["stats"])
    assert found["memory"] == {"usage": 96.0, "limit": None, "percent": None}
    told = re.findall(r"^tbmon_container_memory\S+ \S+$", one.get("/metrics")[1], re.M)
    assert told == [f"tbmon_container_memory_bytes {96 * MIB}"]
    assert one.end() == 0 and "Traceback" not in one.log.read_text()


def test_the_page_shows_figures_that_are_not_told_as_unknown(
    odd: OddEngine, node: Node, program: Make, browser: Any
) -> None:
    node.run()
    node.say(header("Starting services"))
    odd.spoil = with_figures(no_memory)
    one = program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0", DOCKER_HOST=odd.url).start()
    found = wait_for(lambda: one.get("/api/status")[1]["stats"])
    assert found["memory"] == {"usage": None, "limit": None, "percent": None}
    with Tab(browser, one) as tab:
        tab.see("Not known: the engine does not tell it")
        assert "NaN" not in tab.text() and tab.complaints == []


# Sizes after which a log is rotated


@pytest.mark.parametrize(
    ("size", "bytes_"),
    [
        ("0.1m", 100_000),
        ("1.5g", 1_500_000_000),
        ("10 m", 10_000_000),
        ("100KiB", 100_000),
        ("1t", 10**12),
        ("20971520", 20_971_520),
        ("5MB", 5_000_000),
    ],
)
def test_a_size_that_the_engine_takes_is_read_as_the_engine_does(
    node: Node, size: str, bytes_: int
) -> None:
    node.run("--log-opt", f"max-size={size}")
    engine = tbmon.DockerEngine(tbmon.Config(container_name=node.name))
    found = engine.inspect(node.name)
    assert found is not None and found.file_bytes == bytes_


@pytest.mark.parametrize(
    ("driver", "options", "bytes_"),
    [
        ("json-file", None, 0),
        ("json-file", {"max-size": "-1"}, 0),
        ("json-file", {"max-size": "10 parsecs"}, 1),
        ("json-file", {"max-size": "9" * 400}, 1),
        ("local", {}, 20_000_000),
        ("local", {"max-size": "1m"}, 1_000_000),
        ("journald", {}, 0),
        ("syslog", {}, 20_000_000),
        ("fluentd", {"cache-max-size": "1m", "max-size": "2m"}, 1_000_000),
        ("gelf", {"cache-max-size": "1g"}, 20_000_000),
    ],
)
def test_a_driver_that_sends_the_log_away_rotates_its_cache(
    driver: str, options: dict[str, str] | None, bytes_: int
) -> None:
    """As an inspect answer tells them. Engine 20.10 ignores the cache's options."""
    told = {"HostConfig": {"LogConfig": {"Type": driver, "Config": options}}}
    assert tbmon.read_container(told).file_bytes == bytes_


# Drivers, as doctor sees them


def doctor(one: Program) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "tbmon", "doctor")
    return subprocess.run(
        words, env=one.env, cwd=one.folder, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("is_cached", [True, False], ids=["cache", "no-cache"])
def test_doctor_asks_whether_a_driver_can_be_read(
    node: Node, program: Make, syslog: str, is_cached: bool
) -> None:
    options = ["--log-driver", "syslog", "--log-opt", f"syslog-address={syslog}"]
    node.run(*options, *["--log-opt", "cache-disabled=true"] * (not is_cached))
    node.say(header("Starting services"))
    one = program(CONTAINER_NAME=node.name)

    def said() -> str:
        return doctor(one).stdout

    if is_cached:
        wait_for(lambda: "1 of the last 1 log entries" in said())
        assert "\nOK   log driver syslog\n" in said() and "FAIL" not in said()
    else:
        assert "\nFAIL log driver syslog cannot be read: the engine answered 501: " in said()
        assert "\n     -> Use json-file or local.\n" in said()


def test_an_old_engine_says_in_words_that_a_driver_cannot_be_read(
    odd: OddEngine, node: Node, program: Make
) -> None:
    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        words = b'{"message": "configured logging driver does not support reading"}'
        yield from answer if call != "logs" else (response(words, 500),)

    node.run()
    odd.spoil = spoil
    said = doctor(program(CONTAINER_NAME=node.name, DOCKER_HOST=odd.url)).stdout
    assert "\nFAIL log driver json-file cannot be read" in said and "Use json-file" in said


# Where the node has gone


@pytest.fixture
def at_own(own: OwnEngine, monkeypatch: pytest.MonkeyPatch) -> OwnEngine:
    """That engine, with which `docker` and Node talk for as long as the test runs."""
    monkeypatch.setenv("DOCKER_HOST", own.url)
    return own


def test_containers_that_may_be_the_node_are_named_and_no_others(
    at_own: OwnEngine, tmp_path: Path, program: Make
) -> None:
    node = Node(tmp_path / "io")
    image = "truebitprotocol/runner-node:prod"
    compose_name = f"0123456789ab_{node.name}"
    docker("tag", IMAGE, image)
    one = program(CONTAINER_NAME=node.name, DOCKER_HOST=at_own.url, API_RATE_LIMIT="0")
    try:
        follow(node, one)
        docker("run", "-d", "--name", "diary", IMAGE, "sleep", "60")
        docker("run", "-d", "--name", f"{node.name}-diary", IMAGE, "sleep", "60")
        assert f"container {node.name} is running" in doctor(one).stdout
        docker("rename", node.name, compose_name)
        told = await_verdict(one, "down", "the container is missing")
        assert told["advice"] == (
            f"The node may be this container: {compose_name}."
            " Rename it, or set CONTAINER_NAME to its name."
        )
        docker(
            "create", "--name", "runner-of-mine", image, "sleep", "60"
        )  # started never, and yet there
        wait_for(lambda: "runner-of-mine" in verdict(one)["advice"], 15)
        for words in (verdict(one)["advice"], doctor(one).stdout):
            assert compose_name in words and "runner-of-mine" in words
            assert "diary" not in words
        docker("rename", compose_name, node.name)
        await_verdict(one, "idle")
        assert "The node may be" not in verdict(one)["advice"]
        assert one.end() == 0 and "Traceback" not in one.log.read_text()
    finally:
        for name in ("diary", f"{node.name}-diary", "runner-of-mine", compose_name):
            docker("rm", "-f", name, check=False)
        node.close()


def test_a_proxy_that_refuses_the_list_costs_the_hint_only(
    odd: OddEngine, node: Node, program: Make
) -> None:
    refused: list[bytes] = []

    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if b"/containers/json?" not in odd.asked.target:
            yield from answer
            return
        refused.append(odd.asked.target)
        yield response(b"<html>", 403)

    odd.spoil = spoil
    one = follow(node, program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0", DOCKER_HOST=odd.url))
    docker("rename", node.name, f"0123456789ab_{node.name}")
    try:
        await_verdict(one, "down", "the container is missing")
        assert refused and "CONTAINER_NAME (docker ps shows names)" in doctor(one).stdout
    finally:
        docker("rm", "-f", f"0123456789ab_{node.name}")
    assert one.end() == 0 and "Traceback" not in one.log.read_text()


def test_no_other_list_of_containers_can_be_asked_for() -> None:
    engine = tbmon.DockerEngine(tbmon.Config(container_name="runner-node"))
    named = tbmon.candidate_queries("runner-node")[0]
    every = {"all": 1, "filters": "{}"}
    for query in ({}, {"all": 1}, every, {**named, "size": 1}, tbmon.candidate_queries("node")[0]):
        with pytest.raises(ValueError, match="not among the calls"):
            engine.request("/containers/json", "GET", query)
