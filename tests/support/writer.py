"""A container that tells a story by itself at a steady pace, and how what tbmon keeps is compared
with it.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import itertools
import random
import re
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import tbmon
from support.engine import LOG_FOLDER, Node
from support.machine import wait_for
from support.node_words import (
    WALLET,
    completed,
    created_record,
    header,
    invoice_of,
    invoice_record,
    line_item,
    receipt,
)
from support.programs import Program, begin

BURST, PACED = (
    2_000,
    2_000,
)  # entries that are there when tbmon comes, and that are written while it is troubled
HISTORY, PAD = 10_000, "." * 500  # entries of the node's files, of some batches each
LONG_LINE = "x" * 40_000
AWK = r"""
# Each line begins with its stream: o, e, or p for a pause. STAMP is the second, LONG forty thousand letters.
BEGIN { for (long = "x"; length(long) < 40000;) long = long long; long = substr(long, 1, 40000) }
{ stream = substr($0, 1, 1); text = substr($0, 2) }
stream == "p" && !hurries && (getline word < "/io/hurry") > 0 { hurries = 1 }
stream == "p" { if (!hurries) system("sleep 0.05"); next }
{ if (text ~ /^STAMP/) text = strftime("%Y-%m-%d %H:%M:%S", systime(), 1) substr(text, 6) }
/ LONG\.$/ { text = substr(text, 1, length(text) - 5) long "." }
stream == "e" { print text > "/dev/stderr"; next }
{ print text }
"""


class Outcome(NamedTuple):
    """What must be known of a task in the end."""

    execution_id: str
    status: str
    exit_code: int | None = None
    elapsed_ms: int | None = None
    gas_used: int | None = None
    memory_peak: int | None = None


FATES = ("named", "bare", "exit", "refused")


class Story:
    """What the node says; `entries` are (stream, message), and none stands there twice."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.entries: list[tuple[str, str]] = []
        self.tasks: list[Outcome] = []
        self.numbers = itertools.count()
        while len(self.entries) < BURST + PACED:
            for stream, message in self.life(FATES[len(self.tasks) % 4]):
                self.entries += [self.chat() for _ in range(self.dice.randrange(4))]
                self.entries.append((stream, message))

    def chat(self) -> tuple[str, str]:
        """An entry of one of many shapes, on one of the streams."""
        number = next(self.numbers)
        words = f"line {number:06d}"
        if number % 20 in (3, 12):
            words += " LONG."
        elif number % 5 == 0:
            words += ': {\n  "a": 1,\n\n  "b": "}"\n}'
        return "e" if number % 4 == 3 else "o", words

    def life(self, fate: str) -> Iterator[tuple[str, str]]:
        """One execution, from receipt to invoice."""
        name = f"{self.dice.getrandbits(32):08x}-{len(self.tasks):04x}-4000-8000-{self.dice.getrandbits(48):012x}"
        message = {"taskId": "js_" + "4b" * 32, "econParams": {"executionTimeout": 10**9}}
        steps, pages, millis = (
            self.dice.randrange(10**9),
            self.dice.randrange(1, 500),
            self.dice.randrange(10**5),
        )
        yield "o", receipt(created_record(name, message), indent=2)
        yield "o", f"Starting task execution {name}"
        if fate == "refused":
            self.tasks.append(Outcome(name, "failed"))
            yield "o", f"Execution {name} failed: gas limit exceeded"
            return
        code = int(fate == "exit")
        self.tasks.append(
            Outcome(name, "failed" if code else "completed", code, millis, steps, pages)
        )
        first = f"{{ executionId: '{name}'," if fate == "named" else "{"
        yield (
            "o",
            f"Command execution stdout: {first}\n  elapsed: '{millis * 10**6}', wasi: {{ "
            f"exitCode: {code} }},\n"
            f"  metering: {{ last: {{ steps: {steps} }}, peak: {{ memory: {pages} }} }} }}",
        )
        yield "o", completed(name)
        items = [line_item("pay", WALLET, steps, pages)]
        invoice = invoice_record(name, items, invoiceId=str(10**21 + steps))
        yield "o", invoice_of(invoice, "received invoice:", indent=1)

    def lines(self) -> Iterator[str]:
        """As AWK takes them; pauses come within entries too."""
        head = header("").partition(" info")[2]
        for number, (stream, message) in enumerate(self.entries):
            first, *others = message.split("\n")
            yield f"{stream}STAMP info{head}{first}"
            for line in others:
                if number > BURST and self.dice.random() < 0.05:
                    yield "p"
                yield stream + line
            if number > BURST:
                yield "p"

    def messages(self) -> list[str]:
        return [message.replace(" LONG.", f" {LONG_LINE}.") for _, message in self.entries]


