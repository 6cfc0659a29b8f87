"""What a real Docker Engine gives is stored once, whatever happens on the way."""

from __future__ import annotations

import gzip
import json
import random
import re
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from support.engine import LOG_FOLDER, Node, Proxy, docker
from support.machine import wait_for
from support.node_words import WALLET, created_record, header, invoice_record, line_item
from support.programs import Program, Watch

EVENT_DB = f"/app/build/datadb/{WALLET}-eventDB.json"


def odd_line(
    number: int, dice: random.Random, cut_letters: bool = False, tty: bool = False
) -> tuple[str, str, str]:
    """(stream, what is written, the message that must be stored): of many shapes.

    `cut_letters` lets the engine's border at 16 KiB lie within a letter, which its json-file driver
    itself damages; a `tty` mixes what two processes write at once, so there is one stream only.
    """
    kind = dice.choice(("plain",) * 6 + ("multi", "long", "letters", "stderr"))
    message, stream = f"line {number:06d}", "out"
    if kind == "multi":
        message += ': {\n  "a": 1,\n\n  "b": "}"\n}'
    if kind == "long":
        message += " " + "x" * 40_000 + "."
    if kind == "letters":
        even = len(header(message)) % 2 == 0
        message += " " + "y" * (even != cut_letters) + "ä" * 12_000
    if kind == "stderr" and not tty:
        stream = "err"
    return stream, header(message), message


@pytest.mark.parametrize("driver", ["json-file", "local"])
@pytest.mark.parametrize("options", [(), ("-t",)], ids=["frames", "tty"])
def test_every_shape_of_line_arrives_once(
    node: Node, watch: Watch, driver: str, options: tuple[str, ...]
) -> None:
    node.run("--log-driver", driver, *options)
    dice = random.Random(1)
    lines = [odd_line(number, dice, driver == "local", bool(options)) for number in range(400)]
    for stream, text, _ in lines[:200]:
        node.say(text, stream)
    watch.start()
    for stream, text, _ in lines[200:]:
        node.say(text, stream)
    wait_for(lambda: watch.count() >= len(lines))
    wait_for(lambda: Counter(watch.messages()) == Counter(message for _, _, message in lines))


def test_equal_lines_of_one_second_are_all_kept(node: Node, watch: Watch) -> None:
    node.run()
    now = time.time()
    for _ in range(3):
        node.say(header("Semaphore InvoiceSubscriber processing started - Using slot 1/4", now))
    watch.start()
    wait_for(lambda: watch.count() == 3)
    node.say(header("Semaphore InvoiceSubscriber processing started - Using slot 1/4", now))
    wait_for(lambda: watch.count() == 4)
    watch.stop()
    with watch:
        node.say(header("end", now))
        watch.wait_for_message("end")
        assert watch.count() == 5


def test_a_restarted_and_a_recreated_container_are_followed_on(node: Node, watch: Watch) -> None:
    node.run()
    watch.start()
    for number in range(3):
        node.say(header(f"before {number}"))
        watch.wait_for_message(f"before {number}")
        node.restart()
        node.say(header(f"after restart {number}"))
        watch.wait_for_message(f"after restart {number}")
        node.remove()
        wait_for(lambda: watch.monitor.container is None)
        node.run()
    node.say(header("the last"))
    watch.wait_for_message("the last")
    assert watch.count() == 7
    assert len(watch.store.read("SELECT * FROM start")) == 7


def test_the_last_words_of_a_dying_node_need_no_newline(node: Node, watch: Watch) -> None:
    node.run("-e", f"WORDS={header('the end')}", script='printf "%s" "$WORDS"; sleep 0.2; exit 3')
    watch.start()
    watch.wait_for_message("the end")
    wait_for(lambda: watch.monitor.verdict and watch.monitor.verdict.state == "down")


def test_a_connection_cut_at_random_bytes_loses_and_doubles_nothing(
    node: Node, tmp_path: Path
) -> None:
    dice = random.Random(4)
    proxy = Proxy(
        tmp_path / "proxy.sock", lambda: dice.choice((0, 7, 300, 900, dice.randrange(6000)))
    )
    node.run()
    watch = Watch(tmp_path / "data", node.name, docker_host=proxy.url)
    with watch:
        written: list[str] = []
        pause = threading.Event()
        while proxy.cuts < 210:
            message = f"line {len(written):06d}" + (": {\n  1\n}" if dice.random() < 0.2 else "")
            written.append(message)
            node.say(header(message), dice.choice(("out", "err")))
            pause.wait(0.004)  # the pace of a busy node; a cut needs something to cut
        proxy.cut_after = None
        node.say(header("the last"))
        watch.wait_for_message("the last")
        assert Counter(watch.messages()) == Counter([*written, "the last"])
    proxy.close()


