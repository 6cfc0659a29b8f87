"""Whatever comes in, by mutation with a seed: nothing raises, hangs, grows or is wrongly accepted
(see tests/support/fuzz.py).
"""

from __future__ import annotations

import copy
import functools
import gc
import io
import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.fuzz import Told, attack_with, corpus_of, replay
from support.fuzz_targets import (
    MESSAGES,
    ONE,
    SCHEMA_WORDS,
    TARGETS,
    is_message,
    is_publication,
    publication,
    read_frames,
)
from support.machine import LONG, length
from support.node_samples import HEADER, KEY, OWN, lines

import tbmon

INPUTS = length(40, 12_000)  # for each unit of a target's weight
TOLD: list[Told] = []
MORE = settings(
    derandomize=not LONG, deadline=None, max_examples=length(100, 20_000), database=None
)
Figure = Callable[[str, object], None]


@pytest.mark.parametrize("name", TARGETS)
def test_no_input_breaks_a_promise(name: str, tmp_path: Path, figure: Figure) -> None:
    target, seed = TARGETS[name], random.SystemRandom().randrange(10**9) if LONG else 1
    print(f"seed {seed}")
    replay(target, tmp_path / "kept", corpus_of(name))
    told = attack_with(target, name, tmp_path / "new", seed, target.weight * INPUTS, length(1, 2))
    figure(f"fuzz {name}", f"{told}, seed {seed}")
    TOLD.append(told)
    assert told.slowest_s < 2 and told.grown_kib < 128 * 1024


def test_the_long_form_is_ten_million_inputs(figure: Figure) -> None:
    assert sum(target.weight for target in TARGETS.values()) * 12_000 >= 10_000_000
    count, seconds = sum(told.inputs for told in TOLD), sum(told.seconds for told in TOLD)
    figure("fuzz in all", f"{count} inputs, {count / max(seconds, 1e-9):.0f} a CPU second")


def test_every_folder_of_the_corpus_has_a_target() -> None:
    assert {path.name for path in Path(__file__).with_name("corpus").iterdir()} <= set(TARGETS)


# Time for each byte


UNITS = (
    "{",
    "[",
    "[A",
    "[A:",
    "{A ",
    "[A *1",
    '"',
    "'",
    "`",
    "\\",
    '\\"',
    "\\'",
    "\"'",
    "'\n",
    '"\n',
    "9",
    "a",
    "0x",
    "-0x",
    "0x9-",
    " ",
    ":",
    ",",
    "+",
    "\n",
    "\r",
    "\t",
    "'a'+",
    "e+1",
    "{a:",
    "}",
    "]",
    "[]",
    '{"',
    '"a":',
    "executionId",
    "executionId: ",
    "wallet:",
    "\x1b",
    "\x1b[",
    "\x1b]",
    "\x1b[0",
    "\x1b ",
    "0" * 39,
    "a" * 41,
    OWN,
    "0x" + OWN,
    "3f1c9d2e-5b7a-",
    "-",
    ".",
    "%",
    "a=&",
    ";",
    "; ",
    "&",
    "localhost.",
    ":1",
    "1.1.1.1,",
    "| ",
    "x | ",
    "2025-11-24",
    HEADER,
    HEADER + "{\n",
    '"\\ud800',
)


def feed(start: str, text: str) -> object:
    assembler = tbmon.Assembler(tbmon.Redactor(KEY))
    assembler.feed(lines(HEADER + start + text))
    return assembler.feed(lines(text))


def clean(text: str) -> object:
    by_own, seen = tbmon.Redactor(KEY), tbmon.Redactor(KEY)
    by_own.own = frozenset([by_own.pseudonym("b" * 40)])
    seen.see(OWN)
    return by_own.clean(text), seen.clean(text)


def read_facts(text: str) -> object:
    return [
        tbmon.read_event(kind, start + text, start + text, str) for kind, start in STARTS.items()
    ]


def frames_of(text: str) -> object:
    data = text.encode("utf-8", "replace")
    framed = b"".join(
        b"\x01\0\0\0\0\0\0\x41" + data[at : at + 65] for at in range(0, len(data), 65)
    )
    return read_frames(True, [data]), read_frames(False, [framed])


def ask_body(text: str) -> object:
    body = {
        "CONTENT_TYPE": "application/json",
        "wsgi.input": io.BytesIO(text.encode("utf-8", "replace")),
    }
    return refused(lambda: tbmon.read_body(body, "LoginBody"))


def refused(what: Callable[[], object]) -> object:
    try:
        return what()
    except tbmon.Refusal as refusal:
        return refusal


