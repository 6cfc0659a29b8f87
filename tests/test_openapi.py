"""The OpenAPI document: valid, the same as the routes, and true of what 10,000 random requests get."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import itertools
import json
import random
import re
import socket
import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jsonschema
import pytest
from support import contract
from support.asking import PASSWORD, Answer, allowed, ask, elsewhere
from support.hubs import Hub, Station
from support.machine import figure_of, wait_for
from support.node_words import HASH, IDS, START, STORY, header, received
from support.programs import Program, end, over_files, resident_bytes, write
from support.sharing import AWAY, at_hub, change, publication, see

import tbmon

DOCUMENT: dict[str, Any] = contract.DOCUMENT
TOKEN = "stream token"
STREAM = "/api/events"


class Operation(NamedTuple):
    """One operation of the document."""

    method: str
    path: str
    made: dict[str, Any]

    def target(self, query: str = "") -> str:
        """A path on which this operation has something to tell."""
        return self.path.format(execution_id=IDS[0], hash=HASH) + (f"?{query}" if query else "")

    @property
    def body(self) -> str:
        """The schema's name of what is sent; "" if nothing is."""
        content = self.made.get("requestBody", {}).get(
            "content", {"application/json": {"schema": {"$ref": ""}}}
        )
        return str(content["application/json"]["schema"]["$ref"]).rpartition("/")[2]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


OPERATIONS = [
    Operation(method.upper(), path, made)
    for path, known in DOCUMENT["paths"].items()
    for method, made in known.items()
]
QUERIES = [
    pytest.param(operation, given, id=f"{operation} {given['name']}")
    for operation in OPERATIONS
    for given in operation.made["parameters"]
    if given["in"] == "query"
]
RIGHT: dict[
    str, dict[str, list[Any]]
] = {  # values that the fields of a body take; the first of each, together, too
    "LoginBody": {"secret": [PASSWORD]},
    "SharingBody": {
        "enabled": [False, True],
        "privacyLevel": ["balanced", "minimal", "maximum"],
        "shareTasks": [True, False],
        "shareStats": [True, False],
        "natsServers": [[], [AWAY], ["tls://[::1]:1", "ws://127.0.0.1:1", AWAY]],
    },
}
LATER = IDS[5][:-1] + "d"  # a task that comes after opting in
operations = pytest.mark.parametrize("operation", OPERATIONS, ids=str)


def start(folder: Path, **settings: str) -> Program:
    """A monitor that has read STORY."""
    program = over_files(folder, API_RATE_LIMIT="0", **settings)
    write(program, *(header(words, START + second, level) for second, level, words in STORY))
    program.start()
    wait_for(lambda: program.get("/health")[0] == 200)
    return program


def knows_all(program: Program) -> bool:
    """True when the log is read and judged, the audit log has two rows, and the federation has
    something of all.
    """
    return (
        len(allowed(program, "/api/logs")["logs"]) == len(STORY) + 1
        and allowed(program, "/api/status")["verdict"] is not None
        and len(allowed(program, "/api/audit-log")["entries"]) >= 2
        and len(see(program, "preview")["queued"]) == 1
        and len(see(program, "sent")["messages"]) >= 2
        and see(program, "network-stats")["status"] == "connected"
    )


def fill(program: Program, hub: Hub) -> None:
    """Let a monitor meet refusals, the hub, a task that may be told, and figures of the network."""
    for _ in range(2):
        assert (
            ask(program, "/api/logs", password="wrong").status == 401
        )  # the audit log tells of it
    wait_for(lambda: allowed(program, "/api/status")["verdict"])
    change(program, "enable")
    wait_for(lambda: any(one["subscriptions"] for one in hub.monitors()))
    hub.peer().publish(publication())
    write(
        program, header(received(LATER), time.time() + 2)
    )  # stamps are whole seconds, opting in is not
    wait_for(lambda: knows_all(program))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor that has something to tell of everything; the tests change nothing in it."""
    folder = tmp_path_factory.mktemp("site")
    with contextlib.closing(Hub(folder)) as hub:
        program = start(folder, **at_hub(hub.start()))
        try:
            fill(program, hub)
            yield program
        finally:
            end(program)


@pytest.fixture(scope="module")
def spare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A monitor for the tests that change something."""
    program = start(tmp_path_factory.mktemp("spare"))
    yield program
    end(program)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    program = start(
        tmp_path_factory.mktemp("locked"),
        API_KEY="key",
        WS_AUTH_REQUIRED="true",
        WS_AUTH_TOKEN=TOKEN,
    )
    yield program
    end(program)


