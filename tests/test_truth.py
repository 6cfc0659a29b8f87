"""What tbmon shows of a task is true, whichever way it came to know of it.

Histories are random, the truth of each is known, and what can be known at best is what the oracle reads.
`PYTHONPATH=. python tests/test_truth.py SEED [WAY]` plays one history again.
"""

from __future__ import annotations

import os
import random
import re
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import histories
import oracle
import pytest
import ways
from histories import History, Truth
from truths import FIGURES, heard, mark_of, untruths

pytestmark = pytest.mark.slow
IS_LONG = os.environ.get("TBMON_SOAK") == "1"
HISTORIES = 5000 if IS_LONG else 300
BLOCKS = 10 if IS_LONG else 2
BLIND_S = 71 * 60  # behind a cut nothing can be said of lines that name no task
NULLS_ALLOWED = 0.01
"""Share of the values that the oracle of the whole log tells and a log that was cut does not."""


class Tally:
    """Counts of a run: what was wrong, and what of that which can be told was told."""

    def __init__(self) -> None:
        self.wrong: list[str] = []
        self.readings: Counter[str] = Counter()
        self.failed: Counter[str] = Counter()
        self.tellable = 0
        self.nulls = 0

    def add(self, history: History, reading: ways.Reading) -> None:
        self.readings[reading.way] += 1
        wrong = list(differences(history, reading))
        if wrong:
            self.failed[reading.way] += 1
            self.wrong.append(wrong[0])
        if reading.is_whole:
            return
        for execution_id, truth in history.truths.items():
            if (truth.received_at or 0) <= reading.whole_from_s + BLIND_S:
                continue
            for name in FIGURES:
                if getattr(reading.whole.tasks[execution_id], name) is None:
                    continue
                got = reading.tasks.get(execution_id)
                self.tellable += 1
                self.nulls += got is None or getattr(got, name) is None

    def share_of_nulls(self) -> float:
        return self.nulls / max(1, self.tellable)


def differences(history: History, reading: ways.Reading) -> Iterator[str]:
    """What is wrong with a reading, the first task first."""
    in_order = sorted(history.truths.values(), key=lambda truth: truth.received_at or 0.0)
    for truth in in_order:
        got = reading.tasks.get(truth.execution_id)
        best = reading.expected.tasks.get(truth.execution_id)
        wrong = []
        if got is not None:
            wrong += untruths(got, truth, reading.is_whole)
        if reading.is_equal and best is not None:
            wrong += unlike(got, best, truth)
        if wrong:
            yield story(history, reading.way, truth, wrong)
    for execution_id in reading.tasks.keys() - history.truths.keys():
        yield f"seed {history.seed}, {reading.way}: a task {execution_id} that never was"
    for name, invoice in reading.invoices.items():
        true = history.invoices.get(name)
        if true is None or invoice.operation not in (None, true[1]):
            yield f"seed {history.seed}, {reading.way}: invoice {name} is {invoice}, true is {true}"
    if reading.is_equal and reading.invoices.keys() != reading.expected.invoices.keys():
        odd = reading.invoices.keys() ^ reading.expected.invoices.keys()
        yield f"seed {history.seed}, {reading.way}: invoices {sorted(odd)} are known to one only"


def unlike(got: oracle.Task | None, best: oracle.Task, truth: Truth) -> Iterator[str]:
    """Where what is shown differs from what the oracle reads from the same lines."""
    if got is None:
        yield "it is not known at all"
        return
    for name in (*FIGURES, "status", "error"):
        shown = getattr(got, name)
        expected = getattr(best, name)
        if name == "error_text" and shown and shown == truth.failed_words:
            continue
        if name in ("output", "error_text"):
            is_same = mark_of(shown) == mark_of(expected)
        elif name == "elapsed_ms" and None not in (shown, expected):
            is_same = abs(shown - expected) <= 1
        else:
            is_same = shown == expected
        if not is_same:
            yield f"{name} is {shown!r}, the oracle reads {expected!r}"


def story(history: History, way: str, truth: Truth, wrong: Sequence[str]) -> str:
    """What is needed to understand one wrong task."""
    places = [number for number, one in enumerate(history.said) if one.task == truth.execution_id]
    begin = max(0, places[0] - 3)
    lines = [
        f"{'>' if one.task == truth.execution_id else ' '} {one.stream} {shortened(one.text)}"
        for one in history.said[begin : places[-1] + 4]
        if "info: " in one.text or "error: " in one.text or one.text.startswith("Command")
    ]
    head = f"seed {history.seed}, {way}: task {truth.execution_id} ({truth.status})"
    return "\n".join([head, *(f"    {one[:300]}" for one in wrong[:6]), *lines[:60]])


def shortened(line: str) -> str:
    return re.sub(r"@truebit/worker-runner-node(-0x[0-9a-f]{36})?", "node", line)[:150]


def play(seed: int, names: Sequence[str], tally: Tally) -> None:
    history = histories.make(seed)
    for way in ways.WAYS:
        if way.__name__ in names:
            with tempfile.TemporaryDirectory(dir=memory_folder()) as folder:
                chance = random.Random(f"{seed} {way.__name__}")
                tally.add(history, way(history, Path(folder), chance))


def memory_folder() -> str | None:
    """Where files cost no disk: what is tested here is no matter of the disk."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def names_of(seed: int) -> list[str]:
    """The ways by which a history is read: all of them in the long form, else three."""
    every = [way.__name__ for way in ways.WAYS]
    return every if IS_LONG else random.Random(seed).sample(every, 3)


@pytest.mark.parametrize("block", range(BLOCKS))
def test_each_way_of_reading_shows_the_truth_or_nothing(
    block: int, figure: Callable[[str, object], None]
) -> None:
    tally = Tally()
    for seed in range(block, HISTORIES, BLOCKS):
        play(seed, names_of(seed), tally)
    figure(f"readings, block {block}", sum(tally.readings.values()))
    figure(f"null where the oracle can tell, block {block}", f"{tally.share_of_nulls():.2%}")
    if tally.wrong:
        failed = ", ".join(f"{way}: {count}" for way, count in tally.failed.most_common())
        words = "\n\n".join(tally.wrong[:5])
        pytest.fail(f"readings that are wrong: {failed}\n\n{words}", pytrace=False)
    assert tally.share_of_nulls() < NULLS_ALLOWED


@pytest.mark.parametrize("seed", range(10))
def test_a_real_engine_tells_the_truth(seed: int, node: Any, watch: Any) -> None:
    """The engine stamps lines itself, so the node says all at once what it has written by its own clock."""
    history = histories.make(seed, tasks=8, begin_s=time.time() - 60, is_brief=True)
    node.run()
    watch.start()
    for one in history.said:
        node.say(one.text)
    node.say(history.said[-1].text.replace("Heartbeat sent", "Last words"))
    watch.wait_for_message("Last words")
    tasks, invoices = ways.all_of(watch.store)
    expected = oracle.read(heard(history.said), history.starts)
    reading = ways.Reading("a real engine", tasks, invoices, expected, expected, True, True)
    for wrong in differences(history, reading):
        pytest.fail(wrong, pytrace=False)


if __name__ == "__main__":
    seed_given = int(sys.argv[1])
    chosen = sys.argv[2:] or names_of(seed_given)
    told = Tally()
    play(seed_given, chosen, told)
    print("\n\n".join(told.wrong) or f"all true: {', '.join(chosen)}")
