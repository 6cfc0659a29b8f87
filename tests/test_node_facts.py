"""Section 3, from entries and records to facts: payloads, events and their columns."""

from __future__ import annotations

import copy
import itertools
import json
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.node_samples import (
    FIRST,
    KEY,
    MORE,
    OWN,
    PEER,
    RECORDS,
    REQUESTER,
    SECOND,
    SOME,
    THIRD,
)

from tbmon import (
    PAYLOAD_DEPTH,
    Event,
    Redactor,
    read_event,
    read_inspect,
    read_payload,
    record_event,
)

REDACTOR = Redactor(KEY)
STEPS = 1998161723


def wallet(address: str) -> str:
    return REDACTOR.pseudonym(address)


def event(kind: str, text: str) -> Event | None:
    return read_event(kind, REDACTOR.clean(text), text, REDACTOR.clean)


def fields(kind: str, text: str) -> dict[str, Any]:
    found = event(kind, text)
    assert found is not None
    return found.fields


# Payloads

LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63),
    st.text(max_size=12),
    st.floats(allow_nan=False),
)
NAMES = st.sampled_from(
    ["executionId", "message", "a", "x1", "$y", "with blank", "it's", 'say "x"', "k:v", "ä", ""]
)
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=20,
)
OBJECTS = st.dictionaries(NAMES, VALUES, max_size=5)


def quoted(text: str) -> str:
    return "'" + re.sub(r"(['\\])", r"\\\1", text).replace("\n", "\\n").replace("\r", "\\r") + "'"


def inspect(value: object) -> str:
    """Write as JavaScript's util.inspect does."""
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[ " + ", ".join(map(inspect, value)) + " ]" if value else "[]"
    if isinstance(value, dict):
        named = (
            (
                f"{name if re.fullmatch(r'[A-Za-z_$][A-Za-z0-9_$]*', name) else quoted(name)}: "
                f"{inspect(inner)}"
            )
            for name, inner in value.items()
        )
        return "{\n  " + ",\n  ".join(named) + "\n}" if value else "{}"
    return json.dumps(value)


@SOME
@given(OBJECTS, st.sampled_from([None, 2]), st.booleans())
def test_json_is_read_back_however_it_is_laid_out(
    value: dict[str, Any], indent: int | None, ascii_only: bool
) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    assert read_payload(f"Message received from task_created: {text} and more") == value


@SOME
@given(OBJECTS)
def test_javascript_inspect_text_is_read_back(value: dict[str, Any]) -> None:
    assert read_inspect(f"Message received: {inspect(value)} and more") == value
    assert read_payload(f"Message received: {inspect(value)} and more") == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("{ a: [Object], b: 'x' }", {"a": None, "b": "x"}),
        (
            "{ a: [Array], b: [Function: main], c: [Circular *1], d: 1 }",
            {"a": None, "b": None, "c": None, "d": 1},
        ),
        ("<ref *1> { a: { b: [ 1, 2 ] } }", {"a": {"b": [1, 2]}}),
        (
            "{ id: 72508152n, t: undefined, n: null, y: true }",
            {"id": 72508152, "t": None, "n": None, "y": True},
        ),
        ("{ at: 2025-11-24T13:55:33.912Z }", {"at": "2025-11-24T13:55:33.912Z"}),
        ("{ p: 5e-7, m: -1.5, big: 1e+21 }", {"p": 5e-7, "m": -1.5, "big": 1e21}),
        (
            "{ a: 'one ' +\n    'two', b: \"it's\", c: `x'\"` }",
            {"a": "one two", "b": "it's", "c": "x'\""},
        ),
        (r"{ a: 'it\'s', b: 'x\ny', c: '\u0041\x42' }", {"a": "it's", "b": "x\ny", "c": "AB"}),
        ("{ a: 1, a: 2 }", {"a": 1}),
        ("{ a: { b: 'x', c: [ { d: 1", {"a": {"b": "x", "c": [{"d": 1}]}}),
        ("{ a: 'cut he", {"a": "cut he"}),
        ("{ a: 1 }}}} { b: 2 }", {"a": 1}),
        ("{'a': True, 'b': 1,}", {"a": "True", "b": 1}),
        ("{ a: '{', b: ']' }", {"a": "{", "b": "]"}),
    ],
)
def test_inspect_text_is_read_leniently(text: str, value: object) -> None:
    assert read_inspect(text) == value


