"""What is sent to harm: odd paths and frames, clients that do not behave, hostile words; and the
metrics.
"""

from __future__ import annotations

import contextlib
import csv
import http.client
import io
import json
import os
import random
import re
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import contract
from support.asking import PASSWORD, Answer, allowed, ask, elsewhere
from support.machine import missing, wait_for
from support.node_words import IDS, START, STORY, UNKNOWN, header, invoice, output, received
from support.programs import Program, end, over_files, resident_bytes, write

import tbmon

MIB = 2**20
CANARY = "<img src=x onerror=alert(1)>"
HOST = b"Host: localhost\r\n"
HIDDEN = b"GET /api/auth/status HTTP/1.1\r\nHost: localhost\r\n\r\n"  # must never be answered
LAST_WORD = b"GET /last-word HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
INNER = re.compile(
    r'Traceback|File "|\.py\b|/tmp/|/root/|/usr/|/opt/|SELECT |sqlite|PRAGMA|<locals>|0x[0-9a-f]{8}'
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor with STORY and with hostile words in every place of the log that a name can stand
    in.
    """
    program = over_files(
        tmp_path_factory.mktemp("site") / CANARY.replace("/", ""), API_RATE_LIMIT="0"
    )
    lines = [header(words, START + second, level) for second, level, words in STORY]
    write(
        program,
        *lines,
        *(header(words, START + 300 + place) for place, words in enumerate(HOSTILE)),
    )
    program.start()
    wait_for(lambda: allowed(program, "/api/logs?search=end+of+hostile+words")["logs"])
    wait_for(lambda: allowed(program, "/api/status")["verdict"])
    yield program
    end(program)


@pytest.fixture(scope="module")
def heavy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor with 400 log entries of 8 KiB: a page of them is larger than a socket's buffers."""
    program = over_files(tmp_path_factory.mktemp("heavy"), API_RATE_LIMIT="0")
    lines = (header(f"{number:04} " + "long " * 1600, START + number) for number in range(400))
    write(program, header("Starting services", START - 1), *lines)
    program.start()
    wait_for(lambda: allowed(program, "/api/logs?search=0399")["logs"])
    yield program
    end(program)


def said(program: Program) -> Callable[[], str]:
    """What the program writes to its log from now on."""
    before = len(program.log.read_text())
    return lambda: program.log.read_text()[before:]


def answers_in(data: bytes) -> list[Answer]:
    """The answers in what a connection gave."""
    found = []
    while data:
        head, between, rest = data.partition(b"\r\n\r\n")
        assert between, f"cut or no answer at all: {data[:200]!r}"
        first, _, lines = head.partition(b"\r\n")
        status = int(re.fullmatch(rb"HTTP/1\.[01] (\d{3}) [ -~]+", first)[1])  # type: ignore[index]
        headers = http.client.parse_headers(io.BytesIO(lines + b"\r\n\r\n"))
        length = int(headers["Content-Length"]) if status >= 200 else 0
        found.append(Answer(status, headers, rest[:length]))
        data = rest[length:]
    return found


def take(connection: socket.socket) -> bytes:
    """What is there to be read; b"" at the end of the connection."""
    try:
        return connection.recv(65536)
    except ConnectionError:  # the server has closed with bytes of ours unread
        return b""


def converse(program: Program, data: bytes) -> list[Answer]:
    """Send bytes, wait for an answer, then ask for what is not there and read until the connection
    ends.
    """
    got = b""
    with socket.create_connection(("127.0.0.1", program.port), 10, elsewhere()) as connection:
        with contextlib.suppress(ConnectionError):  # it may be refused before it is sent
            connection.sendall(data)
        while (chunk := take(connection)) and b"\r\n\r\n" not in (got := got + chunk):
            pass
        with contextlib.suppress(ConnectionError):
            connection.sendall(LAST_WORD)
        while chunk:
            chunk = take(connection)
            got += chunk
    return [answer for answer in answers_in(got) if answer.status != 100]


def assert_refused(answer: Answer, *statuses: int) -> None:
    """An error as all are: a sentence in JSON, the security headers, and nothing of the inside."""
    assert answer.status in statuses, (answer.status, answer.body)
    assert answer.headers["Content-Type"].startswith("application/json"), answer.body
    assert list(answer.json) == ["error"]
    assert re.fullmatch(r"[a-z].{15,}", answer.json["error"], re.S), answer.json
    assert not INNER.search(answer.body.decode()), answer.body
    for name in set(tbmon.SECURITY_HEADERS) - {"Cache-Control"}:
        assert answer.headers[name] == tbmon.SECURITY_HEADERS[name]
    assert (answer.headers["Cache-Control"], answer.headers["Server"]) == ("no-cache", None)


# Paths

UPS = [
    "../",
    "%2e%2e/",
    "%2e%2e%2f",
    "..%2f",
    ".%2e/",
    "%2E%2E%2F",
    "%252e%252e%252f",
    "%25252e%25252e%25252f",
    "..%252f",
    "%c0%ae%c0%ae/",
    "%c0%ae%c0%ae%c0%af",
    "%e0%80%ae%e0%80%ae%e0%80%af",
    "%f0%80%80%ae%f0%80%80%ae/",
    "..%c0%af",
    "..%c1%9c",
    "..\\",
    "..%5c",
    "%2e%2e%5c",
    "%252e%252e%255c",
    "..%00/",
    "..%01/",
    "..;/",
    "....//",
    "..././",
    "%u002e%u002e%u2215",
    "..%ef%bc%8f",
    "%uff0e%uff0e/",
    ".%00./",
    "..%0d/",
    "..%20/",
    "..%09/",
    "\u2025/",
    "..%ff/",
]
TARGETS = [
    *(f"/{up * 8}etc/passwd" for up in UPS),
    *(f"/{up}tbmon.py" for up in UPS),
    *(f"/a/{up}{up}tbmon.py" for up in UPS),
    *(f"/api/tasks/{up * 8}etc/passwd" for up in UPS),
    *(f"/app.js/{up}tbmon.py" for up in UPS),
    "//etc/passwd",
    "///etc/passwd",
    "/%2fetc%2fpasswd",
    "/etc/passwd",
    "/etc/passwd%00",
    "/etc/passwd%00.js",
    "/etc/passwd%00index.html",
    "/\\etc\\passwd",
    "/C:/Windows/win.ini",
    "/C:%5cWindows%5cwin.ini",
    "/file:///etc/passwd",
    "file:///etc/passwd",
    "/proc/self/environ",
    "/~root/.bashrc",
    "/%7eroot/",
    "/.git/config",
    "/.env",
    "/t.db",
    "/t.db-wal",
    "/local.key",
    "/../program/t.db",
    "/%2e%2e/program/local.key",
    "/static/",
    "/tests/conftest.py",
    "etc/passwd",
    "../../etc/passwd",
    "/api/../tbmon.py",
    "/api/tasks/..%2f..%2f..%2ftbmon.py",
    "?/../tbmon.py",
    "/app.js%00",
    "/app.js%20",
    "/app.js.",
    "/app.js::$DATA",
    "/app.js%ff",
    "/%ffapp.js",
    "/appp%08.js",
    "/./app.js",
]


def test_no_spelling_of_a_path_leads_out_of_the_page(site: Program) -> None:
    home = (
        (tbmon.STATIC / "index.html").read_bytes().partition(b"data-state")[0]
    )  # before what is filled in
    wrong = []
    with ThreadPoolExecutor(8) as clients:
        asked = [f"GET {target} HTTP/1.1\r\n".encode() + HOST + b"\r\n" for target in TARGETS]
        for target, (answer, *more) in zip(
            TARGETS, clients.map(lambda data: converse(site, data), asked), strict=True
        ):
            if target == "?/../tbmon.py" and answer.body.startswith(
                home
            ):  # the page, whatever the query
                continue
            if answer.status not in (400, 404) or [one.status for one in more] not in ([], [404]):
                wrong.append((target, answer.status, answer.body[:80]))
            else:
                assert_refused(answer, 400, 404)
    assert wrong == []


@pytest.mark.parametrize(
    "path", ["/api/stat%ffus", "/%ff/health", "/api/%c0%73tatus", "/api/status%80", "/ap%f0p.js"]
)
def test_bytes_that_are_no_text_are_not_left_out_of_a_path(site: Program, path: str) -> None:
    assert_refused(ask(site, path), 400, 404)


# Frames of requests


def post(*lines: bytes, version: bytes = b"1.1") -> bytes:
    """The head of a request that takes any body."""
    return b"\r\n".join([b"POST /api/auth/logout HTTP/" + version, HOST.strip(), *lines, b"", b""])


CHUNK = b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)
CODED, ALIVE = b"Transfer-Encoding: chunked", b"Connection: keep-alive"
LENGTH = b"Content-Length: %d" % len(HIDDEN)
GET = b"GET /health HTTP/1.1\r\n"
FRAMES = {  # of which each has HIDDEN where one reader sees a body and another a request
    "chunks before a length": post(CODED, b"Content-Length: %d" % (5 + len(HIDDEN)))
    + b"0\r\n\r\n"
    + HIDDEN,
    "a length before chunks": post(b"Content-Length: %d" % (5 + len(HIDDEN)), CODED)
    + b"0\r\n\r\n"
    + HIDDEN,
    "a short length and chunks": post(b"Content-Length: 4", CODED) + CHUNK,
    "chunks in HTTP/1.0": post(CODED, ALIVE, version=b"1.0") + HIDDEN,
    "chunks and a length in HTTP/1.0": post(CODED, ALIVE, b"Content-Length: 5", version=b"1.0")
    + b"0\r\n\r\n"
    + HIDDEN,
    "chunks in HTTP/2.0": post(CODED, ALIVE, version=b"2.0") + HIDDEN,
    "two lengths, the first 0": post(b"Content-Length: 0", LENGTH) + HIDDEN,
    "two lengths, the last 0": post(LENGTH, b"Content-Length: 0") + HIDDEN,
    "two lengths alike": post(LENGTH, LENGTH) + HIDDEN,
    "two lengths in one": post(b"Content-Length: 0, %d" % len(HIDDEN)) + HIDDEN,
    **{
        f"the length {text[:9]!r}": post(b"Content-Length: " + text) + HIDDEN
        for text in (
            b"",
            b"+0",
            b"-1",
            b"0x0",
            b"0 0",
            b"1_0",
            b"0;",
            b"\xd9\xa0",
            b"\x0b0",
            b"zero",
            b"9" * 5000,
        )
    },
    "a blank before the colon of the length": post(b"Content-Length : %d" % len(HIDDEN)) + HIDDEN,
    "a blank before the colon of the coding": post(b"Transfer-Encoding : chunked")
    + b"0\r\n\r\n"
    + HIDDEN,
    **{
        f"the coding {text!r}": post(b"Transfer-Encoding: " + text) + b"0\r\n\r\n" + HIDDEN
        for text in (
            b"xchunked",
            b"chunked, identity",
            b"identity",
            b"identity, chunked",
            b"gzip, chunked",
            b"chunked;q=1",
            b"\x0bchunked",
            b"\x85chunked",
            b"chunked\x0c",
            b"'chunked'",
            b"chunked\0",
            b"\xe2\x84\xaachunked",
        )
    },
    "two codings": post(CODED, b"Transfer-Encoding: identity") + b"0\r\n\r\n" + HIDDEN,
    "one coding twice": post(CODED, CODED) + CHUNK,
    "an empty coding": post(b"Transfer-Encoding:", b"Content-Length: %d" % len(CHUNK)) + CHUNK,
    "a folded coding": post(b"Transfer-Encoding:\r\n chunked") + CHUNK,
    "a coding folded into another header": post(b"X: y\r\n Transfer-Encoding: chunked", LENGTH)
    + HIDDEN,
    "a coding after a bare LF": post(b"X: y\nTransfer-Encoding: chunked") + b"0\r\n\r\n" + HIDDEN,
    "a coding after a bare CR": post(b"X: y\rTransfer-Encoding: chunked") + b"0\r\n\r\n" + HIDDEN,
    "a coding with an underscore": post(b"Transfer_Encoding: chunked", LENGTH) + HIDDEN,
    "a coding in other letters": post(b"tRANSFER-eNCODING: CHUNKED") + CHUNK,
    **{
        f"the chunk size {text!r}": post(CODED)
        + text
        + b"\r\n"
        + HIDDEN
        + b"\r\n0\r\n\r\n"
        + HIDDEN
        for text in (
            b"-1",
            b"+1",
            b"0x31",
            b"1_0",
            b"g",
            b" ",
            b"1 1",
            b"1;\n",
            b"1\n",
            b"\xd9\xa0",
            b"1\0",
            b";",
        )
    },
    "a chunk that is longer than it says": post(CODED) + b"1\r\nab\r\n0\r\n\r\n" + HIDDEN,
    "a chunk that ends in LF": post(CODED) + b"1\r\na\n0\r\n\r\n" + HIDDEN,
    "a chunk extension with a bare LF": post(CODED) + b"0;a\nb\r\n\r\n" + HIDDEN,
    "lines that end in LF": GET.replace(b"\r", b"") + b"Host: localhost\n\n" + HIDDEN,
    "a first header that is folded": GET + b" " + HOST + b"\r\n",
    "a folded header": GET + HOST + b"X: a\r\n b\r\n\r\n",
    "a header without a colon": GET + HOST + b"X\r\n\r\n",
    "a header without a name": GET + HOST + b": y\r\n\r\n",
    "a NUL in a header": GET + HOST + b"X: a\0b\r\n\r\n",
    "a NUL in a name": GET + HOST + b"X\0: a\r\n\r\n",
    "a bare CR in a header": GET + HOST + b"X: a\rb\r\n\r\n",
    "two hosts": GET + HOST + b"Host: evil.example\r\n\r\n",
    "no host": GET + b"\r\n",
    "a method in small letters": b"get /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method of other signs": b"G(T /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a method that is no text": b"\xff\xfe /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a long method": b"G" * 9000 + b" /health HTTP/1.1\r\n" + HOST + b"\r\n",
    "two blanks": b"GET  /health  HTTP/1.1\r\n" + HOST + b"\r\n",
    "tabs for blanks": b"GET\t/health\tHTTP/1.1\r\n" + HOST + b"\r\n",
    "a blank in the path": b"GET /health /x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a version of more digits": b"GET /health HTTP/1.10\r\n" + HOST + b"\r\n",
    "another protocol": b"GET /health RTSP/1.0\r\n" + HOST + b"\r\n",
    "a greeting of TLS": b"\x16\x03\x01\x00\xc8\x01\x00\x00\xc4\x03\x03" + b"\r\n\r\n",
    "HTTP/0.9": b"GET /health\r\n\r\n",
    "HTTP/0.9 with headers": b"GET /health\r\n" + HOST + b"\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0",
    "an upgrade to HTTP/2": GET
    + HOST
    + b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
    "an upgrade to a WebSocket": GET + HOST + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
    "a whole address": b"GET http://localhost/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a whole address of elsewhere": (
        b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n"
    ),
    "an address without an end": b"GET http://[/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "an address that is none": b"GET http://[x]/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a port that is none": b"GET http://localhost:x/health HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel": b"CONNECT localhost:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a tunnel to an address": b"CONNECT [::1]:80 HTTP/1.1\r\n" + HOST + b"\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\n" + HOST + b"\r\n",
    "a fragment": b"GET /health#/../x HTTP/1.1\r\n" + HOST + b"\r\n",
    "a path that is no text": b"GET /\xff\xfe HTTP/1.1\r\n" + HOST + b"\r\n",
    "control signs in a path": b"GET /\x01\x7f HTTP/1.1\r\n" + HOST + b"\r\n",
    "a body with a GET": GET + HOST + LENGTH + b"\r\n\r\n" + HIDDEN,
    "a body that is waited for": post(LENGTH, b"Expect: 100-continue") + HIDDEN,
}