class Telling:
    """A running container that tells a story, with files of what the node said hours before."""

    def __init__(self, node: Node, story: Story) -> None:
        self.node, self.story = node, story
        (node.folder / "say.awk").write_text(AWK)
        (node.folder / "story").write_text("".join(line + "\n" for line in story.lines()))
        begun = int(time.time()) - 9000
        self.history = [(begun + number // 3, f"old {number} {PAD}") for number in range(HISTORY)]
        self.node.run(
            "--log-driver",
            "json-file",
            "--log-opt",
            "max-size=4g",
            script="busybox awk -f /io/say.awk /io/story; exec sleep 100000",
        )
        packed = [(header(words, at) + "\n").encode() for at, words in self.history]
        self.node.put(
            f"{LOG_FOLDER}/worker-2026-01-01.log.gz",
            gzip.compress(b"".join(packed[: HISTORY // 2])),
        )
        self.node.put(f"{LOG_FOLDER}/worker-2026-01-02.log", b"".join(packed[HISTORY // 2 :]))

    def hurry(self) -> None:
        """Tell the rest without a pause."""
        (self.node.folder / "hurry").write_text("yes\n")

    def heads(self) -> Counter[tuple[int, str]]:
        """(second, first line) of every entry, as the engine has it."""
        said = subprocess.run(("docker", "logs", self.node.name), capture_output=True, check=True)
        found = Counter[tuple[int, str]]()
        for line in (said.stdout + said.stderr).decode().splitlines():
            if re.match(r"\d{4}-\d\d-\d\d ", line):
                words = line.partition(" info: ")[2].partition(" ")[2]
                found[tbmon.parse_second(line[:19]) or 0, words] += 1
        return found


@contextlib.contextmanager
def telling(folder: Path, seed: int) -> Iterator[Telling]:
    with contextlib.closing(Node(folder)) as node:
        yield Telling(node, Story(seed))


# What tbmon keeps


def place(program: Program, source: str) -> str:
    """How far a source is read, in tbmon's words: "engine" or "files"."""
    with contextlib.suppress(sqlite3.OperationalError):  # not made yet
        return "".join(
            value for (value,) in program.rows(f"SELECT value FROM state WHERE name = '{source}'")
        )
    return ""


def is_imported(program: Program) -> bool:
    """Whether the node's files have given all they hold, so that no further batch of them is to
    come.
    """
    with contextlib.suppress(sqlite3.OperationalError):
        sql = "SELECT 1 FROM state WHERE name = 'files' AND json_extract(value, '$.seq') >= ?"
        return bool(program.rows(sql, HISTORY))
    return False


def disturb(program: Program, moment: str, dice: random.Random) -> float | None:
    """Start tbmon and wait for a moment: start, engine, files or work. Returns how long a whole
    start took.
    """
    before = {source: place(program, source) for source in ("engine", "files")}
    begin(program, "-m", "tbmon")
    begun = time.monotonic()
    if moment == "start":
        threading.Event().wait(dice.uniform(0, 0.6))
        return None
    if moment in before and not (moment == "files" and is_imported(program)):
        with contextlib.suppress(
            AssertionError
        ):  # a story told to its end brings nothing more: then it is work
            wait_for(lambda: place(program, moment) != before[moment], 5)
            threading.Event().wait(dice.uniform(0, 0.05))
            return None
    wait_for(lambda: program.process.poll() is not None or program.answers())
    took = time.monotonic() - begun
    assert program.process.poll() is None, program.log.read_text()
    threading.Event().wait(dice.uniform(0, 0.4))
    return took


def moments(count: int, dice: random.Random) -> list[str]:
    """At first the past is read, so that comes first."""
    later = dice.choices(("start", "work", "engine"), (3, 5, 2), k=count - 9)
    return ["start", *["engine"] * 3, *["files"] * 3, "start", "work", *later]


def is_sound(program: Program) -> bool:
    return program.rows("PRAGMA integrity_check") == [("ok",)]


def is_told(program: Program, count: int) -> bool:
    return bool(program.rows("SELECT COUNT(*) FROM log")[0][0] >= count)


def compare(program: Program, told: Telling) -> None:
    """Wait until all is read; then every entry is there once, with its time, and every task and
    invoice right.
    """
    story, key = told.story, (program.folder / "local.key").read_bytes()
    clean = tbmon.Redactor(key).clean
    said = [
        clean(message) for message in (*story.messages(), *(words for _, words in told.history))
    ]
    wait_for(lambda: is_told(program, len(said)), 60)
    lasts = {
        stream: clean(text)
        for (stream, _), text in zip(story.entries, story.messages(), strict=True)
    }
    for last in lasts.values():  # it grows line by line
        wait_for(functools.partial(program.rows, "SELECT 1 FROM log WHERE message = ?", last))
    assert program.end() == 0
    names = [path.name for path in program.folder.iterdir()]
    assert [
        name for name in names if "damaged" in name or name.endswith((".part", ".tmp", "-wal"))
    ] == []
    assert is_sound(program)
    kept = [(at // 1000, text) for at, text in program.rows("SELECT at, message FROM log")]
    stored, given = Counter(text for _, text in kept), Counter(said)
    assert stored == given, (
        [text[-60:] for text in given - stored],
        [text[-60:] for text in stored - given],
    )
    heads = Counter((at, clean(text)) for at, text in told.heads().elements()) + Counter(
        told.history
    )
    first_lines = Counter((at, text.split("\n")[0]) for at, text in kept)
    assert first_lines == heads, ([*first_lines - heads], [*heads - first_lines])
    columns = ", ".join(Outcome._fields)
    assert {Outcome(*row) for row in program.rows(f"SELECT {columns} FROM task")} == set(
        story.tasks
    )
    paid = {
        (task.execution_id, "pay", task.gas_used)
        for task in story.tasks
        if task.gas_used is not None
    }
    invoices = program.rows("SELECT execution_id, operation, steps FROM invoice")
    assert set(invoices) == paid and len(invoices) == len(paid)
    assert program.rows("SELECT * FROM gap") == []
