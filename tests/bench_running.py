"""What tbmon takes while it waits, how soon it is there, and how soon it tells what the node
says.
"""

from __future__ import annotations

import contextlib
import re
import selectors
import socket
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from bench_parts import PASSWORD, Monitor, container, laid_down
from bench_table import Figure, spread
from support.engine import Node
from support.hubs import LOOPBACK, SECRET, Hub, papers
from support.machine import cpu_s, wait_for
from support.node_words import header

STREAMS = 100
OLD_LATENCY = "until the next line comes, the last one never"
LINE = re.compile(rb"Heartbeat sent (\d+)")


def idle(folder: Path, quick: bool) -> Iterator[Figure]:
    """Three at once: without the federation and with both kinds of connection to a real hub."""
    own, seconds = papers(folder / "papers"), 10 if quick else 60
    with contextlib.ExitStack() as stack:
        node, _ = stack.enter_context(container(folder))
        hub = Hub(folder, ws=own)
        stack.callback(hub.close)
        hub.start()
        member = {"FEDERATION_NATS_USER": "monitor", "FEDERATION_NATS_PASSWORD": SECRET}
        trusting = {"FEDERATION_TLS_CA": str(own.ca)}
        urls = {
            "without federation": "",
            "with nats://": hub.url,
            "with wss://": f"wss://{LOOPBACK}:{hub.ws_port}",
        }
        programs = {}
        for number, (name, url) in enumerate(urls.items()):
            more = (
                {"FEDERATION_NATS_URL": url, **member, **(trusting if "wss" in url else {})}
                if url
                else {}
            )
            program = Monitor(folder / f"data{number}", CONTAINER_NAME=node.name, **more)
            programs[name] = stack.enter_context(program)
            if url:
                join(program)
        time.sleep(10)
        before = {name: cpu_s(program.process.pid) for name, program in programs.items()}
        for (name, program), target in zip(programs.items(), (40, 44, 54), strict=True):
            old = "79 MiB" if name == "without federation" else ""
            yield Figure(
                f"idle RSS {name}", program.memory_mib("VmRSS"), "MiB", target, replaced=old
            )
        time.sleep(seconds)
        for name, program in programs.items():
            spent = 100 * (cpu_s(program.process.pid) - before[name]) / seconds
            yield Figure(
                f"idle CPU {name}", spent, "% of a core", 0.1, replaced="< 0.02 % of a core"
            )


def join(program: Monitor) -> None:
    """Opt in, and wait for the hub."""
    program.post("/api/federation/enable")
    wait_for(lambda: program.get("/api/federation/status")[1]["connected"])


def start(folder: Path, quick: bool) -> Iterator[Figure]:
    """With a database that was closed in order, and without one."""
    rows = 500_000 if quick else 5_000_000
    full = laid_down(folder, rows, 1000)
    with container(folder) as (node, _):
        for name, places in (
            (f"with {rows:,} rows", [full] * 5),
            ("without a database", [folder / "none"]),
        ):
            taken = []
            for place in places:
                with Monitor(place, CONTAINER_NAME=node.name, MAX_DB_BYTES=str(2**40)) as program:
                    taken.append(program.ready_s)
                    assert program.end() == 0
            target = 0.7 if len(places) > 1 else None
            old = "after the whole import" if target else "1.43 s"
            yield Figure(
                f"start to /api/health {name}", statistics.median(taken), "s", target, replaced=old
            )


def latency(folder: Path, quick: bool) -> Iterator[Figure]:
    """From the node's write to the row and to a stream's client, each looked for by a thread."""
    with (
        container(folder) as (node, _),
        Monitor(folder / "data", CONTAINER_NAME=node.name) as program,
    ):
        time.sleep(3)  # the start is not what is asked for
        spy = Spy(program)
        for rate, seconds in ((1, 8 if quick else 30), (1000, 3 if quick else 10)):
            sent = speak(node, rate, seconds, begin=100_000 * rate)
            wanted = (
                ("the row", spy.rows, 50),
                ("a stream's client", spy.told, 50 if rate == 1 else 100),
            )
            for name, found, target in wanted:
                wait_for(lambda: found.keys() >= sent.keys())  # noqa: B023 - used at once
                taken = [1000 * (found[number] - at) for number, at in sent.items()]
                what = f"from the node's write to {name} at {rate:,} lines/s"
                yield from spread(what, taken, "ms", {50: None, 99: target}, OLD_LATENCY)
        spy.close()