@pytest.mark.parametrize("data", FRAMES.values(), ids=FRAMES)
def test_an_odd_frame_gets_one_answer_and_hides_no_second_request(
    site: Program, data: bytes
) -> None:
    log = said(site)
    answers = converse(site, data)
    assert answers, "it was not answered"
    assert [answer.status for answer in answers[1:]] in ([], [404])  # [404]: the last word
    assert [
        answer.body for answer in answers if b"session" in answer.body
    ] == []  # what HIDDEN asks
    if answers[0].status != 200:
        assert_refused(answers[0], 400, 404, 405, 421, 501)
    assert [word for word in ("uncaptured", "Traceback", "Exception") if word in log()] == []


@pytest.mark.parametrize(
    ("data", "status"),
    [
        pytest.param(GET + HOST + b"X: " + b"a" * 20_000 + b"\r\n\r\n", 431, id="a long header"),
        pytest.param(GET + HOST + b"a: b\r\n" * 4000 + b"\r\n", 431, id="many headers"),
        pytest.param(GET + HOST + b"X: " + b"a" * 20_000, 431, id="headers without an end"),
        pytest.param(
            b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 431, id="a long path"
        ),
        pytest.param(
            GET + HOST + b"Cookie: " + b"a=b; " * 9000 + b"\r\n\r\n" + HIDDEN,
            431,
            id="a long cookie",
        ),
        pytest.param(
            post(b"Content-Length: %d" % (tbmon.BODY_BYTES + 1)),
            413,
            id="a long body that is promised",
        ),
        pytest.param(post(b"Content-Length: " + b"9" * 40), 413, id="a body beyond all measure"),
        pytest.param(
            post(b"Content-Length: 999999") + b"a" * 999_999 + HIDDEN, 413, id="a long body"
        ),
        pytest.param(
            post(CODED) + (b"1000\r\n" + b"a" * 4096 + b"\r\n") * 40, 413, id="many chunks"
        ),
        pytest.param(post(CODED) + b"fffffff\r\n" + b"a" * 99_999, 413, id="one long chunk"),
        pytest.param(post(CODED) + b"f" * 99_999, 413, id="a chunk size without an end"),
        pytest.param(
            post(CODED) + b"0\r\n" + b"X: y\r\n" * 20_000, 413, id="trailers without an end"
        ),
        pytest.param(
            post(b"Expect: 100-continue", b"Content-Length: 999999"),
            413,
            id="a long body that asks first",
        ),
    ],
)
def test_what_is_too_large_is_refused_and_the_connection_closed(
    site: Program, data: bytes, status: int
) -> None:
    before = resident_bytes(site)
    (answer,) = converse(site, data)
    assert_refused(answer, status)
    assert answer.headers["Connection"] == "close"
    assert resident_bytes(site) - before < 8 * MIB


