"""The API over real HTTP: its contract, its pages, its gate, and what it never says."""

from __future__ import annotations

import base64
import http.client
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.asking import KEY, PASSWORD, UTF8, allowed, ask, elsewhere
from support.machine import wait_for
from support.node_words import (
    HASH,
    HUGE,
    IDS,
    REQUESTER,
    START,
    STORY,
    UNKNOWN,
    VERSION,
    WALLET,
    at,
    header,
    invoice,
    received,
)
from support.programs import Program, end, over_files, write

import tbmon

FIRST, LAST = f"/api/tasks/{IDS[0]}", f"/api/tasks/{IDS[5]}"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that has read STORY, and whose node does nothing more."""
    program = over_files(tmp_path_factory.mktemp("site"))
    write(program, *(header(words, START + second, level) for second, level, words in STORY))
    program.start()
    wait_for(
        lambda: (
            program.private(LAST)["status"] == "executing" if program.get(LAST)[0] == 200 else None
        )
    )
    wait_for(lambda: program.get("/api/status")[1]["verdict"])
    yield program
    end(program)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor with an API key, secrets beyond ASCII, and names of its own."""
    names = "mon.example.org, Other.example.net"
    made = over_files(
        tmp_path_factory.mktemp("locked"), API_KEY=KEY, TASK_DATA_PASSWORD=UTF8, ALLOWED_HOSTS=names
    ).start()
    yield made
    end(made)


# The contract

NODE = "address version registered current_slots total_slots slots started_at last_seen"
TASK = (
    "id execution_id task_id task_hash task_type chain_id block_number block_hash status "
    "received_at started_at"
    " completed_at elapsed_ms gas_limit gas_used memory_limit memory_peak exit_code cached error"
)
SUMMARY = (
    "total received executing completed failed ended lost cached avg_elapsed_ms avg_gas_used "
    "success_rate tasks_24h"
)
INVOICE = (
    "id invoice_id execution_id task_id timestamp operation steps memory_peak step_gas_price "
    "gas_units confirmed"
    " line_items"
)
ENTRY = "id timestamp timestamp_original level type message execution_id data source suspect"
CONTRACT = [
    ("/health", "", "status timestamp docker version"),
    ("/api/health", "", "status timestamp docker version"),
    ("/api/status", "", "node container stats verdict recognised demo timestamp"),
    ("/api/status", "node", NODE),
    ("/api/status", "node slots", "InvoiceSubscriber"),
    ("/api/status", "node slots InvoiceSubscriber", "current total"),
    ("/api/status", "verdict", "state since reason advice remembered as_of"),
    ("/api/status/stats", "", "tasks invoices node timestamp"),
    ("/api/status/stats", "tasks", SUMMARY),
    ("/api/status/stats", "invoices", "total"),
    ("/api/status/stats", "node", NODE),
    ("/api/tasks", "", "tasks pagination"),
    ("/api/tasks", "tasks 0", TASK),
    ("/api/tasks", "pagination", "limit offset hasMore next"),
    (
        "/api/tasks/{execution_id}",
        "",
        TASK + " hasSensitiveData sensitiveDataRequiresAuth events invoice_id",
    ),
    ("/api/tasks/{execution_id}", "events 0", "at event"),
    ("/api/tasks/{execution_id}/data", "", "execution_id inputData outputData errorText"),
    ("/api/tasks/stats/summary", "", SUMMARY),
    ("/api/invoices", "", "invoices pagination"),
    ("/api/invoices", "invoices 0", INVOICE),
    ("/api/invoices", "invoices 0 line_items 0", "operation account steps memory_peak"),
    ("/api/invoices", "pagination", "limit offset hasMore next"),
    ("/api/invoices/count", "", "count"),
    ("/api/logs", "", "logs pagination"),
    ("/api/logs", "logs 0", ENTRY),
    ("/api/logs", "pagination", "limit offset hasMore next"),
    ("/api/logs/status", "", "source lastLogAt gaps passedOver unrecognised suspect"),
]
PATHS = sorted({path.replace("{execution_id}", IDS[0]) for path, _, _ in CONTRACT})
PRIVATE = ["/api/logs", f"{FIRST}/data"]
LOCAL = [path for path in PATHS if path not in PRIVATE]
STATIC = ["/", "/index.html", "/app.js", "/style.css"]


