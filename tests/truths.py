"""What may be said of a task where the truth is known: the truth, or less."""

from __future__ import annotations

import re
from collections.abc import Sequence

import oracle
from histories import Said, Truth

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


def heard(said: Sequence[Said]) -> list[oracle.Line]:
    return [oracle.Line(one.text, one.stream, one.at) for one in said]


def read_in_files(said: Sequence[Said]) -> list[oracle.Line]:
    return [oracle.Line(one.text) for one in said]


def mark_of(text: str | None) -> str | None:
    """The number in an output that no other task's has: how long it took, or which panic it was."""
    found = re.search(r"\d{4,}", text or "")
    return found[0] if found else None


def is_same(name: str, got: object, truth: Truth, is_whole: bool = True) -> bool:
    expected = getattr(truth, name)
    if name == "elapsed_ms" and isinstance(got, int | float) and expected is not None:
        return abs(got - float(expected)) <= 1
    if name == "error_text" and truth.failed_words and got == truth.failed_words:
        return True  # why it failed, where nothing else is known
    if name in ("output", "error_text") and isinstance(got, str) and expected is not None:
        # Words of whoever came behind may follow; a log that was cut may have lost the rest.
        mark = mark_of(got)
        return mark == mark_of(expected) or (mark is None and not is_whole)
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