@pytest.mark.parametrize(("more", "status"), [(0, 400), (1, 413)])
def test_a_body_may_have_as_many_bytes_as_the_refusal_says(
    site: Program, more: int, status: int
) -> None:
    size = tbmon.BODY_BYTES + more
    data = post(b"Content-Type: application/json", b"Content-Length: %d" % size).replace(
        b"logout", b"login"
    )
    answer = converse(site, data + b" " * size)[0]
    assert_refused(answer, status)
    assert status == 400 or str(tbmon.BODY_BYTES) in answer.json["error"]


@pytest.mark.parametrize("broken", [b"\r", b"\n", b"\0"])
@pytest.mark.parametrize("name", [b"X-Task-Data-Password", b"Authorization", b"Cookie"])
def test_a_header_that_cannot_be_read_is_not_repeated_in_the_refusal(
    site: Program, name: bytes, broken: bytes
) -> None:
    answer = converse(site, GET + HOST + name + b": open sesame" + broken + b"x\r\n\r\n")[0]
    assert_refused(answer, 400)
    assert b"sesame" not in answer.body


# Clients that do not behave

MUCH = (
    b"GET /api/logs?limit=60 HTTP/1.1\r\n"
    + HOST
    + f"X-Task-Data-Password: {PASSWORD}\r\n\r\n".encode()
)


