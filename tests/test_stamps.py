"""The engine's stamps: all forms become UTC of one width when a frame is cut, and in what an earlier tbmon kept."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.log_feed import frame
from support.node_words import header

import tbmon

NOW = int(time.time()) - 3600
FORMS = [
    (b"2026-11-29T17:17:11.523439521Z", b"2026-11-29T17:17:11.523439521Z"),
    (b"2026-11-29T09:17:11.523439521-08:00", b"2026-11-29T17:17:11.523439521Z"),
    (b"2026-11-29T23:02:11.523439521+05:45", b"2026-11-29T17:17:11.523439521Z"),
    (b"2026-11-30T07:17:11.523439521+1400", b"2026-11-29T17:17:11.523439521Z"),
    (b"2026-12-31T23:30:00.000000001-01:00", b"2027-01-01T00:30:00.000000001Z"),
    (b"2028-03-01T00:30:00.000000001+01:00", b"2028-02-29T23:30:00.000000001Z"),
    (b"2026-11-29T09:17:11-08:00", b"2026-11-29T17:17:11.000000000Z"),
    (b"2026-11-29T17:17:11Z", b"2026-11-29T17:17:11.000000000Z"),
    (b"2026-11-29T17:17:11+00:00", b"2026-11-29T17:17:11.000000000Z"),
    (b"2026-11-29T17:17:11.5Z", b"2026-11-29T17:17:11.500000000Z"),
    (b"2026-11-29T17:17:11.523Z", b"2026-11-29T17:17:11.523000000Z"),
    (b"2026-11-29T18:17:11.5234395+01:00", b"2026-11-29T17:17:11.523439500Z"),
    (b"2026-11-29T17:17:11.523439521999Z", b"2026-11-29T17:17:11.523439521Z"),
]
NO_STAMPS = [
    b"2026-11-29T17:17:11.523439521",
    b"2026-11-29T17:17:11.Z",
    b"2026-11-29T17:17Z",
    b"2026-11-29T17:17:61.000000000Z",
    b"2026-13-29T17:17:11.523439521Z",
    b"2026-02-30T17:17:11.523439521Z",
    b"2026-11-29T25:17:11.523439521Z",
    b"0001-01-01T00:00:00.000000000Z",
    b"1970-01-01T00:30:00.000000000+01:00",
    b"2105-12-31T23:30:00.000000000-01:00",
    b"2026-11-29T17:17:11.523439521+24:00",
    b"2026-11-29T17:17:11.523439521-8",
    b"\xd9\xa22026-11-29T17:17:11Z",
    b"words",
    b"",
]
# bodies that have a Z and a blank where a stamp of the usual form ends
BODIES = [
    b"hello",
    b"abcZ x",
    b"abcdefZ x",
    b"2026-11-29T17:17:11.000000000Z x",
    b"",
    b"Z ",
    b" x ",
]


def read(chunks: Iterable[bytes], tty: bool = False) -> list[tuple[int, bytes, bytes]]:
    reader, lines = tbmon.FrameReader(tty), list[tuple[int, bytes, bytes]]()
    for chunk in chunks:
        lines += reader.feed(chunk)
    return lines + reader.finish()


def bytes_of(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


@pytest.mark.parametrize(("written", "stamp"), FORMS)
def test_a_stamp_of_any_form_is_utc_of_one_width(written: bytes, stamp: bytes) -> None:
    assert tbmon.utc_stamp(written) == stamp


@pytest.mark.parametrize("written", NO_STAMPS)
def test_what_is_no_moment_from_1970_to_2105_is_no_stamp(written: bytes) -> None:
    assert tbmon.utc_stamp(written) is None


@settings(derandomize=True, deadline=None, max_examples=300)
@given(
    st.integers(0, 4_291_747_199),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.text("0123456789", max_size=12),
)
def test_a_stamps_moment_stays_the_same(second: int, minutes: int, digits: str) -> None:
    local = second + minutes * 60
    if not 0 <= local < 4_291_747_200:
        return
    zone = f"{'-' if minutes < 0 else '+'}{abs(minutes) // 60:02d}:{abs(minutes) % 60:02d}"
    fraction = f".{digits}" * bool(digits)
    written = tbmon.second_text(local).replace(" ", "T") + fraction + zone
    expected = tbmon.second_text(second).replace(" ", "T") + f".{digits[:9]:0<9}Z"
    assert tbmon.utc_stamp(written.encode()) == expected.encode()


@pytest.mark.parametrize("tty", [False, True], ids=["frames", "terminal"])
@pytest.mark.parametrize("first", [FORMS[0][0], FORMS[1][0]])
def test_each_line_has_its_stamp_in_utc(tty: bool, first: bytes) -> None:
    """The one before decides nothing: an engine changes its zone's offset while it is read."""
    said, expected = list[bytes](), list[tuple[int, bytes, bytes]]()
    for written, stamp in FORMS:
        for body in BODIES:
            for text in (first, written):
                line = text + b" " + body + (b"\r\n" if tty else b"\n")
                said.append(line if tty else frame(1, line))
            end = b"\r" * tty
            expected += [(1, FORMS[0][1], body + end), (1, stamp, body + end)]
    assert read([b"".join(said)], tty) == expected
    assert read(bytes_of(b"".join(said)), tty) == expected


