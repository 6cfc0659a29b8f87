"""Disks that a test can fill, freeze and break, and a program whose database is on one."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import tempfile
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from support.engine import Node
from support.machine import missing, wait_for
from support.node_words import header
from support.programs import Program, discard

MEMORY = Path("/dev/shm")


@contextlib.contextmanager
def memory_folder() -> Iterator[Path]:
    """A folder where files need no disk, for tests in which nobody is to wait for one."""
    with tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None) as folder:
        yield Path(folder)


def root(*words: str, check: bool = True) -> bool:
    place = shutil.which(words[0], path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
    if place is None:
        missing(words[0])
    done = subprocess.run((place or "", *words[1:]), capture_output=True, text=True)
    assert done.returncode == 0 or not check, (words, done.stderr)
    return done.returncode == 0


@contextlib.contextmanager
def mounted(folder: Path, *words: str) -> Iterator[Path]:
    folder.mkdir(exist_ok=True)
    if not root("mount", *words, str(folder), check=False):
        missing("the right to mount a disk")
    try:
        yield folder
    finally:
        if not root("umount", str(folder), check=False):  # somebody still has a file open there
            root("umount", "--lazy", str(folder))


def memory_disk(folder: Path, options: str = "size=16m") -> contextlib.AbstractContextManager[Path]:
    return mounted(folder, "-t", "tmpfs", "-o", options, "none")


@contextlib.contextmanager
def ext4_disk(folder: Path) -> Iterator[Path]:
    """An ext4 of its own on a loop device, which becomes read-only at the first error."""
    image = folder.with_suffix(".img")
    with image.open("wb") as file:
        file.truncate(32 * 2**20)
    root("mkfs.ext4", "-q", str(image))
    with mounted(folder, "-o", "loop,errors=remount-ro", str(image)):
        yield folder


@contextlib.contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """No write to this disk ends before the block does."""
    root("fsfreeze", "--freeze", str(folder))
    try:
        yield
    finally:
        root("fsfreeze", "--unfreeze", str(folder))


def fill(path: Path) -> Path:
    """Take all the room that is left on a disk."""
    with path.open("wb", buffering=0) as file:
        for size in (2**16, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass
    return path


def during(seconds: float) -> Iterator[None]:
    """Again and again as long as a fault is to last."""
    end, pause = time.monotonic() + seconds, threading.Event()
    while time.monotonic() < end:
        yield
        pause.wait(0.1)


def spoil(path: Path, dice: random.Random, pages: int, page_bytes: int = 4096) -> None:
    """Overwrite random pages of a file, which stays as long as it is, as a failing disk does."""
    with path.open("r+b") as file:
        for _ in range(pages):
            file.seek(dice.randrange(path.stat().st_size // page_bytes) * page_bytes)
            file.write(dice.randbytes(page_bytes) if dice.random() < 0.7 else bytes(page_bytes))


class Station:
    """A node's container, and a program that follows it with its database in `disk`."""

    def __init__(self, node: Node, program: Callable[..., Program], disk: Path) -> None:
        self.node, self.disk, self.told, self.lines_before = node, disk, 0, 0
        self.path = disk / "t.db"
        self.program = program(CONTAINER_NAME=node.name, DB_PATH=str(self.path), API_RATE_LIMIT="0")

    def start(self) -> Program:
        """Start the program, or start it again."""
        self.lines_before = len(self.log().splitlines())  # of its log, from earlier starts
        return self.program.start()

    def say(self, number: int, more: str = "") -> None:
        """The node writes so many further numbered lines."""
        lines = [header(f"line {self.told + n} {more}") for n in range(number)]
        self.told += number
        self.node.say("\n".join(lines))

    def stored(self) -> list[int]:
        """The numbers of the lines in the database, in their order there."""
        rows = self.ask(
            "SELECT message FROM log WHERE message LIKE 'line %' ORDER BY substr(key, 1, 4), seq"
        )
        return [int(row[0].split()[1]) for row in rows]

    def ask(self, sql: str) -> list[Any]:
        """The rows of a query, as another process reads them."""
        uri = f"file:{urllib.parse.quote(str(self.path))}?mode=ro"
        with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as db:
            return db.execute(sql).fetchall()

    def has_all(self) -> bool:
        """Whether every line is there, once, in order; no answer while the file is out of reach is
        a no.
        """
        with contextlib.suppress(sqlite3.Error):
            enough = (
                self.ask("SELECT COUNT(*) FROM log WHERE message LIKE 'line %'")[0][0] >= self.told
            )
            return enough and self.stored() == list(range(self.told))
        return False

    def wait_for_all(self, timeout_s: float = 20.0) -> None:
        wait_for(self.has_all, timeout_s)

    def shown(self) -> int:
        """The number of the newest line that the API shows."""
        rows = self.program.private("/api/logs?search=line%20&limit=1")["logs"]
        return int(rows[0]["message"].split()[1]) if rows else -1

    def verdict(self) -> dict[str, Any]:
        return self.program.get("/api/status")[1]["verdict"] or {"state": "not judged yet"}

    def reason(self) -> str:
        """Why tbmon is blind; nothing if it is not."""
        verdict = self.verdict()
        return str(verdict["reason"]) if verdict["state"] == "blind" else ""

    def wait_until_blind(self, *words: str) -> None:
        wait_for(lambda: any(word in self.reason() for word in words), 15)

    def log(self) -> str:
        return self.program.log.read_text(errors="replace") if self.program.log.exists() else ""

    def damaged(self) -> list[Path]:
        return sorted(path for path in self.disk.glob("t.db.damaged-*") if path.name.endswith("Z"))

    def limit_file_size(self, most: str) -> None:
        """The kernel refuses the program's writes beyond so many bytes of any file, by a limit that
        can be lifted.
        """
        root("prlimit", f"--pid={self.program.process.pid}", f"--fsize={most}:")

    def close(self) -> None:
        print(self.log()[-4000:])  # shown with a test that fails
        discard([self.program])
