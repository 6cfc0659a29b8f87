"""For the engine's faults: an engine of the test's own, one that answers badly, and a way to see
what tbmon says.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import tbmon
from support.engine import IMAGE, SOCKET, Node, docker
from support.machine import missing, wait_for
from support.node_words import header
from support.programs import Program

# what the node says when it has nothing to do; other words would count as not recognised
WORDS = "Heartbeat sent"


class OwnEngine:
    """A Docker Engine that may be stopped and killed: it shares no folder, socket or network with
    the machine's.

    Its network namespace is its own, since an engine with `--bridge none` removes the docker0 that
    it finds.
    """

    def __init__(self, live_restore: bool) -> None:
        for part in ("dockerd", "unshare"):
            if (
                shutil.which(part, path=f"{os.environ['PATH']}:/usr/sbin:/sbin") is None
                or os.geteuid()
            ):
                missing(f"{part} as root")
        self.folder = Path(
            tempfile.mkdtemp(prefix="tbmon-engine-")
        )  # short: a socket's path has 107 bytes at most
        self.url = f"unix://{self.folder}/d.sock"
        self.words = [
            "unshare",
            "--net",
            "dockerd",
            "--host",
            self.url,
            "--bridge",
            "none",
            "--storage-driver",
            "vfs",
        ]
        self.words += ["--iptables=false", "--ip6tables=false", "--pidfile", f"{self.folder}/pid"]
        self.words += ["--data-root", f"{self.folder}/data", "--exec-root", f"{self.folder}/exec"]
        self.words += ["--live-restore"] * live_restore

    def start(self) -> None:
        (self.folder / "pid").unlink(
            missing_ok=True
        )  # one that was killed leaves it, and its number may be another's
        environment = {**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(self.words, env=environment, stdout=log, stderr=log)
        wait_for(self.answers, 60)

    def answers(self) -> bool:
        assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
        asked = ("docker", "--host", self.url, "version")
        return subprocess.run(asked, capture_output=True).returncode == 0

    def end(self, number: int) -> None:
        self.process.send_signal(number)
        self.process.wait(30)

    def load(self) -> None:
        """Take the image of the tests over from the machine's engine."""
        packed = subprocess.run(("docker", "save", IMAGE), capture_output=True, check=True).stdout
        subprocess.run(
            ("docker", "--host", self.url, "load"), input=packed, capture_output=True, check=True
        )

    def close(self) -> None:
        """End what it runs, too: containers outlive an engine that was killed."""
        try:
            if self.process.poll() is not None:
                self.start()
            if left := docker("--host", self.url, "ps", "--all", "--quiet").split():
                docker("--host", self.url, "rm", "--force", *left)
        finally:
            self.end_all()

    def end_all(self) -> None:
        """Leave nothing behind, also of an engine that did not come up."""
        try:
            self.end(signal.SIGTERM)
        except subprocess.TimeoutExpired:
            self.end(signal.SIGKILL)
        for path in self.folder.glob(
            "exec/containerd/*.pid"
        ):  # which outlives an engine that was killed
            with contextlib.suppress(ValueError, ProcessLookupError):
                os.kill(int(path.read_text()), signal.SIGKILL)
        while (
            subprocess.run(
                ("umount", "--lazy", f"{self.folder}/data"), capture_output=True
            ).returncode
            == 0
        ):
            # an engine that was killed leaves the folder mounted on itself, once for each start
            pass
        shutil.rmtree(self.folder, ignore_errors=True)


class OddEngine:
    """Stands before the machine's engine and spoils its answers; a connection is for one request.

    `spoil` takes the name of the call and the answer's bytes, and gives the bytes that tbmon gets.
    """

    def __init__(self, path: Path) -> None:
        self.url, self.path = f"unix://{path}", path
        self.spoil: Spoil = unspoilt
        self.asked = (
            threading.local()
        )  # `target`: what the connection that is being answered asked for
        self.open: set[socket.socket] = set()
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(50)
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client = self.listener.accept()[0]
                self.open.add(client)
                threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        server = socket.socket(socket.AF_UNIX)
        with contextlib.suppress(OSError), client, server:
            head = b""
            while b"\r\n\r\n" not in head:
                if not (data := client.recv(65536)):
                    return
                head += data
            server.connect(SOCKET)
            server.sendall(head.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
            self.asked.target = head.split()[1]
            call = re.split(rb"[/?]", self.asked.target.partition(b"?")[0])[-1].decode()
            for piece in self.spoil(call, iter(lambda: server.recv(65536), b"")):
                client.sendall(piece)
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)
        self.open.discard(client)

    def change(self, spoil: Spoil) -> None:
        """From here on spoil answers so; connections that are open are cut."""
        self.spoil = spoil
        for client in list(self.open):
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self.change(unspoilt)
        self.listener.close()
        self.path.unlink()


