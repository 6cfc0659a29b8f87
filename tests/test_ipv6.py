"""IPv6: listening on it, on both families by `::`, and what doctor says of such an address."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import subprocess
import sys
from collections.abc import Callable

import pytest
from support import ROOT
from support.machine import missing, wait_for
from support.programs import Program, end, made_over_files

Make = Callable[..., Program]


@pytest.fixture(autouse=True)
def has_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        missing("IPv6 on the loopback")


def status_at(host: str, port: int, path: str = "/health", **headers: str) -> int | None:
    """The status of an answer; None where nothing listens."""
    with contextlib.closing(http.client.HTTPConnection(host, port, timeout=5)) as connection:
        try:
            connection.request("GET", path, headers=headers)
            return connection.getresponse().status
        except ConnectionRefusedError:
            return None


def begin(one: Program) -> Program:
    with one.log.open("ab") as log:
        words = (sys.executable, str(ROOT / "tbmon.py"))
        one.process = subprocess.Popen(words, env=one.env, cwd=one.folder, stdout=log, stderr=log)
    wait_for(lambda: one.process.poll() is not None or status_at("::1", one.port) == 200)
    return one


def doctor(one: Program, command: str = "doctor") -> str:
    words = (sys.executable, str(ROOT / "tbmon.py"), command)
    done = subprocess.run(words, env=one.env, cwd=one.folder, capture_output=True, text=True)
    assert done.stderr == ""
    return done.stdout


def test_the_unspecified_address_of_ipv6_listens_on_both_families(program: Make) -> None:
    one = begin(made_over_files(program, HOST="::"))
    assert [status_at(host, one.port) for host in ("::1", "127.0.0.1")] == [200, 200]
    wrong = {"X-Task-Data-Password": "wrong"}
    assert status_at("127.0.0.1", one.port, "/api/logs", **wrong) == 401
    entries = one.private("/api/audit-log")["entries"]
    assert [entry["address"] for entry in entries] == ["127.0.0.1"]  # not ::ffff:127.0.0.1
    assert f"on http://[::]:{one.port}," in one.log.read_text()
    assert f"OK   tbmon answers on port {one.port}" in doctor(one)
    assert "WARN HOST=:: without API_KEY" in doctor(one)
    end(one)


def test_an_ipv6_address_is_listened_on_alone_and_doctor_knows_it(program: Make) -> None:
    one = made_over_files(program, HOST="::1")
    assert re.search(rf"^OK   port {one.port} is free$", doctor(one), re.M)
    begin(one)
    assert [status_at(host, one.port) for host in ("::1", "127.0.0.1")] == [200, None]
    assert f"on http://[::1]:{one.port}," in one.log.read_text()
    assert f"OK   tbmon answers on port {one.port}" in doctor(one)
    assert doctor(one, "healthcheck") == "ok\n"
    end(one)


@pytest.mark.parametrize("host", ["::1", "::"])
def test_a_port_that_another_has_is_named_with_its_address_in_brackets(
    program: Make, host: str
) -> None:
    one = made_over_files(program, HOST=host)
    with socket.create_server(("::1", one.port), family=socket.AF_INET6):
        said = doctor(one)
        assert f"FAIL cannot listen on [{host}]:{one.port}: Address already in use" in said
        words = (sys.executable, str(ROOT / "tbmon.py"))
        done = subprocess.run(words, env=one.env, cwd=one.folder, capture_output=True, text=True)
    assert done.returncode == 2
    assert f"cannot listen on [{host}]:{one.port}" in done.stderr


def test_an_address_that_is_nobodys_here_fails_in_words(program: Make) -> None:
    one = made_over_files(program, HOST="2001:db8::7")
    assert f"FAIL cannot listen on [2001:db8::7]:{one.port}: " in doctor(one)
