"""tbmon itself: as threads of this process (Watch), and as its operator starts it (Program)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import tbmon
from support import ROOT, contract
from support.machine import figure_of, wait_for
from support.node_words import header


class Watch:
    """The monitor's threads on a store of their own, in this process."""

    def __init__(self, folder: Path, name: str = "none", **settings: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.config = tbmon.Config(container_name=name, db_path=str(folder / "t.db"), **settings)
        self.key = tbmon.read_key_file(folder / "local.key", lambda: os.urandom(32))
        self.failures: list[str] = []
        self.threads: list[threading.Thread] = []

    def start(self) -> Watch:
        self.store = tbmon.Store(Path(self.config.db_path), self.key)
        engine = None if self.config.log_dir else tbmon.DockerEngine(self.config)
        redactor = tbmon.Redactor(self.key)
        self.monitor = tbmon.Monitor(
            self.config, self.store, redactor, engine, threading.Event(), retry_min_s=0.02
        )
        for name, work in (("ingest", tbmon.ingest), ("upkeep", tbmon.upkeep)):
            self.threads.append(tbmon.start_thread(self.monitor, name, work, self.failures))
        return self

    def stop(self) -> None:
        self.monitor.stop.set()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive(), f"{thread.name} does not end"
        self.threads.clear()
        self.store.close()
        assert not self.failures

    def __enter__(self) -> Watch:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def entries(self) -> list[Any]:
        """All log entries, oldest first."""
        return self.store.entries({}, 0, 2**41, None, 10**7)[::-1]

    def messages(self) -> list[str]:
        return [row["message"] for row in self.entries()]

    def count(self) -> int:
        return int(self.store.read("SELECT COUNT(*) FROM log")[0][0])

    def task(self, execution_id: str) -> Any:
        return self.store.task(execution_id)

    def wait_for_message(self, message: str, timeout_s: float = 20.0) -> None:
        sql = "SELECT 1 FROM log WHERE message = ?"
        wait_for(lambda: self.store.read(sql, (message,)), timeout_s)


class Program:
    """tbmon as its operator starts it, with an environment of its own."""

    def __init__(self, folder: Path, **settings: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.folder = folder
        folder.mkdir(exist_ok=True)
        self.env = {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT),
            "HOME": str(folder),
            "PORT": str(self.port),
            "TASK_DATA_PASSWORD": "open sesame",
            "DB_PATH": str(folder / "t.db"),
            "FEDERATION_NATS_URL": "nats://127.0.0.1:1",
            **settings,  # never the hub that others use
        }
        self.log = folder / "log.txt"

    def start(self, command: str = "serve") -> Program:
        with self.log.open("ab") as log:
            words = (sys.executable, "-m", "tbmon", command)
            self.process = subprocess.Popen(
                words, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        wait_for(lambda: self.process.poll() is not None or self.answers())
        return self

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return self.get("/health")[0] == 200
        return False

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        """(status, body): JSON where it is, else text."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", headers=named)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                status, given, body = answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as error:
            status, given, body = error.code, error.headers, error.read()
        contract.check("GET", path, status, given, body)
        return status, json.loads(body) if "json" in given["Content-Type"] else body.decode()

    def private(self, path: str) -> Any:
        status, body = self.get(path, X_Task_Data_Password="open sesame")
        assert status == 200, body
        return body

    def reader(self) -> sqlite3.Connection:
        """A connection of the calling thread's own, which only reads."""
        return sqlite3.connect(
            f"file:{self.env['DB_PATH']}?mode=ro", uri=True, isolation_level=None, timeout=10
        )

    def rows(self, sql: str, *values: str | int) -> list[Any]:
        """Of the database as it lies there."""
        with contextlib.closing(self.reader()) as db:
            return db.execute(sql, values).fetchall()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)


def discard(made: Iterable[Program]) -> None:
    """End what is left of programs."""
    for one in made:
        if getattr(one, "process", None) and one.process.poll() is None:
            one.process.kill()
            one.process.wait()


def write(program: Program, *lines: str) -> None:
    with (Path(program.env["LOG_DIR"]) / "worker-2026-01-01.log").open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def over_files(folder: Path, **settings: str) -> Program:
    (folder / "logs").mkdir(parents=True)
    return Program(folder / "program", LOG_DIR=str(folder / "logs"), **settings)


def end(program: Program) -> None:
    assert program.end() == 0


PROGRAM = str(ROOT / "tbmon.py")
Make = Callable[..., Program]


def begin(program: Program, *command: str) -> Program:
    """Start without waiting for an answer; `command` is what Python is given."""
    with program.log.open("ab") as log:
        words = (sys.executable, *(command or (PROGRAM,)))
        program.process = subprocess.Popen(
            words, env=program.env, cwd=program.folder, stdout=log, stderr=log
        )
    return program


def made_over_files(program: Make, **settings: str) -> Program:
    """A program that follows an empty folder of log files."""
    made = program(**settings)
    made.env["LOG_DIR"] = str(made.folder / "logs")
    (made.folder / "logs").mkdir()
    return made


def has_handlers(one: Program) -> bool:
    """True when the process catches SIGHUP, which is the last of the three to be caught."""
    assert one.process.poll() is None, one.log.read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", Path(f"/proc/{one.process.pid}/status").read_text())
    return caught is not None and bool(int(caught[1], 16) >> signal.SIGHUP - 1 & 1)


SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


def follow(one: Program, *said: str) -> Program:
    """Start a program on a folder of logs that says these words, a second apart."""
    (one.folder / "logs").mkdir()
    one.env["LOG_DIR"] = str(one.folder / "logs")
    begin = time.time() - 9
    lines = [header(words, begin + second / 4) for second, words in enumerate(said)]
    (one.folder / "logs" / "a.log").write_text("\n".join(lines) + "\n")
    return one.start()


def resident_bytes(program: Program) -> int:
    return 1024 * figure_of(program.process.pid, "VmRSS")
