"""What the verdict says is true of the node, and since when; and uptime."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node, docker
from support.machine import wait_for
from support.node_words import WALLET, header
from support.programs import Program, Watch

import tbmon
from tbmon import DAY_MS, HOUR_MS, MINUTE_MS, Judged, Runs, Symptoms, Verdict, judge_node

NOW = 1_795_980_000_000  # 29 November 2026, 19:20 UTC
FIRST, SECOND = (f"{number}f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in (8, 9))


class Looked(Watch):
    """A monitor whose looks the test makes, by a clock that it sets; ingest goes on by itself."""

    ahead_s = 0.0

    def start(self) -> Looked:
        self.store = tbmon.Store(Path(self.config.db_path), self.key)
        engine = None if self.config.log_dir else tbmon.DockerEngine(self.config)
        self.monitor = tbmon.Monitor(
            self.config,
            self.store,
            tbmon.Redactor(self.key),
            engine,
            threading.Event(),
            clock=lambda: time.time() + self.ahead_s,
            retry_min_s=0.02,
        )
        self.threads.append(tbmon.start_thread(self.monitor, "ingest", tbmon.ingest, self.failures))
        return self

    def look(self) -> Verdict:
        if self.monitor.engine is not None:
            tbmon.sample_container(self.monitor, self.monitor.engine, with_stats=False)
        tbmon.set_verdict(self.monitor)
        assert self.monitor.verdict is not None
        return self.monitor.verdict

    def wait_for(self, state: str, words: str = "") -> Verdict:
        """The verdict when it is `state`, not remembered, for a reason with `words`."""

        def found() -> Verdict | None:
            seen = self.look()
            is_it = seen.state == state and words in seen.reason and seen.as_of is None
            return seen if is_it else None

        try:
            verdict: Verdict = wait_for(found)
        except AssertionError:
            raise AssertionError(self.look()) from None
        return verdict

    def note(self) -> dict[str, Any]:
        """Keep this minute, as upkeep does, and tell the uptime."""
        minute = self.monitor.now() // MINUTE_MS * MINUTE_MS
        assert tbmon.note_minute(self.monitor, minute)
        tbmon.fill_missed(self.monitor, minute)
        return tbmon.uptime_json(self.store, self.monitor.now())

    def __enter__(self) -> Looked:
        return self.start()

    def again(self) -> Looked:
        self.stop()
        return self.start()


@pytest.fixture
def looked(node: Node, tmp_path: Path) -> Iterator[Looked]:
    """A monitor of the node's container."""
    made = Looked(tmp_path / "data", node.name)
    yield made
    if made.threads:
        made.stop()


@pytest.fixture
def filed(tmp_path: Path) -> Iterator[Looked]:
    """A monitor of log files."""
    (tmp_path / "logs").mkdir()
    made = Looked(tmp_path / "data", log_dir=str(tmp_path / "logs"))
    yield made
    if made.threads:
        made.stop()


def write(filed: Looked, *lines: str) -> None:
    with (Path(filed.config.log_dir) / "a.log").open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def task(name: str, at: float) -> str:
    body = {"type": "task_created", "executionId": name, "timestamp": int(at * 1000)}
    return header("Message received from task_created: " + json.dumps(body), at)


def inspected(name: str, path: str) -> Any:
    return tbmon.part(json.loads(docker("inspect", name))[0], *path.split("."))


# Since when


def test_down_is_since_the_containers_end_and_outlives_tbmon(node: Node, looked: Looked) -> None:
    node.run()
    looked.start()
    node.say(header("Heartbeat sent"))
    looked.wait_for("idle", "flowing")
    looked.stop()
    docker("stop", "-t", "0", node.name)
    ended = tbmon.parse_time(inspected(node.name, "State.FinishedAt"))
    assert ended is not None
    looked.ahead_s = 3 * 3600
    with looked:
        down = looked.wait_for("down")
        assert down.since == ended
        words = tbmon.moment_words(ended, looked.monitor.now())
        assert down.reason == f"the container has exited: exit code 137, on {words}"
        assert looked.note()["longest_outage_min"] in (179, 180, 181)  # the end was not watched
        looked.again()
        assert looked.monitor.verdict == down._replace(as_of=looked.monitor.judged.at)  # type: ignore[union-attr]
        docker("rm", "-f", node.name)
        assert looked.wait_for("down", "is missing").since == ended  # it was down all the time