def test_of_a_shortened_list_the_items_shown_are_read() -> None:
    value = read_inspect("{ nodes: [ 'a', 'b', ... 3 more items ], rest: 1 }")
    assert isinstance(value, dict)
    assert (value["nodes"][:2], value["rest"]) == (["a", "b"], 1)


@pytest.mark.parametrize("text", ["", "no payload", "[1, 2]", "]", "}", "'{", ":", "{", "[{", "\\"])
def test_where_there_is_no_object_the_payload_is_empty(text: str) -> None:
    assert read_payload(text) == {}


@MORE
@given(st.text("{}[]'\"`:,+\\n1aA* .x-", max_size=60) | st.text())
def test_any_text_has_a_payload(text: str) -> None:
    assert isinstance(read_payload(text), dict)
    assert isinstance(read_inspect(text), dict | list | None)


def test_nesting_is_followed_to_a_bounded_depth_and_what_comes_after_it_is_not_lost() -> None:
    value = read_inspect("{ deep: " + "[" * 500 + "1" + "]" * 500 + ", b: 2 }")
    assert isinstance(value, dict)
    assert value["b"] == 2
    depth, box = 1, value["deep"]
    while box:
        depth, box = depth + 1, box[0]
    assert depth <= PAYLOAD_DEPTH
    assert read_payload("{" + '"a":[' * 20_000) == read_inspect("{" + '"a":[' * 20_000) != {}


