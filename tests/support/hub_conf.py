"""The shipped configurations of the hub, started as they are, and a client as plain as the protocol
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import ssl
import subprocess
import threading
import urllib.request
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import aggregator
from support import ROOT
from support.hubs import LOOPBACK, Papers, Tap, free_port
from support.machine import wait_for
from support.nats_servers import nats_server

DEPLOY = ROOT / "deploy"
CLIENTS, WEB, LEAVES, ROUTES = 4222, 9086, 7422, 6222  # the ports of the files
MONITOR, AGGREGATOR, LEAF = "participants-4f0a", "aggregator-8d1c", "sites-7e2b"
PASSWORDS = {
    "MONITOR_PASSWORD": MONITOR,
    "AGGREGATOR_PASSWORD": AGGREGATOR,
    "LEAF_PASSWORD": LEAF,
}
WORDS = {"monitor": MONITOR, "aggregator": AGGREGATOR, "leaf": LEAF}
TASKS, PRESENCE = aggregator.STREAMS
UNCHECKED = (
    ssl.create_default_context()
)  # for the tests' own clients; whether tbmon checks is tested by tbmon
UNCHECKED.check_hostname, UNCHECKED.verify_mode = False, ssl.CERT_NONE
Job = Callable[[Any], Awaitable[Any]]


def free_address() -> str:
    """An address of this host's own on which the files' ports are free; each server of a test has
    another.
    """
    while True:
        address = (
            f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
        )
        with contextlib.suppress(OSError), contextlib.ExitStack() as taken:
            for port in (CLIENTS, WEB, LEAVES, ROUTES):
                taken.enter_context(socket.create_server((address, port)))
            return address


def certificate(own: Papers, address: str) -> dict[str, str]:
    """The variables of the TLS variant, with a certificate of that authority for an address."""
    key, cert = own.ca.with_name(f"{address}.key"), own.ca.with_name(f"{address}.pem")
    words = (
        "openssl",
        "req",
        "-x509",
        "-nodes",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
    )
    signed = (
        "-CA",
        str(own.ca),
        "-CAkey",
        str(own.ca.with_suffix(".key")),
        "-addext",
        f"subjectAltName=IP:{address}",
    )
    made = ("-keyout", str(key), "-out", str(cert), "-days", "9", "-subj", "/CN=hub")
    subprocess.run((*words, *signed, *made), check=True, capture_output=True)
    return {"TLS_CERT": str(cert), "TLS_KEY": str(key)}


class Server:
    """A nats-server with a shipped configuration, of which only the variables are set; `kind` is
    one of nats_servers.KINDS.
    """

    def __init__(
        self,
        folder: Path,
        name: str = "nats-server.conf",
        address: str = "",
        kind: str = "current",
        **variables: str,
    ) -> None:
        self.program = nats_server(kind)
        self.config = Path(name) if "/" in name else DEPLOY / name
        self.address, self.watch_port = address or free_address(), free_port()
        self.folder = folder / self.address
        self.folder.mkdir(parents=True)
        own = {"LISTEN": self.address, "STORE_DIR": str(self.folder / "data")}
        self.env = {**own, **PASSWORDS, **variables}
        self.process: subprocess.Popen[bytes] | None = None
        self.clients: list[Client] = []

    def start(self) -> Server:
        words = (self.program, "-c", str(self.config), "-m", str(self.watch_port))
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(words, env=self.env, stdout=log, stderr=log)
        wait_for(lambda: self.ended() or self.is_ready())
        assert not self.ended(), self.log()
        return self

    def ended(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def is_ready(self) -> bool:
        with (
            contextlib.suppress(OSError),
            socket.create_connection((self.address, CLIENTS), 5) as one,
        ):
            return one.recv(5) == b"INFO "
        return False

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def ask(self, path: str) -> Any:
        """What the server tells of itself."""
        with urllib.request.urlopen(
            f"http://{LOOPBACK}:{self.watch_port}/{path}", timeout=5
        ) as found:
            return json.load(found)

    def leaves(self) -> int:
        return int(self.ask("leafz")["leafnodes"])

    def client(self, user: str = "monitor", password: str | None = None) -> Client:
        return self.log_in(user=user, **{"pass": WORDS[user] if password is None else password})

    def log_in(self, **login: str) -> Client:
        self.clients.append(Client(self.address, login))
        return self.clients[-1]

    def raw_leaf(self) -> Client:
        return self.enter("leaf", user="leaf", **{"pass": LEAF})

    def enter(self, door: str, **login: str) -> Client:
        """Log in by one of DOORS; raises ConnectionError where there is no such door."""
        kind, port, path = DOORS[door]
        is_tls = bool(path) and self.config.name in WITH_TLS
        self.clients.append(kind(self.address, login, port, path, is_tls))
        return self.clients[-1]

    def url(self, scheme: str = "nats", user: str = "", host: str = "") -> str:
        """Where clients connect; with a user, where a leaf node does."""
        port = WEB if scheme in ("ws", "wss") else LEAVES if user else CLIENTS
        return f"{scheme}://{f'{user}:{WORDS[user]}@' if user else ''}{host or self.address}:{port}"

    def stop(self) -> None:
        """End it as its service manager does."""
        assert self.process is not None
        self.process.terminate()
        self.process.wait(20)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def close(self) -> None:
        for one in self.clients:
            one.close()
        self.kill()


class Heard(NamedTuple):
    subject: str
    reply: str
    headers: bytes
    payload: bytes


class Client:
    """Says what a test wants said; `settle` returns when the server has answered all of it."""

    def __init__(
        self,
        address: str,
        login: dict[str, Any],
        port: int = CLIENTS,
        path: str = "",
        is_tls: bool = False,
    ) -> None:
        """With a path it speaks in WebSocket frames; `is_tls` if TLS is first of all."""
        self.socket: Any = socket.create_connection((address, port), 5)
        self.socket.settimeout(10)
        if is_tls:
            self.socket = UNCHECKED.wrap_socket(self.socket)
        if path:
            self.socket = Framed(self.socket, path)
        self.file: Any = self.socket.makefile("rb")
        said = self.file.readline()
        if not said:
            raise ConnectionError("the hub does not introduce itself")
        self.info = json.loads(said[5:])
        if self.info.get("tls_required") and not path:
            self.socket = UNCHECKED.wrap_socket(self.socket)
            self.file = self.socket.makefile("rb")
        self.heard: list[Heard] = []
        self.errors: list[str] = []
        self.closed, self.number = False, 0
        self.send(
            b"CONNECT "
            + json.dumps({"verbose": False, "headers": True, "protocol": 1, **login}).encode()
        )

    def send(self, line: bytes) -> None:
        with contextlib.suppress(OSError):  # the server has closed it: `settle` finds out
            self.socket.sendall(line + b"\r\n")

    def publish(
        self, subject: str, payload: bytes = b"{}", reply: str = "", **headers: str
    ) -> Client:
        """With headers if there are any; `Nats_Msg_Id` is Nats-Msg-Id."""
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        head = f"NATS/1.0\r\n{lines}\r\n".encode() if headers else b""
        sizes = f"{len(head)} {len(head) + len(payload)}" if headers else f"{len(payload)}"
        words = f"{'HPUB' if headers else 'PUB'} {subject} {reply} {sizes}"
        self.send(words.encode() + b"\r\n" + head + payload)
        return self

    def subscribe(self, *subjects: str) -> Client:
        """`subject queue` joins a queue group."""
        for subject in subjects:
            self.number += 1
            self.send(f"SUB {subject} {self.number}".encode())
        return self

    def settle(self) -> Client:
        """Read up to the answer to a PING, or to the end."""
        self.send(b"PING")
        try:
            while (line := self.file.readline()) and not line.startswith(b"PONG"):
                self.take(line)
            self.closed = not line
        except ConnectionError:
            self.closed = True
        return self

    def close(self) -> None:
        self.socket.close()

    def take(self, line: bytes) -> None:
        word, *words = line.decode().split()
        if word in ("MSG", "HMSG"):
            size, head = int(words[-1]), int(words[-2]) if word == "HMSG" else 0
            reply = words[2] if len(words) == (5 if word == "HMSG" else 4) else ""
            data = self.file.read(size + 2)[:-2]
            self.heard.append(Heard(words[0], reply, data[:head], data[head:]))
        elif word == "-ERR":
            self.errors.append(line.decode().strip()[6:-1])
        elif word == "PING":
            self.send(b"PONG")

    def refusals(self) -> list[str]:
        """What was said since the last time, after the server answered all."""
        self.settle()
        found, self.errors = self.errors, []
        return found

    def wait(self, count: int, timeout_s: float = 20.0) -> list[Heard]:
        """The messages, once there are so many."""
        wait_for(lambda: len(self.settle().heard) >= count or self.closed, timeout_s)
        return self.heard

    def request(self, subject: str) -> Any:
        """Ask JetStream, as the aggregator; again each second, for a cluster without a leader does
        not answer.
        """
        inbox = f"_INBOX.aggregator.{random.randrange(10**12)}"
        self.subscribe(inbox)
        for _ in range(20):
            before = len(self.publish(subject, b"", inbox).heard)
            with contextlib.suppress(AssertionError):
                self.wait(before + 1, 1)
                break
        self.send(b"UNSUB %d" % self.number)
        found = [one for one in self.settle().heard if one.subject == inbox]
        self.heard = [one for one in self.heard if one.subject != inbox]
        return json.loads(found[-1].payload)


class RawLeaf(Client):
    """Speaks as a leaf node does, but with no server's manners."""

    def __init__(self, address: str, login: dict[str, Any], *way: Any) -> None:
        name = f"raw{random.randrange(10**12)}"  # of two with one name the server closes one
        super().__init__(address, {"name": name, "server_id": name, **login}, *way)

    def publish(self, subject: str, payload: bytes = b"{}", reply: str = "", **_: str) -> Client:
        self.send(f"LMSG {subject} {reply} {len(payload)}".encode() + b"\r\n" + payload)
        return self

    def subscribe(self, *subjects: str) -> Client:
        for subject in subjects:
            self.send(f"LS+ {subject}".encode())
        return self

    def take(self, line: bytes) -> None:
        word, *words = line.decode().split()
        if word == "LMSG":
            data = self.file.read(int(words[-1]) + 2)[:-2]
            self.heard.append(Heard(words[0], words[1] if len(words) > 2 else "", b"", data))
        else:
            super().take(line)


