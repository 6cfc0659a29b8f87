"""This machine, and what is asked of it: parts that may be missing, waiting, figures of processes."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BEGUN = float(
    os.environ.setdefault("TBMON_TESTS_BEGUN", str(time.time()))
)  # the same in each of pytest's processes
LONG = (
    os.environ.get("TBMON_SOAK") == "1"
)  # the long form of the fault suite, as `make soak` runs it


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


def length(short: int, long: int) -> int:
    """How much a test of the fault suite does: `long` of it under `make soak`."""
    return long if LONG else short


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
