"""The aggregator as a process at a real hub: nothing lost, nothing twice, and what its operator
sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import random
import signal
import sqlite3
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.aggregation import Aggregators, Hubs, Load, now_ms, settle
from support.federation_feed import Aggregation, Feed, Publisher, Said
from support.hub_conf import AGGREGATOR, PRESENCE, TASKS, Server, state
from support.hubs import STATS
from support.machine import missing, wait_for

import aggregator
import tbmon
from tbmon import UserError

HUB_PLAIN = """
host: $LISTEN
port: 4222
accounts {
    TRUEBIT {
        %s
        users: [
            {user: monitor, password: $MONITOR_PASSWORD}
            {user: aggregator, password: $AGGREGATOR_PASSWORD}
        ]
    }
}
"""
JETSTREAM = "jetstream {store_dir: $STORE_DIR, max_file_store: 6GB, max_memory_store: 16MB}\n"


def stored(server: Server, stream: str = TASKS) -> int:
    """How many messages the hub keeps."""
    return int(state(server.client("aggregator"), stream)["messages"])


def published(server: Server) -> Any:
    """The next publication, as a monitor gets it."""
    found = server.client().subscribe(STATS).wait(1)
    return tbmon.read_publication(found[0].payload)


# Counting at a hub


def test_what_was_sent_while_it_was_away_is_counted_and_published(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(), Feed(21, nodes=4), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)
    monitor.publish(*(feed.work(at) for _ in range(50)))
    settle(one, 50)
    assert one.end() == 0
    absent = [feed.work(at) for _ in range(6000)]
    monitor.publish(*absent, *absent[:500], *(feed.beat(node, at) for node in feed.nodes))
    one.start()
    settle(one, 6050)
    data = wait_for(lambda: (data := published(server)) and data["activeNodes"] == 4 and data)
    finished = data["completedTasks"] + data["failedTasks"]
    assert finished + data["totalTasks"] + data["totalInvoices"] == 6050 == one.counted()
    assert stored(server) == 6550 and one.dropped() == {"it was counted before": 500}
    assert stored(server, PRESENCE) == 4


STATUS = [  # what a hub says of itself
    b"NATS/1.0 408 Request Timeout\r\n\r\n",
    b"NATS/1.0 503\r\n\r\n",
    b"NATS/1.0 404 No Messages\r\n\r\n",
    b"NATS/1.0 100 FlowControl Request\r\n\r\n",
    b"NATS/1.0 409 Consumer Deleted\r\n\r\n",
]
ROUGH = [
    b"NATS/1.0\r\nno colon\r\n\r\n",
    b"NATS/1.0\r\n: \r\n\r\n",
    b"\r\n\r\n",
    b"\xff" * 9,
    b"NATS/1.0 \xff\r\n\r\n",
    b"NATS/1.0\r\nStatus: 408\r\n\r\n",
    b"NATS/1.0",
    b"NATS/1.0\r\n",
]


def test_headers_of_any_bytes_neither_stop_nor_fool_it(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(), Feed(22), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)
    dice, good = feed.dice, feed.work(at)
    rough = [*ROUGH, *(dice.randbytes(40) for _ in range(40))]
    for headers in (*STATUS, *rough):
        monitor.headed(good.subject, headers).headed("truebit.heartbeat", headers)
    later = feed.work(at)
    for headers in (STATUS[0], rough[0], rough[-1], b"NATS/1.0\r\nNats-Msg-Id: x\r\n\r\n"):
        monitor.headed(later.subject, headers, later.payload)
    monitor.publish(good)
    settle(one, 2)
    wait_for(lambda: sum(one.dropped().values()) >= 2 * len(STATUS + rough))
    assert one.counted() == 2 and one.text().count("connected to") == 1


def test_without_jetstream_it_counts_and_says_what_that_means(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(HUB_PLAIN % ""), Feed(23, nodes=3), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)
    assert (
        "WARNING no JetStream" in one.text()
        and "while the aggregator is away is lost" in one.text()
    )
    sent = [feed.work(at) for _ in range(1000)]
    for begin in range(0, 1000, 100):
        monitor.publish(*sent[begin : begin + 100])
    monitor.publish(*sent[:50], *(feed.beat(node, at) for node in feed.nodes))
    settle(one, 1000)
    data = wait_for(lambda: (data := published(server)) and data["activeNodes"] == 3 and data)
    assert (
        data["completedTasks"] + data["failedTasks"] + data["totalTasks"] + data["totalInvoices"]
        == 1000
    )
    assert one.dropped() == {"it was counted before": 50}


def test_a_consumer_that_goes_is_noticed_and_made_again(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(JETSTREAM + HUB_PLAIN % "jetstream: enabled"), Feed(31), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)

    async def delete() -> None:
        async with tbmon.connect(
            server.url(), {"user": "aggregator", "password": AGGREGATOR}, None, 10
        ) as admin:
            await admin.jetstream().delete_consumer(TASKS, aggregator.CONSUMER)

    monitor.publish(*(feed.work(at) for _ in range(100)))
    settle(one, 100)
    asyncio.run(delete())
    monitor.publish(*(feed.work(at) for _ in range(100)))
    settle(one, 200)
    assert f"{TASKS} cannot be read any more; trying again" in one.text()


def test_a_flood_without_jetstream_does_not_end_the_connection(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(HUB_PLAIN % ""), Feed(32), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)
    tiny = [Said("truebit.tasks.received", b"x")] * 20_000  # more come at once than may wait

    def is_heard() -> bool:
        monitor.publish(*tiny, feed.work(at))
        return one.counted() > 2

    wait_for(is_heard)
    assert one.text().count("connected to") == 1, one.text()


def in_stream(server: Server, hub_server: Hubs) -> Counter[bytes]:
    """What the hub kept of tasks and invoices, read after its end by a server with a user who may
    do anything.
    """
    import nats

    server.kill()
    own = {"STORE_DIR": server.env["STORE_DIR"]}
    reader = hub_server(JETSTREAM + HUB_PLAIN % "jetstream: enabled", **own)

    async def read() -> Counter[bytes]:
        found = Counter[bytes]()
        client = await nats.connect(reader.url(), user="aggregator", password=AGGREGATOR)
        js = client.jetstream()
        most = (await js.stream_info(TASKS)).state.messages
        kept = await js.subscribe("truebit.>", stream=TASKS, ordered_consumer=True)
        for _ in range(most):
            found[(await kept.next_msg(5)).data] += 1
        await client.close()
        return found

    return asyncio.run(read())


def test_kills_of_the_aggregator_and_of_the_hub_lose_nothing_and_count_nothing_twice(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, dice = hub_server(), random.Random(24)
    one, load = count(server).start(), Load(server, 24)
    load.start()
    for act in "aahaabaa":
        if act in "ah":  # work goes on when it is killed
            settle(one, one.counted() + 1)
            threading.Event().wait(dice.random() / 4)
        if act in "ab":
            one.kill()
        if act in "hb":
            server.kill()
            server.start()
        if act in "ab":
            one.launch()
    sent = load.finish()
    ids = {message.payload for message in sent}
    settle(one, len(ids), 40)
    stored = state(server.client("aggregator"))["messages"]  # what came twice is read last
    again = "it was counted before"
    wait_for(lambda: one.counted() + one.dropped().get(again, 0) >= stored)
    wait_for(lambda: published(server))
    assert one.end() == 0
    kept = in_stream(server, hub_server)
    assert set(kept) == ids
    assert one.counted() == len(ids) > 1000
    assert set(one.dropped()) <= {again}
    assert one.dropped().get(again, 0) >= sum(kept.values()) - len(ids)


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of 9 MiB, which holds SQLite's log of 4 MiB too."""
    folder.mkdir()
    words = ("mount", "-t", "tmpfs", "-o", "size=9m", "none", str(folder))
    if subprocess.run(words, capture_output=True).returncode:
        missing("the right to mount a tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(("umount", "--lazy", str(folder)), check=True)


def test_with_a_full_disk_nothing_is_counted_and_it_goes_on_when_there_is_room(
    hub_server: Hubs, count: Aggregators, tmp_path: Path
) -> None:
    server, feed, at = hub_server(), Feed(25), now_ms()
    with (
        small_disk(tmp_path / "disk") as disk,
        contextlib.closing(count(server, DB_PATH=str(disk / "a.db"))) as one,
    ):
        one.start()
        monitor = Publisher(server.address).publish(*(feed.work(at) for _ in range(100)))
        settle(one, 100)
        ballast = (disk / "ballast").open("wb", buffering=0)
        with contextlib.suppress(OSError), ballast:
            while ballast.write(bytes(4096)):
                pass
        sent = [feed.work(at) for _ in range(8000)]
        for begin in range(0, 8000, 2000):
            monitor.publish(*sent[begin : begin + 2000])
        wait_for(lambda: "full" in one.text())
        assert one.code() is None and "Traceback" not in one.text()
        before = one.counted()
        (disk / "ballast").unlink()
        settle(one, 8100, 40)
        assert before < 8100 == one.counted() and set(one.dropped()) <= {"it was counted before"}


# Floods


class Flood(threading.Thread):
    """As many messages of some kinds as a socket takes, at most some thousand a second, until told
    to end.
    """

    def __init__(self, server: Server, messages: list[Said]) -> None:
        super().__init__(daemon=True)
        self.monitor, self.messages, self.ended, self.rounds = (
            Publisher(server.address),
            messages,
            threading.Event(),
            0,
        )

    def run(self) -> None:
        while not self.ended.wait(0.1):
            self.monitor.publish(*self.messages)
            self.rounds += 1

    def __enter__(self) -> Flood:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        self.join(10)
        assert not self.is_alive()


def is_present(one: Aggregation, nodes: int) -> bool:
    return len(one.present()) == nodes


LIMITED = {"GLOBAL_RATE_LIMIT": "50", "RATE_LIMIT_PER_NODE": "10"}


def test_a_flood_of_tasks_leaves_presence_counted_and_the_other_way_round(
    hub_server: Hubs, count: Aggregators
) -> None:
    server, feed, at = hub_server(), Feed(26, nodes=20), now_ms()
    one, monitor = count(server, **LIMITED).start(), Publisher(server.address)
    strangers = Feed(27, nodes=1000)
    tasks = [feed.work(at) for _ in range(1000)]
    presence = [strangers.beat(node, at) for node in strangers.nodes]
    with Flood(server, tasks) as flood:
        wait_for(lambda: one.dropped().get("too many at once", 0) > 500)
        for turn in range(4):
            monitor.publish(*(feed.beat(node, at) for node in feed.nodes[5 * turn : 5 * turn + 5]))
            wait_for(functools.partial(is_present, one, 5 * turn + 5), 2)
        wait_for(lambda: flood.rounds > 5)
    before = one.totals()
    with Flood(server, presence) as flood:
        wait_for(lambda: len(one.present()) > 60)
        tasks = [feed.completed(at) for _ in range(20)]
        wait_for(
            lambda: monitor.publish(*tasks) and finished(one.totals()) >= finished(before) + 20, 5
        )
        wait_for(lambda: flood.rounds > 5)
    assert one.dropped()["too many at once"] > 1000


def finished(totals: dict[tuple[str, str], int]) -> int:
    return sum(count for (name, _), count in totals.items() if name == "task_completed.status")


# Operation


BAD = {
    "NATS_URL": "nats://user:word@hub",
    "PUBLISH_INTERVAL": "soon",
    "MIN_NODES": "0",
    "LOG_LEVEL": "loud",
    "STREAM_REPLICAS": "9",
    "RETENTION_DAYS": "-1",
    "NATS_PASSWORD_FILE": "/nonexistent",
}


def test_bad_settings_are_all_named_at_once(count: Aggregators) -> None:
    done = count(NATS_PASSWORD="", **BAD).run()
    assert done.returncode == 2 and done.stdout == ""
    assert [name for name in BAD if f"  {name}=" not in done.stderr] == []
    assert done.stderr.startswith("aggregator: bad settings:") and "Traceback" not in done.stderr


def test_a_bad_password_setting_is_not_shown(count: Aggregators, tmp_path: Path) -> None:
    (tmp_path / "word").write_text("of-the-file")
    done = count(NATS_PASSWORD="open-sesame", NATS_PASSWORD_FILE=str(tmp_path / "word")).run()
    assert done.returncode == 2 and "NATS_PASSWORD_FILE" in done.stderr
    assert "open-sesame" not in done.stderr and "of-the-file" not in done.stderr


def test_help_names_every_setting_and_command(count: Aggregators) -> None:
    done = count().run("--help")
    assert done.returncode == 0 and done.stderr == ""
    names = [name.upper() for name in aggregator.Config.__dataclass_fields__]
    assert [
        name for name in (*names, "serve", "healthcheck", "backup") if name not in done.stdout
    ] == []
    assert count().run("--version").stdout == f"aggregator {tbmon.__version__}\n"


@pytest.mark.parametrize(
    ("words", "settings", "sentence"),
    [
        (("healthcheck",), {}, "cannot be read"),
        (("backup",), {}, "backup takes the name of a file"),
        (("backup", "."), {}, "backup takes the name of a file"),
        ((), {"DB_PATH": "/proc/nowhere/a.db"}, "/proc/nowhere"),
        ((), {"DB_PATH": "/"}, "/"),
        (("dance",), {}, "invalid choice"),
    ],
)
def test_what_cannot_be_done_is_said_in_a_sentence(
    count: Aggregators, words: tuple[str, ...], settings: dict[str, str], sentence: str
) -> None:
    done = count(**settings).run(*words)
    assert done.returncode == 2 and sentence in done.stderr and "Traceback" not in done.stderr


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_without_a_hub(count: Aggregators, number: int) -> None:
    one = count().launch()
    wait_for(lambda: "trying again" in one.text())
    assert one.end(number) == 0
    assert "Traceback" not in one.text() and "stopped" in one.text()


def test_it_ends_in_time_at_a_hub_that_answers_and_at_one_that_does_not(
    hub_server: Hubs, count: Aggregators
) -> None:
    server = hub_server()
    one = count(server).start()
    assert one.end(signal.SIGINT) == 0
    one.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGSTOP)
    assert one.end(signal.SIGTERM) == 0
    one.launch()
    wait_for(lambda: one.text().count("INFO aggregator ") == 3)
    assert one.end() == 0
    assert "Traceback" not in one.text()


