"""What is asked of tbmon needs no more memory than deploy/ gives it, whatever the node has said.

Each program runs in a memory cgroup of 192 MiB, as tbmon.service does, where one can be made; the
most it ever held (VmHWM) may be 128 MiB in any case.
"""

from __future__ import annotations

import contextlib
import csv
import gzip
import http.client
import io
import json
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support import contract
from support.asking import PASSWORD, Answer, ask, elsewhere
from support.limits import PEAK_KIB, Limited, service
from support.machine import wait_for
from support.node_words import IDS, START, header
from support.programs import write
from support.sharing import publication
from support.streams import OPEN, Stream

import tbmon


def nested(depth: int) -> str:
    """`depth` lists, one in the other."""
    return "[" * depth + "]" * depth


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    with service(tmp_path / "limited") as made:
        yield made


def logs(program: Limited, query: str = "") -> Answer:
    return ask(program, f"/api/logs{query}", password=PASSWORD)


# Depth


DEEP = [  # as deep as Python reads and cannot write, as it cannot even read, and just too deep
    *(f'deep {number} {{"a":{nested(depth)}}}' for number, depth in enumerate((980, 990, 5000))),
    "objects " + '{"a":' * 980 + "1" + "}" * 980,
    f'just too deep {{"a":{nested(tbmon.PAYLOAD_DEPTH)}}}',
]
SHALLOW = f'just deep enough {{"a":{nested(tbmon.PAYLOAD_DEPTH - 1)}}}'


def test_a_line_too_deep_to_be_written_is_shown_as_text(limited: Limited) -> None:
    said = [*DEEP, SHALLOW, "the last"]
    write(limited, header("Starting services", START))
    limited.start()
    wait_for(lambda: logs(limited).json["logs"])
    with Stream(limited, OPEN) as stream:
        write(limited, *(header(words, START + 1 + at) for at, words in enumerate(said)))
        wait_for(lambda: [one for one in stream.of("log") if one["message"] == said[-1]])
        told = {one["message"]: one["data"] for one in stream.of("log")}
    answer = logs(limited)
    assert answer.status == 200, answer.body
    shown = {row["message"]: row["data"] for row in answer.json["logs"]}
    for rows in (shown, told):
        assert {words: rows[words] for words in DEEP} == dict.fromkeys(DEEP)
        assert rows[SHALLOW] == {"a": json.loads(nested(tbmon.PAYLOAD_DEPTH - 1))}
    assert "Traceback" not in limited.log.read_text()


# Width


def wide(number: int) -> str:
    """59 kB whose values take some twenty times as much memory as their text."""
    kinds = (
        "[],",
        "{},",
        nested(tbmon.PAYLOAD_DEPTH - 2) + ",",
        '{"a":1},',
        "1.5,",
        '"\\u0001",',
    )
    kind = kinds[number % len(kinds)]
    return f'wide {number:03} {{"a":[{kind * (59_000 // len(kind))}0]}}'


def fill(program: Limited, words: list[str], last: str) -> None:
    """Let the program read these words in a run of its own, which is not measured."""
    write(program, *(header(one, START + at) for at, one in enumerate(["Starting", *words, last])))
    groups, program.groups = program.groups, ()
    program.start()
    wait_for(lambda: logs(program, f"?limit=1&search={last}").json["logs"], 60)
    assert program.end() == 0
    program.groups = groups


