"""The wasm modules in a node's cache."""

from __future__ import annotations

import random
from typing import NamedTuple

CACHE = "/app/build/wasm-files/cache"
VERSIONS = ("1.119.0", "1.120.0-beta.275")
MOST = 1_500_000  # MAX_ARTIFACT_BYTES of the monitor here


def digest(number: int) -> str:
    return f"{number:02x}" * 32


def module_path(number: int, version: str = VERSIONS[1]) -> str:
    return f"{CACHE}/{version}/{digest(number)}/prepared.wasm"


class Module(NamedTuple):
    """A module in the cache: the task with this number ran it."""

    number: int
    version: str
    size: int

    @property
    def content(self) -> bytes:
        return b"\0asm" + random.Random(self.number).randbytes(self.size - 4)


SMALL, LARGE, OLD = (
    Module(1, VERSIONS[1], 3000),
    Module(2, VERSIONS[1], MOST),
    Module(3, VERSIONS[0], 70_001),
)