def test_a_container_that_is_missing_is_so_since_it_was_first_missed(
    node: Node, looked: Looked
) -> None:
    node.run()
    looked.start()
    node.say(header("Heartbeat sent"))
    looked.wait_for("idle", "flowing")
    node.remove()
    before = looked.monitor.now()
    down = looked.wait_for("down", f"the container is missing: no container {node.name} at unix://")
    assert before <= (down.since or 0) <= looked.monitor.now()
    looked.ahead_s = 7200
    looked.again()
    assert looked.wait_for("down").since == down.since


def test_silence_is_since_the_last_line_and_an_outage_from_it_on(
    node: Node, looked: Looked
) -> None:
    node.run()
    looked.start()
    node.say(header("Heartbeat sent"))
    looked.wait_for("idle", "flowing")
    for minute in range(9):  # watched, and taken for up
        looked.ahead_s = minute * 60
        looked.look()
        assert looked.note()["outages"] == 0
    looked.ahead_s = 39 * 60
    silent = looked.wait_for("degraded", "no log line since")
    last = looked.store.node()["last_seen"]
    assert (silent.since, silent.cause) == (last, "silent")
    uptime = looked.note()
    assert (uptime["outages"], uptime["percent_24h"]) == (1, None)
    assert uptime["longest_outage_min"] in (38, 39, 40)
    assert uptime["up_24h_min"] <= 2
    looked.ahead_s = 49 * 60
    assert looked.again().wait_for("degraded").since == last


def test_idle_is_since_the_last_tasks_end_and_outlives_tbmon(filed: Looked) -> None:
    now = time.time()
    write(
        filed,
        task(FIRST, now - 40 * 3600),
        header(f"Execution {FIRST} completed", now - 40 * 3600 + 9),
        header("Heartbeat sent", now),
    )
    filed.start()
    ended = int(now - 40 * 3600 + 9) * 1000
    assert filed.wait_for("idle").since == ended
    assert filed.again().wait_for("idle").since == ended


