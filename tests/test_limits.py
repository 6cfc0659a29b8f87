"""Where descriptors or threads are few: tbmon says so, stays calm, and answers on."""

from __future__ import annotations

import contextlib
import os
import resource
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.limits import Limited, group, service
from support.machine import cpu_s, figure_of, missing, wait_for
from support.programs import Program

import tbmon


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    with service(tmp_path / "limited") as made:
        yield made


@pytest.fixture(autouse=True)
def many_files() -> None:
    """As many descriptors for these tests as they may have."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if most < 2000:
        missing("more open files (ulimit -Hn)")


def connect(program: Program, stack: contextlib.ExitStack, count: int) -> None:
    """Clients that connect and ask for nothing."""
    for _ in range(count):
        stack.enter_context(socket.create_connection(("127.0.0.1", program.port), 10))


def busy_s(program: Program, seconds: float) -> float:
    """How much of a core the program uses in some seconds of doing nothing."""
    before = cpu_s(program.process.pid)
    threading.Event().wait(seconds)
    return cpu_s(program.process.pid) - before


@pytest.mark.parametrize(
    ("files", "settings", "count"),
    [(256, {}, 300), (1024, {"WS_MAX_CONNECTIONS": "1000"}, 1300)],
)
def test_idle_connections_beyond_the_descriptors_keep_nobody_waiting(
    limited: Limited, files: int, settings: dict[str, str], count: int
) -> None:
    limited.ulimit = f"-n {files}"
    limited.env.update(settings)
    limited.start()
    with contextlib.ExitStack() as stack:
        connect(limited, stack, count)
        for _ in range(5):
            assert limited.get("/health")[0] == limited.get("/api/tasks")[0] == 200
        assert busy_s(limited, 2) < 0.4
    said = limited.log.read_text()
    assert "Traceback" not in said and "database cannot be read" not in said
    assert said.count("newcomers wait") <= 1


def test_without_a_descriptor_left_it_is_calm_and_answers_as_soon_as_there_is_one(
    limited: Limited,
) -> None:
    limited.start()
    pid = limited.process.pid
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    held = min(set(range(len(taken) + 1)) - taken)  # none below is free
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (held, before[1]))
    with contextlib.ExitStack() as stack:
        connect(limited, stack, 40)
        wait_for(lambda: "newcomers wait" in limited.log.read_text())
        assert busy_s(limited, 3) < 0.6
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        wait_for(limited.answers, 5)
    said = limited.log.read_text()
    assert said.count("newcomers wait") == 1 and "Traceback" not in said
    assert "WS_MAX_CONNECTIONS" in said


def test_more_live_streams_than_the_descriptors_carry_are_lowered_with_a_warning(
    limited: Limited,
) -> None:
    limited.ulimit = "-n 1024"
    limited.env["WS_MAX_CONNECTIONS"] = "1000"
    limited.start()
    most = 1024 - tbmon.OTHER_FILES - tbmon.FEW_CONNECTIONS
    warned = [line for line in limited.log.read_text().splitlines() if "is lowered" in line]
    assert len(warned) == 1 and "WARNING WS_MAX_CONNECTIONS=1000 is lowered to" in warned[0]
    assert f"to {most}:" in warned[0] and "1024 open files (ulimit -n, LimitNOFILE)" in warned[0]
    assert most < figure_of(limited.process.pid, "Threads") < 1000


def test_more_live_streams_than_the_threads_carry_are_lowered_with_a_warning(
    limited: Limited,
) -> None:
    with group("pids", 256) as pids:
        if pids is None:
            missing("control groups that can be made, with pids")
        assert pids is not None
        limited.groups = (*limited.groups, pids)
        limited.env["WS_MAX_CONNECTIONS"] = "300"
        limited.start()
        assert limited.get("/health")[0] == 200
        warned = [line for line in limited.log.read_text().splitlines() if "is lowered" in line]
        assert len(warned) == 1 and "WARNING WS_MAX_CONNECTIONS=300 is lowered to" in warned[0]
        assert "threads (TasksMax, pids_limit, ulimit -u)" in warned[0]
        assert 200 < figure_of(limited.process.pid, "Threads") < 256
        assert limited.end() == 0


def test_the_defaults_are_not_lowered_by_the_limits_that_are_shipped(limited: Limited) -> None:
    limited.ulimit = "-n 1024"
    with group("pids", 256) as pids:
        limited.groups = (*limited.groups, *([pids] if pids else []))
        limited.start()
        assert limited.end() == 0
    assert "is lowered" not in limited.log.read_text()


def test_the_tightest_of_the_groups_above_counts(tmp_path: Path) -> None:
    lines = Path("/proc/self/cgroup").read_text().splitlines()
    kinds, path = next(
        line.split(":", 2)[1:] for line in lines if line.split(":", 2)[1] in ("", "pids")
    )
    inner = tmp_path / kinds / path.strip("/") if path.strip("/") else tmp_path / kinds
    inner.mkdir(parents=True, exist_ok=True)
    (inner / "pids.max").write_text("max\n")
    before = tbmon.threads_allowed(tmp_path)
    for folder, most in ((tmp_path / kinds, 90), (inner, 50)):
        (folder / "pids.max").write_text(f"{most}\n")
        (folder / "pids.current").write_text("7\n")
        assert tbmon.threads_allowed(tmp_path) == min(before or 10**9, most - 7)
