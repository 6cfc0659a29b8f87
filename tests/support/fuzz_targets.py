"""What is fuzzed, and what must hold for every input; the validators are written from the published
schema, not from the program's tables.
"""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import random
import re
import tarfile
import threading
import urllib.parse
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import aggregator
import tbmon
from support import node_samples
from support.fuzz import Check, Target
from support.log_feed import frame
from support.node_samples import HEADER, KEY, OWN, PEER, REQUESTER, SAMPLES, WHOLE_LOG

WIRE = [
    path.read_bytes().strip() for path in sorted((SAMPLES.parent / "wire" / "v1").glob("*.json"))
]
WALLETS = [one.lower().encode() for one in (OWN, REQUESTER, PEER)]
SECRETS = {"local": "", "private": "pass word", "stream": ""}
STATUSES = {200, 204, 304, 400, 401, 403, 404, 405, 409, 410, 413, 415, 421, 429, 431, 503}
BRACKETS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b'"',
    b"'",
    b"`",
    b"\\",
    b":",
    b",",
    b"+",
    b"\n",
    b" ",
    b"\t",
    b"\r",
    b"\0",
    b"\x1b[0m",
]
NUMBERS = [
    b"0",
    b"-1",
    b"9" * 20,
    b"1e999",
    b"NaN",
    b"-Infinity",
    b"1.5",
    b"9" * 5000,
    b"123n",
    b"\xd9\xa3",
    b"1_0",
]
VALUES = [
    b"null",
    b"true",
    b"false",
    b"undefined",
    b"{}",
    b"[]",
    b'""',
    b"[Object]",
    b"[Circular *1]",
    b'"\\ud800"',
]
ODD = [
    b"\xff",
    b"\xe2\x80\xa8",
    b"\xed\xa0\x80",
    b"\xef\xbb\xbf",
    b"\xf0\x9f\x98\x80",
    b"\x7f",
    b"%00",
    b"%ff",
    b"\x85",
]
ADDRESSES = [
    b"0x" + OWN.encode(),
    OWN.lower().encode(),
    OWN.upper().encode(),
    b"0X" + REQUESTER.encode(),
    PEER.encode(),
]


def dice_of(data: bytes) -> random.Random:
    """Chance that belongs to an input, so that it can be replayed."""
    return random.Random(zlib.crc32(data))


def pieces(data: Any, dice: random.Random) -> Iterator[Any]:
    at = 0
    while at < len(data):
        length = int(dice.random() ** 3 * 200) + 1
        yield data[at : at + length]
        at += length


# Bytes, lines, entries


def framed(lines: Sequence[bytes], tty: bool = False) -> bytes:
    """Lines as the engine sends them, in frames of up to 16 KiB, or with carriage returns as of a
    terminal.
    """
    sent = []
    for number, line in enumerate(lines):
        stamp = b"2025-11-24T14:31:11.%09dZ " % number
        if tty:
            sent.append(stamp + line + b"\r\n")
            continue
        whole = line + b"\n"
        ends = [
            whole[at : at + tbmon.PIECE_BYTES] for at in range(0, len(whole), tbmon.PIECE_BYTES)
        ]
        ends[-2:] = [b"".join(ends[-2:])] if ends[-1] == b"\n" and len(ends) > 1 else ends[-2:]
        sent += [frame(1 + number % 2, stamp + piece) for piece in ends]
    return b"".join(sent)


def read_frames(tty: bool, chunks: Iterable[bytes]) -> tuple[list[tuple[int, bytes, bytes]], bool]:
    """All lines of a stream, and whether it ended in something that is no log."""
    reader, lines = tbmon.FrameReader(tty), list[tuple[int, bytes, bytes]]()
    try:
        for chunk in (*chunks, b""):
            lines += reader.feed(chunk)
    except tbmon.DockerError:
        return lines, True
    return lines + reader.finish(), False


def fuzz_frames(folder: Path) -> Check:
    def check(data: bytes) -> None:
        tty, stream, dice = data[:1] == b"t", data[1:], dice_of(data)
        whole = read_frames(tty, [stream])
        longest = max(map(len, stream.split(b"\n")))
        if (
            not tty or longest <= tbmon.PIECE_BYTES
        ):  # a terminal's longer lines may lack what ends them
            assert read_frames(tty, pieces(stream, dice)) == whole
        if len(stream) < 400:
            assert read_frames(tty, [stream[at : at + 1] for at in range(len(stream))]) == whole
        assert sum(len(body) for _, _, body in whole[0]) <= len(stream)
        said = [line.removesuffix(b"\r") for line in stream.split(b"\n")]
        heard, is_error = read_frames(False, pieces(framed(said), dice))
        assert not is_error and [body for _, _, body in heard] == said

    return check


class Forgetful(dict[bytes, Any]):
    """A cache that keeps nothing."""

    def __setitem__(self, key: bytes, value: Any) -> None:
        pass


def addresses_in(text: str) -> list[str]:
    """Runs of exactly 40 hex digits, and 40 after 0x that no other follows; pseudonyms left out."""
    plain = re.sub("wallet:[0-9a-f]{16}", "~", text)
    runs = re.findall("[0-9a-fA-F]+", plain)
    return [run for run in runs if len(run) == 40] + re.findall(
        "0[xX][0-9a-fA-F]{40}(?![0-9a-fA-F])", plain
    )


def assemble(
    lines: Sequence[Any], groups: Iterable[Sequence[Any]], cache: bool = True
) -> list[tuple[Any, ...]]:
    assembler = tbmon.Assembler(tbmon.Redactor(KEY))
    if not cache:
        assembler.known = Forgetful()
    grown = {id(entry): entry for group in groups for entry in assembler.feed(group)}
    return [
        (e.second, e.type, e.text, e.raw, e.header_id, e.head, e.stamped) for e in grown.values()
    ]


