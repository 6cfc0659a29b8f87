"""The federation towards real and hostile hubs: what is sent and when, what never is, and whom it
keeps waiting.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import json
import re
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from support import ROOT
from support.asking import KEY, PASSWORD
from support.engine import Node, docker
from support.hubs import (
    BEGIN,
    INFO,
    LOOPBACK,
    PACE,
    SECRET,
    STATS,
    SUBJECTS,
    Hostile,
    Hub,
    Listening,
    Station,
    Stepped,
    Tap,
    commands,
    forms,
    freeze,
    leaks,
    papers,
    published,
    thaw,
    unmasked,
)
from support.machine import wait_for
from support.node_words import HASH, HUGE, IDS, REQUESTER, WALLET, header, invoice, output, received
from support.programs import Program, end, write
from support.sharing import (
    AWAY,
    FIGURES,
    HEAD,
    HUB_USER,
    at_hub,
    change,
    connected,
    publication,
    see,
    soon,
    tell,
)

import tbmon

Make = Callable[..., Any]

IN_HUB = {"federation_nats_user": "monitor", "federation_nats_password": SECRET}
NAMES = [f"{number:08x}-1111-4000-8000-00000000abcd" for number in range(40)]
SETTINGS, STATUS = "/api/federation/settings", "/api/federation/status"


def work(program: Program, *numbers: int) -> None:
    """Let the node do some tasks."""
    for name in (IDS[number] for number in numbers):
        ended = (
            output(False, executionId=name),
            f"Execution {name} completed",
            invoice(name, "pay", f"7{name[:8]}"),
        )
        write(program, *(header(line, soon()) for line in (received(name, "rs"), *ended)))


def queued(program: Program) -> list[dict[str, Any]]:
    return list(see(program, "preview")["queued"])


def kinds(rows: list[dict[str, Any]]) -> list[str]:
    return sorted(json.loads(row["payload"])["type"] for row in rows)


ALL_OF_ONE = ["invoice_created", "task_completed", "task_received"]


# Off is off

WATCHED = """
def is_name(host):
    try:
        tbmon.ipaddress.ip_address(host or "::")
    except ValueError:
        return True

def audit(event, args):
    if event == "import":
        told = args[0].split(".")[0] in ("nats", "aiohttp", "asyncio")
    elif event == "socket.connect":
        told = not isinstance(args[1], (str, bytes))
    else:
        told = event in ("socket.sendto", "subprocess.Popen", "os.system")
        told = told or (event in ("socket.getaddrinfo", "socket.gethostbyname") and is_name(args[0]))
    if told:
        with open("outward", "a") as file:
            file.write(event + " " + repr(args) + "\\n")
sys.addaudithook(audit)
"""


def test_nothing_is_connected_to_resolved_or_imported_while_off_and_again_after_opting_out(
    hub: Make, stepped: Make
) -> None:
    made = hub()
    program = stepped(WATCHED, **at_hub(made, FEDERATION_NATS_URL=f"nats://localhost:{made.port}"))
    outward = program.folder / "outward"
    assert outward_of(program, 0, 1) == []

    change(program, "enable")
    connected(program)
    reached = outward.read_text()
    assert all(
        word in reached for word in ("socket.connect", "socket.getaddrinfo", "import ('nats'")
    )
    change(program, "disable")
    wait_for(lambda: made.monitors() == [])
    made.kill()
    outward.unlink()
    live_a_while(program, 2)
    assert not outward.exists()

    change(program, "enable")
    wait_for(
        lambda: outward.exists() and "socket.connect" in outward.read_text()
    )  # it tries to reach what is away
    change(program, "disable")
    outward.unlink()
    live_a_while(program, 3)
    assert not outward.exists()
    end(program)
    assert outward_of(program, 4, 5) == []
    end(program)


LOADED = """
import asyncio, sys, tbmon
make = tbmon.make_hub(print, False)
make(False)
before = "aiohttp" in sys.modules
async def main():
    await make(True)._transport._client.close()
