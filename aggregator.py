#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = ["nats-py[aiohttp]>=2.16,<3"]
# ///
"""aggregator - count what the federation's monitors tell the hub, and publish statistics of the
network.

One process beside a NATS server. It pulls the monitors' messages from two JetStream streams, lets
each through the same gate as the monitors do (tbmon's `refusal_of`), counts it once in one SQLite
file, acknowledges it after the commit, and publishes truebit.stats.aggregated. Totals run along, so
that a publication costs the same however much was counted. One asyncio loop does it all and calls
SQLite in batches. Sections use only what stands above them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import hashlib
import importlib.util
import json
import logging
import os
import re
import secrets
import signal
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import tbmon
from tbmon import DAY_MS, HOUR_MS, MESSAGES, MIB, MINUTE_MS, WINDOW_MS, UserError, setting

log = logging.getLogger("aggregator")

# 1. Configuration (environment)


@dataclass(frozen=True)
class Config:
    """What an operator can set; field `x` is the environment variable X."""

    nats_url: str = setting("nats://127.0.0.1:4222", "the hub", check=tbmon.check_server)
    nats_user: str = setting("", "user at the hub")
    nats_password: str = setting("", "password at the hub", secret=True)
    nats_tls_ca: str = setting(
        "", "file of the authority that signed the hub's certificate, if it is your own"
    )
    db_path: str = setting("/data/aggregator.db", "the SQLite file", **tbmon.A_FILE)
    publish_interval: int = setting(
        30_000, "milliseconds between two publications", low=100, high=DAY_MS
    )
    retention_days: int = setting(
        30, "counts of windows and days older than this are deleted", low=8, high=36500
    )
    rate_limit_per_node: int = setting(
        10, "presence messages of one installation in RATE_LIMIT_WINDOW", low=1
    )
    global_rate_limit: int = setting(
        10_000, "presence messages, and other messages, in RATE_LIMIT_WINDOW", low=1
    )
    rate_limit_window: int = setting(1000, "milliseconds", low=100, high=HOUR_MS)
    min_nodes: int = setting(
        5, "figures are withheld below so many nodes; their number is rounded down to it", low=1
    )
    stats_snapshot_hours: int = setting(
        24, "hours between two snapshots of the task figures", high=8760
    )
    stats_min_new_tasks: int = setting(20, "finished tasks between two snapshots, at least")
    stats_round_to: int = setting(
        10, "task figures are rounded down to a multiple of this; 1 is exact", low=1
    )
    stream_replicas: int = setting(
        1, "servers of a cluster that keep each stream, when it is made", low=1, high=5
    )
    log_level: str = setting(
        "info", "least level of the log", choices=("debug", "info", "warning", "error")
    )


# 2. Counting (pure)

MESSAGE_BYTES = tbmon.KIB  # ours have less than 500
OLDEST_MS, NEWEST_MS = 8 * DAY_MS, 10 * MINUTE_MS  # a message's time may be so far from its receipt
DROPPED = "dropped"


class Received(NamedTuple):
    """A message as the hub stored it; `at` is when, in ms, so that reading late changes nothing."""

    subject: str
    payload: bytes
    at: int


class Counted(NamedTuple):
    """What a message that passed the gate counts for."""

    kind: str
    window: int  # start of its five minutes, in ms
    rows: tuple[tuple[int, str, str], ...]  # of the tally, each to be one more
    key: int = 0  # tells it from all others
    node: bytes = b""  # the installation id of a presence message, else empty


# ids, hashes, and installations but for the one that stands for none: all are alike to the gate
RANDOM = re.compile(
    rb'(?<=":")((?<="id":")[0-9a-f]{32}|(?<=Hash":")[0-9a-f]{64}'
    rb'|(?<="nodeId":")(?!%b)node-[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})'
    % tbmon.ANONYMOUS.encode()
)
PLAIN = {
    len(text): text for text in (b"1" * 32, b"1" * 64, tbmon.ANONYMOUS.replace("0", "1").encode())
}


@functools.lru_cache(4096)
def meaning_of(subject: str, payload: bytes) -> Counted | str:
    """What all messages like this one, in which nothing is random, count for, or why the gate
    refuses them.
    """
    if reason := tbmon.refusal_of(subject, payload):
        return reason
    message = json.loads(payload)
    window, kind = tbmon.edge_of(message["timestamp"]) or 0, message["type"]
    rows = (
        (0, f"{kind}.{name}", str(value))
        for name, value in message["data"].items()
        if name[-4:] != "Hash"
    )
    return Counted(kind, window, ((window, kind, ""), *rows))


def judge(received: Received) -> Counted | str:
    """What a message counts for, or why it is dropped: one of a few sentences, so that they can be
    counted.
    """
    if len(received.payload) > MESSAGE_BYTES:
        return "it is too long"
    parts = RANDOM.split(received.payload)
    own, parts[1::2] = parts[1::2], [PLAIN[len(part)] for part in parts[1::2]]
    found = meaning_of(received.subject, b"".join(parts))
    if isinstance(found, str):
        return found
    if not received.at - OLDEST_MS <= found.window <= received.at + NEWEST_MS:
        return "its time is too old" if found.window < received.at else "its time is in the future"
    node = (
        bytes.fromhex(own[1][5:].decode().replace("-", "")) if MESSAGES[found.kind].named else b""
    )
    return Counted(
        *found[:3], int(own[0][:16], 16) - 2**63, node
    )  # 64 of 128 random bits: nobody knows another's id


class Budget:
    """How many messages may count in one stretch of the hub's time."""

    def __init__(self, config: Config) -> None:
        self.most, self.most_of_one = config.global_rate_limit, config.rate_limit_per_node
        self.width_ms, self.stretch, self.spent, self.of_node = (
            config.rate_limit_window,
            -1,
            0,
            Counter[bytes](),
        )

    def spend(self, at: int, node: bytes = b"") -> bool:
        """True if one more message, received at `at` (ms), is within the limits."""
        if at // self.width_ms != self.stretch:
            self.stretch, self.spent, self.of_node = at // self.width_ms, 0, Counter()
        if self.spent >= self.most or (node and self.of_node[node] >= self.most_of_one):
            return False
        self.spent += 1
        self.of_node[node] += 1
        return True


