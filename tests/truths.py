"""What may be said of a task where the truth is known: the truth, or less."""

from __future__ import annotations

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
