"""What docs/api.md says is so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from support import ROOT
from support.engine import Node
from support.machine import wait_for
from support.node_words import BLOCK, IDS, header, invoice, output, received
from support.programs import Program

import tbmon

TEXT = (ROOT / "docs" / "api.md").read_text()
LINES = re.findall(r"^    ((?:curl|[A-Z]+=\$\(curl) .+)$", TEXT, re.M)
SECTIONS = dict(re.findall(r"^### (\S+ \S+)\n(.*?)(?=^### |\Z)", TEXT, re.M | re.S))
FINDS = {
    line.partition("=")[0]: line for line in LINES if not line.startswith("curl")
}  # ID and HASH
NEED_ENGINE = [line for line in LINES if "artifacts" in line]
NOT_SHARING = {  # in the end: the lines that opt in and make an id come before those that undo it
    "enabled": False,
    "nodeId": None,
    "privacyLevel": "balanced",
    "shareTasks": True,
    "shareStats": True,
    "natsServers": ["nats://127.0.0.1:1"],
}
KEY, MODULE = "of this test", "ab" * 32


@pytest.fixture
def site(program: Callable[..., Program]) -> Program:
    """A tbmon where the document's lines find it: started in its folder, with its own password
    file.
    """
    one = program(DB_PATH="data/truebit-monitor.db")
    del one.env["TASK_DATA_PASSWORD"]
    return one


def run(site: Program, line: str) -> subprocess.CompletedProcess[str]:
    """Run a line, after those that find the names in it; where there is an API key, with its header
    everywhere.
    """
    before = [
        found
        for name, found in FINDS.items()
        if f"${name}" in line or (name == "ID" and "$HASH" in line)
    ]
    key = (
        '-H "Authorization: Bearer $API_KEY" '
        if "API_KEY" in site.env and "$API_KEY" not in line
        else ""
    )
    words = re.sub(
        r"\bcurl ",
        f"curl -sS --fail-with-body {key}",
        "\n".join(("set -eo pipefail", *before, line)),
    )
    env = {"PATH": os.environ["PATH"], "API_KEY": KEY}
    words = words.replace(f"localhost:{tbmon.Config().port}", f"localhost:{site.port}")
    return subprocess.run(
        ("bash", "-c", words), cwd=site.folder, env=env, capture_output=True, text=True
    )


def failures(site: Program, lines: list[str]) -> dict[str, str]:
    """{line that did not do what it should: what it said}; streams run beside each other until
    their time is over.
    """
    streams = {line for line in lines if "--max-time" in line}
    with ThreadPoolExecutor(len(streams) or 1) as pool:
        waiting = {line: pool.submit(run, site, line) for line in streams}
        done = {line: run(site, line) for line in lines if line not in streams}
    ended = {line: one.result() for line, one in waiting.items()}
    wrong = {line: one for line, one in done.items() if one.returncode}
    wrong |= {
        line: one for line, one in ended.items() if one.returncode != 28 or "id: " not in one.stdout
    }
    return {
        line: f"{one.returncode} {one.stdout[:300]} {one.stderr}" for line, one in wrong.items()
    }


@pytest.mark.parametrize("settings", [{}, {"API_KEY": KEY}], ids=["without a key", "with a key"])
def test_every_curl_line_works_as_it_stands(site: Program, settings: dict[str, str]) -> None:
    story = [
        received(IDS[0], **BLOCK),
        output(True, executionId=IDS[0]),
        f"Execution {IDS[0]} completed",
        invoice(IDS[0], "pay", "71"),
        received(IDS[1]),
        f"Execution {IDS[1]} failed: memory",
    ]
    (site.folder / "logs").mkdir()
    (site.folder / "logs" / "a.log").write_text("".join(f"{header(words)}\n" for words in story))
    site.env |= {"LOG_DIR": str(site.folder / "logs"), **settings}
    site.start()
    named = {"Authorization": f"Bearer {KEY}"}
    wait_for(lambda: site.get("/api/tasks/stats/summary", **named)[1]["failed"] == 1)
    lines = [line for line in LINES if line not in NEED_ENGINE]
    assert failures(site, lines) == {}
    assert (site.folder / "invoices.csv").read_text().count("\n") == 2
    assert IDS[0] in run(site, next(line for line in lines if "cursor=" in line)).stdout
    assert site.get("/api/federation/settings", **named)[1] == NOT_SHARING


def test_the_lines_about_artifacts_work_with_a_node_that_has_some(
    site: Program, node: Node
) -> None:
    node.run()
    node.put(f"{tbmon.CACHE_PATH}/1.0/{MODULE}/prepared.wasm", b"\0asm of this test")
    ran = output(
        True, executionId=IDS[0], execution={"wasm": {"hash": MODULE}, "prepare": {"cached": True}}
    )
    for words in (received(IDS[0]), ran, f"Execution {IDS[0]} completed"):
        node.say(header(words))
    site.env["CONTAINER_NAME"] = node.name
    site.start()
    wait_for(lambda: site.get("/api/tasks/stats/summary")[1]["completed"] == 1)
    assert len(NEED_ENGINE) >= 3
    assert failures(site, NEED_ENGINE) == {}
    assert (site.folder / "module.wasm").read_bytes() == b"\0asm of this test"


def rows(text: str, head: str) -> str:
    """The lines of the table whose first column has this head."""
    found = re.search(rf"^\| {head} \|.*\n((?:\|.*\n)+)", text, re.M)
    return found[1] if found else ""


def test_it_is_what_its_program_prints() -> None:
    words = (sys.executable, str(ROOT / "docs" / "write_api.py"))
    printed = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert printed == TEXT, "print it again: python docs/write_api.py > docs/api.md"


def test_every_route_has_a_section_with_its_curl_line() -> None:
    assert list(SECTIONS) == [f"{route.method} {route.path}" for route in tbmon.ROUTES]
    for route in tbmon.ROUTES:
        section = SECTIONS[f"{route.method} {route.path}"]
        assert f"Class: {route.access}. {route.text}\n" in section
        address = re.sub(r"\\{\w+\\}", r"\\$[A-Z]+", re.escape(route.path))
        assert re.search(rf"^    curl .*localhost:\d+{address}(\?\S+)?'?$", section, re.M)
        parameters = re.findall(r"^\| `(\w+)` \| (.+?) \| ", rows(section, "Parameter"), re.M)
        assert parameters == [(name, one.takes) for name, one in route.query.items()]
        for name in tbmon.fields_of(route.shows) if route.shows in tbmon.SHAPES else ():
            assert f"| `{name.rstrip('?')}` | " in rows(section, "Field")


def test_every_field_of_a_body_is_told_with_its_type_and_whether_it_may_be_left_out() -> None:
    line = r"^\| `(\S+)` \| (.+?) \| (yes|no) \| \S"
    told = {
        name: re.findall(line, rows(section, "Field of the body"), re.M)
        for name, section in SECTIONS.items()
    }
    assert {name: fields for name, fields in told.items() if fields} == {
        "POST /api/auth/login": [("secret", "text", "no")],
        "PUT /api/federation/settings": [
            ("enabled", "bool", "yes"),
            ("privacyLevel", "`minimal`, `balanced`, `maximum`", "yes"),
            ("shareTasks", "bool", "yes"),
            ("shareStats", "bool", "yes"),
            ("natsServers", "list of text", "yes"),
        ],
    }


def test_every_status_that_an_answer_can_have_is_told() -> None:
    told = set(re.findall(r"^\| (\d{3}) \| \S", rows(TEXT, "Status"), re.M))
    source = (ROOT / "tbmon.py").read_text()
    assert told == {
        "200",
        "204",
        "304",
        "405",
        "413",
        "431",
        *re.findall(r"Refusal\(\s*(\d{3})\b", source),
    }
    assert "demo data is not shared" in TEXT


def test_every_event_credential_and_path_that_is_gone_is_told() -> None:
    stream = TEXT.partition("## The live stream\n")[2].partition("\n## ")[0]
    events = ["task", "invoice", "semaphore", "node_status", "network_stats", "gap", "log", "reset"]
    assert re.findall(r"^\| `(\w+)` \|", stream, re.M) == events
    assert all(header in TEXT and name in TEXT for name, header in tbmon.CREDENTIALS.values())
    assert all(words in TEXT for words in tbmon.GONE.values())