def connect(program: Program, data: bytes = b"", buffer_bytes: int = 0) -> socket.socket:
    """A connection that has sent `data`; with a small buffer, little of an answer is taken from the
    server.
    """
    made = socket.socket()
    if buffer_bytes:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    made.settimeout(10)
    made.bind(("127.0.0.2", 0))
    made.connect(("127.0.0.1", program.port))
    made.sendall(data)
    return made


def seconds_of(program: Program, path: str) -> float:
    """How long a right request takes; 10 or more if it is not answered."""
    begun = time.monotonic()
    with contextlib.suppress(TimeoutError):
        assert ask(program, path).status == 200
    return time.monotonic() - begun


def sockets(program: Program) -> int:
    """How many the program holds."""
    if not Path("/proc/self/fd").exists():
        missing("/proc")
    found = 0
    for place in Path(f"/proc/{program.process.pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):  # closed meanwhile
            found += os.readlink(place).startswith("socket:")
    return found


def test_idle_and_half_sent_requests_keep_nobody_waiting(site: Program) -> None:
    halves = [
        b"G",
        GET,
        GET + b"Host: loc",
        GET + HOST,
        post(b"Content-Length: 60000") + b"{",
        post(CODED) + b"ffff\r\n{",
        post(CODED) + b"1",
        post(b"Expect: 100-continue", b"Content-Length: 9"),
        b"\r\n" * 99,
        GET + HOST + b"X: " + b"a" * 15_000,
    ]
    before, open_before = resident_bytes(site), sockets(site)
    with contextlib.ExitStack() as stack:
        for data in [b""] * 105 + halves * 10:
            stack.enter_context(connect(site, data))
        wait_for(lambda: sockets(site) >= open_before + 205)
        assert (
            max(
                seconds_of(site, path) for path in ("/health", "/api/status", "/api/tasks", "/") * 5
            )
            < 1
        )
        assert resident_bytes(site) - before < 32 * MIB
    wait_for(lambda: sockets(site) <= open_before + 5)


def test_clients_that_ask_for_much_and_never_read_keep_nobody_waiting(heavy: Program) -> None:
    assert len(ask(heavy, "/api/logs?limit=60", password=PASSWORD).body) > 1.5 * tbmon.UNSENT_BYTES
    before, open_before = resident_bytes(heavy), sockets(heavy)
    log = said(heavy)
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(heavy, MUCH * 10, 4096))
        wait_for(
            lambda: seconds_of(heavy, "/health") < 1, tbmon.SLOW_S - 2
        )  # not only when the clients are cut
        assert max(seconds_of(heavy, path) for path in ("/health", "/api/status", "/") * 5) < 5
        assert resident_bytes(heavy) - before < 320 * MIB
    wait_for(lambda: sockets(heavy) <= open_before + 5)
    assert seconds_of(heavy, "/api/status") < 1
    assert len(log().splitlines()) < 20  # who floods the API does not flood the log


