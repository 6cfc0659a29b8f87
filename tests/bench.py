"""Measures what tbmon promises: speed of reading, memory, idle load, start and live latency, each beside its target.

A script, no test: `python tests/bench.py [--quick] [--only NAME ...] [--json FILE]`, with the packages of the tests
and a Docker Engine. Every figure comes from a real process, its database and /proc. A missed target is marked in the
table and is no failure: the exit code is 1 only if something could not be measured.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import inspect
import json
import os
import platform
import py_compile
import random
import shutil
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import conftest
import pytest
from conftest import WALLET, Node, Program, docker, figure_of, header, wait_for
from federation_feed import UNLIMITED, Aggregation, Feed, Publisher
from hub_conf import Server

import aggregator
import tbmon

PACE_S = 0.02  # between two lines of the latency measurement
STALL_S = 30.0  # without a new row, nothing more is expected to come


@dataclass(frozen=True)
class Figure:
    """One row of the table; `least` tells whether the target is a lower bound."""

    measure: str
    value: float
    unit: str
    target: float | None = None
    least: bool = False

    def row(self) -> tuple[str, str, str]:
        value = f"{self.value:,.0f}" if self.value >= 1000 else f"{self.value:.3g}"
        if self.target is None:
            return self.measure, f"{value} {self.unit}", ""
        met = self.value >= self.target if self.least else self.value <= self.target
        target = f"{'>=' if self.least else '<='} {self.target:,.0f} {self.unit}"
        return self.measure, f"{value} {self.unit}", target + ("" if met else "  MISSED")


@dataclass
class Load:
    """What a generated log holds: lines, what must come of them, and the last header."""

    lines: int = 0
    entries: int = 0
    tasks: int = 0
    last: str = ""


def semaphore(dice: random.Random) -> Iterator[str]:
    """What a subscriber says of one message."""
    name, used = f"Semaphore {dice.choice(('InvoiceSubscriber', 'TaskSubscriber'))}", dice.randrange(4)
    yield f"{name} message received - Processing immediately ({used}/4 slots used)"
    yield f"{name} processing started - Using slot {used + 1}/4"
    yield f"{name} processing completed - Released slot ({used}/4 now active) - {4 - used} slots available"


def task(dice: random.Random) -> Iterator[str]:
    """One execution from receipt to invoice, two of its payloads over many lines."""
    number, digest, steps = f"{dice.getrandbits(128):032x}", f"{dice.getrandbits(256):064x}", dice.randrange(10**11)
    execution_id, task_id = f"{number[:8]}-{number[8:12]}-4000-8000-{number[20:]}", f"js_{digest}"
    other, third = "0x" + "99" * 20, "0x" + "22" * 20
    message = {
        "type": "dispatch_task", "taskId": task_id, "executionId": execution_id, "chainId": "43114",
        "blockNumber": dice.randrange(10**8), "blockHash": "0x" + digest, "taskRequesterAddress": other,
        "input": "some message to hash", "econParams": {"requiredSolutions": 2, "executionTimeout": 27000},
        "limits": {"gas": "60000000000", "memory": "1024"}, "workers": {"setNodes": [WALLET, third]},
    }  # fmt: skip
    created = {"payload": {"type": "task_created", "executionId": execution_id, "message": message}}
    yield "Message received from task_created:\n" + json.dumps(created, indent=2)
    yield f"Task {task_id} downloaded successfully"
    yield "Starting task execution"
    output = {
        "elapsed": str(dice.randrange(10**10)), "wasi": {"exitCode": 0},
        "metering": {"limits": {"gas": 60000000000, "memory": 1024}, "last": {"steps": steps}, "peak": {"memory": 87}},
        "execution": {"wasm": {"size": 1843200, "hash": digest}, "prepare": {"cached": dice.random() < 0.5}},
    }  # fmt: skip
    yield "Command execution stdout:\n" + json.dumps(output, indent=2)
    yield f"Execution {execution_id} completed"
    yield "Message published to compute_outcome"
    shares = ("charge", other), ("pay", WALLET), ("pay", third)
    items = [{"operation": what, "account": who, "total_steps_computed": steps} for what, who in shares]
    invoice = {"type": "invoice", "executionId": execution_id, "taskId": task_id, "invoiceId": str(int(number, 16))}
    yield "InvoiceSubscriber invoice received: " + json.dumps({**invoice, "stepGasPrice": 5e-07, "lineItem": items})


def write_log(paths: Sequence[Path], lines: int, span_s: float) -> Load:
    """Fill the files in turn with `lines` lines or a few more of the last `span_s`, 70 % of them semaphores'."""
    load, dice, of_semaphores, begin = Load(), random.Random(7), 0, time.time() - span_s
    for number, path in enumerate(paths, 1):
        with path.open("w", encoding="utf-8") as file:
            while load.lines < lines * number / len(paths):
                is_task = of_semaphores > 0.7 * load.lines
                for message in task(dice) if is_task else semaphore(dice):
                    load.last = header(message, begin + span_s * load.lines / lines)
                    file.write(load.last + "\n")
                    load.lines += 1 + message.count("\n")
                    load.entries += 1
                load.tasks += is_task
                of_semaphores += 0 if is_task else 3
    return load