def example(operation: Operation) -> bytes | None:
    """A body that the operation takes, with all its fields; None if it takes none."""
    fields = RIGHT.get(operation.body, {})
    return json.dumps({name: some[0] for name, some in fields.items()}).encode() if fields else None


def call(
    program: Program, operation: Operation, headers: dict[str, str], body: bytes | None = None
) -> Answer:
    """Ask for an operation as the document tells, with its example or another body; of a stream,
    the first words.
    """
    sent = example(operation) if body is None else body
    given = {**headers, **({"Content-Type": "application/json"} if operation.body else {})}
    connection = http.client.HTTPConnection(
        "127.0.0.1", program.port, timeout=10, source_address=elsewhere()
    )
    connection.request(operation.method, operation.target(), sent, given)
    answer = connection.getresponse()
    stream = answer.headers["Content-Type"].startswith("text/event-stream")
    got = Answer(answer.status, answer.headers, answer.readline() if stream else answer.read())
    connection.close()
    contract.check(operation.method, operation.target(), *got)
    return got


# The document by itself


def parts(value: Any, place: str = "#") -> Iterator[tuple[str, Any]]:
    """Every part of a JSON value, with its pointer."""
    yield place, value
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, part in pairs:
        yield from parts(part, f"{place}/{str(name).replace('~', '~0').replace('/', '~1')}")


WORDS = {"type": "string", "minLength": 1}
SCHEMA = {"type": "object", "minProperties": 0}
CONTENT = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "type": "object",
        "required": ["schema"],
        "properties": {"schema": SCHEMA},
        "additionalProperties": False,
    },
}
PARAMETER = {
    "type": "object",
    "required": ["name", "in", "schema"],
    "additionalProperties": False,
    "properties": {
        "name": WORDS,
        "in": {"enum": ["path", "query", "header"]},
        "required": {"type": "boolean"},
        "description": WORDS,
        "schema": SCHEMA,
    },
    "if": {"properties": {"in": {"const": "path"}}},
    "then": {"required": ["required"], "properties": {"required": {"const": True}}},
}
OPERATION = {
    "type": "object",
    "required": ["summary", "parameters", "tags", "security", "responses"],
    "additionalProperties": False,
    "properties": {
        "summary": WORDS,
        "parameters": {"type": "array", "items": PARAMETER},
        "tags": {"type": "array", "items": WORDS, "minItems": 1},
        "security": {
            "type": "array",
            "items": {"type": "object", "additionalProperties": {"const": []}},
        },
        "requestBody": {
            "type": "object",
            "required": ["content"],
            "properties": {"content": CONTENT, "required": {"type": "boolean"}},
            "additionalProperties": False,
        },
        "responses": {
            "type": "object",
            "required": ["200", "default"],
            "patternProperties": {
                "^([1-5]([0-9][0-9]|XX)|default)$": {
                    "type": "object",
                    "required": ["description"],
                    "additionalProperties": False,
                    "properties": {"description": WORDS, "content": CONTENT},
                }
            },
            "additionalProperties": False,
        },
    },
}
SCHEME = {
    "oneOf": [
        {
            "type": "object",
            "required": ["type", "in", "name"],
            "additionalProperties": False,
            "properties": {
                "type": {"const": "apiKey"},
                "in": {"enum": ["header", "query", "cookie"]},
                "name": WORDS,
            },
        },
        {
            "type": "object",
            "required": ["type", "scheme"],
            "additionalProperties": False,
            "properties": {"type": {"const": "http"}, "scheme": {"enum": ["bearer", "basic"]}},
        },
    ]
}
RULES = {  # of the OpenAPI 3.1 specification, for the parts of it that are used here
    "type": "object",
    "required": ["openapi", "info", "paths", "components"],
    "additionalProperties": False,
    "properties": {
        "openapi": {"pattern": r"^3\.1\.\d+$"},
        "info": {
            "type": "object",
            "required": ["title", "version"],
            "properties": {"title": WORDS, "version": WORDS},
        },
        "servers": {"type": "array", "items": {"type": "object", "required": ["url"]}},
        "paths": {
            "type": "object",
            "patternProperties": {
                "^/": {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": False,
                    "patternProperties": {"^(get|put|post|delete|patch)$": OPERATION},
                }
            },
            "additionalProperties": False,
        },
        "components": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "schemas": {
                    "type": "object",
                    "propertyNames": {"pattern": r"^[\w.-]+$"},
                    "additionalProperties": SCHEMA,
                },
                "securitySchemes": {"type": "object", "additionalProperties": SCHEME},
            },
        },
    },
}


