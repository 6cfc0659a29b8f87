"""Section 3, what a log may not do: give wallets away, or speak for the node when a task wrote it."""

from __future__ import annotations

import json
import re

import pytest
from support.node_samples import (
    FIRST,
    HEADER,
    KEY,
    OWN,
    PEER,
    RECORDS,
    REQUESTER,
    WHOLE_LOG,
    facts,
    parse,
    said,
)

from tbmon import Assembler, Entry, Redactor, Trust, read_event, record_event, second_text

# Wallets


FORMS = [
    before + digits for before in ("", "0x", "0X") for digits in (OWN, OWN.lower(), OWN.upper())
]
PLACES = [
    "Connected to {}",
    "Node with address {} registered successfully",
    "x\n  at {} (x)",
    "x\n\x01{}",
    "Command execution stderr: wallet={};\n  {}",
    "Command execution stdout: {{'a': '{}'}}",
    f"Execution {FIRST} failed: no funds on {{}}",
    f"Message received from task_created: {{{{ executionId: '{FIRST}', sender: '{{}}', message: "
    "{{ taskId: 'js_{}', chainId: '{}', blockHash: '{}' }} }}",
    (
        "InvoiceSubscriber got {{ invoiceId: '{}', taskId: '{}', lineItem: [ {{ account: '{}', "
        "operation: '{}' }} ] }}"
    ),
    "Task {} downloaded successfully",
    "Semaphore {} processing started - Using slot 1/4",
]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", [*FORMS, *(form.replace(OWN, PEER) for form in FORMS[::3])])
def test_no_wallet_leaves_the_parser_in_any_form_from_any_place(place: str, form: str) -> None:
    redactor = Redactor(KEY)
    entries = parse(
        HEADER + place.replace("{}", form).replace("{{", "{").replace("}}", "}"), redactor
    )
    spoken = said(entries, facts(entries, redactor))
    assert OWN.lower() not in spoken
    assert PEER.lower() not in spoken
    assert redactor.pseudonym(form) in spoken or "semaphore" in place.lower()


@pytest.mark.parametrize(
    "code",
    [
        "\x1b[0m",
        "\x1b[1;31m",
        "\x1b[38:2:255:0m",
        "\x1b[K",
        "\x1b]8;;\x07",
        "\x1bM",
        "\x1b(B",
        "\x1b7",
        "\x1b=",
    ],
)
def test_no_wallet_leaves_the_parser_split_by_an_escape_sequence(code: str) -> None:
    for wallet in (OWN, PEER):
        for at in range(1, 42):
            form = f"0x{wallet}"[:at] + code + f"0x{wallet}"[at:]
            hidden = Redactor(KEY).pseudonym(wallet)
            (entry,) = parse(f"{HEADER}Connected to {form} now\n  and {form}")
            assert entry.text == f"Connected to {hidden} now\n  and {hidden}"


@pytest.mark.parametrize(
    "around", ["{}00", "ff{}", "0" * 24 + "{}", "0x" + "0" * 24 + "{}", "_{}_", "é{}", "0x0x{}"]
)
def test_the_nodes_own_digits_are_found_inside_longer_runs_too(around: str) -> None:
    for digits in (OWN, OWN.upper()):
        (entry,) = parse(f"{HEADER}x {around.format(digits)}")
        assert Redactor(KEY).pseudonym(OWN) in entry.text
        assert OWN.lower() not in entry.text.lower()


def test_the_nodes_own_digits_do_not_hide_in_a_hash() -> None:
    padded = "0" * 24 + OWN
    payload = {
        "executionId": FIRST,
        "message": {"taskId": "js_" + padded, "blockHash": padded},
        "execution": {"wasm": {"hash": "0x" + padded}},
    }
    redactor = Redactor(KEY)
    for words in ("Message received from task_created:", "Command execution stdout:"):
        entries = parse(f"{HEADER}{words} {json.dumps(payload)}", redactor)
        assert OWN.lower() not in said(entries, facts(entries, redactor))


@pytest.mark.parametrize(
    "tail", ["node:0x{}", "node:1-0x{}", "node:1.{}", "node-0x{}-x:1.0", "0x{}/node:1.0"]
)
def test_no_wallet_leaves_the_parser_in_what_a_header_says_of_its_writer(tail: str) -> None:
    line = f"2025-11-24 13:40:05 info: @truebit/worker-runner-{tail.format(OWN)} Starting services"
    assert OWN.lower() not in said(parse(line), [])


def test_own_digits_are_hidden_from_the_moment_they_are_known_also_in_words_seen_before() -> None:
    before = f"2025-11-24 13:40:05 info: @truebit/worker-runner-node:1.0.0 Connected ff{OWN}"
    entries = parse(f"{before}\n{HEADER}x\n{before}")
    assert OWN.lower() not in entries[-1].text.lower()


def test_hashes_and_shorter_or_longer_runs_are_no_wallets() -> None:
    for words in (
        "5e" * 32,
        "0x" + "5e" * 32,
        "0x" + "a" * 39,
        "a" * 39,
        "a" * 41,
        "0x" + "a" * 41,
        FIRST,
    ):
        assert parse(HEADER + words)[0].text == words


def test_a_pseudonym_is_the_same_for_every_form_and_depends_on_the_key() -> None:
    assert len({parse(f"{HEADER}x {form}")[0].text for form in FORMS}) == 1
    assert (
        parse(f"{HEADER}x {OWN}", Redactor(b"other"))[0].text != parse(f"{HEADER}x {OWN}")[0].text
    )
    assert re.fullmatch(r"wallet:[0-9a-f]{16}", Redactor(KEY).pseudonym(OWN))


