"""NODE_TIMEZONE=auto over a change of summer time, and machines without zone files."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from support import ROOT
from support.engine import Node
from support.machine import wait_for
from support.node_words import header
from support.programs import Program

import tbmon
from tbmon import Zone

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = int(datetime(2026, 3, 29, 1, tzinfo=UTC).timestamp())  # Berlin: from +01:00 to +02:00
WEEK_S, MONTH_S, YEAR_S = 7 * 86400, 30 * 86400, 365 * 86400


def ahead_s(at: int, rules: ZoneInfo = BERLIN) -> int:
    offset = datetime.fromtimestamp(at, rules).utcoffset()
    assert offset is not None
    return int(offset.total_seconds())


def hear(zone: Zone, since: int, until: int, rules: ZoneInfo = BERLIN) -> Zone:
    """Headers every ten minutes, with the engine's stamps, of a node that lives by these rules."""
    for at in range(since, until, 600):
        zone.learn(at + ahead_s(at, rules), at * 1000)
    return zone


def off_s(zone: Zone, at: int, rules: ZoneInfo = BERLIN) -> int:
    """How wrong a stamp of that moment is read that comes without the engine's."""
    return zone.utc_ms(at + ahead_s(at, rules)) // 1000 - at


def test_a_zone_that_fits_both_offsets_gives_the_history() -> None:
    zone = hear(Zone("auto", machine="Europe/Berlin"), SPRING - WEEK_S, SPRING + WEEK_S)
    assert [off_s(zone, SPRING + months * MONTH_S + WEEK_S) for months in range(-24, 24)] == [
        0
    ] * 48
    assert "UTC+02:00, as in Europe/Berlin" in zone.words()


@pytest.mark.parametrize("side", [-1, 1])
def test_a_zone_that_fits_the_only_offset_gives_it_probably(side: int) -> None:
    since = SPRING + side * 2 * WEEK_S
    zone = hear(Zone("auto", machine="Europe/Berlin"), since, since + WEEK_S)
    assert [off_s(zone, SPRING + months * MONTH_S + WEEK_S) for months in range(-24, 24)] == [
        0
    ] * 48
    assert "probably as in Europe/Berlin" in zone.words()


def test_a_change_that_was_heard_is_known_of_any_zone() -> None:
    zone = hear(Zone("auto", machine="Asia/Tokyo"), SPRING - WEEK_S, SPRING + WEEK_S)
    heard = range(SPRING - WEEK_S, SPRING + WEEK_S, 3600)
    assert {off_s(zone, at) for at in heard if abs(at - SPRING) > 7200} == {0}
    assert "may be an hour off" in zone.words() and "Tokyo" not in zone.words()


@pytest.mark.parametrize("machine", [None, "Asia/Tokyo", "Africa/Lagos", "UTC"])
def test_where_no_zone_is_known_the_history_may_be_an_hour_off_and_that_is_said(
    machine: str | None,
) -> None:
    zone = hear(Zone("auto", machine=machine), SPRING + WEEK_S, SPRING + 2 * WEEK_S)
    assert off_s(zone, SPRING + 3 * WEEK_S) == 0
    assert off_s(zone, SPRING - WEEK_S) == -3600
    assert "may be an hour off, unless NODE_TIMEZONE" in zone.words()


