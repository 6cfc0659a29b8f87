"""A task's figures are right or null, never somebody else's: each way in which they once were not."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.log_feed import IDS, NOW, START_MS, Feed, completed, output, received
from support.machine import wait_for
from support.node_words import VERSION, header, invoice_of, invoice_record, line_item
from support.programs import Watch

import tbmon

STDERR = "Command execution stderr: panic: index out of range"


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    made.say(NOW, "Starting services")
    yield made
    made.store.close()


def told(feed: Feed, *numbers: int) -> list[tuple[str, int | None, int | None]]:
    tasks = [feed.task(number) for number in numbers]
    return [(task.status, task.exit_code, task.gas_used) for task in tasks]


def words(feed: Feed, number: int) -> tuple[str | None, str | None]:
    """(output, error_text) as they are kept."""
    rows = feed.store.get("task_data", IDS[number])
    return (rows[0]["output"], rows[0]["error_text"]) if rows else (None, None)


def test_a_failure_with_stderr_beside_another_task_is_no_success(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2))
    feed.say(NOW + 2, output(11, code=1), STDERR, completed(1))
    assert told(feed, 1) == [("ended", None, None)]
    feed.say(NOW + 3, output(22), completed(2))
    assert told(feed, 1, 2) == [("failed", 1, 11), ("completed", 0, 22)]


def test_nothing_tells_which_of_two_failed_so_neither_counts(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2))
    feed.say(NOW + 2, output(11, code=1), completed(2), completed(1))
    assert told(feed, 1, 2) == [("ended", None, None)] * 2
    assert [row["status"] for row in feed.store.get("recent_outcomes")] == []


def test_an_output_with_code_0_leaves_nothing_open_whosever_it_is(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2))
    feed.say(NOW + 2, output(11), completed(2), completed(1))
    assert told(feed, 1, 2) == [("completed", None, None)] * 2


def test_an_output_before_an_end_is_not_that_tasks_while_another_is_in_work(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2), output(11, code=1), completed(2), completed(1))
    assert told(feed, 1, 2) == [("ended", None, None)] * 2


def test_what_was_lost_an_hour_ago_may_still_speak(feed: Feed) -> None:
    feed.say(NOW + 1, received(1, econParams={"executionTimeout": 27_000}))
    feed.say(NOW + 600, received(2), output(11, code=1), completed(2))
    assert told(feed, 1, 2) == [("lost", None, None), ("ended", None, None)]
    feed.say(NOW + 601, completed(1))
    assert told(feed, 1) == [("ended", None, None)]


def test_an_ambiguous_stderr_leaves_later_ones_to_their_tasks(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2))
    feed.say(NOW + 2, STDERR, stream=2)
    feed.say(NOW + 3, output(11, code=1), completed(1), output(22), completed(2))
    for number in (3, 4, 5):
        feed.say(NOW + 10 * number, received(number))
        feed.say(NOW + 10 * number + 1, f"Command execution stderr: of {number}", stream=2)
        feed.say(NOW + 10 * number + 2, output(33, code=2), completed(number))
    assert [words(feed, number)[1] for number in (1, 2, 3, 4, 5)] == [
        None,
        None,
        "of 3",
        "of 4",
        "of 5",
    ]


def test_where_the_log_begins_within_a_task_its_output_is_nobodys(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    long_after = START_MS // 1000 + 20  # so much of what the engine had is gone
    feed.say(long_after, received(1), output(11, code=1), completed(0), completed(1))
    assert told(feed, 1) == [("ended", None, None)]
    late = long_after + tbmon.UNKNOWN_MS // 1000
    feed.say(late + 1, received(2), output(22), completed(2))
    assert told(feed, 2) == [("completed", 0, 22)]
    feed.store.close()


def test_after_a_gap_a_task_may_be_in_work_that_nobody_saw(feed: Feed) -> None:
    feed.feed.note_gap(tbmon.second_text(NOW + 5).replace(" ", "T").encode() + b".000000000Z")
    feed.say(NOW + 6, received(1), output(11), completed(1))
    assert told(feed, 1) == [("completed", None, None)]


def test_what_waits_for_its_task_keeps_its_words_over_a_restart_of_tbmon(feed: Feed) -> None:
    mine = output(11).replace("{", '{"note": "my own words", ', 1)
    said = received(1), received(2), mine, STDERR, completed(1)
    feed.say(NOW + 1, *said)
    feed.connect()
    feed.number = 1
    feed.say(NOW + 1, *said)  # as the engine begins again
    feed.say(NOW + 2, output(22), "Command execution stderr: other", completed(2))
    assert told(feed, 1, 2) == [("completed", 0, 11), ("completed", 0, 22)]
    assert words(feed, 1) == (mine.partition(": ")[2], "panic: index out of range")
    assert words(feed, 2)[1] == "other"
    assert feed.store.get("waiting_words") == []


def test_words_that_wait_are_in_no_state_and_go_when_nobody_can_claim_them(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2), output(11).replace("{", '{"note": "secret", ', 1))
    assert "secret" in feed.store.get("waiting_words")[0]["words"]
    assert all("secret" not in row["value"] for row in feed.store.read("SELECT * FROM state"))
    feed.say(NOW + 2, completed(1), completed(2))
    feed.say(NOW + 3, received(3))
    assert feed.store.get("waiting_words") == []


def test_the_second_stream_may_bring_an_output_after_its_tasks_end(feed: Feed) -> None:
    feed.say(NOW + 1, received(1), received(2), completed(1))
    feed.say(NOW + 1, STDERR, stream=2)  # within the same millisecond
    assert words(feed, 2)[1] is None
    assert told(feed, 1) == [("ended", None, None)]


@pytest.mark.parametrize("lead", ["[queue-1] ", "{queue 1} ", "[hub-1] {} "])
def test_brackets_before_a_payload_are_no_payload(feed: Feed, lead: str) -> None:
    item = invoice_record(IDS[1], [line_item("pay", "0x" + "77" * 20, 5)], invoiceId="71")
    said = [received(1), output(11, code=3), invoice_of(item)]
    feed.say(NOW + 1, *(text.replace("{", lead + "{", 1) for text in said), completed(1))
    assert told(feed, 1) == [("failed", 3, 11)]
    assert [row["invoice_id"] for row in feed.invoices()] == ["71"]


@pytest.mark.parametrize(
    "text",
    [
        "Message received from task_created: [hub-1] gone",
        "Command execution stdout: all is well",
        "InvoiceSubscriber invoice received: [queue-1]",
    ],
)
def test_what_should_have_a_payload_and_has_none_is_not_recognised(feed: Feed, text: str) -> None:
    feed.say(NOW + 1, text, "Heartbeat sent")
    rows = feed.store.entries({}, 0, 2**41, None, 9)
    assert [bool(row["flags"] & tbmon.UNRECOGNISED) for row in rows] == [False, True, False]


@pytest.mark.parametrize("before", ["some output", "progress 50%\rprogress 100%\r"])
def test_a_header_behind_output_without_a_newline_is_an_entry(feed: Feed, before: str) -> None:
    feed.say(NOW + 1, received(1), output(11))
    feed.raw(NOW + 2, before + header(completed(1), NOW + 2))
    assert told(feed, 1) == [("completed", 0, 11)]
    shown = [row["message"] for row in feed.store.entries({}, 0, 2**41, None, 2)]
    assert shown == [completed(1), before.rstrip("\r")]


def test_a_header_that_is_quoted_is_none(feed: Feed) -> None:
    quoted = header(completed(1), NOW + 1)
    feed.say(NOW + 1, received(1), f"Retrying connection after: {quoted}", "Message bus said: {")
    feed.raw(NOW + 2, f'  "last": "{quoted}"', "}")
    assert feed.task(1).status == "received"


def test_a_new_version_in_a_busy_log_of_files_loses_no_task(tmp_path: Path) -> None:
    """Nobody tells files of a restart, and its entries come by the thousand before it is believed."""
    folder = tmp_path / "logs"
    folder.mkdir()
    name = "{:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c"
    lines = [header("Starting services", NOW - 90_000)]
    for number in range(1200):
        for message in (received(0), "Starting task execution", output(number), completed(0)):
            line = header(message.replace(IDS[0], name.format(number)), NOW + number)
            lines.append(line.replace(VERSION, "1.121.0"))
        lines += [header(f"cache lookup {number}", NOW + number).replace(VERSION, "1.121.0")] * 3
    (folder / "a-2026-01-01.log.gz").write_bytes(gzip.compress("\n".join(lines).encode() + b"\n"))
    with Watch(tmp_path / "data", log_dir=str(folder)) as watch:
        wait_for(lambda: watch.count() == len(lines), 60)
        found: list[Any] = watch.store.read("SELECT status, COUNT(*) FROM task GROUP BY status")
        assert [tuple(row) for row in found] == [("completed", 1200)]
