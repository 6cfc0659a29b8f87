"""The rules of docs/node-data.md against the truth: the oracle never tells what another task did."""

from __future__ import annotations

import histories
import oracle
import pytest
from histories import History, Said, Truth

FIGURES = (
    "received_at",
    "started_at",
    "completed_at",
    "exit_code",
    "elapsed_ms",
    "gas_used",
    "memory_peak",
    "cached",
    "output",
    "error_text",
)
WEAKER = ("received", "executing", "lost", "ended")  # than completed and failed
REASONS_BY_STRENGTH = ("penalty", "other", "exit_code", "gas_limit")
SEEDS = range(100)


def heard(said: list[Said]) -> list[oracle.Line]:
    return [oracle.Line(one.text, one.stream, one.at) for one in said]


def read_in_files(said: list[Said]) -> list[oracle.Line]:
    return [oracle.Line(one.text) for one in said]


def first_line(value: object) -> object:
    """Of a text the words that no other task has; what follows may be the words of whoever came behind."""
    return value.splitlines()[0].strip() if isinstance(value, str) and value else value


def is_same(name: str, got: object, truth: Truth, is_whole: bool = True) -> bool:
    expected = getattr(truth, name)
    if name == "output" and isinstance(expected, str) and isinstance(got, str):
        # Words of whoever came behind may follow; a log that was cut may have lost the rest.
        return got.startswith(expected) or (not is_whole and expected.startswith(got))
    if name == "error_text":
        return first_line(got) == first_line(expected)
    return bool(got == expected)


def untruths(task: oracle.Task, truth: Truth, is_whole: bool) -> list[str]:
    """What is said of a task and is not so. `is_whole`: nothing of the log was missing."""
    wrong = []
    for name in FIGURES:
        got = getattr(task, name)
        if got is None or is_same(name, got, truth, is_whole):
            continue
        if name == "received_at" and not is_whole and got == truth.created_at:
            continue
        if name == "completed_at" and not is_whole and got == truth.stdout_at:
            continue
        wrong.append(f"{name}: {got!r}, true is {getattr(truth, name)!r}")
    if not is_status_sound(task, truth, is_whole):
        wrong.append(
            f"status: {task.status} ({task.error}), true is {truth.status} ({truth.error})"
        )
    return wrong


def is_status_sound(task: oracle.Task, truth: Truth, is_whole: bool) -> bool:
    if task.status in WEAKER:
        strength = WEAKER.index(truth.status) if truth.status in WEAKER else len(WEAKER)
        return WEAKER.index(task.status) <= strength and task.error is None
    if not is_whole and task.status == "failed" and task.error == "penalty":
        # Who was penalised and is not seen to complete counts as failed.
        return truth.operation == "penalty"
    if task.status == "completed" or truth.error is None:
        return task.status == truth.status and task.error is None
    stronger = REASONS_BY_STRENGTH[REASONS_BY_STRENGTH.index(str(task.error)) :]
    return task.status == truth.status and truth.error in stronger


def check(history: History, reading: oracle.Reading, is_whole: bool, how: str) -> None:
    for execution_id, task in reading.tasks.items():
        wrong = untruths(task, history.truths[execution_id], is_whole)
        assert not wrong, f"seed {history.seed}, {how}, task {execution_id}: {wrong}"
    for invoice_id, invoice in reading.invoices.items():
        assert history.invoices[invoice_id][0] == invoice.execution_id
        assert invoice.operation in (None, history.invoices[invoice_id][1])


@pytest.mark.parametrize("block", range(0, len(SEEDS), 25))
def test_whole_logs_tell_nothing_but_the_truth(block: int) -> None:
    told = 0
    tellable = 0
    for seed in SEEDS[block : block + 25]:
        history = histories.make(seed)
        engine = oracle.read(heard(history.said), history.starts, records=history.records)
        check(history, engine, True, "by the engine")
        files = oracle.read(read_in_files(history.written), records=history.records)
        check(history, files, True, "by files")
        assert engine.tasks.keys() == files.tasks.keys() == history.truths.keys()
        assert set(engine.invoices) == set(history.invoices)
        for execution_id, truth in history.truths.items():
            for name in FIGURES:
                tellable += getattr(truth, name) is not None
                told += getattr(engine.tasks[execution_id], name) is not None
    assert told > 0.6 * tellable, "an oracle that says nothing is of no use"


@pytest.mark.parametrize("block", range(0, len(SEEDS), 25))
def test_cut_logs_tell_nothing_but_the_truth(block: int) -> None:
    for seed in SEEDS[block : block + 25]:
        history = histories.make(seed)
        lines = len(history.said)
        cut = seed * 7919 % lines
        beginning = oracle.read(heard(history.said)[cut:], history.starts, records=history.records)
        check(history, beginning, False, f"from line {cut}")
        gap = cut // 2
        behind = min(gap + seed % 60, lines - 1)
        parts = history.said[:gap] + history.said[behind:]
        if parts:
            missing = oracle.read(heard(parts), history.starts, (0, gap))
            check(history, missing, False, f"without lines {gap} to {behind}")
