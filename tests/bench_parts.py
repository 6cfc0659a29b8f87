"""What the measures need: a log of the node's kind, a container that says it, tbmon, its clients, a
full database.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from support.engine import Node, docker
from support.machine import figure_of, wait_for
from support.node_words import (
    WALLET,
    completed,
    created_record,
    header,
    invoice_of,
    invoice_record,
    line_item,
    output_of,
    receipt,
)
from support.programs import Program

import tbmon

PASSWORD = "open sesame"  # as conftest.Program sets it
RARE = "quokka"  # a word that only three of the entries laid down have
COMMON = "Semaphore"
CHUNK = 100_000  # rows laid down in one transaction
ON_RECORD = [{"operation": "pay", "account": "wallet:self", "steps": 10**10, "memory_peak": 87}]


@dataclass
class Load:
    """What a generated log holds: bytes, lines, what must come of them, and the last header."""

    size: int = 0
    lines: int = 0
    entries: int = 0
    tasks: int = 0
    last: str = ""


def semaphore(dice: random.Random) -> Iterator[str]:
    """What a subscriber says of one message."""
    name, used = (
        f"Semaphore {dice.choice(('InvoiceSubscriber', 'TaskSubscriber'))}",
        dice.randrange(4),
    )
    yield f"{name} message received - Processing immediately ({used}/4 slots used)"
    yield f"{name} processing started - Using slot {used + 1}/4"
    yield (
        f"{name} processing completed - Released slot ({used}/4 now active) - {4 - used} slots "
        f"available"
    )


def task(dice: random.Random) -> Iterator[str]:
    """One execution from receipt to invoice, two of its payloads over many lines."""
    number, digest, steps = (
        f"{dice.getrandbits(128):032x}",
        f"{dice.getrandbits(256):064x}",
        dice.randrange(10**11),
    )
    execution_id, task_id = f"{number[:8]}-{number[8:12]}-4000-8000-{number[20:]}", f"js_{digest}"
    other, third = "0x" + "99" * 20, "0x" + "22" * 20
    message = {
        "type": "dispatch_task",
        "taskId": task_id,
        "executionId": execution_id,
        "chainId": "43114",
        "blockNumber": dice.randrange(10**8),
        "blockHash": "0x" + digest,
        "taskRequesterAddress": other,
        "input": "some message to hash",
        "econParams": {"requiredSolutions": 2, "executionTimeout": 27000},
        "limits": {"gas": "60000000000", "memory": "1024"},
        "workers": {"setNodes": [WALLET, third]},
    }
    yield receipt({"payload": created_record(execution_id, message)}, "\n", indent=2)
    yield f"Task {task_id} downloaded successfully"
    yield "Starting task execution"
    output = {
        "elapsed": str(dice.randrange(10**10)),
        "wasi": {"exitCode": 0},
        "metering": {
            "limits": {"gas": 60000000000, "memory": 1024},
            "last": {"steps": steps},
            "peak": {"memory": 87},
        },
        "execution": {
            "wasm": {"size": 1843200, "hash": digest},
            "prepare": {"cached": dice.random() < 0.5},
        },
    }
    yield output_of(output, "\n", indent=2)
    yield completed(execution_id)
    yield "Message published to compute_outcome"
    shares = ("charge", other), ("pay", WALLET), ("pay", third)
    items = [line_item(what, who, steps) for what, who in shares]
    more = {"taskId": task_id, "invoiceId": str(int(number, 16)), "stepGasPrice": 5e-07}
    yield invoice_of(invoice_record(execution_id, items, **more), "invoice received:")


def mixed(dice: random.Random) -> Iterator[tuple[bool, list[str]]]:
    """Without end: what is said of one message or, if True comes with it, of one task; 70 % of
    lines are messages'.
    """
    lines = of_semaphores = 0
    while True:
        is_task = of_semaphores > 0.7 * lines
        said = list(task(dice) if is_task else semaphore(dice))
        yield is_task, said
        lines += sum(1 + one.count("\n") for one in said)
        of_semaphores += 0 if is_task else len(said)


def write_log(paths: Sequence[Path], lines: int, span_s: float) -> Load:
    """Fill the files in turn with `lines` lines or a few more, spread over the last `span_s`."""
    load, source, begin = Load(), mixed(random.Random(7)), time.time() - span_s
    for number, path in enumerate(paths, 1):
        with path.open("w", encoding="utf-8") as file:
            while load.lines < lines * number / len(paths):
                is_task, said = next(source)
                for message in said:
                    load.last = header(message, begin + span_s * load.lines / lines)
                    load.size += file.write(load.last + "\n")
                    load.lines += 1 + message.count("\n")
                    load.entries += 1
                load.tasks += is_task
    return load


class Monitor(Program):
    """A tbmon with the environment that the image and the units give it, ready when its health is
    served.
    """

    def __init__(self, folder: Path, **settings: str) -> None:
        super().__init__(folder, MALLOC_ARENA_MAX="2", **settings)

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/api/health")[0] == 200
        return False

    def __enter__(self) -> Monitor:
        self.begun = time.monotonic()
        try:
            self.start()
            assert self.process.poll() is None, f"tbmon ended: {self.log.read_text('utf-8')[-500:]}"
        except BaseException:
            self.__exit__()
            raise
        self.ready_s = time.monotonic() - self.begun
        self.db = self.reader()
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def post(self, path: str) -> Any:
        url, password = f"http://127.0.0.1:{self.port}{path}", self.env["TASK_DATA_PASSWORD"]
        headers = {"Content-Type": "application/json", "X-Task-Data-Password": password}
        with urllib.request.urlopen(
            urllib.request.Request(url, b"{}", headers, method="POST"), timeout=10
        ) as answer:
            return json.load(answer)

    def memory_mib(self, name: str) -> float:
        """VmRSS (now) or VmHWM (the most ever) of the process."""
        return figure_of(self.process.pid, name) / 1024


@contextlib.contextmanager
def container(folder: Path, lines: int = 300) -> Iterator[tuple[Node, Load]]:
    """A node that has said `lines` lines. Of the last minutes: tbmon disbelieves stamps that the
    engine's deny.
    """
    node = Node(folder / "io")
    try:
        load = write_log([node.folder / "history"], lines, 200)
        node.run(script="cat /io/history; exec cat /io/out")
        wait_for(lambda: docker("logs", "--tail", "1", node.name) == load.last, 300)
        yield node, load
    finally:
        node.close()


class Asker:
    """A client that keeps its connection and does no more than it must, so that what is timed is
    the server.
    """

    def __init__(self, port: int, path: str, **headers: str) -> None:
        named = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\n{named}\r\n".encode()
        self.socket = socket.create_connection(("127.0.0.1", port), 30)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> float:
        """How many seconds it takes until the answer is there whole, which must be a 200."""
        begun = time.perf_counter()
        self.socket.sendall(self.request)
        answer, whole = b"", -1
        while len(answer) != whole:
            data = self.socket.recv(1 << 18)
            assert data, f"the connection ended: {self.request[:60]!r}"
            answer += data
            if whole < 0 and (end := answer.find(b"\r\n\r\n")) >= 0:
                assert answer.startswith(b"HTTP/1.1 200 "), answer[:200]
                size = (
                    answer[: end + 2]
                    .lower()
                    .partition(b"\r\ncontent-length:")[2]
                    .partition(b"\r")[0]
                )
                whole = end + 4 + int(size)
        return time.perf_counter() - begun

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()


class Paced(threading.Thread):
    """Does something every `pause_s` until the block ends; whatever fails in it fails the block."""

    def __init__(self, do: Callable[[], object], pause_s: float) -> None:
        super().__init__(daemon=True)
        self.do, self.pause_s, self.done = do, pause_s, threading.Event()
        self.failure: Exception | None = None

    def run(self) -> None:
        begun = time.monotonic()
        try:
            for number in itertools.count(1):
                self.do()
                if self.done.wait(max(0.0, begun + number * self.pause_s - time.monotonic())):
                    return
        except Exception as error:
            self.failure = error

    def __enter__(self) -> Paced:
        self.start()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.done.set()
        self.join(30)
        if self.failure is not None and kind is None:
            raise self.failure


def laid_down(base: Path, rows: int, tasks: int) -> Path:
    """A folder with a database of so many log entries of five days and tasks of a month; made if it
    is not there.
    """
    folder = base / f"laid-{rows}-{tasks}"
    if not folder.exists():
        folder.mkdir()
        key = tbmon.read_key_file(folder / "local.key", lambda: os.urandom(32))
        store = tbmon.Store(folder / "t.db", key)
        now = int(time.time()) - 60
        lay(store, laid_entries(rows, now))
        lay_tasks(store, tasks, now)
        store.close()
    return folder


def lay(store: tbmon.Store, rows: Iterator[Sequence[object]]) -> None:
    while some := list(itertools.islice(rows, CHUNK)):
        with store.write() as db:
            store.save_entries(db, some)


def laid_entries(rows: int, now: int) -> Iterator[Sequence[object]]:
    """Rows of the table log, whose messages repeat after a few thousand."""
    redactor, pool = tbmon.Redactor(bytes(32)), list[tuple[int, str]]()
    for _, said in itertools.islice(mixed(random.Random(7)), 3000):
        pool += [
            (tbmon.LOG_TYPES.index(tbmon.classify(text)), redactor.clean(text)) for text in said
        ]
    info, begin, step = tbmon.LEVELS.index("info"), now - 5 * 86400, 5 * 86400 / rows
    rare = {rows // 10, rows // 2, rows - rows // 10}
    for number, (kind, text) in enumerate(itertools.islice(itertools.cycle(pool), rows)):
        second = int(begin + number * step)
        text = f"{text} {RARE}" if number in rare else text
        yield (
            tbmon.key_of(second, random.randbytes(12)),
            number,
            second * 1000,
            info,
            kind,
            2,
            0,
            None,
            text,
        )


def laid_name(number: int) -> str:
    return f"{number:08x}-5e5e-4c11-9a60-0d5e8f7a1b2c"


def lay_tasks(store: tbmon.Store, count: int, now: int) -> None:
    """Finished tasks, each with its events, its data and an invoice."""
    step = 30 * 86_400_000 // count
    for first in range(0, count, CHUNK // 10):
        block = [
            (laid_name(number), now * 1000 - (count - number) * step, number)
            for number in range(first, min(count, first + CHUNK // 10))
        ]
        with store.write() as db:
            store.save_tasks(db, (laid_task(name, at, number) for name, at, number in block))
            store.put(
                db,
                "task_event",
                [
                    (name, at + late, kind)
                    for name, at, _ in block
                    for late, kind in ((0, "task_received"), (90, "task_completed"))
                ],
            )
            sql = "INSERT INTO task_data (execution_id, input, output) VALUES (?, ?, ?)"
            db.executemany(
                sql, [(name, "some message to hash", '{"wasi": {}}') for name, _, _ in block]
            )
            db.executemany(tbmon.SAVE_INVOICE, [laid_invoice(name, at) for name, at, _ in block])


def laid_task(name: str, at: int, number: int) -> tbmon.Task:
    failed, digest = number % 20 == 0, f"{number % 50:064x}"
    return tbmon.Task(
        name,
        "js_" + digest,
        digest,
        "javascript",
        "43114",
        number,
        "0x" + digest,
        "failed" if failed else "completed",
        at,
        at + 5,
        at + 90,
        80 + number % 1000,
        6 * 10**10,
        10**9 + number,
        1024,
        87,
        int(failed),
        number % 2,
        "exit_code" if failed else None,
        digest,
        27000,
        tbmon.IN_LOG | tbmon.COMPLETED_LINE,
    )


def laid_invoice(name: str, at: int) -> dict[str, object]:
    number = str(int(name[:8], 16) * 10**20 + 7)
    return {
        "name": number,
        "invoice_id": number,
        "execution_id": name,
        "task_id": None,
        "at": at + 900,
        "step_gas_price": 5e-07,
        "line_items": json.dumps(ON_RECORD),
        "operation": "pay",
        "steps": 10**10,
        "memory_peak": 87,
        "confirmed": 0,
    }