def take(program: Limited, path: str, method: str = "GET", **headers: str) -> Answer:
    """Ask without comparing the answer with its schema, which takes seconds for a large one."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=60, source_address=elsewhere()
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, headers={"X-Task-Data-Password": PASSWORD, **named})
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return Answer(answer.status, answer.headers, body)


def at_once(ask_one: Callable[[int], Answer], count: int) -> list[Answer]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(ask_one, range(count)))


@pytest.mark.parametrize("count", [1, 6])
def test_pages_of_wide_entries_are_made_entry_by_entry(limited: Limited, count: int) -> None:
    fill(limited, [wide(number) for number in range(100)], "end-of-words")
    limited.start()
    pages = at_once(lambda number: take(limited, "/api/logs?limit=100"), count)
    assert {page.status for page in pages} == {200}
    rows = pages[0].json["logs"]
    assert {row["message"]: row["data"] for row in rows[1:]} == {
        wide(number): json.loads(wide(number)[9:]) for number in range(101 - len(rows), 100)
    }
    assert sum(len(row["message"]) for row in rows) > tbmon.PAGE_BYTES - 60_000
    assert limited.peak_kib() <= PEAK_KIB


# Lists: all rows of one at once would be far more than there is


INVOICES, ITEMS, PEERS = 1000, 200, 500


def invoice(number: int) -> tbmon.Event:
    item = {
        "operation": "charge",
        "account": "wallet:" + "ab" * 8,
        "steps": 2**60,
        "memory_peak": 9,
    }
    fields = {"invoice_id": f"{number:040}", "task_id": None, "line_items": [item] * ITEMS}
    return tbmon.Event("invoice", IDS[0], {**fields, "at": number, "step_gas_price": 2.0})


def snapshot(number: int) -> bytes:
    peers = [{"handle": f"{number:08x}{peer:08x}", "seen": "today"} for peer in range(PEERS)]
    return publication(peers=peers, snapshotAt=tbmon.utc(START * 1000 + number * 300_000))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Limited]:
    """A program, not running, with as many invoices and snapshots as one answer may hold, each as
    large as it may be, and wide log entries.
    """
    with service(tmp_path_factory.mktemp("full")) as made:
        fill(made, [wide(number) for number in range(100)], "end-of-words")
        key = (made.folder / "local.key").read_bytes()
        with contextlib.closing(tbmon.Store(Path(made.env["DB_PATH"]), key)) as store:
            monitor = tbmon.Monitor(
                tbmon.Config(), store, tbmon.Redactor(key), None, threading.Event()
            )
            for number in range(tbmon.SNAPSHOTS):
                assert tbmon.take_publication(monitor, snapshot(number))
            with store.write() as db:
                for number in range(INVOICES):
                    store.save_invoice(db, invoice(number), confirmed=True)
        yield made


@pytest.fixture
def running(full: Limited) -> Iterator[Limited]:
    """The same, started anew, so that its peak is this test's."""
    full.start()
    yield full
    assert full.end() == 0


LARGE = {
    "/api/invoices?limit=1000": "invoices",
    "/api/federation/stats": "history",
    "/api/federation/messages": "messages",
    "/api/logs?limit=1000": "logs",
}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("path", LARGE)
def test_a_large_list_is_sent_while_it_is_made(running: Limited, path: str, packed: bool) -> None:
    answer = take(running, path, Accept_Encoding="gzip" if packed else "identity")
    assert (answer.status, answer.headers["Content-Length"]) == (200, None)
    assert answer.headers["Content-Encoding"] == ("gzip" if packed else None)
    rows = json.loads(gzip.decompress(answer.body) if packed else answer.body)[LARGE[path]]
    counts = {"invoices": INVOICES, "history": tbmon.SNAPSHOTS, "messages": 100}
    assert len(rows) == counts.get(LARGE[path], len(rows)) and len(rows) > 50
    shape = {"invoices": "Invoice", "history": "NetworkStats", "messages": "ReceivedMessage"}
    check = contract.validator(f"#/components/schemas/{shape.get(LARGE[path], 'Entry')}")
    assert not list(check.iter_errors(rows[0]))
    assert running.peak_kib() <= PEAK_KIB


def test_several_large_lists_at_once_stay_within_the_bound(running: Limited) -> None:
    paths = [*LARGE, "/api/federation/stats", "/api/invoices?limit=1000"]
    answers = at_once(lambda number: take(running, paths[number], Accept_Encoding="gzip"), 6)
    assert {answer.status for answer in answers} == {200}
    assert running.peak_kib() <= PEAK_KIB