def test_clients_that_hang_up_in_the_middle_of_an_answer_do_no_harm(heavy: Program) -> None:
    log, open_before = said(heavy), sockets(heavy)
    chance = random.Random(5)
    for number in range(60):
        made = connect(heavy, MUCH, 4096)
        for _ in range(number % 3):
            assert made.recv(chance.randrange(1, 4096))
        if number % 2:
            made.setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
            )  # a reset, not an end
        made.close()
    wait_for(lambda: sockets(heavy) <= open_before + 5)
    assert seconds_of(heavy, "/api/status") < 1
    assert [word for word in ("Traceback", "uncaptured") if word in log()] == []


@pytest.mark.parametrize("path", ["/api/logs", "/api/auth/login"])
def test_guessing_the_password_in_parallel_lets_nobody_in(site: Program, path: str) -> None:
    source = elsewhere()

    def guess(number: int) -> int:
        word = [
            "open sesame",
            "open sesam",
            "",
            "OPEN SESAME",
            "open sesame"[number % 3 :],
            "'--",
            "größe",
        ][number % 7]
        connection = http.client.HTTPConnection(
            "127.0.0.1", site.port, timeout=20, source_address=source
        )
        body = json.dumps({"secret": f"{word} {number}"}) if path.endswith("login") else None
        headers = (
            {"Content-Type": "application/json"}
            if body
            else {"X-Task-Data-Password": f"{number} {word}"}
        )
        connection.request("POST" if body else "GET", path, body, headers)
        answer = connection.getresponse()
        content = answer.read()
        contract.check("POST" if body else "GET", path, answer.status, answer.headers, content)
        assert answer.headers["Set-Cookie"] is None
        connection.close()
        return answer.status

    with ThreadPoolExecutor(20) as guessers:
        statuses = Counter(guessers.map(guess, range(300)))
    assert set(statuses) == {401, 429}
    assert statuses[401] == tbmon.LOGIN_FAILURES


