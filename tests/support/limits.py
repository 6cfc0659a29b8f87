"""tbmon under the limits that deploy/tbmon.service sets: memory, threads, descriptors."""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from support.machine import figure_of, wait_for
from support.programs import Program

MIB = 2**20
MOST_BYTES = 192 * MIB  # MemoryMax
PEAK_KIB = 128 * 1024  # MemoryHigh: what tbmon may need at its peak
CONTROLLERS = {  # name -> the file of its limit under version 1 of control groups, and under 2
    "memory": ("memory.limit_in_bytes", "memory.max"),
    "pids": ("pids.max", "pids.max"),
}
NUMBERS = itertools.count(1)


def group_folder(controller: str, number: int) -> Path | None:
    """A new control group of this controller; None where this machine lets us make none."""
    name = f"tbmon-test-{os.getpid()}-{number}"
    root = Path("/sys/fs/cgroup")
    for folder in (root / controller / name, root / name):
        version = 0 if folder.parent != root else 1
        if version == 1 and not (root / "cgroup.controllers").exists():
            continue
        with contextlib.suppress(OSError):
            folder.mkdir()
            if (folder / CONTROLLERS[controller][version]).exists():
                return folder
            folder.rmdir()
    return None


@contextlib.contextmanager
def group(controller: str, most: int) -> Iterator[Path | None]:
    """A control group with a limit, or None: then what a test measures itself is all there is."""
    folder = group_folder(controller, next(NUMBERS))
    if folder is not None:
        limit = next(folder / name for name in CONTROLLERS[controller] if (folder / name).exists())
        limit.write_text(str(most))
    try:
        yield folder
    finally:
        if folder is not None:
            wait_for(lambda: not (folder / "cgroup.procs").read_text())
            folder.rmdir()


class Limited(Program):
    """A program that begins in control groups, and with what `ulimit` is told."""

    groups: tuple[Path, ...] = ()
    ulimit = ""

    def start(self, command: str = "serve") -> Limited:
        joins = [f"echo $$ > {folder}/cgroup.procs" for folder in self.groups]
        limits = [f"ulimit {self.ulimit}"] if self.ulimit else []
        script = " && ".join([*joins, *limits, 'exec "$@"'])
        words = ("sh", "-c", script, "sh", sys.executable, "-m", "tbmon", command)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                words, env=self.env, cwd=self.folder, stdout=log, stderr=log
            )
        wait_for(lambda: self.process.poll() is not None or self.answers())
        return self

    def peak_kib(self) -> int:
        """The most memory it has ever held; fails if it is no more."""
        assert self.process.poll() is None, f"it ended: {self.process.returncode}"
        return figure_of(self.process.pid, "VmHWM")


@contextlib.contextmanager
def service(folder: Path, **settings: str) -> Iterator[Limited]:
    """tbmon over an empty folder of log files, with the memory of tbmon.service; ended after it."""
    (folder / "logs").mkdir(parents=True)
    usual = {"LOG_DIR": str(folder / "logs"), "MALLOC_ARENA_MAX": "2", "API_RATE_LIMIT": "0"}
    with group("memory", MOST_BYTES) as memory:
        made = Limited(folder / "program", **usual, **settings)
        made.groups = (memory,) if memory else ()
        try:
            yield made
        finally:
            if getattr(made, "process", None) and made.process.poll() is None:
                made.process.kill()
                made.process.wait()
