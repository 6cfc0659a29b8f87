"""What README says is so."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import pytest
from support import ROOT
from support.documents import run
from support.machine import wait_for
from support.node_words import header
from support.programs import Program

import tbmon

README = (ROOT / "README.md").read_text()
CURL_LINES = re.findall(r"^    (curl .+)$", README, re.M)


@pytest.fixture
def site(program: Callable[..., Program], tmp_path: Path) -> Program:
    """A tbmon where README's lines find it: started in its folder, with its own password file."""
    one = program(API_KEY="of this test", DB_PATH="data/truebit-monitor.db")
    del one.env["TASK_DATA_PASSWORD"]
    (one.folder / "logs").mkdir()
    (one.folder / "logs" / "a.log").write_text(header("Heartbeat sent") + "\n")
    one.env["LOG_DIR"] = str(one.folder / "logs")
    return one


def test_every_curl_line_works_as_it_stands(site: Program) -> None:
    del site.env["API_KEY"]
    site.start()
    assert len(CURL_LINES) >= 8
    done = {line: run(site, line) for line in CURL_LINES}
    assert {line: one.stdout for line, one in done.items() if one.returncode} == {}


def test_with_an_api_key_only_the_lines_that_say_so_answer(site: Program) -> None:
    site.start()
    answers = {line for line in CURL_LINES if run(site, line).returncode == 0}
    assert answers == {
        line for line in CURL_LINES if "$API_KEY" in line or line.endswith("/health")
    }


def test_the_password_file_is_where_it_says(site: Program) -> None:
    site.start()
    kept = (site.folder / "data" / "task-data.password").read_text()
    wait_for(lambda: "\N{KEY}" in site.log.read_text())
    assert kept in site.log.read_text()


def test_the_first_thirty_lines_say_how_and_at_whose_risk() -> None:
    top = "\n".join(README.splitlines()[:30])
    assert all(
        words in top
        for words in ("make run", "curl http://localhost:8090/api/status", "independent")
    )
    assert all(
        words in top
        for words in ("not made, endorsed or supported by TrueBit", "at your own risk", "MIT")
    )


def test_every_name_in_capitals_is_a_setting() -> None:
    known = {item.name.upper() for item in fields(tbmon.Config)}
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b|\bHOST\b", README))
    assert named - known <= {f"{name}_FILE" for name in known} and len(named) >= 6


def test_the_table_has_every_setting_with_its_default_and_meaning() -> None:
    rows = re.findall(r"^\| ([A-Z_]+) \| (.+) \| (.+) \|$", README, re.M)
    told = []
    for item in fields(tbmon.Config):
        default = str(item.default).lower() if item.type == "bool" else item.default
        told.append(
            (item.name.upper(), f"`{default}`" if default != "" else "none", item.metadata["help"])
        )
    assert rows == told


def test_every_file_and_make_target_it_names_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"`make ([a-z-]+)", README)) <= targets
    assert all(
        (ROOT / name).exists()
        for name in re.findall(r"\b(?:tbmon\.py|docs/[\w.-]+\.\w+)\b", README)
    )


def test_the_packages_are_the_same_wherever_they_are_named() -> None:
    block = re.search(r"dependencies = \[(.*?)^# \]$", (ROOT / "tbmon.py").read_text(), re.M | re.S)
    required = (ROOT / "requirements.txt").read_text().split()
    assert block is not None and sorted(re.findall(r'"([^"]+)"', block[1])) == sorted(required)
    assert {re.split("[<>=]", name)[0] for name in required} == {*tbmon.PACKAGES} - {"nats"} | {
        "nats-py[aiohttp]"
    }
