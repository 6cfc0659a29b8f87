"""The composed samples of a node's log and event database, and what the tests of section 3 do with
lines.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from hypothesis import settings

from support import ROOT
from tbmon import Assembler, Entry, Event, Redactor, read_event

SAMPLES = ROOT / "tests" / "samples"
NOTES: list[dict[str, str]] = json.loads((SAMPLES / "composed-samples.json").read_text("utf-8"))
RECORDS: list[Any] = json.loads((SAMPLES / "composed-eventdb.json").read_text("utf-8"))["records"]
WHOLE_LOG = (SAMPLES / "composed-samples.log").read_bytes()
OWN, REQUESTER, PEER = (
    "A1b2C3d4E5f60718293a4B5c6D7e8F9012345678",
    "9999888877776666555544443333222211110000",
    "00112233445566778899AaBbCcDdEeFf00112233",
)
WRITER = f"@truebit/worker-runner-node-0x{OWN}:1.120.0-beta.275"
HEADER = f"2025-11-24 13:40:05 info: {WRITER} "
LAST = f"\n2025-11-24 16:00:00 info: {WRITER} Starting task execution"
FIRST, SECOND, THIRD = (
    "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c",
    "b8e47a05-1f3d-4e92-8c77-6a9d0c4e5f10",
    "07d2c6aa-94be-4d0f-b1e3-5c8f2a7d9e64",
)
ENGINE_STAMP = "2025-11-24T14:31:11.123456789Z "
KEY = b"k" * 32
MORE = settings(derandomize=True, deadline=None, max_examples=300)
SOME = settings(MORE, max_examples=80)


def lines(data: bytes | str) -> list[tuple[bytes, None, bytes]]:
    """The lines of a file as an Assembler takes them."""
    data = data.encode() if isinstance(data, str) else data
    return [(line, None, b"file:%d" % number) for number, line in enumerate(data.split(b"\n"))]


def parse(data: bytes | str, redactor: Redactor | None = None) -> list[Entry]:
    return Assembler(redactor or Redactor(KEY)).feed(lines(data))


def facts(entries: Iterable[Entry], redactor: Redactor) -> list[Event | None]:
    return [read_event(entry.type, entry.text, entry.raw, redactor.clean) for entry in entries]


def said(entries: Iterable[Entry], events: Iterable[Event | None]) -> str:
    """All that may reach the disk, in lower case; a task's input and output are kept as they are."""
    kept = [
        (event.execution_id, {**event.fields, "input": 0, "output": 0}) for event in events if event
    ]
    return repr(([(entry.text, entry.head, entry.type) for entry in entries], kept)).lower()
