"""Section 3, what facts add up to: the state of a task, its error, the node's own pay, and the
verdict.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.node_samples import FIRST, MORE

from tbmon import (
    COMPLETED_LINE,
    DAY_MS,
    FAILED_LINE,
    IN_EVENT_DB,
    IN_LOG,
    LOST,
    MINUTE_MS,
    OUTCOME,
    PAID,
    PENALISED,
    Reading,
    Runs,
    Symptoms,
    Task,
    failure_reason,
    judge_node,
    merge_task,
    own_item,
    task_status,
)

TOLD = Task(FIRST)
DONE, BROKEN, IN_DB = COMPLETED_LINE, FAILED_LINE, IN_EVENT_DB


@pytest.mark.parametrize(
    ("evidence", "found", "status"),
    [
        (0, {}, "received"),
        (IN_DB | IN_LOG, {}, "received"),
        (0, {"started_at": 5}, "executing"),
        (0, {"started_at": 5, "exit_code": 0}, "executing"),
        (DONE, {}, "completed"),
        (DONE, {"exit_code": 0}, "completed"),
        (OUTCOME, {}, "completed"),
        (PAID, {"started_at": 5}, "completed"),
        (0, {"exit_code": 1}, "failed"),
        (DONE | PAID | OUTCOME, {"exit_code": -9}, "failed"),
        (BROKEN, {}, "failed"),
        (BROKEN | DONE | PAID, {"exit_code": 0}, "failed"),
        (PENALISED, {}, "failed"),
        (PENALISED | OUTCOME | PAID, {}, "failed"),
        (PENALISED | DONE, {}, "completed"),
        (LOST, {"started_at": 5}, "lost"),
        (LOST | OUTCOME, {}, "completed"),
        (LOST | PAID, {}, "completed"),
        (LOST | DONE, {}, "completed"),
        (LOST | BROKEN, {}, "failed"),
    ],
)
def test_the_status_follows_from_all_evidence(
    evidence: int, found: dict[str, int], status: str
) -> None:
    task = merge_task(TOLD, evidence, **found)
    assert (task.status, task_status(task)) == (status, status)


@pytest.mark.parametrize("evidence", [DONE, OUTCOME, PAID, LOST, IN_DB, DONE | OUTCOME | PAID])
def test_a_failure_never_becomes_a_success(evidence: int) -> None:
    for failed in (merge_task(TOLD, BROKEN), merge_task(TOLD, exit_code=1)):
        after = merge_task(failed, evidence, exit_code=0, completed_at=9)
        assert (after.status, after.error) == ("failed", failed.error)


def test_later_evidence_revives_a_lost_task() -> None:
    lost = merge_task(merge_task(TOLD, IN_LOG, received_at=1), LOST)
    assert lost.status == "lost"
    assert merge_task(lost, started_at=2).status == "lost"
    assert [merge_task(lost, bit).status for bit in (DONE, OUTCOME, PAID, BROKEN)] == [
        "completed"
    ] * 3 + ["failed"]
    assert merge_task(merge_task(lost, DONE), LOST).status == "completed"


def test_nothing_known_is_overwritten_and_nothing_at_all_by_nothing() -> None:
    known = merge_task(TOLD, task_id="js_1", gas_used=5, cached=False, elapsed_ms=0)
    nothing: dict[str, Any] = dict.fromkeys(
        name for name in Task._fields if name not in ("execution_id", "status", "evidence")
    )
    assert merge_task(known, **nothing) == known
    assert merge_task(known, task_id="js_2", gas_used=0, cached=True, elapsed_ms=9) == known
    assert merge_task(known, wasm_hash="ab").wasm_hash == "ab"


def test_a_failing_exit_code_replaces_zero_and_only_zero() -> None:
    for codes in ((0, 3), (3, 0), (None, 3), (3, None), (3, 4)):
        first, second = codes
        assert merge_task(merge_task(TOLD, exit_code=first), exit_code=second).exit_code == 3


def test_the_logs_time_of_receipt_goes_before_the_event_databases() -> None:
    for order in ([(IN_DB, 10), (IN_LOG, 20)], [(IN_LOG, 20), (IN_DB, 10)]):
        task = TOLD
        for evidence, at in order:
            task = merge_task(task, evidence, received_at=at)
        assert task.received_at == 20
    assert merge_task(task, IN_LOG, received_at=30).received_at == 20


@MORE
@given(
    st.permutations(
        [
            (IN_DB, {"received_at": 1}),
            (IN_LOG, {"received_at": 2}),
            (0, {"started_at": 3}),
            (0, {"gas_used": 4}),
        ]
    ),
    st.lists(
        st.sampled_from(
            [
                (0, {"exit_code": 0}),
                (0, {"exit_code": 7}),
                (DONE, {}),
                (BROKEN, {}),
                (PAID, {}),
                (LOST, {}),
            ]
        )
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_evidence_does_not_matter(
    told: list[Any], ends: list[Any], random: Any
) -> None:
    def merged(found: list[tuple[int, dict[str, int]]]) -> Task:
        task = TOLD
        for evidence, news in found:
            task = merge_task(task, evidence, **news)
        return task

    every = [*told, *ends]
    shuffled = random.sample(every, len(every))
    first, second = merged(every), merged(shuffled)
    assert (first.status, first.exit_code, first.received_at) == (
        second.status,
        second.exit_code,
        second.received_at,
    )


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ("gas limit exceeded", "gas_limit"),
        ("Out of MEMORY", "memory_limit"),
        ("Maximum call stack size exceeded", "stack_limit"),
        ("frame limit", "stack_limit"),
        ("too many nested calls", "call_limit"),
        ("execution timed out", "timeout"),
        ("task could not be downloaded", "download"),
        ("automatically aborted in Las Vegas", "other"),
        ("", "other"),
        (None, "other"),
    ],
)
def test_the_error_of_a_task_is_one_of_few_words_never_the_logs_own(
    words: str | None, reason: str
) -> None:
    assert failure_reason(words) == reason
    assert merge_task(TOLD, BROKEN, error=words).error == reason


def test_the_reason_of_a_failure_is_the_plainest_and_other_states_have_none() -> None:
    assert merge_task(TOLD, exit_code=1).error == "exit_code"
    assert merge_task(TOLD, PENALISED).error == "penalty"
    assert merge_task(merge_task(TOLD, exit_code=1), BROKEN, error="gas").error == "gas_limit"
    assert merge_task(TOLD, DONE, error="gas limit exceeded").error is None
    assert merge_task(merge_task(TOLD, PENALISED), DONE).error is None


@pytest.mark.parametrize(
    ("found", "deadline"),
    [
        ({}, None),
        ({"received_at": 5}, 5 + 11 * MINUTE_MS),
        ({"received_at": 5, "timeout_ms": 27000}, 87_005),
    ],
)
def test_a_task_is_overdue_a_minute_after_its_timeout_or_ten(
    found: dict[str, int], deadline: object
) -> None:
    assert merge_task(TOLD, **found).deadline == deadline


def test_the_nodes_own_item_is_its_penalty_else_its_pay_never_the_charge() -> None:
    told = [
        ("charge", "wallet:self"),
        ("pay", "wallet:peer"),
        ("pay", "wallet:self"),
        ("penalty", "wallet:self"),
    ]
    items = [{"operation": operation, "account": account} for operation, account in told]
    assert own_item(items, {"wallet:self"}) == items[3]
    assert own_item(items[:3], {"wallet:self"}) == items[2]
    assert own_item(items[:2], {"wallet:self"}) is None
    assert own_item([{"operation": "pay", "account": None}], {"wallet:self"}) is None


# The verdict

NOW = 1_763_992_533_912
WELL = Symptoms(
    NOW,
    container="running",
    last_line_at=NOW - 1,
    last_task_at=NOW - 1,
    recent=["completed"] * 20,
    recognised=1.0,
)
LOOP = Runs(starts=[NOW - 3, NOW - 2], ends=[NOW - 3, NOW - 2, NOW - 1])


def test_the_first_that_holds_of_blind_down_degraded_working_idle_is_said() -> None:
    seen = Symptoms(
        NOW,
        "no access to the engine",
        "no access to the log",
        Reading(),
        container="exited",
        runs=LOOP,
        check="no pulse",
        recent=["failed"] * 20,
        recognised=0.1,
    )
    healed: list[tuple[dict[str, Any], str, str]] = [
        ({}, "blind", "no access to the engine"),
        ({"problem": None}, "down", "it keeps ending"),
        ({"runs": Runs()}, "down", "exited"),
        ({"container": "running"}, "blind", "history"),
        ({"reading": None}, "blind", "no access to the log"),
        ({"trouble": None}, "degraded", "no log line"),
        ({"last_line_at": NOW}, "degraded", "no pulse"),
        ({"check": None}, "degraded", "last three"),
        ({"recent": ["completed", *["failed"] * 19]}, "degraded", "19 of the last 20"),
        ({"recent": ["completed"] * 20}, "degraded", "90 %"),
        ({"recognised": None}, "idle", "no task"),
        ({"last_task_at": NOW}, "working", "24 hours"),
    ]
    for change, state, word in healed:
        seen = seen._replace(**change)
        verdict = judge_node(seen)
        assert verdict.state == state
        assert word in verdict.reason
        assert verdict.advice


@pytest.mark.parametrize(
    ("change", "state"),
    [
        ({}, "working"),
        ({"container": None}, "working"),
        ({"container": None, "ever_seen": False}, "working"),
        ({"container": "missing"}, "down"),
        ({"container": "missing", "ever_seen": False}, "blind"),
        ({"container": "exited", "ever_seen": False}, "down"),
        ({"container": "restarting"}, "down"),
        ({"container": "paused"}, "down"),
        ({"runs": replace(LOOP, ends=LOOP.ends[1:])}, "working"),
        ({"runs": LOOP}, "down"),
        ({"last_line_at": NOW - 10 * MINUTE_MS}, "working"),
        ({"last_line_at": NOW - 10 * MINUTE_MS - 1}, "degraded"),
        ({"last_line_at": None}, "degraded"),
        ({"recent": []}, "working"),
        ({"recent": ["failed"] * 2}, "working"),
        ({"recent": ["failed"] * 3}, "degraded"),
        ({"recent": ["failed", "failed", "completed", "failed"]}, "working"),
        ({"recent": ["failed", *["completed"] * 4]}, "working"),
        ({"recent": ["failed", "completed", "failed", *["completed"] * 2]}, "degraded"),
        ({"recent": ["completed", "failed"] * 4 + ["completed"] * 12}, "working"),
        ({"recent": ["completed", "failed"] * 5 + ["completed"] * 10}, "degraded"),
        ({"recent": ["lost"] * 20}, "working"),
        ({"recognised": 0.95}, "working"),
        ({"recognised": 0.949}, "degraded"),
        ({"last_task_at": NOW - DAY_MS}, "working"),
        ({"last_task_at": NOW - DAY_MS - 1}, "idle"),
        ({"last_task_at": None, "recent": []}, "idle"),
    ],
)
def test_the_verdict_changes_exactly_at_its_thresholds(change: dict[str, Any], state: str) -> None:
    assert judge_node(WELL._replace(**change)).state == state
