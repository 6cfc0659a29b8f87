"""Asking a running tbmon over real HTTP, each answer checked against the published contract."""

from __future__ import annotations

import gzip
import http.client
import json
import random
from typing import Any, NamedTuple

import pytest

from support import contract
from support.programs import Program

PASSWORD, KEY, UTF8 = (
    "open sesame",
    "schlüssel-à",
    "größe-à",
)  # the last byte of à is a blank elsewhere


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        assert self.headers["Content-Type"].startswith("application/json"), self.body
        return json.loads(self.body, parse_constant=pytest.fail)


def elsewhere() -> tuple[str, int]:
    """An address of this host that has not been used: wrong secrets are counted by address."""
    return (
        f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}.{random.randrange(2, 255)}",
        0,
    )


def ask(
    program: Program,
    path: str,
    method: str = "GET",
    host: str = "localhost",
    password: str | bytes = "",
    key: str = "",
) -> Answer:
    """Send the path as it stands, with the given Host and secrets."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=10, source_address=elsewhere()
    )
    connection.putrequest(method, path, skip_host=True)
    connection.putheader("Host", host)
    if password:
        connection.putheader(
            "X-Task-Data-Password", password if isinstance(password, bytes) else password.encode()
        )
    if key:
        connection.putheader("Authorization", key.encode())
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    contract.check(method, path, answer.status, answer.headers, body)
    return Answer(answer.status, answer.headers, body)


def allowed(program: Program, path: str) -> Any:
    """The JSON of a path that must be answered, asked with the password."""
    answer = ask(program, path, password=PASSWORD)
    assert answer.status == 200, answer.body
    return answer.json


def fetch(
    program: Program, path: str, method: str = "GET", password: str = PASSWORD, **headers: str
) -> Answer:
    """Ask with the given headers; the body as it came, what it holds checked."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=10, source_address=elsewhere()
    )
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(
        method, path, headers={"X-Task-Data-Password": password, **named} if password else named
    )
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    plain = gzip.decompress(body) if body and answer.headers["Content-Encoding"] == "gzip" else body
    contract.check(method, path, answer.status, answer.headers, plain)
    return Answer(answer.status, answer.headers, body)