class Framed:
    """A socket whose bytes go in WebSocket frames, as Client uses one."""

    def __init__(self, inner: socket.socket, path: str) -> None:
        self.inner, self.file = inner, inner.makefile("rb")
        self.waiting = b""
        inner.sendall(UPGRADE % path.encode())
        status = self.file.readline()
        while self.file.readline().strip():
            pass
        if b" 101 " not in status:
            raise ConnectionError(status.decode())

    def makefile(self, _: str) -> Framed:
        return self

    def sendall(self, data: bytes) -> None:
        mask = bytes(4)  # which leaves the data as it is
        self.inner.sendall(b"\x82\xff" + len(data).to_bytes(8, "big") + mask + data)

    def more(self) -> bool:
        """Read a frame; False at the end."""
        head = self.file.read(2)
        if len(head) < 2 or head[0] & 15 == 8:
            return False
        size = head[1] & 127
        if size >= 126:
            size = int.from_bytes(self.file.read(2 if size == 126 else 8), "big")
        self.waiting += self.file.read(size)
        return True

    def readline(self) -> bytes:
        while b"\n" not in self.waiting and self.more():
            pass
        line, end, self.waiting = self.waiting.partition(b"\n")
        return line + end

    def read(self, size: int) -> bytes:
        while len(self.waiting) < size and self.more():
            pass
        data, self.waiting = self.waiting[:size], self.waiting[size:]
        return data

    def close(self) -> None:
        self.inner.close()


