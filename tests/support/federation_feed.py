"""Messages as monitors make them, in any number; a plain publisher of them; and aggregators as
processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tbmon
from support import ROOT
from support.hub_conf import AGGREGATOR, CLIENTS, MONITOR
from support.machine import wait_for

NOON = 1_780_056_000_000  # ms; 12:00 UTC of some day
CHOICES = tuple(tbmon.MESSAGES["task_completed"].choices)
EXACT = {"min_nodes": 1, "stats_snapshot_hours": 0, "stats_min_new_tasks": 0, "stats_round_to": 1}
UNLIMITED = {"global_rate_limit": 10**9, "rate_limit_per_node": 10**9}
STEP = """
import sys
import aggregator
aggregator.ACK_S, aggregator.PULL_S, aggregator.ASK_S = 2.0, 0.5, 1.0
%s
sys.exit(aggregator.main())
"""


class Said(NamedTuple):
    """A message on its way; `is_good` if its bytes are in the schema, whatever its time."""

    subject: str
    payload: bytes
    is_good: bool = True


def spoiled(**changes: Any) -> Said:
    """A task_received with other values: `dataX` changes X in data, the rest the envelope."""
    one = Feed(0).received(NOON)
    message = json.loads(one.payload)
    for name, value in changes.items():
        place, key = (
            (message["data"], name[4:])
            if name.startswith("data") and name != "data"
            else (message, name)
        )
        place[key] = value
    return Said(one.subject, tbmon.encode(message), False)


class Feed:
    """Makes valid messages with tbmon's own builders; the same ones for the same seed."""

    def __init__(self, seed: int, nodes: int = 0) -> None:
        self.dice = random.Random(seed)
        self.key = self.dice.randbytes(32)
        self.nodes = [tbmon.random_node_id(self.dice) for _ in range(nodes)]

    def words(self, at: int) -> tbmon.Words:
        return tbmon.Words(at, self.dice.randbytes(16).hex(), self.key)

    def said(self, kind: str, payload: bytes) -> Said:
        return Said(tbmon.MESSAGES[kind].subject, payload)

    def presence(self, kind: str, node: str, at: int, is_online: bool = True) -> Said:
        says_online = {"node_joined": True, "node_left": False}.get(kind, is_online)
        return self.said(kind, tbmon.presence_message(kind, node, says_online, self.words(at)))

    def beat(self, node: str, at: int) -> Said:
        return self.presence("heartbeat", node, at)

    def task(self) -> tbmon.Task:
        """A finished one, of which anything may be unknown."""
        roll = self.dice.random
        return tbmon.Task(
            f"{self.dice.getrandbits(128):032x}",
            task_type=self.dice.choice(("rust", "javascript", "python", "cobol", None)),
            status="failed" if roll() < 0.2 else "completed",
            cached=self.dice.choice((None, 0, 1)),
            elapsed_ms=None if roll() < 0.1 else int(10 ** (6 * roll())),
            gas_used=None if roll() < 0.1 else int(10 ** (13 * roll())),
            memory_peak=None if roll() < 0.1 else int(4000 * roll()),
        )

    def received(self, at: int) -> Said:
        return self.said("task_received", tbmon.received_message(self.task(), self.words(at)))

    def completed(self, at: int) -> Said:
        choice = self.dice.choice(CHOICES)
        return self.said(
            "task_completed", tbmon.completed_message(self.task(), self.words(at), choice)
        )

    def invoice(self, at: int) -> Said:
        steps = None if self.dice.random() < 0.1 else int(10 ** (13 * self.dice.random()))
        name = f"{self.dice.getrandbits(128):032x}"
        return self.said("invoice_created", tbmon.invoice_message(name, steps, self.words(at)))

    def work(self, at: int) -> Said:
        """Of a task or an invoice."""
        return self.dice.choice((self.received, self.completed, self.completed, self.invoice))(at)

    def anything(self, at: int) -> Said:
        """Of any of the six kinds."""
        if self.dice.random() < 0.7:
            return self.work(at)
        node, roll = self.dice.choice(self.nodes), self.dice.random()
        kind = "node_left" if roll < 0.05 else "node_joined" if roll < 0.1 else "heartbeat"
        return self.presence(kind, node, at, self.dice.random() < 0.8)


