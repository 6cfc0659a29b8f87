"""What the documents name exists, what exists is named, and what they say can be computed is so."""

from __future__ import annotations

import html
import inspect
import json
import re
import sqlite3
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import fields
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from support import ROOT
from support.documents import codes, is_of_source, made_example, table
from support.layout import SOURCE, TREE, nodes, sections
from support.node_words import header
from support.pages import chromium
from support.programs import Program

import aggregator
import tbmon

DECKS = ("overview", "federation-architecture")
PATHS = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs").glob("*.html")),
]
HERE = "http://localhost:8090"
VOID = ("meta", "link", "br", "img")


class Page(HTMLParser):
    """What stands in a presentation: its words, code, links and ids."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.codes: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.loads: list[str] = []
        self.within: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given["href"]] if tag == "a" else []
        self.loads += [
            value for name, value in given.items() if name in ("src", "href") and tag != "a"
        ]
        if tag not in VOID:
            self.within.append(tag)
        if tag in ("code", "pre"):
            self.codes.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.within.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if self.within[-1:] in (["style"], ["script"]):
            return
        self.words.append(data)
        if "pre" in self.within or "code" in self.within:
            self.codes[-1] += data


class Document:
    """A document as its reader has it."""

    def __init__(self, path: Path) -> None:
        self.path, self.name = path, str(path.relative_to(ROOT))
        self.source = path.read_text("utf-8")
        if path.suffix == ".html":
            page = Page(self.source)
            self.text, self.codes, self.links = " ".join(page.words), page.codes, page.links
            self.anchors = set(page.ids)
            return
        self.text = self.source
        fenced = re.findall(r"^```\w*\n(.*?)^```$", self.source, re.M | re.S)
        self.codes = [
            *re.findall(r"`([^`\n]+)`", self.source),
            *re.findall(r"^    (.+)$", self.source, re.M),
            *fenced,
        ]
        self.links = re.findall(r"\]\(([^)\s]+)\)", self.source)
        self.anchors = {slug(title) for title in re.findall(r"^#+ (.+)$", self.source, re.M)}

    @property
    def flat(self) -> str:
        return " ".join(self.text.split())


def slug(title: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


DOCUMENTS = {str(path.relative_to(ROOT)): Document(path) for path in PATHS}
MINE = {
    name: DOCUMENTS[name]
    for name in (
        "docs/node-data.md",
        "docs/architecture.md",
        "docs/migrating.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "docs/overview.html",
        "docs/federation-architecture.html",
    )
}
MIGRATING, ARCHITECTURE = DOCUMENTS["docs/migrating.md"], DOCUMENTS["docs/architecture.md"]
NODE_DATA, SECURITY = DOCUMENTS["docs/node-data.md"], DOCUMENTS["SECURITY.md"]
each_document = pytest.mark.parametrize("document", DOCUMENTS.values(), ids=DOCUMENTS)


def part(document: Document, title: str) -> str:
    """What stands under a heading, up to the next of its level."""
    found = re.search(
        rf"^(#+) {re.escape(title)}\n(.*?)(?=^\1 |^## |\Z)", document.source, re.M | re.S
    )
    assert found, title
    return found[2]


def settings(kind: Any) -> set[str]:
    return {item.name.upper() for item in fields(kind)}


def secret_files() -> set[str]:
    both = (*fields(tbmon.Config), *fields(aggregator.Config))
    return {f"{item.name.upper()}_FILE" for item in both if item.metadata.get("secret")}


SETTINGS = settings(tbmon.Config) | settings(aggregator.Config)
GONE_ROWS = re.findall(
    r"^\| ([A-Z_, ]+) \|", part(MIGRATING, "Settings").partition("These are gone")[2], re.M
)
GONE = {*", ".join(GONE_ROWS).split(", "), "NATS_AGGREGATOR_PASSWORD", "CLEANUP_INTERVAL"}


def deployed_names() -> set[str]:
    """Variables that the files for deployment take from the environment, or set there."""
    places = (
        (ROOT / "deploy").rglob("*"),
        ROOT.glob("docker-compose*"),
        ROOT.glob("Dockerfile"),
        ROOT.glob(".env*"),
    )
    text = "\n".join(
        path.read_text("utf-8") for place in places for path in place if path.is_file()
    )
    return {a or b for a, b in re.findall(r"\$\{?([A-Z][A-Z0-9_]+)|\b([A-Z][A-Z0-9_]+)[=:]", text)}


# What is named exists


@each_document
def test_every_link_leads_to_a_file_and_an_anchor(document: Document) -> None:
    wrong = []
    for link in document.links:
        target, _, anchor = link.partition("#")
        path = (document.path.parent / target).resolve() if target else document.path
        known = DOCUMENTS.get(str(path.relative_to(ROOT))) if path.is_relative_to(ROOT) else None
        if not path.exists() or (anchor and (known is None or anchor not in known.anchors)):
            wrong.append(link)
    assert wrong == []


@each_document
def test_every_name_in_capitals_is_of_the_program_or_of_a_shipped_file(document: Document) -> None:
    named = set(re.findall(r"\b[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+\b|\b(?:HOST|PORT)\b", document.text))
    known = SETTINGS | secret_files() | set(aggregator.STREAMS) | deployed_names() | {"NAME_FILE"}
    known |= GONE if document is MIGRATING else set()
    assert {
        name for name in named - known if not hasattr(tbmon, name) and not hasattr(aggregator, name)
    } == set()


@each_document
def test_every_route_it_names_is_one(document: Document) -> None:
    known = {
        *tbmon.openapi()["paths"],
        "/api",
        "/api/federation",
        "/api/auth",
        *map(curly, tbmon.GONE),
    }
    if document is MIGRATING:
        known |= {"/api/token", "/api/analytics"}  # which it says are not there
        assert not any(
            path.startswith(("/api/token", "/api/analytics")) for path in tbmon.openapi()["paths"]
        )
    patterns = [re.sub(r"\\{\w+\\}", r"[^/]+", re.escape(path)) for path in known]
    named = re.findall(
        r"(?<![\w.])/(?:api|health|metrics)\b(?:/[\w{}$-]+(?:\.json)?)*",
        document.text.replace(HERE, " "),
    )
    assert {
        path for path in named if not any(re.fullmatch(pattern, path) for pattern in patterns)
    } == set()


def curly(path: str) -> str:
    return path.replace("<", "{").replace(">", "}")


def words_of(program: str) -> set[str]:
    """The sub-commands that a program itself names."""
    done = subprocess.run(
        (sys.executable, program, "--help"), cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = re.search(r"\{([a-z,]+)\}", done.stdout)
    assert found, done.stdout
    return set(found[1].split(","))


@pytest.fixture(scope="module")
def commands() -> dict[str, set[str]]:
    return {name: words_of(name) for name in ("tbmon.py", "aggregator.py")}


def test_every_command_exists_and_every_sub_command_is_documented(
    commands: dict[str, set[str]],
) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.M))
    said = {"tbmon.py": set[str](), "aggregator.py": set[str]()}
    for document in DOCUMENTS.values():
        code = "\n".join(document.codes)
        assert set(re.findall(r"^make ([a-z-]+)", code, re.M)) <= targets, document.name
        for program, word in re.findall(r"\b(tbmon\.py|aggregator\.py) ([a-z]+)", code):
            said[program].add(word)
    assert said == commands
    assert targets <= set(
        re.findall(r"make ([a-z-]+)", " ".join(one.text for one in DOCUMENTS.values()))
    )


@each_document
def test_every_file_it_names_exists(document: Document) -> None:
    endings = "md|py|html|svg|conf|toml|txt|ya?ml|service|css|js"
    shipped = re.findall(rf"(?<![\w/.$<~*-])((?:[\w.-]+/)*[\w-]+\.(?:{endings}))\b", document.text)
    places = (ROOT, document.path.parent, ROOT / "deploy", ROOT / "docs", ROOT / "static")
    wrong = {name for name in shipped if not any((place / name).is_file() for place in places)}
    assert wrong <= set(
        re.findall(r"(?:-c|--cookie-jar) (\S+)", document.text)
    )  # which a curl line makes
    folders = {
        name
        for name in document.codes
        if re.fullmatch(r"(?:deploy|docs|static|tests)/[\w/-]*|\.ci/run", name)
    }
    assert {name for name in folders if not (ROOT / name).exists()} == set()
    made = re.findall(
        r"(?<![\w.-])(?:local|federation|stream|task-data)\.\w+(?![\w(])", " ".join(document.codes)
    )
    assert {name for name in made if f'"{name}"' not in SOURCE} == set()


# What exists is named


def test_every_setting_is_documented() -> None:
    said = set(
        re.findall(
            r"\b[A-Z]+(?:_[A-Z]+)*\b", " ".join(document.text for document in DOCUMENTS.values())
        )
    )
    assert said >= SETTINGS


def test_every_route_is_documented() -> None:
    known = {
        f"{method.upper()} {path}"
        for path, one in tbmon.openapi()["paths"].items()
        for method in one
    }
    assert {slug(one) for one in known} <= DOCUMENTS["docs/api.md"].anchors


def test_every_document_is_reached_from_another() -> None:
    paths = {
        (one.path.parent / link.partition("#")[0]).resolve()
        for one in DOCUMENTS.values()
        for link in one.links
    }
    paths |= {
        ROOT / code
        for one in DOCUMENTS.values()
        for code in one.codes
        if code.endswith((".md", ".html"))
    }
    roots = {ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "docs" / "node-data.md"}
    assert {one.name for one in DOCUMENTS.values() if one.path not in paths | roots} == set()


# What is said is so

SIX = {kind.subject for kind in tbmon.MESSAGES.values()}
SECTION = {one.number: one.line for one in sections(SOURCE)}
MAY_LEAVE = nodes(TREE, SECTION[5], SECTION[7])
STREAM = {
    name: (age_s // 86400, age_s // 3600) for name, (_, age_s, _) in aggregator.STREAMS.items()
}
UPKEEP = inspect.getsource(tbmon.upkeep)
FACTS: dict[str, tuple[tuple[str, bool], ...]] = {
    "docs/overview.html": (
        ("Python 3.11 or newer", 'requires-python = ">=3.11"' in SOURCE),
        (
            "on 127.0.0.1:8090, and on no other",
            (tbmon.Config.host, tbmon.Config.port) == ("127.0.0.1", 8090),
        ),
        ("three folders of the container", len(tbmon.ARCHIVE_PREFIXES) == 3),
        ("tbmon looks every two seconds", "stop.wait(2)" in UPKEEP),
        ("No line for 10 minutes", tbmon.SILENCE_MS == 10 * tbmon.MINUTE_MS),
        ("reads again from 3 seconds before", tbmon.OVERLAP_S == 3),
        ("Log entries go after 30 days", tbmon.Config.log_retention_days == 30),
        ("2,000,000,000 steps at 5e-7 are 1,000 gas units", round(2_000_000_000 * 5e-7, 6) == 1000),
        ("Off, until you opt in", tbmon.Sharing().enabled is False),
    ),
    "docs/federation-architecture.html": (
        ("Six kinds of messages", len(tbmon.MESSAGES) == len(SIX) == 6),
        (
            "Three tell of this installation",
            sum(kind.named for kind in tbmon.MESSAGES.values()) == 3,
        ),
        (
            "for 8 days and for 2 hours",
            (STREAM["TRUEBIT_TASKS"][0], STREAM["TRUEBIT_PRESENCE"][1]) == (8, 2),
        ),
        ("publishes statistics every 30 seconds", aggregator.Config.publish_interval == 30_000),
        ("about every 30 seconds", tbmon.Pace().beat_s == 30),
        ("A run of 4.2 seconds is said as 1-5s", tbmon.TIME_SCALE.range_of(4200) == "1-5s"),
        (
            "zero is a value and falls into the first range",
            tbmon.TIME_SCALE.range_of(0) == tbmon.TIME_RANGES[0],
        ),
        (
            "rust, javascript, python or other",
            tbmon.SHARED_LANGUAGES == ("rust", "javascript", "python", "other"),
        ),
        ("minimal : up to 60 minutes", tbmon.DELAY_MS["minimal"] == 60 * tbmon.MINUTE_MS),
        (
            "balanced , the default: up to 24 hours",
            (tbmon.DELAY_MS[tbmon.Sharing().level]) == 24 * tbmon.HOUR_MS,
        ),
        ("maximum : no such messages", not tbmon.Sharing(True, "maximum").kinds),
        ("rounded down to five minutes", tbmon.WINDOW_MS == 5 * tbmon.MINUTE_MS),
        ("lived 10 seconds more", tbmon.Pace().proof_s == 10),
        (
            "longer than 7 days, or beyond 10,000 messages",
            (tbmon.OUTBOX_MS, tbmon.OUTBOX_ROWS) == (7 * tbmon.DAY_MS, 10_000),
        ),
        ("8 days old at most", aggregator.OLDEST_MS == 8 * tbmon.DAY_MS),
        ("id not seen in 8 days", aggregator.KEPT_HOURS == 8 * 24),
        (
            "once in 24 hours at most, after 20 more",
            (aggregator.Config.stats_snapshot_hours, aggregator.Config.stats_min_new_tasks)
            == (24, 20),
        ),
        ("rounded down to 10", aggregator.Config.stats_round_to == 10),
        (
            "49 tasks become 40",
            aggregator.figures_of(
                {("task_received.taskType", "rust"): 49}, {}, aggregator.Config.stats_round_to
            )["totalTasks"]
            == 40,
        ),
        ("Below 5 installations", aggregator.Config.min_nodes == 5),
        (
            "four to eight messages",
            "four to eight messages were enough" in DOCUMENTS["docs/FEDERATION.md"].flat,
        ),
        ("after 3 to 6 of them", "after 3 to 6 of them" in DOCUMENTS["docs/FEDERATION.md"].flat),
        ("less than a tenth of its code", nodes(TREE) > MAY_LEAVE * 10),
    ),
    "docs/architecture.md": (
        (
            "8 for large answers, and 8 more",
            tbmon.LARGE_ANSWERS == 8
            and "threads=streams + WORKERS" in inspect.getsource(tbmon.make_server),
        ),
        ("every 2 seconds the container's state", "stop.wait(2)" in UPKEEP),
        ("every 10 seconds its figures", "rounds % 5 == 0" in UPKEEP),
        ("from 3 seconds before the cursor", tbmon.OVERLAP_S == 3),
        (
            "less than a tenth of its code: below 3,600 syntax nodes",
            nodes(TREE) > MAY_LEAVE * 10 and MAY_LEAVE < 3600,
        ),
        ("two JetStream streams", len(aggregator.STREAMS) == 2),
        ("begins with the stamp", tbmon.key_of(1, b"z") < tbmon.key_of(2, b"a")),
    ),
    "docs/node-data.md": (
        (
            "more than 5 % of the last 500",
            tbmon.judge_node(tbmon.Symptoms(0, last_line_at=0, recognised=0.94)).cause
            == "unrecognised",
        ),
        ("under `/app/logs/@truebit`", tbmon.LOGS_PATH == "/app/logs/@truebit"),
        ("under `/app/build/datadb`", tbmon.EVENT_DB_PATH == "/app/build/datadb"),
        ("ends in `-eventDB.json`", tbmon.EVENT_DB_NAME == "-eventDB.json"),
        ("`/app/build/wasm-files/cache`", tbmon.CACHE_PATH == "/app/build/wasm-files/cache"),
        ("`runner-node`, unless", tbmon.Config.container_name == "runner-node"),
        ("87, which is 5.4 MiB", round(87 / 16, 1) == 5.4),
        ("limit 1024 is 64 MiB", 1024 // 16 == 64),
    ),
    "docs/migrating.md": (
        ("port 8090 by default", tbmon.Config.port == 8090),
        (
            "default path, `./data/truebit-monitor.db`, is tbmon's",
            tbmon.Config.db_path == "./data/truebit-monitor.db",
        ),
        ("the default is 127.0.0.1", tbmon.Config.host == "127.0.0.1"),
        ("a cookie for 24 hours", tbmon.SESSION_MS == tbmon.DAY_MS),
        ("cleans up once an hour", "now + 3600" in inspect.getsource(aggregator.Aggregator)),
        ("`limit` is 1 to 1000", tbmon.PAGE["limit"].takes == "a whole number from 1 to 1000"),
    ),
    "SECURITY.md": (
        ("three folders of the container", len(tbmon.ARCHIVE_PREFIXES) == 3),
        ("listens on 127.0.0.1", tbmon.Config.host == "127.0.0.1"),
        (
            "10 wrong secrets in 15 minutes",
            (tbmon.LOGIN_FAILURES, tbmon.LOGIN_WINDOW_S) == (10, 15 * 60),
        ),
    ),
}


@pytest.mark.parametrize(
    ("name", "phrase", "is_so"), [(name, *fact) for name in FACTS for fact in FACTS[name]]
)
def test_a_fact_is_the_programs(name: str, phrase: str, is_so: bool) -> None:
    assert phrase in DOCUMENTS[name].flat
    assert is_so


def test_the_sections_of_the_node_data_that_the_source_names_exist() -> None:
    titles = {
        title.partition(" ")[0].rstrip(".")
        for title in re.findall(r"^##+ (.+)$", NODE_DATA.source, re.M)
    }
    named = set(re.findall(r"node-data\.md, (\d(?:\.\d)?)", SOURCE))
    assert len(named) >= 6 and named <= titles


def test_what_is_known_of_the_node_has_a_mark() -> None:
    body = NODE_DATA.source[NODE_DATA.source.index("## 1.") : NODE_DATA.source.index("## 7.")]
    rows = [
        row
        for row in re.findall(r"^\|.+\|$", body, re.M)
        if "---" not in row and not row.endswith("mark |")
    ]
    bare = [row for row in rows if len(re.findall(r"\[(?:certain|inferred|unknown)\]", row)) == 0]
    assert (
        len(rows) > 60
        and [row for row in bare if not re.match(r"\| (?:message|prefix) ", row)] == []
    )


def assembled(message: str) -> tbmon.Entry:
    """The one entry that tbmon makes of a message with a header."""
    [entry] = tbmon.Assembler(tbmon.Redactor(b"key")).feed(
        [(header(message, 1.0).encode(), None, 0)]
    )
    return entry


def test_tbmon_gives_each_wording_the_type_that_the_table_names() -> None:
    rows = table(part(NODE_DATA, "2.3 Wording"))
    said = {codes(row[0])[0]: codes(row[-1])[0] for row in rows}
    assert {message: assembled(message).type for message in said} == said
    assert set(said.values()) == set(tbmon.LOG_TYPES) - {"raw"}


def test_tbmon_makes_of_a_semaphore_line_what_the_table_says() -> None:
    rows = table(part(NODE_DATA, "2.4 Semaphore lines"))
    told = {codes(row[0])[0]: row[2] for row in rows if row[0].startswith("`Semaphore")}
    assert len(told) == 3
    for message, said in told.items():
        event = tbmon.slot_event(message)
        assert event is not None
        given = {
            name: event.fields[name]
            for name in ("current", "total")
            if event.fields[name] is not None
        }
        assert said == ", ".join(f"{name} {value}" for name, value in given.items())


def test_the_header_and_the_levels_are_those_that_tbmon_reads() -> None:
    line = codes(NODE_DATA.source.replace("    2026", "`2026").replace("services\n", "services`\n"))
    example = next(one for one in line if one.startswith("2026-01-31")).replace(
        "<40 hex digits>", "12" * 20
    )
    [entry] = tbmon.Assembler(tbmon.Redactor(b"key")).feed([(example.encode(), None, 0)])
    assert entry.head is not None and (entry.head.level, entry.head.version) == (
        "info",
        "1.120.0-beta.275",
    )
    rows = [row for row in table(part(NODE_DATA, "2.1 The header line")) if "levels" in row[0]]
    assert {name for row in rows for name in codes(row[1])} == set(tbmon.LEVELS) - {""}


def test_task_types_and_the_invoice_id_are_read_as_it_says() -> None:
    rows = table(part(NODE_DATA, "4.2 Task ids"))
    assert {codes(row[0])[0]: codes(row[1])[0] for row in rows} == tbmon.TASK_TYPES
    found = re.search(r"`(\d{22})` is block (\d+),\s+(\S+), and (\d)", NODE_DATA.source)
    assert found and (found[1][:-14], found[1][-1]) == (found[2], found[4])
    assert tbmon.utc(int(found[1][-14:-1])) == found[3]


def test_the_architecture_has_the_sections_of_the_source() -> None:
    rows = [row[:2] for row in table(part(ARCHITECTURE, "Sections"))]
    assert rows == [[f"{one.number} {one.name}", one.label] for one in sections(SOURCE)]


def test_the_threads_are_those_that_are_started() -> None:
    rows = {(codes(row[0]) or [row[0]])[0] for row in table(part(ARCHITECTURE, "Threads"))}
    started = re.findall(
        r'\("(\w+)", [a-z]|"(\w+)": [a-z]|workers\["(\w+)"\]', inspect.getsource(tbmon.run)
    )
    started += re.findall(r'Thread\([^\n]*name="(\w+)"()()', SOURCE)
    assert rows == {"main", *("".join(names) for names in started)}


def test_every_name_of_the_source_that_is_explained_exists() -> None:
    parts = ("The way of a log line", "The privacy path", "The API", "Threads")
    names = {
        name
        for title in parts
        for name in codes(part(ARCHITECTURE, title))
        if re.fullmatch(r"[\w.]+", name)
    }
    assert len(names) > 20
    assert {
        name
        for name in names
        if not is_of_source(name) and f'"{name}"' not in SOURCE and name != "stop"
    } == set()


def test_the_drawing_names_each_thread_and_is_whole() -> None:
    page = Page((ROOT / "docs" / "architecture.svg").read_text("utf-8"))
    words = {word.strip() for word in page.words}
    assert words >= {"ingest", "reader", "upkeep", "main", "federation", "gate", "store"}
    assert (page.within, page.loads) == ([], [])


# Coming from the original monitor


def test_each_setting_is_in_one_list_of_the_migration() -> None:
    text = part(MIGRATING, "Settings").partition("For the aggregator")[0]
    same, _, rest = text.partition("These have the same name, but act otherwise:")
    otherwise, _, rest = rest.partition("These are new")
    new, _, _ = rest.partition("These are gone:")
    first = {row[0] for row in table(otherwise)}
    lists = [names_in(same), first, names_in(new.partition("\n\n")[2])]
    assert sum(map(len, lists)) == len(set().union(*lists)) and set().union(*lists) == settings(
        tbmon.Config
    )
    assert not GONE & SETTINGS


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)*\b(?=[,.])", text))


def test_the_aggregators_settings_are_all_in_its_paragraph() -> None:
    text = part(MIGRATING, "Settings").partition("For the aggregator")[2]
    assert (
        settings(aggregator.Config)
        == names_in(
            text.replace(" and NATS_USER keep", ", NATS_USER, keep")
            .replace("is NATS_PASSWORD.", "is NATS_PASSWORD,")
            .replace(" and LOG_LEVEL are", ", LOG_LEVEL, are")
        )
        - GONE
    )


def test_the_routes_that_are_gone_are_the_programs() -> None:
    gone = {
        codes(row[0])[0] for row in table(part(MIGRATING, "Routes")) if row[1].startswith("410")
    }
    assert gone == set(map(curly, tbmon.GONE))


def test_the_originals_database_is_refused_and_left_byte_for_byte(
    program: Callable[..., Program],
) -> None:
    one = program()
    path = one.folder / "data" / "truebit-monitor.db"
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript("CREATE TABLE tasks (id INTEGER); INSERT INTO tasks VALUES (1);")
    db.close()
    before, one.env["DB_PATH"] = path.read_bytes(), str(path)
    one.env["LOG_DIR"] = str(one.folder)
    one.start()
    assert (one.process.wait(10), path.read_bytes() == before) == (2, True)
    assert "was left as it is: set DB_PATH to a new file" in one.log.read_text()
    assert [found.name for found in path.parent.glob("truebit-monitor.db*")] == [
        "truebit-monitor.db"
    ]


def test_messages_of_the_original_are_not_counted() -> None:
    data = {
        "chainId": "43114",
        "blockNumber": 1,
        "blockHash": "0x" + "a" * 64,
        "taskHash": "b" * 64,
        "taskType": "js",
    }
    message = {
        "version": "1.0",
        "type": "task_received",
        "nodeId": "node-3f1d8a52-6c07-4e9b-a1d4-0b7c92e6f585",
        "timestamp": "2026-01-31T12:05:00.000Z",
        "data": data,
    }
    received = aggregator.Received(
        "truebit.tasks.received", tbmon.encode(message), 1_769_861_100_000
    )
    assert aggregator.judge(received) == "its envelope is not in the schema"
    assert "aggregator drops messages of the original" in MIGRATING.flat


def test_statistics_with_other_fields_are_not_taken() -> None:
    head = {
        "version": "1.0",
        "type": "network_stats",
        "id": "0" * 32,
        "timestamp": "2026-01-31T12:05:00.000Z",
    }
    ours: dict[str, Any] = dict.fromkeys(tbmon.PUBLISHED)
    assert tbmon.read_publication(tbmon.encode({**head, "data": ours})) == ours
    assert (
        tbmon.read_publication(tbmon.encode({**head, "data": {**ours, "chainDistribution": {}}}))
        is None
    )
    assert "takes no statistics with fields that it does not know" in MIGRATING.flat


def test_the_calls_for_a_socket_proxy_are_those_that_tbmon_makes() -> None:
    text = SECURITY.source[SECURITY.source.index("The calls that a socket proxy") :]
    said = {name for name in codes(text) if name not in ("/containers/", "deploy/socket-proxy.cfg")}
    paths = {
        name if name in ("/_ping", "/version") else f"/containers/runner-node{name}"
        for name in said
    }
    assert all(tbmon.ENGINE_CALLS.fullmatch(path) for path in paths) and "`/containers/`" in text
    found = re.fullmatch(
        r"/\(\?:(\w+)\|(\w+)\|containers/.*/\(\?:([\w|]+)\)\)", tbmon.ENGINE_CALLS.pattern
    )
    assert found and said == {f"/{name}" for name in (found[1], found[2], *found[3].split("|"))}
    proxy = (ROOT / "deploy" / "socket-proxy.cfg").read_text()
    lists = re.findall(r'acl may_be_node query -m str "(.*)"', proxy)
    assert [one.replace("${CONTAINER_NAME}", "runner-node") for one in lists] == [
        urllib.parse.urlencode(query) for query in tbmon.candidate_queries("runner-node")
    ]


# How they are written


@pytest.mark.parametrize("name", MINE)
def test_the_text_is_plain(name: str) -> None:
    document = MINE[name]
    assert document.source.isascii() and "!" not in document.text.replace("![", "")
    loud = (
        r"(?i)\b(?:powerful|seamless\w*|blazing\w*|simply|easily|robust|cutting|leverag\w+|no "
        r"longer|previously)\b"
    )
    assert re.findall(loud, document.text) == []
    if name.endswith(".md"):
        assert [
            line for line in document.source.splitlines() if len(line) > 120 and line[0] != "|"
        ] == []


# The presentations: what they say


def slide(deck: str, name: str) -> str:
    source = DOCUMENTS[f"docs/{deck}.html"].source
    found = re.search(rf'<section class="[^"]+" id="{name}">\n(.*?)</section>', source, re.S)
    assert found, name
    return found[1]


def in_tags(tag: str, text: str) -> list[str]:
    found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", text, re.S)
    return [html.unescape(re.sub("<[^>]+>", "", one)) for one in found]


def test_both_presentations_have_the_same_style_and_script_and_load_nothing() -> None:
    both = [DOCUMENTS[f"docs/{deck}.html"].source for deck in DECKS]
    for tag in ("style", "script"):
        assert re.findall(rf"<{tag}>.*?</{tag}>", both[0], re.S) == re.findall(
            rf"<{tag}>.*?</{tag}>", both[1], re.S
        )
    for source in both:
        page = Page(source)
        assert (
            set(page.loads) <= {"data:,"}
            and "url(" not in source.replace("url(#", "")
            and "@import" not in source
        )
        assert page.within == [] and len(page.ids) == len(set(page.ids))


def test_the_verdicts_come_in_the_order_in_which_they_are_judged() -> None:
    chips = re.findall(r'<span class="chip \w+">(\w+)</span>', slide("overview", "verdict"))
    judges = (tbmon.judge_container, tbmon.judge_log, tbmon.judge_tasks)
    source = "".join(inspect.getsource(judge) for judge in judges)
    judged = list(dict.fromkeys(re.findall(r'Verdict\(\s*"(\w+)"', source)))
    assert chips == judged


def test_the_task_states_classes_and_paths_are_the_programs() -> None:
    states = set(
        re.findall(
            r">(received|executing|completed|failed|ended|lost)</text>", slide("overview", "tasks")
        )
    )
    assert states == set(tbmon.STATUSES)
    assert in_tags("dt", slide("overview", "who-may-ask")) == list(tbmon.NEEDS)
    operations = in_tags("th", slide("overview", "invoices"))[3:]
    assert operations == [codes(row[0])[0] for row in table(part(NODE_DATA, "5.2 Operations"))[:3]]


def test_the_example_is_a_message_that_the_builder_makes() -> None:
    shown = in_tags("pre", slide("federation-architecture", "bytes"))[0]
    assert tbmon.encode(json.loads(shown)) == made_example("task_completed")


def test_the_ranges_and_subjects_are_the_programs() -> None:
    lists = re.findall(r"<ul>.*?</ul>", slide("federation-architecture", "ranges"), re.S)
    columns = [in_tags("li", one) for one in lists]
    assert columns == [
        list(tbmon.TIME_RANGES),
        list(tbmon.STEPS_RANGES),
        list(tbmon.MEMORY_SCALE.ranges),
    ]
    rows = re.findall(r"<tr><th.*?</tr>", slide("federation-architecture", "messages"), re.S)
    told = {in_tags("code", row)[0]: "its id" in row for row in rows[1:]}
    assert told == {kind.subject: kind.named for kind in tbmon.MESSAGES.values()}


def test_the_snapshots_that_are_drawn_are_those_that_the_aggregator_makes(tmp_path: Path) -> None:
    drawing = slide("federation-architecture", "published")
    marks = {int(value): int(y) for y, value in re.findall(r'y="(\d+)">(\d+)</text>', drawing)}
    bottom, unit = marks[0] - 5, (marks[0] - marks[60]) / 60
    stairs = [
        int(x) for x in re.findall(r"H(\d+)V", re.findall(r'class="thin" d="([^"]+)"', drawing)[0])
    ]
    line = re.findall(r'class="flow out" d="M(\d+) (\d+)H(\d+)V(\d+)H', drawing)[0]
    first, low, second, high = map(int, line)
    store = aggregator.Store(config := aggregator.Config(db_path=str(tmp_path / "a.db")))
    publisher, shown = aggregator.Publisher(config, store), list[tuple[int, int]]()
    for x in range(30, 391):
        if new := stairs.count(x):
            store.put(tally=[(0, "task_completed.status", "completed", new)])
        made = publisher.snapshot(2 * tbmon.DAY_MS + (x - 30) * tbmon.DAY_MS // 90)
        if made and (not shown or made["figures"]["completedTasks"] != shown[-1][1]):
            shown.append((x, made["figures"]["completedTasks"]))
    store.close()
    assert shown == [(first, round((bottom - low) / unit)), (second, round((bottom - high) / unit))]


def test_the_moment_that_is_drawn_can_be() -> None:
    event, due = (tbmon.parse_time(f"2026-01-31T{time}Z") for time in ("12:02:17", "12:38:00"))
    assert event is not None and due is not None
    assert tbmon.due_after(event, "minimal", 0) <= due < tbmon.due_after(event, "minimal", 1)
    stamp = json.loads(tbmon.received_message(tbmon.Task("x"), tbmon.Words(due, "0" * 32)))[
        "timestamp"
    ]
    assert (
        "stamp 12:35" in slide("federation-architecture", "time")
        and stamp == "2026-01-31T12:35:00.000Z"
    )


def test_the_shipped_hub_lets_monitors_and_leaves_say_and_hear_what_the_slide_says() -> None:
    hub = (ROOT / "deploy" / "nats-leafhub.conf").read_text("utf-8")
    for user in ("monitor", "leaf"):
        words = hub[hub.index(f"user: {user}\n") :]
        publish, hear = (
            re.search(rf"{verb}: \[(.*?)\]", words, re.S) for verb in ("publish", "subscribe")
        )
        assert publish and set(re.findall(r'"(.+?)"', publish[1])) == SIX
        assert hear and re.findall(r'"(.+?)"', hear[1]) == [tbmon.STATS_SUBJECT]
    users = in_tags("th", slide("federation-architecture", "permissions"))[3:]
    assert users == [user for user in ("monitor", "leaf", "aggregator") if f"user: {user}\n" in hub]


def test_the_steps_of_the_gate_refuse_in_their_order() -> None:
    assert in_tags("strong", slide("federation-architecture", "gate").partition("<ol")[2]) == [
        "Known kind",
        "One form",
        "Known values",
        "Nothing suspicious",
        "Stored",
    ]
    good = made_example("task_received")
    reasons = [
        tbmon.refusal_of(*message)
        for message in (
            ("truebit.tasks.completed", good),
            ("truebit.tasks.received", good.replace(b":", b": ", 1)),
            ("truebit.tasks.received", good.replace(b"rust", b"wasm")),
            ("truebit.tasks.received", good),
        )
    ]
    assert [reason and re.sub(r"value of \w+", "value", reason) for reason in reasons] == [
        "its envelope is not in the schema",
        "it is not written in the one form that the schema has",
        "the value is not in the schema",
        None,
    ]


def test_what_is_believed_and_what_is_suspect_is_judged_so() -> None:
    lines = [
        one.replace("0x\N{HORIZONTAL ELLIPSIS}", "0x" + "12" * 20).replace(
            "3f1c9d2e-\N{HORIZONTAL ELLIPSIS}", "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"
        )
        for one in in_tags("pre", slide("overview", "forged"))
    ]
    entries = tbmon.Assembler(tbmon.Redactor(b"key")).feed(
        [(line.encode(), None, 0) for line in lines]
    )
    trust = tbmon.Trust(
        (entries[0].head.suffix, entries[0].head.version) if entries[0].head else None
    )
    assert [trust.judge(entry) for entry in entries] == [True, False]
    assert abs(entries[1].second - entries[0].second) == 3600 > tbmon.BELIEF_MS // 1000


def test_doctor_says_what_the_slide_shows(engine: None, tmp_path: Path) -> None:
    env = {
        "PATH": "/usr/bin:/bin",
        "CONTAINER_NAME": "tbmon-none",
        "DB_PATH": str(tmp_path / "t.db"),
        "PORT": "1",
    }
    done = subprocess.run(
        (sys.executable, ROOT / "tbmon.py", "doctor"), env=env, capture_output=True, text=True
    )
    shown = in_tags("pre", slide("overview", "trouble"))[0].splitlines()[1:]
    assert done.stdout.replace("tbmon-none", "runner-node").splitlines()[: len(shown)] == shown
    assert done.returncode == 1


# The presentations in a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


class Deck:
    """A presentation in a window, with what the browser asked for and complained of."""

    def __init__(
        self, browser: Any, name: str, size: tuple[int, int] = (1280, 720), **options: Any
    ) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, **options
        )
        self.page = self.context.new_page()
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.url = (ROOT / "docs" / f"{name}.html").as_uri()
        self.page.goto(self.url)
        self.names = re.findall(
            r'<section class="[^"]+" id="([\w-]+)">', DOCUMENTS[f"docs/{name}.html"].source
        )

    def shown(self) -> list[str]:
        visible = (
            "[...document.querySelectorAll('.slide')].filter((one) => "
            "one.checkVisibility()).map((one) => one.id)"
        )
        return list(self.page.evaluate(visible))

    def reached(self, name: str) -> list[str]:
        """What is shown once this slide is: the browser tells of a new address a moment after
        the click.
        """
        self.page.locator(f"#{name}").wait_for()
        return self.shown()

    def press(self, key: str) -> str:
        self.page.keyboard.press(key)
        [name] = self.shown()
        return name

    def walk(self) -> Iterator[str]:
        """Every slide in turn, by key."""
        for name in self.names:
            assert self.shown() == [name]
            yield name
            self.page.keyboard.press("ArrowRight")


@pytest.fixture(params=DECKS)
def deck(request: pytest.FixtureRequest, browser: Any) -> Iterator[Callable[..., Deck]]:
    """Opens one presentation after the other, in windows of whatever size."""
    made: list[Deck] = []

    def open_deck(size: tuple[int, int] = (1280, 720), **options: Any) -> Deck:
        made.append(Deck(browser, request.param, size, **options))
        return made[-1]

    yield open_deck
    for one in made:
        one.context.close()


def test_keys_reach_all_slides_both_ways(deck: Callable[..., Deck]) -> None:
    one = deck()
    assert 10 <= len(one.names) <= 14
    assert list(one.walk()) == one.names
    assert one.press("ArrowRight") == one.names[-1]
    assert [one.press("ArrowLeft") for _ in one.names[1:]] == one.names[-2::-1]
    ways = [
        ("End", -1),
        ("Home", 0),
        (" ", 1),
        ("PageDown", 2),
        ("ArrowDown", 3),
        ("ArrowUp", 2),
        ("PageUp", 1),
    ]
    assert [one.press(key) for key, _ in ways] == [one.names[at] for _, at in ways]
    assert one.press("Shift+ ") == one.names[0]
    assert (one.complaints, one.asked) == ([], [one.url])


def test_clicks_swipes_links_and_buttons_turn_the_page(deck: Callable[..., Deck]) -> None:
    one = deck(has_touch=True)
    one.page.mouse.click(900, 20)
    assert one.shown() == one.names[1:2]
    one.page.mouse.click(20, 20)
    assert one.shown() == one.names[:1]
    wire = one.context.new_cdp_session(one.page)
    for begin, end, at in ((900, 500, 1), (300, 800, 0)):
        for kind, points in (("touchStart", [begin]), ("touchMove", [end]), ("touchEnd", [])):
            wire.send(
                "Input.dispatchTouchEvent",
                {"type": kind, "touchPoints": [{"x": x, "y": 300} for x in points]},
            )
        assert one.shown() == [one.names[at]]
    one.page.get_by_role("button", name="Next slide").click()
    assert one.shown() == one.names[1:2]
    one.page.locator(".bar a").nth(4).click()
    assert one.reached(one.names[4]) == one.names[4:5] and one.page.url.endswith(f"#{one.names[4]}")
    assert one.page.locator(".count").inner_text() == f"5 / {len(one.names)}"
    one.page.goto(f"{one.url}#{one.names[2]}")
    assert one.reached(one.names[2]) == one.names[2:3]


def test_a_screen_reader_is_led_to_each_slide(deck: Callable[..., Deck]) -> None:
    one = deck()
    assert one.page.evaluate("document.documentElement.lang") == "en"
    assert (
        one.page.locator("h1").count() == 1
        and one.page.get_by_role("navigation", name="Slides").count() == 1
    )
    one.page.keyboard.press("ArrowRight")
    told = """() => [document.activeElement.closest('.slide').id, document.activeElement.tagName,
                     ...[...document.querySelectorAll('.bar a[aria-current]')].map((one) => one.ariaLabel)]"""
    for at in range(1, len(one.names)):
        name, tag, *marks = one.page.evaluate(told)
        assert (name, tag, [mark.partition(":")[0] for mark in marks]) == (
            one.names[at],
            "H2",
            [str(at + 1)],
        )
        one.page.keyboard.press("ArrowRight")
    silent = "(all) => all.filter((one) => !one.ariaLabel || one.role !== 'img').length"
    assert one.page.locator("figure svg").evaluate_all(silent) == 0


MEASURE = """() => {  // what is wrong with the words of the slide that is shown
  const slide = document.querySelector('.slide.on'), wrong = [], drawn = [];
  const foot = document.querySelector('.bar').getBoundingClientRect().top + 1;
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (part) => part <= 10 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b) + 0.05;
  const contrast = (one, two) => Math.max(light(one) / light(two), light(two) / light(one));
  const shape = (box) => document.elementsFromPoint(box.x + box.width / 2, box.y + box.height / 2)
    .find((one) => one.matches('rect, circle') && getComputedStyle(one).fill !== 'none');
  const ground = (element, box) => {
    const under = element.closest('svg') && shape(box);
    if (under) return rgb(getComputedStyle(under).fill);
    const colour = rgb(getComputedStyle(element).backgroundColor);
    return colour[3] === 0 ? ground(element.parentElement, box) : colour;
  };
  const look = (words, element, box) => {
    const style = getComputedStyle(element), drawing = element.closest('figure svg');
    const size = parseFloat(style.fontSize) * (drawing ? element.getScreenCTM().a : 1);
    const seen = contrast(rgb(drawing ? style.fill : style.color), ground(element, box));
    const frame = drawing ? drawing.getBoundingClientRect() : { left: 0, right: innerWidth, top: 0, bottom: foot };
    if (size < LEAST) wrong.push(`${size} px: ${words}`);
    if (seen < 4.5) wrong.push(`contrast ${seen}: ${words}`);
    if (box.left < frame.left - 1 || box.right > frame.right + 1) wrong.push(`outside: ${words}`);
    if (box.top < frame.top - 1 || box.bottom > Math.min(foot, frame.bottom + 1)) wrong.push(`outside: ${words}`);
    for (const [name, other] of drawing ? drawn : [])
      if (box.left < other.right && other.left < box.right && box.top + 3 < other.bottom && other.top + 3 < box.bottom)
        wrong.push(`${words} over ${name}`);
    if (drawing) drawn.push([words, box]);
  };
  const walker = document.createTreeWalker(slide, NodeFilter.SHOW_TEXT), range = document.createRange();
  while (walker.nextNode()) {
    const words = walker.currentNode.data.trim(), element = walker.currentNode.parentElement;
    const unseen = element.closest('caption, thead');
    if (!words || (unseen && getComputedStyle(unseen).clipPath !== 'none')) continue;
    range.selectNodeContents(walker.currentNode);
    look(words, element, range.getBoundingClientRect());
  }
  const root = document.documentElement;
  if (root.scrollWidth > innerWidth || root.scrollHeight > innerHeight)
    wrong.push(`${root.scrollWidth} x ${root.scrollHeight}`);
  return wrong;
}"""


@pytest.mark.parametrize(
    ("size", "scheme", "least"), [((1280, 720), "light", 12), ((360, 740), "dark", 10.5)]
)
def test_every_word_fits_is_large_enough_and_stands_out(
    deck: Callable[..., Deck], size: tuple[int, int], scheme: str, least: float
) -> None:
    one = deck(size, color_scheme=scheme)
    found = {name: one.page.evaluate(MEASURE.replace("LEAST", str(least))) for name in one.walk()}
    assert {name: wrong for name, wrong in found.items() if wrong} == {}


def test_the_measure_sees_what_is_wrong(browser: Any) -> None:
    one = Deck(browser, "overview")
    change = "(element, style) => { element.style.cssText = style }"
    one.page.locator(".lead").evaluate(change, "color: #ccc; font-size: 9px !important")
    one.page.locator("h1").evaluate(change, "width: 300vw; font-size: 99vh")
    wrong = " ".join(one.page.evaluate(MEASURE.replace("LEAST", "12")))
    one.context.close()
    assert [
        mark for mark in ("contrast 1.", "outside: ", "9 px: ", " x ") if mark not in wrong
    ] == []


def test_print_gives_a_page_a_slide_with_all_its_words(deck: Callable[..., Deck]) -> None:
    one = deck(color_scheme="dark")
    paper = one.page.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type\s*/Page\b", paper)) == len(one.names)
    one.page.emulate_media(media="print")
    one.page.set_viewport_size({"width": 1122, "height": 631})
    spills = (
        "(all) => all.filter((s) => s.scrollHeight > s.clientHeight || s.scrollWidth > "
        "s.clientWidth)"
    )
    assert one.page.locator(".slide").evaluate_all(f"{spills}.map((s) => s.id)") == []
    assert one.shown() == one.names and not one.page.locator(".bar").is_visible()
    assert (
        one.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )


def test_without_javascript_it_is_one_long_page(deck: Callable[..., Deck]) -> None:
    one = deck((360, 740), java_script_enabled=False)
    assert not one.page.get_by_text("Arrow keys, a click or a swipe").is_visible()
    boxes = [one.page.locator(f"#{name}").bounding_box() for name in one.names]
    assert all(box and box["height"] > 100 and box["width"] <= 360 for box in boxes)
    assert boxes == sorted(boxes, key=lambda box: box["y"])
