"""The node's words fed to the store at chosen times, without an engine."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import tbmon
from support import node_words
from support.node_words import WALLET, header, invoice_record, line_item, metering, output_of, task
from tbmon import Task

IDS = [f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(9)]
NOW = int(time.time()) - 3600
START_MS = (NOW - 1) * 1000  # of the container: what it said first is there


def frame(stream: int, payload: bytes, size: int | None = None) -> bytes:
    """A piece of a log as the engine sends it; `size` is what it announces, if that is not the
    payload's.
    """
    return (
        bytes((stream, 0, 0, 0))
        + (len(payload) if size is None else size).to_bytes(4, "big")
        + payload
    )


class Feed:
    """Feeds lines to a monitor as an engine's log does, each with the engine's stamp of its second."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        store, config = tbmon.Store(folder / "t.db", b"k" * 32), tbmon.Config(**settings)
        self.monitor = tbmon.Monitor(
            config, store, tbmon.Redactor(b"k" * 32), None, threading.Event()
        )
        self.store, self.number = store, 0
        self.connect()

    def connect(self, container_id: str = "a1") -> None:
        container = tbmon.Container(
            container_id * 32, "n", "running", True, START_MS, None, "x", 0, False, "json-file"
        )
        self.feed = tbmon.EngineFeed(self.monitor, container)

    def raw(self, at: int, *lines: str, stream: int = 1) -> None:
        """Each line in a transaction of its own, as they come live."""
        for line in lines:
            self.number += 1
            stamp = f"{tbmon.second_text(at).replace(' ', 'T')}.{self.number:09d}Z"
            self.feed.take_lines([(stream, stamp.encode(), line.encode())])
            self.feed.caught_up()

    def say(self, at: int, *messages: str, stream: int = 1) -> None:
        self.raw(at, *(header(message, at) for message in messages), stream=stream)

    def task(self, number: int) -> Task:
        found = self.store.task(IDS[number])
        assert found is not None
        return found

    def invoices(self) -> list[Any]:
        return self.store.page("invoice", {}, None, 100, 0)


def received(number: int, **message: Any) -> str:
    return task(IDS[number], **message)


def output(steps: int, code: int = 0) -> str:
    return output_of(metering(steps, code=code))


def completed(number: int) -> str:
    return node_words.completed(IDS[number])


def invoice(number: int, operation: str = "pay", **more: Any) -> dict[str, Any]:
    items = [line_item("charge", "0x" + "99" * 20, 1), line_item(operation, WALLET, 2)]
    return {**invoice_record(IDS[number], items), **more}