@pytest.mark.parametrize(("path", "place", "names"), CONTRACT)
def test_an_answer_has_exactly_the_fields_of_the_contract(
    site: Program, path: str, place: str, names: str
) -> None:
    found = allowed(site, path.replace("{execution_id}", IDS[0]))
    for step in place.split():
        found = found[int(step) if step.isdigit() else step]
    assert set(found) == set(names.split())


def test_a_task_is_told_in_full_with_numbers_beyond_2_to_the_53_as_text(site: Program) -> None:
    found = allowed(site, FIRST)
    (listed,) = allowed(site, f"/api/tasks?since={at(10)}&until={at(11)}")["tasks"]
    assert listed == {name: found[name] for name in TASK.split()}
    assert found.pop("id") >= 1
    events = [(event["event"], event["at"]) for event in found.pop("events")]
    assert {("task_received", at(10)), ("task_start", at(12)), ("task_completed", at(16))} <= set(
        events
    )
    assert events == sorted(events, key=lambda event: event[1])
    assert found == {
        "execution_id": IDS[0],
        "task_id": f"js_{HASH}",
        "task_hash": HASH,
        "task_type": "javascript",
        "chain_id": "43114",
        "block_number": str(2**53 + 1),
        "block_hash": "ab" * 32,
        "status": "completed",
        "received_at": at(10),
        "started_at": at(12),
        "completed_at": at(16),
        "elapsed_ms": 1500,
        "gas_limit": str(2**60),
        "gas_used": str(HUGE),
        "memory_limit": 1024,
        "memory_peak": 87,
        "exit_code": 0,
        "cached": True,
        "error": None,
        "hasSensitiveData": True,
        "sensitiveDataRequiresAuth": True,
        "invoice_id": "7123456717698608000004",
    }


@pytest.mark.parametrize(
    ("number", "facts"),
    [
        (1, ("rust", "failed", "memory_limit", None, None)),
        (2, ("python", "failed", "penalty", False, 0)),
        (3, ("cpp", "lost", None, None, None)),
        (4, ("other", "received", None, None, None)),
        (5, ("javascript", "executing", None, None, None)),
    ],
)
def test_the_other_tasks_end_as_the_log_says(
    site: Program, number: int, facts: tuple[object, ...]
) -> None:
    found = allowed(site, f"/api/tasks/{IDS[number]}")
    assert (
        tuple(found[name] for name in ("task_type", "status", "error", "cached", "exit_code"))
        == facts
    )


def test_an_invoice_is_told_in_full_and_its_gas_is_exact(site: Program) -> None:
    penalty, found = allowed(site, "/api/invoices")["invoices"]
    stranger = found["line_items"][0].pop("account")
    assert re.fullmatch("wallet:[0-9a-f]{16}", stranger)
    assert found.pop("id") < penalty["id"]
    assert found == {
        "invoice_id": "7123456717698608000004",
        "execution_id": IDS[0],
        "task_id": found["task_id"],
        "timestamp": at(19),
        "operation": "pay",
        "steps": str(HUGE),
        "memory_peak": 88,
        "step_gas_price": 3,
        "gas_units": str(3 * HUGE),
        "confirmed": False,
        "line_items": [
            {"operation": "charge", "steps": 9, "memory_peak": 87},
            {"operation": "pay", "account": "wallet:self", "steps": str(HUGE), "memory_peak": 88},
        ],
    }
    assert (penalty["operation"], penalty["gas_units"]) == ("penalty", str(int(0.5 * HUGE)))


