"""Who may ask what: secrets, sessions, limits, other pages, proxies, the audit log, and what is
never told.
"""

from __future__ import annotations

import base64
import http.client
import ipaddress
import json
import random
import re
import socket
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from support import contract
from support.asking import Answer, elsewhere
from support.machine import wait_for
from support.node_words import header
from support.pages import chromium
from support.programs import Program, end, over_files, write

import tbmon

KEY, PASSWORD, TOKEN = "key-5d1e0b77", "password-c2a94f", "token-83bb16e0"
SECRET_OF = {"local": KEY, "private": PASSWORD, "stream": TOKEN}
HEADER_OF = {
    "local": {"Authorization": f"Bearer {KEY}"},
    "private": {"X_Task_Data_Password": PASSWORD},
    "stream": {"X_Stream_Token": TOKEN},
}
PATH_OF = {"local": "/api/status", "private": "/api/logs", "stream": "/api/events"}
SETTINGS = {
    "API_KEY": KEY,
    "TASK_DATA_PASSWORD": PASSWORD,
    "WS_AUTH_REQUIRED": "true",
    "WS_AUTH_TOKEN": TOKEN,
}
PROXY = ("127.77.0.1", 0)  # elsewhere() never gives it
LISTED = "https://pane.example.org"


class Client:
    """Somebody at one address, who keeps the cookie that tbmon gives."""

    def __init__(self, program: Program, address: tuple[str, int] | None = None) -> None:
        self.program, self.address, self.cookie = program, address or elsewhere(), ""

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(
            "127.0.0.1", self.program.port, timeout=10, source_address=self.address
        )

    def ask(self, path: str, method: str = "GET", body: object = None, **headers: str) -> Answer:
        """Ask with the headers, `_` for `-` in their names; an endless answer is left after its
        headers.
        """
        named = {"Host": "localhost", **({"Cookie": self.cookie} if self.cookie else {})}
        if body is not None and not isinstance(body, bytes):
            body, named["Content-Type"] = json.dumps(body).encode(), "application/json"
        connection = self.connect()
        try:
            named |= {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            endless = (answer.headers["Content-Type"] or "").startswith("text/event-stream")
            found = Answer(answer.status, answer.headers, b"" if endless else answer.read())
        finally:
            connection.close()
        if found.status != 204:  # which has no body to check
            contract.check(method, path, *found)
        if given := found.headers["Set-Cookie"]:
            self.cookie = given.partition(";")[0]
        return found

    def login(self, secret: str, **headers: str) -> Answer:
        return self.ask("/api/auth/login", "POST", {"secret": secret}, **headers)

    def logout(self, **headers: str) -> Answer:
        return self.ask("/api/auth/logout", "POST", **headers)

    def status(self, **headers: str) -> Any:
        return self.ask("/api/auth/status", **headers).json

    def opened(self, **headers: str) -> set[str]:
        """The classes that are really open, which must be those that are said to be."""
        found = {name for name, path in PATH_OF.items() if self.ask(path, **headers).status == 200}
        assert self.status(**headers)["open"] == {name: name in found for name in PATH_OF}
        return found


def running(folder: Path, **settings: str) -> Iterator[Program]:
    made = over_files(folder, **settings)
    with socket.create_server(
        (settings.get("HOST", "127.0.0.1"), 0)
    ) as free:  # for 0.0.0.0: free at every address
        made.port = free.getsockname()[1]
    made.env["PORT"] = str(made.port)
    made.start()
    assert made.process.poll() is None, made.log.read_text()
    yield made
    end(made)


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that asks for all three secrets, behind a proxy, with one page of elsewhere let in,
    on loopback.
    """
    more = {"API_RATE_LIMIT": "0", "TRUSTED_PROXY": PROXY[0], "ALLOWED_ORIGINS": LISTED}
    yield from running(tmp_path_factory.mktemp("guarded"), **SETTINGS, **more)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that answers five requests a minute."""
    more = {"API_RATE_LIMIT": "5", "TRUSTED_PROXY": PROXY[0], "TASK_DATA_PASSWORD": PASSWORD}
    yield from running(tmp_path_factory.mktemp("limited"), **more)


@pytest.fixture(scope="module")
def exposed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor open to the network and to every page, with a short password and a stream token of
    its own making.
    """
    more = {
        "HOST": "0.0.0.0",
        "ALLOWED_ORIGINS": "*",
        "TASK_DATA_PASSWORD": "sesame",
        "WS_AUTH_REQUIRED": "true",
    }
    yield from running(tmp_path_factory.mktemp("exposed"), **more)


# Secrets and sessions

OPENS: list[tuple[str, set[str]]] = [
    ("", set()),
    ("local", {"local"}),
    ("private", set()),
    ("stream", set()),
    ("private stream", set()),
    ("local private", {"local", "private"}),
    ("stream local", {"local", "stream"}),
    ("stream private local", {"local", "private", "stream"}),
]


@pytest.mark.parametrize(("grants", "classes"), OPENS)
def test_secrets_in_headers_open_their_classes_and_nothing_more(
    guarded: Program, grants: str, classes: set[str]
) -> None:
    headers = {name: text for grant in grants.split() for name, text in HEADER_OF[grant].items()}
    client = Client(guarded)
    assert client.opened(**headers) == classes
    assert client.opened() == set()  # nothing of it stays
    assert client.cookie == ""


@pytest.mark.parametrize(("grants", "classes"), OPENS[1:])
def test_logins_of_one_session_add_up_and_logout_ends_it(
    guarded: Program, grants: str, classes: set[str]
) -> None:
    client, cookies = Client(guarded), [""]
    for grant in grants.split():
        answer = client.login(SECRET_OF[grant])
        assert (answer.status, answer.json["success"], client.cookie in cookies) == (
            200,
            True,
            False,
        )
        cookies.append(client.cookie)
    assert client.opened() == classes
    assert answer.json["open"] == {name: name in classes for name in PATH_OF}
    assert client.status()["session"] is True
    assert client.status()["expiresAt"] == answer.json["expiresAt"]
    for old in cookies[1:-1]:
        assert not client.status(Cookie=old)["session"]
    assert client.logout().json == {"success": True}
    for old in cookies[1:]:
        client.cookie = old
        assert (client.status()["session"], client.opened()) == (False, set())


def test_a_session_and_a_header_together_open_what_needs_both(guarded: Program) -> None:
    client = Client(guarded)
    client.login(PASSWORD)
    assert (client.opened(), client.opened(**HEADER_OF["local"])) == (set(), {"local", "private"})


def test_a_right_secret_in_a_session_needs_no_right_one_in_the_header(guarded: Program) -> None:
    client = Client(guarded)
    client.login(KEY)
    assert client.ask("/api/status", Authorization="Bearer wrong").status == 200


def test_sessions_are_apart_and_logout_without_one_does_nothing(guarded: Program) -> None:
    one, other = Client(guarded), Client(guarded)
    one.login(KEY)
    other.login(KEY)
    assert one.cookie != other.cookie
    assert min(len(client.cookie.partition("=")[2]) for client in (one, other)) >= 22  # 128 bits
    assert (Client(guarded).logout().status, one.logout().status) == (200, 200)
    assert (one.opened(), other.opened()) == (set(), {"local"})


def test_logout_ends_the_streams_of_the_session(guarded: Program) -> None:
    client = Client(guarded)
    client.login(KEY)
    client.login(TOKEN)
    connection = client.connect()
    connection.request("GET", "/api/events", headers={"Cookie": client.cookie})
    stream = connection.getresponse()
    contract.check("GET", "/api/events", stream.status, stream.headers, b"")
    assert stream.status == 200
    client.logout()
    begin = time.monotonic()
    assert b"retry:" in stream.read()  # up to its end
    assert time.monotonic() - begin < 5
    connection.close()


@pytest.mark.parametrize(
    ("address", "said", "secure"),
    [
        (None, "", False),
        (None, "https", False),
        (PROXY, "http", False),
        (PROXY, "", False),
        (PROXY, "https", True),
    ],
)
def test_the_cookie_is_kept_from_scripts_and_other_sites(
    guarded: Program, address: tuple[str, int] | None, said: str, secure: bool
) -> None:
    client = Client(guarded, address)
    headers = {"X_Forwarded_Proto": said, "X_Forwarded_For": elsewhere()[0]} if said else {}
    expected = {"path=/", "max-age=86400", "httponly", "samesite=strict"} | (
        {"secure"} if secure else set()
    )
    answer = client.login(PASSWORD, **headers)
    first, *attributes = answer.headers["Set-Cookie"].lower().split("; ")
    assert (set(attributes), answer.headers["Cache-Control"]) == (expected, "no-store")
    name, *attributes = client.logout(**headers).headers["Set-Cookie"].lower().split("; ")
    assert (name, set(attributes)) == (
        first.partition("=")[0] + "=",
        expected - {"max-age=86400"} | {"max-age=0"},
    )


@pytest.fixture
def api(tmp_path: Path) -> Iterator[tuple[tbmon.Api, list[float]]]:
    """The API's inside on a clock that a test steps."""
    clock = [1_900_000_000.0]
    store = tbmon.Store(tmp_path / "t.db", b"k" * 32)
    monitor = tbmon.Monitor(
        tbmon.Config(),
        store,
        tbmon.Redactor(b"k" * 32),
        None,
        threading.Event(),
        clock=lambda: clock[0],
    )
    monitor.outbox = tbmon.Outbox(
        store,
        tbmon.SharingKeys(tmp_path),
        monitor.now,
        random.SystemRandom(),
        monitor.config.federation_nats_url,
    )
    monitor.federation = tbmon.Federation(
        monitor.config, monitor.outbox, lambda payload: True, lambda: True
    )
    yield tbmon.Api(monitor, SECRET_OF), clock
    store.close()


def test_a_stream_that_meets_damage_ends_and_says_so(
    api: tuple[tbmon.Api, list[float]], caplog: pytest.LogCaptureFixture
) -> None:
    inside = api[0]
    with inside.store.write() as db:
        db.execute(
            "INSERT INTO node (name, value, at) VALUES ('version', CAST(x'70617373FF' AS TEXT), 1)"
        )
    held = {
        f"HTTP_{name.upper()}": value
        for grant in SECRET_OF
        for name, value in HEADER_OF[grant].items()
    }
    caller = inside.guard.find_caller({"HTTP_LAST_EVENT_ID": f"{inside.boot}-0", **held}, "")
    inside.monitor.ring.add([("node_status", None)])
    sent = inside.events(tbmon.Call(caller, {}, {}, {})).content
    assert isinstance(sent, Iterator) and [b"retry" in chunk for chunk in sent] == [True]
    words = "api: a live stream ended: the database cannot be read now: a text in it is not UTF-8"
    assert (caplog.messages, inside.streams.total()) == ([words], 0)


def test_a_session_lasts_24_hours_and_what_it_held_is_not_inherited(
    api: tuple[tbmon.Api, list[float]],
) -> None:
    guard, clock = api[0].guard, api[1]
    session, token = guard.login(guard.find_caller({}, ""), PASSWORD)
    environ = {"HTTP_COOKIE": f"theme=dark; {guard.cookie}={token}"}
    held = guard.find_caller(environ, "")  # as a stream holds it
    clock[0] += 86_399
    assert guard.find_caller(environ, "").session is session
    assert (guard.holds("private", held), guard.holds("local", held)) == (True, False)
    clock[0] += 1
    assert guard.find_caller(environ, "").session is None
    assert (guard.holds("private", held), api[0].has_ended(held)) == (False, True)
    later, renewed = guard.login(guard.find_caller(environ, ""), KEY)
    assert (set(later.grants), later.ends_at, renewed == token) == (
        {"local"},
        int(clock[0] + 86_400) * 1000,
        False,
    )
    assert list(guard.sessions.values()) == [later]


def test_the_number_of_sessions_is_bounded_and_the_oldest_ends_first(
    api: tuple[tbmon.Api, list[float]],
) -> None:
    guard = api[0].guard
    made = [guard.login(guard.find_caller({}, ""), KEY)[0] for _ in range(tbmon.SESSIONS + 5)]
    assert len(guard.sessions) == tbmon.SESSIONS
    assert [session.ends_at for session in made[:6]] == [0] * 5 + [made[-1].ends_at]


def test_a_new_session_has_not_used_up_the_quota_of_one_that_ended(
    api: tuple[tbmon.Api, list[float]],
) -> None:
    guard = api[0].guard
    guard.requests = tbmon.Limiter(2, 60)
    for _ in range(10):
        token = guard.login(guard.find_caller({}, ""), KEY)[1]
        caller = guard.find_caller({"HTTP_COOKIE": f"{guard.cookie}={token}"}, "")
        assert caller.session is not None
        guard.admit(caller)
        guard.admit(caller)
        with pytest.raises(tbmon.Refusal, match="API_RATE_LIMIT"):
            guard.admit(caller)
        guard.logout(caller)
        del caller  # as at the end of a request


# Wrong, missing and malformed secrets

NEEDS, IS_WRONG, WRONG_LOGIN = "this needs the {}", "the {} in the header", "this is neither"


@pytest.mark.parametrize(
    ("path", "headers", "words"),
    [
        ("/api/status", {}, NEEDS.format("API key")),
        (
            "/api/status",
            {"Authorization": "Basic " + base64.b64encode(KEY.encode()).decode()},
            NEEDS.format("API key"),
        ),
        ("/api/status", {"Authorization": KEY}, NEEDS.format("API key")),
        (
            "/api/status",
            {"X_Task_Data_Password": PASSWORD, "X_Stream_Token": TOKEN},
            NEEDS.format("API key"),
        ),
        ("/api/status", {"Authorization": f"Bearer {KEY}x"}, IS_WRONG.format("API key")),
        ("/api/status", {"Authorization": f"Bearer {KEY[:-1]}"}, IS_WRONG.format("API key")),
        ("/api/status", {"Authorization": f"Bearer {PASSWORD}"}, IS_WRONG.format("API key")),
        ("/api/status", {"Authorization": "Bearer " + "a" * 9000}, IS_WRONG.format("API key")),
        ("/api/logs", HEADER_OF["local"], NEEDS.format("task-data password")),
        (
            "/api/logs",
            {**HEADER_OF["local"], "X_Task_Data_Password": KEY},
            IS_WRONG.format("task-data password"),
        ),
        (
            "/api/logs",
            {**HEADER_OF["local"], "X_Task_Data_Password": "\xff"},
            IS_WRONG.format("task-data password"),
        ),
        ("/api/events", HEADER_OF["local"], NEEDS.format("stream token")),
        (
            "/api/events",
            {**HEADER_OF["local"], "X_Stream_Token": PASSWORD},
            IS_WRONG.format("stream token"),
        ),
    ],
)
def test_a_refusal_tells_a_missing_secret_from_a_wrong_one(
    guarded: Program, path: str, headers: dict[str, str], words: str
) -> None:
    client = Client(guarded)
    answers = [client.ask(path, **headers) for _ in range(11)]
    last = 429 if words.endswith("in the header") else 401  # what is missing does not count
    assert [answer.status for answer in answers] == [401] * 10 + [last]
    assert answers[0].json["error"].startswith(words)
    assert answers[0].headers["WWW-Authenticate"] == ("Bearer" if "API key" in words else None)


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"{}", "application/json", 400),
        (b'{"secret": 1}', "application/json", 400),
        (b'{"secret": null}', "application/json", 400),
        (b'{"secret": "a", "b": 1}', "application/json", 400),
        (b'{"secret": "a", "secret": "' + KEY.encode() + b'"}', "application/json", 400),
        (b'{"secret": ["' + KEY.encode() + b'"]}', "application/json", 400),
        (b"[" * 60_000, "application/json", 400),
        (b'{"secret": "\xff"}', "application/json", 400),
        (b'{"secret": "%s"}' % KEY.encode(), "text/plain", 415),
        (b"secret=" + KEY.encode(), "", 415),
        (b'{"secret": ""}', "application/json", 401),
        (b'{"secret": "\\ud800"}', "application/json", 401),
        (b'{"secret": "\\u0000"}', "application/json", 401),
        (b'{"secret": " %s"}' % KEY.encode(), "application/json", 401),
        (b'{"secret": "%s"}' % (b"a" * 60_000), "application/json", 401),
        (b'{"secret": "%s"}' % (b"a" * 70_000), "application/json", 413),
    ],
)
def test_a_login_takes_a_right_secret_in_json_and_nothing_else(
    guarded: Program, body: bytes, kind: str, status: int
) -> None:
    client = Client(guarded)
    answer = client.ask("/api/auth/login", "POST", body, **({"Content_Type": kind} if kind else {}))
    assert (answer.status, answer.headers["Set-Cookie"]) == (status, None)
    assert (WRONG_LOGIN in answer.json["error"]) == (status == 401)