@pytest.mark.parametrize("path", LARGE)
def test_a_large_list_has_a_mark_and_is_not_sent_again(running: Limited, path: str) -> None:
    whole = take(running, path)
    tag = whole.headers["ETag"]
    for method in ("GET", "HEAD"):
        known = take(running, path, method, If_None_Match=tag)
        assert (known.status, known.body, known.headers["ETag"]) == (304, b"", tag)
        other = take(running, path, method, If_None_Match='"other"', Accept_Encoding="gzip")
        assert (other.status, other.headers["ETag"]) == (200, tag)
        assert other.headers["Content-Encoding"] == "gzip"
        assert bool(other.body) == (method == "GET")
    head = take(running, path, "HEAD")
    assert {**dict(head.headers), "Date": ""} == {**dict(whole.headers), "Date": ""}


def test_head_has_no_body_at_all(running: Limited) -> None:
    """Not even the last chunk, which http.client would not show."""
    with socket.create_connection(("127.0.0.1", running.port), 10) as connection:
        connection.sendall(b"HEAD /api/federation/stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = b"".join(iter(lambda: connection.recv(65536), b""))
    assert got.endswith(b"\r\n\r\n") and got.count(b"\r\n\r\n") == 1


def test_the_mark_of_a_large_list_changes_with_any_row(full: Limited) -> None:
    path, tags = "/api/invoices?limit=1000", set[str | None]()
    for price in (2.0, 3.0, 2.0):
        with contextlib.closing(sqlite3.connect(full.env["DB_PATH"])) as db, db:
            db.execute("UPDATE invoice SET step_gas_price = ? WHERE id = 1", (price,))
        full.start()
        tags.add(take(full, path).headers["ETag"])
        assert full.end() == 0
    assert len(tags) == 2


def test_a_large_page_as_csv_is_the_same_rows(running: Limited) -> None:
    path = "/api/invoices?limit=1000"
    as_csv, as_json = take(running, path, Accept="text/csv"), take(running, path)
    assert as_csv.headers["Content-Length"] is None and len(as_csv.body) > tbmon.LIST_BYTES
    assert as_csv.headers["ETag"] != as_json.headers["ETag"]
    rows = list(csv.DictReader(io.StringIO(as_csv.body.decode(), newline="")))
    assert [row["id"] for row in rows] == [str(row["id"]) for row in as_json.json["invoices"]]
    assert running.peak_kib() <= PEAK_KIB


def deaf(program: Limited, path: str) -> socket.socket:
    """A client that asks and takes nothing of the answer."""
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.settimeout(10)
    made.bind(elsewhere())
    made.connect(("127.0.0.1", program.port))
    made.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return made


def test_who_does_not_read_takes_a_place_for_seconds_only(running: Limited) -> None:
    path = "/api/federation/stats"
    with contextlib.ExitStack() as stack:
        for _ in range(tbmon.LARGE_ANSWERS + 4):
            stack.enter_context(deaf(running, path))
        refused = wait_for(lambda: (one := take(running, path)).status == 503 and one)
        assert refused.headers["Retry-After"] and "large answers" in refused.json["error"]
        assert ask(running, "/api/tasks").status == 200  # a small one needs no place
        begun = time.monotonic()
        wait_for(lambda: take(running, path).status == 200)
        assert time.monotonic() - begun < tbmon.SLOW_S / 2
    assert running.peak_kib() <= PEAK_KIB


def test_a_list_that_cannot_be_read_to_its_end_is_seen_to_be_cut(running: Limited) -> None:
    def rename(old: str, new: str) -> None:
        with contextlib.closing(sqlite3.connect(running.env["DB_PATH"], timeout=10)) as db:
            db.execute(f"ALTER TABLE {old} RENAME TO {new}")

    with socket.create_connection(("127.0.0.1", running.port), 30) as connection:
        connection.sendall(b"GET /api/federation/stats HTTP/1.1\r\nHost: localhost\r\n\r\n")
        got = connection.recv(1000)
        rename("network_stats", "elsewhere")
        while chunk := connection.recv(2**20):
            got += chunk
    rename("elsewhere", "network_stats")
    assert got.startswith(b"HTTP/1.1 200") and not got.endswith(b"\r\n0\r\n\r\n")
    assert "an answer was cut: the database cannot be read now" in running.log.read_text()
    assert take(running, "/api/federation/stats").status == 200