def test_health_before_during_and_after(hub_server: Hubs, count: Aggregators) -> None:
    server, one = hub_server(), count()
    one.launch()
    wait_for(lambda: "trying again" in one.text())
    before = one.run("healthcheck")
    assert before.returncode == 1 and before.stdout.strip() not in ("", "ok")
    assert one.end() == 0
    one.env["NATS_URL"] = server.url()
    one.start()
    assert published(server) is not None
    wait_for(lambda: one.run("healthcheck").stdout == "ok\n")
    server.kill()
    wait_for(lambda: "trying again" in one.text().rpartition("connected to")[2])
    gone = one.run("healthcheck")
    assert gone.returncode == 1 and "Traceback" not in gone.stdout + gone.stderr
    assert one.end() == 0
    with contextlib.closing(sqlite3.connect(one.db)) as db, db:
        health = json.dumps({"at": now_ms() - 31_000, "error": ""})
        db.execute("UPDATE state SET value = ? WHERE name = 'health'", (health,))
    after = one.run("healthcheck")
    assert after.returncode == 1 and after.stdout.startswith("no publication since 20")


def test_a_backup_made_while_it_counts_is_whole(
    hub_server: Hubs, count: Aggregators, tmp_path: Path
) -> None:
    server, feed, at = hub_server(), Feed(28), now_ms()
    one, monitor = count(server).start(), Publisher(server.address)
    monitor.publish(*(feed.work(at) for _ in range(3000)))
    settle(one, 3000)
    load = Load(server, 29)
    load.start()
    wait_for(lambda: one.counted() > 3100)
    low, target = one.counted(), tmp_path / "copy.db"
    done = one.run("backup", str(target))
    high = one.counted()
    load.finish()
    assert done.returncode == 0 and str(target) in done.stdout, done.stderr
    assert target.stat().st_mode & 0o077 == 0
    copy = count(server, DB_PATH=str(target))
    assert low <= copy.counted() <= high
    assert aggregator.read(target, "PRAGMA integrity_check") == [("ok",)]
    assert aggregator.read(target, "SELECT count(*) FROM seen")[0][0] == copy.counted()
    assert one.run("backup", str(target)).returncode == 2
    assert one.end() == 0
    assert copy.start().end() == 0  # it can be gone on with