def test_task_data_holds_what_went_in_and_came_out(site: Program) -> None:
    first, second = (allowed(site, f"/api/tasks/{name}/data") for name in IDS[:2])
    assert (first["execution_id"], first["inputData"], first["errorText"]) == (
        IDS[0],
        "canary input",
        None,
    )
    assert json.loads(first["outputData"])["note"] == "canary output"
    assert (second["inputData"], second["outputData"]) == (None, None)
    assert "canary" in second["errorText"]


def test_the_summary_counts_every_state(site: Program) -> None:
    found = allowed(site, "/api/tasks/stats/summary")
    assert allowed(site, "/api/status/stats")["tasks"] == found
    states = {
        "total": 6,
        "received": 1,
        "executing": 1,
        "completed": 1,
        "failed": 2,
        "ended": 0,
        "lost": 1,
        "cached": 1,
    }
    assert found == {
        **states,
        "avg_elapsed_ms": 1500,
        "avg_gas_used": found["avg_gas_used"],
        "success_rate": 33.3,
        "tasks_24h": 6,
    }
    assert abs(int(found["avg_gas_used"]) - HUGE) < 1000
    assert isinstance(found["avg_gas_used"], str)
    assert allowed(site, "/api/invoices/count") == {"count": 2}
    assert allowed(site, "/api/status/stats")["invoices"] == {"total": 2}


def test_all_times_are_utc_with_milliseconds(site: Program) -> None:
    text = json.dumps([allowed(site, path) for path in PATHS if "/logs" not in path])
    times = re.findall(r'"(20\d\d-[^"]*)"', text)
    assert len(times) > 20
    assert [
        one for one in times if not re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", one)
    ] == []


@pytest.mark.parametrize(
    ("query", "numbers"),
    [
        ("", [5, 4, 3, 2, 1, 0]),
        ("status=completed", [0]),
        ("status=failed", [2, 1]),
        ("status=lost", [3]),
        ("status=received", [4]),
        ("status=executing", [5]),
        ("type=javascript", [5, 0]),
        ("type=other", [4]),
        ("type=c", []),
        ("type=javascript&status=executing", [5]),
        (f"since={at(30)}", [5, 4, 3, 2]),
        (f"until={at(30)}", [1, 0]),
        (f"since={at(20)}&until={at(40)}", [2, 1]),
        (f"since={START + 210}", [5, 4]),
        (f"since={at(40)}&until={at(20)}", []),
        ("limit=2", [5, 4]),
        ("limit=2&offset=1", [4, 3]),
        ("offset=5&limit=1000", [0]),
        ("offset=6", []),
    ],
)
def test_tasks_are_listed_newest_first_by_filter(
    site: Program, query: str, numbers: list[int]
) -> None:
    found = allowed(site, f"/api/tasks?{query}")["tasks"]
    assert [IDS.index(task["execution_id"]) for task in found] == numbers


@pytest.mark.parametrize(
    ("query", "seconds"),
    [
        ("level=error", [22, 21]),
        ("level=warn", [200]),
        ("level=silly", []),
        ("type=task_failed", [22]),
        ("type=invoice", [32, 19]),
        ("type=semaphore", [2]),
        ("level=error&type=execution_output", [21]),
        ("search=100%25", [200]),
        ("search=a_b", [200]),
        ("search=xb", [201]),
        ("search=STARTING+services", [0]),
        ("search=Gr%C3%B6%C3%9Fe", [202]),
        ("search=no+such+words", []),
        ("search=a!_b", []),
        (f"since={at(220)}", [221, 220]),
        (f"until={at(2)}", [1, 0]),
        (f"since={at(200)}&until={at(203)}", [202, 201, 200]),
        (f"execution_id={IDS[3]}", [40]),
        (f"execution_id={IDS[5].upper()}&limit=1", [221]),
        ("limit=1&offset=1", [220]),
    ],
)
def test_log_entries_are_listed_newest_first_by_filter(
    site: Program, query: str, seconds: list[int]
) -> None:
    found = allowed(site, f"/api/logs?{query}")["logs"]
    assert [entry["timestamp"] for entry in found] == [at(second) for second in seconds]


