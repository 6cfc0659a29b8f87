"""Who is let in where: each credential at each door of the hub's files, on a current nats-server and
on one that is below the least safe version.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest
from support.hub_conf import (
    AGGREGATOR,
    DOORS,
    LEAF,
    LEAVES,
    MONITOR,
    UNCHECKED,
    UPGRADE,
    WEB,
    WITH_TLS,
    Client,
    Server,
    certificate,
    free_address,
)
from support.hubs import LOOPBACK, STATS, Papers, papers
from support.machine import wait_for
from support.nats_servers import KINDS, nats_server, version_of

import aggregator

CREDENTIALS = {
    "nobody": {},
    "a name": {"user": "leaf"},
    "no password": {"user": "leaf", "pass": ""},
    "empty": {"user": "", "pass": ""},
    "the account's name": {"user": "NOBODY", "pass": ""},
    "a remote account": {"remote_account": "TRUEBIT", "account": "TRUEBIT"},
    "monitor": {"user": "monitor", "pass": MONITOR},
    "aggregator": {"user": "aggregator", "pass": AGGREGATOR},
    "leaf": {"user": "leaf", "pass": LEAF},
    "leaf with the participants' password": {"user": "leaf", "pass": MONITOR},
    "leaf with the aggregator's password": {"user": "leaf", "pass": AGGREGATOR},
    "monitor with the leaves' password": {"user": "monitor", "pass": LEAF},
}
CLIENTS_IN = {
    (user, door) for user in ("monitor", "aggregator") for door in ("client", "websocket")
}
LEAVES_IN = {("leaf", door) for door in ("leaf", "leaf by websocket")}
LET_IN = {
    "nats-server.conf": CLIENTS_IN,
    "nats-server-tls.conf": CLIENTS_IN,
    "nats-leafhub.conf": CLIENTS_IN | LEAVES_IN,
}
LISTS = (  # where a server answers with the addresses of others
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
    "$SYS.REQ.SERVER.PING.CONNZ",
    "$SYS.REQ.SERVER.PING.LEAFZ",
    "$SYS.REQ.ACCOUNT.PING.STATZ",
    "$SYS.REQ.ACCOUNT.LEAVES.LEAFZ",
    "$SYS.REQ.ACCOUNT.LEAVES.CONNZ",
    "$SYS.REQ.ACCOUNT.TRUEBIT.CONNZ",
)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Whose nats-server it is."""
    return str(request.param)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Papers:
    return papers(tmp_path_factory.mktemp("tls") / "papers")


@pytest.fixture(scope="module", params=LET_IN)
def hub(
    request: pytest.FixtureRequest, kind: str, own: Papers, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A hub with one of the files."""
    address = free_address()
    more = certificate(own, address) if request.param in WITH_TLS else {}
    made = Server(tmp_path_factory.mktemp("hub"), request.param, address, kind, **more)
    yield made.start()
    made.close()


def try_door(hub: Server, door: str, login: dict[str, str]) -> Client | None:
    """The connection, if the hub lets it in."""
    with contextlib.suppress(ConnectionError):
        one = hub.enter(door, **login).settle()
        if not one.closed and not one.errors:
            return one
    return None


def test_each_credential_opens_the_doors_it_is_for_and_no_other(hub: Server) -> None:
    tried = {
        (name, door): try_door(hub, door, login)
        for name, login in CREDENTIALS.items()
        for door in DOORS
    }
    assert {way for way, one in tried.items() if one} == LET_IN[hub.config.name]
    accounts = {one["account"] for one in hub.ask("leafz").get("leafs") or ()}
    assert accounts <= {"LEAVES"}


def addresses_told(hub: Server, door: str, login: dict[str, str]) -> list[bytes]:
    """What comes back where somebody who is let in asks who else is there."""
    one = hub.enter(door, **login).subscribe(STATS).settle()
    for subject in LISTS:
        one.publish(subject, b"{}", STATS)
        if hub.enter(door, **login).publish(subject, b"{}", STATS).settle().heard:
            one.settle()
    hub.client("aggregator").publish(STATS, b"end").settle()
    with contextlib.suppress(AssertionError):
        one.wait(1, 2)
    return [message.payload for message in one.settle().heard if message.payload != b"end"]


def test_whoever_has_the_participants_password_is_told_no_address(hub: Server) -> None:
    for door in ("leaf", "leaf by websocket"):
        try_door(hub, door, CREDENTIALS["leaf"])
    for door in ("client", "websocket"):
        assert addresses_told(hub, door, CREDENTIALS["monitor"]) == []


def test_a_site_is_not_told_the_addresses_of_the_others(hub: Server) -> None:
    """A server below 2.12.6 may tell it: one reason more for the least version."""
    if LET_IN[hub.config.name] >= LEAVES_IN:
        told = addresses_told(hub, "leaf", CREDENTIALS["leaf"])
        assert told == [] or version_of(hub.program) < aggregator.SAFE_SERVER


def test_only_the_hub_with_leaf_nodes_has_a_port_for_them(hub: Server) -> None:
    if LET_IN[hub.config.name] >= LEAVES_IN:
        assert hub.ask("varz")["leaf"]["port"] == LEAVES
        return
    assert "port" not in hub.ask("varz")["leaf"]
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((hub.address, LEAVES), 5)


def test_the_door_that_tells_about_the_server_is_open_to_its_own_machine_only(hub: Server) -> None:
    assert hub.ask("varz")["http_host"] == LOOPBACK
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((hub.address, hub.watch_port), 5)


# Twenty bytes


MASK = b"\0\0\0\0"
ENDLESS = b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + MASK + b"CONNEC"


def send_endless_frame(hub: Server, path: bytes) -> None:
    """As somebody without a password; the server may cut it off, or wait for the rest."""
    with socket.create_connection((hub.address, WEB), 5) as plain:
        is_tls = hub.config.name in WITH_TLS
        one = UNCHECKED.wrap_socket(plain) if is_tls else plain
        with one, contextlib.suppress(ConnectionError, TimeoutError):
            one.settimeout(1)
            one.sendall(UPGRADE % path)
            assert b" 101 " in one.recv(4096)
            one.sendall(ENDLESS)
            while one.recv(4096):
                pass


def test_a_frame_that_claims_to_be_endless_does_not_end_the_hub(
    kind: str, own: Papers, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert len(ENDLESS) == 20
    for name in LET_IN:
        address = free_address()
        more = certificate(own, address) if name in WITH_TLS else {}
        hub = Server(tmp_path_factory.mktemp("frame"), name, address, kind, **more)
        with contextlib.closing(hub.start()):
            send_endless_frame(hub, b"/")
            if version_of(hub.program) >= aggregator.SAFE_SERVER:
                send_endless_frame(hub, b"/leafnode")
                assert not hub.ended() and hub.client().refusals() == []
            elif version_of(hub.program) == (2, 9, 10):  # it shows that the frame is what ends it
                wait_for(hub.ended)


def test_the_current_server_is_a_safe_one() -> None:
    assert version_of(nats_server()) >= aggregator.SAFE_SERVER
