"""A real Docker Engine: a container that says what a test writes, a proxy before the engine's socket."""

from __future__ import annotations

import contextlib
import io
import os
import random
import re
import shutil
import socket
import subprocess
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.machine import missing
from support.node_words import WALLET

SOCKET = "/var/run/docker.sock"
IMAGE = "tbmon-test/busybox:1"
APPLETS = ("sh", "cat", "sleep", "mkdir", "ln", "mv", "cp")


def docker(*words: str, check: bool = True, data: bytes | None = None) -> str:
    done = subprocess.run(("docker", *words), input=data, capture_output=True)
    assert done.returncode == 0 or not check, (words, done.stderr)
    return done.stdout.decode().strip()


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


class Syslog:
    """Where a log driver may send its lines; nobody reads them."""

    def __init__(self, path: Path) -> None:
        self.address = f"unixgram://{path}"
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.listener.bind(str(path))
        threading.Thread(target=self.drain, daemon=True).start()

    def drain(self) -> None:
        """Take whatever comes, since a full socket would hold the log driver up."""
        while self.listener.recv(65536):
            pass

    def close(self) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()


LOG_FOLDER = f"/app/logs/@truebit/worker-runner-node-{WALLET}/debug"


def make_image() -> None:
    """Make the image of a Node from the busybox on this machine, unless an earlier run has."""
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