# Words


NAMES = [
    CANARY,
    "</script><script>alert(2)</script>",
    "\"'><svg onload=alert(3)>",
    "javascript:alert(4)",
    "{{7*7}}",
]
CODES = [
    f"{CANARY}",
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    '=HYPERLINK("http://evil.example")',
]
HOSTILE = [
    *(f"balance of {name}" for name in NAMES),
    *(received(name) for name in NAMES),
    *(
        received(f"{number:08x}-0000-4000-8000-0000000000ff", chainId=name)
        for number, name in enumerate(NAMES)
    ),
    *(
        received(f"{number:08x}-0000-4000-8000-0000000000fe", taskId=f"js_{name}")
        for number, name in enumerate(CODES)
    ),
    *(
        received(f"{number:08x}-0000-4000-8000-0000000000fd", taskId=name)
        for number, name in enumerate(CODES)
    ),
    *(f"Execution {name} completed" for name in NAMES),
    *(f"Execution {IDS[4]} failed: {name}" for name in NAMES),
    *(invoice(IDS[3], "pay", name) for name in (*NAMES, *CODES)),
    *(invoice(IDS[3], name, f"8{number}") for number, name in enumerate((*NAMES, *CODES))),
    *(output(True, executionId=name) for name in NAMES),
    *(f"Semaphore {name} processing started - Using slot 1/4" for name in NAMES),
    "end of hostile words",
]
LISTS = ["/api/tasks?limit=1000", "/api/invoices?limit=1000", "/api/logs?limit=1000"]
EVERY = [
    *LISTS,
    "/api/status",
    "/api/status/stats",
    "/api/invoices/summary",
    "/api/logs/status",
    "/api/audit-log",
]


def test_hostile_words_of_the_log_come_back_as_the_text_they_are(site: Program) -> None:
    found = [
        entry["message"]
        for entry in allowed(site, "/api/logs?limit=1000&search=balance+of")["logs"]
    ]
    assert [f"balance of {name}" for name in NAMES] == found[: len(NAMES)][::-1]
    seen = "".join(ask(site, path, password=PASSWORD).body.decode() for path in EVERY)
    assert all(json.dumps(name)[1:-1] in seen for name in NAMES)


@pytest.mark.parametrize("path", EVERY)
def test_what_may_hold_hostile_words_is_json_that_no_browser_takes_for_a_page(
    site: Program, path: str
) -> None:
    answer = ask(site, path, password=PASSWORD)
    assert answer.status == 200
    assert answer.headers["Content-Type"] == "application/json; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert "default-src 'self'" in str(answer.headers["Content-Security-Policy"])


@pytest.mark.parametrize(
    ("path", "host", "status"),
    [
        (f"/{CANARY.replace(' ', '%20')}", "localhost", 404),
        ("/api/tasks/%3Cscript%3E", "localhost", 404),
        ("/api/tasks?%3Cscript%3E=1", "localhost", 400),
        ("/api/tasks?limit=%3Cscript%3E", "localhost", 400),
        ("/", "<script>alert(1)</script>", 421),
        ("/api/status", 'x"><script>', 421),
    ],
)
def test_hostile_words_of_a_request_are_refused_in_json(
    site: Program, path: str, host: str, status: int
) -> None:
    answer = ask(site, path, host=host)
    assert_refused(answer, status)
    assert b"alert" not in answer.body


@pytest.mark.parametrize("path", ["/api/tasks?format=csv", "/api/invoices?format=csv"])
def test_no_cell_of_a_table_begins_like_a_formula(site: Program, path: str) -> None:
    answer = ask(site, path, password=PASSWORD)
    assert answer.headers["Content-Type"] == "text/csv; charset=utf-8"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert str(answer.headers["Content-Disposition"]).startswith("attachment")
    names, *rows = csv.reader(io.StringIO(answer.body.decode(), newline=""))
    cells = [cell for row in rows for cell in row]
    assert [cell for cell in cells if re.match(r"[=+\-@\t\r\n]", cell)] == []
    assert "'-1" in cells  # one that would
    assert (len(rows) > 5, {len(row) for row in rows}) == (True, {len(names)})


