"""What the federation meets: a nats-server, hostile hubs, a recording proxy; and tbmon with its
clock stepped.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import tbmon
from support.machine import figure_of, missing, wait_for
from support.nats_servers import nats_server
from support.programs import Program

SUBJECTS = (
    "truebit.heartbeat",
    "truebit.nodes.joined",
    "truebit.nodes.left",
    "truebit.tasks.received",
    "truebit.tasks.completed",
    "truebit.invoices.created",
)
STATS = "truebit.stats.aggregated"
SECRET = "hub-secret-91c2"
LOOPBACK = "127.0.0.1"


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as free:
        return int(free.getsockname()[1])


class Papers(NamedTuple):
    """An authority's certificate, and a certificate of this host with its key, as files."""

    ca: Path
    cert: Path
    key: Path


def papers(folder: Path) -> Papers:
    """Made by the openssl command."""
    if shutil.which("openssl") is None:
        missing("openssl")
    folder.mkdir()
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1")
    new = ("openssl", "req", "-x509", "-nodes", "-days", "9", *curve)
    signed = (
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-addext",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
    )
    for name, more in (("ca", ()), ("host", signed)):
        words = (
            *new,
            "-keyout",
            f"{name}.key",
            "-out",
            f"{name}.pem",
            "-subj",
            f"/CN=tbmon test {name}",
            *more,
        )
        subprocess.run(words, cwd=folder, check=True, capture_output=True)
    return Papers(folder / "ca.pem", folder / "host.pem", folder / "host.key")


def files(one: Papers) -> str:
    return f'{{cert_file: "{one.cert}", key_file: "{one.key}"}}'


def quoted(*names: str) -> str:
    return json.dumps(names)


class Hub:
    """A real nats-server with the contract's permissions: `monitor` and `aggregator` may do what
    they must.
    """

    def __init__(
        self,
        folder: Path,
        tls: Papers | None = None,
        ws: Papers | bool = False,
        limits: str = "",
        may_publish: tuple[str, ...] = SUBJECTS,
        password: str = SECRET,
    ) -> None:
        self.server, self.config = nats_server(), folder / f"hub{time.monotonic_ns()}.conf"
        self.port, self.ws_port, self.watch_port = free_port(), free_port(), free_port()
        monitor = f"publish: {quoted(*may_publish)}, subscribe: {quoted(STATS)}"
        aggregator = f"publish: {quoted(STATS, *SUBJECTS)}, subscribe: {quoted('truebit.>')}"
        users = "".join(
            f'{{user: {name}, password: "{word}", permissions: {{{may}}}}}\n'
            for name, word, may in (
                ("monitor", password, monitor),
                ("aggregator", SECRET, aggregator),
            )
        )
        web = f"websocket {{host: {LOOPBACK}, port: {self.ws_port}, "
        web += f"tls: {files(ws)}}}" if isinstance(ws, Papers) else "no_tls: true}"
        self.config.write_text(
            f"host: {LOOPBACK}\nport: {self.port}\nhttp: {LOOPBACK}:{self.watch_port}\n{limits}\n"
            f"authorization {{users: [{users}]}}\n"
            + (f"tls {files(tls)}\n" if tls else "")
            + (web if ws else "")
        )
        self.process: subprocess.Popen[bytes] | None = None
        self.peers: list[Peer] = []

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    def start(self) -> Hub:
        with self.config.with_suffix(".log").open("ab") as log:
            self.process = subprocess.Popen(
                (self.server, "-c", str(self.config)), stdout=log, stderr=log
            )
        wait_for(lambda: self.ask("varz"))
        return self

    def ask(self, path: str) -> Any:
        """What the server tells of itself; None while it does not listen."""
        where = f"http://{LOOPBACK}:{self.watch_port}/{path}"
        with contextlib.suppress(OSError), urllib.request.urlopen(where, timeout=5) as found:
            return json.load(found)
        return None

    def monitors(self) -> list[Any]:
        """The connections of monitors, with what they subscribe to."""
        found = self.ask("connz?subs=1&auth=1") or {"connections": []}
        return [one for one in found["connections"] if one.get("authorized_user") == "monitor"]

    def signal(self, number: int) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def peer(self) -> Peer:
        self.peers.append(Peer(self.port))
        return self.peers[-1]

    def close(self) -> None:
        for one in self.peers:
            one.close()
        self.kill()


