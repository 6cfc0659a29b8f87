"""What docs/FEDERATION.md says is so: its bytes, its names, its lines to copy, and the errors it
explains.
"""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import json
import re
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import ROOT
from support.asking import PASSWORD, elsewhere
from support.documents import codes, is_of_source, made_example, run, table
from support.hubs import free_port
from support.machine import missing, wait_for
from support.nats_servers import nats_server
from support.node_words import IDS, header, received
from support.programs import Program

import tbmon

DOC = (ROOT / "docs" / "FEDERATION.md").read_text("utf-8")
SOURCE = (ROOT / "tbmon.py").read_text("utf-8")
PROSE = re.sub(r"^```json\n.+\n```$|^    curl .+$", "", DOC, flags=re.M)
CURL_LINES = re.findall(r"^    (curl .+)$", DOC, re.M)
EXAMPLES = re.findall(r"^`(truebit\.\S+)`[^`\n](?:.+\n)+\n```json\n(.+)\n```$", DOC, re.M)
OTHER_HUB = "nats://192.168.1.20:4222"  # in the line that names another hub; nobody's in a test


def section(title: str) -> str:
    """What stands under a heading, up to the next."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", PROSE, re.M | re.S)
    assert found, title
    return found[1]


def path_of(line: str) -> str:
    return line.partition("localhost:8090")[2]


TROUBLES = table(section("Troubleshooting"))
ERRORS = {text for line in TROUBLES if not line[0].isdigit() for text in codes(line[0])}
REFUSALS = [(int(line[0]), codes(line[1])[0]) for line in TROUBLES if line[0].isdigit()]
VOCABULARY = {
    *(word for shape in tbmon.SHAPES.values() for word in re.split(r"[\s,|?]+", shape)),
    *(word for shape in tbmon.SHAPES.values() for word in re.split(r"[,|?]+", shape)),
    *(
        word
        for kind in tbmon.MESSAGES.values()
        for word in (kind.subject, *kind.fields, *kind.choices)
    ),
    *tbmon.MESSAGES,
    *tbmon.ENVELOPE,
    "1.0",
    *tbmon.TIME_RANGES,
    *tbmon.STEPS_RANGES,
    *tbmon.MEMORY_SCALE.ranges,
    *tbmon.SHARED_LANGUAGES,
    "unknown",
    "true",
    "false",
    "null",
    tbmon.STATS_SUBJECT,
    "online",
    "offline",
    tbmon.ANONYMOUS,
    "node-",
    "nats://",
    "tls://",
    "ws://",
    "wss://",
    "tbmon",
    tbmon.Config.federation_nats_url,
    "federation.id",
    "federation.keys",
    "make test",
    '-H "Authorization: Bearer $API_KEY"',
    *(path.rpartition("/")[2] for path in tbmon.openapi()["paths"]),
    *ERRORS,
    *(text for _, text in REFUSALS),
}


# Names and figures


@pytest.mark.parametrize("kind", tbmon.MESSAGES)
def test_the_example_of_each_kind_has_the_bytes_that_its_builder_makes(kind: str) -> None:
    subject = tbmon.MESSAGES[kind].subject
    assert [payload.encode() for name, payload in EXAMPLES if name == subject] == [
        made_example(kind)
    ]
    assert tbmon.refusal_of(subject, made_example(kind)) is None
    assert DOC.count("```json") == len(EXAMPLES) == len(tbmon.MESSAGES)


def test_every_field_and_every_value_that_a_message_can_have_is_listed() -> None:
    listed = {
        name: set(codes(line[1]))
        for line in table(section("What is shared"))
        for name in codes(line[0])
    }
    assert set(listed) >= {*tbmon.ENVELOPE} - {"type", "data"}
    for kind in tbmon.MESSAGES.values():
        ranges = {name: (*scale.ranges, "unknown") for name, scale in kind.choices.items()}
        for name, allowed in {**kind.fields, **ranges}.items():
            said = {
                json.dumps(value).strip('"')
                for value in (allowed if isinstance(allowed, tuple) else ())
            }
            assert said <= listed[name], name
            assert name == "status" or not isinstance(allowed, tuple) or said == listed[name], name


def test_every_line_of_the_guarantees_leads_to_the_source_and_to_a_test() -> None:
    lines = table(section("How it is enforced"))
    assert len(lines) >= 20 and all(len(line) == 3 for line in lines)
    wrong = [name for line in lines for name in codes(line[1]) if not is_of_source(name)]
    wrong += [name for line in lines for name in codes(line[2]) if not (ROOT / name).is_file()]
    assert wrong == []
    assert [
        line[0]
        for line in lines
        if not (codes(line[1]) and re.search(r"`tests/test_\w+\.py`", line[2]))
    ] == []


def test_every_name_in_code_is_one_that_the_program_has() -> None:
    names = {
        name
        for name in codes(PROSE)
        if name not in VOCABULARY and not (ROOT / name.partition(" ")[0]).is_file()
    }
    assert {
        name for name in names if not is_of_source(name) and not name.startswith("tests/")
    } == set()
    assert is_of_source("Outbox.offer") and not any(
        map(is_of_source, ("Outbox.offers", "no_such", "Kind.colour"))
    )


def test_every_name_in_capitals_is_a_setting_and_every_setting_of_the_federation_is_named() -> None:
    known = {item.name.upper() for item in fields(tbmon.Config)}
    secret = {
        f"{item.name.upper()}_FILE" for item in fields(tbmon.Config) if item.metadata.get("secret")
    }
    named = {
        name for name in re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", PROSE) if not hasattr(tbmon, name)
    }
    assert named <= known | secret
    assert named >= {name for name in known if name.startswith("FEDERATION_")}


def test_every_path_of_the_federation_is_asked_by_a_line() -> None:
    paths: dict[str, Any] = tbmon.openapi()["paths"]
    known = {(method, path) for path, methods in paths.items() for method in methods}
    asked = {
        ((re.findall(r"-X (\w+)", line) or ["GET"])[0].lower(), path_of(line))
        for line in CURL_LINES
    }
    assert asked <= known and {one for one in known - asked if "/federation/" in one[1]} == set()


def test_delays_and_limits_are_those_of_the_source() -> None:
    levels = {codes(line[0])[0]: line[1] for line in table(section("When"))}
    units = {"minutes": tbmon.MINUTE_MS, "hours": tbmon.HOUR_MS}
    said = {
        name: int(text.split()[0]) * units[text.split()[1]]
        for name, text in levels.items()
        if text != "-"
    }
    assert said == tbmon.DELAY_MS and levels["maximum"] == "-"
    assert f"`{tbmon.Sharing().level}` (default)" in section("When")
    days = tbmon.OUTBOX_MS // tbmon.DAY_MS, tbmon.SENT_MS // tbmon.DAY_MS
    figures = [
        f"waited {days[0]} days",
        f"beyond {tbmon.OUTBOX_ROWS:,}",
        f"kept for {days[1]} days",
    ]
    figures += [
        f"about every {tbmon.Pace().beat_s} seconds",
        f"to {tbmon.Pace().retry_s[1] // 60} minutes",
    ]
    assert [figure for figure in figures if figure not in " ".join(PROSE.split())] == []
    assert (tbmon.WINDOW_MS, tbmon.Pace().proof_s) == (
        5 * tbmon.MINUTE_MS,
        10,
    )  # which the text gives as words


def test_the_text_is_plain_and_its_references_lead_somewhere() -> None:
    headings = set(re.findall(r"^#+ (.+)$", DOC, re.M))
    assert set(re.findall(r'(?:see|Section) "([^"]+)"', PROSE)) <= headings
    assert DOC.isascii() and "!" not in PROSE
    assert [line for line in PROSE.splitlines() if len(line) > 120 and line[0] != "|"] == []


# The lines to copy, and what goes wrong


class Hubs(NamedTuple):
    """Ports of real servers, one open to all and some that refuse in their ways, and the
    certificate of one.
    """

    open: int
    locked: int
    strict: int
    tls: int
    certificate: Path


def listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def running_hub(folder: Path, settings: str = "") -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    port = free_port()
    file = folder / f"hub{port}.conf"
    file.write_text(f"listen: 127.0.0.1:{port}\n{settings}\n")
    process = subprocess.Popen((nats_server(), "-c", str(file)), stderr=subprocess.DEVNULL)
    try:
        wait_for(lambda: listens(port))
        yield port, process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def hubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hubs]:
    folder = tmp_path_factory.mktemp("hubs")
    if shutil.which("openssl") is None:
        missing("openssl")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        (
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-keyout",
            key,
            "-out",
            certificate,
            "-days",
            "2",
            "-subj",
            "/CN=hub",
            "-addext",
            "subjectAltName=DNS:localhost",
        ),
        check=True,
        capture_output=True,
    )
    user = 'user: one, password: "of this test"'
    may = 'permissions: { publish: ["truebit.nodes.*"] }'
    settings = (
        "",
        f"authorization {{ {user} }}",
        f"authorization {{ users: [{{ {user}, {may} }}] }}\nno_auth_user: one",
        f'tls {{ cert_file: "{certificate}", key_file: "{key}" }}',
    )
    with contextlib.ExitStack() as stack:
        free, locked, strict, tls = (
            stack.enter_context(running_hub(folder, text))[0] for text in settings
        )
        yield Hubs(free, locked, strict, tls, certificate)


def over_a_folder(folder: Path, **settings: str) -> Program:
    """A tbmon that follows files, in a folder where the document's lines find its password."""
    (folder / "logs").mkdir(parents=True)
    (folder / "logs" / "a.log").write_text(header("Heartbeat sent") + "\n")
    return Program(folder, LOG_DIR=str(folder / "logs"), API_RATE_LIMIT="0", **settings)