def test_the_document_that_is_served_is_the_one_that_answers_are_checked_against(
    site: Program,
) -> None:
    assert allowed(site, "/api/openapi.json") == json.loads(json.dumps(DOCUMENT))


def test_the_document_keeps_the_rules_of_openapi_3_1(site: Program) -> None:
    served = allowed(site, "/api/openapi.json")
    errors = jsonschema.Draft202012Validator(RULES).iter_errors(served)
    assert [f"{error.json_path}: {error.message[:200]}" for error in errors] == []


def test_every_reference_leads_somewhere_and_every_schema_is_used_and_valid() -> None:
    found = dict(parts(json.loads(json.dumps(DOCUMENT))))
    references = {
        part["$ref"] for part in found.values() if isinstance(part, dict) and "$ref" in part
    }
    assert references - set(found) == set()
    schemas = {place for place in found if re.fullmatch("#/components/schemas/[^/]+", place)}
    events = {
        f"#/components/schemas/{name}" for name in ("Semaphore", "Reset")
    }  # the stream tells them
    assert schemas - references - events == set()
    inline = {place for place in found if re.search("/(parameters|content)/[^/]+/schema$", place)}
    for place in schemas | inline:
        jsonschema.Draft202012Validator.check_schema(found[place])


@operations
def test_placeholders_parameters_and_security_schemes_are_declared(operation: Operation) -> None:
    names = [given["name"] for given in operation.made["parameters"] if given["in"] == "path"]
    assert names == re.findall(r"{(\w+)}", operation.path)
    every = [(given["in"], given["name"]) for given in operation.made["parameters"]]
    assert len(every) == len(set(every))
    used = {name for either in operation.made["security"] for name in either}
    assert used <= set(DOCUMENT["components"]["securitySchemes"])


# The document and the routes


def test_the_application_and_the_document_have_the_same_routes(tmp_path: Path) -> None:
    with contextlib.closing(Station(tmp_path / "data", AWAY)) as here:
        app = tbmon.build_app(here.api)
    served = {(route.method, re.sub(r"<(\w+)>", r"{\1}", route.rule)) for route in app.routes}
    gone = {path.replace("<", "{").replace(">", "}") for path in tbmon.GONE}
    pages = {"/", *(f"/{path.name}" for path in tbmon.STATIC.iterdir())}
    assert {one for one in served if one[1] not in gone | pages} == {
        (one.method, one.path) for one in OPERATIONS
    }
    assert gone | {"/", "/index.html", "/app.js"} <= {path for _, path in served}