@pytest.mark.parametrize(("written", "stamp"), FORMS)
@pytest.mark.parametrize("newline", [True, False])
def test_pieces_of_a_long_line_are_one(written: bytes, stamp: bytes, newline: bool) -> None:
    long = b"x" * 40_000 + b"\n" * newline
    pieces = [frame(2, written + b" " + long[at : at + 16384]) for at in range(0, len(long), 16384)]
    after = frame(1, FORMS[0][0] + b" after\n")
    expected = [(2, stamp, long.strip()), (1, FORMS[0][1], b"after")]
    assert read([b"".join((*pieces, after))]) == expected


@pytest.mark.parametrize(("written", "stamp"), FORMS)
def test_a_terminals_long_line_is_one(written: bytes, stamp: bytes) -> None:
    long = b"x" * 40_000 + b"\r"
    pieces = [written + b" " + long[at : at + 16384] for at in range(0, len(long), 16384)]
    assert read([b"".join((*pieces, b"\n"))], tty=True) == [(1, stamp, long)]


@pytest.mark.parametrize("zone", [b"Z", b"-08:00"])
def test_a_terminals_long_lines_without_newlines_are_two(zone: bytes) -> None:
    """The `local` driver leaves the newline of a long line out."""
    first = b"2026-11-29T09:17:11.000000001" + zone + b" "
    second = b"2026-11-29T09:17:11.000000002" + zone + b" "
    said = first + b"x" * 16384 + first + b"yy\r" + second + b"zz\r\n"
    lines = [(tbmon.utc_stamp(stamp.strip()), body) for _, stamp, body in read([said], tty=True)]
    assert lines == [
        (tbmon.utc_stamp(first.strip()), b"x" * 16384 + b"yy\r"),
        (tbmon.utc_stamp(second.strip()), b"zz\r"),
    ]


@pytest.mark.parametrize("tty", [False, True], ids=["frames", "terminal"])
@pytest.mark.parametrize("words", NO_STAMPS[:-1])
def test_a_line_without_a_stamp_stays_whole_and_takes_the_one_before(
    words: bytes, tty: bool
) -> None:
    lines = [words + b" 1", FORMS[1][0] + b" hello", words + b" 2", FORMS[0][0] + b" bye"]
    ends = [line + b"\n" for line in lines]
    stamp = FORMS[1][1]
    expected = [
        (1, b"", words + b" 1"),
        (1, stamp, b"hello"),
        (1, stamp, words + b" 2"),
        (1, stamp, b"bye"),
    ]
    said = b"".join(ends) if tty else b"".join(frame(1, end) for end in ends)
    assert read([said], tty) == expected
    assert read(bytes_of(said), tty) == expected


@pytest.mark.parametrize("left", range(1, 36))
def test_a_terminals_log_that_ends_in_a_stamp_has_no_line_there(left: int) -> None:
    said = FORMS[0][0] + b" hello\r\n" + (FORMS[1][0] + b" ")[:left]
    found = read([said], tty=True)
    assert found[0] == (1, FORMS[0][1], b"hello\r")
    assert len(found) == (1 if left > 4 else 2) or left < 5


# What is kept