def wrong(client: Client, number: int) -> Answer:
    """A wrong secret, in the body or in one of the headers."""
    guess, key = f"guess-{number}", HEADER_OF["local"]
    ways: list[Callable[[], Answer]] = [
        lambda: client.login(guess),
        lambda: client.ask("/api/status", Authorization=f"Bearer {guess}"),
        lambda: client.ask("/api/logs", **key, X_Task_Data_Password=guess),
        lambda: client.ask("/api/events", **key, X_Stream_Token=guess),
    ]
    return ways[number % len(ways)]()


def test_ten_wrong_secrets_are_heard_of_one_address_even_in_parallel(guarded: Program) -> None:
    guesser = Client(guarded)
    with ThreadPoolExecutor(16) as guessing:
        answers = list(guessing.map(lambda number: wrong(guesser, number), range(64)))
    assert Counter(answer.status for answer in answers) == {401: 10, 429: 54}
    late = [answer for answer in answers if answer.status == 429]
    assert all(840 <= int(answer.headers["Retry-After"]) <= 900 for answer in late)
    assert all(answer.headers["Retry-After"] in answer.json["error"] for answer in late)
    assert guesser.ask("/api/status").status == 401  # who sends no secret is told what is needed
    assert {wrong(Client(guarded), number).status for number in range(4)} == {
        401
    }  # another address
    assert guesser.opened(**HEADER_OF["local"], **HEADER_OF["private"]) == {"local", "private"}
    assert guesser.login(TOKEN).status == 200
    assert guesser.opened(**HEADER_OF["local"]) == {"local", "stream"}
    assert guesser.login("wrong").status == 429


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/status", {"Authorization": "Bearer wrong"}),
        ("/metrics", {"Authorization": "Bearer wrong"}),
        ("/api/auth/status", {"Authorization": "Bearer wrong"}),
        ("/api/auth/status", {"X_Task_Data_Password": "wrong"}),
        (
            "/api/events",
            {**HEADER_OF["local"], **HEADER_OF["stream"], "X_Task_Data_Password": "wrong"},
        ),
        ("/", {**HEADER_OF["local"], "X_Task_Data_Password": "wrong"}),
    ],
)
def test_a_wrong_secret_counts_wherever_the_answer_would_tell_that_it_is_right(
    guarded: Program, path: str, headers: dict[str, str]
) -> None:
    client = Client(guarded)
    for _ in range(10):
        client.ask(path, **headers)
    assert client.login("wrong").status == 429