def test_failing_is_since_the_first_failure_and_working_since_it_ended(filed: Looked) -> None:
    now = time.time()
    names = [f"{number}f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(5)]
    for place, name in enumerate(names):
        at = now - 5000 + 600 * place
        word = "completed" if place == 0 else "failed: gas limit exceeded"
        write(filed, task(name, at), header(f"Execution {name} {word}", at + 60))
    write(filed, header("Heartbeat sent", now))
    filed.start()
    failing = filed.wait_for("degraded", "the last three tasks failed")
    assert failing.since == int(now - 5000 + 660) * 1000
    assert filed.again().wait_for("degraded").since == failing.since
    filed.ahead_s = 100
    healed = filed.monitor.now()
    write(filed, task(SECOND, now + 90), header(f"Execution {SECOND} completed", now + 99))
    write(filed, *(task(name[:-1] + "d", now + 90) for name in names[:1]))
    write(filed, header(f"Execution {names[0][:-1]}d completed", now + 99))
    wait_for(lambda: filed.task(SECOND) and filed.task(SECOND).status == "completed")
    with filed.store.write() as db:  # so that the share of failures is none either
        rows = [filed.task(name)._replace(received_at=1, status="lost") for name in names[1:]]
        filed.store.save_tasks(db, rows)
    working = filed.wait_for("working")
    assert healed <= (working.since or 0) <= filed.monitor.now()
    filed.ahead_s = 400
    write(filed, header("Heartbeat sent", now + 390))
    assert filed.again().wait_for("working").since == working.since


def test_working_is_since_the_containers_start(node: Node, looked: Looked) -> None:
    node.run()
    looked.start()
    node.say(task(FIRST, time.time()))
    working = looked.wait_for("working")
    assert working.since == tbmon.parse_time(inspected(node.name, "State.StartedAt"))


def test_blind_is_since_the_last_good_look_and_says_what_was_looked_for_and_where(
    node: Node, tmp_path: Path
) -> None:
    link = tmp_path / "engine.sock"
    link.symlink_to("/var/run/docker.sock")
    looked = Looked(tmp_path / "data", node.name, docker_host=f"unix://{link}")
    node.run()
    with looked:
        node.say(header("Heartbeat sent"))
        looked.wait_for("idle", "flowing")
        last = looked.monitor.judged.looked_at  # type: ignore[union-attr]
        link.unlink()
        looked.monitor.engine.client = None  # type: ignore[union-attr]
        looked.ahead_s = 600
        blind = looked.wait_for("blind", "does not answer")
        assert (blind.since, f"unix://{link}" in blind.reason) == (last, True)
        assert f"container {node.name}" in blind.reason
        looked.ahead_s = 7200
        assert looked.again().wait_for("blind", "does not answer").since == last


def test_blind_names_the_folder_and_the_container(tmp_path: Path, engine: None) -> None:
    (tmp_path / "empty").mkdir()
    for folder, words in (("none", "cannot be read"), ("empty", "none of the node's log files")):
        with Looked(tmp_path / f"data {folder}", log_dir=str(tmp_path / folder)) as looked:
            assert f"LOG_DIR={tmp_path / folder}" in looked.wait_for("blind", words).reason
    with Looked(tmp_path / "data", "tbmon-test-none") as looked:
        blind = looked.wait_for("blind", "no container tbmon-test-none has been seen yet")
        assert "at unix:///var/run/docker.sock" in blind.reason


def test_since_is_never_in_the_future(node: Node, looked: Looked) -> None:
    node.run(script="exit 3")
    looked.ahead_s = 3600
    looked.start()
    first = looked.wait_for("down", "exit code 3")
    looked.ahead_s = -7200  # before the container's end
    down = looked.look()
    assert (down.state, down.since) == ("down", looked.monitor.judged.since)  # type: ignore[union-attr]
    assert (down.since or 0) <= looked.monitor.now() < (first.since or 0)
    assert looked.look().since == down.since  # and stays


BEFORE = Judged("down", "loop", "", "", NOW - 500, NOW - 10, NOW - 10, None)


@pytest.mark.parametrize(
    ("known", "cause", "before", "since"),
    [
        (None, "missing", None, NOW),
        (None, "missing", BEFORE, NOW - 500),
        (None, "missing", replace(BEFORE, since=NOW + 5), NOW),
        (None, "missing", replace(BEFORE, state="idle"), NOW),
        (NOW - 900, "ended", BEFORE, NOW - 900),
        (NOW - 100, "ended", BEFORE, NOW - 100),
        (NOW + 1, "ended", BEFORE, NOW - 500),
        (NOW + 1, "ended", None, NOW),
        (NOW - 100, "loop", BEFORE, NOW - 500),  # its first ends are older than is kept
    ],
)
def test_evidence_goes_before_what_was_known(
    known: int | None, cause: str, before: Judged | None, since: int
) -> None:
    verdict = Verdict("down", "", "", cause, known)
    assert tbmon.since_when(verdict, before, NOW) == since


# Before the first look


def test_what_was_known_is_shown_until_the_first_look(
    program: Callable[..., Program], tmp_path: Path
) -> None:
    one = program(LOG_DIR=str(tmp_path / "logs"))
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "a.log").write_text(header("Heartbeat sent") + "\n")
    one.start()
    known = wait_for(
        lambda: (
            found
            if (found := one.get("/api/status")[1]["verdict"] or {}).get("state") == "idle"
            else None
        )
    )
    assert (known["remembered"], known["as_of"]) == (False, None)
    assert one.end() == 0
    code = "import sys, tbmon; tbmon.ingest = lambda monitor: monitor.stop.wait(); "
    words = (sys.executable, "-c", code + "sys.exit(tbmon.main(['serve']))")
    with one.log.open("ab") as log:  # a tbmon that never gets to look
        one.process = subprocess.Popen(words, env=one.env, cwd=one.folder, stdout=log, stderr=log)
    wait_for(one.answers)
    seen = one.get("/api/status")[1]
    shown = seen["verdict"]
    assert {name: shown[name] for name in ("state", "since", "reason")} == {
        name: known[name] for name in ("state", "since", "reason")
    }
    assert shown["remembered"] and known["since"] <= shown["as_of"] <= seen["timestamp"]
    assert "before tbmon was started" in one.get("/")[1]
    assert one.end() == 0


def test_reading_on_before_the_first_look_does_not_make_it_forget(filed: Looked) -> None:
    write(filed, header("Heartbeat sent"))
    filed.start()
    known = filed.wait_for("idle", "flowing")
    filed.stop()
    store = tbmon.Store(Path(filed.config.db_path), filed.key)
    monitor = tbmon.Monitor(filed.config, store, tbmon.Redactor(filed.key), None, threading.Event())
    shown = monitor.verdict
    assert shown is not None and shown.since == known.since and shown.as_of is not None
    tbmon.set_verdict(monitor)
    assert monitor.verdict == shown
    monitor.lag_ms = 5 * HOUR_MS
    tbmon.set_verdict(monitor)
    assert monitor.verdict is not None and monitor.verdict.state == "blind"
    assert monitor.verdict.reason.startswith("reading the node's history: ")
    monitor.lag_ms = 0
    tbmon.set_verdict(monitor)
    assert monitor.verdict == shown
    store.close()


