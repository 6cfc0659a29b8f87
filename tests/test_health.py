"""What a monitor from outside is told of the node by /health?node=1."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

from support.engine import Node, docker
from support.machine import wait_for
from support.node_words import header
from support.programs import Program


def stopped(program: Callable[..., Program], **settings: str) -> Program:
    """A tbmon that is blind."""
    one = program(LOG_DIR="/nonexistent", **settings).start()
    wait_for(lambda: "LOG_DIR" in one.log.read_text().partition("verdict: blind")[2])
    return one


def working(program: Callable[..., Program], tmp_path: Path, **settings: str) -> Program:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text(header("Heartbeat sent") + "\n")
    one = program(LOG_DIR=str(tmp_path / "logs"), **settings).start()
    wait_for(lambda: "verdict: idle" in one.log.read_text())
    return one


def test_health_tells_of_the_node_only_if_asked(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    blind, idle = stopped(program), working(program, tmp_path)
    for path in ("/health", "/api/health"):
        assert (blind.get(path)[0], blind.get(f"{path}?node=0")[0]) == (200, 200)
        status, body = blind.get(f"{path}?node=1")
        assert status == 503
        assert re.fullmatch(
            r"the node is blind since 2\S+Z: LOG_DIR=/nonexistent .*", body["error"]
        )
        status, body = idle.get(f"{path}?node=1")
        assert (status, body["status"], body["node"]["state"]) == (200, "ok", "idle")
        assert set(body["node"]) == {"state", "reason", "since"}
        assert blind.get(f"{path}?node=yes")[0] == 400


def test_health_of_the_node_is_down_with_its_container(
    node: Node, program: Callable[..., Program]
) -> None:
    node.run()
    node.say(header("Heartbeat sent"))
    one = program(CONTAINER_NAME=node.name).start()
    wait_for(lambda: one.get("/health?node=1")[0] == 200)
    docker("stop", "-t", "0", node.name)
    wait_for(lambda: one.get("/health?node=1")[0] == 503)
    assert "exit code 137" in one.get("/health?node=1")[1]["error"]
    assert one.get("/health")[0] == 200


def test_health_of_the_node_asks_for_the_key(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    key = {"Authorization": "Bearer of this test"}
    blind, idle = (
        stopped(program, API_KEY="of this test"),
        working(program, tmp_path, API_KEY="of this test"),
    )
    for one, status in ((blind, 503), (idle, 200)):
        assert one.get("/health")[0] == 200
        assert one.get("/health?node=1")[0] == 401
        assert one.get("/health?node=1", Authorization="Bearer another")[0] == 401
        assert one.get("/health?node=1", **key)[0] == status


def test_health_of_the_node_may_be_open_and_says_no_more_than_its_status(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    settings = {"API_KEY": "of this test", "HEALTH_NODE_OPEN": "true"}
    key = {"Authorization": "Bearer of this test"}
    blind, idle = stopped(program, **settings), working(program, tmp_path, **settings)
    status, body = blind.get("/health?node=1")
    assert (status, body) == (503, {"error": "the node is down, or cannot be seen"})
    assert "LOG_DIR" in blind.get("/health?node=1", **key)[1]["error"]
    status, body = idle.get("/health?node=1")
    assert (status, set(body)) == (200, {"status", "docker", "version", "timestamp"})
    assert idle.get("/health?node=1", **key)[1]["node"]["state"] == "idle"
    assert idle.get("/health?node=1", Authorization="Bearer another")[0] == 401
    assert idle.get("/api/status")[0] == 401