def test_a_login_tells_nothing_of_a_guess_in_a_header(guarded: Program) -> None:
    key = SECRET_OF["local"]
    told = [
        Client(guarded).login(key, X_Task_Data_Password=guess).json["open"]
        for guess in ("wrong", PASSWORD)
    ]
    assert told == [{"local": True, "private": False, "stream": False}] * 2


def test_a_limit_is_over_when_its_time_is_and_remembers_so_many_names() -> None:
    limiter = tbmon.Limiter(3, 0.2)
    assert [limiter.take("a") for _ in range(5)] == [0, 0, 0, 1, 1]
    assert limiter.take("b") == 0
    wait_for(lambda: limiter.take("a") == 0, 5)
    for number in range(10_050):
        limiter.take(str(number))
    assert len(limiter.taken) <= 10_000


# API_RATE_LIMIT

ASKED = "/api/auth/status"


def statuses(client: Client, times: int, path: str = ASKED, **headers: str) -> list[int]:
    return [client.ask(path, **headers).status for _ in range(times)]


@pytest.mark.parametrize(
    "path", [ASKED, "/api/nothing", "/api/logs", "/metrics", "/api/tasks/health"]
)
def test_requests_beyond_the_rate_are_refused_for_a_while(limited: Program, path: str) -> None:
    client = Client(limited)
    before = statuses(client, 5, path)
    assert 429 not in before
    answer = client.ask(path)
    assert (answer.status, 1 <= int(answer.headers["Retry-After"]) <= 60) == (429, True)
    assert answer.headers["Retry-After"] in answer.json["error"]
    assert client.login(PASSWORD).status == 429  # at any path
    assert statuses(Client(limited), 1, path) == before[:1]


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/health", {}, 200),
        ("/api/health", {}, 200),
        ("/", {}, 200),
        (ASKED, {"Sec_Fetch_Site": "cross-site"}, 403),
        (ASKED, {"Origin": "https://evil.example"}, 403),
        (ASKED, {"Host": "evil.example"}, 421),
    ],
)
def test_some_requests_do_not_count(
    limited: Program, path: str, headers: dict[str, str], status: int
) -> None:
    client = Client(limited)
    assert statuses(client, 12, path, **headers) == [status] * 12
    assert statuses(client, 6) == [200] * 5 + [429]
    assert statuses(client, 1, path, **headers) == [status]  # nor are they refused