@pytest.mark.parametrize("route", tbmon.ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_an_operation_tells_what_its_route_takes(route: tbmon.Route) -> None:
    made = DOCUMENT["paths"][route.path][route.method.lower()]
    told = {
        given["name"]: given["schema"] for given in made["parameters"] if given["in"] == "query"
    }
    assert told == {name: given.schema for name, given in route.query.items()}
    assert {name for either in made["security"] for name in either} == set(
        tbmon.NEEDS[route.access]
    )
    assert (Operation(route.method, route.path, made).body, made["tags"]) == (
        route.body,
        [route.access],
    )
    assert "requestBody" not in made or made["requestBody"]["required"]
    assert ("text/csv" in made["responses"]["200"]["content"]) == bool(route.rows)


@operations
def test_every_operation_answers_on_a_site_with_data(
    site: Program, spare: Program, operation: Operation
) -> None:
    answer = call(
        site if operation.method == "GET" else spare, operation, {"X-Task-Data-Password": PASSWORD}
    )
    if operation.path.endswith("/artifacts/{hash}"):
        assert (
            answer.status == 404
        )  # modules are read through the engine, which this site has none of
        assert "artifact" in answer.json["error"]
        return
    assert answer.status == 200, answer.body
    assert (
        answer.headers["Content-Type"].partition(";")[0]
        in operation.made["responses"]["200"]["content"]
    )
    assert len(answer.body) > 10


SECRETS = {
    "local": {"Authorization": "Bearer key"},
    "private": {"X-Task-Data-Password": PASSWORD},
    "stream": {"X-Stream-Token": TOKEN},
}


@operations
def test_an_operation_asks_for_exactly_the_credentials_it_declares(
    locked: Program, operation: Operation
) -> None:
    needed = {name for either in operation.made["security"] for name in either}
    for some in itertools.chain.from_iterable(
        itertools.combinations(SECRETS, number) for number in range(4)
    ):
        headers = {name: text for grant in some for name, text in SECRETS[grant].items()}
        answer = call(locked, operation, headers)
        assert (answer.status == 401) == (not needed <= set(some)), (some, answer.status)
        assert answer.status in (200, 401) or operation.path.endswith("{hash}")


# Bodies

WRONG: list[Any] = [  # for some field at least
    None,
    True,
    False,
    0,
    1,
    1.5,
    2**70,
    "",
    "true",
    "minimal",
    "Maximum",
    [],
    [None],
    [AWAY, 1],
    [[AWAY]],
    {},
    {"a": 1},
]


@pytest.mark.parametrize(
    "operation", [operation for operation in OPERATIONS if operation.body], ids=str
)
def test_a_body_is_taken_exactly_if_its_schema_takes_it(
    spare: Program, operation: Operation
) -> None:
    schema, fields = (
        contract.validator(f"#/components/schemas/{operation.body}"),
        RIGHT[operation.body],
    )
    assert set(fields) == set(DOCUMENT["components"]["schemas"][operation.body]["properties"])
    right: list[Any] = [{name: value} for name, some in fields.items() for value in some]
    odd = [{name: value} for name in [*fields, "more", f"{next(iter(fields))}?"] for value in WRONG]
    assert all(map(schema.is_valid, right))
    assert {
        name for name in fields if not all(schema.is_valid({name: value}) for value in WRONG)
    } == set(fields)
    for body in [*right, *odd, *WRONG]:
        answer = call(
            spare, operation, {"X-Task-Data-Password": PASSWORD}, json.dumps(body).encode()
        )
        assert answer.status in ((200, 401) if schema.is_valid(body) else (400,)), (
            body,
            answer.body,
        )
        assert answer.status != 400 or all(name in answer.json["error"] for name in fields)


# Query parameters


def good_values(site: Program, operation: Operation, given: dict[str, Any]) -> list[str]:
    """Values that the parameter's schema and description say are taken, at both ends of a range."""
    name, schema = given["name"], given["schema"]
    if name == "cursor":
        cursor = allowed(site, operation.target("limit=1"))["pagination"]["next"]
        assert cursor, "not enough rows to page"
        return [cursor]
    if "enum" in schema:
        return list(schema["enum"])
    if schema["type"] == "integer":
        return [str(schema[part]) for part in ("minimum", "default", "maximum")]
    if schema["type"] == "boolean":
        return ["true", "false"]
    if "pattern" in schema:
        return [IDS[0]]
    if given["description"].startswith("a time"):
        return [given["description"].split()[-1], "2026-01-31T12:00:00.123Z", str(START)]
    return ["text", "", "%F0%9F%94%91", "%25_!'\"", "a" * 5000]


def bad_values(given: dict[str, Any]) -> list[str]:
    """Values that are refused; what is no UTF-8 or holds a NUL is so everywhere."""
    schema = given["schema"]
    never = ["%00", "a%00", "%FF", "%ED%A0%80", f"1&{given['name']}=1"]
    if given["name"] == "search":
        return never
    if schema.get("type") == "integer":
        never += [
            str(schema["minimum"] - 1),
            str(schema["maximum"] + 1),
            "1.0",
            "1e1",
            "%201",
            "0x1",
            "1_0",
            "9" * 999,
        ]
    return [
        *never,
        "",
        "nonsense",
        "%F0%9F%94%91",
        "null",
        "NaN",
        "[]",
        "%27%20OR%201=1--",
        "a" * 5000,
    ]


@pytest.mark.parametrize(("operation", "given"), QUERIES)
def test_a_documented_parameter_is_taken_if_right_and_refused_by_name_if_wrong(
    site: Program, operation: Operation, given: dict[str, Any]
) -> None:
    for value in good_values(site, operation, given):
        query = f"{given['name']}={value}"
        assert (
            ask(site, operation.target(query), operation.method, password=PASSWORD).status == 200
        ), query[:80]
    for value in bad_values(given):
        query = f"{given['name']}={value}"
        answer = ask(site, operation.target(query), operation.method, password=PASSWORD)
        assert (answer.status, f"parameter {given['name']}" in answer.json["error"]) == (
            400,
            True,
        ), query[:80]


# Random requests

REQUESTS, CLIENTS, SEED = 10_000, 4, 7
MOST_GROWTH_BYTES = 32 * 2**20
DEEP = 10_000
ODD = [
    "",
    "0",
    "-1",
    "9" * 5000,
    "1e999",
    "NaN",
    "null",
    "true",
    "[]",
    "{}",
    "%",
    "%%",
    "%zz",
    "%00",
    "%ff%fe",
    "%c0%af",
    "%ed%a0%80",
    "%252e%252e%252f",
    "..%2f..%2f",
    "%5c..%5c",
    "%0d%0aSet-Cookie:%20a=b",
    "%F0%9F%94%91",
    "a" * 6000,
    "%E2%80%AE",
    "'%20OR%20'1'='1",
    "%27;DROP%20TABLE%20task;--",
    "<script>",
    "${7*7}",
    "{{7*7}}",
    "*",
    "%25",
    "_",
    ".",
    "..",
    "%2e",
    ";",
    "a;b=c",
    "+",
    "\\",
    "~",
    "|",
    "^",
    "`",
    "\x7f",
    "ÿ",
    "ä",
    "&&",
    "==",
    "=",
    "#",
    "2026-01-31",
    "1_0",
    "%EF%BC%92",
    "%D9%A1",
]
BODIES: list[bytes] = [
    b"",
    b"null",
    b"true",
    b"0",
    b"NaN",
    b"[]",
    b"{}",
    b'"text"',
    b'{"secret": null}',
    b'{"secret": 1}',
    b'{"secret": NaN}',
    b'{"secret": ["a"]}',
    b'{"secret": {"secret": "a"}}',
    b'{"secret": "a", "secret": "b"}',
    b'{"secret": "a", "more": 1}',
    b'{"Secret": "a"}',
    b'{"secret": "a"',
    b"'",
    b"\xff\xfe\x00",
    b"\xef\xbb\xbf{}",
    b'{"secret": "\\ud800"}',
    b'{"secret": "\\u0000"}',
    b'{"secret": "' + b"a" * 60_000 + b'"}',
    b"9" * 60_000,
    b"[" * DEEP,
    b"[" * DEEP + b"]" * DEEP,
    b'{"secret": ' * 4000 + b"1" + b"}" * 4000,
    b'{"secret": "' + b"\\" * 9999 + b'"}',
    json.dumps({"secret": PASSWORD}).encode(),
]
KINDS = [
    "application/json",
    "application/json; charset=utf-8",
    "APPLICATION/JSON",
    "text/plain",
    "application/xml",
    "",
    "application/x-www-form-urlencoded",
    "multipart/form-data; boundary=x",
    "application/json;;;=",
    "json",
    "a" * 999,
]
HEADERS: dict[str, list[str]] = {
    "Authorization": ["Bearer x", "Basic eDp4", "Bearer", "\xff", "Bearer " + "a" * 4000],
    "X-Task-Data-Password": [PASSWORD, PASSWORD, PASSWORD, "wrong", "\xff\xfe", ""],
    "X-Stream-Token": ["x", ""],
    "Accept": ["text/csv", "*/*", "application/xml", "text/csv;q=0", "\xff", ",,,"],
    "Accept-Encoding": ["gzip", "gzip;q=0", "br", "gzip" * 99, "*"],
    "If-None-Match": ["*", 'W/"x"', '"', "\xff", ""],
    "Origin": ["http://evil.example", "null", "http://localhost", "\xff"],
    "Sec-Fetch-Site": ["cross-site", "same-origin", "none", "same-site", "x"],
    "Cookie": ["a=b", "tbmon-=x", ";;;;", "tbmon-00000000=" + "a" * 3000, "\xff"],
    "X-Forwarded-For": ["1.2.3.4", "::1", "x", "127.0.0.1" * 99],
    "Last-Event-ID": ["x-1", "-", "9" * 3000],
    "Range": ["bytes=0-1", "bytes=-1"],
    "X-HTTP-Method-Override": ["DELETE"],
    "Expect": ["x"],
}
CHOSEN = [*OPERATIONS, *(operation for operation in OPERATIONS for _ in range(3) if operation.body)]
METHODS = (
    ["GET"] * 12
    + ["POST"] * 6
    + ["HEAD", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "BREW", "get", "G" * 200]
)


class Request(NamedTuple):
    method: str
    target: str
    raw: bytes


def value_for(chance: random.Random, schema: dict[str, Any]) -> str:
    """A value of the schema, most of the time, as a query or a path carries it."""
    if chance.random() < 0.4:
        return chance.choice(ODD)
    if chance.random() < 0.1:
        return urllib.parse.quote(chance.randbytes(chance.randrange(40)))
    if "enum" in schema:
        return str(chance.choice(schema["enum"]))
    if schema.get("type") == "integer":
        return str(chance.randint(schema["minimum"], schema["maximum"]))
    if schema.get("type") == "boolean":
        return chance.choice(["true", "false"])
    if "pattern" in schema:
        return chance.choice([*IDS, HASH, IDS[0].upper(), IDS[0][:-1]])
    return chance.choice(
        ["2026-01-31T12:00:00Z", str(START), "balance", "canary", "e30", "W10", f"{HASH[:32]}-1"]
    )


def target_for(chance: random.Random, operation: Operation) -> str:
    known = {
        (given["in"], given["name"]): given["schema"] for given in operation.made["parameters"]
    }
    path = operation.path
    for (place, name), schema in known.items():
        path = path.replace(f"{{{name}}}", value_for(chance, schema)) if place == "path" else path
    if chance.random() < 0.05:
        cut = chance.randrange(len(path))
        path = "/" + path[1:cut] + chance.choice(ODD) + path[cut:]
    names = [name for place, name in known if place == "query"] + ["nonsense"] * (
        chance.random() < 0.1
    )
    chosen = chance.choices(names, k=chance.choice([0, 0, 1, 1, 2, 3, 6])) if names else []
    query = "&".join(
        f"{name}={value_for(chance, known.get(('query', name), {}))}" for name in chosen
    )
    return (path + (f"?{query}" if query or chance.random() < 0.05 else "")).replace(" ", "%20")


def body_for(chance: random.Random, operation: Operation) -> bytes:
    """A body that has something of what the operation takes, most of the time."""
    kind = chance.random()
    if operation.body and kind < 0.6:
        fields = RIGHT[operation.body]
        names = chance.sample(list(fields), chance.randrange(1, len(fields) + 1)) + ["more"] * (
            chance.random() < 0.1
        )
        wrong = WRONG if chance.random() < 0.5 else []
        return json.dumps(
            {name: chance.choice([*fields.get(name, [None]), *wrong]) for name in names}
        ).encode()
    return chance.choice(BODIES) if kind < 0.9 else chance.randbytes(chance.randrange(300))


def request_for(chance: random.Random) -> Request:
    """A request that is right in most ways and wrong in some."""
    operation = chance.choice(CHOSEN)
    method = operation.method if chance.random() < 0.75 else chance.choice(METHODS)
    target = target_for(chance, operation)
    headers = {
        name: chance.choice(HEADERS[name])
        for name in chance.sample(list(HEADERS), chance.randrange(4))
    }
    if chance.random() < 0.5:
        headers["X-Task-Data-Password"] = PASSWORD
    body = b""
    if method in ("POST", "PUT") or chance.random() < 0.05:
        body = body_for(chance, operation)
        headers["Content-Type"] = KINDS[0] if chance.random() < 0.6 else chance.choice(KINDS)
    if body and chance.random() < 0.2:
        headers["Transfer-Encoding"] = "chunked"
        cut = chance.randrange(len(body) + 1)
        body = (
            b"".join(
                b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part
            )
            + b"0\r\n\r\n"
        )
    else:
        headers["Content-Length"] = str(len(body))
    lines = [
        f"{method} {target} HTTP/1.1",
        "Host: localhost",
        *(f"{name}: {text}" for name, text in headers.items()),
    ]
    return Request(method, target, "\r\n".join([*lines, "", ""]).encode("latin-1") + body)


class Client:
    """Sends requests over one connection as long as the server keeps it; notes what it got."""

    def __init__(self, program: Program) -> None:
        self.program, self.socket = program, self.connect(program)
        self.seen: set[tuple[str, str, int, str | None, bytes]] = set()
        self.outcomes: Counter[tuple[str, int]] = Counter()  # of what was asked, by method and path
        self.connections = 1

    def connect(self, program: Program) -> socket.socket:
        return socket.create_connection(("127.0.0.1", program.port), 20, elsewhere())

    def send(self, request: Request) -> None:
        try:
            self.socket.sendall(request.raw)
            self.receive(request)
        except (ConnectionError, http.client.BadStatusLine) as error:
            pytest.fail(f"{request.raw[:300]!r} was not answered: {error!r}")

    def receive(self, request: Request) -> None:
        answer = http.client.HTTPResponse(self.socket, method=request.method)
        answer.begin()
        kind = answer.headers["Content-Type"]
        stream = (kind or "").startswith("text/event-stream") and request.method != "HEAD"
        body = answer.readline() if stream else answer.read()
        self.outcomes[f"{request.method} {request.target.partition('?')[0]}", answer.status] += 1
        assert answer.status < 500 or answer.status == 503, (request.raw[:500], body)
        assert answer.headers["X-Content-Type-Options"] == "nosniff", request.raw[:500]
        assert b"Traceback" not in body and b"/tbmon.py" not in body, body
        if not stream:
            self.check(request, answer, body)
        if stream or answer.will_close:
            answer.close()
            self.socket.close()
            self.socket = self.connect(self.program)
            self.connections += 1

    def check(self, request: Request, answer: http.client.HTTPResponse, body: bytes) -> None:
        """Validate an answer, unless one just like it was."""
        if answer.headers["Content-Encoding"] == "gzip" and body:
            body = gzip.decompress(body)
        found = contract.operation_of(request.method, request.target)
        alike = (
            request.method,
            found[0] if found else "",
            answer.status,
            answer.headers["Content-Type"],
            body,
        )
        if alike not in self.seen:
            sent = request.target.partition("#")[0]  # what follows is no part of the path
            contract.check(request.method, sent, answer.status, answer.headers, body)
            self.seen.add(alike)


def test_ten_thousand_random_requests_get_what_the_document_promises(tmp_path: Path) -> None:
    program = start(tmp_path)
    try:
        wait_for(lambda: len(allowed(program, "/api/logs")["logs"]) == len(STORY))
        threads_before = figure_of(program.process.pid, "Threads")
        clients = [Client(program) for _ in range(CLIENTS)]
        warm = threading.Barrier(CLIENTS, timeout=120)
        before: list[int] = []

        def work(number: int) -> None:
            chance = random.Random(SEED + number)
            for sent in range(REQUESTS // CLIENTS):
                if sent == REQUESTS // CLIENTS // 5:  # caches and buffers have grown to their size
                    warm.wait()
                    before.append(resident_bytes(program))
                clients[number].send(request_for(chance))

        with ThreadPoolExecutor(CLIENTS) as threads:
            for done in [threads.submit(work, number) for number in range(CLIENTS)]:
                done.result()
        change(program, "disable")
        assert resident_bytes(program) - min(before) < MOST_GROWTH_BYTES
        # none that was told to leave is still there
        wait_for(lambda: figure_of(program.process.pid, "Threads") <= threads_before)
        outcomes = sum((client.outcomes for client in clients), Counter[tuple[str, int]]())
        statuses: Counter[int] = Counter()
        for (_, status), number in outcomes.items():
            statuses[status] += number
        assert statuses.total() == REQUESTS
        assert {200, 400, 401, 403, 404, 405, 415} <= set(statuses), statuses
        assert statuses[200] > REQUESTS / 10, statuses  # it was no mere noise
        settings = {
            status: outcomes["PUT /api/federation/settings", status]
            for status in (200, 400, 401, 415)
        }
        assert min(settings.values()) > 5, settings
        assert all(
            outcomes[f"POST /api/federation/{name}", 200] > 10
            for name in ("enable", "disable", "reset")
        )
        assert (
            sum(client.connections for client in clients) < REQUESTS / 3
        )  # most connections were kept
        assert len(allowed(program, "/api/logs")["logs"]) == len(STORY)
    finally:
        end(program)
    said = program.log.read_text()
    assert [
        word for word in ("Traceback", "uncaptured", "Exception", "mistake") if word in said
    ] == []
