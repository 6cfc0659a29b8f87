"""Killed at any moment, tbmon and the aggregator lose nothing, count nothing twice, and start again
at once.
"""

from __future__ import annotations

import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from support.aggregation import Aggregators, Hubs, Load, settle
from support.engine import LOG_FOLDER, Node
from support.federation_feed import Aggregation
from support.machine import LONG, length, wait_for
from support.node_words import created_record, header, receipt
from support.programs import Program, begin
from support.writer import compare, disturb, is_sound, moments, telling

import aggregator

Figure = Callable[[str, object], None]
ROUND = 25  # kills of one database


def tell_starts(figure: Figure, what: str, starts: list[float]) -> None:
    figure(f"{what}: starts", len(starts))
    figure(f"{what}: start, median s", round(statistics.median(starts), 2))
    figure(f"{what}: start, slowest s", round(max(starts), 2))
    assert max(starts) < (2 if LONG else 10)


def kill(program: Program) -> None:
    assert program.process.poll() is None, program.log.read_text()
    program.process.kill()
    program.process.wait()


def test_kill_9_at_any_moment(
    engine: None, program: Callable[..., Program], tmp_path: Path, figure: Figure
) -> None:
    starts, kills = [], Counter[str]()
    for number in range(length(1, 20)):
        dice = random.Random(number)
        with telling(tmp_path / f"io{number}", number) as told:
            one = program(CONTAINER_NAME=told.node.name)
            for moment in moments(ROUND, dice):
                took = disturb(one, moment, dice)
                starts += [] if took is None else [took]
                kill(one)
                kills[moment] += 1
                assert moment == "start" or is_sound(one)
            told.hurry()
            compare(one.start(), told)
    figure("kill -9 of tbmon: kills", f"{kills.total()} ({dict(kills)})")
    tell_starts(figure, "kill -9 of tbmon", starts)


CUT = """
import os, sys, tbmon
tbmon.bind_again = lambda *given: os._exit(9)  # as kill -9 does at this moment
sys.exit(tbmon.main(["serve"]))
"""


def test_what_an_import_had_still_to_bind_is_bound_by_the_next_start(
    node: Node, program: Callable[..., Program]
) -> None:
    name, now = "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c", time.time()
    node.run()
    both = header("Heartbeat sent", now - 12)  # so that nothing is missing between them
    told = [
        header("Starting services", now - 7200),
        header(receipt(created_record(name, {})), now - 20),
        both,
    ]
    node.put(f"{LOG_FOLDER}/worker-2026-01-01.log", "".join(f"{line}\n" for line in told).encode())
    node.say(both)
    node.say(header("Starting task execution", now - 10))
    one = program(CONTAINER_NAME=node.name)
    assert begin(one, "-c", CUT).process.wait(20) == 9
    one.start()
    wait_for(
        lambda: one.rows("SELECT status FROM task WHERE started_at NOTNULL") == [("executing",)]
    )


def disturb_count(one: Aggregation, moment: str, dice: random.Random) -> float | None:
    """Start an aggregator and wait for a moment: start or work. Returns how long a whole start
    took.
    """
    begun, before = time.monotonic(), one.text().count("connected to")
    one.launch()
    if moment == "start":
        threading.Event().wait(dice.uniform(0, 0.7))
        return None
    wait_for(lambda: one.code() is not None or one.text().count("connected to") > before)
    took = time.monotonic() - begun
    settle(one, one.counted() + 1)
    threading.Event().wait(dice.uniform(0, 0.1))
    return took


def test_kill_9_of_the_aggregator_at_any_moment(
    hub_server: Hubs, count: Aggregators, figure: Figure
) -> None:
    starts, messages = [], 0
    for turn in range(rounds := length(1, 20)):
        server, dice = hub_server(), random.Random(turn)
        one, load = (
            count(server, "aggregator.ASK_S = 0.1").start(),
            Load(server, turn),
        )  # no rival to be waited for
        one.kill()  # the streams are made
        load.start()
        for number in range(ROUND):
            took = disturb_count(one, "start" if number % 3 else "work", dice)
            starts += [] if took is None else [took]
            assert one.code() is None, one.text()
            one.kill()
        sent = load.finish()
        messages += len(sent)
        one.launch()
        settle(one, len(sent), 120)
        assert one.end() == 0
        assert aggregator.read(one.db, "PRAGMA integrity_check") == [("ok",)]
        assert one.counted() == len({message.payload for message in sent}) > 1000
        assert set(one.dropped()) <= {"it was counted before"}
        server.close()
    figure("kill -9 of the aggregator: kills, messages", (rounds * ROUND, messages))
    tell_starts(figure, "kill -9 of the aggregator, without the wait for a rival", starts)
