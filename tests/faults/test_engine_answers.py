"""An engine that rotates, hangs, refuses, cuts and stammers: nothing lost in silence, the verdict
right.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node, docker
from support.log_feed import IDS, completed, frame, received
from support.machine import LONG, figure_of, length, wait_for
from support.node_words import header
from support.own_engine import (
    WORDS,
    OddEngine,
    Spoil,
    answering,
    await_line,
    await_verdict,
    delay_s,
    follow,
    gaps,
    held,
    moment,
    say_and_await,
    stored,
    unspoilt,
    verdict,
)
from support.programs import Program, Watch

import tbmon

Make = Callable[..., Program]
# more than the longest seen between a line's writing and its stamp: pipes on the way hold some
# hundred
DELAY_S = 0.5
CODES = (404, 409, 500, 501)
CALLS = ("json", "logs", "archive")


@pytest.fixture
def odd(engine: None, tmp_path: Path) -> Iterator[OddEngine]:
    made = OddEngine(tmp_path / "odd.sock")
    yield made
    made.close()


@pytest.fixture
def spoilt(odd: OddEngine, node: Node, program: Make) -> Program:
    """A tbmon that follows the node through the odd engine."""
    return follow(node, program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0", DOCKER_HOST=odd.url))


ROTATES = {  # what is asked of the driver, and how much is said: lines, and bytes added to each
    "small": (("--log-opt", "max-size=100k", "--log-opt", "max-file=2"), 6000, 0),
    "fraction": (("--log-opt", "max-size=0.1m", "--log-opt", "max-file=2"), 6000, 0),
    "hidden-cache": (("--log-driver", "syslog"), 10_000, 15_000),
}


@pytest.mark.parametrize("kind", ROTATES)
@pytest.mark.parametrize(
    "stopped", [True, False] if LONG else [True], ids=["slow-reader", "fast"][: 1 + LONG]
)
def test_what_was_rotated_away_lies_in_a_gap_and_nothing_is_doubled(
    node: Node, program: Make, syslog: str, kind: str, stopped: bool
) -> None:
    options, lines, more = ROTATES[kind]
    if "syslog" in options:
        options = (*options, "--log-opt", f"syslog-address={syslog}")
    one = follow(node, program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0"), *options)
    assert gaps(one) == []
    if stopped:
        one.process.send_signal(signal.SIGSTOP)
    said: dict[int, float] = {}
    count, pause = length(lines, 100_000 if not more else 2 * lines), threading.Event()
    for first in range(1, count, 50):
        said.update(dict.fromkeys(range(first, first + 50), time.time()))
        node.say(
            "\n".join(
                header(f"{WORDS} line {number:06d}{'x' * more}")
                for number in range(first, first + 50)
            )
        )
        pause.wait(
            0.003
        )  # some 10,000 lines in a second: the reader has more to do than the writer
    one.process.send_signal(signal.SIGCONT)
    node.say(header("Heartbeat sent the last"))
    await_line(one, "the last", 60)
    have = stored(one)
    missing = [number for number in said if not have[f"{number:06d}"]]
    assert max(have.values()) == 1
    assert missing or not stopped

    late_s = DELAY_S + delay_s(node, said)

    def silent() -> list[int]:
        spans = [(moment(gap["from"]) - late_s, moment(gap["to"]) + 0.001) for gap in gaps(one)]
        return [number for number in missing if not any(a <= said[number] <= b for a, b in spans)]

    wait_for(lambda: not silent(), 5)
    assert one.end() == 0


@pytest.mark.parametrize(
    ("call", "status"), [(a, b) for a in CALLS for b in CODES] if LONG else [("logs", 501)]
)
def test_a_status_of_any_call_is_told_and_passes(
    spoilt: Program, odd: OddEngine, node: Node, call: str, status: int
) -> None:
    odd.change(answering(call, status))
    missing = status == 404
    if call == "archive" and missing:
        say_and_await(node, spoilt, 1)
        assert verdict(spoilt)["state"] == "idle"
    elif call == "json" and missing:
        await_verdict(spoilt, "down", "the container is missing")
    else:
        await_verdict(
            spoilt, "blind", "the container is gone" if missing else f"the engine answered {status}"
        )
    said = doctor(spoilt)
    assert (said.returncode, said.stderr) == (int(call != "archive" or not missing), "")
    if said.returncode and not missing:
        assert f"the engine answered {status}" in said.stdout
    odd.change(unspoilt)
    await_verdict(spoilt, "idle")
    say_and_await(node, spoilt, 2)
    assert stored(spoilt) == held(node)
    assert spoilt.end() == 0 and "Traceback" not in spoilt.log.read_text()


@pytest.mark.parametrize("status", CODES if LONG else [500])
def test_figures_that_cannot_be_had_make_nobody_blind(
    odd: OddEngine, node: Node, program: Make, status: int
) -> None:
    refuse, asked = answering("stats", status), threading.Event()

    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if call == "stats":
            asked.set()
        return refuse(call, answer)

    odd.change(spoil)
    one = follow(node, program(CONTAINER_NAME=node.name, API_RATE_LIMIT="0", DOCKER_HOST=odd.url))
    assert asked.is_set()
    assert (
        "blind: the engine" not in one.log.read_text()
        and one.get("/api/status")[1]["stats"] is None
    )
    odd.change(unspoilt)
    if LONG:
        wait_for(lambda: one.get("/api/status")[1]["stats"])
    assert one.end() == 0 and "Traceback" not in one.log.read_text()


def dripping(over: threading.Event, pause_s: float) -> Spoil:
    """A byte at a time until it is `over`; of a pause of a second each is in time for a timeout
    that begins anew.
    """

    def drip(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        for data in answer:
            for place in range(len(data)):
                over.wait(pause_s)
                yield data[place : place + 1]

    return drip


@pytest.mark.parametrize(
    "pause_s", [1, 60] if LONG else [1], ids=["dripping", "hanging"][: 1 + LONG]
)
def test_an_engine_that_hardly_answers_is_told_in_time(
    spoilt: Program, odd: OddEngine, node: Node, figure: Any, pause_s: int
) -> None:
    over = threading.Event()
    odd.spoil = dripping(over, pause_s)  # the log's own connection stays as it is
    begun = time.monotonic()
    await_verdict(spoilt, "blind")
    figure(f"engine sends a byte in {pause_s} s: blind after s", round(time.monotonic() - begun, 1))
    over.set()
    odd.change(unspoilt)
    await_verdict(spoilt, "idle")
    say_and_await(node, spoilt, 1)
    assert stored(spoilt) == held(node)
    assert spoilt.end() == 0 and "Traceback" not in spoilt.log.read_text()


def test_it_ends_in_time_while_the_engine_drips(spoilt: Program, odd: OddEngine) -> None:
    over = threading.Event()
    odd.change(dripping(over, 1))
    await_verdict(spoilt, "blind")
    asked = time.monotonic()
    assert spoilt.end() == 0 and time.monotonic() - asked < 10
    over.set()
    assert "Traceback" not in spoilt.log.read_text()


def test_a_log_connection_that_goes_silent_is_noticed(
    odd: OddEngine, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, figure: Any
) -> None:
    mute = threading.Event()

    def silent(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        for data in answer:
            if call == "logs" and mute.is_set():
                threading.Event().wait(60)
            yield data

    if not LONG:
        monkeypatch.setattr(tbmon.Follower, "SILENCE_S", 2.0)
    node.run()
    odd.spoil = silent
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        node.say(header("one"))
        watch.wait_for_message("one")
        mute.set()
        begun = time.monotonic()
        node.say(header("two"))  # is held on its way, and the connection stays
        odd.spoil = unspoilt
        watch.wait_for_message("two", tbmon.Follower.SILENCE_S + 10)
        figure("silent log connection: noticed after s", round(time.monotonic() - begun, 1))
        assert time.monotonic() - begun >= tbmon.Follower.SILENCE_S - 1
        assert watch.messages() == ["one", "two"]


def test_an_engine_that_looks_long_for_the_place_in_its_log_is_waited_for(
    odd: OddEngine, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads a log from its beginning to find where to go on; a log of gigabytes takes longer
    than any patience.
    """
    monkeypatch.setattr(tbmon.Follower, "SILENCE_S", 0.5)
    followed, over = list[bytes](), threading.Event()

    def late(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if call == "logs" and b"follow=1" in odd.asked.target:
            followed.append(odd.asked.target)
            over.wait(2.5)
        yield from answer

    node.run()
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        node.say(header(received(1)))
        wait_for(lambda: watch.task(IDS[1]))
    node.say(header(completed(1)))
    wait_for(lambda: completed(1) in docker("logs", node.name))
    node.restart()
    node.say(header("Starting services"))
    odd.spoil = late
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        wait_for(
            lambda: (
                watch.monitor.problem
                == "waiting for the engine, which looks for the place in its log"
            )
        )
        watch.wait_for_message("Starting services")
        wait_for(lambda: watch.monitor.problem is None)
        events = [row["event"] for row in watch.store.get("task_events", IDS[1])]
        assert (watch.task(IDS[1]).status, events) == (
            "completed",
            ["task_received", "task_completed"],
        )
        assert len(followed) > 1  # it asked again, with more patience
        over.set()


def test_cuts_of_every_call_at_any_byte_lose_and_double_nothing(
    odd: OddEngine, node: Node, tmp_path: Path
) -> None:
    dice, cuts = random.Random(3), Counter[str]()

    def cut(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        left = dice.choice((10, 200, 400, dice.randrange(4000)))
        if call != "logs" and dice.random() < 0.9:
            yield from answer
        for data in answer:
            if left < len(data):
                cuts[call] += 1
                yield data[:left]
                return
            left -= len(data)
            yield data

    node.run()
    node.put("/app/build/datadb/any-eventDB.json", b'{"records": []}' + b" " * 2000)
    odd.spoil = cut
    written: list[str] = []
    with Watch(tmp_path / "data", node.name, docker_host=odd.url, node_timezone="UTC") as watch:
        pause = threading.Event()
        while cuts["logs"] < length(40, 3000) or not cuts["json"]:
            written.append(f"line {len(written):06d}" + ": {\n  1\n}" * (dice.random() < 0.2))
            node.say(header(written[-1]), dice.choice(("out", "err")))
            pause.wait(0.005)
        odd.change(unspoilt)
        node.say(header("the last"))
        watch.wait_for_message("the last")
        assert Counter(watch.messages()) == Counter([*written, "the last"])


def test_one_byte_at_a_time_is_read_as_well(odd: OddEngine, node: Node, tmp_path: Path) -> None:
    def crumbs(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        return (data[place : place + 1] for data in answer for place in range(len(data)))

    node.run()
    odd.spoil = crumbs
    written = [
        f"line {number:06d}" + ": {\n  1\n}" * (number % 5 == 0)
        for number in range(length(100, 5000))
    ]
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        for number, message in enumerate(written):
            node.say(header(message), "err" if number % 3 == 0 else "out")
        wait_for(lambda: Counter(watch.messages()) == Counter(written), length(20, 300))


@pytest.mark.parametrize(
    ("odd_frame", "words"),
    [
        (frame(1, b""), ""),
        (frame(3, b"error from daemon in stream"), "error from daemon in stream"),
        (frame(1, b"x" * 1000, 2**31), ""),
        (frame(2, b"x" * (20 << 20), 2**31), "over 16 MiB"),
        (b"HTTP/1.1 200 OK\r\n\r\n no frames at all", "the log stream says"),
        (frame(1, b"no stamp at all\n") + frame(2, b" \n") + frame(0, b"9" * 40 + b"\n"), ""),
    ],
    ids=["empty", "stream-3", "huge-announced", "huge-sent", "no-frames", "no-stamps"],
)
def test_a_frame_that_cannot_be_is_survived(
    odd: OddEngine, node: Node, tmp_path: Path, odd_frame: bytes, words: str
) -> None:
    served, before = list[str](), figure_of(os.getpid(), "VmRSS")

    def spoil(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if call != "logs":
            yield from answer
            return
        served.append(call)
        yield (
            b"HTTP/1.1 200 OK\r\nContent-Type: application/octet-stream\r\nConnection: "
            b"close\r\n\r\n"
        )
        yield odd_frame

    node.run()
    with Watch(tmp_path / "data", node.name, docker_host=odd.url) as watch:
        node.say(header("one"))
        watch.wait_for_message("one")
        odd.change(spoil)
        wait_for(lambda: len(served) >= 2 and words in (watch.monitor.problem or ""))
        odd.change(unspoilt)
        node.say(header("two"))
        watch.wait_for_message("two")
        wait_for(lambda: watch.monitor.problem is None)
        said = watch.messages()
    assert said.count("one") == said.count("two") == 1
    assert (
        figure_of(os.getpid(), "VmRSS") - before < 128 * 1024
    )  # this process has other tests behind it


def doctor(one: Program) -> subprocess.CompletedProcess[str]:
    words = (sys.executable, "-m", "tbmon", "doctor")
    return subprocess.run(
        words, env=one.env, cwd=one.folder, capture_output=True, text=True, timeout=60
    )