STARTS = {
    "task_received": "Message received from task_created: {",
    "execution_output": "Command execution stdout: {",
    "invoice": "InvoiceSubscriber {lineItem: [",
    "task_failed": "Execution 3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c failed ",
    "semaphore": "Semaphore x message received ",
    "registration": "Node with address ",
    "task_start": "",
    "task_download": "Task ",
}
LOGS = {route.path: route.query for route in tbmon.ROUTES}["/api/logs"]
READERS: dict[str, Callable[[str], object]] = {
    "a line": functools.partial(feed, ""),
    "an open entry": functools.partial(feed, "Connected to: {"),
    "clean": clean,
    "facts": read_facts,
    "inspect": tbmon.read_inspect,
    "payload": tbmon.read_payload,
    "depth": tbmon.bracket_depth,
    "classify": lambda text: [tbmon.classify(start + text) for start in STARTS.values()],
    "frames": frames_of,
    "time": tbmon.parse_time,
    "records": lambda text: list_records('{"records": [' + text),
    "gate": lambda text: tbmon.refusal_of("truebit.heartbeat", text.encode("utf-8", "replace")),
    "publication": lambda text: tbmon.read_publication(text.encode("utf-8", "replace")),
    "query": lambda text: refused(lambda: tbmon.read_query("search=" + text, LOGS)),
    "cursor": lambda text: (tbmon.read_cursor(text), tbmon.read_log_cursor(text)),
    "body": ask_body,
    "host": lambda text: tbmon.is_our_host(text, ()),
    "address": lambda text: tbmon.client_address(
        {"REMOTE_ADDR": "::1", "HTTP_X_FORWARDED_FOR": text}, ()
    ),
}


def list_records(text: str) -> object:
    try:
        return list(tbmon.read_records(io.BytesIO(text.encode("utf-8", "replace"))))
    except ValueError as error:
        return error


def cpu_s(read: Callable[[str], object], text: str) -> float:
    gc.disable()  # how long it takes depends on all that the process holds
    try:
        before = time.thread_time()
        read(text)
        return time.thread_time() - before
    finally:
        gc.enable()


@pytest.mark.parametrize("name", READERS)
def test_time_grows_no_faster_than_the_input(name: str, figure: Figure) -> None:
    size, slowest = length(12, 48) * 1024, (0.0, "")
    for unit in UNITS:
        text, longer = (unit * (many // len(unit)) for many in (size, 4 * size))
        took_s = cpu_s(READERS[name], text)
        slowest = max(slowest, (took_s / size, unit))
        if (
            took_s > size * 8e-6
        ):  # looked at more closely: four times as much may take four times as long
            took_s, longer_s = (
                min(cpu_s(READERS[name], one) for _ in range(3)) for one in (text, longer)
            )
            assert longer_s < 8 * took_s, (
                f"{unit!r}: {took_s:.3f} s for {size} bytes, {longer_s:.3f} s for {4 * size}"
            )
    figure(f"time of {name}", f"at most {slowest[0] * 1e6:.2f} us a byte, of {slowest[1][:20]!r}")


# Structured


VALUES = st.one_of(
    st.sampled_from([word.decode() for word in SCHEMA_WORDS]),
    st.from_regex("[0-9a-f]{63,65}", fullmatch=True),
    st.none(),
    st.booleans(),
    st.integers(-1, 2**54),
    st.floats(),
    st.text(max_size=5),
    st.just([]),
    st.just({}),
    st.datetimes().map(lambda at: f"{at:%Y-%m-%dT%H:%M:00}.000Z"),
    st.sampled_from(["online", "1.0", "completed"]),
)
CHANGED = st.lists(st.tuples(st.booleans(), st.integers(0, 18), VALUES), max_size=3)


def changed(message: dict[str, Any], changes: list[tuple[bool, int, Any]]) -> bytes:
    """The message with values put elsewhere, in the form that the gate asks for."""
    for in_data, place, value in changes:
        box = message["data"] if in_data and isinstance(message["data"], dict) else message
        name = next(iter(list(box)[place:]), "more")
        box[name] = copy.deepcopy(value)
    return tbmon.encode(message)


@MORE
@given(
    st.sampled_from(MESSAGES),
    st.sampled_from([subject for subject, _ in ONE]),
    st.booleans(),
    CHANGED,
)
def test_the_gate_and_the_schema_agree(
    given_one: bytes, other: str, elsewhere: bool, changes: list[Any]
) -> None:
    subject, _, payload = given_one.partition(b"\n")
    name, sent = other if elsewhere else subject.decode(), changed(json.loads(payload), changes)
    assert (tbmon.refusal_of(name, sent) is None) == is_message(name, sent)


@MORE
@given(CHANGED)
def test_a_publication_is_read_if_it_is_in_the_schema(changes: list[Any]) -> None:
    sent = changed(json.loads(publication()), changes)
    assert (tbmon.read_publication(sent) is not None) == is_publication(sent)
