"""Section 3, from bytes to entries: headers, whole entries with their facts, and damage of every
kind.
"""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.node_samples import (
    ENGINE_STAMP,
    FIRST,
    HEADER,
    KEY,
    LAST,
    MORE,
    NOTES,
    OWN,
    PEER,
    REQUESTER,
    SECOND,
    THIRD,
    WHOLE_LOG,
    WRITER,
    facts,
    lines,
    parse,
    said,
)

from tbmon import (
    ENTRY_BYTES,
    LOG_TYPES,
    Assembler,
    Entry,
    Redactor,
    bracket_depth,
    is_recognised,
    read_event,
    second_text,
)

FACTS: list[tuple[str, str, str, str, dict[str, object] | None]] = [
    # a word of the note, time, level, type, what the fact says at least
    ("no address suffix, plain", "13:40:02", "info", "info", None),
    ("no suffix, beta", "13:40:03", "info", "info", None),
    ("registration requested", "13:40:05", "info", "registration", {"registered": False}),
    ("registration confirmed", "13:40:19", "info", "registration", {"registered": True}),
    (
        "NOT a slot change",
        "13:42:08",
        "info",
        "semaphore",
        {"subscriber": "InvoiceSubscriber", "current": None},
    ),
    (
        "acquire",
        "13:42:08",
        "info",
        "semaphore",
        {"subscriber": "InvoiceSubscriber", "current": 1, "total": 4},
    ),
    (
        "all free",
        "13:42:08",
        "info",
        "semaphore",
        {"subscriber": "InvoiceSubscriber", "current": 0, "total": 4},
    ),
    ("legitimate repeat", "13:42:08", "info", "semaphore", {"current": 1}),
    (
        "task subscriber receives",
        "13:55:34",
        "info",
        "semaphore",
        {"subscriber": "TaskSubscriber", "current": None},
    ),
    (
        "task subscriber acquires",
        "13:55:34",
        "info",
        "semaphore",
        {"subscriber": "TaskSubscriber", "current": 1},
    ),
    (
        "JSON on the header",
        "13:55:34",
        "info",
        "task_received",
        {"id": FIRST, "task_type": "javascript"},
    ),
    (
        "plain string",
        "14:10:00",
        "info",
        "task_received",
        {"id": SECOND, "input": "some message to hash"},
    ),
    (
        "JS-object style",
        "14:20:00",
        "info",
        "task_received",
        {"id": THIRD, "input": "data/frame1.csv"},
    ),
    ("download", "13:55:35", "info", "task_download", {"task_id": "js_" + "4be1" * 16}),
    ("start", "13:55:35", "info", "task_start", {"id": None}),
    (
        "not cached",
        "13:55:48",
        "info",
        "execution_output",
        {"elapsed_ms": 12873, "exit_code": 0, "cached": False},
    ),
    ("completed", "13:55:48", "info", "task_completed", {"id": FIRST, "error_text": None}),
    ("published", "13:55:48", "info", "task_published", None),
    (
        "release after the task",
        "13:55:48",
        "info",
        "semaphore",
        {"subscriber": "TaskSubscriber", "current": 0},
    ),
    (
        "cached run",
        "14:10:02",
        "info",
        "execution_output",
        {"elapsed_ms": 184, "memory_peak": 17, "cached": True},
    ),
    ("exitCode 1", "14:20:09", "info", "execution_output", {"exit_code": 1, "gas_used": 812}),
    ("stack lines", "14:20:09", "error", "execution_output", {}),
    (
        "limit exceeded",
        "14:25:41",
        "error",
        "task_failed",
        {"id": THIRD, "error_text": "gas limit exceeded"},
    ),
    ("warn level", "14:30:00", "warn", "info", None),
    (
        "without header",
        "14:30:00",
        "",
        "execution_output",
        {"exit_code": 0, "gas_used": 2023950200},
    ),
    (
        "charge + pay(own)",
        "13:55:52",
        "info",
        "invoice",
        {"id": FIRST, "invoice_id": "7123456717698608000004"},
    ),
    (
        "own node penalised",
        "14:26:10",
        "info",
        "invoice",
        {"id": THIRD, "invoice_id": "7250990117639940001204"},
    ),
    ("ANSI-coloured level", "14:31:00", "info", "info", None),
    ("whole line ANSI", "14:31:05", "warn", "info", None),
    ("compose prefix", "14:31:10", "info", "task_start", {}),
    ("--timestamps prefix", "14:31:11", "info", "task_start", {}),
    ("rc version", "14:31:12", "info", "info", None),
    ("debug level", "14:31:13", "debug", "info", None),
    ("CRLF", "14:31:14", "info", "task_start", {}),
    ("deregistration", "15:00:00", "info", "registration", {"registered": False}),
    ("truncated JSON", "15:00:00", "", "raw", None),
    ("runtime warning", "15:00:00", "", "raw", None),
    ("control bytes", "15:00:00", "", "raw", None),
    ("timestamp only", "15:00:01", "", "raw", None),
]


