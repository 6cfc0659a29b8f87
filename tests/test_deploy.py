"""The image and the compose files on a real engine, as an operator runs them, with a real hub and
real proxies.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import random
import re
import shlex
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import ROOT, stand_in
from support.deployment import compose
from support.engine import IMAGE, SOCKET, Node, docker
from support.hub_conf import AGGREGATOR, DOORS, LEAF, MONITOR, certificate
from support.hubs import free_port, papers
from support.machine import wait_for
from support.node_words import header

import tbmon

LOOPBACK = "127.0.0.1"


@pytest.fixture(scope="module")
def images(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """{service of a compose file: image to run it with}."""
    tbmon = stand_in.tbmon_image(tmp_path_factory.mktemp("wheels"))
    stand_ins = {"socket-proxy": stand_in.haproxy_image(), "nats-seed": stand_in.nats_image()}
    yield {"monitor": tbmon, "aggregator": tbmon, **stand_ins}
    docker("rmi", "--force", tbmon)


def names_in(text: str, section: str) -> list[str]:
    """What a part of a compose file declares."""
    part = text.partition(f"\n{section}:\n")[2]
    return re.findall(r"^  ([a-z-]+):$", re.split(r"^\w", part, maxsplit=1, flags=re.M)[0], re.M)


class Stack:
    """A compose file, started as it is but for its images and for the names it takes on this
    machine.
    """

    def __init__(self, file: str, images: dict[str, str], folder: Path, **settings: str) -> None:
        self.project, self.port = f"tbmontest{os.getpid()}x{random.randrange(10**9)}", free_port()
        own = {"PATH": os.environ["PATH"], "HOME": str(folder), "PORT": str(self.port)}
        self.env = {**own, "COMPOSE_PROJECT_NAME": self.project, **settings}
        text = (ROOT / file).read_text()
        services = {name: {"image": images[name]} for name in names_in(text, "services")}
        if "container_name" in text:
            services["monitor"]["container_name"] = f"{self.project}-monitor"
        volumes = {name: {"name": f"{self.project}-{name}"} for name in names_in(text, "volumes")}
        networks = {
            name: {"name": images["network"], "external": True}
            for name in names_in(text, "networks")
        }
        changed = folder / f"{self.project}.json"
        changed.write_text(
            json.dumps({"services": services, "volumes": volumes, "networks": networks})
        )
        self.words = [*compose(), "--file", str(ROOT / file), "--file", str(changed)]
        self.monitor = f"{self.project}-monitor"

    def run(self, *words: str) -> str:
        done = subprocess.run((*self.words, *words), env=self.env, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def __enter__(self) -> Stack:
        try:
            self.run("up", "--detach", "--no-build")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        mine = ("--quiet", "--filter", f"label=com.docker.compose.project={self.project}")
        for kind, more in (("container", ("--all",)), ("network", ()), ("volume", ())):
            if found := docker(
                kind, "ls", *more, *mine
            ).split():  # as `down` does it, in a third of its time
                docker(kind, "rm", *(("--force",) if more else ()), *found)

    def ask(self, path: str, method: str = "GET", **headers: str) -> Any:
        """The answer to a request to the published port; None where nothing answers yet."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(
            f"http://{LOOPBACK}:{self.port}{path}", headers=named, method=method
        )
        with contextlib.suppress(OSError), urllib.request.urlopen(request, timeout=5) as answer:
            body = answer.read().decode()
            return json.loads(body) if "json" in answer.headers["Content-Type"] else body
        return None

    def sees_node(self, **headers: str) -> bool:
        status = self.ask("/api/status", **headers)
        return bool(status and status["container"] and status["container"]["running"])


def password_of(container: str) -> str:
    """What the README's line shows."""
    line = f"docker logs {container} | grep '\N{KEY}'"
    shown = subprocess.run(
        ("sh", "-c", line), capture_output=True, text=True
    ).stdout  # not what misses the pipe
    return shown.split()[-1] if shown else ""


