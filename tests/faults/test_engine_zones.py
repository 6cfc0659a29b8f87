"""Engines whose own clock is not on UTC: the lines' times are right, whatever the zone and the log driver."""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.engine import Node
from support.machine import wait_for
from support.node_words import header
from support.own_engine import WORDS, OwnEngine
from support.programs import Watch

LONG_LINE = "x" * 40_000  # comes in three pieces, each with the stamp


@pytest.fixture(scope="module", params=["America/Los_Angeles", "Europe/Berlin", "Asia/Kathmandu"])
def abroad(engine: None, request: pytest.FixtureRequest) -> Iterator[OwnEngine]:
    """A Docker Engine that lives in another zone."""
    own = OwnEngine(live_restore=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", request.param)
        own.start()
    try:
        own.load()
        yield own
    finally:
        own.close()


class Told:
    """One container's node, what it said and when, and the monitor that follows it."""

    def __init__(self, folder: Path, url: str, *options: str) -> None:
        folder.mkdir()
        self.name = folder.name
        self.node = Node(folder / "io")
        self.said: dict[str, float] = {}
        self.node.run(*options)
        self.watch = Watch(folder / "data", self.node.name, docker_host=url)

    def say(self, *messages: str) -> None:
        for message in messages:
            self.said[message] = time.time()
            self.node.say(header(message))

    def check(self) -> None:
        """Every line is there once, is believed, and is as old as it is; the verdict knows it."""
        for message in self.said:
            self.watch.wait_for_message(message)
        rows = self.watch.entries()
        assert sorted(row["message"] for row in rows) == sorted(self.said), self.name
        ages = {row["message"][:30]: row["at"] / 1000 - self.said[row["message"]] for row in rows}
        assert {words: age for words, age in ages.items() if abs(age) > 5} == {}, self.name
        assert [row["flags"] for row in rows] == [0] * len(rows), self.name
        assert [dict(gap) for gap in self.watch.store.get("gaps")] == [], self.name

    def verdict(self) -> str:
        """The first that is not made of ignorance."""

        def known() -> str | None:
            found = self.watch.monitor.verdict
            return found.state if found and found.state != "blind" else None

        return str(wait_for(known))


def test_times_are_right_whatever_the_engines_zone(
    abroad: OwnEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syslog: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", abroad.url)
    with contextlib.ExitStack() as ends:
        all_told = []
        for driver, tty in itertools.product(("json-file", "local", "syslog"), (False, True)):
            words = ["--log-driver", driver, *["--tty"] * tty]
            words += ["--log-opt", f"syslog-address={syslog}"] * (driver == "syslog")
            one = Told(tmp_path / f"{driver}{'-tty' * tty}", abroad.url, *words)
            ends.callback(one.node.close)
            one.say("Starting services", f"{WORDS} 1", f"{WORDS} {LONG_LINE}")
            all_told.append(one)
        with following(all_told):
            for one in all_told:
                one.say(f"{WORDS} 2")
        for one in all_told:
            one.say(f"{WORDS} 3")
        for _ in range(2):  # reads again from some seconds before its end
            with following(all_told):
                pass


@contextlib.contextmanager
def following(all_told: list[Told]) -> Iterator[None]:
    """All monitors run meanwhile; what they have is looked at when they begin and before they end."""
    with contextlib.ExitStack() as ends:
        for one in all_told:
            ends.enter_context(one.watch)
        for one in all_told:
            one.check()
        yield
        for one in all_told:
            one.check()
            assert one.verdict() == "idle", one.name
        for one in all_told:
            one.watch.monitor.stop.set()