def test_the_sample_log_gives_what_every_note_says() -> None:
    redactor = Redactor(KEY)
    entries = parse(WHOLE_LOG.rstrip(b"\n"), redactor)
    assert len(entries) == len(NOTES) == len(FACTS)
    for entry, note, fact, (word, stamp, level, kind, fields) in zip(
        entries, NOTES, facts(entries, redactor), FACTS, strict=True
    ):
        assert word in note["note"]
        assert (second_text(entry.second)[11:], entry.head.level if entry.head else "") == (
            stamp,
            level,
        ), word
        assert entry.type == kind, word
        assert is_recognised(entry.type, entry.text) is (kind != "raw"), word
        found = {"id": fact.execution_id, **fact.fields} if fact else None
        assert (
            found is None
            if fields is None
            else found is not None and fields.items() <= found.items()
        ), word


@pytest.mark.parametrize("note", NOTES, ids=[note["note"][:40] for note in NOTES])
def test_an_entry_holds_all_words_after_its_header_and_no_others(note: dict[str, str]) -> None:
    redactor = Redactor(KEY)
    (entry,) = parse(note["line"], redactor)
    words = re.sub("\x1b\\[\\d+m", "", note["line"]).rstrip("\r")
    assert entry.text == redactor.clean(re.split(r"@truebit/\S+ ", words, maxsplit=1)[-1])
    assert (entry.head is None) is ("@truebit" not in words)


def test_stderr_keeps_its_stack_lines() -> None:
    entry = next(entry for entry in parse(WHOLE_LOG) if "panic" in entry.text)
    fact = read_event(entry.type, entry.text, entry.raw, str)
    words = (
        "panic: index out of range\n    at main (task.wasm:0x1f3)\n    at _start (task.wasm:0x0a1)"
    )
    assert fact is not None
    assert fact.fields == {"error_text": words}


@pytest.mark.parametrize(
    "level", ["error", "warn", "info", "http", "verbose", "debug", "silly", "INFO"]
)
@pytest.mark.parametrize(
    "version", ["1.119.2", "1.120.0-beta.275", "1.121.0-rc.1", "v2.0", "3.0.0-alpha+7", "12"]
)
@pytest.mark.parametrize("name", ["worker-runner-node", "hub.client", "Runner_2"])
def test_every_level_version_and_logger_makes_a_header(level: str, version: str, name: str) -> None:
    for address in ("", "-0x558f", f"-0x{OWN}", f"-{OWN}"):
        (entry,) = parse(
            f"2025-11-24 13:55:34 {level}: @truebit/{name}{address}:{version} Heartbeat sent"
        )
        assert entry.head is not None
        assert entry.head[::2] == (level.lower(), version)
        assert (entry.head.suffix is None) is (address == "")
        assert entry.text == "Heartbeat sent"


@pytest.mark.parametrize(
    "line",
    [
        f"2025-11-24 13:55:34 {WRITER} no level",
        f"2025-11-24 13:55:34 info {WRITER} no colon",
        f"2025-13-24 13:55:34 info: {WRITER} no date",
        f"2025-11-24T13:55:34 info: {WRITER} another stamp",
        f"25-11-24 13:55:34 info: {WRITER} short",
        f"x2025-11-24 13:55:34 info: {WRITER} something before",
        "2025-11-24 13:55:34 info: worker-runner-node:1.0.0 another logger",
        "2025-11-24 13:55:34 info: @truebit/worker-runner-node no version",
        "2025-11-24 13:55:34 info: @truebit/worker-runner-node:next no number",
    ],
)
def test_what_lacks_a_part_of_a_header_is_no_header(line: str) -> None:
    same_words = HEADER + line.rpartition(f"{WRITER} ")[2]
    entry = parse(f"{same_words}\n{line}")[-1]
    assert (entry.head, entry.type) == (None, "raw")
    assert entry.text.endswith(line[-8:])


def test_a_header_without_words_is_an_entry() -> None:
    for line in (HEADER, HEADER.rstrip()):
        (entry,) = parse(line)
        assert (entry.type, entry.text) == ("info", "")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("runner-node  | ", ""),
        ("truebit_runner-node_1 | ", "\r"),
        ("runner-node |", ""),
        (ENGINE_STAMP, ""),
        ("2025-11-24T14:31:11Z ", "\r"),
        ("runner-node  | " + ENGINE_STAMP, ""),
        ("\x1b[36mrunner-node  |\x1b[0m \x1b[33m", "\x1b[39m\x1b[0m\r"),
        ("\x1b[1;38;5;208m", "\x1b[K"),
        ("\x1b]0;title\x07", ""),
        ("\x1b(B\x1b[m", "\x1b(B\x1b[m"),
    ],
)
def test_what_is_put_around_a_header_changes_neither_entry_nor_identity(
    before: str, after: str
) -> None:
    (plain,), (dressed,) = (
        parse(HEADER + "Heartbeat sent"),
        parse(before + HEADER + "Heartbeat sent" + after),
    )
    assert dressed == plain


