"""The systemd units, and what tbmon tells systemd of itself."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support import ROOT
from support.deployment import PATIENCE_S, Systemd
from support.hub_conf import AGGREGATOR, Server
from support.hubs import free_port
from support.machine import wait_for
from support.node_words import header
from support.programs import Program, Watch
from support.stand_in import command

import tbmon

UNITS = sorted((ROOT / "deploy").glob("*.service"))


def analyze(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run((command("systemd-analyze"), *words), capture_output=True, text=True)


@pytest.fixture
def installed(tmp_path: Path) -> dict[str, Path]:
    """The units, with programs that exist here in the place of those that are installed."""
    python = tmp_path / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to("/bin/true")
    for unit in UNITS:
        text = (
            unit.read_text()
            .replace("/opt/tbmon", str(tmp_path))
            .replace("/usr/bin/ssh", "/bin/true")
        )
        (tmp_path / unit.name).write_text(text)
    (tmp_path / "tbmon@one.service").symlink_to("tbmon@.service")
    return {unit.name: tmp_path / unit.name.replace("@", "@one") for unit in UNITS}


@pytest.mark.parametrize("unit", [unit.name for unit in UNITS])
def test_systemd_finds_no_fault_in_a_unit_and_little_exposure(
    unit: str, installed: dict[str, Path]
) -> None:
    checked = analyze("verify", str(installed[unit]))
    assert (checked.returncode, checked.stderr) == (0, "")
    judged = analyze("security", "--offline=true", "--threshold=15", str(installed[unit]))
    assert judged.returncode == 0, judged.stdout[-300:]


def test_systemd_would_find_a_fault(installed: dict[str, Path]) -> None:
    faulty = installed["tbmon.service"]
    faulty.write_text(faulty.read_text().replace("ProtectHome=yes", "ProtectHaus=yes"))
    assert "ProtectHaus" in analyze("verify", str(faulty)).stderr
    faulty.write_text("[Service]\nExecStart=/bin/true\n")
    assert analyze("security", "--offline=true", "--threshold=15", str(faulty)).returncode != 0


def test_the_units_are_hardened_alike() -> None:
    assert len(UNITS) == 4
    parts = {
        unit.read_text().partition("\nNoNewPrivileges")[2].partition("\n[Install]")[0]
        for unit in UNITS
    }
    assert len(parts) == 1 and "ProtectSystem=strict" in parts.pop()


@pytest.fixture(params=["path", "abstract"])
def systemd(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Systemd]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@tbmon-test-{os.getpid()}"
    made = Systemd(address)
    yield made
    made.end.close()


def start(program: Callable[..., Program], systemd: Systemd, tmp_path: Path) -> Program:
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "a.log").write_text(header("Heartbeat sent") + "\n")
    watched = {"NOTIFY_SOCKET": systemd.address, "WATCHDOG_USEC": str(PATIENCE_S * 10**6)}
    return program(LOG_DIR=str(logs), **watched).start()


def test_it_tells_that_it_is_ready_alive_and_stopping(
    program: Callable[..., Program], systemd: Systemd, tmp_path: Path
) -> None:
    one = start(program, systemd, tmp_path)
    wait_for(lambda: systemd.hears("READY=1"))
    wait_for(lambda: systemd.hears("WATCHDOG=1"))
    wait_for(lambda: systemd.hears("WATCHDOG=1"))
    assert one.end() == 0
    assert systemd.hears("STOPPING=1") and systemd.told == []


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
def test_it_gives_no_sign_of_life_while_a_thread_stands_still(
    program: Callable[..., Program], systemd: Systemd, tmp_path: Path
) -> None:
    one = start(program, systemd, tmp_path)
    wait_for(lambda: systemd.hears("WATCHDOG=1"))
    with contextlib.closing(sqlite3.connect(one.folder / "t.db", isolation_level=None)) as other:
        other.execute(
            "BEGIN IMMEDIATE"
        )  # ingest waits for as long as another may write, and no disk is as slow
        with (tmp_path / "logs" / "a.log").open("a") as log:
            log.write(header("Said to a locked database") + "\n")
        wait_for(lambda: re.search("no sign of life from .*ingest", one.log.read_text()))
        assert one.get("/health")[0] == 200, "the server goes on"
        assert systemd.is_silent(PATIENCE_S / 2)
    wait_for(lambda: systemd.hears("WATCHDOG=1"))
    assert one.end() == 0


def test_a_server_that_no_longer_serves_is_no_sign_of_life(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    listens = Systemd(str(tmp_path / "notify"))
    monkeypatch.setenv("NOTIFY_SOCKET", listens.address)
    with contextlib.closing(listens.end), Watch(tmp_path / "data", log_dir=str(tmp_path)) as watch:
        config = tbmon.Config(port=free_port())
        server = tbmon.make_server(lambda environ, answer: [b""], tbmon.listen(config), config)
        fed = threading.Thread(target=tbmon.feed_watchdog, args=(watch.monitor, server, PATIENCE_S))
        fed.start()
        wait_for(lambda: "no sign of life from server" in caplog.text)
        assert listens.is_silent(PATIENCE_S / 2)
        serving = threading.Thread(target=server.run)
        serving.start()
        wait_for(lambda: listens.hears("WATCHDOG=1"))
        watch.monitor.stop.set()
        fed.join(5)
        server.close()
        serving.join(5)


def test_outside_systemd_it_tells_nothing(program: Callable[..., Program], tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    one = program(LOG_DIR=str(tmp_path / "logs"), NOTIFY_SOCKET="", WATCHDOG_USEC="oops").start()
    assert one.end(signal.SIGINT) == 0 and "watchdog" not in one.log.read_text()


def test_a_watchdog_meant_for_another_process_is_not_fed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "60000000")
    assert tbmon.watchdog_s() == 60
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    assert tbmon.watchdog_s() == 60
    monkeypatch.setenv("WATCHDOG_PID", "1")
    assert tbmon.watchdog_s() == 0


@contextlib.contextmanager
def counting(folder: Path, systemd: Systemd, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """The aggregator, started by systemd as it seems to it."""
    own = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "DB_PATH": str(folder / "a.db")}
    words = (sys.executable, "-m", "aggregator")
    with subprocess.Popen(
        words, env={**own, "NOTIFY_SOCKET": systemd.address, **settings}
    ) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
def test_the_aggregator_is_ready_and_alive_while_no_hub_answers(
    systemd: Systemd, tmp_path: Path
) -> None:
    with counting(tmp_path, systemd, NATS_URL=f"nats://127.0.0.1:{free_port()}") as process:
        for _ in range(2):
            wait_for(lambda: systemd.hears("READY=1\nWATCHDOG=1"))
        process.terminate()
        assert process.wait(10) == 0


@pytest.mark.parametrize("systemd", ["path"], indirect=True)
def test_the_aggregator_gives_a_sign_of_life_for_each_round_of_its_work(
    systemd: Systemd, tmp_path: Path
) -> None:
    server = Server(tmp_path / "hub").start()
    login = {"NATS_USER": "aggregator", "NATS_PASSWORD": AGGREGATOR}
    with (
        contextlib.closing(server),
        counting(tmp_path, systemd, NATS_URL=server.url(), **login) as process,
    ):
        wait_for(lambda: systemd.hears("WATCHDOG=1"))
        wait_for(lambda: systemd.hears("WATCHDOG=1"))
        process.send_signal(signal.SIGSTOP)
        assert systemd.is_silent(PATIENCE_S / 2)
