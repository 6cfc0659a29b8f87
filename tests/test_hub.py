"""The shipped configurations of the hub: what each user can do, what is refused, and what outlives
a server.
"""

from __future__ import annotations

import functools
import itertools
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.hub_conf import (
    AGGREGATOR,
    CLIENTS,
    DEPLOY,
    LEAF,
    LEAVES,
    MONITOR,
    PRESENCE,
    ROUTES,
    TASKS,
    WEB,
    Client,
    Server,
    TapOf,
    certificate,
    consume,
    free_address,
    make_streams,
    state,
)
from support.hubs import LOOPBACK, STATS, SUBJECTS, Papers, Station, papers
from support.machine import wait_for
from support.nats_servers import KINDS

from aggregator import STREAMS

Make = Callable[..., Any]
AS_MONITOR = {"federation_nats_user": "monitor", "federation_nats_password": MONITOR}
RECEIVED = "truebit.tasks.received"
QUESTION, INBOX = "truebit.aggregator", "_INBOX.aggregator.x"
ELSEWHERE = (
    STATS,
    QUESTION,
    INBOX,
    "_INBOX.x",
    "truebit",
    "truebit.tasks",
    "truebit.tasks.other",
    "truebit.heartbeat.x",
    "TRUEBIT.HEARTBEAT",
    "truebit.nodes",
    "x",
    "$JS.API.INFO",
    f"$JS.API.STREAM.CREATE.{TASKS}",
    f"$JS.API.STREAM.PURGE.{TASKS}",
    f"$JS.API.STREAM.DELETE.{TASKS}",
    f"$JS.API.STREAM.INFO.{TASKS}",
    "$JS.API.STREAM.NAMES",
    f"$JS.API.STREAM.MSG.GET.{TASKS}",
    f"$JS.API.DIRECT.GET.{TASKS}",
    f"$JS.API.CONSUMER.MSG.NEXT.{TASKS}.aggregator",
    f"$JS.API.CONSUMER.DELETE.{TASKS}.aggregator",
    f"$JS.ACK.{TASKS}.aggregator.1.1.1.1.1",
    f"$JS.FC.{TASKS}.aggregator.x",
    "$SYS.REQ.USER.INFO",
    "$SYS.REQ.SERVER.PING",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$LDS.x",
    "_R_.x",
    "_GR_.x",
)
UNTAKEN = (
    f"$JS.ACK.{TASKS}.aggregator.1.1.1.1.1",
    "_R_.x",
    "_GR_.x",
)  # refused as reply subjects by the server itself
SECRETS = (
    *SUBJECTS,
    ">",
    "*",
    "*.*",
    "*.*.*",
    "truebit.>",
    "truebit.*",
    "truebit.*.*",
    "truebit.stats.*",
    "truebit.stats.>",
    "*.stats.aggregated",
    QUESTION,
    INBOX,
    "_INBOX.>",
    "_INBOX.*",
    "_INBOX.aggregator.>",
    "$JS.>",
    "$JS.API.>",
    "$JS.EVENT.>",
    "$JS.ACK.>",
    "$SYS.>",
    "$SYS.ACCOUNT.*.CONNECT",
    "$SYS.REQ.USER.INFO",
    "_R_.>",
    "$LDS.>",
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Whose nats-server it is that a test runs."""
    return str(request.param)


@pytest.fixture
def server(kind: str, tmp_path: Path) -> Iterator[Make]:
    """Makes running Servers, and ends them."""
    made: list[Server] = []

    def make(name: str = "nats-server.conf", start: bool = True, **settings: str) -> Server:
        made.append(Server(tmp_path, name, kind=kind, **settings))
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture(scope="module")
def plain(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The plain hub with its streams, for tests that leave it as it is."""
    made = Server(tmp_path_factory.mktemp("hub"), kind=kind).start()
    yield with_streams(made)
    made.close()


@pytest.fixture(scope="module")
def leafhub(kind: str, own: Papers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The hub with a port for leaf nodes, for tests that leave it as it is."""
    folder, address = tmp_path_factory.mktemp("leafhub"), free_address()
    papers_there = certificate(own, address)
    made = Server(folder, "nats-leafhub.conf", address, kind, **papers_there).start()
    yield with_streams(made)
    made.close()


def with_streams(made: Server) -> Server:
    """A hub whose streams have something in them."""
    make_streams(made)
    made.client().publish(RECEIVED, b"before").publish("truebit.heartbeat", b"before").settle()
    consume(made, count=1)
    return made


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return papers(tmp_path_factory.mktemp("tls") / "papers")


@pytest.fixture
def either(server: Make, own: Papers) -> Make:
    """Makes a hub with TLS, or without, as a scheme needs it."""

    def make(scheme: str) -> Server:
        if scheme in ("nats", "ws"):
            return server()  # type: ignore[no-any-return]
        address = free_address()
        return server("nats-server-tls.conf", address=address, **certificate(own, address))  # type: ignore[no-any-return]

    return make


@pytest.fixture
def leaf_hub(server: Make, own: Papers) -> Make:
    """Makes a hub that lets leaf nodes in."""

    def make() -> Server:
        address = free_address()
        return server("nats-leafhub.conf", address=address, **certificate(own, address))  # type: ignore[no-any-return]

    return make


# The files


HUB = ("LISTEN", "STORE_DIR", "MONITOR_PASSWORD", "AGGREGATOR_PASSWORD")
FILES = {
    "nats-server.conf": HUB,
    "nats-server-tls.conf": (*HUB, "TLS_CERT", "TLS_KEY"),
    "nats-leafhub.conf": (*HUB, "TLS_CERT", "TLS_KEY", "LEAF_PASSWORD"),
    "nats-cluster.conf": (*HUB, "SERVER_NAME", "CLUSTER_PASSWORD", "ROUTES"),
    "nats-leaf.conf": ("LISTEN", "MONITOR_PASSWORD", "HUB_URL"),
}


def heading(name: str) -> str:
    return (DEPLOY / name).read_text().split("\n\n")[0]


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_valid_with_the_variables_it_names_and_no_fewer(
    name: str, kind: str, own: Papers, tmp_path: Path
) -> None:
    server = Server(
        tmp_path,
        name,
        kind=kind,
        SERVER_NAME="a",
        CLUSTER_PASSWORD="r",
        ROUTES="[nats://route:r@10.0.0.2:6222]",
        TLS_CERT=str(own.cert),
        TLS_KEY=str(own.key),
        HUB_URL="wss://leaf:x@hub.example.org:9086",
    )
    check = (server.program, "-c", str(server.config), "-t")
    needed = {variable: server.env[variable] for variable in FILES[name]}
    assert subprocess.run(check, env=needed, capture_output=True).returncode == 0
    for variable in needed:
        left = {key: value for key, value in needed.items() if key != variable}
        refused = subprocess.run(check, env=left, capture_output=True, text=True)
        assert refused.returncode == 1
        assert f"'{variable}'" in refused.stderr
        there = FILES["nats-server-tls.conf" if name == "nats-leafhub.conf" else "nats-server.conf"]
        assert variable in heading(name) or (
            "(and the variables there)" in heading(name) and variable in there
        )


def test_each_file_is_tested() -> None:
    assert {path.name for path in DEPLOY.glob("nats-*")} == set(FILES)


def block(text: str, name: str) -> str:
    """What stands between the brackets after a name, or before the next block of its depth."""
    begin = text.index(f"{name}: [\n")
    indent = " " * (begin - text.rindex("\n", 0, begin) - 1)
    return text[begin : text.index(f"\n{indent}]", begin)]


def test_the_hub_with_leaf_nodes_gives_its_users_the_same_rights() -> None:
    """The file has to write them again, since the server replaces a block whole."""
    texts = [(DEPLOY / name).read_text() for name in ("nats-server.conf", "nats-leafhub.conf")]
    accounts = [text[text.index("    TRUEBIT {\n") :] for text in texts]
    assert block(accounts[0], "users") == block(accounts[1], "users")
    assert [text.count("user: ") for text in accounts] == [2, 2]
    jetstream = [text[text.index("jetstream {") : text.index("users:")] for text in accounts]
    assert jetstream[0] == jetstream[1]


def test_the_limits_are_in_force_and_only_this_machine_may_watch(plain: Server) -> None:
    told = plain.ask("varz")
    assert told["http_host"] == LOOPBACK
    assert (told["port"], told["websocket"]["port"]) == (CLIENTS, WEB)
    limits = {
        "max_payload": 65536,
        "max_control_line": 4096,
        "max_connections": 10000,
        "max_subscriptions": 16,
    }
    limits |= {
        "max_pending": 8 << 20,
        "write_deadline": 5 * 10**9,
        "ping_interval": 30 * 10**9,
        "ping_max": 2,
    }
    assert {name: told[name] for name in limits} == limits
    assert (
        told["jetstream"]["config"]["max_storage"]
        == 6 * 2**30
        >= sum(size for _, _, size in STREAMS.values())
    )
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((plain.address, plain.watch_port), 5)


HASHED = "$2a$04$abcdefghijklmnopqrstuuffnlkV9Blm3rh0UdOgXNQf6MG89cSoy"  # bcrypt of hub-word


@pytest.mark.parametrize(
    ("variable", "password"),
    [
        ("a5-_.Z", "a5-_.Z"),
        ('"12,#x"', "12,#x"),
        ('"1e5"', "1e5"),
        (HASHED, "hub-word"),
        (f'"{HASHED}"', "hub-word"),
    ],
)
def test_a_password_written_as_the_file_says_is_the_password(
    server: Make, variable: str, password: str
) -> None:
    made = server(MONITOR_PASSWORD=variable, AGGREGATOR_PASSWORD=variable)
    for user in ("monitor", "aggregator"):
        assert made.client(user, password).refusals() == []
        assert made.client(user, password[:1]).refusals() == ["Authorization Violation"]


@pytest.mark.parametrize("password", ["123", "12e", "true", "-x", "{a", "a b"])
def test_with_a_password_that_is_no_text_the_server_does_not_start(
    server: Make, password: str
) -> None:
    made = server(start=False, MONITOR_PASSWORD=password)
    done = subprocess.run(
        (made.program, "-c", str(made.config)), env=made.env, capture_output=True, timeout=10
    )
    assert done.returncode == 1


@pytest.mark.parametrize(
    "login",
    [
        {"name": "nobody"},
        {"user": "monitor"},
        {"user": "monitor", "pass": ""},
        {"user": "SYS", "pass": ""},
        {"user": "monitor", "pass": AGGREGATOR},
        {"user": "aggregator", "pass": MONITOR},
        {"user": "", "pass": ""},
        {"user": "MONITOR", "pass": MONITOR},
        {"user": "monitor", "pass": MONITOR + " "},
        {"auth_token": MONITOR},
        {"user": "sys", "pass": "sys"},
        {"user": "leaf", "pass": MONITOR},
    ],
)
def test_nobody_else_is_let_in(plain: Server, login: dict[str, str]) -> None:
    one = plain.log_in(**login).publish(RECEIVED)
    assert one.refusals() == ["Authorization Violation"]
    assert one.closed


# What each user can do


def test_each_user_can_do_what_it_must(server: Make) -> None:
    hub = server()
    aggregator = hub.client("aggregator").subscribe(*SUBJECTS, QUESTION, INBOX).settle()
    monitor = hub.client().subscribe(STATS).settle()
    for number, subject in enumerate(SUBJECTS):
        monitor.publish(subject, b"%d" % number)
    assert monitor.refusals() == []
    heard = [(one.subject, one.payload) for one in aggregator.wait(6)]
    assert heard == [(subject, b"%d" % number) for number, subject in enumerate(SUBJECTS)]
    aggregator.publish(STATS, b"x" * 65536).publish(QUESTION, b"one?", INBOX)
    assert aggregator.refusals() == []
    assert [one.payload for one in monitor.wait(1)] == [b"x" * 65536]
    assert aggregator.wait(7)[6].reply == INBOX
    aggregator.publish(INBOX, b"I")
    assert aggregator.wait(8)[7].payload == b"I"


def test_the_streams_keep_what_monitors_send_and_the_aggregator_reads_it(server: Make) -> None:
    hub = server()
    make_streams(hub)
    make_streams(hub)  # as at each start
    monitor, aggregator = hub.client(), hub.client("aggregator")
    for number, subject in enumerate(SUBJECTS):
        monitor.publish(subject, b"%d" % number)
    monitor.publish(RECEIVED, b"x" * 2049)  # over max_msg_size
    assert monitor.refusals() == []
    wait_for(lambda: state(aggregator)["last_seq"] == state(aggregator, PRESENCE)["last_seq"] == 3)
    assert consume(hub, count=3) == [b"3", b"4", b"5"]
    assert consume(hub, stream=PRESENCE, count=3) == [b"0", b"1", b"2"]
    hub.stop()
    hub.start()
    told = hub.client("aggregator").request(f"$JS.API.CONSUMER.INFO.{TASKS}.aggregator")
    assert (told["num_pending"], told["num_ack_pending"], told["ack_floor"]["stream_seq"]) == (
        0,
        0,
        3,
    )
    hub.client().publish(RECEIVED, b"new").settle()
    wait_for(lambda: state(hub.client("aggregator"))["messages"] == 4)
    hub.kill()
    hub.start()
    assert b"new" in consume(hub, count=1)


# What is refused


def test_a_monitor_hears_nothing_but_the_statistics(plain: Server) -> None:
    spy = plain.client()
    for subject in (*SECRETS, f"{RECEIVED} queue", "> queue", f"{QUESTION} queue"):
        refused = spy.subscribe(subject).refusals()
        assert [words.lower().split('"')[1] for words in refused] == [subject.split()[0].lower()], (
            refused
        )
        assert refused[0].startswith("Permissions Violation for Subscription")
    spy.subscribe(STATS).settle()
    plain.client().publish(RECEIVED).publish("truebit.heartbeat").settle()
    plain.client("aggregator").publish(QUESTION, b"?", INBOX).publish(INBOX).publish(
        STATS, b"end"
    ).settle()
    assert [one.payload for one in spy.wait(1)] == [b"end"]


def test_a_monitor_publishes_nowhere_else(plain: Server) -> None:
    aggregator = plain.client("aggregator").subscribe(QUESTION, "_INBOX.aggregator.>").settle()
    listener, before = (
        plain.client().subscribe(STATS).settle(),
        [state(aggregator, name) for name in STREAMS],
    )
    aggregator.heard.clear()
    monitor = plain.client()
    for subject in ELSEWHERE:
        for headers in ({}, {"Nats_Msg_Id": "1"}):
            refused = monitor.publish(
                subject, b"{}", "truebit.tasks.completed", **headers
            ).refusals()
            assert [words.lower() for words in refused] == [
                f'permissions violation for publish to "{subject.lower()}"'
            ]
    assert listener.settle().heard == aggregator.settle().heard == []
    assert [state(aggregator, name) for name in STREAMS] == before


def test_the_aggregator_can_neither_change_nor_empty_what_is_kept(plain: Server) -> None:
    aggregator, verbs = (
        plain.client("aggregator"),
        ("PURGE", "DELETE", "UPDATE", "MSG.DELETE", "MSG.GET", "SNAPSHOT"),
    )
    wanted = [
        f"$JS.API.STREAM.{verb}.{name}"
        for verb in (*verbs, "RESTORE", "LEADER.STEPDOWN")
        for name in STREAMS
    ]
    wanted += [
        f"$JS.API.{what}.OTHER" for what in ("STREAM.CREATE", "STREAM.INFO", "CONSUMER.LIST")
    ]
    consumers = (
        f"DELETE.{TASKS}.aggregator",
        f"CREATE.{TASKS}",
        f"CREATE.{TASKS}.x",
        f"MSG.NEXT.{TASKS}.x",
    )
    wanted += [f"$JS.API.CONSUMER.{what}" for what in consumers]
    wanted += ["$JS.ACK.OTHER.aggregator.1", "_INBOX.x", "$SYS.REQ.SERVER.PING", "x", *SUBJECTS]
    for subject in wanted:
        refused = aggregator.publish(subject, b"{}", INBOX).refusals()
        assert [words.lower() for words in refused] == [
            f'permissions violation for publish to "{subject.lower()}"'
        ]
    for subject in (">", "truebit.>", "_INBOX.>", "$JS.>", "$SYS.>", STATS):
        assert (
            "Permissions Violation for Subscription" in aggregator.subscribe(subject).refusals()[0]
        )


def test_a_connection_has_so_many_subscriptions_and_no_more(plain: Server) -> None:
    one = plain.client().subscribe(*[STATS] * 16)
    assert one.refusals() == []
    assert one.subscribe(STATS).refusals() == ["maximum subscriptions exceeded"]
    plain.client("aggregator").publish(STATS).settle()
    assert len(one.wait(16)) == 16


def test_what_is_too_large_ends_the_connection(plain: Server) -> None:
    before = state(plain.client("aggregator"))
    large = (
        plain.client().publish(RECEIVED, b"x" * 65537),
        plain.client().publish(RECEIVED, b"x" * 65530, A="1"),
    )
    long = plain.client()
    long.send(b"PUB " + b"x" * 4097)
    for one in (*large, long):
        reason = "maximum control line exceeded" if one is long else "maximum payload violation"
        assert [words.lower() for words in one.refusals()] == [reason]
        assert one.closed
    assert state(plain.client("aggregator")) == before


# Reply subjects and headers, which the server does not judge


def grown(before: dict[str, Any], count: int) -> dict[str, Any]:
    """A stream that has so many more messages, and differs in nothing else."""
    return {**before, **{name: before[name] + count for name in ("messages", "last_seq")}}


def test_a_reply_subject_sends_nothing_anywhere(plain: Server) -> None:
    aggregator = plain.client("aggregator").subscribe(QUESTION, "_INBOX.aggregator.>").settle()
    listener, monitor = plain.client().subscribe(STATS).settle(), plain.client()
    before = {name: state(aggregator, name) for name in STREAMS}
    aggregator.heard.clear()
    replies = (*ELSEWHERE, *SUBJECTS)
    for reply, subject in itertools.product(replies, SUBJECTS):
        monitor.publish(subject, b'{"name": "OTHER", "subjects": ["x"]}', reply)
        monitor.publish(subject, b"x" * 2049, reply)  # which the stream refuses
    assert {words.split('"')[1] for words in monitor.refusals()} == set(UNTAKEN)
    count = 3 * (len(replies) - len(UNTAKEN))
    wait_for(lambda: state(aggregator)["last_seq"] >= before[TASKS]["last_seq"] + count)
    for name in STREAMS:
        assert state(aggregator, name) == grown(before[name], count)
    assert listener.settle().heard == aggregator.settle().heard == monitor.heard == []
    assert set(consume(plain, count=count)) >= {b'{"name": "OTHER", "subjects": ["x"]}'}


def test_headers_delete_replace_and_hold_up_nothing(plain: Server) -> None:
    aggregator, monitor = plain.client("aggregator"), plain.client()
    count = state(aggregator)["last_seq"]
    monitor.publish(RECEIVED, b"first").settle()
    wait_for(lambda: state(aggregator)["last_seq"] > count)  # the stream stores it a moment later
    before = state(aggregator)
    refused = (
        {"Nats_Rollup": "all"},
        {"Nats_Rollup": "sub"},
        {"Nats_Expected_Stream": "OTHER"},
        {"Nats_Expected_Last_Sequence": "10000"},
        {"Nats_Expected_Last_Msg_Id": "x"},
        {"Nats_Expected_Last_Subject_Sequence": "10000"},
    )
    for headers in refused:
        monitor.publish(RECEIVED, b"refused", "", **headers)
    kept: tuple[dict[str, str], ...] = (
        {"Nats_Msg_Id": "a"},
        {"Status": "503"},
        {"Nats_Expected_Stream": TASKS},
        {"Nats_Sequence": "1"},
    )
    for headers in kept:
        monitor.publish(RECEIVED, b"kept", "", **headers)
    assert monitor.publish(RECEIVED, b"last").refusals() == []
    wait_for(lambda: state(aggregator)["last_seq"] >= before["last_seq"] + len(kept) + 1)
    assert state(aggregator) == grown(before, len(kept) + 1)
    assert before["config"]["deny_purge"] and not before["config"].get("allow_rollup_hdrs")


def test_a_message_id_in_a_header_hides_no_message_without_one(plain: Server) -> None:
    """De-duplication knows the header only: tbmon sends none, and its ids are 128 random bits
    within the message.
    """
    aggregator, monitor = plain.client("aggregator"), plain.client()
    before, own = state(aggregator), b'{"id": "6f1c2a"}'
    assert before["config"]["duplicate_window"] == 10**8  # the least that is allowed
    monitor.publish(RECEIVED, b"forged", "", Nats_Msg_Id="6f1c2a")
    monitor.publish(RECEIVED, own).publish(RECEIVED, own).settle()
    wait_for(lambda: state(aggregator)["messages"] == before["messages"] + 3)


# tbmon itself


def deliver(made: Station) -> bytes:
    """Let a Station send one message, and return it."""
    [payload] = made.opt_in().queue("11111111-1111-4000-8000-00000000abcd")
    made.step()
    made.federation.start()
    wait_for(lambda: not made.waiting() or made.error() != "None")
    assert made.error() == "None"
    return payload


def exchange(made: Station, hub: Server) -> None:
    """A Station's message comes to the hub, and the hub's statistics to the Station."""
    aggregator = hub.client("aggregator").subscribe(*SUBJECTS).settle()
    payload = deliver(made)
    wait_for(
        lambda: (
            [one.payload for one in aggregator.settle().heard if one.subject == RECEIVED]
            == [payload]
        )
    )
    assert made.counts()["ignored"] == 0
    aggregator.publish(STATS, b"no statistics")
    wait_for(lambda: made.counts()["ignored"] == 1)
    assert aggregator.refusals() == []


@pytest.mark.parametrize("scheme", ["nats", "ws", "tls", "wss"])
def test_tbmon_speaks_to_the_hub(either: Make, station: Make, own: Papers, scheme: str) -> None:
    hub = either(scheme)
    exchange(station(hub.url(scheme), federation_tls_ca=str(own.ca), **AS_MONITOR), hub)
    assert "iolation" not in hub.log()


def test_the_tls_variants_let_nobody_in_without_tls(leafhub: Server) -> None:
    hub = leafhub
    for port, said, answer in (
        (
            CLIENTS,
            b'CONNECT {"user":"monitor","pass":"%s"}\r\nPING\r\n' % MONITOR.encode(),
            b"PONG",
        ),
        (LEAVES, b'CONNECT {"user":"leaf","pass":"%s"}\r\nPING\r\n' % LEAF.encode(), b"PONG"),
        (
            WEB,
            b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
            b"101",
        ),
    ):
        with socket.create_connection((hub.address, port), 10) as one, one.makefile("rb") as file:
            one.sendall(said)
            try:
                heard = file.read()
            except ConnectionError:
                heard = b""
        assert answer not in heard


# Leaf nodes


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_monitor_behind_a_leaf_takes_part_and_hears_nobody_else(
    leaf_hub: Make, server: Make, station: Make, own: Papers, scheme: str
) -> None:
    hub = leaf_hub()
    make_streams(hub)
    inside = {
        "HUB_URL": hub.url(scheme, "leaf"),
        "MONITOR_PASSWORD": "leaf-5be1",
        "SSL_CERT_FILE": str(own.ca),
    }
    leaf: Server = server("nats-leaf.conf", **inside)
    wait_for(lambda: hub.leaves() == leaf.leaves() == 1)
    login = {"user": "monitor", "pass": "leaf-5be1"}
    spy = leaf.log_in(**login)
    for subject in SECRETS:
        assert "Permissions Violation for Subscription" in spy.subscribe(subject).refusals()[0]
    for subject in ELSEWHERE:
        assert "Permissions Violation for Publish" in spy.publish(subject).refusals()[0]
    spy.subscribe(STATS).settle()
    exchange(
        station(leaf.url(), federation_nats_user="monitor", federation_nats_password="leaf-5be1"),
        hub,
    )
    hub.client().publish(RECEIVED, b"of another").settle()
    assert [one.payload for one in spy.wait(1)] == [b"no statistics"]
    wait_for(lambda: state(hub.client("aggregator"))["messages"] == 2)
    for refused in (
        {"name": "x"},
        {"user": "monitor", "pass": MONITOR},
        {"user": "aggregator", "pass": AGGREGATOR},
    ):
        assert leaf.log_in(**refused).refusals() == ["Authorization Violation"]


HOSTILE = """
host: $LISTEN
port: 4222
http: 127.0.0.1:8222
leafnodes {remotes: [{urls: [$HUB_URL], tls {insecure: true}}]}
"""


def hostile_leaf(server: Make, folder: Path, url: str) -> Server:
    config = folder / "hostile.conf"
    config.write_text(HOSTILE)
    return server(str(config), HUB_URL=url)  # type: ignore[no-any-return]


@pytest.mark.parametrize("manners", ["server", "raw"])
def test_a_hostile_leaf_can_do_no_more_than_a_monitor(
    leafhub: Server, server: Make, tmp_path: Path, manners: str
) -> None:
    """A nats-server in which everybody may do everything, and a leaf that says what no server
    would.
    """
    aggregator = (
        leafhub.client("aggregator").subscribe(QUESTION, INBOX, "truebit.heartbeat").settle()
    )
    listener, before = (
        leafhub.client().subscribe(STATS).settle(),
        [state(aggregator, name) for name in STREAMS],
    )
    leaf = (
        hostile_leaf(server, tmp_path, leafhub.url("tls", "leaf")) if manners == "server" else None
    )
    wait_for(lambda: leaf is None or leaf.leaves() == 1)

    def enter() -> Client:
        return leaf.log_in(name="hostile") if leaf else leafhub.raw_leaf()

    spies = [enter().subscribe(subject).settle() for subject in (*SECRETS, STATS)]
    for subject in ELSEWHERE:  # a connection each: newer servers close it
        enter().publish(subject, b"elsewhere", "" if leaf else "truebit.invoices.created").settle()
        enter().publish(RECEIVED, b"replied", subject).settle()
    enter().publish("truebit.heartbeat", b"last").settle()
    assert [one.payload for one in aggregator.wait(1)] == [b"last"]
    assert state(aggregator) == grown(before[0], len(ELSEWHERE) - (len(UNTAKEN) if leaf else 0))
    assert state(aggregator, PRESENCE) == grown(before[1], 1)
    for another in (leafhub.client(), leafhub.raw_leaf()):
        another.publish(RECEIVED, b"of another").publish(
            "truebit.heartbeat", b"of another"
        ).settle()
    leafhub.client("aggregator").publish(QUESTION, b"?", INBOX).publish(INBOX, b"?").publish(
        STATS, b"end"
    ).settle()
    assert [one.payload for one in listener.wait(1)] == [b"end"]
    wait_for(lambda: b"end" in [one.payload for one in spies[-1].settle().heard])
    assert {b"of another", b"?"}.isdisjoint(
        one.payload for spy in spies for one in spy.settle().heard
    )


def refused_login(leaf: Server) -> bool:
    return "Authorization Violation" in leaf.log()


def test_the_other_users_open_no_leaf_node_and_the_leafs_no_other_door(
    leafhub: Server, server: Make, tmp_path: Path
) -> None:
    for user in ("monitor", "aggregator"):
        leaf = hostile_leaf(server, tmp_path, leafhub.url("tls", user))
        wait_for(functools.partial(refused_login, leaf))
        assert leaf.leaves() == 0
    assert leafhub.client("leaf").refusals() == ["Authorization Violation"]


CLEAR_LEAVES = """
host: $LISTEN
port: 4222
websocket {host: $LISTEN, port: 9086, no_tls: true}
leafnodes {host: $LISTEN, port: 7422}
authorization {user: leaf, password: $LEAF_PASSWORD}
"""


@pytest.mark.parametrize("scheme", ["tls", "wss"])
def test_a_leaf_tells_its_password_to_no_hub_without_tls(
    server: Make, listening: Make, tmp_path: Path, scheme: str
) -> None:
    (tmp_path / "clear.conf").write_text(CLEAR_LEAVES)
    clear: Server = server(str(tmp_path / "clear.conf"))
    tap = listening(TapOf(clear.address, LEAVES if scheme == "tls" else WEB))
    leaf: Server = server("nats-leaf.conf", HUB_URL=f"{scheme}://leaf:{LEAF}@{LOOPBACK}:{tap.port}")
    wait_for(lambda: len(tap.said) >= 2)  # it has tried, and tries again
    assert leaf.leaves() == 0
    assert all(word not in tap.everything for word in (LEAF.encode(), b"CONNECT", b"leaf"))


# A cluster


def cluster(server: Make) -> list[Server]:
    """Three servers that have found each other and agreed who leads."""
    addresses = [free_address() for _ in range(3)]
    made = []
    for one in addresses:
        routes = ", ".join(
            f"nats://route:route-3c7d@{other}:{ROUTES}" for other in addresses if other != one
        )
        more = {
            "SERVER_NAME": f"hub-{one}",
            "CLUSTER_PASSWORD": "route-3c7d",
            "ROUTES": f"[{routes}]",
        }
        made.append(server("nats-cluster.conf", address=one, **more))
    wait_for(lambda: all(agreed(one) for one in made), 30)
    return made


def agreed(one: Server) -> bool:
    told = one.ask("jsz").get("meta_cluster") or {}
    return bool(told.get("leader")) and told.get("cluster_size") == 3


class Load:
    """What was sent, and what of it the aggregator has seen."""

    def __init__(self) -> None:
        self.sent: set[bytes] = set()
        self.seen: set[bytes] = set()

    def send(self, via: Server, left: list[Server]) -> None:
        """Send through one server, and wait until the others have it."""
        monitor, fresh = (
            via.client(),
            [b"%d" % number for number in range(len(self.sent), len(self.sent) + 200)],
        )
        for payload in fresh:
            monitor.publish(RECEIVED, payload)
        assert monitor.refusals() == []
        self.sent.update(fresh)
        wait_for(lambda: stored(left) == len(self.sent))

    def consume(self, left: list[Server], count: int) -> None:
        while len(self.seen) < count:
            self.seen.update(
                consume(*left, count=1 if len(self.seen) == count else count - len(self.seen))
            )


def tasks_at(servers: list[Server]) -> dict[str, Any]:
    asked: Any = servers[0].client("aggregator").request(f"$JS.API.STREAM.INFO.{TASKS}")
    return asked if "state" in asked else {"state": {"messages": -1}, "cluster": {}}


def stored(servers: list[Server]) -> int:
    return int(tasks_at(servers)["state"]["messages"])


def leader(servers: list[Server]) -> Server | None:
    """The server that leads the stream of tasks, if there is one."""
    name = tasks_at(servers)["cluster"].get("leader")
    return next((one for one in servers if f"hub-{one.address}" == name), None)


def caught_up(servers: list[Server]) -> bool:
    told = tasks_at(servers)["cluster"].get("replicas", [])
    return len(told) == 2 and all(one["current"] and not one.get("offline") for one in told)


def test_three_servers_lose_nothing_with_one_of_them(server: Make) -> None:
    servers, load = cluster(server), Load()
    make_streams(*servers, replicas=3)
    first = wait_for(lambda: leader(servers))
    lost = next(one for one in servers if one is not first)
    left = [one for one in servers if one is not lost]
    load.send(lost, left)
    load.consume(left, 100)
    lost.kill()
    load.send(left[0], left)
    load.consume(left, 300)
    lost.start()
    wait_for(lambda: caught_up(left))
    first = wait_for(lambda: leader(left))
    left = [one for one in servers if one is not first]
    load.send(first, left)
    first.kill()
    wait_for(lambda: leader(left) in left, 40)
    assert stored(left) == len(load.sent)
    load.send(left[1], left)
    load.consume(left, len(load.sent))
    assert load.seen == load.sent