# One at a hub


def test_a_second_one_is_refused_until_the_first_has_ended(
    hub_server: Hubs, count: Aggregators
) -> None:
    server = hub_server()
    first, second = count(server).start(), count(server)
    assert second.launch().process is not None
    wait_for(lambda: second.code() is not None)
    assert second.code() == 2
    assert (
        f"another aggregator is at {server.url()}" in second.text()
        and "Traceback" not in second.text()
    )
    same = count(server, DB_PATH=str(first.db)).run()
    assert same.returncode == 2 and "is in use by another aggregator" in same.stderr
    assert first.code() is None and first.end() == 0
    assert second.start().end() == 0


def test_of_those_started_at_the_same_moment_one_stays(
    hub_server: Hubs, count: Aggregators
) -> None:
    server = hub_server()
    both = [count(server).launch() for _ in range(3)]
    wait_for(lambda: sum(one.code() is not None for one in both) == 2)
    assert sorted(str(one.code()) for one in both) == ["2", "2", "None"]
    stays = next(one for one in both if one.code() is None)
    wait_for(lambda: "connected to" in stays.text())  # the streams are there
    Publisher(server.address).publish(Feed(30).work(now_ms()))
    settle(stays, 1)


@pytest.mark.parametrize("tokens", ["0f", "f0"])
def test_of_two_started_half_a_second_apart_one_stays(
    hub_server: Hubs, tmp_path: Path, tokens: str
) -> None:
    server = hub_server()

    async def claims() -> list[Any]:
        login, inbox = {"user": "aggregator", "password": AGGREGATOR}, aggregator.INBOX.encode()
        asked = server.client("aggregator").subscribe(aggregator.ALONE_SUBJECT).settle()
        async with contextlib.AsyncExitStack() as stack:
            tasks = []
            for token in tokens:
                folder = tmp_path / token
                config = aggregator.Config(nats_url=server.url(), db_path=str(folder / "a.db"))
                store = stack.enter_context(contextlib.closing(aggregator.Store(config)))
                one = aggregator.Aggregator(config, store)
                one.token = token * 16
                connection = tbmon.connect(
                    server.url(), login, None, 10, error_cb=one.fail, inbox_prefix=inbox
                )
                tasks.append(
                    asyncio.create_task(one.claim(await stack.enter_async_context(connection)))
                )
                await asyncio.to_thread(asked.wait, len(tasks))
            return await asyncio.gather(*tasks, return_exceptions=True)

    found = asyncio.run(claims())
    assert [one for one in found if not isinstance(one, UserError | ConnectionError)] == [None]