@pytest.mark.parametrize("words", ["100%00x", "%00", "%FF", "a%C3", "%ED%A0%80"])
def test_a_search_for_what_no_log_can_hold_finds_nothing(site: Program, words: str) -> None:
    answer = ask(site, f"/api/logs?search={words}", password=PASSWORD)
    assert answer.status == 400 or (answer.status, answer.json["logs"]) == (200, [])


def test_a_log_entry_is_told_in_full(site: Program) -> None:
    (entry,) = allowed(site, "/api/logs?type=task_received&limit=1")["logs"]
    message, payload = (
        received(IDS[5], "js").split(": ", 1)[0],
        json.loads(received(IDS[5], "js").split(": ", 1)[1]),
    )
    assert re.fullmatch("[0-9a-f]{32}", entry.pop("id"))
    assert entry.pop("message").startswith(message)
    assert entry == {
        "timestamp": at(220),
        "timestamp_original": tbmon.second_text(START + 220),
        "level": "info",
        "type": "task_received",
        "execution_id": IDS[5],
        "data": payload,
        "source": "files",
        "suspect": False,
    }


def test_odd_numbers_of_a_payload_come_as_json_that_every_reader_takes(site: Program) -> None:
    (entry,) = allowed(site, "/api/logs?search=odd+numbers")[
        "logs"
    ]  # a bare NaN fails in `allowed`
    assert (entry["data"]["gas"], entry["data"]["debt"]) == (str(HUGE), str(-HUGE))


# Refusals

HTML_ODD = "%3Cscript%3E"
NO_CURSORS: list[object] = [
    5,
    [],
    [1],
    [1, 2, 3],
    {"a": 1},
    [1, "2"],
    [None, 1],
    [1.5, 1],
    [2**70, 1],
    [1, 2**70],
    [-(2**70), 1],
    ["zz", 1],
]


def encoded(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")


@pytest.mark.parametrize("path", ["/api/tasks", "/api/invoices", "/api/logs"])
@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("limit=0", "limit"),
        ("limit=1001", "limit"),
        ("limit=abc", "limit"),
        ("limit=-1", "limit"),
        ("limit=", "limit"),
        ("limit", "limit"),
        ("limit=1.5", "limit"),
        ("limit=%D9%A1", "limit"),
        ("limit=99999999999999999999", "limit"),
        ("offset=-1", "offset"),
        ("offset=1e3", "offset"),
        ("limit=1&limit=2", "limit"),
        ("limit=1&limit=1", "limit"),
        ("Limit=1", "Limit"),
        ("order=asc", "order"),
        (f"{HTML_ODD}=1", "script"),
        ("since=yesterday", "since"),
        ("until=2026-02-30T00:00:00Z", "until"),
        ("since=", "since"),
        ("type=nonsense", "type"),
        ("type=", "type"),
        ("cursor=", "cursor"),
        ("cursor=nonsense", "cursor"),
        ("cursor=%FF", "cursor"),
        ("cursor=a", "cursor"),
        *((f"cursor={encoded(value)}", "cursor") for value in NO_CURSORS),
    ],
)
def test_a_bad_parameter_is_refused_by_name(
    site: Program, path: str, query: str, name: str
) -> None:
    if path == "/api/invoices" and query.startswith("type"):
        query, name = "status=completed", "status"  # which the other lists know
    answer = ask(site, f"{path}?{query}", password=PASSWORD)
    assert answer.status == 400, answer.body
    assert set(answer.json) == {"error"}
    assert name in answer.json["error"]