@pytest.fixture(scope="module")
def member(hubs: Hubs, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that takes part at a hub with an authority of its own."""
    folder = tmp_path_factory.mktemp("member") / "program"
    url = f"tls://localhost:{hubs.tls}"
    program = over_a_folder(
        folder, FEDERATION_NATS_URL=url, FEDERATION_TLS_CA=str(hubs.certificate)
    ).start()
    send(program, "POST", "/api/federation/enable", None, PASSWORD)
    wait_for(lambda: status(program)["connected"])
    yield program
    program.end()


def send(
    program: Program, method: str, path: str, body: object = None, password: str = ""
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=10, source_address=elsewhere()
    )
    headers = {
        "Content-Type": "application/json",
        **({"X-Task-Data-Password": password} if password else {}),
    }
    connection.request(method, path, json.dumps(body), headers)
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


def choose(program: Program, *servers: str, password: str = PASSWORD) -> tuple[int, Any]:
    return send(program, "PUT", "/api/federation/settings", {"natsServers": servers}, password)


def status(program: Program) -> Any:
    return program.get("/api/federation/status")[1]


def answer_to(site: Program, line: str, hub: str = "") -> Any:
    done = run(site, line.replace(OTHER_HUB, hub))
    assert done.returncode == 0, (line, done.stdout, done.stderr)
    return json.loads(done.stdout)


def test_every_line_works_in_the_order_in_which_it_stands(hubs: Hubs, tmp_path: Path) -> None:
    hub, other = (f"nats://{name}:{hubs.open}" for name in ("127.0.0.1", "localhost"))
    site = over_a_folder(
        tmp_path / "site", FEDERATION_NATS_URL=hub, DB_PATH="data/truebit-monitor.db"
    )
    del site.env["TASK_DATA_PASSWORD"]
    site.start()
    keys = [site.folder / "data" / f"federation.{name}" for name in ("id", "keys")]
    steps: dict[str, Callable[[], object]] = {  # what is awaited after a line, before the next
        "/enable": lambda: share_a_task(site, keys),
        OTHER_HUB: lambda: wait_for(
            lambda: status(site)["connected"] and status(site)["stats"]["reconnections"] == 2
        ),
    }
    answers: dict[str, list[Any]] = {}
    try:
        for line in CURL_LINES:
            path = path_of(line)
            answers.setdefault(path.rpartition("/")[2], []).append(answer_to(site, line, other))
            for mark, step in steps.items():
                if mark in line:
                    step()
            if path.endswith("/disable"):
                assert (status(site)["status"], status(site)["stats"]["queued"]) == ("off", 0)
                assert [key.exists() for key in keys] == [True, True] and json.loads(
                    keys[1].read_bytes()
                ) == {}
        assert [key.exists() for key in keys] == [False, False]
        left = {row["subject"] for row in site.get("/api/federation/sent")[1]["messages"]}
    finally:
        site.end()
    before, after = answers["preview"]
    assert (before["queued"], len(after["queued"]), len(before["examples"])) == ([], 1, 4)
    assert [json.loads(row["payload"])["type"] for row in after["queued"]] == ["task_received"]
    assert [(one["shareStats"], one["natsServers"]) for one in answers["settings"]] == [
        (False, [hub])
    ] * 2 + [(False, [other])]
    assert [one["connected"] for one in answers["status"]] == [True]
    assert answers["network-stats"][0]["status"] == "awaiting_data"
    assert {row["subject"] for row in answers["sent"][0]["messages"]} == {
        "truebit.nodes.joined",
        "truebit.heartbeat",
    }
    assert left == {"truebit.nodes.joined", "truebit.heartbeat", "truebit.nodes.left"}
    assert [row["event"] for row in answers["audit-log"][0]["entries"]].count("settings") >= 3


def share_a_task(site: Program, keys: list[Path]) -> None:
    """Wait until the hub has heard of this monitor, and a message about a task waits."""
    wait_for(lambda: status(site)["stats"]["messagesSent"] >= 2)
    with Path(site.env["LOG_DIR"], "a.log").open("a") as log:
        log.write(
            header(received(IDS[0]), time.time() + 1) + "\n"
        )  # a stamp has no parts of a second
    wait_for(lambda: status(site)["stats"]["queued"])
    assert [key.stat().st_mode & 0o777 for key in keys] == [0o600, 0o600]


def test_with_an_api_key_no_line_is_answered_without_it_and_a_missing_ca_file_is_named(
    tmp_path: Path,
) -> None:
    site = over_a_folder(
        tmp_path / "site",
        API_KEY="of this test",
        FEDERATION_NATS_URL="tls://127.0.0.1:1",
        FEDERATION_TLS_CA="/nowhere/ca.pem",
        DB_PATH="data/truebit-monitor.db",
    )
    site.start()
    try:
        (site.folder / "data" / "task-data.password").write_text("open sesame")
        assert [line for line in CURL_LINES if run(site, line).returncode == 0] == []
        header_of = next(name for name in codes(PROSE) if name.startswith("-H"))
        opts_in = next(line for line in CURL_LINES if line.endswith("/enable"))
        answer_to(site, opts_in.replace("curl", f"curl {header_of}"))
        ask = f"curl {header_of} http://localhost:8090/api/federation/status"
        assert wait_for(lambda: says(answer_to(site, ask), "No such file or directory"))
    finally:
        site.end()


def says(found: Any, text: str) -> bool:
    return text in (found["lastError"] or "")


PROVOKED: dict[
    str, Callable[[Hubs], str]
] = {  # what tbmon says of a server, and the server of which it says so
    "Connect call failed": lambda hubs: "nats://127.0.0.1:1",
    "Authorization Violation": lambda hubs: f"nats://127.0.0.1:{hubs.locked}",
    "permissions violation": lambda hubs: f"nats://127.0.0.1:{hubs.strict}",
    "the hub offers no TLS": lambda hubs: f"tls://127.0.0.1:{hubs.open}",
    "certificate verify failed": lambda hubs: f"tls://127.0.0.1:{hubs.tls}",
    "Bad status line": lambda hubs: f"ws://127.0.0.1:{hubs.open}",
}


@pytest.mark.parametrize("text", PROVOKED)
def test_the_last_error_has_the_words_that_are_explained(
    member: Program, hubs: Hubs, text: str
) -> None:
    assert text in ERRORS
    assert choose(member, PROVOKED[text](hubs))[0] == 200
    wait_for(lambda: says(status(member), text))


def test_a_hub_that_ends_the_connection_is_said_to_have_done_so(
    member: Program, tmp_path: Path
) -> None:
    with running_hub(tmp_path) as (port, process):
        choose(member, f"nats://127.0.0.1:{port}")
        wait_for(lambda: status(member)["connected"])
        process.kill()
        texts = ("unexpected EOF", "the hub closed the connection")
        assert ERRORS.issuperset(texts)
        wait_for(lambda: any(says(status(member), text) for text in texts))


def test_every_other_explained_text_is_in_the_source_or_the_system() -> None:
    libc = ctypes.CDLL(None)
    libc.gai_strerror.restype = ctypes.c_char_p
    system = {
        libc.gai_strerror(number).decode() for number in (socket.EAI_NONAME, socket.EAI_AGAIN)
    }
    shown_above = {*PROVOKED, "unexpected EOF", "No such file or directory"}
    assert {text for text in ERRORS if text not in SOURCE} <= {*system, *shown_above}


def test_the_refusals_of_the_api_are_those_explained(member: Program, tmp_path: Path) -> None:
    answers = [
        choose(member, "nats://8.8.8.8:4222"),
        choose(member, "nats://127.0.0.1:9", password=""),
    ]
    demo = Program(tmp_path / "demo").start("demo")
    try:
        answers.append(send(demo, "POST", "/api/federation/enable", None, PASSWORD))
    finally:
        demo.end()
    assert [number for number, _ in REFUSALS] == [number for number, _ in answers]
    assert [
        text
        for text, (_, body) in zip(REFUSALS, answers, strict=True)
        if text[1] not in body["error"]
    ] == []


def test_the_authority_of_the_environment_counts_for_the_hub_of_the_environment_only(
    member: Program, hubs: Hubs
) -> None:
    choose(member)
    wait_for(lambda: status(member)["connected"])
    choose(
        member, f"tls://localhost:{hubs.tls}/"
    )  # the same, but not the one that the environment names
    wait_for(
        lambda: status(member)["connected"] or says(status(member), "certificate verify failed")
    )
    assert not status(member)["connected"]


def test_a_hub_cannot_send_tbmon_on_to_another_place(member: Program) -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as hub,
        socket.create_server(("127.0.0.1", 0)) as place,
    ):
        place.setblocking(False)
        there = f"http://127.0.0.1:{place.getsockname()[1]}/"
        threading.Thread(target=send_on, args=(hub, there), daemon=True).start()
        before = status(member)["stats"]["errors"]
        choose(member, f"ws://127.0.0.1:{hub.getsockname()[1]}")
        went: list[socket.socket] = []

        def came() -> bool:
            with contextlib.suppress(BlockingIOError):
                went.append(place.accept()[0])
            return bool(went) or status(member)["stats"]["errors"] > before

        wait_for(came)
        assert went == []
        choose(member)


def send_on(hub: socket.socket, there: str) -> None:
    with contextlib.suppress(OSError):
        while True:
            with hub.accept()[0] as client:
                client.recv(9999)
                client.sendall(
                    f"HTTP/1.1 302 Found\r\nLocation: {there}\r\nContent-Length: 0\r\n\r\n".encode()
                )