class Batch:
    """What a batch of messages adds up to, before it is stored in one transaction."""

    def __init__(self) -> None:
        self.tally = Counter[
            tuple[int, str, str]
        ]()  # (0, or start of the window or day in ms; name; value)
        self.keys: dict[int, int] = {}  # key: hour of receipt
        self.nodes = list[
            tuple[bytes, int, int, int | None, int]
        ]()  # first and last window, left at, heard at
        self.present: set[tuple[int, bytes]] = set()  # (window, node)

    def add(self, one: Counted, at: int) -> None:
        if not one.node:
            self.keys[one.key] = at // HOUR_MS
            self.tally.update((*one.rows, (at // HOUR_MS * HOUR_MS, "ids", "")))
            return
        self.nodes.append(
            (one.node, one.window, one.window, at if one.kind == "node_left" else None, at)
        )
        if one.rows[1][2] == "online":
            self.present.add((one.window, one.node))


# 3. Store (disk)

APPLICATION_ID = 0x7462_6167  # marks our files
KEPT_HOURS = 8 * 24  # an id is known for so long: monitors send again for 7 days
MAX_KEYS = 10_000_000  # about 200 MB; in a flood the oldest are forgotten first
MAX_NODES, MAX_PEERS = 200_000, 500  # known, and shown
NODE_MS = 2 * DAY_MS  # installations not heard of for longer are forgotten
SCHEMA = """
CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE tally (
    at INTEGER, name TEXT, value TEXT, count INT, PRIMARY KEY (at, name, value)
) STRICT, WITHOUT ROWID;
CREATE TABLE seen (key INTEGER PRIMARY KEY, hour INTEGER NOT NULL) STRICT;
CREATE TABLE node (
    id BLOB PRIMARY KEY, first INTEGER, last INTEGER, left_at INTEGER
) STRICT, WITHOUT ROWID;
CREATE TABLE present (at INTEGER, node BLOB, PRIMARY KEY (at, node)) STRICT, WITHOUT ROWID;
"""
WRITES = {
    "state": "INSERT OR REPLACE INTO state VALUES (?, ?)",
    "tally": (
        "INSERT INTO tally VALUES (?, ?, ?, ?) ON CONFLICT DO UPDATE SET count = count + "
        "excluded.count"
    ),
    "seen": "INSERT INTO seen VALUES (?, ?)",
    "node": "INSERT INTO node VALUES (?1, ?2, ?3, ?4)"
    " ON CONFLICT DO UPDATE SET first = min(first, ?2), last = max(last, ?3),"
    # what comes again comes late
    " left_at = CASE WHEN ?4 IS NULL AND ?5 < left_at THEN left_at ELSE ?4 END",
    "present": "INSERT OR IGNORE INTO present VALUES (?, ?)",
    "old_tally": "DELETE FROM tally WHERE at > 0 AND at < ?",
    "old_seen": "DELETE FROM seen WHERE key BETWEEN ? AND ? AND hour < ?",
    "old_node": "DELETE FROM node WHERE last < ?",
    "old_present": "DELETE FROM present WHERE at < ?",
}
QUERIES = {
    "state": "SELECT value FROM state WHERE name = ?",
    "totals": "SELECT name, value, count FROM tally WHERE at = 0",
    "windows": (
        f"SELECT name, sum(count) FROM tally WHERE at > ?1 - {DAY_MS} AND at <= ?1 AND "
        f"value = '' GROUP BY name"
    ),
    "dropped": (
        f"SELECT value, count FROM tally WHERE at = ? AND name = '{DROPPED}' ORDER BY count DESC"
    ),
    "hours": f"SELECT at / {HOUR_MS}, count FROM tally WHERE name = 'ids' ORDER BY at DESC",
    "known": "SELECT key FROM seen WHERE key IN (SELECT value FROM json_each(?))",
    "nodes": "SELECT id FROM node",
    "counts": "SELECT (SELECT count(*) FROM present AS one WHERE at IN (?1, ?2) AND (at = ?2 OR "
    "NOT EXISTS (SELECT 1"
    " FROM present WHERE at = ?2 AND node = one.node))) - count(*) FILTER (WHERE left_at <= ?3 "
    "AND EXISTS (SELECT 1"
    " FROM present WHERE at IN (?1, ?2) AND node = id)), count(*) FILTER (WHERE first <= ?2 AND "
    "last > ?4"
    # active, and heard of in a day; DISTINCT would sort
    " AND (left_at IS NULL OR left_at > ?3)) FROM node",
    "backup": "VACUUM INTO ?",
    "peers": (
        f"SELECT id, last >= ? FROM node WHERE last >= ? AND left_at IS NULL ORDER BY id "
        f"LIMIT {MAX_PEERS}"
    ),
}


def read(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """The rows of a query, beside a running aggregator; raises UserError if the database cannot be
    read.
    """
    try:
        with contextlib.closing(
            sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
        ) as db:
            return db.execute(sql, values).fetchall()
    except sqlite3.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from None


class Store:
    """The SQLite file, and the limits before it; raises UserError if it is in use, another
    program's, or unusable.
    """

    def __init__(self, config: Config) -> None:
        self.path = Path(config.db_path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.lock_file = tbmon.lock_beside(self.path, "another aggregator")
        try:
            self.db = self.open()
        except sqlite3.Error as error:
            raise UserError(f"{self.path} cannot be used: {error}") from None
        self.tasks, self.presence = Budget(config), Budget(config)
        self.nodes = {row[0] for row in self.get("nodes")}

    def open(self) -> sqlite3.Connection:
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None)
        if db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            db.executescript("PRAGMA auto_vacuum = INCREMENTAL; PRAGMA journal_mode = WAL")
            db.executescript(f"BEGIN; {SCHEMA} PRAGMA application_id = {APPLICATION_ID}; COMMIT")
        if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
            raise UserError(
                f"{self.path} is another program's database, left as it is: set DB_PATH to a new "
                f"file"
            )
        db.executescript("PRAGMA synchronous = FULL; PRAGMA cache_size = -32768")
        return db

    def close(self) -> None:
        self.db.close()
        self.lock_file.close()

    def get(self, what: str, *values: object) -> list[tuple[Any, ...]]:
        return self.db.execute(QUERIES[what], values).fetchall()

    def state(self, name: str) -> Any:
        """A value kept under this name; None if there is none."""
        return next((json.loads(row[0]) for row in self.get("state", name)), None)

    def put(self, **rows: Iterable[Sequence[object]]) -> None:
        """Write rows of kinds in WRITES: all or, with an error, none."""
        with self.db:
            self.db.execute("BEGIN IMMEDIATE")
            for what, some in rows.items():
                self.db.executemany(WRITES[what], some)

    def keep(self, name: str, value: object) -> None:
        self.put(state=[(name, json.dumps(value))])

    def take(self, messages: Sequence[Received]) -> None:
        """Count a batch in one transaction; raises sqlite3.Error with nothing counted."""
        batch, judged = Batch(), [judge(one) for one in messages]
        keys = [one.key for one in judged if isinstance(one, Counted) and not one.node]
        known = {row[0] for row in self.get("known", json.dumps(keys))}
        for one, received in zip(judged, messages, strict=True):
            reason = one if isinstance(one, str) else self.refusal(one, received.at, batch, known)
            if isinstance(one, str) or reason:
                batch.tally[received.at // DAY_MS * DAY_MS, DROPPED, str(reason)] += 1
            else:
                batch.add(one, received.at)
        tally = [(*name, count) for name, count in batch.tally.items()]
        self.put(
            seen=sorted(batch.keys.items()), tally=tally, node=batch.nodes, present=batch.present
        )
        self.nodes.update(row[0] for row in batch.nodes)

    def refusal(self, one: Counted, at: int, batch: Batch, known: set[int]) -> str | None:
        """Why a message of the schema does not count."""
        if not one.node and (one.key in known or one.key in batch.keys):
            return "it was counted before"
        if (
            one.node
            and one.node not in self.nodes
            and len(self.nodes) + len(batch.nodes) >= MAX_NODES
        ):
            return "there are too many installations"
        return (
            None
            if (self.presence if one.node else self.tasks).spend(at, one.node)
            else "too many at once"
        )

    def prune(self, now: int, days: int) -> Iterator[None]:
        """Delete what is old, in parts between which messages are counted."""
        cutoff, kept = now // HOUR_MS - KEPT_HOURS, 0
        for hour, count in self.get("hours"):
            kept += count
            cutoff = max(cutoff, min(hour + 1, now // HOUR_MS)) if kept > MAX_KEYS else cutoff
        self.put(
            old_tally=[(now - days * DAY_MS,)],
            old_node=[(now - NODE_MS,)],
            old_present=[(now - 4 * WINDOW_MS,)],
        )
        self.nodes = {row[0] for row in self.get("nodes")}
        for low in range(-(2**63), 2**63, 2**57):
            self.put(old_seen=[(low, low + 2**57 - 1, cutoff)])
            self.db.execute("PRAGMA incremental_vacuum(1000)").fetchall()
            yield


# 4. Publication (pure)

DISTRIBUTIONS = {  # field of the publication: field of the messages, and its values
    "executionTimeDistribution": (
        "task_completed.executionTimeBucket",
        (*tbmon.TIME_RANGES, "unknown"),
    ),
    "gasUsageDistribution": ("task_completed.gasUsedBucket", (*tbmon.STEPS_RANGES, "unknown")),
    "memoryUsedDistribution": (
        "task_completed.memoryUsedBucket",
        (*tbmon.MEMORY_SCALE.ranges, "unknown"),
    ),
    "stepsComputedDistribution": (
        "invoice_created.stepsComputedBucket",
        (*tbmon.STEPS_RANGES, "unknown"),
    ),
    "taskTypeDistribution": ("task_received.taskType", tbmon.SHARED_LANGUAGES),
}


def rate(part: int, whole: int, step: int) -> float | None:
    """Percent, to five points unless `step` is 1; None where five points are less than a step, and
    of nothing.
    """
    if whole < (1 if step == 1 else 20 * step):
        return None
    return round(100 * part / whole, 2) if step == 1 else 5 * round(20 * part / whole)


def figures_of(
    totals: Mapping[tuple[str, str], int], last_day: Mapping[str, int], step: int
) -> dict[str, Any]:
    """The task and invoice figures, counts rounded down to `step`."""
    completed, failed = (
        totals.get(("task_completed.status", status), 0) for status in ("completed", "failed")
    )
    cached, ended = totals.get(("task_completed.cached", "True"), 0), completed + failed
    counts = {
        "totalTasks": sum(
            count for (name, _), count in totals.items() if name == "task_received.taskType"
        ),
        "completedTasks": completed,
        "failedTasks": failed,
        "cachedTasks": cached,
        "totalInvoices": sum(
            count for (name, _), count in totals.items() if name.startswith("invoice_created.")
        ),
        "tasksLast24h": last_day.get("task_received", 0),
        "invoicesLast24h": last_day.get("invoice_created", 0),
    }
    rates = {"successRate": rate(completed, ended, step), "cacheHitRate": rate(cached, ended, step)}
    spreads = {
        name: {value: totals.get((field, value), 0) // step * step for value in values}
        for name, (field, values) in DISTRIBUTIONS.items()
    }
    return {**{name: count // step * step for name, count in counts.items()}, **rates, **spreads}


def peers_of(heard: Iterable[tuple[bytes, int]], key: bytes, step: int) -> list[dict[str, str]]:
    """Handles that nobody can follow from one day's key to the next's; their number is a multiple
    of `step`.
    """
    peers = sorted(
        (hashlib.blake2b(node, digest_size=8, key=key).hexdigest(), is_today)
        for node, is_today in heard
    )
    whole = peers[: len(peers) // step * step]
    return [
        {"handle": handle, "seen": "today" if is_today else "yesterday"}
        for handle, is_today in whole
    ]


class Publisher:
    """Makes the publications from what the store holds."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store = config, store
        self.nodes, self.window = (0, 0), -1  # active, and heard of in a day
        self.shown: dict[str, Any] | None = None  # the snapshot

    def publication(self, now: int) -> bytes:
        """What is to be published at `now` (ms): nothing but nulls below MIN_NODES or before a
        snapshot.
        """
        step, over = self.config.min_nodes, now // WINDOW_MS * WINDOW_MS - WINDOW_MS
        if (
            over != self.window or step == 1
        ):  # looked at when five minutes are over, not when a message comes
            last, end = (over + WINDOW_MS, now) if step == 1 else (over, over + WINDOW_MS - 1)
            self.nodes, self.window = (
                self.store.get("counts", over, last, end, last - DAY_MS)[0],
                over,
            )
            self.shown = self.snapshot(now) if self.nodes[1] >= step else None
        data: dict[str, Any] = dict.fromkeys(tbmon.PUBLISHED)
        if self.nodes[1] >= step:
            snapshot = self.shown or {"figures": {}, "at": None}
            active, total = (count // step * step or None for count in self.nodes)
            data |= {
                "activeNodes": active,
                "totalNodes": total,
                **snapshot["figures"],
                "peers": self.peers(now),
            }
            data["snapshotAt"] = tbmon.utc(snapshot["at"])
        head = {
            "version": "1.0",
            "type": "network_stats",
            "id": secrets.token_hex(16),
            "timestamp": tbmon.utc(now),
        }
        return tbmon.encode({**head, "data": data})

    def snapshot(self, now: int) -> dict[str, Any] | None:
        """The snapshot to be shown, {at, finished, figures}, renewed if it is due; None before the
        first.
        """
        totals = {(name, value): count for name, value, count in self.store.get("totals")}
        finished = sum(
            totals.get(("task_completed.status", status), 0) for status in ("completed", "failed")
        )
        kept: dict[str, Any] | None = self.store.state("snapshot")
        before = kept or {"at": 0, "finished": 0, "figures": None}
        rested = (
            not 0 <= now - before["at"] < self.config.stats_snapshot_hours * HOUR_MS
        )  # a clock may go back
        if rested and finished - before["finished"] >= self.config.stats_min_new_tasks:
            last = now // WINDOW_MS * WINDOW_MS
            figures = figures_of(
                totals, dict(self.store.get("windows", last)), self.config.stats_round_to
            )
            if figures != before["figures"] or self.config.stats_snapshot_hours:
                kept = {"at": now, "finished": finished, "figures": figures}
                self.store.keep("snapshot", kept)
        return kept

    def peers(self, now: int) -> Any:
        """The day's peers, made when two windows of it are over; each time if snapshots need not
        rest.
        """
        day, kept = (
            tbmon.utc_day(now),
            self.store.state("peers") or {"day": "", "key": "", "peers": []},
        )
        is_new = not kept["day"] or (kept["day"] != day and now % DAY_MS >= 2 * WINDOW_MS)
        if is_new or self.config.stats_snapshot_hours == 0:
            key = kept["key"] if kept["day"] == day else secrets.token_hex(32)
            heard = self.store.get("peers", now // DAY_MS * DAY_MS, now // DAY_MS * DAY_MS - DAY_MS)
            kept = {
                "day": day,
                "key": key,
                "peers": peers_of(heard, bytes.fromhex(key), self.config.min_nodes),
            }
            self.store.keep("peers", kept)
        return kept["peers"]


# 5. Hub (network)

INBOX, CONSUMER = "_INBOX.aggregator", "aggregator"
ALONE_SUBJECT = "truebit.aggregator"  # where aggregators ask for each other
BATCH = 2000  # messages asked for, and counted, at once
PULL_S, ACK_S, ASK_S = (
    5.0,
    10.0,
    2.0,
)  # a request's end; what is not acknowledged comes again; for another to answer
SAFE_SERVER = (2, 12, 6)  # an older nats-server can be ended by anybody; docs/hub.md says more
VERSION = re.compile(
    r"v?(\d{1,9})\.(\d{1,9})\.(\d{1,9})(-[-.\w]{1,40})?(?:\+[-.\w]{1,40})?", re.ASCII
)
GATHER_S = 0.02  # at low rates, so that a commit holds more than one message
STREAMS = {  # whether of presence, age in s, bytes; a flood of one leaves the other as it is
    "TRUEBIT_TASKS": (False, 8 * 86400, 4096 * MIB),
    "TRUEBIT_PRESENCE": (True, 2 * 3600, 1024 * MIB),
}


def stream_config(name: str, replicas: int = 1) -> Any:
    """How a stream is made: no acknowledgements that a publisher could aim, and nothing deleted on
    anybody's word.
    """
    from nats.js import api

    named, age_s, most_bytes = STREAMS[name]
    return api.StreamConfig(
        name=name,
        subjects=[kind.subject for kind in MESSAGES.values() if kind.named == named],
        max_age=age_s,
        max_bytes=most_bytes,
        max_msg_size=MESSAGE_BYTES,
        num_replicas=replicas,
        discard=api.DiscardPolicy.OLD,
        duplicate_window=0.1,
        no_ack=True,
        deny_delete=True,
        deny_purge=True,
        allow_rollup_hdrs=False,
    )


def warning_of(version: object) -> str | None:
    """What is to be said of a hub whose INFO tells this version; None if it is a safe one."""
    least = ".".join(map(str, SAFE_SERVER))
    found = VERSION.fullmatch(version) if isinstance(version, str) else None
    if found is None:
        return f"the version of the hub's server is unknown: make sure that it is {least} or later"
    numbers = tuple(map(int, found.groups()[:3]))
    is_final = found[4] is None  # 2.12.6-beta.1 comes before 2.12.6
    if (numbers, is_final) >= (SAFE_SERVER, True):
        return None
    return f"the hub is nats-server {found[0]}, which strangers can end: take {least} or later"


async def read_status(headers: bytes | None) -> dict[str, str] | None:
    """The hub's own status; the headers that monitors write are not read, nor can they hurt."""
    status = headers and re.match(rb"NATS/1\.0 (\d{3})", headers)
    return {"Status": status[1].decode()} if status else None


class Reader:
    """What comes from the hub and waits to be counted: pulled from a stream, or, without one, as it
    is published.
    """

    def __init__(self, hub: Any, wake: asyncio.Event, stream: str = "") -> None:
        self.hub, self.wake, self.stream = hub, wake, stream
        self.inbox, self.waiting = f"{INBOX}.{secrets.token_hex(8)}", list[Any]()
        self.open, self.asked_at, self.caught_up = 0, 0.0, not stream

    async def receive(self, message: Any) -> None:
        if message.reply or not self.stream:
            self.waiting.append(message)
            self.open -= 1
        elif (message.headers or {}).get("Status") in ("409", "503"):
            raise ConnectionError(
                f"{self.stream} cannot be read any more"
            )  # nats-py hands it to `fail`
        else:  # the request is over, since there was nothing to be had
            self.open, self.caught_up = 0, self.caught_up or not self.waiting
        self.wake.set()

    async def ask(self) -> None:
        """Have a request open at all times, ahead of what is worked on."""
        if self.stream and (
            self.open < BATCH // 4 or time.monotonic() - self.asked_at > PULL_S + 2
        ):
            self.open, self.asked_at = BATCH, time.monotonic()
            request = json.dumps({"batch": BATCH, "expires": int(PULL_S * 1e9)}).encode()
            await self.hub.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self.stream}.{CONSUMER}", request, reply=self.inbox
            )

    async def take(self, store: Store) -> int:
        """Count what waits; returns the number of messages."""
        messages, stamps = self.waiting[:BATCH], [(int(time.time() * 1000), 0)] * BATCH
        # the acknowledgement subject ends in stamp in ns and pending; servers of 2.10 may add one
        # part
        if self.stream:
            parts = [message.reply.split(".") for message in messages]
            stamps = [
                (int(p[7 + 2 * (len(p) > 9)]) // 10**6, int(p[8 + 2 * (len(p) > 9)])) for p in parts
            ]
        if messages:
            store.take(
                [
                    Received(one.subject, one.data, at)
                    for one, (at, _) in zip(messages, stamps, strict=False)
                ]
            )
            del self.waiting[: len(messages)]
            self.caught_up = self.caught_up or stamps[-1][1] == 0
            for message in messages if self.stream else ():
                await self.hub.publish(message.reply, b"+ACK")
        return len(messages)


class Aggregator:
    """The connection to the hub, made again whenever it ends."""

    def __init__(self, config: Config, store: Store) -> None:
        self.config, self.store, self.publisher = config, store, Publisher(config, store)
        self.token, self.holds = secrets.token_hex(8), False
        self.error, self.failure = (
            "",
            "",
        )  # what ended the last connection, and what goes wrong on this one
        self.counted, self.prune_at = 0, time.monotonic() + 60
        self.server: object = ""  # the version that the hub told last

    async def run(self) -> None:
        """Work until cancelled; raises UserError if another aggregator is at the hub."""
        delay_s = 1.0
        while True:
            began, self.failure, self.holds = time.monotonic(), "", False
            tbmon.notify(
                "READY=1\nWATCHDOG=1"
            )  # also while no hub answers: that is not ours to mend
            try:
                await self.session()
            except UserError:
                raise
            except Exception as error:  # a hub can make nats-py and aiohttp raise anything
                self.error, before = tbmon.shorten(error), self.error
                log.log(
                    logging.DEBUG if self.error == before else logging.WARNING,
                    "%s; trying again",
                    self.error,
                )
                with contextlib.suppress(
                    sqlite3.Error
                ):  # a full disk, which may be the error itself
                    self.store.keep("health", {"at": int(time.time() * 1000), "error": self.error})
            delay_s = 1.0 if time.monotonic() - began > 60 else min(2 * delay_s, 30.0)
            await asyncio.sleep(delay_s)

    async def fail(self, error: Exception) -> None:
        if (
            type(error).__name__ != "SlowConsumerError"
        ):  # a flood without JetStream, of which some is lost
            self.failure = tbmon.shorten(
                error
            )  # a refused subject too, which nats-py tells nobody else

    async def session(self) -> None:
        """One connection, from the handshake to its end; raises what ended it."""
        config, wake = self.config, asyncio.Event()
        user = (
            {"user": config.nats_user, "password": config.nats_password} if config.nats_user else {}
        )
        more: dict[str, Any] = {
            "error_cb": self.fail,
            "inbox_prefix": INBOX.encode(),
            "most": MIB,
        }  # NATS's own limit
        async with tbmon.connect(
            config.nats_url, user, config.nats_tls_ca or None, 10, **more
        ) as hub:
            hub._process_headers = read_status
            self.note_server(hub._server_info.get("version"))
            await self.claim(hub)
            self.error, readers = "", await self.open_readers(hub, wake)
            log.info("connected to %s", config.nats_url)
            await self.work(hub, readers, wake)

    def note_server(self, version: object) -> None:
        """Warn of an unsafe server: at the start, and when it is another one."""
        if version != self.server:
            self.server = version
            if warning := warning_of(version):
                log.warning("%s; docs/hub.md says why and where to get one", warning)

    async def claim(self, hub: Any) -> None:
        """Make sure that no other aggregator is at the hub: each would count a part of the
        messages.
        """
        rivals: list[bytes] = []  # that may not have heard the question

        async def answer(message: Any) -> None:
            if self.holds or self.token.encode() < message.data:
                await message.respond(b"taken")
            elif self.token.encode() != message.data:
                rivals.append(message.data)

        await hub.subscribe(ALONE_SUBJECT, cb=answer)
        with contextlib.suppress(TimeoutError):
            rivals.append(
                (await hub.request(ALONE_SUBJECT, self.token.encode(), timeout=ASK_S)).data
            )
        if self.failure:
            raise ConnectionError(self.failure)
        self.holds = not rivals
        if rivals:
            raise UserError(
                f"another aggregator is at {self.config.nats_url}: stop one, or give it a hub of "
                f"its own"
            )

    async def open_readers(self, hub: Any, wake: asyncio.Event) -> list[Reader]:
        """A reader for each stream, which is made if it is not there; without JetStream one for all
        subjects.
        """
        from nats.js import api, errors

        streams = hub.jetstream(timeout=5)
        try:
            await streams.account_info()
        except errors.APIError as error:
            if error.err_code not in (
                None,
                10039,
                10076,
            ):  # nobody answers; not for this account or server
                raise
            log.warning(
                "no JetStream (%s): what monitors send while the aggregator is away is lost", error
            )
            reader = Reader(hub, wake)
            for kind in MESSAGES.values():
                await hub.subscribe(kind.subject, cb=reader.receive, pending_msgs_limit=BATCH)
            return [reader]
        readers = [Reader(hub, wake, name) for name in STREAMS]
        for reader in readers:
            try:
                made = (await streams.stream_info(reader.stream)).config
            except errors.NotFoundError:
                made = (
                    await streams.add_stream(
                        stream_config(reader.stream, self.config.stream_replicas)
                    )
                ).config
                log.info("stream %s is made", reader.stream)
            if not (made.no_ack and made.deny_delete and made.deny_purge):
                log.warning(
                    "stream %s lacks no_ack, deny_delete or deny_purge: monitors can harm it",
                    reader.stream,
                )
            acks: dict[str, Any] = {
                "ack_policy": api.AckPolicy.EXPLICIT,
                "max_ack_pending": 3 * BATCH // 2,
            }
            await streams.add_consumer(reader.stream, durable_name=CONSUMER, ack_wait=ACK_S, **acks)
            await hub.subscribe(reader.inbox, cb=reader.receive, pending_msgs_limit=4 * BATCH)
        return readers

    async def work(self, hub: Any, readers: Sequence[Reader], wake: asyncio.Event) -> None:
        """Count and publish, until the connection ends."""
        pruning: Iterator[None] = iter(())
        publish_at, patience = (
            0.0,
            time.monotonic() + 300,
        )  # in a flood the end of what waits may never come
        while hub.is_connected and not self.failure:
            tbmon.notify("WATCHDOG=1")
            for reader in readers:
                self.counted += await reader.take(self.store)
                await reader.ask()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):  # wait_for can lose the order to end
                    await wake.wait()
            wake.clear()
            await asyncio.sleep(
                0 if any(len(reader.waiting) > BATCH // 8 for reader in readers) else GATHER_S
            )
            now, at = time.monotonic(), int(time.time() * 1000)
            if now >= publish_at and (
                now > patience or all(reader.caught_up for reader in readers)
            ):
                publish_at = now + self.config.publish_interval / 1000
                await hub.publish(tbmon.STATS_SUBJECT, self.publisher.publication(at))
                self.store.keep("health", {"at": at, "error": ""})
            if now >= self.prune_at:
                self.prune_at, pruning = (
                    now + 3600,
                    self.store.prune(at, self.config.retention_days),
                )
                told = [
                    f"{count}: {reason}"
                    for reason, count in self.store.get("dropped", at // DAY_MS * DAY_MS)
                ]
                log.info(
                    "%d messages read since last told; dropped today: %s",
                    self.counted,
                    ", ".join(told) or "none",
                )
                self.counted = 0
            next(pruning, None)
        raise ConnectionError(self.failure or "the hub closed the connection")


# 6. Main (process)


ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
AGAIN_S = 1.0  # between two tries to cancel what does not give up
END_S = 6.0  # what has not ended by then, such as a name server's answer, is not waited for


class Ending:
    """The order to end, by one of ENDS: heard from the moment this is made until the process is
    over, since in the interpreter's own end the signals are ignored.
    """

    def __init__(self) -> None:
        self.ordered = 0  # the signal's number
        self.tell: Callable[[], object] = lambda: None  # wakes the loop, if there is one
        signal.signal(signal.SIGALRM, lambda number, frame: os._exit(0))
        for number in ENDS:
            signal.signal(number, self.order)

    def order(self, number: int, frame: object) -> None:
        """Remember the first signal, wherever it comes; later ones change nothing."""
        if not self.ordered:
            self.ordered = number
            signal.setitimer(signal.ITIMER_REAL, END_S)
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.tell()

    def release(self) -> None:
        """Let the signals do again what they do to any process; for commands that are short."""
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number in ENDS:
            signal.signal(number, signal.SIG_DFL)
        if self.ordered:
            os.kill(os.getpid(), self.ordered)

    def close(self) -> None:
        """Ignore the signals from here on; the interpreter would let them kill it while it ends."""
        for number in (*ENDS, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)


async def work_until(ending: Ending, work: Coroutine[Any, Any, None]) -> None:
    """Do the work until the order to end comes; raises what ended it before."""
    loop = asyncio.get_running_loop()
    ordered = asyncio.Event()
    job = asyncio.create_task(work)
    order = asyncio.create_task(ordered.wait())
    loop.set_exception_handler(lambda _, context: log.debug("%s", context["message"]))  # nats-py's
    ending.tell = functools.partial(loop.call_soon_threadsafe, ordered.set)
    if ending.ordered:  # before there was a loop to tell
        ordered.set()
    await asyncio.wait((job, order), return_when=asyncio.FIRST_COMPLETED)
    order.cancel()
    while not job.done():
        job.cancel()  # which Python 3.11's asyncio.wait_for loses if what it awaits has just ended
        await asyncio.wait((job,), timeout=AGAIN_S)
    error = None if job.cancelled() else job.exception()
    if error and not ending.ordered:
        raise error


def serve(config: Config, _: str, ending: Ending) -> int:
    """Run until a signal comes."""
    logging.basicConfig(
        format="%(asctime)s %(levelname)s %(message)s", datefmt="%Y-%m-%dT%H:%M:%SZ"
    )
    logging.Formatter.converter = time.gmtime
    log.setLevel(config.log_level.upper())
    logging.getLogger("nats").setLevel(
        logging.CRITICAL
    )  # it would write a traceback for each failure
    with contextlib.closing(Store(config)) as store:
        log.info(
            "aggregator %s for %s, database %s", tbmon.__version__, config.nats_url, config.db_path
        )
        asyncio.run(work_until(ending, Aggregator(config, store).run()))
    log.info("stopped")
    return 0


def healthcheck(config: Config, _: str, ending: Ending) -> int:
    """For a container's HEALTHCHECK: 0 if the last publication is not long ago."""
    ending.release()
    found = read(Path(config.db_path), QUERIES["state"], "health")
    health: dict[str, Any] = (
        json.loads(found[0][0]) if found else {"at": 0, "error": "not connected yet"}
    )
    late = time.time() * 1000 - health["at"] > 3 * config.publish_interval + 30_000
    problem = health["error"] or (f"no publication since {tbmon.utc(health['at'])}" if late else "")
    print(problem or "ok")
    return 1 if problem else 0


def backup(config: Config, target: str, ending: Ending) -> int:
    """Copy the database, beside a running aggregator."""
    ending.release()
    if not target or Path(target).exists() or not Path(target).absolute().parent.is_dir():
        raise UserError(
            "backup takes the name of a file that does not exist yet, in a folder that does"
        )
    os.umask(0o077)
    read(Path(config.db_path), QUERIES["backup"], target)
    print(f"{config.db_path} is copied to {target}")
    return 0


def run(words: Sequence[str] | None, ending: Ending) -> int:
    """Read the command line and do what it says."""
    commands = {"serve": serve, "healthcheck": healthcheck, "backup": backup}
    about = "Publish statistics of the federation: serve (default), healthcheck, backup FILE."
    parser = argparse.ArgumentParser(
        "aggregator", description=about, epilog=tbmon.settings_help(Config)
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("command", nargs="?", default="serve", choices=tuple(commands))
    parser.add_argument("file", nargs="?", default="", help="backup: the copy")
    parser.add_argument("--version", action="version", version=f"aggregator {tbmon.__version__}")
    given = parser.parse_args(words)
    try:
        if importlib.util.find_spec("nats") is None and given.command == "serve":
            raise UserError("nats-py not installed: use `pip install -r requirements.txt`")
        return commands[given.command](
            Config(**tbmon.read_settings(Config, os.environ)), given.file, ending
        )
    except (UserError, OSError) as error:
        print(f"aggregator: {error}", file=sys.stderr)
        return 2


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code, and leaves the signals that end it ignored."""
    with contextlib.closing(Ending()) as ending:
        return run(words, ending)


if __name__ == "__main__":
    sys.exit(main())
