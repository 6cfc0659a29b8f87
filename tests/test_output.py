"""Standard output that is full or gone: tbmon goes on, and ends with 0 when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support.machine import wait_for
from support.programs import Program, made_over_files

PROGRAM = f"exec {sys.executable} {ROOT / 'tbmon.py'}"
OUTPUTS = {
    "full": f"{PROGRAM} > /dev/full",
    "full, errors too": f"{PROGRAM} > /dev/full 2>&1",
    "closed": f"{PROGRAM} >&-",
    "closed, all three": f"{PROGRAM} <&- >&- 2>&-",
}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("line", OUTPUTS.values(), ids=OUTPUTS)
def test_a_full_or_closed_output_ends_nobody_and_the_end_is_0(
    program: Callable[..., Program], line: str, number: signal.Signals
) -> None:
    one = made_over_files(program)
    one.process = subprocess.Popen(("/bin/sh", "-c", line), env=one.env, cwd=one.folder)
    wait_for(lambda: one.process.poll() is not None or one.answers())
    assert one.get("/api/logs", X_Task_Data_Password="wrong")[0] == 401  # which is logged
    assert one.get("/health")[0] == 200
    assert one.end(number) == 0


def test_a_reader_that_goes_away_ends_nobody(program: Callable[..., Program]) -> None:
    one = made_over_files(program)
    one.process = subprocess.Popen(
        (sys.executable, str(ROOT / "tbmon.py")),
        env=one.env,
        cwd=one.folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    wait_for(one.answers)
    assert one.process.stdout is not None and one.process.stderr is not None
    assert b"tbmon" in os.read(one.process.stdout.fileno(), 4096)
    one.process.stdout.close()
    assert one.get("/api/logs", X_Task_Data_Password="wrong")[0] == 401
    assert one.end() == 0
    assert one.process.stderr.read() == b""
    one.process.stderr.close()


def test_each_line_of_the_log_is_written_at_once_and_in_the_output_s_own_encoding(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    one = made_over_files(program, PYTHONIOENCODING="ascii", WS_AUTH_REQUIRED="true").start()
    said = one.log.read_text("ascii")  # while it runs
    assert "\\U0001f511 stream token (kept in" in said
    assert one.end() == 0
    assert one.log.read_text().endswith(" INFO stopped\n")