@pytest.mark.parametrize(
    ("path", "query"),
    [("/api/tasks", "status=done"), ("/api/logs", "level=fatal"), ("/api/logs", "execution_id=1")],
)
def test_a_word_that_no_filter_knows_is_refused(site: Program, path: str, query: str) -> None:
    answer = ask(site, f"{path}?{query}", password=PASSWORD)
    assert (answer.status, query.partition("=")[0] in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("path", "other"), [("/api/logs", "/api/tasks"), ("/api/tasks", "/api/logs")]
)
def test_the_cursor_of_one_list_is_none_of_another(site: Program, path: str, other: str) -> None:
    cursor = allowed(site, f"{other}?limit=1")["pagination"]["next"]
    answer = ask(site, f"{path}?cursor={cursor}", password=PASSWORD)
    assert (answer.status, "cursor" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_refuses_a_parameter_it_does_not_know(site: Program, path: str) -> None:
    answer = ask(site, f"{path}?nonsense=1", password=PASSWORD)
    assert (answer.status, "nonsense" in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    "path",
    [
        "/api",
        "/api/",
        "/api/nothing",
        "/api/tasks/",
        f"{FIRST}/other",
        "/api/tasks/stats",
        "/API/status",
        "/api/%ff",
        UNKNOWN,
        f"{UNKNOWN}/data",
        "/api/tasks/nonsense",
        "/api/tasks/%00",
        "/api/tasks/%F0%9F%94%91",
    ],
)
def test_what_is_not_there_is_404_in_json(site: Program, path: str) -> None:
    answer = ask(site, path, password=PASSWORD)
    assert (answer.status, list(answer.json)) == (404, ["error"])


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
@pytest.mark.parametrize("path", ["/api/tasks", "/api/logs", "/health", "/"])
def test_other_methods_are_405_and_told_which_are_right(
    site: Program, method: str, path: str
) -> None:
    answer = ask(site, path, method)
    assert (answer.status, answer.headers["Allow"], list(answer.json)) == (
        405,
        "GET, HEAD",
        ["error"],
    )


@pytest.mark.parametrize("path", ["/", "/api/tasks", "/health"])
def test_head_answers_like_get_without_a_body(site: Program, path: str) -> None:
    got, head = ask(site, path), ask(site, path, "HEAD")
    assert (head.status, head.body, head.headers["Content-Type"]) == (
        200,
        b"",
        got.headers["Content-Type"],
    )


def test_an_execution_id_is_taken_in_upper_case_too(site: Program) -> None:
    assert allowed(site, FIRST.replace(IDS[0], IDS[0].upper())) == allowed(site, FIRST)
    assert allowed(site, f"/api/tasks/{IDS[0].upper()}/data")["execution_id"] == IDS[0]


# Who may see what


@pytest.mark.parametrize("path", [*PRIVATE, f"{UNKNOWN}/data"])
@pytest.mark.parametrize(
    "password", ["", "open sesam", "open sesame!", "OPEN SESAME", b"\xff\xfe", "größe"]
)
def test_the_private_class_wants_the_password(
    site: Program, path: str, password: str | bytes
) -> None:
    answer = ask(site, path, password=password)
    assert (answer.status, list(answer.json)) == (401, ["error"])
    assert "X-Task-Data-Password" in answer.json["error"]


@pytest.mark.parametrize("path", PRIVATE)
def test_with_the_password_the_private_class_is_open_and_never_cached(
    site: Program, path: str
) -> None:
    answer = ask(site, path, password=PASSWORD)
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")


def test_the_local_class_never_tells_what_tasks_said(site: Program) -> None:
    assert "canary" in json.dumps(
        allowed(site, "/api/logs?limit=1000")
    )  # it is there, behind the password
    tasks = [f"/api/tasks/{name}" for name in IDS] + [
        f"/api/tasks?status={state}" for state in ("failed", "lost")
    ]
    answers = [ask(site, path, password=PASSWORD) for path in (*LOCAL, *tasks)]
    assert {answer.status for answer in answers} == {200}
    assert [answer.body for answer in answers if b"canary" in answer.body.lower()] == []


@pytest.mark.parametrize("path", [path for path in PATHS if not path.endswith("health")])
@pytest.mark.parametrize(
    "key",
    [
        "",
        "Bearer",
        "Bearer wrong",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer{KEY}",
        f"Bearer {UTF8}",
    ],
)
def test_with_an_api_key_nothing_is_open_without_it(locked: Program, path: str, key: str) -> None:
    answer = ask(locked, path, key=key, password=UTF8)
    assert (answer.status, answer.headers["WWW-Authenticate"], list(answer.json)) == (
        401,
        "Bearer",
        ["error"],
    )


@pytest.mark.parametrize("path", ["/health", "/api/health", *STATIC])
def test_health_and_the_page_stay_open_with_an_api_key(locked: Program, path: str) -> None:
    assert ask(locked, path).status == 200


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_api_key_opens_the_local_class_and_the_password_the_private_one(
    locked: Program, scheme: str
) -> None:
    key = f"{scheme} {KEY}"
    assert ask(locked, "/api/tasks", key=key).status == 200
    assert ask(locked, "/api/logs", key=key).status == 401
    assert ask(locked, "/api/logs", key=key, password=UTF8).status == 200


@pytest.mark.parametrize(
    "raw", [b"\xff\xfe", b"Bearer \xff\xfe", b"Bearer \xc3", "Bearer 🔑".encode(), b"\x80" * 4000]
)
def test_bytes_that_are_no_text_are_a_wrong_secret(locked: Program, raw: bytes) -> None:
    connection = http.client.HTTPConnection(
        "127.0.0.1", locked.port, timeout=10, source_address=elsewhere()
    )
    connection.request(
        "GET", "/api/tasks", headers={"Authorization": raw, "X-Task-Data-Password": raw}
    )
    assert connection.getresponse().status == 401
    connection.close()


@pytest.mark.parametrize(
    "host",
    [
        "localhost",
        "LOCALHOST:80",
        "localhost.",
        "127.0.0.1",
        "127.0.0.1:8090",
        "192.168.1.5:8090",
        "[::1]",
        "[::1]:8090",
        "monitor",
        "my-node_1:8090",
        "mon.example.org",
        "MON.example.org:443",
        "other.example.net",
    ],
)
def test_hosts_that_no_stranger_can_own_are_answered(locked: Program, host: str) -> None:
    assert [ask(locked, path, host=host).status for path in ("/", "/api/health")] == [200, 200]


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:80",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "",
        "a.b",
        "x@localhost",
        "evil.mon.example.org",
        "mon.example.org.evil.example",
        "[::1].evil.example",
        "mon.example.org,evil.example",
    ],
)
def test_other_hosts_are_misdirected(locked: Program, host: str) -> None:
    answers = [
        ask(locked, path, host=host, key=f"Bearer {KEY}")
        for path in ("/", "/app.js", "/api/status", "/health")
    ]
    assert [(answer.status, list(answer.json)) for answer in answers] == [(421, ["error"])] * 4
    assert "ALLOWED_HOSTS" in answers[0].json["error"]


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        *((path, "localhost", 200) for path in (*STATIC, "/health", "/api/status")),
        ("/api/logs", "localhost", 401),
        ("/api/nothing", "localhost", 404),
        ("/nothing", "localhost", 404),
        ("/api/tasks?limit=0", "localhost", 400),
        ("/api/status", "evil.example", 421),
        ("/", "evil.example", 421),
    ],
)
def test_every_answer_carries_the_security_headers(
    site: Program, path: str, host: str, status: int
) -> None:
    answer = ask(site, path, host=host)
    assert answer.status == status
    policy = answer.headers["Content-Security-Policy"] or ""
    assert (
        "default-src 'self'" in policy
        and "frame-ancestors 'none'" in policy
        and "unsafe" not in policy
    )
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert answer.headers["Cache-Control"] in ("no-cache", "no-store")
    assert answer.headers["Access-Control-Allow-Origin"] is None
    assert answer.headers["Server"] is None


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/index.html", "text/html"),
        ("/app.js", "text/javascript"),
        ("/style.css", "text/css"),
        ("/favicon.svg", "image/svg+xml"),
    ],
)
def test_the_page_and_its_parts_are_served_as_they_are(site: Program, path: str, kind: str) -> None:
    answer = ask(site, path)
    assert (answer.status, answer.headers["Content-Type"].partition(";")[0]) == (200, kind)
    written = (tbmon.STATIC / (path.lstrip("/") or "index.html")).read_bytes()
    if (
        path == "/"
    ):  # the verdict and the first answer are filled in; what stands around them is as written
        assert answer.body.startswith(
            written[: written.index(b"data-state")]
        ) and answer.body.endswith(written[-16:])
    else:
        assert answer.body == written