def test_kill_9_at_any_moment_loses_and_doubles_nothing(
    node: Node, program: Callable[..., Program]
) -> None:
    node.run()
    tbmon = program(CONTAINER_NAME=node.name)
    dice = random.Random(9)
    written: list[str] = []
    for _ in range(8):
        tbmon.start()
        until = time.monotonic() + dice.uniform(0.05, 0.6)
        while time.monotonic() < until:
            stream, text, message = odd_line(len(written), dice)
            node.say(text, stream)
            written.append(message)
        tbmon.process.kill()
        tbmon.process.wait()
    tbmon.start()
    node.say(header("the last"))
    wait_for(lambda: tbmon.private("/api/logs?search=the+last")["logs"])
    assert tbmon.end() == 0
    db = sqlite3.connect(tbmon.env["DB_PATH"])
    stored = Counter(row[0] for row in db.execute("SELECT message FROM log"))
    assert db.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
    db.close()
    assert stored == Counter([*written, "the last"])


def test_only_get_and_head_on_listed_paths_reach_the_engine(node: Node, tmp_path: Path) -> None:
    proxy = Proxy(tmp_path / "proxy.sock")
    node.run()
    node.put(f"{LOG_FOLDER}/worker-2026-01-01.log", (header("from a file") + "\n").encode())
    node.put(EVENT_DB, b'{"records": []}')
    with Watch(tmp_path / "data", node.name, docker_host=proxy.url) as watch:
        node.say(header("one"))
        watch.wait_for_message("one")
        watch.wait_for_message("from a file")
        node.restart()
        node.say(header("two"))
        watch.wait_for_message("two")
        node.remove()
        wait_for(lambda: any("/containers/json?" in target for _, target in proxy.asked))
        node.run()
        node.say(header("three"))
        watch.wait_for_message("three")
        wait_for(lambda: watch.monitor.stats)
    proxy.close()
    assert {method for method, _ in proxy.asked} == {"GET", "HEAD"}
    paths = {re.sub(r"^/v[\d.]+", "", target.partition("?")[0]) for _, target in proxy.asked}
    container = f"/containers/{node.name}"
    assert paths == {
        "/version",
        "/containers/json",  # while the container was away
        *(f"{container}/{call}" for call in ("json", "logs", "archive", "stats")),
    }
    asked_files = {
        target.partition("path=")[2] for _, target in proxy.asked if "/archive" in target
    }
    assert all(
        name.startswith(("%2Fapp%2Flogs%2F", "%2Fapp%2Fbuild%2Fdatadb")) for name in asked_files
    )