def check_event(event: tbmon.Event | None) -> None:
    """Whatever a fact says can be stored and holds no address outside the task's own data."""
    if event is None:
        return
    assert event.execution_id is None or re.fullmatch(
        r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", event.execution_id
    )
    for name, value in event.fields.items():
        if type(value) is int:
            assert -(2**63) <= value < 2**63, name
        if isinstance(value, str) and name not in ("input", "output"):
            value.encode()
            assert not addresses_in(value), name
        assert isinstance(value, (str, int, float, list, type(None))), name
    for item in event.fields.get("line_items", ()):
        assert set(item) == {"operation", "account", "steps", "memory_peak"} and not addresses_in(
            str(item)
        )


def fuzz_lines(folder: Path) -> Check:
    def check(data: bytes) -> None:
        lines = node_samples.lines(data)
        entries = assemble(lines, [lines])
        assert assemble(lines, pieces(lines, dice_of(data))) == entries
        assert assemble(lines, [lines], cache=False) == entries
        redactor = tbmon.Redactor(KEY)
        for entry in tbmon.Assembler(redactor).feed(lines):
            assert (
                0 <= entry.second < 2**32
                and entry.type in tbmon.LOG_TYPES
                and len(entry.header_id) == 12
            )
            assert len(entry.text) <= 2 * tbmon.ENTRY_BYTES
            assert not addresses_in(entry.text) and not (
                entry.head and addresses_in(str(entry.head))
            )
            check_event(
                tbmon.read_event(entry.type, entry.text, entry.raw or entry.text, redactor.clean)
            )

    return check


def fuzz_payload(folder: Path) -> Check:
    redactor = tbmon.Redactor(KEY)
    redactor.see(OWN)

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        payload, read = tbmon.read_payload(text), tbmon.read_inspect(text)
        assert isinstance(payload, dict) and isinstance(read, (dict, list, type(None)))
        assert -len(text) <= tbmon.bracket_depth(text) <= len(text)
        clean = redactor.clean(text)
        kind = tbmon.classify(clean)
        assert kind in tbmon.LOG_TYPES and isinstance(tbmon.is_recognised(kind, clean), bool)
        for name in {kind, "task_received", "execution_output", "invoice"}:
            check_event(tbmon.read_event(name, clean, text, redactor.clean))
        for record in (payload, {"payload": payload}, read):
            check_event(tbmon.record_event(record, redactor.clean))
        with contextlib.suppress(ValueError):
            value, _ = tbmon.read_json(text, len(text) - len(text.lstrip()))
            assert not isinstance(value, dict) or tbmon.json_text(
                tbmon.read_payload(text)
            ) == tbmon.json_text(value)

    return check