class Monitor(Program):
    """A tbmon with a new database; ready when its health is served, for which it is asked every 20 ms."""

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
        self.db = sqlite3.connect(f"file:{self.env['DB_PATH']}?mode=ro", uri=True, isolation_level=None, timeout=10)
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def memory_mib(self, name: str) -> float:
        """VmRSS (now) or VmHWM (the most ever) of the process."""
        return figure_of(self.process.pid, name) / 1024

    def cpu_s(self) -> float:
        spent = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(spent[11]) + int(spent[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def container(folder: Path, lines: int = 300) -> Iterator[tuple[Node, Load]]:
    """A node that has said `lines` lines. Of the last minutes: tbmon disbelieves stamps that the engine's deny."""
    node = Node(folder / "io")
    try:
        load = write_log([node.folder / "history"], lines, 200)
        node.run(script="cat /io/history; exec cat /io/out")
        wait_for(lambda: docker("logs", "--tail", "1", node.name) == load.last, 300)
        yield node, load
    finally:
        node.close()


def ingest(program: Monitor, name: str, load: Load, target: int) -> Iterator[Figure]:
    """Wait until an empty database holds `load`; the rate is that of the rows after the first commit seen."""
    first, first_at, stored, moved_at = 0, 0.0, 0, time.monotonic()
    while stored < load.entries and time.monotonic() < moved_at + STALL_S:
        time.sleep(0.01)
        sql = "SELECT json_extract(value, '$.seq') FROM state WHERE name = ?"  # committed with the rows it counts
        row = program.db.execute(sql, (name,)).fetchone()
        if row is not None and row[0] > stored:
            stored, moved_at = row[0], time.monotonic()
            first, first_at = (first, first_at) if first else (stored, moved_at)
    rows, odd = program.db.execute("SELECT COUNT(*), TOTAL(flags != 0) FROM log").fetchone()
    (tasks,) = program.db.execute("SELECT COUNT(*) FROM task WHERE status = 'completed'").fetchone()
    if (rows, tasks, odd) != (load.entries, load.tasks, 0):
        print(f"{name}: NOT ALL STORED: {rows} of {load.entries} entries, {odd:.0f} of them suspect or not recognised,"
              f" {tasks} of {load.tasks} tasks")  # fmt: skip
    assert stored > first, "too few rows came, or all at once"
    rate = load.lines * (stored - first) / load.entries / (moved_at - first_at)
    yield Figure(f"{name}: {load.lines:,} lines read", rate, "lines/s", target, least=True)
    yield Figure(f"{name}: first row to last", moved_at - first_at, "s")
    yield Figure(f"{name}: process start to last row", moved_at - program.begun, "s")
    yield Figure(f"{name}: peak RSS", program.memory_mib("VmHWM"), "MiB", 80)


def files(folder: Path, quick: bool) -> Iterator[Figure]:
    """History of five days in five files."""
    (folder / "log").mkdir()
    names = [folder / "log" / f"node-2026-01-0{day}.log" for day in range(1, 6)]  # names only give the order
    load = write_log(names, 100_000 if quick else 1_000_000, 5 * 86400)
    with Monitor(folder / "data", LOG_DIR=str(folder / "log")) as program:
        yield from ingest(program, "files", load, 100_000)


def engine(folder: Path, quick: bool) -> Iterator[Figure]:
    said = container(folder, 100_000 if quick else 300_000)
    with said as (node, load), Monitor(folder / "data", CONTAINER_NAME=node.name) as program:
        yield from ingest(program, "engine", load, 50_000)


def idle(folder: Path, quick: bool) -> Iterator[Figure]:
    with container(folder) as (node, _), Monitor(folder / "data", CONTAINER_NAME=node.name) as program:
        time.sleep(10)
        before = program.cpu_s()
        yield Figure("idle: RSS after 10 s", program.memory_mib("VmRSS"), "MiB", 42)
        time.sleep(10)
        yield Figure("idle: CPU over 10 s", (program.cpu_s() - before) * 10, "% of a core")


def start(folder: Path, quick: bool) -> Iterator[Figure]:
    taken = []
    with container(folder) as (node, _):
        for number in range(5):
            with Monitor(folder / f"data{number}", CONTAINER_NAME=node.name) as program:
                taken.append(program.ready_s)
    yield Figure("start: process to health 200 (median of 5)", statistics.median(taken), "s", 1)


def latency(folder: Path, quick: bool) -> Iterator[Figure]:
    """From the node's write to the row: a second connection looks every 1 ms, so up to that much is our own."""
    count, sent, taken = 500, list[float](), list[float]()
    with container(folder) as (node, _), Monitor(folder / "data", CONTAINER_NAME=node.name) as program:
        time.sleep(3)  # the start is not what is asked for
        (seq,) = program.db.execute("SELECT MAX(seq) FROM log").fetchone()
        begun = time.monotonic()
        since = int(time.time()).to_bytes(4, "big")
        while len(taken) < count and time.monotonic() < begun + count * PACE_S + STALL_S:
            if len(sent) < count and time.monotonic() >= begun + len(sent) * PACE_S:
                line = header(f"Heartbeat sent {len(sent)}")
                sent.append(time.monotonic())
                node.say(line)
            sql = "SELECT message, seq, substr(key, 1, 4) FROM log WHERE key >= ? AND seq > ? ORDER BY seq"
            for row in program.db.execute(sql, (since, seq)).fetchall():
                taken.append((time.monotonic() - sent[int(row[0].split()[-1])]) * 1000)
                seq, since = row[1:]
            time.sleep(0.001)
    assert len(taken) == count, f"{len(taken)} of {count} lines arrived"
    cuts = statistics.quantiles(taken, n=100)
    yield Figure("latency: node's write to row, p50", cuts[49], "ms")
    yield Figure("latency: node's write to row, p99", cuts[98], "ms", 100)


def counting(folder: Path, quick: bool) -> Iterator[Figure]:
    """The aggregator's own work on a message, without the network."""
    feed, now, number = Feed(1, 10_000), int(time.time() * 1000), 100_000 if quick else 400_000
    makes = (feed.work, feed.work, functools.partial(feed.beat, feed.nodes[0]))
    said = [aggregator.Received(*makes[count % 3](now)[:2], now) for count in range(number)]
    store = aggregator.Store(aggregator.Config(db_path=str(folder / "a.db"), **UNLIMITED))  # type: ignore[arg-type]
    began = time.monotonic()
    for at in range(0, number, aggregator.BATCH):
        store.take(said[at : at + aggregator.BATCH])
    taken = time.monotonic() - began
    dropped = store.get("dropped", now // tbmon.DAY_MS * tbmon.DAY_MS)
    assert dropped == [], dropped
    store.close()
    yield Figure("aggregator: decode, gate and commit", number / taken, "messages/s", 30_000, least=True)


def publication(folder: Path, quick: bool) -> Iterator[Figure]:
    """Of 10,000 nodes; the slowest counts the nodes and makes a snapshot."""
    now = int(time.time() * 1000) // tbmon.WINDOW_MS * tbmon.WINDOW_MS
    for tasks in (10_000, 1_000_000 if quick else 10_000_000):
        store = aggregator.Store(aggregator.Config(db_path=str(folder / f"{tasks}.db")))
        fill(store, tasks, now)
        publisher = aggregator.Publisher(aggregator.Config(), store)
        taken = []
        for number in range(40):
            began = time.monotonic()
            payload = publisher.publication(now + number * 30_000)
            taken.append((time.monotonic() - began) * 1000)
        figures = tbmon.read_publication(payload)
        assert figures and (figures["totalTasks"], figures["totalNodes"]) == (tasks, 10_000)
        store.close()
        yield Figure(f"aggregator: publication at {tasks:,} tasks (median of 40)", statistics.median(taken), "ms", 10)
        yield Figure(f"aggregator: publication at {tasks:,} tasks (slowest of 40)", max(taken), "ms", 10)


def fill(store: aggregator.Store, tasks: int, now: int) -> None:
    """What the store holds after so many tasks of two weeks."""
    ranges = [(0, field, value) for field, values in aggregator.DISTRIBUTIONS.values() for value in values]
    shares = Counter({("task_received.taskType"): len(tbmon.SHARED_LANGUAGES)})
    windows = [now - number * tbmon.WINDOW_MS for number in range(14 * 288)]
    nodes = [random.randbytes(16) for _ in range(10_000)]
    hour = now // tbmon.HOUR_MS
    store.put(
        tally=[(*one, tasks // (shares[one[1]] or 7)) for one in ranges]
        + [(0, "task_completed.status", "completed", tasks), (0, "task_completed.cached", "True", tasks // 2)]
        + [(at, kind, "", tasks // len(windows)) for at in windows for kind in ("task_received", "invoice_created")],
        node=[(one, now - tbmon.WINDOW_MS, now, None, now) for one in nodes],
        present=[(now - at, one) for at in (0, tbmon.WINDOW_MS) for one in nodes],
        seen=((number * 9 * 10**11, hour) for number in range(tasks)),
    )


def network(folder: Path, quick: bool, minutes: float = 1) -> Iterator[Figure]:
    """10,000 monitors' messages as they come, then what came during an absence; with the hub and processes."""
    feed, hub = Feed(2, 10_000), Server(folder)
    aggregation = Aggregation(folder / "aggregator", hub.url(), PUBLISH_INTERVAL="1000")
    with contextlib.ExitStack() as stack:
        stack.callback(hub.close)
        hub.start()
        stack.callback(aggregation.close)
        aggregation.start()
        publisher, sent = Publisher(hub.address), 0
        begun, seconds = time.monotonic(), int(10 if quick else 60 * minutes)
        for second in range(seconds):
            now = int(time.time() * 1000)
            beats = [feed.beat(feed.nodes[(second * 334 + number) % 10_000], now) for number in range(334)]
            work = [feed.work(now) for _ in range(166)]
            publisher.publish(*beats, *work)
            sent += len(work)
            time.sleep(max(0.0, begun + second + 1 - time.monotonic()))
        wait_for(lambda: aggregation.counted() == sent)
        assert len(aggregation.present()) == min(10_000, 334 * seconds)
        yield Figure(f"aggregator: 10,000 nodes for {seconds} s, messages lost", 0, "messages", 0)
        yield Figure("aggregator: peak RSS meanwhile", peak_mib(aggregation), "MiB", 120)
        assert aggregation.end() == 0
        number = 50_000 if quick else 300_000
        for _ in range(0, number, 1000):
            publisher.publish(*(feed.work(int(time.time() * 1000)) for _ in range(1000)))
        aggregation.start()
        before, begun = aggregation.counted(), time.monotonic()
        wait_for(lambda: aggregation.counted() == sent + number, 120)
        rate = (sent + number - before) / (time.monotonic() - begun)
        yield Figure("aggregator: from the hub's stream to the commit", rate, "messages/s")
        yield Figure("aggregator: peak RSS with a backlog", peak_mib(aggregation), "MiB", 120)


def peak_mib(aggregation: Aggregation) -> float:
    assert aggregation.process is not None
    return figure_of(aggregation.process.pid, "VmHWM") / 1024


MEASURES: dict[str, Callable[[Path, bool], Iterator[Figure]]] = {
    "files": files, "engine": engine, "idle": idle, "start": start, "latency": latency,
    "counting": counting, "publication": publication, "network": network,
}  # fmt: skip


def surroundings() -> dict[str, object]:
    """Where the figures are taken."""
    model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    engine_version = docker("version", "-f", "{{.Server.Version}}", check=False) if shutil.which("docker") else ""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "cores": os.cpu_count(),
        "CPU": model or platform.machine(), "load": round(os.getloadavg()[0], 1),
        "Python": platform.python_version(), "engine": engine_version or "none",
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description="measure tbmon against its targets")
    parser.add_argument("--quick", action="store_true", help="100,000 lines only")
    parser.add_argument("--soak", action="store_true", help="the long forms: ten minutes of a network")
    parser.add_argument("--only", nargs="+", choices=MEASURES, default=list(MEASURES), metavar="NAME",
                        help="some of: " + " ".join(MEASURES))  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that containers and folders go
    py_compile.compile(str(conftest.ROOT / "tbmon.py"))  # as its first start leaves it: compiling takes 10 MiB
    if given.soak:
        MEASURES["network"] = functools.partial(network, minutes=10)
    where, failed, figures = surroundings(), 0, list[Figure]()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    for name in given.only:
        with tempfile.TemporaryDirectory(prefix="tbmon-bench-") as folder:
            try:
                if name in ("engine", "idle", "start", "latency"):
                    inspect.unwrap(conftest.engine)()  # the fixture's function makes the containers' image
                figures += MEASURES[name](Path(folder), given.quick)
            except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:  # whatever: the others go on
                failed = 1
                print(f"{name}: could not be measured: {error!r}", flush=True)
    rows = [("measure", "value", "target"), *(figure.row() for figure in figures)]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for measure, value, target in rows:
        print(f"{measure:<{widths[0]}}  {value:>{widths[1]}}  {target}".rstrip())
    if given.json:
        given.json.write_text(json.dumps({**where, "figures": [asdict(figure) for figure in figures]}, indent=1) + "\n")
    return failed


if __name__ == "__main__":
    sys.exit(main())