def test_files_and_engine_meet_without_loss_or_duplicate(node: Node, watch: Watch) -> None:
    now = int(time.time())
    old = [header(f"old {number % 40}", now - 4000 + number // 3) for number in range(300)]
    both = [
        header(f"both {number % 20}: {{\n {number}\n}}", now - 100 + number // 4)
        for number in range(200)
    ]
    node.run()
    node.put(
        f"{LOG_FOLDER}/worker-2026-01-01.log.gz",
        gzip.compress("\n".join(old[:200]).encode() + b"\n"),
    )
    node.put(f"{LOG_FOLDER}/worker-2026-01-02.log", ("\n".join(old[200:] + both) + "\n").encode())
    for text in both[50:]:
        node.say(text)
    watch.start()
    wait_for(lambda: watch.count() >= 500)
    node.say(header("the last"))
    watch.wait_for_message("the last")
    said = [text.partition(f":{'1.120.0-beta.275'} ")[2] for text in old + both]
    assert Counter(watch.messages()) == Counter([*said, "the last"])
    watch.stop()
    with watch:  # a second start finds everything known
        node.say(header("again"))
        watch.wait_for_message("again")
        wait_for(lambda: watch.monitor.problem is None)
        assert watch.count() == 502


def test_an_archive_that_is_cut_is_fetched_again(node: Node, tmp_path: Path) -> None:
    dice = random.Random(5)
    proxy = Proxy(
        tmp_path / "proxy.sock", lambda: dice.choice((300, 700, 90_000)), call=b"/archive?"
    )
    lines = [header(f"old {number}", time.time() - 3000 + number / 10) for number in range(3000)]
    node.run()
    node.put(f"{LOG_FOLDER}/worker-2026-01-01.log", ("\n".join(lines) + "\n").encode())
    node.put(EVENT_DB, json.dumps({"records": [{"a": "x" * 1000}] * 300}).encode())
    with Watch(tmp_path / "data", node.name, docker_host=proxy.url) as watch:
        wait_for(lambda: proxy.cuts >= 6)
        node.say(header("still here"))
        watch.wait_for_message("still here")
        proxy.cut_after = None
    with watch:
        wait_for(lambda: watch.count() == 3001)
    proxy.close()


def test_a_damaged_log_file_hides_no_other(node: Node, watch: Watch) -> None:
    days = [
        [header(f"day {day} {number}", time.time() - 3000 + number) for number in range(300)]
        for day in range(3)
    ]
    packed = [gzip.compress("".join(line + "\n" for line in lines).encode()) for lines in days]
    node.run()
    node.put(f"{LOG_FOLDER}/worker-2026-01-01.log.gz", packed[0])
    node.put(f"{LOG_FOLDER}/worker-2026-01-02.log.gz", packed[1][: len(packed[1]) // 2])
    node.put(f"{LOG_FOLDER}/worker-2026-01-03.log.gz", packed[2])
    with watch:
        wait_for(lambda: watch.count() >= 600)
        assert {f"day {day} {number}" for day in (0, 2) for number in range(300)} <= set(
            watch.messages()
        )


def test_the_files_of_a_stopped_container_are_read_too(node: Node, watch: Watch) -> None:
    node.run()
    node.put(f"{LOG_FOLDER}/worker-2026-01-01.log", (header("from a file") + "\n").encode())
    node.say(header("last words"))
    wait_for(lambda: "last words" in docker("logs", node.name))
    docker("stop", "-t", "0", node.name)
    with watch:
        watch.wait_for_message("last words")
        watch.wait_for_message("from a file")


def test_reading_the_files_never_holds_the_container(node: Node, watch: Watch) -> None:
    lines = "".join(
        header(f"old {number}", time.time() - 90_000 + number) + "\n" for number in range(60_000)
    )
    node.run()
    for day in range(1, 5):
        node.put(
            f"{LOG_FOLDER}/worker-2026-01-0{day}.log", lines.replace("old", f"day{day}").encode()
        )
    with watch:
        wait_for(lambda: watch.count() > 1000)
        begun = time.monotonic()
        docker("stop", "-t", "0", node.name)
        assert time.monotonic() - begun < 5


def test_the_event_database_is_read_again_when_it_changes(node: Node, watch: Watch) -> None:
    name = "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"
    created = created_record(name, {"taskId": "js_" + "4be1" * 16})
    outcome = {"type": "computed_outcome", "executionId": name, "senderAddress": WALLET}
    items = [{"operation": "charge", "account": "0x" + "11" * 20}, line_item("pay", WALLET, 5)]
    invoice = invoice_record(name, items, invoiceId="7123456717698608000004")
    node.run()
    node.put(EVENT_DB, json.dumps({"records": [{"payload": created}]}).encode())
    watch.start()
    wait_for(lambda: watch.task(name))
    assert watch.task(name).status == "received"
    node.put(
        "/app/build/datadb/other-eventDB.json", b'{"records": [{"payload": {"type": "unknown"}}, 3]'
    )  # broken
    records = [{"payload": record} for record in (created, outcome, invoice)]
    node.put(EVENT_DB, json.dumps({"records": records}).encode())
    node.put(
        "/app/build/datadb/other-eventDB.json",
        b'{"records": [{"payload": {"type": "unknown"}}, 3]}',
    )
    wait_for(lambda: watch.task(name).status == "completed")
    rows = watch.store.read("SELECT * FROM invoice")
    assert [(row["operation"], row["steps"], row["confirmed"]) for row in rows] == [("pay", 5, 1)]


def test_a_linked_event_database_is_followed_only_inside_the_allowed_folders(
    node: Node, watch: Watch
) -> None:
    names = ["3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c", "b8e47a05-1f3d-4e92-8c77-6a9d0c4e5f10"]
    files = [
        json.dumps({"records": [{"payload": {"type": "task_created", "executionId": name}}]})
        for name in names
    ]
    node.run()
    node.put("/app/build/datadb/kept/db.json", files[0].encode())
    node.put("/secret/db.json", files[1].encode())
    node.shell(
        "cd /app/build/datadb; ln -s kept/db.json in-eventDB.json; ln -s /secret/db.json "
        "out-eventDB.json"
    )
    watch.start()
    wait_for(lambda: watch.task(names[0]))
    wait_for(lambda: watch.monitor.problem is None)
    assert watch.task(names[1]) is None


def test_the_verdict_follows_the_container(node: Node, watch: Watch) -> None:
    def state() -> str:
        return watch.monitor.verdict.state if watch.monitor.verdict else ""

    watch.start()
    wait_for(lambda: state() == "blind")  # never seen so far
    node.run()
    node.say(header("alive"))
    wait_for(lambda: state() == "idle")
    docker("stop", "-t", "0", node.name)
    wait_for(lambda: state() == "down")
    docker("start", node.name)
    wait_for(lambda: state() == "idle")