UPGRADE = (
    b"GET %s HTTP/1.1\r\nHost: hub\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)
WITH_TLS = ("nats-server-tls.conf", "nats-leafhub.conf")
DOORS: dict[str, tuple[type[Client], int, str]] = {
    "client": (Client, CLIENTS, ""),
    "websocket": (Client, WEB, "/"),
    "leaf": (RawLeaf, LEAVES, ""),
    "leaf by websocket": (RawLeaf, WEB, "/leafnode"),
}


class TapOf(Tap):
    """A Tap before a server on an address of its own."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        super().__init__(port)

    def behave(self, client: socket.socket, number: int) -> None:
        with socket.create_connection((self.address, self.to)) as server:
            threading.Thread(target=self.carry, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                self.said[number] += data
                server.sendall(data)


async def with_aggregator(job: Job, *servers: Server) -> Any:
    """Run a job with a connection like the aggregator's."""
    import nats

    async def quiet(_: Exception) -> None: ...

    tls: Any = {"tls": UNCHECKED} if servers[0].config.name in WITH_TLS else {}
    hub = await nats.connect(
        [one.url() for one in servers],
        user="aggregator",
        password=AGGREGATOR,
        inbox_prefix=b"_INBOX.aggregator",
        error_cb=quiet,
        reconnect_time_wait=0.1,
        max_reconnect_attempts=-1,
        **tls,
    )
    try:
        return await job(hub)
    finally:
        await hub.close()


def make_streams(*servers: Server, replicas: int = 1) -> None:
    """The streams and consumers as the aggregator makes them."""
    from nats.js import api

    async def job(hub: Any) -> None:
        js = hub.jetstream(timeout=10)
        for name in aggregator.STREAMS:
            await js.add_stream(aggregator.stream_config(name, replicas))
            policy = api.AckPolicy.EXPLICIT
            await js.add_consumer(
                name, api.ConsumerConfig(durable_name="aggregator", ack_policy=policy, ack_wait=2)
            )

    asyncio.run(with_aggregator(job, *servers))


def consume(*servers: Server, stream: str = TASKS, count: int) -> list[bytes]:
    """Fetch and acknowledge so many messages, as the aggregator does."""
    from nats.js.errors import ServiceUnavailableError

    async def job(hub: Any) -> list[bytes]:
        durable = await hub.jetstream().pull_subscribe_bind(durable="aggregator", stream=stream)
        found: list[bytes] = []
        for _ in range(40):
            try:
                for one in await durable.fetch(count - len(found), timeout=1):
                    found.append(one.data)
                    await one.ack()
            except TimeoutError:
                continue
            except ServiceUnavailableError:  # while a consumer has no leader
                await asyncio.sleep(0.25)
            if len(found) >= count:
                break
        await hub.flush()
        return found

    return list(asyncio.run(with_aggregator(job, *servers)))


def state(client: Client, stream: str = TASKS) -> dict[str, Any]:
    """How a stream is, for comparing."""
    found = client.request(f"$JS.API.STREAM.INFO.{stream}")
    return {
        **{name: found["state"][name] for name in ("messages", "first_seq", "last_seq")},
        "config": found["config"],
    }
