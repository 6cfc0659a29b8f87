"""A log that the engine itself cannot read over, as a power cut leaves it: what stands behind is read."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.engine import Node, docker
from support.machine import wait_for
from support.node_words import header
from support.own_engine import WORDS, OwnEngine
from support.programs import Program, Watch

import tbmon

Make = Callable[..., Program]
GAP = "the engine's log is damaged"


@pytest.fixture
def node(own: OwnEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Node]:
    """A node at that engine, with which `docker` talks meanwhile."""
    monkeypatch.setenv("DOCKER_HOST", own.url)
    monkeypatch.setattr(tbmon.Follower, "SILENCE_S", 2.0)
    made = Node(tmp_path / "io")
    yield made
    made.close()


def append_nothing(file: Path) -> None:
    """What a file system gives for blocks that it did not write."""
    with file.open("ab") as log:
        log.write(bytes(512))


def halve(file: Path) -> None:
    """The last record is written half."""
    size = file.stat().st_size
    with file.open("r+b") as log:
        log.truncate(size - 40)


def log_file(own: OwnEngine, node: Node) -> Path:
    """Where that engine keeps what the node says."""
    name = docker("inspect", "--format", "{{.Id}}", node.name)
    folder = own.folder / "data" / "containers" / name
    local = folder / "local-logs" / "container.log"
    return local if local.exists() else folder / f"{name}-json.log"


def say(node: Node, first: int, count: int) -> list[str]:
    """Numbered words, which the engine has when this returns."""
    said = [f"{WORDS} {number:06d}" for number in range(first, first + count)]
    for words in said:
        node.say(header(words))
    # Before the first of them is written, the engine may complain of what it finds.
    wait_for(lambda: said[-1] in docker("logs", "--tail", "1", node.name, check=False))
    return said


KINDS = {
    "nothing-in-json": ("json-file", append_nothing),
    "half-in-json": ("json-file", halve),
    "half-in-local": ("local", halve),
}
each_kind = pytest.mark.parametrize(("driver", "damage"), KINDS.values(), ids=KINDS)
Damage = Callable[[Path], None]


@each_kind
def test_what_stands_behind_a_damaged_place_is_read_and_the_gap_told(
    own: OwnEngine, node: Node, tmp_path: Path, driver: str, damage: Damage
) -> None:
    node.run("--log-driver", driver)
    before = say(node, 1, 5)
    watch = Watch(tmp_path / "data", node.name, docker_host=own.url)
    with watch:
        wait_for(lambda: watch.messages() == before)
    damage(log_file(own, node))
    node.restart()
    after = say(node, 100, 20)

    def gaps() -> list[str]:
        return [gap["reason"] for gap in watch.store.get("gaps")]

    with watch:
        watch.wait_for_message(after[-1])
        wait_for(lambda: watch.monitor.problem is None)
        more = say(node, 200, 3)
        watch.wait_for_message(more[-1], 10)
        have = watch.messages()
        lost = [words for words in before + after + more if words not in have]
        assert sorted(set(have)) == sorted(have)
        assert lost in ([], after[:1])  # the engine takes it for a part of the damaged record
        assert gaps() == [GAP]
        gap = watch.store.get("gaps")[0]
        assert watch.entries()[4]["at"] <= gap["from_at"] + 1000 <= gap["to_at"] + 1000
    with watch:  # goes on where it was: nothing is lost, doubled or told again
        rest = say(node, 300, 3)
        watch.wait_for_message(rest[-1])
        # What is left of the damaged record may come now, and is an entry that nobody recognises.
        said = [words for words in watch.messages() if words.startswith(WORDS)]
        assert sorted(said) == sorted(words for words in (*have, *rest) if words.startswith(WORDS))
        assert gaps() == [GAP]


def is_followed() -> bool:
    """True while a connection of this process waits for what the engine sends."""
    return any(thread.name == "reader" for thread in threading.enumerate())


def test_a_log_whose_damaged_place_was_rotated_away_is_followed_again(
    own: OwnEngine, node: Node, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tbmon, "MENDED_S", 1.0)
    node.run("--log-opt", "max-size=20k", "--log-opt", "max-file=2")
    said = say(node, 1, 5)
    append_nothing(log_file(own, node))
    node.restart()
    said += say(node, 100, 20)
    with Watch(tmp_path / "data", node.name, docker_host=own.url) as watch:
        watch.wait_for_message(said[-1])
        assert not is_followed()
        for first in range(1000, 1600, 50):
            said += say(node, first, 50)
            watch.wait_for_message(said[-1])
        wait_for(is_followed)
        said += say(node, 2000, 3)
        watch.wait_for_message(said[-1])
        have = watch.messages()
        assert sorted(set(have)) == sorted(have) and set(said) - set(have) <= {said[5]}
        assert [gap["reason"] for gap in watch.store.get("gaps")] == [GAP]


@each_kind
def test_a_stopped_node_with_a_damaged_log_is_read_to_its_end(
    own: OwnEngine, node: Node, tmp_path: Path, driver: str, damage: Damage
) -> None:
    node.run("--log-driver", driver)
    before = say(node, 1, 5)
    damage(log_file(own, node))
    node.restart()
    after = say(node, 100, 20)
    docker("stop", "-t", "0", node.name)
    with Watch(tmp_path / "data", node.name, docker_host=own.url) as watch:
        watch.wait_for_message(after[-1])
        have = watch.messages()
        assert set(before[:4] + after[1:]) <= set(have) and sorted(set(have)) == sorted(have)
        assert [gap["reason"] for gap in watch.store.get("gaps")] == [GAP]


@each_kind
def test_doctor_tells_of_a_damaged_log(
    own: OwnEngine, node: Node, program: Make, driver: str, damage: Damage
) -> None:
    one = program(CONTAINER_NAME=node.name, DOCKER_HOST=own.url)

    def doctor() -> str:
        words = (sys.executable, "-m", "tbmon", "doctor")
        return subprocess.run(
            words, env=one.env, cwd=one.folder, capture_output=True, text=True, timeout=60
        ).stdout

    node.run("--log-driver", driver)
    say(node, 1, 5)
    assert "5 of the last 5" in doctor() and GAP not in doctor()
    damage(log_file(own, node))
    say(node, 100, 20)
    said = doctor()
    assert f"WARN {GAP}: lines may be missing\n     -> " in said
    assert f"OK   log driver {driver}\n" in said and "of the last 0 " not in said