asyncio.run(main())
print(before, "aiohttp" in sys.modules)
"""


def test_a_hub_without_websockets_does_not_load_what_they_need() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False True\n"


def outward_of(program: Stepped, *numbers: int) -> list[str]:
    """Start, do all that a monitor does with two tasks, and tell what was heard of connections and
    imports.
    """
    program.start()
    for number in numbers:
        live_a_while(program, number)
    found = program.folder / "outward"
    return found.read_text().splitlines() if found.exists() else []


def live_a_while(program: Stepped, number: int) -> None:
    """A task, an event database, a stream and an answer to every path."""
    work(program, number)
    record = json.dumps({"records": [{"type": "computed_outcome", "executionId": IDS[number]}]})
    (program.folder / "logs" / "x-eventDB.json").write_text(record)
    wait_for(lambda: program.get(f"/api/tasks/{IDS[number]}")[0] == 200)
    for name in (
        "settings",
        "status",
        "network-stats",
        "stats",
        "peers",
        "messages",
        "preview",
        "sent",
        "privacy",
    ):
        see(program, name)
    change(program, "settings", {"privacyLevel": "minimal", "shareTasks": True})
    assert program.get("/metrics")[0] == 200
    program.ahead(1)
    wait_for(lambda: program.get("/api/status")[1]["verdict"])


# Opting in, and out


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """A hub that tests share, which leave no connection behind."""
    made = Hub(tmp_path_factory.mktemp("real"), ws=True).start()
    yield made
    made.close()


def opt_in_by_post(program: Program) -> None:
    assert change(program, "enable")["success"]


def opt_in_by_put(program: Program) -> None:
    assert change(program, "settings", {"enabled": True})["enabled"]


@pytest.mark.parametrize("opt_in", [opt_in_by_post, opt_in_by_put])
def test_opting_in_connects_greets_once_and_lasts_over_a_restart(
    real: Hub, stepped: Make, opt_in: Callable[[Program], None]
) -> None:
    peer, program = real.peer(), stepped(**at_hub(real)).start()
    assert (see(program, "status")["status"], see(program, "settings")["nodeId"]) == ("off", None)
    opt_in(program)
    wait_for(lambda: len(peer.of()) > 1)
    joined, beat = peer.of()[:2]
    assert beat.type == "heartbeat"
    assert (joined.type, json.loads(joined.payload)["data"]) == (
        "node_joined",
        {"status": "online"},
    )
    node_id = see(program, "settings")["nodeId"]
    assert {json.loads(one.payload)["nodeId"] for one in (joined, beat)} == {node_id}
    (connection,) = real.monitors()
    assert (connection["subscriptions_list"], connection.get("name")) == ([STATS], None)
    change(program, "settings", {"privacyLevel": "minimal", "shareStats": False})
    before = see(program, "settings")
    end(program)
    wait_for(lambda: real.monitors() == [])
    beats = len(peer.of("heartbeat"))
    program.start()
    connected(program)
    assert see(program, "settings") == before
    wait_for(lambda: len(peer.of("heartbeat")) > beats)
    assert (len(peer.of("node_joined")), peer.of("node_left")) == (1, [])
    assert (program.folder / "federation.id").stat().st_mode & 0o777 == 0o600
    end(program)


def test_what_is_shared_changes_at_once(stepped: Make) -> None:
    program = stepped().start()  # its hub is away, so that everything waits
    change(program, "enable")
    work(program, 0)
    wait_for(lambda: kinds(queued(program)) == ALL_OF_ONE)
    change(program, "settings", {"shareTasks": False})
    assert kinds(queued(program)) == ["invoice_created"]
    change(program, "settings", {"shareStats": False})
    assert queued(program) == []
    work(program, 1)
    wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 2)
    change(program, "settings", {"shareTasks": True, "shareStats": True})
    work(program, 2)
    wait_for(lambda: kinds(queued(program)) == ALL_OF_ONE)
    change(program, "settings", {"privacyLevel": "maximum"})
    assert queued(program) == []
    assert see(program, "privacy")["kindsShared"] == ["heartbeat", "node_joined", "node_left"]
    work(program, 3)
    wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == 4)
    assert queued(program) == []
    change(program, "settings", {"privacyLevel": "minimal"})
    work(program, 4)
    rows = wait_for(lambda: (found := queued(program)) and len(found) == 3 and found)
    assert all(
        (tbmon.parse_time(row["dueAt"]) or 0) < (time.time() + 3600 + 310) * 1000 for row in rows
    )
    change(program, "disable")
    assert queued(program) == []
    assert json.loads((program.folder / "federation.keys").read_bytes()) == {}
    end(program)


def test_another_hub_is_connected_to_at_once_and_asks_for_a_secret(
    hub: Make, listening: Make, stepped: Make
) -> None:
    first = hub()
    second: Listening = listening(Listening())
    program = stepped(**at_hub(first), API_KEY="").start()
    other = {"natsServers": [f"nats://{LOOPBACK}:{second.port}"]}
    change(program, "enable")
    connected(program)
    for headers in ({}, {"X_Task_Data_Password": "wrong"}, {"Authorization": "Bearer "}):
        assert tell(program, "PUT", SETTINGS, other, **headers).status == 401
        assert tell(program, "PUT", SETTINGS, {"natsServers": []}, **headers).status == 200
    assert see(program, "settings")["natsServers"] == [first.url]
    assert len(first.monitors()) == 1 and second.said == []
    assert (
        change(program, "settings", {"natsServers": [first.url], "shareStats": False})["shareStats"]
        is False
    )
    assert (
        change(program, "settings", other, X_Task_Data_Password=PASSWORD)["natsServers"]
        == other["natsServers"]
    )
    wait_for(lambda: second.said)
    assert first.monitors() == []
    change(program, "disable")
    wait_for(lambda: not second.open)
    end(program)


def test_with_an_api_key_changing_the_hub_asks_for_the_password_as_well(
    program: Make, tmp_path: Path
) -> None:
    made = program(API_KEY=KEY, LOG_DIR=str(tmp_path)).start()
    other = {"natsServers": ["wss://hub.example.org:9086"]}
    assert tell(made, "PUT", SETTINGS, other).status == 401
    assert tell(made, "PUT", SETTINGS, other, X_Task_Data_Password=PASSWORD).status == 401
    key = f"Bearer {KEY}".encode().decode("latin-1")
    assert tell(made, "PUT", SETTINGS, other, Authorization=key).status == 401
    assert change(made, "settings", other, Authorization=key)["natsServers"] == other["natsServers"]
    end(made)


BAD_SERVERS = [
    "nats://203.0.114.7:4222",
    "ws://203.0.114.7",
    "nats://[2606:4700::1111]:4222",
    "ws://[::ffff:8.8.8.8]:80",
    "nats://me:word@10.0.0.1:4222",
    "wss://me@hub.example.org",
    "http://hub.example.org",
    "redis://10.0.0.1:1",
    "hub.example.org:4222",
    "nats://",
    "nats://10.0.0.1:0",
    "nats://10.0.0.1:99999",
    "nats://10.0.0.1:4222,tls://x:1",
    "wss://hub example.org",
    "wss://hüb.example.org",
    "",
    "nats://10.0.0.1:4222\n",
    "file:///etc/passwd",
]


def test_servers_that_cannot_be_or_would_go_in_clear_are_refused_with_a_sentence(
    stepped: Make,
) -> None:
    program = stepped().start()
    for url in BAD_SERVERS:
        for given in ([url], ["wss://hub.example.org", url]):
            answer = tell(
                program, "PUT", SETTINGS, {"natsServers": given}, X_Task_Data_Password=PASSWORD
            )
            assert (answer.status, answer.json["error"].startswith("natsServers: ")) == (
                400,
                True,
            ), url
            assert len(answer.json["error"].split()) > 6 and "word@" not in answer.json["error"]
    bodies: list[object] = [
        [],
        {"natsServers": "wss://x"},
        {"privacyLevel": "none"},
        {"enabled": "yes"},
        {"other": 1},
    ]
    for body in bodies:
        assert tell(program, "PUT", SETTINGS, body, X_Task_Data_Password=PASSWORD).status == 400, (
            body
        )
    assert see(program, "settings")["natsServers"] == [AWAY]
    good = [
        "nats://10.1.2.3:4222",
        "ws://[fd00::7]:80",
        "tls://198.51.100.9:4222",
        "wss://hub.example.org",
        "nats://hub",
    ]
    assert (
        change(program, "settings", {"natsServers": good}, X_Task_Data_Password=PASSWORD)[
            "natsServers"
        ]
        == good
    )
    end(program)


def test_opting_out_says_so_forgets_what_waits_and_closes_the_connection(
    real: Hub, stepped: Make
) -> None:
    peer, program = real.peer(), stepped(**at_hub(real)).start()
    change(program, "enable")
    wait_for(lambda: peer.of("node_joined"))
    work(program, 0)
    wait_for(lambda: len(queued(program)) == 3)
    change(program, "disable")
    status = see(program, "status")
    assert (status["status"], status["connected"], status["stats"]["queued"]) == ("off", False, 0)
    wait_for(lambda: real.monitors() == [])
    left = wait_for(lambda: peer.of("node_left"))
    assert json.loads(left[0].payload)["data"] == {"status": "offline"}
    assert peer.of()[-1] == left[0]
    assert json.loads((program.folder / "federation.keys").read_bytes()) == {}
    end(program)


def test_a_reset_makes_a_new_id_and_new_keys(real: Hub, stepped: Make) -> None:
    peer, program = real.peer(), stepped(**at_hub(real)).start()
    change(program, "enable")
    wait_for(lambda: peer.of("node_joined"))
    work(program, 0)
    wait_for(lambda: len(queued(program)) == 3)
    files = [program.folder / name for name in ("federation.id", "federation.keys")]
    node_id, before = see(program, "settings")["nodeId"], [path.read_bytes() for path in files]
    change(program, "reset")
    assert queued(program) == []
    wait_for(lambda: len(peer.of("node_joined")) == 2)
    assert see(program, "settings")["enabled"]
    assert [json.loads(one.payload)["nodeId"] == node_id for one in peer.of("node_joined")] == [
        True,
        False,
    ]
    assert len(peer.of("node_left")) == 1
    work(program, 1)
    wait_for(lambda: len(queued(program)) == 3)
    assert [old == path.read_bytes() for old, path in zip(before, files, strict=True)] == [
        False,
        False,
    ]
    assert not set(json.loads(before[1]).values()) & set(json.loads(files[1].read_bytes()).values())
    end(program)


def test_the_demo_shares_nothing(stepped: Make) -> None:
    program = stepped().start("demo")
    for method, path, body in (
        ("POST", "/api/federation/enable", None),
        ("PUT", SETTINGS, {"enabled": True}),
    ):
        answer = tell(program, method, path, body, X_Task_Data_Password=PASSWORD)
        assert (answer.status, list(answer.json)) == (409, ["error"])
    assert (see(program, "status")["status"], see(program, "settings")["enabled"]) == ("off", False)
    end(program)


def test_opting_in_and_out_as_fast_as_one_can_ends_as_said_last(real: Hub, stepped: Make) -> None:
    program = stepped(**at_hub(real)).start()
    for url in ([AWAY], []):  # a hub that is away, and the real one
        change(program, "settings", {"natsServers": url}, X_Task_Data_Password=PASSWORD)
        for _ in range(15):
            change(program, "enable")
            change(program, "disable")
        assert (see(program, "status")["status"], see(program, "settings")["enabled"]) == (
            "off",
            False,
        )
    wait_for(lambda: real.monitors() == [])
    change(program, "enable")
    connected(program)
    end(program)


def test_opting_out_at_the_moment_of_greeting_stays_out(hub: Make, station: Make) -> None:
    made = hub()
    here: Station = station(made.url, **IN_HUB).opt_in()
    write, inside, go_on = here.store.write, threading.Event(), threading.Event()

    def slow_write() -> Any:
        if threading.current_thread().name == "federation" and here.store.read(
            "SELECT 1 FROM sent"
        ):
            inside.set()  # it has greeted, and is held up before it can write so
            go_on.wait(1)
        return write()

    here.store.write = slow_write  # type: ignore[method-assign]
    here.federation.start()
    assert inside.wait(5)
    here.outbox.keep(enabled=False)
    go_on.set()
    here.federation.stop(says_goodbye=True)
    assert not here.outbox.sharing.enabled
    assert not tbmon.Outbox(
        here.store, here.outbox.keys, here.monitor.now, here.outbox.dice, AWAY
    ).sharing.enabled


def test_opting_out_of_a_hub_that_is_frozen_leaves_no_connection(
    hub: Make, listening: Make, stepped: Make
) -> None:
    made = hub()
    tap = listening(Tap(made.port))
    program = stepped(**at_hub(made, FEDERATION_NATS_URL=f"nats://{LOOPBACK}:{tap.port}")).start()
    change(program, "enable")
    work(program, 0)
    wait_for(lambda: len(queued(program)) == 3 and b"nodes.joined" in tap.everything)
    freeze(made)
    try:
        program.ahead(25 * 3600)
        wait_for(
            lambda: b"invoices.created" in tap.everything
        )  # due messages went out, and no PONG comes
        change(program, "disable")
        wait_for(lambda: not tap.open, 0.5)
        said = tap.everything
        change(program, "settings", {"privacyLevel": "minimal"})
        assert (tap.everything, see(program, "status")["status"], queued(program)) == (
            said,
            "off",
            [],
        )
    finally:
        thaw(made)
    end(program)


def test_keys_are_made_and_forgotten_by_several_threads_at_once(station: Make) -> None:
    here: Station = station(AWAY).opt_in()
    wrong: list[Exception] = []

    def repeat(what: Callable[[], object]) -> None:
        try:
            for _ in range(150):
                what()
        except Exception as error:
            wrong.append(error)

    keys, dice = here.outbox.keys, here.outbox.dice
    days = iter(range(10**6))
    jobs = [
        here.outbox.forget_keys,
        here.outbox.forget_keys,
        lambda: keys.day_key(f"day {next(days)}", dice),
    ]
    threads = [threading.Thread(target=repeat, args=(job,)) for job in jobs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    here.outbox.forget_keys()
    assert keys.day_keys() == {}


# Delivery


def test_what_is_due_arrives_as_it_was_shown_and_leaves_the_outbox_only_then(
    hub: Make, listening: Make, stepped: Make
) -> None:
    made = hub()
    peer, tap = made.peer(), listening(Tap(made.port))
    program = stepped(**at_hub(made, FEDERATION_NATS_URL=f"nats://{LOOPBACK}:{tap.port}")).start()
    change(program, "enable")
    wait_for(lambda: peer.of("heartbeat"))
    work(program, 0, 1)
    rows = wait_for(lambda: (found := queued(program)) and len(found) == 6 and found)
    shown = sorted((row["subject"], row["payload"].encode()) for row in rows)
    assert peer.of("task_received", "task_completed", "invoice_created") == []
    assert not any("tasks" in row["subject"] for row in see(program, "sent")["messages"])
    program.ahead(25 * 3600)
    wait_for(lambda: len(peer.of("task_received", "task_completed", "invoice_created")) == 6)
    arrived = [
        one
        for one in peer.of()
        if "nodeId" in one.payload.decode() and ANONYMOUS in one.payload.decode()
    ]
    assert sorted((one.subject, one.payload) for one in arrived) == shown
    wait_for(lambda: queued(program) == [])
    change(program, "disable")
    wait_for(lambda: peer.of("node_left"))
    sent = {
        row["payload"].encode(): row["times"] for row in see(program, "sent?limit=1000")["messages"]
    }
    assert {payload: sent[payload] for _, payload in shown} == {payload: 1 for _, payload in shown}
    assert {one.reply for one in peer.of()} == {""}
    assert set(sent) <= {one.payload for one in peer.of()}
    assert (
        {one.type for one in peer.of()}
        == {json.loads(payload)["type"] for payload in sent}
        == set(tbmon.MESSAGES)
    )
    said = commands(tap.everything)
    assert {(one.word, *one.words[:-1]) for one in said if one.payload} == {
        ("PUB", subject) for subject in SUBJECTS
    }
    assert {one.word for one in said} - {"PONG"} == {"CONNECT", "PING", "SUB", "PUB"}
    assert [one.words for one in said if one.word == "SUB"] == [[STATS, "1"]]
    end(program)


ANONYMOUS = "node-00000000-0000-0000-0000-000000000000"


def test_a_row_waits_for_the_pong_and_the_proof(hub: Make, station: Make) -> None:
    made = hub()
    peer, here = made.peer(), station(made.url, pace=PACE._replace(proof_s=0.5), **IN_HUB).opt_in()
    here.federation.start()
    wait_for(lambda: here.federation.connected)
    shown = here.queue(*NAMES[:3])
    freeze(made)
    here.step()
    wait_for(lambda: set(here.sent()) == set(shown))
    assert sorted(here.waiting()) == sorted(shown)
    thaw(made)
    wait_for(lambda: len(peer.of("task_received")) == 3)
    assert sorted(here.waiting()) == sorted(shown)
    wait_for(lambda: not here.waiting())
    assert set(here.sent().values()) == {1}
    wait_for(lambda: here.outbox.keys.day_keys() == {})  # that of the day before is gone


def test_a_connection_that_ends_before_the_proof_sends_again_byte_for_byte(
    hub: Make, listening: Make, station: Make
) -> None:
    made = hub()
    tap = listening(Tap(made.port))
    url = f"nats://{LOOPBACK}:{tap.port}"
    here: Station = station(url, pace=PACE._replace(proof_s=60), **IN_HUB).opt_in()
    here.federation.start()
    shown = sorted(here.queue(*NAMES[:3]))
    here.step()
    for times in (1, 2, 3):
        wait_for(lambda: set(here.sent().values()) == {times})  # noqa: B023 - used at once
        wait_for(lambda: tasks_said(tap.said[-1]) == shown)
        assert sorted(here.waiting()) == shown
        made.kill()
        here.step(0.2)
        made.start()
    assert sum(tasks_said(one) == shown for one in tap.said) >= 3


def tasks_said(stream: bytes) -> list[bytes]:
    return sorted(
        one.payload for one in published(stream) if one.words[0] == "truebit.tasks.received"
    )


TROUBLE: list[
    tuple[str, dict[str, Any], str]
] = [  # what a hub does, its settings, and a word of what is shown
    ("is away", {"start": False}, "connect call failed"),
    ("refuses the password", {"password": "another-secret"}, "authorization violation"),
    ("is full", {"limits": "max_connections: 1"}, "maximum connections exceeded"),
    (
        "refuses a subject",
        {"may_publish": (SUBJECTS[0], SUBJECTS[1], SUBJECTS[4])},
        "permissions violation",
    ),
    ("takes no message of this size", {"limits": "max_payload: 64"}, "payload"),
]


@pytest.mark.parametrize(
    ("settings", "words"), [one[1:] for one in TROUBLE], ids=[one[0] for one in TROUBLE]
)
def test_nothing_is_lost_at_a_hub_that(
    hub: Make, listening: Make, station: Make, settings: dict[str, Any], words: str
) -> None:
    bad = hub(**settings)
    crowd = bad.peer() if "connections" in settings.get("limits", "") else None
    tap = listening(Tap(bad.port))
    url = bad.url if "start" in settings else f"nats://{LOOPBACK}:{tap.port}"
    here: Station = station(url, pace=PACE._replace(connect_s=10), **IN_HUB).opt_in()
    shown = sorted(here.queue(*NAMES[:3]))
    here.step()
    here.federation.start()
    wait_for(lambda: words in here.error().lower(), 8)
    wait_for(lambda: here.counts()["errors"] >= 2)  # it goes on trying
    assert here.api.federation_status()["status"] in ("failing", "connected")
    assert sorted(here.waiting()) == shown
    if crowd:
        crowd.close()
    else:
        bad.kill()
        bad.config.write_text(mended(bad))
        bad.start()
    wait_for(lambda: not here.waiting())
    wait_for(lambda: here.api.federation_status()["lastError"] is None)
    assert set(here.sent()) == set(shown)
    assert all(one in shown for said in tap.said for one in tasks_said(said))
    assert "start" in settings or tasks_said(tap.said[-1]) == shown


def mended(bad: Hub) -> str:
    """The configuration as it should have been."""
    text = bad.config.read_text().replace("another-secret", SECRET).replace("max_payload: 64", "")
    return re.sub(r"(user: monitor.*?publish: )\[.*?\]", r"\1" + json.dumps(SUBJECTS), text)


def closes(hub: Hostile, client: socket.socket, number: int) -> None:
    pass


def never_answers(hub: Hostile, client: socket.socket, number: int) -> None:
    hub.hear(client, number, b"nothing that it will ever say")


def greets_and_closes(hub: Hostile, client: socket.socket, number: int) -> None:
    hub.greet(client, number)


@pytest.mark.parametrize(
    ("act", "words"), [(closes, ""), (never_answers, "does not answer"), (greets_and_closes, "")]
)
def test_neither_api_nor_ingest_nor_the_end_waits_for_a_hub_that(
    listening: Make, stepped: Make, act: Callable[..., None], words: str
) -> None:
    bad: Hostile = listening(Hostile(act))
    program = stepped(FEDERATION_NATS_URL=bad.url).start()
    change(program, "enable")
    work(program, 0)
    rows = wait_for(lambda: (found := queued(program)) and len(found) == 3 and found)
    program.ahead(25 * 3600)
    wait_for(lambda: len(bad.said) >= 3 and words in (see(program, "status")["lastError"] or ""))
    before = time.monotonic()
    work(program, 1)
    wait_for(lambda: len(queued(program)) == 6, 3)
    for path in ("/health", "/api/status", "/api/tasks", "/api/federation/status", "/metrics"):
        began = time.monotonic()
        assert program.get(path)[0] == 200
        assert time.monotonic() - began < 1
    assert time.monotonic() - before < 5
    assert [row for row in rows if row not in queued(program)] == []
    log_is_tidy(program)
    began = time.monotonic()
    end(program)
    assert time.monotonic() - began < 5


def log_is_tidy(program: Program) -> None:
    """Every line of the log is one of tbmon's own, without control characters, and no thread died."""
    tidy = re.compile(r"\d{4}-[0-9T:-]{14}Z (INFO|WARNING) [ -~\N{KEY}]+")
    assert [
        line for line in program.log.read_text().split("\n")[:-1] if not tidy.fullmatch(line)
    ] == []


