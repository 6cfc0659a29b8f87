"""The layout of the source: sections use only what stands above them and have only the effect
they name.
"""

from __future__ import annotations

import ast
import json
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from support.layout import (
    LABELS,
    RULE,
    SOURCE,
    TREE,
    findings,
    functions,
    nodes,
    sections,
    undocumented,
)

ROOT = Path(__file__).parent.parent
STATIC = ROOT / "static"


def static_files(pattern: str = "*") -> list[Path]:
    return [path for path in sorted(STATIC.rglob(pattern)) if path.is_file()]


def matches(pattern: bytes, paths: list[Path]) -> list[str]:
    """`file:line` of every line in which `pattern` is found."""
    lines = [
        (path, number, line)
        for path in paths
        for number, line in enumerate(path.read_bytes().splitlines(), 1)
    ]
    return [
        f"{path.name}:{number}" for path, number, line in lines if re.search(pattern, line, re.I)
    ]


def test_sections_are_numbered_upwards_and_name_a_known_effect() -> None:
    found = sections(SOURCE)
    numbers = [section.number for section in found]
    assert len(found) >= 4 and numbers == sorted(set(numbers))
    assert {section.label for section in found} <= LABELS
    assert len(re.findall(r"^# -{5,}.*$", SOURCE, re.M)) == 2 * len(found), (
        "a banner that is not of the usual form"
    )


def test_the_store_is_the_only_section_labelled_disk() -> None:
    assert [(s.number, s.name) for s in sections(SOURCE) if s.label == "disk"] == [(4, "Store")]


def test_no_section_uses_a_later_one_or_has_an_effect_it_does_not_name() -> None:
    assert findings(SOURCE) == []


PLANTED = f"""
import os, sqlite3
import socket as plug
from time import time as clock
from urllib import parse, request
{RULE}
# 1. First   (pure)
{RULE}
LIMIT = 5
def good(later: int, db: sqlite3.Connection) -> int:
    "Select one from many."
    return later + max(limit for limit in [LIMIT]) + len(parse.quote("x"))
{RULE}
# 2. Second   (threads)
{RULE}
def later() -> None: ...
LATE = 1
class Late: ...
"""


def test_the_checker_finds_no_fault_in_a_clean_source() -> None:
    assert len(sections(PLANTED)) == 2 and findings(PLANTED) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("def bad(): return later()", "section 1 uses later of section 2"),
        ("bad = [later for x in (1, 2)]", "section 1 uses later of section 2"),
        ("def bad(x=LATE): ...", "section 1 uses LATE of section 2"),
        ("def bad(x: list[Late]) -> None: ...", "section 1 uses Late of section 2"),
        ("def bad() -> Late | None: ...", "section 1 uses Late of section 2"),
        ("bad: Late", "section 1 uses Late of section 2"),
        ("class Bad(Late): ...", "section 1 uses Late of section 2"),
        (
            "class Bad:\n    later = 1\n    def bad(self): return later",
            "section 1 uses later of section 2",
        ),
        ("def bad(): return plug.socket()", "socket.socket in a section labelled pure"),
        ("def bad(): return clock()", "time.time in a section labelled pure"),
        (
            "def bad(): return request.urlopen('x')",
            "urllib.request.urlopen in a section labelled pure",
        ),
        ("def bad(): return open('x')", "open in a section labelled pure"),
        ("def bad(): return __import__('nats')", "__import__ in a section labelled pure"),
        (
            "def bad():\n    import docker.errors",
            "import of docker.errors in a section labelled pure",
        ),
        (
            "def bad():\n    from http import client",
            "import of http.client in a section labelled pure",
        ),
        ("def bad(): return sqlite3.connect('x')", "sqlite3.connect in a section labelled pure"),
        ("def bad(db: sqlite3.Cursor): ...", "sqlite3.Cursor in a section labelled pure"),
        ("def bad(db): db.execute(LIMIT)", "execute() outside the store"),
        ("BAD = 'PRAGMA user_version'", "SQL outside the store"),
        ("BAD = f'''\n  select {LIMIT} from task'''", "SQL outside the store"),
    ],
)
def test_the_checker_reports_a_planted_fault(line: str, expected: str) -> None:
    reported = findings(PLANTED.replace("LIMIT = 5", f"LIMIT = 5\n{line}"))
    assert any(text.endswith(expected) for text in reported), reported


def test_importing_tbmon_has_no_side_effect_and_loads_nothing_heavy(tmp_path: Path) -> None:
    watched = (
        "socket. subprocess. sqlite3. os.mkdir os.rename os.remove os.system os.putenv "
        "signal. shutil. tempfile."
    )
    code = f"""
import json, sys, threading
sys.path.insert(0, {str(ROOT)!r})
events = []
def audit(event, args):
    writes = event == "open" and (set(str(args[1])) & set("wax+") or (args[2] or 0) & 3)
    if writes or event.startswith({tuple(watched.split())!r}):
        events.append(event + " " + repr(args))
sys.addaudithook(audit)
import tbmon
heavy = set(sys.modules) & {{"docker", "requests", "nats", "aiohttp", "asyncio", "bottle", "waitress"}}
print(json.dumps([events, sorted(heavy), threading.active_count(), tbmon.log.handlers + tbmon.log.root.handlers]))
"""
    done = subprocess.run(
        [sys.executable, "-B", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert json.loads(done.stdout) == [[], [], 1, []]
    assert list(tmp_path.iterdir()) == []


def test_blank_lines_comments_and_long_names_are_no_code() -> None:
    dense = "def f(a):\n    return a + 1\n"
    airy = (
        "# Why.\n\n\ndef plus_one(\n    number_of_tasks,\n):\n\n    return number_of_tasks + 1 "
        " # so\n"
    )
    assert nodes(ast.parse(dense)) == nodes(ast.parse(airy)) == 6
    assert nodes(ast.parse(dense), begin=2) == 4 and functions(ast.parse(dense)) == {"f:1": 6}


def test_the_files_stay_within_their_budgets_of_code() -> None:
    assert nodes(TREE) <= 53_000
    aggregator = ROOT / "aggregator.py"
    assert not aggregator.exists() or nodes(ast.parse(aggregator.read_text("utf-8"))) <= 5_200


def test_what_may_leave_and_how_it_is_sent_can_be_read_in_one_sitting() -> None:
    begins = {section.number: section.line for section in sections(SOURCE)}
    assert nodes(TREE, begins[5], begins[7]) <= 3_600


def test_functions_are_short() -> None:
    sizes = functions(TREE)
    assert statistics.median(sizes.values()) <= 60
    assert {name: size for name, size in sizes.items() if size > 460} == {}


def test_whatever_is_public_and_longer_than_a_few_lines_has_a_docstring() -> None:
    assert undocumented(TREE) == []
    assert undocumented(
        ast.parse("def f():\n" + " x = 1\n" * 24 + "def g():\n" + " x = 1\n" * 20)
    ) == ["f"]


def test_the_page_never_makes_markup_or_code_out_of_text(tmp_path: Path) -> None:
    pattern = rb"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\("
    planted = tmp_path / "planted.js"
    planted.write_text("let a;\nrow.innerHTML = a;\n")
    assert (STATIC / "app.js").is_file()
    assert matches(pattern, static_files("*.js")) == []
    assert matches(pattern, [planted]) == ["planted.js:2"]


def test_the_page_names_no_other_server() -> None:
    assert (STATIC / "app.js").is_file()
    # The name of the SVG language has the form of an address and is fetched by nobody.
    assert matches(rb"https?://(?!www\.w3\.org/2000/svg[\"'])", static_files()) == []