@pytest.mark.parametrize("start", list("=+-@\t\r\n"))
@pytest.mark.parametrize("words", ["1+1", 'HYPERLINK("x","y")', "a,b\r\nc", "", "ä'"])
def test_a_formula_is_led_by_an_apostrophe_and_nothing_of_it_is_lost(
    start: str, words: str
) -> None:
    text = "".join(tbmon.csv_lines(["a", "b"], [{"a": start + words, "b": words}]))
    assert list(csv.reader(io.StringIO(text, newline="")))[1:] == [["'" + start + words, words]]


# Errors


def big_login(words: str) -> bytes:
    body = words.encode()
    head = post(b"Content-Type: application/json", b"Content-Length: %d" % len(body))
    return head.replace(b"logout", b"login") + body


def plain(target: str, method: str = "GET", *lines: str) -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", HOST.decode().strip(), *lines, "", ""]
    ).encode("latin-1")


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (plain("/api/tasks?limit=x"), 400),
        (plain("/api/tasks?a=b"), 400),
        (plain("/api/tasks?search='--"), 400),
        (plain("/api/logs"), 401),
        (plain("/api/logs?limit=1", "GET", "X-Task-Data-Password: x'--"), 401),
        (plain("/api/status", "GET", "Origin: http://evil.example"), 403),
        (plain("/nothing"), 404),
        (plain("/api/tasks/x'%20OR%201=1--"), 404),
        (plain(UNKNOWN), 404),
        (plain("/api/tasks", "DELETE"), 405),
        (plain("/api/tasks", "TRACE"), 405),
        (plain("/api/csrf-token"), 410),
        (plain("/api/federation/peers/x/block", "POST"), 410),
        (plain("/api/auth/login", "POST", "Content-Length: 0"), 415),
        (plain("/").replace(b"localhost", b"a.b"), 421),
        *(
            (big_login(words), 400)
            for words in (
                "",
                "{",
                "[" * 30_000,
                '{"a":' * 9000,
                "NaN",
                '{"secret": NaN}',
                '{"secret": 1}',
                "{'secret': 'a'}",
                '{"secret": "a", "secret": "a"}',
                '{"secret": ' + "9" * 5000 + "}",
                "[]",
                "null",
                '"x"',
                "\0",
                "{}" * 9,
                '{"secret": "a"} x',
            )
        ),
        (big_login('{"secret": "\\ud800"}'), 401),
        (big_login('{"secret": "\\u0000"}'), 401),
    ],
)
def test_an_error_is_a_sentence_that_tells_nothing_of_the_inside(
    site: Program, data: bytes, status: int
) -> None:
    log = said(site)
    assert_refused(converse(site, data)[0], status)
    assert "Traceback" not in log()


# Metrics


def metrics(program: Program) -> dict[str, Any]:
    """{name: family} as Prometheus's own parser reads them."""
    answer = ask(program, "/metrics")
    assert (answer.status, answer.headers["Content-Type"]) == (
        200,
        "text/plain; version=0.0.4; charset=utf-8",
    )
    families = list(text_string_to_metric_families(answer.body.decode()))
    assert len({family.name for family in families}) == len(families)
    return {family.name: family for family in families}


def value(found: dict[str, Any], name: str, **labels: str) -> float | None:
    """The value of a sample; None if there is none."""
    for family in found.values():
        for sample in family.samples:
            if sample.name == name and sample.labels == labels:
                return float(sample.value)
    return None


def test_metrics_keep_the_conventions_of_prometheus(site: Program) -> None:
    text = ask(site, "/metrics").body.decode()
    assert text.endswith("\n") and "\n\n" not in text
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, re.M))
    helps = dict(re.findall(r"^# HELP (\S+) (\S.*)$", text, re.M))
    assert (list(kinds), set(kinds.values())) == (list(helps), {"counter", "gauge", "summary"})
    for name, kind in kinds.items():
        assert re.fullmatch("(tbmon|process)(_[a-z]+)+", name)
        assert name.endswith("_total") == (kind == "counter"), name
        assert not re.search(
            "_(ms|milliseconds|mb|mib|kb|kib|percent|minutes|hours|days|ns|count|sum)(_total)?$",
            name,
        )
        assert helps[name][0].isupper() or helps[name].startswith("1 "), name
    samples = [sample for family in metrics(site).values() for sample in family.samples]
    assert len({(sample.name, *sorted(sample.labels.items())) for sample in samples}) == len(
        samples
    )
    least = {"_bytes": 1000, "_timestamp_seconds": 1.7e9, "start_time_seconds": 1.7e9}
    assert [
        one
        for one in samples
        for unit in least
        if one.name.endswith(unit) and one.value < least[unit]
    ] == []
    assert all(re.fullmatch("[a-z_]+", name) for sample in samples for name in sample.labels)
    assert {sample.name for sample in samples} >= {
        name for name in kinds if name.endswith("_total")
    }