def fuzz_time(folder: Path) -> Check:
    zones = [tbmon.Zone(name) for name in ("auto", "UTC", "America/New_York", "Asia/Kathmandu")]

    def check(data: bytes) -> None:
        text = data.decode("utf-8", "replace")
        ms, second = tbmon.parse_time(text), tbmon.parse_second(text)
        if ms is not None:
            assert (
                type(ms) is int and 0 <= ms < tbmon.END_MS and tbmon.parse_time(tbmon.utc(ms)) == ms
            )
            assert (tbmon.utc(ms) or "").startswith(tbmon.utc_day(ms))
        if second is not None:
            again = tbmon.second_text(second)
            assert tbmon.parse_second(again) == second and (
                text[17:] == "60" or text.replace("T", " ") == again
            )
            assert all(abs(zone.utc_ms(second) // 1000 - second) <= 86_400 for zone in zones)
            zones[0].learn(second, (ms or 0) + 1000 * (len(data) % 7) * 900)
            assert abs(zones[0].offset_s or 0) <= 15 * 3600 and (zones[0].offset_s or 0) % 900 == 0
        with contextlib.suppress(ValueError, RecursionError):
            found = tbmon.parse_time(json.loads(text))
            assert found is None or 0 <= found < tbmon.END_MS

    return check


def fuzz_redactor(folder: Path) -> Check:
    """Addresses between whatever an input has; the first byte chooses how they are written."""
    written = [bytes.fromhex(one).hex() for one in (OWN, REQUESTER, PEER)]
    forms: list[Callable[[str], str]] = [
        str,
        str.upper,
        lambda one: "0x" + one,
        lambda one: "0X" + one.upper(),
    ]

    def check(data: bytes) -> None:
        dice, redactor = dice_of(data), tbmon.Redactor(KEY)
        text = data.decode("utf-8", "replace")
        parts = [text[at : at + dice.choice((0, 1, 30))] for at in range(0, 300, 30)]
        planted = [part + dice.choice(forms)(dice.choice(written)) for part in parts]
        whole = "".join(planted) + text[300:2000]
        if dice.random() < 0.7:
            redactor.see("0x" + OWN)
        elif dice.random() < 0.5:
            redactor.own = frozenset([redactor.pseudonym(OWN)])
        for shown in (redactor.clean(whole), redactor.clean(whole, "~")):
            assert not addresses_in(shown)
            assert not (redactor.seen or redactor.own) or OWN.lower() not in shown.lower()
        forged = "wallet:" + "0123456789abcdef"
        assert forged not in redactor.clean(text.replace(written[0], "") + forged)

    return check


class Judged:
    """A second opinion on whose headers are the node's."""

    def __init__(self) -> None:
        self.own: Any = None
        self.began: int | None = None
        self.rivals: list[tuple[Any, int]] = []
        self.heard = 0  # a header from before the node's own last one is nobody's rival

    def is_right(self, who: Any, second: int, came: int, believed: bool, adopted: int) -> bool:
        """Another identity is believed first, within two minutes after one without address, or
        after ten alone.
        """
        if who == self.own or self.own is None:
            self.heard = self.heard if self.own is None else came
            self.began = second if self.own is None else self.began
            self.own, self.rivals = who, []
            return believed
        if believed:
            right = (
                self.own[0] is None and self.began is not None and 0 <= second - self.began <= 120
            )
            self.own, self.rivals = who, self.rivals if right else []
            return right
        if came < self.heard:
            return not adopted
        self.rivals = (
            [one for one in self.rivals if one[0] == who]
            if all(w == who for w, _ in self.rivals)
            else []
        )
        self.rivals.append((who, came))
        if adopted:
            span = came - min(at for _, at in self.rivals)
            right = adopted >= 20 and len(self.rivals) >= 20 and span >= 600
            self.own, self.rivals = who, []
            return right
        return True


def fuzz_trust(folder: Path) -> Check:
    heads = [
        tbmon.Head("info", suffix, version)
        for suffix in (None, "wallet:1", "wallet:2")
        for version in ("1", "2")
    ]

    def check(data: bytes) -> None:
        trust, model, second = tbmon.Trust(), Judged(), 1_900_000_000
        for one in data[:100]:
            if one == 255:
                trust.restart()
                model = Judged()
                continue
            second += (one >> 4) ** 2 - (one & 8)
            head = heads[one % 6]
            entry = tbmon.Entry(second, head, "info", "", b"", None if one & 64 else second * 1000)
            believed = trust.judge(entry)
            adopted = trust.adopted.headers if trust.adopted is not None else 0
            trust.adopted = None
            assert model.is_right((head.suffix, head.version), second, second, believed, adopted)
            assert trust.identity == model.own

    return check


# What ingest keeps


def put_back(store: tbmon.Store, tables: Iterable[str]) -> None:
    with store.write() as db:
        for table in tables:
            db.execute(f"DELETE FROM {table}")


def fuzz_recorder(folder: Path) -> Check:
    """Lines taken at once, twice, and with restarts between give the same rows."""
    store = tbmon.Store(folder / "recorder.db", KEY)
    tables = (
        "state",
        "counter",
        "log",
        "node",
        "task",
        "task_data",
        "task_event",
        "doubt",
        "waiting_words",
        "invoice",
        "binding",
    )
    present = {row[0] for row in store.read("SELECT name FROM sqlite_master WHERE type = 'table'")}

    def record(
        groups: Iterable[Sequence[Any]], again: bool = False
    ) -> dict[bytes, tuple[str, int]]:
        redactor = tbmon.Redactor(KEY)
        clock = lambda: 1_764_000_000.0  # noqa: E731 - the samples' own time, so that nothing is too old
        monitor = tbmon.Monitor(tbmon.Config(), store, redactor, None, threading.Event(), clock)
        for number, group in enumerate(groups):
            recorder = tbmon.Recorder(monitor, tbmon.FILES, fresh_pass=again and number == 0)
            recorder.feed("file", group)
            check_recorder(recorder)
            recorder.commit()
        rows = store.read("SELECT key, message, type FROM log")
        check_tasks(store)
        return {bytes(row["key"]): (row["message"], row["type"]) for row in rows}

    def check(data: bytes) -> None:
        lines = node_samples.lines(data[:20_000])
        put_back(store, present & set(tables))
        whole = record([lines])
        assert record([lines], again=True) == whole
        put_back(store, present & set(tables))
        assert record(halves(lines, dice_of(data))) == whole

    return check


def halves(lines: Sequence[Any], dice: random.Random) -> Iterator[Any]:
    cut = dice.randrange(len(lines) + 1)
    yield lines[:cut]
    yield lines[cut:]


def check_recorder(recorder: tbmon.Recorder) -> None:
    """Every row has a key of its own that begins with its stamp; what waits is bounded."""
    for key, row in recorder.rows.items():
        assert len(key) == 16 and row[0] == key and 0 <= recorder.newest_second < 2**32
    assert len(recorder.tracker.attribution.waiting) <= tbmon.WAITING_LINES
    json.dumps(recorder.saved())


def check_tasks(store: tbmon.Store) -> None:
    """A task's status follows from its evidence; what says how it failed is there only if it did."""
    for row in store.read("SELECT execution_id FROM task"):
        task = store.task(row["execution_id"])
        assert task is not None and task.status == tbmon.task_status(task)
        assert (task.error is not None) == (task.status == "failed")


class Slow(io.BytesIO):
    """A file that gives less than is asked for, at its beginning."""

    def read(self, size: int | None = -1, /) -> bytes:
        return super().read(97 if self.tell() < 2000 else size)


def read_all(file: io.BytesIO) -> tuple[list[Any], str]:
    records = []
    try:
        for record in tbmon.read_records(file):
            records.append(record)
    except ValueError as error:
        return records, type(error).__name__
    return records, ""


def fuzz_eventdb(folder: Path) -> Check:
    redactor = tbmon.Redactor(KEY)
    redactor.see(OWN)

    def check(data: bytes) -> None:
        records, error = read_all(io.BytesIO(data))
        for record in records:
            check_event(tbmon.record_event(record, redactor.clean))
        if all(isinstance(record, (dict, list)) for record in records):
            slowly = read_all(Slow(data))
            if all(isinstance(record, (dict, list)) for record in slowly[0]):
                assert repr(slowly) == repr((records, error))
        with contextlib.suppress(ValueError, RecursionError):
            text = data.decode("utf-8", "replace")
            value = json.loads(text)
            tbmon.read_json(text, len(text) - len(text.lstrip()))  # or it is too deep for us
            known = (
                value.get("records")
                if isinstance(value, dict) and list(value) == ["records"]
                else value
            )
            assert not isinstance(known, list) or repr(records) == repr(known)

    return check


# What goes to the federation and comes from it

HASH, STAMP = "[0-9a-f]{64}", r"(20\d\d-\d\d-\d\dT\d\d:\d[05]):00\.000Z"
UUID = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
NOBODY = "node-00000000-0000-0000-0000-000000000000"
TIMES = ("<100ms", "100-500ms", "500ms-1s", "1-5s", "5-10s", "10-30s", "30s-1m", ">1m", "unknown")
STEPS = ("<1M", "1M-100M", "100M-1B", "1B-10B", "10B-100B", ">100B", "unknown")
MEMORY = ("<8MB", "8-16MB", "16-32MB", "32-128MB", ">128MB", "unknown")
LANGUAGES = ("rust", "javascript", "python", "other")


def one_of(words: Iterable[str]) -> str:
    return "(?:" + "|".join(map(re.escape, words)) + ")"


MEASURE = "|".join(
    f'"{name}":"{one_of(words)}"'
    for name, words in (
        ("executionTimeBucket", TIMES),
        ("gasUsedBucket", STEPS),
        ("memoryUsedBucket", MEMORY),
    )
)
ONE = {  # every message there can be, by its subject and type
    ("truebit.heartbeat", "heartbeat"): '"status":"(?:online|offline)"',
    ("truebit.nodes.joined", "node_joined"): '"status":"online"',
    ("truebit.nodes.left", "node_left"): '"status":"offline"',
    (
        "truebit.tasks.received",
        "task_received",
    ): f'"taskIdHash":"{HASH}","taskType":"{one_of(LANGUAGES)}"',
    (
        "truebit.tasks.completed",
        "task_completed",
    ): f'"taskIdHash":"{HASH}","taskType":"{one_of(LANGUAGES)}",'
    f'"status":"(?:completed|failed)","cached":(?:true|false|null),(?:{MEASURE})',
    (
        "truebit.invoices.created",
        "invoice_created",
    ): f'"invoiceIdHash":"{HASH}","stepsComputedBucket":"{one_of(STEPS)}"',
}
WHOLE = {
    subject: re.compile(
        rf'\{{"version":"1\.0","type":"{kind}","id":"[0-9a-f]{{32}}","nodeId":"(node-{UUID})",'
        rf'"timestamp":"{STAMP}","data":\{{{data}\}}\}}'.encode()
    )
    for (subject, kind), data in ONE.items()
}
PRESENCE = ("truebit.heartbeat", "truebit.nodes.joined", "truebit.nodes.left")


def is_message(subject: str, payload: bytes) -> bool:
    """The schema as one pattern over the bytes, and a stamp that is a date."""
    found = WHOLE[subject].fullmatch(payload) if subject in WHOLE else None
    if found is None or (found[1].decode() == NOBODY) == (subject in PRESENCE):
        return False
    try:
        datetime.strptime(found[2].decode(), "%Y-%m-%dT%H:%M")
    except ValueError:
        return False
    return True


def fuzz_gate(folder: Path) -> Check:
    """An input is a subject, a newline and a payload; the gate lets through what the schema has,
    and nothing else.
    """

    def check(data: bytes) -> None:
        subject, _, payload = data.partition(b"\n")
        name = subject.decode("utf-8", "replace")
        is_good = is_message(name, payload)
        assert (tbmon.refusal_of(name, payload) is None) == is_good
        found = re.search(rb'"timestamp":"([^"]*)"', payload)
        for at in (
            1_780_056_000_000,
            tbmon.parse_time(found[1].decode("utf-8", "replace")) or 0 if found else 0,
        ):
            counted = aggregator.judge(aggregator.Received(name, payload, at))
            if isinstance(counted, str):
                assert counted and len(counted) < 80
                continue
            assert (
                is_good
                and counted.window % 300_000 == 0
                and -600_000 <= at - counted.window <= 8 * 86_400_000
            )
            assert -(2**63) <= counted.key < 2**63 and bool(counted.node) == (name in PRESENCE)

    return check


def is_publication(payload: bytes) -> bool:
    """The schema of the aggregator's publication, of what JSON makes of the bytes."""
    try:
        message = json.loads(payload)
    except (ValueError, RecursionError):
        return False
    if len(payload) > 64 * 1024 or type(message) is not dict:
        return False
    data = message.get("data")
    texts = [message.get(name) for name in ("version", "type", "id", "timestamp")]
    head = len(message) == 5 and all(type(text) is str for text in texts)
    if not head or type(data) is not dict or texts[:2] != ["1.0", "network_stats"]:
        return False
    good = re.fullmatch("[0-9a-f]{32}", texts[2] or "") is not None and is_date(texts[3])
    return (
        good
        and set(data) == set(FIGURES)
        and all(one is None or FIGURES[name](one) for name, one in data.items())
    )


def is_date(text: object) -> bool:
    if type(text) is not str or not re.fullmatch(
        r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{3})?Z", text, re.ASCII
    ):
        return False
    try:
        datetime.strptime(text[:16], "%Y-%m-%dT%H:%M")
    except ValueError:
        return False
    return int(text[17:19]) <= 60


def counts(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**53


def percent(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 100


def spread(words: Sequence[str]) -> Callable[[Any], bool]:
    return lambda value: (
        type(value) is dict and set(value) <= set(words) and all(map(counts, value.values()))
    )


def handles(value: Any) -> bool:
    return (
        type(value) is list
        and len(value) <= 500
        and all(
            type(one) is dict
            and set(one) == {"handle", "seen"}
            and type(one["handle"]) is str
            and re.fullmatch("[0-9a-f]{16}", one["handle"])
            and one["seen"] in ("today", "yesterday")
            for one in value
        )
    )


FIGURES: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(
        (
            "activeNodes",
            "totalNodes",
            "totalTasks",
            "completedTasks",
            "failedTasks",
            "cachedTasks",
            "tasksLast24h",
            "totalInvoices",
            "invoicesLast24h",
        ),
        counts,
    ),
    "successRate": percent,
    "cacheHitRate": percent,
    "executionTimeDistribution": spread(TIMES),
    "gasUsageDistribution": spread(STEPS),
    "stepsComputedDistribution": spread(STEPS),
    "memoryUsedDistribution": spread(MEMORY),
    "taskTypeDistribution": spread(LANGUAGES),
    "peers": handles,
    "snapshotAt": is_date,
}


def publication() -> bytes:
    """A publication with everything in it."""
    data = {
        **{name: 120 for name, rule in FIGURES.items() if rule is counts},
        "successRate": 95,
        "cacheHitRate": 12.5,
        "executionTimeDistribution": dict.fromkeys(TIMES, 3),
        "gasUsageDistribution": dict.fromkeys(STEPS, 3),
        "stepsComputedDistribution": dict.fromkeys(STEPS, 3),
        "memoryUsedDistribution": dict.fromkeys(MEMORY, 1),
        "taskTypeDistribution": dict.fromkeys(LANGUAGES, 3),
        "snapshotAt": "2026-11-22T12:05:00.000Z",
        "peers": [
            {"handle": "0123456789abcdef", "seen": "today"},
            {"handle": "f" * 16, "seen": "yesterday"},
        ],
    }
    head = {
        "version": "1.0",
        "type": "network_stats",
        "id": "0" * 32,
        "timestamp": "2026-11-22T12:05:00.000Z",
    }
    return json.dumps({**head, "data": data}).encode()


def fuzz_publication(folder: Path) -> Check:
    store = tbmon.Store(folder / "publication.db", KEY)
    monitor = tbmon.Monitor(tbmon.Config(), store, tbmon.Redactor(KEY), None, threading.Event())
    dice = random.Random(5)

    def check(data: bytes) -> None:
        stats = tbmon.read_publication(data)
        assert (stats is not None) == is_publication(data)
        if stats is not None:
            assert stats == json.loads(data)["data"]
        if stats is None or dice.random() > 0.05:
            return
        assert tbmon.take_publication(monitor, data)
        assert json.loads(store.first("state", "network stats"))["stats"] == stats

    return check


def fuzz_counting(folder: Path) -> Check:
    """An input is messages with NUL between them: each counts once or is dropped once."""
    config = aggregator.Config(
        db_path=str(folder / "counting.db"), global_rate_limit=3, rate_limit_per_node=2
    )
    store = aggregator.Store(config)

    def check(data: bytes) -> None:
        dice, at = dice_of(data), 1_795_349_400_000
        messages = []
        for one in data.split(b"\0")[:8]:
            subject, _, payload = one.partition(b"\n")
            at += dice.choice((0, 0, 400, 1000))
            messages.append(aggregator.Received(subject.decode("utf-8", "replace"), payload, at))
        with store.db:
            for table in ("tally", "seen", "node", "present"):
                store.db.execute(f"DELETE FROM {table}")
        store.nodes = set()
        store.take(messages)
        dropped = sum(
            row[0] for row in store.db.execute("SELECT count FROM tally WHERE name = 'dropped'")
        )
        keys = store.db.execute("SELECT count(*) FROM seen").fetchone()[0]
        good = [one for one in messages if isinstance(aggregator.judge(one), aggregator.Counted)]
        named = sum(one.subject in PRESENCE for one in good)
        assert (
            keys <= len(good) - named
            and len(messages) - len(good) <= dropped <= len(messages) - keys
        )
        assert store.db.execute("SELECT count(*) FROM node").fetchone()[0] <= named
        totals = Counter(
            {
                row[0]: row[1]
                for row in store.db.execute(
                    "SELECT name, sum(count) FROM tally WHERE at = 0 GROUP BY name"
                )
            }
        )
        finished = totals["task_completed.status"]
        assert (
            keys
            == totals["task_received.taskType"]
            + finished
            + totals["invoice_created.stepsComputedBucket"]
        )
        figures = aggregator.figures_of(
            {(name, value): count for name, value, count in store.get("totals")}, {}, 1
        )
        assert figures["completedTasks"] + figures["failedTasks"] == finished

    return check


# What browsers and scripts send


def fuzz_query(folder: Path) -> Check:
    known = [route.query for route in tbmon.ROUTES if route.query]

    def check(data: bytes) -> None:
        text = data.decode("latin-1")
        parameters = known[zlib.crc32(data) % len(known)]
        for name in ("limit", "cursor", "since", "type", "span"):
            if name in parameters and (value := parameters[name].read(text)) is not None:
                check_parameter(parameters[name].schema, value)
        try:
            query = tbmon.read_query(text, parameters)
        except tbmon.Refusal as refusal:
            assert refusal.status == 400
            return
        for name, value in query.items():
            check_parameter(parameters[name].schema, value)
        assert set(query) == {
            name for name, _ in urllib.parse.parse_qsl(text, keep_blank_values=True)
        }

    return check


def check_parameter(schema: Mapping[str, Any], value: Any) -> None:
    """What is accepted is what the OpenAPI document promises."""
    if isinstance(value, tuple):
        place, number = value
        read = tbmon.read_log_cursor if isinstance(place, bytes) else tbmon.read_cursor
        assert read(tbmon.cursor_text(place, number)) == value
    elif schema.get("type") == "integer":
        assert type(value) is int and schema["minimum"] <= value <= schema["maximum"]
    elif "enum" in schema:
        assert value in schema["enum"]
    elif isinstance(value, str):
        assert "\0" not in value
        value.encode()
    else:
        assert type(value) is int and 0 <= value < 2**63


def environ_of(data: bytes) -> dict[str, Any]:
    """The request that an input writes down: a request line, headers, an empty line, a body."""
    head, _, body = data.partition(b"\n\n")
    first, *rest = head.decode("latin-1").split("\n")
    method, _, target = first.partition(" ")
    path, _, query = target.partition("?")
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method or "GET",
        "SCRIPT_NAME": "",
        "PATH_INFO": path,
        "QUERY_STRING": query,
        "SERVER_NAME": "x",
        "SERVER_PORT": "80",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "127.0.0.1",
        "HTTP_HOST": "localhost",
        "wsgi.input": io.BytesIO(body),
        "wsgi.errors": io.StringIO(),
        "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0),
        "wsgi.multithread": True,
        "CONTENT_LENGTH": str(len(body)),
    }
    for line in rest:
        name, _, value = line.partition(":")
        name = name.strip().upper().replace("-", "_")
        if name not in ("CONTENT_LENGTH", "TRANSFER_ENCODING"):  # waitress reads those two
            environ[name if name == "CONTENT_TYPE" else f"HTTP_{name}"] = value.strip("\t ")
    return environ


class Site:
    """The whole API over a store with made-up data, without a server."""

    def __init__(self, folder: Path) -> None:
        self.store = store = tbmon.Store(folder / "site.db", KEY)
        config = tbmon.Config(
            api_rate_limit=0, trusted_proxy="127.0.0.0/8", allowed_origins="https://a.example"
        )
        monitor = tbmon.Monitor(
            config, store, tbmon.Redactor(KEY), None, threading.Event(), demo=True
        )
        recorder = tbmon.Recorder(monitor, tbmon.FILES)
        recorder.oldest_at = 0
        recorder.feed("file", node_samples.lines(WHOLE_LOG))
        recorder.commit()
        monitor.outbox = tbmon.Outbox(
            store,
            tbmon.SharingKeys(folder),
            monitor.now,
            random.Random(5),
            config.federation_nats_url,
        )
        monitor.federation = tbmon.Federation(
            config, monitor.outbox, lambda payload: True, lambda: True
        )
        self.app = tbmon.build_app(tbmon.Api(monitor, SECRETS))
        self.monitor = monitor

    def ask(self, environ: dict[str, Any]) -> tuple[int, list[tuple[str, str]], bytes]:
        told: list[Any] = []
        answer = self.app(
            environ, lambda status, headers, exc_info=None: told.append((status, headers))
        )
        is_stream = not isinstance(answer, (list, tuple))
        body = b"" if is_stream else b"".join(answer)
        if hasattr(answer, "close"):
            answer.close()
        return int(told[-1][0].split()[0]), told[-1][1], body


def fuzz_request(folder: Path) -> Check:
    site = Site(folder)

    def check(data: bytes) -> None:
        environ = environ_of(data)
        method = environ["REQUEST_METHOD"]
        status, headers, body = site.ask(environ)
        assert status in STATUSES, (status, body[:300])
        named = dict(headers)
        assert all(
            "\n" not in value and "\r" not in value and "\0" not in value for _, value in headers
        )
        if (
            named.get("Content-Type", "").startswith("application/json")
            and method != "HEAD"
            and body
        ):
            plain = gzip.decompress(body) if "Content-Encoding" in named else body
            said = json.loads(plain)
            assert status < 400 or set(said) <= {"error", "details"}
            assert not [one for one in WALLETS if one in plain.lower() and one not in data.lower()]
        assert not site.monitor.outbox or not site.monitor.outbox.sharing.enabled

    return check


def fuzz_body(folder: Path) -> Check:
    shapes = {route.body for route in tbmon.ROUTES if route.body}

    def check(data: bytes) -> None:
        kind, _, body = data.partition(b"\n")
        for shape in shapes:
            environ = {"CONTENT_TYPE": kind.decode("latin-1"), "wsgi.input": io.BytesIO(body)}
            try:
                read = tbmon.read_body(environ, shape)
            except tbmon.Refusal as refusal:
                assert refusal.status in (400, 415)
                continue
            assert b"json" in kind.lower() and json.loads(body) == read
            if shape == "LoginBody":
                assert set(read) == {"secret"} and type(read["secret"]) is str
                continue
            assert set(read) <= {"privacyLevel", "shareTasks", "shareStats", "natsServers"}
            assert read.get("privacyLevel", "minimal") in ("minimal", "balanced", "maximum")
            assert all(type(one) is str for one in read.get("natsServers", []))
            for url in read.get("natsServers", []):
                with contextlib.suppress(ValueError):
                    tbmon.check_server(url)

    return check


def fuzz_headers(folder: Path) -> Check:
    """Hosts, addresses, cookies and origins, alone."""
    guard = tbmon.Guard(Site(folder).monitor, SECRETS)

    def check(data: bytes) -> None:
        text = data.decode("latin-1")
        if tbmon.is_our_host(text, ()):
            name = re.sub(r":\d{1,5}$", "", text).lower().removesuffix(".")
            assert (
                "." not in name
                or name.endswith("localhost")
                or re.fullmatch(r"[0-9.]+|\[[0-9a-f:.]+\]", name)
            )
        environ = {
            "REMOTE_ADDR": "127.0.0.1",
            "HTTP_X_FORWARDED_FOR": text,
            "HTTP_COOKIE": text,
            "HTTP_HOST": text,
            "REQUEST_METHOD": "GET",
            "HTTP_ORIGIN": text,
            "HTTP_AUTHORIZATION": text,
        }
        address = tbmon.client_address(environ, guard.proxies)
        assert re.fullmatch(r"[0-9a-f.:/]+", address)
        caller = guard.find_caller(environ, "")
        assert caller.session is None and not guard.holds("private", caller)
        with contextlib.suppress(tbmon.Refusal):
            assert guard.check_origin(environ) in ("", "https://a.example")

    return check


# What the engine answers


class Answered:
    """An answer that came: its bytes, and what its headers say."""

    def __init__(self, data: bytes) -> None:
        self.raw, self.data = io.BytesIO(data), data
        self.headers = {"X-Docker-Container-Path-Stat": data.decode("latin-1")}

    def json(self) -> Any:
        return json.loads(self.data)

    def close(self) -> None:
        pass


class Engine(tbmon.DockerEngine):
    """The client, to which the engine answers with an input."""

    def __init__(self) -> None:
        self.answer, self.before = Answered(b""), {}
        self.archives = []

    def request(self, *given: Any, **named: Any) -> Any:
        return self.answer


def fuzz_engine(folder: Path) -> Check:
    engine = Engine()
    asked: list[Callable[[], object]] = [
        lambda: engine.inspect("runner-node"),
        lambda: engine.stats("runner-node"),
        lambda: engine.stat("runner-node", tbmon.CACHE_PATH),
        lambda: list_tar(engine),
        lambda: tbmon.read_module(engine, "runner-node", tbmon.CACHE_PATH, 1000),
    ]

    def check(data: bytes) -> None:
        for number, ask in enumerate(asked):
            packed = base64.b64encode(data[1:]) if number == 2 else data[1:]
            engine.answer = Answered(packed)
            with contextlib.suppress(tbmon.DockerError):
                found = ask()
                assert not isinstance(found, tbmon.Container) or found.name == "runner-node"
                assert not isinstance(found, bytes) or len(found) <= 1000

    return check


def list_tar(engine: Engine) -> list[str]:
    with engine.archive("runner-node", tbmon.CACHE_PATH) as tar:
        return [member.name for member in tar or () if member.isfile() or member.issym()]


def tar_of(*names: str, **headers: str) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for number, name in enumerate(names):
            member = tarfile.TarInfo(name)
            member.size, member.pax_headers = (
                20 * number,
                {"mtime": "1.5", **headers} if number % 2 else {},
            )
            tar.addfile(member, io.BytesIO(b"y" * member.size))
        link = tarfile.TarInfo("cache/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../etc"
        tar.addfile(link)
    return packed.getvalue().rstrip(b"\0") + bytes(1024)


# Seeds

INSPECT = {
    "Id": "f" * 64,
    "Name": "/runner-node",
    "State": {"Status": "running", "Running": True, "StartedAt": "0001-01-01T00:00:00Z"},
    "Created": "2025-11-24T13:40:02.123456789Z",
    "Config": {"Image": "x", "Tty": False},
    "RestartCount": 3,
    "HostConfig": {"LogConfig": {"Type": "local"}},
}
USED = {
    "memory_stats": {"usage": 10**9, "limit": 10**10, "stats": {"inactive_file": 5}},
    "cpu_stats": {
        "cpu_usage": {"total_usage": 10**12},
        "system_cpu_usage": 10**13,
        "online_cpus": 4,
    },
}
PLACE = {
    "name": "cache",
    "size": 4096,
    "mode": 2147484141,
    "mtime": "2025-11-24T13:40:02Z",
    "linkTarget": "/x",
}
LINES = WHOLE_LOG.split(b"\n")
SPARSE = (("size", "1"), ("map", "0,1"), ("realsize", "9"), ("major", "1"))
MESSAGES = [
    b"\n".join((subject.encode(), one))
    for one in WIRE
    for (subject, kind) in ONE
    if f'"{kind}"'.encode() in one
]
TEXTS = [note["line"].encode() for note in node_samples.NOTES]
REQUESTS = [
    (
        b"GET /api/logs?limit=5&type=invoice&level=info\nX-Task-Data-Password: pass "
        b"word\nAccept-Encoding: gzip"
    ),
    b"GET /api/logs?search=%25a&since=2025-11-24T00:00:00Z&cursor="
    + b"0" * 32
    + b"-7\nX-Task-Data-Password: pass word",
    (
        b'GET /api/tasks?status=completed&cursor=WzEsIDJd&offset=3&format=csv\nIf-None-Match: "x", '
        b'W/"y"'
    ),
    b"GET /api/tasks/3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c/data\nX-Task-Data-Password: pass word",
    (
        b"GET /api/invoices?limit=1&matched=true\nOrigin: https://a.example\nSec-Fetch-Site: "
        b"cross-site"
    ),
    b"POST /api/auth/login\nContent-Type: application/json\nCookie: tbmon-01234567=abc; b=c\n\n"
    b'{"secret": "pass word"}',
    b"PUT /api/federation/settings\nContent-Type: application/json\nX-Task-Data-Password: pass "
    b"word\n\n"
    b'{"privacyLevel": "minimal", "shareTasks": true, "shareStats": false, "natsServers": '
    b'["nats://127.0.0.1:4222"]}',
    (
        b"POST /api/federation/enable\nHost: localhost:80\nAuthorization: Bearer "
        b"x\nX-Forwarded-For: "
        b"1.2.3.4, ::1"
    ),
    b"GET /metrics\nX-Stream-Token: x\nAccept: text/csv",
    b"GET /\nCookie: tbmon-theme=dark",
    b"OPTIONS /api/tasks\nOrigin: https://a.example\nAccess-Control-Request-Method: GET",
    *(
        b"%b %b" % (route.method.encode(), route.path.encode())
        for route in tbmon.ROUTES
        if "events" not in route.path
    ),
]
SCHEMA_WORDS = [
    *(word.encode() for word in (*TIMES, *STEPS, *MEMORY, *LANGUAGES, *FIGURES)),
    NOBODY.encode(),
    b"0x",
    b"true",
]
SUBJECTS = [subject.encode() + b"\n" for subject, _ in ONE]
HEADERS = [
    HEADER.encode(),
    *(HEADER.encode().replace(b"0x" + OWN.encode(), other) for other in (b"0xabc", b"A" * 40)),
]
NODE_WORDS = [
    *BRACKETS,
    *VALUES,
    *NUMBERS,
    *ODD,
    *ADDRESSES,
    *HEADERS,
    b"\n" + HEADERS[0],
    b"runner | ",
    b"2025-11-24 13:40:60 ",
    b"2025-11-24T14:31:11.123456789Z ",
    b"Command execution stdout: ",
    b"Command execution stderr: ",
    b"(node:7) ",
    b"Execution 3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c failed",
    b"executionId: ",
    b"wallet:",
    b"\r\n",
    b"\xc2\x9b",
    b"InvoiceSubscriber",
    b"Task ",
    b" downloaded successfully",
    b"Starting task execution",
    b"lineItem",
]
TIME_WORDS = [b"Z", b"T", b"+00:00", b"-2359", b".123456789", b"60", b"29", b" ", *NUMBERS, *ODD]
WEB_WORDS = [
    *BRACKETS,
    *NUMBERS,
    *ODD,
    b"&",
    b"=",
    b"?limit=",
    b"%",
    b"..",
    b"/",
    b";",
    b"\n\n",
    b"Cookie: ",
    b"Host: ",
    b"application/json",
    b"[::1]",
    b"127.0.0.1",
    b"localhost",
    b".",
    b"nats://",
    b"wss://user@h:1/",
]
TAR_WORDS = [
    *NUMBERS,
    *ODD,
    b"20 GNU.sparse.size=x\n",
    b"22 GNU.sparse.major=1\n",
    b"x",
    b"g",
    b"L",
    b"S",
    b"\0" * 8,
    b"ustar",
]

TARGETS: dict[str, Target] = {
    "frames": Target(
        fuzz_frames,
        [
            b"-" + framed(LINES[:5]),
            b"t" + framed(LINES[:5], tty=True),
            b"-" + framed([b"x" * 40_000, b"y", b"z" * 16_384]),
            b"-" + framed([b"", b"a"]) + frame(3, b"error"),
            b"t" + framed([b"q" * 100] * 5, tty=True),
        ],
        [
            *NODE_WORDS,
            frame(1, b""),
            frame(2, b"x"),
            frame(1, b"2025-11-24T14:31:11.123456789Z z"),
            b"\x01\0\0\0\0\0\0",
        ],
        30,
    ),
    "lines": Target(
        fuzz_lines,
        [b"\n".join(LINES[at : at + 12]) for at in range(0, len(LINES), 12)] + TEXTS,
        NODE_WORDS,
        100,
    ),
    "payload": Target(fuzz_payload, TEXTS, NODE_WORDS, 100),
    "time": Target(
        fuzz_time,
        [
            b"2025-11-24 13:40:05",
            b"2025-11-24T13:55:33.912Z",
            b"1763993399120",
            b"2100-02-29T23:59:60+14:00",
        ],
        TIME_WORDS,
        150,
    ),
    "redactor": Target(
        fuzz_redactor, [*TEXTS, *ADDRESSES, b"".join(ADDRESSES), b"0x wallet:ab"], NODE_WORDS, 80
    ),
    "trust": Target(
        fuzz_trust,
        [bytes(range(0, 250, 3)), b"\x01" * 40, b"\x91" * 30, b"\x02\xf0" * 20],
        [b"\xff", b"\x51" * 25],
        50,
    ),
    "recorder": Target(
        fuzz_recorder,
        [b"\n".join(LINES[at : at + 15]) for at in range(0, len(LINES), 10)],
        NODE_WORDS,
        5,
    ),
    "eventdb": Target(
        fuzz_eventdb,
        [
            json.dumps(node_samples.RECORDS[:2]).encode(),
            json.dumps({"records": node_samples.RECORDS[2:4]}).encode(),
            (SAMPLES / "composed-eventdb.json").read_bytes(),
            b'{"records": [{}, [1, {"a": "]"}], {}]}',
        ],
        [*NODE_WORDS, b'{"records": [', b"},{", b"]}"],
        50,
    ),
    "gate": Target(
        fuzz_gate, MESSAGES, [*SCHEMA_WORDS, *SUBJECTS, *BRACKETS, *NUMBERS, *VALUES, *ODD], 150
    ),
    "publication": Target(
        fuzz_publication, [publication()], [*SCHEMA_WORDS, *BRACKETS, *NUMBERS, *VALUES, *ODD], 60
    ),
    "counting": Target(
        fuzz_counting,
        [b"\0".join(MESSAGES[at:] + MESSAGES[:at]) for at in range(3)],
        [b"\0", *SCHEMA_WORDS, *SUBJECTS, *BRACKETS],
        6,
    ),
    "query": Target(
        fuzz_query,
        [one.partition(b"?")[2].partition(b"\n")[0] for one in REQUESTS[:5]] + [b"WzEsIDJd", b"7"],
        WEB_WORDS,
        120,
    ),
    "body": Target(
        fuzz_body,
        [b"application/json\n" + one.partition(b"\n\n")[2] for one in REQUESTS[5:7]],
        [*WEB_WORDS, *VALUES, b"natsServers", b"secret", b"minimal"],
        70,
    ),
    "headers": Target(
        fuzz_headers,
        [
            b"localhost:8090",
            b"1.2.3.4, ::1, 127.0.0.1",
            b"a=b; tbmon-01234567=x",
            b"https://a.example",
            b"[::1]:80",
            b"Bearer pass word",
        ],
        WEB_WORDS,
        30,
    ),
    "request": Target(fuzz_request, REQUESTS, WEB_WORDS, 20),
    "engine": Target(
        fuzz_engine,
        [b"-" + json.dumps(one).encode() for one in (INSPECT, USED, PLACE)]
        + [b"-" + tar_of("cache/", "cache/1.2.3/", "cache/1.2.3/" + "é" * 120)]
        + [b"-" + tar_of("a", "b", **{f"GNU.sparse.{name}": value}) for name, value in SPARSE],
        [*TAR_WORDS, *BRACKETS, *VALUES],
        17,
    ),
}
