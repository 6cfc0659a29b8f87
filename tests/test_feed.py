"""One connection's lines after the other, with a stepped clock: what may not happen to tasks,
invoices and rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.log_feed import IDS, NOW, Feed, completed, frame, invoice, output, received
from support.node_words import WALLET, header

import tbmon


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    made.say(NOW, "Starting services")
    yield made
    made.store.close()


def test_a_timeout_of_ages_is_taken_for_a_day(feed: Feed) -> None:
    feed.say(NOW, received(1, econParams={"executionTimeout": str(2**63 - 1)}))
    assert feed.task(1).deadline == NOW * 1000 + 86_400_000 + 60_000


@pytest.mark.parametrize("more", [{"invoiceId": "7123456717698608000004"}, {}])
def test_an_invoice_that_comes_line_by_line_is_one_with_all_its_items(
    feed: Feed, more: dict[str, Any]
) -> None:
    first, *others = json.dumps(invoice(1, **more), indent=1).split("\n")
    feed.say(NOW, received(1), "InvoiceSubscriber invoice received: " + first)
    feed.raw(NOW, *others)
    (row,) = feed.invoices()
    assert (len(json.loads(row["line_items"])), row["operation"], row["steps"]) == (2, "pay", 2)


def test_an_output_that_names_its_task_last_is_nobody_elses(feed: Feed) -> None:
    feed.say(NOW, received(1), received(2), "Command execution stdout: {")
    feed.raw(NOW, '  "metering": {"last": {"steps": 999}},', f'  "executionId": "{IDS[1]}" }}')
    feed.say(NOW + 2, completed(2), completed(1))
    assert (feed.task(1).gas_used, feed.task(2).gas_used) == (999, None)


def test_an_output_from_before_a_restart_belongs_to_no_later_task(feed: Feed) -> None:
    feed.say(NOW, received(1), received(2), output(111, code=1))
    feed.feed.recorder.restarted((NOW + 10) * 1000, (NOW + 20) * 1000)
    feed.say(NOW + 20, "Starting services", received(3), completed(3))
    assert [feed.task(number).status for number in (1, 2, 3)] == ["lost", "lost", "completed"]


def test_an_overdue_task_still_gets_its_own_output(feed: Feed) -> None:
    feed.say(NOW, received(1, econParams={"executionTimeout": 27_000}), "Starting task execution")
    feed.say(NOW + 80, received(2))
    feed.say(NOW + 95, output(77), completed(1), output(88), completed(2))
    assert [(feed.task(number).status, feed.task(number).gas_used) for number in (1, 2)] == [
        ("completed", 77),
        ("completed", 88),
    ]


@pytest.mark.parametrize(
    "line", ["2099-01-01 00:00:00 hello", header("hello", NOW + 10**9, wallet="0x" + "d" * 40)]
)
def test_a_printed_date_does_not_move_the_logs_clock(feed: Feed, line: str) -> None:
    feed.say(NOW, received(1), "Starting task execution")
    feed.raw(NOW + 1, line, stream=2)
    assert feed.task(1).status == "executing"
    assert feed.store.first("last_entry_at") < (NOW + 400) * 1000


@pytest.mark.parametrize("line", ["2105-01-01 00:00:00 hello", header("hello", 4_260_000_000)])
def test_a_stamp_from_the_future_is_no_stamp(feed: Feed, line: str) -> None:
    """Else the line would be the newest for years, on each page and in whatever asks for the
    newest.
    """
    feed.raw(NOW + 1, line)
    feed.say(NOW + 2, "Heartbeat sent")
    shown = [
        (row["message"], row["at"] // 1000 - NOW)
        for row in feed.store.entries({}, 0, 2**41, None, 9)
    ]
    assert shown == [
        ("Heartbeat sent", 2),
        (feed.monitor.redactor.clean(line), 1),
        ("Starting services", 0),
    ]
    assert feed.store.first("last_entry_at") == (NOW + 2) * 1000


@pytest.mark.parametrize("hours", [-12, 14])
def test_a_stamp_of_any_zone_is_one(tmp_path: Path, hours: int) -> None:
    feed = Feed(tmp_path)
    stamp = f"{tbmon.second_text(NOW).replace(' ', 'T')}.000000001Z"
    feed.feed.take_lines(
        [(1, stamp.encode(), header("Heartbeat sent", NOW + hours * 3600).encode())]
    )
    feed.feed.caught_up()
    (row,) = feed.store.entries({}, 0, 2**41, None, 9)
    assert (row["message"], row["at"], row["flags"]) == ("Heartbeat sent", NOW * 1000, 0)
    feed.store.close()


def test_in_the_hour_that_comes_twice_the_engines_stamp_tells_which(tmp_path: Path) -> None:
    feed = Feed(tmp_path, node_timezone="Europe/Berlin", log_retention_days=36500)
    change = (
        1_792_890_000  # 2026-10-25 01:00:00 UTC, when Berlin's clocks go back from 03:00 to 02:00
    )
    for at, ahead_s in ((change - 1800, 7200), (change + 1800, 3600), (change + 5400, 3600)):
        feed.raw(at, header(received(1) if at == change + 1800 else "Heartbeat sent", at + ahead_s))
    rows = feed.store.entries({}, 0, 2**41, None, 9)
    assert [(row["at"], row["flags"]) for row in rows] == [
        ((change + later) * 1000, 0) for later in (5400, 1800, -1800)
    ]
    assert feed.task(1).received_at == (change + 1800) * 1000
    feed.store.close()


def test_a_forged_line_stays_marked_when_it_goes_on_after_a_new_connection(feed: Feed) -> None:
    forged = header("Heartbeat sent: {", NOW + 1, wallet="0x" + "d" * 40)
    feed.raw(NOW + 1, forged)
    feed.connect()
    feed.number -= 1
    feed.raw(NOW + 1, forged)  # as the engine begins again
    feed.raw(NOW + 2, "  more }")
    rows = feed.store.entries({}, 0, 2**41, None, 9)
    assert [(row["message"], row["flags"]) for row in rows] == [
        ("Heartbeat sent: {\n  more }", tbmon.SUSPECT),
        ("Starting services", 0),
    ]


def test_a_container_that_was_replaced_is_one_gap_however_often_it_is_tried(feed: Feed) -> None:
    for _ in range(3):  # an engine that refuses the log of the new one: each try begins anew
        feed.connect("b2")
    feed.say(NOW + 1, "Starting services")
    assert [row["reason"] for row in feed.store.get("gaps")] == ["the container was replaced"]
    assert len(feed.store.entries({}, 0, 2**41, None, 9)) == 2


def test_a_reason_on_the_next_line_counts(feed: Feed) -> None:
    feed.say(NOW, received(1), f"Execution {IDS[1]} failed:")
    feed.raw(NOW, "  gas limit exceeded")
    assert (feed.task(1).status, feed.task(1).error) == ("failed", "gas_limit")


def test_headless_outputs_are_not_believed_of_a_node_that_writes_headers(feed: Feed) -> None:
    feed.say(NOW, received(1), received(2), output(1), completed(2), "Command execution stderr: oh")
    feed.say(NOW + 1, "Heartbeat sent")
    feed.raw(
        NOW + 2,
        f'Command execution stdout: {{"executionId": "{IDS[1]}", "wasi": {{"exitCode": 1}}}}',
    )
    assert feed.task(1).status == "received"


def test_the_words_of_another_container_do_not_go_on_where_the_last_ones_ended(feed: Feed) -> None:
    feed.say(NOW, "Message received from task_created: {")
    feed.connect("b2")
    feed.raw(NOW + 900, "> node app.js banner")
    rows = feed.store.entries({}, 0, 2**42, None, 9)
    assert [(row["message"], row["at"] // 1000) for row in rows][:1] == [
        ("> node app.js banner", NOW + 900)
    ]
    assert [gap["reason"] for gap in feed.store.get("gaps")] == ["the container was replaced"]


def test_what_waits_for_its_task_is_kept_without_words(feed: Feed) -> None:
    feed.say(NOW, received(1), received(2))
    for second in range(50):
        body = f'{{"elapsed": "1", "result": "{WALLET} {"z" * 30_000}"}}'
        feed.say(NOW + second, f"Command execution stdout: {body}")
    saved = feed.store.first("state", "engine")
    assert len(saved) < 30_000 and WALLET[2:].lower() not in saved.lower()


def test_own_digits_in_a_longer_run_are_known_after_a_restart_of_tbmon(feed: Feed) -> None:
    feed.say(NOW, "hello")
    feed.monitor.redactor = tbmon.Redactor(b"k" * 32)
    feed.connect()
    feed.raw(NOW + 1, "   from 0x" + "0" * 24 + WALLET[2:])
    assert [
        row for row in feed.store.entries({}, 0, 2**42, None, 9) if WALLET[2:] in row["message"]
    ] == []


def test_reading_all_again_after_the_clock_was_set_back_stores_nothing_twice(feed: Feed) -> None:
    lines = [(NOW + second, f"{second} {number}") for second in range(12) for number in range(2000)]
    lines += [(NOW + second, "same") for second in range(12) for _ in range(3)]
    lines.sort(key=lambda line: line[0])

    def play(step: int) -> int:
        for begin in range(0, len(lines), step):
            some = enumerate(lines[begin : begin + step], begin)
            times = {at: tbmon.second_text(at).replace(" ", "T") for at, _ in lines}
            stamped = [(f"{times[at]}.{n:09d}Z", header(text, at)) for n, (at, text) in some]
            feed.feed.take_lines([(1, stamp.encode(), line.encode()) for stamp, line in stamped])
            feed.feed.commit()
        return int(feed.store.read("SELECT COUNT(*) FROM log")[0][0])

    stored = play(2000)
    feed.monitor.clock = lambda: NOW - 100
    feed.connect()
    assert feed.feed.since_s is None
    assert play(1501) == stored == len(lines) + 1


def test_reading_all_again_tells_and_loses_nothing_whatever_its_stamps(feed: Feed) -> None:
    said = [(NOW + 10, received(0)), (NOW + 20, "Heartbeat sent")]
    for at, message in said:
        feed.say(at, message)
    assert feed.task(0).status == "received"
    ahead = NOW + 10 - 10 * 365 * 86400
    feed.monitor.clock = lambda: ahead
    feed.connect()
    assert feed.feed.recorder.rereads
    feed.number = 1
    for at, message in [*said, (NOW + 10**7, "Heartbeat sent")]:
        feed.say(at, message)
    assert not feed.feed.recorder.live and feed.task(0).status == "received"
    feed.feed.go_live()
    feed.feed.end_reread()
    feed.feed.caught_up()
    assert feed.feed.recorder.live


def test_a_start_that_ends_before_its_first_commit_is_no_reason_to_read_again(feed: Feed) -> None:
    with feed.store.write() as db:
        db.execute("DELETE FROM state WHERE name = 'engine'")
        feed.store.put(db, "start", [(NOW * 1000, "c3" * 32)])
    feed.connect("c3")
    assert not feed.feed.recorder.rereads


def test_reading_again_from_the_beginning_knows_nothing_of_the_pass_that_was_cut(
    feed: Feed,
) -> None:
    named = output(5).replace("{", f'{{"executionId": "{IDS[0]}", ', 1)
    said = [
        received(0),
        named,
        completed(0),
        received(1),
        output(5, 1),
        completed(1),
        received(2),
        output(5),
        completed(2),
    ]
    feed.say(NOW + 1, *said)
    feed.monitor.clock = lambda: NOW - 3600
    for cut in (7, 5, 9):
        feed.connect()
        assert feed.feed.recorder.rereads
        feed.number = 1
        feed.say(NOW + 1, *said[:cut])
    assert [feed.task(number).status for number in range(3)] == ["completed", "failed", "completed"]


def test_an_old_log_that_comes_fast_is_no_sign_of_rotation_but_what_comes_so_now_is(
    feed: Feed,
) -> None:
    begin = NOW + 1000
    feed.monitor.clock = lambda: begin
    container = feed.feed.container._replace(id="b2" * 32, file_bytes=100_000)
    line = b"x" * 1000

    def take(at_ms: int, count: int) -> None:
        start = f"{tbmon.second_text(at_ms // 1000).replace(' ', 'T')}.{at_ms % 1000:03d}"
        stamps = (f"{start}{number:06d}Z" for number in range(count))
        feed.feed.take_lines([(1, one.encode(), line) for one in stamps])
        feed.feed.weigh(ended=True)

    feed.feed = tbmon.EngineFeed(feed.monitor, container)
    before = feed.store.first("gap_count")
    take((begin - 100) * 1000, 3000)
    take((begin + 1) * 1000, 2)
    assert feed.store.first("gap_count") == before
    take((begin + 2) * 1000, 500)
    assert feed.store.first("gap_count") == before + 1


def pieces(at: int, line: str) -> list[bytes]:
    """A line as an engine sends it: frames of 16 KiB at most, each with the stamp of the first."""
    stamp, body = (
        f"{tbmon.second_text(at).replace(' ', 'T')}.000000000Z ".encode(),
        line.encode() + b"\n",
    )
    payloads = [stamp + body[begin : begin + 16384] for begin in range(0, len(body), 16384)]
    return [frame(1, one) for one in payloads]


def test_connections_that_end_within_a_long_line_read_again_bring_nothing_twice(feed: Feed) -> None:
    long = "x" * 40_000
    words = [f"{number} {long if number == 7 else ''}" for number in range(10)]
    said = [pieces(NOW + number, header(text, NOW + number)) for number, text in enumerate(words)]

    def read(whole: int, begun: int = 0) -> None:
        feed.connect()
        since = max(0, (feed.feed.since_s or 0) - NOW)
        for one in (*said[since:whole], said[whole % 10][:begun]):
            feed.feed.take_lines(feed.feed.frames.feed(b"".join(one)))
        feed.feed.commit()

    read(10)
    read(7, begun=2)
    assert feed.feed.recorder.cursor["newest"][:19] == tbmon.second_text(NOW + 9).replace(" ", "T")
    read(10)
    assert len(feed.store.entries({}, 0, 2**42, None, 100)) == 11


def test_an_own_penalty_told_before_its_task_makes_it_failed(feed: Feed) -> None:
    tracker = feed.feed.recorder.tracker
    event = tbmon.record_event(invoice(1, "penalty"), feed.monitor.redactor.clean)
    assert event is not None and not tracker.see_record(
        event
    )  # to be told again, once the task is known
    feed.say(NOW, received(1))
    assert tracker.see_record(event)
    feed.feed.recorder.commit()
    assert feed.task(1).status == "failed"


# Binding again around the seam of history and engine


def test_binding_again_changes_nothing_that_was_known(feed: Feed) -> None:
    feed.say(NOW, received(1), received(2))
    feed.say(NOW + 5, output(11, code=1))
    feed.say(NOW + 6, completed(1))
    feed.say(NOW + 7, output(22), stream=2)
    feed.say(NOW + 8, completed(2), stream=2)
    before = feed.task(1), feed.task(2)
    tbmon.bind_again(feed.monitor, NOW * 1000, 0)
    assert (feed.task(1), feed.task(2)) == before
    assert [task.status for task in before] == ["failed", "completed"]


def test_binding_again_keeps_what_only_the_event_database_told(feed: Feed) -> None:
    feed.say(NOW, f"Message received from task_created: {{ executionId: '{IDS[1]}' }}")
    message = {"limits": {"gas": "60000000000", "memory": "1024"}}
    event = tbmon.record_event(
        {"type": "task_created", "executionId": IDS[1], "message": message}, str
    )
    assert event is not None and feed.feed.recorder.tracker.see_record(event)
    feed.feed.recorder.commit()
    tbmon.bind_again(feed.monitor, NOW * 1000, 0)
    assert (feed.task(1).gas_limit, feed.task(1).memory_limit) == (60_000_000_000, 1024)


def test_binding_again_knows_the_task_in_work_at_the_windows_edge(feed: Feed) -> None:
    feed.say(NOW - 2, received(1))
    feed.say(NOW + 2, received(2))
    feed.say(NOW + 5, output(11, code=1), completed(1), output(22), completed(2))
    tbmon.bind_again(feed.monitor, NOW * 1000 + tbmon.UNKNOWN_MS, 0)
    assert [(feed.task(number).status, feed.task(number).gas_used) for number in (1, 2)] == [
        ("failed", 11),
        ("completed", 22),
    ]


def test_binding_again_leaves_output_verbatim(feed: Feed) -> None:
    words = '{"elapsed": "1000000", "result": "wallet:abc wallet: wallet:"}'
    feed.say(NOW, received(1), f"Command execution stdout: {words}", completed(1))
    tbmon.bind_again(feed.monitor, NOW * 1000, 0)
    assert feed.store.get("task_data", IDS[1])[0]["output"] == words


# The event database, record by record


class Slowly:
    """A file that gives little at a time."""

    def __init__(self, text: str) -> None:
        self.parts = iter(
            [text[:24].encode(), *(text[at : at + 7].encode() for at in range(24, len(text), 7))]
        )

    def read(self, size: int) -> bytes:
        return next(self.parts, b"")


@pytest.mark.parametrize(
    "record", ["9" * 5000, "[" * 5000 + '"]"' + "]" * 5000, '"a ] \\" b"', "{}"]
)
def test_a_record_that_cannot_be_read_hides_no_other(record: str) -> None:
    text = f'{{"records": [{{"a": 1}}, {{"b": {record}}}, {{"c": 3}}]}}'
    for file in (Slowly(text), Slowly("\ufeff" + text.replace(", ", ",\n\t"))):
        found = list(tbmon.read_records(file))
        assert (found[0], len(found), found[2]) == ({"a": 1}, 3, {"c": 3})