SLOW_NAMES = """
import socket, threading
resolve = socket.getaddrinfo
def getaddrinfo(host, *more, **named):
    if host == "hub":
        pathlib.Path("asked").touch()
        threading.Event().wait(60)  # as where the name server does not answer
    return resolve(host, *more, **named)
socket.getaddrinfo = getaddrinfo
"""


def test_a_name_server_that_does_not_answer_keeps_nobody_from_ending(stepped: Make) -> None:
    program = stepped(SLOW_NAMES, FEDERATION_NATS_URL="nats://hub:4222").start()
    change(program, "enable")
    wait_for((program.folder / "asked").exists)
    began = time.monotonic()
    end(program)
    assert time.monotonic() - began < 5


# Receiving


HOSTILE_TEXT = "<img src=x onerror=alert(1)>\x1b[2J' OR 1=1 --"
NO_PUBLICATIONS: list[bytes] = [
    b"",
    b"null",
    b"[]",
    b"{}",
    b"\xff\xfe",
    b"[" * 60_000,
    b"9" * 5000,
    b'{"data":1e999}',
    b"x" * 65_536,
    publication({"type": "heartbeat"}),
    publication({"version": "2.0"}),
    publication({"id": HOSTILE_TEXT}),
    publication({"nodeId": "node-1"}),
    publication({"timestamp": "soon"}),
    publication({"type": ["network_stats"]}),
    publication(extra=1),
    publication(activeNodes=-1),
    publication(activeNodes=1.5),
    publication(activeNodes=True),
    publication(totalTasks="7"),
    publication(totalTasks=2**53),
    publication(successRate=101),
    publication(successRate=[]),
    publication(cacheHitRate=float("nan")),
    publication(cacheHitRate=float("inf")),
    publication(peers={}),
    publication(executionTimeDistribution={HOSTILE_TEXT: 1}),
    publication(executionTimeDistribution=[1]),
    publication(gasUsageDistribution={"<1M": HOSTILE_TEXT}),
    publication(taskTypeDistribution={"rust": {}}),
    publication(peers=[HOSTILE_TEXT]),
    publication(peers=[{"handle": HOSTILE_TEXT, "seen": "today"}]),
    publication(peers=[{"handle": "0123456789abcdef", "seen": HOSTILE_TEXT}]),
    publication(snapshotAt=HOSTILE_TEXT),
    publication(peers=[{"handle": "0123456789abcdef", "seen": "today"}] * 501),
    publication(snapshotAt=7),
    json.dumps({**HEAD, "data": {}}).encode(),
    json.dumps({**HEAD, "data": [FIGURES]}).encode(),
]


