"""The lists over real HTTP: filters, pages, CSV, what is unchanged or compressed; and the invoices'
sums.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from support.asking import PASSWORD, Answer, ask, fetch
from support.machine import wait_for
from support.node_words import HASH, HUGE, REQUESTER, START, WALLET, at, header, line_item, received
from support.programs import Program, end, over_files, write

import tbmon

IDS = [f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(12)]
STRANGER = "99999999-5b7a-4c11-9a60-0d5e8f7a1b2c"  # an execution that only invoices know
FORMULA = f"-1+2_{HASH}".replace("+", ":")  # a task id that a spreadsheet would compute
NEEDLES = [
    "100%",
    "%",
    "a_b",
    "_",
    "Wow!",
    "!%",
    "!_",
    "\\",
    "'",
    '"--',
    "Größe",
    "größe",
    "ÄÖ",
    "日本",
    "🔑",
    "a+b&c=d",
]
DECOYS = ["100 percent", "aXb", "wow", "grosse", "äö"]


def bill(
    number: str, name: str | None, operation: str, steps: int, price: float, when: str | None = None
) -> str:
    """An invoice as the node writes it; that of another's operation names no wallet of ours."""
    item = line_item(operation, REQUESTER if operation == "charge" else WALLET, steps, 88)
    body = {"type": "invoice", "invoiceId": number, "stepGasPrice": price, "lineItem": [item]}
    told = {"executionId": name, "taskCreated_timeStamp": when}
    return json.dumps({**body, **{key: value for key, value in told.items() if value is not None}})


LANGUAGES = ["js", "js", "py", "rs", "cpp", "c", "api", "js", "zz", "js", "js", "js"]
ENDS = {**dict.fromkeys((0, 1, 3, 5, 7), "completed"), 2: "failed: gas", 4: "failed: stack"}
EDGE, HALF = "2026-01-31T23:59:59.999Z", 2**59 + 3
BILLS = [  # in the log
    bill("700", IDS[0], "pay", HUGE, 3, EDGE),
    bill("701", IDS[1], "pay", 2 * HALF, 0.5, "2026-02-01T00:30:00+01:00"),  # still January, in UTC
    bill("702", IDS[2], "penalty", HUGE, 7, "2026-01-15T00:00:00Z"),
    bill("703", IDS[3], "pay", 9, 0.5, "2026-02-01T00:00:00.000Z"),
    bill("704", STRANGER, "pay", HUGE, 1, "2026-02-28T23:59:59Z"),
    bill("-705", IDS[4], "penalty", 10, 0.25, "2026-02-14T12:00:00Z"),
    bill("706", None, "charge", 11, 2, "2026-02-14T12:00:00Z"),
]
CONFIRMED = [  # in the event database
    bill("700", IDS[0], "pay", HUGE, 3, EDGE),
    bill("707", STRANGER, "pay", 5, 2),
    bill("708", None, "charge", 2**40, 1),
]


def story() -> Iterator[str]:
    """Tasks, invoices, and messages to be searched, a second apart."""
    for number, (name, language) in enumerate(zip(IDS, LANGUAGES, strict=True)):
        task = f"{FORMULA}" if number == 11 else f"{language}_{HASH}"
        yield header(
            received(name, language, taskId=task, limits={"gas": str(HUGE)}), START + number
        )
        if number in ENDS:
            yield header(
                f"Execution {name} {ENDS[number]}",
                START + 20 + number,
                "error" if number == 2 else "info",
            )
    yield header(f"Starting task execution {IDS[9]}", START + 40)
    for number, text in enumerate(BILLS):
        yield header(f"InvoiceSubscriber got {text}", START + 50 + number)
    for number, words in enumerate((*NEEDLES, *DECOYS)):
        yield header(f"needle <{words}> end", START + 70 + number, "warn")


def name_of(path: str) -> str:
    """What a list's answer calls its rows."""
    last = path.partition("?")[0].rpartition("/")[2]
    return {"audit-log": "entries"}.get(last, last)


def listed(program: Program, path: str, **query: str) -> list[dict[str, Any]]:
    """All rows of a list, in one page."""
    asked = urllib.parse.urlencode({"limit": "1000", **query})
    answer = ask(program, f"{path}?{asked}", password=PASSWORD)
    assert (answer.status, answer.json["pagination"]["hasMore"]) == (200, False), answer.body[:300]
    rows: list[dict[str, Any]] = answer.json[name_of(path)]
    return rows