@pytest.mark.parametrize(
    "before", ["", "runner-node  | ", ENGINE_STAMP, "runner-node-1  | " + ENGINE_STAMP]
)
@pytest.mark.parametrize("after", ["", "\r", "\x1b[0m"])
@pytest.mark.parametrize("at", [11, 12, 19, 26], ids=["JSON", "JS", "stdout", "invoice"])
def test_a_payload_over_several_lines_is_one_entry_whatever_stands_before_each_line(
    before: str, after: str, at: int
) -> None:
    written = NOTES[at]["line"]
    (plain,) = parse(written)
    entries = parse("\n".join(before + line + after for line in (written + LAST).split("\n")))
    assert [entry.text for entry in entries] == [plain.text, "Starting task execution"]
    assert entries[0].raw == plain.raw


@pytest.mark.parametrize(
    ("line", "alone"),
    [
        ("    at main (task.wasm:0x1f3)", False),
        ("\tat main", False),
        ("", False),
        ("panic", True),
        ("Command execution stdout: {}", True),
        ("Command execution stderr: x", True),
        ("(node:17) Warning: x", True),
        ("2025-11-24 15:00:01", True),
        ("  \x01\x02", True),
    ],
)
def test_after_a_complete_entry_only_an_indented_line_goes_on_with_it(
    line: str, alone: bool
) -> None:
    assert len(parse(f"{HEADER}Starting services\n{line}")) == (2 if alone else 1)


@pytest.mark.parametrize(
    ("words", "opens"),
    [
        ("Message received from task_created:", True),
        ("Message received from x: {", True),
        ("x [1, {", True),
        ("x {'a': '}'", True),
        ("x {a: 'it\\'s }'", True),
        ("x {}", False),
        ("x { a: '{' }", False),
        ('x "{"', False),
        ("it's } done", False),
    ],
)
def test_an_open_payload_takes_lines_that_are_not_indented(words: str, opens: bool) -> None:
    assert len(parse(f"{HEADER}{words}\nrest")) == (1 if opens else 2)


def test_a_line_before_any_header_takes_the_engines_stamp_or_none_and_its_place_tells_it_apart() -> (
    None
):
    first, second = Assembler(Redactor(KEY)).feed(
        [(b"panic", 1763992533912, b"a"), (b"panic", None, b"b")]
    )
    assert (first.second, first.stamped, second.second) == (1763992533, False, 0)
    assert first.header_id != second.header_id
    (again,) = Assembler(Redactor(KEY), last_second=7).feed([(b"panic", 1763992533912, b"a")])
    assert again.second == 7


def test_an_entry_is_handed_out_at_once_and_again_only_when_it_grows() -> None:
    assembler = Assembler(Redactor(KEY))
    (entry,) = assembler.feed(lines(f"{HEADER}Message received from task_created:"))
    assert assembler.feed([]) == []
    assert assembler.feed(lines("{")) == [entry]
    assert entry.text.endswith(":\n{")
    assert assembler.feed(lines(f"}}\n{HEADER}Heartbeat sent"))[0] is entry
    assert [other.text for other in assembler.feed(lines(f"{HEADER}Starting services"))] == [
        "Starting services"
    ]


def test_equal_headers_are_equal_in_identity_and_different_ones_are_not() -> None:
    entries = [entry for entry in parse(WHOLE_LOG) if entry.head]
    headers = {(entry.head, entry.text.partition("\n")[0]) for entry in entries}
    assert len({entry.header_id for entry in entries}) == len(headers) == len(entries) - 4
    assert [entry.header_id for entry in entries] == [
        entry.header_id for entry in parse(WHOLE_LOG) if entry.head
    ]


def test_identity_does_not_depend_on_which_wallet_is_written_nor_on_continuations() -> None:
    text = (
        f"2025-11-24 13:40:05 info: @truebit/x-0x{OWN}:1.0.0 Node with address 0x{OWN} "
        f"registered successfully"
    )
    (entry,), (other,) = parse(text), parse(text.replace(OWN, PEER.lower()) + "\n  more")
    assert other.header_id == entry.header_id
    assert parse(text.replace(" registered", " deregistered"))[0].header_id != entry.header_id


