"""The fixtures that several test files use, and what pytest is told. The helpers are in tests/support.

Before you change a test, know these:
* `Node` (`node`): a container that says what the test writes, read through a real Docker Engine.
* `Watch` (`watch`): the monitor's threads in this process, on a database of their own.
* `Program` (`program`): tbmon as a process, with its own port, folder and environment.
* `Proxy`: stands before the engine's socket, records what is asked, and cuts answers.
* `Hub` (`hub`): a real nats-server for the federation; `Server` (`hub_server`): with the shipped file.
* `Station` (`station`): the federation's part alone, in this process, its delays shortened.
* `Stepped` (`stepped`): a Program whose clock the test moves.
* A missing part skips its test by `missing(...)`; with CI in the environment that is a failure.
* pytest-xdist gives each file to one process (--dist loadfile): files may share nothing that is named.
* `wait_for` waits for what happens; no test sleeps. `--quick` (`make quick`) takes what is pure.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.aggregation import Aggregators, Hubs
from support.engine import Node, Syslog, make_image
from support.federation_feed import Aggregation
from support.hub_conf import Server
from support.hubs import Hub, Listening, Station, Stepped
from support.machine import LONG
from support.own_engine import OwnEngine
from support.pages import chromium
from support.programs import Program, Watch, discard

for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if (
        signal.getsignal(number) is signal.SIG_IGN
    ):  # by a shell in whose background the tests run; programs inherit it
        signal.signal(number, usual)


# What `--quick` takes may import of tests/support, and may not ask for.
PURE = {"federation_feed", "layout", "log_feed", "machine", "node_samples", "node_words"}
REAL = {"engine", "hub", "hub_server", "stepped", "browser", "program"}


def is_pure(file: Path) -> bool:
    """True of a test file that imports no real part."""
    text = file.read_text("utf-8")
    whole = re.findall(r"^from support import (.+)", text, re.M)
    names = {name for line in whole for name in line.split(", ") if name != "ROOT"}
    return names.union(re.findall(r"^from support\.(\w+) import", text, re.M)) <= PURE


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only what needs no engine, hub, browser")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    is_test = collection_path.name.startswith("test_") and collection_path.suffix == ".py"
    if is_test and config.getoption("quick") and not is_pure(collection_path):
        return True
    return None  # as pytest itself decides


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("quick"):
        return
    left = [item for item in items if not is_quick(item)]
    items[:] = [item for item in items if is_quick(item)]
    config.hook.pytest_deselected(items=left)


def is_quick(item: pytest.Item) -> bool:
    """True of a test that asks for no real part and is not marked as slow."""
    asked = set(getattr(item, "fixturenames", ()))
    return not asked & REAL and item.get_closest_marker("slow") is None


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str, object], None]:
    """Names what a long run measured, for the table at its end."""
    return record_property


def pytest_terminal_summary(terminalreporter: Any) -> None:
    passed = terminalreporter.stats.get("passed", []) + terminalreporter.stats.get("failed", [])
    told = sorted((report.nodeid, *one) for report in passed for one in report.user_properties)
    if LONG and told:
        terminalreporter.section(
            f"figures, {time.strftime('%Y-%m-%d', time.gmtime())}, {os.cpu_count()} cores"
        )
        for _, name, value in told:
            terminalreporter.write_line(f"{name}: {value}")


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker Engine, with an image made from the busybox on this machine."""
    make_image()


@pytest.fixture(scope="module")
def own(engine: None) -> Iterator[OwnEngine]:
    """An engine of the tests' own, whose files they may spoil; `docker` still talks to the machine's."""
    made = OwnEngine(live_restore=False)
    made.start()
    try:
        made.load()
        yield made
    finally:
        made.close()


@pytest.fixture
def node(engine: None, tmp_path: Path) -> Iterator[Node]:
    made = Node(tmp_path / "io")
    yield made
    made.close()


@pytest.fixture
def syslog(tmp_path: Path) -> Iterator[str]:
    """The address of a Syslog."""
    made = Syslog(tmp_path / "syslog.sock")
    yield made.address
    made.close()


@pytest.fixture
def watch(node: Node, tmp_path: Path) -> Iterator[Watch]:
    """A monitor of the node's container; started by the test, stopped after it."""
    made = Watch(tmp_path / "data", node.name)
    yield made
    if made.threads:
        made.stop()


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    """Makes Programs, and ends what is left of them."""
    made: list[Program] = []

    def make(**settings: str) -> Program:
        made.append(Program(tmp_path / f"program{len(made)}", **settings))
        return made[-1]

    yield make
    discard(made)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def hub_server(tmp_path: Path) -> Iterator[Hubs]:
    """Makes running hubs, with the shipped configuration if no other is given, and ends them."""
    made: list[Server] = []

    def make(config: str = "", **settings: str) -> Server:
        name = "nats-server.conf"
        if config:
            name = str(tmp_path / f"hub{len(made)}.conf")
            Path(name).write_text(config)
        made.append(Server(tmp_path, name, **settings))
        return made[-1].start()

    yield make
    for one in made:
        one.close()


@pytest.fixture
def count(tmp_path: Path) -> Iterator[Aggregators]:
    """Makes Aggregations at a hub, and ends what is left of them."""
    made: list[Aggregation] = []

    def make(server: Server | None = None, more: str = "", **settings: str) -> Aggregation:
        url = server.url() if server else "nats://127.0.0.1:1"
        made.append(Aggregation(tmp_path / f"aggregator{len(made)}", url, more, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def station(tmp_path: Path) -> Iterator[Callable[..., Station]]:
    """Makes Stations, and closes them."""
    made: list[Station] = []

    def make(url: str, **settings: Any) -> Station:
        made.append(Station(tmp_path / f"station{len(made)}", url, **settings))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Callable[..., Hub]]:
    """Makes running Hubs, and ends them."""
    made: list[Hub] = []

    def make(start: bool = True, **settings: Any) -> Hub:
        made.append(Hub(tmp_path, **settings))
        return made[-1].start() if start else made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def listening() -> Iterator[Callable[..., Any]]:
    """Keeps servers of this process, and closes them."""
    made: list[Listening] = []

    def keep(one: Listening) -> Listening:
        made.append(one)
        return one

    yield keep
    for one in made:
        one.close()


@pytest.fixture
def stepped(tmp_path: Path) -> Iterator[Callable[..., Stepped]]:
    """Makes Stepped processes, and ends what is left of them."""
    made: list[Stepped] = []

    def make(more: str = "", **settings: str) -> Stepped:
        made.append(Stepped(tmp_path / f"stepped{len(made)}", more, **settings))
        return made[-1]

    yield make
    discard(made)
