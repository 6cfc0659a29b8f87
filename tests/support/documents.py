"""Reading the documents: their tables, code words, examples and lines to copy."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from operator import attrgetter

import tbmon
from support.programs import Program

KEY, NODE_ID = bytes(range(32)), "node-3f1d8a52-6c07-4e9b-a1d4-0b7c92e6f585"
TASK = tbmon.Task(
    "b4c9a1d2-5b7a-4c11-9a60-0d5e8f7a1b2c",
    task_type="rust",
    status="completed",
    cached=False,
    elapsed_ms=4200,
)


def words(kind: str) -> tbmon.Words:
    """What an example is made with, beside its data."""
    due = tbmon.parse_time("2026-01-31T12:07:31Z")
    assert due is not None
    return tbmon.Words(due, tbmon.keyed(KEY, "example", kind).hex()[:32], KEY)


def made_example(kind: str) -> bytes:
    """The bytes that the builder of this kind makes of the document's task and invoice."""
    if kind == "task_received":
        return tbmon.received_message(TASK, words(kind))
    if kind == "task_completed":
        return tbmon.completed_message(TASK, words(kind), "executionTimeBucket")
    if kind == "invoice_created":
        return tbmon.invoice_message("7123456717698608000004", 1_500_000_000, words(kind))
    return tbmon.presence_message(kind, NODE_ID, kind != "node_left", words(kind))


def table(text: str) -> list[list[str]]:
    """The cells of a table's lines, without its head."""
    lines = [line.strip("|").split(" | ") for line in re.findall(r"^\|.+\|$", text, re.M)]
    return [[cell.strip() for cell in line] for line in lines[2:]]


def codes(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def is_of_source(name: str) -> bool:
    """True of a function, constant, method or attribute of tbmon."""
    with contextlib.suppress(AttributeError):
        return attrgetter(name)(tbmon) is not tbmon
    first, _, rest = name.partition(".")
    return rest in getattr(getattr(tbmon, first, None), "__annotations__", ())


def run(site: Program, line: str) -> subprocess.CompletedProcess[str]:
    words = line.replace("localhost:8090", f"localhost:{site.port}").replace(
        "curl ", "curl -sS --fail-with-body ", 1
    )
    env = {"PATH": os.environ["PATH"], "API_KEY": "of this test"}
    return subprocess.run(
        ("bash", "-c", words), cwd=site.folder, env=env, capture_output=True, text=True
    )