def test_a_session_has_a_quota_of_its_own_that_a_new_login_does_not_refill(
    limited: Program,
) -> None:
    client = Client(limited)
    client.login(PASSWORD)
    assert statuses(client, 4) == [200] * 4
    assert client.login(PASSWORD).status == 200
    assert statuses(client, 1) == [429]
    client.cookie = ""
    assert statuses(client, 5) == [200] * 4 + [429]  # the first login counted for the address


def test_forwarded_addresses_have_quotas_only_if_the_proxy_names_them(limited: Program) -> None:
    liar, proxy = Client(limited), Client(limited, PROXY)
    assert [liar.ask(ASKED, X_Forwarded_For=f"203.0.113.{n}").status for n in range(6)] == [
        200
    ] * 5 + [429]
    forged = [
        proxy.ask(ASKED, X_Forwarded_For=f"10.0.0.{n}, 198.51.100.7").status for n in range(6)
    ]
    assert forged == [200] * 5 + [429]
    assert [proxy.ask(ASKED, X_Forwarded_For=f"203.0.113.{n}").status for n in range(6)] == [
        200
    ] * 6


def test_a_rate_of_0_is_no_limit(guarded: Program) -> None:
    connection = Client(guarded).connect()
    found: Counter[int] = Counter()
    for _ in range(510):
        connection.request("GET", ASKED)
        answer = connection.getresponse()
        contract.check("GET", ASKED, answer.status, answer.headers, answer.read())
        found[answer.status] += 1
    connection.close()
    assert found == {200: 510}


# Other pages


def asked_by(client: Client, **headers: str) -> list[int]:
    """The statuses of reading and of writing; Host names the port unless it is given."""
    headers = {"Host": f"localhost:{client.program.port}", **HEADER_OF["local"], **headers}
    return [client.ask("/api/status", **headers).status, client.logout(**headers).status]


FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "null", "Sec_Fetch_Site": "same-origin"},
    {"Origin": "http://localhost:1"},
    {"Origin": "http://localhost"},
    {"Origin": "http://127.0.0.1:{port}"},
    {"Origin": "http://localhost:{port}.evil.example"},
    {"Origin": "http://localhost:{port}", "Sec_Fetch_Site": "cross-site"},
    {"Origin": LISTED + ".evil.example"},
    {"Origin": LISTED + ":8443"},
    {"Origin": LISTED.replace("https", "http")},
    {"Origin": LISTED.replace("pane", "other.pane")},
    {"Origin": "evil"},
    {"Origin": "http://localhost", "X_Forwarded_Host": "localhost"},
]


@pytest.mark.parametrize("headers", FOREIGN, ids=str)
def test_pages_of_elsewhere_may_neither_read_nor_write_with_any_credential(
    guarded: Program, headers: dict[str, str]
) -> None:
    client = Client(guarded)
    client.login(KEY)
    headers = {
        name: text.format(port=guarded.port)
        for name, text in ({"Host": "localhost:{port}"} | headers).items()
    }
    assert asked_by(client, **headers) == [403, 403]
    answer = client.ask("/api/auth/login", "POST", {"secret": PASSWORD}, **headers)
    assert (answer.status, "ALLOWED_ORIGINS" in answer.json["error"]) == (403, True)
    assert (answer.headers["Set-Cookie"], answer.headers["Access-Control-Allow-Origin"]) == (
        None,
        None,
    )
    for path in ("/metrics", "/health", "/api/nothing"):
        assert client.ask(path, **headers).status == 403
    assert client.opened() == {"local"}  # neither ended nor enlarged


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Sec_Fetch_Site": "none"},
        {"Sec_Fetch_Site": "same-origin"},
        {"Origin": "http://localhost:{port}"},
        {"Origin": "http://LOCALHOST:{port}", "Sec_Fetch_Site": "same-origin"},
        {"Origin": "https://localhost:{port}"},
        {"Host": "localhost", "Origin": "http://localhost"},
        {"Host": "[::1]:{port}", "Origin": "http://[::1]:{port}"},
        {"Host": "pane.example.org", "Origin": LISTED},
    ],
    ids=str,
)
def test_the_own_page_may_read_and_write(guarded: Program, headers: dict[str, str]) -> None:
    headers = {name: text.format(port=guarded.port) for name, text in headers.items()}
    assert asked_by(Client(guarded), **headers) == [200, 200]


def test_wrong_secrets_that_a_page_of_elsewhere_sends_count_for_nobody(guarded: Program) -> None:
    client = Client(guarded)
    for headers in (
        {"Origin": "https://evil.example"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Host": "evil.example"},
    ):
        for _ in range(11):
            client.login("wrong", **headers)
    assert client.login("wrong").status == 401


@pytest.mark.parametrize(
    "host", ["evil.example", "localhost.evil.example", "x.pane.example.org", ""]
)
def test_under_a_name_of_elsewhere_no_credential_helps(guarded: Program, host: str) -> None:
    client = Client(guarded)
    client.login(KEY)
    headers = {"Host": host, "Origin": f"http://{host}", "Sec_Fetch_Site": "same-origin"}
    assert asked_by(client, **headers) == [421, 421]
    answer = client.login(PASSWORD, **headers)
    assert (answer.status, answer.headers["Set-Cookie"]) == (421, None)
    assert client.opened() == {"local"}


def test_a_listed_page_reads_with_headers_and_never_with_the_cookie(guarded: Program) -> None:
    client = Client(guarded)
    client.login(KEY)
    answer = client.ask("/api/status", Origin=LISTED)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (
        401,
        LISTED,
    )  # and may read why
    answer = client.ask("/api/status", Origin=LISTED, **HEADER_OF["local"])
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, LISTED)
    assert "Origin" in answer.headers["Vary"]
    assert answer.headers["Access-Control-Allow-Credentials"] is None
    assert client.ask("/api/status").headers["Access-Control-Allow-Origin"] is None
    for headers in (
        {"Origin": LISTED},
        {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "navigate"},
    ):
        assert client.status(**headers) == {
            "session": False,
            "expiresAt": None,
            "open": {"local": False, "private": False, "stream": False},
        }


def test_what_another_port_of_this_host_embeds_is_refused(guarded: Program) -> None:
    client = Client(guarded)
    answer = client.ask(
        "/api/events", Sec_Fetch_Site="same-site", Sec_Fetch_Mode="no-cors", **HEADER_OF["local"]
    )
    assert answer.status == 403


def test_a_listed_page_cannot_end_the_session_of_the_cookie(guarded: Program) -> None:
    client = Client(guarded)
    client.login(KEY)
    cookie = client.cookie
    client.logout(Origin=LISTED)
    client.cookie = cookie
    assert client.opened() == {"local"}


def test_a_listed_page_cannot_add_to_the_session_of_the_cookie(guarded: Program) -> None:
    client = Client(guarded)
    client.login(KEY)
    cookie = client.cookie
    answer = client.login(PASSWORD, Origin=LISTED)
    assert (answer.status, answer.headers["Set-Cookie"]) == (403, None)
    client.cookie = cookie
    assert client.opened() == {"local"}


@pytest.mark.parametrize("path", ["/api/logs", "/api/auth/login", "/api/events"])
def test_a_preflight_is_answered_to_listed_pages_only(guarded: Program, path: str) -> None:
    client = Client(guarded)
    wish = {
        "Access_Control_Request_Method": "POST",
        "Access_Control_Request_Headers": "x-task-data-password",
    }
    answer = client.ask(path, "OPTIONS", Origin=LISTED, Sec_Fetch_Site="cross-site", **wish)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"], answer.body) == (
        204,
        LISTED,
        b"",
    )
    assert "POST" in answer.headers["Access-Control-Allow-Methods"]
    names = answer.headers["Access-Control-Allow-Headers"].lower().split(", ")
    assert {"authorization", "content-type", "x-task-data-password", "x-stream-token"} <= set(names)
    for origin in ("https://evil.example", "null"):
        answer = client.ask(path, "OPTIONS", Origin=origin, **wish)
        assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (403, None)


