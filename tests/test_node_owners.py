"""Section 3, whose a line is that names no task: certain, or nobody's (node-data.md, 7)."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbmon
from tbmon import Attribution, Event, LooseLine, Task, merge_task, possible_owners

OUTPUT = Event("execution_output", None, {"exit_code": 0, "output": "secret"})


def line(kind: str = "stdout", *owners: str, at: int = 10**9) -> LooseLine:
    return LooseLine(kind, at, frozenset(owners), OUTPUT)


def sets(**owners: str) -> dict[str, frozenset[str]]:
    return {name: frozenset(letters) for name, letters in owners.items()}


def all_ways(lines: dict[str, frozenset[str]]) -> dict[str, set[str]]:
    """Every way in which each line has an owner and nobody has two, tried one by one."""
    found: dict[str, set[str]] = {name: set() for name in lines}
    for way in itertools.product(*lines.values()):
        if len(set(way)) == len(way):
            for name, owner in zip(lines, way, strict=True):
                found[name].add(owner)
    return found


@given(
    st.dictionaries(
        st.sampled_from("12345"), st.frozensets(st.sampled_from("ABCDEF"), min_size=1), max_size=5
    )
)
@settings(max_examples=300)
def test_what_is_left_of_owners_is_what_trying_all_ways_leaves(
    lines: dict[str, frozenset[str]],
) -> None:
    tried = all_ways(lines)
    assert possible_owners(lines) == (tried if all(tried.values()) else None)


def test_lines_that_contradict_each_other_have_no_owner() -> None:
    both = begun("A", "B")
    for name in ("1", "2"):
        both.attribute(name, line("stdout", "A", "B"))
    both.end("A", "1", None)
    assert certain(both.attribute("3", line("stdout", "B"))) == dict.fromkeys("123")
    assert both.waiting == {}


def begun(*work: str) -> Attribution:
    made = Attribution({})
    made.has_begun = True
    for name in work:
        made.receive(name, 2 * 10**9)
    return made


def certain(changes: tbmon.Changes) -> dict[str, str | None]:
    return {name: owner for name, _, owner in changes}


def test_the_only_task_in_work_wrote_the_line() -> None:
    assert certain(begun("A").attribute("1", line("stdout", "A"))) == {"1": "A"}


def test_of_two_tasks_neither_is_sure_until_a_later_line_shows_it() -> None:
    both = begun("A", "B")
    assert certain(both.attribute("1", line("stdout", *both.candidates("stdout", "1", None)))) == {
        "1": None
    }
    both.end("A", "1", None)
    later = line("stdout", *both.candidates("stdout", "1", None))
    assert certain(both.attribute("2", later)) == {"1": "A", "2": "B"}


def test_a_task_has_one_line_of_a_kind() -> None:
    one = begun("A")
    one.attribute("1", line("stdout", "A"))
    assert one.candidates("stdout", "1", None) == set()
    assert one.candidates("stderr", "1", None) == {"A"}


def test_a_line_that_names_its_task_leaves_the_other_line_to_the_other_task() -> None:
    both = begun("A", "B")
    both.attribute("1", line("stderr", "A", "B"))
    assert certain(both.claim("stderr", "A")) == {"1": "B"}


def test_where_a_task_may_be_in_work_that_nobody_saw_received_no_line_has_an_owner() -> None:
    cut = begun("A")
    cut.begin(10**9)
    soon, late = 10**9 + tbmon.UNKNOWN_MS, 10**9 + tbmon.UNKNOWN_MS + 1
    assert certain(cut.attribute("1", line("stdout", "A", at=soon))) == {"1": None}
    assert certain(cut.attribute("2", line("stdout", "A", at=late))) == {"2": "A"}


def test_a_task_that_just_ended_may_have_written_what_the_other_stream_brings() -> None:
    both = begun("A", "B")
    both.end("A", "1", 5000)
    assert both.candidates("stderr", "2", 5000 + tbmon.OVERTAKE_MS) == {"A", "B"}
    assert both.candidates("stderr", "1", 5000) == {"B"}
    assert both.candidates("stderr", "2", 5001 + tbmon.OVERTAKE_MS) == {"B"}


def test_a_restart_ends_all_work_and_what_waited_for_it() -> None:
    both = begun("A", "B")
    both.attribute("1", line("stdout", "A", "B"))
    both.restart(10**9)
    assert (both.work, both.waiting) == ({}, {})


def test_a_restart_tells_nothing_of_what_was_received_since() -> None:
    cut = begun()
    cut.begin(10**9)  # lines up to here are missing
    cut.restart(10**9 - tbmon.FIRST_LINE_MS)
    assert cut.unknown_until == 0
    cut.begin(10**9)
    cut.restart(10**9 - tbmon.FIRST_LINE_MS - 1)
    assert cut.unknown_until == 10**9 + tbmon.UNKNOWN_MS


def test_what_waits_is_dropped_when_nobody_is_left_who_could_show_whose_it_is() -> None:
    three = begun("A", "B", "C")
    three.attribute("1", line("stdout", "A", "B"))
    three.end("A", "1", None)
    assert list(three.waiting) == ["1"]
    three.end("B", "1", None)
    assert three.waiting == {}


def test_it_goes_on_from_what_it_saved_and_saves_no_words_of_a_task() -> None:
    both = begun("A", "B")
    both.attribute("1", line("stdout", "A", "B"))
    both.end("A", "1", 5000)
    saved = json.loads(json.dumps(both.saved()))
    assert "secret" not in json.dumps(saved)
    again = Attribution(saved)
    assert (again.work, again.ended) == (both.work, both.ended)
    later = line("stdout", *again.candidates("stdout", "1", None))
    assert certain(again.attribute("2", later)) == {"1": "A", "2": "B"}


def test_it_takes_up_the_work_of_an_earlier_schema() -> None:
    old = {"running": {"A": [5, True], "B": [6, False]}, "pending": {"1": {}}}
    work = Attribution(old).work
    assert work == {"A": tbmon.Work(5, ("task_start",)), "B": tbmon.Work(6, ())}


@pytest.mark.parametrize(
    ("facts", "status"),
    [
        ([(tbmon.COMPLETED_LINE, {})], "completed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True})], "ended"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (0, {"in_doubt": False})], "completed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (0, {"exit_code": 0})], "completed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (0, {"exit_code": 1})], "failed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (tbmon.PAID, {})], "completed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (tbmon.OUTCOME, {})], "completed"),
        ([(tbmon.COMPLETED_LINE, {"in_doubt": True}), (tbmon.LOST, {})], "ended"),
        ([(tbmon.LOST, {"in_doubt": True})], "lost"),
    ],
)
def test_a_success_needs_more_than_the_word_completed_where_an_output_leaves_it_open(
    facts: list[tuple[int, dict[str, object]]], status: str
) -> None:
    for order in itertools.permutations(facts):
        task = Task("A")
        for evidence, found in order:
            task = merge_task(task, evidence, **found)
        if order == tuple(facts) or "in_doubt" not in str(facts[1:]):
            assert task.status == status


FAILINGS: list[tuple[int, dict[str, object]]] = [
    (tbmon.PENALISED, {}),
    (0, {"exit_code": 3}),
    (tbmon.FAILED_LINE, {"error": "gas limit exceeded"}),
    (tbmon.FAILED_LINE, {"error": "it went wrong"}),
]


@pytest.mark.parametrize(
    ("chosen", "reason"),
    [
        ((0,), "penalty"),
        ((0, 1), "exit_code"),
        ((0, 2), "gas_limit"),
        ((0, 3), "other"),
        ((1, 2), "gas_limit"),
        ((1, 3), "exit_code"),
        ((0, 1, 2), "gas_limit"),
        ((0, 1, 3), "exit_code"),
    ],
)
def test_the_reason_of_a_failure_does_not_depend_on_what_was_read_first(
    chosen: tuple[int, ...], reason: str
) -> None:
    for order in itertools.permutations(chosen):
        task = Task("A")
        for number in order:
            evidence, found = FAILINGS[number]
            task = merge_task(task, evidence, **found)
        assert (task.status, task.error) == ("failed", reason), order