@pytest.mark.parametrize(
    "path",
    [
        "/tbmon.py",
        "/../tbmon.py",
        "/%2e%2e/tbmon.py",
        "/..%2ftbmon.py",
        "/%2e%2e%2ftbmon.py",
        "/static/app.js",
        "/static/../tbmon.py",
        "/index.html/../../tbmon.py",
        "/app.js%00.svg",
        "/app.js/",
        "/.app.js",
        "//etc/passwd",
        "/%2fetc%2fpasswd",
        "/..%5ctbmon.py",
        "/t.db",
        "/local.key",
        "/README.md",
        "/app.JS",
    ],
)
def test_nothing_else_is_served(site: Program, path: str) -> None:
    assert (ask(site, path).status, list(ask(site, path).json)) == (404, ["error"])


# Wallets


def test_the_own_wallet_is_called_self_and_its_pseudonym_is_never_told(site: Program) -> None:
    key = (site.folder / "local.key").read_bytes()
    own, stranger = (tbmon.Redactor(key).pseudonym(wallet) for wallet in (WALLET, REQUESTER))
    (entry,) = allowed(site, "/api/logs?search=balance")["logs"]
    assert entry["message"] == f"balance of wallet:self and of {stranger}"
    everything = "".join(ask(site, path, password=PASSWORD).body.decode() for path in PATHS)
    assert everything.count("wallet:self") > 5
    assert [
        word for word in (own, WALLET[2:], REQUESTER[2:]) if word.lower() in everything.lower()
    ] == []