def test_a_publication_is_kept_shown_and_pushed_and_all_else_is_counted(
    real: Hub, stepped: Make
) -> None:
    peer, program = real.peer(), stepped(**at_hub(real)).start()
    assert see(program, "network-stats")["status"] == "awaiting_data"
    change(program, "enable")
    connected(program)
    for number in range(0, len(NO_PUBLICATIONS), 4):  # more at once would be a flood
        some = NO_PUBLICATIONS[number : number + 4]
        peer.publish(*some)
        wait_for(lambda: see(program, "status")["stats"]["ignored"] == number + len(some))  # noqa: B023
    assert (see(program, "network-stats")["status"], see(program, "stats")["history"]) == (
        "awaiting_data",
        [],
    )
    stream = http.client.HTTPConnection(LOOPBACK, program.port, timeout=10)
    stream.request("GET", "/api/events", headers={"Host": "localhost"})
    events = stream.getresponse()
    peer.publish(publication())
    wait_for(lambda: see(program, "network-stats")["status"] == "connected")
    while not (line := events.readline()).startswith(b"event: network_stats"):
        assert line
    shown = json.loads(events.readline().partition(b"data: ")[2])
    stream.close()
    assert shown == see(program, "network-stats")
    assert {name: shown[name] for name in FIGURES} == FIGURES
    assert see(program, "stats")["history"] == [shown]
    assert see(program, "peers") == {"peers": FIGURES["peers"], "count": 1}
    (kept,) = see(program, "messages")["messages"]
    assert (kept["subject"], kept["data"], kept["timestamp"]) == (
        STATS,
        FIGURES,
        shown["lastUpdated"],
    )
    wait_a_second(program)
    withheld = dict.fromkeys(FIGURES)
    peer.publish(publication(**withheld))
    wait_for(lambda: see(program, "network-stats")["activeNodes"] is None)
    assert see(program, "peers") == {"peers": [], "count": 0}
    wait_a_second(program)
    peer.publish(publication(activeNodes=8))
    wait_for(lambda: see(program, "network-stats")["activeNodes"] == 8)
    assert len(see(program, "stats")["history"]) == 2  # one for each snapshot
    found = see(program, "status")
    assert (found["status"], found["stats"]["messagesReceived"], found["lastError"]) == (
        "connected",
        3,
        None,
    )
    end(program)


def wait_a_second(program: Program) -> None:
    """More often the statistics are not taken."""
    before = time.monotonic()
    wait_for(lambda: time.monotonic() > before + 1.05)