def test_a_pseudonym_cannot_be_written_by_a_task() -> None:
    forged = Redactor(KEY).pseudonym(PEER)
    redactor = Redactor(KEY)
    invoice = {"invoiceId": "1", "lineItem": [{"operation": "pay", "account": forged}]}
    words = (
        f"Node with address {forged} registered successfully",
        f"InvoiceSubscriber {json.dumps(invoice)}",
    )
    for entry in parse("\n".join(HEADER + text for text in words), redactor):
        event = read_event(entry.type, entry.text, entry.raw, redactor.clean)
        assert event is not None
        assert event.fields.get("address") is None
        assert forged not in (
            entry.text,
            *(item["account"] for item in event.fields.get("line_items", ())),
        )


def test_the_samples_and_the_event_database_show_no_wallet() -> None:
    redactor = Redactor(KEY)
    entries = parse(WHOLE_LOG, redactor)
    events = [record_event(record, redactor.clean) for record in RECORDS]
    for spoken in (said(entries, facts(entries, redactor)), said([], events)):
        assert not [wallet for wallet in (OWN, REQUESTER, PEER) if wallet.lower() in spoken]
        assert redactor.pseudonym(OWN) in spoken


# Trust


NODE, FORGER = (OWN, "1.120.0-beta.275"), (PEER, "1.120.0-beta.275")


def header(
    second: int, writer: tuple[str | None, str] = NODE, engine_ms: int | None = None
) -> Entry:
    address, version = writer
    name = "@truebit/worker-runner-node" + (f"-0x{address}" if address else "")
    line = f"{second_text(second)} info: {name}:{version} Heartbeat sent".encode()
    (entry,) = Assembler(Redactor(KEY)).feed([(line, engine_ms, b"")])
    return entry


def settled() -> Trust:
    """A node that has been heard from second 0 to 600."""
    trust = Trust()
    assert all(trust.judge(header(second)) for second in range(0, 601, 120))
    return trust


def test_of_the_samples_only_the_line_of_another_version_is_not_believed() -> None:
    trust = Trust()
    doubted = [entry.text for entry in parse(WHOLE_LOG) if entry.head and not trust.judge(entry)]
    assert doubted == ["Starting services"]


@pytest.mark.parametrize(
    "writer",
    [
        FORGER,
        (OWN, "1.120.0"),
        (None, "1.120.0-beta.275"),
        (None, "1.119.2"),
        ("558f", "1.120.0-beta.275"),
    ],
)
def test_another_identity_is_not_believed_and_does_not_unseat_the_node(
    writer: tuple[str | None, str],
) -> None:
    trust = settled()
    assert not trust.judge(header(700, writer))
    assert trust.judge(header(701))


def test_a_line_without_header_is_never_believed() -> None:
    trust = Trust()
    assert not trust.judge(parse("Command execution stdout: {}")[0])
    assert trust.judge(header(0))


def test_at_a_start_the_newest_identity_counts_until_one_has_an_address() -> None:
    trust = Trust()
    for second, writer in enumerate([(None, "1.119.2"), (None, "1.120.0"), NODE]):
        assert trust.judge(header(second, writer))
    assert not trust.judge(header(4, FORGER))
    assert not trust.judge(header(5, (None, "1.120.0")))


def test_two_minutes_after_a_start_an_address_comes_too_late() -> None:
    trust = Trust()
    assert trust.judge(header(0, (None, "1.0")))
    assert not trust.judge(header(121, NODE))
    assert trust.judge(header(122, (None, "1.0")))


def test_a_restart_lets_the_node_establish_itself_anew() -> None:
    trust = settled()
    trust.restart()
    updated = (OWN, "1.121.0-rc.1")
    assert trust.judge(header(700, updated))
    assert not trust.judge(header(701))


def test_an_identity_taken_up_from_the_store_is_settled() -> None:
    trust = Trust((None, "1.0"))
    assert not trust.judge(header(0, NODE))
    assert trust.judge(header(1, (None, "1.0")))


@pytest.mark.parametrize(
    ("count", "step_s", "adopted"),
    [(20, 32, True), (19, 40, False), (20, 31, False), (100, 6, False), (101, 6, True)],
)
def test_a_restart_nobody_reported_is_adopted_after_ten_minutes_and_twenty_headers(
    count: int, step_s: int, adopted: bool
) -> None:
    trust, updated = settled(), (OWN, "1.121.0")
    headers = [header(700 + number * step_s, updated) for number in range(count)]
    assert not any(trust.judge(entry) for entry in headers)
    assert (trust.adopted and trust.adopted.entries) == (headers if adopted else None)
    assert trust.judge(header(3000, updated if adopted else NODE))
    assert not trust.judge(header(3001, NODE if adopted else updated))


@pytest.mark.parametrize("other", [NODE, (PEER, "9.9")])
def test_a_newcomer_is_adopted_only_if_it_alone_is_heard(other: tuple[str, str]) -> None:
    trust = settled()
    for number in range(100):
        trust.judge(header(700 + number * 40, FORGER if number % 19 else other))
    assert trust.adopted is None
    assert trust.judge(header(9000))


def test_a_burst_of_forged_headers_is_not_ten_minutes_whatever_its_stamps_say() -> None:
    trust = Trust()
    trust.judge(header(600, NODE, 600_000))
    for number in range(50):
        trust.judge(header(300 + number * 15, FORGER, 600_500))
    assert trust.adopted is None
    assert trust.judge(header(601, NODE, 601_000))


def test_forged_stamps_from_before_the_nodes_last_header_do_not_count() -> None:
    trust = settled()
    for number in range(51):
        trust.judge(header(number * 12, FORGER))
    assert trust.adopted is None
    assert trust.judge(header(601))