def test_a_wallet_that_turns_out_to_be_the_own_is_self_in_older_rows_too(tmp_path: Path) -> None:
    program = over_files(tmp_path)
    now = time.time() - 60
    seen = [
        header(f"Node with address {WALLET} is seen", now, wallet=REQUESTER).replace(
            f"-{REQUESTER}", ""
        )
    ]
    write(program, *seen)
    program.start()
    try:
        before = wait_for(lambda: program.private("/api/logs")["logs"])[0]["message"]
        assert re.search("wallet:[0-9a-f]{16}", before)
        write(program, header("Starting services", now + 1))
        wait_for(lambda: len(program.private("/api/logs")["logs"]) == 2)
        assert (
            program.private("/api/logs?search=seen")["logs"][0]["message"]
            == "Node with address wallet:self is seen"
        )
    finally:
        end(program)


# Paging


@pytest.fixture
def pager(tmp_path: Path) -> Iterator[Program]:
    """A monitor with 40 tasks and their invoices, five entries of each second."""
    program = over_files(tmp_path)
    for number in range(40):
        write(program, *numbered(number, START + number // 3))
    program.start()
    wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 40)
    yield program
    end(program)


def numbered(number: int, second: float) -> list[str]:
    """The lines of one task."""
    name = f"{number:08x}-0000-4000-8000-00000000abcd"
    return [header(received(name), second), header(invoice(name, "pay", f"7{number}"), second)]


def identity(row: dict[str, Any]) -> Any:
    return row.get("invoice_id") or row.get("message") or row["execution_id"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("tasks", lambda number: f"{number:08x}-0000-4000-8000-00000000abcd"),
        ("invoices", lambda number: f"7{number}"),
        ("logs", None),
    ],
)
def test_pages_are_complete_and_in_order_while_rows_arrive(
    pager: Program, name: str, given: Callable[[int], str] | None
) -> None:
    whole = pager.private(f"/api/{name}?limit=1000")
    everything = [identity(row) for row in whole[name]]
    assert whole["pagination"] == {"limit": 1000, "offset": 0, "hasMore": False, "next": None}
    if given is None:
        lines = Path(pager.env["LOG_DIR"], "worker-2026-01-01.log").read_text().splitlines()
        said = [line.partition(f":{VERSION} ")[2] for line in lines]
        assert [words[:80] for words in everything] == [words[:80] for words in said[::-1]]
    else:
        assert everything == [given(number) for number in range(39, -1, -1)]
    found, path, arrived = [], f"/api/{name}?limit=7", 40
    while path:
        page = pager.private(path)
        found += [identity(row) for row in page[name]]
        assert (
            page["pagination"]["hasMore"]
            == (page["pagination"]["next"] is not None)
            == (len(page[name]) == 7)
        )
        write(pager, *numbered(arrived, time.time()))
        arrived += 1
        if arrived == 42:
            wait_for(lambda: pager.get("/api/invoices/count")[1]["count"] >= 42)
        path = (
            page["pagination"]["next"]
            and f"/api/{name}?limit=7&cursor={page['pagination']['next']}"
        )
    assert found == everything