class Heard(NamedTuple):
    subject: str
    reply: str
    payload: bytes

    @property
    def type(self) -> str:
        return str(json.loads(self.payload)["type"])


class Peer:
    """A client that hears everything under `truebit`, as plain as the protocol is."""

    def __init__(self, port: int) -> None:
        self.heard: list[Heard] = []
        self.socket = socket.create_connection((LOOPBACK, port), 5)
        self.socket.settimeout(None)
        self.pongs = 0
        self.file = self.socket.makefile("rb")
        self.file.readline()
        login = {
            "verbose": False,
            "user": "aggregator",
            "pass": SECRET,
            "protocol": 1,
            "lang": "test",
            "version": "0",
        }
        self.socket.sendall(f"CONNECT {json.dumps(login)}\r\nSUB truebit.> 1\r\nPING\r\n".encode())
        threading.Thread(target=self.listen, daemon=True).start()
        wait_for(lambda: self.pongs)

    def listen(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in self.file:
                words = line.decode().split()
                if words[0] == "MSG":
                    payload = self.file.read(int(words[-1]))
                    self.file.read(2)
                    self.heard.append(Heard(words[1], words[3] if len(words) == 5 else "", payload))
                elif words[0] == "PING":
                    self.socket.sendall(b"PONG\r\n")
                self.pongs += words[0] == "PONG"

    def publish(self, *payloads: bytes) -> None:
        for payload in payloads:
            self.socket.sendall(b"PUB %s %d\r\n%s\r\n" % (STATS.encode(), len(payload), payload))

    def of(self, *types: str) -> list[Heard]:
        """What was heard of some types, in order, but not the statistics."""
        return [
            one for one in self.heard if one.subject != STATS and (not types or one.type in types)
        ]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()


class Listening:
    """A server on a free port that hands each connection to a thread."""

    def __init__(self) -> None:
        self.listener = socket.create_server((LOOPBACK, 0), backlog=50)
        self.port = int(self.listener.getsockname()[1])
        self.said: list[bytearray] = []  # by each client, whole
        self.open: set[int] = set()
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                self.sockets.append(client)
                self.said.append(bytearray())
                self.open.add(len(self.said) - 1)
                threading.Thread(
                    target=self.serve, args=(client, len(self.said) - 1), daemon=True
                ).start()

    def serve(self, client: socket.socket, number: int) -> None:
        try:
            with contextlib.suppress(OSError):
                self.behave(client, number)
        finally:
            self.open.discard(number)
            client.close()

    def behave(self, client: socket.socket, number: int) -> None:
        """Record what is said until the client goes, and never answer."""
        while data := client.recv(65536):
            self.said[number] += data

    @property
    def everything(self) -> bytes:
        return b"".join(self.said)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


class Tap(Listening):
    """A proxy before a server that records what its clients say."""

    def __init__(self, to: int) -> None:
        self.to = to
        super().__init__()

    def behave(self, client: socket.socket, number: int) -> None:
        with socket.create_connection((LOOPBACK, self.to)) as server:
            threading.Thread(target=self.carry, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                self.said[number] += data
                server.sendall(data)
            server.shutdown(socket.SHUT_RDWR)

    def carry(self, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_RDWR)


INFO = {
    "server_id": "X",
    "version": "2.9.10",
    "max_payload": 65536,
    "headers": True,
    "client_id": 1,
    "proto": 1,
}
Act = Callable[["Hostile", socket.socket, int], None]


class Hostile(Listening):
    """A hub that does to each connection what `act` says; `done` counts the connections it was done
    to.
    """

    def __init__(self, act: Act) -> None:
        self.act, self.done = act, 0
        super().__init__()

    @property
    def url(self) -> str:
        return f"nats://{LOOPBACK}:{self.port}"

    def behave(self, client: socket.socket, number: int) -> None:
        client.settimeout(20)
        try:
            self.act(self, client, number)
        finally:
            self.done += 1

    def hear(self, client: socket.socket, number: int, until: bytes, anew: bool = False) -> None:
        begin = len(self.said[number]) if anew else 0
        while until not in self.said[number][begin:]:
            data = client.recv(65536)
            if not data:
                raise ConnectionError
            self.said[number] += data

    def greet(self, client: socket.socket, number: int, **info: Any) -> None:
        """Be a hub up to the client's subscription."""
        client.sendall(b"INFO " + json.dumps({**INFO, **info}).encode() + b"\r\n")
        for _ in range(2):  # it has logged in, and has subscribed
            self.hear(client, number, b"PING\r\n", anew=True)
            client.sendall(b"PONG\r\n")


def unmasked(stream: bytes) -> tuple[bytes, bytes]:
    """A websocket client's request, and the content of its data frames without the mask."""
    request, _, rest = stream.partition(b"\r\n\r\n")
    content = bytearray()
    while len(rest) >= 6:
        kind, size, at = rest[0] & 15, rest[1] & 127, 2
        assert rest[1] & 128, "a client masks"
        assert not rest[0] & 64, "a compressed frame hides what is in it"
        if size >= 126:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(rest[2 : 2 + width], "big"), 2 + width
        mask, body = rest[at : at + 4], rest[at + 4 : at + 4 + size]
        if kind in (0, 1, 2):
            content += bytes(byte ^ mask[place & 3] for place, byte in enumerate(body))
        rest = rest[at + 4 + size :]
    return request, bytes(content)


class Command(NamedTuple):
    """One thing that a client said to a hub: its word, its arguments and the payload."""

    word: str
    words: list[str]
    payload: bytes


def commands(stream: bytes) -> list[Command]:
    found, place = [], 0
    while (end := stream.find(b"\r\n", place)) >= 0:
        word, *words = stream[place:end].decode().split()
        place, payload = end + 2, b""
        if word in ("PUB", "HPUB"):
            payload = stream[place : place + int(words[-1])]
            place += len(payload) + 2
        found.append(Command(word, words, payload))
    return found


def published(stream: bytes) -> list[Command]:
    return [
        one
        for one in commands(stream)
        if one.word not in ("CONNECT", "PING", "PONG", "SUB", "UNSUB")
    ]


# tbmon itself, with its clock and its delays stepped

PACE = tbmon.Pace(connect_s=1.5, proof_s=0.3, beat_s=3600, look_s=0.03, retry_s=(0.02, 0.1))
STEPPED = """
import functools, pathlib, sys, time
import tbmon

ahead = pathlib.Path("ahead")
tbmon.Monitor = functools.partial(tbmon.Monitor, clock=lambda: time.time() + float(ahead.read_text()))
tbmon.Federation = functools.partial(tbmon.Federation, pace=tbmon.Pace(*%r))
%s
sys.exit(tbmon.main())
"""


class Stepped(Program):
    """tbmon as a process of its own, in LOG_DIR mode, with short delays and a clock that can be put
    ahead.
    """

    def __init__(self, folder: Path, more: str = "", **settings: str) -> None:
        super().__init__(folder, LOG_DIR=str(folder / "logs"), API_RATE_LIMIT="0", **settings)
        (folder / "logs").mkdir(exist_ok=True)
        self.more, self.pace = more, PACE._replace(beat_s=0.2)
        self.ahead(0)

    def ahead(self, seconds: float) -> None:
        part = self.folder / "ahead.part"
        part.write_text(str(seconds))
        part.replace(self.folder / "ahead")

    def start(self, command: str = "serve") -> Stepped:
        with self.log.open("ab") as log:
            words = (sys.executable, "-c", STEPPED % (tuple(self.pace), self.more), command)
            self.process = subprocess.Popen(
                words, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        wait_for(lambda: self.process.poll() is not None or self.answers())
        assert self.process.poll() is None, self.log.read_text()
        return self

    def peak_bytes(self) -> int:
        """The most memory that the process has held."""
        return 1024 * figure_of(self.process.pid, "VmHWM")


BEGIN = 1_780_000_007_000  # ms; no edge of a window


class Station:
    """Store, outbox and federation in this process, with a clock that stands until a test steps
    it.
    """

    def __init__(
        self, folder: Path, url: str, seed: int = 7, pace: tbmon.Pace = PACE, **settings: Any
    ) -> None:
        folder.mkdir(exist_ok=True)
        logs = folder / "logs"
        logs.mkdir(exist_ok=True)
        more = {
            "db_path": str(folder / "t.db"),
            "log_dir": str(logs),
            "federation_nats_url": url,
            **settings,
        }
        self.config, self.folder, self.logs, self.now = tbmon.Config(**more), folder, logs, BEGIN
        key = tbmon.read_key_file(folder / "local.key", lambda: os.urandom(32))
        self.store = tbmon.Store(Path(self.config.db_path), key)
        self.monitor = tbmon.Monitor(
            self.config,
            self.store,
            tbmon.Redactor(key),
            None,
            threading.Event(),
            clock=lambda: self.now / 1000,
        )
        dice = random.Random(seed)
        self.outbox = tbmon.Outbox(
            self.store, tbmon.SharingKeys(folder), self.monitor.now, dice, url
        )
        self.federation = tbmon.Federation(
            self.config,
            self.outbox,
            lambda payload: tbmon.take_publication(self.monitor, payload),
            lambda: True,
            pace,
        )
        self.monitor.outbox, self.monitor.federation = self.outbox, self.federation
        self.api = tbmon.Api(self.monitor, {"local": "", "private": "x", "stream": ""})
        self.died: list[bool] = []
        self.federation.died = lambda: self.died.append(True)

    def opt_in(self, **chosen: Any) -> Station:
        self.outbox.keep(enabled=True, joined_at=self.now, **chosen)
        return self

    def queue(self, *names: str) -> list[bytes]:
        """Tell of tasks that were received, and return what waits."""
        self.outbox.event_db = False
        tasks = [
            tbmon.Task(name, task_type="rust", received_at=self.now, evidence=tbmon.IN_LOG)
            for name in names
        ]
        with self.store.write() as db:
            self.store.save_tasks(db, tasks)
            self.outbox.offer(db, tasks, ())
        return self.waiting()

    def waiting(self) -> list[bytes]:
        return [bytes(row["payload"]) for row in self.store.get("outbox_next")]

    def sent(self) -> dict[bytes, int]:
        """What left, but presence, and how many times."""
        rows = self.store.read("SELECT payload, times FROM sent WHERE name LIKE 'message %'")
        return {bytes(row["payload"]): row["times"] for row in rows}

    def step(self, hours: float = 25) -> None:
        self.now += int(hours * tbmon.HOUR_MS)

    def counts(self) -> dict[str, int]:
        return self.api.federation_counts()

    def error(self) -> str:
        return str(self.api.federation_status()["lastError"])

    def close(self) -> None:
        self.federation.stop()
        assert not self.federation.stuck
        self.store.close()
        assert not self.died


# What must not be on the wire, in the forms it could take


def shifted(data: bytes) -> Iterator[bytes]:
    """What base64 makes of data at each of the three places it can begin, without the parts its
    neighbours change.
    """
    for lead in range(3):
        whole = base64.b64encode(bytes(lead) + data + bytes(3))
        yield whole[-(-lead * 8 // 6) : (lead + len(data)) * 8 // 6]


def forms(canary: str) -> set[bytes]:
    """A canary raw, in every case, without 0x, as bytes, reversed, in hex, in base64 and hashed, in
    lower case.
    """
    plain = {
        canary,
        canary.lower(),
        canary.upper(),
        canary.removeprefix("0x"),
        canary.removeprefix("0x").lower(),
    }
    cores = {word.encode() for word in plain}
    if re.fullmatch("(0x)?([0-9a-fA-F]{2})+", canary):
        cores.add(bytes.fromhex(canary.removeprefix("0x")))
    hashed = {hashlib.sha256(core).digest() for core in cores}
    found = cores | {core[::-1] for core in cores}
    for core in cores | hashed:
        found |= {core.hex().encode(), core[::-1].hex().encode(), *shifted(core)}
    return {form.lower() for form in found if len(form) >= 8}


def leaks(stream: bytes, canaries: dict[str, str]) -> list[str]:
    """The names of the canaries that are in a stream in some form."""
    stream = stream.lower().replace(b"\\/", b"/")
    url_safe = stream.replace(b"-", b"+").replace(b"_", b"/")
    return [
        name
        for name, one in canaries.items()
        if any(form in stream or form in url_safe for form in forms(one))
    ]


def freeze(hub: Hub) -> None:
    hub.signal(signal.SIGSTOP)


def thaw(hub: Hub) -> None:
    hub.signal(signal.SIGCONT)
