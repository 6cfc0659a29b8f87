"""How the dashboard says what is known of the node only from before, and of how long uptime speaks."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.machine import wait_for
from support.node_words import header
from support.pages import Tab, chromium
from support.programs import Program


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def heard(program: Callable[..., Program], tmp_path: Path, state: str, last_min: int) -> Program:
    """A tbmon that has read a node's pulse up to `last_min` minutes ago, two hours of it."""
    (tmp_path / "logs").mkdir()
    ages = range(last_min + 120, last_min - 1, -2)
    lines = [header("Heartbeat sent", time.time() - 60 * age) + "\n" for age in ages]
    (tmp_path / "logs" / "a.log").write_text("".join(lines))
    one = program(LOG_DIR=str(tmp_path / "logs")).start()
    wait_for(lambda: f"verdict: {state}" in one.log.read_text())
    wait_for(lambda: one.get("/api/now")[1]["uptime"]["watched_30d_min"] >= 120)
    return one


def test_a_silent_node_is_not_shown_as_up(
    browser: Any, program: Callable[..., Program], tmp_path: Path
) -> None:
    one = heard(program, tmp_path, "degraded", 39)
    with Tab(browser, one) as tab:
        tab.verdict("degraded")
        said = tab.page.locator("#verdict").inner_text()
        assert "No log line since" in said and re.search(r"Since (39|40) min ago\n2\d{3}-", said)
        tiles = tab.page.locator(".metrics").inner_text()
        assert "of the 2 h watched, 1 outage" in tiles and "100" not in tiles
        words = tab.page.locator('[data-chart="uptime"] desc').text_content() or ""
        assert re.match(r"24h 7\d(\.\d+)? %; 1 outage, longest (39|40|41) minutes", words)
        assert tab.complaints == []


def test_what_is_remembered_says_from_when_it_is(
    browser: Any, program: Callable[..., Program], tmp_path: Path
) -> None:
    one = heard(program, tmp_path, "idle", 0)
    assert one.end() == 0
    code = "import sys, tbmon; tbmon.ingest = lambda monitor: monitor.stop.wait(); "
    words = (sys.executable, "-c", code + "sys.exit(tbmon.main(['serve']))")
    with one.log.open("ab") as log:  # a tbmon that never gets to look
        one.process = subprocess.Popen(words, env=one.env, cwd=one.folder, stdout=log, stderr=log)
    wait_for(one.answers)
    with Tab(browser, one) as tab:
        tab.verdict("idle")
        tab.see(re.compile(r"As of"), within="#signs")
        assert "before tbmon was started" in tab.page.locator("#signs").inner_text()
        assert tab.complaints == []
    with Tab(browser, one, java_script_enabled=False) as tab:
        assert "before tbmon was started" in tab.page.locator("#verdict").inner_text()
