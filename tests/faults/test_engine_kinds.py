"""Engines of other versions, drivers and machines than the one at hand: what they give is read right."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.engine import Node
from support.machine import wait_for
from support.node_words import header
from support.own_engine import OddEngine, Spoil, unspoilt
from support.programs import Program, Watch

Make = Callable[..., Program]


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