@pytest.fixture(scope="module")
def node(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    made = Node(tmp_path_factory.mktemp("node") / "io")
    made.run()
    yield made
    made.close()


def state(container: str, path: str) -> str:
    return docker("inspect", "--format", f"{{{{{path}}}}}", container)


def test_the_image_needs_neither_root_nor_a_writable_root_and_ends_at_once(
    images: dict[str, str], node: Node
) -> None:
    name, gid = f"{node.name}-image", str(os.stat(SOCKET).st_gid)
    closed = (
        "--read-only",
        "--tmpfs",
        "/tmp",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "no-new-privileges:true",
    )
    source = (
        "--volume",
        f"{SOCKET}:{SOCKET}:ro",
        "--group-add",
        gid,
        "--env",
        f"CONTAINER_NAME={node.name}",
    )
    own = (
        "--health-interval",
        "1s",
        "--volume",
        f"{name}:/app/data",
        "--publish",
        f"{LOOPBACK}::8090",
    )
    docker("run", "--detach", "--name", name, *closed, *source, *own, images["monitor"])
    try:
        wait_for(lambda: state(name, ".State.Health.Status") == "healthy")
        port = docker("port", name, "8090").rpartition(":")[2]
        with urllib.request.urlopen(f"http://{LOOPBACK}:{port}/", timeout=5) as page:
            assert b"<title>" in page.read()
        assert password_of(name)
        assert (
            docker("exec", name, "python", "-c", "import os; print(os.getuid(), os.geteuid())")
            == "10001 10001"
        )
        assert "tbmon.cpython" in docker(
            "exec", name, "python", "-c", "import tbmon; print(tbmon.__cached__)"
        )
        began = time.monotonic()
        docker("stop", "--time", "10", name)
        assert time.monotonic() - began < 8 and state(name, ".State.ExitCode") == "0"
        words = subprocess.run(
            ("docker", "logs", "--tail", "1", name), capture_output=True, text=True
        ).stdout
        assert words.endswith("INFO stopped\n")
    finally:
        docker("rm", "--force", name)
        docker("volume", "rm", name)


def test_the_image_says_what_it_is(images: dict[str, str]) -> None:
    labels = json.loads(docker("inspect", "--format", "{{json .Config.Labels}}", images["monitor"]))
    told = {name.rpartition(".")[2]: value for name, value in labels.items()}
    assert told["title"] == "tbmon" and told["licenses"] == "MIT" and told["version"] == "0.0.1"
    assert docker("run", "--rm", images["monitor"], "aggregator", "--version").startswith(
        "aggregator "
    )


@contextlib.contextmanager
def made_network(name: str) -> Iterator[None]:
    docker("network", "create", name)
    yield
    docker("network", "rm", name)


@pytest.fixture(scope="module")
def site(
    images: dict[str, str], node: Node, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Stack]:
    """A hub, an aggregator that publishes at once, and the standalone monitor, which is let in to
    their network.
    """
    folder, network = tmp_path_factory.mktemp("site"), f"tbmontest{random.randrange(10**9)}"
    named = {**images, "network": network}
    shared = {
        "MONITOR_PASSWORD": MONITOR,
        "AGGREGATOR_PASSWORD": AGGREGATOR,
        "BIND_ADDRESS": free_address(),
    }
    exact = {"STATS_SNAPSHOT_HOURS": "0", "STATS_MIN_NEW_TASKS": "0", "STATS_ROUND_TO": "1"}
    soon = {"PUBLISH_INTERVAL": "1000", "MIN_NODES": "1", **exact}
    hub = {
        "FEDERATION_NATS_URL": "ws://nats-seed:9086",
        "FEDERATION_NATS_USER": "monitor",
        "API_RATE_LIMIT": "0",
    }
    own = {"CONTAINER_NAME": node.name, "FEDERATION_NATS_PASSWORD": MONITOR, **hub}
    with (
        made_network(network),
        Stack("deploy/docker-compose.federation.yml", named, folder, **shared),
        Stack("docker-compose.yml", named, folder, **own) as made,
        Stack("deploy/docker-compose.aggregator.yml", named, folder, **soon, **shared) as counts,
    ):
        docker("network", "connect", network, made.monitor)
        wait_for(
            lambda: "connected to" in counts.run("logs", "aggregator")
        )  # what is sent before is lost
        yield made
        health = counts.run("exec", "-T", "aggregator", "python", "-m", "aggregator", "healthcheck")
        assert health == "ok\n"
        docker("network", "disconnect", network, made.monitor)


def test_the_hub_with_leaf_nodes_lets_in_a_leaf_by_its_own_password_only(
    images: dict[str, str], tmp_path: Path
) -> None:
    own, address = papers(tmp_path / "papers"), free_address()
    settings = {
        "MONITOR_PASSWORD": MONITOR,
        "AGGREGATOR_PASSWORD": AGGREGATOR,
        "LEAF_PASSWORD": LEAF,
        "BIND_ADDRESS": address,
        **certificate(own, address),
    }

    def is_let_in(door: str, user: str, password: str) -> bool:
        kind, port, path = DOORS[door]
        login = {"user": user, "pass": password}
        with contextlib.closing(kind(address, login, port, path, bool(path))) as one:
            return not one.settle().closed

    def listens() -> bool:
        with contextlib.suppress(OSError):
            return is_let_in("client", "monitor", MONITOR)
        return False

    network = f"tbmontest{random.randrange(10**9)}"
    with (
        made_network(network),
        Stack(
            "deploy/docker-compose.leafhub.yml",
            {**images, "network": network},
            tmp_path,
            **settings,
        ),
    ):
        wait_for(listens)
        for door in ("leaf", "leaf by websocket"):
            assert is_let_in(door, "leaf", LEAF)
            assert not is_let_in(door, "leaf", MONITOR) and not is_let_in(door, "monitor", MONITOR)


def free_address() -> str:
    """A loopback address of its own, since the hub's ports are fixed."""
    return f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(1, 255)}"