def test_a_node_on_utc_has_no_summer_time_of_a_machine_in_london() -> None:
    london = Zone("auto", machine="Europe/London")
    hear(london, SPRING - 2 * WEEK_S, SPRING - WEEK_S, ZoneInfo("UTC"))
    assert off_s(london, SPRING + 10 * WEEK_S, ZoneInfo("UTC")) == 0
    hear(london, SPRING - WEEK_S, SPRING + WEEK_S, ZoneInfo("UTC"))
    assert off_s(london, SPRING + 10 * WEEK_S, ZoneInfo("UTC")) == 0
    both = hear(
        Zone("auto", machine="Europe/London"),
        SPRING - WEEK_S,
        SPRING + WEEK_S,
        ZoneInfo("Europe/London"),
    )
    assert off_s(both, SPRING - YEAR_S // 2, ZoneInfo("Europe/London")) == 0
    assert "as in Europe/London" in both.words()


def test_a_zone_that_fits_no_more_is_let_go() -> None:
    """A node in Lagos on a machine in Berlin: alike in winter, and seen to differ in spring."""
    zone, lagos = Zone("auto", machine="Europe/Berlin"), ZoneInfo("Africa/Lagos")
    hear(zone, SPRING - WEEK_S, SPRING - 3600, lagos)
    assert "probably as in Europe/Berlin" in zone.words()
    hear(zone, SPRING - 3600, SPRING + 7200, lagos)
    assert off_s(zone, SPRING - YEAR_S // 2, lagos) == 0
    assert "may be an hour off" in zone.words()


def test_the_first_lines_after_a_change_have_their_time_where_the_zone_is_known() -> None:
    known = hear(Zone("auto", machine="Europe/Berlin"), SPRING - WEEK_S, SPRING)
    unknown = hear(Zone("auto"), SPRING - WEEK_S, SPRING)
    stamp, near_ms = SPRING + 1 + 7200, (SPRING + 1) * 1000
    assert known.utc_ms(stamp, near_ms) == near_ms
    assert (
        unknown.utc_ms(stamp, near_ms) == near_ms + 3_600_000
    )  # suspect: its marks are the engine's
    lagos = stamp - 3600  # no summer time after all
    assert known.utc_ms(lagos, near_ms) == near_ms


def test_a_header_written_before_and_stamped_after_the_change_fits() -> None:
    zone = hear(Zone("auto", machine="Europe/Berlin"), SPRING - WEEK_S, SPRING)
    zone.learn(SPRING - 1 + 3600, SPRING * 1000 + 300)
    hear(zone, SPRING + 1, SPRING + WEEK_S)
    assert "UTC+02:00, as in Europe/Berlin" in zone.words()


def test_only_the_newest_changes_are_kept() -> None:
    zone = Zone("auto")
    for number in range(20):
        since = SPRING + number * 7200
        for at in range(since, since + 3600, 60):
            zone.learn(at + 3600 * (1 + number % 2), at * 1000)
    assert len(zone.heard) == Zone.HEARD and zone.heard[-1].offset_s == zone.offset_s == 7200


# With the parts around it


def two_winters(folder: Path) -> list[int]:
    """Log files of a node in Berlin, over two years up to a month ago; when each line was said."""
    begin = int(time.time()) // 86400 * 86400 + 43200 - 2 * YEAR_S  # noon: no clock changes
    times = [begin + days * 86400 for days in range(0, 690, 10)]
    lines = [header(f"day {at}", at + ahead_s(at)) for at in times]
    folder.mkdir()
    (folder / "worker-2026-01-01.log").write_text("\n".join(lines) + "\n")
    return times


@pytest.mark.parametrize("machine", ["Europe/Berlin", "Asia/Tokyo"])
def test_history_is_read_by_the_zone_that_the_engine_and_the_machine_agree_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, machine: str
) -> None:
    monkeypatch.setenv("TZ", machine)
    times = two_winters(tmp_path / "logs")
    store = tbmon.Store(tmp_path / "t.db", b"k" * 32)
    config = tbmon.Config(log_retention_days=36500)
    monitor = tbmon.Monitor(config, store, tbmon.Redactor(b"k" * 32), None, threading.Event())
    container = tbmon.Container(
        "a1" * 32, "n", "running", True, None, None, "x", 0, False, "json-file"
    )
    now = int(time.time())
    feed = tbmon.EngineFeed(monitor, container)
    stamp = f"{tbmon.second_text(now).replace(' ', 'T')}.000000001Z".encode()
    feed.take_lines([(1, stamp, header("Starting services", now + ahead_s(now)).encode())])
    feed.caught_up()

    recorder = tbmon.Recorder(monitor, tbmon.FILES, live=False)
    files = tbmon.LocalFiles(tmp_path / "logs")
    for name in files.listed():
        for _ in tbmon.LogFileReader(recorder, files).read(name):
            pass
    found = {
        int(row["message"].split()[-1]): row["at"] // 1000
        for row in store.entries({}, 0, 2**41, None, 1000)
        if row["message"].startswith("day")
    }
    off = {at: found[at] - at for at in times}
    same = {at for at in times if ahead_s(at) == ahead_s(now)}
    is_known = machine == "Europe/Berlin"
    assert {off[at] for at in same} == {0}
    assert {off[at] == 0 for at in times if at not in same} == {is_known}
    assert ("probably as in Europe/Berlin" if is_known else "hour off") in recorder.zone.words()
    store.close()


def said_by(one: Program, words: str) -> str:
    done = subprocess.run(
        (sys.executable, "-m", "tbmon", "doctor"), env=one.env, capture_output=True, text=True
    )
    found = re.search(f"^OK   (.*{words}.*)$", done.stdout, re.M)
    return found[1] if found else ""


@pytest.mark.parametrize(
    ("zone", "machine", "said"),
    [
        ("Asia/Kathmandu", "Asia/Kathmandu", r"UTC\+05:45, probably as in Asia/Kathmandu"),
        ("Asia/Kathmandu", "Europe/Berlin", r"UTC\+05:45; if .* may be an hour off"),
        ("UTC", "UTC", r"UTC\+00:00; .* may be an hour off"),
    ],
)
def test_doctor_says_how_sure_the_times_of_log_files_are(
    node: Node, program: Callable[..., Program], zone: str, machine: str, said: str
) -> None:
    node.run()
    now = int(time.time())
    node.say(header("Starting services", now + ahead_s(now, ZoneInfo(zone))))
    one = program(CONTAINER_NAME=node.name, TZ=machine)
    wait_for(lambda: said_by(one, said))
    one.env["NODE_TIMEZONE"] = "UTC"
    assert said_by(one, "node's clock") == ""


def test_doctor_says_that_nothing_tells_the_zone_of_a_folder(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    two_winters(tmp_path / "logs")
    one = program(LOG_DIR=str(tmp_path / "logs"), TZ="Europe/Berlin")
    assert said_by(one, "their times count as UTC")
    one.env["NODE_TIMEZONE"] = "Europe/Berlin"
    assert said_by(one, "their times count as UTC") == ""


# Machines without zone files


def without_zones(code: str, **env: str) -> subprocess.CompletedProcess[str]:
    hide = "import sys; sys.modules['tzdata'] = None; import tbmon; "
    given = {"PATH": os.environ["PATH"], "PYTHONTZPATH": "", "PYTHONPATH": str(ROOT), **env}
    return subprocess.run(
        (sys.executable, "-c", hide + code), env=given, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["auto", "UTC", "GMT", "Etc/UTC"])
def test_utc_needs_no_zone_files(name: str) -> None:
    read = f"tbmon.read_config({{'NODE_TIMEZONE': {name!r}}}).node_timezone"
    done = without_zones(f"print(tbmon.Zone({read}).utc_ms(1763985600))")
    assert (done.stdout, done.stderr) == ("1763985600000\n", "")


@pytest.mark.parametrize("name", ["Europe/Berlin", "Mars/Olympus"])
def test_other_zones_need_them_and_that_is_said(name: str) -> None:
    done = without_zones("sys.exit(tbmon.main(['doctor']))", NODE_TIMEZONE=name)
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "NODE_TIMEZONE" in done.stderr
    assert "zone files are missing: install tzdata" in done.stderr


def test_an_unknown_zone_is_told_from_missing_files() -> None:
    with pytest.raises(ValueError, match="a zone like Europe/Berlin"):
        tbmon.check_zone("Mars/Olympus")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("Europe/Berlin", "Europe/Berlin"),
        (":Europe/Berlin", "Europe/Berlin"),
        ("UTC", "UTC"),
        ("CET-1CEST,M3.5.0,M10.5.0/3", None),
        ("", None),
        ("Mars/Olympus", None),
        ("../../etc/passwd", None),
    ],
)
def test_the_machines_zone_is_taken_from_its_setting(given: str, name: str | None) -> None:
    assert tbmon.machine_zone({"TZ": given}) == name


def test_the_machines_zone_is_else_that_of_its_clock() -> None:
    link = os.path.realpath("/etc/localtime")
    name = tbmon.machine_zone({})
    assert name is None or link.endswith(f"/zoneinfo/{name}")
