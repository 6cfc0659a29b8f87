"""The aggregator says whether the hub's server is a safe one."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path

import pytest
from support.federation_feed import Aggregation
from support.hub_conf import Server
from support.hubs import Hostile
from support.machine import wait_for
from support.nats_servers import KINDS, version_of

import aggregator

LEAST = ".".join(map(str, aggregator.SAFE_SERVER))


@pytest.mark.parametrize("kind", KINDS)
def test_it_warns_once_at_its_start_of_a_server_that_strangers_can_end(
    tmp_path: Path, kind: str
) -> None:
    with (
        contextlib.closing(Server(tmp_path, kind=kind)) as hub,
        contextlib.closing(Aggregation(tmp_path / "aggregator", hub.start().url())) as one,
    ):
        one.start()
        hub.kill()
        wait_for(lambda: "trying again" in one.text())
        hub.start()
        wait_for(lambda: one.text().count("connected to") == 2)
        said = ".".join(map(str, version_of(hub.program)))
        warnings = [line for line in one.text().splitlines() if "the hub is nats-server" in line]
        assert len(warnings) == (version_of(hub.program) < aggregator.SAFE_SERVER)
        for line in warnings:
            assert f"WARNING the hub is nats-server {said}, which strangers can end" in line
            assert f"take {LEAST} or later" in line


@pytest.mark.parametrize(
    "version",
    [
        LEAST,
        f"v{LEAST}",
        f"{LEAST}+deb1",
        "2.12.7-beta.1",
        "2.13.0-dev",
        "2.15.1",
        "3.0.0",
        "10.0.0",
    ],
)
def test_a_safe_server_is_nothing_to_talk_about(version: str) -> None:
    assert aggregator.warning_of(version) is None


@pytest.mark.parametrize(
    "version", ["2.9.10", "2.12.5", "2.12.0-beta.1", f"{LEAST}-RC.1", "2.11.99", "1.99.99", "0.0.0"]
)
def test_an_older_one_is_named(version: str) -> None:
    assert f"nats-server {version}, which" in str(aggregator.warning_of(version))


STRANGE: list[object] = [
    "",
    "2.12",
    "2.12.6.1",
    "latest",
    "2.12.\u0666",
    "2.12.6\n",
    "9" * 5000,
    f"{'9' * 5000}.1.1",
    f"2.12.6-{'a' * 5000}",
    None,
    2.12,
    [2, 12, 6],
    {"a": 1},
]


@pytest.mark.parametrize("version", STRANGE, ids=lambda one: repr(one)[:20])
def test_whatever_else_it_tells_is_an_unknown_version(version: object) -> None:
    assert "server is unknown" in str(aggregator.warning_of(version))


@pytest.mark.parametrize("version", ["a\u2028b", 7, ["x"]], ids=repr)
def test_a_hub_that_tells_nonsense_is_one_of_an_unknown_version(
    tmp_path: Path, version: object
) -> None:
    def act(hub: Hostile, client: socket.socket, number: int) -> None:
        hub.greet(client, number, version=version)

    with (
        contextlib.closing(Hostile(act)) as hub,
        contextlib.closing(Aggregation(tmp_path / "aggregator", hub.url)) as one,
    ):
        one.launch()
        wait_for(lambda: "server is unknown" in one.text() or one.code() is not None)
        assert one.end() == 0
        assert "Traceback" not in one.text()
