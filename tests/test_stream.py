"""The live stream over real HTTP: what it tells and to whom, how it is taken up again, its limits
and its ends.
"""

from __future__ import annotations

import contextlib
import json
import random
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.asking import PASSWORD, allowed, ask, elsewhere
from support.engine import Node, docker
from support.machine import figure_of, wait_for
from support.node_words import HUGE, header, invoice, output, received
from support.programs import Program, end, over_files, write
from support.streams import (
    NOTHING,
    OPEN,
    Event,
    Parser,
    Stream,
    check_events,
    login,
    post,
    streams_of,
)

import tbmon

SECRETS = {"Authorization": "Bearer a key", "X-Stream-Token": "a token"}
REQUEST = b"GET /api/events HTTP/%s\r\nHost: localhost\r\nX-Task-Data-Password: open sesame\r\n\r\n"
NAMES = (f"{number:08x}-5e5e-4c11-9a60-0d5e8f7a1b2c" for number in range(10**6))
MANY = 40  # so few entries do not tell whether the wording is known


def say(program: Program, *messages: str) -> None:
    write(program, *(header(message) for message in messages))


class Tuned(Program):
    """tbmon with constants that let a test see in seconds what else takes minutes or a day."""

    CODE = "import sys, tbmon; tbmon.SLOW_S = 2; tbmon.SESSION_MS = 1500; sys.exit(tbmon.main())"

    def start(self, command: str = "serve") -> Program:
        with self.log.open("ab") as log:
            words = (sys.executable, "-c", self.CODE, command)
            self.process = subprocess.Popen(
                words, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        wait_for(self.answers)
        return self


def live(
    folder: Path,
    kind: type[Program] = Program,
    headers: Mapping[str, str] = NOTHING,
    **settings: str,
) -> Program:
    """A monitor that has read MANY lines of history: what is written from now on is told."""
    (folder / "logs").mkdir(parents=True)
    program = kind(folder / "program", LOG_DIR=str(folder / "logs"), **settings)
    say(program, "Starting services", *(f"history {number}" for number in range(MANY)))
    program.start()
    with Stream(program, headers, first_id(program, headers)) as stream:
        stream.wait("reset")
    return program


def first_id(program: Program, headers: Mapping[str, str] = NOTHING) -> str:
    """The id that everything this process told follows."""
    with Stream(program, headers) as stream:
        return stream.last_id.partition("-")[0] + "-0"


@pytest.fixture(scope="module", autouse=True)
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stream]:
    """A stream of which nothing is told, opened first, so that its silence costs no time."""
    program = over_files(tmp_path_factory.mktemp("quiet")).start()
    with Stream(program) as stream:
        yield stream
    end(program)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = live(tmp_path_factory.mktemp("site") / "live")
    yield program
    end(program)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that asks for a secret for each class."""
    secrets = {"API_KEY": "a key", "WS_AUTH_REQUIRED": "true", "WS_AUTH_TOKEN": "a token"}
    program = live(tmp_path_factory.mktemp("locked") / "live", Program, SECRETS, **secrets)
    yield program
    end(program)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = live(tmp_path_factory.mktemp("tuned") / "live", Tuned)
    yield program
    end(program)


# What is told


@pytest.mark.parametrize(
    "headers", [{}, {"Accept-Encoding": "gzip, deflate, br"}, {"Accept": "text/event-stream"}]
)
def test_a_stream_opens_with_headers_that_no_proxy_holds_back(
    site: Program, headers: dict[str, str]
) -> None:
    with Stream(site, headers) as stream:
        given = stream.answer.headers
        assert given["Content-Type"] == "text/event-stream; charset=utf-8"
        assert (given["X-Accel-Buffering"], given["Cache-Control"]) == ("no", "no-store")
        assert (given["Content-Encoding"], given["Content-Length"], given["ETag"]) == (
            None,
            None,
            None,
        )
        assert given["X-Content-Type-Options"] == "nosniff"
        assert stream.retry.isdigit() and 500 <= int(stream.retry) <= 10_000


def test_a_client_of_http_1_0_reads_the_same_stream_until_its_end(site: Program) -> None:
    parser = Parser()
    with socket.create_connection(
        ("127.0.0.1", site.port), 5, source_address=elsewhere()
    ) as client:
        client.sendall(REQUEST % b"1.0")
        head, data = b"", b""
        while b"\r\n\r\n" not in head:
            head += client.recv(4096)
        head, _, data = head.partition(b"\r\n\r\n")
        say(site, "to old clients too")
        parser.feed(data)
        while not parser.events:
            parser.feed(client.recv(4096))
    assert head.startswith(b"HTTP/1.") and b" 200 " in head.split(b"\r\n")[0]
    assert b"chunked" not in head
    assert [event.name for event in parser.events][:1] == ["log"]


def test_events_carry_what_the_lists_show(site: Program) -> None:
    name, number = next(NAMES), "72508152176399"
    with Stream(site, OPEN) as stream:
        say(site, "Semaphore InvoiceSubscriber processing started - Using slot 1/4", received(name))
        first = stream.wait("task", execution_id=name)
        assert (first["status"], first["completed_at"]) == ("received", None)
        slots = {"subscriber": "InvoiceSubscriber", "current": 1, "total": 4}
        assert stream.wait("semaphore", subscriber="InvoiceSubscriber") == slots
        ended = [
            f"Starting task execution {name}",
            output(True, executionId=name),
            f"Execution {name} completed",
        ]
        say(site, *ended, invoice(name, "pay", number))
        stream.wait("task", status="completed")
        stream.wait("invoice", invoice_id=number)
        wait_for(lambda: len(stream.of("log")) == 6)
        last = stream.of("task")[-1]
        assert (last["id"], last["gas_used"]) == (first["id"], str(HUGE))
        assert [last] == ask(site, f"/api/tasks?execution_id={name}").json["tasks"]
        assert (
            stream.of("invoice")[-1:]
            == ask(site, f"/api/invoices?execution_id={name}").json["invoices"]
        )
        newest = ask(site, "/api/logs?limit=6", password=PASSWORD).json["logs"]
        assert stream.of("log") == newest[::-1]
        found = ask(site, "/api/status").json["node"]["slots"]["InvoiceSubscriber"]
        assert found == {"current": slots["current"], "total": slots["total"]}
        said = json.dumps([event.data for event in stream.events])
        assert "wallet:self" in said and not re.search("0x[0-9a-fA-F]{40}", said)


def test_an_entry_that_grew_is_told_whole(site: Program) -> None:
    message = f"a payload {time.time()} {{"
    with Stream(site, OPEN) as stream:
        say(site, message)
        stream.wait_for_message(message)
        write(site, '  "a": 1', "}")
        whole = f'{message}\n  "a": 1\n}}'
        stream.wait_for_message(whole)
        assert (
            len({entry["id"] for entry in stream.of("log") if entry["message"].startswith(message)})
            == 1
        )
        assert (
            stream.of("log")[-1]
            == ask(site, "/api/logs?limit=1", password=PASSWORD).json["logs"][0]
        )


def test_history_that_is_read_at_the_start_is_told_by_one_reset(site: Program) -> None:
    say(site, "no history")
    with Stream(site, OPEN, first_id(site)) as stream:
        stream.wait_for_message("no history")
        assert len(stream.of("reset")) == 1
        assert [message for message in stream.messages() if message.startswith("history")] == []


def test_the_node_s_status_is_told_as_the_api_has_it(site: Program) -> None:
    def told() -> dict[str, Any]:
        with Stream(site, last_id=first_id(site)) as stream:
            return {**stream.wait("node_status"), "timestamp": None}

    wait_for(
        lambda: told() == {**ask(site, "/api/status").json, "timestamp": None}
    )  # unless it changed in between


# Who is told


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": f"Bearer {PASSWORD}"}, {"X-Stream-Token": PASSWORD}]
)
def test_without_the_password_nothing_of_the_log_is_told(
    site: Program, headers: dict[str, str]
) -> None:
    name = next(NAMES)
    with Stream(site, headers) as stream, Stream(site, OPEN) as other:
        say(site, received(name, input="canary input"), f"Execution {name} failed: canary words")
        other.wait("log", type="task_failed")
        stream.wait("task", execution_id=name, status="failed")
        assert stream.of("log") == []
        assert "canary" not in json.dumps([event.data for event in stream.events])
        assert "canary" in json.dumps([event.data for event in other.events])


def test_the_stream_is_no_place_to_guess_the_password_at(site: Program) -> None:
    """An old number as Last-Event-ID would show at once whether the password was right."""
    source = elsewhere()[0]
    guesses = [{"X-Task-Data-Password": f"guess {number}"} for number in range(12)]
    streams = [Stream(site, guess, address=source, reads=False) for guess in guesses]
    for stream in streams:
        stream.close()
    wait_for(lambda: streams_of(site) == 0)
    assert [stream.status for stream in streams] == [401] * 10 + [429] * 2
    with Stream(site, OPEN, address=source):  # the right one is taken at any time
        pass


@pytest.mark.parametrize("query", ["token=a", "password=open+sesame", "lastEventId=1"])
def test_nothing_is_taken_from_the_url(site: Program, query: str) -> None:
    answer = ask(site, f"/api/events?{query}")
    assert (answer.status, query.partition("=")[0] in answer.json["error"]) == (400, True)


@pytest.mark.parametrize(
    ("headers", "name"),
    [
        ({}, "API key"),
        ({"X-Stream-Token": "a token"}, "API key"),
        ({"Authorization": "Bearer a key"}, "token"),
        ({"Authorization": "Bearer a key", "X-Stream-Token": "another"}, "token"),
        ({"Authorization": "Bearer a key", **OPEN}, "token"),
    ],
)
def test_a_stream_without_its_secrets_is_refused_at_once(
    locked: Program, headers: dict[str, str], name: str
) -> None:
    stream = Stream(locked, headers, reads=False)
    stream.close()
    assert (stream.status, name in stream.error) == (401, True)
    wait_for(lambda: streams_of(locked, key="Bearer a key") == 0, 3)


def test_a_session_is_told_the_log_from_the_login_on_that_opens_it_and_ends_with_it(
    locked: Program,
) -> None:
    cookie = login(locked, "a token", login(locked, "a key"))
    with Stream(locked, {"Cookie": cookie}) as stream, Stream(locked, SECRETS | OPEN) as other:
        before, after = next(NAMES), next(NAMES)
        say(locked, "before the login", received(before))
        stream.wait("task", execution_id=before)
        other.wait_for_message("before the login")
        assert stream.of("log") == []
        cookie = login(locked, PASSWORD, cookie)
        say(locked, "after the login", received(after))
        stream.wait_for_message("after the login")
        assert "before the login" not in stream.messages()
        began = time.monotonic()
        post(locked, "/api/auth/logout", cookie)
        assert wait_for(lambda: stream.ended_at, 3) - began < 2
        say(locked, "after the logout")
        other.wait_for_message("after the logout")
        assert "after the logout" not in stream.messages()
    assert Stream(locked, {"Cookie": cookie}, reads=False).status == 401


def test_a_session_that_expires_ends_its_stream(tuned: Program) -> None:
    began = time.monotonic()
    cookie = login(tuned, PASSWORD)
    with Stream(tuned, {"Cookie": cookie}) as stream, Stream(tuned) as other:
        say(tuned, "while it lasts")
        stream.wait_for_message("while it lasts")
        assert 1.4 < wait_for(lambda: stream.ended_at, 6) - began < 3.5
        assert not other.ended_at


# Taking it up again


def test_a_reader_that_comes_back_misses_nothing_and_gets_nothing_twice(site: Program) -> None:
    said = [f"resume {number}" for number in range(600)]
    with Stream(site) as stream:
        last_id = stream.last_id
    say(site, *said[:300])
    dice, got, pending = random.Random(7), list[Event](), said[300:]
    deadline = time.monotonic() + 15
    while len(got) < len(said) and time.monotonic() < deadline:
        stream = Stream(site, OPEN, last_id, reads=False)
        for _ in range(dice.randrange(1, 4)):  # cut anywhere, also within an event
            stream.feed(stream.answer.read1(dice.randrange(1, 20_000)))
        stream.close()
        check_events(stream)
        say(site, *pending[:20])
        got, pending, last_id = got + stream.events, pending[20:], stream.last_id or last_id
    assert [event.data["message"] for event in got if event.name == "log"] == said
    assert [event.name for event in got if event.name == "reset"] == []
    assert len({event.id for event in got}) == len(got)


@pytest.mark.parametrize(
    "last_id",
    [
        "00000000-1",
        "00000000-{newest}",
        "{boot}-99999999",
        "{boot}-999999999999999999",
        "{boot}-9" + "9" * 400,
        "{boot}--1",
        "{boot}-",
        "{boot}",
        "{boot}-1x",
        "{boot}-1.0",
        "{boot} -1",
        "-1",
        "1",
        "junk",
        "\u00b2",
        "{boot}-\u00b2",
        "'; DROP TABLE",
    ],
)
def test_an_id_that_cannot_be_gone_on_from_gets_one_reset(site: Program, last_id: str) -> None:
    with Stream(site) as stream:
        boot, newest = stream.last_id.split("-")
    with Stream(
        site, last_id=last_id.replace("{boot}", boot).replace("{newest}", newest)
    ) as stream:
        stream.wait("reset")
        assert [event.name for event in stream.events] == ["reset"]
        assert stream.of("reset")[0]["reason"]
        assert stream.last_id.partition("-")[0] == boot and int(
            stream.last_id.partition("-")[2]
        ) >= int(newest)


def test_a_burst_is_told_exactly_once_and_what_the_ring_has_lost_by_a_reset(tmp_path: Path) -> None:
    program = live(tmp_path / "live")
    with Stream(program) as stream:
        start = stream.last_id
    said = [f"burst {number}" for number in range(3000)]
    with Stream(program, OPEN) as reader, Stream(program, OPEN, start) as other:
        say(program, *said)
        for stream in (reader, other):
            stream.wait_for_message(said[-1])
        assert [message for message in reader.messages() if "burst" in message] == said
        assert reader.of("reset") == []
        assert len({entry["id"] for entry in reader.of("log")}) == len(reader.of("log"))
    say(program, *(f"more {number}" for number in range(tbmon.Ring.SIZE)))
    wait_for(lambda: allowed(program, f"/api/logs?search=more+{tbmon.Ring.SIZE - 1}")["logs"])
    boot = start.partition("-")[0]
    with Stream(program, OPEN, start) as late, Stream(program, OPEN) as now:
        late.wait("reset")
        newest = int(now.last_id.partition("-")[2])
        assert late.of("log") == []
    kept = newest - tbmon.Ring.SIZE
    with Stream(program, last_id=f"{boot}-{kept - 1}") as over:
        over.wait("reset")
    with Stream(
        program, OPEN, f"{boot}-{kept + 5}"
    ) as whole:  # the verdict may have changed meanwhile
        wait_for(
            lambda: len(whole.events) >= tbmon.Ring.SIZE - 10, 60
        )  # some may be one thing told twice
        assert whole.of("reset") == []
        assert whole.messages()[-1] == f"more {tbmon.Ring.SIZE - 1}"
    end(program)


# The ring


def test_the_ring_gives_what_followed_a_number() -> None:
    ring = tbmon.Ring()
    assert ring.after(0, 0) == []
    ring.add([("task", "a"), ("log", b"b")])
    ring.add([])
    ring.add(iter([("gap", None)]))
    assert ring.after(0, 0) == [(1, "task", "a"), (2, "log", b"b"), (3, "gap", None)]
    assert ring.after(2, 0) == [(3, "gap", None)]
    assert ring.after(3, 0) == []


@pytest.mark.parametrize("number", [-1, 4, 10**17, tbmon.Ring.SIZE])
def test_the_ring_knows_nothing_of_numbers_it_never_gave(number: int) -> None:
    ring = tbmon.Ring()
    ring.add([("task", "a")] * 3)
    assert ring.after(number, 0) is None


@pytest.mark.parametrize("at_once", [1, 7, tbmon.Ring.SIZE + 5])
def test_the_ring_keeps_the_last_ones_only(at_once: int) -> None:
    ring, total = tbmon.Ring(), tbmon.Ring.SIZE + 5
    for first in range(0, total, at_once):
        ring.add(("task", number + 1) for number in range(first, min(total, first + at_once)))
    found = ring.after(5, 0)
    assert found == [(number, "task", number) for number in range(6, total + 1)]
    assert [ring.after(number, 0) for number in (0, 1, 4, total + 1)] == [None] * 4
    assert ring.after(total - 1, 0) == [(total, "task", total)]
    assert len(ring.kept) == tbmon.Ring.SIZE


def test_the_ring_wakes_who_waits() -> None:
    ring, found = tbmon.Ring(), list[Any]()
    threads = [threading.Thread(target=lambda: found.append(ring.after(0, 10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    began = time.monotonic()
    ring.add([("task", "a")])
    for thread in threads:
        thread.join(10)
    assert found == [[(1, "task", "a")]] * 8
    assert time.monotonic() - began < 5


def test_readers_of_the_ring_miss_nothing_that_many_writers_add() -> None:
    ring, got = tbmon.Ring(), [list[tbmon.Happening]() for _ in range(3)]
    writers, each = 4, 1000

    def write_all(writer: int) -> None:
        for number in range(each):
            ring.add([("task", (writer, number)), ("log", (writer, number))])

    def read_all(mine: list[tbmon.Happening]) -> None:
        while len(mine) < 2 * writers * each:
            found = ring.after(mine[-1].number if mine else 0, 5)
            if not found:
                return
            mine.extend(found)

    threads = [threading.Thread(target=write_all, args=(writer,)) for writer in range(writers)]
    threads += [threading.Thread(target=read_all, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    for mine in got:
        assert [one.number for one in mine] == list(range(1, 2 * writers * each + 1))
        assert all(
            one.key == two.key for one, two in zip(mine[::2], mine[1::2], strict=True)
        )  # of one `add`
        for writer in range(writers):
            assert [one.key[1] for one in mine[::2] if one.key[0] == writer] == list(range(each))


# Limits


def test_streams_are_counted_by_address_and_in_all_and_freed_soon(tmp_path: Path) -> None:
    one = over_files(tmp_path, WS_MAX_CONNECTIONS="3", WS_MAX_PER_IP="2").start()
    here, there = elsewhere()[0], elsewhere()[0]

    def refused(address: str, name: str) -> int:
        stream = Stream(one, address=address, reads=False)
        assert stream.status != 200 and int(stream.answer.headers["Retry-After"]) > 0
        assert name in stream.error
        return stream.status

    def opened(address: str) -> Stream | None:
        stream = Stream(one, address=address)
        return stream if stream.status == 200 else None

    first, second = (Stream(one, address=here) for _ in range(2))
    assert refused(here, "WS_MAX_PER_IP") == 429
    third = Stream(one, address=there)
    assert (third.status, streams_of(one)) == (200, 3)
    assert refused(elsewhere()[0], "WS_MAX_CONNECTIONS") == 503
    began = time.monotonic()
    first.close()
    fourth = wait_for(lambda: opened(here), 5)
    assert time.monotonic() - began < 2
    assert refused(there, "WS_MAX_CONNECTIONS") == 503
    for stream in (second, third, fourth):
        stream.close()
    wait_for(lambda: streams_of(one) == 0, 3)
    end(one)


def test_a_head_and_clients_that_do_not_wait_take_no_slot(site: Program) -> None:
    for _ in range(8):
        assert ask(site, "/api/events", "HEAD").status == 200
        with socket.create_connection(("127.0.0.1", site.port), 5) as client:
            client.sendall(REQUEST % b"1.1")
    wait_for(lambda: streams_of(site) == 0, 3)


def test_a_hundred_streams_hold_and_the_api_answers_at_once(tmp_path: Path) -> None:
    program = live(tmp_path / "live")
    wait_for(lambda: streams_of(program) == 0, 3)
    streams = [Stream(program, OPEN, address=f"127.9.{number}.7") for number in range(100)]
    assert [stream.status for stream in streams] == [200] * 100
    assert Stream(program, address="127.10.1.1", reads=False).status == 503
    for path in ("/health", "/api/status", "/api/tasks", "/", "/api/logs"):
        began = time.monotonic()
        assert ask(program, path, password=PASSWORD).status == 200
        assert time.monotonic() - began < 0.5, path
    last = f"to all {time.time()}"
    say(program, last)
    wait_for(lambda: all(last in stream.messages() for stream in streams))
    assert [stream.ended_at for stream in streams] == [0.0] * 100
    assert {json.dumps(stream.of("log")[-1]) for stream in streams} == {
        json.dumps(streams[0].of("log")[-1])
    }
    for stream in streams[20:]:
        stream.close()
    wait_for(lambda: streams_of(program) == 20, 5)
    began = time.monotonic()
    assert program.end(signal.SIGTERM) == 0
    assert time.monotonic() - began < 5
    wait_for(lambda: all(stream.ended_at for stream in streams), 2)
    for stream in streams:
        stream.close()
        check_events(stream)


def peak_mib(program: Program) -> float:
    """The most memory that the program has held so far."""
    return figure_of(program.process.pid, "VmHWM") / 1024


def test_a_reader_that_never_reads_is_cut_and_costs_neither_memory_nor_others(
    tuned: Program,
) -> None:
    def blind() -> socket.socket:
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.bind(elsewhere())
        client.settimeout(10)
        client.connect(("127.0.0.1", tuned.port))
        client.sendall(REQUEST % b"1.1")
        return client

    said = [f"large {number} " + "x" * 20_000 for number in range(2000)]
    with Stream(tuned, OPEN) as reader:
        clients = [blind() for _ in range(5)]
        wait_for(lambda: streams_of(tuned) == 6)
        before = peak_mib(tuned)
        for first in range(0, len(said), 500):
            say(tuned, *said[first : first + 500])
            reader.wait_for_message(said[first + 499])
        wait_for(lambda: streams_of(tuned) == 1, 12)
        assert [message for message in reader.messages() if message.startswith("large")] == said
        assert not reader.ended_at
        assert peak_mib(tuned) - before < 48
    for client in clients:
        got = 0
        with contextlib.suppress(ConnectionResetError), client:
            while data := client.recv(65536):
                got += len(data)
        assert got < 8 * tbmon.MIB


def test_a_stream_says_every_15_seconds_that_it_is_still_there(quiet: Stream) -> None:
    wait_for(lambda: quiet.comments, 22)
    heard = sorted([quiet.opened_at, *quiet.comments, *(event.at for event in quiet.events)])
    waits = [
        heard[number] - heard[number - 1]
        for number in range(1, len(heard))
        if heard[number] in quiet.comments
    ]
    assert waits and all(14.5 < wait < 16 for wait in waits)
    assert not quiet.ended_at


# The engine, the browser


def test_what_the_node_says_is_told_within_a_second(
    node: Node, program: Callable[..., Program]
) -> None:
    node.run()
    one = program(CONTAINER_NAME=node.name).start()
    with Stream(one, OPEN) as stream:
        node.say(header("Starting services"))
        stream.wait_for_message(
            "Starting services", 40
        )  # an engine may be slow to let follow a log that is empty yet
        for number in range(8):
            message, began = f"how long does it take, {number}", time.monotonic()
            node.say(header(message))
            stream.wait_for_message(message)
            assert [event.at for event in stream.events if event.name == "log"][-1] - began < 1
        task = next(NAMES)
        node.remove()
        node.run()
        node.say(header("Starting services"))
        node.say(header(received(task)))
        assert stream.wait("gap") == allowed(one, "/api/logs/status")["gaps"][0]
        stream.wait("task", execution_id=task)
        wait_for(
            lambda: (
                node.name
                in [(told["container"] or {}).get("name") for told in stream.of("node_status")]
            )
        )
    assert one.end() == 0


def test_what_the_engine_kept_from_before_is_not_told_line_by_line(
    node: Node, program: Callable[..., Program]
) -> None:
    node.run()
    node.say("\n".join(header(f"history {number}") for number in range(MANY)))
    wait_for(lambda: docker("logs", node.name).count("history") == MANY)
    one = program(CONTAINER_NAME=node.name).start()
    wait_for(lambda: len(allowed(one, f"/api/logs?limit={MANY}")["logs"]) == MANY)
    with Stream(one, OPEN, first_id(one)) as stream:
        node.say(header("no history"))
        stream.wait_for_message("no history")
        assert [message for message in stream.messages() if message.startswith("history")] == []
        assert stream.of("reset")
    assert one.end() == 0


LISTEN = """() => {
    window.seen = window.seen || [];
    const stream = new EventSource("/api/events");
    for (const name of ["task", "node_status", "log", "reset"])
        stream.addEventListener(name, event => seen.push([name, JSON.parse(event.data), event.lastEventId]));
    return new Promise((done, failed) => { stream.onopen = () => done(1); stream.onerror = failed; });
}"""
LOG_IN = """secret => fetch("/api/auth/login", {
    method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({secret}),
}).then(answer => answer.status)"""


def test_a_browser_gets_the_stream_and_after_a_login_the_log(browser: Any, tmp_path: Path) -> None:
    program, task = live(tmp_path / "live"), next(NAMES)
    page = browser.new_page()

    def seen(name: str) -> list[Any]:
        return [data for kind, data, number in page.evaluate("seen") if kind == name and number]

    try:
        page.goto(f"http://127.0.0.1:{program.port}/")
        page.evaluate(LISTEN)
        say(program, received(task))
        wait_for(lambda: seen("task"))
        assert seen("task")[0]["execution_id"] == task
        wait_for(
            lambda: [one for one in seen("node_status") if one["verdict"]["state"] == "working"]
        )
        assert seen("log") == []
        assert page.evaluate(LOG_IN, "wrong") == 401
        assert page.evaluate(LOG_IN, PASSWORD) == 200
        page.evaluate(LISTEN)
        say(program, "for those who logged in")
        wait_for(
            lambda: [one for one in seen("log") if one["message"] == "for those who logged in"]
        )
    finally:
        page.close()
        end(program)
