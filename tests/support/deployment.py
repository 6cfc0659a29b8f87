"""What starts tbmon on a server: compose and systemd."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess

from support.machine import missing


def compose() -> tuple[str, ...]:
    """The command: version 2 is a part of docker, version 1 a program of its own."""
    if subprocess.run(("docker", "compose", "version"), capture_output=True).returncode == 0:
        return "docker", "compose"
    if shutil.which("docker-compose") is None:
        missing("docker-compose")
    return ("docker-compose",)


PATIENCE_S = 3


class Systemd:
    """What listens at NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self.address, self.told = address, list[str]()
        self.end = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.end.bind(address.replace("@", "\0") if address.startswith("@") else address)
        self.end.settimeout(0.05)

    def hears(self, words: str) -> bool:
        """True if this came since it was asked last."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.told.append(self.end.recv(4096).decode())
        if words not in self.told:
            return False
        del self.told[: self.told.index(words) + 1]
        return True

    def is_silent(self, seconds: float) -> bool:
        """True if nothing comes for so long."""
        self.hears("")
        self.told.clear()
        self.end.settimeout(seconds)
        try:
            return not self.end.recv(4096)
        except TimeoutError:
            return True
        finally:
            self.end.settimeout(0.05)
