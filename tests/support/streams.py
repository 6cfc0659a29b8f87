"""A client of the live stream."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import socket
import threading
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import pytest

from support import contract
from support.asking import PASSWORD, Answer, ask, elsewhere
from support.machine import wait_for
from support.programs import Program

SHAPES = {
    "task": "Task",
    "invoice": "Invoice",
    "log": "Entry",
    "semaphore": "Semaphore",
    "node_status": "Status",
    "gap": "Gap",
    "reset": "Reset",
}
OPEN = {"X-Task-Data-Password": PASSWORD}
NOTHING: Mapping[str, str] = {}


class Event(NamedTuple):
    name: str
    id: str
    data: Any
    at: float


class Parser:
    """Takes the bytes of an event stream as the HTML standard says."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.comments: list[float] = []
        self.last_id, self.retry = "", ""
        self.rest, self.fields = b"", dict[str, str]()

    def feed(self, data: bytes) -> None:
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            name, _, value = line.decode().partition(":")
            if not line:
                self.dispatch()
            elif not name:
                self.comments.append(time.monotonic())
            elif name == "retry":
                self.retry = value.strip()
            else:
                assert name in ("id", "event", "data") and name not in self.fields, line
                self.fields[name] = value.removeprefix(" ")

    def dispatch(self) -> None:
        self.last_id = self.fields.get("id", self.last_id)
        if "data" in self.fields:
            data = json.loads(self.fields["data"], parse_constant=pytest.fail)
            self.events.append(Event(self.fields["event"], self.last_id, data, time.monotonic()))
        self.fields = {}


class Stream(Parser):
    """A client of /api/events; a thread of its own reads what comes, unless `reads` is False."""

    def __init__(
        self,
        program: Program,
        headers: Mapping[str, str] = NOTHING,
        last_id: str = "",
        address: str = "",
        reads: bool = True,
    ) -> None:
        super().__init__()
        source = (address, 0) if address else elsewhere()
        self.connection = http.client.HTTPConnection(
            "127.0.0.1", program.port, timeout=30, source_address=source
        )
        resumed = {"Last-Event-ID": last_id} if last_id else NOTHING
        self.connection.request("GET", "/api/events", headers={**headers, **resumed})
        self.socket: socket.socket = self.connection.sock  # which http.client forgets
        self.answer = self.connection.getresponse()
        self.status, self.failure, self.ended_at = self.answer.status, "", 0.0
        self.opened_at = time.monotonic()
        body = b"" if self.status == 200 else self.answer.read()
        self.error = json.loads(body)["error"] if body else ""
        contract.check("GET", "/api/events", self.status, self.answer.headers, body)
        self.thread = threading.Thread(target=self.read, daemon=True)
        if self.status == 200 and reads:
            self.thread.start()
            wait_for(lambda: self.last_id)

    def read(self) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):  # the end, told by `ended_at`
            try:
                while data := self.answer.read1(65536):
                    self.feed(data)
            except (AssertionError, ValueError, KeyError) as error:
                self.failure = repr(error)
        self.ended_at = time.monotonic()

    def of(self, name: str) -> list[Any]:
        return [event.data for event in self.events if event.name == name]

    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.of("log")]

    def wait(self, name: str, **fields: Any) -> Any:
        """The first event of this name with these fields, as soon as it is there."""
        return wait_for(lambda: [data for data in self.of(name) if fields.items() <= data.items()])[
            0
        ]

    def wait_for_message(self, message: str, timeout_s: float = 20) -> None:
        wait_for(lambda: message in self.messages(), timeout_s)

    def __enter__(self) -> Stream:
        assert self.status == 200
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.close()
        if kind is None:
            check_events(self)

    def close(self) -> None:
        with contextlib.suppress(OSError):  # it may be closed already
            self.socket.shutdown(socket.SHUT_RDWR)
        if self.thread.ident:
            self.thread.join(10)
        self.answer.close()
        self.connection.close()


def check_events(parser: Parser) -> None:
    """Every event has the shape that the OpenAPI document gives it, and ids rise."""
    assert not getattr(parser, "failure", "")
    for name, shape in SHAPES.items():
        data = [event.data for event in parser.events if event.name == name]
        for one in data[:100]:
            errors = list(contract.validator(f"#/components/schemas/{shape}").iter_errors(one))
            assert not errors, (name, [error.message for error in errors])
    assert {event.name for event in parser.events} <= set(SHAPES)
    numbers = [int(event.id.partition("-")[2]) for event in parser.events]
    assert numbers == sorted(numbers)
    assert all(re.fullmatch(r"[0-9a-f]{8}-\d+", event.id) for event in parser.events)


def post(program: Program, path: str, cookie: str = "", **body: str) -> tuple[Answer, str]:
    """The answer to a POST, and the cookie it sets."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=10, source_address=elsewhere()
    )
    connection.request(
        "POST", path, json.dumps(body), {"Content-Type": "application/json", "Cookie": cookie}
    )
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    contract.check("POST", path, *found)
    return found, (found.headers["Set-Cookie"] or "").partition(";")[0]


def login(program: Program, secret: str, cookie: str = "") -> str:
    answer, cookie = post(program, "/api/auth/login", cookie, secret=secret)
    assert answer.status == 200, answer.body
    return cookie


def streams_of(program: Program, key: str = "") -> int:
    """How many streams the program says it has."""
    found = re.search(
        r"^tbmon_streams (\d+)$", ask(program, "/metrics", key=key).body.decode(), re.M
    )
    assert found is not None
    return int(found[1])
