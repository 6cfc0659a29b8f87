"""Real parts for the tests: a container that says what a test writes, proxies before the engine,
the program itself.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import contract  # noqa: E402

import tbmon  # noqa: E402

SOCKET = "/var/run/docker.sock"
IMAGE = "tbmon-test/busybox:1"
BEGUN = float(
    os.environ.setdefault("TBMON_TESTS_BEGUN", str(time.time()))
)  # the same in each of pytest's processes
APPLETS = ("sh", "cat", "sleep", "mkdir", "ln", "mv", "cp")
LONG = (
    os.environ.get("TBMON_SOAK") == "1"
)  # the long form of the fault suite, as `make soak` runs it
WALLET = "0x558fA1b2C3d4E5f60718293a4B5c6D7e8F901234"
VERSION = "1.120.0-beta.275"


for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if (
        signal.getsignal(number) is signal.SIG_IGN
    ):  # by a shell in whose background the tests run; programs inherit it
        signal.signal(number, usual)


def missing(part: str) -> None:
    """A part that only CI must have: skip by name elsewhere."""
    if os.environ.get("CI"):
        pytest.fail(f"{part} is missing")
    pytest.skip(f"needs {part}")


def wait_for(what: Callable[[], Any], timeout_s: float = 20.0) -> Any:
    """Return what `what` returns as soon as that is true; fail after `timeout_s`."""
    deadline, pause = time.monotonic() + timeout_s, threading.Event()
    while not (found := what()):
        assert time.monotonic() < deadline, f"not within {timeout_s} s"
        pause.wait(0.02)
    return found


def header(message: str, at: float | None = None, level: str = "info", wallet: str = WALLET) -> str:
    """A line as the node writes it, now or at `at` (seconds since 1970)."""
    stamp = tbmon.second_text(int(time.time() if at is None else at))
    return f"{stamp} {level}: @truebit/worker-runner-node-{wallet}:{VERSION} {message}"


def docker(*words: str, check: bool = True, data: bytes | None = None) -> str:
    done = subprocess.run(("docker", *words), input=data, capture_output=True)
    assert done.returncode == 0 or not check, (words, done.stderr)
    return done.stdout.decode().strip()


def length(short: int, long: int) -> int:
    """How much a test of the fault suite does: `long` of it under `make soak`."""
    return long if LONG else short


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Names what a long run measured, for the table at its end."""
    return record_property


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    told = sorted((report.nodeid, *one) for report in passed for one in report.user_properties)
    if LONG and told:
        terminalreporter.section(
            f"figures, {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores"
        )
        for _, name, value in told:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine, with an image made from the busybox on this machine."""
    if (
        shutil.which("docker") is None
        or subprocess.run(("docker", "version"), capture_output=True).returncode
    ):
        missing("a Docker Engine")
    busybox = shutil.which("busybox")
    if busybox is None:
        missing("busybox-static")
        return
    if docker("images", "--quiet", IMAGE):  # made by an earlier run
        return
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as tar:
        tar.add(busybox, "bin/busybox")
        for name in APPLETS:
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    docker("import", "-", IMAGE, data=packed.getvalue())


def figure_of(pid: int, name: str) -> int:
    """A figure that the kernel tells of a process: Threads, or in KiB VmRSS (now) or VmHWM (the
    most ever).
    """
    with contextlib.suppress(OSError):
        return int(
            re.findall(rf"^{name}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)[0]
        )
    missing("/proc")
    return 0


def cpu_s(pid: int) -> float:
    """Seconds of a core that a process has used."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def frame(stream: int, payload: bytes, size: int | None = None) -> bytes:
    """A piece of a log as the engine sends it; `size` is what it announces, if that is not the
    payload's.
    """
    return (
        bytes((stream, 0, 0, 0))
        + (len(payload) if size is None else size).to_bytes(4, "big")
        + payload
    )