def test_nothing_known_is_said_to_be_nothing(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    watch = Looked(tmp_path / "data", log_dir=str(tmp_path / "logs"))
    store = tbmon.Store(Path(watch.config.db_path), watch.key)
    stop = threading.Event()
    monitor = tbmon.Monitor(watch.config, store, tbmon.Redactor(watch.key), None, stop)
    tbmon.set_verdict(monitor)
    verdict = monitor.verdict
    assert verdict is not None and (verdict.state, verdict.as_of) == ("blind", None)
    assert verdict.reason == "tbmon has just started and has not looked yet"
    assert store.first("state", "verdict") is None  # that is no state of the node
    store.close()


@pytest.mark.parametrize("kept", ["", "{}", '{"state": "idle", "since": 5}', "[]", "nonsense"])
def test_a_row_of_another_version_is_no_verdict(tmp_path: Path, kept: str) -> None:
    watch = Looked(tmp_path / "data", log_dir=str(tmp_path))
    store = tbmon.Store(Path(watch.config.db_path), watch.key)
    with store.write() as db:
        store.put(db, "state", [("verdict", kept), ("runs", kept)])
    stop = threading.Event()
    monitor = tbmon.Monitor(watch.config, store, tbmon.Redactor(watch.key), None, stop)
    assert (monitor.verdict, monitor.runs) == (None, Runs())
    store.close()


# Starting, and reading the history


def test_a_node_that_has_just_started_is_not_blamed_for_its_silence(
    node: Node, looked: Looked
) -> None:
    node.run()
    looked.start()
    starting = looked.wait_for("idle", "started less than a minute ago, its first line is awaited")
    started_at = tbmon.parse_time(inspected(node.name, "State.StartedAt"))
    assert starting.since == started_at
    looked.ahead_s = 125
    assert looked.look().reason == "started 2 min ago, its first line is awaited"
    looked.ahead_s = 601
    silent = looked.look()
    assert (silent.state, silent.since) == ("degraded", started_at)
    assert silent.reason.startswith("no log line since its start on ")
    looked.ahead_s = 0
    node.say(header("Starting services"))
    looked.wait_for("idle", "flowing")
    looked.ahead_s = 3600
    looked.wait_for("degraded", "no log line")
    looked.ahead_s = 0
    said_at = looked.store.node()["last_seen"]
    wait_for(lambda: looked.monitor.now() >= said_at + 1000)  # its stamp has no fraction
    docker("restart", "-t", "0", node.name)
    looked.wait_for("idle", "its first line is awaited")  # its operator did what was advised


def test_reading_the_history_is_told_by_its_day_and_its_share() -> None:
    reading = tbmon.Reading(tbmon.parse_time("2026-04-12T10:00:00Z"), 0.4567)
    assert tbmon.reading_words(reading, NOW) == "reading the node's history: 12 April, 45 %"
    for given, words in (
        (reading._replace(share=None), "reading the node's history: 12 April"),
        (reading._replace(at=None), "reading the node's history: 45 %"),
        (tbmon.Reading(), "reading the node's history"),
        (reading._replace(at=reading.at and reading.at - 365 * DAY_MS), ": 12 April 2025, 45 %"),
        (tbmon.Reading(NOW - 7 * MINUTE_MS), "still reading the log of 7 min ago"),
    ):
        assert tbmon.reading_words(given, NOW).endswith(words)


def old_lines(days: int, number: int) -> str:
    first = time.time() - days * 86400
    return "".join(header(f"Heartbeat sent {n}", first + n) + "\n" for n in range(number))


def told_while_reading(looked: Looked) -> list[str]:
    """The reasons that were given until the node was idle; none of them was another state."""
    told: list[str] = []

    def is_idle() -> bool:
        verdict = looked.look()
        assert verdict.state in ("blind", "idle")
        told.extend([verdict.reason] if verdict.state == "blind" else [])
        return verdict.state == "idle"

    wait_for(is_idle, 60)
    return told


def test_while_files_are_read_there_is_no_verdict(filed: Looked) -> None:
    write(filed, old_lines(9, 60_000), header("Heartbeat sent"))
    filed.start()
    day = tbmon.day_words(filed.monitor.now() - 9 * DAY_MS, filed.monitor.now())
    shares = [
        int(found[1])
        for reason in told_while_reading(filed)
        if (found := re.fullmatch(rf"reading the node's history: {day}, (\d+) %", reason))
    ]
    assert len(set(shares)) >= 2 and shares == sorted(shares) and shares[-1] < 100


def test_while_the_containers_files_are_read_there_is_no_verdict(
    node: Node, looked: Looked
) -> None:
    folder = f"/app/logs/@truebit/worker-runner-node-{WALLET}/debug"
    node.run()
    node.put(f"{folder}/worker-2026-01-01.log", old_lines(9, 60_000).encode())
    node.say(header("Heartbeat sent"))
    looked.start()
    told = told_while_reading(looked)
    assert any(re.fullmatch(r"reading the node's history: .*, \d+ %", reason) for reason in told)
    looked.again()
    assert looked.monitor.verdict is not None and looked.monitor.verdict.as_of is not None
    wait_for(lambda: looked.look().as_of is None)  # the second time it is known
    assert looked.look().state == "idle"


# How it is down, and unhealthy


def test_down_tells_that_the_memory_ran_out(node: Node, looked: Looked) -> None:
    hungry = "x=xxxxxxxx; while :; do x=$x$x; done"
    for _ in range(5):  # a busy engine may miss why it ended
        node.remove()
        node.run("--memory", "6m", script=hungry)
        wait_for(lambda: inspected(node.name, "State.Status") == "exited")
        if inspected(node.name, "State.OOMKilled"):
            break
    looked.start()
    down = looked.wait_for("down", "has exited: exit code 137, out of memory, on ")
    assert down.since == tbmon.parse_time(inspected(node.name, "State.FinishedAt"))


def test_a_container_that_keeps_ending_is_one_state(node: Node, tmp_path: Path) -> None:
    node.run("--restart", "always", script="sleep 0.3; exit 7")
    with Watch(tmp_path / "data", node.name) as watch:
        wait_for(lambda: "keeps ending" in getattr(watch.monitor.verdict, "reason", ""), 60)
        begun = getattr(watch.monitor.verdict, "since", None)
        seen: set[tuple[str, int | None]] = set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            verdict = watch.monitor.newest_verdict()
            assert verdict is not None
            seen.add((verdict.state, verdict.since))
            watch.monitor.stop.wait(0.05)
        assert seen == {("down", begun)}
        found = re.fullmatch(
            r"it keeps ending: (\d+) starts in 10 minutes, last exit code 7",
            watch.monitor.verdict.reason,  # type: ignore[union-attr]
        )
        restarts = inspected(node.name, "RestartCount")
        assert found and restarts - 1 <= int(found[1]) <= restarts + 1


def test_a_container_has_to_run_for_a_minute_to_be_well_again(node: Node, looked: Looked) -> None:
    node.run()
    looked.start()
    looked.look()
    for _ in range(3):
        assert looked.look().cause != "loop"
        docker("restart", "-t", "0", node.name)
    node.say(header("Heartbeat sent"))
    looked.wait_for("down", "it keeps ending: 4 starts in 10 minutes")
    looked.ahead_s = 57
    assert looked.look().cause == "loop"
    looked.again()
    assert looked.wait_for("down").cause == "loop"  # it is kept
    looked.ahead_s = 65
    looked.wait_for("idle")


def test_restarts_between_two_looks_are_told_by_the_engines_count() -> None:
    answer = {
        "Id": "a" * 64,
        "RestartCount": 5,
        "State": {
            "Status": "restarting",
            "Running": True,
            "ExitCode": 7,
            "StartedAt": tbmon.utc(NOW - 2000),
            "FinishedAt": tbmon.utc(NOW - 1000),
        },
    }
    container = tbmon.read_container(answer)
    first = tbmon.follow_runs(Runs(), container, NOW)
    assert (first.starts, first.ends, first.exit_code) == ([NOW - 2000], [NOW - 1000], 7)
    later = container._replace(
        restart_count=9, started_at=NOW, finished_at=NOW + 500, state="running", exit_code=0
    )
    after = tbmon.follow_runs(first, later, NOW + 1000)
    assert (len(after.starts), len(after.ends), after.exit_code) == (5, 5, 7)
    made = container._replace(created=NOW - 5000)
    assert len(tbmon.follow_runs(Runs(), made, NOW).ends) == 5  # all of them since then
    old = tbmon.follow_runs(after, later, NOW + 11 * MINUTE_MS)
    assert (old.starts, old.ends) == ([], [])
    other = container._replace(id="b" * 64, restart_count=0, finished_at=NOW - DAY_MS)
    assert tbmon.follow_runs(first, other, NOW).ends == first.ends  # its end is long ago
    before = replace(first, looked_at=NOW - HOUR_MS)
    assert len(tbmon.follow_runs(before, later, NOW + 1000).ends) == 2  # when, nobody knows


def test_paused_is_down_and_goes_before_unhealthy(node: Node, looked: Looked) -> None:
    check = ("--health-cmd", f"printf '\\n\\033[31mno pulse\\033[0m of {WALLET}\\nmore\\n'; exit 1")
    node.run(*check, "--health-interval", "1s", "--health-retries", "2")
    node.say(header("Heartbeat sent"))
    looked.start()
    words = "Docker's own check finds it unhealthy: no pulse of wallet:"
    unhealthy = looked.wait_for("degraded", words)
    assert WALLET[2:] not in unhealthy.reason and "more" not in unhealthy.reason
    assert "\x1b" not in unhealthy.reason and len(unhealthy.reason) < 200
    started_at = tbmon.parse_time(inspected(node.name, "State.StartedAt")) or 0
    assert started_at < (unhealthy.since or 0) < started_at + 10_000
    docker("pause", node.name)
    assert looked.wait_for("down").reason == "the container is paused"
    docker("unpause", node.name)
    looked.wait_for("degraded", words)


def test_what_a_check_prints_is_bounded_and_never_half_a_wallet(tmp_path: Path) -> None:
    watch = Looked(tmp_path / "data", log_dir=str(tmp_path))
    store = tbmon.Store(Path(watch.config.db_path), watch.key)
    redactor = tbmon.Redactor(watch.key)
    monitor = tbmon.Monitor(watch.config, store, redactor, None, threading.Event())
    for length in range(60, 140):
        shown = tbmon.check_words(monitor, "x" * length + " " + WALLET * 50)
        assert len(shown) <= 120 and "0x" not in shown and WALLET[2:10] not in shown
    assert tbmon.check_words(monitor, "\n \n") == ""
    store.close()


# Uptime


def test_minutes_that_were_missed_are_filled_from_the_log(filed: Looked) -> None:
    now = time.time()
    pulses = [now - 60 * minute for minute in range(180, -1, -2) if not 60 < minute < 100]
    write(filed, *(header("Heartbeat sent", at) for at in pulses))
    filed.start()
    filed.wait_for("idle", "flowing")
    uptime = filed.note()
    assert uptime["outages"] == 0
    assert uptime["up_24h_min"] == uptime["watched_24h_min"]
    assert 180 - 42 <= uptime["up_24h_min"] <= 181 - 38  # 40 minutes without a line are not known
    assert (uptime["percent_24h"], uptime["percent_7d"]) == (
        100.0 if uptime["watched_24h_min"] >= 144 else None,
        None,
    )


def test_what_was_watched_is_not_overwritten_by_what_the_log_tells(filed: Looked) -> None:
    now = time.time()
    write(filed, *(header("Heartbeat sent", now - 60 * minute) for minute in range(60, -1, -1)))
    filed.start()
    filed.wait_for("idle", "flowing")
    minute = filed.monitor.now() // MINUTE_MS * MINUTE_MS
    with filed.store.write() as db:
        filed.store.put(db, "sample", [(minute - 30 * MINUTE_MS, False, None, None)])
    uptime = filed.note()
    assert (uptime["outages"], uptime["longest_outage_min"]) == (1, 1)
    assert uptime["watched_24h_min"] >= 60


def test_a_share_is_said_only_of_what_was_watched_for_long_enough(tmp_path: Path) -> None:
    store = tbmon.Store(tmp_path / "t.db", b"k" * 32)
    for watched, percent in ((143, None), (144, 99.3)):
        with store.write() as db:
            rows = [(NOW - n * MINUTE_MS, n != 5, None, None) for n in range(watched)]
            store.put(db, "sample", rows)
        found = tbmon.uptime_json(store, NOW)
        assert (found["percent_24h"], found["percent_7d"]) == (percent, None)
        assert (found["up_30d_min"], found["watched_30d_min"]) == (watched - 1, watched)
    store.close()


# Names that the judge gives


def test_judging_needs_nothing_but_its_symptoms() -> None:
    assert judge_node(Symptoms(NOW)).cause == "silent"
    quiet = Symptoms(NOW, last_line_at=NOW - 39 * MINUTE_MS)
    assert judge_node(quiet).reason == "no log line since 29 November at 18:41 UTC"