def speak(node: Node, rate: int, seconds: int, begin: int) -> dict[int, float]:
    """Let the node say numbered lines; when each was written."""
    sent, begun = dict[int, float](), time.monotonic()
    for number in range(rate * seconds):
        line = header(f"Heartbeat sent {begin + number}")
        sent[begin + number] = time.monotonic()
        node.say(line)
        time.sleep(max(0.0, begun + (number + 1) / rate - time.monotonic()))
    return sent


class Spy:
    """Notes when each numbered line is a row (looked for every millisecond) and when a stream's
    client has it.
    """

    def __init__(self, program: Monitor) -> None:
        self.program, self.done = program, threading.Event()
        ((self.newest,),) = program.rows("SELECT MAX(seq) FROM log")  # before anything is said
        self.since = time.time() - 1
        self.rows, self.told = dict[int, float](), dict[int, float]()
        self.socket = open_stream(program.port)
        self.threads = [
            threading.Thread(target=work, daemon=True) for work in (self.watch, self.listen)
        ]
        for thread in self.threads:
            thread.start()

    def watch(self) -> None:
        db, version, seq = self.program.reader(), 0, self.newest
        since = int(self.since).to_bytes(4, "big")
        sql = (
            "SELECT message, seq, substr(key, 1, 4) FROM log WHERE key >= ? AND seq > ? ORDER "
            "BY seq"
        )
        while not self.done.wait(0.001):
            if version == (version := db.execute("PRAGMA data_version").fetchone()[0]):
                continue
            now = time.monotonic()
            for row in db.execute(sql, (since, seq)).fetchall():
                self.rows[int(row[0].split()[-1])] = now
                seq, since = row[1:]

    def listen(self) -> None:
        rest = b""
        while data := self.socket.recv(65536):
            now, rest = time.monotonic(), rest + data
            whole, _, rest = rest.rpartition(b"\n")
            for number in LINE.findall(whole):
                self.told.setdefault(int(number), now)

    def close(self) -> None:
        self.done.set()
        self.socket.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(10)
        self.socket.close()


def open_stream(port: int) -> socket.socket:
    """A client of the live stream that is told log entries; what says so is read."""
    client = socket.create_connection((LOOPBACK, port), 30)
    words = (
        f"GET /api/events HTTP/1.1\r\nHost: localhost\r\nX-Task-Data-Password: {PASSWORD}\r\n\r\n"
    )
    client.sendall(words.encode())
    head = b""
    while b"id: " not in head:
        head += client.recv(4096)
        assert head.startswith(b"HTTP/1.1 200 "[: len(head)]), head
    return client


def broadcast(folder: Path, quick: bool) -> Iterator[Figure]:
    """One line of the node to 100 clients, again and again."""
    limits = {
        "WS_MAX_PER_IP": str(STREAMS),
        "WS_MAX_CONNECTIONS": str(STREAMS),
        "API_RATE_LIMIT": "0",
    }
    taken = []
    with contextlib.ExitStack() as stack:
        node, _ = stack.enter_context(container(folder))
        program = stack.enter_context(Monitor(folder / "data", CONTAINER_NAME=node.name, **limits))
        selector = stack.enter_context(selectors.DefaultSelector())
        for _ in range(STREAMS):
            selector.register(stack.enter_context(open_stream(program.port)), selectors.EVENT_READ)
        time.sleep(3)
        for number in range(10 if quick else 40):
            taken.append(one_broadcast(node, selector, number))
            time.sleep(0.5)
    yield from spread(f"one line to the last of {STREAMS} streams", taken, "ms", {50: None, 95: 50})


def one_broadcast(node: Node, selector: selectors.BaseSelector, number: int) -> float:
    """Milliseconds from the node's write until every client has the line."""
    words, waiting = (
        f"broadcast {number}".encode(),
        {id(key.fileobj) for key in selector.get_map().values()},
    )
    held = dict.fromkeys(waiting, b"")
    begun = time.monotonic()
    node.say(header(words.decode() + ";"))
    while waiting:
        ready = selector.select(20)
        assert ready, f"{len(waiting)} clients were not told"
        for key, _ in ready:
            assert isinstance(key.fileobj, socket.socket)
            name, data = id(key.fileobj), key.fileobj.recv(65536)
            assert data, "a stream ended"
            held[name] += data
            if words + b";" in held[name]:
                waiting.discard(name)
    return 1000 * (time.monotonic() - begun)