def test_what_a_hub_publishes_cannot_fill_the_disk(station: Make) -> None:
    here: Station = station(AWAY)
    for number in range(tbmon.SNAPSHOTS + 20):
        assert tbmon.take_publication(
            here.monitor, publication(snapshotAt=tbmon.utc((BEGIN // 1000 + number) * 1000))
        )
    history = json.loads("".join(here.api.network_history().words()))["history"]
    assert (len(history), history[0]["snapshotAt"]) == (
        tbmon.SNAPSHOTS,
        tbmon.utc((BEGIN // 1000 + number) * 1000),
    )
    assert here.store.read("SELECT COUNT(*) FROM network_stats")[0][0] == tbmon.SNAPSHOTS


# What is on the wire

PEER = "0x00112233445566778899AaBbCcDdEeFf00112233"
CANARIES = {
    "own wallet": WALLET,
    "requester": REQUESTER,
    "peer": PEER,
    "private key": "0x" + "c0ffee12" * 8,
    "PEM": "-----BEGIN PRIVATE KEY-----MIIEvQIBADANBgkqhkiG9w0BAQ",
    "IPv4": "198.51.100.77",
    "mnemonic": "legal winner thank year wave sausage worth useful legal winner thank yellow",
    "IPv6": "2001:db8:85a3::8a2e:370:7334",
    "path": "/home/operator/secret-place",
    "block hash": "0x" + "ab12" * 16,
    "task hash": HASH,
    "execution id": IDS[0],
    "failed execution": IDS[1],
    "invoice id": "7123456717698608000004",
    "host": "operators-machine-5f",
    "container": "operators-container-7a",
    "block number": "472508150",
    "input": "canary input 4d1c",
    "output": "canary output 8e2b",
    "error": "canary error 77aa",
}
IN_WORDS = ("private key", "PEM", "mnemonic", "IPv4", "IPv6", "path", "peer", "host", "requester")
SECRETS = " ".join(CANARIES[name] for name in IN_WORDS)


def story(
    input_text: str, output_text: str, error_text: str, wallet: str = WALLET, at: float = 0
) -> list[str]:
    """A task that completes and is paid, and one that fails."""
    block: dict[str, Any] = {
        "chainId": "43114",
        "blockNumber": 472508150,
        "blockHash": CANARIES["block hash"],
    }
    more: dict[str, Any] = {**block, "taskRequesterAddress": REQUESTER, "input": input_text}
    lines = [
        "Starting services",
        f"Node with address {wallet} registered successfully",
        received(IDS[0], "rs", **more),
        output(True, executionId=IDS[0], note=output_text),
        f"Execution {IDS[0]} completed",
        invoice(IDS[0], "pay", CANARIES["invoice id"]),
        received(IDS[1], "py", **more),
        f"Command execution stderr: {error_text}",
        f"Execution {IDS[1]} failed: {error_text} at {wallet}",
    ]
    return [header(line, at or soon(), wallet=wallet) for line in lines]


LEAK = """
import base64, json
made = tbmon.received_message
def leaking(task, words):
    hidden = base64.b64encode(b"x" + task.execution_id.encode()).decode()
    return tbmon.encode({**json.loads(made(task, words)), "note": hidden})
tbmon.received_message, tbmon.refusal_of = leaking, lambda subject, payload: None
"""


@pytest.mark.parametrize(
    ("more", "found"), [("", []), (LEAK, ["execution id", "failed execution"])], ids=["", "leak"]
)
@pytest.mark.parametrize("scheme", ["nats", "ws"])
def test_no_canary_is_on_the_wire_and_a_planted_leak_is_found(
    real: Hub,
    listening: Make,
    stepped: Make,
    request: pytest.FixtureRequest,
    scheme: str,
    more: str,
    found: list[str],
) -> None:
    tap = listening(Tap(real.port if scheme == "nats" else real.ws_port))
    url = f"{scheme}://{LOOPBACK}:{tap.port}"
    program = stepped(more, **at_hub(real, FEDERATION_NATS_URL=url, HOSTNAME=CANARIES["host"]))
    program.env["CONTAINER_NAME"], canaries = CANARIES["container"], dict(CANARIES)
    node: Node | None = request.getfixturevalue("node") if scheme == "nats" and not more else None
    if node:  # a real container, with its name, its host name and its address
        node.run("--hostname", CANARIES["host"], "-e", f"PRIVATE_KEY={CANARIES['private key']}")
        program.env |= {"CONTAINER_NAME": node.name, "LOG_DIR": ""}
        facts = docker(
            "inspect", "-f", "{{.Id}} {{.NetworkSettings.IPAddress}} {{.Config.Image}}", node.name
        ).split()
        canaries |= {
            "container": node.name,
            **dict(zip(("container id", "address", "image"), facts, strict=True)),
        }
    program.start()
    change(program, "enable")
    wait_for(
        lambda: any("heartbeat" in row["subject"] for row in see(program, "sent")["messages"])
    )  # and all was read
    lines = story(
        f"{CANARIES['input']} {SECRETS}",
        f"{CANARIES['output']} {SECRETS}",
        f"{CANARIES['error']} {SECRETS}",
    )
    if node:
        node.say("\n".join(lines))
    else:
        write(program, *lines)
    wait_for(lambda: len(queued(program)) == 5)
    keys = json.loads((program.folder / "federation.keys").read_bytes())
    canaries |= {
        "day key": next(iter(keys.values())),
        "local key": (program.folder / "local.key").read_bytes().hex(),
    }
    program.ahead(25 * 3600)
    wait_for(lambda: queued(program) == [])
    change(program, "disable")
    end(program)
    said = [plain(one, scheme) for one in map(bytes, tap.said)]
    assert {one.words[0] for whole in said for one in published(whole[1])} == set(SUBJECTS)
    assert leaks(b"".join(b"".join(whole) for whole in said), canaries) == found


def plain(stream: bytes, scheme: str) -> tuple[bytes, bytes]:
    return unmasked(stream) if scheme == "ws" else (b"", stream)


def in_json(text: str) -> str:
    return json.dumps({"a": [text]})


HIDINGS: list[Callable[[str], str]] = [
    str,
    str.lower,
    str.upper,
    in_json,
    lambda text: text[::-1],
    lambda text: text.encode().hex(),
    *(
        lambda text, lead=lead: base64.b64encode(b"p" * lead + text.encode()).decode()
        for lead in range(3)
    ),
    lambda text: base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
    lambda text: hashlib.sha256(text.encode()).hexdigest(),
    lambda text: hashlib.sha256(text.lower().encode()).hexdigest(),
    lambda text: base64.b64encode(hashlib.sha256(text.encode()).digest()).decode(),
    lambda text: hashlib.sha256(text.removeprefix("0x").encode()).hexdigest(),
]


def test_the_scanner_finds_every_canary_in_every_form() -> None:
    for name, canary in CANARIES.items():
        for number, hide in enumerate(HIDINGS):
            stream = b"PUB truebit.heartbeat 99\r\n{" + hide(canary).encode() + b"}\r\n"
            assert name in leaks(stream, CANARIES), (name, number)
    assert leaks(json.dumps([NAMES, SUBJECTS, FIGURES]).encode(), CANARIES) == []
    assert all(forms(canary) for canary in CANARIES.values())


class Life(NamedTuple):
    """What differs between two operators, and must not be told."""

    wallet: str
    container: str
    input: str
    output: str
    error: str
    figures: tuple[tuple[str, str], ...] = ()  # what is told, in ranges: for the control


ONE = Life(WALLET, "runner-node", "22", "484", "no memory")
OTHER = Life(PEER, CANARIES["container"], SECRETS * 3, SECRETS, f"{REQUESTER} {SECRETS}")


@pytest.mark.parametrize("scheme", ["nats", "ws"])
def test_two_operators_who_differ_in_all_that_is_private_put_the_same_bytes_on_the_wire(
    real: Hub, listening: Make, station: Make, scheme: str
) -> None:
    tap = listening(Tap(real.port if scheme == "nats" else real.ws_port))
    url = f"{scheme}://{LOOPBACK}:{tap.port}"
    slower = ONE._replace(
        figures=(("1500000000", "45000000000"), (str(HUGE), "5"), ('"memory": 87', '"memory": 870'))
    )
    first, second, third = (
        live(station(url, container_name=life.container, **IN_HUB), life, tap, scheme)
        for life in (ONE, OTHER, slower)
    )
    assert first[1].count(b"PUB ") == 8 and first[1].count(b"CONNECT ") == 1
    assert first == second
    assert first != third  # it tells what it is to tell


def live(here: Station, life: Life, tap: Tap, scheme: str) -> tuple[bytes, bytes]:
    """Follow the life, send all, opt out, and return what was said: the request without its nonce,
    and the rest.
    """
    here.opt_in()
    follower = tbmon.DirectoryFollower(here.monitor)
    follower.step()
    lines = story(life.input, life.output, life.error, life.wallet, BEGIN // 1000 + 5)
    text = "\n".join(lines)
    for figure, other in life.figures:
        text = text.replace(figure, other)
    (here.logs / f"worker-{life.wallet}.log").write_text(text.replace(WALLET, life.wallet) + "\n")
    follower.step()
    assert len(here.waiting()) == 5
    here.step()
    here.federation.start()
    wait_for(lambda: not here.waiting())
    here.outbox.keep(enabled=False)
    here.federation.stop(says_goodbye=True)
    wait_for(lambda: not tap.open)
    request, said = plain(bytes(tap.said[-1]), scheme)
    said = re.sub(rb"P[IO]NG\r\n", b"", said)  # as often as the hub happens to ask
    return re.sub(rb"Sec-WebSocket-Key: \S+", b"", request), said


# What a hub can do


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_tls_works_with_an_authority_of_ones_own_and_no_other(
    hub: Make, listening: Make, station: Make, tmp_path: Path, scheme: str
) -> None:
    mine, strange = papers(tmp_path / "mine"), papers(tmp_path / "strange")
    made = hub(tls=mine) if scheme == "tls" else hub(ws=mine)
    tap = listening(Tap(made.port if scheme == "tls" else made.ws_port))
    for ca in ("", str(strange.ca)):
        here: Station = station(
            f"{scheme}://localhost:{tap.port}", federation_tls_ca=ca, **IN_HUB
        ).opt_in()
        here.federation.start()
        wait_for(lambda: "certificate" in here.error().lower(), 8)  # noqa: B023 - used at once
        assert here.counts()["messagesSent"] == 0
        here.close()
    here = station(
        f"{scheme}://localhost:{tap.port}", federation_tls_ca=str(mine.ca), **IN_HUB
    ).opt_in()
    here.queue(NAMES[0])
    here.step()
    here.federation.start()
    wait_for(lambda: not here.waiting())
    assert len(made.monitors()) == 1
    assert all(word.encode() not in tap.everything for word in (SECRET, "CONNECT {", "truebit"))


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_hub_without_tls_is_told_nothing_where_tls_is_asked_for(
    real: Hub, listening: Make, station: Make, scheme: str
) -> None:
    tap = listening(Tap(real.port if scheme == "tls" else real.ws_port))
    here: Station = station(f"{scheme}://{LOOPBACK}:{tap.port}", **IN_HUB).opt_in()
    here.federation.start()
    wait_for(lambda: here.counts()["errors"] >= 2)
    assert here.error() != "None"
    assert all(
        word not in tap.everything
        for word in (SECRET.encode(), b"monitor", b"CONNECT", b"truebit", b"GET ")
    )
    assert scheme == "wss" or tap.everything == b""


@pytest.mark.parametrize(
    ("url", "peer", "refused"),
    [
        ("nats://hub.example.org:4222", "203.0.114.7", True),
        ("ws://hub.example.org", "2606:4700::1111", True),
        ("ws://hub.example.org", "::ffff:8.8.8.8", True),
        ("nats://hub.example.org", "", True),
        ("nats://hub.example.org", "10.2.3.4", False),
        ("ws://hub.example.org", "fd00::7", False),
        ("nats://hub.example.org", "127.0.0.1", False),
        ("nats://hub", "203.0.114.7", False),
        ("tls://hub.example.org", "203.0.114.7", False),
        ("wss://hub.example.org", "2606:4700::1111", False),
        ("nats://10.0.0.1", "203.0.114.7", True),
        ("nats://[fd00::7]:4222", "2606:4700::1111", True),
    ],
)
def test_clear_text_is_judged_by_the_address_connected_to(
    url: str, peer: str, refused: bool
) -> None:
    check, parts = tbmon.check_peer, tbmon.check_server(url)
    if refused:
        with pytest.raises(ConnectionError, match="clear text: use wss or tls"):
            check(parts, (peer, 4222) if peer else None)
    else:
        check(parts, (peer, 4222))


def test_clear_text_is_refused_before_anything_is_said_and_in_words(
    real: Hub, listening: Make, station: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolve = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *more, **named: resolve(LOOPBACK, *more, **named)
    )
    monkeypatch.setattr(
        tbmon, "is_near", lambda address: False
    )  # as if that name and address were of the internet
    for scheme, port in (("nats", real.port), ("ws", real.ws_port)):
        tap = listening(Tap(port))
        url, pace = f"{scheme}://hub.example.org:{tap.port}", PACE._replace(connect_s=10)
        here: Station = station(url, pace=pace, **IN_HUB).opt_in()
        here.federation.start()
        wait_for(lambda: here.counts()["errors"])  # noqa: B023 - used at once
        said = [plain(bytes(one), scheme)[1] for one in tap.said]
        assert said and not any(b"CONNECT" in one or b"truebit" in one for one in said)
        assert "is clear text: use wss or tls" in here.error()
        here.close()


def test_servers_that_a_hub_names_are_not_connected_to(listening: Make, station: Make) -> None:
    other: Listening = listening(Listening())
    urls = [f"{LOOPBACK}:{other.port}"]

    def names(hub: Hostile, client: socket.socket, number: int) -> None:
        hub.greet(client, number, connect_urls=urls, ws_connect_urls=urls, ldm=True)
        client.sendall(
            b"INFO "
            + json.dumps({**INFO, "connect_urls": urls, "ldm": True}).encode()
            + b"\r\nPING\r\n"
        )
        hub.hear(client, number, b"PONG\r\n")

    bad: Hostile = listening(Hostile(names))
    here: Station = station(bad.url, **IN_HUB).opt_in()
    here.federation.start()
    wait_for(lambda: len(bad.said) >= 4)
    assert other.said == []


def test_a_web_hub_cannot_send_the_monitor_elsewhere(listening: Make, station: Make) -> None:
    other: Listening = listening(Listening())

    def redirects(hub: Hostile, client: socket.socket, number: int) -> None:
        hub.hear(client, number, b"\r\n\r\n")
        client.sendall(
            b"HTTP/1.1 307 Go\r\nContent-Length: 0\r\nLocation: http://127.0.0.1:%d/\r\n\r\n"
            % other.port
        )

    bad: Hostile = listening(Hostile(redirects))
    here: Station = station(f"ws://{LOOPBACK}:{bad.port}", **IN_HUB).opt_in()
    here.federation.start()
    wait_for(lambda: bad.done >= 2)
    assert other.said == []


Act = Callable[[Hostile, socket.socket, int], None]
MUCH = b"\0" * 65_536


def at_first(words: bytes) -> Act:
    """A hub that introduces itself with these words and waits."""

    def act(hub: Hostile, client: socket.socket, number: int) -> None:
        client.sendall(words)
        hub.hear(client, number, b"nothing that it will ever say")

    return act


def info(**more: Any) -> bytes:
    return b"INFO " + json.dumps({**INFO, **more}).encode() + b"\r\n"


def later(words: bytes, times: int = 1, goes: bool = True) -> Act:
    """A hub that says these words to whom it has greeted."""

    def act(hub: Hostile, client: socket.socket, number: int) -> None:
        hub.greet(client, number)
        for _ in range(times):
            client.sendall(words)
        if goes:
            client.shutdown(socket.SHUT_WR)
        hub.hear(client, number, b"nothing that it will ever say")

    return act


def message(payload: bytes, subject: bytes = STATS.encode(), sid: bytes = b"1") -> bytes:
    return b"MSG %s %s %d\r\n%s\r\n" % (subject, sid, len(payload), payload)


ERRORS = (
    "Unknown Protocol Operation",
    "Attempted To Connect To Route Port",
    "Authorization Violation",
    "Authorization Timeout",
    "Invalid Client Protocol",
    "Maximum Control Line Exceeded",
    "Parser Error",
    "Secure Connection - TLS Required",
    "Stale Connection",
    "Maximum Connections Exceeded",
    "Slow Consumer",
    "Maximum Payload Violation",
    "Invalid Subject",
    'Permissions Violation for Publish to "truebit.heartbeat"',
    "Permissions Violation for \x1b[2J\x07" + "x" * 3000,
)
ACTS: dict[str, Act] = {
    "a message of 2 GB": later(b"MSG %s 1 2000000000\r\n" % STATS.encode() + MUCH, 1000),
    "a message of a size without end": later(b"MSG %s 1 %s\r\n" % (STATS.encode(), b"9" * 6000)),
    "a message with headers of 2 GB": later(
        b"HMSG %s 1 2000000000 2000000001\r\n" % STATS.encode() + MUCH, 1000
    ),
    "headers longer than the message": later(b"HMSG %s 1 50 3\r\nabc\r\n" % STATS.encode()),
    "headers that are none": later(b"HMSG %s 1 12 12\r\nNATS/1.0\r\n\r\n\r\n" % STATS.encode()),
    "a line without end": later(MUCH.replace(b"\0", b"A"), 1000),
    "an INFO without end": later(b"INFO {" + MUCH.replace(b"\0", b" "), 1000),
    "an INFO that is a list later": later(b"INFO [1]\r\n"),
    "an INFO that is no JSON later": later(b"INFO {]\r\n"),
    "garbage": later(bytes(range(256)) * 40 + b"\r\n"),
    "no UTF-8 in a subject": later(message(b"abc", b"\xff\xfe")),
    "no UTF-8 in an error": later(b"-ERR '\xff\xfe'\r\n"),
    "a flood of messages": later(message(b"x" * 60_000) * 10, 100),
    "a flood of small messages": later(message(b"{}") * 5000, 20),
    "a flood for somebody else": later(message(b"x" * 60_000, sid=b"77") * 10, 100),
    "a flood of PING": later(b"PING\r\n" * 10_000, 10),
    "a flood of PONG": later(b"PONG\r\n" * 10_000, 10),
    "statistics with hostile text": later(b"".join(message(one) for one in NO_PUBLICATIONS)),
    "an end": later(b""),
    "an INFO that is a list": at_first(b"INFO [1, 2]\r\n"),
    "an INFO that is text": at_first(b'INFO "hello"\r\n'),
    "a huge INFO": at_first(info(nonce="x" * 2_000_000)),
    "a deep INFO": at_first(b"INFO " + b"[" * 20_000 + b"\r\n"),
    "an INFO without line": at_first(b"INFO {"),
    "an INFO of wrong types": at_first(
        info(max_payload="x", version=[], client_id={}, connect_urls=7, headers="x")
    ),
    "an INFO with a nonce": at_first(info(nonce="abc", auth_required=True)),
    "an INFO that asks for TLS": at_first(info(tls_required=True)),
    "PONG at first": at_first(b"PONG\r\n"),
    "a web page": at_first(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"),
    "nothing but bytes": at_first(b"\xff" * 100_000),
    "nothing": never_answers,
    "a closed door": closes,
    **{
        f"-ERR {words[:40]!r}": later(b"-ERR '%s'\r\n" % words.encode(), goes=False)
        for words in ERRORS
    },
    "-ERR without words": later(b"-ERR\r\n", goes=False),
}


class Victim(NamedTuple):
    program: Stepped
    hub: Hostile
    peak_bytes: int


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """A monitor that has opted in to a hub that does what a test says; it must end as it began,
    well.
    """
    bad = Hostile(later(b""))
    program = Stepped(
        tmp_path_factory.mktemp("victim") / "program", FEDERATION_NATS_URL=bad.url, **HUB_USER
    )
    program.pace = program.pace._replace(connect_s=0.5)
    program.start()
    change(program, "enable")
    wait_for(lambda: bad.done >= 3)
    yield Victim(program, bad, program.peak_bytes())

    def behaves(hub: Hostile, client: socket.socket, number: int) -> None:
        hub.greet(client, number)
        while data := client.recv(65536):
            client.sendall(b"PONG\r\n" * data.count(b"PING\r\n"))

    bad.act = behaves
    connected(program)
    log_is_tidy(program)
    end(program)
    bad.close()


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_a_hub_costs_neither_memory_nor_the_process_with(victim: Victim, act: Act) -> None:
    program, bad, peak_bytes = victim
    before, bad.act = see(program, "status"), act
    count = len(bad.said)
    wait_for(lambda: len(bad.said) >= count + 2)  # it comes back
    began = time.monotonic()
    assert program.get("/health")[0] == 200
    assert time.monotonic() - began < 2
    status = wait_for(lambda: (found := see(program, "status"))["lastError"] and found)
    assert program.process.poll() is None
    assert program.peak_bytes() < peak_bytes + 32 * tbmon.MIB
    assert re.fullmatch("[ -~]{4,250}", status["lastError"]), status["lastError"]
    assert (
        "object" not in status["lastError"]
    )  # Python's words are no reason that an operator understands
    assert status["stats"]["errors"] > before["stats"]["errors"]
    assert see(program, "network-stats")["status"] == "awaiting_data"


def upgraded(hub: Hostile, client: socket.socket, number: int) -> None:
    """Answer a websocket's request."""
    hub.hear(client, number, b"\r\n\r\n")
    found = re.search(rb"Sec-WebSocket-Key: (\S+)", hub.said[number])
    assert found is not None
    proof = base64.b64encode(
        hashlib.sha1(found[1] + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    )
    words = (
        b"HTTP/1.1 101 OK\r\nUpgrade: websocket\r\nConnection: "
        b"Upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n"
    )
    client.sendall(words % proof)


def frames(*parts: bytes, times: int = 1) -> Act:
    def act(hub: Hostile, client: socket.socket, number: int) -> None:
        upgraded(hub, client, number)
        for part in parts * times:
            client.sendall(part)
        hub.hear(client, number, b"nothing that it will ever say")

    return act


WEB_ACTS: dict[str, Act] = {
    "a frame of 2 GB": frames(b"\x82\x7f" + struct.pack(">Q", 2**31), *[MUCH] * 1000),
    "a message of frames without end": frames(
        b"\x02\x7e\xff\xff" + MUCH[1:], *[b"\0\x7e\xff\xff" + MUCH[1:]] * 1000
    ),
    "a compressed frame": frames(b"\xc2\x05abcde"),
    "text": frames(b"\x81\x05INFO "),
    "no upgrade": at_first(b"HTTP/1.1 200 OK\r\nContent-Length: 3000000000\r\n\r\n" + MUCH * 100),
    "headers without end": at_first(b"HTTP/1.1 101 OK\r\n" + b"X: y\r\n" * 1_000_000),
    "a web hub that never answers": never_answers,
}


@pytest.mark.parametrize("act", WEB_ACTS.values(), ids=WEB_ACTS)
def test_a_web_hub_costs_neither_memory_nor_the_process_with(
    victim: Victim, listening: Make, act: Act
) -> None:
    program, bad = victim.program, listening(Hostile(act))
    there = [f"ws://{LOOPBACK}:{bad.port}"]
    change(program, "settings", {"natsServers": there}, X_Task_Data_Password=PASSWORD)
    try:
        status = wait_for(
            lambda: len(bad.said) >= 2 and (found := see(program, "status"))["lastError"] and found
        )
        assert program.process.poll() is None
        assert program.peak_bytes() < victim.peak_bytes + 32 * tbmon.MIB
        assert re.fullmatch("[ -~]{4,250}", status["lastError"])
        assert SECRET.encode() not in bad.everything
    finally:
        change(program, "settings", {"natsServers": []}, X_Task_Data_Password=PASSWORD)


# What a task prints, and what is past

FORGED = [f"{number:08x}-dead-4bad-8bad-00000000beef" for number in range(40)]


def forged(wallet: str) -> list[str]:
    """Forty headers of a task's making, completions, a registration and an invoice."""
    lines = [received(name, "js", requester=PEER) for name in FORGED]
    lines += [f"Execution {name} completed" for name in FORGED]
    lines += [
        f"Node with address {wallet} registered successfully",
        invoice(FORGED[0], "pay", "666"),
    ]
    return [header(line, BEGIN // 1000 + 6, wallet=wallet) for line in lines]


def event_db(*names: str) -> str:
    records = [
        {"type": "task_created", "executionId": name, "message": {"taskId": f"rs_{HASH}"}}
        for name in names
    ]
    return json.dumps({"records": records})


@pytest.mark.parametrize(
    ("wallet", "records", "told"),
    [
        (WALLET, event_db(IDS[0]), [IDS[0]]),
        (PEER, event_db(IDS[0]), [IDS[0]]),
        (WALLET, "", [IDS[0], *FORGED]),
    ],
    ids=["the node's own headers", "another's headers", "control: no event database"],
)
def test_what_a_task_prints_is_not_told(
    station: Make, wallet: str, records: str, told: list[str]
) -> None:
    here: Station = station(AWAY).opt_in()
    if records:
        (here.logs / "x-eventDB.json").write_text(records)
    follower = tbmon.DirectoryFollower(here.monitor)
    follower.step()
    good = output(False, executionId=IDS[0])  # else its stderr would leave open how it ended
    true = [received(IDS[0], "rs"), good, "Command execution stderr: look"]
    lines = [*(header(line, BEGIN // 1000 + 5) for line in true), *forged(wallet)]
    lines.append(header(f"Execution {IDS[0]} completed", BEGIN // 1000 + 7))
    (here.logs / "worker.log").write_text("\n".join(lines) + "\n")
    follower.step()
    if records:  # a second look, when all that could confirm something has been read
        follower.events.next_s = 0
        (here.logs / "x-eventDB.json").write_text(records + " ")
    follower.step()
    found = [json.loads(one) for one in here.waiting()]
    assert Counter(one["type"] for one in found if one["type"] != "invoice_created") == {
        "task_received": len(told),
        "task_completed": len(told),
    }
    assert [one["type"] for one in found].count("invoice_created") == (0 if records else 1)
    keys = [bytes.fromhex(key) for key in here.outbox.keys.day_keys().values()]
    names = {tbmon.keyed(key, "task_received", name).hex() for key in keys for name in told}
    assert {one["data"]["taskIdHash"] for one in found if one["type"] == "task_received"} == names


def test_a_confirmed_invoice_is_told_and_an_unconfirmed_one_waits(station: Make) -> None:
    here: Station = station(AWAY).opt_in()
    database = here.logs / "x-eventDB.json"
    database.write_text(event_db(IDS[0]))
    follower = tbmon.DirectoryFollower(here.monitor)
    follower.step()
    line = invoice(IDS[0], "pay", "7123456717698608000004")
    (here.logs / "worker.log").write_text(header(line, BEGIN // 1000 + 5) + "\n")
    follower.step()
    assert here.waiting() == []
    record = json.loads(line.partition("got ")[2])
    database.write_text(json.dumps({"records": [record]}))
    follower.events.next_s = 0
    follower.step()
    assert [json.loads(one)["type"] for one in here.waiting()] == ["invoice_created"]


@pytest.mark.parametrize("opted_in", ["before", "after"])
def test_what_was_there_at_the_start_is_never_told(station: Make, opted_in: str) -> None:
    here: Station = station(AWAY)
    if opted_in == "before":
        here.opt_in()
    log, second = here.logs / "worker.log", BEGIN // 1000 + 5
    past = [
        received(IDS[0]),
        f"Execution {IDS[0]} completed",
        invoice(IDS[0], "pay", "71"),
        received(IDS[1]),
    ]
    log.write_text("".join(header(line, second) + "\n" for line in past))
    follower = tbmon.DirectoryFollower(here.monitor)
    follower.step()
    here.step(1)
    if opted_in == "after":
        here.opt_in()
    assert here.waiting() == []
    text, second = log.read_text(), here.now // 1000 + 5
    now = [received(IDS[2]), f"Execution {IDS[2]} completed", invoice(IDS[2], "pay", "72")]
    log.write_text(text + "".join(header(line, second) + "\n" for line in now))
    follower.step()
    assert kinds([{"payload": one} for one in here.waiting()]) == ALL_OF_ONE


# Silent times, full disks, two at once


BY_PASSWORD = {"HTTP_X_TASK_DATA_PASSWORD": "x"}
ASKED = tbmon.Call(tbmon.Caller("127.0.0.1", None, BY_PASSWORD), {}, {}, {})


@pytest.mark.parametrize("silent", [{"level": "maximum"}, {"tasks": False}], ids=str)
def test_what_happened_while_nothing_might_be_told_is_not_told_later(
    station: Make, silent: dict[str, Any]
) -> None:
    here: Station = station(AWAY).opt_in(**silent)
    assert here.queue(IDS[0]) == []
    here.now += 1000
    here.outbox.keep(level="balanced", tasks=True)
    task = here.store.task(IDS[0])
    assert task is not None
    with here.store.write() as db:
        here.outbox.offer(db, [task], ())
    assert here.waiting() == []


def test_opting_out_works_where_the_keys_cannot_be_written(station: Make) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    assert len(here.queue(IDS[0])) == 1
    here.federation.start()
    (here.folder / "federation.keys.part").mkdir()
    assert here.api.disable(ASKED)["connected"] is False
    assert (here.outbox.sharing.enabled, here.federation.thread, here.waiting()) == (
        False,
        None,
        [],
    )


def test_opting_out_ends_the_thread_where_the_disk_is_full(
    station: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    here.federation.start()

    def full() -> Any:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(here.store, "write", full)
        with pytest.raises(sqlite3.OperationalError):
            here.api.disable(ASKED)
    assert here.federation.thread is None


def test_a_change_that_cannot_be_kept_leaves_the_federation_as_it_was(
    station: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    here.federation.start()
    before, put = here.outbox.servers(), here.store.put

    def full(db: sqlite3.Connection, what: str, rows: Any) -> None:
        if what == "state":
            raise sqlite3.OperationalError("database or disk is full")
        put(db, what, rows)

    with monkeypatch.context() as patched:
        patched.setattr(here.store, "put", full)
        with pytest.raises(sqlite3.OperationalError):
            here.api.share(ASKED, servers=("nats://127.0.0.1:2",))
    assert here.outbox.servers() == before
    assert here.federation.thread is not None and here.federation.thread.is_alive()
    here.federation.stop()
    assert here.api.enable(ASKED)["success"] and here.federation.thread is not None
    here.federation.stop()


def test_a_key_that_cannot_be_kept_costs_a_message_and_not_the_transaction(station: Make) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    (here.folder / "federation.keys.part").mkdir()
    assert here.queue(IDS[0]) == []
    assert here.store.task(IDS[0]) is not None
    assert here.api.federation_counts()["dropped"] == 1


def test_two_resets_at_once_leave_the_federation_on(station: Make) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    here.federation.start()
    resets = [threading.Thread(target=here.api.reset, args=(ASKED,)) for _ in range(2)]
    for one in resets:
        one.start()
    for one in resets:
        one.join()
    assert here.outbox.sharing.enabled and here.federation.thread is not None
    here.federation.stop()


def test_nothing_starts_after_the_end(station: Make) -> None:
    here: Station = station(AWAY).opt_in(level="balanced")
    here.federation.ended = True
    here.federation.start()
    assert here.federation.thread is None
