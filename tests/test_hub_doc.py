"""docs/hub.md says what is: settings, commands, fields, reasons, and what the statistics do."""

from __future__ import annotations

import re
from dataclasses import fields

from support import ROOT
from support.federation_feed import NOON, Feed

import aggregator
import tbmon
from aggregator import Config

LEAST = ".".join(map(str, aggregator.SAFE_SERVER))
ADVISORIES = ("CVE-2026-27889", "CVE-2026-29785", "CVE-2026-33249", "https://advisories.nats.io")

TEXT = (ROOT / "docs" / "hub.md").read_text("utf-8")
FLAT = " ".join(TEXT.split())


def table(heading: str) -> list[list[str]]:
    """The cells of the table under a heading of two columns or more."""
    part = TEXT.partition(heading)[2]
    rows = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def first_table(heading: str) -> list[list[str]]:
    rows = table(heading)
    ends = [number for number, row in enumerate(rows) if set(row[0]) == {"-"}]
    return rows[ends[0] + 1 : ends[1] - 1 if len(ends) > 1 else None]


def words(cells: list[list[str]]) -> set[str]:
    return {word for row in cells for word in re.findall(r"`([^`]+)`", row[0])}


def test_every_setting_is_there_with_its_default() -> None:
    told = {}
    for names, default, _ in first_table("## The aggregator"):
        told.update(dict.fromkeys(names.split(", "), default.strip("`")))
    assert told == {item.name.upper(): str(item.default) or "none" for item in fields(Config)}


def test_every_published_field_is_explained() -> None:
    assert words(first_table("## What is published")) == set(tbmon.PUBLISHED)


def test_every_shipped_configuration_is_named() -> None:
    assert words(first_table("## The hub")) == {
        path.name for path in (ROOT / "deploy").glob("nats-*.conf")
    }


def test_the_reasons_are_the_programs() -> None:
    counts, gate = ((ROOT / name).read_text("utf-8") for name in ("aggregator.py", "tbmon.py"))
    parts = (
        counts[counts.index("def judge") : counts.index("class Budget")],
        counts[counts.index("def refusal") : counts.index("def prune")],
        gate[gate.index("def refusal_of") : gate.index("# 6. Federation")],
    )
    said = {
        one for part in parts for one in re.findall(r'"((?:it |its |the |too |there )[^"]+)"', part)
    }
    said = {
        re.sub(r"value of (\{[^}]*\}|nodeId or timestamp)", "value of ...", one) for one in said
    }
    assert said == words(first_table("## What counts"))


def test_the_figures_named_are_the_programs() -> None:
    for phrase, value in (
        ("remembers 10 million ids", aggregator.MAX_KEYS == 10_000_000),
        (
            "more than 200,000 in two days",
            (aggregator.MAX_NODES, aggregator.NODE_MS) == (200_000, 2 * tbmon.DAY_MS),
        ),
        ("more than 1 KiB", aggregator.MESSAGE_BYTES == 1024),
        (
            "more than 8 days before, or 10 minutes after",
            (aggregator.OLDEST_MS, aggregator.NEWEST_MS)
            == (8 * tbmon.DAY_MS, 10 * tbmon.MINUTE_MS),
        ),
        ("at most 500 installations", aggregator.MAX_PEERS == 500),
        ("(8 days, 4 GiB)", aggregator.STREAMS["TRUEBIT_TASKS"][1:] == (8 * 86400, 4 * 1024**3)),
        ("(2 hours, 1 GiB)", aggregator.STREAMS["TRUEBIT_PRESENCE"][1:] == (2 * 3600, 1024**3)),
    ):
        assert phrase in FLAT
        assert value, phrase


def test_monitors_send_less_than_it_says() -> None:
    feed = Feed(5, 3)
    assert max(len(feed.anything(NOON).payload) for _ in range(2000)) < 500


def test_the_least_safe_server_is_named_everywhere() -> None:
    assert f"for nats-server {LEAST} or later" in FLAT and f"least version is {LEAST}" in FLAT
    assert f"a server older than {LEAST}" in FLAT
    assert [one for one in ADVISORIES if one not in FLAT] == []
    for path in (ROOT / "deploy").glob("nats*.conf"):
        heading = path.read_text("utf-8").split("\n\n")[0]
        assert f"for nats-server {LEAST} and later" in heading.lower(), path.name
        if path.name == "nats-server.conf":
            assert [one for one in ADVISORIES if one not in heading] == []
        else:
            assert "nats-server.conf says why" in heading


def test_every_image_of_a_hub_is_a_safe_one() -> None:
    files = [*ROOT.glob("docker-compose*.yml"), *(ROOT / "deploy").glob("*.yml")]
    images = [
        found
        for path in files
        for found in re.findall(r"image: nats:(\S+)", path.read_text("utf-8"))
    ]
    assert images
    for image in images:
        numbers = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)-alpine", image)
        assert numbers and tuple(map(int, numbers.groups())) >= aggregator.SAFE_SERVER, image