class Publisher:
    """A monitor as plain as the protocol is; `settle` returns once the hub has read all."""

    def __init__(
        self, address: str, port: int = CLIENTS, user: str = "monitor", password: str = MONITOR
    ) -> None:
        self.socket = socket.create_connection((address, port), 5)
        self.socket.setsockopt(
            socket.IPPROTO_TCP, socket.TCP_NODELAY, 1
        )  # else each PING waits for 40 ms
        self.file = self.socket.makefile("rb")
        self.file.readline()
        login = {"verbose": False, "headers": True, "protocol": 1, "user": user, "pass": password}
        self.socket.sendall(b"CONNECT " + json.dumps(login).encode() + b"\r\n")
        self.settle()

    def publish(self, *messages: Said) -> Publisher:
        """All of them, and nothing more until the hub has read them; raises OSError if it is
        gone.
        """
        parts = [
            b"PUB %s %d\r\n%s\r\n" % (one.subject.encode(), len(one.payload), one.payload)
            for one in messages
        ]
        self.socket.sendall(b"".join(parts))
        return self.settle()

    def headed(self, subject: str, headers: bytes, payload: bytes = b"") -> Publisher:
        """One message with these bytes for headers."""
        sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
        self.socket.sendall(b"HPUB %s %s\r\n%s%s\r\n" % (subject.encode(), sizes, headers, payload))
        return self.settle()

    def settle(self) -> Publisher:
        self.socket.sendall(b"PING\r\n")
        while (line := self.file.readline()) != b"PONG\r\n":
            if not line or line.startswith(b"-ERR"):
                raise ConnectionError(line)
            if line == b"PING\r\n":
                self.socket.sendall(b"PONG\r\n")
        return self

    def close(self) -> None:
        self.file.close()
        self.socket.close()


class Aggregation:
    """An aggregator as its operator starts it, with an environment of its own, short delays and
    exact figures.
    """

    def __init__(self, folder: Path, url: str, more: str = "", **settings: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.log, self.more = folder, folder / "log.txt", more
        self.db = Path(settings.get("DB_PATH", str(folder / "aggregator.db")))
        own = {name.upper(): str(value) for name, value in {**EXACT, **UNLIMITED}.items()}
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "DB_PATH": str(self.db),
            "NATS_URL": url,
            "NATS_USER": "aggregator",
            "NATS_PASSWORD": AGGREGATOR,
            "PUBLISH_INTERVAL": "200",
            **own,
            **settings,
        }
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> Aggregation:
        """Start it, and do not wait."""
        words = (sys.executable, "-c", STEP % self.more)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        return self

    def start(self) -> Aggregation:
        """Start it, and wait until it works."""
        before = self.text().count("connected to")
        self.launch()
        wait_for(lambda: self.code() is not None or self.text().count("connected to") > before)
        assert self.code() is None, self.text()
        return self

    def code(self) -> int | None:
        assert self.process is not None
        return self.process.poll()

    def text(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A command of it, to its end."""
        command = (sys.executable, "-m", "aggregator", *words)
        return subprocess.run(
            command, env=self.env, cwd=self.folder, capture_output=True, text=True, timeout=30
        )

    def totals(self) -> dict[tuple[str, str], int]:
        """What it has counted since ever: {(field, value): count}; empty before it has a
        database.
        """
        import aggregator

        with contextlib.suppress(tbmon.UserError):
            rows = aggregator.read(self.db, aggregator.QUERIES["totals"])
            return {(name, value): count for name, value, count in rows}
        return {}

    def counted(self) -> int:
        """How many task and invoice messages."""
        fields = (
            "task_received.taskType",
            "task_completed.status",
            "invoice_created.stepsComputedBucket",
        )
        return sum(count for (name, _), count in self.totals().items() if name in fields)

    def dropped(self) -> dict[str, int]:
        """{reason: count} of what was not counted, on all days."""
        import aggregator

        sql = "SELECT value, sum(count) FROM tally WHERE name = ? GROUP BY value"
        return dict(aggregator.read(self.db, sql, aggregator.DROPPED))

    def present(self) -> set[str]:
        """The installations heard of, as the hex digits of their ids."""
        import aggregator

        return {
            row[0].hex() for row in aggregator.read(self.db, "SELECT DISTINCT node FROM present")
        }

    def tell(self, number: int) -> None:
        """Send it a signal."""
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        self.tell(signal.SIGKILL)
        assert self.process is not None
        self.process.wait(10)

    def end(self, number: int = signal.SIGTERM, timeout_s: float = 3) -> int:
        self.tell(number)
        assert self.process is not None
        return self.process.wait(timeout_s)

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