Spoil = Callable[[str, Iterator[bytes]], Iterator[bytes]]


def unspoilt(call: str, answer: Iterator[bytes]) -> Iterator[bytes]:
    return answer


def answering(call: str, status: int) -> Spoil:
    """This status to one call."""

    def spoil(asked: str, answer: Iterator[bytes]) -> Iterator[bytes]:
        if asked != call:
            yield from answer
            return
        body = b'{"message": "words of the engine"}'
        yield b"HTTP/1.1 %d Odd\r\nContent-Type: application/json\r\n" % status
        yield b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(body), body)

    return spoil


class Talk:
    """Lets a node say numbered lines on both streams, in a thread, whether or not anybody reads
    them.
    """

    def __init__(self, node: Node, pause_s: float = 0.01) -> None:
        self.node, self.pause_s, self.said = node, pause_s, 0
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while not self.over.wait(self.pause_s):
            more = ": {\n  1\n}" if self.said % 7 == 0 else ""
            self.node.say(
                header(f"{WORDS} line {self.said:06d}{more}"),
                "err" if self.said % 3 == 0 else "out",
            )
            self.said += 1

    def end(self) -> None:
        self.over.set()
        self.thread.join(20)
        assert not self.thread.is_alive()


def follow(node: Node, one: Program, *options: str) -> Program:
    """Start the node's container and a tbmon that follows it, and wait until it does."""
    node.run(*options)
    one.start()
    say_and_await(node, one, 0)
    await_verdict(one, "idle")
    return one


def say_and_await(node: Node, one: Program, number: int) -> None:
    node.say(header(f"{WORDS} line {number:06d}"))
    await_line(one, f"line {number:06d}")


def verdict(one: Program) -> dict[str, Any]:
    found: dict[str, Any] = one.get("/api/status")[1]["verdict"] or {"state": None}
    return found


def await_verdict(
    one: Program, state: str, words: str = "", within_s: float = 10.0
) -> dict[str, Any]:
    """The verdict when it is `state` for a reason with `words`; fails after `within_s`."""

    def said() -> dict[str, Any] | None:
        found = verdict(one)
        return found if found["state"] == state and words in found["reason"] else None

    try:
        return dict(wait_for(said, within_s))
    except AssertionError:
        raise AssertionError((verdict(one), one.log.read_text()[-3000:])) from None


def numbers(text: str) -> Counter[str]:
    """The numbered lines in a text, each as often as it is there."""
    return Counter(re.findall(r"line (\d{6})", text))


def held(node: Node) -> Counter[str]:
    """The numbered lines that the engine has."""
    done = subprocess.run(
        ("docker", "logs", node.name), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True
    )
    return numbers(done.stdout.decode())


def delay_s(node: Node, said: Mapping[int, float]) -> float:
    """The longest time between a line's writing and its stamp, of those that the engine has."""
    found = re.findall(
        r"^(\S+Z) .*line (\d{6})x*$", docker("logs", "--timestamps", node.name), re.M
    )
    return max(moment(f"{stamp[:23]}Z") - said[int(number)] for stamp, number in found)


def stored(one: Program, words: str = "line") -> Counter[str]:
    """The numbered lines that tbmon has."""
    found, cursor = Counter[str](), ""
    while True:
        page = one.private(f"/api/logs?limit=1000&search={words}{cursor}")
        found += numbers("\n".join(entry["message"] for entry in page["logs"]))
        if not page["pagination"]["next"]:
            return found
        cursor = f"&cursor={page['pagination']['next']}"


def await_line(one: Program, message: str, within_s: float = 10.0) -> None:
    wait_for(lambda: one.private(f"/api/logs?search={message.replace(' ', '+')}")["logs"], within_s)


def gaps(one: Program) -> list[dict[str, Any]]:
    return list(one.get("/api/logs/status")[1]["gaps"])


def moment(text: str) -> float:
    """Seconds since 1970 of a time in an answer."""
    found = tbmon.parse_time(text)
    assert found is not None
    return found / 1000