@pytest.mark.parametrize(
    ("unit", "size"),
    [
        ("[", 1_000_000),
        *(
            (unit, 100_000)
            for unit in ("{a:", "[1,", "'a'+", '"\\"', "'", "a:", "[]", "`", "\\", "+")
        ),
    ],
)
def test_reading_inspect_text_takes_time_in_proportion(unit: str, size: int) -> None:
    start = time.thread_time()
    read_inspect("{a:" + unit * (size // len(unit)))
    assert time.thread_time() - start < 8


@pytest.mark.parametrize("unit", ["[A:", "{A:", "[A ", "[A *1"])
def test_what_looks_like_object_or_circular_takes_time_in_proportion(unit: str) -> None:
    start = time.thread_time()
    read_inspect("{" + unit * (30_000 // len(unit)))
    assert time.thread_time() - start < 1


# Events

CREATED = {
    "task_id": "js_" + "4be1" * 16,
    "task_hash": "4be1" * 16,
    "task_type": "javascript",
    "chain_id": "43114",
    "block_number": 72508150,
    "block_hash": "5e" * 32,
    "gas_limit": 60_000_000_000,
    "memory_limit": 1024,
    "timeout_ms": 27000,
    "received_at": 1763992533912,
    "input": '{"Input": "22", "source": "function main(n){return n}"}',
}


def item(operation: str, account: str, steps: int | None, pages: int | None) -> dict[str, object]:
    return {
        "operation": operation,
        "account": wallet(account),
        "steps": steps,
        "memory_peak": pages,
    }


EVENT_DB = [
    Event("task_created", FIRST, CREATED),
    Event(
        "task_created",
        SECOND,
        CREATED
        | {"task_id": "rs_" + "90ad" * 16, "task_hash": "90ad" * 16, "task_type": "rust"}
        | {"received_at": 1763993399120, "input": "some message to hash"},
    ),
    Event("computed_outcome", FIRST, {"sender": wallet(OWN)}),
    Event(
        "invoice",
        FIRST,
        {
            "invoice_id": "7123456717698608000004",
            "task_id": "js_" + "4be1" * 16,
            "at": 1763992533912,
            "step_gas_price": 5e-7,
            "line_items": [
                item("charge", REQUESTER, STEPS, 87),
                item("pay", OWN, STEPS, 87),
                item("pay", PEER, STEPS, 87),
            ],
        },
    ),
    Event(
        "invoice",
        THIRD,
        {
            "invoice_id": "7250990117639940001204",
            "task_id": "py_" + "c3f7" * 16,
            "at": 1763994000120,
            "step_gas_price": 5e-7,
            "line_items": [
                item("charge", REQUESTER, 812, 17),
                item("penalty", OWN, 812, 17),
                item("pay", PEER, 812, 17),
            ],
        },
    ),
    Event(
        "invoice",
        SECOND,
        {
            "invoice_id": "4750340717624412641106",
            "task_id": "api_" + "1a" * 32,
            "at": 1762441264136,
            "step_gas_price": None,
            "line_items": [item("charge", REQUESTER, None, None)],
        },
    ),
    None,
    None,
    None,
]


@pytest.mark.parametrize("number", range(len(RECORDS)))
def test_the_sample_event_database_gives_exactly_these_columns(number: int) -> None:
    assert record_event(RECORDS[number], REDACTOR.clean) == EVENT_DB[number]


def test_log_and_event_database_tell_the_same_of_a_task_and_of_an_invoice() -> None:
    for number, kind, words in (
        (0, "task_received", "Message received from task_created:"),
        (3, "invoice", "Invoice"),
    ):
        for text in (
            json.dumps(RECORDS[number]),
            json.dumps(RECORDS[number], indent=2),
            inspect(RECORDS[number]),
        ):
            told, stored = event(kind, f"{words} {text}"), EVENT_DB[number]
            assert told is not None
            assert stored is not None
            assert told[1:] == stored[1:]


def paths(value: object, before: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside `value`."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, below in inner:
        yield (*before, name)
        yield from paths(below, (*before, name))


ODD: list[Any] = [
    None,
    True,
    -1,
    1.5,
    2**63,
    10**400,
    float("nan"),
    float("inf"),
    "",
    " ",
    "x" * 200,
    "\ud800",
    "9" * 5000,
    "1.0.0",
    [],
    [[]],
    {},
    {"x": {}},
    OWN,
    "0x" + OWN,
]


@pytest.mark.parametrize("number", range(6))
def test_any_field_of_a_record_may_hold_anything(number: int) -> None:
    for path in paths(RECORDS[number]):
        for odd in ODD:
            record = copy.deepcopy(RECORDS[number])
            box = record
            for name in path[:-1]:
                box = box[name]
            box[path[-1]] = odd
            found = record_event(record, REDACTOR.clean)
            told = {**found.fields, "input": ""} if found else {}
            assert OWN.lower() not in repr(told).lower()
            for value in (
                *told.values(),
                *itertools.chain(*(line.values() for line in told.get("line_items", ()))),
            ):
                assert not isinstance(value, int) or 0 <= value < 2**63, path
                assert not isinstance(value, str) or value.isascii(), path


@SOME
@given(VALUES)
def test_any_record_is_an_event_or_nothing(record: object) -> None:
    for kind in ("task_created", "invoice", "computed_outcome"):
        whole = {
            "type": kind,
            "executionId": FIRST,
            "invoiceId": record,
            "message": record,
            "lineItem": [record],
        }
        for given_record in (record, {"payload": record}, whole, {"payload": whole}):
            found = record_event(given_record, REDACTOR.clean)
            assert found is None or found.kind == kind or given_record is record


def test_a_record_as_deep_as_it_parses_is_still_read() -> None:
    for depth in range(1, 2000):
        deep = "[" * depth + "]" * depth
        try:
            message = json.loads('{"input":' + deep + "}")
        except RecursionError:
            break
        found = record_event(
            {"type": "task_created", "executionId": FIRST, "message": message}, str
        )
        assert found is not None
        assert found.fields["input"] in (deep, None)


@pytest.mark.parametrize(
    "given_id", ["fa", "", FIRST[:-1], FIRST + "0", "x" + FIRST, FIRST.replace("-", ""), None, 5]
)
def test_without_a_whole_execution_id_there_is_no_task(given_id: object) -> None:
    text = (
        f"Message received from task_created: "
        f"{json.dumps({'executionId': given_id, 'message': {'input': 'x'}})}"
    )
    assert event("task_received", text) is None


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (f"{{ payload: {{ executionId: '{FIRST.upper()}'", {"input": None}),
        (f'{{"message": {{"executionId": "{FIRST}", "input": 5', {"input": "5"}),
        (f'{{"executionId": "{FIRST}", "input": {{"a": 1}}}}', {"input": '{"a": 1}'}),
        (
            f'{{"executionId": "{FIRST}", "message": {{"executionTimeout": 30000}}}}',
            {"timeout_ms": 30000},
        ),
        (f"executionId={FIRST}, rest unknown", {}),
        (f'{{ executionId : "{FIRST}" broken {{ \'x', {}),
        (f"[ {{ executionId: '{FIRST}' }} ]", {}),
    ],
)
def test_a_task_is_read_from_what_there_is_of_its_payload(
    text: str, told: dict[str, object]
) -> None:
    found = event("task_received", f"Message received from task_created: {text}")
    assert found is not None
    assert found.execution_id == FIRST
    assert told.items() <= found.fields.items()


@pytest.mark.parametrize(
    ("task_id", "kind", "digits"),
    [
        ("rs_" + "eda4" * 16 + "/1.0.0", "rust", "eda4" * 16),
        ("c_" + "AB" * 32, "c", "ab" * 32),
        ("cpp_" + "ab" * 32, "cpp", "ab" * 32),
        ("api_" + "ab" * 32, "api", "ab" * 32),
        ("go_" + "ab" * 32, "other", "ab" * 32),
        ("js_short", "javascript", None),
        ("plain", "other", None),
        ("with blank", None, None),
        ("", None, None),
    ],
)
def test_the_task_id_tells_type_and_hash(
    task_id: str, kind: str | None, digits: str | None
) -> None:
    told = fields(
        "task_received", json.dumps({"executionId": FIRST, "message": {"taskId": task_id}})
    )
    assert (told["task_type"], told["task_hash"]) == (kind, digits)


@pytest.mark.parametrize(
    ("payload", "told"),
    [
        (
            "{ elapsed: '12873456789', wasi: { exitCode: 0 } }",
            {"elapsed_ms": 12873, "exit_code": 0, "gas_used": None},
        ),
        ("{ elapsed: 12873456789 }", {"elapsed_ms": 12873, "exit_code": None, "cached": None}),
        ('{"elapsed": 999999, "wasi": {"exitCode": -9}}', {"elapsed_ms": 0, "exit_code": -9}),
        ('{"wasi": {"exitCode": "3"}}', {"elapsed_ms": None, "exit_code": 3}),
        (
            '{"metering": {"limits": {"gas": "1099511627776", "memory": 9}}}',
            {"gas_limit": 2**40, "memory_limit": 9},
        ),
        (
            '{"metering": {"last": {"steps": 28584970692}, "peak": {"memory": 87.0}}}',
            {"gas_used": 28584970692},
        ),
        (
            '{"elapsed": -5, "metering": {"last": {"steps": 1e30}}}',
            {"elapsed_ms": None, "gas_used": None},
        ),
        (
            '{"execution": {"prepare": {"cached": 1}, "wasm": {"hash": "7d"}}}',
            {"cached": None, "wasm_hash": None},
        ),
        ("plain words", {"elapsed_ms": None, "output": "plain words"}),
        (f"0x{OWN}", {"output": f"0x{OWN}"}),
    ],
)
def test_what_an_output_says_is_kept_and_what_it_does_not_say_is_unknown(
    payload: str, told: dict[str, object]
) -> None:
    assert (
        told.items() <= fields("execution_output", f"Command execution stdout: {payload}").items()
    )


@pytest.mark.parametrize(
    ("words", "current", "total"),
    [
        ("message received - Processing immediately (0/4 slots used)", None, 4),
        ("message received - Waiting for a slot (4/4 slots used)", None, 4),
        ("processing started - Using slot 3/4", 3, 4),
        ("processing completed - Released slot (2/4 now active)", 2, 4),
        ("processing completed - Released slot (0/16 now active) - All slots available", 0, 16),
    ],
)
def test_a_semaphore_line_tells_the_slots_of_any_subscriber(
    words: str, current: int | None, total: int
) -> None:
    for name in ("InvoiceSubscriber", "TaskSubscriber", "Anything2"):
        told = fields("semaphore", f"Semaphore {name} {words}")
        assert told == {"subscriber": name, "current": current, "total": total}


@pytest.mark.parametrize(
    ("words", "registered"),
    [
        ("registered successfully", True),
        ("deregistered successfully", False),
        ("requested registration", False),
        ("requested deregistration", False),
    ],
)
def test_only_a_confirmed_registration_is_one(words: str, registered: bool) -> None:
    told = fields("registration", f"Node with address 0x{OWN} {words}")
    assert told == {"registered": registered, "address": wallet(OWN)}


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("info", "Starting services"),
        ("raw", f"Execution {FIRST} completed"),
        ("task_published", "Message published to compute_outcome"),
        ("semaphore", "Semaphore InvoiceSubscriber did something else"),
        ("registration", "Node with address"),
        ("invoice", "InvoiceSubscriber idle"),
        ("invoice", 'InvoiceSubscriber {"lineItem": []}'),
        ("task_completed", "Execution fa completed"),
    ],
)
def test_words_without_a_fact_are_no_event(kind: str, text: str) -> None:
    assert event(kind, text) is None
