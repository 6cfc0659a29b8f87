"""Clients of tbmon in a process of their own: streams that check what they are told, callers of the
API, and harm.

`Clients` starts it. As a script it connects everything and prints "ready"; told the last task's
name in a line, it waits until every stream has told of that task, hangs up, and prints what it saw
as JSON. Streams ask by HTTP/1.0, so that their bytes come without the frames of chunks.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
import json
import random
import re
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Coroutine, Mapping
from typing import Any

PASSWORD = "X-Task-Data-Password: open sesame\r\n"
EVENT = re.compile(
    rb"(?:retry: \d+\n)?id: [0-9a-f]{8}-(\d+)(?:\nevent: (\w+)\ndata: (.*)|\n: still here)?", re.S
)
NUMBER = re.compile(rb'(?:\bn=|\\"n\\": )(\d+)')  # which each entry of a test's log carries
NAME = re.compile(rb'"(execution_id|invoice_id)": "([^"]+)"')
PAGES = {
    "status": "/api/status",
    "tasks": "/api/tasks?limit=50",
    "task": "/api/tasks/",
    "logs": "/api/logs?limit=100",
    "stats": "/api/tasks/stats/summary",
    "search": "/api/logs?limit=20&search=",
}
PAUSE_S = 0.5  # between two requests of one caller, in the mean
PATIENCE_S = 20  # for every stream to be open, and for the last task to be told of


def address(kind: int, number: int) -> tuple[str, int]:
    """A loopback address for each client: limits count by address."""
    return f"127.{kind}.{number // 250}.{number % 250 + 2}", 0


class Stream(asyncio.Protocol):
    """A stream that is read: ids must rise, and its log go on number by number unless a reset says
    otherwise.
    """

    def __init__(self, is_private: bool, keeps_times: bool) -> None:
        self.is_private, self.keeps_times = is_private, keeps_times
        self.rest, self.place, self.number, self.ended = b"", -1, -1, False
        self.told, self.faults = Counter[str](), list[str]()
        self.completed, self.invoices, self.arrived = set[bytes](), set[bytes](), dict[int, float]()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        secret = PASSWORD if self.is_private else ""
        transport.write(f"GET /api/events HTTP/1.0\r\nHost: localhost\r\n{secret}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        if self.place < 0 and b"\r\n\r\n" in data:
            head, _, data = data.partition(b"\r\n\r\n")
            assert b" 200 " in head.partition(b"\r\n")[0], head
            self.place = 0
        *blocks, self.rest = (self.rest + data).split(b"\n\n")
        for block in blocks:
            self.take(block)

    def take(self, block: bytes) -> None:
        found = EVENT.fullmatch(block)
        number = int(found[1]) if found else -1
        if found is None or (found[2] and number <= self.place):
            self.faults.append(f"after {self.place}: {block[:200]!r}")
        elif found[2]:
            self.happened(found[2].decode(), found[3])
        self.place = max(self.place, number)

    def happened(self, kind: str, data: bytes) -> None:
        self.told[kind] += 1
        if kind == "reset":
            self.number = -1
        elif kind == "log" and (found := NUMBER.search(data)):
            self.follow(int(found[1]))
        elif kind in ("task", "invoice"):
            names = dict(NAME.findall(data))
            if b'"status": "completed"' in data:
                self.completed.add(names[b"execution_id"])
            if kind == "invoice":
                self.invoices.add(names[b"invoice_id"])

    def follow(self, number: int) -> None:
        """An entry is told again when it grew, else the next follows."""
        if self.number >= 0 and number not in (self.number, self.number + 1):
            self.faults.append(f"entry {number} after {self.number}")
        self.number = number
        if self.keeps_times:
            self.arrived.setdefault(number, time.monotonic())

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True

    def seen(self) -> dict[str, Any]:
        return {
            "private": self.is_private,
            "told": self.told,
            "faults": self.faults[:3],
            "ended": self.ended,
            "completed": len(self.completed),
            "invoices": len(self.invoices),
            "arrived": self.arrived,
        }


class Callers:
    """Ask for one page after the other on connections that stay, with pauses as readers make them."""

    def __init__(self, port: int) -> None:
        self.port, self.task = port, ""
        self.taken, self.faults = {name: list[float]() for name in PAGES}, list[str]()

    async def run(self, number: int) -> None:
        made = await asyncio.open_connection("127.0.0.1", self.port, local_addr=address(2, number))
        word = (
            "nothing+has+this" if number == 0 else "slots"
        )  # one of them looks through everything
        for name, page in itertools.cycle(PAGES.items()):
            await asyncio.sleep(random.uniform(0, 2 * PAUSE_S))
            if name != "task" or self.task:
                began = time.monotonic()
                await self.ask(*made, page + {"task": self.task, "search": word}.get(name, ""))
                self.taken[name].append(time.monotonic() - began)

    async def ask(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target: str
    ) -> None:
        writer.write(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n{PASSWORD}\r\n".encode())
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"\r\nContent-Length: (\d+)\r\n", head)
        body = await reader.readexactly(int(length[1]) if length else 0)
        if b" 200 " not in head.partition(b"\r\n")[0]:
            self.faults.append(f"{target}: {head[:60]!r} {body[:200]!r}")
        elif target == PAGES["tasks"] and (tasks := json.loads(body)["tasks"]):
            self.task = tasks[0]["execution_id"]


async def drip(port: int, number: int) -> None:
    """Send a request one byte a second, for ever."""
    _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address(3, number))
    for byte in itertools.chain(
        b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ", itertools.repeat(97)
    ):
        writer.write(bytes([byte]))
        await asyncio.sleep(1)


def blind(port: int, number: int) -> socket.socket:
    """Ask for a stream with the log and never read it: to the program, like a client whose host
    went away.
    """
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    made.bind(address(4, number))
    made.connect(("127.0.0.1", port))
    made.sendall(f"GET /api/events HTTP/1.1\r\nHost: localhost\r\n{PASSWORD}\r\n".encode())
    return made


def drain(made: socket.socket) -> int:
    """How much was sent to a client before it was cut; -1 if it was not."""
    got = 0
    made.settimeout(5)
    try:
        while data := made.recv(65536):
            got += len(data)
    except ConnectionResetError:
        pass
    except TimeoutError:
        got = -1
    made.close()
    return got


async def work(port: int, kinds: dict[str, int], keeps_times: bool) -> dict[str, Any]:
    loop = asyncio.get_running_loop()
    streams, callers = list[Stream](), Callers(port)
    for number in range(kinds.get("streams", 0)):
        one = Stream(number < kinds.get("private", 0), keeps_times)
        await loop.create_connection(
            functools.partial(lambda made: made, one),
            "127.0.0.1",
            port,
            local_addr=address(1, number),
        )
        streams.append(one)
    blinds = [blind(port, number) for number in range(kinds.get("blind", 0))]
    tasks: list[Coroutine[Any, Any, None]] = [
        callers.run(number) for number in range(kinds.get("callers", 0))
    ]
    tasks += [drip(port, number) for number in range(kinds.get("drips", 0))]
    running = [asyncio.create_task(task) for task in tasks]
    deadline = time.monotonic() + PATIENCE_S
    while any(one.place < 0 for one in streams):
        assert time.monotonic() < deadline, "a stream was not opened"
        await asyncio.sleep(0.01)
    print("ready", flush=True)
    last = (await loop.run_in_executor(None, sys.stdin.readline)).strip().encode()
    deadline = time.monotonic() + PATIENCE_S
    while (
        not all(last in one.completed or one.ended for one in streams)
        and time.monotonic() < deadline
    ):
        await asyncio.sleep(0.02)
    failed = [repr(one.exception()) for one in running if one.done()]  # none ends by itself
    seen = [{**one.seen(), "last": last in one.completed} for one in streams]
    sent = [drain(one) for one in blinds]
    for one in streams:
        one.transport.abort()
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
    return {
        "streams": seen,
        "calls": callers.taken,
        "faults": callers.faults[:3] + failed[:3],
        "blind": sent,
    }


class Clients:
    """The process, as its parent sees it; `kinds` says how many `streams`, of them `private`,
    `callers` and so on.
    """

    def __init__(self, port: int, kinds: Mapping[str, int], keeps_times: bool = False) -> None:
        words = (sys.executable, __file__, str(port), json.dumps(kinds), str(int(keeps_times)))
        self.process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdout is not None
        if self.process.stdout.readline() != "ready\n":
            self.process.kill()
            raise AssertionError(f"the clients ended with {self.process.wait()}")

    def end(self, last: str) -> dict[str, Any]:
        """What they saw, as soon as all streams have told that the task `last` completed."""
        found: dict[str, Any] = json.loads(self.process.communicate(last + "\n", timeout=60)[0])
        return found

    def __enter__(self) -> Clients:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.process.kill()
        self.process.wait()


if __name__ == "__main__":
    print(
        json.dumps(asyncio.run(work(int(sys.argv[1]), json.loads(sys.argv[2]), sys.argv[3] == "1")))
    )