class Log:
    """An engine's log of one container, in whatever form it stamps, and the monitor that reads it."""

    def __init__(self, folder: Path, tty: bool = False) -> None:
        self.store = tbmon.Store(folder / "t.db", b"k" * 32)
        self.monitor = tbmon.Monitor(
            tbmon.Config(), self.store, tbmon.Redactor(b"k" * 32), None, threading.Event()
        )
        self.container = tbmon.Container(
            "a1" * 32, "n", "running", True, None, None, "x", 0, tty, "local"
        )
        self.lines: list[tuple[int, str]] = []

    def say(self, at: int, *messages: str) -> None:
        self.lines += [(at, header(message, at)) for message in messages]

    def read(self, zone: str) -> tbmon.EngineFeed:
        """Connect anew, and take what an engine answers whose stamps are in that zone."""
        feed = tbmon.EngineFeed(self.monitor, self.container)
        for number, (at, line) in enumerate(self.lines):
            if at >= (feed.since_s or 0):
                text = f"{stamp(at, number, zone)} {line}".strip().encode()
                whole = text + b"\r\n" if self.container.tty else frame(1, text + b"\n")
                feed.take_lines(feed.frames.feed(whole))
        feed.go_live()
        feed.end_reread()
        feed.caught_up()
        return feed

    def rows(self) -> list[tuple[str, int, int]]:
        rows = self.store.entries({}, 0, 2**41, None, 1000)[::-1]
        return [(row["message"], row["at"], row["flags"] & tbmon.SUSPECT) for row in rows]

    def keep_as_before(self, zone: str, width: int = 99) -> None:
        """Make of the stamps in the database what a tbmon kept that read none of them."""
        saved = json.loads(self.store.first("state", "engine"))
        numbers = {stamp(at, n, "Z"): n for n, (at, _) in enumerate(self.lines)}

        def old(new: str) -> str:
            second = tbmon.parse_second(new[:19])
            assert second is not None
            return stamp(second, numbers[new], zone)[:width]

        saved["cursor"]["newest"] = old(saved["cursor"]["newest"])
        names = [
            name.split(" ") for row in self.store.get("overlap") for name in row[0].split("\n")
        ]
        with self.store.write() as db:
            for newest in {row[0] for row in db.execute("SELECT newest FROM overlap")}:
                db.execute("UPDATE overlap SET newest = ? WHERE newest = ?", (old(newest), newest))
            db.execute("DELETE FROM overlap WHERE id > 1")
            lines = "\n".join(f"{old(new)} {line}" for new, line in names)
            db.execute("UPDATE overlap SET lines = ?", (lines,))
            self.store.put(db, "state", [("engine", json.dumps(saved)), ("zone", "28800")])


def stamp(at: int, number: int, zone: str) -> str:
    """As an engine in that zone stamps its `number`th line; "" for one that does not."""
    if not zone:
        return ""
    second = tbmon.second_text(at + tbmon.seconds_ahead(zone)).replace(" ", "T")
    return f"{second}.{number:09d}{zone}"


@pytest.fixture
def kept(tmp_path: Path) -> Any:
    log = Log(tmp_path)
    log.say(NOW, "Starting services")
    for second in range(100, 110):
        log.say(NOW + second, f"line {second}", "twice", "twice")
    yield log
    log.store.close()


def expected_of(log: Log) -> list[tuple[str, int, int]]:
    return [(line.split("275 ")[1], at * 1000, 0) for at, line in log.lines]


@pytest.mark.parametrize("tty", [False, True], ids=["frames", "terminal"])
@pytest.mark.parametrize(
    "zones", [("-08:00", "Z"), ("Z", "+05:45"), ("+01:00", "-08:00"), ("",) * 2]
)
def test_a_line_is_known_again_whatever_zone_its_engine_then_has(
    kept: Log, zones: tuple[str, str], tty: bool
) -> None:
    kept.container = kept.container._replace(tty=tty)
    for zone in (*zones, *zones):
        feed = kept.read(zone)
        assert kept.rows() == expected_of(kept)
        assert (zone == "") == (feed.recorder.cursor["newest"] == "")
    assert feed.since_s == (NOW + 109 - tbmon.OVERLAP_S if zone else None)


@pytest.mark.parametrize("zone", ["-08:00", "+01:00", "+05:45"])
@pytest.mark.parametrize("after", ["Z", "the same"])
def test_a_database_from_before_loses_and_doubles_nothing(kept: Log, zone: str, after: str) -> None:
    kept.read("Z")
    kept.keep_as_before(zone)
    kept.say(NOW + 109, "in the last second")
    kept.say(NOW + 120, "after the update")
    for _ in range(2):
        kept.read(zone if after == "the same" else after)
        assert kept.rows() == expected_of(kept)
    assert kept.store.get("gaps") == [] and kept.store.first("state", "zone") == "0"


def test_a_database_from_before_is_read_again_if_its_stamps_were_cut(kept: Log) -> None:
    """As they were of terminals: no place to go on from is left of them."""
    kept.container = kept.container._replace(tty=True)
    kept.read("Z")
    kept.keep_as_before("+05:45", width=30)
    kept.say(NOW + 120, "after the update")
    for _ in range(2):
        kept.read("+05:45")
        assert kept.rows() == expected_of(kept)


def test_a_database_whose_stamps_are_in_utc_is_left_as_it_is(kept: Log) -> None:
    kept.read("Z")
    before = [tuple(row) for row in kept.store.get("overlap")], kept.store.first("state", "engine")
    tbmon.settle_stamps(kept.store)
    assert before == (
        [tuple(row) for row in kept.store.get("overlap")],
        kept.store.first("state", "engine"),
    )
