"""Sections 5 and 6, and the reading of publications: what may leave this machine, proved over all
that can go in.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import itertools
import json
import math
import random
import re
import statistics
import string
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import linkage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tbmon
from tbmon import (
    ANONYMOUS,
    DAY_MS,
    DELAY_MS,
    ENVELOPE,
    HASH,
    HOUR_MS,
    IN_EVENT_DB,
    IN_LOG,
    MEMORY_SCALE,
    MESSAGES,
    MINUTE_MS,
    STEPS_SCALE,
    TIME_SCALE,
    WINDOW_MS,
    Event,
    Kind,
    Outbox,
    Scale,
    Sharing,
    SharingKeys,
    Store,
    Task,
    Words,
    due_after,
    fits,
    read_publication,
    refusal_of,
    suspicion_of,
)

WIRE = Path(__file__).parent / "wire" / "v1"
MORE = settings(derandomize=True, deadline=None, max_examples=200)
KEY = bytes(range(32))
NOON = 1_795_348_800_000  # ms, 2026-11-22T12:00:00Z
NODE_ID = "node-0a1b2c3d-4e5f-4607-8899-aabbccddeeff"
EXECUTION = "018f4e2a-7b3c-7d21-9a54-3c1de0b7f6a9"
INVOICE = "5b0c9f7e-2f5a-4b1e-8d35-6a7b8c9d0e1f"
TASK = Task(
    EXECUTION,
    task_id="js_018d4b1c",
    task_hash="0x" + "5e" * 32,
    task_type="rust",
    chain_id="1",
    block_number=20_123_456,
    block_hash="0x" + "b7" * 32,
    status="completed",
    received_at=NOON,
    started_at=NOON + 1,
    completed_at=NOON + 4321,
    elapsed_ms=4321,
    gas_limit=10**12,
    gas_used=2_345_678_901,
    memory_limit=4096,
    memory_peak=300,
    exit_code=0,
    cached=0,
    wasm_hash="QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
    timeout_ms=600_000,
    evidence=IN_LOG | IN_EVENT_DB,
)
CHOICES = tuple(MESSAGES["task_completed"].choices)
LEVELS = tuple(DELAY_MS)


def words(number: int = 1, at: int = NOON + 7 * MINUTE_MS + 12_345, key: bytes = KEY) -> Words:
    return Words(at, f"{number:032x}", key)


def messages(task: Task = TASK, given: Words = words()) -> dict[str, tuple[str, bytes]]:  # noqa: B008 - a constant
    """{golden file: (kind, bytes)} of every form that a message can have."""
    return {
        "heartbeat": ("heartbeat", tbmon.presence_message("heartbeat", NODE_ID, True, given)),
        "heartbeat_offline": (
            "heartbeat",
            tbmon.presence_message("heartbeat", NODE_ID, False, given),
        ),
        "node_joined": ("node_joined", tbmon.presence_message("node_joined", NODE_ID, True, given)),
        "node_left": ("node_left", tbmon.presence_message("node_left", NODE_ID, False, given)),
        "task_received": ("task_received", tbmon.received_message(task, given)),
        **{
            f"task_completed_{choice}": (
                "task_completed",
                tbmon.completed_message(task, given, choice),
            )
            for choice in CHOICES
        },
        "invoice_created": (
            "invoice_created",
            tbmon.invoice_message(INVOICE, task.gas_used, given),
        ),
    }


FORMS = messages()

# What may leave, written down a second time, as bytes: what these do not match, the gate must
# refuse.
STEPS = rb"(<1M|1M-100M|100M-1B|1B-10B|10B-100B|>100B|unknown)"
MEASURES = (
    rb'("executionTimeBucket":"(<100ms|100-500ms|500ms-1s|1-5s|5-10s|10-30s|30s-1m|>1m|unknown)"'
    rb'|"gasUsedBucket":"'
    + STEPS
    + rb'"|"memoryUsedBucket":"(<8MB|8-16MB|16-32MB|32-128MB|>128MB|unknown)")'
)
OF_TASK = rb'"taskIdHash":"[0-9a-f]{64}","taskType":"(rust|javascript|python|other)"'
OURS, NOBODY = (
    rb"node-(?!0{8}-(0{4}-){3}0{12})[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}",
    rb"node-0{8}-(0{4}-){3}0{12}",
)
WRITTEN = {
    kind: (
        subject,
        re.compile(
            rb'\{"version":"1\.0","type":"'
            + kind.encode()
            + rb'","id":"[0-9a-f]{32}","nodeId":"'
            + node
            + rb'","timestamp":"(20\d\d-\d\d-\d\dT\d\d:[0-5][05]:00\.000Z)","data":\{'
            + data
            + rb"\}\}"
        ),
    )
    for kind, subject, node, data in (
        ("heartbeat", "truebit.heartbeat", OURS, rb'"status":"(online|offline)"'),
        ("node_joined", "truebit.nodes.joined", OURS, rb'"status":"online"'),
        ("node_left", "truebit.nodes.left", OURS, rb'"status":"offline"'),
        ("task_received", "truebit.tasks.received", NOBODY, OF_TASK),
        (
            "task_completed",
            "truebit.tasks.completed",
            NOBODY,
            OF_TASK + rb',"status":"(completed|failed)","cached":(true|false|null),' + MEASURES,
        ),
        (
            "invoice_created",
            "truebit.invoices.created",
            NOBODY,
            rb'"invoiceIdHash":"[0-9a-f]{64}","stepsComputedBucket":"' + STEPS + rb'"',
        ),
    )
}


def may_leave(subject: str, payload: bytes) -> bool:
    """The judgement of WRITTEN."""
    for name, form in WRITTEN.values():
        found = form.fullmatch(payload) if name == subject else None
        if found is not None:
            with contextlib.suppress(ValueError):
                stamp = re.search(rb'"timestamp":"([^"]*)"', payload)
                datetime.strptime(stamp[1].decode() if stamp else "", "%Y-%m-%dT%H:%M:%S.000Z")
                return True
    return False


@pytest.mark.parametrize("name", FORMS)
def test_each_message_has_exactly_the_published_bytes(name: str) -> None:
    assert FORMS[name][1] == (WIRE / f"{name}.json").read_bytes()


def test_every_published_file_is_a_message_that_is_built() -> None:
    assert {path.name for path in WIRE.iterdir()} == {f"{name}.json" for name in FORMS}
    assert {kind for kind, _ in FORMS.values()} == set(MESSAGES)


@pytest.mark.parametrize("name", FORMS)
def test_a_message_passes_the_gate_for_its_own_subject_and_no_other(name: str) -> None:
    kind, payload = FORMS[name]
    subjects = [one.subject for one in MESSAGES.values()]
    accepted = [subject for subject in subjects if refusal_of(subject, payload) is None]
    assert accepted == [MESSAGES[kind].subject] == [WRITTEN[kind][0]]
    others = [
        "",
        "truebit.>",
        "truebit.stats.aggregated",
        "$JS.API.STREAM.PURGE.X",
        f"{accepted[0]}.x",
        "_INBOX.x",
    ]
    assert all(refusal_of(subject, payload) for subject in others)


# Ranges

TIMES = [
    (0, "<100ms"),
    (99, "<100ms"),
    (100, "100-500ms"),
    (499, "100-500ms"),
    (500, "500ms-1s"),
    (999, "500ms-1s"),
    (1000, "1-5s"),
    (4999, "1-5s"),
    (5000, "5-10s"),
    (9999, "5-10s"),
    (10_000, "10-30s"),
    (29_999, "10-30s"),
    (30_000, "30s-1m"),
    (59_999, "30s-1m"),
    (60_000, ">1m"),
    (2**256, ">1m"),
]
STEP_COUNTS = [
    (0, "<1M"),
    (10**6 - 1, "<1M"),
    (10**6, "1M-100M"),
    (10**8 - 1, "1M-100M"),
    (10**8, "100M-1B"),
    (10**9 - 1, "100M-1B"),
    (10**9, "1B-10B"),
    (10**10 - 1, "1B-10B"),
    (10**10, "10B-100B"),
    (10**11 - 1, "10B-100B"),
    (10**11, ">100B"),
    (2**256, ">100B"),
]
PAGES = [
    (0, "<8MB"),
    (127, "<8MB"),
    (128, "8-16MB"),
    (255, "8-16MB"),
    (256, "16-32MB"),
    (511, "16-32MB"),
    (512, "32-128MB"),
    (2047, "32-128MB"),
    (2048, ">128MB"),
    (2**256, ">128MB"),
]
NONE: list[tuple[int | None, str]] = [(None, "unknown"), (-1, "unknown"), (-(2**256), "unknown")]


@pytest.mark.parametrize(
    ("scale", "value", "label"),
    [
        (scale, *pair)
        for scale, pairs in ((TIME_SCALE, TIMES), (STEPS_SCALE, STEP_COUNTS), (MEMORY_SCALE, PAGES))
        for pair in (*pairs, *NONE)
    ],
)
def test_a_range_ends_before_its_upper_bound(scale: Scale, value: int | None, label: str) -> None:
    assert scale.range_of(value) == label


@MORE
@given(st.sampled_from((TIME_SCALE, STEPS_SCALE, MEMORY_SCALE)), st.integers(0), st.integers(0))
def test_ranges_are_total_and_in_order(scale: Scale, one: int, other: int) -> None:
    places = [scale.ranges.index(scale.range_of(value)) for value in sorted((one, other))]
    assert places[0] <= places[1]
    assert 5 <= len(scale.ranges) <= 8 and len(scale.edges) == len(scale.ranges) - 1


@pytest.mark.parametrize("choice", CHOICES)
def test_a_message_has_the_one_measure_that_was_chosen_by_the_tasks_own_figure(choice: str) -> None:
    labels = {
        "executionTimeBucket": "1-5s",
        "gasUsedBucket": "1B-10B",
        "memoryUsedBucket": "16-32MB",
    }
    data = json.loads(tbmon.completed_message(TASK, words(), choice))["data"]
    assert {name: value for name, value in data.items() if name.endswith("Bucket")} == {
        choice: labels[choice]
    }


@pytest.mark.parametrize(
    ("written", "shared"),
    [
        ("rust", "rust"),
        ("javascript", "javascript"),
        ("python", "python"),
        ("go", "other"),
        ("Rust", "other"),
        ("rust ", "other"),
        ("", "other"),
        (None, "other"),
        ("0x" + "ab" * 20, "other"),
    ],
)
def test_a_language_is_one_of_four(written: str | None, shared: str) -> None:
    task = Task("x", task_type=written, status="failed")
    for payload in (
        tbmon.received_message(task, words()),
        tbmon.completed_message(task, words(), "gasUsedBucket"),
    ):
        assert json.loads(payload)["data"]["taskType"] == shared


@pytest.mark.parametrize(("kept", "shared"), [(0, False), (1, True), (None, None), (7, True)])
@pytest.mark.parametrize("status", ["completed", "failed"])
def test_a_completion_says_its_outcome_and_whether_it_was_cached(
    kept: int | None, shared: Any, status: str
) -> None:
    payload = tbmon.completed_message(
        Task("x", cached=kept, status=status), words(), "gasUsedBucket"
    )
    data = json.loads(payload)["data"]
    assert (data["status"], data["cached"]) == (status, shared) and type(data["cached"]) is type(
        shared
    )
    assert refusal_of("truebit.tasks.completed", payload) is None


# Hashes


@pytest.mark.parametrize(
    ("kind", "identity", "payload"),
    [
        ("task_received", EXECUTION, FORMS["task_received"][1]),
        ("task_completed", EXECUTION, FORMS["task_completed_gasUsedBucket"][1]),
        ("invoice_created", INVOICE, FORMS["invoice_created"][1]),
    ],
)
def test_a_hash_is_the_hmac_of_kind_and_id_under_the_days_key(
    kind: str, identity: str, payload: bytes
) -> None:
    data = json.loads(payload)["data"]
    expected = hmac.new(KEY, kind.encode() + b"\0" + identity.encode(), hashlib.sha256).hexdigest()
    assert data[next(iter(data))] == expected


def hash_of(payload: bytes) -> str:
    data = json.loads(payload)["data"]
    return str(data[next(iter(data))])


def test_nothing_joins_the_messages_of_one_execution() -> None:
    task = Task(EXECUTION, status="completed")
    made = [
        build
        for key in (KEY, bytes(32))
        for build in (
            tbmon.received_message(task, words(key=key)),
            tbmon.completed_message(task, words(key=key), CHOICES[0]),
            tbmon.invoice_message(EXECUTION, None, words(key=key)),
        )
    ]
    assert len({hash_of(payload) for payload in made}) == len(made)


@MORE
@given(st.uuids(), st.uuids())
def test_two_executions_never_have_one_hash(one: object, other: object) -> None:
    made = [hash_of(tbmon.received_message(Task(str(name)), words())) for name in (one, other)]
    assert (made[0] == made[1]) == (one == other)


# Builders and gate, whatever goes in

CANARIES = (
    "0x558fA1b2C3d4E5f60718293a4B5c6D7e8F901234",
    "558fa1b2c3d4e5f60718293a4b5c6d7e8f901234",
    "wallet:0123456789abcdef",
    "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318",
    "-----BEGIN EC PRIVATE KEY-----\nMHcCAQEE",
    "203.0.113.77",
    "2001:db8::dead:beef",
    "/home/operator/.ethereum/keystore",
    "node7.example.org",
    "legal winner thank year wave sausage worth useful",
    "2026-11-22T12:03:04.567Z",
    "ключ-от-кошелька",
    "\U0001d7d8\U0001d569\ud800",
    "rust\0javascript",
    '","nodeId":"x',
    "NaN",
    "\u2028\u202e",
)
TEXT = st.one_of(
    st.none(), st.sampled_from(CANARIES), st.text(), st.sampled_from(tbmon.SHARED_LANGUAGES)
)
NUMBER = st.one_of(
    st.none(), st.integers(), st.sampled_from((0, 2**63, 2**256, -1, 1_795_348_801_234))
)
GIVEN: dict[str, st.SearchStrategy[Any]] = {
    name: TEXT if "str" in str(kind) else NUMBER for name, kind in Task.__annotations__.items()
}
ANY_TASK = st.builds(
    Task,
    **{
        **GIVEN,
        "execution_id": st.one_of(st.text(), st.sampled_from(CANARIES)),
        "evidence": st.integers(0, 255),
        "status": st.sampled_from(("completed", "failed")),
    },
)
ANY_WORDS = st.builds(
    lambda at, seed, key: Words(at, random.Random(seed).randbytes(16).hex(), key),
    st.integers(946_684_800_000, 4_102_444_799_999),
    st.integers(),
    st.binary(min_size=32, max_size=32),
)


@MORE
@given(
    ANY_TASK,
    ANY_WORDS,
    st.sampled_from(CHOICES),
    st.one_of(st.text(), st.sampled_from(CANARIES)),
    NUMBER,
)
def test_whatever_goes_in_only_the_schema_comes_out(
    task: Task, given: Words, choice: str, invoice: str, steps: int | None
) -> None:
    made = {
        "task_received": tbmon.received_message(task, given),
        "task_completed": tbmon.completed_message(task, given, choice),
        "invoice_created": tbmon.invoice_message(invoice, steps, given),
    }
    for kind, payload in made.items():
        assert refusal_of(MESSAGES[kind].subject, payload) is None
        assert WRITTEN[kind][1].fullmatch(payload) and may_leave(MESSAGES[kind].subject, payload)
        assert not any(text in payload.decode() for text in CANARIES)


@MORE
@given(
    st.one_of(st.text(), st.sampled_from((*CANARIES, ANONYMOUS, NODE_ID))),
    ANY_WORDS,
    st.booleans(),
    st.sampled_from(("heartbeat", "node_joined", "node_left", *CANARIES)),
)
def test_presence_leaves_only_under_an_installation_id(
    node: str, given: Words, is_online: bool, kind: str
) -> None:
    payload = tbmon.presence_message(kind, node, is_online, given)
    for _, (subject, _) in WRITTEN.items():
        assert (refusal_of(subject, payload) is None) == may_leave(subject, payload)


ANY_JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), TEXT),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=9), inner, max_size=3)
    ),
    max_leaves=8,
)


@MORE
@given(
    st.sampled_from(sorted(FORMS)),
    st.lists(st.tuples(st.sampled_from((*ENVELOPE, "more")), ANY_JSON), max_size=2),
    st.dictionaries(
        st.sampled_from((*MESSAGES["task_completed"].fields, *CHOICES, "wallet")),
        ANY_JSON,
        max_size=2,
    ),
)
def test_the_gate_lets_nothing_else_through(
    name: str, outer: list[tuple[str, Any]], inner: dict[str, Any]
) -> None:
    kind, payload = FORMS[name]
    message = json.loads(payload)
    message["data"].update(inner)
    message.update(outer)
    changed = json.dumps(message, separators=(",", ":")).encode()
    assert (refusal_of(MESSAGES[kind].subject, changed) is None) == may_leave(
        MESSAGES[kind].subject, changed
    )


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"1",
        b'"heartbeat"',
        b"\xff\xfe",
        b'{"type":{}}',
        b'{"type":["heartbeat"]}',
        b"{" * 9,
        FORMS["heartbeat"][1].decode().encode("utf-16"),
        b"\xef\xbb\xbf" + FORMS["heartbeat"][1],
        b"9" * 5000,
    ],
)
def test_the_gate_refuses_what_is_no_message(payload: bytes) -> None:
    assert refusal_of("truebit.heartbeat", payload)


def test_no_depth_of_nesting_gets_past_the_gate_or_ends_it() -> None:
    head = FORMS["heartbeat"][1].partition(b'"data":')[0] + b'"data":'
    for depth in (*range(900, 1010), 10_000, 100_000):
        assert refusal_of("truebit.heartbeat", head + b"[" * depth + b"]" * depth + b"}"), depth


# 200,000 mutations

ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    1.0,
    -1,
    1e400,
    float("nan"),
    "",
    "x",
    "unknown",
    "true",
    "1.0",
    [],
    {},
    ["online"],
    {"status": "online"},
    ANONYMOUS,
    NODE_ID,
    "0" * 32,
    "f" * 64,
    "0" * 40,
    "2026-11-22T12:05:00.000Z",
    *CANARIES,
    "2026-11-22T12:04:00.000Z",
    "2026-11-22T12:05:00.001Z",
    "2026-11-22T12:05:00Z",
    "2026-02-30T12:05:00.000Z",
    "2026-13-01T12:05:00.000Z",
    "1926-11-22T12:05:00.000Z",
    "20٢٦-11-22T12:05:00.000Z",
    "2026-11-22 12:05:00.000Z",
    "1.1",
    "heartbeat",
    "task_received",
    "network_stats",
    "rust\n",
    "ab" * 16 + "\n",
    "AB" * 16,
    "completed",
    "online",
    "\uff11" * 32,
    *STEPS_SCALE.ranges,
    *TIME_SCALE.ranges,
    *MEMORY_SCALE.ranges,
    *tbmon.SHARED_LANGUAGES,
)
NAMES = (
    *ENVELOPE,
    *sorted({name for kind in MESSAGES.values() for name in (*kind.fields, *kind.choices)}),
    "wallet",
    "__proto__",
    "",
    "Data",
)


def part_of(dice: random.Random, message: dict[str, Any]) -> dict[str, Any]:
    """The message itself, or its data."""
    data = message.get("data")
    return data if dice.random() < 0.6 and isinstance(data, dict) else message


def add(dice: random.Random, message: dict[str, Any]) -> None:
    part_of(dice, message)[dice.choice(NAMES)] = dice.choice(ODD)


def drop(dice: random.Random, message: dict[str, Any]) -> None:
    part = part_of(dice, message)
    if part:
        del part[dice.choice(list(part))]


def put(dice: random.Random, message: dict[str, Any]) -> None:
    part = part_of(dice, message)
    if part:
        part[dice.choice(list(part))] = dice.choice(ODD)


def wrap(dice: random.Random, message: dict[str, Any]) -> None:
    part = part_of(dice, message)
    if part:
        name = dice.choice(list(part))
        part[name] = dice.choice(
            ([part[name]], {name: part[name]}, str(part[name]), json.dumps(part[name]))
        )


def reorder(dice: random.Random, message: dict[str, Any]) -> None:
    part = part_of(dice, message)
    pairs = list(part.items())
    dice.shuffle(pairs)
    part.clear()
    part.update(pairs)


def rename(dice: random.Random, message: dict[str, Any]) -> None:
    part = part_of(dice, message)
    if part:
        name = dice.choice(list(part))
        pairs = [
            (
                dice.choice((name.upper(), name + " ", dice.choice(NAMES))) if key == name else key,
                value,
            )
            for key, value in part.items()
        ]
        part.clear()
        part.update(pairs)


STRUCTURE = (add, drop, put, wrap, reorder, rename)
FORMATS: tuple[dict[str, Any], ...] = (
    *({"separators": (",", ":")},) * 6,
    {},
    {"indent": 1},
    {"separators": (", ", ":")},
    {"sort_keys": True},
    {"separators": (",", ":"), "ensure_ascii": False},
)


def restructured(dice: random.Random, payload: bytes) -> bytes:
    """The message with one to three changes to what it says, or in another form."""
    message = json.loads(payload)
    for _ in range(dice.choice((0, 1, 1, 1, 2, 3))):
        dice.choice(STRUCTURE)(dice, message)
    return json.dumps(message, **dice.choice(FORMATS)).encode("utf-8", "surrogatepass")


def escaped(dice: random.Random, payload: bytes) -> bytes:
    """One character of a text written as a unicode escape."""
    place = dice.choice([found.start() for found in re.finditer(rb"[A-Za-z0-9<>.-]", payload)])
    return payload[:place] + f"\\u{payload[place]:04x}".encode() + payload[place + 1 :]


def doubled(dice: random.Random, payload: bytes) -> bytes:
    """A key that comes twice, with the same or with another value."""
    found = dice.choice(list(re.finditer(rb'"\w+":("[^"]*"|true|false|null)', payload)))
    value = dice.choice((found[1], json.dumps(dice.choice(CANARIES)).encode()))
    twin = found[0].partition(b":")[0] + b":" + value + b","
    return payload[: found.start()] + twin + payload[found.start() :]


def altered(dice: random.Random, payload: bytes) -> bytes:
    """One to three bytes changed, added, taken away, or moved."""
    data = bytearray(payload)
    for _ in range(dice.choice((1, 1, 2, 3))):
        place = dice.randrange(len(data))
        how = dice.randrange(4)
        if how == 0:
            data[place] = dice.choice(b'0123456789abcdefABCDEF"{}[]:,\\ \n-.<>TZ\0\xff')
        elif how == 1:
            data.insert(place, dice.choice(b'0123456789abcdef"{}[]:,\\ \t\n-.<>\xc2'))
        elif how == 2:
            del data[place]
        else:
            data[place] ^= 1 << dice.randrange(8)
    return bytes(data)


def spliced(dice: random.Random, payload: bytes) -> bytes:
    """The head of one message with the tail of another."""
    other = dice.choice([one for _, one in FORMS.values()])
    place = dice.randrange(len(payload))
    return payload[:place] + other[place + dice.choice((0, 0, -1, 1)) :]


MUTATIONS: tuple[tuple[Callable[[random.Random, bytes], bytes], int], ...] = (
    (restructured, 70_000),
    (escaped, 20_000),
    (doubled, 20_000),
    (altered, 70_000),
    (spliced, 20_000),
)


@pytest.mark.parametrize(
    ("mutate", "number"), MUTATIONS, ids=[one.__name__ for one, _ in MUTATIONS]
)
def test_no_mutation_of_a_message_leaves_unless_it_is_a_message(
    mutate: Callable[[random.Random, bytes], bytes], number: int
) -> None:
    dice, forms = random.Random(number), list(FORMS.values())
    subjects = [subject for subject, _ in WRITTEN.values()]
    wrong, accepted = list[bytes](), 0
    for _ in range(number):
        kind, payload = dice.choice(forms)
        subject = MESSAGES[kind].subject if dice.random() < 0.95 else dice.choice(subjects)
        mutated = mutate(dice, payload)
        leaves = refusal_of(subject, mutated) is None
        accepted += leaves
        if leaves != may_leave(subject, mutated):
            wrong.append(mutated)
    assert not wrong
    assert accepted < number / 2


def test_every_message_of_the_schema_may_leave_and_none_looks_suspicious() -> None:
    dice = random.Random(7)
    for kind, data in [(kind, data) for kind, one in MESSAGES.items() for data in every_data(one)]:
        for _ in range(4):
            node = tbmon.random_node_id(dice) if MESSAGES[kind].named else ANONYMOUS
            filled = {
                name: dice.randbytes(32).hex() if value is HASH else value
                for name, value in data.items()
            }
            given = Words(
                dice.randrange(946_684_800_000, 4_102_444_800_000), dice.randbytes(16).hex()
            )
            payload = tbmon.message_of(kind, node, given, filled)
            assert suspicion_of(json.loads(payload)) is None
            assert refusal_of(MESSAGES[kind].subject, payload) is None and may_leave(
                MESSAGES[kind].subject, payload
            )


def every_data(kind: Kind) -> Iterator[dict[str, Any]]:
    """All data that a kind can have; a hash stands for all hashes."""
    values = [
        allowed if isinstance(allowed, tuple) else (allowed,) for allowed in kind.fields.values()
    ]
    for chosen in kind.choices or (None,):
        labels = (*kind.choices[chosen].ranges, "unknown") if chosen else (None,)
        for *combined, label in itertools.product(*values, labels):
            yield {
                **dict(zip(kind.fields, combined, strict=True)),
                **({chosen: label} if chosen else {}),
            }


PLANTED = (
    "0x558fA1b2C3d4E5f60718293a4B5c6D7e8F901234",
    "558FA1B2C3D4E5F60718293A4B5C6D7E8F901234",
    "wallet:0123456789abcdef",
    "0x" + "5e" * 32,
    "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318",
    "04" + "ab" * 64,
    "ab" * 64,
    "-----BEGIN RSA PRIVATE KEY-----",
    "203.0.113.77",
    "2001:db8::dead:beef",
    "fe80::1",
    "2001:0db8:85a3:0000:0000:8a2e:0370:7334",
    "02:42:ac:11:00:02",
    "2026-11-22T12:03:04.567Z",
    "2026-11-22 12:03:04",
    "12:03:04",
    "1795348801",
    "1795348801234",
)


@pytest.mark.parametrize("planted", PLANTED)
def test_the_second_line_fires_on_what_must_never_leave(planted: str) -> None:
    message = json.loads(FORMS["task_received"][1])
    for changed in (
        {**message, "data": {**message["data"], "taskType": planted}},
        {**message, "data": {**message["data"], planted: "rust"}},
        {**message, "data": {**message["data"], "more": {"deep": [f"x {planted} y"]}}},
        {**message, "version": planted},
    ):
        assert suspicion_of(changed), changed


def test_the_second_line_fires_on_an_exact_time_as_a_number() -> None:
    message = json.loads(FORMS["task_received"][1])
    assert suspicion_of({**message, "data": {"at": 1_795_348_801}}) and suspicion_of(
        {**message, "data": {"at": NOON}}
    )


# The information budget: growing these is a decision about privacy, and is to be seen as one.

VALUES = {  # what a message's data can say beside its hash
    "heartbeat": 2,
    "node_joined": 1,
    "node_left": 1,
    "task_received": 4,
    "task_completed": 528,
    "invoice_created": 7,
}
BITS = {
    "heartbeat": 1.0,
    "node_joined": 0.0,
    "node_left": 0.0,
    "task_received": 2.0,
    "task_completed": 9.04,
    "invoice_created": 2.81,
}
FREE = {  # counted apart, as bits: what is random, keyed, or time
    "[0-9a-f]{64}": 256,
    "[0-9a-f]{32}": 128,
    "node-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}": 128,
    # five minutes of a century: 10,519,200
    r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5][05]:00\.000Z": 24,
}


def test_no_kind_of_message_can_say_more_than_the_budget() -> None:
    values = {kind: len(list(every_data(MESSAGES[kind]))) for kind in MESSAGES}
    assert values == VALUES
    assert {kind: round(math.log2(number), 2) for kind, number in values.items()} == BITS


def test_the_fields_counted_apart_are_the_ids_the_hashes_and_the_time() -> None:
    def free(fields: dict[str, Any]) -> dict[str, int]:
        return {
            name: FREE[one.pattern] for name, one in fields.items() if isinstance(one, re.Pattern)
        }

    assert free(ENVELOPE) == {"id": 128, "nodeId": 128, "timestamp": 24}
    assert {
        name: value for name, value in ENVELOPE.items() if not isinstance(value, re.Pattern)
    } == {
        "version": ("1.0",),
        "type": tuple(VALUES),
        "data": None,
    }
    hashes = {kind: free(dict(MESSAGES[kind].fields)) for kind in MESSAGES}
    assert {kind: found for kind, found in hashes.items() if found} == {
        "task_received": {"taskIdHash": 256},
        "task_completed": {"taskIdHash": 256},
        "invoice_created": {"invoiceIdHash": 256},
    }
    assert all(
        isinstance(one, (tuple, re.Pattern))
        for kind in MESSAGES.values()
        for one in kind.fields.values()
    )
    assert [kind for kind in MESSAGES if MESSAGES[kind].named] == [
        "heartbeat",
        "node_joined",
        "node_left",
    ]


# Time


@MORE
@given(
    st.integers(946_684_800_000, 4_000_000_000_000),
    st.sampled_from(LEVELS),
    st.floats(0, 1, exclude_max=True),
)
def test_a_message_is_due_after_its_window_within_the_delay(
    at: int, level: str, share: float
) -> None:
    end = at - at % 300_000 + 300_000
    longest = {"minimal": 60, "balanced": 24 * 60}[level] * 60_000
    assert at < end <= due_after(at, level, share) < end + longest
    assert due_after(at, level, share) == due_after(at - at % 300_000, level, share), (
        "the place in the window counts"
    )


@MORE
@given(ANY_WORDS)
def test_every_stamp_is_on_the_five_minute_edge_before_its_time(given: Words) -> None:
    for kind, payload in messages(given=given).values():
        stamp = tbmon.parse_time(json.loads(payload)["timestamp"])
        assert stamp is not None and stamp % 300_000 == 0 and 0 <= given.at - stamp < 300_000, kind


def test_nothing_but_the_two_levels_has_a_delay() -> None:
    assert DELAY_MS == {"minimal": HOUR_MS, "balanced": DAY_MS}


# The outbox


HUB = "tls://hub.example:4222"


class Desk:
    """An outbox on a store of its own, with a clock and dice that the test holds."""

    def __init__(self, folder: Path, seed: int = 1, store: type[Store] = Store) -> None:
        self.store = store(folder / "t.db", b"k" * 32)
        self.keys = SharingKeys(folder)
        self.at = NOON
        self.outbox = Outbox(self.store, self.keys, lambda: self.at, random.Random(seed), HUB)
        self.outbox.event_db = False

    def share(self, **chosen: Any) -> None:
        self.outbox.keep(**{"enabled": True, **chosen})

    def tell(self, *tasks: Task, invoices: Sequence[str] = ()) -> None:
        """As ingest does: save and offer in one transaction."""
        with self.store.write() as db:
            self.store.save_tasks(db, tasks)
            self.outbox.offer(db, tasks, invoices)

    def invoice(self, name: str, at: int | None = None, confirmed: bool = False) -> None:
        found = {
            "invoice_id": name,
            "task_id": None,
            "at": self.at if at is None else at,
            "step_gas_price": 1.0,
        }
        with self.store.write() as db:
            self.store.save_invoice(
                db, Event("invoice", EXECUTION, {**found, "line_items": []}), confirmed
            )
            self.outbox.offer(db, (), [name])

    def rows(self) -> list[Any]:
        return self.store.read("SELECT id, due_at, day, subject, payload FROM outbox ORDER BY id")

    def kinds(self) -> list[str]:
        return [json.loads(row["payload"])["type"] for row in self.rows()]

    def counter(self, name: str) -> int:
        counters: dict[str, int] = dict(tuple(row) for row in self.store.get("counters"))
        return counters.get(f"federation {name}", 0)


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path)
    yield made
    made.store.close()


def task_of(number: int, **found: Any) -> Task:
    return Task(
        **{"execution_id": f"{number:032x}", "received_at": NOON, "evidence": IN_LOG, **found}
    )


def test_a_task_that_changes_ten_times_is_told_once_per_kind(desk: Desk) -> None:
    desk.share()
    for status in (
        "received",
        "executing",
        "executing",
        "completed",
        "completed",
        "failed",
        "failed",
        *["lost"] * 3,
    ):
        desk.tell(task_of(1, status=status, gas_used=desk.at))
        desk.at += MINUTE_MS
    for _ in range(3):
        desk.invoice(INVOICE)
    assert desk.kinds() == ["task_received", "task_completed", "invoice_created"]


def test_what_waits_has_passed_the_gate_and_carries_the_time_at_which_it_is_due(desk: Desk) -> None:
    desk.share()
    desk.tell(*(task_of(number, status="failed") for number in range(20)))
    desk.invoice(INVOICE)
    assert len(desk.rows()) == 41
    for row in desk.rows():
        message = json.loads(row["payload"])
        assert refusal_of(row["subject"], row["payload"]) is None
        assert tbmon.parse_time(message["timestamp"]) == row["due_at"] // WINDOW_MS * WINDOW_MS
        assert row["day"] == "2026-11-22"
    assert len({json.loads(row["payload"])["id"] for row in desk.rows()}) == 41


@pytest.mark.parametrize(
    ("evidence", "event_db", "told"),
    [
        (IN_LOG, False, True),
        (IN_LOG, True, False),
        (IN_LOG | IN_EVENT_DB, True, True),
        (IN_LOG | IN_EVENT_DB, False, True),
        (IN_EVENT_DB, True, False),
        (IN_EVENT_DB, False, False),
        (0, False, False),
        (tbmon.COMPLETED_LINE, False, False),
        (IN_LOG | IN_EVENT_DB, None, False),
        (IN_LOG, None, False),
    ],
)
def test_only_a_task_that_log_and_event_database_agree_on_is_told(
    desk: Desk, evidence: int, event_db: bool | None, told: bool
) -> None:
    desk.share()
    desk.outbox.event_db = event_db
    desk.tell(task_of(1, evidence=evidence))
    assert desk.kinds() == ["task_received"] * told


@pytest.mark.parametrize(
    ("confirmed", "event_db", "told"),
    [
        (False, False, True),
        (True, False, True),
        (False, True, False),
        (True, True, True),
        (True, None, False),
    ],
)
def test_only_an_invoice_that_the_event_database_knows_is_told_where_there_is_one(
    desk: Desk, confirmed: bool, event_db: bool | None, told: bool
) -> None:
    desk.share()
    desk.outbox.event_db = event_db
    desk.invoice(INVOICE, confirmed=confirmed)
    assert desk.kinds() == ["invoice_created"] * told


def test_a_task_is_told_once_the_event_database_has_it_too(desk: Desk) -> None:
    desk.share()
    desk.outbox.event_db = True
    desk.tell(task_of(1, status="completed"))
    assert desk.kinds() == []
    desk.tell(task_of(1, status="completed", evidence=IN_LOG | IN_EVENT_DB))
    assert desk.kinds() == ["task_received", "task_completed"]


@pytest.mark.parametrize(
    ("at", "told"), [(NOON - 1, False), (NOON - 365 * DAY_MS, False), (None, False), (NOON, True)]
)
def test_nothing_from_before_opting_in_is_told(desk: Desk, at: int | None, told: bool) -> None:
    desk.share(joined_at=NOON)
    desk.tell(task_of(1, received_at=at, completed_at=NOON + 1, status="completed"))
    assert desk.kinds() == ["task_received", "task_completed"] * told
    desk.invoice(INVOICE, at=0 if at is None else at)
    assert desk.kinds()[2 * told :] == ["invoice_created"] * told


@pytest.mark.parametrize("chosen", [{"enabled": False}, {"level": "maximum"}, {"level": ""}])
def test_nothing_is_queued_and_no_key_is_made_while_nothing_may_be_told(
    desk: Desk, chosen: dict[str, Any]
) -> None:
    desk.share(**chosen)
    desk.tell(task_of(1, status="completed"))
    desk.invoice(INVOICE)
    assert desk.rows() == [] and desk.keys.day_keys() == {}


def test_sharing_is_off_until_somebody_opts_in(desk: Desk) -> None:
    desk.tell(task_of(1, status="completed"))
    assert desk.outbox.sharing == Sharing(enabled=False, level="balanced", joined_at=0)
    assert desk.rows() == [] and desk.keys.known_id() is None


def test_what_is_rolled_back_is_neither_queued_nor_told(desk: Desk) -> None:
    desk.share()
    with desk.store.write() as db:
        desk.store.save_tasks(db, [task_of(1, status="completed")])
    with pytest.raises(RuntimeError), desk.store.write() as db:
        desk.outbox.offer(db, [task_of(1, status="completed")], [])
        assert db.execute("SELECT COUNT(*) FROM outbox").fetchone()[0] == 2
        raise RuntimeError
    assert desk.rows() == []
    assert desk.store.read("SELECT told FROM task")[0][0] == 0
    desk.tell(task_of(1, status="completed"))
    assert desk.kinds() == ["task_received", "task_completed"]


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        ({"tasks": False}, ["invoice_created"]),
        ({"stats": False}, ["task_received", "task_completed"]),
        ({"level": "maximum"}, []),
        ({"enabled": False}, []),
        ({"tasks": False, "stats": False}, []),
        ({"level": "minimal"}, ["task_received", "task_completed", "invoice_created"]),
    ],
)
def test_what_may_no_longer_be_told_is_taken_back_and_no_more_is_queued(
    desk: Desk, chosen: dict[str, Any], left: list[str]
) -> None:
    desk.share()
    desk.tell(task_of(1, status="completed"))
    desk.invoice(INVOICE)
    desk.share(**chosen)
    assert desk.kinds() == left
    desk.tell(task_of(2, status="completed"))
    desk.invoice("another")
    assert desk.kinds() == left * 2


def test_settings_outlive_the_process(desk: Desk) -> None:
    desk.share(
        level="minimal",
        stats=False,
        servers=("tls://hub.example:4222",),
        joined_at=NOON,
        greeted=True,
    )
    again = Outbox(desk.store, desk.keys, lambda: NOON, random.Random(1), HUB)
    assert again.sharing == desk.outbox.sharing
    assert again.sharing == Sharing(
        True, "minimal", True, False, (hub := ("tls://hub.example:4222",)), NOON, True, hub, True
    )


class Interrupted(Store):
    """A store after whose next commit another thread comes first."""

    then: Callable[[], None] | None = None

    @contextlib.contextmanager
    def write(self) -> Iterator[Any]:
        with super().write() as db:
            yield db
        if (then := self.then) is not None:
            self.then = None
            other = threading.Thread(target=then)
            other.start()
            other.join()


@pytest.mark.parametrize("chosen", [{"enabled": False}, {"level": "maximum"}, {"tasks": False}])
def test_no_task_slips_in_while_the_settings_change(tmp_path: Path, chosen: dict[str, Any]) -> None:
    desk = Desk(tmp_path, store=Interrupted)
    with contextlib.closing(desk.store):
        desk.share()
        assert isinstance(desk.store, Interrupted)
        desk.store.then = lambda: desk.tell(task_of(1, status="completed"))
        desk.share(**chosen)
        assert desk.store.then is None and desk.kinds() == []


def wait_in_outbox(desk: Desk, number: int, due_at: int) -> None:
    rows = [(due_at, "2026-11-01", "truebit.tasks.received", b"%d" % one) for one in range(number)]
    with desk.store.write() as db:
        desk.store.put(db, "outbox", rows)


def test_what_was_due_seven_days_ago_is_dropped_and_counted(desk: Desk) -> None:
    desk.share()
    wait_in_outbox(desk, 3, NOON - 7 * DAY_MS - 1)
    wait_in_outbox(desk, 2, NOON - 7 * DAY_MS)
    desk.tell(task_of(1))
    assert [row["payload"] for row in desk.rows()[:2]] == [b"0", b"1"] and len(desk.rows()) == 3
    assert desk.counter("dropped") == 3


def test_ten_thousand_messages_wait_and_the_oldest_beyond_them_are_dropped_and_counted(
    desk: Desk,
) -> None:
    desk.share()
    wait_in_outbox(desk, 10_003, NOON)
    desk.tell(task_of(1, status="completed"))
    rows = desk.rows()
    assert len(rows) == 10_000 and rows[0]["payload"] == b"5"
    assert [json.loads(row["payload"])["type"] for row in rows[-2:]] == [
        "task_received",
        "task_completed",
    ]
    assert desk.counter("dropped") == 5


def test_a_builder_that_leaks_is_stopped_by_the_gate_and_counted(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.share()
    monkeypatch.setattr(Scale, "range_of", lambda scale, value: f"{value} of {CANARIES[0]}")
    desk.tell(task_of(1, status="completed", gas_used=123_456_789))
    desk.invoice(INVOICE)
    assert desk.kinds() == ["task_received"]  # it has no range
    assert desk.counter("refused") == 2
    reason = json.loads(desk.store.first("state", "federation refusal"))
    assert "schema" in reason and CANARIES[0] not in reason
    monkeypatch.undo()
    desk.tell(task_of(2, status="completed"))
    assert desk.kinds() == ["task_received"] * 2 + ["task_completed"]


def test_a_wallet_in_a_scale_of_the_schema_itself_is_stopped_by_the_second_line(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.share()
    leaky = MESSAGES["task_completed"]._replace(
        choices=dict.fromkeys(CHOICES, Scale((), (CANARIES[0],)))
    )
    monkeypatch.setitem(MESSAGES, "task_completed", leaky)
    desk.tell(task_of(1, status="completed", elapsed_ms=1, gas_used=1, memory_peak=1))
    assert desk.kinds() == ["task_received"] and desk.counter("refused") == 1


def test_each_measure_is_chosen_equally_often_and_one_at_a_time(desk: Desk) -> None:
    desk.share()
    desk.tell(
        *(
            task_of(number, status="completed", elapsed_ms=1, gas_used=1, memory_peak=1)
            for number in range(900)
        )
    )
    data = [
        json.loads(row["payload"])["data"]
        for row in desk.rows()
        if b"task_completed" in row["payload"]
    ]
    chosen = Counter(tuple(name for name in one if name.endswith("Bucket")) for one in data)
    assert set(chosen) == {(name,) for name in CHOICES}
    assert (
        chi_square([[chosen[(name,)] for name in CHOICES], [300] * 3]) < 13.8
    )  # 2 degrees of freedom: 0.1 %


# Phase and order


def chi_square(table: Sequence[Sequence[int]]) -> float:
    """How far a table of counts is from independence of its rows and columns."""
    rows, columns = (
        [sum(row) for row in table],
        [sum(column) for column in zip(*table, strict=True)],
    )
    total = sum(rows)
    expected = [[row * column / total for column in columns] for row in rows]
    pairs = [
        pair
        for row, line in zip(table, expected, strict=True)
        for pair in zip(row, line, strict=True)
    ]
    return sum(((seen - fair) ** 2 / fair for seen, fair in pairs), 0.0)


def phases(pairs: Sequence[tuple[int, int]], parts: int = 5) -> list[list[int]]:
    """Counts of (time of the event, time of sending) by their place within the window."""
    counts = Counter(
        (at % WINDOW_MS * parts // WINDOW_MS, due % WINDOW_MS * parts // WINDOW_MS)
        for at, due in pairs
    )
    return [[counts[row, column] for column in range(parts)] for row in range(parts)]


LIMIT = 39.3  # of chi-square with 16 degrees of freedom: 0.1 % of chance alone


@pytest.fixture(scope="module", params=LEVELS)
def queued(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[tuple[int, int]]]:
    """(when it happened, when it is due) of the messages of some days, in the order in which they
    were queued.
    """
    desk, dice = Desk(tmp_path_factory.mktemp("days"), 11), random.Random(12)
    desk.share(level=request.param)
    happened: list[int] = []
    for number in range(1200):
        desk.at += int(dice.expovariate(1 / 60_000))
        desk.tell(task_of(number, status="completed", received_at=desk.at))
        happened += [desk.at, desk.at]
    yield list(zip(happened, [row["due_at"] for row in desk.rows()], strict=True))
    desk.store.close()


def test_the_time_of_sending_tells_nothing_of_the_events_place_in_its_window(
    queued: list[tuple[int, int]],
) -> None:
    assert len(queued) == 2400
    assert chi_square(phases(queued)) < LIMIT
    everywhere = Counter(due % WINDOW_MS * 10 // WINDOW_MS for _, due in queued)
    assert (
        chi_square([[everywhere[part] for part in range(10)], [len(queued) // 10] * 10]) < 27.9
    )  # 9 degrees: 0.1 %


def test_the_phase_test_would_see_a_delay_of_whole_windows(queued: list[tuple[int, int]]) -> None:
    assert (
        chi_square(
            phases([(at, due // WINDOW_MS * WINDOW_MS + at % WINDOW_MS) for at, due in queued])
        )
        > 10 * LIMIT
    )
    nearly = [
        (at, (due + at % WINDOW_MS // 2) if number % 2 else due)
        for number, (at, due) in enumerate(queued)
    ]
    slow = [(at, at + due % (2 * MINUTE_MS)) for at, due in nearly]
    assert chi_square(phases(slow)) > 10 * LIMIT


def test_the_order_within_a_window_tells_nothing_of_the_order_of_events(
    queued: list[tuple[int, int]],
) -> None:
    windows: dict[int, list[tuple[int, int]]] = {}
    for number, (_, due) in enumerate(queued):
        windows.setdefault(due // WINDOW_MS, []).append((number, due))
    pairs = [
        (sent[0], sent[-1]) for sent in windows.values() if len(sent) > 1
    ]  # the first and the last queued
    in_order = sum(first[1] < last[1] for first, last in pairs)
    assert len(pairs) > 200
    assert abs(in_order - len(pairs) / 2) < 3.3 * math.sqrt(len(pairs)) / 2


def test_the_delay_is_uniform_over_the_whole_of_its_time(queued: list[tuple[int, int]]) -> None:
    delays = [due - (at // WINDOW_MS + 1) * WINDOW_MS for at, due in queued]
    longest = next(limit for limit in sorted(DELAY_MS.values()) if max(delays) < limit)
    assert min(delays) >= 0 and longest in (HOUR_MS, DAY_MS)
    parts = Counter(delay * 12 // longest for delay in delays)
    assert (
        chi_square([[parts[part] for part in range(12)], [200] * 12]) < 31.3
    )  # 11 degrees of freedom: 0.1 %


# Keys


def test_the_files_are_for_their_owner_alone(tmp_path: Path) -> None:
    keys, dice = SharingKeys(tmp_path / "keys"), random.Random(1)
    keys.node_id(dice)
    for day in ("2026-11-22", "2026-11-23"):
        keys.day_key(day, dice)
    keys.forget_all_but(["2026-11-23"])
    assert {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "keys").iterdir()} == {
        "federation.id": 0o600,
        "federation.keys": 0o600,
    }


def test_an_installation_id_is_a_random_uuid_that_stays(tmp_path: Path) -> None:
    keys = SharingKeys(tmp_path)
    assert keys.known_id() is None
    made = keys.node_id(random.Random(1))
    assert (
        fits(made, ENVELOPE["nodeId"])
        and made[19] == "4"
        and made[24] in "89ab"
        and made != ANONYMOUS
    )
    assert SharingKeys(tmp_path).node_id(random.Random(2)) == made == keys.known_id()


def test_a_day_has_one_key_and_another_day_another(tmp_path: Path) -> None:
    keys = SharingKeys(tmp_path)
    first = keys.day_key("2026-11-22", random.Random(1))
    assert (
        len(first) == 32 and SharingKeys(tmp_path).day_key("2026-11-22", random.Random(2)) == first
    )
    assert keys.day_key("2026-11-23", random.Random(3)) != first


def test_a_reset_makes_a_new_id_and_new_keys(tmp_path: Path) -> None:
    keys, dice = SharingKeys(tmp_path), random.Random(1)
    before = keys.node_id(dice), keys.day_key("2026-11-22", dice)
    keys.reset()
    assert list(tmp_path.iterdir()) == [] and keys.known_id() is None and keys.day_keys() == {}
    after = keys.node_id(dice), keys.day_key("2026-11-22", dice)
    assert before[0] != after[0] and before[1] != after[1]
    keys.reset()
    keys.reset()


DAMAGED = (
    b"",
    b"\0\0\0",
    b"\xff\xfe\xff",
    b"[]",
    b"7",
    b'{"2026-11-22": "ab',
    b'{"2026-11-22": 7}',
    b'{"2026-11-22": "zz"}',
    b'{"2026-11-22": "abcd"}',
    b'{"2026-11-22": null}',
)


@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_file_of_keys_is_as_good_as_none(tmp_path: Path, content: bytes) -> None:
    keys = SharingKeys(tmp_path)
    keys.keys_path.write_bytes(content)
    made = keys.day_key("2026-11-22", random.Random(1))
    assert len(made) == 32 and keys.day_key("2026-11-22", random.Random(2)) == made
    keys.forget_all_but([])
    assert keys.day_keys() == {}


@pytest.mark.parametrize(
    "content", [b"", b" \n", b"\xff\xfe\xff", b"hello", b"node-0a1b2c3d", ANONYMOUS.encode()]
)
def test_a_damaged_id_never_leaves_and_ends_nothing(tmp_path: Path, content: bytes) -> None:
    keys = SharingKeys(tmp_path)
    keys.id_path.write_bytes(content)
    shown, used = keys.known_id(), keys.node_id(random.Random(1))
    assert shown is None or isinstance(shown, str)
    payload = tbmon.presence_message("heartbeat", used, True, words())
    assert (refusal_of("truebit.heartbeat", payload) is None) == may_leave(
        "truebit.heartbeat", payload
    )


def deliver(desk: Desk) -> None:
    with desk.store.write() as db:
        desk.store.put(db, "delivered", [(row["id"],) for row in desk.rows()])


def test_the_key_of_a_day_stays_while_something_of_that_day_waits(desk: Desk) -> None:
    desk.share()
    desk.tell(task_of(1))
    first = desk.rows()[0]["id"]
    desk.at += DAY_MS
    desk.tell(task_of(2))
    desk.outbox.forget_keys()
    assert set(desk.keys.day_keys()) == {"2026-11-22", "2026-11-23"}
    with desk.store.write() as db:
        desk.store.put(db, "delivered", [(first,)])
    desk.outbox.forget_keys()
    assert set(desk.keys.day_keys()) == {"2026-11-23"}
    desk.share(enabled=False)
    assert desk.keys.day_keys() == {} and desk.rows() == []


def test_the_key_of_a_day_goes_when_the_day_is_over_and_nothing_waits(desk: Desk) -> None:
    desk.share(level="minimal")
    desk.tell(task_of(1))
    deliver(desk)
    desk.outbox.forget_keys()
    assert set(desk.keys.day_keys()) == {"2026-11-22"}, "more may be told today"
    desk.at += DAY_MS
    desk.outbox.forget_keys()
    assert desk.keys.day_keys() == {}


# Linkage


@pytest.fixture(scope="module", params=LEVELS)
def report(request: pytest.FixtureRequest) -> linkage.Report:
    made = linkage.judge(
        linkage.make_world(days=2.5, level=request.param), sample=1000, connections=40
    )
    print(f"\n300 monitors, {request.param}:\n{made}")
    return made


def test_outsider_and_peer_stay_at_guessing(report: linkage.Report) -> None:
    assert all(
        result.sigmas < 3 and result.guesses > 500 for result in (*report.outsider, report.peer)
    )
    most = {"minimal": 0.12, "balanced": 0.05}[report.level]
    assert all(result.hits / result.guesses < most for result in (*report.outsider, report.peer))
    assert report.joined == report.hashes == 0


def test_a_message_can_be_of_many_wallets(report: linkage.Report) -> None:
    least, middle = {"minimal": (1, 30), "balanced": (5, 200)}[
        report.level
    ]  # an hour can hold one rare task alone
    assert statistics.median(report.crowd) >= middle and report.crowd[0] >= least


def test_the_hubs_operator_does_better_than_guessing(report: linkage.Report) -> None:
    rates = [result.hits / result.guesses for result in (*report.outsider, report.peer)]
    assert report.operator.hits / report.operator.guesses > max(rates)


def test_the_observers_would_see_a_lasting_id_and_a_delay_of_whole_windows() -> None:
    def whole_windows(at: int, level: str, share: float) -> int:
        return due_after(at, level, share) // WINDOW_MS * WINDOW_MS + at % WINDOW_MS

    def lasting(wallet: int) -> str:
        return f"node-{wallet:08x}-0000-4000-8000-000000000000"

    leaky = linkage.judge(
        linkage.make_world(60, 40, 2.5, delay=whole_windows, node_of=lasting), 500, 5
    )
    found = {result.observer: result for result in leaky.outsider}
    assert found["outsider, same phase"].sigmas > 10
    assert leaky.joined > 30 and found["outsider, by what repeats"].sigmas > 10


# Publications

STATS: dict[str, Any] = {
    "activeNodes": 12,
    "totalNodes": 15,
    "totalTasks": 1200,
    "completedTasks": 1100,
    "failedTasks": 50,
    "cachedTasks": 300,
    "tasksLast24h": 90,
    "totalInvoices": 1000,
    "invoicesLast24h": 80,
    "successRate": 95,
    "cacheHitRate": 25.5,
    "executionTimeDistribution": {"<100ms": 10, "1-5s": 40, "unknown": 5},
    "gasUsageDistribution": {"1B-10B": 300},
    "stepsComputedDistribution": {"1B-10B": 900, ">100B": 10},
    "memoryUsedDistribution": {"<8MB": 10, "unknown": 0},
    "taskTypeDistribution": {"rust": 600, "other": 10},
    "snapshotAt": "2026-11-22T00:00:05.123Z",
    "peers": [
        {"handle": "0123456789abcdef", "seen": "today"},
        {"handle": "f" * 16, "seen": "yesterday"},
    ],
}
PUBLICATION: dict[str, Any] = {
    "version": "1.0",
    "type": "network_stats",
    "id": "ab" * 16,
    "timestamp": "2026-11-22T12:00:30Z",
    "data": STATS,
}


def published(data: object = STATS, **changed: object) -> bytes:
    return json.dumps({**PUBLICATION, "data": data, **changed}).encode()


def test_a_publication_is_read_as_it_is() -> None:
    assert read_publication(published()) == STATS


@pytest.mark.parametrize("name", STATS)
def test_a_figure_may_be_withheld(name: str) -> None:
    data = {**STATS, name: None}
    assert read_publication(published(data)) == data


def test_all_figures_may_be_withheld_and_all_be_at_their_limits() -> None:
    nothing = dict.fromkeys(STATS)
    assert read_publication(published(nothing)) == nothing
    many = [{"handle": f"{number:016x}", "seen": "today"} for number in range(500)]
    most = {
        **STATS,
        "peers": many,
        "totalTasks": 2**53 - 1,
        "successRate": 100,
        "cacheHitRate": 0,
        "activeNodes": 0,
    }
    assert read_publication(published(most)) == most


COUNTS = (
    "activeNodes",
    "totalNodes",
    "totalTasks",
    "completedTasks",
    "failedTasks",
    "cachedTasks",
    "tasksLast24h",
    "totalInvoices",
    "invoicesLast24h",
)
SPREADS = [name for name in STATS if name.endswith("Distribution")]
HOSTILE = "<img src=x onerror=alert(1)>"
NO_COUNTS: tuple[Any, ...] = (
    -1,
    1.5,
    1.0,
    True,
    "7",
    HOSTILE,
    [],
    {},
    2**53,
    10**400,
    float("nan"),
    float("inf"),
)


def each(names: Iterable[str], *values: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name in names for value in values]


WRONG = [
    *each(COUNTS, *NO_COUNTS),
    *each(
        ("successRate", "cacheHitRate"),
        -0.1,
        100.01,
        True,
        "95",
        "95%",
        [],
        float("nan"),
        float("inf"),
        10**400,
    ),
    *each(
        SPREADS,
        [],
        "x",
        7,
        True,
        {HOSTILE: 1},
        {"": 1},
        {"<100MS": 1},
        {"__proto__": 1},
        {"unknown": None},
    ),
    *each(
        [name for name in SPREADS if name[0] != "t"], *({"unknown": value} for value in NO_COUNTS)
    ),
    *each(
        ["taskTypeDistribution"],
        {"unknown": 1},
        {"go": 1},
        *({"rust": value} for value in NO_COUNTS),
    ),
    *each(["executionTimeDistribution"], {"<1M": 1}),
    *each(["gasUsageDistribution"], {"<8MB": 1}),
    *each(
        ["peers"],
        {},
        "x",
        7,
        [None],
        [[]],
        ["0123456789abcdef"],
        [{}],
        [{"handle": "f" * 16}],
        [{"seen": "today"}],
        [{"handle": "f" * 16, "seen": "tomorrow"}],
        [{"handle": "f" * 16, "seen": ["today"]}],
        [{"handle": "f" * 16, "seen": None}],
        [{"handle": "F" * 16, "seen": "today"}],
        [{"handle": "f" * 15, "seen": "today"}],
        [{"handle": "f" * 17, "seen": "today"}],
        [{"handle": "f" * 16 + "\n", "seen": "today"}],
        [{"handle": HOSTILE, "seen": "today"}],
        [{"handle": 7, "seen": "today"}],
        [{"handle": "f" * 16, "seen": "today", "nodeId": "x"}],
        [{"handle": f"{number:016x}", "seen": "today"} for number in range(501)],
    ),
    *each(
        ["snapshotAt"],
        7,
        "",
        HOSTILE,
        "yesterday",
        "2026-11-22",
        "2026-11-22T00:00:05.123Z\n",
        True,
        "1999-11-22T00:00:05Z",
        "2026-11-22T00:00:05.123+01:00",
        "20٢٦-11-22T00:00:05Z",
        "2026-19-22T00:00:05Z",
        "2026-02-30T00:00:05Z",
        "2026-11-22T29:00:05Z",
    ),
]


@pytest.mark.parametrize(("name", "value"), WRONG)
def test_a_publication_with_a_wrong_value_is_none(name: str, value: Any) -> None:
    assert read_publication(published({**STATS, name: value})) is None


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"7",
        b"\xff\xfe",
        b"NaN",
        published()[:-1],
        published() + b"x",
        published([]),
        published(None),
        published({}),
        published("x"),
        published({**STATS, "more": 1}),
        published({**STATS, "Peers": []}),
        published({name: value for name, value in STATS.items() if name != "peers"}),
        published(version="1.1"),
        published(version=1.0),
        published(type="heartbeat"),
        published(type=None),
        published(id="ab"),
        published(id="AB" * 16),
        published(id=7),
        published(id=HOSTILE),
        published(nodeId=NODE_ID),
        published(timestamp="now"),
        published(timestamp=None),
        published(timestamp=NOON),
        published(more=1),
        published(timestamp="2026-99-22T12:00:30Z"),
        published(timestamp="20٢٦-11-22T12:00:30Z"),
        json.dumps({name: value for name, value in PUBLICATION.items() if name != "id"}).encode(),
        b"[" * 60_000,
        b'{"a":' * 10_000,
        published([[]]).replace(b"[[]]", b"[" * 900 + b"]" * 900),
        published().replace(b'"totalTasks": 1200', b'"totalTasks": ' + b"9" * 5000),
    ],
)
def test_what_is_no_publication_is_none(payload: bytes) -> None:
    assert read_publication(payload) is None


def test_a_publication_of_more_than_64_kib_is_none() -> None:
    padded = published() + b" " * (64 * 1024 - len(published()))
    assert read_publication(padded) == STATS
    assert read_publication(padded + b" ") is None


def fits_the_contract(data: object) -> bool:
    """The rules of the contract for figures, written down a second time."""
    if not isinstance(data, dict) or set(data) != set(STATS):
        return False
    steps = {*STEPS_SCALE.ranges, "unknown"}
    labels = {
        "executionTimeDistribution": {*TIME_SCALE.ranges, "unknown"},
        "gasUsageDistribution": steps,
        "stepsComputedDistribution": steps,
        "taskTypeDistribution": set(tbmon.SHARED_LANGUAGES),
        "memoryUsedDistribution": {*MEMORY_SCALE.ranges, "unknown"},
    }

    def is_count(one: object) -> bool:
        return type(one) is int and 0 <= one < 2**53

    def is_right(name: str, value: Any) -> bool:
        if name in COUNTS:
            return is_count(value)
        if name in labels:
            return (
                isinstance(value, dict)
                and set(value) <= labels[name]
                and all(map(is_count, value.values()))
            )
        if name in ("successRate", "cacheHitRate"):
            return type(value) in (int, float) and 0 <= value <= 100
        return bool(value == STATS[name] or value == [])

    return all(value is None or is_right(name, value) for name, value in data.items())


@MORE
@given(
    st.dictionaries(
        st.sampled_from((*STATS, "more")),
        st.one_of(
            ANY_JSON,
            st.dictionaries(
                st.sampled_from(("unknown", "rust", "<1M", "<8MB", "<100ms")), ANY_JSON, max_size=2
            ),
        ),
        min_size=1,
        max_size=3,
    )
)
def test_whatever_the_hub_says_only_what_fits_is_read(changed: dict[str, Any]) -> None:
    payload = published({**STATS, **changed})
    read = read_publication(payload)
    assert (read is not None) == fits_the_contract(json.loads(payload)["data"])


ALPHABET = (string.printable + "\0\x7f").encode()


def test_no_alteration_of_a_publications_bytes_is_read_as_something_that_does_not_fit() -> None:
    dice, payload = random.Random(5), published()
    for _ in range(3000):
        data = bytearray(payload)
        for _ in range(dice.choice((1, 2))):
            data[dice.randrange(len(data))] = dice.choice(ALPHABET)
        read = read_publication(bytes(data))
        if read is not None:
            peers = [set(peer) == {"handle", "seen"} for peer in read["peers"]]
            assert fits_the_contract({**read, "snapshotAt": None, "peers": None}) and all(peers)
            assert tbmon.parse_time(read["snapshotAt"]) is not None