@pytest.mark.parametrize("origin", ["https://evil.example", "null"])
def test_a_star_opens_reading_without_credentials_and_nothing_else(
    exposed: Program, origin: str
) -> None:
    client = Client(exposed)
    client.login("sesame")
    assert client.ask("/api/logs").status == 200
    page = {"Origin": origin, "Sec_Fetch_Site": "cross-site"}
    answer = client.ask("/api/status", **page)
    assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (200, "*")
    assert answer.headers["Access-Control-Allow-Credentials"] is None
    assert (client.ask("/api/logs", **page).status, client.status(**page)["session"]) == (
        401,
        False,
    )
    wish = {
        "Access_Control_Request_Method": "GET",
        "Access_Control_Request_Headers": "x-task-data-password",
    }
    preflight = client.ask("/api/logs", "OPTIONS", **page, **wish)
    assert (preflight.status, preflight.headers["Access-Control-Allow-Headers"]) == (403, None)
    assert (client.login("sesame", **page).status, client.logout(**page).status) == (403, 403)
    assert client.status()["open"]["private"]


# Behind a proxy


@pytest.mark.parametrize(
    ("peer", "forwarded", "counts"),
    [
        ("192.0.2.1", "", "192.0.2.1"),
        ("192.0.2.1", "203.0.113.5", "192.0.2.1"),  # no proxy of ours
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        (
            "10.0.0.1",
            "1.1.1.1, 203.0.113.5",
            "203.0.113.5",
        ),  # the left part is what the client said
        ("10.0.0.1", "1.1.1.1,203.0.113.5 , 10.0.0.9", "203.0.113.5"),  # two hops
        ("10.0.0.1", "203.0.113.5, 2001:db8:ffff::9, 10.0.0.9", "203.0.113.5"),
        ("10.0.0.1", "10.0.0.3, 10.0.0.9", "10.0.0.3"),  # all of them ours
        ("10.0.0.1", "203.0.113.5:4711", "203.0.113.5"),
        ("10.0.0.1", "[2001:db8:1:2:3::4]:4711", "2001:db8:1:2::/64"),
        ("10.0.0.1", "junk", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5, junk", "10.0.0.1"),
        ("10.0.0.1", "junk, 203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "203.0.113.5, ", "10.0.0.1"),
        ("10.0.0.1", ",,,", "10.0.0.1"),
        ("10.0.0.1", "999.1.1.1", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.5/24", "10.0.0.1"),
        ("10.0.0.1", "\u0662.1.1.1", "10.0.0.1"),
        ("2001:db8:ffff::1", "203.0.113.5", "203.0.113.5"),
        ("::ffff:10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("::ffff:192.0.2.1", "203.0.113.5", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
        ("2001:DB8:1:2::1", "", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::1", "", "2001:db8:1:3::/64"),
        ("", "203.0.113.5", "unknown"),
    ],
)
def test_the_address_that_counts_is_the_last_that_no_trusted_proxy_has(
    peer: str, forwarded: str, counts: str
) -> None:
    proxies = [ipaddress.ip_network(name) for name in ("10.0.0.0/24", "2001:db8:ffff::/48")]
    environ = {"REMOTE_ADDR": peer, **({"HTTP_X_FORWARDED_FOR": forwarded} if forwarded else {})}
    assert tbmon.client_address(environ, proxies) == counts
    assert tbmon.client_address(environ, []) == tbmon.client_address({"REMOTE_ADDR": peer}, [])


# The audit log


@pytest.fixture
def audited(program: Callable[..., Program], tmp_path: Path) -> Program:
    (tmp_path / "logs").mkdir()
    more = {"TRUSTED_PROXY": PROXY[0], "LOG_DIR": str(tmp_path / "logs")}
    return program(**SETTINGS, **more).start()


def rows(program: Program) -> list[dict[str, Any]]:
    answer = Client(program).ask(
        "/api/audit-log?limit=1000", **HEADER_OF["local"], **HEADER_OF["private"]
    )
    assert (answer.status, answer.headers["Cache-Control"]) == (200, "no-store")
    found: list[dict[str, Any]] = answer.json["entries"]
    return found


def test_the_audit_log_is_private(guarded: Program) -> None:
    client = Client(guarded)
    assert [client.ask("/api/audit-log", **HEADER_OF[grant]).status for grant in SECRET_OF] == [
        401
    ] * 3


def test_the_audit_log_tells_who_came_in_and_who_did_not_within_bounds(audited: Program) -> None:
    client, proxy = Client(audited), Client(audited, PROXY)
    client.ask("/api/status")  # no secret: nothing to tell
    client.login(KEY)
    client.login(PASSWORD)
    client.logout()
    client.logout()  # there was no session any more
    client.login(f"{KEY}x")
    client.ask("/api/logs", **HEADER_OF["local"], X_Task_Data_Password=TOKEN)
    client.ask(
        "/api/events", **HEADER_OF["local"], X_Stream_Token=PASSWORD, X_Forwarded_For="203.0.113.9"
    )
    proxy.ask(
        "/api/status", Authorization=f"Bearer {PASSWORD}", X_Forwarded_For="1.1.1.1, 2001:db8::7"
    )
    proxy.login(TOKEN, X_Forwarded_For="203.0.113.9")
    found, own = rows(audited)[::-1], client.address[0]
    assert [(row["event"], row["address"]) for row in found] == [
        ("login", own),
        ("login", own),
        ("logout", own),
        ("refused", own),
        ("refused", own),
        ("refused", own),
        ("refused", "2001:db8::/64"),
        ("login", "203.0.113.9"),
    ]
    details = [row["detail"] for row in found]
    assert ["local" in details[0], "private" in details[1], "stream" in details[7]] == [True] * 3
    told = ["login", "task-data password", "stream token", "API key"]
    assert all(words in detail for words, detail in zip(told, details[3:7], strict=True))
    assert [secret for secret in SECRET_OF.values() if secret in json.dumps(found)] == []

    with ThreadPoolExecutor(8) as flood:
        guessers = [Client(audited) for _ in range(20)]
        answers = list(flood.map(lambda number: wrong(guessers[number % 20], number), range(240)))
    assert Counter(answer.status for answer in answers) == {401: 200, 429: 40}
    assert len(rows(audited)) == tbmon.NOTES_A_MINUTE
    assert audited.log.read_text().count("refused") <= tbmon.NOTES_A_MINUTE


# The token of the live stream, and what is said at the start


def test_a_token_that_was_not_set_is_made_kept_and_shown(exposed: Program) -> None:
    found = re.search(r"\N{KEY} stream token \(kept in (.+)\): (\S+)", exposed.log.read_text())
    assert found, "not shown"
    path, token = Path(found[1]), found[2]
    assert (path.read_text(), stat.S_IMODE(path.stat().st_mode), len(token) >= 22) == (
        token,
        0o600,
        True,
    )
    begin = time.monotonic()
    assert Client(exposed).ask("/api/events").status == 401
    assert time.monotonic() - begin < 2  # not after WS_AUTH_TIMEOUT
    client = Client(exposed)
    assert client.ask("/api/events", X_Stream_Token=f"{token}x").status == 401
    assert client.ask("/api/events", X_Stream_Token=token).status == 200
    assert client.login(token).status == 200
    assert (client.opened(), client.logout().status) == ({"local", "stream"}, 200)
    assert client.opened() == {"local"}


def test_what_is_not_set_is_no_secret(exposed: Program) -> None:
    assert Client(exposed).login("").status == 401


def test_the_start_warns_in_plain_words_of_what_is_open(exposed: Program, guarded: Program) -> None:
    warned = [line for line in exposed.log.read_text().splitlines() if " WARNING " in line]
    for words in (
        ("HOST=0.0.0.0", "API_KEY", "anybody", "can read", "status, tasks and invoices"),
        ("ALLOWED_ORIGINS=*", "any page"),
        ("TASK_DATA_PASSWORD", "short"),
    ):
        assert [line for line in warned if all(word in line for word in words)], (words, warned)
    assert "sesame" not in exposed.log.read_text()
    assert "WARNING" not in guarded.log.read_text()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, []),
        ({"host": "localhost"}, []),
        ({"host": "::1"}, []),
        ({"host": "127.0.0.53"}, []),
        ({"host": "0.0.0.0"}, ["HOST"]),
        ({"host": "::"}, ["HOST"]),
        ({"host": "192.168.1.5"}, ["HOST"]),
        ({"host": "monitor"}, ["HOST"]),
        ({"host": "0.0.0.0", "api_key": "a" * 10}, []),
        ({"host": "0.0.0.0", "api_key": "a" * 9}, ["API_KEY"]),
        (
            {"ws_auth_token": "a" * 9, "task_data_password": "a" * 9},
            ["TASK_DATA_PASSWORD", "WS_AUTH_TOKEN"],
        ),
        ({"allowed_origins": f"{LISTED}, *"}, ["ALLOWED_ORIGINS"]),
        ({"allowed_origins": LISTED}, []),
    ],
)
def test_what_should_be_known_is_warned_of_and_nothing_else(
    settings: dict[str, Any], words: list[str]
) -> None:
    found = [finding.what for finding in tbmon.warnings_of(tbmon.Config(**settings))]
    assert [re.match("[A-Z_]+", what)[0] for what in found] == words  # type: ignore[index]
    assert all(settings.get("api_key", "-") not in what for what in found)


# No secret is ever told


def told(program: Program, request: bytes) -> bytes:
    """Everything that is answered to these very bytes."""
    with socket.create_connection(("127.0.0.1", program.port), 10, elsewhere()) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("secret", SECRET_OF.values())
def test_no_answer_and_no_line_of_the_log_has_a_secret(guarded: Program, secret: str) -> None:
    names = (
        "password",
        "secret",
        "api_key",
        "token",
        "limit",
        "cursor",
        "since",
        "status",
        "format",
        "execution_id",
    )
    paths = [f"/api/tasks?{name}={secret}" for name in names]
    paths += [
        f"/api/{secret}",
        f"/api/tasks/{secret}",
        f"/{secret}",
        f"/api/tasks?limit=1&limit={secret}",
    ]
    headers = [
        "Authorization: Bearer {}x",
        "Authorization: {}",
        "X-Task-Data-Password: {}x",
        "X-Stream-Token: {}x",
    ]
    headers += [
        "Cookie: session={}",
        "Origin: http://{}",
        "Referer: http://x/{}",
        "User-Agent: {}",
        "Accept: {}",
    ]
    headers += [
        "If-None-Match: {}",
        "Last-Event-ID: {}",
        "X-Forwarded-For: {}",
        "Authorization: Bearer {}\r",
    ]
    headers += [
        "X-Task-Data-Password: {}\r",
        "X-Stream-Token: \n{}",
        " {}",
        "{}",
        "X-Stream-Token {}: 1",
    ]
    lines = [
        (
            f"Authorization: Bearer {KEY}\r\nX-Task-Data-Password: {PASSWORD}\r\nX-Stream-Token: "
            f"{TOKEN}\r\n"
        )
    ]
    lines += [f"{line.format(secret)}\r\n" for line in headers]
    bodies = [
        f"secret={secret}",
        f'{{"secret": "{secret}',
        f'{{"secret": ["{secret}"]}}',
        f'{{"{secret}": 1}}',
    ]
    bodies += [json.dumps({"secret": f"{secret}x"}), json.dumps({"secret": secret})]
    ends = "Host: localhost\r\nConnection: close\r\n"
    requests = [f"GET {path} HTTP/1.1\r\n{lines[0]}{ends}\r\n" for path in paths]
    requests += [
        f"GET {path} HTTP/1.1\r\n{line}{ends}\r\n"
        for line in lines
        for path in ("/api/tasks", "/api/auth/status")
    ]
    requests += [
        f"POST /api/auth/login HTTP/1.1\r\n{ends}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
        for body in bodies
    ]
    requests += [f"GET / HTTP/1.1\r\n{ends.replace('localhost', f'{secret}.example')}\r\n"]
    requests += [
        f"{line}\r\n{ends}\r\n"
        for line in (f"{secret} / HTTP/1.1", f"GET http://{secret}/ HTTP/1.1")
    ]
    requests += [f"GET /api/tasks {secret}\r\n\r\n"]
    answers = {request: told(guarded, request.encode()) for request in requests}
    assert [
        request for request, answer in answers.items() if not answer.startswith(b"HTTP/1.")
    ] == []
    assert [request for request, answer in answers.items() if secret.encode() in answer] == []
    assert secret not in guarded.log.read_text()


# A real browser

EVIL = "evil.example"
TRY_ALL = """async ([base, secret]) => {
  const read = async (path, options) => {
    try { return await (await fetch(base + path, options)).text() } catch { return "" }
  }
  const withCookie = {credentials: "include"}
  const stream = new Promise(done => {
    const source = new EventSource(base + "/api/events", {withCredentials: true})
    source.onopen = () => { source.close(); done("open") }
    source.onerror = () => { source.close(); done("") }
  })
  const json = {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({secret})}
  return [
    await stream, await read("/api/status"), await read("/api/status", {...withCookie, mode: "no-cors"}),
    await read("/api/logs", withCookie), await read("/api/logs", {headers: {"X-Task-Data-Password": secret}}),
    await read("/api/auth/login", {...withCookie, ...json}),
    await read("/api/auth/logout", {...withCookie, method: "POST", mode: "no-cors"}),
    await read("/api/auth/logout", {...withCookie, method: "POST"}),
  ]
}"""
SUBMIT = """([address]) => {
  const form = document.body.appendChild(document.createElement("form"))
  form.method = "POST"; form.action = address; form.submit()
}"""
ENTER = """async secret => (await fetch("/api/auth/login", {
  method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify({secret})
})).status"""
LOOK = (
    "async path => { const answer = await fetch(path); return [answer.status, await "
    "answer.text()] }"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # tbmon must be safe in a browser that does not itself keep pages from the local network
    words = "--no-proxy-server", "--disable-features=LocalNetworkAccessChecks"
    with chromium(*words, f"--host-resolver-rules=MAP {EVIL} 127.0.0.1") as started:
        yield started


@pytest.fixture(scope="module")
def homely(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor as it is by default: everything but task data and log is open to whoever reaches
    it.
    """
    made = over_files(tmp_path_factory.mktemp("homely"), TASK_DATA_PASSWORD=PASSWORD)
    write(made, header("the canary sings"))
    made.start()
    wait_for(lambda: made.get("/api/logs/status")[1]["lastLogAt"])
    yield made
    end(made)


@pytest.fixture(scope="module")
def stranger() -> Iterator[int]:
    """The port of another server on this host, with an empty page."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>a page</title><body>")

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def home(browser: Any, homely: Program) -> Iterator[Any]:
    """tbmon's own page, logged in."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"http://127.0.0.1:{homely.port}/", wait_until="commit")
    assert page.evaluate(ENTER, PASSWORD) == 200
    yield page
    context.close()


def is_open(home: Any) -> bool:
    status, body = home.evaluate(LOOK, "/api/logs")
    return bool(status == 200 and "canary" in body)


def is_refusal(text: str) -> bool:
    return text == "" or list(json.loads(text)) == ["error"]


def test_a_page_whose_name_was_bound_to_this_host_gets_nothing(
    browser: Any, homely: Program
) -> None:
    context = browser.new_context()
    page, base = context.new_page(), f"http://{EVIL}:{homely.port}"
    # the page came from its own server, before its name was bound to ours
    page.route(f"{base}/lure", lambda route: route.fulfill(body="<body>", content_type="text/html"))
    page.goto(f"{base}/lure")
    for path in ("/", "/app.js", "/health", "/api/status", "/api/tasks", "/metrics"):
        status, body = page.evaluate(LOOK, path)
        assert (status, list(json.loads(body))) == (421, ["error"])
    assert all(is_refusal(text) for text in page.evaluate(TRY_ALL, [base, PASSWORD]))
    assert (page.goto(f"{base}/").status, context.cookies()) == (421, [])
    context.close()


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", EVIL]
)  # the first shares tbmon's cookies
def test_a_page_of_another_origin_reads_nothing_and_changes_nothing(
    home: Any, homely: Program, stranger: int, host: str
) -> None:
    base = f"http://127.0.0.1:{homely.port}"
    page, refused = home.context.new_page(), []
    page.on(
        "response",
        lambda answer: refused.append(answer.status) if answer.url.startswith(base) else None,
    )
    page.goto(f"http://{host}:{stranger}/")
    assert page.evaluate(TRY_ALL, [base, PASSWORD]) == [""] * 8
    for path in ("/api/auth/logout", "/api/auth/login"):
        page.goto(f"http://{host}:{stranger}/")
        with page.expect_navigation() as gone:
            page.evaluate(SUBMIT, [base + path])
        assert gone.value.status == 403
    assert refused.count(403) >= 3  # it was tbmon that refused, and not the browser alone
    assert is_open(home)


def test_what_other_pages_try_works_on_the_own_page(home: Any, homely: Program) -> None:
    assert is_open(home)
    assert all(home.evaluate(TRY_ALL, [f"http://127.0.0.1:{homely.port}", PASSWORD]))
    assert not is_open(home)  # it logged out