class Node:
    """A stand-in for the node's container: it says on its two streams what is written to two
    pipes.
    """

    SAY = "cat /io/err >&2 & exec cat /io/out"

    def __init__(self, folder: Path) -> None:
        self.name = f"tbmon-test-{os.getpid()}-{random.randrange(10**9)}"
        self.folder = folder
        folder.mkdir()
        self.pipes = {}
        for name in ("out", "err"):
            os.mkfifo(folder / name)
            self.pipes[name] = os.open(
                folder / name, os.O_RDWR
            )  # never blocks, and keeps the readers waiting

    def run(self, *options: str, script: str = SAY) -> None:
        docker(
            "run",
            "-d",
            "--name",
            self.name,
            "-v",
            f"{self.folder}:/io",
            *options,
            IMAGE,
            "sh",
            "-c",
            script,
        )

    def say(self, data: str | bytes, stream: str = "out") -> None:
        data = data if isinstance(data, bytes) else (data + "\n").encode()
        while data:
            data = data[os.write(self.pipes[stream], data) :]

    def restart(self) -> None:
        docker("restart", "-t", "0", self.name)

    def put(self, path: str, content: bytes) -> None:
        """Place a file in the container."""
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for parent in reversed(Path(path).parents[:-1]):
                folder = tarfile.TarInfo(str(parent).lstrip("/"))
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                tar.addfile(folder)
            member = tarfile.TarInfo(path.lstrip("/"))
            member.size, member.mtime = len(content), time.time_ns() / 1e9
            tar.addfile(member, io.BytesIO(content))
        docker("cp", "-", f"{self.name}:/", data=packed.getvalue())

    def shell(self, script: str) -> None:
        docker("exec", self.name, "sh", "-c", script)

    def remove(self) -> None:
        docker("rm", "-f", "-v", self.name, check=False)

    def close(self) -> None:
        self.remove()
        for pipe in self.pipes.values():
            os.close(pipe)


@pytest.fixture
def node(engine: None, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "io")
    yield made
    made.close()


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


@pytest.fixture
def watch(node: Node, tmp_path: Path) -> Iterator[Watch]:
    """A monitor of the node's container; started by the test, stopped after it."""
    made = Watch(tmp_path / "data", node.name)
    yield made
    if made.threads:
        made.stop()


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


@contextlib.contextmanager
def chromium(*words: str) -> Iterator[Any]:
    """A real browser, started with further words of its command line."""
    path = shutil.which("chromium")
    if path is None:
        missing("chromium")
    with sync_playwright() as playing:
        started = playing.chromium.launch(executable_path=path, args=["--no-sandbox", *words])
        yield started
        started.close()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Makes Programs, and ends what is left of them."""
    made: list[Program] = []

    def make(**settings: str) -> Program:
        made.append(Program(tmp_path / f"program{len(made)}", **settings))
        return made[-1]

    yield make
    discard(made)


class Proxy:
    """Stands before the engine's socket, records what is asked, and cuts answers to one call after
    some bytes.
    """

    def __init__(
        self, path: Path, cut_after: Callable[[], int] | None = None, call: bytes = b"/logs?"
    ) -> None:
        self.path, self.cut_after, self.call = path, cut_after, call
        self.asked: list[tuple[str, str]] = []
        self.cuts = 0
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(50)
        threading.Thread(target=self.accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                server = socket.socket(socket.AF_UNIX)
                server.connect(SOCKET)
                state = {"left": -1}
                for source, sink, listens in ((client, server, True), (server, client, False)):
                    threading.Thread(
                        target=self.carry, args=(source, sink, listens, state), daemon=True
                    ).start()

    def carry(
        self, source: socket.socket, sink: socket.socket, listens: bool, state: dict[str, int]
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                if listens:
                    for method, target in re.findall(rb"^([A-Z]+) (\S+) HTTP/1.1\r$", data, re.M):
                        self.asked.append((method.decode(), target.decode()))
                        cuts = (
                            method == b"GET" and self.call in target and self.cut_after is not None
                        )
                        state["left"] = self.cut_after() if cuts and self.cut_after else -1
                elif 0 <= state["left"] <= len(data):
                    sink.sendall(data[: state["left"]])
                    self.cuts += 1
                    break
                elif state["left"] > 0:
                    state["left"] -= len(data)
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()

    def close(self) -> None:
        self.listener.close()
        self.path.unlink()
