"""Credentials that a proxy adds to what it passes on are no guesses at the API key."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import NamedTuple

import pytest
from support.asking import KEY, PASSWORD, Answer, elsewhere
from support.programs import Program, discard, over_files

import tbmon

TOKEN = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl"
ENCRYPTED = "eyJlbmMiOiJBMjU2R0NNIn0.a2V5.aXY.Y2lwaGVy.dGFn"
ADDED = ["Basic dXNlcjpwYXNz", "Negotiate YII", "Digest username=x", f"Bearer {TOKEN}"]
TIMES = tbmon.LOGIN_FAILURES + 3


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    one = over_files(tmp_path_factory.mktemp("guarded"), API_KEY=KEY, API_RATE_LIMIT="0").start()
    yield one
    discard([one])


class Visitor(NamedTuple):
    """Everybody behind one proxy: all of one address."""

    program: Program
    address: tuple[str, int]

    def __call__(self, method: str, path: str, body: object = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.program.port, timeout=15, source_address=self.address
        )
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        sent = None if body is None else json.dumps(body).encode()
        connection.request(method, path, sent, {"Content-Type": "application/json", **named})
        answer = connection.getresponse()
        found = Answer(answer.status, answer.headers, answer.read())
        connection.close()
        return found


@pytest.fixture
def ask(guarded: Program) -> Visitor:
    return Visitor(guarded, elsewhere())


def guesses_left(ask: Visitor) -> int:
    """How many wrong secrets this address may still send."""
    told = [ask("POST", "/api/auth/login", {"secret": "wrong"}).status for _ in range(TIMES)]
    assert set(told) <= {401, 429}
    return told.count(401)


@pytest.mark.parametrize("added", [*ADDED, f"bearer {ENCRYPTED}"])
def test_what_a_proxy_adds_is_answered_as_no_key_and_does_not_count(
    ask: Visitor, added: str
) -> None:
    for _ in range(TIMES):
        answer = ask("GET", "/api/status", Authorization=added)
        assert answer.status == 401 and "this needs the API key" in answer.json["error"]
        assert ask("GET", "/api/auth/status", Authorization=added).status == 200
    login = ask("POST", "/api/auth/login", {"secret": KEY}, Authorization=added)
    cookie = (login.headers["Set-Cookie"] or "").partition(";")[0]
    assert ask("GET", "/api/status", Authorization=added, Cookie=cookie).status == 200
    assert guesses_left(ask) == tbmon.LOGIN_FAILURES


def test_a_session_that_has_the_key_needs_no_other_and_no_token_is_looked_at(ask: Visitor) -> None:
    login = ask("POST", "/api/auth/login", {"secret": KEY})
    cookie = (login.headers["Set-Cookie"] or "").partition(";")[0]
    for _ in range(TIMES):
        added = {"Authorization": "Bearer gho_a-token-of-another-form", "Cookie": cookie}
        assert ask("GET", "/api/status", **added).status == 200
    assert guesses_left(ask) == tbmon.LOGIN_FAILURES


@pytest.mark.parametrize(
    "guess", ["wrong", TOKEN[3:], TOKEN + " ", f"{TOKEN}!", "eyJ.eyJ", f"{KEY}.{KEY}.{KEY}"]
)
def test_any_other_bearer_counts_as_a_guess(ask: Visitor, guess: str) -> None:
    sent = f"Bearer {guess}".encode().decode("latin-1")
    statuses = [ask("GET", "/api/status", Authorization=sent).status for _ in range(TIMES)]
    is_token = guess.strip() == TOKEN  # blanks at its end are no part of a header
    assert statuses.count(429) == (0 if is_token else TIMES - tbmon.LOGIN_FAILURES)


def test_an_api_key_that_is_a_token_can_be_used_and_guesses_at_it_count(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    one = over_files(tmp_path_factory.mktemp("token"), API_KEY=TOKEN).start()
    try:
        ask = Visitor(one, elsewhere())

        def status(token: str) -> int:
            return ask("GET", "/api/status", Authorization=f"Bearer {token}").status

        assert status(TOKEN) == 200
        statuses = [status(f"{TOKEN}{number}") for number in range(TIMES)]
        assert statuses == [401] * tbmon.LOGIN_FAILURES + [429] * 3
        assert status(TOKEN) == 200
    finally:
        discard([one])


def test_the_task_data_password_has_no_such_exception(ask: Visitor) -> None:
    key = f"Bearer {KEY}".encode().decode("latin-1")
    for _ in range(tbmon.LOGIN_FAILURES):
        named = {"Authorization": key, "X_Task_Data_Password": TOKEN}
        assert ask("GET", "/api/logs", **named).status == 401
    assert guesses_left(ask) == 0
    named = {"Authorization": key, "X_Task_Data_Password": PASSWORD}
    assert ask("GET", "/api/logs", **named).status == 200