def test_standalone_follows_the_node_through_the_proxy(site: Stack, node: Node) -> None:
    wait_for(site.sees_node)
    password = wait_for(lambda: password_of(site.monitor))
    node.say(header("Starting services"))
    node.say(header("Said to a container"))

    def said() -> bool:
        answer = site.ask("/api/logs", X_Task_Data_Password=password)
        return any(entry["message"] == "Said to a container" for entry in answer["logs"])

    wait_for(said)
    assert (
        docker("inspect", "--format", "{{json .HostConfig.Binds}}", site.monitor).count(
            "docker.sock"
        )
        == 0
    )


ASKS = """
import http.client, json, socket, sys
for method, path in json.load(sys.stdin):
    one = http.client.HTTPConnection("localhost", timeout=5)
    one.sock = socket.socket(socket.AF_UNIX)
    one.sock.connect("/run/engine/docker.sock")
    one.request(method, path)
    print(one.getresponse().status)
"""
FOLDER = "path=%2Fapp%2Fbuild%2Fdatadb"
NAMED_SO, OF_IMAGE = map(urllib.parse.urlencode, tbmon.candidate_queries("NODE"))
REFUSED = (
    ("POST", "/containers/NODE/json"),
    ("DELETE", "/containers/NODE"),
    ("PUT", f"/containers/NODE/archive?{FOLDER}"),
    ("POST", "/containers/create"),
    ("GET", "/containers/json"),
    ("GET", "/containers/json?all=1"),
    ("GET", "/containers/json?all=1&filters=%7B%7D"),
    ("GET", "/containers/json?all=1&filters=%7B%22name%22%3A%5B%22%22%5D%7D"),
    ("GET", f"/containers/json?{NAMED_SO}&all=1"),
    ("GET", f"/containers/json?{NAMED_SO}&filters=%7B%7D"),
    ("HEAD", f"/containers/NODE/json/../../json?{NAMED_SO}x"),
    ("GET", "/info"),
    ("GET", "/images/json"),
    ("GET", "/containers/other/json"),
    ("GET", "/containers/NODE/export"),
    ("GET", "/containers/NODE/top"),
    ("GET", "/containers/NODE/attach/ws"),
    ("GET", "/containers/NODE/../other/json"),
    ("GET", "/v1.41//_ping"),
    ("GET", "/containers/NODE/json/../../other/json"),
    ("GET", "/containers/NODE/archive"),
    ("GET", "/containers/NODE/archive?path=/etc"),
    ("GET", f"/containers/NODE/archive?p%61th=/etc&{FOLDER}"),
    ("GET", f"/containers/NODE/archive?{FOLDER}&path=/etc"),
    ("GET", f"/containers/NODE/archive?{FOLDER}%2F..%2Fx"),
    ("GET", f"/containers/NODE/archive?{FOLDER}/%2e%2e/x"),
    ("GET", f"/containers/NODE/archive?{FOLDER}x"),
    ("GET", f"/containers/NODE/archive?path=%252Fetc&{FOLDER}"),
)
PASSED = (
    ("GET", "/_ping"),
    ("GET", "/version"),
    ("GET", "/v1.41/version"),
    ("GET", "/containers/NODE/json"),
    ("GET", "/v1.41/containers/NODE/json"),
    ("GET", "/containers/NODE/stats?stream=false&one-shot=true"),
    ("GET", "/containers/NODE/logs?stdout=1&tail=1"),
    ("GET", f"/containers/json?{NAMED_SO}"),
    ("GET", f"/v1.41/containers/json?{OF_IMAGE}"),
    ("GET", "/containers/NODE/archive?path=/app/logs/@truebit"),
    ("GET", "/v1.41/containers/NODE/archive?path=%2Fapp%2Flogs%2F%40truebit"),
    ("HEAD", f"/containers/NODE/archive?{FOLDER}%2F0x12-eventDB.json"),
)