@pytest.mark.parametrize("name", ["tasks", "invoices", "logs"])
def test_offset_and_filter_go_with_the_cursor(pager: Program, name: str) -> None:
    span = f"since={at(2)}&until={at(9)}"
    everything = [identity(row) for row in pager.private(f"/api/{name}?limit=1000&{span}")[name]]
    first = pager.private(f"/api/{name}?{span}&limit=5&offset=3")
    assert [identity(row) for row in first[name]] == everything[3:8]
    assert first["pagination"] == {
        "limit": 5,
        "offset": 3,
        "hasMore": True,
        "next": first["pagination"]["next"],
    }
    rest = pager.private(f"/api/{name}?{span}&limit=1000&cursor={first['pagination']['next']}")
    assert [identity(row) for row in rest[name]] == everything[8:]
    exact = pager.private(f"/api/{name}?{span}&limit={len(everything)}")
    assert (len(exact[name]), exact["pagination"]["hasMore"]) == (len(everything), False)
    assert len(pager.private(f"/api/{name}")[name]) == min(
        50, len(pager.private(f"/api/{name}?limit=1000")[name])
    )


def test_twenty_clients_at_once_are_all_answered(site: Program) -> None:
    paths = [*PATHS, *STATIC] * 8
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(lambda path: ask(site, path, password=PASSWORD), paths))
    assert {answer.status for answer in answers} == {200}
    assert (
        len({answer.body for path, answer in zip(paths, answers, strict=True) if path == FIRST})
        == 1
    )


def test_the_status_tells_what_is_known_of_the_node(site: Program) -> None:
    wait_for(lambda: allowed(site, "/api/status")["verdict"]["state"] == "degraded")  # it is silent
    status = allowed(site, "/api/status")
    assert status["node"] == {
        "address": "wallet:self",
        "version": VERSION,
        "registered": True,
        "current_slots": 1,
        "total_slots": 4,
        "slots": {"InvoiceSubscriber": {"current": 1, "total": 4}},
        "started_at": None,
        "last_seen": at(221),
    }
    assert (status["container"], status["stats"], status["demo"]) == (None, None, False)
    assert status["recognised"] > 0.7
    assert allowed(site, "/health")["docker"] == "disabled"
    assert allowed(site, "/health")["version"] == tbmon.__version__
    found = allowed(site, "/api/logs/status")
    assert (found["source"], found["lastLogAt"], found["gaps"], found["suspect"]) == (
        "directory",
        at(221),
        [],
        0,
    )