def test_metrics_agree_with_the_api(site: Program) -> None:
    found, status, summary = (
        metrics(site),
        allowed(site, "/api/status"),
        allowed(site, "/api/tasks/stats/summary"),
    )
    invoices, logs = allowed(site, "/api/invoices/summary"), allowed(site, "/api/logs/status")
    listed = allowed(site, "/api/tasks?limit=1000")["tasks"]
    for state in tbmon.STATUSES:
        assert value(found, "tbmon_tasks", status=state) == summary[state]
        assert summary[state] == sum(task["status"] == state for task in listed)
    assert value(found, "tbmon_tasks_received_total") == summary["total"] == len(listed)
    times = [task["elapsed_ms"] for task in listed if task["elapsed_ms"] is not None]
    assert value(found, "tbmon_task_duration_seconds_sum") == pytest.approx(sum(times) / 1000)
    assert value(found, "tbmon_task_duration_seconds_count") == len(times) > 0
    assert (
        value(found, "tbmon_task_steps_total")
        == float(sum(int(task["gas_used"] or 0) for task in listed))
        > 2**60
    )
    rows = allowed(site, "/api/invoices?limit=1000")["invoices"]
    assert value(found, "tbmon_invoices_received_total") == invoices["total"] == len(rows)
    assert value(found, "tbmon_invoices", operation="pay") == invoices["paid"] > 0
    assert value(found, "tbmon_invoices", operation="penalty") == invoices["penalised"] > 0
    assert value(found, "tbmon_invoices", operation="unknown") == sum(
        row["operation"] is None for row in rows
    )
    assert value(found, "tbmon_log_unrecognised_total") == logs["unrecognised"] > 0
    assert value(found, "tbmon_log_suspect_total") == logs["suspect"]
    assert value(found, "tbmon_log_gaps_total") == len(logs["gaps"])
    last = tbmon.parse_time(logs["lastLogAt"])
    assert (
        last is not None and value(found, "tbmon_log_last_entry_timestamp_seconds") == last / 1000
    )
    assert value(found, "tbmon_build_info", version=tbmon.__version__) == 1
    states = {sample.labels["state"]: sample.value for sample in found["tbmon_verdict"].samples}
    assert (states[status["verdict"]["state"]], sum(states.values())) == (1, 1)
    for name, slot in status["node"]["slots"].items():
        assert value(found, "tbmon_slots", subscriber=name) == slot["total"]
        assert value(found, "tbmon_slots_in_use", subscriber=name) == slot["current"]
    assert value(found, "tbmon_container_running") is None  # there is no container to see
    held = value(found, "process_resident_memory_bytes")
    assert held is not None and abs(held - resident_bytes(site)) < 16 * MIB


def test_counters_do_not_fall_when_the_program_starts_again(tmp_path: Path) -> None:
    program = over_files(tmp_path)
    write(program, *(header(words, START + second, level) for second, level, words in STORY))

    def counters() -> dict[str, float]:
        families = metrics(program).values()
        samples = [
            sample
            for family in families
            if family.type in ("counter", "summary")
            for sample in family.samples
        ]
        return {sample.name: sample.value for sample in samples}

    try:
        program.start()
        wait_for(lambda: len(allowed(program, "/api/logs")["logs"]) == len(STORY))
        wait_for(lambda: counters()["tbmon_log_unrecognised_total"] > 0)
        before, begun = counters(), metrics(program)["process_start_time_seconds"].samples[0].value
        end(program)
        program.start()
        first = counters()  # before the log is read again
        assert {
            name: (before[name], number) for name, number in first.items() if number < before[name]
        } == {}
        wait_for(lambda: allowed(program, "/api/status")["verdict"])
        assert (counters(), set(first)) == (
            before,
            set(before),
        )  # what was counted is not counted again
        assert metrics(program)["process_start_time_seconds"].samples[0].value > begun
        write(program, header(received("0000000a-5b7a-4c11-9a60-0d5e8f7a1b2c"), time.time()))
        wait_for(
            lambda: (
                counters()["tbmon_tasks_received_total"] == before["tbmon_tasks_received_total"] + 1
            )
        )
    finally:
        end(program)


@pytest.mark.parametrize(
    "word",
    [
        'a"b',
        "a\\b",
        "a\nb",
        '"',
        "\n",
        '\\"',
        "\\n",
        '"} 9\nevil 1',
        "{}",
        "ä",
        "a,b=c",
        "",
        CANARY,
        "\\\n",
    ],
)
def test_a_label_comes_out_of_the_official_parser_as_it_went_in(word: str) -> None:
    text = tbmon.metrics_text(
        [("tbmon_x", "gauge", "Words.", tbmon.labelled("name", {word: 1.5, "other": None}))]
    )
    (family,) = text_string_to_metric_families(text)
    assert [(one.name, one.labels, one.value) for one in family.samples] == [
        ("tbmon_x", {"name": word}, 1.5)
    ]
    assert len(text.splitlines()) == 3