def test_an_entry_is_bounded_and_its_identity_covers_the_whole_header() -> None:
    first, second = (
        parse(HEADER + "x" * ENTRY_BYTES + end + "\n  y" * ENTRY_BYTES)[0] for end in "ab"
    )
    assert len(first.text) <= ENTRY_BYTES
    assert first.header_id != second.header_id


CHUNKS = st.lists(
    st.one_of(
        st.sampled_from(WHOLE_LOG.split(b"\n")),
        st.binary(max_size=60),
        st.text("{}[]\"'\\:,| \ta1x\x1b[m\r", max_size=30).map(str.encode),
        st.tuples(st.sampled_from(WHOLE_LOG.split(b"\n")), st.integers(0, 400)).map(
            lambda cut: cut[0][cut[1] :]
        ),
    ).map(lambda line: line.replace(b"\n", b"")),
    max_size=12,
)


def check(data: bytes) -> list[Entry]:
    """Parse to the end; what must hold for any bytes."""
    redactor = Redactor(KEY)
    entries = parse(data, redactor)
    events = facts(entries, redactor)
    for entry in entries:
        assert entry.type in LOG_TYPES
        assert 0 <= entry.second < 2**32
        assert len(entry.header_id) == 12
        entry.text.encode()
    for event in events:
        for value in event.fields.values() if event else ():
            assert not isinstance(value, int) or -(2**31) <= value < 2**63
    spoken = said(entries, events)
    assert not [wallet for wallet in (OWN, PEER, REQUESTER) if wallet.lower() in spoken]
    return entries


@MORE
@given(CHUNKS)
def test_no_line_is_lost_or_doubled_whatever_is_written(chunks: list[bytes]) -> None:
    entries = check(b"\n".join([HEADER.encode(), *chunks, LAST.encode()[1:]]))
    assert sum(entry.text.count("\n") + 1 for entry in entries) == len(chunks) + 2
    assert (entries[-1].type, entries[-1].text) == ("task_start", "Starting task execution")


@MORE
@given(CHUNKS, st.integers(1, 5))
def test_it_does_not_matter_how_the_lines_are_handed_over(chunks: list[bytes], size: int) -> None:
    feed = lines(b"\n".join(chunks))
    in_pieces = Assembler(Redactor(KEY))
    grown: dict[int, Entry] = {}
    for start in range(0, len(feed), size):
        grown.update((id(entry), entry) for entry in in_pieces.feed(feed[start : start + size]))
    whole = Assembler(Redactor(KEY)).feed(feed)
    assert [(e.second, e.type, e.text, e.raw, e.header_id) for e in grown.values()] == [
        (e.second, e.type, e.text, e.raw, e.header_id) for e in whole
    ]


@MORE
@given(st.binary(max_size=300))
def test_any_bytes_parse_to_something(data: bytes) -> None:
    check(data)


@pytest.mark.parametrize("note", NOTES, ids=[note["note"][:40] for note in NOTES])
def test_every_prefix_of_a_sample_parses_and_does_not_swallow_the_next_header(
    note: dict[str, str],
) -> None:
    data = note["line"].encode()
    for end in range(len(data)):
        entries = check(data[:end] + LAST.encode())
        shown = re.sub(rb"\x1b\[\d+m", b"", data[:end]).strip()
        assert len(entries) == (2 if shown else 1)
        assert entries[-1].text == "Starting task execution"


@pytest.mark.parametrize("note", NOTES, ids=[note["note"][:40] for note in NOTES])
def test_every_byte_of_a_sample_may_be_damaged(note: dict[str, str]) -> None:
    # A quote in place of each byte and, in turn, a line break or what is no UTF-8 stand for all
    # values. Every sample is damaged by itself, so that it stays at 22,000 short parses.
    data = note["line"].encode()
    for at in range(len(data)):
        for damage in (b'"', b"\n" if at % 2 else b"\xff"):
            entries = check(data[:at] + damage + data[at + 1 :] + LAST.encode())
            assert len(entries) >= 2 or len(data) == 1
            assert entries[-1].text == "Starting task execution"


@pytest.mark.parametrize("quote", ['"', "'"])
def test_counting_brackets_is_linear_in_the_text(quote: str) -> None:
    start = time.thread_time()
    bracket_depth("{" + quote + f"\\{quote}" * 12_000)
    assert time.thread_time() - start < 1


def test_a_long_line_of_anything_takes_bounded_time() -> None:
    start = time.thread_time()
    for unit in (
        b"a",
        b"|",
        b" ",
        b"\x1b[",
        b"\x1b]",
        b"0x",
        b"@truebit/-0xa",
        b"a1" * 20 + b" ",
        b"Semaphore ",
    ):
        parse(
            HEADER.encode() + unit * (500_000 // len(unit)) + b"\n" + unit * (500_000 // len(unit))
        )
    assert time.thread_time() - start < 5