def test_the_proxy_lets_through_what_tbmon_asks_and_nothing_else(site: Stack, node: Node) -> None:
    node.put("/app/logs/@truebit/a.log", b"a\n")
    node.put("/app/build/datadb/0x12-eventDB.json", b"{}")
    asked = [(method, path.replace("NODE", node.name)) for method, path in (*PASSED, *REFUSED)]
    wait_for(site.sees_node)
    words = ("docker", "exec", "--interactive", site.monitor, "python", "-c", ASKS)
    done = subprocess.run(
        words, input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    answers = dict(zip(asked, map(int, done.stdout.split()), strict=True))
    assert {
        call: status for call, status in list(answers.items())[: len(PASSED)] if status != 200
    } == {}
    assert {
        call: status for call, status in list(answers.items())[len(PASSED) :] if status != 403
    } == {}


LEAVES = """
import socket, sys
for _ in range(9):
    with socket.socket(socket.AF_UNIX) as one:
        one.connect("/run/engine/docker.sock")
        one.sendall(f"GET /containers/{sys.argv[1]}/logs?follow=1&stdout=1 HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n".encode())
        assert one.recv(1)
"""


def test_the_proxy_ends_at_the_engine_what_a_reader_has_left(site: Stack, node: Node) -> None:
    wait_for(site.sees_node)
    node.say(header("Something to read"))
    proxy = docker("ps", "--quiet", "--filter", f"name={site.project}.socket-proxy")

    def sockets() -> int:
        return len(docker("exec", proxy, "cat", "/proc/net/unix").splitlines())

    before = sockets()
    docker("exec", site.monitor, "python", "-c", LEAVES, node.name)
    wait_for(
        lambda: sockets() < before + 9
    )  # each one left would be two; the monitor's own come and go


def test_hub_and_aggregator_tell_the_monitor_of_its_network(site: Stack) -> None:
    wait_for(site.sees_node)
    password = password_of(site.monitor)
    assert site.ask("/api/federation/enable", "POST", X_Task_Data_Password=password)["success"]

    def counted() -> bool:
        found = site.ask("/api/federation/network-stats")
        return bool(found["status"] == "connected" and found["activeNodes"] == 1)

    wait_for(counted, 30)
    assert site.ask("/api/federation/disable", "POST")["success"]


def bridge_address() -> str:
    """Where a container reaches this machine; an engine's own word for it is empty when it has just
    been installed.
    """
    return docker("run", "--rm", IMAGE, "busybox", "ip", "route").split()[2]  # default via ADDRESS


@contextlib.contextmanager
def running(words: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(words, stdout=log, stderr=log, cwd=folder)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(5)


@pytest.fixture
def over_tls(engine: None, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The engine over TLS, for holders of a certificate only; and the settings to reach it."""
    own, address, port = papers(tmp_path / "papers"), bridge_address(), free_port()
    made, certificates = certificate(own, address), tmp_path / "engine"
    certificates.mkdir(mode=0o755)
    for name, file in (("ca.pem", own.ca), ("cert.pem", own.cert), ("key.pem", own.key)):
        shutil.copy(file, certificates / name)
        (certificates / name).chmod(0o644)
    shown = f"cert={made['TLS_CERT']},key={made['TLS_KEY']},cafile={own.ca},verify=1"
    listens = f"OPENSSL-LISTEN:{port},bind={address},fork,reuseaddr,{shown}"
    with running([stand_in.command("socat"), listens, f"UNIX-CONNECT:{SOCKET}"], tmp_path):
        yield {
            "ENGINE_DIR": str(certificates),
            "ENGINE_URL": f"tcp://{address}:{port}",
            "ENGINE_TLS": "true",
        }


def tunnel_words(folder: Path, port: int) -> list[str]:
    """The command of the tunnel's unit, with what its specifiers and files stand for."""
    unit = (ROOT / "deploy" / "tbmon-tunnel.service").read_text().replace("\\\n", " ")
    found = re.search(r"^ExecStart=(.+)$", unit, re.M)
    assert found is not None
    means = {
        "%d": str(folder),
        "%t": str(folder),
        "${NODE_SOCKET}": SOCKET,
        "${NODE}": f"ssh://{LOOPBACK}:{port}",
    }
    return [
        re.sub(r"%[dt]|\$\{\w+\}", lambda name: means[name[0]], word)
        for word in shlex.split(found[1])
    ]


@pytest.fixture
def over_ssh(engine: None, tmp_path: Path) -> Iterator[dict[str, str]]:
    """The engine through the tunnel's own command and a real sshd, to which its key opens nothing
    else.
    """
    server, port = stand_in.command("sshd"), free_port()
    for key in ("tunnel-key", "host-key"):
        made = ("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / key))
        subprocess.run(made, check=True)
    public = {key: (tmp_path / f"{key}.pub").read_text() for key in ("tunnel-key", "host-key")}
    (tmp_path / "authorized").write_text(f"restrict,port-forwarding {public['tunnel-key']}")
    (tmp_path / "known_hosts").write_text(f"[{LOOPBACK}]:{port} {public['host-key']}")
    (tmp_path / "tbmon-tunnel").mkdir(mode=0o755)
    tmp_path.chmod(0o755)
    lines = (
        f"ListenAddress {LOOPBACK}:{port}",
        f"HostKey {tmp_path}/host-key",
        "PidFile none",
        "StrictModes no",
        f"AuthorizedKeysFile {tmp_path}/authorized",
        "UsePAM no",
        f"AllowUsers {getpass.getuser()}",
    )
    (tmp_path / "sshd_config").write_text("\n".join(lines) + "\n")
    if os.getuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # sshd asks for it; its service makes it
    with running([server, "-D", "-e", "-f", str(tmp_path / "sshd_config")], tmp_path):
        wait_for(lambda: "Server listening" in (tmp_path / "log").read_text())
        with running(tunnel_words(tmp_path, port), tmp_path):
            yield {"ENGINE_DIR": str(tmp_path / "tbmon-tunnel")}


@pytest.mark.parametrize("way", ["over_tls", "over_ssh"])
def test_a_monitor_far_from_the_node_asks_its_engine(
    way: str, images: dict[str, str], node: Node, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    settings = {
        "CONTAINER_NAME": node.name,
        "API_KEY": "of this test",
        **request.getfixturevalue(way),
    }
    with Stack("deploy/docker-compose.remote.yml", images, tmp_path, **settings) as far:
        wait_for(lambda: far.ask("/health"))
        assert far.ask("/api/status") is None, "it asks for no key"
        wait_for(lambda: far.sees_node(Authorization="Bearer of this test"))


def test_the_plain_socket_is_enough_for_its_group(
    images: dict[str, str], node: Node, tmp_path: Path
) -> None:
    settings = {"CONTAINER_NAME": node.name, "DOCKER_GID": str(os.stat(SOCKET).st_gid)}
    with Stack("deploy/docker-compose.socket.yml", images, tmp_path, **settings) as made:
        wait_for(made.sees_node)
