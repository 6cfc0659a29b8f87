"""Large files of the node: a log file and an event database are read while the log is followed, within
the memory and the room that there are, and what is too large is told of.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from support.disks import memory_disk
from support.engine import LOG_FOLDER, Node, Proxy
from support.machine import figure_of, wait_for
from support.node_words import created_record, header
from support.programs import Program, Watch, made_over_files

import tbmon

MOST_KIB = 128 * 1024  # that the program may ever hold
LONG_AGO = 1_700_000_000
DATABASE = "/app/build/datadb"


class SlowProxy(Proxy):
    """Hands on the engine's archives slowly, so that it holds the container for as long."""

    def __init__(self, path: Path, bytes_per_s: int) -> None:
        self.pause_s = 65536 / bytes_per_s
        super().__init__(path)

    def carry(
        self, source: socket.socket, sink: socket.socket, listens: bool, state: dict[str, int]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if listens and re.match(rb"[A-Z]+ ", data):
                    state["slow"] = int(bool(re.match(rb"GET \S*/archive\?", data)))
                elif not listens and state.get("slow"):
                    time.sleep(self.pause_s * len(data) / 65536)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def long_lines(size: int) -> Iterator[str]:
    """Lines of 20 kB that hardly can be compressed, `size` bytes in all."""
    for number in range(size // 20_000):
        words = base64.b64encode(os.urandom(14_900)).decode()
        yield header(f"{number} {words}", LONG_AGO + number) + "\n"


def run_with_files(node: Node, folder: Path, size: int) -> None:
    """Run a node that has a log file of this size, and newest in it one line of now."""
    (folder / "logs").mkdir()
    (folder / "datadb").mkdir()
    with (folder / "logs" / "worker-2026-01-01.log").open("w") as file:
        file.writelines(long_lines(size))
        file.write(header("the file is read") + "\n")
    node.run("-v", f"{folder}/logs:{LOG_FOLDER}", "-v", f"{folder}/datadb:{DATABASE}")


def has(program: Program, message: str) -> bool:
    return bool(program.rows("SELECT 1 FROM log WHERE message = ?", message))


def follow_until(program: Program, node: Node, is_over: Callable[[], bool]) -> int:
    """Say a line again and again, each of which must be there soon, in a state that is not blind;
    returns how many there were.
    """
    number, deadline = 0, time.monotonic() + 90
    while not is_over():
        assert time.monotonic() < deadline
        node.say(header(f"line {number}"))
        wait_for(functools.partial(has, program, f"line {number}"), 3)
        number += 1
    usual = tbmon.JUST_STARTED, "reading the node's history"  # which is new to this tbmon
    blind = re.findall(r"verdict: blind: (.*)", program.log.read_text())
    verdict = program.get("/api/status")[1]["verdict"]
    blind += [verdict["reason"]] if verdict["state"] == "blind" else []
    assert [words for words in blind if not words.startswith(usual)] == []
    return number


def database_of(records: int, size: int) -> str:
    """An event database of so many records, with an input of this size in each."""
    made = [
        created_record(f"{n:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c", {"input": f"{n} " + "x" * size})
        for n in range(records)
    ]
    return json.dumps({"records": [{"payload": record} for record in made]})


def passed_over(program: Program) -> list[dict[str, str]]:
    return list(program.get("/api/logs/status")[1]["passedOver"])


# Memory


def test_a_large_file_of_the_container_is_read_within_the_memory(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    run_with_files(node, tmp_path, 140_000_000)
    made = program(CONTAINER_NAME=node.name, LOG_RETENTION_DAYS="1").start()
    wait_for(lambda: has(made, "the file is read"), 90)
    assert figure_of(made.process.pid, "VmHWM") < MOST_KIB
    assert not [name for name in os.listdir(made.folder) if name.startswith("tmp")]


def test_a_record_of_very_many_values_needs_little_memory_and_hides_no_other(
    program: Callable[..., Program],
) -> None:
    made = made_over_files(program)
    folder = Path(made.env["LOG_DIR"])
    (folder / "a.log").write_text(header("Heartbeat sent") + "\n")
    wide = f'{{"payload": [{"{}," * 1_500_000}0]}}'
    text = database_of(2, 10).replace('"records": [', f'"records": [{wide}, ', 1)
    (folder / "x-eventDB.json").write_text(text)
    made.start()
    wait_for(lambda: len(made.get("/api/tasks")[1]["tasks"]) == 2)
    assert figure_of(made.process.pid, "VmHWM") < MOST_KIB


# The log goes on


def test_the_log_is_followed_while_a_large_file_is_copied(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    run_with_files(node, tmp_path, 18_000_000)
    proxy = SlowProxy(tmp_path / "engine.sock", 3_000_000)
    made = program(CONTAINER_NAME=node.name, DOCKER_HOST=proxy.url, LOG_RETENTION_DAYS="1").start()
    node.say(header("hello"))
    wait_for(lambda: has(made, "hello"))
    followed = follow_until(made, node, lambda: has(made, "the file is read"))
    proxy.close()
    assert followed > 20


def test_the_log_is_followed_while_a_large_event_database_is_copied(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    run_with_files(node, tmp_path, 20_000)
    (tmp_path / "datadb" / "x-eventDB.json").write_text(database_of(18, 1_000_000))
    proxy = SlowProxy(tmp_path / "engine.sock", 3_000_000)
    made = program(CONTAINER_NAME=node.name, DOCKER_HOST=proxy.url, LOG_RETENTION_DAYS="1").start()
    node.say(header("hello"))
    wait_for(lambda: has(made, "hello"))
    followed = follow_until(made, node, lambda: bool(made.rows("SELECT 1 FROM task")))
    proxy.close()
    assert followed > 20


def test_a_large_event_database_is_read_in_small_steps(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "x-eventDB.json").write_text(database_of(20_000, 1000))
    watch = Watch(tmp_path / "data", log_dir=str(tmp_path / "logs"))
    store = tbmon.Store(Path(watch.config.db_path), watch.key)
    redactor = tbmon.Redactor(watch.key)
    monitor = tbmon.Monitor(watch.config, store, redactor, None, threading.Event())
    follower = tbmon.DirectoryFollower(monitor)
    steps, more = [], True
    while more:
        begun = time.thread_time()
        more = follower.events.step(follower.recorder)
        steps.append(time.thread_time() - begun)
    follower.recorder.commit()
    assert store.read("SELECT COUNT(*) FROM task")[0][0] == 20_000
    assert max(steps) < 0.25
    first_s = sum(steps)
    follower.events.next_s = 0.0
    (tmp_path / "logs" / "x-eventDB.json").write_text(database_of(20_001, 1000))
    begun = time.thread_time()
    while follower.events.step(follower.recorder):
        pass
    follower.recorder.commit()
    assert store.read("SELECT COUNT(*) FROM task")[0][0] == 20_001
    assert time.thread_time() - begun < first_s / 3  # what is known is not taken again
    store.close()


# What is too large


def test_a_file_of_the_container_beyond_the_bound_is_told_of_and_the_others_are_read(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    run_with_files(node, tmp_path, 20_000)
    with (tmp_path / "logs" / "worker-2025-01-01.log").open("w") as file:
        file.truncate(tbmon.FILE_BYTES + 1)
    made = program(CONTAINER_NAME=node.name).start()
    wait_for(lambda: has(made, "the file is read"), 60)
    reason = "it has 1024 MiB, at most 1024 are read"
    assert passed_over(made) == [{"file": "worker-2025-01-01.log", "reason": reason}]
    assert f"worker-2025-01-01.log is passed over: {reason}" in made.log.read_text()


def test_a_file_for_whose_copy_there_is_no_room_is_told_of(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    run_with_files(node, tmp_path, 60_000_000)
    small = tmp_path / "small"
    with memory_disk(small, "size=64m"):
        made = program(CONTAINER_NAME=node.name, DB_PATH=str(small / "t.db")).start()
        wait_for(lambda: "is passed over" in made.log.read_text())
        reason = "no room for a copy of 57 MiB beside the database"
        assert passed_over(made) == [{"file": "worker-2026-01-01.log", "reason": reason}]
        node.say(header("it goes on"))
        wait_for(lambda: has(made, "it goes on"))
        assert made.end() == 0


def test_a_record_that_is_too_large_is_told_of(program: Callable[..., Program]) -> None:
    made = made_over_files(program)
    (Path(made.env["LOG_DIR"]) / "x-eventDB.json").write_text(database_of(1, 14 * tbmon.MIB))
    made.start()
    reason = "one of its records has more than 8 MiB"
    wait_for(lambda: "is passed over" in made.log.read_text())
    assert passed_over(made) == [{"file": "x-eventDB.json", "reason": reason}]
    assert figure_of(made.process.pid, "VmHWM") < MOST_KIB