def followed(
    program: Program, path: str, query: str, between: Callable[[], None] = lambda: None
) -> list[Any]:
    """The pages of a list, by its cursors; `between` two of them something may happen."""
    pages, asked = [], query
    while asked:
        answer = ask(program, f"{path}?{asked}", password=PASSWORD)
        assert answer.status == 200, answer.body
        following = answer.json["pagination"]["next"]
        assert answer.json["pagination"]["hasMore"] == (following is not None)
        pages.append(answer.json[name_of(path)])
        asked = following and f"{query}&cursor={following}"
        between()
    return pages


def refused(program: Program) -> bool:
    """Add an entry to the audit log."""
    return ask(program, "/api/audit-log", password="wrong").status == 401


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that has read `story` and the event database, and whose node does nothing more."""
    program = over_files(tmp_path_factory.mktemp("lists"))
    records = [
        {"messageId": f"m{number}", "payload": json.loads(text)}
        for number, text in enumerate(CONFIRMED)
    ]
    (Path(program.env["LOG_DIR"]) / "a-eventDB.json").write_text(json.dumps({"records": records}))
    write(program, *story())
    program.start()
    wait_for(
        lambda: (
            len(listed(program, "/api/invoices")) == 9
            and len(listed(program, "/api/tasks")) == len(IDS)
        )
    )
    wait_for(lambda: len(listed(program, "/api/logs", type="info")) == len(NEEDLES) + len(DECOYS))
    wait_for(
        lambda: (program.get("/api/status")[1]["verdict"] or {}).get("state") == "degraded"
    )  # its last verdict
    wait_for(
        lambda: (
            refused(program)
            and len({row["timestamp"] for row in listed(program, "/api/audit-log")}) > 3
        )
    )
    yield program
    end(program)


# Filters: each list against its own rows, unfiltered

SINCE, UNTIL = "2026-01-31T23:59:59.999Z", "2026-02-14T12:00:00Z"
KNOWN, PAID_FOR = set(IDS), {json.loads(text).get("executionId") for text in (*BILLS, *CONFIRMED)}
Row = dict[str, Any]
CHOICES: list[tuple[str, dict[str, str], Callable[[Row], bool]]] = [
    *(
        ("/api/tasks", {"status": one}, lambda row, one=one: row["status"] == one)
        for one in ("received", "executing", "completed", "failed")
    ),
    *(
        ("/api/tasks", {"type": one}, lambda row, one=one: row["task_type"] == one)
        for one in ("javascript", "python", "rust", "c", "cpp", "api", "other")
    ),
    ("/api/tasks", {"execution_id": IDS[3]}, lambda row: row["execution_id"] == IDS[3]),
    ("/api/tasks", {"execution_id": IDS[10].upper()}, lambda row: row["execution_id"] == IDS[10]),
    ("/api/tasks", {"matched": "true"}, lambda row: row["execution_id"] in PAID_FOR),
    ("/api/tasks", {"matched": "false"}, lambda row: row["execution_id"] not in PAID_FOR),
    (
        "/api/tasks",
        {"matched": "false", "status": "completed"},
        lambda row: row["execution_id"] not in PAID_FOR and row["status"] == "completed",
    ),
    (
        "/api/tasks",
        {"since": at(4), "until": at(8)},
        lambda row: at(4) <= row["received_at"] < at(8),
    ),
    (
        "/api/tasks",
        {"since": str(START + 4), "type": "javascript"},
        lambda row: row["received_at"] >= at(4) and row["task_type"] == "javascript",
    ),
    ("/api/invoices", {"operation": "pay"}, lambda row: row["operation"] == "pay"),
    ("/api/invoices", {"operation": "penalty"}, lambda row: row["operation"] == "penalty"),
    ("/api/invoices", {"execution_id": STRANGER}, lambda row: row["execution_id"] == STRANGER),
    ("/api/invoices", {"matched": "true"}, lambda row: row["execution_id"] in KNOWN),
    ("/api/invoices", {"matched": "false"}, lambda row: row["execution_id"] not in KNOWN),
    (
        "/api/invoices",
        {"matched": "false", "operation": "pay"},
        lambda row: row["execution_id"] == STRANGER,
    ),
    ("/api/invoices", {"since": SINCE}, lambda row: (row["timestamp"] or "") >= SINCE),
    ("/api/invoices", {"until": SINCE}, lambda row: (row["timestamp"] or "") < SINCE),
    (
        "/api/invoices",
        {"since": SINCE, "until": UNTIL},
        lambda row: SINCE <= (row["timestamp"] or "") < UNTIL.replace("Z", ".000Z"),
    ),
    *(
        ("/api/logs", {"level": one}, lambda row, one=one: row["level"] == one)
        for one in ("error", "warn", "info")
    ),
    *(
        ("/api/logs", {"type": one}, lambda row, one=one: row["type"] == one)
        for one in (
            "task_received",
            "task_completed",
            "task_failed",
            "task_start",
            "invoice",
            "info",
        )
    ),
    ("/api/logs", {"execution_id": IDS[2]}, lambda row: row["execution_id"] == IDS[2]),
    (
        "/api/logs",
        {"execution_id": IDS[2].upper(), "level": "error"},
        lambda row: row["execution_id"] == IDS[2] and row["level"] == "error",
    ),
    (
        "/api/logs",
        {"since": at(40), "until": at(75)},
        lambda row: at(40) <= row["timestamp"] < at(75),
    ),
    (
        "/api/logs",
        {"search": "got {", "until": at(53)},
        lambda row: "got {" in row["message"] and row["timestamp"] < at(53),
    ),
]


@pytest.mark.parametrize(("path", "query", "good"), CHOICES)
def test_a_filter_leaves_what_it_names_in_the_same_order(
    site: Program, path: str, query: dict[str, str], good: Callable[[Row], bool]
) -> None:
    everything = listed(site, path)
    found = listed(site, path, **query)
    assert found == [row for row in everything if good(row)]
    assert 0 < len(found) < len(everything)


def folded(text: str) -> str:
    """Capitals of ASCII made small: what a search does not tell apart."""
    return re.sub("[A-Z]", lambda letter: letter[0].lower(), text)


@pytest.mark.parametrize("words", NEEDLES)
def test_a_search_takes_its_words_literally(site: Program, words: str) -> None:
    everything = listed(site, "/api/logs")
    found = listed(site, "/api/logs", search=words)
    assert found == [row for row in everything if folded(words) in folded(row["message"])]
    assert f"needle <{words}> end" in [row["message"] for row in found]
    assert len(found) < len(everything)


def test_the_audit_log_is_filtered_by_time(site: Program) -> None:
    everything = listed(site, "/api/audit-log")
    times = sorted({row["timestamp"] for row in everything})
    assert {row["event"] for row in everything} == {"refused"}
    found = listed(site, "/api/audit-log", since=times[1], until=times[-1])
    assert found == [row for row in everything if times[1] <= row["timestamp"] < times[-1]]
    assert 0 < len(found) < len(everything)


LISTS = ["/api/tasks", "/api/invoices", "/api/logs", "/api/audit-log"]
WRONG = [
    "limit=0",
    "limit=1001",
    "limit=ten",
    "limit=5&limit=5",
    "offset=-1",
    "offset=100001",
    "cursor=x",
    "since=never",
    "since=2026-13-01T00:00:00Z",
    "since=2026-01-01T00:00:00Z&since=2026-01-01T00:00:00Z",
    "until=",
    "until=-1",
    "until=9999-01-01T00:00:00Z",
    "order=asc",
    "Limit=1",
    "limit%00=1",
    "password=open+sesame",
]
OWN_WRONG = [
    ("/api/tasks", "status=done"),
    ("/api/tasks", "status=Failed"),
    ("/api/tasks", "status="),
    ("/api/tasks", "status=failed&status=lost"),
    ("/api/tasks", "type=js"),
    ("/api/tasks", "level=info"),
    ("/api/tasks", "search=x"),
    ("/api/tasks", "operation=pay"),
    ("/api/tasks", "execution_id=1"),
    ("/api/tasks", f"execution_id={IDS[0]}0"),
    ("/api/tasks", "matched=yes"),
    ("/api/tasks", "matched=1"),
    ("/api/tasks", "matched=true&matched=true"),
    ("/api/tasks", "format=xml"),
    ("/api/tasks", "format=CSV"),
    ("/api/invoices", "operation=charge"),
    ("/api/invoices", "status=paid"),
    ("/api/invoices", "matched="),
    ("/api/invoices", "execution_id="),
    ("/api/invoices", "format=csv&format=csv"),
    ("/api/logs", "level=fatal"),
    ("/api/logs", "level=error&level=warn"),
    ("/api/logs", "type=javascript"),
    ("/api/logs", "execution_id=%25"),
    ("/api/logs", "search=a&search=b"),
    ("/api/logs", "status=failed"),
    ("/api/logs", "format=csv"),
    ("/api/logs", "matched=true"),
    ("/api/audit-log", "format=csv"),
    ("/api/audit-log", "event=login"),
]


@pytest.mark.parametrize(
    ("path", "query"), [*((path, query) for path in LISTS for query in WRONG), *OWN_WRONG]
)
def test_what_a_list_does_not_know_is_refused_by_name(site: Program, path: str, query: str) -> None:
    answer = ask(site, f"{path}?{query}", password=PASSWORD)
    assert (answer.status, list(answer.json)) == (400, ["error"])
    assert re.match(r"\w+", query)[0] in answer.json["error"]  # type: ignore[index]


@pytest.mark.parametrize("path", LISTS)
def test_the_ends_of_each_range_are_taken(site: Program, path: str) -> None:
    assert ask(site, f"{path}?limit=1&offset=0", password=PASSWORD).json["pagination"]["hasMore"]
    far = ask(site, f"{path}?limit=1000&offset=100000", password=PASSWORD).json
    assert (far[name_of(path)], far["pagination"]["next"]) == ([], None)


# Cursors


@pytest.fixture(scope="module")
def busy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor with 1003 tasks and their invoices, several of each second."""
    program = over_files(tmp_path_factory.mktemp("busy"), API_RATE_LIMIT="0")
    for number in range(1003):
        write(program, *numbered(number, START + number // 7))
    program.start()
    wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 1003)
    yield program
    end(program)


def numbered(number: int, second: float) -> list[str]:
    """The lines of one task; every third is Python's, and penalised."""
    name, odd = f"{number:08x}-0000-4000-8000-00000000abcd", number % 3 == 0
    text = bill(f"7{number}", name, "penalty" if odd else "pay", number, 1)
    task = received(name, "py" if odd else "js")
    return [header(task, second), header(f"InvoiceSubscriber got {text}", second)]


class Arrivals:
    """Rows that arrive between two pages: of the audit log, or of all other lists."""

    def __init__(self, program: Program, path: str) -> None:
        self.program, self.audit, self.pages = program, path == "/api/audit-log", 0
        self.before = self.count()

    def count(self) -> int:
        return int(self.program.get("/api/invoices/count")[1]["count"])

    def settle(self) -> None:
        """Wait for the last of them, so that none arrives in another test."""
        wait_for(lambda: self.audit or self.count() == self.before + 3 * self.pages)

    def __call__(self) -> None:
        self.pages += 1
        if self.audit:
            assert refused(self.program)
            return
        for number in range(3):
            write(self.program, *numbered(self.before + 3 * self.pages + number, time.time()))
        if self.pages == 1:  # what follows may arrive at any moment
            wait_for(lambda: self.count() > self.before)


@pytest.mark.parametrize(
    ("path", "query", "limit"),
    [
        ("/api/tasks", {"type": "python"}, 90),
        ("/api/tasks", {"status": "failed", "matched": "true"}, 120),
        ("/api/tasks", {"until": at(60), "type": "javascript"}, 77),
        ("/api/invoices", {"operation": "penalty"}, 90),
        ("/api/invoices", {"matched": "true", "until": at(30), "operation": "pay"}, 33),
        ("/api/logs", {"type": "invoice", "until": at(40)}, 70),
        ("/api/logs", {"search": "py_", "level": "info"}, 90),
        ("/api/logs", {"execution_id": f"{9:08x}-0000-4000-8000-00000000abcd"}, 1),
        ("/api/audit-log", {}, 2),
    ],
)
def test_the_pages_of_a_filtered_list_are_complete_and_in_order_while_rows_arrive(
    busy: Program, path: str, query: dict[str, str], limit: int
) -> None:
    assert all(refused(busy) for _ in range(5 if path == "/api/audit-log" else 0))
    before = listed(busy, path, **query)
    asked = urllib.parse.urlencode({**query, "limit": limit})
    arrive = Arrivals(busy, path)
    pages = followed(busy, path, asked, arrive)
    arrive.settle()
    assert [row for page in pages for row in page] == before
    assert len(pages) > 1 and {len(page) for page in pages[:-1]} == {limit}


@pytest.mark.parametrize("letter", ["x", "ü", "🔑"])
def test_a_page_of_long_log_entries_is_cut_and_its_cursors_give_every_one_once(
    tmp_path: Path, letter: str
) -> None:
    program, many = over_files(tmp_path, API_RATE_LIMIT="0"), 1 + tbmon.PAGE_BYTES // 30_000
    long = letter * (60_000 // len(letter.encode()))
    said = ["000", *(f"{number:03d} {long}" for number in range(1, many))]
    write(program, *(header(words, START + number // 5) for number, words in enumerate(said)))
    program.start()
    try:
        wait_for(lambda: program.private("/api/logs/status")["lastLogAt"] == at((many - 1) // 5))
        first = program.private("/api/logs?limit=1000")
        assert first["pagination"] == {**first["pagination"], "limit": 1000, "hasMore": True}
        pages = followed(program, "/api/logs", "limit=1000")
        assert [row["message"] for page in pages for row in page] == said[::-1]
        sizes = [sum(len(row["message"].encode()) for row in page) for page in pages]
        assert max(sizes) <= tbmon.PAGE_BYTES
        assert min(sizes[:-1]) > tbmon.PAGE_BYTES - 2 * 60_010  # no page is cut before it must be
        whole = program.private("/api/logs?limit=10")
        assert (len(whole["logs"]), whole["pagination"]["hasMore"]) == (10, True)
    finally:
        end(program)


# CSV

TABLES = [("/api/tasks", "Task"), ("/api/invoices", "Invoice")]
WAYS: list[tuple[str, dict[str, str]]] = [("format=csv", {}), ("", {"Accept": "text/csv"})]


def cells(row: Row, columns: list[str]) -> list[str]:
    """A JSON row as its CSV line must hold it."""
    words = {"None": "", "True": "true", "False": "false"}
    shown = [words.get(str(row[name]), str(row[name])) for name in columns]
    return [f"'{text}" if text.startswith("-") else text for text in shown]


def csv_rows(answer: Answer) -> list[list[str]]:
    assert answer.status == 200, answer.body
    return list(csv.reader(io.StringIO(answer.body.decode(), newline=""), strict=True))


@pytest.mark.parametrize(("path", "shape"), TABLES)
@pytest.mark.parametrize(("query", "headers"), WAYS)
def test_csv_holds_what_the_json_list_holds(
    site: Program, path: str, shape: str, query: str, headers: dict[str, str]
) -> None:
    answer = fetch(site, f"{path}?{query}", **headers)
    names, *rows = csv_rows(answer)
    assert names == [name for name in tbmon.fields_of(shape) if name != "line_items"]
    assert rows == [cells(row, names) for row in listed(site, path)]
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["Content-Disposition"] == f'attachment; filename="{name_of(path)}.csv"'
    assert answer.headers["Link"] is None
    assert answer.body.count(b"\r\n") == len(rows) + 1


@pytest.mark.parametrize(
    ("path", "column", "text"),
    [("/api/tasks", "task_id", FORMULA), ("/api/invoices", "invoice_id", "-705")],
)
def test_a_text_from_the_node_cannot_become_a_formula(
    site: Program, path: str, column: str, text: str
) -> None:
    names, *rows = csv_rows(fetch(site, f"{path}?format=csv"))
    assert text in [row[column] for row in listed(site, path)]
    assert f"'{text}" in [row[names.index(column)] for row in rows]
    assert [cell for row in rows for cell in row if cell[:1] in tuple("=+-@\t\r\n")] == []


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@a", "\t=1", "\r=1", "\n=1"])
def test_whatever_begins_a_formula_gets_an_apostrophe_and_numbers_do_not(text: str) -> None:
    lines = tbmon.csv_lines(["a", "b"], [{"a": text, "b": -1}])
    assert list(csv.reader(io.StringIO("".join(lines), newline=""))) == [
        ["a", "b"],
        [f"'{text}", "-1"],
    ]


@pytest.mark.parametrize(
    "query",
    ["limit=2&format=csv", "format=csv&limit=2&offset=1", "format=csv&limit=1&operation=pay"],
)
def test_the_link_to_the_next_page_is_followed_to_the_end(site: Program, query: str) -> None:
    asked = dict(urllib.parse.parse_qsl(query))
    wanted = listed(site, "/api/invoices", **({"operation": "pay"} if "operation" in asked else {}))
    found: list[list[str]] = []
    url: str | None = f"/api/invoices?{query}"
    while url:
        answer = fetch(site, url)
        names, *rows = csv_rows(answer)
        assert names[0] == "id" and len(rows) <= int(asked["limit"])
        found += rows
        link = re.fullmatch(r'<([^>]+)>; rel="next"', answer.headers["Link"] or "")
        url = urllib.parse.urljoin(url, link[1]) if link else None
        assert link or not answer.headers["Link"]
    assert found == [cells(row, names) for row in wanted[int(asked.get("offset", 0)) :]]
    assert len(found) > 2


@pytest.mark.parametrize(("query", "headers"), WAYS)
def test_csv_has_a_thousand_rows_if_not_told_otherwise(
    busy: Program, query: str, headers: dict[str, str]
) -> None:
    path, until = "/api/tasks", f"until={at(1000)}"  # leaves out what other tests let arrive
    answer = fetch(busy, f"{path}?{until}&{query}", **headers)
    names, *rows = csv_rows(answer)
    link = re.fullmatch(r'<([^>]+)>; rel="next"', answer.headers["Link"])
    assert link is not None
    _, *rest = csv_rows(fetch(busy, urllib.parse.urljoin(path, link[1]), **headers))
    assert (len(rows), len(rest)) == (1000, 3)
    pages = followed(busy, path, f"{until}&limit=1000")
    assert [*rows, *rest] == [cells(row, names) for page in pages for row in page]
    assert len(ask(busy, f"{path}?{until}").json["tasks"]) == 50


@pytest.mark.parametrize(
    ("path", "accept"),
    [
        ("/api/tasks?format=json", "text/csv"),
        ("/api/tasks", "*/*"),
        ("/api/tasks", "application/json"),
        ("/api/tasks", "text/csv;q=0"),
        ("/api/logs", "text/csv"),
        ("/api/audit-log", "text/csv"),
    ],
)
def test_what_is_not_to_be_had_or_not_wanted_as_csv_stays_json(
    site: Program, path: str, accept: str
) -> None:
    answer = fetch(site, path, Accept=accept)
    assert (answer.status, answer.json["pagination"]["limit"]) == (200, 50)


# What has not changed

POLLED = [
    "/health",
    "/api/status",
    "/api/status/stats",
    "/api/tasks",
    f"/api/tasks/{IDS[0]}",
    "/api/tasks/stats/summary",
    "/api/invoices",
    "/api/invoices/count",
    "/api/invoices/summary",
    "/api/logs",
    "/api/logs/status",
    "/api/tasks?format=csv",
    "/api/openapi.json",
    "/",
    "/index.html",
    "/app.js",
    "/style.css",
    "/favicon.svg",
]


@pytest.mark.parametrize("path", POLLED)
def test_what_a_client_has_already_is_not_sent_again(site: Program, path: str) -> None:
    whole = fetch(site, path)
    tag = whole.headers["ETag"]
    assert re.fullmatch(r'(W/)?"[\x21\x23-\x7e]+"', tag)
    for method in ("GET", "HEAD"):
        again = fetch(site, path, method, If_None_Match=tag)
        assert (again.status, again.body, again.headers["ETag"]) == (304, b"", tag)
        for name in ("Vary", "Cache-Control", "Content-Security-Policy"):
            assert again.headers[name] == whole.headers[name]
        head = fetch(site, path, "HEAD")
        assert (head.status, head.body, head.headers["ETag"]) == (200, b"", tag)
        assert head.headers["Content-Type"] == whole.headers["Content-Type"]


@pytest.mark.parametrize("path", ["/health", "/api/status", "/api/status/stats"])
def test_the_time_of_the_answer_alone_is_no_news(site: Program, path: str) -> None:
    first = fetch(site, path)
    moved = wait_for(
        lambda: (one := fetch(site, path)).json["timestamp"] > first.json["timestamp"] and one
    )
    assert moved.headers["ETag"] == first.headers["ETag"]
    assert fetch(site, path, If_None_Match=first.headers["ETag"]).status == 304


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ("{tag}", 304),
        ('W/"other", {tag}', 304),
        ('{tag},"other"', 304),
        ('"a,b" ,  {tag}', 304),
        ("{strong}", 304),
        ('"other", {strong}', 304),
        ("*", 304),
        ('W/"other"', 200),
        ('"other", W/"another"', 200),
        ("", 200),
        ("{bare}", 200),
        ("nonsense", 200),
        ('W/"x{bare}"', 200),
        ('W/"{bare}x"', 200),
    ],
)
@pytest.mark.parametrize("path", ["/api/tasks", "/app.js"])
def test_one_of_several_tags_is_enough_a_wrong_one_is_not(
    site: Program, path: str, given: str, status: int
) -> None:
    tag = fetch(site, path).headers["ETag"]
    strong = tag.removeprefix("W/")
    sent = given.format(tag=tag, strong=strong, bare=strong.strip('"'))
    assert fetch(site, path, If_None_Match=sent).status == status


def test_a_change_is_sent(tmp_path: Path) -> None:
    program = over_files(tmp_path)
    write(program, *numbered(1, START))
    program.start()
    paths = [
        "/api/status",
        "/api/status/stats",
        "/api/tasks",
        "/api/invoices",
        "/api/tasks?format=csv",
        "/api/logs",
    ]
    try:
        wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 1)
        before = {path: fetch(program, path).headers["ETag"] for path in paths}
        write(program, *numbered(2, START + 9))
        wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 2)
        after = {path: fetch(program, path, If_None_Match=tag) for path, tag in before.items()}
        assert {path: answer.status for path, answer in after.items()} == dict.fromkeys(paths, 200)
        assert [path for path in paths if after[path].headers["ETag"] == before[path]] == []
    finally:
        end(program)


def test_a_known_tag_opens_nothing_and_a_refusal_has_none(site: Program) -> None:
    tag = fetch(site, "/api/logs").headers["ETag"]
    answers = [
        *(
            fetch(site, "/api/logs", password=password, If_None_Match=tag)
            for password in ("", "wrong")
        ),
        *(fetch(site, path, If_None_Match="*") for path in ("/api/nothing", "/api/tasks?limit=0")),
    ]
    assert [(answer.status, answer.headers["ETag"]) for answer in answers] == [
        (401, None),
        (401, None),
        (404, None),
        (400, None),
    ]


def test_json_and_csv_of_one_path_are_told_apart(site: Program) -> None:
    as_json, as_csv = fetch(site, "/api/tasks"), fetch(site, "/api/tasks", Accept="text/csv")
    assert as_json.headers["ETag"] != as_csv.headers["ETag"]
    assert (
        fetch(site, "/api/tasks", Accept="text/csv", If_None_Match=as_json.headers["ETag"]).status
        == 200
    )
    for answer in (as_json, as_csv):
        assert "Accept" in [name.strip() for name in answer.headers["Vary"].split(",")]


# Compression


@pytest.mark.parametrize(
    "path", [path for path in POLLED if "status" not in path and path != "/health"]
)
def test_an_answer_above_one_kilobyte_is_compressed_for_who_takes_it(
    site: Program, path: str
) -> None:
    plain, packed = fetch(site, path), fetch(site, path, Accept_Encoding="gzip")
    assert plain.headers["Content-Encoding"] is None
    assert packed.headers["Content-Encoding"] == ("gzip" if len(plain.body) > 1024 else None)
    assert len(packed.body) == int(packed.headers["Content-Length"]) <= len(plain.body)
    content = gzip.decompress(packed.body) if len(plain.body) > 1024 else packed.body
    assert content == plain.body
    for answer in (plain, packed):
        assert {"Accept-Encoding", "Origin"} <= {
            name.strip() for name in answer.headers["Vary"].split(",")
        }
    head = fetch(site, path, "HEAD", Accept_Encoding="gzip")
    assert head.headers["Content-Encoding"] == packed.headers["Content-Encoding"]
    known = fetch(site, path, Accept_Encoding="gzip", If_None_Match=plain.headers["ETag"])
    assert (known.status, known.body, known.headers["Content-Encoding"]) == (304, b"", None)


def test_the_paths_above_are_of_both_sizes(site: Program) -> None:
    sizes = [len(fetch(site, path).body) for path in POLLED]
    assert min(sizes) < 1024 < max(sizes)


@pytest.mark.parametrize(
    ("accepted", "packed"),
    [
        ("gzip", True),
        ("deflate, gzip", True),
        ("gzip;q=1.0, br", True),
        ("br,gzip;q=0.001", True),
        ("deflate;q=0, gzip;q=0.5", True),
        ("identity", False),
        ("br, deflate", False),
        ("", False),
        ("gzip;q=0", False),
        ("gzip; q=0", False),
        ("gzip ;q=0.0, deflate", False),
        ("br, gzip;q=0.000", False),
        ("gzip;q=0,br", False),
        ("gzipped", False),
    ],
)
def test_only_who_says_so_gets_it_compressed(site: Program, accepted: str, packed: bool) -> None:
    answer = fetch(site, "/api/tasks", Accept_Encoding=accepted)
    assert (answer.status, answer.headers["Content-Encoding"]) == (200, "gzip" if packed else None)


# The invoices' sums


def allowed_summary(site: Program) -> Any:
    answer = ask(site, "/api/invoices/summary")
    assert answer.status == 200, answer.body
    return answer.json


def shown(value: Fraction) -> int | float | str:
    """A sum as the API must tell it: exact beyond 2^53, as text."""
    return str(int(value)) if value > 2**53 else float(value)


def gas_units(rows: list[Row]) -> int | float | str:
    return shown(
        sum((Fraction(row["step_gas_price"]) * int(row["steps"]) for row in rows), Fraction())
    )


def test_the_months_are_the_sums_of_the_list(site: Program) -> None:
    rows, found = listed(site, "/api/invoices"), allowed_summary(site)
    assert [month["month"] for month in found["months"]] == ["2026-02", "2026-01", None]
    for month in found["months"]:
        own = [row for row in rows if (row["timestamp"] or "")[:7] == (month["month"] or "")]
        paid, penalised = (
            [row for row in own if row["operation"] == one] for one in ("pay", "penalty")
        )
        assert month == {
            "month": month["month"],
            "invoices": len(own),
            "paid": len(paid),
            "penalised": len(penalised),
            "steps": shown(Fraction(sum(int(row["steps"]) for row in own))),
            "gas_units_paid": gas_units(paid),
            "gas_units_penalised": gas_units(penalised),
        }


def test_the_counts_agree_with_the_lists(site: Program) -> None:
    found = allowed_summary(site)
    counts = {name: found[name] for name in ("total", "paid", "penalised", "confirmed")}
    assert counts == {"total": 9, "paid": 5, "penalised": 2, "confirmed": 3}
    assert counts["confirmed"] == sum(row["confirmed"] for row in listed(site, "/api/invoices"))
    assert (
        found["tasks_without_invoice"]
        == len(listed(site, "/api/tasks", matched="false", status="completed"))
        == 2
    )
    assert (
        found["invoices_without_task"] == len(listed(site, "/api/invoices", matched="false")) == 4
    )


@pytest.mark.parametrize(
    ("number", "month", "units"),
    [
        ("700", "2026-01", str(3 * HUGE)),
        ("701", "2026-01", str(HALF)),
        ("702", "2026-01", str(7 * HUGE)),
        ("703", "2026-02", 4.5),
        ("704", "2026-02", str(HUGE)),
        ("-705", "2026-02", 2.5),
        ("706", "2026-02", 22),
        ("707", None, 10),
        ("708", None, 2**40),
    ],
)
def test_gas_units_are_exact_and_a_month_ends_at_midnight_utc(
    site: Program, number: str, month: str | None, units: float | str
) -> None:
    (found,) = (row for row in listed(site, "/api/invoices") if row["invoice_id"] == number)
    assert (found["timestamp"] and found["timestamp"][:7], found["gas_units"]) == (month, units)


def test_sums_of_whole_products_are_exact_beyond_2_to_the_53(site: Program) -> None:
    january = next(
        month for month in allowed_summary(site)["months"] if month["month"] == "2026-01"
    )
    assert (january["gas_units_paid"], january["gas_units_penalised"]) == (
        str(3 * HUGE + HALF),
        str(7 * HUGE),
    )


def test_without_invoices_there_are_no_months(tmp_path: Path) -> None:
    program = over_files(tmp_path)
    write(
        program, header(received(IDS[0]), START), header(f"Execution {IDS[0]} completed", START + 1)
    )
    program.start()
    try:
        wait_for(lambda: program.get("/api/tasks/stats/summary")[1]["completed"] == 1)
        found = allowed_summary(program)
        assert (found.pop("months"), found.pop("tasks_without_invoice")) == ([], 1)
        assert found == dict.fromkeys(
            ("total", "paid", "penalised", "confirmed", "invoices_without_task"), 0
        )
    finally:
        end(program)
