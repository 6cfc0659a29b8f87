#!/usr/bin/env -S uv run --script
# /// script
# requires-python = ">=3.11"
# dependencies = [
#     "bottle>=0.13,<0.14",
#     "waitress>=3.0.1,<4",
#     "docker>=7.1,<8",
#     "nats-py[aiohttp]>=2.16,<3",
# ]
# ///
"""tbmon - watch one TrueBit node and keep what it did on this machine.

Follows the log of the node's container, reads its event database, keeps
tasks, invoices and log entries in one SQLite file and serves a dashboard and
an API. The Docker Engine is only asked, with GET and HEAD, on the paths listed
in section 7. Nothing else is connected to, unless the operator opts in to the
federation.

To see what can leave this machine, read sections 5 and 6, less than a tenth of it: 5
says what a message can hold, and `refusal_of` is the gate that every byte
passes; 6 is the only section that opens an outbound connection.

Threads: main (waitress and its workers), `ingest` (the only one that writes
what the node did, with one short-lived `reader` per connection to the engine),
`upkeep` (container state, statistics, verdict, retention), `watchdog` if systemd
wants signs of life and, only after opting in, `federation`. All of them end when
`stop` is set; one that dies of a bug of ours ends the process.

Sections: 1 Configuration, 2 Time, 3 Node data, 4 Store, 5 Privacy,
6 Federation, 7 Docker, 8 Ingest, 9 API, 10 Main. Each uses only what stands
above it; the word in brackets says what effect it may have, and
tests/test_layout.py enforces both.
"""

from __future__ import annotations

import argparse
import base64
import bisect
import codecs
import contextlib
import csv
import dataclasses
import errno
import fcntl
import functools
import gc
import gzip
import hashlib
import heapq
import hmac
import html
import importlib.util
import io
import ipaddress
import itertools
import json
import logging
import marshal
import math
import os
import posixpath
import random
import re
import secrets
import shutil
import signal
import socket
import sqlite3
import struct
import sys
import tarfile
import tempfile
import threading
import time
import urllib.parse
import zlib
import zoneinfo
from collections import Counter, deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import astuple, dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

__version__ = "0.1.0"

KIB, MIB = 1024, 1024 * 1024
MINUTE_MS, HOUR_MS, DAY_MS = 60_000, 3_600_000, 86_400_000

ENTRY_BYTES = 64 * KIB  # kept of one log entry; its identity covers the whole header line
LINE_BYTES = 256 * KIB  # kept of one physical line while its pieces are joined
PAYLOAD_DEPTH = 64  # nesting beyond this is not followed
BATCH_ROWS = 2000  # log rows in one transaction at most
BATCH_BYTES = MIB  # of lines in one transaction, about
READ_BYTES = 256 * KIB  # read of a file at a time: the most lines that are held at once
TASK_TIMEOUT_MS = 10 * MINUTE_MS  # when a task names no executionTimeout
TASK_GRACE_MS = MINUTE_MS  # after the timeout, before a task counts as lost
BELIEF_MS = 5 * MINUTE_MS  # a header's second may differ this much from the engine's stamp
ZONE_S = 15 * 3600  # no zone is further from UTC
SILENCE_MS = 10 * MINUTE_MS  # the node's own pulse comes every two minutes
# How long a task may still be in work whose receipt was not seen.
UNKNOWN_MS = TASK_TIMEOUT_MS + TASK_GRACE_MS + HOUR_MS
FIRST_LINE_MS = 15_000  # after its start the node has said its first line
OVERTAKE_MS = 250  # by the engine's stamps: one stream may be so far ahead of the other
HELD_ENTRY_BYTES = 400  # of an entry in memory, beside its words
WAITING_LINES = 64  # loose lines that wait for what shows whose they are
LOOP_MS = 10 * MINUTE_MS  # a container that ends LOOP_ENDS times within it keeps ending,
LOOP_ENDS = 3
SETTLED_MS = MINUTE_MS  # until it has run for so long
OVERLAP_S = 3  # read again before the cursor: stamps step back between the two streams
RETRY_MAX_S, STILL_S = (
    5.0,
    7.0,
)  # between two tries; how long a verdict holds that is not looked at again
DOUBT_LOOKS = (
    360  # one a minute: how long a clock that has jumped by a day or more is not deleted by
)

NOTHING: Mapping[str, Any] = {}

log = logging.getLogger("tbmon")


class UserError(Exception):
    """Something the operator can put right; the text says what and how."""


def shorten(error: Exception) -> str:
    """What went wrong, in one line; a hub's own words may be in it."""
    words = (
        "the hub's words cannot be read"
        if isinstance(error, (AttributeError, TypeError))
        else str(error)
    )
    return " ".join(
        re.sub("[^ -~]", " ", words.partition(", sub:")[0] or type(error).__name__).split()
    )[:200]


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Let what is imported in the block find that a module is missing, unless it has been
    loaded.
    """
    is_hidden = sys.modules.setdefault(name, cast(Any, None)) is None
    try:
        yield
    finally:
        if is_hidden:
            sys.modules.pop(name, None)


# ---------------------------------------------------------------------------
# 1. Configuration                                                (environment)
# ---------------------------------------------------------------------------

ORIGIN = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:\d{1,5})?", re.ASCII)

A_FILE = {"pattern": "(.*/)?[^/]*[^/.][^/]*", "takes": "the name of a file"}


def setting(default: object, text: str, **rules: Any) -> Any:
    """Declare one field of Config; `rules`: low and high, choices, pattern and what it `takes`,
    secret, check.
    """
    return field(default=default, metadata={"help": text, **rules})


def check_hosts(text: str) -> None:
    """Raise ValueError unless `text` is host names with commas between them."""
    for name in split_list(text):
        if not re.fullmatch(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9])?", name, re.I | re.ASCII):
            raise ValueError(
                "takes host names with commas, like monitor.example.org, without http:// or port"
            )


def check_origins(text: str) -> None:
    """Raise ValueError unless `text` is * or origins with commas between them."""
    for origin in split_list(text):
        if origin != "*" and not ORIGIN.fullmatch(origin.lower()):
            raise ValueError("takes origins with commas, like https://monitor.example.org, or *")


def check_networks(text: str) -> None:
    """Raise ValueError unless `text` is addresses or networks with commas between them."""
    try:
        for name in split_list(text):
            ipaddress.ip_network(name)
    except ValueError:
        raise ValueError(
            "takes addresses or networks with commas, like 172.18.0.2 or 172.18.0.0/16"
        ) from None


def read_address(text: str) -> Any:
    """The IP address in a peer's name or a part of X-Forwarded-For, with or without port; None if
    it is none.
    """
    found = re.fullmatch(
        r"\[([0-9a-fA-F:.]+)\](?::\d+)?|([0-9.]+)(?::\d+)?|([0-9a-fA-F:.]+)", text.strip(), re.ASCII
    )
    try:
        address = ipaddress.ip_address(next(filter(None, found.groups())) if found else "")
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def check_server(url: str) -> urllib.parse.SplitResult:
    """The parts of a hub's URL; raises ValueError for what cannot be used or would go out in clear
    text.
    """
    try:
        parts = urllib.parse.urlsplit(url)
        good = parts.scheme in ("nats", "tls", "ws", "wss") and parts.hostname and parts.port != 0
    except ValueError:
        good = False
    if not good or "@" in url or not url.isascii() or re.search(r"[\s,]", url):
        raise ValueError(
            "a server is nats://, tls://, ws:// or wss://, a host and a port, without user and "
            "password"
        )
    address = read_address(parts.hostname or "")
    if parts.scheme in ("nats", "ws") and address is not None and not is_near(address):
        raise ValueError(
            f"{parts.scheme}://{parts.netloc} would send in clear text over the internet: use wss "
            f"or tls"
        )
    return parts


def check_peer(parts: urllib.parse.SplitResult, peer: Any) -> None:
    """Refuse clear text to an address of the internet; a name without a dot is one of this
    network's.
    """
    address, host = read_address(str(peer[0])) if peer else None, parts.hostname or ""
    near = (address is not None and is_near(address)) or not re.search("[.:]", host)
    if parts.scheme in ("nats", "ws") and not near:
        raise ConnectionError(
            f"{host} is on the internet, and {parts.scheme}:// is clear text: use wss or tls"
        )


def is_near(address: Any) -> bool:
    return bool(address.is_loopback or address.is_private)


def split_list(text: str) -> list[str]:
    """The parts of a setting that takes several, with commas between them."""
    return [part.strip() for part in text.split(",") if part.strip()]


def zone_rules(name: str) -> tzinfo | None:
    """The rules of a zone, None for one this machine does not know; UTC needs no zone files."""
    if name in ("UTC", "GMT", "Etc/UTC", "Etc/GMT"):
        return UTC
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        return None


def check_zone(text: str) -> None:
    """Raise ValueError unless `text` is auto or a zone this machine knows."""
    if text == "auto" or zone_rules(text):
        return
    if zone_rules("Europe/Berlin") is None:
        raise ValueError("takes auto or UTC here, as zone files are missing: install tzdata")
    raise ValueError("takes auto, UTC or a zone like Europe/Berlin")


def machine_zone(env: Mapping[str, str] = os.environ) -> str | None:
    """The name of this machine's own zone; None where it cannot be known by name."""
    link = os.path.realpath("/etc/localtime")
    name = env["TZ"].removeprefix(":") if "TZ" in env else link.partition("/zoneinfo/")[2]
    return name if zone_rules(name) else None


@dataclass(frozen=True)
class Config:
    """What an operator can set; field `x` is the environment variable X."""

    port: int = setting(8090, "TCP port of dashboard and API", low=1, high=65535)
    host: str = setting(
        "127.0.0.1", "address to listen on; 0.0.0.0 opens it to the network, :: to IPv6 as well"
    )
    container_name: str = setting(
        "runner-node",
        "name of the node's container",
        pattern=r"[a-zA-Z0-9][a-zA-Z0-9_.-]*",
        takes="a container's name, as docker ps shows it",
    )
    docker_host: str = setting(
        "",
        "engine to ask: unix:///path, or tcp://host:port",
        pattern=r"(unix:///|tcp://[^/]).*|",
        takes="unix:///path or tcp://host:port (for ssh, tunnel to a socket)",
        check=lambda text: urllib.parse.urlsplit(text).port,
    )
    docker_socket_path: str = setting(
        "/var/run/docker.sock", "engine's socket when DOCKER_HOST is not set"
    )
    docker_tls_verify: bool = setting(
        False, "use TLS towards tcp:// and check the engine's certificate"
    )
    docker_cert_path: str = setting(
        "", "folder with ca.pem, cert.pem and key.pem for DOCKER_TLS_VERIFY"
    )
    log_dir: str = setting(
        "", "follow the node's log files in this folder and use no Docker at all"
    )
    node_timezone: str = setting(
        "auto", "zone of the stamps in the node's log; auto finds it", check=check_zone
    )
    db_path: str = setting("./data/truebit-monitor.db", "the SQLite file", **A_FILE)
    key_dir: str = setting("", "folder of key files; beside the database if empty")
    log_retention_days: int = setting(
        30, "log entries older than this are deleted", low=1, high=36500
    )
    max_db_bytes: int = setting(
        2 * 1024 * MIB,
        "oldest log entries go when the file is larger; task data has half at most",
        low=8 * MIB,
    )
    task_data_retention_days: int = setting(
        365, "inputs and outputs of tasks older than this are deleted", low=1, high=36500
    )
    api_key: str = setting(
        "", "if set, the API asks for it: Authorization: Bearer KEY", secret=True
    )
    health_node_open: bool = setting(
        False, "/health?node=1 answers without the API key too, by its status alone"
    )
    task_data_password: str = setting(
        "", "opens log and task data; generated if empty", secret=True
    )
    allowed_origins: str = setting(
        "",
        "origins of pages that may ask, with commas; * lets any page GET what is open",
        check=check_origins,
    )
    allowed_hosts: str = setting(
        "", "further host names this monitor is reached under, with commas", check=check_hosts
    )
    trusted_proxy: str = setting(
        "",
        "addresses or networks of proxies whose X-Forwarded-For counts, with commas",
        check=check_networks,
    )
    api_rate_limit: int = setting(
        500, "requests a minute of one address or session; 0 is no limit", high=10**6
    )
    ws_auth_required: bool = setting(False, "the live stream asks for WS_AUTH_TOKEN")
    ws_auth_token: str = setting(
        "", "opens the live stream; generated if required and empty", secret=True
    )
    ws_max_connections: int = setting(
        100, "live streams at once; lowered where open files or threads are too few", high=1000
    )
    ws_max_per_ip: int = setting(5, "live streams of one address", low=1, high=1000)
    ws_auth_timeout: int = setting(
        30000, "without effect: a stream without its token is refused at once"
    )
    federation_nats_url: str = setting(
        "wss://f.tru.watch:9086",
        "hub of the federation, used only after opting in",
        check=check_server,
    )
    federation_nats_user: str = setting("", "user at that hub")
    federation_nats_password: str = setting("", "password at that hub", secret=True)
    federation_tls_ca: str = setting(
        "", "file of the authority that signed that hub's certificate, if it is your own"
    )
    max_output_data_bytes: int = setting(
        102400, "kept of a task's input and of its output", low=0, high=16 * MIB
    )
    max_artifact_bytes: int = setting(
        20 * MIB, "largest wasm module that can be downloaded", high=256 * MIB
    )
    node_env: str = setting(
        "production", "development logs at debug level", choices=("production", "development")
    )
    log_level: str = setting(
        "info", "least level of tbmon's own log", choices=("debug", "info", "warning", "error")
    )

    @property
    def engine_url(self) -> str:
        """The Docker Engine's base URL; never taken from the Docker CLI's context."""
        return self.docker_host or f"unix://{self.docker_socket_path}"

    @property
    def keys(self) -> Path:
        """The folder of the 0600 key files."""
        return Path(self.key_dir) if self.key_dir else Path(self.db_path).parent


def convert(kind: str, text: str, rules: Mapping[str, Any]) -> object:
    """Return `text` as `kind` ("int", "bool" or "str"); raise ValueError with what it takes."""
    if kind == "bool":
        words = {
            "1": True,
            "true": True,
            "yes": True,
            "0": False,
            "false": False,
            "no": False,
            "": False,
        }
        if text.lower() not in words:
            raise ValueError("takes true or false")
        return words[text.lower()]
    if kind == "int":
        low, high = rules.get("low", 0), rules.get("high", 2**53)
        if not re.fullmatch(r"\d{1,16}", text, re.ASCII) or not low <= int(text) <= high:
            raise ValueError(f"takes a whole number from {low} to {high}")
        return int(text)
    if "choices" in rules and text not in rules["choices"]:
        raise ValueError("takes " + " or ".join(rules["choices"]))
    if not re.fullmatch(rules.get("pattern", ".*"), text, re.S):
        raise ValueError(f"takes {rules['takes']}")
    rules.get("check", str)(text)
    return text


def read_secret_file(path: str) -> str:
    """Return the secret in a NAME_FILE, without its final newline; ValueError if unreadable."""
    try:
        text = Path(path).read_text("utf-8").rstrip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"cannot be read: {error}") from None
    if not text.strip():
        raise ValueError("is empty; leave the variable out to go without")
    return text


def read_config(env: Mapping[str, str]) -> Config:
    """Build the Config from `env`; raise UserError naming every bad variable at once."""
    return Config(**read_settings(Config, env))


def read_settings(kind: Any, env: Mapping[str, str]) -> dict[str, Any]:
    """{field: value} of what `env` sets of a dataclass of settings; raise UserError naming every
    bad variable.
    """
    values: dict[str, Any] = {}
    problems: list[str] = []
    for item in fields(kind):
        name, rules = item.name.upper(), item.metadata
        text, source = env.get(name), name
        try:
            if rules.get("secret") and env.get(f"{name}_FILE"):
                source = f"{name}_FILE"
                if text:
                    raise ValueError(f"is set beside {name}: leave one of them out")
                text = read_secret_file(env[source])
            if text is not None and (text != "" or item.default == ""):
                values[item.name] = convert(str(item.type), text.strip(), rules)
        except ValueError as error:
            shown = "" if rules.get("secret") and source == name else f"={env[source]!r}"
            problems.append(f"{source}{shown}: {error}")
    if problems:
        raise UserError("bad settings:\n  " + "\n  ".join(problems))
    return values


def settings_help(kind: Any = Config) -> str:
    """The table that --help prints: every variable, its default and its sentence."""
    lines = [
        (
            "settings (environment variables; empty is the default; a secret NAME may be in the "
            "file "
            "NAME_FILE):"
        )
    ]
    for item in fields(kind):
        shown = (
            item.default
            if item.default not in ("", False)
            else {"": "unset", False: "false"}[item.default]
        )
        lines.append(f"  {item.name.upper():<22} {item.metadata['help']} (default {shown})")
    return "\n".join(lines)


# ---------------------------------------------------------------------------
# 2. Time                                                                (pure)
# ---------------------------------------------------------------------------

STAMP = re.compile(r"(\d{4})-(\d\d)-(\d\d)[ T](\d\d):(\d\d):(\d\d)", re.ASCII)
RFC3339 = re.compile(
    STAMP.pattern + r"(?:\.(\d{1,9}))?(Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)?", re.ASCII
)
ENGINE_STAMP = re.compile(
    rb"(\d{4}-\d\d-\d\dT\d\d:\d\d)(:[0-5]\d)(?:\.(\d+))?(Z|[+-](?:[01]\d|2[0-3]):?[0-5]\d)"
)
END_MS = 4_291_747_200_000  # 2106-01-01


def parse_second(text: str) -> int | None:
    """Read `YYYY-MM-DD HH:MM:SS` as seconds since 1970, as if UTC; None if it is no date.

    A leap second (:60) is the second after. Years 1970 to 2105 fit the four bytes of a stored key.
    """
    start = minute_start(text[:16]) if STAMP.fullmatch(text) else None
    second = int(text[17:19]) if start is not None else 61
    return None if start is None or second > 60 else start + second


@functools.lru_cache(64)
def minute_start(text: str) -> int | None:
    """The second at which `YYYY-MM-DD HH:MM` began."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    days = moment.toordinal() - 719_163
    return (
        days * 86400 + moment.hour * 3600 + moment.minute * 60
        if 1970 <= moment.year <= 2105
        else None
    )


def parse_time(value: object) -> int | None:
    """Read a time as milliseconds since 1970: RFC 3339 text, or seconds or milliseconds as number
    or text.

    Numbers below 10^11 are seconds. The node's event database was seen with ISO text and with
    milliseconds (node-data.md, 3.1). None for anything else, or outside 1970 to 2105.
    """
    if isinstance(value, str):
        text = value.strip()
        found = RFC3339.fullmatch(text)
        if found is not None:
            second, fraction, zone = parse_second(text[:19]), found[7] or "", found[8] or "Z"
            if second is None:
                return None
            ms = (second - seconds_ahead(zone)) * 1000 + int(fraction.ljust(3, "0")[:3])
            return ms if 0 <= ms < END_MS else None
        if not re.fullmatch(r"\d{1,16}(\.\d+)?", text, re.ASCII):
            return None
        value = float(text)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    value = value * 1000 if value < 1e11 else value
    return int(value) if 0 <= value < END_MS else None


def seconds_ahead(zone: str) -> int:
    """What `Z`, `+HH:MM` or `+HHMM` says in seconds ahead of UTC."""
    return 0 if zone == "Z" else int(zone[:3]) * 3600 + int(zone[0] + zone[-2:]) * 60


def utc_stamp(text: bytes) -> bytes | None:
    """An engine's stamp as `YYYY-MM-DDTHH:MM:SS.nnnnnnnnnZ`, so that the order of bytes is that of
    time; None if it is no stamp.

    Engines also write the offset of their own zone, and fewer digits or none (node-data.md, 2.6).
    """
    found = ENGINE_STAMP.fullmatch(text)
    minute = found and utc_minute(found[1].decode(), found[4].decode())
    if not found or not minute:
        return None
    return minute + found[2] + b"." + (found[3] or b"")[:9].ljust(9, b"0") + b"Z"


@functools.lru_cache(64)
def utc_minute(text: str, zone: str) -> bytes | None:
    """`YYYY-MM-DDTHH:MM` in UTC, of the same in a zone named by its offset; None if it is no date
    from 1970 to 2105.
    """
    start = minute_start(text)
    second = -1 if start is None else start - seconds_ahead(zone)
    if not 0 <= second * 1000 < END_MS:
        return None
    return second_text(second)[:16].replace(" ", "T").encode()


def utc(ms: int | None) -> str | None:
    """Format milliseconds as `YYYY-MM-DDTHH:MM:SS.mmmZ`; None stays None."""
    if ms is None:
        return None
    return f"{second_text(ms // 1000).replace(' ', 'T')}.{ms % 1000:03d}Z"


def utc_day(ms: int) -> str:
    """The UTC day of a time, as `YYYY-MM-DD`."""
    return second_text(ms // 1000)[:10]


@functools.lru_cache(1024)  # a page asked for again shows the same times
def second_text(second: int) -> str:
    """Format a stamp's second as the node writes it."""
    return datetime.fromtimestamp(second, UTC).isoformat(" ")[:19]


def day_words(ms: int, now: int) -> str:
    """The UTC day of a time as in `12 April`, with its year unless that is the year of `now`."""
    day = datetime.fromtimestamp(ms // 1000, UTC)
    is_this_year = utc_day(ms)[:4] == utc_day(now)[:4]
    return f"{day.day} {day:%B}" + ("" if is_this_year else f" {day.year}")


def moment_words(ms: int, now: int) -> str:
    """A time as in `12 April at 16:47 UTC`."""
    return f"{day_words(ms, now)} at {second_text(ms // 1000)[11:16]} UTC"


@dataclass(slots=True)
class Heard:
    """The node's clock was heard to be so far ahead of UTC, for the first and for the last time."""

    offset_s: int
    from_ms: int
    to_ms: int


class Zone:
    """Turns the node's zone-less stamps into UTC.

    With a named zone the zone's own rules decide. With auto the offset, a multiple of 15 minutes,
    is taken from the first header that comes with the engine's stamp, and changed (summer time)
    only when all headers of RIVAL_S agree on another, 6 at least; UTC until there is something to
    compare with.

    What was never heard with the engine's stamps, as the files' history, may have another offset.
    If the zone of this machine fits all that was `heard`, its rules decide (`rules`); else the
    offset that was heard nearest in time.
    """

    RIVAL_S = 120  # the node's pulse
    HEARD = 8  # the newest are kept

    def __init__(
        self,
        name: str,
        offset_s: int | None = None,
        machine: str | None = None,
        heard: Iterable[Sequence[int]] = (),
    ) -> None:
        self.named = None if name == "auto" else zone_rules(name)
        self.offset_s = offset_s
        self.machine = machine
        self.heard = [Heard(*one) for one in heard]  # the last is what holds now
        self.fitting: tzinfo | None = None
        self.judged_ms = 0  # what was heard then had been looked at for `fitting`
        self.rival_s, self.rival_since, self.streak = 0, 0, 0

    def learn(self, second: int, engine_ms: int) -> None:
        """Compare a header's second with the engine's stamp of the same line."""
        difference = second - engine_ms // 1000
        nearest = round(difference / 900) * 900
        if self.named or abs(difference - nearest) > 60 or abs(nearest) > ZONE_S:
            self.streak = 0
            return
        if nearest == self.offset_s:
            self.streak = 0
            if not self.heard:
                self.heard.append(Heard(nearest, engine_ms, engine_ms))
            elif engine_ms > self.heard[-1].to_ms:
                self.heard[-1].to_ms = engine_ms
            return
        if nearest != self.rival_s or not self.streak:
            self.rival_s, self.rival_since, self.streak = nearest, engine_ms, 0
        self.streak += 1
        agreed = self.streak >= 6 and engine_ms - self.rival_since >= self.RIVAL_S * 1000
        if self.offset_s is None or agreed:
            self.offset_s, self.streak = nearest, 0
            self.heard.append(Heard(nearest, self.rival_since, engine_ms))
            del self.heard[: -self.HEARD]

    def rules(self) -> tzinfo | None:
        """The rules of this machine's zone, if they fit all that was heard.

        A clock that was only heard on UTC fits none: it is a container's without a zone, and not
        that of a machine in London in winter.
        """
        heard = self.heard
        if heard and self.judged_ms != heard[-1].to_ms:
            self.judged_ms = heard[-1].to_ms
            rules = zone_rules(self.machine or "") if any(one.offset_s for one in heard) else None
            fits = rules and all(is_offset_of(rules, one) for one in heard)
            self.fitting = rules if fits else None
        return self.fitting

    def words(self) -> str:
        """How stamps are read that come without the engine's, and how sure that is."""
        if self.offset_s is None:
            return "the node's zone is not known yet: times in its log files count as UTC"
        sign = "-" if self.offset_s < 0 else "+"
        clock = f"the node's clock is at UTC{sign}{second_text(abs(self.offset_s))[11:16]}"
        if self.rules() is None:
            return (
                f"{clock}; if it has summer time, times in its log files from before a change may "
                f"be an hour off, unless NODE_TIMEZONE names its zone"
            )
        surely = "as" if len({one.offset_s for one in self.heard}) > 1 else "probably as"
        return f"{clock}, {surely} in {self.machine}, by whose rules its log files are read"

    def offset_near(self, second: int) -> int:
        """The offset that was heard nearest to the moment that a stamp shows."""

        def away_ms(one: Heard) -> int:
            ms = (second - one.offset_s) * 1000
            return max(one.from_ms - ms, ms - one.to_ms, 0)

        unheard = Heard(self.offset_s or 0, 0, 0)
        return min(reversed(self.heard), key=away_ms, default=unheard).offset_s

    def utc_ms(self, second: int, near_ms: int | None = None) -> int:
        """The moment, in ms UTC, that the node's clock showed as `second`; of two (summer time
        ends) the nearer one.
        """
        rules = self.named
        if rules is None:
            now_ms = (second - (self.offset_s or 0)) * 1000
            if near_ms is not None and abs(now_ms - near_ms) <= BELIEF_MS:
                return now_ms
            rules = self.rules()
            if rules is None:
                return (second - self.offset_near(second)) * 1000
        try:
            local = datetime.fromtimestamp(second, UTC).replace(tzinfo=rules)
            both = [int(local.replace(fold=fold).timestamp()) * 1000 for fold in (0, 1)]
            return both[0] if near_ms is None else min(both, key=lambda ms: abs(ms - near_ms))
        except (OverflowError, ValueError):
            return second * 1000


def is_offset_of(rules: tzinfo, heard: Heard) -> bool:
    """True if a clock with these rules shows what was heard; the last header may have come late."""
    offset = timedelta(seconds=heard.offset_s)
    ends = heard.from_ms, max(heard.from_ms, heard.to_ms - MINUTE_MS)
    return all(datetime.fromtimestamp(ms // 1000, rules).utcoffset() == offset for ms in ends)


# ---------------------------------------------------------------------------
# 3. Node data                                                           (pure)
# ---------------------------------------------------------------------------

LOG_TYPES = (
    "raw",
    "info",
    "semaphore",
    "registration",
    "task_received",
    "task_download",
    "task_start",
    "execution_output",
    "task_completed",
    "task_failed",
    "task_published",
    "invoice",
)
LEVELS = ("", "error", "warn", "info", "http", "verbose", "debug", "silly")
TYPE_NUMBERS, LEVEL_NUMBERS = (
    {name: number for number, name in enumerate(names)} for names in (LOG_TYPES, LEVELS)
)
PAYLOAD_TYPES = ("task_received", "execution_output", "invoice", "task_failed")
KNOWN_INFO = (  # wordings that carry nothing to keep, yet are no sign of a changed log
    "Message received from ",
    "Message published to ",
    "Starting services",
    "Connected to ",
    "Heartbeat sent",
    "Message bus ",
    "Retrying connection",
    "cache lookup",
)
TASK_TYPES = {
    "rs": "rust",
    "js": "javascript",
    "py": "python",
    "c": "c",
    "cpp": "cpp",
    "api": "api",
}
REASONS = (  # wording of limits in node logs is not known (node-data.md, 4.4): matched by word
    ("gas", "gas_limit"),
    ("memory", "memory_limit"),
    ("stack", "stack_limit"),
    ("frame", "stack_limit"),
    ("call", "call_limit"),
    ("timeout", "timeout"),
    ("timed out", "timeout"),
    ("download", "download"),
)

ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[ -/]+[0-~]|[0-Z\\^-~])"
)
TAIL = re.compile(
    r" ([A-Za-z]+): "
    r"(@truebit/[^\s:]+?)(?:-(0[xX][0-9a-fA-F]+|[0-9a-fA-F]{40}))?:(v?\d[\w.+-]*)(?: (.*))?",
    re.S | re.ASCII,
)
PREFIX = re.compile(
    r"(?:[\w.-]+ *\| ?)?(?:\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z )?(?=\d{4}-\d\d-\d\d "
    r"\d\d:\d\d:\d\d )",
    re.ASCII,
)
ENGINE_PREFIX = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z ", re.ASCII)
COMPOSE = re.compile(r"[\w.-]+ *\| ?", re.ASCII)
UUID = r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
EXECUTION = re.compile(rf"Execution ({UUID}) (completed|failed)\b(.*)", re.S)
EXECUTION_ID = re.compile(rf"""["']?executionId["']?\s*[:=]\s*["']?({UUID})(?![0-9a-fA-F-])""")
DOWNLOADED = re.compile(r"Task ([\w./-]{1,160}) downloaded successfully", re.ASCII)
SEMAPHORE = re.compile(
    r"Semaphore (\w{1,64}) (?:message received|processing started|processing completed)\b.{0,80}?"
    r"(?:\((\d{1,6})/(\d{1,6}) (slots used|now active)\)|Using slot (\d{1,6})/(\d{1,6}))",
    re.S,
)
REGISTRATION = re.compile(
    r"Node with address (\S+) (registered|deregistered|requested (?:de)?registration)\b"
)
OWN_START = re.compile(
    r"Command execution std(?:out|err):|\(node:\d+\) |\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d", re.ASCII
)
LOGGER = b": @truebit/"
BEFORE_LOGGER_BYTES = 26  # the least that stands before a logger which does not begin its line
INNER_HEADER = re.compile(
    rb"(?<=.)\d{4}-\d\d-\d\d \d\d:\d\d:\d\d [A-Za-z]{1,16}: @truebit/[^\s:]+:v?\d", re.S
)
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
# `++` and `*+` never give back: else each character of a string would be remembered until its end
QUOTED = re.compile(r'"(?:[^"\\]++|\\.)*+"|\'(?:[^\'\\\n]++|\\.)*+\'|\\.', re.S)
WALLET = re.compile(r"(?:0[xX]|(?<![0-9a-fA-F]))[0-9a-fA-F]{40}(?![1-9a-fA-F]|0(?![xX]))")
HEX_RUN = re.compile(r"[0-9a-fA-F]{40}")


def keyed(key: bytes, kind: str, text: str) -> bytes:
    """The 32-byte HMAC of `text` under the local key; `kind` keeps uses of the key apart.

    Only its ASCII counts: where the json-file driver cuts a line at 16 KiB, the engine turns a
    split character into replacement characters, and the same line from a file must be the same.
    """
    return hmac.digest(key, kind.encode() + b"\0" + text.encode("ascii", "ignore"), "sha256")


HEX_VALUES = {digit: int(digit, 16) for digit in "0123456789abcdefABCDEF"}
MARK_PRIME = 2**31 - 1
MARKS = 1024  # of addresses named of late, kept in memory
cached_keyed = functools.lru_cache(1024)(keyed)  # for the few addresses of a log


class Redactor:
    """Replaces wallet addresses by `wallet:` + 16 hex digits that only the local key can make.

    `seen` holds the digits of addresses that stood in logger names: they are replaced wherever they
    occur, also inside longer runs, while other addresses are recognised as exactly 40 digits.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.seen: set[str] = set()
        self.anywhere: re.Pattern[str] | None = None
        self.own: frozenset[str] = frozenset()  # pseudonyms known from earlier runs
        self.base = int.from_bytes(keyed(key, "mark", "")[:4], "big") % MARK_PRIME
        self.marks: dict[str, int] = {}  # by pseudonym: 16 bits, by which digits are found fast

    def see(self, address: str) -> str:
        """Remember an address from a logger's name and return its pseudonym."""
        digits = address[-40:].lower()
        if len(digits) == 40 and digits not in self.seen and len(self.seen) < 64:
            self.seen.add(digits)
            self.anywhere = re.compile("((?:0x)?(?:" + "|".join(self.seen) + "))", re.I)
        return self.name(digits)

    def pseudonym(self, digits: str) -> str:
        return "wallet:" + cached_keyed(self.key, "wallet", digits[-40:].lower()).hex()[:16]

    def name(self, address: str) -> str:
        """The pseudonym of an address, whose mark is kept for when it is our own."""
        found = self.pseudonym(address)
        if found not in self.marks and HEX_RUN.fullmatch(address[-40:]):
            if len(self.marks) >= MARKS:
                self.marks = {name: self.marks[name] for name in self.own & self.marks.keys()}
            self.marks[found] = next(self.marks_in(address[-40:]))
        return found

    def marks_in(self, run: str) -> Iterator[int]:
        """The mark of every 40 digits in a row: a hash that rolls on with each digit, and that only
        who has the local key can make.
        """
        values = [HEX_VALUES[digit] for digit in run]
        base, out = self.base, pow(self.base, 40, MARK_PRIME)
        rolling = 0
        for value in values[:40]:
            rolling = (rolling * base + value) % MARK_PRIME
        yield rolling & 0xFFFF
        for value, gone in zip(values[40:], values, strict=False):
            rolling = (rolling * base + value - gone * out) % MARK_PRIME
            yield rolling & 0xFFFF

    def look_for_own(self, run: str) -> None:
        """See each of our own addresses in a run of digits. To name all that may be one would take
        a second for 250,000 digits, so that only what has a known mark is named.
        """
        known = {self.marks.get(name, -1) for name in self.own}
        for at, mark in enumerate(self.marks_in(run)):
            if (mark in known or -1 in known) and self.pseudonym(run[at : at + 40]) in self.own:
                self.see(run[at : at + 40])

    def clean(self, text: str, replacement: str = "") -> str:
        """Return `text` without addresses; each becomes `replacement`, or its pseudonym if that is
        empty.
        """
        if "wallet:" in text:
            text = text.replace("wallet:", "wallet::")
        if len(text) < 40 or HEX_RUN.search(text) is None:
            return text

        def named(address: str) -> str:
            return replacement or self.name(address)

        if (
            self.anywhere is None and self.own
        ):  # until a header names it, its pseudonym is all we know
            for run in re.findall("[0-9a-fA-F]{41,}", text):
                self.look_for_own(run)
        parts = (
            self.anywhere.split(text) if self.anywhere else [text]
        )  # another's beside it stands alone then
        parts[::2] = [WALLET.sub(lambda found: named(found[0]), part) for part in parts[::2]]
        parts[1::2] = map(named, parts[1::2])
        return "".join(parts)


class Head(NamedTuple):
    """What a header says of its writer; `suffix` is the pseudonym of the address in the logger's
    name.
    """

    level: str
    suffix: str | None
    version: str


@dataclass(slots=True)
class Entry:
    """One logged statement. `second` is its stamp as written, read as UTC; `raw` its words before
    redaction.

    `engine_ms` is the engine's stamp of its first line, None from files. `stamped` tells whether
    the stamp is its own. The fields from `changed` on belong to who assembles and records it.
    """

    second: int
    head: Head | None
    type: str
    text: str
    header_id: bytes
    engine_ms: int | None = None
    raw: str = ""
    stamped: bool = True
    changed: bool = True
    depth: int | None = None
    key: bytes = b""
    seq: int = 0
    at: int = 0
    believed: bool = False
    execution_id: str | None = None
    flags: int = 0
    waits: bool = False  # its payload was open when it was last looked at

    def expects_more(self) -> bool:
        """True while a payload is open: the text ends in a colon or its brackets are not
        balanced.
        """
        if self.depth is None:
            self.depth = bracket_depth(self.text)
        return self.depth > 0 or self.text.rstrip()[-1:] == ":"

    def extend(self, text: str, raw: str) -> None:
        """Add a continuation line; beyond ENTRY_BYTES only the brackets are still counted."""
        self.depth = (
            bracket_depth(self.text) if self.depth is None else self.depth
        ) + bracket_depth(text)
        if len(self.text) + len(text) < ENTRY_BYTES:
            self.text += "\n" + text
            self.changed = True
            if (
                self.raw
            ):  # not so for an entry taken up again from the store, which has no raw words
                self.raw += "\n" + raw


def bracket_depth(text: str) -> int:
    """How many brackets `text` leaves open, those inside quotes not counted; may be negative."""
    if not ("{" in text or "[" in text or "}" in text or "]" in text):
        return 0
    bare = QUOTED.sub("", text)
    return bare.count("{") + bare.count("[") - bare.count("}") - bare.count("]")


def classify(message: str) -> str:
    """The log type of a message that has a header (node-data.md, 2.3; wording certain where marked
    there).
    """
    if message.startswith("Semaphore "):
        return "semaphore" if SEMAPHORE.match(message) else "info"
    if message.startswith("Message received from task_created"):
        return "task_received"
    if message.startswith("Command execution std"):
        return "execution_output"
    if message.startswith("Execution ") and (found := EXECUTION.match(message)):
        return "task_" + found[2]
    if message.startswith("Message published to compute_outcome"):
        return "task_published"
    if message.startswith("Starting task execution"):
        return "task_start"
    if message.startswith("Task ") and DOWNLOADED.match(message):
        return "task_download"
    if message.startswith("Node with address ") and REGISTRATION.match(message):
        return "registration"
    return "invoice" if "InvoiceSubscriber" in message else "info"


def is_recognised(entry_type: str, text: str) -> bool:
    """False for what a changed log would look like: no header we know, or a wording we do not."""
    return entry_type != "raw" and (entry_type != "info" or text.startswith(KNOWN_INFO))


SECONDS = {b"%02d" % second: second for second in range(60)}


def is_ahead(second: int, engine_ms: int | None) -> bool:
    """True for a stamp that no zone's clock can show yet, where there is an engine's to compare
    with.
    """
    return bool(engine_ms) and second - (engine_ms or 0) // 1000 > ZONE_S


class Assembler:
    """Joins one stream's lines to entries; pure but for what it remembers of the stream.

    Feed it whole lines as (bytes without newline, engine's stamp in ms or None, place), where
    `place` tells apart lines that have no stamp before them: the engine's stamp, or the offset in
    the file.
    """

    def __init__(self, redactor: Redactor, last_second: int | None = None) -> None:
        self.redactor = redactor
        self.open: Entry | None = None
        self.known: dict[
            bytes, tuple[Head, str, str, bytes]
        ] = {}  # what a text means; most come again and again
        self.stamp, self.second = b"", last_second
        self.minute, self.minute_second = b"", 0
        self.compose, self.dated = (
            False,
            False,
        )  # what the last header had before it, and so its continuations

    def feed(self, lines: Iterable[tuple[bytes, int | None, object]]) -> list[Entry]:
        """Return every entry that began or grew, in order; the last one may grow again at the next
        call.
        """
        entries: list[Entry] = []
        for raw, engine_ms, place in self.pieces(lines):
            known = self.known.get(raw[19:])
            if known is not None and (
                raw[:19] == self.stamp or self.read_stamp(raw[:19], engine_ms)
            ):
                assert self.second is not None
                self.compose = self.dated = (
                    False  # a header is known by what follows its stamp, with nothing before it
                )
                entry = Entry(self.second, *known, engine_ms)
            else:
                found = self.read_line(
                    raw[:LINE_BYTES].decode("utf-8", "replace"), engine_ms, place
                )
                if found is None:
                    continue
                entry = found
            if self.open is not None and (self.open.changed or self.open.waits):
                self.open.changed = False
                entries.append(self.open)
            self.open = entry
        if self.open is not None and self.open.changed:
            self.open.changed = False
            entries.append(self.open)
        return entries

    def pieces(
        self, lines: Iterable[tuple[bytes, int | None, object]]
    ) -> Iterator[tuple[bytes, int | None, object]]:
        """The lines without colours, and cut where a header begins behind other words."""
        for raw, engine_ms, place in lines:
            if raw[-1:] == b"\r":
                raw = raw[:-1]
            if b"\x1b" in raw:
                raw = ESCAPES.sub(b"", raw)
            while raw.find(LOGGER, BEFORE_LOGGER_BYTES) >= 0 and (at := self.inner_header(raw)):
                yield raw[:at].rstrip(b"\r"), engine_ms, place
                raw = raw[at:]
            yield raw, engine_ms, place

    def inner_header(self, raw: bytes) -> int:
        """Where a header begins behind words that had no newline; 0 if none does.

        Behind a carriage return one always does, as on a terminal. Else a line that has a header of
        its own may quote one, and so may an open payload, as all is that stands before the first
        header.
        """
        for found in INNER_HEADER.finditer(raw):
            if raw[found.start() - 1] == ord("\r"):
                return found.start()
            is_open = self.second is None or (self.open is not None and self.open.expects_more())
            if not is_open and not PREFIX.match(raw.decode("utf-8", "replace")):
                return found.start()
        return 0

    def read_stamp(self, stamp: bytes, engine_ms: int | None) -> bool:
        """Take over a header's stamp; False for none, and for one ahead, whose line would be the
        newest for years.
        """
        in_minute = SECONDS.get(stamp[17:]) if stamp[:17] == self.minute else None
        if in_minute is not None:
            self.stamp, self.second = stamp, self.minute_second + in_minute
            return True
        second = parse_second(stamp.decode("ascii", "replace"))
        if second is None or stamp[10:11] != b" " or is_ahead(second, engine_ms):
            return False
        self.stamp, self.second = stamp, second
        self.minute, self.minute_second = stamp[:17], second - int(stamp[17:])
        return True

    def read_line(self, line: str, engine_ms: int | None, place: object) -> Entry | None:
        """Return the entry that `line` begins; or None, after adding it to the open one."""
        begin = PREFIX.match(line)
        tail = TAIL.fullmatch(line, begin.end() + 19) if begin is not None else None
        if begin and tail and self.read_stamp(line[begin.end() :][:19].encode(), engine_ms):
            lead = line[: begin.end()]
            self.compose, self.dated = "|" in lead, lead.endswith("Z ")
            return self.read_header(tail, engine_ms)
        if self.compose and (prefix := COMPOSE.match(line)):
            line = line[prefix.end() :]
        if self.dated and (prefix := ENGINE_PREFIX.match(line)):
            line = line[prefix.end() :]
        bare = self.redactor.clean(line)
        starts = OWN_START.match(line) or CONTROL.search(line)
        if (
            self.open is not None
            and not starts
            and (line[:1] in ("", " ", "\t") or self.open.expects_more())
        ):
            self.open.extend(bare, line)
            return None
        return self.read_headless(line, bare, engine_ms, place) if line.strip() else None

    def read_header(self, tail: re.Match[str], engine_ms: int | None) -> Entry:
        level, logger, address, version, message = tail.groups()
        suffix = None if address is None else self.redactor.see(address)
        message = message or ""
        head = Head(level.lower(), suffix, self.redactor.clean(version))
        text = self.redactor.clean(message)[:ENTRY_BYTES]
        kind = classify(message)
        mark = "-wallet" if suffix else ""
        plain = f"{level}: {logger}{mark}:{version} {self.redactor.clean(message, 'wallet:')}"
        header_id = keyed(self.redactor.key, "entry", plain)[:12]
        if kind in PAYLOAD_TYPES:
            return Entry(
                self.stamp_second(), head, kind, text, header_id, engine_ms, message[:ENTRY_BYTES]
            )
        words = tail.string[tail.start() :].encode("utf-8", "replace")
        if len(words) < 400 and HEX_RUN.search(message) is None:
            if len(self.known) >= 8192:
                self.known.clear()
            self.known[words] = head, kind, text, header_id
        return Entry(self.stamp_second(), head, kind, text, header_id, engine_ms)

    def read_headless(self, line: str, bare: str, engine_ms: int | None, place: object) -> Entry:
        """An entry without a header takes the stamp before it; where there is none, `place` tells
        it apart.
        """
        kind = "execution_output" if line.startswith("Command execution std") else "raw"
        own = parse_second(line[:19]) if line[10:11] == " " else None
        own = None if own is None or is_ahead(own, engine_ms) else own
        second = self.second if own is None else own
        plain = self.redactor.clean(line, "wallet:")
        if second is None:
            plain += f"\0{place}"
        header_id = keyed(self.redactor.key, "line", plain)[:12]
        stamp = second if second is not None else (engine_ms or 0) // 1000
        raw = line[:ENTRY_BYTES] if kind in PAYLOAD_TYPES else ""
        return Entry(
            stamp, None, kind, bare[:ENTRY_BYTES], header_id, engine_ms, raw, own is not None
        )

    def stamp_second(self) -> int:
        assert self.second is not None
        return self.second


@dataclass(slots=True)
class Rival:
    """Another identity than the node's, which may turn out to be its new one.

    Its entries change nothing until then. `entries` holds those of this process's life, up to some
    bytes; the store has them all, from `from_key` on.
    """

    who: tuple[str | None, str]
    since_s: int
    from_key: bytes
    headers: int = 0
    held_bytes: int = 0
    is_whole: bool = True  # all its entries are held
    entries: list[Entry] = field(default_factory=list)


class Trust:
    """Decides which headers the node wrote itself.

    Text of a task can imitate any line. Believed is the identity (suffix, version) that the node
    established when it started: the newest seen until a header carries an address, for two minutes
    at most. Another identity takes its place only after a restart (`restart`), or once it alone has
    been heard for ten minutes and 20 headers, as after a restart that nobody reported; it is in
    `adopted` then, so that its entries can be taken again.
    """

    SETTLE_S, RIVAL_S, RIVALS = 120, 600, 20
    HELD_BYTES = 8 * MIB

    def __init__(
        self, identity: tuple[str | None, str] | None = None, first_second: int | None = None
    ) -> None:
        self.identity = identity
        self.first_second = first_second  # of the identity that the start established
        self.heard = 0  # when the node's own last header came
        self.rival: Rival | None = None
        self.adopted: Rival | None = None

    def restart(self) -> None:
        """The container started: the next headers establish the identity anew."""
        self.identity, self.first_second, self.heard = None, None, 0
        self.rival = None

    def judge(self, entry: Entry) -> bool:
        """True if the entry's header is the node's own."""
        if entry.head is None:
            return False
        who = entry.head.suffix, entry.head.version
        if who == self.identity:
            self.heard = self.moment(entry)
            self.rival = None
            return True
        if self.identity is None:
            self.identity, self.first_second = who, entry.second
            return True
        settling = self.identity[0] is None and self.first_second is not None
        if settling and 0 <= entry.second - (self.first_second or 0) <= self.SETTLE_S:
            self.identity = who
            return True
        self.hold(entry, who)
        return False

    def moment(self, entry: Entry) -> int:
        """When a header came, in seconds: by the engine's clock, which no task can set, else by its
        own stamp.
        """
        return entry.second if entry.engine_ms is None else entry.engine_ms // 1000

    def hold(self, entry: Entry, who: tuple[str | None, str]) -> None:
        """Keep an entry of another identity, which may turn out to be the node's new one."""
        if self.moment(entry) < self.heard:
            return
        rival = self.rival
        if rival is None or rival.who != who:
            rival = self.rival = Rival(who, self.moment(entry), entry.key)
        rival.headers += 1
        rival.held_bytes += HELD_ENTRY_BYTES + len(entry.text) + len(entry.raw)
        if rival.held_bytes <= self.HELD_BYTES:
            rival.entries.append(entry)
        else:
            rival.is_whole = False
        if rival.headers >= self.RIVALS and self.moment(entry) - rival.since_s >= self.RIVAL_S:
            self.identity, self.adopted, self.rival = who, rival, None


ATOM = object()  # marks "no value read yet"
TOKEN = re.compile(
    r"""(?P<open>[{\[](?![A-Z][\w ]*(?:\ \*\d+|:[^\[\]{}]*)?\]))|(?P<close>[}\]])|(?P<mark>[:,+])"""
    r"""|(?P<atom>\[[A-Z][^\]]*\]|\d{4}-\d\d-\d\dT[\d:.]+Z)"""
    r"""|(?P<text>"(?:[^"\\]|\\.)*"?|'(?:[^'\\]|\\.)*'?|`(?:[^`\\]|\\.)*`?)"""
    r"""|(?P<word>(?:[^\s{}\[\]:,"'`+]|(?<=\de)\+(?=\d))+)""",
    re.S | re.ASCII,
)
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.S)


def unescape(found: re.Match[str]) -> str:
    code = found[1]
    if len(code) > 1:
        return chr(int(code[1:], 16))
    return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "0": "\0", "\n": ""}.get(
        code, code
    )


def read_word(word: str) -> object:
    """The value of an unquoted word: a number (123n too), true, false, null, undefined, or the word
    itself.
    """
    words: dict[str, object] = {"true": True, "false": False, "null": None, "undefined": None}
    if word in words:
        return words[word]
    for kind, text in ((int, word.removesuffix("n")), (float, word)) if len(word) < 40 else ():
        with contextlib.suppress(ValueError):  # not a number of this kind
            return kind(text)
    return word


def read_token(found: re.Match[str]) -> object:
    """The value of one token of TOKEN; None for what stands for a value that is not shown."""
    if found.lastgroup == "text":
        quote = found[0][0]
        inner = found[0][1:-1] if len(found[0]) > 1 and found[0][-1] == quote else found[0][1:]
        return ESCAPE.sub(unescape, inner) if "\\" in inner else inner
    if found.lastgroup == "word":
        return read_word(found[0])
    return (
        found[0] if found[0][0].isdigit() else None
    )  # a date, or [Object], [Array], [Circular *1]


def put(box: dict[str, object] | list[object], name: object, value: object) -> None:
    if isinstance(box, list):
        box.append(value)
    elif isinstance(name, str):
        box.setdefault(name, value)


def read_inspect(text: str) -> object:
    """Read the first object or list of `text` as JavaScript's util.inspect prints it, or broken
    JSON.

    Lenient: unquoted keys, any quotes, [Object], `... 3 more items`, a missing end. One pass, no
    recursion.
    """
    stack: list[
        tuple[dict[str, object] | list[object], object]
    ] = []  # a box, and the name of its next value
    value, joins = ATOM, False
    for found in TOKEN.finditer(text):
        kind = found.lastgroup
        if kind == "open":
            box: dict[str, object] | list[object] = {} if found[0] == "{" else []
            if stack and len(stack) < PAYLOAD_DEPTH:
                put(*stack[-1], box)
                stack[-1] = stack[-1][0], None
            stack.append((box, None))
            value = ATOM
        elif not stack:
            continue
        elif kind == "close" or found[0] == ",":
            if value is not ATOM:
                put(*stack[-1], value)
            value, stack[-1] = ATOM, (stack[-1][0], None)
            if kind == "close" and len(stack) == 1:
                break
            if kind == "close":
                stack.pop()
        elif found[0] == ":":
            if stack[-1][1] is None:
                stack[-1] = stack[-1][0], str(value)
                value = ATOM
        elif found[0] == "+":
            joins = True
        else:
            token = read_token(found)
            if joins and isinstance(value, str) and isinstance(token, str):
                value += token
            elif value is ATOM:
                value = token
            joins = False
    if stack and value is not ATOM:
        put(*stack[-1], value)
    return stack[0][0] if stack else None


DECODER = json.JSONDecoder(strict=False)
BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"?|[{}\[\]]', re.S)


def read_json(text: str, at: int, decoder: json.JSONDecoder = DECODER) -> tuple[object, int]:
    """The JSON value that begins at `at`, and where it ends; raises ValueError if there is none,
    or lists and objects nest deeper in it than PAYLOAD_DEPTH.

    Python reads deeper ones than it can write again, and nobody asks how deep a stack it has left.
    """
    try:
        value, end = decoder.raw_decode(text, at)
    except RecursionError:
        raise ValueError("it is nested too deep to be read") from None
    if text.count("[", at, end) + text.count("{", at, end) > PAYLOAD_DEPTH:
        depth = 0
        for found in BRACKETS.finditer(text, at, end):
            depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(found[0], 0)
            if depth > PAYLOAD_DEPTH:
                raise ValueError("it is nested too deep")
    return value, end


PAYLOAD_NAMES = {  # by which the payload of a type is told from other words in brackets
    "task_received": {"payload", "executionId", "message", "taskId"},
    "execution_output": {"elapsed", "wasi", "metering", "execution", "executionId"},
    "invoice": {"invoiceId", "executionId", "lineItem"},
}
PAYLOAD_TRIES = 4  # braces of a message that are tried


def read_payload(text: str, names: Collection[str] = ()) -> dict[str, Any]:
    """Return the first object of a message, or the first that has one of `names`; {} if there is
    none.

    It is JSON, or as JavaScript prints it. What else stands in brackets is passed over:

    >>> read_payload('[queue-1] {queue 1} received: {"invoiceId": "7"}', {"invoiceId"})
    {'invoiceId': '7'}
    """
    at = text.find("{")
    for _ in range(PAYLOAD_TRIES):
        if at < 0:
            break
        try:
            value, end = read_json(text, at)
        except ValueError:
            value, end = read_inspect(text[at:]), at + 1
        if isinstance(value, dict) and (not names or any(name in value for name in names)):
            return value
        at = text.find("{", end)
    return {}


def part(value: object, *path: str) -> Any:
    """Walk into nested objects; None where a step is missing."""
    for name in path:
        value = value.get(name) if isinstance(value, dict) else None
    return value


def whole(value: object, low: int = 0, high: int = 2**63 - 1) -> int | None:
    """A whole number in the range, from a number or its decimal text; None for anything else."""
    if isinstance(value, str) and re.fullmatch(r"-?\d{1,19}", value, re.ASCII):
        value = int(value)
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    good = isinstance(value, int) and not isinstance(value, bool) and low <= value <= high
    return value if good else None  # type: ignore[return-value]


Clean = Callable[[str], str]  # Redactor.clean, or str for what is clean already


def hex64(value: object, clean: Clean) -> str | None:
    """The 64 lower-case digits of a hash, with or without 0x before them; none that hold the node's
    own address.
    """
    found = re.fullmatch(r"(?:0x)?([0-9a-fA-F]{64})", value) if isinstance(value, str) else None
    return found[1].lower() if found and clean(found[1]) == found[1] else None


def uuid(value: object) -> str | None:
    return value.lower() if isinstance(value, str) and re.fullmatch(UUID, value) else None


def name_or_none(value: object, clean: Clean) -> str | None:
    """A task id, chain or operation: short, without blanks, addresses replaced."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not re.fullmatch(r"[\w.:/-]{1,160}", value, re.ASCII):
        return None
    return clean(value)


class Event(NamedTuple):
    """A fact about tasks, invoices or the node. `fields` are columns of Task, or what the kind
    says.

    Kinds: the log types, and task_created, computed_outcome, invoice of the event database.
    """

    kind: str
    execution_id: str | None
    fields: dict[str, Any]


def json_text(value: object) -> str | None:
    """`value` as JSON; None if it is nested too deep to be written."""
    try:
        return json.dumps(value)
    except RecursionError:
        return None


def task_event(body: Mapping[str, Any], clean: Clean) -> Event | None:
    """Read a task_created payload (node-data.md, 3.1); None without a strict execution id."""
    message = body.get("message")
    message = message if isinstance(message, dict) else body
    execution_id = uuid(body.get("executionId")) or uuid(part(message, "executionId"))
    if execution_id is None:
        return None
    task_id = name_or_none(part(message, "taskId"), clean)
    language, _, rest = (task_id or "").partition("_")
    given = part(message, "input")
    fields = {
        "task_id": task_id,
        "task_hash": hex64(rest.partition("/")[0], clean),
        "task_type": TASK_TYPES.get(language, "other") if task_id else None,
        "chain_id": name_or_none(part(message, "chainId"), clean),
        "block_number": whole(part(message, "blockNumber")),
        "block_hash": hex64(part(message, "blockHash"), clean),
        "gas_limit": whole(part(message, "limits", "gas")),
        "memory_limit": whole(part(message, "limits", "memory")),
        "timeout_ms": whole(
            part(message, "econParams", "executionTimeout") or part(message, "executionTimeout")
        ),
        "received_at": parse_time(body.get("timestamp")),
        "input": given if isinstance(given, str) or given is None else json_text(given),
    }
    return Event("task_created", execution_id, fields)


def output_event(text: str, raw: str, clean: Clean) -> Event:
    """Read `Command execution stdout|stderr:`; elapsed is nanoseconds (node-data.md, 2.5,
    inferred).
    """
    stream = "stderr" if raw.startswith("Command execution stderr") else "stdout"
    words = raw.partition(":")[2].strip()
    if stream == "stderr":
        return Event("execution_output", None, {"error_text": text.partition(":")[2].strip()})
    payload = read_payload(words, PAYLOAD_NAMES["execution_output"])
    elapsed_ns = whole(payload.get("elapsed"))
    cached = part(payload, "execution", "prepare", "cached")
    fields = {
        "elapsed_ms": None if elapsed_ns is None else elapsed_ns // 1_000_000,
        "exit_code": whole(part(payload, "wasi", "exitCode"), -(2**31), 2**32 - 1),
        "gas_limit": whole(part(payload, "metering", "limits", "gas")),
        "memory_limit": whole(part(payload, "metering", "limits", "memory")),
        "gas_used": whole(part(payload, "metering", "last", "steps")),
        "memory_peak": whole(part(payload, "metering", "peak", "memory")),
        "wasm_hash": hex64(part(payload, "execution", "wasm", "hash"), clean),
        "cached": cached if isinstance(cached, bool) else None,
        "output": words,
    }
    return Event("execution_output", uuid(payload.get("executionId")), fields)


def invoice_event(body: Mapping[str, Any], clean: Clean) -> Event | None:
    """Read an invoice (node-data.md, 5.1); None if it names neither itself nor an execution.

    The invoice id has over 20 digits: text. Line items keep operation, account (a pseudonym), steps
    and pages.
    """
    invoice_id = name_or_none(body.get("invoiceId"), clean)
    execution_id = uuid(body.get("executionId"))
    given = body.get("lineItem")
    if (invoice_id is None and execution_id is None) or not isinstance(given, list):
        return None
    items = [
        {
            "operation": name_or_none(part(item, "operation"), clean),
            "account": name_or_none(part(item, "account"), clean),
            "steps": whole(part(item, "total_steps_computed")),
            "memory_peak": whole(part(item, "peak_memory_used")),
        }
        for item in given[:200]
        if isinstance(item, dict)
    ]
    price = body.get("stepGasPrice")
    good = isinstance(price, (int, float)) and not isinstance(price, bool) and 0 <= price < 1e18
    fields = {
        "invoice_id": invoice_id,
        "task_id": name_or_none(body.get("taskId"), clean),
        "line_items": items,
        "at": parse_time(body.get("taskCreated_timeStamp")),
        "step_gas_price": float(price) if good and price is not None else None,
    }
    return Event("invoice", execution_id, fields)


@functools.lru_cache(256)
def slot_event(text: str) -> Event | None:
    """Read a semaphore line: slots in use now (None where the line changes nothing) and in all."""
    found = SEMAPHORE.match(text)
    if found is None:
        return None
    used, total = (found[5], found[6]) if found[5] else (found[2], found[3])
    current = None if found[4] == "slots used" else int(used)
    return Event(
        "semaphore", None, {"subscriber": found[1], "current": current, "total": int(total)}
    )


def registration_event(text: str) -> Event | None:
    """registered is True after `registered successfully`, else False; address is a pseudonym if it
    was one.
    """
    found = REGISTRATION.match(text)
    if found is None:
        return None
    address = found[1] if re.fullmatch(r"wallet:[0-9a-f]{16}", found[1]) else None
    return Event("registration", None, {"registered": found[2] == "registered", "address": address})


def read_event(kind: str, text: str, raw: str, clean: Clean) -> Event | None:
    """The fact in a log entry of type `kind`, or None if there is none (yet).

    `text` is the redacted message, `raw` the same before redaction where the type has a payload.
    """
    if kind == "semaphore":
        return slot_event(text)
    if kind in ("task_completed", "task_failed"):
        found = EXECUTION.match(text)
        words = found[3].strip(" :\n") if found else ""
        return Event(kind, found[1].lower(), {"error_text": words or None}) if found else None
    if kind == "task_received":
        payload = read_payload(raw, PAYLOAD_NAMES["task_received"])
        body = payload["payload"] if isinstance(payload.get("payload"), dict) else payload
        event = task_event(body, clean)
        found = EXECUTION_ID.search(raw) if event is None else None
        event = Event("task_created", found[1].lower(), {}) if found else event
        return event and event._replace(kind="task_received")
    if kind == "execution_output":
        return output_event(text, raw, clean)
    if kind == "invoice":
        return invoice_event(read_payload(raw, PAYLOAD_NAMES["invoice"]), clean)
    if kind == "task_start":
        found = re.search(UUID, text)
        return Event(kind, found[0].lower() if found else None, {})
    if kind == "task_download":
        found = DOWNLOADED.match(text)
        return Event(kind, None, {"task_id": found[1]}) if found else None
    return registration_event(text) if kind == "registration" else None


def lacks_payload(kind: str, event: Event | None) -> bool:
    """True for an entry that should hold a payload and yields none, as a changed log would."""
    if kind in ("task_received", "invoice"):
        return event is None
    if kind != "execution_output" or event is None or "error_text" in event.fields:
        return False
    return all(event.fields[name] is None for name in OUTPUT_COLUMNS)


def record_event(record: object, clean: Clean) -> Event | None:
    """The fact in one record of the event database; None for kinds we do not know (node-data.md,
    3).
    """
    if not isinstance(record, dict):
        return None
    body = record["payload"] if isinstance(record.get("payload"), dict) else record
    kind = body.get("type")
    if kind == "task_created":
        return task_event(body, clean)
    if kind == "invoice":
        return invoice_event(body, clean)
    if kind == "computed_outcome" and (execution_id := uuid(body.get("executionId"))):
        return Event(kind, execution_id, {"sender": name_or_none(body.get("senderAddress"), clean)})
    return None


# Evidence about a task, as bits; the status follows from all of it, in whatever order it came.
COMPLETED_LINE, FAILED_LINE, OUTCOME, PAID, PENALISED, LOST, IN_EVENT_DB, IN_LOG, IN_DOUBT = (
    1 << bit for bit in range(9)
)
END_LINES = COMPLETED_LINE | FAILED_LINE
OUTPUT_COLUMNS = (  # of a task, told by its stdout
    "elapsed_ms",
    "gas_used",
    "memory_peak",
    "exit_code",
    "cached",
    "wasm_hash",
    "gas_limit",
    "memory_limit",
)


class Task(NamedTuple):
    """One execution. Times are ms UTC, memory is in pages of 64 KiB, gas in steps; None is
    unknown.
    """

    execution_id: str
    task_id: str | None = None
    task_hash: str | None = None
    task_type: str | None = None
    chain_id: str | None = None
    block_number: int | None = None
    block_hash: str | None = None
    status: str = "received"
    received_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    elapsed_ms: int | None = None
    gas_limit: int | None = None
    gas_used: int | None = None
    memory_limit: int | None = None
    memory_peak: int | None = None
    exit_code: int | None = None
    cached: int | None = None
    error: str | None = None
    wasm_hash: str | None = None
    timeout_ms: int | None = None
    evidence: int = 0

    @property
    def deadline(self) -> int | None:
        """When the task counts as lost, in ms; None while its time of receipt is unknown."""
        if self.received_at is None:
            return None
        return self.received_at + min(self.timeout_ms or TASK_TIMEOUT_MS, DAY_MS) + TASK_GRACE_MS


def task_status(task: Task) -> str:
    """The state that all evidence together gives (node-data.md, 7.5).

    `ended` is a task that a line calls completed, while an output that may be its own does not show
    that it succeeded.
    """
    seen = task.evidence
    if task.exit_code or seen & FAILED_LINE or (seen & PENALISED and not seen & COMPLETED_LINE):
        return "failed"
    if seen & (OUTCOME | PAID):
        return "completed"
    if seen & COMPLETED_LINE:
        return "ended" if seen & IN_DOUBT and task.exit_code is None else "completed"
    if seen & LOST:
        return "lost"
    return "received" if task.started_at is None else "executing"


def failure_reason(words: str | None) -> str:
    """The limit that a failure's words name, one of REASONS; `other` if they name none."""
    lower = (words or "").lower()
    return next((reason for word, reason in REASONS if re.search(rf"\b{word}", lower)), "other")


def why_failed(task: Task, words: str | None) -> str | None:
    """Why a task failed, whatever was read first: what words name, else its exit code, else other,
    else its penalty; None for a task that did not fail.
    """
    if task.status != "failed":
        return None
    named = task.error
    if named in (None, "exit_code", "other", "penalty"):
        named = failure_reason(words)
    if named != "other":
        return named
    if task.exit_code:
        return "exit_code"
    return "other" if task.evidence & FAILED_LINE else "penalty"


def merge_task(task: Task, evidence: int = 0, **found: Any) -> Task:
    """Add what was found to what is known: fill what is unknown, overwrite nothing, except that
    a failing exit code replaces 0, a receipt told by the log replaces the event database's, and the
    line that ends a task tells better than its output when that was. The words of `error` only
    choose a reason. `in_doubt` is True where an output that may be its own leaves its success open,
    and False where none does any more.
    """
    words, in_doubt = found.pop("error", None), found.pop("in_doubt", None)
    known = {
        name: value
        for name, value in found.items()
        if value is not None and getattr(task, name) is None
    }
    if found.get("exit_code"):
        known["exit_code"] = task.exit_code or found["exit_code"]
    if found.get("received_at") is not None and evidence & IN_LOG and not task.evidence & IN_LOG:
        known["received_at"] = found["received_at"]
    if evidence & END_LINES and not task.evidence & END_LINES and found.get("completed_at"):
        known["completed_at"] = found["completed_at"]
    seen = task.evidence | evidence
    if in_doubt is not None:
        seen = seen | IN_DOUBT if in_doubt else seen & ~IN_DOUBT
    task = task._replace(evidence=seen, **known)
    task = task._replace(status=task_status(task))
    return task._replace(error=why_failed(task, words))


# Whose a line is that names no task (node-data.md, 7.3)


class Work(NamedTuple):
    """A task that the log shows in work: Work(1764000660000, ("task_start", "stdout"))."""

    deadline: int  # ms, when it counts as lost
    wrote: tuple[str, ...] = ()  # the kinds of LooseLine of which its own line is known


class Ended(NamedTuple):
    """A task that ended a moment ago: Ended("1", 1764000660123, ("stdout",))."""

    stream: str  # which told the end
    engine_ms: int  # its stamp
    wrote: tuple[str, ...]


class LooseLine(NamedTuple):
    """A line that one task wrote, without its name. A task has at most one of each kind."""

    kind: str  # task_start, task_download, stdout or stderr
    at: int  # ms
    owners: frozenset[str]  # the executions that can have written it
    event: Event


TASK_WORDS = ("output", "error_text")  # what an output says, word by word
Changes = list[
    tuple[str, LooseLine, str | None]
]  # (line's name, the line, whose it is for certain)


def possible_owners(lines: Mapping[str, frozenset[str]]) -> dict[str, frozenset[str]] | None:
    """Take away the owners that cannot be: each line has one, and nobody has two.

    >>> left = possible_owners({"first": frozenset("AB"), "second": frozenset("B")})
    >>> [sorted(owners) for owners in left.values()]
    [['A'], ['B']]

    None if there is no such way: the lines contradict each other.
    """
    taken: dict[str, str] = {}  # owner: the line it has in one way that all lines have an owner

    def place(line: str, tried: set[str]) -> bool:
        """Give `line` an owner; whoever loses one for it finds another."""
        for owner in lines[line]:
            if owner in tried:
                continue
            tried.add(owner)
            if owner not in taken or place(taken[owner], tried):
                taken[owner] = line
                return True
        return False

    def can_have(owner: str, line: str) -> bool:
        """True if there is a way in which `owner` wrote `line`."""
        nonlocal taken
        other, kept = taken.get(owner), dict(taken)
        if other == line:
            return True
        taken = {name: its for name, its in taken.items() if its != line}
        taken[owner] = line
        possible = other is None or place(other, {owner})
        taken = kept
        return possible

    if not all(place(line, set()) for line in lines):
        return None
    return {
        line: frozenset(owner for owner in owners if can_have(owner, line))
        for line, owners in lines.items()
    }


class Attribution:
    """Knows which tasks are in work by one source's log, and whose each loose line is.

    A line whose owner is not certain waits for what later lines show. While a task may be in work
    that was received before the log begins, no line has a certain owner.
    """

    def __init__(self, saved: Mapping[str, Any]) -> None:
        self.work: dict[str, Work] = {}
        for name, (deadline, wrote) in saved.get("running", {}).items():
            known = wrote if isinstance(wrote, list) else ["task_start"] * wrote  # of schema 5
            self.work[name] = Work(deadline, tuple(known))
        self.waiting: dict[str, LooseLine] = {
            name: LooseLine(kind, at, frozenset(owners), Event(*event))
            for name, (kind, at, owners, event) in saved.get("waiting", {}).items()
        }
        self.ended: dict[str, Ended] = {
            name: Ended(stream, at_ms, tuple(wrote))
            for name, (stream, at_ms, wrote) in saved.get("ended", {}).items()
        }
        self.has_begun: bool = saved.get("has_begun", bool(saved))
        self.unknown_until: int = saved.get("unknown_until", 0)  # ms

    def saved(self) -> dict[str, Any]:
        """For the next Attribution, as JSON; without the words of tasks, which have their own
        table.
        """
        waiting = {}
        for name, line in self.waiting.items():
            numbers = {
                field: value
                for field, value in line.event.fields.items()
                if field not in TASK_WORDS
            }
            event = line.event.kind, line.event.execution_id, numbers
            waiting[name] = line.kind, line.at, sorted(line.owners), event
        return {
            "running": self.work,
            "waiting": waiting,
            "ended": self.ended,
            "has_begun": self.has_begun,
            "unknown_until": self.unknown_until,
        }

    def begin(self, at: int) -> None:
        """From `at` (ms) on the log is there; what came before it, or some of it, is not."""
        self.has_begun = True
        self.unknown_until = max(self.unknown_until, at + UNKNOWN_MS)

    def restart(self, at: int) -> None:
        """The node started at `at` (ms): nothing from before is in work. What it said since may
        be missing.
        """
        self.work.clear()
        self.waiting.clear()
        self.ended.clear()
        if self.unknown_until - UNKNOWN_MS <= at + FIRST_LINE_MS:
            self.unknown_until = 0

    def receive(self, execution_id: str, deadline: int) -> None:
        before = self.work.get(execution_id, Work(deadline))
        self.work[execution_id] = before._replace(deadline=deadline)

    def end(self, execution_id: str, stream: str, engine_ms: int | None) -> None:
        """A task ended; it may still have written what the other stream brings a moment later."""
        task = self.work.pop(execution_id, None)
        if task is not None and engine_ms is not None:
            self.ended[execution_id] = Ended(stream, engine_ms, task.wrote)
        if self.waiting:
            self.let_go()

    def expire(self, at: int, engine_ms: int | None) -> None:
        """Forget the tasks that write nothing more: those whose time was over more than an hour
        before `at` (ms), and those whose end both streams have passed.
        """
        oldest = min((task.deadline for task in self.work.values()), default=at)
        if not self.ended and oldest + HOUR_MS >= at:
            return
        work = {name: task for name, task in self.work.items() if task.deadline + HOUR_MS >= at}
        ended = {
            name: task
            for name, task in self.ended.items()
            if engine_ms is None or engine_ms - task.engine_ms <= OVERTAKE_MS
        }
        if len(work) < len(self.work) or len(ended) < len(self.ended):
            self.work, self.ended = work, ended
            self.let_go()

    def let_go(self) -> None:
        """Drop the lines about which nothing more can come to light: no owner writes any more."""
        live = {*self.work, *self.ended}
        linked: dict[str, LooseLine] = {}
        while True:
            linked = {name: line for name, line in self.waiting.items() if line.owners & live}
            reached = live.union(*(line.owners for line in linked.values()))
            if reached == live:
                break
            live = reached
        self.waiting = linked

    def candidates(self, kind: str, stream: str, engine_ms: int | None) -> set[str]:
        """The tasks that can have written a line of `kind` which comes now."""
        found = {name for name, task in self.work.items() if kind not in task.wrote}
        for name, task in self.ended.items() if engine_ms is not None else ():
            is_near = (engine_ms or 0) - task.engine_ms <= OVERTAKE_MS
            if is_near and task.stream != stream and kind not in task.wrote:
                found.add(name)
        return found

    def attribute(self, name: str, line: LooseLine) -> Changes:
        """Take a line; returns it and the others whose owners it makes known or narrows."""
        if line.at <= self.unknown_until or not line.owners:
            return [(name, line, None)]
        if len(line.owners) == 1 and not self.waiting:
            owner = next(iter(line.owners))
            self.mark(line.kind, owner)
            return [(name, line, owner)]
        if len(self.waiting) >= WAITING_LINES:
            self.waiting.clear()
        self.waiting[name] = line
        return self.narrow(line.kind, {name})

    def claim(self, kind: str, execution_id: str) -> Changes:
        """A line named its task: it wrote no other of the kind."""
        self.mark(kind, execution_id)
        for name, line in self.waiting.items():
            left = line.owners - {execution_id}
            if line.kind == kind and left:
                self.waiting[name] = line._replace(owners=left)
        return self.narrow(kind, set())

    def mark(self, kind: str, execution_id: str) -> None:
        task = self.work.get(execution_id)
        if task is not None and kind not in task.wrote:
            self.work[execution_id] = task._replace(wrote=(*task.wrote, kind))
        ended = self.ended.get(execution_id)
        if ended is not None and kind not in ended.wrote:
            self.ended[execution_id] = ended._replace(wrote=(*ended.wrote, kind))

    def narrow(self, kind: str, told: set[str]) -> Changes:
        """Take away what cannot be; returns the lines that changed, and those `told`."""
        lines = {name: line.owners for name, line in self.waiting.items() if line.kind == kind}
        left = possible_owners(lines)
        if left is None:  # the log breaks the rules: none of these lines has an owner
            return [(name, self.waiting.pop(name), None) for name in lines]
        changes: Changes = []
        for name, owners in left.items():
            line = self.waiting[name]
            owner = next(iter(owners)) if len(owners) == 1 else None
            if owner is None and owners == line.owners and name not in told:
                continue
            line = self.waiting[name] = line._replace(owners=owners)
            changes.append((name, line, owner))
            if owner is not None:
                del self.waiting[name]
                self.mark(kind, owner)
        return changes


def own_item(items: Sequence[Mapping[str, Any]], own: Iterable[str]) -> Mapping[str, Any] | None:
    """The line item by which the node itself was paid or penalised; a penalty goes before a pay."""
    mine = [
        item for item in items if item["account"] in own and item["operation"] in ("pay", "penalty")
    ]
    return max(mine, key=lambda item: str(item["operation"]), default=None)


JUST_STARTED = "tbmon has just started and has not looked yet"
DOCTOR = "Run `tbmon.py doctor` on this host; it names what is in the way."


class Reading(NamedTuple):
    """The history that is being read: the time (ms) it has come to, and how much of its bytes is
    done. None is unknown.
    """

    at: int | None = None
    share: float | None = None


@dataclass(frozen=True)
class Runs:
    """The container's newest run, and the starts and ends (ms) of the last ten minutes; a row of
    the table `state`.
    """

    container_id: str = ""
    looked_at: int = 0  # when it was last seen
    started_at: int | None = None
    finished_at: int | None = None
    restart_count: int = 0
    exit_code: int | None = None  # of the newest end that was seen
    oom_killed: bool = False  # the same
    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class Judged:
    """The newest verdict on the node, as a row of the table `state`; times in ms."""

    state: str
    cause: str
    reason: str
    advice: str
    since: int
    at: int  # when it was last found so
    looked_at: int | None  # when tbmon last saw the node
    well_since: int | None  # when it was last neither working nor idle; None if it is not well


def revive(kind: Any, text: str | None) -> Any:
    """A dataclass from its row in the table `state`; None where there is none that it can read."""
    try:
        return kind(**json.loads(text or ""))
    except (ValueError, TypeError):
        return None


class Symptoms(NamedTuple):
    """What the verdict looks at; times in ms, `now` included. None is unknown."""

    now: int
    problem: str | None = None  # why the container cannot be seen, if it cannot
    trouble: str | None = None  # why its log is not followed, if it is not
    reading: Reading | None = None  # what is read before the verdict can be given
    sought: str = "the node's log"  # what tbmon looks for
    place: str = ""  # and where
    container: str | None = None  # its state, "missing", or None without Docker
    ever_seen: bool = True
    runs: Runs = Runs()
    check: str | None = None  # the first words of Docker's own check, if that finds it unhealthy
    unhealthy_since: int | None = None
    last_line_at: int | None = None
    last_task_at: int | None = None
    idle_since: int | None = None  # when the last task ended
    recent: Sequence[str] = ()  # outcomes of the last 20 finished tasks, newest first
    failing_since: int | None = None  # the first failure since the last success
    recognised: float | None = None  # share of the last entries; None for too few of them
    unseen_since: int | None = None  # when tbmon last saw the node
    well_since: int | None = None  # when it was last neither working nor idle


class Verdict(NamedTuple):
    """What the node is, with why and what to do. `since` (ms) is None where nothing shows it."""

    state: str  # blind, down, degraded, working, idle
    reason: str
    advice: str
    cause: str  # why, in one word that does not change with the figures in `reason`
    since: int | None = None
    as_of: int | None = None  # when it was so; of a verdict from before tbmon was started


def name_candidates(names: Sequence[str]) -> str:
    """What to do where the node's container may have another name than CONTAINER_NAME says."""
    word = "this container" if len(names) == 1 else "one of these containers"
    shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
    return f"The node may be {word}: {shown}. Rename it, or set CONTAINER_NAME to its name."


def judge_node(seen: Symptoms) -> Verdict:
    """The first that holds: what can be said of the container, of its log, of its tasks."""
    return judge_container(seen) or judge_log(seen) or judge_tasks(seen)


def judge_container(seen: Symptoms) -> Verdict | None:
    """Blind to the container, or down."""
    if seen.problem:
        return judge_blind(seen, seen.problem)
    if seen.container == "missing" and not seen.ever_seen:
        words = f"no {seen.sought} has been seen yet" + (seen.place and f" at {seen.place}")
        advice = "Start the node, or set CONTAINER_NAME."
        return Verdict("blind", words, advice, "unseen", seen.unseen_since)
    if seen.container == "missing":
        words = f"the container is missing: no {seen.sought}" + (seen.place and f" at {seen.place}")
        return Verdict("down", words, "Create it again, or set CONTAINER_NAME.", "missing")
    if seen.container == "paused":
        advice = "Let it go on: `docker unpause`, with its name."
        return Verdict("down", "the container is paused", advice, "paused")
    if seen.container is not None and keeps_ending(seen):
        ended = exit_words(seen.runs)
        words = f"it keeps ending: {len(seen.runs.starts)} starts in 10 minutes"
        words += ended and f", last {ended}"
        advice = "Read the end of its log for why it ends."
        return Verdict("down", words, advice, "loop", min(seen.runs.ends))
    if seen.container == "created":
        words = "the container was created, and never started"
        return Verdict("down", words, "Start it.", "created")
    if seen.container not in (None, "running"):
        ended = exit_words(seen.runs)
        words = f"the container {'has' if seen.container == 'exited' else 'is'} {seen.container}"
        words += ended and f": {ended}"
        if seen.runs.finished_at is not None:
            words += f", on {moment_words(seen.runs.finished_at, seen.now)}"
        advice = "Start it again and read the end of its log."
        return Verdict("down", words, advice, "ended", seen.runs.finished_at)
    return None


def judge_blind(seen: Symptoms, problem: str) -> Verdict:
    """Why tbmon sees nothing, with what it looked for and where."""
    if problem == JUST_STARTED:
        return Verdict("blind", problem, "Wait a few seconds.", "started", seen.unseen_since)
    parts = [] if seen.sought in problem else [f"looked for {seen.sought}"]
    parts += [f"at {seen.place}"] if seen.place and seen.place not in problem else []
    words = f"{problem} ({' '.join(parts)})" if parts else problem
    return Verdict("blind", words, DOCTOR, "blind", seen.unseen_since)


def keeps_ending(seen: Symptoms) -> bool:
    """It ended LOOP_ENDS times within LOOP_MS, and has not run for SETTLED_MS since."""
    runs = seen.runs
    started_at = runs.starts[-1] if runs.starts else runs.started_at
    is_settled = started_at is not None and seen.now - started_at >= SETTLED_MS
    return len(runs.ends) >= LOOP_ENDS and not (seen.container == "running" and is_settled)


def exit_words(runs: Runs) -> str:
    """How the container ended; empty if that was not seen."""
    if runs.exit_code is None:
        return ""
    return f"exit code {runs.exit_code}" + (", out of memory" if runs.oom_killed else "")


def reading_words(reading: Reading, now: int) -> str:
    """How far the reading of the history has come."""
    if reading.at is not None and reading.share is None and now - reading.at < HOUR_MS:
        return f"still reading the log of {(now - reading.at) // MINUTE_MS} min ago"
    parts = [] if reading.at is None else [day_words(reading.at, now)]
    parts += [] if reading.share is None else [f"{math.floor(100 * reading.share)} %"]
    return "reading the node's history" + (": " if parts else "") + ", ".join(parts)


def awaits_line(seen: Symptoms) -> bool:
    """The container runs and has said nothing since its start; a line's stamp has no fraction of a
    second.
    """
    started_at = seen.runs.started_at
    return started_at is not None and (seen.last_line_at or 0) < started_at // 1000 * 1000


def judge_log(seen: Symptoms) -> Verdict | None:
    """Blind to the log, or a log that stopped."""
    if seen.reading is not None:
        words = reading_words(seen.reading, seen.now)
        return Verdict("blind", words, "Wait until it is read.", "reading", seen.unseen_since)
    if seen.trouble:
        return judge_blind(seen, seen.trouble)
    silent_since = seen.runs.started_at if awaits_line(seen) else seen.last_line_at
    if silent_since is not None and seen.now - silent_since <= SILENCE_MS:
        return None
    words = "no log line so far"
    if silent_since is not None:
        its_start = "its start on " if awaits_line(seen) else ""
        words = f"no log line since {its_start}{moment_words(silent_since, seen.now)}"
    advice = "The node writes every two minutes: restart it."
    return Verdict("degraded", words, advice, "silent", silent_since)


def judge_tasks(seen: Symptoms) -> Verdict:
    """Degraded by what the node does or says; else working or idle."""
    failures = sum(outcome == "failed" for outcome in seen.recent)
    if seen.check is not None:
        words = "Docker's own check finds it unhealthy" + (seen.check and f": {seen.check}")
        advice = "Read the check's output: `docker inspect`, with its name."
        return Verdict("degraded", words, advice, "unhealthy", seen.unhealthy_since)
    if list(seen.recent[:3]) == ["failed"] * 3:
        return Verdict(
            "degraded",
            "the last three tasks failed",
            "Open the failed tasks and read their errors.",
            "failing",
            seen.failing_since,
        )
    if failures > 0.2 * len(seen.recent) and len(seen.recent) >= 5:
        words = f"{failures} of the last {len(seen.recent)} tasks failed"
        return Verdict("degraded", words, "Open the failed tasks.", "failures")
    if seen.recognised is not None and seen.recognised < 0.95:
        words = f"{round(100 * (1 - seen.recognised))} % of the log is not recognised"
        return Verdict("degraded", words, "The node may be newer than tbmon.", "unrecognised")
    has_worked = seen.last_task_at is not None and seen.now - seen.last_task_at <= DAY_MS
    started_at = seen.runs.started_at or 0
    if has_worked and not awaits_line(seen):
        since = max(seen.well_since or 0, started_at) or None
        words = "it had a task within 24 hours"
        return Verdict("working", words, "Nothing to do.", "working", since)
    if awaits_line(seen):
        minutes = max(0, seen.now - started_at) // MINUTE_MS
        age = f"{minutes} min ago" if minutes else "less than a minute ago"
        words = f"started {age}, its first line is awaited"
        return Verdict("idle", words, "Nothing to do.", "starting", started_at)
    return Verdict(
        "idle",
        "no task within 24 hours, and the log is flowing",
        "Nothing to do: idle days are normal.",
        "idle",
        seen.idle_since,
    )


GROWING = ("loop", "unhealthy")  # causes of whose evidence the oldest part is forgotten in time


def since_when(verdict: Verdict, before: Judged | None, now: int) -> int:
    """When the state began: by the evidence, else as long as it has been so; never in the
    future.
    """
    known = verdict.since
    is_same = before is not None and before.state == verdict.state
    kept = min(before.since, now) if before is not None and is_same else now
    if known is None or known > now:
        return kept
    goes_on = before is not None and is_same and before.cause == verdict.cause
    return min(kept, known) if goes_on and verdict.cause in GROWING else known


# ---------------------------------------------------------------------------
# 4. Store                                                               (disk)
# ---------------------------------------------------------------------------

APPLICATION_ID = 0x74626D6E  # "tbmn": marks our files in the SQLite header
WAL_BYTES = 16 * MIB  # of the write-ahead log, beyond which it is emptied while others read
BALLAST_BYTES = (
    4 * MIB
)  # held on the disk, and let go when it is full: room for what the operator does then
READERS = 8  # read-only connections kept open; each may hold a MiB of pages
ROWS_AT_ONCE = 8  # in memory of a list: each may hold ENTRY_BYTES, or an invoice's 200 line items
AUDIT_ROWS = 10_000  # the newest are kept, of refusals and of all else
OUTBOX_ROWS, OUTBOX_MS = (
    10_000,
    7 * DAY_MS,
)  # what waits for the federation beyond these is dropped and counted
SNAPSHOTS = 1000  # of the network's figures are kept
SENT_MS = 400 * DAY_MS  # how long what it was told is kept
SAMPLE_MS = 31 * DAY_MS  # how long the node's state at each minute is kept
CELL_ENTRIES = (
    2000  # counted of one cell of the log's chart at most, so that a flood costs no more than a day
)
RECEIVED, ENDED = 1, 2  # bits of task.told
ENGINE, FILES = 1, 2  # bits of log.sources
SUSPECT, UNRECOGNISED, UNSTAMPED = 1, 2, 4  # bits of log.flags
NUL_SIGN = "\u2400"  # in log.message for a NUL, behind which SQLite's LIKE would see nothing

COUNT_TASK = """INSERT INTO total VALUES ({row}.status, {sign}1, {sign}IFNULL({row}.cached, 0),
    {sign}({row}.elapsed_ms IS NOT NULL), {sign}IFNULL({row}.elapsed_ms, 0),
    {sign}({row}.gas_used IS NOT NULL), {sign}IFNULL({row}.gas_used, 0))
    ON CONFLICT (status) DO UPDATE SET tasks = tasks + excluded.tasks,
        cached = cached + excluded.cached,
        timed = timed + excluded.timed, elapsed_ms = elapsed_ms + excluded.elapsed_ms,
        measured = measured + excluded.measured, gas_used = gas_used + excluded.gas_used"""

# Of a task's data in the file, with what SQLite keeps beside each row; pages are not counted.
DATA_BYTES = """(300 + IFNULL(length(CAST({row}.input AS BLOB)), 0)
    + IFNULL(length(CAST({row}.output AS BLOB)), 0)
    + IFNULL(length(CAST({row}.error_text AS BLOB)), 0))"""
WORDS_BYTES = "(300 + length(CAST({row}.words AS BLOB)))"
TASK_AT = """(SELECT IFNULL(received_at, IFNULL(started_at, completed_at)) FROM task
    WHERE task.execution_id = {row}.execution_id)"""
DATA_AT = f"IFNULL({TASK_AT}, CAST(strftime('%s', 'now') AS INTEGER) * 1000)"
RESIZE = "UPDATE task_data_total SET bytes = bytes"

MIGRATIONS = (
    """
    CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE counter (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE log (
        key BLOB PRIMARY KEY,    -- stamp as written (4 bytes, big-endian), identity (12 bytes)
        seq INTEGER NOT NULL,    -- order within the second
        at INTEGER NOT NULL,     -- ms UTC, like every time in this file
        level INTEGER NOT NULL, type INTEGER NOT NULL, sources INTEGER NOT NULL,
        flags INTEGER NOT NULL,
        execution_id TEXT, message TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX log_execution ON log (execution_id) WHERE execution_id IS NOT NULL;
    -- lines near the cursor, to be known when they are read again
    CREATE TABLE overlap (
        id INTEGER PRIMARY KEY, newest TEXT NOT NULL, lines TEXT NOT NULL
    );
    CREATE TABLE file (head_hash TEXT PRIMARY KEY, head_bytes INTEGER NOT NULL,
        offset INTEGER NOT NULL);
    CREATE TABLE gap (id INTEGER PRIMARY KEY, from_at INTEGER, to_at INTEGER, reason TEXT NOT NULL);
    CREATE TABLE start (started_at INTEGER PRIMARY KEY, container_id TEXT NOT NULL);
    CREATE TABLE node (name TEXT PRIMARY KEY, value TEXT, at INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE task (
        id INTEGER PRIMARY KEY, execution_id TEXT NOT NULL UNIQUE, task_id TEXT, task_hash TEXT,
        task_type TEXT,
        chain_id TEXT, block_number INTEGER, block_hash TEXT, status TEXT NOT NULL,
        received_at INTEGER,
        started_at INTEGER, completed_at INTEGER, elapsed_ms INTEGER, gas_limit INTEGER,
        gas_used INTEGER,
        memory_limit INTEGER, memory_peak INTEGER, exit_code INTEGER, cached INTEGER, error TEXT,
        wasm_hash TEXT,
        timeout_ms INTEGER, evidence INTEGER NOT NULL, deadline INTEGER
    );
    CREATE INDEX task_time ON task (IFNULL(received_at, 0), id);
    CREATE INDEX task_running ON task (deadline) WHERE status IN ('received', 'executing');
    CREATE TABLE task_data (execution_id TEXT PRIMARY KEY, input TEXT, output TEXT,
        error_text TEXT);
    CREATE TABLE task_event (
        execution_id TEXT NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL,
            PRIMARY KEY (execution_id, at, event)
    ) WITHOUT ROWID;
    CREATE TABLE invoice (
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, invoice_id TEXT, execution_id TEXT,
        task_id TEXT, at INTEGER,
        step_gas_price REAL, line_items TEXT NOT NULL, operation TEXT, steps INTEGER,
        memory_peak INTEGER,
        confirmed INTEGER NOT NULL
    );
    CREATE INDEX invoice_time ON invoice (IFNULL(at, 0), id);
    CREATE INDEX invoice_execution ON invoice (execution_id);
    """,
    """
    CREATE TABLE audit (
        id INTEGER PRIMARY KEY, at INTEGER NOT NULL, event TEXT NOT NULL, address TEXT NOT NULL,
        detail TEXT NOT NULL
    );
    CREATE INDEX task_status ON task (status, IFNULL(received_at, 0), id);
    """,
    """
    -- what the federation was told of it, as bits
    ALTER TABLE task ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE invoice ADD COLUMN told INTEGER NOT NULL DEFAULT 0;
    -- messages that wait, as they will be sent
    CREATE TABLE outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT, due_at INTEGER NOT NULL, day TEXT NOT NULL,
        subject TEXT NOT NULL,
        payload BLOB NOT NULL
    );
    CREATE INDEX outbox_due ON outbox (due_at);
    CREATE TABLE sent (                                              -- what left, as it left
        id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, at INTEGER NOT NULL,
        subject TEXT NOT NULL,
        payload BLOB NOT NULL, times INTEGER NOT NULL DEFAULT 1
    );
    CREATE TABLE network_stats (id INTEGER PRIMARY KEY, snapshot_at TEXT NOT NULL UNIQUE,
        at INTEGER NOT NULL,
        stats TEXT NOT NULL);
    """,
    """
    -- the node at each minute tbmon could see it; what is missing is unknown
    CREATE TABLE sample (
        at INTEGER PRIMARY KEY, up INTEGER NOT NULL, cpu REAL, memory INTEGER
    );
    CREATE INDEX sample_down ON sample (at) WHERE NOT up;
    """,
    f"""
    -- of the tasks of each status, so that nobody need look at all of them
    CREATE TABLE total (
        status TEXT PRIMARY KEY, tasks INTEGER NOT NULL, cached INTEGER NOT NULL,
        timed INTEGER NOT NULL,
        elapsed_ms INTEGER NOT NULL, measured INTEGER NOT NULL, gas_used INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO total SELECT status, COUNT(*), TOTAL(cached), COUNT(elapsed_ms), TOTAL(elapsed_ms),
        COUNT(gas_used), TOTAL(gas_used) FROM task GROUP BY status;
    CREATE TRIGGER task_added AFTER INSERT ON task BEGIN {
        COUNT_TASK.format(row="new", sign="")
    }; END;
    CREATE TRIGGER task_changed AFTER UPDATE OF status, cached, elapsed_ms, gas_used ON task BEGIN
        {COUNT_TASK.format(row="old", sign="-")}; {COUNT_TASK.format(row="new", sign="")};
    END;
    """,
    """
    -- outputs that do not show exit code 0, and the tasks that may have written them
    CREATE TABLE doubt (
        key BLOB NOT NULL, execution_id TEXT NOT NULL, PRIMARY KEY (key, execution_id)
    ) WITHOUT ROWID;
    CREATE INDEX doubt_execution ON doubt (execution_id);
    -- what outputs say until it is known whose they are; a task's data
    CREATE TABLE waiting_words (
        name TEXT NOT NULL, field TEXT NOT NULL, words TEXT NOT NULL, PRIMARY KEY (name, field)
    );
    """,
    """
    -- of the bytes before `offset`: two files may begin alike; '' until the file is looked at again
    ALTER TABLE file ADD COLUMN tail_hash TEXT NOT NULL DEFAULT '';
    """,
    f"""
    -- beside each task's data, when it was received and how much that is, so that the oldest can go
    CREATE TABLE task_data_size (
        execution_id TEXT PRIMARY KEY, at INTEGER NOT NULL, bytes INTEGER NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO task_data_size SELECT execution_id, {DATA_AT.format(row="task_data")},
        {DATA_BYTES.format(row="task_data")} FROM task_data;
    CREATE INDEX task_data_age ON task_data_size (at);
    -- of all task data, waiting words too
    CREATE TABLE task_data_total (bytes INTEGER NOT NULL);
    INSERT INTO task_data_total SELECT IFNULL((SELECT SUM(bytes) FROM task_data_size), 0)
        + IFNULL((SELECT SUM({WORDS_BYTES.format(row="waiting_words")}) FROM waiting_words), 0);
    CREATE TRIGGER task_data_added AFTER INSERT ON task_data BEGIN
        INSERT OR REPLACE INTO task_data_size VALUES
            (new.execution_id, {DATA_AT.format(row="new")}, {DATA_BYTES.format(row="new")});
        {RESIZE} + {DATA_BYTES.format(row="new")};
    END;
    CREATE TRIGGER task_data_changed AFTER UPDATE ON task_data BEGIN
        UPDATE task_data_size SET bytes = {DATA_BYTES.format(row="new")}
            WHERE execution_id = new.execution_id;
        {RESIZE} + {DATA_BYTES.format(row="new")} - {DATA_BYTES.format(row="old")};
    END;
    CREATE TRIGGER task_data_gone AFTER DELETE ON task_data BEGIN
        DELETE FROM task_data_size WHERE execution_id = old.execution_id;
        {RESIZE} - {DATA_BYTES.format(row="old")};
    END;
    CREATE TRIGGER words_added AFTER INSERT ON waiting_words BEGIN
        {RESIZE} + {WORDS_BYTES.format(row="new")};
    END;
    CREATE TRIGGER words_changed AFTER UPDATE ON waiting_words BEGIN
        {RESIZE} + {WORDS_BYTES.format(row="new")} - {WORDS_BYTES.format(row="old")};
    END;
    CREATE TRIGGER words_gone AFTER DELETE ON waiting_words BEGIN
        {RESIZE} - {WORDS_BYTES.format(row="old")};
    END;
    """,
)

TASK_COLUMNS = Task._fields
SAVE_TASK = (
    f"INSERT INTO task ({', '.join(TASK_COLUMNS)}, deadline) VALUES "
    f"({', '.join('?' * (len(TASK_COLUMNS) + 1))})"
    " ON CONFLICT (execution_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in (*TASK_COLUMNS[1:], "deadline"))
)
SAVE_ENTRIES = """
    INSERT INTO log (key, seq, at, level, type, sources, flags, execution_id, message) VALUES %s
    ON CONFLICT (key) DO UPDATE SET
        sources = sources | excluded.sources,
        flags = CASE WHEN excluded.flags & 1 THEN flags ELSE excluded.flags END,
        execution_id = IFNULL(excluded.execution_id, execution_id),
        message = CASE  -- the engine's json-file driver puts char(65533) for what it cut
            WHEN length(CAST(replace(excluded.message, char(65533), '') AS BLOB))
                > length(CAST(replace(message, char(65533), '') AS BLOB))
            THEN excluded.message ELSE message END
"""
# of the log, in one statement: after each, its thread waits for the interpreter's lock
SAVE_ROWS = [
    (rows, SAVE_ENTRIES % ",".join(["(?,?,?,?,?,?,?,NULLIF(?,''),?)"] * rows))
    for rows in (100, 10, 1)
]
WRITES = {  # by `Store.put`
    "state": "INSERT OR REPLACE INTO state (name, value) VALUES (?, ?)",
    "counter": (
        "INSERT INTO counter VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value "
        "+ excluded.value"
    ),
    "binding": "UPDATE log SET execution_id = ? WHERE key = ?",
    "waiting_words": "INSERT INTO waiting_words (name, field, words) VALUES (?, ?, ?)"
    " ON CONFLICT (name, field) DO UPDATE SET words = excluded.words",
    "forget_words": "DELETE FROM waiting_words WHERE name = ?",
    "task_event": "INSERT OR IGNORE INTO task_event (execution_id, at, event) VALUES (?, ?, ?)",
    "start": "INSERT OR IGNORE INTO start (started_at, container_id) VALUES (?, ?)",
    "told_task": "UPDATE task SET told = told | ? WHERE execution_id = ?",
    "told_invoice": "UPDATE invoice SET told = 1 WHERE name = ?",
    "outbox": "INSERT INTO outbox (due_at, day, subject, payload) VALUES (?, ?, ?, ?)",
    "delivered": "DELETE FROM outbox WHERE id = ?",
    "take_back": "DELETE FROM outbox WHERE subject = ?",
    "sent": "INSERT INTO sent (name, at, subject, payload) VALUES (?, ?, ?, ?) ON CONFLICT (name) "
    "DO UPDATE"
    " SET at = excluded.at, payload = excluded.payload, times = times + 1",
    "network_stats": "INSERT INTO network_stats (snapshot_at, at, stats) VALUES (?, ?, ?) ON "
    "CONFLICT (snapshot_at)"
    " DO UPDATE SET at = excluded.at, stats = excluded.stats",
    "old_network_stats": "DELETE FROM network_stats"
    " WHERE id <= (SELECT id FROM network_stats ORDER BY id DESC LIMIT 1 OFFSET ?)",
    "audit": "INSERT INTO audit (at, event, address, detail) VALUES (?, ?, ?, ?)",
    "gap": "INSERT INTO gap (from_at, to_at, reason) VALUES (?, ?, ?)",
    "sample": "INSERT OR REPLACE INTO sample (at, up, cpu, memory) VALUES (?, ?, ?, ?)",
    "missed_minutes": "INSERT OR IGNORE INTO sample (at, up) VALUES (?, ?)",
    "outage": "UPDATE sample SET up = 0 WHERE at BETWEEN ? AND ? AND up",
    "old_samples": "DELETE FROM sample WHERE at < ?",
    "set_back": "UPDATE node SET at = ?1, value = IIF(name = 'last_seen', ?1, value) WHERE at > ?1",
}
SAVE_INVOICE = """
    INSERT INTO invoice (name, invoice_id, execution_id, task_id, at, step_gas_price, line_items,
        operation, steps,
        memory_peak, confirmed)
    VALUES (:name, :invoice_id, :execution_id, :task_id, :at, :step_gas_price, :line_items,
        :operation, :steps,
        :memory_peak, :confirmed)
    ON CONFLICT (name) DO UPDATE SET
        execution_id = IFNULL(execution_id, excluded.execution_id),
        task_id = IFNULL(task_id, excluded.task_id),
        at = IFNULL(at, excluded.at),
        step_gas_price = IFNULL(step_gas_price, excluded.step_gas_price),
        operation = IFNULL(excluded.operation, operation), line_items =
            CASE WHEN length(excluded.line_items) > length(line_items) THEN excluded.line_items
                ELSE line_items END,
        steps = IFNULL(excluded.steps, steps),
        memory_peak = IFNULL(excluded.memory_peak, memory_peak),
        confirmed = MAX(confirmed, excluded.confirmed)
"""
TASK_DATA = ("input", "output", "error_text")
LONGER = """{0} = CASE WHEN length(CAST(IFNULL(excluded.{0}, '') AS BLOB))
    > length(CAST(IFNULL({0}, '') AS BLOB)) THEN excluded.{0} ELSE {0} END"""
SAVE_TASK_DATA = (
    f"INSERT INTO task_data (execution_id, {', '.join(TASK_DATA)}) VALUES (?, ?, ?, ?)"
    f" ON CONFLICT (execution_id) DO UPDATE SET {', '.join(map(LONGER.format, TASK_DATA))}"
)
LOG_COLUMNS = "key, seq, at, level, type, sources, flags, execution_id, message"
QUERIES = {  # by `Store.get` and `Store.first`
    "quick_check": "PRAGMA quick_check(1)",
    "state": "SELECT value FROM state WHERE name = ?",
    "counters": "SELECT name, value FROM counter",
    "has_entry": "SELECT 1 FROM log WHERE key = ? AND sources & ?",
    "entry": "SELECT key, seq, at, type, flags, execution_id, message FROM log WHERE key = ?",
    "told_by_both": f"SELECT 1 FROM log WHERE key >= ? AND sources = {ENGINE | FILES} LIMIT 1",
    "entry_owner": "SELECT execution_id FROM log WHERE key = ?",
    "doubt": "SELECT execution_id FROM doubt WHERE key = ?",
    "doubts_of": "SELECT key FROM doubt WHERE execution_id = ?",
    "any_doubt": "SELECT 1 FROM doubt LIMIT 1",
    "waiting_words": "SELECT name, field, words FROM waiting_words",
    "in_work": "SELECT execution_id FROM task WHERE status IN ('received', 'executing')"
    " AND received_at <= ? AND deadline >= ? AND evidence & ?",
    "last_entry_at": "SELECT at FROM log ORDER BY key DESC LIMIT 1",
    "overlap": "SELECT lines FROM overlap ORDER BY id",
    "files": "SELECT head_hash, head_bytes, offset, tail_hash FROM file",
    "gaps": "SELECT from_at, to_at, reason FROM gap ORDER BY id DESC LIMIT 100",
    "was_followed": "SELECT 1 FROM start WHERE container_id = ?",
    "node": "SELECT name, value FROM node",
    "task": f"SELECT {', '.join(TASK_COLUMNS)} FROM task WHERE execution_id = ?",
    "tasks_between": (
        f"SELECT {', '.join(TASK_COLUMNS)} FROM task WHERE IFNULL(received_at, 0) BETWEEN ? AND ?"
        f" AND evidence & {IN_LOG}"
    ),
    "task_data": "SELECT input, output, error_text FROM task_data WHERE execution_id = ?",
    "task_events": "SELECT at, event FROM task_event WHERE execution_id = ? ORDER BY at, instr("
    "'task_received task_download task_start execution_output task_completed task_failed lost', "
    "event)",
    "last_task": "SELECT received_at, IFNULL(completed_at, IFNULL(started_at, received_at))"
    " AS ended_at FROM task WHERE IFNULL(received_at, 0) < ?"
    " ORDER BY IFNULL(received_at, 0) DESC, id DESC LIMIT 1",
    "failing_since": "SELECT MIN(IFNULL(completed_at, received_at)) FROM task"
    " WHERE status = 'failed' AND IFNULL(received_at, 0) > IFNULL((SELECT MAX(IFNULL(received_at,"
    " 0)) FROM task WHERE status = 'completed'), -1)",
    "recent_outcomes": "SELECT status FROM task WHERE status IN ('completed', 'failed')"
    " ORDER BY IFNULL(received_at, 0) DESC, id DESC LIMIT 20",
    "overdue": "SELECT execution_id FROM task WHERE status IN ('received', 'executing')"
    " AND (deadline < ? OR received_at < ?)",
    "task_row": "SELECT * FROM task WHERE execution_id = ?",
    "invoice_row": "SELECT * FROM invoice WHERE name = ?",
    "log_row": f"SELECT {LOG_COLUMNS} FROM log WHERE key = ?",
    "outbox_due": (
        "SELECT id, due_at, subject, payload FROM outbox WHERE due_at <= ? ORDER BY "
        "due_at LIMIT 1000"
    ),
    "outbox_next": "SELECT due_at, subject, payload FROM outbox ORDER BY due_at LIMIT 1000",
    "outbox_days": "SELECT DISTINCT day FROM outbox",
    "outbox_count": "SELECT COUNT(*) FROM outbox",
    "snapshots": "SELECT id FROM network_stats ORDER BY id DESC LIMIT ?",
    "gap_count": "SELECT COUNT(*) FROM gap",
    "task_data_bytes": "SELECT bytes FROM task_data_total",
    "task_totals": "SELECT * FROM total",
    "invoice_summary": """
    SELECT COUNT(*) AS total, IFNULL(SUM(operation = 'pay'), 0) AS paid,
        IFNULL(SUM(operation = 'penalty'), 0) AS penalised, IFNULL(SUM(confirmed), 0) AS confirmed,
        (SELECT COUNT(*) FROM task WHERE status = 'completed' AND NOT EXISTS
            (SELECT 1 FROM invoice WHERE invoice.execution_id = task.execution_id)) AS
                tasks_without_invoice,
        IFNULL(SUM(NOT EXISTS (SELECT 1 FROM task WHERE task.execution_id = invoice.execution_id)),
            0)
            AS invoices_without_task
    FROM invoice
    """,
    "invoice_months": """
    SELECT strftime('%Y-%m', at / 1000, 'unixepoch') AS month, operation, step_gas_price AS price,
        COUNT(*) AS invoices, SUM(steps / 1000000000) AS high, SUM(steps % 1000000000) AS low
    FROM invoice GROUP BY month, operation, price ORDER BY month DESC
    """,
    "items_of": "SELECT line_items FROM invoice WHERE execution_id = ?",
    "invoice_of": "SELECT invoice_id FROM invoice WHERE execution_id = ? ORDER BY id LIMIT 1",
    "invoice_count": "SELECT IFNULL(MAX(id), 0) FROM invoice",  # none is ever deleted
    "invoices_of_others": "SELECT id FROM invoice WHERE operation IS NULL AND instr(line_items, ?)",
    "recognised": "SELECT IFNULL(SUM(NOT flags & ?), 0), COUNT(*)"
    " FROM (SELECT flags FROM log ORDER BY key DESC LIMIT 500)",
    "tasks_since": "SELECT COUNT(*) FROM task WHERE IFNULL(received_at, 0) >= ?",
    "invoices_since": "SELECT COUNT(*) FROM invoice WHERE IFNULL(at, 0) >= ?",
    "waiting_since": "SELECT COUNT(*) FROM task WHERE status = 'completed' AND "
    "IFNULL(received_at, 0) >= ?"
    " AND NOT EXISTS (SELECT 1 FROM invoice WHERE invoice.execution_id = task.execution_id)",
    "recent_tasks": "SELECT IFNULL(completed_at, IFNULL(started_at, received_at)) AS at, status "
    "AS what, execution_id,"
    " task_type AS detail FROM task ORDER BY IFNULL(received_at, 0) DESC, id DESC LIMIT 12",
    "recent_invoices": "SELECT at, IFNULL(operation, 'invoice') AS what, execution_id, NULL AS "
    "detail FROM invoice"
    " ORDER BY IFNULL(at, 0) DESC, id DESC LIMIT 12",
    "recent_starts": "SELECT started_at AS at, 'start' AS what, NULL AS execution_id, NULL AS "
    "detail FROM start"
    " ORDER BY started_at DESC LIMIT 12",
    "recent_gaps": "SELECT IFNULL(to_at, from_at) AS at, 'gap' AS what, NULL AS execution_id, "
    "reason AS detail"
    " FROM gap ORDER BY id DESC LIMIT 12",
    "up_between": "SELECT IFNULL(SUM(up), 0) AS up, COUNT(*) AS seen FROM sample"
    " WHERE at BETWEEN ? AND ?",
    "up_cells": (
        "SELECT (at - ?) / ? AS cell, SUM(up) AS up, COUNT(*) AS seen FROM sample WHERE "
        "at >= ? GROUP BY cell"
    ),
    "outages": f"""
    SELECT COUNT(*) AS minutes FROM (
        SELECT at / {MINUTE_MS} - ROW_NUMBER() OVER (ORDER BY at) AS run FROM sample WHERE NOT up
            AND at BETWEEN ? AND ?
    ) GROUP BY run
    """,
    "usage_cells": "SELECT (at - ?) / ? AS cell, AVG(cpu) AS cpu, AVG(memory) AS memory FROM "
    "sample WHERE at >= ?"
    " GROUP BY cell",
    "missed": f"""
    SELECT since, until FROM (
        SELECT at + {MINUTE_MS} AS since, IFNULL(LEAD(at) OVER (ORDER BY at), ?2) AS until FROM (
            SELECT at FROM sample WHERE at BETWEEN ?1 AND ?2 UNION SELECT ?1 - {MINUTE_MS}
        )
    ) WHERE since < until
    """,
    "lively_minutes": f"SELECT DISTINCT at / {MINUTE_MS} AS minute FROM log WHERE key >= ?"
    f" AND key < ? AND at >= ? AND at < ? AND NOT flags & {SUSPECT} ORDER BY minute",
    "first_sample": "SELECT at FROM sample WHERE at >= ? ORDER BY at LIMIT 1",
    "task_cells": "SELECT (received_at - ?) / ? AS cell, SUM(status = 'completed') AS completed,"
    " SUM(status = 'failed') AS failed, SUM(status = 'ended') AS ended,"
    " SUM(status = 'lost') AS lost,"
    " SUM(status IN ('received', 'executing')) AS open FROM task WHERE IFNULL(received_at, 0) >= "
    "? GROUP BY cell",
    "duration_cells": """
    SELECT cell, MAX(CASE WHEN place = (timed + 1) / 2 THEN elapsed_ms END) AS p50_ms,
        MAX(CASE WHEN place = (timed * 95 + 99) / 100 THEN elapsed_ms END) AS p95_ms
    FROM (SELECT (received_at - ?1) / ?2 AS cell, elapsed_ms,
            ROW_NUMBER() OVER (PARTITION BY (received_at - ?1) / ?2 ORDER BY elapsed_ms) AS place,
            COUNT(*) OVER (PARTITION BY (received_at - ?1) / ?2) AS timed
        FROM task WHERE IFNULL(received_at, 0) >= ?3 AND elapsed_ms IS NOT NULL)
    GROUP BY cell
    """,
    "failures": "SELECT IFNULL(error, 'unknown') AS reason, COUNT(*) AS tasks,"
    " MAX(IFNULL(completed_at, received_at)) AS last_at FROM task"
    " WHERE status = 'failed' AND IFNULL(received_at, 0) >= ? GROUP BY reason ORDER BY tasks DESC "
    "LIMIT 20",
    "newest_entry": "SELECT key, at FROM log ORDER BY key DESC LIMIT 1",
    "oldest_entry_at": "SELECT at FROM log ORDER BY key LIMIT 1",
    "log_cell": "SELECT COUNT(*) AS entries, IFNULL(SUM(level = 1), 0) AS errors,"
    " IFNULL(SUM(level = 2), 0) AS warnings"
    f" FROM (SELECT level FROM log WHERE key >= ? AND key < ? LIMIT {CELL_ENTRIES})",
}

PAGE_ORDER = {
    "task": "received_at",
    "invoice": "at",
    "audit": "at",
    "sent": "at",
}  # the time each is listed by
FILTERS = {  # by `Store.page` and `Store.entries`
    "since": "IFNULL({order}, 0) >= ?",
    "until": "IFNULL({order}, 0) < ?",
    "execution_id": "execution_id = ?",
    "status": "status = ?",
    "type": "{type} = ?",
    "operation": "operation = ?",
    "level": "level = ?",
    "matched": (
        "EXISTS (SELECT 1 FROM {other} WHERE {other}.execution_id = {table}.execution_id) = ?"
    ),
    "search": "message LIKE ? ESCAPE '!'",
}


def statements_of(script: str) -> Iterator[str]:
    """The statements of a script one by one, as a transaction needs them; a trigger holds some of
    its own.
    """
    statement = ""
    for piece in re.sub(r"--[^\n]*", "", script).split(";"):
        statement += piece + ";"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def literal_like(text: str) -> str:
    """A LIKE pattern that finds `text` anywhere, its own wildcards taken literally (ESCAPE '!')."""
    return "%" + re.sub(r"([!%_])", r"!\1", text) + "%"


def key_of(second: int, rest: bytes = b"") -> bytes:
    """The stored key of an entry, or, without `rest`, the bound below all keys of that second."""
    return max(0, min(second, 2**32 - 1)).to_bytes(4, "big") + rest


def file_kind(path: Path) -> str:
    """Tell whose file `path` is, from its header alone: new, ours, foreign (SQLite of another
    program), unreadable.
    """
    try:
        with path.open("rb") as file:
            header = file.read(100)
    except FileNotFoundError:
        header = b""
    except IsADirectoryError:
        return "unreadable"
    if not header:
        return "new"
    if header[:16] != b"SQLite format 3\0" or len(header) < 100:
        return "unreadable"
    return "ours" if int.from_bytes(header[68:72], "big") == APPLICATION_ID else "foreign"


def read_key_file(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return the content of the 0600 file `path`, made by `make` at the first call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if (kept := path.read_bytes()).strip():  # an empty one would be an empty password
            return kept
    write_key_file(path, make(), anew=False)
    return path.read_bytes()


def write_key_file(path: Path, content: bytes, anew: bool = True) -> None:
    """Write a 0600 file so that a crash leaves the old one or the new one; without `anew`, one that
    is there stays.
    """
    part_path = path.with_name(path.name + ".part")
    with os.fdopen(os.open(part_path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # another first start may be doing the same
        if not anew and path.exists() and path.read_bytes().strip():
            part_path.unlink(missing_ok=True)
        else:
            file.truncate()
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
            os.replace(part_path, path)


class Sharing(NamedTuple):
    """What the operator chose; kept in the store. Off until somebody opts in."""

    enabled: bool = False
    level: str = "balanced"
    tasks: bool = True
    stats: bool = True
    servers: tuple[str, ...] = ()
    joined_at: int = 0  # ms; nothing from before it is told
    greeted: bool = False  # node_joined has gone out
    hubs: tuple[str, ...] = ()  # what was opted in to; another hub is told nothing
    agreed: bool = False  # the hub that is configured now is one of them

    @property
    def kinds(self) -> set[str]:
        """The kinds of task and invoice messages that this choice lets out."""
        chosen = {
            "task_received": self.tasks,
            "task_completed": self.tasks,
            "invoice_created": self.stats,
        }
        return {
            kind
            for kind in chosen
            if chosen[kind] and self.agreed and self.level in ("minimal", "balanced")
        }


def random_node_id(dice: random.Random) -> str:
    """`node-` and a random UUID (version 4)."""
    digits = f"{dice.getrandbits(128) & ~(0xF << 76) & ~(0b11 << 62) | 4 << 76 | 0b10 << 62:032x}"
    return "-".join(("node", digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


class SharingKeys:
    """The federation's files: this installation's id, and one key for the hashes of each UTC
    day.
    """

    def __init__(self, folder: Path) -> None:
        self.id_path, self.keys_path = folder / "federation.id", folder / "federation.keys"
        self.lock = threading.Lock()  # held while the day keys change

    def node_id(self, dice: random.Random) -> str:
        """This installation's id, made at the first opting in and again after a reset."""
        return (
            read_key_file(self.id_path, random_node_id(dice).encode)
            .decode("ascii", "replace")
            .strip()
        )

    def known_id(self) -> str | None:
        """This installation's id if it has one."""
        with contextlib.suppress(FileNotFoundError):
            return self.id_path.read_text("ascii", "replace").strip()
        return None

    def day_key(self, day: str, dice: random.Random) -> bytes:
        """The 32 random bytes that hash what is queued on a day."""
        with self.lock:
            keys = self.day_keys()
            if day not in keys:
                keys[day] = dice.randbytes(32).hex()
                write_key_file(self.keys_path, json.dumps(keys).encode())
            return bytes.fromhex(keys[day])

    def day_keys(self) -> dict[str, str]:
        """{day: key as hex}; a damaged file is as good as none."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            if isinstance(keys := json.loads(self.keys_path.read_bytes()), dict):
                return {
                    day: key for day, key in keys.items() if re.fullmatch("[0-9a-f]{64}", str(key))
                }
        return {}

    def forget_all_but(self, days: Iterable[str]) -> None:
        """Delete the keys of all other days; nobody can then check a guess against what was
        sent.
        """
        with self.lock:
            keys, needed = self.day_keys(), set(days)
            kept = {day: keys[day] for day in keys if day in needed}
            if kept != keys:
                write_key_file(self.keys_path, json.dumps(kept).encode())

    def reset(self) -> None:
        self.id_path.unlink(missing_ok=True)
        self.keys_path.unlink(missing_ok=True)


def lock_beside(path: Path, other: str) -> io.TextIOWrapper:
    """Make sure that one process has the database; the lock ends with the process, however it
    ends.
    """
    file = path.with_name(path.name + ".lock").open("w", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise UserError(f"{path} is in use by {other}; stop that one, or set DB_PATH") from None
    return file


def peek(path: Path, what: str, *values: object) -> Any:
    """`Store.first` of a file that this process does not hold; None where it cannot be read."""
    uri = f"{path.resolve().as_uri()}?mode=ro"
    if file_kind(path) != "ours":  # another's is not touched, not even its -shm
        return None
    with (
        contextlib.suppress(sqlite3.Error),  # from before this version, or busy
        contextlib.closing(sqlite3.connect(uri, uri=True, timeout=1)) as db,
    ):
        return next((row[0] for row in db.execute(QUERIES[what], values)), None)
    return None


def pruned_at(first: Callable[..., Any]) -> dict[str, int]:
    """When log entries and task data last went for their size and not for their age, by name: log,
    data. `first` is a Store's, or `peek` of a file.
    """
    found = {name: first("state", f"pruned {name}") for name in ("log", "data")}
    return {name: int(at) for name, at in found.items() if at is not None}


class Upkeep(NamedTuple):
    """What else `Store.prune` deletes (times in ms), and when that is."""

    sent_before: int = 0
    data_before: int = 0
    now: int = 0


class Store:
    """The SQLite file: every statement of the program, one writing connection, a reader for each
    thread.

    Raises UserError if the file belongs to another program, is in use, or was made with another
    local key; a damaged file is moved aside. `write()` may be called from any thread, `read()` too.
    """

    def __init__(self, path: Path, local_key: bytes) -> None:
        self.path, self.local_key = path.resolve(), local_key
        self.lock = threading.Lock()  # held by whoever writes
        self.readers: list[sqlite3.Connection] = []  # read-only connections that nobody uses now
        self.own: frozenset[str] = frozenset()
        self.damage: sqlite3.DatabaseError | None = None  # as SQLite told it, to whichever thread
        self.is_full = False  # the disk, and the ballast is not held
        self.wal_bytes = WAL_BYTES  # of the write-ahead log, beyond which it is emptied
        self.inodes: list[int | None] = []  # of the file and of what SQLite keeps beside it
        path.parent.mkdir(parents=True, exist_ok=True)
        self.refuse_foreign()
        self.lock_file = lock_beside(self.path, "another tbmon")
        try:
            self.db = self.open_or_replace()
        except BaseException:
            self.lock_file.close()
            raise
        self.check_files()
        self.own = frozenset(json.loads(self.first("state", "own") or "[]"))

    def refuse_foreign(self) -> None:
        """Raise UserError unless the file is ours, new, or damaged; nothing is opened or written
        before.
        """
        kind = file_kind(self.path)
        if kind == "foreign":
            raise UserError(
                f"{self.path} is another program's database (the original monitor's has the same "
                f"default path);"
                " it was left as it is: set DB_PATH to a new file"
            )
        if kind == "unreadable" and not self.path.with_name(self.path.name + "-ours").exists():
            raise UserError(
                f"{self.path} is no SQLite database; it was left as it is: set DB_PATH to a new "
                f"file"
            )

    def open_or_replace(self) -> sqlite3.Connection:
        try:
            if (
                file_kind(self.path) == "unreadable"
                or self.path.with_name(self.path.name + "-damaged").exists()
            ):
                raise sqlite3.DatabaseError("it is not readable")
            return self.open()
        except sqlite3.OperationalError as error:
            raise UserError(f"{self.path} cannot be opened: {error}") from None
        except (
            sqlite3.DatabaseError,
            UnicodeDecodeError,
        ) as error:  # the latter: SQLite quotes a broken schema
            self.move_aside(error)
            return self.open()

    def move_aside(self, error: Exception) -> None:
        """Keep a damaged file under another name; what Docker still holds is read into a fresh
        one.
        """
        name = f"{self.path.name}.damaged-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
        log.error(
            "store: %s is damaged (%s): moved to %s, starting a fresh one", self.path, error, name
        )
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):  # not every file has a write-ahead log
                os.replace(f"{self.path}{suffix}", self.path.with_name(name + suffix))
        self.path.with_name(self.path.name + "-damaged").unlink(missing_ok=True)

    def mark_damaged(self) -> None:
        """Leave word for the next start that the file is damaged; called where SQLite says so."""
        self.path.with_name(self.path.name + "-damaged").touch()

    def check_files(self) -> None:
        """Raise what SQLite said of damage; UserError if a file was taken away since the first
        look.
        """
        if self.damage is not None:
            raise self.damage
        paths = [f"{self.path}{suffix}" for suffix in ("", "-wal", "-shm")]
        inodes = [os.stat(path).st_ino if os.path.exists(path) else None for path in paths]
        if inodes != (self.inodes or inodes):
            raise UserError(
                f"{self.path}, its -wal or its -shm was removed or replaced: ending, to begin anew"
            )
        self.inodes = inodes

    def note_error(self, error: BaseException) -> None:
        """Act on what SQLite says of the disk: it is full, or the file is damaged."""
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:
            self.is_full = True
            self.release_ballast()
        if type(error) is sqlite3.DatabaseError:  # its subclasses are bugs of ours, or the disk's
            self.damage = error
        elif "decode to UTF-8" in str(error):  # sqlite3 quotes the text, which is nobody's to read
            self.damage = sqlite3.DatabaseError("a text in it is not UTF-8")

    def hold_ballast(self) -> None:
        """Hold BALLAST_BYTES of the disk; raises OperationalError if there is no room."""
        try:
            with os.fdopen(
                os.open(f"{self.path}-ballast", os.O_RDWR | os.O_CREAT, 0o600), "r+b"
            ) as file:
                if file.seek(0, os.SEEK_END) < BALLAST_BYTES:
                    with (
                        self.lock,
                        contextlib.suppress(sqlite3.Error),
                    ):  # what fills the disk may be this log
                        self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                    os.posix_fallocate(
                        file.fileno(), 0, 2 * BALLAST_BYTES
                    )  # as much again must be free to go on
                    file.truncate(BALLAST_BYTES)
            self.is_full = False
        except OSError as error:
            self.release_ballast()
            raise sqlite3.OperationalError(f"the database cannot grow: {error.strerror}") from None

    def release_ballast(self) -> None:
        with contextlib.suppress(OSError):  # there may be none yet
            os.truncate(f"{self.path}-ballast", 0)

    def open(self) -> sqlite3.Connection:
        """Open the writing connection and bring the schema up to date; each step is one
        transaction.
        """
        self.release_ballast()  # so that it starts on a full disk too; ingest will hold it again
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
        db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False, timeout=10)
        try:
            db.execute(
                "BEGIN"
            )  # not IMMEDIATE, which begins the file, and auto_vacuum comes before that
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
            db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            db.execute("COMMIT")
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute(
                f"PRAGMA journal_size_limit = {WAL_BYTES}"
            )  # of the file left when a reader has stayed long
            small = (
                db.execute("PRAGMA page_count").fetchone()[0] < 20_000
            )  # larger files are checked by upkeep
            if small and (answer := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
                raise sqlite3.DatabaseError(answer)
            self.migrate(db)
            self.check_key(db)
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except BaseException:
            db.close()
            raise
        self.path.with_name(self.path.name + "-ours").touch()
        return db

    def migrate(self, db: sqlite3.Connection) -> None:
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version > len(MIGRATIONS):
            raise UserError(
                f"{self.path} was made by a newer tbmon (schema {version}): update this one"
            )
        for number, script in enumerate(MIGRATIONS[version:], version + 1):
            db.execute("BEGIN IMMEDIATE")
            for statement in (*statements_of(script), f"PRAGMA user_version = {number}"):
                db.execute(statement)
            db.execute("COMMIT")

    def check_key(self, db: sqlite3.Connection) -> None:
        """The entries' keys are made with the local key: with another one everything would be
        stored twice.
        """
        mark = keyed(self.local_key, "check", "").hex()
        row = db.execute("SELECT value FROM state WHERE name = 'key_check'").fetchone()
        if row is None:
            db.execute("INSERT INTO state (name, value) VALUES ('key_check', ?)", (mark,))
        elif row[0] != mark:
            raise UserError(
                f"the local key does not fit {self.path}: put its file back, or set DB_PATH to a "
                f"new file"
            )

    def close(self) -> None:
        with self.lock:
            while self.readers:
                self.readers.pop().close()
            with contextlib.suppress(sqlite3.Error):  # a full disk must not keep us from ending
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.close()
        self.lock_file.close()

    @contextlib.contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """Commit everything in the block or nothing; keep it short."""
        with self.lock:
            self.db.execute("BEGIN IMMEDIATE")
            try:
                yield self.db
                self.db.execute("COMMIT")
            except BaseException as error:
                self.note_error(error)
                self.db.rollback()  # nothing to do where a full disk has done it already
                self.own = frozenset(
                    json.loads(self.first("state", "own") or "[]")
                )  # add_own may have been part of it
                raise
            with contextlib.suppress(OSError):  # a file that is gone is check_files' to tell
                self.bound_wal()

    def bound_wal(self) -> None:
        """Empty a long write-ahead log: by itself that waits for a moment without readers, which
        may never come.
        """
        if os.stat(f"{self.path}-wal").st_size > self.wal_bytes:
            self.db.execute("PRAGMA busy_timeout = 1000")  # ms, for those who read already
            with contextlib.suppress(sqlite3.Error):  # the next write says what is wrong
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            self.db.execute("PRAGMA busy_timeout = 10000")
            self.wal_bytes = max(
                WAL_BYTES, os.stat(f"{self.path}-wal").st_size * 5 // 4
            )  # somebody may stay for long

    def read(
        self, sql: str, values: Sequence[object] | Mapping[str, object] = ()
    ) -> list[sqlite3.Row]:
        """All rows of a query, on a read-only connection that no other thread uses meanwhile."""
        try:
            db = self.readers.pop()
        except IndexError:
            uri = f"{self.path.as_uri()}?mode=ro"
            db = sqlite3.connect(
                uri, uri=True, isolation_level=None, timeout=10, check_same_thread=False
            )
            db.row_factory = sqlite3.Row
            db.execute("PRAGMA query_only = 1")
            db.execute("PRAGMA cache_size = -1024")
        try:
            rows = db.execute(sql, values).fetchall()
        except BaseException as error:
            self.note_error(error)
            db.close()
            if self.damage is not None:
                raise self.damage from None
            raise
        if len(self.readers) < READERS:
            self.readers.append(db)
        else:
            db.close()
        return rows

    def get(self, what: str, *values: object) -> list[sqlite3.Row]:
        """The rows of one of QUERIES."""
        return self.read(QUERIES[what], values)

    def first(self, what: str, *values: object) -> Any:
        """The first column of the first row of one of QUERIES; None if there is no row."""
        return next((row[0] for row in self.get(what, *values)), None)

    # What ingest keeps. Methods that take `db` belong inside a `write()` block.

    def put(self, db: sqlite3.Connection, what: str, rows: Iterable[Sequence[object]]) -> None:
        """Write rows of one of the kinds in WRITES, in the order of its columns."""
        db.executemany(WRITES[what], rows)

    def save_entries(self, db: sqlite3.Connection, rows: Iterable[Sequence[object]]) -> None:
        """Write rows of the log; a copy of one that is there completes it."""
        left = list(rows)
        for most, sql in SAVE_ROWS:
            while len(left) >= most:
                db.execute(sql, [*itertools.chain(*left[:most])])
                del left[:most]

    def lively_minutes(self, since: int, until: int) -> list[int]:
        """The minutes (since 1970) from `since` to before `until` (ms) that have lines of the
        node.
        """
        ahead_s = self.ahead_s()
        low = since // 1000 + ahead_s - 3600
        high = until // 1000 + ahead_s + 3600
        rows = self.get("lively_minutes", key_of(max(0, low)), key_of(max(0, high)), since, until)
        return [row["minute"] for row in rows]

    def ahead_s(self) -> int:
        """How far the clock that the node's stamps are of is ahead of UTC, by the newest entry."""
        for row in self.get("newest_entry"):
            ahead_s: int = int.from_bytes(row["key"][:4], "big") - row["at"] // 1000
            return round(ahead_s / 900) * 900
        return 0

    def facts_between(self, since: int, until: int) -> list[sqlite3.Row]:
        """Believed entries that say something of a task, in order; times in ms."""
        low, high = key_of(since // 1000 - ZONE_S), key_of(until // 1000 + ZONE_S)
        kinds = ",".join(
            str(number)
            for number, name in enumerate(LOG_TYPES)
            if name.startswith(("task_", "exec"))
        )
        return self.read(
            f"SELECT key, at, type, execution_id, message FROM log WHERE key BETWEEN ? AND ? AND "
            f"at BETWEEN ? AND ?"
            f" AND NOT flags & {SUSPECT} AND type IN ({kinds}) ORDER BY substr(key, 1, 4), seq",
            (low, high, since, until),
        )

    def held_back(self, from_key: bytes, source: int) -> list[sqlite3.Row]:
        """The entries of a source from a key on whose header was not believed, and the outputs
        without one, in order.
        """
        return self.read(
            f"SELECT {LOG_COLUMNS} FROM log WHERE key >= ? AND sources & ?"
            " AND (flags & ? OR (type = ? AND flags & ?)) ORDER BY substr(key, 1, 4), seq",
            (from_key, source, SUSPECT, LOG_TYPES.index("execution_output"), UNSTAMPED),
        )

    def save_overlap(
        self, db: sqlite3.Connection, newest: str, lines: Sequence[str], oldest: str
    ) -> None:
        """Keep the lines of one batch for the next resume; drop batches that ended before
        `oldest`.
        """
        if lines:
            db.execute(
                "INSERT INTO overlap (newest, lines) VALUES (?, ?)", (newest, "\n".join(lines))
            )
        db.execute("DELETE FROM overlap WHERE newest < ?", (oldest,))

    def clear_overlap(self, db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM overlap")

    def save_file(
        self, head_hash: str, read: tuple[int, int, str], before: str, db: sqlite3.Connection
    ) -> None:
        """Remember how far a file is read (head_bytes, offset, tail_hash); `before` is the hash of
        its shorter head, if it had one.
        """
        db.execute("DELETE FROM file WHERE head_hash = ?", (before,))
        sql = "INSERT OR REPLACE INTO file (head_hash, head_bytes, offset, tail_hash)"
        db.execute(f"{sql} VALUES (?, ?, ?, ?)", (head_hash, *read))

    def task(self, execution_id: str) -> Task | None:
        return next((Task(*row) for row in self.get("task", execution_id)), None)

    def save_tasks(self, db: sqlite3.Connection, tasks: Iterable[Task]) -> None:
        values = [
            (*(getattr(task, name) for name in TASK_COLUMNS), task.deadline) for task in tasks
        ]
        db.executemany(SAVE_TASK, values)

    def save_doubts(self, db: sqlite3.Connection, doubts: Mapping[bytes, frozenset[str]]) -> None:
        """Keep for each output, by its entry's key, the tasks that it leaves in doubt."""
        rows = ((key, name) for key, owners in doubts.items() for name in owners)
        db.executemany("DELETE FROM doubt WHERE key = ?", ((key,) for key in doubts))
        db.executemany("INSERT INTO doubt (key, execution_id) VALUES (?, ?)", rows)

    def save_task_data(self, db: sqlite3.Connection, data: Mapping[str, Mapping[str, str]]) -> None:
        """Keep input, output and error_text by execution id; the longer text of each wins (an entry
        still growing).
        """
        rows = [(name, *map(texts.get, TASK_DATA)) for name, texts in data.items()]
        db.executemany(SAVE_TASK_DATA, rows)

    def save_invoice(
        self, db: sqlite3.Connection, event: Event, confirmed: bool
    ) -> Mapping[str, Any] | None:
        """Keep an invoice once, whatever told of it; return the node's own line item, if it has
        one.
        """
        found = event.fields
        items = json.dumps(found["line_items"])
        mine = own_item(found["line_items"], self.own)
        shown = mine or (found["line_items"][0] if found["line_items"] else {})
        values = {
            **found,
            "name": self.invoice_name(event),
            "execution_id": event.execution_id,
            "line_items": items,
            "operation": mine["operation"] if mine else None,
            "steps": shown.get("steps"),
            "memory_peak": shown.get("memory_peak"),
            "confirmed": int(confirmed),
        }
        db.execute(SAVE_INVOICE, values)
        return mine

    def invoice_name(self, event: Event) -> str:
        """What an invoice is known by; two of an execution without an id differ in their items."""
        content = f"{event.execution_id} {json.dumps(event.fields['line_items'])}"
        return (
            event.fields["invoice_id"] or "-" + keyed(self.local_key, "invoice", content).hex()[:32]
        )

    def add_own(self, db: sqlite3.Connection, pseudonym: str) -> None:
        """Remember one of the node's own wallets and look for it in the invoices kept so far."""
        self.own = self.own | {pseudonym}
        self.put(db, "state", [("own", json.dumps(sorted(self.own)))])
        # those of this transaction too; one by one, since each may have many items
        for (number,) in db.execute(QUERIES["invoices_of_others"], (pseudonym,)).fetchall():
            select = "SELECT line_items FROM invoice WHERE id = ?"
            items = json.loads(db.execute(select, (number,)).fetchone()[0])
            if mine := own_item(items, self.own):
                sql = "UPDATE invoice SET operation = ?, steps = ?, memory_peak = ? WHERE id = ?"
                db.execute(sql, (mine["operation"], mine["steps"], mine["memory_peak"], number))

    def save_node(self, db: sqlite3.Connection, facts: Mapping[str, tuple[object, int]]) -> None:
        """Keep what is known of the node as {name: (value, at)}; older news never replace newer."""
        sql = (
            "INSERT INTO node VALUES (?, ?, ?) ON CONFLICT (name)"
            " DO UPDATE SET value = excluded.value, at = excluded.at WHERE excluded.at >= at"
        )
        db.executemany(sql, [(name, json.dumps(value), at) for name, (value, at) in facts.items()])

    # What the federation is told. Methods that take `db` belong inside a `write()` block.

    def told(self, db: sqlite3.Connection, execution_id: str) -> int:
        """What was told of a task, as bits of this transaction."""
        row = db.execute("SELECT told FROM task WHERE execution_id = ?", (execution_id,)).fetchone()
        return int(row[0]) if row else 0

    def untold_invoice(
        self, db: sqlite3.Connection, name: str, since: int
    ) -> tuple[str, int | None, bool] | None:
        """(name, steps, confirmed) of an invoice from `since` (ms) on of which nothing was told."""
        sql = "SELECT name, steps, confirmed FROM invoice WHERE name = ? AND at >= ? AND NOT told"
        row = db.execute(sql, (name, since)).fetchone()
        return (row[0], row[1], bool(row[2])) if row else None

    def trim_outbox(self, db: sqlite3.Connection, now: int) -> None:
        """Drop what was due OUTBOX_MS ago, or by a clock that was ahead, and the oldest beyond
        OUTBOX_ROWS.
        """
        edges = now - OUTBOX_MS, now + OUTBOX_MS
        gone = db.execute("DELETE FROM outbox WHERE due_at NOT BETWEEN ? AND ?", edges).rowcount
        sql = (
            "DELETE FROM outbox WHERE id <= (SELECT id FROM outbox ORDER BY id DESC LIMIT 1 "
            "OFFSET ?)"
        )
        self.count(db, "dropped", gone + db.execute(sql, (OUTBOX_ROWS,)).rowcount)

    def count(self, db: sqlite3.Connection, name: str, number: int = 1) -> None:
        """Add to one of the federation's counters."""
        if number:
            self.put(db, "counter", [(f"federation {name}", number)])

    # Upkeep

    def prune(self, before: int, max_bytes: int, upkeep: Upkeep | None = None) -> int:
        """Delete one slice of log entries older than `before` (ms), or the oldest if the file is
        too large, and of task data likewise; half of the file is task data's at most.

        Returns how many went; 0 when there is nothing to do. Tasks and invoices stay.
        """
        upkeep = upkeep or Upkeep()
        sizes = [
            self.read(f"PRAGMA {name}")[0][0]
            for name in ("page_count", "freelist_count", "page_size")
        ]
        data_is_large = self.first("task_data_bytes") > max_bytes // 2
        # what is beyond a share goes first, and not what is within the other
        log_is_large = (sizes[0] - sizes[1]) * sizes[2] > max_bytes and not data_is_large
        if log_is_large:
            before = 2**62
        with self.write() as db:
            sql = (
                "DELETE FROM log WHERE key IN (SELECT key FROM log WHERE key < ? AND at < ? "
                "ORDER BY key LIMIT 500)"
            )
            gone = db.execute(sql, (key_of(before // 1000), before)).rowcount
            data = self.prune_task_data(db, 2**62 if data_is_large else upkeep.data_before)
            for name, went in (("log", log_is_large and gone), ("data", data_is_large and data)):
                if went:
                    self.put(db, "state", [(f"pruned {name}", upkeep.now)])
            for kind in (
                "event = 'refused'",
                "event <> 'refused'",
            ):  # a flood of them costs no other
                db.execute(
                    f"DELETE FROM audit WHERE {kind} AND id <= "
                    f"(SELECT id FROM audit WHERE {kind} ORDER BY id DESC LIMIT 1 OFFSET ?)",
                    (AUDIT_ROWS,),
                )
            db.execute("DELETE FROM sent WHERE at < ?", (upkeep.sent_before,))
        with self.lock:
            self.db.executescript(
                "PRAGMA incremental_vacuum(1000)"
            )  # execute() would stop after one page
        return gone + data or int(sizes[1] > 0)

    def prune_task_data(self, db: sqlite3.Connection, before: int) -> int:
        """Delete one slice of the inputs and outputs of tasks received before `before` (ms), the
        oldest first; what waits for its task comes last. Returns how many rows went.
        """
        sql = (
            "DELETE FROM task_data WHERE execution_id IN"
            " (SELECT execution_id FROM task_data_size WHERE at < ? ORDER BY at LIMIT 20)"
        )
        if gone := db.execute(sql, (before,)).rowcount:
            return gone
        sql = (  # a name begins with the entry's second
            "DELETE FROM waiting_words WHERE name IN"
            " (SELECT name FROM waiting_words WHERE name < ? ORDER BY name LIMIT 20)"
        )
        return db.execute(sql, (key_of(before // 1000).hex(),)).rowcount

    def is_sound(self) -> bool:
        """Check the file, from the disk and not from a reader's memory; takes about 0.2 s for a
        million rows.
        """
        self.readers.clear()
        if self.first("quick_check") != "ok":
            self.damage = sqlite3.DatabaseError("the file is damaged")
        return self.damage is None

    def has_damage(self, error: Exception) -> bool:
        """Whether the file is damaged: checked where the error is not SQLite's, as damaged rows may
        have any shape.
        """
        self.note_error(error)
        if not isinstance(error, sqlite3.Error):
            with contextlib.suppress(sqlite3.Error):  # `read` has noted it
                self.is_sound()
        return self.damage is not None

    # What the API shows

    def show(self, text: str) -> str:
        """Name the node's own wallets in a text that goes out."""
        for pseudonym in self.own if "wallet:" in text else ():
            text = text.replace(pseudonym, "wallet:self")
        return text

    def size_bytes(self) -> int:
        """The size of the file, without its write-ahead log."""
        return int(self.read("PRAGMA page_count")[0][0] * self.read("PRAGMA page_size")[0][0])

    def node(self) -> dict[str, Any]:
        """What is known of the node, by name."""
        return {row["name"]: json.loads(row["value"]) for row in self.get("node")}

    def page(
        self,
        table: str,
        filters: Mapping[str, object],
        before: tuple[int, int] | None,
        limit: int,
        skip: int,
        columns: str = "*",
    ) -> list[sqlite3.Row]:
        """Rows of a table, newest first by (PAGE_ORDER, id); `filters` maps names of FILTERS to
        their values.
        """
        order = PAGE_ORDER[table]
        names = {
            "table": table,
            "order": order,
            "other": {"task": "invoice"}.get(table, "task"),
            "type": "task_type",
        }
        conditions, values = (
            ["1", *(FILTERS[name].format_map(names) for name in filters)],
            list(filters.values()),
        )
        if before is not None:
            conditions.append(f"(IFNULL({order}, 0), id) < (?, ?)")
            values += before
        sql = (
            f"SELECT {columns} FROM {table} WHERE {' AND '.join(conditions)}"
            f" ORDER BY IFNULL({order}, 0) DESC, id DESC LIMIT ? OFFSET ?"
        )
        return self.read(sql, (*values, limit, skip))

    def rows_of(self, table: str, keys: Iterable[Any], columns: str = "*") -> Iterator[sqlite3.Row]:
        """The rows of these keys, in their order; ROWS_AT_ONCE at a time. `columns` has the key."""
        name, rest = "key" if table == "log" else "id", iter(keys)
        while some := tuple(itertools.islice(rest, ROWS_AT_ONCE)):
            marks = ", ".join("?" * len(some))
            rows = self.read(f"SELECT {columns} FROM {table} WHERE {name} IN ({marks})", some)
            found = {row[name]: row for row in rows}
            yield from (found[key] for key in some if key in found)

    def message_sizes(self, keys: Iterable[bytes]) -> Iterator[int]:
        """How many bytes the messages of these log entries have."""
        columns = "key, length(CAST(message AS BLOB)) AS size"
        return (row["size"] for row in self.rows_of("log", keys, columns))

    def entries(
        self,
        filters: Mapping[str, object],
        since: int,
        until: int,
        before: tuple[bytes, int] | None,
        limit: int,
        columns: str = LOG_COLUMNS,
    ) -> list[sqlite3.Row]:
        """Log entries, newest first by (second, seq, key), at most `limit`; `before` is (key, seq)
        of the last seen.

        Keys come in time order but not in seq order within a second, so the second at the page's
        end is sorted.
        """

        def place(row: sqlite3.Row) -> tuple[bytes, int, bytes]:
            return row["key"][:4], row["seq"], row["key"]

        low, high = key_of(since // 1000 - ZONE_S), key_of(until // 1000 + ZONE_S)
        last = None if before is None else (before[0][:4], before[1], before[0])
        if before is not None:
            high = min(high, key_of(int.from_bytes(before[0][:4], "big") + 1))
        where = [FILTERS[name].format(type="type") for name in filters]
        sql = (
            f"SELECT {columns} FROM log"
            f" WHERE {' AND '.join(['key >= ? AND key < ? AND at >= ? AND at < ?', *where])}"
        )
        values = since, until, *filters.values()
        rows: list[sqlite3.Row] = []
        while True:
            found = self.read(f"{sql} ORDER BY key DESC LIMIT ?", (low, high, *values, limit + 1))
            if (
                len(found) == limit + 1
            ):  # the last second may go on beyond them, for as long as no header comes
                second = found[-1]["key"][:4]
                found = [row for row in found if row["key"][:4] != second]
                seen = last[1:] if last and last[0] == second else (2**63 - 1, b"")
                within = second, key_of(int.from_bytes(second, "big") + 1), *values, *seen, limit
                found += self.read(
                    f"{sql} AND (seq, key) < (?, ?) ORDER BY seq DESC, key DESC LIMIT ?", within
                )
                low_next = second
            else:
                low_next = b""
            found.sort(key=place, reverse=True)
            rows += [row for row in found if last is None or place(row) < last]
            if len(rows) >= limit or not low_next:
                return rows[:limit]
            high = low_next


# ---------------------------------------------------------------------------
# 5. Privacy: what may be said                                           (pure)
# ---------------------------------------------------------------------------

ANONYMOUS = "node-00000000-0000-0000-0000-000000000000"  # whose id task and invoice messages carry
WINDOW_MS = 5 * MINUTE_MS  # every stamp is at the edge of such a window
DELAY_MS = {
    "minimal": HOUR_MS,
    "balanced": DAY_MS,
}  # drawn beyond the window's end; "maximum" sends no such messages
MESSAGE_BYTES = 64 * KIB  # of a publication; our own have a few hundred
COMPACT = json.JSONEncoder(separators=(",", ":"))


class Scale(NamedTuple):
    """Ranges of a quantity: `edges` are where each ends, itself not included, and the last has
    none.
    """

    edges: tuple[int, ...]
    ranges: tuple[str, ...]

    def range_of(self, value: int | None) -> str:
        """The range of a value; a missing one is "unknown", zero is a value."""
        return (
            "unknown"
            if value is None or value < 0
            else self.ranges[bisect.bisect_right(self.edges, value)]
        )


TIME_RANGES = ("<100ms", "100-500ms", "500ms-1s", "1-5s", "5-10s", "10-30s", "30s-1m", ">1m")
TIME_SCALE = Scale((100, 500, 1000, 5000, 10_000, 30_000, 60_000), TIME_RANGES)  # ms
STEPS_RANGES = ("<1M", "1M-100M", "100M-1B", "1B-10B", "10B-100B", ">100B")
STEPS_SCALE = Scale((10**6, 10**8, 10**9, 10**10, 10**11), STEPS_RANGES)
MEMORY_SCALE = Scale(
    (128, 256, 512, 2048), ("<8MB", "8-16MB", "16-32MB", "32-128MB", ">128MB")
)  # pages of 64 KiB
SHARED_LANGUAGES = ("rust", "javascript", "python", "other")
HASH, MOMENT = (
    re.compile("[0-9a-f]{64}"),
    re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5]\d:[0-5]\d(\.\d{3})?Z"),
)


class Kind(NamedTuple):
    """A kind of message: its subject, whether it names this installation, and all values that its
    fields can have.

    Of the fields in `choices` a message has exactly one, chosen at random, so that no message has
    two of them.
    """

    subject: str
    named: bool
    fields: Mapping[str, Any]  # a tuple of values, or a pattern
    choices: Mapping[str, Scale] = NOTHING


MESSAGES = {  # the published schema: nothing else leaves this machine
    "heartbeat": Kind("truebit.heartbeat", True, {"status": ("online", "offline")}),
    "node_joined": Kind("truebit.nodes.joined", True, {"status": ("online",)}),
    "node_left": Kind("truebit.nodes.left", True, {"status": ("offline",)}),
    "task_received": Kind(
        "truebit.tasks.received", False, {"taskIdHash": HASH, "taskType": SHARED_LANGUAGES}
    ),
    "task_completed": Kind(
        "truebit.tasks.completed",
        False,
        {
            "taskIdHash": HASH,
            "taskType": SHARED_LANGUAGES,
            "status": ("completed", "failed"),
            "cached": (True, False, None),
        },
        {
            "executionTimeBucket": TIME_SCALE,
            "gasUsedBucket": STEPS_SCALE,
            "memoryUsedBucket": MEMORY_SCALE,
        },
    ),
    "invoice_created": Kind(
        "truebit.invoices.created",
        False,
        {"invoiceIdHash": HASH, "stepsComputedBucket": (*STEPS_RANGES, "unknown")},
    ),
}
ENVELOPE = {
    "version": ("1.0",),
    "type": tuple(MESSAGES),
    "id": re.compile("[0-9a-f]{32}"),
    "nodeId": re.compile("node-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"),
    "timestamp": re.compile(r"20\d\d-[01]\d-[0-3]\dT[0-2]\d:[0-5][05]:00\.000Z"),
    "data": None,
}
# the second line, which must never fire: wallets, keys, addresses, exact times
SUSPICIOUS = re.compile(
    r"0x|wallet|-----|[0-9a-f]{40}|\d+\.\d+\.\d+\.\d+|::|([0-9a-f]{1,4}:){4}|:\d\d:(?!00\.000Z)|"
    r"\d{10}",
    re.I,
)
is_suspicious = functools.lru_cache(4096)(
    SUSPICIOUS.search
)  # few texts come here, but to an aggregator
edge_of = functools.lru_cache(4096)(parse_time)  # millions of times


class Words(NamedTuple):
    """What every message has beside its data: when it is due (ms), a random id, and the day key of
    its hashes.
    """

    at: int
    message_id: str
    key: bytes = b""


def message_of(kind: str, node_id: str, words: Words, data: Mapping[str, object]) -> bytes:
    """The one form that a message of this kind can have."""
    head = {"version": "1.0", "type": kind, "id": words.message_id, "nodeId": node_id}
    return encode({**head, "timestamp": utc(words.at // WINDOW_MS * WINDOW_MS), "data": data})


def encode(message: Mapping[str, object]) -> bytes:
    return COMPACT.encode(message).encode()


def presence_message(kind: str, node_id: str, is_online: bool, words: Words) -> bytes:
    """heartbeat, node_joined or node_left: the only messages that name this installation."""
    return message_of(kind, node_id, words, {"status": "online" if is_online else "offline"})


def received_message(task: Task, words: Words) -> bytes:
    """task_received. The hash is of the execution id: the program's own id comes again with every
    execution.
    """
    name = keyed(words.key, "task_received", task.execution_id).hex()
    return message_of(
        "task_received", ANONYMOUS, words, {"taskIdHash": name, "taskType": shared_language(task)}
    )


def completed_message(task: Task, words: Words, choice: str) -> bytes:
    """task_completed, with the one measure that `choice` names."""
    scales, cached = (
        MESSAGES["task_completed"].choices,
        None if task.cached is None else bool(task.cached),
    )
    values = dict(zip(scales, (task.elapsed_ms, task.gas_used, task.memory_peak), strict=True))
    name = keyed(words.key, "task_completed", task.execution_id).hex()
    data = {
        "taskIdHash": name,
        "taskType": shared_language(task),
        "status": task.status,
        "cached": cached,
    }
    return message_of(
        "task_completed",
        ANONYMOUS,
        words,
        {**data, choice: scales[choice].range_of(values[choice])},
    )


def invoice_message(invoice_id: str, steps: int | None, words: Words) -> bytes:
    """invoice_created."""
    name = keyed(words.key, "invoice_created", invoice_id).hex()
    data = {"invoiceIdHash": name, "stepsComputedBucket": STEPS_SCALE.range_of(steps)}
    return message_of("invoice_created", ANONYMOUS, words, data)


def shared_language(task: Task) -> str:
    return task.task_type if task.task_type in SHARED_LANGUAGES else "other"


def due_after(at: int, level: str, share: float) -> int:
    """When a message queued at `at` is sent, in ms: after its window, at `share` (drawn from 0 to
    1) of the delay.
    """
    return at // WINDOW_MS * WINDOW_MS + WINDOW_MS + int(share * DELAY_MS[level])


def refusal_of(subject: str, payload: bytes) -> str | None:
    """The gate: why these bytes may not leave this machine, or None if they may.

    Every byte passes here before it is stored to be sent. Only the one encoding of a message whose
    every key and value is in MESSAGES is let through; there is no room for anything else in it.
    """
    try:
        message = json.loads(payload.decode())
        again = encode(message)
    except (ValueError, RecursionError):
        return "it is no JSON"
    kind = (
        MESSAGES.get(message["type"])
        if isinstance(message, dict) and isinstance(message.get("type"), str)
        else None
    )
    if kind is None or kind.subject != subject or list(message) != list(ENVELOPE):
        return "its envelope is not in the schema"
    if again != payload:
        return "it is not written in the one form that the schema has"
    for name, allowed in ENVELOPE.items():
        if allowed is not None and not fits(message[name], allowed):
            return f"the value of {name} is not in the schema"
    if kind.named == (message["nodeId"] == ANONYMOUS) or edge_of(message["timestamp"]) is None:
        return "the value of nodeId or timestamp is not in the schema"
    return data_refusal(kind, message["data"]) or suspicion_of(message)


def data_refusal(kind: Kind, data: object) -> str | None:
    """The same for a message's data."""
    chosen = [name for name in kind.choices if isinstance(data, dict) and name in data]
    if (
        not isinstance(data, dict)
        or list(data) != [*kind.fields, *chosen]
        or len(chosen) != bool(kind.choices)
    ):
        return "the fields of data are not in the schema"
    allowed = {**kind.fields, **{name: (*kind.choices[name].ranges, "unknown") for name in chosen}}
    wrong = [name for name in data if not fits(data[name], allowed[name])]
    return f"the value of {wrong[0]} is not in the schema" if wrong else None


def fits(value: object, allowed: Any) -> bool:
    """True if the value is one of a tuple's (and of its type), text that a pattern describes, or
    passes a test.
    """
    if isinstance(allowed, tuple):
        return value in allowed and type(value) is type(allowed[allowed.index(value)])
    if isinstance(allowed, re.Pattern):
        return isinstance(value, str) and allowed.fullmatch(value) is not None
    return bool(allowed(value))


def suspicion_of(message: Mapping[str, Any]) -> str | None:
    """The second line: a pattern of what must never leave, in whatever is no hash and no id of the
    schema.
    """
    plain = {name: value for name, value in message.items() if name not in ("id", "nodeId")}
    plain["data"] = {
        name: value for name, value in message["data"].items() if not name.endswith("Hash")
    }
    return (
        "it looks as if it held an address, a key or an exact time"
        if is_suspicious(str(plain))
        else None
    )


# ---------------------------------------------------------------------------
# 6. Federation: how it is sent                                   (network out)
# ---------------------------------------------------------------------------

STATS_SUBJECT = "truebit.stats.aggregated"
CONTROL_BYTES = 4 * KIB  # of a line of the NATS protocol


class Pace(NamedTuple):
    """Delays in seconds; tests step them."""

    connect_s: float = 10
    proof_s: float = (
        10  # a connection that lives so long after a PONG has delivered what came before it
    )
    beat_s: float = 30
    look_s: float = 1
    retry_s: tuple[float, float] = (2, 300)


class Outbox:
    """Puts into the outbox what may be told, in the transaction of what it tells of. Any thread."""

    def __init__(
        self,
        store: Store,
        keys: SharingKeys,
        now: Callable[[], int],
        dice: random.Random,
        hub: str,
    ) -> None:
        self.store, self.keys, self.now, self.dice, self.hub = store, keys, now, dice, hub
        kept = json.loads(store.first("state", "federation") or "{}")
        for name in ("servers", "hubs"):
            kept[name] = tuple(kept.get(name) or ())
        self.sharing = Sharing(**kept)
        if self.sharing.enabled and not self.sharing.hubs:  # of an earlier tbmon: the hub in use
            self.sharing = self.sharing._replace(hubs=self.servers(), agreed=True)
            self.keep()
        if self.after() != self.sharing:  # another hub is configured than was, or the old one again
            self.keep()
        self.event_db: bool | None = (
            None  # ingest: whether there is one to check tasks against; None before a look
        )

    def servers(self) -> tuple[str, ...]:
        """The hub that is configured now, as the addresses that are tried in turn."""
        return self.sharing.servers or (self.hub,)

    def after(self, **chosen: Any) -> Sharing:
        """The settings as these would make them. Opting in and naming servers consent to the hub
        of then; nothing else does.
        """
        sharing = self.sharing._replace(**chosen)
        servers = sharing.servers or (self.hub,)
        if "hubs" not in chosen and not {"enabled", "servers"}.isdisjoint(chosen):
            sharing = sharing._replace(hubs=servers if sharing.enabled else ())
        return sharing._replace(agreed=sharing.enabled and set(servers) <= set(sharing.hubs))

    def keep(self, **chosen: Any) -> None:
        """Take over new settings; what waits and may no longer be told is taken back, and all of it
        where it waited for another hub.
        """
        with self.store.write() as db:
            sharing, told = self.after(**chosen), self.sharing.kinds
            if set(sharing.hubs) - set(self.sharing.hubs):
                told = set[str]()
                sharing = sharing._replace(greeted=chosen.get("greeted", False))
            if sharing.kinds - told:  # what happened while a kind was off stays untold
                sharing = sharing._replace(joined_at=self.now())
            silent = {"task_received", "task_completed", "invoice_created"} - (sharing.kinds & told)
            self.store.put(db, "state", [("federation", json.dumps(sharing._asdict()))])
            self.store.put(db, "take_back", [(MESSAGES[kind].subject,) for kind in silent])
            self.sharing = (
                sharing  # before anybody else can write: nothing is queued under the old ones
            )
        self.forget_keys()

    def withdraw(self) -> None:
        """Take back the consent and what waits, and forget the installation's id and all keys."""
        self.keep(enabled=False)
        self.keys.reset()

    def forget_keys(self) -> None:
        """Delete the keys of days of which nothing waits any more."""
        today = {utc_day(self.now())} if self.sharing.agreed else set[str]()
        try:
            self.keys.forget_all_but(today | {row["day"] for row in self.store.get("outbox_days")})
        except OSError as error:  # tried again with the next heartbeat
            log.warning("federation: old day keys cannot be deleted: %s", error)

    def offer(self, db: sqlite3.Connection, tasks: Iterable[Task], invoices: Iterable[str]) -> None:
        """Queue what is news about these tasks and invoices (by name) and may be told."""
        told, since = (
            self.sharing.kinds if self.event_db is not None else (),
            self.sharing.joined_at,
        )
        for task in tasks if "task_received" in told else ():
            checked = task.evidence & IN_LOG and (task.evidence & IN_EVENT_DB or not self.event_db)
            if checked and (task.received_at or 0) >= since:
                self.offer_task(db, task)
        for name in invoices if "invoice_created" in told else ():
            found = self.store.untold_invoice(db, name, since)
            if found is not None and (found[2] or not self.event_db):
                self.queue(
                    db, "invoice_created", functools.partial(invoice_message, found[0], found[1])
                )
                self.store.put(db, "told_invoice", [(name,)])

    def offer_task(self, db: sqlite3.Connection, task: Task) -> None:
        told = self.store.told(db, task.execution_id)
        if not told & RECEIVED:
            self.queue(db, "task_received", functools.partial(received_message, task))
            self.store.put(db, "told_task", [(RECEIVED, task.execution_id)])
        if task.status in ("completed", "failed") and not told & ENDED:
            choice = self.dice.choice(tuple(MESSAGES["task_completed"].choices))
            self.queue(
                db, "task_completed", functools.partial(completed_message, task, choice=choice)
            )
            self.store.put(db, "told_task", [(ENDED, task.execution_id)])

    def queue(self, db: sqlite3.Connection, kind: str, build: Callable[[Words], bytes]) -> None:
        """Fix the bytes and the time of a message, take it through the gate, and store it to be
        sent.
        """
        now = self.now()
        due, day = due_after(now, self.sharing.level, self.dice.random()), utc_day(now)
        try:
            payload = build(
                Words(due, self.dice.randbytes(16).hex(), self.keys.day_key(day, self.dice))
            )
        except OSError as error:  # it must not keep ingest from storing
            log.error("federation: a message is dropped, since its key cannot be kept: %s", error)
            return self.store.count(db, "dropped")
        if self.may_leave(db, MESSAGES[kind].subject, payload):
            self.store.put(db, "outbox", [(due, day, MESSAGES[kind].subject, payload)])
            self.store.trim_outbox(db, now)
        return None

    def may_leave(self, db: sqlite3.Connection, subject: str, payload: bytes) -> bool:
        reason = refusal_of(subject, payload)
        if reason is not None:
            log.error("federation: a message was refused by the gate: %s", reason)
            self.store.count(db, "refused")
            self.store.put(db, "state", [("federation refusal", json.dumps(reason))])
        return reason is None


def make_hub(check: Callable[[Any], None], needs_tls: bool, most: int = MESSAGE_BYTES) -> Any:
    """A NATS client that a hostile hub can cost neither memory nor the password.

    nats-py as it is buffers any announced size, follows the servers that INFO names, and goes on
    without TLS where INFO does not ask for it (each measured). `check` judges the address connected
    to, before CONNECT.
    """
    with without("aiohttp"):  # 10 MiB, for websockets only
        from nats.aio import client, transport
    from nats.errors import ProtocolError
    from nats.protocol import parser as protocol

    class Parser(protocol.Parser):
        async def parse(self, data: bytes = b"") -> None:
            try:
                await super().parse(data)
            except Exception as error:  # whatever a hub's words make of nats-py
                raise ProtocolError(
                    f"the hub's words cannot be read: {type(error).__name__}"
                ) from None
            if self.needed > most or (
                self.state == protocol.AWAITING_CONTROL_LINE and len(self.buf) > CONTROL_BYTES
            ):
                raise ProtocolError("the hub sends more than it may")

    class Tcp(transport.TcpTransport):
        async def connect(self, uri: Any, buffer_size: int, connect_timeout: int) -> None:
            await super().connect(uri, buffer_size, connect_timeout)
            check(self._io_writer.get_extra_info("peername"))  # type: ignore[union-attr]

        def __bool__(self) -> bool:
            return True  # else the client makes one of its own

    class WebSocket(transport.WebSocketTransport):
        async def connect(
            self, uri: Any, buffer_size: int, connect_timeout: int, **tls: Any
        ) -> None:
            self._using_tls, web = bool(tls), cast(Any, self._client)
            web._request = functools.partial(
                web._request, allow_redirects=False
            )  # the hub is the one that was chosen
            self._ws = await web.ws_connect(
                uri.geturl(), headers={"User-Agent": "tbmon"}, max_msg_size=2 * most, **tls
            )
            check(self._ws.get_extra_info("peername"))

        async def connect_tls(
            self, uri: Any, ssl_context: Any, buffer_size: int, connect_timeout: int
        ) -> None:
            if not self._using_tls:  # the client asks again once the hub has introduced itself
                await self.connect(uri, buffer_size, connect_timeout, ssl=ssl_context)

    class Hub(client.Client):
        def __init__(self, over_web: bool) -> None:
            super().__init__()
            if over_web:
                import aiohttp

                cast(Any, transport).aiohttp = aiohttp
            self._ps, self._transport = Parser(self), cast(Any, WebSocket if over_web else Tcp)()

        async def _select_next_server(
            self,
        ) -> None:  # its own loop hides each reason behind "no servers available"
            self._current_server = self._server_pool[0]
            await self._connect_to_server(self._current_server)

        async def _process_info(self, info: Any, initial_connection: bool = False) -> None:
            if not isinstance(info, dict):
                raise ConnectionError("the hub does not introduce itself")
            if needs_tls and initial_connection and not info.get("tls_required"):
                raise ConnectionError("the hub offers no TLS")
            kept = {
                name: info[name]
                for name in info
                if name not in ("connect_urls", "ws_connect_urls", "ldm")
            }
            await super()._process_info(kept, initial_connection)

    return Hub


@contextlib.asynccontextmanager
async def connect(
    url: str, user: Mapping[str, str], ca: str | None, wait_s: float, **more: Any
) -> AsyncIterator[Any]:
    """A connection to a hub for as long as the block runs; raises what keeps it from being made."""
    import asyncio
    import ssl

    parts, most = check_server(url), more.pop("most", MESSAGE_BYTES)
    hub = make_hub(functools.partial(check_peer, parts), parts.scheme == "tls", most)(
        parts.scheme in ("ws", "wss")
    )
    tls = {"tls": ssl.create_default_context(cafile=ca)} if parts.scheme in ("tls", "wss") else {}
    try:
        try:
            await asyncio.wait_for(
                hub.connect(
                    url,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    connect_timeout=5,
                    flush_timeout=5,
                    ping_interval=20,
                    max_outstanding_pings=2,
                    **user,
                    **tls,
                    **more,
                ),
                wait_s,
            )
        except TimeoutError:
            raise ConnectionError(f"{parts.netloc} does not answer") from None
        yield hub
    finally:
        with contextlib.suppress(Exception):  # closing a broken connection may raise anything
            await asyncio.wait_for(hub.close(), 2)


class Federation:
    """The federation's thread: sends what is due, receives the statistics, and is never in
    anybody's way.
    """

    def __init__(
        self,
        config: Config,
        outbox: Outbox,
        take: Callable[[bytes], bool],
        is_online: Callable[[], bool | None],
        pace: Pace = Pace(),  # noqa: B008 - a constant
    ) -> None:
        self.config, self.outbox, self.store = config, outbox, outbox.store
        self.take, self.is_online, self.pace, self.dice = take, is_online, pace, outbox.dice
        self.thread: threading.Thread | None = None
        self.leaving = threading.Event()
        self.cancel: Callable[[], object] = lambda: None  # ends the thread wherever it waits
        self.died: Callable[[], None] = lambda: None  # main: end the process
        self.says_goodbye = self.connected = self.stuck = False
        self.last_error: str | None = None
        self.told_error, self.lock, self.ended = "", threading.RLock(), False
        self.online: bool | None = None  # None before tbmon itself knows
        self.look_at, self.received_at, self.ignored = 0.0, 0.0, 0

    def start(self) -> None:
        """Run the thread if the operator opted in to this hub; called at the start and after each
        change. Raises RuntimeError if there is no thread to be had.
        """
        with self.lock:
            if self.outbox.sharing.agreed and self.thread is None and not self.ended:
                self.leaving, self.last_error = threading.Event(), None
                thread = threading.Thread(
                    target=self.work, args=(self.leaving,), name="federation", daemon=True
                )
                try:
                    thread.start()
                except RuntimeError as error:  # the system has none to give
                    self.last_error = f"its thread cannot be started: {error}"
                    raise
                self.thread = thread

    def stop(self, says_goodbye: bool = False, timeout_s: float = 3) -> None:
        """End the thread; the connection closes, with node_left before if the operator opted
        out.
        """
        with self.lock:
            self.says_goodbye = says_goodbye and self.connected
            self.leaving.set()
            if self.thread is not None:
                self.thread.join(1.5 if self.says_goodbye else 0)
                with contextlib.suppress(RuntimeError):  # it has ended, or has not begun
                    self.cancel()
                self.thread.join(timeout_s)
                self.stuck = (
                    self.stuck or self.thread.is_alive()
                )  # in a name server that does not answer
                self.thread, self.connected = None, False

    def work(self, leaving: threading.Event) -> None:
        import asyncio

        logging.getLogger("nats").setLevel(
            logging.CRITICAL
        )  # it would write a traceback for each failure
        try:
            asyncio.run(self.run(leaving))
        except asyncio.CancelledError:
            pass
        except Exception:  # a bug of ours, whatever it is
            log.critical("federation: thread ended by an error", exc_info=True)
            self.died()

    async def run(self, leaving: threading.Event) -> None:
        """Be connected until told to leave; whatever a hub does is an error to be shown and tried
        again.
        """
        import asyncio

        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        loop.set_exception_handler(
            lambda _, context: log.debug("federation: %s", context["message"])
        )  # of nats-py
        call = loop.call_soon_threadsafe
        self.cancel = functools.partial(call, task.cancel)  # type: ignore[union-attr]
        delay_s, (shortest_s, longest_s) = self.pace.retry_s[0], self.pace.retry_s
        for url in itertools.cycle(self.outbox.servers()):
            if leaving.is_set():
                return
            began = time.monotonic()
            try:
                with self.store.write() as db:
                    self.store.trim_outbox(db, self.outbox.now())
                self.outbox.forget_keys()
                await self.session(url, leaving)
            except Exception as error:  # a hub can make nats-py and aiohttp raise anything
                self.note_error(shorten(error))
            self.connected = (
                self.connected and self.leaving is not leaving
            )  # else it is another thread's by now
            delay_s = shortest_s if time.monotonic() - began > 60 else min(2 * delay_s, longest_s)
            await asyncio.sleep(0 if leaving.is_set() else delay_s * self.dice.uniform(0.5, 1))

    def note_error(self, words: str) -> None:
        if words != self.told_error:
            log.warning("federation: %s; trying again", words)
        self.last_error = self.told_error = words
        self.add("errors")

    def add(self, name: str, number: int = 1) -> None:
        with contextlib.suppress(sqlite3.OperationalError), self.store.write() as db:  # a full disk
            self.store.count(db, name, number)

    async def session(self, url: str, leaving: threading.Event) -> None:
        """One connection, from the handshake to its end; raises what ended it."""

        async def failed(error: Exception) -> None:
            self.last_error = shorten(
                error
            )  # a refused subject too, which nats-py tells nobody else

        config, mine = self.config, url == self.config.federation_nats_url
        user = {"user": config.federation_nats_user, "password": config.federation_nats_password}
        user, ca = (
            user if mine and config.federation_nats_user else {},
            (mine and config.federation_tls_ca) or None,
        )
        async with connect(url, user, ca, self.pace.connect_s, error_cb=failed) as hub:
            self.last_error, self.told_error = None, ""
            await hub.subscribe(
                STATS_SUBJECT, cb=self.receive, pending_msgs_limit=8
            )  # more is a flood, and an error
            await hub.flush(timeout=self.pace.connect_s)  # the hub has heard of it
            self.connected = True
            self.add("reconnections")
            log.info("federation: connected to %s", urllib.parse.urlsplit(url).netloc)
            await self.converse(hub, leaving)

    async def converse(self, hub: Any, leaving: threading.Event) -> None:
        """Send what is due, until the connection ends or the operator leaves."""
        import asyncio

        published: dict[int, float] = {}  # row of the outbox: when its PONG had come
        beat_at = 0.0
        if not self.outbox.sharing.greeted:
            await self.say(hub, "node_joined", True)
            self.outbox.keep(greeted=True)
        while hub.is_connected and not leaving.is_set():
            if self.last_error:
                raise ConnectionError(self.last_error)
            now = time.monotonic()
            ignored, self.ignored = self.ignored, 0
            if ignored:
                self.add("ignored", ignored)
            if now >= beat_at and (state := self.node_state(now)) is not None:
                beat_at = now + self.pace.beat_s * self.dice.uniform(0.8, 1.2)
                await self.say(hub, "heartbeat", state)
                self.outbox.forget_keys()
            await self.send_due(hub, published)
            self.settle(published, now)
            await asyncio.sleep(self.pace.look_s)
        if not leaving.is_set():
            raise ConnectionError(self.last_error or "the hub closed the connection")
        if self.says_goodbye:
            await self.say(hub, "node_left", False)
        await hub.flush(timeout=2)

    def node_state(self, now: float) -> bool | None:
        """Whether the node is up, looked at once an hour at a random minute: its uptime is nobody's
        business.
        """
        if now >= self.look_at and (state := self.is_online()) is not None:
            self.online, self.look_at = state, now + 3600 * self.dice.uniform(0.5, 1.5)
        return self.online

    async def say(self, hub: Any, kind: str, is_online: bool) -> None:
        """Send a presence message; `sent` has one row of each kind a day."""
        now, subject = self.outbox.now(), MESSAGES[kind].subject
        words = Words(now, self.dice.randbytes(16).hex())
        payload = presence_message(kind, self.outbox.keys.node_id(self.dice), is_online, words)
        with self.store.write() as db:
            if not self.outbox.may_leave(db, subject, payload):
                return
            self.store.put(db, "sent", [(f"{kind} {utc_day(now)}", now, subject, payload)])
            self.store.count(db, "sent")
        await hub.publish(subject, payload)

    async def send_due(self, hub: Any, published: dict[int, float]) -> None:
        """Publish what is due and has not gone over this connection; byte for byte as it was
        fixed.
        """
        now = self.outbox.now()
        rows = [row for row in self.store.get("outbox_due", now) if row["id"] not in published][
            :100
        ]
        if not rows:
            return
        self.dice.shuffle(rows)
        with self.store.write() as db:
            self.store.put(
                db,
                "sent",
                [(f"message {row['id']}", now, row["subject"], row["payload"]) for row in rows],
            )
            self.store.count(db, "sent", len(rows))
        for row in rows:
            await hub.publish(row["subject"], row["payload"])
        await hub.flush(timeout=10)
        published.update({row["id"]: time.monotonic() for row in rows})

    def settle(self, published: dict[int, float], now: float) -> None:
        """What the hub has for sure need not wait any more."""
        if done := [row for row, at in published.items() if now - at >= self.pace.proof_s]:
            with self.store.write() as db:
                self.store.put(db, "delivered", [(row,) for row in done])
            for row in done:
                del published[row]
            self.outbox.forget_keys()

    async def receive(self, message: Any) -> None:
        """Hand on a publication of the aggregator, one a second at most; what does not fit is
        counted.
        """
        if time.monotonic() - self.received_at < 1 or not self.take(message.data):
            self.ignored += 1
        else:
            self.received_at = time.monotonic()


# ---------------------------------------------------------------------------
# 7. Docker                                                     (docker socket)
# ---------------------------------------------------------------------------

LOGS_PATH = "/app/logs/@truebit"
EVENT_DB_PATH = "/app/build/datadb"
EVENT_DB_NAME = "-eventDB.json"  # how the names end; before it may stand the wallet
CACHE_PATH = "/app/build/wasm-files/cache"  # CACHE_PATH/VERSION/HASH/prepared.wasm
ARCHIVE_PREFIXES = (LOGS_PATH, EVENT_DB_PATH, CACHE_PATH)
ENGINE_CALLS = re.compile(
    r"/(?:_ping|version|containers/[a-zA-Z0-9][\w.-]*/(?:json|logs|stats|archive))", re.ASCII
)
LIST_CALL = "/containers/json"  # only with one of `candidate_queries`
NODE_IMAGE = "truebitprotocol/runner-node"
UNCACHED = ("json-file", "journald", "k8s-file", "none")  # keep no cache; `local` is one
CACHE_FILE_BYTES = 20_000_000  # of each of the five files of a cache, unless told otherwise
TIMEOUT_S = 5  # for an answer of the engine
CHECK_BYTES = 4096  # kept of what Docker's own check printed; far less of it is shown
HELD_S = 120  # for one that waits until a file is copied
SLOW_BYTES = 256 * KIB  # in a second, of a file: an engine that sends less is not waited for
NO_LIMIT_BYTES = 2**53  # kernels write 2^63-4096 or 2^64-1 where memory has no limit
SILENT_S = 3600  # a stream may be silent this long; a follower that mistrusts it looks sooner
PIECE_BYTES = 16 * KIB  # Docker splits longer lines; a shorter piece ends its line, newline or not
INNER_STAMP = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}(?:Z|[+-]\d\d:\d\d) ")
FRAME_HEAD = struct.Struct(">B3sI").unpack_from
CUT_STAMP = re.compile(rb"\d{4}-[\dT:.+Z-]* ?")
GO_SYMLINK, GO_TYPE = (
    1 << 27,
    0x8F280000,
)  # bits of Go's os.FileMode in a path's stat; a plain file has no type


class DockerError(Exception):
    """The engine did not answer, or not as it should; the text says what it said. Worth another
    try.
    """

    def __init__(self, words: str, status: int | None = None) -> None:
        super().__init__(words)
        self.status = status  # of the engine's answer, if it gave one


class LogError(DockerError):
    """The engine broke a log off with words of its own."""


class Container(NamedTuple):
    """What we keep of an inspect answer; its environment and mounts are never looked at."""

    id: str
    name: str
    state: str
    running: bool
    started_at: int | None
    created: int | None
    image: str
    restart_count: int
    tty: bool
    log_driver: str
    file_bytes: int = 0  # of a log file when the engine begins another; 0 if it never does
    finished_at: int | None = None  # when it last ended
    exit_code: int | None = None  # of its last end; 0 while it runs
    oom_killed: bool = False
    health: str = ""  # what Docker's own check says; empty without one
    check_words: str = ""  # that check's last output, which may hold anything
    failing_since: int | None = None  # the first of the newest checks that all failed


class PathStat(NamedTuple):
    """A path in the container; `mtime` is the engine's text, only compared."""

    size: int
    mtime: str
    link: str
    is_file: bool


class Stats(NamedTuple):
    """One sample of the container: percent of a core, and bytes without page cache. None is
    unknown, and for the limit also that there is none.
    """

    cpu: float | None
    memory_bytes: int | None
    memory_limit_bytes: int | None


def read_container(answer: Mapping[str, Any]) -> Container:
    """Pick what we keep from an inspect answer (Docker API, ContainerInspect)."""
    checks = part(answer, "State", "Health", "Log")
    checks = [check for check in checks if isinstance(check, dict)] if checks else []
    failing = itertools.takewhile(lambda check: check.get("ExitCode") != 0, reversed(checks))
    times = [parse_time(check.get("Start")) for check in failing]
    return Container(
        id=str(answer.get("Id", "")),
        name=str(answer.get("Name", "")).lstrip("/"),
        state=str(part(answer, "State", "Status")),
        running=bool(part(answer, "State", "Running")),
        started_at=parse_time(
            part(answer, "State", "StartedAt")
        ),  # year 1 if it never ran: no time for us
        created=parse_time(answer.get("Created")),
        image=str(part(answer, "Config", "Image")),
        restart_count=whole(answer.get("RestartCount")) or 0,
        tty=bool(part(answer, "Config", "Tty")),
        log_driver=str(part(answer, "HostConfig", "LogConfig", "Type")),
        file_bytes=read_file_bytes(part(answer, "HostConfig", "LogConfig")),
        finished_at=parse_time(part(answer, "State", "FinishedAt")),
        exit_code=whole(part(answer, "State", "ExitCode")),
        oom_killed=part(answer, "State", "OOMKilled") is True,
        health=str(part(answer, "State", "Health", "Status") or ""),
        check_words=str(checks[-1].get("Output") or "")[:CHECK_BYTES] if checks else "",
        failing_since=times[-1] if times else None,
    )


def read_file_bytes(options: object) -> int:
    """The bytes after which the engine begins another file of the log, from the container's log
    options; 0 if it never does. A size that is not understood counts as a tiny one.

    Drivers that send the log away keep a cache of it for those who ask, as `local` would; Engine
    20.10 ignores the options of that cache.
    """
    driver = str(part(options, "Type") or "")
    if driver in UNCACHED or not driver:
        return read_size(part(options, "Config", "max-size")) or 0
    if driver == "local":
        return read_size(part(options, "Config", "max-size")) or CACHE_FILE_BYTES
    cached = read_size(part(options, "Config", "cache-max-size")) or CACHE_FILE_BYTES
    return min(cached, CACHE_FILE_BYTES)


def read_size(text: object) -> int | None:
    """A size as the engine reads it, in bytes: `0.1m`, `10 m`, `100KiB` (all decimal), `20971520`.
    None if there is none; 1 if it cannot be read.
    """
    if text in (None, "", "-1"):
        return None
    found = re.fullmatch(r"(\d{1,18}(?:\.\d*)?|\.\d+) ?([kmgtp]?)i?b?", str(text).lower(), re.ASCII)
    return max(1, int(float(found[1]) * 1000 ** ("", *"kmgtp").index(found[2]))) if found else 1


def read_stats(answer: Mapping[str, Any], before: Mapping[str, Any]) -> Stats | None:
    """One sample from a one-shot stats answer; CPU needs the answer `before` it. None if nothing
    runs.

    Kernels without the memory cgroup tell no memory, old engines and cgroups not the number of
    cores.
    """
    memory = part(answer, "memory_stats")
    usage, limit = (whole(part(memory, name)) for name in ("usage", "limit"))
    detail = part(memory, "stats")
    cache = whole(part(detail, "inactive_file")) or whole(part(detail, "total_inactive_file")) or 0
    used = grown(answer, before, "cpu_usage", "total_usage")
    total = grown(answer, before, "system_cpu_usage")
    each = part(answer, "cpu_stats", "cpu_usage", "percpu_usage")
    cores = whole(part(answer, "cpu_stats", "online_cpus")) or (
        len(each) if isinstance(each, list) else 0
    )
    if usage is None and part(answer, "cpu_stats", "system_cpu_usage") is None:
        return None
    is_measured = used is not None and used >= 0 and total and total > 0 and cores
    return Stats(
        cpu=100.0 * cores * (used or 0) / (total or 1) if is_measured else None,
        memory_bytes=None if usage is None else max(0, usage - cache),
        memory_limit_bytes=limit if limit and limit < NO_LIMIT_BYTES else None,
    )


def grown(answer: Mapping[str, Any], before: Mapping[str, Any], *path: str) -> int | None:
    """By how much a figure of the processor's use has grown; None where either is not told."""
    now, then = (whole(part(one, "cpu_stats", *path)) for one in (answer, before))
    return None if now is None or then is None else now - then


def prepare(client: Any, method: str, url: str, *query: Any) -> Any:
    """A request that can be sent again and again; to make it takes nearly as long as to ask."""
    import requests

    return client.prepare_request(requests.Request(method, url, params=query))


class DockerEngine:
    """The Docker Engine, asked with GET and HEAD only, on ENGINE_CALLS, and for files under
    ARCHIVE_PREFIXES only.

    Built on the `docker` package's client for its sockets, TLS and version negotiation. Any thread.
    """

    def __init__(self, config: Config) -> None:
        import docker  # +10 MiB: only where an engine is asked

        self.docker = docker
        self.tls: Any = False
        if config.docker_tls_verify:
            folder = Path(config.docker_cert_path or Path.home() / ".docker")
            cert = (str(folder / "cert.pem"), str(folder / "key.pem"))
            try:
                self.tls = docker.tls.TLSConfig(
                    client_cert=cert, ca_cert=str(folder / "ca.pem"), verify=True
                )
            except docker.errors.DockerException as error:
                raise UserError(
                    f"DOCKER_CERT_PATH={folder}: {str(error).splitlines()[0]}"
                ) from None
        self.url, self.name = config.engine_url, config.container_name
        self.client: Any = None
        self.before: Mapping[str, Any] = {}  # the last stats answer
        self.archives: list[Held] = []  # that are open, in whichever thread
        self.held_at = -math.inf  # when (monotonic) the last one was closed
        self.copies = 0  # ingest: files that are being fetched

    def is_held(self, since: float = math.inf) -> bool:
        """True while a file of the container is read, or was after `since` (monotonic): no other
        call about it is answered meanwhile.
        """
        return self.held_at >= since or any(one.is_fast() for one in list(self.archives))

    def request(
        self,
        call: str,
        method: str = "GET",
        query: Mapping[str, Any] = NOTHING,
        stream: bool = False,
        wait_s: float = TIMEOUT_S,
    ) -> Any:
        """Ask the engine; return the response, or None for 404. All that is asked goes through
        here.
        """
        listed = call == LIST_CALL and query in candidate_queries(self.name)
        if method not in ("GET", "HEAD") or not (listed or ENGINE_CALLS.fullmatch(call)):
            raise ValueError(f"{method} {call} is not among the calls tbmon makes")
        if "path" in query and not is_allowed_path(str(query["path"])):
            raise ValueError("path outside the folders of the node that may be read")
        try:
            client = self.client or self.agree()
            answer = self.send(client, method, call, query, stream, wait_s)
            if answer.status_code == 400:  # an engine that was changed may refuse the version
                anew = self.agree()
                if anew.api_version != client.api_version:
                    answer.close()
                    answer = self.send(anew, method, call, query, stream, wait_s)
        except (
            self.docker.errors.DockerException,
            OSError,
        ) as error:  # what requests raises is an OSError
            self.client = None
            raise DockerError(f"{self.url} does not answer: {reason_of(error)}") from None
        if answer.status_code < 400:
            return answer
        words = answer.text[:200] if method == "GET" else ""
        answer.close()
        if answer.status_code == 404:
            return None
        raise DockerError(
            f"the engine answered {answer.status_code}: {words.strip()}", answer.status_code
        )

    def agree(self) -> Any:
        """A client that has asked for /version and speaks the engine's version of the API."""
        client = self.docker.APIClient(self.url, version="auto", timeout=TIMEOUT_S, tls=self.tls)
        client.headers["Accept-Encoding"] = "identity"  # an archive would come compressed
        client.trust_env = not self.url.startswith(
            "unix"
        )  # no proxy is before a socket; a look for one costs
        client.prepare = functools.lru_cache(32)(functools.partial(prepare, client))
        self.client = client  # last: other threads ask as soon as they see it
        return client

    def send(
        self,
        client: Any,
        method: str,
        call: str,
        query: Mapping[str, Any],
        stream: bool,
        wait_s: float,
    ) -> Any:
        """Ask once, with the version of the API that the client has agreed on."""
        url = f"{client.base_url}/v{client.api_version}{call}"
        question = client.prepare(method, url, *query.items())
        if self.copies:  # the engine answers nothing about the container meanwhile
            wait_s = max(wait_s, HELD_S)
        return client.send(question, stream=stream, timeout=(TIMEOUT_S, wait_s))

    def read_json(self, answer: Any) -> dict[str, Any]:
        """The object in an answer; DockerError if there is none."""
        with contextlib.suppress(ValueError, RecursionError):  # said below
            if isinstance(found := answer.json(), dict):
                return found
        raise DockerError("the engine's answer is no JSON object")

    def inspect(self, name: str) -> Container | None:
        """The container of exactly this name (the engine also takes prefixes of ids), or None."""
        answer = self.request(f"/containers/{name}/json")
        container = read_container(self.read_json(answer)) if answer is not None else None
        return container if container and container.name == name else None

    def candidates(self) -> tuple[str, ...]:
        """The names of containers that may be the node under another name. Of others the engine
        is not asked, and what it tells of them all the same is passed over.
        """
        found = dict[str, None]()
        for query in candidate_queries(self.name):
            try:
                told = self.request(LIST_CALL, "GET", query).json()
            except (DockerError, AttributeError, ValueError, RecursionError) as error:
                log.debug("docker: no list of containers: %s", error)  # a proxy may refuse it
                continue
            for one in told if isinstance(told, list) else ():
                names = part(one, "Names")
                name = str(names[0]).lstrip("/") if isinstance(names, list) and names else ""
                image = re.split("[:@]", str(part(one, "Image")))[0]
                is_like = image == NODE_IMAGE or name.endswith(self.name)
                if is_like and name not in ("", self.name):
                    found[name] = None
        return tuple(found)

    def logs(
        self,
        name: str,
        since_s: int | None,
        follow: bool,
        tail: str = "all",
        wait_s: float = TIMEOUT_S,
    ) -> EngineStream:
        """Both streams with the engine's stamps; unless followed, it may be silent for `wait_s`."""
        query: dict[str, object] = {
            "stdout": 1,
            "stderr": 1,
            "timestamps": 1,
            "follow": int(follow),
            "tail": tail,
        }
        if since_s is not None:
            query["since"] = since_s
        return EngineStream(
            lambda: self.request(
                f"/containers/{name}/logs", "GET", query, True, SILENT_S if follow else wait_s
            ),
            self.docker.types.daemon.CancellableStream,
        )

    def stat(self, name: str, path: str) -> PathStat | None:
        answer = self.request(f"/containers/{name}/archive", "HEAD", {"path": path})
        if answer is None:
            return None
        try:
            found = json.loads(base64.b64decode(answer.headers["X-Docker-Container-Path-Stat"]))
            mode = int(found["mode"])
            link = str(found.get("linkTarget", "")) if mode & GO_SYMLINK else ""
            return PathStat(int(found["size"]), str(found["mtime"]), link, not mode & GO_TYPE)
        except (KeyError, ValueError, TypeError, OverflowError, RecursionError):
            raise DockerError("the engine's stat of a path cannot be read") from None

    @contextlib.contextmanager
    def archive(self, name: str, path: str) -> Iterator[tarfile.TarFile | None]:
        """The tar of a file or folder as a stream, or None; the caller takes regular members in
        order.
        """
        import urllib3

        answer = self.request(f"/containers/{name}/archive", "GET", {"path": path}, stream=True)
        if answer is None:
            yield None
            return
        held = Held(answer.raw)
        self.archives.append(held)
        try:
            content = cast(IO[bytes], held)
            with tarfile.open(fileobj=content, mode="r|", bufsize=READ_BYTES) as tar:
                yield tar
        except (
            tarfile.TarError,
            EOFError,
            OSError,
            ValueError,
            urllib3.exceptions.HTTPError,
        ) as error:
            raise DockerError(f"a file could not be read: {reason_of(error)}") from None
        finally:
            self.archives.remove(held)
            self.held_at = time.monotonic()
            answer.close()

    def stats(self, name: str) -> Stats | None:
        """A new sample; one-shot, since a full answer takes the engine two seconds."""
        answer = self.request(
            f"/containers/{name}/stats", "GET", {"stream": "false", "one-shot": "true"}
        )
        if answer is None:
            return None
        found = self.read_json(answer)
        sample, self.before = read_stats(found, self.before), found
        return sample


class Held:
    """The bytes of an open archive, counted. As long as it is open, the engine lets nobody inspect,
    stop or start the container.
    """

    def __init__(self, raw: Any) -> None:
        self.raw = raw
        self.begun = time.monotonic()
        self.bytes = 0

    def read(self, size: int) -> bytes:
        data: bytes = self.raw.read(size)
        self.bytes += len(data)
        return data

    def is_fast(self) -> bool:
        """False for an engine that hardly sends: it may never end."""
        return self.bytes >= SLOW_BYTES * (time.monotonic() - self.begun - TIMEOUT_S)


class EngineStream:
    """A followed log: `chunks` blocks in one thread until `close` is called in another.

    Asked for only in `chunks`, since the engine sends not even a status before the first line.
    """

    def __init__(self, ask: Callable[[], Any], closer: Callable[..., Any]) -> None:
        self.ask, self.closer = ask, closer
        self.answer: Any = None
        self.closed = False

    def chunks(self) -> Iterator[bytes]:
        """Bytes as they come. A cut connection looks like the end of the log: it means only
        "unknown".

        Raises DockerError if the engine does not answer or the container is gone.
        """
        import urllib3

        self.answer = self.ask()
        if self.answer is None:
            raise DockerError("the container is gone")
        try:
            if not self.closed:
                yield from self.answer.raw.stream(256 * KIB, decode_content=False)
        except (urllib3.exceptions.HTTPError, OSError, ValueError, AttributeError) as error:
            log.debug(
                "docker: the log connection ended: %s", error
            )  # ValueError, AttributeError: closed under us
        finally:
            self.answer.close()

    def close(self) -> None:
        """Shut the socket down, which ends a blocked read at once; before the first line there is
        no socket yet.
        """
        self.closed = True
        if self.answer is not None:
            with contextlib.suppress(
                Exception
            ):  # docker's closer reaches into four kinds of sockets, gone or not
                self.closer(iter(()), self.answer).close()


def reason_of(error: BaseException) -> str:
    """The innermost cause in words; the outer ones repeat it with Python's class names."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return str(getattr(error, "strerror", None) or error or type(error).__name__)


def candidate_queries(name: str) -> tuple[Mapping[str, Any], ...]:
    """What is asked about containers that may be the node: those whose names end in its name (of
    one that it could not replace, compose makes ID_NAME), and those of the node's image.
    """
    images = [f"{NODE_IMAGE}:{tag}" for tag in ("prod", "latest")]
    filters = ({"name": [f"{name}$"]}, {"ancestor": images})
    return tuple({"all": 1, "filters": json.dumps(one, separators=(",", ":"))} for one in filters)


def is_allowed_path(path: str) -> bool:
    """True for the folders of the node that may be read, and what lies in them."""
    plain = posixpath.normpath(path) == path
    return plain and any(
        path == prefix or path.startswith(prefix + "/") for prefix in ARCHIVE_PREFIXES
    )


def resolve(engine: DockerEngine, name: str, path: str) -> tuple[str, PathStat] | None:
    """Follow links that stay inside the allowed folders; None for what is missing or leads out of
    them.
    """
    for _ in range(5):
        stat = engine.stat(name, path)
        if stat is None or not stat.link:
            return (path, stat) if stat else None
        path = posixpath.normpath(posixpath.join(posixpath.dirname(path), stat.link))
        if not is_allowed_path(path):
            return None
    return None


CACHE_LOOK_S, CACHE_LOOK_BYTES = 2.0, 512 * MIB  # spent at most on finding the folders of the cache


def cache_folders(engine: DockerEngine, name: str) -> list[str]:
    """The cache's folders, one for each version of the node, newest name first.

    There is no listing, so the tar of the cache is passed; of a large one only the beginning.
    """
    found, folders = resolve(engine, name, CACHE_PATH), dict[str, None]()
    if found is None:
        return []
    until = time.monotonic() + CACHE_LOOK_S
    with engine.archive(name, found[0]) as tar:
        for member in tar or ():
            parts = member.name.split("/")
            if len(parts) > 2 or (len(parts) == 2 and member.isdir()):
                folders[f"{found[0]}/{parts[1]}"] = None
            if member.offset_data + member.size > CACHE_LOOK_BYTES or time.monotonic() > until:
                break
    return sorted(filter(is_allowed_path, folders), reverse=True)


def find_module(engine: DockerEngine, name: str, digest: str) -> tuple[str, PathStat] | None:
    """The prepared wasm module of this hash in the node's cache (node-data.md, 1), or None."""
    for folder in cache_folders(engine, name):
        place = engine.stat(
            name, f"{folder}/{digest}"
        )  # a linked folder the engine itself would follow
        found = (
            engine.stat(name, path := f"{folder}/{digest}/prepared.wasm")
            if place and not place.link
            else None
        )
        if found is not None and found.is_file:
            return path, found
    return None


def read_module(engine: DockerEngine, name: str, path: str, most: int) -> bytes | None:
    """The bytes of a file that has at most `most`; copied at once, since an open archive holds the
    container.
    """
    with engine.archive(name, path) as tar:
        for member in tar or ():
            if (
                member.isfile()
                and member.size <= most
                and tar is not None
                and (file := tar.extractfile(member))
            ):
                return file.read()
    return None


class FrameReader:
    """Cuts the engine's log bytes into whole lines: (stream, engine's stamp, line); ends on any
    byte.

    Here alone are stamps read: each becomes UTC of fixed width (`utc_stamp`). A line without one
    stays whole and gets that of the line before it, b"" if there is none.

    Not TTY: frames of 8 bytes (stream, 0, 0, 0, length big-endian) and a payload, a line over 16
    KiB in several frames with the same stamp, the last of which may lack its newline. TTY: no
    frames, and the stamp stands again after every 16 KiB of a line (Docker API, ContainerAttach;
    measured on 20.10).
    """

    def __init__(self, tty: bool) -> None:
        self.tty = tty
        self.buffer = b""
        self.pending: dict[int, tuple[bytes, bytes]] = {}  # per stream: stamp and joined pieces
        self.minute = b""  # of the last stamp in UTC that was read, up to its last colon
        self.stamp = b""  # of the line before

    def feed(self, data: bytes) -> list[tuple[int, bytes, bytes]]:
        lines: list[tuple[int, bytes, bytes]] = []
        buffer = self.buffer + data if self.buffer else data
        if self.tty:
            *whole_lines, rest = buffer.split(b"\n")
            if (
                len(rest) > PIECE_BYTES and rest[-1:] == b"\r"
            ):  # a long line of the `local` driver has no newline
                whole_lines, rest = [*whole_lines, rest], b""
            for line in whole_lines:
                lines += self.read_tty(line)
            self.buffer = rest if len(rest) < MIB else rest[:LINE_BYTES]
            return lines
        position, end = 0, len(buffer)
        while end - position >= 8:
            stream, zeros, length = FRAME_HEAD(buffer, position)
            if stream > 2 or zeros != b"\0\0\0":
                if lines:  # they come first; the next call raises
                    break
                raise LogError(f"the log stream says: {buffer[position + 8 : position + 200]!r}")
            after = position + 8 + length
            if after > end:
                break
            payload = buffer[position + 8 : after]
            if (  # nearly every line: nothing of its stamp is to be changed
                payload[:17] == self.minute
                and payload[20:29].isdigit()
                and payload[17] < 54  # the seconds' first digit: below 6
                and payload[29:31] == b"Z "
                and payload[-1:] == b"\n"
                and not self.pending
            ):
                lines.append((stream, payload[:30], payload[31:-1]))
            elif payload:
                self.stamp = lines[-1][1] if lines else self.stamp
                self.join(stream, payload, lines)
            position = after
        self.stamp = lines[-1][1] if lines else self.stamp
        self.buffer = buffer[position:]
        if len(self.buffer) > 16 * MIB:
            raise DockerError("the log stream announces a frame over 16 MiB")
        return lines

    def read_stamp(self, text: bytes) -> bytes | None:
        """What stands before a line's first blank, in UTC; None if it is no stamp."""
        stamp = utc_stamp(text)
        if stamp is not None:
            self.minute = stamp[:17]
        return stamp

    def join(self, stream: int, payload: bytes, lines: list[tuple[int, bytes, bytes]]) -> None:
        """Add a piece of a line to the pieces before it."""
        text, _, body = payload.partition(b" ")
        stamp = self.read_stamp(text)
        if stamp is None:
            stamp = self.stamp
            body = payload
        before = self.pending.pop(stream, None)
        if before is not None and before[0] != stamp:
            lines.append((stream, *before))
            before = None
        joined = (before[1] + body if before else body)[: LINE_BYTES + 1]
        if body[-1:] == b"\n" or len(body) < PIECE_BYTES:
            lines.append((stream, stamp, joined.removesuffix(b"\n")))
        else:
            self.pending[stream] = stamp, joined[:LINE_BYTES]

    def read_tty(self, line: bytes) -> list[tuple[int, bytes, bytes]]:
        """A terminal's line without the inner stamps; more than one where `local` left out
        newlines.
        """
        if not line or CUT_STAMP.fullmatch(
            line
        ):  # nothing is behind the stamp, or the log ends in it
            return []
        text, blank, body = line.partition(b" ")
        stamp = self.read_stamp(text)
        if stamp is None:
            return [(1, self.stamp, line[:LINE_BYTES])]
        self.stamp, again, at = stamp, text + blank, PIECE_BYTES
        while body[at : at + len(again)] == again:
            body = body[:at] + body[at + len(again) :]
            at += PIECE_BYTES
        following = INNER_STAMP.search(body, at - PIECE_BYTES) if at > PIECE_BYTES else None
        if following is None:
            return [(1, stamp, body[:LINE_BYTES])]
        return [
            (1, stamp, body[: following.start()][:LINE_BYTES]),
            *self.read_tty(body[following.start() :]),
        ]

    def finish(self) -> list[tuple[int, bytes, bytes]]:
        """What a process that has ended left without a newline: lines too."""
        left = [(stream, *pieces) for stream, pieces in self.pending.items()]
        left += self.read_tty(self.buffer) if self.tty else []
        self.pending, self.buffer = {}, b""
        return left


Line = tuple[int, bytes, bytes]  # stream, engine's stamp, text
BACK_BYTES = 8 * MIB  # of a damaged log are read from its end


def read_tail(
    engine: DockerEngine, container: Container, count: int, finish: bool = False
) -> list[Line]:
    """The last lines of the log, `count` of them or of their pieces, and what has no newline yet
    if that is to `finish`. Nothing where the engine fails on the way, or it is too much.
    """
    frames, lines, size = FrameReader(container.tty), list[Line](), 0
    stream = engine.logs(container.name, None, follow=False, tail=str(count))
    try:
        for chunk in stream.chunks():
            lines += frames.feed(chunk)
            size += len(chunk)
            if size > BACK_BYTES:
                return []
        frames.feed(b"")  # raises if the engine's last words were no log
    except LogError:
        return []
    finally:
        stream.close()
    return lines + frames.finish() if finish else lines


def read_back(
    engine: DockerEngine, container: Container, is_enough: Callable[[list[Line]], bool]
) -> list[Line]:
    """The last lines of the log, in growing tails until they are enough, or begin behind a place
    that the engine cannot read over: a tail across it ends there, or has none.
    """
    lines, count, too_many = read_tail(engine, container, 1), 1, 0
    while lines and not is_enough(lines):
        asked = (count + too_many) // 2 if too_many else 2 * count
        if asked == count:
            break
        more = read_tail(engine, container, asked)
        if not more or newest_stamp(more) < newest_stamp(lines):
            too_many = asked
        elif more[0] == lines[0] and len(more) < asked:  # all there is
            break
        else:
            lines, count = more, asked
    return lines


def newest_stamp(lines: Iterable[Line]) -> bytes:
    return max((stamp for _, stamp, _ in lines), default=b"")


def is_cut(engine: DockerEngine, container: Container) -> bool:
    """True if the engine, asked for its log from the last line's second on, does not come to that
    line: something before it is damaged.
    """
    last = newest_stamp(read_tail(engine, container, 1))
    second = parse_second(last[:19].decode("ascii", "replace"))
    if second is None:
        return False
    frames = FrameReader(container.tty)
    stream = engine.logs(container.name, second, follow=False)
    try:
        return not any(line[1] == last for chunk in stream.chunks() for line in frames.feed(chunk))
    except LogError:
        return True
    finally:
        stream.close()


# ---------------------------------------------------------------------------
# 8. Ingest                                                           (threads)
# ---------------------------------------------------------------------------

NODE_DATA = (
    "task_received",
    "task_download",
    "task_start",
    "execution_output",
    "task_completed",
    "task_failed",
)


class Happening(NamedTuple):
    """One thing that the live stream tells, by its name only; the store knows the rest."""

    number: int
    kind: str  # task, invoice, semaphore, node_status, network_stats, gap, log or reset
    key: Any  # execution id, invoice's name, subscriber, entry's key, or None


class Ring:
    """The last SIZE happenings, numbered; written by ingest and upkeep, read by the live streams'
    threads.
    """

    SIZE = 10_000

    def __init__(self) -> None:
        self.kept: deque[Happening] = deque(maxlen=self.SIZE)
        self.newest = 0
        self.news = threading.Condition()

    def add(self, names: Iterable[tuple[str, object]]) -> None:
        """Tell of what the store holds by now."""
        with self.news:
            for kind, key in names:
                self.newest += 1
                self.kept.append(Happening(self.newest, kind, key))
            self.news.notify_all()

    def after(self, number: int, timeout_s: float) -> list[Happening] | None:
        """What followed `number`, waited for if there is nothing; None if some of it is no longer
        kept.
        """
        with self.news:
            if number == self.newest:
                self.news.wait(timeout_s)
            missed = self.newest - number
            if not 0 <= missed <= len(self.kept):
                return None
            return [*itertools.islice(reversed(self.kept), missed)][
                ::-1
            ]  # not by way of all that is older


@dataclass
class Monitor:
    """What the threads share. Each attribute has one writer, named beside it, and is replaced
    whole.
    """

    config: Config
    store: Store
    redactor: Redactor
    engine: DockerEngine | None  # None with LOG_DIR and in the demo
    stop: threading.Event  # set by main, or by a thread that dies
    clock: Callable[[], float] = time.time
    demo: bool = False
    retry_min_s: float = 0.5  # between two connections; doubles up to RETRY_MAX_S while they fail
    container: Container | None = None  # upkeep and ingest
    container_error: str | None = JUST_STARTED  # upkeep: why there is no container state
    candidates: tuple[str, ...] = ()  # upkeep: what may be the node while its container is missing
    stats: Stats | None = None  # upkeep
    problem: str | None = JUST_STARTED  # ingest: why nothing is being followed
    lag_ms: int = 0  # ingest: how far behind the log it is, 0 when all is read
    reading: Reading | None = None  # ingest: the history it reads before there can be a verdict
    is_new: bool = True  # ingest: the node's history was never read into this database
    passed_over: Mapping[str, str] = field(default_factory=dict)  # ingest: why, by the file's name
    verdict: Verdict | None = None  # upkeep
    remembered: Verdict | None = None  # upkeep: from before this start, until the first look
    judged: Judged | None = None  # upkeep: the newest verdict that says something of the node
    runs: Runs = field(default_factory=Runs)  # upkeep
    begun_at: int = 0  # ms
    outage_since: int | None = None  # upkeep: of the outage whose minutes are noted
    missed: bool = True  # upkeep and ingest: the log may tell of minutes that nobody watched
    ring: Ring = field(default_factory=Ring)
    outbox: Outbox | None = None
    federation: Federation | None = None
    started_at: int = 0  # main; ms
    stuck: bool = False  # main: a thread that waits for an answer has not ended
    asked_at: float = (
        math.inf
    )  # upkeep: since when (monotonic) it waits for the engine's words about the container
    settled_at: int = 0  # upkeep: the newest time (ms) of a clock that did not jump
    doubts: int = 0  # upkeep: looks at a clock that has jumped
    beats: dict[str, float] = field(default_factory=dict)  # each thread its own; what `beat` keeps
    doctor: Callable[[], Iterable[tuple[str, str, str]]] = (
        tuple  # main: (level, what, remedy) of each finding
    )

    def beat(self, name: str) -> None:
        """A thread goes on; systemd's watchdog is fed as long as none stands still."""
        self.beats[name] = time.monotonic()

    def sought(self) -> tuple[str, str]:
        """What tbmon looks for, and where."""
        if self.engine is None:
            folder = Path(self.config.log_dir) if self.config.log_dir else None
            place = f"LOG_DIR={folder}" if folder else ""
            return "the node's log files", self.redactor.clean(place)
        return f"container {self.config.container_name}", self.engine.url

    def newest_verdict(self) -> Verdict | None:
        """The verdict; blind if upkeep waits for an engine that never ends its answer."""
        still_s = time.monotonic() - self.asked_at
        is_held = self.engine is not None and self.engine.is_held()
        if still_s < STILL_S or is_held:
            return self.verdict
        what, where = self.sought()
        words = f"tbmon waits for an answer about {what} from {where}"
        since = self.now() - int(still_s * 1000)
        return Verdict("blind", words, "Run `tbmon.py doctor` on this host.", "blind", since)

    def note_gap(self, since: int | None, until: int | None, reason: str) -> None:
        """Keep that lines may be missing between two times (ms)."""
        with self.store.write() as db:
            self.store.put(db, "gap", [(since, until, reason)])
        self.ring.add([("gap", None)])

    def pass_over(self, path: str, reason: str) -> None:
        """Tell of a file that is not read, or not to its end; "" takes that back."""
        name = self.redactor.clean(posixpath.basename(path))
        kept = {other: why for other, why in self.passed_over.items() if other != name}
        if reason and self.passed_over.get(name) != reason:
            log.warning("ingest: the file %s is passed over: %s", name, reason)
        self.passed_over = {**kept, name: reason} if reason else kept

    def now(self) -> int:
        """The clock in milliseconds."""
        return int(self.clock() * 1000)

    def __post_init__(self) -> None:
        self.settled_at = int(
            self.store.first("state", "clock") or self.store.first("last_entry_at") or 0
        )
        self.settle()
        self.begun_at = self.now()
        self.runs = revive(Runs, self.store.first("state", "runs")) or Runs()
        self.judged = last = revive(Judged, self.store.first("state", "verdict"))
        if last is not None:
            self.is_new = False
            since = min(last.since, self.begun_at)
            as_of = min(last.at, self.begun_at)
            self.verdict = self.remembered = Verdict(
                last.state, last.reason, last.advice, last.cause, since, as_of=as_of
            )

    def settle(self) -> None:
        """Look at the clock, once a minute; one that jumped by a day or more is believed after
        DOUBT_LOOKS looks.
        """
        now, past = self.now(), self.settled_at
        self.doubts = (
            self.doubts + 1
            if past and abs(now - past) > DAY_MS and self.doubts < DOUBT_LOOKS
            else 0
        )
        if self.doubts == 1:
            log.warning(
                "upkeep: the clock went from %s to %s: nothing is deleted by age for now",
                utc(past),
                utc(now),
            )
        self.settled_at = past if self.doubts else now

    def oldest(self, kept_ms: int) -> int:
        """What is from before this time (ms) need not be kept any more."""
        return min(self.now(), self.settled_at) - kept_ms


def is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53


def is_moment(value: object) -> bool:
    return fits(value, MOMENT) and parse_time(value) is not None


def is_rate(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 100


def is_peers(value: object) -> bool:
    rules = {"handle": re.compile("[0-9a-f]{16}"), "seen": ("today", "yesterday")}
    peers: list[Any] = value if isinstance(value, list) and len(value) <= 500 else [None]
    return all(isinstance(one, dict) and one.keys() == rules.keys() for one in peers) and all(
        fits(one[name], rules[name]) for one in peers for name in rules
    )


def is_distribution(*ranges: str) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(name in ranges and is_count(value[name]) for name in value)
    )


STEPS_SPREAD = is_distribution(*STEPS_RANGES, "unknown")
PUBLISHED: dict[str, Any] = {  # the aggregator's figures; null is a figure withheld
    "activeNodes": is_count,
    "totalNodes": is_count,
    "totalTasks": is_count,
    "completedTasks": is_count,
    "failedTasks": is_count,
    "cachedTasks": is_count,
    "tasksLast24h": is_count,
    "totalInvoices": is_count,
    "invoicesLast24h": is_count,
    "successRate": is_rate,
    "cacheHitRate": is_rate,
    "executionTimeDistribution": is_distribution(*TIME_RANGES, "unknown"),
    "gasUsageDistribution": STEPS_SPREAD,
    "stepsComputedDistribution": STEPS_SPREAD,
    "taskTypeDistribution": is_distribution(*SHARED_LANGUAGES),
    "memoryUsedDistribution": is_distribution(*MEMORY_SCALE.ranges, "unknown"),
    "peers": is_peers,
    "snapshotAt": is_moment,
}


def read_publication(payload: bytes) -> dict[str, Any] | None:
    """The figures in a publication of the aggregator; None for anything that does not fit. It is
    hostile input.
    """
    try:
        message = json.loads(payload) if len(payload) <= MESSAGE_BYTES else None
    except (ValueError, RecursionError):
        return None
    envelope = {
        **ENVELOPE,
        "type": ("network_stats",),
        "timestamp": is_moment,
        "data": lambda data: type(data) is dict,
    }
    del envelope["nodeId"]
    if not isinstance(message, dict) or set(message) != set(envelope):
        return None
    if not all(fits(message[name], envelope[name]) for name in envelope) or set(
        message["data"]
    ) != set(PUBLISHED):
        return None
    data: dict[str, Any] = message["data"]
    return (
        data
        if all(value is None or fits(value, PUBLISHED[name]) for name, value in data.items())
        else None
    )


def take_publication(monitor: Monitor, payload: bytes) -> bool:
    """Keep the figures of a publication, the newest whole and one row for each snapshot; False if
    it does not fit.
    """
    stats = read_publication(payload)
    if stats is None:
        return False
    store, at = monitor.store, monitor.now()
    with store.write() as db:
        store.put(db, "state", [("network stats", json.dumps({"at": at, "stats": stats}))])
        store.put(db, "network_stats", [(stats["snapshotAt"] or "", at, json.dumps(stats))])
        store.put(db, "old_network_stats", [(SNAPSHOTS,)])
        store.count(db, "received")
    monitor.ring.add([("network_stats", None)])
    return True


class Tracker:
    """Follows the tasks through one source's facts in order, and keeps what changed until `save`.

    Ids come from the facts; whose a line without one is, `attribution` decides. `knows_others` says
    that the store may hold tasks in work of which this source has not told.
    """

    knows_others = False

    def __init__(
        self, store: Store, redactor: Redactor, limit: int, saved: Mapping[str, Any]
    ) -> None:
        self.store, self.redactor, self.limit = store, redactor, limit
        self.attribution = Attribution(saved)
        self.stored_words: set[str] = set()  # waiting lines whose words are in the store
        for name, column, text in store.get("waiting_words"):
            line = self.attribution.waiting.get(name)
            if line is not None:
                line.event.fields[column] = text
                self.stored_words.add(name)
        self.any_doubt = store.first("any_doubt") is not None
        self.clear()

    def clear(self) -> None:
        """Forget what is saved; the facts still to come build on the store."""
        self.tasks: dict[str, Task] = {}
        self.data: dict[str, dict[str, str]] = {}
        self.events: list[tuple[str, int, str]] = []
        self.invoices: list[tuple[Event, bool]] = []
        self.node: dict[str, tuple[object, int]] = {}
        self.bound: dict[bytes, str] = {}
        self.doubts: dict[bytes, frozenset[str]] = {}  # by output: who may have written it
        self.new_own: set[str] = set()

    def save(self, db: sqlite3.Connection) -> None:
        """Write what changed; part of the transaction that stores the entries it came from."""
        for pseudonym in self.new_own:
            self.store.add_own(db, pseudonym)
        self.store.save_tasks(db, self.tasks.values())
        self.store.save_task_data(db, self.data)
        self.store.put(db, "task_event", self.events)
        for event, confirmed in self.invoices:
            self.store.save_invoice(db, event, confirmed)
        self.store.save_node(db, self.node)
        self.store.put(db, "binding", ((name, key) for key, name in self.bound.items()))
        self.store.save_doubts(db, self.doubts)
        self.save_words(db)

    def save_words(self, db: sqlite3.Connection) -> None:
        """What waiting outputs say is a task's data: it has a table of its own until it is known
        whose.
        """
        waiting = self.attribution.waiting
        gone = self.stored_words - waiting.keys()
        self.store.put(db, "forget_words", ((name,) for name in gone))
        self.stored_words -= gone
        for name, line in waiting.items():
            words = [(name, column, line.event.fields.get(column)) for column in TASK_WORDS]
            if name not in self.stored_words:
                self.store.put(db, "waiting_words", (row for row in words if row[2]))
                self.stored_words.add(name)

    def note_gap(self, until: int) -> None:
        """Lines before `until` (ms) may be missing: outputs of the tasks in work, and receipts."""
        self.put_in_doubt(b"gap" + until.to_bytes(8, "big"), frozenset(self.attribution.work))
        self.attribution.begin(until)

    def task(self, execution_id: str) -> Task | None:
        return self.tasks.get(execution_id) or self.store.task(execution_id)

    def change(self, task: Task, evidence: int = 0, **found: Any) -> Task:
        """Merge what was found into a task and keep it for `save` if that changes anything."""
        merged = merge_task(task, evidence, **found)
        if merged != task or task.execution_id in self.tasks:
            self.tasks[task.execution_id] = merged
        return merged

    def keep_data(self, execution_id: str, fields: Mapping[str, Any]) -> None:
        for name in TASK_DATA:
            if isinstance(text := fields.get(name), str) and text:
                kept = text.encode("utf-8", "replace")[: self.limit].decode("utf-8", "ignore")
                self.data.setdefault(execution_id, {})[name] = kept

    def see(
        self, event: Event, at: int, stream: str, key: bytes, engine_ms: int | None = None
    ) -> str | None:
        """Take one fact from the log; `at` is its time in ms. Returns whose it is, if that is
        certain.
        """
        kind, execution_id = event.kind, event.execution_id
        if kind == "semaphore":
            name = event.fields["subscriber"]
            self.node[f"total {name}"] = event.fields["total"], at
            if event.fields["current"] is not None:
                self.node[f"current {name}"] = event.fields["current"], at
            return None
        self.attribution.expire(at, engine_ms)
        if kind == "registration":
            self.node["registered"] = event.fields["registered"], at
        elif kind == "invoice":
            self.see_invoice(event, at, confirmed=False)
        elif kind == "task_received":
            self.see_created(event, at)
        elif kind in ("task_start", "task_download", "execution_output"):
            return self.see_loose(event, at, stream, key, engine_ms)
        elif kind in ("task_completed", "task_failed"):
            self.see_end(event, at, stream, engine_ms)
        if execution_id and kind in NODE_DATA:
            self.events.append((execution_id, at, kind))
        return execution_id

    def see_created(self, event: Event, at: int | None) -> None:
        """A task arrived: told by the log at `at`, or, with None, by the event database."""
        assert event.execution_id is not None
        found = {name: value for name, value in event.fields.items() if name != "input"}
        found, evidence = (
            (found, IN_EVENT_DB) if at is None else ({**found, "received_at": at}, IN_LOG)
        )
        known = self.task(event.execution_id)
        task = self.change(known or Task(event.execution_id), evidence, **found)
        self.tasks[task.execution_id] = task
        if known is None:
            self.see_earlier_invoices(task.execution_id)
        self.keep_data(task.execution_id, event.fields)
        if at is not None and task.deadline is not None:
            self.attribution.receive(task.execution_id, task.deadline)

    def see_loose(
        self, event: Event, at: int, stream: str, key: bytes, engine_ms: int | None
    ) -> str | None:
        """Take a download, a start or an output; returns whose it is, if that is certain now."""
        kind, name = line_kind(event), key.hex()
        if event.execution_id is not None:
            changes = self.attribution.claim(kind, event.execution_id)
            owners = frozenset((event.execution_id,))
            changes.append((name, LooseLine(kind, at, owners, event), event.execution_id))
        else:
            owners = frozenset(self.owners(event, kind, at, stream, engine_ms))
            changes = self.attribution.attribute(name, LooseLine(kind, at, owners, event))
        for other, line, owner in changes:
            self.take_change(bytes.fromhex(other), line, owner)
        if self.attribution.waiting:
            self.attribution.let_go()
        return self.bound.pop(key, None)

    def owners(
        self, event: Event, kind: str, at: int, stream: str, engine_ms: int | None
    ) -> set[str]:
        """The tasks that can have written a line which comes now."""
        found = self.attribution.candidates(kind, stream, engine_ms)
        if self.knows_others:
            found.update(row[0] for row in self.store.get("in_work", at, at - HOUR_MS, IN_LOG))
        if kind != "task_download":
            return found
        tasks = [self.task(name) for name in found]
        wanted = event.fields["task_id"]
        return {task.execution_id for task in tasks if task and task.task_id == wanted}

    def take_change(self, key: bytes, line: LooseLine, owner: str | None) -> None:
        """What is known now of whose a line is."""
        if line.event.kind == "execution_output":
            self.set_doubt(key, line, owner)
        if owner is None:
            return
        self.bound[key] = owner
        self.events.append((owner, line.at, line.event.kind))
        self.settle(line.event, line.at, owner)

    def settle(self, event: Event, at: int, owner: str) -> None:
        """A loose line is known to be `owner`'s."""
        task = self.task(owner)
        if task is None:
            return
        if event.kind == "task_start":
            self.change(task, started_at=at)
        elif event.kind == "execution_output":
            found: dict[str, Any] = {name: event.fields.get(name) for name in OUTPUT_COLUMNS}
            if found["exit_code"]:
                found["completed_at"] = at
            self.change(task, **found)
            self.keep_data(owner, event.fields)

    def see_more(self, event: Event, at: int, key: bytes, owner: str | None) -> None:
        """An output has grown since it was seen; whose it is stays as it was."""
        line = self.attribution.waiting.get(key.hex())
        if line is not None:
            self.attribution.waiting[key.hex()] = line._replace(event=event)
            self.stored_words.discard(key.hex())
        elif owner is not None:
            self.settle(event, at, owner)

    def set_doubt(self, key: bytes, line: LooseLine, owner: str | None) -> None:
        """Keep which tasks an output leaves in doubt about their success: those that may have
        written it, unless it shows exit code 0.
        """
        exit_code = line.event.fields.get("exit_code")
        owners = line.owners
        if exit_code == 0 or (owner is not None and exit_code is not None):
            owners = frozenset()
        if owner is None and not line.owners:
            return  # no task that this source knows; the other may know better
        if owner is None and owners:  # likewise
            if bound := self.store.first("entry_owner", key):
                owners = frozenset((bound,))
            elif line.at <= self.attribution.unknown_until:
                owners |= self.doubted(key)
        self.put_in_doubt(key, owners)

    def doubted(self, key: bytes) -> frozenset[str]:
        """The tasks whose success an output, or lines that are missing, leave open."""
        if key in self.doubts or not self.any_doubt:
            return self.doubts.get(key, frozenset())
        return frozenset(row[0] for row in self.store.get("doubt", key))

    def put_in_doubt(self, key: bytes, owners: frozenset[str]) -> None:
        """What `key` names leaves open from now on whether these tasks succeeded, and no others."""
        before = self.doubted(key)
        if owners == before:
            return
        self.doubts[key] = owners
        self.any_doubt = True
        for name in owners | before:
            if (task := self.task(name)) is not None:
                self.change(task, in_doubt=self.is_in_doubt(name))

    def is_in_doubt(self, execution_id: str) -> bool:
        """True if an output that may be this task's leaves open whether it succeeded."""
        if any(execution_id in owners for owners in self.doubts.values()):
            return True
        return any(row[0] not in self.doubts for row in self.store.get("doubts_of", execution_id))

    def see_end(self, event: Event, at: int, stream: str, engine_ms: int | None) -> None:
        """An execution completed or failed; it counts only for a task that is known."""
        assert event.execution_id is not None
        task = self.task(event.execution_id)
        if task is None:
            return
        if event.kind == "task_failed":
            self.change(task, FAILED_LINE, completed_at=at, error=event.fields["error_text"])
            self.keep_data(event.execution_id, event.fields)
        else:
            self.change(task, COMPLETED_LINE, completed_at=at)
        # Of a task that was not seen in work, an output may be among the lines that are missing.
        unseen = b"end" + bytes.fromhex(event.execution_id.replace("-", ""))
        if event.execution_id in self.attribution.work:
            self.put_in_doubt(unseen, frozenset())
        elif not task.evidence & END_LINES:
            self.put_in_doubt(unseen, frozenset((event.execution_id,)))
        self.attribution.end(event.execution_id, stream, engine_ms)

    def see_invoice(self, event: Event, at: int | None, confirmed: bool) -> None:
        event.fields["at"] = event.fields["at"] or at
        self.invoices.append((event, confirmed))
        self.see_items(event.execution_id, event.fields["line_items"])

    def see_earlier_invoices(self, execution_id: str) -> None:
        """What was told of a task before the task itself is evidence too."""
        kept = [json.loads(row[0]) for row in self.store.get("items_of", execution_id)]
        fresh = [
            event.fields["line_items"]
            for event, _ in self.invoices
            if event.execution_id == execution_id
        ]
        for items in (*kept, *fresh):
            self.see_items(execution_id, items)

    def see_items(self, execution_id: str | None, items: Sequence[Mapping[str, Any]]) -> None:
        """Own pay and penalty are evidence about the task."""
        mine = own_item(items, self.store.own | self.new_own)
        if mine and execution_id and (task := self.task(execution_id)):
            self.change(task, PENALISED if mine["operation"] == "penalty" else PAID)

    def see_own(self, pseudonym: str | None) -> None:
        """A wallet is known to be the node's own: earlier invoices may have paid it."""
        if (
            pseudonym is None
            or not pseudonym.startswith("wallet:")
            or pseudonym in self.store.own | self.new_own
        ):
            return
        self.new_own.add(pseudonym)
        others = [row["id"] for row in self.store.get("invoices_of_others", pseudonym)]
        for row in self.store.rows_of("invoice", others):
            self.see_items(row["execution_id"], json.loads(row["line_items"]))
        for event, _ in self.invoices:
            self.see_items(event.execution_id, event.fields["line_items"])

    def see_record(self, event: Event) -> bool:
        """Take one record of the event database; False if the task it speaks of is not known
        yet.
        """
        if event.kind == "task_created":
            self.see_created(event, None)
        elif event.kind == "invoice":
            self.see_invoice(event, None, confirmed=True)
        else:
            self.see_own(event.fields["sender"])
            if task := self.task(event.execution_id or ""):
                self.change(task, OUTCOME)
        return event.execution_id is None or self.task(event.execution_id) is not None

    def lose(self, execution_id: str, at: int) -> None:
        """A task will not end any more; later evidence revives it."""
        task = self.task(execution_id)
        if task is not None and task.status in ("received", "executing"):
            self.change(task, LOST)
            self.events.append((execution_id, at, "lost"))


def line_kind(event: Event) -> str:
    """The kind of a LooseLine: an output's is its stream."""
    if event.kind != "execution_output":
        return event.kind
    return "stderr" if "error_text" in event.fields else "stdout"


def held_entry(row: Sequence[Any], who: tuple[str | None, str]) -> Entry:
    """An entry that was stored while it was not believed, as the writer `who` wrote it; without its
    raw words.
    """
    key, seq, at, level, kind, _, flags, _, message = row
    head = Head(LEVELS[level], *who) if flags & SUSPECT else None
    second = int.from_bytes(key[:4], "big")
    entry = Entry(second, head, LOG_TYPES[kind], message, b"", changed=False)
    entry.key = bytes(key)
    entry.seq, entry.at, entry.flags = seq, at, flags
    return entry


class Recorder:
    """Records what one source says: gives every entry its identity, believes it or not, stores it
    once.

    All state that must outlive the process is written in the transaction of the rows it belongs to,
    so that a new Recorder goes on where the last commit stood. Used by the ingest thread only.
    """

    def __init__(
        self, monitor: Monitor, source: int, fresh_pass: bool = False, live: bool = True
    ) -> None:
        self.monitor, self.store, self.source, self.live = monitor, monitor.store, source, live
        self.name = {ENGINE: "engine", FILES: "files"}[source]
        saved: dict[str, Any] = json.loads(self.store.first("state", self.name) or "{}")
        self.cursor: dict[str, Any] = saved.get("cursor", {})
        self.trust = Trust(
            tuple(saved["identity"]) if saved.get("identity") else None,
            saved.get("identity_since"),
        )
        if saved.get("rival") and not fresh_pass:
            suffix, version, since_s, from_key, headers = saved["rival"]
            who = suffix, version
            self.trust.rival = Rival(who, since_s, bytes.fromhex(from_key), headers, is_whole=False)
        self.zone = Zone(
            monitor.config.node_timezone,
            json.loads(self.store.first("state", "zone") or "null"),
            machine_zone(),
            json.loads(self.store.first("state", "zone_heard") or "[]"),
        )
        monitor.redactor.own = self.store.own
        self.marks: dict[str, int] = json.loads(self.store.first("state", "marks") or "{}")
        monitor.redactor.marks.update(self.marks)
        self.tracker = Tracker(
            self.store,
            monitor.redactor,
            monitor.config.max_output_data_bytes,
            {} if fresh_pass else saved,
        )
        self.seq: int = saved.get("seq", 0)
        self.rereads = fresh_pass  # all is read once more, and counted as if nothing were stored
        # Equal headers of one second are counted from the store up to `floor`; no second above it
        # was read.
        self.floor: int = -1 if fresh_pass else saved.get("newest_second", -1)
        self.newest_second = self.floor
        self.counts: dict[bytes, int] = {}
        self.rows: dict[bytes, tuple[object, ...]] = {}
        self.counted: Counter[str] = Counter()
        self.oldest_at = monitor.oldest(
            monitor.config.log_retention_days * DAY_MS
        )  # older gives no rows
        self.heard: tuple[Head, int] | None = None  # the newest believed header, and when
        self.newest_at: int | None = None if fresh_pass else saved.get("newest_at")
        self.first_at: int | None = None
        self.created_at: int | None = None  # when the container was, in ms, if that is known
        self.loose: set[str] = set(
            saved.get("loose", ())
        )  # streams in which a task's own words may be printed
        self.assemblers: dict[str, Assembler] = {}
        for stream, before in {} if fresh_pass else saved.get("streams", {}).items():
            self.reopen(stream, before)

    def reopen(self, stream: str, before: Mapping[str, Any]) -> None:
        """Take up a stream: its last stamp, and the entry that may still grow."""
        assembler = self.assemblers[stream] = Assembler(self.monitor.redactor, before["second"])
        if before["key"]:  # of an entry too old to be kept, only that it is open counts
            unkept = Entry(0, None, "raw", "", b"", changed=False, depth=before.get("depth"))
            unkept.key = bytes.fromhex(before["key"])
            assembler.open = unkept
        for row in self.store.get("entry", bytes.fromhex(before["key"])):
            second, kind = int.from_bytes(row["key"][:4], "big"), LOG_TYPES[row["type"]]
            head = Head("", None, "") if row["flags"] & SUSPECT else None  # for its mark
            entry = Entry(
                second,
                head,
                kind,
                row["message"],
                b"",
                stamped=not row["flags"] & UNSTAMPED,
                changed=False,
            )
            entry.key, entry.seq, entry.at, entry.believed = (
                row["key"],
                row["seq"],
                row["at"],
                before["believed"],
            )
            entry.depth = before.get("depth")
            entry.flags, entry.waits = row["flags"], before.get("waits", False)
            entry.execution_id = row["execution_id"]
            assembler.open = entry

    def feed(self, stream: str, lines: Iterable[tuple[bytes, int | None, object]]) -> None:
        """Take whole lines of one stream; what comes of them is stored at `commit`."""
        assembler = self.assemblers.setdefault(stream, Assembler(self.monitor.redactor))
        for entry in assembler.feed(lines):
            self.take(entry, stream)
            if self.trust.adopted is not None:
                self.adopt(self.trust.adopted, stream)
                self.trust.adopted = None

    def adopt(self, rival: Rival, stream: str) -> None:
        """The node has another identity: take what came under it as believed."""
        held = {entry.key: entry for entry in rival.entries}
        if not rival.is_whole:
            rows = [*map(tuple, self.store.held_back(rival.from_key, self.source))]
            rows += [row for row in self.rows.values() if row[0] >= rival.from_key]  # type: ignore[operator]
            for entry in (held_entry(row, rival.who) for row in rows):
                if entry.head is not None or entry.type == "execution_output":
                    held.setdefault(entry.key, entry)
            if self.zone.utc_ms(rival.since_s) < self.oldest_at:  # rows of that age are not kept
                self.tracker.note_gap(self.newest_at or 0)
        for entry in sorted(held.values(), key=lambda entry: (entry.second, entry.seq)):
            entry.believed = True
            self.record(entry, stream, fresh=True)

    def take(self, entry: Entry, stream: str) -> None:
        fresh = not entry.key
        if fresh:
            self.identify(entry)
            self.believe(entry, stream)
            self.seq += 1
            entry.seq = self.seq
            self.first_at = self.first_at or entry.at
            if (
                entry.head is not None and entry.believed
            ):  # what a task prints must not move the log's clock
                self.newest_at = (
                    entry.at if self.live or self.rereads else max(self.newest_at or 0, entry.at)
                )
        if not self.tracker.attribution.has_begun:
            self.begin_log(entry)
        self.record(entry, stream, fresh or entry.waits)

    def begin_log(self, entry: Entry) -> None:
        """The first entry there is: tasks of the time before it may be in work, unless the
        container was created a moment ago.
        """
        attribution = self.tracker.attribution
        age_ms = (entry.engine_ms or 0) - (self.created_at or 0)
        if self.created_at is not None and age_ms <= FIRST_LINE_MS:
            attribution.has_begun = True
            return
        attribution.begin(entry.at)
        attribution.has_begun = entry.head is not None  # what has no header may have no time

    def identify(self, entry: Entry) -> None:
        """Give the entry its key: stamp, header, and how many times this source has seen both
        before.
        """
        first = entry.second.to_bytes(4, "big") + entry.header_id
        seen = self.counts.get(first)
        if seen is None:
            seen = self.stored_count(first) if entry.second <= self.floor else 0
        self.counts[first] = seen + 1
        entry.key = self.nth_key(first, seen + 1) if seen else first
        if entry.second > self.newest_second:  # noqa: PLR1730 - max() costs three times as much
            self.newest_second = entry.second

    def nth_key(self, first: bytes, number: int) -> bytes:
        if number == 1:
            return first
        return (
            first[:4] + hashlib.blake2b(first + number.to_bytes(8, "big"), digest_size=12).digest()
        )

    def stored_count(self, first: bytes) -> int:
        keys = (self.nth_key(first, number) for number in itertools.count(1))
        return sum(
            1
            for _ in itertools.takewhile(
                lambda key: self.store.first("has_entry", key, self.source), keys
            )
        )

    def believe(self, entry: Entry, stream: str) -> None:
        """Set the entry's time, and whether it may change what we know of the node."""
        if entry.head is None:
            entry.at = self.zone.utc_ms(entry.second, entry.engine_ms)
            if entry.engine_ms is not None and not (
                entry.stamped and abs(entry.at - entry.engine_ms) <= BELIEF_MS
            ):
                entry.at = entry.engine_ms
            entry.believed = entry.type == "execution_output" and not self.loose & {stream, "all"}
            if entry.believed and self.trust.rival is not None:
                entry.believed = False  # it may be of a task of which the rival told
                self.trust.rival.entries.append(entry)
        else:
            entry.believed = self.trust.judge(entry)
            if entry.believed and entry.engine_ms is not None:
                self.zone.learn(entry.second, entry.engine_ms)
            entry.at = self.zone.utc_ms(entry.second, entry.engine_ms)
            if entry.engine_ms is not None and abs(entry.at - entry.engine_ms) > BELIEF_MS:
                entry.believed, entry.at = False, entry.engine_ms
            if entry.believed and self.loose:
                self.loose.discard(stream)
        if entry.type == "execution_output" and (
            entry.head or entry.text.startswith("Command execution stderr")
        ):
            self.loose.add(
                "all" if entry.believed and entry.head else stream
            )  # this node's outputs have headers

    def record(self, entry: Entry, stream: str, fresh: bool) -> None:
        """Keep the entry's row for `commit` and hand its fact, if believed, to the tracker.

        An entry that is not `fresh` has only grown. One whose payload is open waits until it is all
        there, or the next entry begins.
        """
        head, kind = entry.head, entry.type
        flags = 0
        if entry.believed:
            if head is not None:
                self.heard = head, entry.at
            is_last = self.assemblers[stream].open is entry
            entry.waits = kind in PAYLOAD_TYPES and is_last and entry.expects_more()
            if kind not in ("info", "task_published") and not entry.waits:
                flags |= self.take_fact(entry, stream, fresh)
        elif head is not None:
            flags |= SUSPECT
        if kind != "semaphore" and not is_recognised(kind, entry.text):
            flags |= UNRECOGNISED
        self.keep_row(entry, flags)

    def take_fact(self, entry: Entry, stream: str, fresh: bool) -> int:
        """Hand an entry's fact to the tracker; returns UNRECOGNISED where there should be one."""
        clean: Clean = self.monitor.redactor.clean if entry.raw else str
        event = read_event(entry.type, entry.text, entry.raw or entry.text, clean)
        if event is None:
            return UNRECOGNISED if lacks_payload(entry.type, None) else 0
        if entry.type == "execution_output" and not fresh:
            owner = entry.execution_id or self.owner_of(entry.key)
            self.tracker.see_more(event, entry.at, entry.key, owner)
        else:
            owner = self.tracker.see(event, entry.at, stream, entry.key, entry.engine_ms)
        entry.execution_id = owner or entry.execution_id
        return UNRECOGNISED if lacks_payload(entry.type, event) else 0

    def owner_of(self, key: bytes) -> str | None:
        """Whose an entry became since it was taken."""
        return self.tracker.bound.get(key) or self.store.first("entry_owner", key)

    def keep_row(self, entry: Entry, flags: int) -> None:
        """Keep an entry's row for `commit`, and count what is new of its flags."""
        new = flags & ~entry.flags
        entry.flags = flags
        if not self.rereads:
            self.counted["unrecognised"] += bool(new & UNRECOGNISED)
            self.counted["suspect"] += bool(new & SUSPECT)
        if entry.at < self.oldest_at:
            return
        # sqlite3 binds a bytearray at once, for bytes and None it looks for adapters
        self.rows[entry.key] = (
            bytearray(entry.key),
            entry.seq,
            entry.at,
            LEVEL_NUMBERS.get(entry.head.level, 0) if entry.head else 0,
            TYPE_NUMBERS[entry.type],
            self.source,
            flags | (0 if entry.stamped else UNSTAMPED),
            entry.execution_id or "",
            entry.text.replace("\0", NUL_SIGN),
        )

    def note_head(self, head: Head, at: int) -> None:
        """What the newest believed header says of the node."""
        self.tracker.node |= {"last_seen": (at, at), "version": (head.version, at)}
        if head.suffix:
            self.tracker.node["address"] = head.suffix, at
            self.tracker.see_own(head.suffix)

    def restarted(self, at: int, line_ms: int) -> None:
        """The node started again at `at` (ms): what it had in work is lost, its slots are free.

        `line_ms` is the engine's stamp of the first line that is there since. Where it came long
        after the start and nothing was heard before, the log's beginning is gone.
        """
        self.trust.restart()
        self.loose.clear()
        attribution = self.tracker.attribution
        for execution_id in {
            *attribution.work,
            *(row[0] for row in self.store.get("overdue", 0, at)),
        }:
            self.tracker.lose(execution_id, at)
        if attribution.has_begun or line_ms - at <= FIRST_LINE_MS:
            attribution.has_begun = True
            attribution.restart(at)
        for name in self.store.node():
            if name.startswith("current "):
                self.tracker.node[name] = 0, at

    def lose_overdue(self) -> None:
        """Tasks whose time is over by the log's own clock are lost."""
        for row in self.store.get("overdue", self.newest_at or 0, 0):
            self.tracker.lose(row["execution_id"], self.newest_at or 0)

    def saved(self) -> dict[str, Any]:
        streams, rival = {}, self.trust.rival
        for stream, its in self.assemblers.items():
            last = its.open
            key, believed, depth = (
                (last.key.hex(), last.believed, last.depth) if last else ("", False, 0)
            )
            streams[stream] = {
                "key": key,
                "second": its.second,
                "believed": believed,
                "depth": depth,
                "waits": last is not None and last.waits,
            }
        return {
            **self.tracker.attribution.saved(),
            "cursor": self.cursor,
            "identity": self.trust.identity,
            "identity_since": self.trust.first_second,
            "rival": rival and (*rival.who, rival.since_s, rival.from_key.hex(), rival.headers),
            "seq": self.seq,
            "newest_second": self.newest_second,
            "newest_at": self.newest_at,
            "streams": streams,
            "loose": sorted(self.loose),
        }

    def told(self) -> Iterator[tuple[str, object]]:
        """What the live stream tells of a commit."""
        yield from (("log", key) for key in self.rows)
        yield from (("task", execution_id) for execution_id in self.tracker.tasks)
        yield from (
            ("invoice", self.store.invoice_name(event)) for event, _ in self.tracker.invoices
        )
        slots = {
            name.partition(" ")[2]
            for name in self.tracker.node
            if name.startswith(("current ", "total "))
        }
        yield from (("semaphore", subscriber) for subscriber in slots)

    def save_marks(self, db: sqlite3.Connection) -> None:
        """Keep by which marks our own addresses are found, when there is a new one."""
        marks = self.monitor.redactor.marks
        own = {name: marks[name] for name in sorted(self.store.own) if name in marks}
        if own != self.marks:
            self.marks = own
            self.store.put(db, "state", [("marks", json.dumps(own))])

    def commit(self, also: Callable[[sqlite3.Connection], None] | None = None) -> None:
        """Store everything taken since the last commit, with the place to go on from."""
        if self.heard is not None:
            self.note_head(*self.heard)
        with self.store.write() as db:
            self.store.save_entries(db, self.rows.values())
            self.tracker.save(db)
            self.store.put(db, "state", [(self.name, json.dumps(self.saved()))])
            if self.source == ENGINE and self.zone.offset_s is not None:
                heard = json.dumps(self.zone.heard, default=astuple)
                zone = ("zone", json.dumps(self.zone.offset_s)), ("zone_heard", heard)
                self.store.put(db, "state", zone)
            self.store.put(db, "counter", self.counted.items())
            self.save_marks(db)
            if self.live and self.monitor.outbox is not None:
                invoices = [self.store.invoice_name(event) for event, _ in self.tracker.invoices]
                self.monitor.outbox.offer(db, self.tracker.tasks.values(), invoices)
            if also is not None:
                also(db)
        if self.live:
            self.monitor.ring.add(self.told())
        self.oldest_at = self.monitor.oldest(self.monitor.config.log_retention_days * DAY_MS)
        self.heard = None
        self.rows.clear()
        self.counted.clear()
        self.tracker.clear()
        if len(self.counts) > 20_000:
            oldest = max(self.floor, self.newest_second - 5)  # stamps step back a little
            self.floor, settled = self.floor if self.rereads else oldest, key_of(oldest)
            self.counts = {
                first: seen for first, seen in self.counts.items() if first[:4] > settled
            }
        if len(self.counts) > COUNTED_HEADERS and not self.rereads:  # all in a few seconds
            self.floor, self.counts = self.newest_second, {}


COUNTED_HEADERS = 50_000  # counted in memory at most; for more the store is asked
HEAD_BYTES = 1024  # of a log file, by which it is known again under another name or compressed
HEADS_BYTES = MIB  # files that begin with the same so many bytes are taken for one
FILE_BYTES = 1024 * MIB  # read of one file, as it lies there and after decompression
ROOM_BYTES = 16 * MIB  # of the disk, beside the ballast, that the copy of a file leaves free
RECORD_BYTES = 8 * MIB  # of one record of the event database
RECORD_VALUES = 250_000  # in a record, about: a list of many small values needs much more memory
BATCH_EVENTS = 200  # of the event database, in one transaction


class PassedOver(Exception):
    """A file that is not read; the text says why."""


def meanwhile(work: Callable[[threading.Event], Any]) -> Generator[None, None, Any]:
    """What `work` returns: it runs in a thread of its own, and this yields while it lasts, so that
    the log is followed. `work` is told when nobody waits for it any more.
    """
    results: list[Any] = []
    errors: list[BaseException] = []
    left = threading.Event()

    def run() -> None:
        try:
            results.append(work(left))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="copier", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(0.02)
            yield
    finally:
        left.set()
    if errors:
        raise errors[0]
    return results[0]


class ContainerFiles:
    """The files in a folder of the container; links are followed inside the allowed folders.

    An open archive holds the container: nobody can inspect, stop or start it. So a file is copied
    at full speed, beside the database, before it is read.
    """

    def __init__(self, engine: DockerEngine, container: str, folder: str, beside: Path) -> None:
        self.engine, self.container, self.folder = engine, container, folder
        self.beside = beside

    def asking(self, work: Callable[[threading.Event], Any]) -> Generator[None, None, Any]:
        """What `work` fetches; others wait with their questions as long as it takes."""
        self.engine.copies += 1
        try:
            return (yield from meanwhile(work))
        finally:
            self.engine.copies -= 1

    def names(self) -> Generator[None, None, list[str]]:
        """Every file."""
        return [*(yield from self.fetch_sizes())]

    def fetch_sizes(self) -> Generator[None, None, dict[str, int]]:
        """The bytes of every file; there is no listing, so the folder's tar is passed. A link
        counts for none.
        """
        sizes: dict[str, int] = yield from self.asking(self.sizes)
        return sizes

    def sizes(self, left: threading.Event) -> dict[str, int]:
        """The same at once; `left` ends it early."""
        found = resolve(self.engine, self.container, self.folder)
        if found is None:
            return {}
        sizes = {}
        with self.engine.archive(self.container, found[0]) as tar:
            for part in tar or ():
                if part.isfile() or part.issym():
                    name = posixpath.join(posixpath.dirname(found[0]), part.name)
                    sizes[name] = part.size
                if left.is_set():
                    break
        return sizes

    def signature(self, names: Iterable[str]) -> object:
        """What changes when a file is added or one of `names` changes; None without the folder."""
        found = [resolve(self.engine, self.container, path) for path in (self.folder, *names)]
        return found if found[0] else None

    def open(self, name: str) -> Generator[None, None, Any]:
        """A copy without a name, which goes when it is closed; PassedOver for what is too large."""
        return (yield from self.asking(functools.partial(self.copy, name)))

    def copy(self, name: str, left: threading.Event) -> Any:
        found = resolve(self.engine, self.container, name)
        size = found[1].size if found else 0
        if size > FILE_BYTES:
            raise PassedOver(f"it has {size // MIB} MiB, at most {FILE_BYTES // MIB} are read")
        if shutil.disk_usage(self.beside).free < size + ROOM_BYTES:
            raise PassedOver(f"no room for a copy of {size // MIB} MiB beside the database")
        copy = tempfile.TemporaryFile(dir=self.beside)  # noqa: SIM115 - whoever reads it closes it
        try:
            with self.engine.archive(self.container, found[0] if found else name) as tar:
                member = next((part for part in tar or () if found and part.isfile()), None)
                if tar and member and (content := tar.extractfile(member)):
                    self.pour(content, copy, left)
            copy.seek(0)
        except BaseException:
            copy.close()
            raise
        return copy

    def pour(self, source: Any, copy: Any, left: threading.Event) -> None:
        while not left.is_set() and copy.tell() <= FILE_BYTES and (data := source.read(READ_BYTES)):
            try:
                copy.write(data)
            except OSError as error:
                raise PassedOver(f"no room for a copy: {error.strerror}") from None

    def is_another(self, known: str, name: str, offset: int, tail: bytes) -> bool:
        """As for files of this host; the node itself keeps no copies."""
        return False

    def is_copy(self, name: str) -> bool:
        return False


class LocalFiles:
    """The files anywhere under a folder of this host."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def names(self) -> Generator[None, None, list[str]]:
        yield from ()
        return self.listed()

    def listed(self) -> list[str]:
        return [str(path) for path in self.folder.rglob("*") if path.is_file()]

    def sizes(self) -> dict[str, int]:
        """The bytes of every file; 0 for one that has just gone."""
        sizes = (
            (name, os.path.getsize(name) if os.path.exists(name) else 0) for name in self.listed()
        )
        return dict(sizes)

    def signature(self, names: Iterable[str]) -> object:
        """As for a container's folder; None without an event database."""
        stats = (
            (path, os.stat(path)) for path in sorted(self.listed()) if path.endswith(EVENT_DB_NAME)
        )
        return [(path, stat.st_size, stat.st_mtime_ns) for path, stat in stats] or None

    def open(self, name: str) -> Generator[None, None, Any]:
        yield from ()
        return open(name, "rb")

    def is_another(self, known: str, name: str, offset: int, tail: bytes) -> bool:
        """True if a known file is there as it was, with `tail` before `offset`, and this one goes
        on otherwise behind it: it is neither that file under a new name nor a copy.
        """
        with contextlib.suppress(OSError), open(known, "rb") as file:  # if it is gone, this is it
            if os.path.samefile(known, name) or begins_with(known, name):
                return False
            file.seek(offset - len(tail))
            return file.read(len(tail)) == tail
        return False

    def is_copy(self, name: str) -> bool:
        """True if another file begins with all that is in this one."""
        others = [path for path in self.listed() if path.endswith(".log") and path != name]
        size = os.stat(name).st_size
        return any(os.stat(path).st_size >= size and begins_with(path, name) for path in others)


def begins_with(longer: str, shorter: str) -> bool:
    """True if one file begins with all of another's bytes."""
    with open(longer, "rb") as whole, open(shorter, "rb") as part:
        while data := part.read(READ_BYTES):
            if whole.read(len(data)) != data:
                return False
    return True


def choose_log_files(names: Iterable[str]) -> list[str]:
    """The log files to read among `names`, oldest first.

    Each level has a folder of its own and `debug` holds them all (node-data.md, 1): where there is
    one, only its files count. Names carry the date; a compressed file is older than a plain one.
    """
    found = [name for name in names if name.endswith((".log", ".log.gz"))]
    in_debug = [name for name in found if "/debug/" in name]

    def age(name: str) -> tuple[str, bool, str]:
        date = re.search(r"\d{4}-\d\d-\d\d", posixpath.basename(name))
        return (date[0] if date else "9"), not name.endswith(".gz"), name

    return sorted(in_debug or found, key=age)


class Place(NamedTuple):
    """How far a log file is read, and by what it is known again."""

    head_bytes: int  # whose hash is its name
    offset: int
    tail: str  # hash of what stands before `offset`; "" if an earlier tbmon kept it


class LogFileReader:
    """Reads log files, each from where it was left.

    A file is known by the hash of its first bytes and of those before the place where it was left,
    so renaming or compressing it changes nothing. Of one that begins as another does, more bytes
    are hashed.
    """

    def __init__(self, recorder: Recorder, files: ContainerFiles | LocalFiles) -> None:
        self.recorder, self.files = recorder, files
        self.position = 0  # bytes read of the file that is being read, unpacked
        self.known = {row[0]: Place(*row[1:]) for row in recorder.store.get("files")}
        self.paths: dict[str, str] = {}  # under which a file was seen last

    def read(self, name: str) -> Iterator[None]:
        """Take what is new in a file; yields after each batch. What cannot be unpacked is passed
        over.

        An unfinished last line is left for later, unless the file is compressed and so has ended.
        """
        packed = name.endswith(".gz")
        try:
            with (yield from self.files.open(name)) as file:
                content = gzip.GzipFile(fileobj=file, mode="rb") if packed else file
                yield from self.read_lines(name, content, packed)
        except PassedOver as refusal:
            self.recorder.monitor.pass_over(name, str(refusal))
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            date = re.search(r"\d{4}-\d\d-\d\d", name)  # the name itself holds the wallet
            log.warning(
                "ingest: the log file of %s cannot be unpacked: %s",
                date[0] if date else "some day",
                error,
            )

    def hashed(self, part: bytes, kind: bytes = b"file") -> str:
        key = self.recorder.monitor.redactor.key
        return hmac.digest(key, kind + b"\0" + part, "sha256").hex()[:32]

    def go_to(self, file: Any, offset: int) -> Iterator[None]:
        """Come to a place of a file; what is compressed is unpacked on the way, with a yield for
        each part.
        """
        if not isinstance(file, gzip.GzipFile):
            file.seek(offset)
            return
        if file.tell() > offset:
            file.seek(0)
        while file.tell() < offset and file.read(min(READ_BYTES, offset - file.tell())):
            yield

    def tail_at(self, file: Any, offset: int) -> Generator[None, None, bytes]:
        """What stands before `offset`; b"" where the file does not go so far."""
        begin = max(0, offset - HEAD_BYTES)
        yield from self.go_to(file, begin)
        tail: bytes = file.read(offset - begin)
        return tail if len(tail) == offset - begin else b""

    def recognise(
        self, file: Any, alike: Sequence[str]
    ) -> Generator[None, None, tuple[str, bytes]]:
        """Which of the files that begin `alike` this one is, and what stands before the place where
        it was left; "" for none of them.
        """
        for name in alike:
            place = self.known[name]
            if place.tail:
                tail = yield from self.tail_at(file, place.offset)
                if self.hashed(tail, b"tail") == place.tail:
                    return name, tail
        for name in alike:
            place = self.known[name]
            if not place.tail:  # from here on it is known by more than its beginning
                tail = yield from self.tail_at(file, place.offset)
                if tail:
                    self.known[name] = place._replace(tail=self.hashed(tail, b"tail"))
                    with self.recorder.store.write() as db:
                        self.recorder.store.save_file(name, self.known[name], "", db)
                return name, tail
        return "", b""

    def name_of(self, head: bytes) -> tuple[str, int]:
        """The hash of as much of a file's beginning as no other has, and its length."""
        length = HEAD_BYTES
        while (name := self.hashed(head[:length])) in self.known and length < len(head):
            length *= 2
        return name, min(length, len(head))

    def read_lines(self, path: str, file: Any, ended: bool) -> Iterator[None]:
        """Recognise a file, and take the lines behind the place where it was left."""
        known, files = self.known, self.files
        lengths = sorted({place.head_bytes for place in known.values()}, reverse=True)
        longest = min(HEADS_BYTES, 2 * max(lengths, default=0))
        head: bytes = file.read(max(HEAD_BYTES, longest))
        if b"\n" not in head and len(head) < HEAD_BYTES:
            return
        beginnings = [(self.hashed(head[:length]), length) for length in lengths]
        alike = [
            name
            for name, length in beginnings
            if length <= len(head) and name in known and known[name].head_bytes == length
        ]
        before, tail = yield from self.recognise(file, alike)
        place = known.get(before, Place(0, 0, ""))
        if not ended and files.is_another(self.paths.get(before, path), path, place.offset, tail):
            before, place, tail = "", Place(0, 0, ""), b""
        name = before
        if place.head_bytes < min(HEAD_BYTES, len(head)):
            name, head_bytes = self.name_of(head)
            place = place._replace(head_bytes=head_bytes)
        if alike and not before and (name in known or (not ended and files.is_copy(path))):
            return  # it is not all there yet, or it was left behind
        self.paths[name] = path
        yield from self.go_to(file, place.offset)
        yield from self.take_lines(file, ended, (name, before), place, tail)

    def take_lines(
        self, file: Any, ended: bool, names: tuple[str, str], place: Place, tail: bytes
    ) -> Iterator[None]:
        """Take the lines from here on in batches: of few lines, as each becomes many objects, and
        of few bytes.

        `names` are those by which the file is known from now on, and was before.
        """
        recorder, untold = self.recorder, 0

        def take(lines: Sequence[bytes], newline: bytes = b"\n") -> None:
            nonlocal place, tail, untold
            offset, places = place.offset, []
            for line in lines:
                places.append((line, None, offset))
                offset += len(line) + len(newline)
            recorder.feed("file", places)
            untold += offset - place.offset
            last = newline.join([*lines[-HEAD_BYTES:], b""])
            tail = (tail + last)[-HEAD_BYTES:] if newline else (tail + lines[0])[-HEAD_BYTES:]
            place = place._replace(offset=offset)
            self.position = offset

        def commit() -> None:
            nonlocal place, untold
            place, untold = place._replace(tail=self.hashed(tail, b"tail")), 0
            recorder.commit(functools.partial(recorder.store.save_file, names[0], place, names[1]))
            self.known.pop(names[1], None)
            self.known[names[0]] = place

        rest = b""
        try:
            while not ended or place.offset < FILE_BYTES:
                data = file.read1(READ_BYTES)  # no more than there is: a damaged file may end soon
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                for begin in range(0, len(lines), BATCH_ROWS):
                    take(lines[begin : begin + BATCH_ROWS])
                    if len(recorder.rows) >= BATCH_ROWS or untold >= BATCH_BYTES:
                        commit()
                        yield
                if len(rest) > 16 * MIB:
                    raise EOFError("a line is longer than 16 MiB")
                yield
            if rest and ended:
                take([rest], b"")
            is_long = ended and place.offset >= FILE_BYTES
            reason = f"only the first {FILE_BYTES // MIB} MiB are read" if is_long else ""
            recorder.monitor.pass_over(self.paths[names[0]], reason)
        except (EOFError, gzip.BadGzipFile, zlib.error):
            if untold:
                commit()  # what could be unpacked
            raise
        if untold:
            commit()


class Progress:
    """How far the reading of log files has come, of which `sizes` are the bytes."""

    def __init__(self, names: Sequence[str], sizes: Mapping[str, int]) -> None:
        self.sizes = sizes
        self.total = sum(sizes[name] for name in names)
        self.done = 0  # bytes of the files that are read

    def reading(self, reader: LogFileReader, name: str) -> Reading | None:
        """What is being read; None at the end. Of a compressed file nobody can tell how much is
        left.
        """
        part = 0 if name.endswith(".gz") else min(reader.position, self.sizes[name])
        if self.done + part >= self.total:
            return None
        return Reading(reader.recorder.newest_at, (self.done + part) / self.total)

    def end(self, name: str) -> None:
        self.done += self.sizes[name]


def import_history(monitor: Monitor, engine: DockerEngine, seam: int) -> Iterator[None]:
    """Read the container's log files, step by step; then bind id-less lines across the `seam`
    (ms).
    """
    beside = monitor.store.path.parent
    files = ContainerFiles(engine, monitor.config.container_name, LOGS_PATH, beside)
    sizes = yield from files.fetch_sizes()
    names = choose_log_files(sizes)
    progress = Progress(names, sizes)
    recorder = Recorder(monitor, FILES, live=False)
    reader, was_cut = LogFileReader(recorder, files), recorder.cursor.get("unbound")
    recorder.cursor["unbound"] = (
        True  # committed with the first entries; a process may end before the last line here
    )
    for name in names:
        for _ in reader.read(name):
            if monitor.is_new:
                monitor.reading = progress.reading(reader, name) or monitor.reading
            yield
        progress.end(name)
    if was_cut or (recorder.first_at is not None and recorder.first_at < seam + UNKNOWN_MS):
        bind_again(monitor, seam, recorder.tracker.attribution.unknown_until)
    if was_cut or recorder.first_at is not None:
        recorder.cursor.clear()
        recorder.commit()
    if names:
        log.info("ingest: %d log files of the node are read", len(names))
        if recorder.zone.named is None:
            log.info("ingest: %s", recorder.zone.words())
        monitor.ring.add([("reset", None)])  # the past that was read is not told line by line


def bind_again(monitor: Monitor, seam: int, unknown_until: int) -> None:
    """Attribute the loose lines after `seam` (ms), where the engine's log begins, now that what
    came before it is known. Only adds to what is known: nothing uncertain was taken for certain.
    Where the files tell nothing of what the engine told, lines between them may be missing.

    Before `unknown_until` (ms) not even the files tell of all tasks.
    """
    store, since, until = monitor.store, seam - UNKNOWN_MS, seam + 2 * UNKNOWN_MS
    tracker = Tracker(store, monitor.redactor, monitor.config.max_output_data_bytes, {})
    attribution = tracker.attribution
    attribution.unknown_until = unknown_until
    for row in store.get("tasks_between", since - DAY_MS - UNKNOWN_MS, since):
        task = Task(*row)
        if (task.deadline or 0) + HOUR_MS >= since and (task.completed_at or since) >= since:
            attribution.receive(task.execution_id, task.deadline or 0)
    joined = store.first("told_by_both", key_of(seam // 1000 - ZONE_S)) is not None
    facts = []
    for row in store.facts_between(since, until):
        kind = LOG_TYPES[row["type"]]
        second = int.from_bytes(row["key"][:4], "big")
        facts.append((second, ORDER_IN_SECOND.get(kind, 1), kind, row))
    # The sources count within a second each for itself, so that their order there is not known.
    for _, _, kind, row in sorted(facts, key=lambda fact: fact[:2]):
        words = row["message"].replace("wallet::", "wallet:")
        event = read_event(kind, row["message"], words, str)
        if event is None:
            continue
        if not joined and row["at"] >= seam:
            tracker.note_gap(seam)
            joined = True
        if kind not in ORDER_IN_SECOND:
            event = event._replace(execution_id=row["execution_id"] or event.execution_id)
        if PSEUDONYM.search(row["message"]):  # no task's words any more
            event.fields.pop("output", None)
            event.fields.pop("input", None)
        owner = tracker.see(event, row["at"], "any", row["key"])
        if owner is not None and not row["execution_id"]:
            tracker.bound[row["key"]] = owner
    attribution.waiting.clear()
    with store.write() as db:
        tracker.save(db)


PSEUDONYM = re.compile("wallet:(?!:)")
# In which order lines of one second are taken: who may have written a line is then never too few.
ORDER_IN_SECOND = {"task_received": 0, "task_completed": 2, "task_failed": 2}


def read_records(file: Any) -> Iterator[object]:
    """Yield the records of an event database one by one; raise ValueError unless it is whole, and
    PassedOver at one that is too large.

    The file may be read in the middle of a write. A record too deep or too wide to parse is passed
    over.
    """
    decode = codecs.getincrementaldecoder("utf-8")("replace").decode
    text, step = decode(file.read(64 * KIB)), 64 * KIB
    begin = re.match(r'\ufeff?\s*(?:\{\s*"records"\s*:\s*)?\[', text)
    if begin is None:
        raise ValueError("it does not begin with a list of records")
    at = begin.end()
    while True:
        while text[at : at + 1] in (" ", "\t", "\r", "\n", ","):
            at += 1
        if text[at : at + 1] == "]":
            return
        is_wide = step > 64 * KIB and text.count(",", at) > RECORD_VALUES
        record, end = (None, skip_record(text, at)) if is_wide else read_record(text, at)
        if 0 < end < len(text):
            yield record
            at, step = end, 64 * KIB
            continue
        more = file.read(step)
        if not more:
            raise ValueError("it ends within a record")
        if max(len(text) - at, sys.getsizeof(text) // 2) > RECORD_BYTES:
            raise PassedOver(f"one of its records has more than {RECORD_BYTES // MIB} MiB")
        text, at, step = text[at:] + decode(more), 0, min(2 * step, 4 * MIB)


def read_record(text: str, at: int) -> tuple[object, int]:
    """The value at `at` and where it ends; end 0 if it is not all there."""
    try:
        return read_json(text, at)
    except ValueError:  # not all there, too deep, or no number Python reads: one of 5000 digits
        return None, skip_record(text, at)


def skip_record(text: str, at: int) -> int:
    """Where the value at `at` ends, by its brackets; 0 if it is not all there."""
    depth = 0
    for found in BRACKETS.finditer(text, at):
        depth += 1 if found[0] in "{[" else -1 if found[0] in "}]" else 0
        if depth == 0 and found[0] in "}]":
            return found.end()
    return 0


class EventDbPoll:
    """Reads the event database when it has changed, a little at each step, every record once in a
    process's life.
    """

    EVERY_S, RETRY_S, STEP_S = 5.0, 0.5, 0.02
    RECORDS, WAITING = 200_000, 10_000  # whose names, or what they tell, are held at most

    def __init__(self, monitor: Monitor, files: ContainerFiles | LocalFiles) -> None:
        self.monitor, self.files = monitor, files
        self.names: list[str] = []
        self.read_at: object = None  # the signature at which all was read
        self.seen: set[int] = set()
        self.next_s, self.retry_s = 0.0, self.RETRY_S
        self.work: Generator[None, None, None] | None = None  # what is being read
        self.recorder: Recorder | None = None  # of that

    def step(self, recorder: Recorder) -> bool:
        """Look, if it is time to, or go on with what was begun; True while there is more to do.
        The records' facts are committed with the recorder's.
        """
        if recorder is not self.recorder:  # what was begun went into one that is gone
            self.recorder, self.work = recorder, None
        if self.work is None and time.monotonic() < self.next_s:
            return False
        self.work = self.work or self.look(recorder)
        try:
            next(self.work)
        except BaseException as error:
            self.work = None
            if not isinstance(error, StopIteration):
                raise
        return self.work is not None

    def look(self, recorder: Recorder) -> Generator[None, None, None]:
        """Read the event database if it has changed."""
        self.next_s = time.monotonic() + self.EVERY_S
        signature = self.files.signature(self.names)
        if self.monitor.outbox is not None:
            self.monitor.outbox.event_db = signature is not None
        if signature in (None, self.read_at):
            return
        after = before = None
        try:
            found = yield from self.files.names()
            self.names = [name for name in found if name.endswith(EVENT_DB_NAME)]
            before = self.files.signature(self.names)
            for name in self.names:
                yield from self.read(name, recorder)
            after = self.files.signature(self.names)
        except (ValueError, OSError, tarfile.TarError, DockerError) as error:
            log.debug("ingest: the event database is being written: %s", error)
        recorder.commit()
        if after is not None and after == before:
            self.read_at, self.retry_s = after, self.RETRY_S
        else:
            self.next_s = time.monotonic() + self.retry_s
            self.retry_s = min(60.0, 2 * self.retry_s)

    def read(self, name: str, recorder: Recorder) -> Generator[None, None, None]:
        """Take all new records of a file; at its end those again whose task was not known yet."""
        fresh: set[int] = set()
        try:
            with (yield from self.files.open(name)) as file:
                waiting = yield from self.take_new(file, recorder, fresh)
                if len(waiting) == self.WAITING:  # too many to be held: look for them once more
                    file.seek(0)
                    waiting = yield from self.take_new(file, recorder, set())
        except PassedOver as refusal:
            self.monitor.pass_over(name, str(refusal))
            return
        for event in waiting:
            recorder.tracker.see_record(event)
            if len(recorder.tracker.invoices) >= BATCH_EVENTS:
                recorder.commit()
                yield
        self.seen |= fresh
        self.monitor.pass_over(name, "")

    def take_new(
        self, file: Any, recorder: Recorder, fresh: set[int]
    ) -> Generator[None, None, deque[Event]]:
        """Take records that were not seen before, and add their names to `fresh`; returns the last
        ones whose task is not known yet.
        """
        waiting: deque[Event] = deque(maxlen=self.WAITING)
        taken, until = 0, time.monotonic() + self.STEP_S
        record: Any
        for record in read_records(file):
            if time.monotonic() >= until:
                yield
                until = time.monotonic() + self.STEP_S
            try:
                content = marshal.dumps(record, 2)  # 2: without references, so always the same
            except ValueError:  # just shallow enough to be read
                continue
            if (record_name := hash(content)) in self.seen:
                continue
            event = record_event(record, self.monitor.redactor.clean)
            if event is None:
                continue
            if len(self.seen) + len(fresh) < self.RECORDS:
                fresh.add(record_name)
            if not recorder.tracker.see_record(event):
                waiting.append(event)
            taken += len(content)
            changes = len(recorder.tracker.tasks) + len(recorder.tracker.invoices)
            if changes >= BATCH_EVENTS or taken >= BATCH_BYTES:
                recorder.commit()
                taken = 0
        return waiting


JSON_BYTES = 80  # that the engine's log file holds around a line
WRITTEN_IN_MS = 50_000  # bytes; more than an engine writes
LATE_MS = 250  # a line comes after its stamp where it is read as fast as it is written
RECENT_LINES = 20_000  # are known if they come again on a connection


class EngineFeed:
    """Feeds one connection's lines to the engine's recorder and knows those read before again.

    A line is known by (stream, engine's stamp, checksum, how many times); those near the cursor are
    kept in the store, in the transaction of their rows.
    """

    def __init__(self, monitor: Monitor, container: Container) -> None:
        self.monitor, self.container = monitor, container
        store = monitor.store
        settle_stamps(store)
        cursor = json.loads(store.first("state", "engine") or "{}").get("cursor", {})
        self.known: Counter[str] = Counter()
        self.newest = b""  # the engine's newest stamp, fixed width: byte order is time order
        self.since_s: int | None = None
        fresh = cursor.get("container") not in (None, container.id) and store.first(
            "was_followed", container.id
        )
        was_read = bool(cursor.get("newest") or cursor.get("first_at"))
        if cursor.get("container") == container.id and was_read:
            self.newest = cursor["newest"].encode()
            second = parse_second(cursor["newest"][:19])  # none of a stamp that cannot be read
            fresh = (
                cursor.get("again") or second is None or second > monitor.now() // 1000 + 1
            )  # a clock went back
            self.since_s = None if fresh or second is None else second - OVERLAP_S
            self.known.update(
                line
                for row in store.get("overlap")
                if not fresh
                for line in row["lines"].split("\n")
            )
        if self.since_s is None:
            self.newest = b""
        self.behind = False  # the engine's clock was set back and has not come where it was
        self.expected = bool(self.known)  # until one of them has come again
        self.known_until = second_text((self.since_s or 0) + 60).replace(" ", "T").encode()
        self.recorder = Recorder(monitor, ENGINE, bool(fresh), live=was_read and not fresh)
        self.recorder.created_at = container.created
        self.began = (utc(monitor.started_at or monitor.now()) or "")[
            :-1
        ].encode()  # as the engine's stamps begin
        self.recorder.cursor = {**cursor, "container": container.id, "newest": self.newest.decode()}
        if (
            was_read and cursor["container"] != container.id and not fresh
        ):  # its words do not go on here
            self.recorder.assemblers.clear()
            gap = parse_time(cursor["newest"]), container.created, "the container was replaced"
            self.recorder.commit(
                lambda db: store.put(db, "gap", [gap])
            )  # with the cursor, so that it is told once
            monitor.ring.add([("gap", None)])
        self.frames = FrameReader(container.tty)
        self.fresh_lines: list[
            tuple[bytes, int, bytes]
        ] = []  # (stamp, stream, line) since the last commit
        self.second_text, self.second_ms = b"", 0
        started = container.started_at
        self.start = (
            started if started is not None and started != cursor.get("started_at") else None
        )
        self.dirty = False
        self.last = b""  # the stamp that came last
        self.recent: dict[int, None] = {}  # hashes of lines, oldest first
        self.last_ms = self.opened_ms = self.taken_ms = monitor.now()
        self.leap: tuple[int, int] | None = (
            None  # from the first to the last pause in which a file fits (ms)
        )
        self.rush, self.rush_before, self.weigh_at = (
            0,
            0,
            time.monotonic() + 1,
        )  # bytes in this second and the last

    def take_lines(self, lines: Sequence[tuple[int, bytes, bytes]]) -> None:
        if (
            not (self.recorder.live or self.recorder.rereads)
            and lines
            and lines[0][1] >= self.began
        ):
            self.go_live()
        self.taken_ms = self.monitor.now()
        for stream, group in self.runs(lines):
            self.recorder.feed(str(stream), group)
        self.dirty = self.dirty or bool(lines)

    def runs(
        self, lines: Sequence[tuple[int, bytes, bytes]]
    ) -> Iterator[tuple[int, list[tuple[bytes, int | None, bytes]]]]:
        """Group new lines by runs of one stream, so that both streams stay in the order of
        arrival.
        """
        run: list[tuple[bytes, int | None, bytes]] = []
        current = 0
        for stream, stamp, body in lines:
            self.last = stamp
            if self.known and self.is_known(stream, stamp, body):
                continue
            engine_ms = self.read_stamp(stamp)
            if self.container.file_bytes and self.came_twice(stream, stamp, body, engine_ms or 0):
                continue
            self.fresh_lines.append((stamp, stream, body))
            if stamp > self.newest:
                self.newest, self.behind = stamp, False
            elif not self.behind and engine_ms is not None:
                self.behind = (
                    parse_time(self.newest.decode("ascii", "replace")) or 0
                ) - engine_ms > OVERLAP_S * 1000
            begins = self.start if (engine_ms or 0) >= (self.start or END_MS) else None
            if stream != current or begins:
                if run:
                    yield current, run
                current, run = stream, []
                if begins:
                    self.note_start(begins, engine_ms or begins)
            run.append((body, engine_ms, stamp))
        if run:
            yield current, run

    def is_known(self, stream: int, stamp: bytes, body: bytes) -> bool:
        """True for a line that was stored before the connection was made."""
        name = line_name(stream, stamp, body)
        if self.known[name] > 0:
            self.known[name] -= 1
            self.expected = False
            return True
        if self.expected and stamp > self.newest:
            self.note_gap(stamp)
        if stamp > self.known_until:
            self.known.clear()
        return False

    def read_stamp(self, stamp: bytes) -> int | None:
        """The engine's stamp in ms; None where it gave none that can be read."""
        if stamp[:19] != self.second_text:
            self.second_text = stamp[:19]
            self.second_ms = (parse_second(stamp[:19].decode("ascii", "replace")) or 0) * 1000
        return self.second_ms + int(stamp[20:23]) if self.second_ms else None

    def note_gap(self, first: bytes, reason: str = "the engine had dropped older lines") -> None:
        """None of the lines before the cursor came again: the engine has dropped them, or cannot
        read them, and maybe more.
        """
        self.expected = False
        since, until = (
            parse_time(self.newest.decode()),
            parse_time(first.decode("ascii", "replace")),
        )
        log.warning("ingest: %s: lines may be missing since %s", reason, utc(since))
        self.monitor.note_gap(since, until, reason)
        for assembler in self.recorder.assemblers.values():
            assembler.open = None  # what comes now does not go on with what came before
        self.recorder.tracker.note_gap(until or self.monitor.now())

    def came_twice(self, stream: int, stamp: bytes, body: bytes, engine_ms: int) -> bool:
        """True for a line that came on this connection already: an engine may send it again when it
        rotates its log.
        """
        name = hash((stream, stamp, body))
        if stamp <= self.newest and name in self.recent:
            return True
        self.recent[name] = None
        self.rush += (
            len(body) + JSON_BYTES if engine_ms >= self.opened_ms else 0
        )  # the past comes fast
        pause_ms = engine_ms - self.last_ms
        is_late = self.taken_ms - engine_ms > LATE_MS  # the engine may have to leave a file unread
        if pause_ms >= 2 + (0 if is_late else self.container.file_bytes // WRITTEN_IN_MS):
            self.leap = self.leap[0] if self.leap else self.last_ms, engine_ms
        self.last_ms = max(self.last_ms, engine_ms)
        return False

    def weigh(self, ended: bool = False) -> None:
        """Once a second: an engine that rotates faster than it is read passes over whole files, and
        says nothing.

        Then much came at once, with a pause between the lines of two files that one could be
        written in.
        """
        if time.monotonic() < self.weigh_at and not ended:
            return
        rush, leap = self.rush + self.rush_before, self.leap
        self.rush, self.rush_before, self.leap, self.weigh_at = (
            0,
            self.rush,
            None,
            time.monotonic() + 1,
        )
        if leap and max(self.container.file_bytes, 2 * MIB) <= 8 * rush:
            self.monitor.note_gap(*leap, "the log was rotated faster than it could be read")
            self.recorder.tracker.note_gap(leap[1])
        if len(self.recent) > RECENT_LINES:
            self.recent = dict.fromkeys(
                itertools.islice(self.recent, len(self.recent) - RECENT_LINES // 2, None)
            )

    def note_start(self, at: int, line_ms: int) -> None:
        """The container started at `at`; the first line since then came at `line_ms`."""
        self.start = None
        self.recorder.restarted(at, line_ms)
        self.recorder.cursor["started_at"] = at
        with self.monitor.store.write() as db:
            self.monitor.store.put(db, "start", [(at, self.container.id)])

    def commit(self) -> None:
        """Store what was taken, with the cursor and the lines around it."""
        if not self.dirty:
            return
        cursor, recorder = self.recorder.cursor, self.recorder
        unfinished = (stamp for stamp, _ in self.frames.pending.values())
        newest = min((self.newest, *unfinished)).decode("ascii", "replace")
        cursor["newest"] = max(
            newest, cursor["newest"]
        )  # what is read again may be unfinished, and is known
        cursor["first_at"] = cursor.get("first_at") or recorder.first_at
        cursor["again"] = (
            self.behind or recorder.rereads
        )  # `since` would pass over lines, or count them twice
        newest_s = parse_second(cursor["newest"][:19]) or 0
        oldest = second_text(max(0, newest_s - OVERLAP_S - 1)).replace(" ", "T")
        since = oldest.encode()
        names = [
            line_name(stream, stamp, body)
            for stamp, stream, body in self.fresh_lines
            if stamp >= since
        ]
        newest = self.newest.decode("ascii", "replace")
        recorder.commit(lambda db: self.monitor.store.save_overlap(db, newest, names, oldest))
        self.fresh_lines.clear()
        self.dirty = False

    def go_live(self) -> None:
        """The past is read: from here on the live stream tells every entry."""
        if not self.recorder.live:
            self.recorder.live = True
            self.monitor.ring.add([("reset", None)])

    def end_reread(self) -> None:
        """All there is has been read, so that the next connection may go on from the cursor."""
        recorder = self.recorder
        if recorder.rereads:
            recorder.rereads, recorder.floor, self.dirty = False, recorder.newest_second, True

    def caught_up(self) -> None:
        """All there is has been read: a start after the last line took effect too, and time may be
        over for tasks.
        """
        if self.start is not None:
            self.note_start(self.start, self.start)
        self.commit()  # first: what is overdue is asked of the store
        if not self.recorder.rereads:  # a clock that went back has yet to come in it
            self.recorder.lose_overdue()
        self.dirty = bool(self.recorder.tracker.tasks)
        self.commit()


def line_name(stream: int, stamp: bytes, body: bytes) -> str:
    return f"{stamp.decode('ascii', 'replace')} {stream}{zlib.crc32(body):08x}"


def settle_stamps(store: Store) -> None:
    """Write in UTC what an earlier tbmon kept as engines of other zones and forms had stamped it.

    What was learned of the node's zone came from the same stamps, and goes. A stamp that was cut
    (of terminals) leaves no place to go on from: all is read again.
    """
    saved: dict[str, Any] = json.loads(store.first("state", "engine") or "{}")
    old = saved.get("cursor", {}).get("newest", "")
    newest = in_utc(old)
    if newest == old:
        return
    saved["cursor"]["newest"] = newest
    names = [name.rpartition(" ") for row in store.get("overlap") for name in row[0].split("\n")]
    with store.write() as db:
        store.clear_overlap(db)
        lines = [f"{in_utc(stamp)} {line}" for stamp, _, line in names]
        store.save_overlap(db, newest, lines, "")
        store.put(db, "state", [("engine", json.dumps(saved)), ("zone", "null")])


def in_utc(stamp: str) -> str:
    """An engine's stamp in UTC; "" for none."""
    return (utc_stamp(stamp.encode()) or b"").decode()


class Pipe:
    """Carries chunks, mostly of one line, from the reader thread to ingest; holds about BYTES at
    most.
    """

    BYTES = 8 * MIB

    def __init__(self, stream: EngineStream) -> None:
        self.stream = stream
        self.chunks: deque[bytes] = deque()
        self.sent = self.taken = 0  # bytes; the reader counts the one, ingest the other
        self.news = threading.Event()  # set when there is something to take
        self.ended = False  # set by the reader after its last chunk
        self.left = threading.Event()  # set by ingest when it takes no more
        self.error: Exception | None = (
            None  # why the engine gave nothing; what is no DockerError is a bug of ours
        )
        threading.Thread(target=self.pump, name="reader", daemon=True).start()

    def pump(self) -> None:
        """The reader thread: pass on what the engine sends and nothing else, so that it keeps
        up.
        """
        try:
            for chunk in self.stream.chunks():
                while self.sent - self.taken > self.BYTES and not self.left.wait(0.01):
                    pass
                self.sent += len(chunk)
                self.chunks.append(chunk)
                if not self.news.is_set():
                    self.news.set()
        except Exception as error:
            self.error = error
        self.ended = True
        self.news.set()

    def get(self, timeout_s: float) -> bytes | None:
        """What has come, joined; b"" if nothing came in time, None at the end."""
        self.news.wait(timeout_s)
        self.news.clear()
        ended = self.ended  # looked at first: nothing comes after it
        some: list[bytes] = []
        size = 0
        while self.chunks and len(some) < BATCH_ROWS and size < BATCH_BYTES:
            some.append(self.chunks.popleft())
            size += len(some[-1])
        joined = b"".join(some)
        self.taken += size
        if ended or self.chunks:
            self.news.set()
        return None if ended and not joined else joined

    def close(self) -> None:
        self.left.set()
        self.stream.close()


DAMAGED = "the engine's log is damaged"
MENDED_S = 600  # between two looks whether the damaged place has gone, as it does by rotation


class Behind:
    """Reads a log whose engine stops at a damaged place, again and again from the log's end."""

    def __init__(self, engine: DockerEngine, feed: EngineFeed) -> None:
        self.engine, self.feed = engine, feed
        self.last: Line | None = None  # that was taken

    def reaches(self, lines: list[Line]) -> bool:
        """True if what is before these lines is known: there is no gap."""
        if self.last is not None:
            return self.last in lines
        return min(stamp for _, stamp, _ in lines) <= self.feed.newest

    def step(self) -> None:
        """Take what is new."""
        feed = self.feed
        lines = read_back(self.engine, feed.container, self.reaches)
        if not lines or lines[-1] == self.last:
            return
        taken, reached = lines, self.reaches(lines)
        if reached and self.last is not None:
            taken = lines[len(lines) - lines[::-1].index(self.last) :]
        elif feed.newest:  # of what is older than this the store knows no lines any more
            begin = second_text(feed.since_s or 0).replace(" ", "T").encode()
            taken = [line for line in lines if line[1] >= begin]
        if not reached and taken:
            feed.note_gap(taken[0][1], DAMAGED)
        feed.take_lines(taken)
        feed.commit()
        self.last = lines[-1]


class Follower:
    """Follows one container's log over any number of connections, restarts and re-creations."""

    SILENCE_S = 20.0  # after this long without a byte the connection is checked

    def __init__(self, monitor: Monitor, engine: DockerEngine) -> None:
        self.monitor, self.engine = monitor, engine
        self.name = monitor.config.container_name
        beside = monitor.store.path.parent
        self.events = EventDbPoll(monitor, ContainerFiles(engine, self.name, EVENT_DB_PATH, beside))
        self.drained: tuple[str, int | None] | None = (
            None  # a stopped container whose log was read to its end
        )
        self.imported: str | None = None  # the container whose files were read
        self.history: Iterator[None] | None = None
        self.is_suspect = False  # the engine has lines that it does not bring
        self.patience_s = (
            self.SILENCE_S
        )  # more after a connection that brought nothing: a long log takes long

    def step(self) -> None:
        """Make one connection and follow it to its end; returns at once if there is nothing to
        follow.
        """
        monitor = self.monitor
        container = monitor.container = self.engine.inspect(self.name)
        if container is None or (
            not container.running and self.drained == (container.id, container.started_at)
        ):
            monitor.problem = None
            return
        feed = EngineFeed(monitor, container)
        pipe = Pipe(self.engine.logs(self.name, feed.since_s, follow=True))
        try:
            monitor.container = self.engine.inspect(self.name)
            ended = self.follow(feed, pipe)
        except LogError:
            if not self.has_more(feed):
                raise
            ended, self.is_suspect = False, True
        finally:
            pipe.close()
            monitor.lag_ms = 0
            feed.weigh(ended=True)
        if ended:
            self.finish(feed)
        if self.is_suspect:
            self.is_suspect = False
            self.look_behind(container)

    def look_behind(self, container: Container) -> None:
        """The engine has lines that it did not bring: follow them behind the damaged place in its
        log, if there is one.
        """
        feed = EngineFeed(self.monitor, container)
        if not self.ends_early(feed):
            return
        log.warning("ingest: %s: what can be read of it is read from its end", DAMAGED)
        feed.frames = FrameReader(container.tty)  # nothing goes on where the engine stopped
        behind, look_at = Behind(self.engine, feed), time.monotonic() + MENDED_S
        behind.step()
        self.begin_import(feed)
        is_mended = False
        while self.is_on(feed) and not is_mended:
            if time.monotonic() > look_at:
                look_at = time.monotonic() + MENDED_S
                with contextlib.suppress(DockerError):  # it may take the engine too long to tell
                    is_mended = not is_cut(self.engine, container)
            behind.step()  # also when the place is in an older file: what stands behind it there
            feed.weigh()
            self.between(feed)
            self.monitor.stop.wait(0 if self.history else 1)

    def is_on(self, feed: EngineFeed) -> bool:
        """True while the feed's container runs and tbmon too."""
        self.monitor.beat("ingest")
        now = self.monitor.container
        is_running = now is not None and now.running and not self.was_replaced(feed.container)
        return is_running and not self.monitor.stop.is_set()

    def ends_early(self, feed: EngineFeed) -> bool:
        """Read all that the engine brings without following: does it end before the log's last
        line?
        """
        last = newest_stamp(read_tail(self.engine, feed.container, 1))
        stream = self.engine.logs(self.name, feed.since_s, follow=False, wait_s=SILENT_S)
        pipe, found = Pipe(stream), not last
        try:
            while self.is_on(feed) and (chunk := pipe.get(1.0)) is not None:
                lines = feed.frames.feed(chunk)
                found = found or any(stamp == last for _, stamp, _ in lines)
                feed.take_lines(lines)
                if len(feed.recorder.rows) >= BATCH_ROWS:
                    feed.commit()
            feed.frames.feed(b"")
        except LogError as error:
            log.debug("ingest: %s", error)
        finally:
            pipe.close()
        if pipe.error is not None:
            raise pipe.error
        feed.commit()
        return not found and self.is_on(feed)

    def follow(self, feed: EngineFeed, pipe: Pipe) -> bool:
        """Take what comes until the connection ends (True), or tbmon stops or mistrusts it
        (False).
        """
        heard = opened = time.monotonic()
        caught_up = has_begun = False
        untold = 0  # bytes taken since the last commit
        while not self.monitor.stop.is_set() and not self.was_replaced(feed.container):
            self.monitor.beat("ingest")
            if self.monitor.store.is_full:
                self.monitor.store.hold_ballast()
            feed.weigh()
            chunk = pipe.get(0 if self.history or self.events.work else 1.0)
            if chunk is None and pipe.error is not None:
                raise pipe.error
            if chunk is None:
                feed.frames.feed(b"")  # raises if the engine's last words were no log
                return True
            if chunk:
                heard, has_begun, self.patience_s = time.monotonic(), True, self.SILENCE_S
                feed.take_lines(feed.frames.feed(chunk))
                untold += len(chunk)
                is_much = len(feed.recorder.rows) >= BATCH_ROWS or untold >= BATCH_BYTES
                if is_much or not pipe.chunks:
                    feed.commit()
                    untold = 0
                behind = bool(pipe.chunks) and feed.second_ms
                self.monitor.lag_ms = max(0, self.monitor.now() - feed.second_ms) if behind else 0
            if not chunk or not pipe.chunks:
                is_near = not chunk or feed.second_ms > self.monitor.now() - 5000
                if feed.recorder.rereads:  # stamps tell nothing then
                    is_near = time.monotonic() - heard > 2 or time.monotonic() - opened > 120
                if is_near and not caught_up:
                    if caught_up := has_begun or not self.has_more(feed):
                        self.begin_import(feed)
                    else:
                        self.monitor.problem = (
                            "waiting for the engine, which looks for the place in its log"
                        )
                if caught_up:
                    self.between(feed)
            if time.monotonic() - heard > self.patience_s and not self.engine.copies:
                if self.has_more(feed):
                    log.warning("ingest: the log connection had gone silent; connecting again")
                    self.patience_s = (
                        self.SILENCE_S if has_begun else min(2 * self.patience_s, SILENT_S)
                    )
                    self.is_suspect = True
                    return False
                heard = time.monotonic()
        return False

    def was_replaced(self, container: Container) -> bool:
        """True if the container was started again since the connection was made, or another has its
        name.
        """
        now = self.monitor.container
        return now is not None and (now.id, now.started_at) != (container.id, container.started_at)

    def begin_import(self, feed: EngineFeed) -> None:
        """Once for each container, when its log is read to the end: its files may go further
        back.
        """
        if self.imported != feed.container.id and self.monitor.is_new:
            self.monitor.reading = Reading()  # before there could be a verdict without the history
        self.monitor.lag_ms, self.monitor.problem = 0, None
        feed.go_live()
        feed.end_reread()
        if self.imported != feed.container.id:
            self.imported = feed.container.id
            seam = feed.recorder.cursor.get("first_at") or self.monitor.now()
            feed.recorder.tracker.knows_others = True
            self.history = import_history(self.monitor, self.engine, seam)

    def between(self, feed: EngineFeed) -> None:
        """What is done while the log is quiet: the event database, the files, tasks whose time is
        over.
        """
        feed.caught_up()
        if self.events.work is not None or not self.engine.copies:
            self.events.step(feed.recorder)
        if self.history is not None and self.events.work is None:
            try:
                if next(self.history, self) is self:
                    self.history = self.monitor.reading = None
                    self.monitor.is_new = False
                    self.monitor.missed = True
            except DockerError as error:
                log.warning(
                    "ingest: the log files could not be read: %s; the next connection tries again",
                    error,
                )
                self.history = self.imported = self.monitor.reading = None

    def has_more(self, feed: EngineFeed) -> bool:
        """Ask for the log's last line on another connection: has it something that this one did not
        bring?
        """
        lines = read_tail(self.engine, feed.container, 1, finish=True)
        return any(
            stamp > feed.newest or (feed.behind and stamp != feed.last) for _, stamp, _ in lines
        )

    def finish(self, feed: EngineFeed) -> None:
        """The connection ended: if the container did too, what is left of its last line is a line.

        An engine may end the connection before its last words: an ended container is read once
        more.
        """
        container = self.monitor.container = self.engine.inspect(self.name)
        still_there = container is not None and container.id == feed.container.id
        if container is not None and still_there and (container.running or feed.container.running):
            return
        feed.take_lines(feed.frames.finish())
        feed.caught_up()
        self.events.next_s = 0.0
        if still_there:
            if self.has_more(feed):
                Behind(self.engine, feed).step()
            self.begin_import(feed)
            while (
                self.history
                and not self.monitor.stop.is_set()
                and not self.was_replaced(feed.container)
            ):
                self.monitor.beat("ingest")
                self.between(feed)
            self.drained = feed.container.id, feed.container.started_at
            while self.events.step(feed.recorder) and not self.monitor.stop.is_set():
                self.monitor.beat("ingest")


class DirectoryFollower:
    """Follows the node's files under LOG_DIR by polling; no Docker access exists."""

    EVERY_S = 0.25  # while the event database is read

    def __init__(self, monitor: Monitor) -> None:
        self.monitor = monitor
        self.files = LocalFiles(Path(monitor.config.log_dir))
        self.recorder = Recorder(monitor, FILES, live=False)
        self.reader = LogFileReader(self.recorder, self.files)
        self.stats: dict[
            str, tuple[int, int, int]
        ] = {}  # path: inode, size, mtime when it was read
        self.events = EventDbPoll(monitor, self.files)
        self.due_s = 0.0  # when (monotonic) the log files are looked at again

    def step(self) -> None:
        """Read what is new in all log files, and in the event database."""
        if not os.access(self.files.folder, os.R_OK | os.X_OK):
            words = f"LOG_DIR={self.files.folder} cannot be read"
            self.monitor.problem = self.monitor.redactor.clean(words)
            return
        self.read_files()
        while self.events.step(self.recorder) and not self.monitor.stop.is_set():
            if time.monotonic() >= self.due_s:  # lines do not wait for a large event database
                self.read_files()
        if self.recorder.tracker.tasks:
            self.recorder.commit()
        if not self.recorder.live:  # the past that was read first is not told line by line
            self.recorder.live = self.monitor.missed = True
            self.monitor.is_new = False
            self.monitor.ring.add([("reset", None)])

    def read_files(self) -> None:
        """Read what is new in the log files, oldest file first."""
        sizes = self.files.sizes()
        names = choose_log_files(sizes)
        problem = None
        progress = Progress(names, sizes)
        for name in names:
            try:
                self.read(name, progress)
            except FileNotFoundError:  # rotated away between listing and reading
                continue
            except OSError as error:
                problem = f"a file under LOG_DIR cannot be read: {reason_of(error)}"
            progress.end(name)
        if not names:
            problem = f"none of the node's log files is in LOG_DIR={self.files.folder}"
        self.monitor.reading = None
        self.monitor.problem = problem and self.monitor.redactor.clean(problem)
        self.recorder.lose_overdue()
        self.monitor.beat("ingest")
        self.due_s = time.monotonic() + self.EVERY_S

    def read(self, name: str, progress: Progress) -> None:
        stat = os.stat(name)
        seen = stat.st_ino, stat.st_size, stat.st_mtime_ns
        if self.stats.get(name) == seen:
            return
        for _ in self.reader.read(name):
            self.monitor.beat("ingest")
            if not self.recorder.live and (self.monitor.is_new or self.recorder.newest_at):
                self.monitor.reading = progress.reading(self.reader, name)
            if self.monitor.stop.is_set():
                return
        self.stats[name] = seen


class SimulatedNode:
    """The demo's node: a seeded script of all it ever logs, `DAYS` of past included, and a
    restart.
    """

    DAYS, WALLET, VERSION = 3, "0x" + "7d" * 20, "1.4.2-beta.7"

    def __init__(self, live_at: int, seed: int = 7) -> None:
        self.live_at, self.seed = live_at, seed
        self.begin = live_at - self.DAYS * 86400
        self.restarted_at = self.begin + 2 * 86400 + 5000

    def script(self) -> Iterator[tuple[float, str]]:
        """Every line ever as (second, line), in order and without end."""
        return heapq.merge(self.pulse(), self.work(random.Random(self.seed)))

    def header(self, at: float, message: str, level: str = "info") -> tuple[float, str]:
        return (
            at,
            (
                f"{second_text(int(at))} {level}: "
                f"@truebit/worker-runner-node-{self.WALLET}:{self.VERSION} {message}"
            ),
        )

    def pulse(self) -> Iterator[tuple[float, str]]:
        """The invoice subscriber's sign of life, every two minutes (node-data.md, 2.4)."""
        for at in itertools.count(self.begin, 120):
            done = "processing completed - Released slot (0/4 now active) - All slots available"
            received = "message received - Processing immediately (0/4 slots used)"
            for words in (received, "processing started - Using slot 1/4", done):
                yield self.header(at, f"Semaphore InvoiceSubscriber {words}")

    def samples(self) -> Iterator[tuple[int, bool, float, int]]:
        """A month of minutes as upkeep would have kept them: two outages, and an hour that nobody
        watched.
        """
        for minute in range(30 * 1440, 0, -1):
            at = self.live_at // 60 - minute
            up = not 9600 < minute <= 9641 and not 1437 < minute <= 1440
            if not 15000 < minute <= 15060:
                yield at * MINUTE_MS, up, *(self.use(60 * at) if up else (0.0, 0))

    def use(self, at: float) -> tuple[float, int]:
        """The processor (percent) and memory (bytes) that it takes at a time."""
        wave = (3 + math.sin(at / 5000) + math.sin(at / 1300) + math.sin(at / 331)) / 6
        return 4 + 40 * wave, int((180 + 60 * wave) * MIB)

    def work(self, dice: random.Random) -> Iterator[tuple[float, str]]:
        at = float(self.begin)
        yield self.header(at, "Starting services")
        yield self.header(at + 2, f"Node with address {self.WALLET} registered successfully")
        while True:
            past_s = self.live_at - 600 - at
            at += (
                dice.uniform(15, 45)
                if past_s <= 0
                else min(dice.expovariate(1 / 4000) + 30, past_s)
            )
            if (
                at < self.restarted_at < at + 9000
            ):  # the task in work when the node is restarted will be lost
                yield from itertools.islice(self.one_task(self.restarted_at - 3.0, dice), 20)
                at = self.restarted_at + 1.0
                yield self.header(at, "Starting services")
            for line in self.one_task(at, dice):
                at = line[0]
                yield line

    def one_task(self, at: float, dice: random.Random) -> Iterator[tuple[float, str]]:
        """The lines of one execution, from receipt to invoice."""
        head, middle = f"{dice.getrandbits(32):08x}", f"{dice.getrandbits(16):04x}"
        name = f"{head}-{middle}-4000-8000-{dice.getrandbits(48):012x}"
        task_id = (
            f"{dice.choice(('js', 'rs', 'py', 'js', 'cpp'))}_{dice.choice(('3f', '81', 'c4')) * 32}"
        )
        steps, seconds = (
            dice.choice((2_013_266_000, 28_584_970_692, 740_112)),
            dice.choice((0.2, 1.4, 6.0, 21.0)),
        )
        fate = dice.choices(("completed", "exit", "failed", "penalty"), (86, 6, 4, 4))[0]
        message: dict[str, Any] = {"taskId": task_id, "chainId": "43113", "input": "demo input"}
        message |= {
            "blockNumber": 47_476_800 + int(at) // 2,
            "blockHash": f"0x{dice.getrandbits(256):064x}",
        }
        message |= {
            "limits": {"gas": "60000000000", "memory": "1024"},
            "econParams": {"executionTimeout": 30000},
        }
        payload = {
            "type": "task_created",
            "executionId": name,
            "timestamp": int(at * 1000),
            "message": message,
        }
        first, *others = json.dumps(payload, indent=2).split("\n")
        yield self.header(at, "Message received from task_created: " + first)
        yield from ((at, line) for line in others)
        yield self.header(at + 0.4, f"Task {task_id} downloaded successfully")
        yield self.header(at + 0.6, f"Starting task execution {name}")
        at += 0.6 + seconds
        if fate == "failed":
            yield self.header(at, f"Execution {name} failed: gas limit exceeded", "error")
            return
        yield self.header(at, f"Command execution stdout: {{ executionId: '{name}',")
        yield at, f"  elapsed: '{int(seconds * 1e9)}', wasi: {{ exitCode: {int(fate == 'exit')} }},"
        pages = dice.choice((87, 87, 130, 412))
        yield at, f"  metering: {{ last: {{ steps: {steps} }}, peak: {{ memory: {pages} }} }},"
        yield (
            at,
            (
                f"  execution: {{ prepare: {{ cached: {dice.choice(('true', 'false', 'true'))} }} "
                f"}} }}"
            ),
        )
        yield self.header(at + 0.1, f"Execution {name} completed")
        yield self.header(at + 0.3, "Message published to compute_outcome")
        accounts = (
            ("charge", "0x" + "11" * 20),
            ("penalty" if fate == "penalty" else "pay", self.WALLET),
        )
        use = {"total_steps_computed": steps, "peak_memory_used": pages}
        items = [
            {"operation": operation, "account": account, **use} for operation, account in accounts
        ]
        invoice = {
            "type": "invoice",
            "executionId": name,
            "taskId": task_id,
            "stepGasPrice": 1,
            "lineItem": items,
        }
        invoice["invoiceId"] = str(10**21 + dice.getrandbits(60))
        yield self.header(at + 5, "InvoiceSubscriber received invoice: " + json.dumps(invoice))


def play_demo(monitor: Monitor) -> None:
    """The demo's ingest thread: the simulated node's lines, each at its time, on the way that an
    engine's take.
    """
    node = SimulatedNode(int(monitor.clock()))
    started, created = node.restarted_at * 1000, node.begin * 1000
    name = monitor.config.container_name
    monitor.container = Container(
        "d3" * 32, name, "running", True, started, created, "demo", 0, False, "json-file"
    )
    with monitor.store.write() as db:
        monitor.store.put(db, "sample", node.samples())
    feed = EngineFeed(monitor, monitor.container)
    for at, text in node.script():
        monitor.beat("ingest")
        while at > monitor.clock():
            monitor.beat("ingest")
            feed.caught_up()
            feed.go_live()
            monitor.problem, monitor.stats = None, Stats(*node.use(monitor.clock()), 2048 * MIB)
            if monitor.stop.wait(min(1.0, at - monitor.clock())):
                return
        stamp = f"{second_text(int(at)).replace(' ', 'T')}.{at % 1 * 1e9:09.0f}Z"
        feed.take_lines([(1, stamp.encode(), text.encode())])
        if len(feed.recorder.rows) >= BATCH_ROWS:
            feed.commit()


def ingest(monitor: Monitor) -> None:
    """The ingest thread: follow the node until `stop`; what is not ours to mend is tried again for
    ever.
    """
    delay_s, told = monitor.retry_min_s, ""
    follower: Follower | DirectoryFollower | None = None
    while not monitor.stop.is_set():
        monitor.beat("ingest")
        try:
            if follower is None:
                follower = (
                    Follower(monitor, monitor.engine)
                    if monitor.engine
                    else DirectoryFollower(monitor)
                )
            monitor.store.hold_ballast()
            follower.step()
            delay_s, told = monitor.retry_min_s, ""
        except (
            DockerError,
            OSError,
            sqlite3.OperationalError,
        ) as error:  # the engine, a folder, a full disk
            follower = None  # its state may be ahead of the store: begin from what is committed
            monitor.reading = None
            monitor.problem = monitor.redactor.clean(str(error))
            if monitor.problem != told:
                log.warning("ingest: %s; trying again", error)
            delay_s, told = min(2 * delay_s, RETRY_MAX_S), monitor.problem
        monitor.stop.wait(delay_s * random.uniform(0.5, 1))


def upkeep(monitor: Monitor) -> None:
    """The upkeep thread: container state every 2 s, statistics every 10 s, pruning and the file's
    check.
    """
    check_at = time.monotonic() + 600
    rounds, told, noted = 0, None, 0
    while not monitor.stop.is_set():
        monitor.beat("upkeep")
        if monitor.engine is not None:
            sample_container(monitor, monitor.engine, with_stats=rounds % 5 == 0)
        monitor.store.check_files()
        set_verdict(monitor)
        minute = monitor.now() // MINUTE_MS
        if minute != noted and note_minute(monitor, minute * MINUTE_MS):
            if monitor.missed or minute > noted + 1:
                fill_missed(monitor, minute * MINUTE_MS)
            noted = minute
        seen = monitor.verdict, monitor.container, monitor.container_error, monitor.stats
        if seen != told:
            told = seen
            monitor.ring.add([("node_status", None)])
        if rounds % 30 == 0:
            prune(monitor)
        if time.monotonic() > check_at:
            check_at = time.monotonic() + 86400
            monitor.store.is_sound()
            monitor.store.check_files()
        rounds += 1
        monitor.stop.wait(2)


def sample_container(monitor: Monitor, engine: DockerEngine, with_stats: bool) -> None:
    """Look at the container's state and, if asked, at what it uses. While a file of it is read,
    nothing is answered, and nobody can stop it.
    """
    if engine.is_held():
        return
    begun = monitor.asked_at = time.monotonic()
    is_news = monitor.verdict is None or monitor.verdict.state not in ("down", "blind")
    try:
        monitor.container = engine.inspect(monitor.config.container_name)
        monitor.container_error = None
        if monitor.container is not None:
            monitor.candidates = ()
        elif with_stats or is_news:
            monitor.candidates = tuple(map(monitor.redactor.clean, engine.candidates()))
    except DockerError as error:
        if not engine.is_held(begun):
            monitor.container_error, monitor.stats = str(error), None
    else:
        running = monitor.container is not None and monitor.container.running
        if with_stats or not running:
            try:
                monitor.stats = engine.stats(monitor.config.container_name) if running else None
            except DockerError:  # the node is seen all the same
                monitor.stats = None
    finally:
        monitor.asked_at = math.inf


def note_minute(monitor: Monitor, at: int) -> bool:
    """Keep whether the node is up at this minute, and what it uses; False where tbmon cannot see
    it.
    """
    verdict, stats, store = monitor.verdict, monitor.stats, monitor.store
    if verdict is None or verdict.as_of is not None or verdict.state == "blind":
        return False
    is_out = verdict.state == "down" or verdict.cause == "silent"
    row = (at, not is_out, stats and stats.cpu, stats and stats.memory_bytes)
    with (
        contextlib.suppress(sqlite3.OperationalError),
        store.write() as db,
    ):  # a full disk: ingest says so
        store.put(db, "sample", [row])
        store.put(db, "old_samples", [(monitor.oldest(SAMPLE_MS),)])
        keep_verdict(monitor, db)
        if not monitor.doubts:
            store.put(
                db, "set_back", [(at + BELIEF_MS,)]
            )  # or what is newer were taken for older for a year
    since = verdict.since if is_out else None
    if since is not None and since != monitor.outage_since and not monitor.doubts:
        note_outage(monitor, since, at)
    monitor.outage_since = since
    return True


def note_outage(monitor: Monitor, since: int, until: int) -> None:
    """Count the minutes of an outage from its beginning on: silence shows late, and tbmon may have
    missed the end.
    """
    first = -(-max(since, monitor.oldest(SAMPLE_MS)) // MINUTE_MS) * MINUTE_MS
    minutes = [(at, False) for at in range(first, until, MINUTE_MS)]
    put_minutes(monitor, minutes)
    with contextlib.suppress(sqlite3.OperationalError), monitor.store.write() as db:
        monitor.store.put(db, "outage", [(first, until)])


def put_minutes(monitor: Monitor, minutes: Sequence[tuple[int, bool]]) -> None:
    """Add minutes that nobody watched, a few at a time, so that ingest does not wait."""
    for begin in range(0, len(minutes), BATCH_ROWS):
        with contextlib.suppress(sqlite3.OperationalError), monitor.store.write() as db:
            monitor.store.put(db, "missed_minutes", minutes[begin : begin + BATCH_ROWS])
        monitor.beat("upkeep")


def fill_missed(monitor: Monitor, until: int) -> None:
    """Minutes that tbmon missed: up where the log has lines at most SILENCE_MS apart, else
    unknown.
    """
    store = monitor.store
    monitor.missed = False
    for row in store.get("missed", monitor.oldest(SAMPLE_MS) // MINUTE_MS * MINUTE_MS, until):
        for since in range(row["since"], row["until"], DAY_MS):
            monitor.beat("upkeep")
            if monitor.stop.is_set():
                return
            end = min(since + DAY_MS, row["until"])
            lively = store.lively_minutes(since - SILENCE_MS, end + SILENCE_MS)
            known = {
                minute * MINUTE_MS
                for before, after in itertools.pairwise(lively)
                if after - before <= SILENCE_MS // MINUTE_MS
                for minute in range(before, after + 1)
            } | {minute * MINUTE_MS for minute in lively}
            put_minutes(monitor, [(at, True) for at in sorted(known) if since <= at < end])


PRUNED = {  # by what went for its size and not for its age: words, and what to do
    "log": (
        "the oldest log entries go before LOG_RETENTION_DAYS, as the database is at MAX_DB_BYTES",
        "Raise MAX_DB_BYTES, or lower LOG_RETENTION_DAYS.",
    ),
    "data": (
        "the oldest inputs and outputs of tasks go before TASK_DATA_RETENTION_DAYS, as they are at "
        "half of MAX_DB_BYTES",
        "Raise MAX_DB_BYTES, or lower MAX_OUTPUT_DATA_BYTES.",
    ),
}


def prune(monitor: Monitor) -> None:
    """Delete what is too old or too much, in slices, so that nobody waits long."""
    with contextlib.suppress(sqlite3.OperationalError):  # a full disk: ingest says so
        monitor.settle()
        with monitor.store.write() as db:
            monitor.store.put(db, "state", [("clock", monitor.settled_at)])
        before = monitor.oldest(monitor.config.log_retention_days * DAY_MS)
        data_ms = monitor.config.task_data_retention_days * DAY_MS
        other = Upkeep(monitor.oldest(SENT_MS), monitor.oldest(data_ms), monitor.now())
        earlier, most = pruned_at(monitor.store.first), monitor.config.max_db_bytes
        while not monitor.stop.is_set() and monitor.store.prune(before, most, other):
            monitor.beat("upkeep")
            monitor.stop.wait(0.005)
        for name, at in pruned_at(monitor.store.first).items():
            if at - earlier.get(name, 0) > DAY_MS:
                log.warning("store: %s. %s", *PRUNED[name])


def follow_runs(before: Runs, container: Container, now: int) -> Runs:
    """What a look at the container adds to its runs. Restarts between two looks are told by the
    engine's count alone.
    """
    is_same = container.id == before.container_id

    def moment(engine_ms: int | None) -> int:  # the engine's clock may differ from ours
        return min(now, max(engine_ms or 0, before.looked_at if is_same else 0))

    counted = before.restart_count if is_same else 0
    counted_at = before.looked_at if is_same else container.created or 0
    is_recent = 0 <= now - counted_at <= LOOP_MS  # else nobody knows when they were
    unseen = max(0, container.restart_count - counted - 1) if is_recent else 0
    has_ended = container.finished_at not in (None, before.finished_at)
    has_started = container.started_at not in (None, before.started_at)
    ends = [*before.ends, *[moment(container.finished_at)] * (has_ended + unseen)]
    starts = [*before.starts, *[moment(container.started_at)] * (has_started + unseen)]
    exit_code = container.exit_code
    oom_killed = container.oom_killed
    if container.state in ("running", "paused"):  # then these say nothing of the last end
        exit_code = before.exit_code if is_same else None
        oom_killed = before.oom_killed if is_same else False
    return Runs(
        container.id,
        now,
        container.started_at,
        container.finished_at,
        container.restart_count,
        exit_code,
        oom_killed,
        [at for at in starts if now - LOOP_MS < at <= now],
        [at for at in ends if now - LOOP_MS < at <= now],
    )


def check_words(monitor: Monitor, text: str) -> str:
    """The first line of what Docker's own check printed, fit to be shown."""
    text = ESCAPES.sub(b"", text.encode("utf-8", "replace")).decode()
    lines = monitor.redactor.clean(text).splitlines()
    first = next((line for line in lines if line.strip()), "")
    return " ".join("".join(c if c.isprintable() else " " for c in first).split())[:120]


def look(monitor: Monitor, seen: Container | None, now: int) -> Symptoms:
    """All that the verdict depends on, as it is now."""
    store = monitor.store
    last = monitor.judged
    sought, place = monitor.sought()
    symptoms = Symptoms(now, trouble=monitor.problem, sought=sought, place=place)
    if monitor.engine is not None and monitor.container_error is not None:
        symptoms = symptoms._replace(problem=monitor.container_error)
    elif monitor.engine is not None:
        symptoms = symptoms._replace(
            container=seen.state if seen else "missing",
            ever_seen=store.first("state", "engine") is not None,
            runs=monitor.runs if seen else Runs(),
        )
        if seen is not None and seen.health == "unhealthy":
            words = check_words(monitor, seen.check_words)
            symptoms = symptoms._replace(check=words, unhealthy_since=seen.failing_since)
    reading = monitor.reading
    if monitor.lag_ms > MINUTE_MS:
        reading = Reading(now - monitor.lag_ms)
    recognised, entries = store.get("recognised", UNRECOGNISED)[0]
    recent = [row["status"] for row in store.get("recent_outcomes")]
    task = next(iter(store.get("last_task", now + BELIEF_MS)), None)
    well_since = None if last is None else now
    if last is not None and last.state in ("working", "idle"):
        well_since = last.well_since
    return symptoms._replace(
        reading=reading,
        last_line_at=store.node().get("last_seen") or store.first("last_entry_at"),
        last_task_at=task["received_at"] if task else None,
        idle_since=task["ended_at"] if task else store.first("oldest_entry_at"),
        recent=recent,
        failing_since=store.first("failing_since") if recent[:3] == ["failed"] * 3 else None,
        recognised=recognised / entries if entries >= 50 else None,
        unseen_since=(last and last.looked_at) or monitor.begun_at,
        well_since=well_since,
    )


def set_verdict(monitor: Monitor) -> None:
    """Judge the node and remember since when it has been so."""
    now = monitor.now()
    last = monitor.judged
    runs = monitor.runs
    seen = monitor.container  # once: ingest looks at it too
    if seen is not None and monitor.engine is not None and monitor.container_error is None:
        monitor.runs = follow_runs(runs, seen, now)
    symptoms = look(monitor, seen, now)
    verdict = judge_node(symptoms)
    if symptoms.problem is None and symptoms.container == "missing" and monitor.candidates:
        verdict = verdict._replace(advice=name_candidates(monitor.candidates))
    old = monitor.verdict
    if verdict.cause == "started" and monitor.remembered is not None:
        monitor.verdict = monitor.remembered  # still all that is known
        return
    verdict = verdict._replace(since=since_when(verdict, last, now))
    if old is None or old.as_of or (old.state, old.cause) != (verdict.state, verdict.cause):
        log.info("verdict: %s: %s", verdict.state, verdict.reason)
    monitor.verdict = verdict
    if verdict.cause in ("started", "reading"):  # that is no state of the node
        return
    monitor.remembered = None
    is_well = verdict.state in ("working", "idle")
    started_at = symptoms.runs.started_at or 0
    looked_at: int | None = now
    if verdict.state == "blind":
        looked_at = last.looked_at if last is not None else None
    monitor.judged = Judged(
        verdict.state,
        verdict.cause,
        verdict.reason,
        verdict.advice,
        verdict.since or now,
        now,
        looked_at,
        min(now, max(symptoms.well_since or 0, started_at) or now) if is_well else None,
    )
    has_changed = last is None or (last.state, last.cause) != (verdict.state, verdict.cause)
    if has_changed or replace(monitor.runs, looked_at=0) != replace(runs, looked_at=0):
        with contextlib.suppress(sqlite3.OperationalError), monitor.store.write() as db:
            keep_verdict(monitor, db)


def keep_verdict(monitor: Monitor, db: sqlite3.Connection) -> None:
    """Store what must outlive tbmon of the verdict."""
    if monitor.judged is not None:
        rows = [("verdict", json.dumps(dataclasses.asdict(monitor.judged)))]
        rows.append(("runs", json.dumps(dataclasses.asdict(monitor.runs))))
        monitor.store.put(db, "state", rows)


# ---------------------------------------------------------------------------
# 9. API and live stream                                              (listens)
# ---------------------------------------------------------------------------

STATIC = Path(__file__).resolve().parent / "static"
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",
}
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
JSON_TYPE, CSV_TYPE = "application/json; charset=utf-8", "text/csv; charset=utf-8"
SMALLEST = (
    CONTENT_TYPES[".js"],
    CONTENT_TYPES[".css"],
)  # once for each visit, so that time is well spent
GZIP_BYTES = 1024  # a shorter answer would hardly become shorter
ANSWERS = 8  # made at once; more in the making would only take memory from each other
LIST_BYTES = 128 * KIB  # of a list's answer; one of more pieces is sent while it is made
LARGE_ANSWERS = 8  # sent so at once: each may wait for its reader, and has a thread
BODY_BYTES, HEADER_BYTES = 64 * KIB, 16 * KIB  # of a request
PAGE_BYTES = 4 * MIB  # of log messages in one answer; what does not fit is on the next page
STATUSES = ("received", "executing", "completed", "failed", "ended", "lost")
TASK_SHOWN = (
    "id",
    *(name for name in TASK_COLUMNS if name not in ("wasm_hash", "timeout_ms", "evidence")),
)
SINCE, UNTIL = 0, 4_294_967_296_000  # what a list covers if not told otherwise


class Refusal(Exception):
    """An answer other than 200: its status and a sentence that says what would be right."""

    def __init__(self, status: int, error: str, headers: Mapping[str, str] = NOTHING) -> None:
        super().__init__(error)
        self.status, self.headers = status, headers


@contextlib.contextmanager
def reading(store: Store) -> Iterator[None]:
    """Raises Refusal where the disk or a damaged file is why there is no answer."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if not store.has_damage(error) and type(error) is not sqlite3.OperationalError:
            raise
        raise Refusal(
            503, f"the database cannot be read now: {store.damage or error}", {"Retry-After": "5"}
        ) from None


# Schemas: what the answers hold, read by the OpenAPI document and docs/api.md. `?` after a kind:
# may be null, after a name: may be left out; [kind]: a list; {kind}: an object with any names; a
# capital: one of SHAPES; *Name: its fields.

KINDS: dict[str, dict[str, Any]] = {
    "text": {"type": "string"},
    "int": {"type": "integer"},
    "number": {"type": "number"},
    "bool": {"type": "boolean"},
    "big": {"type": ["integer", "string"], "description": "an integer; beyond 2^53 as text"},
    "any": {},
    "amount": {"type": ["number", "string"], "description": "a number; beyond 2^53 as text"},
    "time": {
        "type": "string",
        "pattern": r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z$",
        "description": "UTC",
    },
    "uuid": {"type": "string", "pattern": "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"},
    "hash": {"type": "string", "pattern": "^[0-9a-f]{64}$"},
}
SERIES = "from time, cell_s int"  # of a chart
SHAPES = {
    "Error": "error text",
    "Health": "status text, timestamp time, docker connected|disconnected|disabled, version text, "
    "node? NodeHealth",
    "NodeHealth": "state degraded|working|idle, reason text, since time?",
    "Slots": "current int?, total int",
    "Node": "address text?, version text?, registered bool?, current_slots int?, total_slots "
    "int?, slots {Slots},"
    " started_at time?, last_seen time?",
    "Container": "id text, name text, state text, running bool, startedAt time?, image text, "
    "created time?,"
    " restartCount int",
    "Memory": "usage number?, limit number?, percent number?",
    "Usage": "cpu number?, memory Memory",
    "Verdict": "state blind|down|degraded|working|idle, reason text, advice text, since time?, "
    "remembered bool, as_of time?",
    "Status": "node Node, container Container?, stats Usage?, verdict Verdict?, recognised "
    "number?, demo bool,"
    " timestamp time",
    "Summary": "total int, received int, executing int, completed int, failed int, ended int, "
    "lost int, cached int,"
    " tasks_24h int, success_rate number?, avg_elapsed_ms big?, avg_gas_used big?",
    "InvoiceTotal": "total int",
    "Overview": "tasks Summary, invoices InvoiceTotal, node Node, timestamp time",
    "Pagination": "limit int, offset int, hasMore bool, next text?",
    "Task": "id int, execution_id uuid, task_id text?, task_hash hash?, task_type text?, chain_id "
    "text?,"
    f" block_number big?, block_hash hash?, status {'|'.join(STATUSES)}, received_at time?, "
    f"started_at time?,"
    " completed_at time?, elapsed_ms int?, gas_limit big?, gas_used big?, memory_limit big?, "
    "memory_peak big?,"
    " exit_code int?, cached bool?, error text?",
    "Tasks": "tasks [Task], pagination Pagination",
    "TaskEvent": "at time, event text",
    "TaskDetail": (
        "*Task, hasSensitiveData bool, sensitiveDataRequiresAuth bool, events "
        "[TaskEvent], invoice_id text?"
    ),
    "TaskData": "execution_id uuid, inputData text?, outputData text?, errorText text?",
    "Artifact": "hash hash, type text, size_bytes int",
    "Artifacts": "artifacts [Artifact]",
    "LineItem": "operation text?, account text?, steps big?, memory_peak big?",
    "Invoice": "id int, invoice_id text?, execution_id uuid?, task_id text?, timestamp time?, "
    "operation text?,"
    " steps big?, memory_peak big?, step_gas_price amount?, gas_units amount?, confirmed bool, "
    "line_items [LineItem]",
    "Invoices": "invoices [Invoice], pagination Pagination",
    "Month": "month text?, invoices int, paid int, penalised int, steps big, gas_units_paid amount,"
    " gas_units_penalised amount",
    "InvoiceSummary": "total int, paid int, penalised int, confirmed int, tasks_without_invoice "
    "int,"
    " invoices_without_task int, months [Month]",
    "Count": "count int",
    "Entry": "id text, timestamp time, timestamp_original text, level text?, type text, message "
    "text,"
    " execution_id uuid?, data any, source engine|files|both, suspect bool",
    "Entries": "logs [Entry], pagination Pagination",
    "Gap": "from time?, to time?, reason text",
    "LogStatus": (
        "source engine|directory|demo, lastLogAt time?, gaps [Gap], passedOver [PassedOver], "
        "unrecognised int, suspect int"
    ),
    "PassedOver": "file text, reason text",
    "Classes": "local bool, private bool, stream bool",
    "LoginBody": "secret text",
    "Login": "success bool, open Classes, expiresAt time",
    "Logout": "success bool",
    "AuthStatus": "session bool, expiresAt time?, open Classes",
    "AuditEntry": "id int, timestamp time, event text, address text, detail text",
    "Audit": "entries [AuditEntry], pagination Pagination",
    "Semaphore": "subscriber text, current int?, total int?",
    "Reset": "reason text",
    "InvoiceCounts": "total int, invoices_24h int, waiting_24h int",
    "UptimeCell": "up int, down int, unknown int",
    "Uptime": "percent_24h number?, percent_7d number?, percent_30d number?, up_24h_min int, "
    "up_7d_min int, up_30d_min int, watched_24h_min int, watched_7d_min int, watched_30d_min int, "
    "outages int, longest_outage_min int,"
    f" {SERIES}, cells [UptimeCell]",
    "UsageCell": "cpu number?, memory_mb number?",
    "Consumption": f"{SERIES}, cells [UsageCell]",
    "TaskCell": "completed int, failed int, ended int, lost int, open int",
    "Activity": f"{SERIES}, cells [TaskCell]",
    "Recent": "at time?, what text, execution_id uuid?, detail text?",
    "Now": "*Status, tasks Summary, invoices InvoiceCounts, uptime Uptime, usage Consumption, "
    "activity Activity,"
    " recent [Recent], strangers text?, stream text",
    "TimedCell": "*TaskCell, p50_ms int?, p95_ms int?",
    "Failures": "reason text, tasks int, last_at time?",
    "TaskChart": f"{SERIES}, cells [TimedCell], failures [Failures]",
    "LogCell": "entries int, errors int, warnings int",
    "LogChart": f"{SERIES}, most int, cells [LogCell]",
    "Database": "size_bytes int, limit_bytes int, retention_days int, oldestLogAt time?, tasks "
    "int, invoices int,"
    " gaps int",
    "Setup": "version text, startedAt time, memory_bytes int?, source engine|directory|demo, "
    "container text, host text,"
    " port int, strangers text?, apiKey bool, passwordFrom setting|file, streamToken bool,"
    " allowedHosts [text], allowedOrigins [text],"
    " trustedProxy [text], dockerUrl text?, dockerCalls [text], dockerFolders [text], database "
    "Database",
    "Finding": "level ok|warn|fail, what text, remedy text",
    "Doctor": "findings [Finding]",
    "Sharing": "enabled bool, nodeId text?, privacyLevel minimal|balanced|maximum, shareTasks "
    "bool, shareStats bool,"
    " natsServers [text]",
    "SharingBody": "enabled? bool, privacyLevel? minimal|balanced|maximum, shareTasks? bool, "
    "shareStats? bool,"
    " natsServers? [text]",
    "Done": "success bool, message text, connected bool",
    "FederationCounts": "messagesSent int, messagesReceived int, errors int, reconnections int, "
    "queued int,"
    " refused int, dropped int, ignored int",
    "FederationStatus": "enabled bool, connected bool, healthy bool, status "
    "off|consent needed|connecting|connected|failing,"
    " nodeId text?, hub [text], consentedTo [text], stats FederationCounts, lastError text?,"
    " lastRefusal text?",
    "Peer": "handle text, seen today|yesterday",
    "NetworkStats": "status awaiting_data|connected, lastUpdated time?, activeNodes int?, "
    "totalNodes int?,"
    " totalTasks int?, completedTasks int?, failedTasks int?, cachedTasks int?, tasksLast24h "
    "int?, totalInvoices int?,"
    " invoicesLast24h int?, successRate number?, cacheHitRate number?, executionTimeDistribution "
    "{int}?,"
    " gasUsageDistribution {int}?, stepsComputedDistribution {int}?, taskTypeDistribution {int}?,"
    " memoryUsedDistribution {int}?, peers [Peer]?, snapshotAt text?",
    "NetworkHistory": "history [NetworkStats]",
    "Peers": "peers [Peer], count int",
    "ReceivedMessage": "timestamp time, subject text, data any",
    "ReceivedMessages": "messages [ReceivedMessage]",
    "Waiting": "dueAt time?, subject text, payload text",
    "Preview": "queued [Waiting], examples [Waiting]",
    "SentMessage": "id int, timestamp time, subject text, payload text, times int",
    "SentMessages": "messages [SentMessage], pagination Pagination",
    "PrivacyFacts": "enabled bool, connectsTo [text], installationId bool, kindsShared [text], "
    "delayUpToMinutes int?,"
    " messagesSent int, messagesWaiting int, messagesRefused int, dayKeysKept int",
}


def schema_of(kind: str) -> dict[str, Any]:
    """The JSON schema of a kind, as SHAPES writes kinds."""
    if kind.endswith("?"):
        inner = schema_of(kind[:-1])
        return {"anyOf": [inner, {"type": "null"}]}
    if kind[0] == "[":
        return {"type": "array", "items": schema_of(kind[1:-1])}
    if kind[0] == "{":
        return {"type": "object", "additionalProperties": schema_of(kind[1:-1])}
    if kind[0].isupper():
        return {"$ref": f"#/components/schemas/{kind}"}
    return {"enum": kind.split("|")} if "|" in kind else KINDS[kind]


def fields_of(shape: str) -> dict[str, str]:
    """{name: kind} of one of SHAPES."""
    found: dict[str, str] = {}
    for item in SHAPES[shape].split(", "):
        name, _, kind = item.partition(" ")
        found |= fields_of(name[1:]) if name[0] == "*" else {name: kind}
    return found


def shape_schema(shape: str) -> dict[str, Any]:
    """The JSON schema of one of SHAPES: all its fields and no others."""
    kinds = fields_of(shape)
    properties = {name.rstrip("?"): schema_of(kind) for name, kind in kinds.items()}
    required = [name for name in kinds if not name.endswith("?")]
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


# Requests


class Parameter(NamedTuple):
    """A query parameter: what it takes, how it is read (None is a refusal), and its JSON schema."""

    takes: str
    read: Callable[[str], Any]
    schema: Mapping[str, Any]


def a_number(low: int, high: int, default: int) -> Parameter:
    def read(text: str) -> int | None:
        return (
            int(text)
            if re.fullmatch(r"\d{1,9}", text, re.ASCII) and low <= int(text) <= high
            else None
        )

    schema = {"type": "integer", "minimum": low, "maximum": high, "default": default}
    return Parameter(f"a whole number from {low} to {high}", read, schema)


def a_word(*words: str) -> Parameter:
    return Parameter(
        ", ".join(words), lambda text: text if text in words else None, {"enum": words}
    )


def read_cursor(text: str) -> tuple[int, int] | None:
    """What `cursor_text` made of the last row's time and id."""
    try:
        place, number = json.loads(base64.urlsafe_b64decode(text + "=="))
        good = all(type(part) is int and 0 <= part < 2**63 for part in (place, number))
    except (ValueError, TypeError, RecursionError):
        return None
    return (place, number) if good else None


def read_log_cursor(text: str) -> tuple[bytes, int] | None:
    """The same of a log entry's key and its order in the second."""
    key, _, number = text.partition("-")
    good = re.fullmatch(r"[0-9a-f]{32}", key) and re.fullmatch(r"\d{1,18}", number, re.ASCII)
    return (bytes.fromhex(key), int(number)) if good else None


def cursor_text(place: int | bytes, number: int) -> str:
    if isinstance(place, bytes):
        return f"{place.hex()}-{number}"
    return base64.urlsafe_b64encode(json.dumps([place, number]).encode()).decode().rstrip("=")


TEXT = {"type": "string"}
A_TIME = Parameter("a time like 2026-01-31T12:00:00Z", parse_time, TEXT)
AN_EXECUTION = Parameter("an execution id", uuid, KINDS["uuid"])
MATCHED = Parameter(
    "true or false", lambda text: {"true": 1, "false": 0}.get(text), {"type": "boolean"}
)
PAGE = {
    "limit": a_number(1, 1000, 50),
    "offset": a_number(0, 100_000, 0),
    "cursor": Parameter("what an earlier answer gave as pagination.next", read_cursor, TEXT),
    "since": A_TIME,
    "until": A_TIME,
}
LANGUAGES = (*TASK_TYPES.values(), "other")
TABLE = {**PAGE, "format": a_word("json", "csv"), "execution_id": AN_EXECUTION, "matched": MATCHED}
TASKS_QUERY = {**TABLE, "status": a_word(*STATUSES), "type": a_word(*LANGUAGES)}
INVOICES_QUERY = {**TABLE, "operation": a_word("pay", "penalty")}
SPANS = {
    "24h": (48, HOUR_MS // 2),
    "7d": (84, 2 * HOUR_MS),
    "30d": (90, 8 * HOUR_MS),
}  # cells, and how long each is
SPAN_QUERY = {"span": a_word(*SPANS)}
HEALTH_QUERY = {"node": a_word("0", "1")}
LOGS_QUERY = {
    **PAGE,
    "level": a_word(*LEVELS[1:]),
    "type": a_word(*LOG_TYPES),
    "execution_id": AN_EXECUTION,
    "search": Parameter("text", str, TEXT),
    "cursor": PAGE["cursor"]._replace(read=read_log_cursor),
}


def read_query(given: str, known: Mapping[str, Parameter]) -> dict[str, Any]:
    """Read a request's query string; raise Refusal naming a parameter that is unknown, repeated or
    wrong.
    """
    query: dict[str, Any] = {}
    for name, text in urllib.parse.parse_qsl(
        given, keep_blank_values=True, errors="surrogateescape"
    ):
        if name not in known:
            takes = f"one of {', '.join(known)}" if known else "no parameters"
            raise Refusal(400, f"unknown parameter {name[:40]!r}: this path takes {takes}")
        if name in query:
            raise Refusal(400, f"parameter {name} is given twice")
        query[name] = (
            None if re.search("[\0\ud800-\udfff]", text) else known[name].read(text)
        )  # NUL, or no UTF-8
        if query[name] is None:
            raise Refusal(400, f"parameter {name} takes {known[name].takes}")
    return query


def read_body(environ: Mapping[str, Any], shape: str) -> dict[str, Any]:
    """Read a request's JSON object of the given shape; raise Refusal for anything else."""
    if environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal(
            415, "the body must be JSON: send the header 'Content-Type: application/json'"
        )

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) < len(pairs):
            raise ValueError("a name stands twice")
        return dict(pairs)

    kinds = fields_of(shape)
    names = {name.rstrip("?"): kind for name, kind in kinds.items()}
    with contextlib.suppress(ValueError, RecursionError):  # said below
        body = json.loads(environ["wsgi.input"].read().decode(), object_pairs_hook=unique)
        complete = isinstance(body, dict) and {name for name in kinds if name[-1] != "?"} <= set(
            body
        ) <= set(names)
        if complete and all(is_of_kind(value, names[name]) for name, value in body.items()):
            return body  # type: ignore[no-any-return]
    takes = ", ".join(f"{name} ({kind})" for name, kind in names.items())
    raise Refusal(400, f"the body must be a JSON object of {takes}")


def is_of_kind(value: object, kind: str) -> bool:
    """True if a value somebody sent is of a kind of SHAPES: text, bool, words with | between them,
    or a list.
    """
    if kind[0] == "[":
        return isinstance(value, list) and all(is_of_kind(one, kind[1:-1]) for one in value)
    return (
        type(value) is {"text": str, "bool": bool}[kind]
        if "|" not in kind
        else value in kind.split("|")
    )


# Answers


def big(value: float | None) -> float | str | None:
    """A number as JSON can carry it: beyond 2^53 as text."""
    return str(int(value)) if value is not None and value > 2**53 else value


def times(steps: int, price: float) -> float:
    """Steps times a price: exact, where a float would round, if the product is whole."""
    above, below = price.as_integer_ratio()
    return steps * above / below if steps * above % below else steps * above // below


def task_json(row: sqlite3.Row) -> dict[str, Any]:
    """A task as the API shows it; memory in pages of 64 KiB."""
    shown = {name: row[name] for name in TASK_SHOWN}
    for name in ("received_at", "started_at", "completed_at"):
        shown[name] = utc(shown[name])
    for name in ("gas_limit", "gas_used", "memory_limit", "memory_peak", "block_number"):
        shown[name] = big(shown[name])
    return shown | {"cached": None if row["cached"] is None else bool(row["cached"])}


def invoice_json(row: sqlite3.Row) -> dict[str, Any]:
    """An invoice; its gas units are its steps times the price of a step, which is no amount of
    money.
    """
    price, steps = row["step_gas_price"], row["steps"]
    items = [
        {**item, "steps": big(item["steps"]), "memory_peak": big(item["memory_peak"])}
        for item in json.loads(row["line_items"])
    ]
    columns = ("id", "invoice_id", "execution_id", "task_id", "operation", "step_gas_price")
    shown = {name: row[name] for name in columns} | {"memory_peak": big(row["memory_peak"])}
    units = None if price is None or steps is None else times(steps, price)
    shown |= {"timestamp": utc(row["at"]), "steps": big(steps), "confirmed": bool(row["confirmed"])}
    return shown | {"gas_units": big(units), "step_gas_price": big(price), "line_items": items}


def read_number(text: str) -> float | str | None:
    """A number of somebody's JSON as ours can carry it: exact, or as text; NaN and its like are
    null.
    """
    if text in ("NaN", "Infinity", "-Infinity"):
        return None
    value = float(text) if re.search("[.eE]", text) else text
    if isinstance(value, float):
        return value if abs(value) < 2**53 else text
    return int(text) if len(text) < 16 else text


PAYLOAD = json.JSONDecoder(
    strict=False, parse_int=read_number, parse_float=read_number, parse_constant=read_number
)


def entry_json(row: sqlite3.Row) -> dict[str, Any]:
    """A log entry; `data` is the payload in its message if that is JSON of a bounded depth."""
    message, data = row["message"], None
    start = message.find("{")
    if start >= 0 and row["type"] != LOG_TYPES.index("semaphore"):
        with contextlib.suppress(ValueError):  # no JSON, or too deep: shown as text alone
            data = read_json(message, start, PAYLOAD)[0]
    return {
        "id": row["key"].hex(),
        "timestamp": utc(row["at"]),
        "timestamp_original": second_text(int.from_bytes(row["key"][:4], "big")),
        "level": LEVELS[row["level"]] or None,
        "type": LOG_TYPES[row["type"]],
        "message": message,
        "execution_id": row["execution_id"],
        "data": data,
        "source": {ENGINE: "engine", FILES: "files"}.get(row["sources"], "both"),
        "suspect": bool(row["flags"] & SUSPECT),
    }


def verdict_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "state": verdict.state,
        "since": utc(verdict.since),
        "reason": verdict.reason,
        "advice": verdict.advice,
        "remembered": verdict.as_of is not None,
        "as_of": utc(verdict.as_of),
    }


def month_json(month: str | None, rows: Sequence[sqlite3.Row]) -> dict[str, Any]:
    """The invoices of one month; rows are per operation and price, their steps in two sums that
    cannot overflow.
    """
    found: dict[str, Any] = {"month": month, "invoices": sum(row["invoices"] for row in rows)}
    steps = {row: (row["high"] or 0) * 10**9 + (row["low"] or 0) for row in rows}
    for operation, name in (("pay", "paid"), ("penalty", "penalised")):
        own = [row for row in rows if row["operation"] == operation]
        units = sum(steps[row] * Fraction(row["price"]) for row in own if row["price"] is not None)
        shown = int(units) if units > 2**53 or units == int(units) else float(units)
        found |= {name: sum(row["invoices"] for row in own), f"gas_units_{name}": big(shown)}
    return found | {"steps": big(sum(steps.values()))}


def pagination(places: Sequence[tuple[Any, int]], limit: int, offset: int) -> dict[str, Any]:
    """What a list says of its page: `places` may hold one more than the limit, which shows that
    there are more.
    """
    more = len(places) > limit
    after = cursor_text(*places[limit - 1]) if more else None
    return {"limit": limit, "offset": offset, "hasMore": more, "next": after}


class Listing(NamedTuple):
    """A list's answer, which is made row by row, since all of its rows at once may be much.

    `read` reads the rows, anew each time; `more` is what the answer holds beside them; with
    `columns` it is CSV.
    """

    name: str
    read: Callable[[], Iterator[sqlite3.Row]]
    show: Callable[[sqlite3.Row], Mapping[str, Any]]
    more: Mapping[str, Any] = NOTHING
    columns: Sequence[str] = ()

    def words(self) -> Iterator[str]:
        """The answer, a row in each piece."""
        if self.columns:
            yield from csv_lines(self.columns, map(self.show, self.read()))
            return
        between = ""
        yield f'{{"{self.name}": ['
        for row in self.read():
            yield between + json.dumps(self.show(row))
            between = ", "
        yield "]" + "".join(f', "{name}": {json.dumps(self.more[name])}' for name in self.more)
        yield "}\n"

    def pieces(self) -> Iterator[str]:
        """The answer in pieces of about LIST_BYTES."""
        piece = io.StringIO()
        for words in self.words():
            piece.write(words)
            if piece.tell() >= LIST_BYTES:
                yield piece.getvalue()
                piece = io.StringIO()
        yield piece.getvalue()

    def mark(self, show: Callable[[str], str]) -> bytes:
        """What changes with the answer, from its rows as they are stored: much sooner told than
        the answer is made.
        """
        digest = hashlib.blake2b(repr((__version__, self.columns, self.more)).encode())
        for row in self.read():
            digest.update(show(repr(tuple(row))).encode())
        return digest.digest()


class Echo:
    """The file of a csv.writer, whose writerow returns what `write` does: the line."""

    def write(self, text: str) -> str:
        return text


def csv_lines(columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """Rows as CSV; a text that a spreadsheet would take for a formula begins with an apostrophe."""

    def cell(value: object) -> object:
        if isinstance(value, bool):
            return str(value).lower()
        formula = isinstance(value, str) and value[:1] in tuple("=+-@\t\r\n")
        return f"'{value}" if formula else value

    writer = csv.writer(Echo(), lineterminator="\r\n")
    yield writer.writerow(columns)
    for row in rows:
        yield writer.writerow([cell(row[name]) for name in columns])


def metrics_text(families: Iterable[tuple[str, str, str, Mapping[str, float | None]]]) -> str:
    """Prometheus text from (name, type, help, {labels: value}); None is left out."""
    lines: list[str] = []
    for name, kind, words, samples in families:
        lines += [f"# HELP {name} {words}", f"# TYPE {name} {kind}"]
        lines += [
            f"{name}{labels} {value}" for labels, value in samples.items() if value is not None
        ]
    return "\n".join(lines) + "\n"


def labelled(name: str, values: Mapping[str, float | None]) -> dict[str, float | None]:
    """{label set: value} from {label value: value}."""
    special = str.maketrans({"\\": r"\\", '"': r"\"", "\n": r"\n"})
    return {f'{{{name}="{word.translate(special)}"}}': value for word, value in values.items()}


# Who may ask

CREDENTIALS = {  # what each opens, what it is called, and the header it comes in
    "local": ("API key", "Authorization: Bearer KEY"),
    "private": ("task-data password", "X-Task-Data-Password"),
    "stream": ("stream token", "X-Stream-Token"),
}
NEEDS: Mapping[str, tuple[str, ...]] = {
    "open": (),
    "local": ("local",),
    "private": ("local", "private"),
    "stream": ("local", "stream"),
}
LOGIN_FAILURES, LOGIN_WINDOW_S = 10, 900
# a JSON web token, signed or encrypted, as a proxy that logs people in adds it to what it passes on
PROXY_TOKEN = re.compile(rb"eyJ[\w-]+(\.[\w-]*){2}(\.[\w-]+){0,2}")
SESSION_MS, SESSIONS = DAY_MS, 1000
NOTES_A_MINUTE = 60  # rows of the audit log; a flood of refusals must not fill the disk


def same_secret(given: bytes, secret: str) -> bool:
    """Compare without telling by the time how much was right."""
    return hmac.compare_digest(given, secret.encode())


def is_our_host(host: str, allowed: Iterable[str]) -> bool:
    """True for a Host that no stranger's domain can be: an IP address, localhost, one label, or one
    allowed.
    """
    name = re.sub(r":\d{1,5}$", "", host).lower().removesuffix(".")
    ours = r"(.*\.)?localhost|[0-9.]+|\[[0-9a-f:.]+\]|[a-z0-9_-]+"
    return name in allowed or re.fullmatch(ours, name, re.ASCII) is not None


def client_address(environ: Mapping[str, str], proxies: Sequence[Any]) -> str:
    """The address that counts for limits: the peer's, or what trusted proxies say; of IPv6 the
    first 64 bits.
    """
    address = read_address(environ.get("REMOTE_ADDR", ""))
    hops = environ.get("HTTP_X_FORWARDED_FOR", "").split(",")
    while address is not None and hops and any(address in network for network in proxies):
        before = read_address(hops.pop())
        if before is None:
            break
        address = before
    if address is not None and address.version == 6:
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address or "unknown")


class Limiter:
    """At most `most` takes in any `window_s` for each name; 10,000 names are remembered. Any
    thread.
    """

    def __init__(self, most: int, window_s: float) -> None:
        self.most, self.window_s = most, window_s
        self.taken: dict[str, deque[float]] = {}
        self.lock = threading.Lock()

    def take(self, name: str) -> int:
        """0 if this one is within the limit and counts now, else the seconds to wait."""
        now = time.monotonic()
        with self.lock:
            times = self.taken.pop(name, None) or deque(maxlen=self.most)
            self.taken[name] = times  # at the end: the names that come first were used longest ago
            if len(self.taken) > 10_000:
                del self.taken[next(iter(self.taken))]
            if len(times) == self.most and now - times[0] < self.window_s:
                return math.ceil(self.window_s - (now - times[0]))
            times.append(now)
            return 0


@dataclass(eq=False)
class Session:
    """What one browser has opened; streams hold it to see that it ended."""

    ends_at: int
    grants: frozenset[str] = frozenset()
    name: str = field(
        default_factory=lambda: f"session {secrets.token_hex(8)}"
    )  # for limits; an id() is used again


class Caller(NamedTuple):
    """Who asks: the address that counts, the session of the cookie, and the headers as WSGI has
    them.
    """

    address: str
    session: Session | None
    headers: Mapping[str, Any]
    is_own: bool = True  # our own page, or no page at all

    def secret(self, grant: str) -> bytes | None:
        """The credential in its header; None if there is none."""
        if grant != "local":
            given = self.headers.get(f"HTTP_{CREDENTIALS[grant][1].upper().replace('-', '_')}")
        else:
            scheme, _, given = self.headers.get("HTTP_AUTHORIZATION", "").partition(" ")
            given = given.strip(" ") if scheme.lower() == "bearer" else None
        return None if given is None else given.encode("latin-1")


class Guard:
    """Decides who may ask what: hosts, origins, credentials, sessions, limits; keeps the audit log.
    Any thread.
    """

    def __init__(self, monitor: Monitor, secret_of: Mapping[str, str]) -> None:
        config = monitor.config
        self.monitor, self.secret_of = monitor, secret_of  # an empty secret: nothing is asked
        self.origins = {origin.lower() for origin in split_list(config.allowed_origins)}
        hosts = (re.sub(r"^https?://|:\d+$", "", origin) for origin in self.origins)
        self.hosts = {*hosts, *(name.lower() for name in split_list(config.allowed_hosts))}
        self.proxies = [ipaddress.ip_network(name) for name in split_list(config.trusted_proxy)]
        self.cookie = (
            "tbmon-" + keyed(monitor.store.local_key, "cookie", "").hex()[:8]
        )  # one host may have several
        self.requests = Limiter(config.api_rate_limit, 60)
        self.failures = Limiter(LOGIN_FAILURES, LOGIN_WINDOW_S)
        self.notes, self.unnoted = Limiter(NOTES_A_MINUTE, 60), 0
        self.sessions: dict[bytes, Session] = {}  # by the hash of the cookie's token
        self.lock = threading.Lock()

    def check_origin(self, environ: Mapping[str, str]) -> str:
        """Refuse other pages' requests; returns the origin to answer to: "" (our own, or no
        page's), listed, or *.
        """
        origin, site = (
            environ.get("HTTP_ORIGIN", "").lower(),
            environ.get("HTTP_SEC_FETCH_SITE", "none"),
        )
        if (
            origin.partition("://")[2] == environ.get("HTTP_HOST", "").lower()
            and site != "cross-site"
        ):
            return ""
        if origin in self.origins:
            return origin
        if not origin and site in ("none", "same-origin"):
            return ""
        if "*" in self.origins and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return "*"
        if not origin and site == "same-site" and environ.get("HTTP_SEC_FETCH_MODE") == "navigate":
            return "*"  # a link on a page of this host's other ports; the cookie does not count
        raise Refusal(
            403, "requests of another site's page are refused: name its origin in ALLOWED_ORIGINS"
        )

    def find_caller(self, environ: Mapping[str, Any], origin: str) -> Caller:
        """Who asks; the cookie counts for our own page only."""
        session = None if origin else self.sessions.get(self.token_hash(environ))
        live = session is not None and self.monitor.now() < session.ends_at
        return Caller(
            client_address(environ, self.proxies), session if live else None, environ, not origin
        )

    def token_hash(self, environ: Mapping[str, Any]) -> bytes:
        found = re.search(
            rf"(?:^|;) *{self.cookie}=([\w-]+)", environ.get("HTTP_COOKIE", ""), re.ASCII
        )
        return hashlib.sha256(found[1].encode() if found else b"").digest()

    def admit(self, caller: Caller) -> None:
        """Count a request; raise Refusal beyond API_RATE_LIMIT. A session has a quota of its
        own.
        """
        name = caller.session.name if caller.session else caller.address
        if self.requests.most and (wait_s := self.requests.take(name)):
            words = (
                f"more than {self.requests.most} requests in a minute: wait {wait_s} s, or "
                f"raise API_RATE_LIMIT"
            )
            raise Refusal(429, words, {"Retry-After": str(wait_s)})

    def given(self, grant: str, caller: Caller) -> bytes | None:
        """The credential in the caller's header; None if there is none. A proxy's token is none: an
        API key that is no token cannot be guessed by one.
        """
        given = caller.secret(grant)
        if given is None or grant != "local" or not PROXY_TOKEN.fullmatch(given):
            return given
        return given if PROXY_TOKEN.fullmatch(self.secret_of["local"].encode()) else None

    def holds(self, grant: str, caller: Caller) -> bool:
        secret, session = self.secret_of[grant], caller.session
        if not secret or (
            session is not None and grant in session.grants and self.monitor.now() < session.ends_at
        ):
            return True
        given = self.given(grant, caller)
        return given is not None and same_secret(given, secret)

    def check(self, access: str, caller: Caller, told: Iterable[str] = ()) -> None:
        """Raise Refusal unless the caller may have data of the class `access`, or for a wrong
        secret of those `told`: what the answer depends on without needing it.
        """
        for grant in (
            *NEEDS[access],
            *(grant for grant in told if self.given(grant, caller) is not None),
        ):
            if self.holds(grant, caller):
                continue
            name, header = CREDENTIALS[grant]
            challenge = {"WWW-Authenticate": "Bearer"} if grant == "local" else NOTHING
            if self.given(grant, caller) is None:
                words = f"this needs the {name}: send the header '{header}', or log in"
                raise Refusal(401, words, challenge)
            self.fail(caller, f"wrong {name}")
            raise Refusal(401, f"the {name} in the header '{header}' is wrong", challenge)

    def fail(self, caller: Caller, detail: str) -> None:
        """Count a wrong credential; raise Refusal if there were too many."""
        if wait_s := self.failures.take(caller.address):
            words = (
                f"too many wrong secrets from this address: wait {wait_s} s; the right one is "
                f"taken at any time"
            )
            raise Refusal(429, words, {"Retry-After": str(wait_s)})
        self.note("refused", caller, detail)

    def note(self, event: str, caller: Caller, detail: str) -> None:
        """Add to the audit log, which must neither fill the disk nor keep anybody from an answer:
        of a flood of refusals some are only counted, of all else everything is kept.
        """
        if self.notes.take("") and event == "refused":
            self.unnoted += 1
            return
        if self.unnoted:
            detail = f"{detail} ({self.unnoted} more refusals before it were not kept)"
            self.unnoted = 0
        log.info("api: %s: %s (the audit log has the address)", event, detail)
        store = self.monitor.store
        with contextlib.suppress(sqlite3.DatabaseError), store.write() as db:
            store.put(db, "audit", [(self.monitor.now(), event, caller.address, detail)])

    def opens(self, access: str, caller: Caller) -> bool:
        """True if the caller may have data of the class `access`."""
        return all(self.holds(grant, caller) for grant in NEEDS[access])

    def access(self, caller: Caller) -> dict[str, Any]:
        """The caller's session, and what is open to it."""
        ends_at = caller.session.ends_at if caller.session else None
        return {
            "session": ends_at is not None,
            "expiresAt": utc(ends_at),
            "open": self.open_to(caller),
        }

    def open_to(self, caller: Caller) -> dict[str, bool]:
        """Which classes the caller's session and headers open."""
        return {access: self.opens(access, caller) for access in CREDENTIALS}

    def login(self, caller: Caller, secret: str) -> tuple[Session, str]:
        """Return the session that a right secret opens or adds to, and its new token; raise Refusal
        for a wrong one.
        """
        self.refuse_foreign(caller)
        given = secret.encode("utf-8", "replace")
        grants = {
            grant for grant, right in self.secret_of.items() if same_secret(given, right) and right
        }
        if not grants:
            self.fail(caller, "login with a wrong secret")
            raise Refusal(
                401, "this is neither the API key nor the task-data password nor the stream token"
            )
        now, token = self.monitor.now(), secrets.token_urlsafe(32)
        with self.lock:
            session = self.take_session(caller) or Session(now + SESSION_MS)
            session.grants |= grants
            self.sessions = {
                name: kept for name, kept in self.sessions.items() if kept.ends_at > now
            }
            while len(self.sessions) >= SESSIONS:
                self.sessions.pop(next(iter(self.sessions))).ends_at = 0
            self.sessions[hashlib.sha256(token.encode()).digest()] = session
        self.note("login", caller, "opened " + ", ".join(sorted(grants)))
        return session, token

    def refuse_foreign(self, caller: Caller) -> None:
        """Another page, listed or not, has no business with the cookie."""
        if not caller.is_own:
            raise Refusal(
                403,
                "log in and out on tbmon's own page; other pages send the credential with each "
                "request",
            )

    def take_session(self, caller: Caller) -> Session | None:
        """Take the caller's session off its token; None if it has none, or its cookie does not
        count.
        """
        found = self.sessions.pop(self.token_hash(caller.headers), None) if caller.session else None
        return found if found is not None and self.monitor.now() < found.ends_at else None

    def logout(self, caller: Caller) -> None:
        """End the caller's session, and with it its streams."""
        self.refuse_foreign(caller)
        with self.lock:
            session = self.take_session(caller)
        if session is not None:
            session.ends_at = 0
            self.note("logout", caller, "session ended")

    def cookie_text(self, token: str, environ: Mapping[str, str], max_age_s: int) -> str:
        """The Set-Cookie header; Secure where a trusted proxy says that the browser came by
        https.
        """
        by_proxy = any(
            read_address(environ.get("REMOTE_ADDR", "")) in network for network in self.proxies
        )
        secure = "; Secure" if by_proxy and environ.get("HTTP_X_FORWARDED_PROTO") == "https" else ""
        return (
            f"{self.cookie}={token}; Path=/; Max-Age={max_age_s}; HttpOnly; SameSite=Strict{secure}"
        )


# What is answered


class Call(NamedTuple):
    """A request that was let in: who asks, its path's variable parts, its query and its body, all
    read and checked.
    """

    caller: Caller
    path: Mapping[str, str]
    query: Mapping[str, Any]
    body: Mapping[str, Any]


class Reply(NamedTuple):
    """What goes out; `content` is an object for JSON, a list's answer, text, bytes, or an iterator
    of bytes, sent as they come.
    """

    content: Mapping[str, Any] | Listing | str | bytes | Iterator[bytes]
    headers: Mapping[str, str] = NOTHING
    status: int = 200


STRICTNESS = ("minimal", "balanced", "maximum")  # each lets less out than the one before


def lets_more_out(before: Sharing, after: Sharing) -> bool:
    """True if more would leave, or sooner; what is chosen while off counts as if it were on."""
    return (
        after.agreed > before.agreed
        or STRICTNESS.index(after.level) < STRICTNESS.index(before.level)
        or after.tasks > before.tasks
        or after.stats > before.stats
    )


def changes_of(before: Sharing, after: Sharing, hub: str) -> str:
    """What a change of the sharing was, from what to what, as the audit log says it."""

    def said(one: Sharing) -> dict[str, str]:
        return {
            "federation": "on" if one.enabled else "off",
            "hub": ", ".join(one.servers or (hub,)),
            "consent": ", ".join(one.hubs) or "none",
            "privacyLevel": one.level,
            "shareTasks": str(one.tasks).lower(),
            "shareStats": str(one.stats).lower(),
        }

    old, new = said(before), said(after)
    return "; ".join(
        f"{name} from {old[name]} to {new[name]}" for name in old if old[name] != new[name]
    )


def open_words(config: Config) -> str | None:
    """What strangers may do; None where only this machine reaches tbmon, or a key is asked for."""
    is_near = config.host == "localhost"
    with contextlib.suppress(ValueError):  # a name
        is_near = is_near or ipaddress.ip_address(config.host).is_loopback
    if is_near or config.api_key:
        return None
    return (
        f"anybody who reaches port {config.port} can read the node's status, tasks and invoices, "
        f"and change what the federation shares to less or nothing"
    )


class Api:
    """What the routes answer. Called by waitress's threads."""

    def __init__(self, monitor: Monitor, secret_of: Mapping[str, str]) -> None:
        self.monitor, self.store = monitor, monitor.store
        self.guard = Guard(monitor, secret_of)
        self.boot = secrets.token_hex(4)  # numbers of happenings mean nothing to another process
        self.streams: Counter[str] = Counter()  # by address
        self.streams_lock, self.module_lock, self.sharing_lock = (
            threading.Lock(),
            threading.Lock(),
            threading.RLock(),
        )
        self.doctor_lock, self.fronts = threading.Lock(), Limiter(monitor.config.api_rate_limit, 60)
        self.large = threading.BoundedSemaphore(LARGE_ANSWERS)
        self.pressed_at = -math.inf  # when a large answer last found no place (monotonic)
        assert monitor.outbox is not None and monitor.federation is not None
        self.outbox, self.federation = monitor.outbox, monitor.federation
        self.made: list[tuple[int, bytes]] = [(0, b"")] * EVENTS_KEPT
        self.turns = (
            threading.Lock(),
            threading.Lock(),
        )  # to make events: all at once would keep ingest waiting

    def node_health(self, caller: Caller) -> dict[str, Any]:
        """For a monitor from outside: raises Refusal with 503 while the node is down or blind. Who
        may not read the verdict learns no more than that.
        """
        may_read = self.guard.holds("local", caller)
        gave_key = caller.secret("local") is not None
        if not may_read and (gave_key or not self.monitor.config.health_node_open):
            self.guard.check("local", caller)
        verdict = self.monitor.newest_verdict()
        if verdict is None:
            verdict = Verdict("blind", JUST_STARTED, "", "started")
        if verdict.state in ("blind", "down"):
            since = f" since {utc(verdict.since)}" if verdict.since is not None else ""
            words = f"the node is {verdict.state}{since}: {verdict.reason}"
            raise Refusal(503, words if may_read else "the node is down, or cannot be seen")
        told = verdict_json(verdict)
        node = {name: told[name] for name in fields_of("NodeHealth")}
        return {**self.health(), **({"node": node} if may_read else {})}

    def health(self) -> dict[str, Any]:
        """200 as long as tbmon itself works, whatever the node does."""
        docker = "disabled" if self.monitor.engine is None else "connected"
        if docker == "connected" and self.monitor.container_error is not None:
            docker = "disconnected"
        return {
            "status": "ok",
            "docker": docker,
            "version": __version__,
            "timestamp": utc(self.monitor.now()),
        }

    def node(self) -> dict[str, Any]:
        """What is known of the node; null is unknown."""
        node = self.store.node()
        slots = self.slots(node)
        used = [slot["current"] for slot in slots.values() if slot["current"] is not None]
        container = self.monitor.container
        return {
            "address": node.get("address"),
            "version": node.get("version"),
            "registered": node.get("registered"),
            "current_slots": sum(used) if used else None,
            "total_slots": sum(slot["total"] for slot in slots.values()) if slots else None,
            "slots": slots,
            "started_at": utc(container.started_at) if container and container.running else None,
            "last_seen": utc(node.get("last_seen")),
        }

    def slots(self, node: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """{subscriber: its slots in use, null if unknown, and in all}, from what is known of the
        node.
        """
        names = sorted(name.removeprefix("total ") for name in node if name.startswith("total "))
        return {
            name: {"current": node.get(f"current {name}"), "total": node[f"total {name}"]}
            for name in names
        }

    def container(self) -> dict[str, Any] | None:
        unseen = self.monitor.engine is not None and self.monitor.container_error is not None
        seen = None if unseen else self.monitor.container
        return seen and {
            "id": seen.id[:12],
            "name": seen.name,
            "state": seen.state,
            "running": seen.running,
            "startedAt": utc(seen.started_at),
            "image": seen.image,
            "created": utc(seen.created),
            "restartCount": seen.restart_count,
        }

    def status(self) -> dict[str, Any]:
        stats = self.monitor.stats
        verdict = self.monitor.newest_verdict()
        recognised, entries = self.store.get("recognised", UNRECOGNISED)[0]
        usage, limit = stats[1:] if stats else (None, None)
        memory = {
            "usage": None if usage is None else round(usage / MIB, 1),
            "limit": limit and round(limit / MIB, 1),
            "percent": None if usage is None or not limit else round(100 * usage / limit, 1),
        }
        return {
            "node": self.node(),
            "container": self.container(),
            "stats": stats
            and {"cpu": None if stats.cpu is None else round(stats.cpu, 1), "memory": memory},
            "verdict": verdict and verdict_json(verdict),
            "recognised": round(recognised / entries, 4) if entries else None,
            "demo": self.monitor.demo,
            "timestamp": utc(self.monitor.now()),
        }

    def stats(self) -> dict[str, Any]:
        invoices = {"total": self.store.first("invoice_count")}
        now = utc(self.monitor.now())
        return {
            "tasks": self.summary(),
            "invoices": invoices,
            "node": self.node(),
            "timestamp": now,
        }

    def summary(self) -> dict[str, Any]:
        tasks, shown = self.task_totals()
        finished = shown["completed"] + shown["failed"]
        return {
            "total": tasks["tasks"],
            **shown,
            "cached": tasks["cached"],
            "success_rate": 1000 * shown["completed"] // finished / 10
            if finished
            else None,  # 99.96 is not all
            "avg_elapsed_ms": big(round(tasks["elapsed_ms"] / tasks["timed"]))
            if tasks["timed"]
            else None,
            "avg_gas_used": big(round(tasks["gas_used"] / tasks["measured"]))
            if tasks["measured"]
            else None,
            "tasks_24h": self.store.first("tasks_since", self.monitor.now() - DAY_MS),
        }

    def task_totals(self) -> tuple[dict[str, int], dict[str, int]]:
        """Sums over all tasks, and how many there are of each status."""
        rows = self.store.get("task_totals")
        names = ("tasks", "cached", "timed", "elapsed_ms", "measured", "gas_used")
        counts = dict.fromkeys(STATUSES, 0) | {row["status"]: row["tasks"] for row in rows}
        return {name: sum(row[name] for row in rows) for name in names}, counts

    def page(
        self, table: str, name: str, show: Callable[[sqlite3.Row], dict[str, Any]], call: Call
    ) -> Listing:
        """One page of a table, newest first."""
        query = dict(call.query)
        limit, offset = (
            query.pop("limit", 1000 if table != "audit" and wants_csv(call) else 50),
            query.pop("offset", 0),
        )
        cursor, _ = query.pop("cursor", None), query.pop("format", None)
        columns = f"{PAGE_ORDER[table]}, id"
        rows = self.store.page(table, query, cursor, limit + 1, offset, columns)
        places = [(at or 0, number) for at, number in rows]
        read = functools.partial(self.store.rows_of, table, [row["id"] for row in rows[:limit]])
        return Listing(name, read, show, {"pagination": pagination(places, limit, offset)})

    def task_row(self, call: Call) -> sqlite3.Row:
        for row in self.store.get("task_row", call.path["execution_id"].lower()):
            return row
        raise Refusal(404, "no task with this execution id is known")

    def task(self, call: Call) -> dict[str, Any]:
        row = self.task_row(call)
        name = row["execution_id"]
        events = [
            {"at": utc(event["at"]), "event": event["event"]}
            for event in self.store.get("task_events", name)
        ]
        return {
            **task_json(row),
            "hasSensitiveData": bool(self.store.get("task_data", name)),
            "sensitiveDataRequiresAuth": True,
            "events": events,
            "invoice_id": self.store.first("invoice_of", name),
        }

    def task_data(self, call: Call) -> dict[str, Any]:
        name = self.task_row(call)["execution_id"]
        given, printed, error = next(iter(self.store.get("task_data", name)), (None, None, None))
        return {"execution_id": name, "inputData": given, "outputData": printed, "errorText": error}

    @contextlib.contextmanager
    def module_of(self, call: Call) -> Iterator[tuple[str, str, int] | None]:
        """(hash, path, size in bytes) of the task's wasm module; None if the node's cache does not
        have it.
        """
        digest, engine = self.task_row(call)["wasm_hash"], self.monitor.engine
        if digest is None or engine is None:
            yield None
            return
        if not self.module_lock.acquire(timeout=10):
            raise Refusal(503, "somebody else's artifact is being read", {"Retry-After": "5"})
        try:
            found = find_module(engine, self.monitor.config.container_name, digest)
            yield found and (digest, found[0], found[1].size)
        except DockerError as error:
            raise Refusal(
                503, f"the engine does not give it: {error}", {"Retry-After": "5"}
            ) from None
        finally:
            self.module_lock.release()

    def artifacts(self, call: Call) -> dict[str, Any]:
        with self.module_of(call) as found:
            listed = [{"hash": found[0], "type": "wasm", "size_bytes": found[2]}] if found else []
        return {"artifacts": listed}

    def artifact(self, call: Call) -> Reply:
        most = self.monitor.config.max_artifact_bytes
        with self.module_of(call) as found:
            if found is None or found[0] != call.path["hash"].lower():
                raise Refusal(
                    404, "this task has no artifact of this hash, or the node has dropped it"
                )
            assert self.monitor.engine is not None
            if found[2] > most:
                raise Refusal(
                    413, f"the artifact has {found[2]} bytes: raise MAX_ARTIFACT_BYTES to have it"
                )
            content = read_module(
                self.monitor.engine, self.monitor.config.container_name, found[1], most
            )
            if content is None:
                raise Refusal(503, "the artifact has just changed", {"Retry-After": "1"})
        name = f'attachment; filename="{found[0]}.wasm"'
        return Reply(content, {"Content-Type": "application/wasm", "Content-Disposition": name})

    def invoice_summary(self) -> dict[str, Any]:
        counts = dict(self.store.get("invoice_summary")[0])
        rows = self.store.get("invoice_months")
        months = [
            month_json(month, list(group))
            for month, group in itertools.groupby(rows, key=lambda row: row["month"])
        ]
        return {**counts, "months": months}

    def logs(self, call: Call) -> Listing:
        query = dict(call.query)
        limit, offset = query.pop("limit", 50), query.pop("offset", 0)
        before, span = (
            query.pop("cursor", None),
            (query.pop("since", SINCE), query.pop("until", UNTIL)),
        )
        if "level" in query:
            query["level"] = LEVELS.index(query["level"])
        if "type" in query:
            query["type"] = LOG_TYPES.index(query["type"])
        if "search" in query:
            query["search"] = literal_like(query["search"])
        found = self.store.entries(query, *span, before, offset + limit + 1, "key, seq")[offset:]
        places = [(row["key"], row["seq"]) for row in found]
        room = PAGE_BYTES
        for number, size in enumerate(self.store.message_sizes(key for key, _ in places)):
            room -= size
            if room < 0:  # the last one that still fits ends the page
                limit = max(1, min(limit, number))
                break
        keys = [key for key, _ in places[:limit]]
        read = functools.partial(self.store.rows_of, "log", keys)
        page = {**pagination(places, limit, offset), "limit": call.query.get("limit", 50)}
        return Listing("logs", read, entry_json, {"pagination": page})

    def log_status(self) -> dict[str, Any]:
        counters = dict(tuple(row) for row in self.store.get("counters"))
        source = "demo" if self.monitor.demo else "engine" if self.monitor.engine else "directory"
        shown = {name: counters.get(name, 0) for name in ("unrecognised", "suspect")}
        return {
            "source": source,
            "lastLogAt": utc(self.store.first("last_entry_at")),
            "gaps": self.gaps(),
            "passedOver": [
                {"file": name, "reason": reason}
                for name, reason in self.monitor.passed_over.items()
            ],
            **shown,
        }

    def gaps(self) -> list[dict[str, Any]]:
        return [
            {"from": utc(row[0]), "to": utc(row[1]), "reason": row[2]}
            for row in self.store.get("gaps")
        ]

    def login(self, call: Call) -> Reply:
        session, token = self.guard.login(call.caller, call.body["secret"])
        cookie = self.guard.cookie_text(token, call.caller.headers, SESSION_MS // 1000)
        own = call.caller._replace(
            session=session, headers={}
        )  # a guess in a header is told nothing
        shown = {"success": True, "open": self.guard.open_to(own)}
        return Reply(
            {**shown, "expiresAt": utc(session.ends_at)},
            {"Set-Cookie": cookie, "Cache-Control": "no-store"},
        )

    def logout(self, call: Call) -> Reply:
        self.guard.logout(call.caller)
        return Reply(
            {"success": True}, {"Set-Cookie": self.guard.cookie_text("", call.caller.headers, 0)}
        )

    def auth_status(self, call: Call) -> dict[str, Any]:
        self.guard.check("open", call.caller, CREDENTIALS)
        return self.guard.access(call.caller)

    def audit_json(self, row: sqlite3.Row) -> dict[str, Any]:
        shown = {name: row[name] for name in ("id", "event", "address", "detail")}
        return {**shown, "timestamp": utc(row["at"])}

    def metrics(self) -> Reply:
        return Reply(
            metrics_text(self.families()),
            {"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    def families(self) -> Iterator[tuple[str, str, str, Mapping[str, float | None]]]:
        """Every metric. Counters come from the store, so that they go on after a restart."""
        monitor, store = self.monitor, self.store
        counters = dict(tuple(row) for row in store.get("counters"))
        stats, container = monitor.stats, self.container()
        state = verdict.state if (verdict := monitor.newest_verdict()) else "blind"
        states = {word: float(word == state) for word in fields_of("Verdict")["state"].split("|")}
        totals, tasks = self.task_totals()
        slots, last = self.slots(store.node()), store.first("last_entry_at")
        yield (
            "tbmon_build_info",
            "gauge",
            "Version of tbmon.",
            labelled("version", {__version__: 1}),
        )
        yield "tbmon_verdict", "gauge", "1 for what the node is.", labelled("state", states)
        yield (
            "tbmon_container_running",
            "gauge",
            "1 if the node's container runs.",
            {"": None if container is None else int(container["running"])},
        )
        yield (
            "tbmon_container_cpu_cores",
            "gauge",
            "Processor cores in use.",
            {"": None if stats is None or stats.cpu is None else round(stats.cpu / 100, 6)},
        )
        yield (
            "tbmon_container_memory_bytes",
            "gauge",
            "Memory in use, page cache left out.",
            {"": stats and stats.memory_bytes},
        )
        yield (
            "tbmon_container_memory_limit_bytes",
            "gauge",
            "Memory limit.",
            {"": stats and stats.memory_limit_bytes},
        )
        for name, part, words in (
            ("slots_in_use", "current", "Slots in use."),
            ("slots", "total", "Slots in all."),
        ):
            values = {subscriber: slot[part] for subscriber, slot in slots.items()}
            yield f"tbmon_{name}", "gauge", words, labelled("subscriber", values)
        yield (
            "tbmon_tasks",
            "gauge",
            "Tasks by what became of them so far.",
            labelled("status", tasks),
        )
        yield "tbmon_tasks_received_total", "counter", "Tasks received.", {"": sum(tasks.values())}
        yield (
            "tbmon_task_duration_seconds",
            "summary",
            "Time that tasks took.",
            {"_sum": totals["elapsed_ms"] / 1000, "_count": totals["timed"]},
        )
        yield (
            "tbmon_task_steps_total",
            "counter",
            "Steps that tasks took.",
            {"": totals["gas_used"]},
        )
        found = dict(store.get("invoice_summary")[0])
        kinds = {"pay": found["paid"], "penalty": found["penalised"]}
        kinds["unknown"] = found["total"] - sum(kinds.values())
        yield (
            "tbmon_invoices",
            "gauge",
            "Invoices by what they say of this node.",
            labelled("operation", kinds),
        )
        yield "tbmon_invoices_received_total", "counter", "Invoices received.", {"": found["total"]}
        yield (
            "tbmon_log_last_entry_timestamp_seconds",
            "gauge",
            "Time of the newest log entry.",
            {"": None if last is None else last / 1000},
        )
        for name, words in (
            ("unrecognised", "of unknown wording"),
            ("suspect", "that the node did not write"),
        ):
            yield (
                f"tbmon_log_{name}_total",
                "counter",
                f"Log entries {words}.",
                {"": counters.get(name, 0)},
            )
        yield (
            "tbmon_log_gaps_total",
            "counter",
            "Times that log lines may be missing.",
            {"": store.first("gap_count")},
        )
        yield (
            "tbmon_log_lag_seconds",
            "gauge",
            "How far behind the log tbmon is.",
            {"": monitor.lag_ms / 1000},
        )
        yield "tbmon_database_bytes", "gauge", "Size of the database.", {"": store.size_bytes()}
        yield "tbmon_streams", "gauge", "Live streams.", {"": self.streams.total()}
        yield (
            "process_start_time_seconds",
            "gauge",
            "When tbmon started.",
            {"": monitor.started_at / 1000},
        )
        yield "process_resident_memory_bytes", "gauge", "Memory of tbmon.", {"": resident_bytes()}

    # The federation

    def sharing(self) -> dict[str, Any]:
        chosen, outbox = self.outbox.sharing, self.outbox
        return {
            "enabled": chosen.enabled,
            "nodeId": outbox.keys.known_id(),
            "privacyLevel": chosen.level,
            "shareTasks": chosen.tasks,
            "shareStats": chosen.stats,
            "natsServers": list(self.outbox.servers()),
        }

    def share(self, call: Call, **chosen: Any) -> None:
        """Take over what the operator chose, and let the federation's thread begin, begin anew or
        end.
        """
        with self.sharing_lock:
            self.ask_consent(call, chosen)
            before, after = self.outbox.sharing, self.outbox.after(**chosen)
            turned = (after.agreed, after.servers) != (before.agreed, before.servers)
            if turned or not after.enabled:  # first: opting out must not depend on a disk
                self.federation.stop(says_goodbye=not after.enabled)
            try:
                if after != before:
                    self.outbox.keep(**chosen)
            finally:
                if after.enabled:  # as it was, where a full disk keeps the change from being kept
                    self.begin(before)
            if words := changes_of(before, after, self.outbox.hub):
                self.guard.note("settings", call.caller, words)

    def begin(self, before: Sharing) -> None:
        """Let the federation's thread begin; if it cannot, put the settings back, raise Refusal."""
        try:
            self.federation.start()
        except RuntimeError as error:
            self.outbox.keep(**before._asdict())
            left = "is not connected" if before.enabled else "is off"
            raise Refusal(
                503,
                f"the federation's thread cannot be started ({error}), and the federation {left}: "
                f"let tbmon have more threads or memory, and try again",
                {"Retry-After": "10"},
            ) from None

    def ask_consent(self, call: Call, chosen: Mapping[str, Any]) -> None:
        """Raise Refusal unless the caller may choose this: more leaves by the task-data password
        only, less by nobody's leave.
        """
        if self.monitor.demo and chosen.get("enabled"):
            raise Refusal(409, "demo data is not shared")
        before, after = self.outbox.sharing, self.outbox.after(**chosen)
        servers = set(after.servers or (self.outbox.hub,))
        if lets_more_out(before, after) or servers - set(self.outbox.servers()):
            self.guard.check("private", call.caller)

    def put_sharing(self, call: Call) -> dict[str, Any]:
        body = dict(call.body)
        names = {
            "privacyLevel": "level",
            "shareTasks": "tasks",
            "shareStats": "stats",
            "natsServers": "servers",
        }
        chosen = {names.get(name, name): value for name, value in body.items()}
        if "servers" in chosen:
            chosen["servers"] = tuple(chosen["servers"])
            self.ask_consent(call, chosen)  # before a word about the servers
            try:
                for url in chosen["servers"]:
                    check_server(url)
                if len(chosen["servers"]) > 10:
                    raise ValueError("ten at most")
            except ValueError as error:
                raise Refusal(400, f"natsServers: {error}") from None
            if chosen["servers"] == (self.outbox.hub,):
                chosen["servers"] = ()
        self.share(call, **chosen)
        return self.sharing()

    def enable(self, call: Call) -> dict[str, Any]:
        self.share(call, enabled=True)
        return self.done("federation is on: preview shows what waits, sent what left")

    def disable(self, call: Call) -> dict[str, Any]:
        self.share(call, enabled=False)
        return self.done("federation is off: nothing is connected to, and nothing waits to be sent")

    def reset(self, call: Call) -> dict[str, Any]:
        """A new id and new keys; what waits under the old ones is taken back."""
        with self.sharing_lock:
            before = self.outbox.sharing
            if before.agreed:  # it joins anew
                self.guard.check("private", call.caller)
            self.share(call, enabled=False)
            if self.outbox.keys.known_id() or self.outbox.keys.day_keys():
                self.guard.note("settings", call.caller, "reset: id and day keys deleted")
            self.outbox.withdraw()
            if before.enabled:
                self.share(call, enabled=True, hubs=before.hubs)
        return self.done("the id and the keys of this installation are new")

    def done(self, words: str) -> dict[str, Any]:
        return {"success": True, "message": words, "connected": self.federation.connected}

    def federation_status(self) -> dict[str, Any]:
        federation, chosen = self.federation, self.outbox.sharing
        on, status = chosen.enabled, "failing" if federation.last_error else "connecting"
        if not chosen.agreed:
            status = "consent needed" if on else "off"
        elif federation.connected:
            status = "connected"
        reason = json.loads(self.store.first("state", "federation refusal") or "null")
        return {
            "enabled": on,
            "connected": federation.connected,
            "healthy": federation.connected or not on,
            "status": status,
            "nodeId": self.outbox.keys.known_id(),
            "hub": list(self.outbox.servers()),
            "consentedTo": list(chosen.hubs),
            "stats": self.federation_counts(),
            "lastError": federation.last_error if on else None,
            "lastRefusal": reason,
        }

    def federation_counts(self) -> dict[str, int]:
        counters = dict(tuple(row) for row in self.store.get("counters"))
        names = {"messagesSent": "sent", "messagesReceived": "received"}
        shown = {
            name: int(counters.get(f"federation {names.get(name, name)}", 0))
            for name in fields_of("FederationCounts")
            if name != "queued"
        }
        return {**shown, "queued": int(self.store.first("outbox_count"))}

    def network_stats(self) -> dict[str, Any]:
        newest = json.loads(self.store.first("state", "network stats") or "{}")
        return self.stats_json(newest.get("at"), newest.get("stats", {}))

    def stats_json(self, at: int | None, stats: Mapping[str, Any]) -> dict[str, Any]:
        shown = {"status": "connected" if stats else "awaiting_data", "lastUpdated": utc(at)}
        return {**shown, **{name: stats.get(name) for name in PUBLISHED}}

    def network_history(self) -> Listing:
        return Listing(
            "history",
            functools.partial(self.snapshots, SNAPSHOTS),
            lambda row: self.stats_json(row["at"], json.loads(row["stats"])),
        )

    def snapshots(self, most: int) -> Iterator[sqlite3.Row]:
        """The network's figures as they came, newest first."""
        numbers = [row["id"] for row in self.store.get("snapshots", most)]
        return self.store.rows_of("network_stats", numbers)

    def peers(self) -> dict[str, Any]:
        peers = self.network_stats()["peers"] or []
        return {"peers": peers, "count": len(peers)}

    def received(self) -> Listing:
        def show(row: sqlite3.Row) -> dict[str, Any]:
            told = {"timestamp": utc(row["at"]), "subject": STATS_SUBJECT}
            return {**told, "data": json.loads(row["stats"])}

        return Listing("messages", functools.partial(self.snapshots, 100), show)

    def preview(self) -> dict[str, Any]:
        """What waits, byte for byte; and what the newest task and invoice would become now, with
        keys made for this.
        """
        queued = [
            {
                "dueAt": utc(row["due_at"]),
                "subject": row["subject"],
                "payload": row["payload"].decode(),
            }
            for row in self.store.get("outbox_next")
        ]
        words = Words(self.monitor.now(), secrets.token_hex(16), secrets.token_bytes(32))
        name = next(
            (
                row["execution_id"]
                for row in self.store.page("task", {"status": "completed"}, None, 1, 0)
            ),
            None,
        )
        task = self.store.task(name or "") or Task(
            "00000000-0000-4000-8000-000000000000", status="completed"
        )
        invoices = self.store.page("invoice", {}, None, 1, 0)
        name, steps = (invoices[0]["name"], invoices[0]["steps"]) if invoices else ("0", None)
        node_id = self.outbox.keys.known_id() or random_node_id(random.SystemRandom())
        choice = secrets.choice(tuple(MESSAGES["task_completed"].choices))
        made = (
            presence_message("heartbeat", node_id, True, words),
            received_message(task, words),
            completed_message(task, words, choice),
            invoice_message(name, steps, words),
        )
        kinds = ("heartbeat", "task_received", "task_completed", "invoice_created")
        examples = [
            {"dueAt": None, "subject": MESSAGES[kind].subject, "payload": payload.decode()}
            for kind, payload in zip(kinds, made, strict=True)
        ]
        return {"queued": queued, "examples": examples}

    def sent_json(self, row: sqlite3.Row) -> dict[str, Any]:
        shown = {
            "id": row["id"],
            "timestamp": utc(row["at"]),
            "subject": row["subject"],
            "times": row["times"],
        }
        return {**shown, "payload": row["payload"].decode()}

    def privacy(self) -> dict[str, Any]:
        """Facts about sharing, each looked up now."""
        chosen, counts = self.outbox.sharing, self.federation_counts()
        delay_ms = DELAY_MS.get(chosen.level)
        kinds = [
            kind
            for kind in MESSAGES
            if chosen.agreed and (MESSAGES[kind].named or kind in chosen.kinds)
        ]
        return {
            "enabled": chosen.enabled,
            "connectsTo": list(self.outbox.servers()) if chosen.agreed else [],
            "installationId": self.outbox.keys.known_id() is not None,
            "kindsShared": kinds,
            "delayUpToMinutes": delay_ms // MINUTE_MS if delay_ms else None,
            "messagesSent": counts["messagesSent"],
            "messagesWaiting": counts["queued"],
            "messagesRefused": counts["refused"],
            "dayKeysKept": len(self.outbox.keys.day_keys()),
        }

    # The live stream

    def events(self, call: Call) -> Reply:
        """Open a stream for the caller, if there is room for one more."""
        self.guard.check("open", call.caller, ("private",))  # it opens the log
        config, address = self.monitor.config, call.caller.address
        with self.streams_lock:
            if self.streams.total() >= config.ws_max_connections:
                raise Refusal(
                    503, "all live streams are taken (WS_MAX_CONNECTIONS)", {"Retry-After": "10"}
                )
            if self.streams[address] >= config.ws_max_per_ip:
                words = (
                    f"this address has {self.streams[address]} live streams already (WS_MAX_PER_IP)"
                )
                raise Refusal(429, words, {"Retry-After": "10"})
            self.streams[address] += 1
        headers = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}
        return Reply(self.stream(call.caller), {**headers, "Cache-Control": "no-store"})

    def stream(self, caller: Caller) -> Iterator[bytes]:
        """Tell what happens, until the client, its session or tbmon ends. waitress blocks us for a
        slow reader.
        """
        try:
            with reading(self.store):
                yield from self.happenings(caller)
        except Refusal as refusal:
            log.warning("api: a live stream ended: %s", refusal)
        finally:
            with self.streams_lock:
                self.streams[caller.address] -= 1
                self.streams += Counter()  # forgets who has none

    def happenings(self, caller: Caller) -> Iterator[bytes]:
        """What a live stream sends, event by event, and a sign of life where nothing happens."""
        ring, gone = self.monitor.ring, caller.headers.get("waitress.client_disconnected", bool)
        place, lost = self.resume(caller.headers.get("HTTP_LAST_EVENT_ID"))
        yield b"retry: 2000\n" + self.event_id(place) + b"\n"
        beat, told = time.monotonic(), place
        while not (self.monitor.stop.is_set() or gone() or self.has_ended(caller)):
            news = None if lost else ring.after(place, STREAM_LOOK_S)
            if news is None:
                place, lost = ring.newest, False
                yield self.event(
                    place, "reset", {"reason": "events were missed: ask for what is shown again"}
                )
            elif news:
                with_log = self.guard.holds("private", caller)
                shown = [one for one in news if with_log or one.kind != "log"][:STREAM_HAPPENINGS]
                is_behind = len(shown) == STREAM_HAPPENINGS
                place = (shown if is_behind else news)[-1].number
                for chunk in self.tell(shown, self.turns[with_log]):
                    yield chunk
                    beat, told = time.monotonic(), place
                rest_s = 0 if is_behind else STREAM_REST_S * (1 + self.streams.total() / 10)
                self.monitor.stop.wait(
                    rest_s + min(1, max(0, self.monitor.lag_ms - 2000) / 10_000)
                )  # ingest first
            if time.monotonic() - beat >= (STREAM_BEAT_S if place == told else 1):
                beat, told = time.monotonic(), place  # what was passed over need not be read again
                yield self.event_id(place) + b": still here\n\n"

    def has_ended(self, caller: Caller) -> bool:
        if caller.session is not None and caller.session.ends_at <= self.monitor.now():
            return True
        return not self.guard.opens("stream", caller)

    def resume(self, last_id: str | None) -> tuple[int, bool]:
        """Where to begin, and whether something after `last_id` is lost."""
        boot, _, number = (last_id or "").partition("-")
        if last_id and boot == self.boot and re.fullmatch(r"\d{1,18}", number, re.ASCII):
            return int(number), False  # the ring knows whether it still has what followed
        return self.monitor.ring.newest, bool(last_id)

    def tell(self, news: Sequence[Happening], turn: threading.Lock) -> Iterator[bytes]:
        """The events of what happened, in chunks; of several about the same thing only the last."""
        last = {(kind, key): number for number, kind, key in news}
        left = deque(sorted((number, *name) for name, number in last.items()))
        while left:
            chunk = bytearray()
            with turn:
                while left and len(chunk) < STREAM_CHUNK_BYTES:
                    chunk += self.event_of(*left.popleft())
            if chunk:
                yield bytes(chunk)

    def event_of(self, number: int, kind: str, key: Any) -> bytes:
        """An event as it is sent, made once for all streams unless it is large; b"" if its subject
        is gone.
        """
        kept, event = self.made[number % EVENTS_KEPT]
        if kept != number:
            data = self.show(kind, key)
            event = b"" if data is None else self.event(number, kind, data)
            if len(event) < EVENT_BYTES:
                self.made[number % EVENTS_KEPT] = number, event
        return event

    def show(self, kind: str, key: Any) -> Mapping[str, Any] | None:
        """What an event carries; None if it is gone meanwhile."""
        if kind in ("node_status", "network_stats"):
            return self.status() if kind == "node_status" else self.network_stats()
        if kind == "semaphore":
            return {
                "subscriber": key,
                **self.slots(self.store.node()).get(key, {"current": None, "total": None}),
            }
        if kind == "gap":
            return next(iter(self.gaps()), None)
        if kind == "reset":
            return {"reason": "older log files were read: ask for what is shown again"}
        show = {"task": task_json, "invoice": invoice_json, "log": entry_json}[kind]
        return next((show(row) for row in self.store.get(f"{kind}_row", key)), None)

    def event_id(self, number: int) -> bytes:
        return f"id: {self.boot}-{number}\n".encode()

    def event(self, number: int, kind: str, data: Mapping[str, Any]) -> bytes:
        text = self.store.show(json.dumps(data))
        return self.event_id(number) + f"event: {kind}\ndata: {text}\n\n".encode()


# The charts: at most 200 cells each, aligned to their length so that they stay the same while time
# goes on


def cells_of(now: int, number: int, step: int) -> range:
    """The starts of `number` cells of `step` ms, of which the last holds `now`."""
    last = now // step * step
    return range(last - (number - 1) * step, last + 1, step)


def cell_rows(store: Store, what: str, cells: range) -> Sequence[Mapping[str, Any] | None]:
    """What a query that counts by cell has for each of `cells`; None where it has nothing."""
    found = {
        row["cell"]: dict(row) for row in store.get(what, cells.start, cells.step, cells.start)
    }
    return [found.get(number) for number in range(len(cells))]


def series(cells: range, shown: list[dict[str, Any]]) -> dict[str, Any]:
    """A chart's cells, from the oldest; the first begins at `from`, each is `cell_s` long."""
    return {"from": utc(cells.start), "cell_s": cells.step // 1000, "cells": shown}


def task_series(store: Store, cells: range, shape: str = "TaskCell") -> dict[str, Any]:
    """Tasks by what became of them, by the time they were received."""
    counts = cell_rows(store, "task_cells", cells)
    timed = cell_rows(store, "duration_cells", cells) if shape == "TimedCell" else counts
    nothing = {name: None if name.endswith("_ms") else 0 for name in fields_of(shape)}
    known = [
        {**nothing, **(count or {}), **(times or {})}
        for count, times in zip(counts, timed, strict=True)
    ]
    return series(cells, [{name: cell[name] for name in nothing} for cell in known])


def uptime_json(store: Store, now: int) -> dict[str, Any]:
    """Thirty days in cells of minutes up, down and unknown; shares are of the minutes that are
    known, and null where those are less than a tenth of the span.
    """
    cells, shown, percent = cells_of(now, *SPANS["30d"]), list[dict[str, Any]](), dict[str, Any]()
    for at, row in zip(cells, cell_rows(store, "up_cells", cells), strict=True):
        up, seen = (row["up"], row["seen"]) if row else (0, 0)
        length = min(cells.step, now - at + MINUTE_MS) // MINUTE_MS
        shown.append({"up": up, "down": seen - up, "unknown": max(0, length - seen)})
    for name, days in (("percent_24h", 1), ("percent_7d", 7), ("percent_30d", 30)):
        up, seen = store.get("up_between", now - days * DAY_MS, now)[0]
        is_enough = seen * MINUTE_MS * 10 >= days * DAY_MS
        percent[name] = math.floor(10_000 * up / seen) / 100 if is_enough else None
        span = name.removeprefix("percent_")
        percent |= {f"up_{span}_min": up, f"watched_{span}_min": seen}
    outages = [row["minutes"] for row in store.get("outages", now - 30 * DAY_MS, now)]
    longest = max(outages, default=0)
    return {
        **percent,
        "outages": len(outages),
        "longest_outage_min": longest,
        **series(cells, shown),
    }


def usage_json(store: Store, now: int) -> dict[str, Any]:
    """A day of processor and memory; while less than three hours are known, those alone."""
    first = store.first("first_sample", now - DAY_MS)
    is_new = first is None or first > now - 3 * HOUR_MS
    cells = cells_of(now, *((90, 2 * MINUTE_MS) if is_new else (72, 20 * MINUTE_MS)))
    shown = []
    for row in cell_rows(store, "usage_cells", cells):
        cpu, memory = (row["cpu"], row["memory"]) if row else (None, None)
        shown.append({"cpu": cpu and round(cpu, 1), "memory_mb": memory and round(memory / MIB, 1)})
    return series(cells, shown)


def recent_json(store: Store) -> list[dict[str, Any]]:
    """The last twelve things that happened, newest first."""
    kinds = ("recent_tasks", "recent_invoices", "recent_starts", "recent_gaps")
    rows = [dict(row) for kind in kinds for row in store.get(kind)]
    rows.sort(key=lambda row: row["at"] or 0, reverse=True)
    return [{**row, "at": utc(row["at"])} for row in rows[:12]]


def now_json(api: Api) -> dict[str, Any]:
    """All that the page Now shows; `stream` is where a live stream that goes on from here
    begins.
    """
    place, store, now = f"{api.boot}-{api.monitor.ring.newest}", api.store, api.monitor.now()
    day = now - DAY_MS
    invoices = {
        "total": store.first("invoice_count"),
        "invoices_24h": store.first("invoices_since", day),
        "waiting_24h": store.first("waiting_since", day),
    }
    return {
        **api.status(),
        "tasks": api.summary(),
        "invoices": invoices,
        "uptime": uptime_json(store, now),
        "usage": usage_json(store, now),
        "activity": task_series(store, cells_of(now, *SPANS["24h"])),
        "recent": recent_json(store),
        "strangers": open_words(api.monitor.config),
        "stream": place,
    }


def task_chart(api: Api, call: Call) -> dict[str, Any]:
    cells = cells_of(api.monitor.now(), *SPANS[call.query.get("span", "24h")])
    failures = [
        {**row, "last_at": utc(row["last_at"])}
        for row in map(dict, api.store.get("failures", cells.start))
    ]
    return {**task_series(api.store, cells, "TimedCell"), "failures": failures}


def log_chart(api: Api, call: Call) -> dict[str, Any]:
    """Log entries by time. Keys have the node's own clock."""
    cells = cells_of(api.monitor.now(), *SPANS[call.query.get("span", "24h")])
    ahead_s = api.store.ahead_s()
    shown = []
    for at in cells:
        low = at // 1000 + ahead_s
        shown.append(
            dict(api.store.get("log_cell", key_of(low), key_of(low + cells.step // 1000))[0])
        )
    return {**series(cells, shown), "most": CELL_ENTRIES}


# What the page Setup shows


def database_json(api: Api) -> dict[str, Any]:
    """What is kept, how much that is, and how much it may become."""
    store, config = api.store, api.monitor.config
    return {
        "size_bytes": store.size_bytes(),
        "limit_bytes": config.max_db_bytes,
        "retention_days": config.log_retention_days,
        "oldestLogAt": utc(store.first("oldest_entry_at")),
        "tasks": api.task_totals()[0]["tasks"],
        "invoices": store.first("invoice_count"),
        "gaps": store.first("gap_count"),
    }


def setup_json(api: Api) -> dict[str, Any]:
    """How this tbmon is set up: who can read it, what it may ask Docker, what it keeps."""
    monitor, config, name = api.monitor, api.monitor.config, api.monitor.config.container_name
    lists = {"allowedHosts": config.allowed_hosts, "allowedOrigins": config.allowed_origins}
    calls = [f"/containers/{name}/{call}" for call in ("json", "logs", "stats", "archive")]
    calls += [f"{LIST_CALL}?all=1&filters={query['filters']}" for query in candidate_queries(name)]
    return {
        "version": __version__,
        "startedAt": utc(monitor.started_at),
        "memory_bytes": resident_bytes(),
        "source": api.log_status()["source"],
        "container": name,
        "host": config.host,
        "port": config.port,
        "strangers": open_words(config),
        "apiKey": bool(config.api_key),
        "passwordFrom": "setting" if config.task_data_password else "file",
        "streamToken": bool(config.ws_auth_required),
        "trustedProxy": split_list(config.trusted_proxy),
        **{name: split_list(text) for name, text in lists.items()},
        "dockerUrl": monitor.engine.url if monitor.engine else None,
        "dockerCalls": ["/_ping", "/version", *calls] if monitor.engine else [],
        "dockerFolders": list(ARCHIVE_PREFIXES) if monitor.engine else [],
        "database": database_json(api),
    }


def doctor_json(api: Api) -> dict[str, Any]:
    """What `doctor` finds now; it reads the log's end, so that one may run at a time."""
    if not api.doctor_lock.acquire(timeout=10):
        raise Refusal(503, "doctor is at work already", {"Retry-After": "5"})
    try:
        return {
            "findings": [
                {"level": level.lower(), "what": what, "remedy": remedy}
                for level, what, remedy in api.monitor.doctor()
            ]
        }
    finally:
        api.doctor_lock.release()


STREAM_LOOK_S = 0.5  # a stream looks this often whether its client and its session are still there
STREAM_REST_S = (
    0.02  # between two chunks, so that a busy log does not wake every stream for each line
)
STREAM_BEAT_S = 15
STREAM_HAPPENINGS = (
    500  # looked at for one chunk; what a reader that is cut had in hand stays small
)
STREAM_CHUNK_BYTES = 128 * KIB
EVENTS_KEPT, EVENT_BYTES = (
    4096,
    2 * KIB,
)  # for the streams to come to them; none is kept that is larger


def resident_bytes() -> int | None:
    """The memory that this process holds (Linux)."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def wants_csv(call: Call) -> bool:
    accepted = re.search(
        r"\btext/csv\b(?! *; *q=0(\.0*)? *(,|$))", call.caller.headers.get("HTTP_ACCEPT", "")
    )
    return bool(call.query.get("format", "csv" if accepted else "") == "csv")


class Route(NamedTuple):
    """A path of the API. `access` is its data class, `shows` the shape or content type of its
    answer, `query` the parameters it takes, `body` the shape of what is sent, `rows` the shape of a
    list's rows where CSV can be had.
    """

    path: str
    access: str  # open, local, private or stream
    text: str
    shows: str
    answer: Callable[[Api, Call], Mapping[str, Any] | Listing | Reply]
    query: Mapping[str, Parameter] = NOTHING
    rows: str = ""
    method: str = "GET"
    body: str = ""


def health_answer(api: Api, call: Call) -> dict[str, Any]:
    return api.node_health(call.caller) if call.query.get("node") == "1" else api.health()


TASK, DATA = "/api/tasks/{execution_id}", "Private: asks for the task-data password."
ROUTES = (
    Route(
        "/health",
        "open",
        "Whether tbmon itself works. With `node=1` it answers 503 while the node is down or cannot"
        " be seen, for a monitor from outside; then it asks for the API key where there is one,"
        " unless HEALTH_NODE_OPEN is set.",
        "Health",
        health_answer,
        HEALTH_QUERY,
    ),
    Route("/api/health", "open", "The same under /api.", "Health", health_answer, HEALTH_QUERY),
    Route(
        "/api/status",
        "local",
        "The node, its container and the verdict on both.",
        "Status",
        lambda api, call: api.status(),
    ),
    Route(
        "/api/status/stats",
        "local",
        "Figures of tasks and invoices.",
        "Overview",
        lambda api, call: api.stats(),
    ),
    Route(
        "/api/now",
        "local",
        "All that the page Now shows, in one answer.",
        "Now",
        lambda api, call: now_json(api),
    ),
    Route(
        "/api/tasks",
        "local",
        "Tasks, newest first. `matched`: whether there is an invoice.",
        "Tasks",
        lambda api, call: api.page("task", "tasks", task_json, call),
        TASKS_QUERY,
        "Task",
    ),
    Route(
        "/api/tasks/stats/summary",
        "local",
        "Figures of tasks. `success_rate` is of finished tasks, in percent.",
        "Summary",
        lambda api, call: api.summary(),
    ),
    Route(
        "/api/tasks/stats/chart",
        "local",
        "Tasks and their durations over time, and failures by reason; `span` counts back from now.",
        "TaskChart",
        task_chart,
        SPAN_QUERY,
    ),
    Route(TASK, "local", "One task and what happened when.", "TaskDetail", Api.task),
    Route(
        TASK + "/data",
        "private",
        f"Input, output and error words of a task. {DATA}",
        "TaskData",
        Api.task_data,
    ),
    Route(
        TASK + "/artifacts",
        "private",
        f"The task's wasm module, if the node's cache still has it. {DATA}",
        "Artifacts",
        Api.artifacts,
    ),
    Route(
        TASK + "/artifacts/{hash}",
        "private",
        f"A module's bytes, up to MAX_ARTIFACT_BYTES. {DATA}",
        "application/wasm",
        Api.artifact,
    ),
    Route(
        "/api/invoices",
        "local",
        "Invoices, newest first. `matched`: whether the task is known; `gas_units` are"
        " steps times the price of a step, a unit and no amount of money.",
        "Invoices",
        lambda api, call: api.page("invoice", "invoices", invoice_json, call),
        INVOICES_QUERY,
        "Invoice",
    ),
    Route(
        "/api/invoices/count",
        "local",
        "How many invoices there are.",
        "Count",
        lambda api, call: {"count": api.store.first("invoice_count")},
    ),
    Route(
        "/api/invoices/summary",
        "local",
        "Invoices by month, completed tasks without an invoice, and invoices without a task.",
        "InvoiceSummary",
        lambda api, call: api.invoice_summary(),
    ),
    Route(
        "/api/logs",
        "private",
        f"Log entries, newest first; `search` is taken literally. {DATA}",
        "Entries",
        Api.logs,
        LOGS_QUERY,
    ),
    Route(
        "/api/logs/status",
        "local",
        "Where the log comes from, and where lines may be missing.",
        "LogStatus",
        lambda api, call: api.log_status(),
    ),
    Route(
        "/api/logs/chart",
        "private",
        f"Log entries over time, by level; `span` counts back from now. {DATA}",
        "LogChart",
        log_chart,
        SPAN_QUERY,
    ),
    Route(
        "/api/setup",
        "local",
        "How this tbmon is set up: who can read it, what it may ask Docker, what it keeps.",
        "Setup",
        lambda api, call: setup_json(api),
    ),
    Route(
        "/api/doctor",
        "private",
        "What `tbmon.py doctor` finds, looked up now. Private: asks for the task-data password.",
        "Doctor",
        lambda api, call: doctor_json(api),
    ),
    Route(
        "/api/events",
        "stream",
        "The live stream (Server-Sent Events).",
        "text/event-stream",
        Api.events,
    ),
    Route(
        "/api/auth/login",
        "open",
        "Opens a session with the API key, the task-data password or the stream token.",
        "Login",
        Api.login,
        method="POST",
        body="LoginBody",
    ),
    Route(
        "/api/auth/logout",
        "open",
        "Ends the session and its streams.",
        "Logout",
        Api.logout,
        method="POST",
    ),
    Route(
        "/api/auth/status",
        "open",
        "Which classes are open to the caller.",
        "AuthStatus",
        Api.auth_status,
    ),
    Route(
        "/api/audit-log",
        "private",
        f"Logins, refusals and changes, newest first. {DATA}",
        "Audit",
        lambda api, call: api.page("audit", "entries", api.audit_json, call),
        PAGE,
    ),
    Route(
        "/api/federation/settings",
        "local",
        "What is shared, with whom, and how late.",
        "Sharing",
        lambda api, call: api.sharing(),
    ),
    Route(
        "/api/federation/settings",
        "local",
        "Changes what is given, at once. What lets more out, sooner or to another hub asks for the"
        " task-data password; what lets less out does not.",
        "Sharing",
        Api.put_sharing,
        method="PUT",
        body="SharingBody",
    ),
    Route(
        "/api/federation/enable",
        "private",
        "Opts in to the hub that is configured now.",
        "Done",
        Api.enable,
        method="POST",
    ),
    Route(
        "/api/federation/disable",
        "local",
        "Opts out: says so to the hub, takes back what waits, disconnects.",
        "Done",
        Api.disable,
        method="POST",
    ),
    Route(
        "/api/federation/reset",
        "local",
        "Makes a new id and new keys. While the federation is on this asks for the task-data"
        " password; while it is off they are only deleted.",
        "Done",
        Api.reset,
        method="POST",
    ),
    Route(
        "/api/federation/status",
        "local",
        "The connection, counters, and the last error in words.",
        "FederationStatus",
        lambda api, call: api.federation_status(),
    ),
    Route(
        "/api/federation/network-stats",
        "local",
        "The newest figures of the network; null is a figure withheld.",
        "NetworkStats",
        lambda api, call: api.network_stats(),
    ),
    Route(
        "/api/federation/stats",
        "local",
        "The figures' history, one for each snapshot, newest first.",
        "NetworkHistory",
        lambda api, call: api.network_history(),
    ),
    Route(
        "/api/federation/peers",
        "local",
        "Handles of the nodes seen lately; new ones each day.",
        "Peers",
        lambda api, call: api.peers(),
    ),
    Route(
        "/api/federation/messages",
        "local",
        "What was received.",
        "ReceivedMessages",
        lambda api, call: api.received(),
    ),
    Route(
        "/api/federation/preview",
        "local",
        "The exact bytes that wait, and what the newest task and invoice would"
        " become; also while the federation is off.",
        "Preview",
        lambda api, call: api.preview(),
    ),
    Route(
        "/api/federation/sent",
        "local",
        "Every message that left, newest first; presence has one row a day.",
        "SentMessages",
        lambda api, call: api.page("sent", "messages", api.sent_json, call),
        PAGE,
    ),
    Route(
        "/api/federation/privacy",
        "local",
        "Facts about sharing, looked up now.",
        "PrivacyFacts",
        lambda api, call: api.privacy(),
    ),
    Route(
        "/metrics",
        "local",
        "Figures as Prometheus reads them.",
        "text/plain",
        lambda api, call: api.metrics(),
    ),
    Route(
        "/api/openapi.json",
        "local",
        "The OpenAPI 3.1 document.",
        "any",
        lambda api, call: openapi(),
    ),
)
GONE = {  # paths of the original monitor that have no meaning here
    "/api/csrf-token": (
        "there are no CSRF tokens: other sites' requests are refused by their origin"
    ),
    "/api/tasks/auth/status": "ask /api/auth/status",
    "/api/federation/peers/<peer>/block": (
        "peers cannot be blocked: no message of a single peer is ever received"
    ),
}


def openapi() -> dict[str, Any]:
    """The OpenAPI 3.1 document, made from ROUTES and SHAPES."""
    paths: dict[str, dict[str, Any]] = {}
    for route in ROUTES:
        paths.setdefault(route.path, {})[route.method.lower()] = operation(route)
    headers = {name: header.partition(":")[0] for name, (_, header) in CREDENTIALS.items()}
    schemes: dict[str, Any] = {
        name: {"type": "apiKey", "in": "header", "name": header} for name, header in headers.items()
    } | {"local": {"type": "http", "scheme": "bearer"}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "tbmon", "version": __version__, "license": {"name": "MIT"}},
        "servers": [{"url": "/"}],
        "paths": paths,
        "components": {
            "schemas": {name: shape_schema(name) for name in SHAPES},
            "securitySchemes": schemes,
        },
    }


def operation(route: Route) -> dict[str, Any]:
    """A route's entry in the OpenAPI document."""
    parameters = [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": KINDS["hash" if name == "hash" else "uuid"],
        }
        for name in re.findall(r"{(\w+)}", route.path)
    ] + [
        {"name": name, "in": "query", "description": given.takes, "schema": given.schema}
        for name, given in route.query.items()
    ]
    kind = route.shows if "/" in route.shows else "application/json"
    raw = {"type": "string"} if kind.startswith("text/") else {}
    content: dict[str, Any] = {
        kind: {"schema": raw if "/" in route.shows else schema_of(route.shows)}
    }
    if route.rows:
        content["text/csv"] = {"schema": {"type": "string"}}
    error = {"application/json": {"schema": schema_of("Error")}}
    responses: dict[str, Any] = {"200": {"description": route.text, "content": content}}
    responses |= (
        {"304": {"description": "as the If-None-Match of the request says"}}
        if route.method == "GET"
        else {}
    )
    made: dict[str, Any] = {"summary": route.text, "parameters": parameters, "tags": [route.access]}
    made["security"] = (
        [{name: [] for name in NEEDS[route.access]}] if route.access != "open" else []
    )
    if route.body:
        made["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": schema_of(route.body)}},
        }
    return {
        **made,
        "responses": {**responses, "default": {"description": "a refusal", "content": error}},
    }


def csv_reply(route: Route, answer: Listing, query: str) -> Reply:
    """A list's page as CSV, its lists left out; the address of the next page is in the header
    Link.
    """
    columns = [column for column, kind in fields_of(route.rows).items() if kind[0] != "["]
    headers = {
        "Content-Type": CSV_TYPE,
        "Content-Disposition": f'attachment; filename="{answer.name}.csv"',
    }
    if following := answer.more["pagination"]["next"]:
        kept = [
            pair for pair in urllib.parse.parse_qsl(query) if pair[0] not in ("cursor", "offset")
        ]
        headers["Link"] = f'<?{urllib.parse.urlencode([*kept, ("cursor", following)])}>; rel="next"'
    return Reply(answer._replace(columns=columns), headers)


def sent_in_pieces(api: Api, pieces: Iterator[str], packed: bool) -> Iterator[bytes]:
    """A list's answer, sent while it is made; `api.large` has a place for it, which is given back.

    Where it cannot be made to its end the connection is cut, which shows the client that it is not
    whole.
    """
    from waitress.channel import ClientDisconnected

    packer = zlib.compressobj(5, wbits=31) if packed else None
    try:
        with reading(api.store):
            for piece in pieces:
                data = packer.compress(piece.encode()) if packer else piece.encode()
                if data:
                    yield data
            if packer:
                yield packer.flush()
    except Refusal as refusal:
        log.warning("api: an answer was cut: %s", refusal)
        raise ClientDisconnected from None
    finally:
        api.large.release()


def dress(reply: Reply, environ: Mapping[str, Any], api: Api) -> Reply:
    """The reply as it goes out: JSON and text with the node's own wallets named, its mark (ETag),
    304 where the client has it, gzip. A list of more than a piece is sent while it is made.
    """
    content, headers = (
        reply.content,
        {**SECURITY_HEADERS, "Vary": "Accept, Accept-Encoding, Origin", **reply.headers},
    )
    mark, show = b"", api.store.show
    pieces: Iterator[str] | None = None
    if isinstance(content, Listing):
        headers.setdefault("Content-Type", JSON_TYPE)
        made = map(show, content.pieces())
        first, second = next(made), next(made, None)
        if second is None:
            content = first
        else:
            pieces, mark = itertools.chain((first, second), made), content.mark(show)
            content = b""
    if isinstance(content, Mapping):
        headers.setdefault("Content-Type", JSON_TYPE)
        if "timestamp" in content:  # the time of the answer is no news
            mark = json.dumps(
                {name: value for name, value in content.items() if name != "timestamp"}
            ).encode()
        content = json.dumps(content) + "\n"
    if isinstance(content, str):
        content = show(content).encode()
    if not isinstance(content, bytes):
        return reply._replace(headers=headers)
    if reply.status == 200 and environ["REQUEST_METHOD"] in ("GET", "HEAD"):
        headers["ETag"] = f'W/"{hashlib.blake2b(mark or content, digest_size=12).hexdigest()}"'
        known = environ.get("HTTP_IF_NONE_MATCH", "")  # compared weakly: W/ may be missing
        if known.strip() == "*" or headers["ETag"].removeprefix("W/") in re.findall(
            r'"[^"]*"', known
        ):
            return Reply(b"", headers, 304)
    gzip_wanted = re.search(
        r"\bgzip\b(?! *; *q=0(\.0*)? *(,|$))", environ.get("HTTP_ACCEPT_ENCODING", "")
    )
    if pieces is not None:
        if gzip_wanted:
            headers["Content-Encoding"] = "gzip"
        if environ["REQUEST_METHOD"] == "HEAD":
            return Reply(map(str.encode, pieces), headers)
        if not api.large.acquire(blocking=False):
            api.pressed_at = time.monotonic()
            raise Refusal(503, "too many large answers are being sent", {"Retry-After": "2"})
        return Reply(sent_in_pieces(api, pieces, gzip_wanted is not None), headers)
    if len(content) > GZIP_BYTES and gzip_wanted and headers["Content-Type"] != "application/wasm":
        headers["Content-Encoding"] = "gzip"
        content = gzip.compress(content, 9 if headers["Content-Type"] in SMALLEST else 5, mtime=0)
    return Reply(content, headers, reply.status)


def answer(api: Api, route: Route, path: Mapping[str, str], environ: Mapping[str, Any]) -> Reply:
    """Check who asks and what, and answer; raises Refusal."""
    caller: Caller = environ["tbmon.caller"]
    api.guard.check(route.access, caller)
    query = read_query(environ.get("QUERY_STRING", ""), route.query)
    call = Call(caller, path, query, read_body(environ, route.body) if route.body else NOTHING)
    found = route.answer(api, call)
    reply = found if isinstance(found, Reply) else Reply(found)
    if route.rows and isinstance(found, Listing) and wants_csv(call):
        reply = csv_reply(route, found, environ.get("QUERY_STRING", ""))
    private = {"Cache-Control": "no-store"} if route.access == "private" else {}
    return reply._replace(headers={**private, **reply.headers})


def let_in(api: Api, environ: dict[str, Any]) -> Reply | None:
    """What stands before every route but the page's files: origin, address, session and rate;
    answers preflights.
    """
    origin = api.guard.check_origin(environ)
    shared = {"Access-Control-Allow-Origin": origin} if origin in api.guard.origins else {}
    environ["tbmon.headers"] = shared
    environ["tbmon.caller"] = caller = api.guard.find_caller(environ, origin)
    if environ["PATH_INFO"] not in ("/health", "/api/health"):
        api.guard.admit(caller)
    if (
        environ["REQUEST_METHOD"] != "OPTIONS"
        or not shared
        or "HTTP_ACCESS_CONTROL_REQUEST_METHOD" not in environ
    ):
        return None
    names = "Authorization, Content-Type, X-Task-Data-Password, X-Stream-Token, Last-Event-ID"
    allowed = {
        "Access-Control-Allow-Methods": "GET, HEAD, POST, PUT",
        "Access-Control-Allow-Headers": names,
    }
    return Reply(b"", {**allowed, "Access-Control-Max-Age": "600"}, 204)


def is_text(path: str) -> bool:
    """True if the path is UTF-8; bottle would leave out bytes that are not, and find what was not
    asked for.
    """
    try:
        return bool(path.encode("latin-1").decode())
    except UnicodeError:
        return False


def page_facts(api: Api, environ: Mapping[str, Any]) -> dict[str, Any]:
    """What the reader of the page may see, as /api/now and /api/auth/status say it; raises Refusal
    if nothing.
    """
    caller = api.guard.find_caller(environ, api.guard.check_origin(environ))
    api.guard.check("local", caller, CREDENTIALS)  # `access` tells of each whether it is right
    if api.fronts.most and api.fronts.take(
        caller.address
    ):  # a quota of its own: the page does not count as a request
        raise Refusal(429, "the page was loaded too often")
    now = {**now_json(api), "timestamp": None}  # it would make every page a new one
    return {"now": now, "auth": api.guard.access(caller)}


def page_words(verdict: Mapping[str, Any] | None) -> dict[str, str]:
    """The verdict as the page says it."""
    said: Mapping[str, Any] = verdict or {
        "state": "blind",
        "reason": JUST_STARTED,
        "advice": "Wait a few seconds.",
    }
    words = {
        name: re.sub("`([^`]*)`", "\u201c\\1\u201d", said[name])
        for name in ("state", "reason", "advice")
    }
    words = {
        name: re.sub(r"^(?!tbmon|\w+://).", lambda at: at[0].upper(), text)
        for name, text in words.items()
    }
    words["reason"] = words["reason"].rstrip(".") + "."
    parts = [f"Since {said['since']}" if said.get("since") else ""]
    if said.get("as_of"):
        parts.append(f"As of {said['as_of']}, before tbmon was started")
    return {**words, "since": ". ".join(part for part in parts if part)}


def filled_page(api: Api, environ: Mapping[str, Any], page: str) -> Reply:
    """The page with the theme chosen, the verdict as text, for whoever has no JavaScript, and the
    first answer that its script would ask for. Where the reader may see nothing, the script asks
    and says what is wrong.
    """
    theme = re.search(
        r"(?:^|;) *tbmon-theme=(light|dark)(?:;|$)", environ.get("HTTP_COOKIE", ""), re.ASCII
    )
    page = (
        page.replace('<html lang="en"', f'<html lang="en" data-theme="{theme[1]}"', 1)
        if theme
        else page
    )
    with contextlib.suppress(Refusal), reading(api.store):
        facts = page_facts(api, environ)
        words = page_words(facts["now"]["verdict"])
        page = re.sub(
            r'( data-say="(\w+)">)[^<]*',
            lambda found: found[1] + html.escape(words[found[2]]),
            page,
        )
        page = page.replace('data-state="none"', f'data-state="{words["state"].lower()}"', 1)
        inlined = COMPACT.encode(facts).replace("<", "\\u003c")
        page = page.replace(">null</script>", f">{inlined}</script>", 1)
    kept = "no-store" if api.monitor.config.api_key else SECURITY_HEADERS["Cache-Control"]
    return Reply(page, {"Content-Type": CONTENT_TYPES[".html"], "Cache-Control": kept})


def read_pages() -> dict[str, Reply]:
    """The page's files by their paths; none where only tbmon.py was copied."""
    files = [path for path in STATIC.glob("*.*") if path.suffix in CONTENT_TYPES]
    pages = {
        f"/{path.name}": Reply(path.read_bytes(), {"Content-Type": CONTENT_TYPES[path.suffix]})
        for path in files
    }
    return pages | ({"/": pages["/index.html"]} if "/index.html" in pages else {})


def build_app(api: Api) -> Any:
    """The WSGI application: ROUTES, the page's files, and JSON for every refusal."""
    import bottle  # only where something is served

    app, request = bottle.Bottle(), bottle.request
    room, turn = (
        threading.Semaphore(ANSWERS),
        threading.Lock(),
    )  # `turn` for pages, which slow each other down
    pages = read_pages()

    def send(reply: Reply) -> Any:
        sent = dress(reply, request.environ, api)
        shared = request.environ.get("tbmon.headers", {})
        return bottle.HTTPResponse(sent.content, sent.status, {**sent.headers, **shared})

    def refuse(refusal: Refusal) -> Any:
        return send(Reply({"error": str(refusal)}, refusal.headers, refusal.status))

    def serve_route(route: Route, **path: str) -> Any:
        try:
            plain = "cursor" in route.query and not request.environ.get("QUERY_STRING")
            order = contextlib.nullcontext() if route.access == "open" else turn if plain else room
            with order, reading(api.store):
                return send(answer(api, route, path, request.environ))
        except Refusal as refusal:
            return refuse(refusal)

    def serve_front() -> Any:
        with room:
            page = bytes(pages["/"].content).decode()  # type: ignore[arg-type]
            return send(filled_page(api, request.environ, page))

    def failed(error: Any) -> Any:
        """Bottle's way out: unknown path, wrong method, or a bug of ours."""
        if error.exception is not None:
            log.error("api: a request failed\n%s", error.traceback)
        known = {404: "there is nothing at this path", 405: "this path does not take that method"}
        words = known.get(error.status_code, "tbmon made a mistake here; its log says more")
        allowed = error.headers.get("Allow", "").replace("GET", "GET, HEAD")
        return refuse(Refusal(error.status_code, words, {"Allow": allowed} if allowed else {}))

    def first_look() -> None:
        try:
            if not is_our_host(request.environ.get("HTTP_HOST", ""), api.guard.hosts):
                raise Refusal(
                    421, "this host name is not one tbmon answers to: name it in ALLOWED_HOSTS"
                )
            if not is_text(request.environ["bottle.raw_path"]):
                raise Refusal(404, "there is nothing at this path")
            done = None if request.environ["PATH_INFO"] in pages else let_in(api, request.environ)
        except Refusal as refusal:
            raise refuse(refusal) from None
        if done is not None:
            raise send(done)

    app.add_hook("before_request", first_look)
    app.default_error_handler = failed
    for route in ROUTES:
        path = re.sub(r"{(\w+)}", r"<\1>", route.path)
        app.route(path, route.method, functools.partial(serve_route, route))
    for path, words in GONE.items():
        refusal = Refusal(410, f"this path of the original monitor is gone: {words}")
        app.route(
            path, ["GET", "POST", "PUT", "DELETE"], lambda refusal=refusal, **_: refuse(refusal)
        )
    for name, page in pages.items():
        app.route(name, "GET", functools.partial(send, page) if name != "/" else serve_front)
    return app


def listen(config: Config) -> socket.socket:
    """Take the port; raises UserError if it or the address cannot be had."""
    try:
        family = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)[0][0]
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()  # as 0.0.0.0, and IPv6
        return socket.create_server(
            (config.host, config.port), family=family, dualstack_ipv6=both and config.host == "::"
        )
    except (OSError, ValueError) as error:  # ValueError: no such host
        words = f"cannot listen on {place_of(config)}: {reason_of(error)}; set PORT or HOST"
        raise UserError(words) from None


WORKERS = LARGE_ANSWERS + 8  # of the server's threads, beside one for each live stream
OTHER_THREADS = 32  # of the process: ingest, upkeep, federation, and what libraries start
OTHER_FILES = 100  # descriptors beside the connections: database, engine, hub, log files
FEW_CONNECTIONS, MANY_CONNECTIONS = 64, 400  # beside the live streams: the least, and usually
NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def open_files_allowed() -> int | None:
    """How many descriptors this process may have; None if that is not limited or unknown."""
    with contextlib.suppress(OSError):
        limits = Path("/proc/self/limits").read_text()
        if found := re.search(r"^Max open files +(\d+)", limits, re.M):
            return int(found[1])
    return None


def threads_allowed(root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """How many threads more this process may start; None if that is not limited or unknown.

    Counted are its control groups, which systemd's TasksMax and a container's pids_limit set, and
    the limit of its user's processes, which root does not have.
    """
    left: list[int] = []
    with contextlib.suppress(OSError):
        limits = Path("/proc/self/limits").read_text()
        found = re.search(r"^Max processes +(\d+)", limits, re.M)
        if found and os.geteuid():
            left.append(int(found[1]))
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "pids"):
                continue
            top = root / kinds
            place = top / path.strip("/")
            for folder in (place, *place.parents):
                with contextlib.suppress(OSError, ValueError):  # no limit there, or no such group
                    most = int((folder / "pids.max").read_text())
                    left.append(most - int((folder / "pids.current").read_text()))
                if folder == top:
                    break
    return max(0, min(left)) if left else None


def place_of(config: Config) -> str:
    """Host and port as an address has them, an IPv6 address in brackets."""
    host = f"[{config.host}]" if ":" in config.host else config.host
    return f"{host}:{config.port}"


SLOW_S = 20  # a client that takes nothing of its answer for so long is cut
PRESSED_S = 3  # the same while another large answer finds no place
UNSENT_BYTES = 256 * KIB  # of a stream, beyond which its thread waits for the client


def channel_class() -> Any:
    """waitress's connections: JSON for what is refused, frames that can be read in one way only, no
    waiting threads.
    """
    from waitress import channel, parser, task

    class Refused(task.ErrorTask):  # type: ignore[misc]
        """A request that waitress could not read."""

        def execute(self) -> None:
            error = self.request.error
            status, _, _ = error.to_response(None)
            cause = error.body.partition(' "')[
                0
            ]  # what follows in quotes is the line, and may be a secret
            words = {
                413: f"the body may have {BODY_BYTES} bytes at most",
                431: f"the headers may have {HEADER_BYTES} bytes at most",
            }.get(error.code, f"the request cannot be read: {cause}")
            body = (json.dumps({"error": words}) + "\n").encode()
            self.status = status
            self.response_headers += [
                *SECURITY_HEADERS.items(),
                ("Content-Type", JSON_TYPE),
                ("Connection", "close"),
            ]
            self.set_close_on_finish()
            self.content_length = len(body)
            self.write(body)

    class Parser(parser.HTTPRequestParser):  # type: ignore[misc]
        """Refuses what two readers could frame in two ways, and what waitress's own parser fails
        at.
        """

        def received(self, data: bytes) -> int:
            count: int = super().received(data)
            if self.error:
                self.expect_continue = False  # a refused body is not asked for
            return count

        def parse_header(self, header_plus: bytes) -> None:
            try:
                super().parse_header(header_plus)
            except ValueError:  # no such address in the target, or a length of thousands of digits
                raise parser.ParsingError("the target or the length is no such thing") from None
            names = [line.partition(b":")[0].lower() for line in header_plus.split(b"\r\n")[1:]]
            coded = names.count(b"transfer-encoding")
            if coded and (coded > 1 or not self.chunked or b"content-length" in names):
                raise parser.ParsingError(
                    "Transfer-Encoding is for HTTP/1.1, once, and without Content-Length"
                )

    class Answered(task.WSGITask):  # type: ignore[misc]
        """A client that asks on without reading keeps no thread waiting: what it asked beyond is
        not answered.
        """

        def finish(self) -> None:
            if self.request.command == "HEAD" and not self.wrote_header:
                self.write(b"")
                self.chunked_response = False  # or waitress would send the last, empty chunk
            super().finish()
            if (
                self.channel.total_outbufs_len > UNSENT_BYTES // 2
                and len(self.channel.requests) > 1
            ):
                self.close_on_finish = True

    class Channel(channel.HTTPChannel):  # type: ignore[misc]
        error_task_class, task_class, parser_class = Refused, Answered, Parser

    return Channel


class Door:
    """Lets clients in. Where connections reach their limit, or descriptors run out, the one that
    has been idle for longest makes room; where there is none, newcomers wait, and it is told.
    """

    WAIT_S, TOLD_S = 0.5, 60  # until the next try, and the next line in the log

    def __init__(self, server: Any, most: int) -> None:
        self.server, self.most = server, most
        self.look, self.take = server.readable, server.accept
        self.wait_until = self.told_at = -math.inf
        server.readable, server.accept = self.readable, self.accept

    def readable(self) -> bool:
        """Whether a newcomer is to be let in now; waitress's own part closes what stands still."""
        is_open = self.look()
        if not is_open or time.monotonic() < self.wait_until:
            return False
        if len(self.server.active_channels) >= self.most and not self.make_room():
            self.wait(f"all {self.most} connections are in use")
            return False
        return True

    def accept(self) -> Any:
        try:
            return self.take()
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            if not self.make_room():
                self.wait(reason_of(error))
        return None

    def make_room(self) -> bool:
        """Close the connection that has been idle for longest; False if each has an answer to
        come.

        It is closed when its turn comes: closed here, its descriptor could be a newcomer's before
        what poll() said of it is dealt with.
        """
        idle = [
            one
            for one in self.server.active_channels.values()
            if not (one.requests or one.total_outbufs_len or one.will_close)
        ]
        if idle:
            min(idle, key=lambda one: one.last_activity).will_close = True
        return bool(idle)

    def wait(self, why: str) -> None:
        now = time.monotonic()
        self.wait_until = now + self.WAIT_S
        if now - self.told_at >= self.TOLD_S:
            self.told_at = now
            remedy = "raise the limit of open files (ulimit -n, LimitNOFILE)"
            log.warning("server: newcomers wait: %s; %s or lower WS_MAX_CONNECTIONS", why, remedy)


def make_server(
    app: Any,
    listener: socket.socket,
    config: Config,
    stop: threading.Event | None = None,
    pressed_at: Callable[[], float] = lambda: -math.inf,
) -> Any:
    """waitress, with a thread for each stream, for each large answer and eight more, JSON for what
    it refuses itself, and slow readers cut: sooner if a large answer has just found no place.
    """
    import waitress

    logging.getLogger("waitress.queue").setLevel(
        logging.ERROR
    )  # a line for each request that waits would fill the log
    streams, files = config.ws_max_connections, open_files_allowed()
    connections = streams + MANY_CONNECTIONS
    if files is not None:
        connections = min(connections, max(FEW_CONNECTIONS, files - OTHER_FILES))
    try:
        server = waitress.create_server(
            app,
            sockets=[listener],
            threads=streams + WORKERS,
            connection_limit=2**31,  # Door's to tell
            max_request_body_size=BODY_BYTES + 1,
            max_request_header_size=HEADER_BYTES,
            channel_request_lookahead=1,
            ident=None,
            channel_timeout=30,
            cleanup_interval=2,
            asyncore_use_poll=True,
            outbuf_high_watermark=UNSENT_BYTES,
            clear_untrusted_proxy_headers=False,  # Guard reads them, from TRUSTED_PROXY only
        )
    except RuntimeError:  # a limit that could not be known
        words = f"the server's {streams + WORKERS} threads cannot be started"
        remedy = "lower WS_MAX_CONNECTIONS, or raise TasksMax, pids_limit or ulimit -u"
        raise UserError(f"{words}: {remedy}") from None
    server.channel_class = channel_class()
    Door(server, connections)
    maintain = server.maintenance

    def maintenance(now: float) -> None:
        if (
            stop is not None and stop.is_set()
        ):  # the exception of a signal came where waitress hides it
            raise SystemExit(0)
        maintain(now)
        is_pressed = time.monotonic() - pressed_at() < PRESSED_S
        for one in list(server.active_channels.values()):
            waits = one.total_outbufs_len >= (UNSENT_BYTES if is_pressed else 1)
            if waits and one.last_activity < now - (PRESSED_S if is_pressed else SLOW_S):
                server.trigger.pull_trigger(one.handle_close)  # not here, as `make_room` says

    server.maintenance = maintenance
    return server


# ---------------------------------------------------------------------------
# 10. Main                                                            (process)
# ---------------------------------------------------------------------------

SHORT_SECRET = 10  # characters below which a secret is warned of
PACKAGES = ("bottle", "waitress", "docker", "nats")


class LogHandler(logging.Handler):
    """Writes each line to standard output at once; one that is full or gone takes none, and that
    ends nobody. Through sys.stdout what was not taken would be tried again at the end: code 120.
    """

    def emit(self, record: logging.LogRecord) -> None:
        if sys.stdout is None:  # closed before we began; its number may be the database's by now
            return
        left = memoryview(
            (self.format(record) + "\n").encode(sys.stdout.encoding, "backslashreplace")
        )
        with contextlib.suppress(OSError):
            while left:
                left = left[os.write(sys.stdout.fileno(), left) :]


def set_up_log(config: Config, redactor: Redactor) -> None:
    """One line an event, in UTC; addresses in words that come from elsewhere are replaced here
    too.
    """
    formatter = logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
    formatter.converter = time.gmtime
    handler = LogHandler()  # where `docker logs NAME | grep` looks
    handler.format = (  # type: ignore[method-assign]
        lambda record: redactor.clean(formatter.format(record))
    )
    log.handlers[:] = [handler]
    log.propagate = False
    log.setLevel("DEBUG" if config.node_env == "development" else config.log_level.upper())


def kept_secret(config: Config, name: str, words: str) -> str:
    """A secret that was not set: made at the first start, kept in a file and shown in the log."""
    path = config.keys / name
    secret = (
        read_key_file(path, lambda: secrets.token_urlsafe(18).encode())
        .decode("utf-8", "replace")
        .strip()
    )
    log.info("\N{KEY} %s (kept in %s): %s", words, path, secret)
    return secret


def read_secrets(config: Config) -> dict[str, str]:
    """The secret that opens each class of CREDENTIALS; empty where none is asked."""
    password = config.task_data_password or kept_secret(
        config, "task-data.password", "task-data password"
    )
    token = ""
    if config.ws_auth_required:
        token = config.ws_auth_token or kept_secret(config, "stream.token", "stream token")
    return {"local": config.api_key, "private": password, "stream": token}


class Finding(NamedTuple):
    """One line of doctor: OK, WARN or FAIL, what it looked at, and what to do about it."""

    level: str
    what: str
    remedy: str = ""


def warnings_of(config: Config) -> Iterator[Finding]:
    """What is allowed, but should be known."""
    if words := open_words(config):
        remedy = (
            "Set API_KEY, or HOST=127.0.0.1 (for a container, publish the port on that "
            "address only)."
        )
        yield Finding("WARN", f"HOST={config.host} without API_KEY: {words}", remedy)
    if "*" in split_list(config.allowed_origins):
        words = (
            "any page in a browser that reaches this port can read what is open without credentials"
        )
        yield Finding("WARN", f"ALLOWED_ORIGINS=*: {words}", "Name the origins that need it.")
    for item in fields(Config):
        if item.metadata.get("secret") and 0 < len(getattr(config, item.name)) < SHORT_SECRET:
            words = f"{item.name.upper()} is short enough to be guessed"
            yield Finding("WARN", words, f"Give it {SHORT_SECRET} characters or more.")


def fitted(config: Config) -> tuple[Config, list[str]]:
    """The settings that the machine's limits can carry, and a warning for each that is lowered."""
    streams, files, threads = config.ws_max_connections, open_files_allowed(), threads_allowed()
    needs = (
        (files, OTHER_FILES + FEW_CONNECTIONS, "open files (ulimit -n, LimitNOFILE)"),
        (threads, OTHER_THREADS + WORKERS, "threads (TasksMax, pids_limit, ulimit -u)"),
    )
    warnings = []
    for most, others, limit in needs:
        if most is not None and streams > max(0, most - others):
            before, streams = streams, max(0, most - others)
            words = f"WS_MAX_CONNECTIONS={before} is lowered to {streams}: tbmon may have"
            warnings.append(f"{words} {most} {limit}, and needs {others} of them for the rest")
    return replace(config, ws_max_connections=streams), warnings


def end_process(name: str, failures: list[str]) -> None:
    """A thread has died: end with exit code 1."""
    failures.append(name)
    os.kill(os.getpid(), signal.SIGTERM)


def start_thread(
    monitor: Monitor, name: str, work: Callable[[Monitor], None], failures: list[str]
) -> threading.Thread:
    """Run `work` in a thread; if it dies, the process ends, so that whoever started it starts it
    again.
    """

    def guarded() -> None:
        try:
            work(monitor)
        except Exception as error:  # a bug of ours, whatever it is
            if isinstance(error, UserError):
                log.critical("%s: %s", name, error)
            elif monitor.store.has_damage(error):
                with contextlib.suppress(
                    OSError
                ):  # where the disk takes no file, the start's check has to find it
                    monitor.store.mark_damaged()
                log.critical(
                    "%s: the database fails (%s); the next start moves it aside", name, error
                )
            elif (
                not monitor.stop.is_set()
            ):  # at the end the store may be closed before a thread has noticed
                log.critical("%s: thread ended by an error", name, exc_info=True)
        if not monitor.stop.is_set():
            end_process(name, failures)

    thread = threading.Thread(target=guarded, name=name)
    thread.start()
    return thread


def consent_words(outbox: Outbox) -> str:
    """What the log says where another hub is configured than the operator opted in to."""
    agreed, hub = ", ".join(outbox.sharing.hubs), ", ".join(outbox.servers())
    return (
        f"federation: nothing is sent: you opted in to {agreed}, and {hub} is configured now. "
        f"Opt in again on the page Federation if you want it, or set FEDERATION_NATS_URL back"
    )


def is_online(monitor: Monitor) -> bool | None:
    """What the federation is told of the node; None before it is known."""
    verdict = monitor.verdict
    if verdict is None or verdict.as_of is not None or verdict.cause in ("started", "reading"):
        return None
    return verdict.state not in ("blind", "down")


def notify(words: str) -> None:
    """Tell systemd, if it started us and wants to know (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] in ("/", "@"):
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
            end.sendto(
                words.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address
            )


def watchdog_s() -> float:
    """Within how many seconds systemd wants a sign of life from this process; 0 is never."""
    text = os.environ.get("WATCHDOG_USEC", "")
    is_ours = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    return int(text) / 1e6 if is_ours and re.fullmatch("[0-9]{1,16}", text) else 0.0


class ServerBeat(NamedTuple):
    """A task of the HTTP server's: waitress's loop hands it to one of its threads, which tells that
    it goes on.
    """

    monitor: Monitor

    def service(self) -> None:
        self.monitor.beat("server")

    def cancel(self) -> None:
        """waitress is closing."""


def feed_watchdog(monitor: Monitor, server: Any, patience_s: float) -> None:
    """The watchdog thread: a sign of life to systemd, as long as no thread has stood still for
    `patience_s`.
    """
    for name in ("ingest", "upkeep", "server"):
        monitor.beat(name)
    told: list[str] = []
    while not monitor.stop.is_set():
        server.trigger.pull_trigger(lambda: server.add_task(ServerBeat(monitor)))
        oldest = time.monotonic() - patience_s
        still = [name for name, at in monitor.beats.items() if at < oldest]
        if not still:
            notify("WATCHDOG=1")
        elif still != told:
            log.error("watchdog: no sign of life from %s for %.0f s", ", ".join(still), patience_s)
        told = still
        monitor.stop.wait(patience_s / 4)


def serve(config: Config, demo: bool = False) -> int:
    """Run until a signal comes (0) or a thread dies (1)."""
    ends, stop = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}, threading.Event()
    told: list[int] = []

    def end(number: int, frame: object) -> None:
        # an end that has begun is not interrupted, and the event's lock is not to be waited for
        # twice
        if not told:
            told.append(number)
            stop.set()  # so that the streams end before waitress waits for their threads
            raise SystemExit(0)

    last = contextlib.ExitStack()
    for number in ends:
        last.callback(
            signal.signal, number, signal.SIG_IGN
        )  # else the interpreter's own end lets them kill it
        signal.signal(number, end)
    with last, listen(config) as listener:
        config, lowered = fitted(config)
        local_key = read_key_file(config.keys / "local.key", lambda: secrets.token_bytes(32))
        redactor = Redactor(local_key)
        set_up_log(config, redactor)
        for words in lowered:
            log.warning("%s", words)
        with contextlib.closing(Store(Path(config.db_path), local_key)) as store:
            engine = None if demo or config.log_dir else DockerEngine(config)
            monitor = Monitor(config, store, redactor, engine, stop, demo=demo)
            monitor.started_at, monitor.doctor = (
                monitor.now(),
                functools.partial(findings, config, demo, store),
            )
            monitor.outbox = Outbox(
                store,
                SharingKeys(config.keys),
                monitor.now,
                random.SystemRandom(),
                config.federation_nats_url,
            )
            monitor.federation = Federation(
                config,
                monitor.outbox,
                functools.partial(take_publication, monitor),
                functools.partial(is_online, monitor),
            )
            code = run(monitor, listener, ends)
            if (
                monitor.stuck
            ):  # a name server or an engine that does not answer must not keep us from ending
                logging.shutdown()
                os._exit(code)
    return code


def run(monitor: Monitor, listener: socket.socket, ends: set[signal.Signals]) -> int:
    """Start the threads and serve; `ends` are the signals that end it."""
    config, federation, failures = monitor.config, monitor.federation, list[str]()
    threads: list[threading.Thread] = []
    assert federation is not None
    try:
        signal.pthread_sigmask(
            signal.SIG_BLOCK, ends
        )  # of each thread made here; none is left half started
        api = Api(monitor, read_secrets(config))
        server = make_server(build_app(api), listener, config, monitor.stop, lambda: api.pressed_at)
        source = config.log_dir or f"container {config.container_name}"
        source = "a simulated node (demo data)" if monitor.demo else source
        log.info("tbmon %s on http://%s, following %s", __version__, place_of(config), source)
        for finding in warnings_of(config):
            log.warning("%s. %s", finding.what, finding.remedy)
        # what is there now stays, and what ingest makes has no cycles: seldom looked at, it is 7 %
        # faster
        gc.freeze()
        gc.set_threshold(5000)
        workers = {"ingest": play_demo if monitor.demo else ingest, "upkeep": upkeep}
        if patience_s := watchdog_s():
            workers["watchdog"] = functools.partial(
                feed_watchdog, server=server, patience_s=patience_s
            )
        for name, work in workers.items():
            threads.append(start_thread(monitor, name, work, failures))
        federation.died = lambda: end_process("federation", failures)
        federation.start()
        if federation.outbox.sharing.enabled and not federation.outbox.sharing.agreed:
            log.warning("%s", consent_words(federation.outbox))
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ends)
        notify("READY=1")
        server.run()
    except SystemExit:  # a signal while starting; waitress keeps later ones to itself
        pass
    finally:
        monitor.stop.set()
        notify("STOPPING=1")
        until, federation.ended = (
            time.monotonic() + 4.5,
            True,
        )  # waitress may have taken five seconds
        federation.stop()
        for thread in threads:
            thread.join(max(0.1, until - time.monotonic()))
        monitor.stuck = federation.stuck or any(thread.is_alive() for thread in threads)
    log.info("stopped")
    return 1 if failures else 0


def run_demo(config: Config) -> int:
    """Serve a simulated node from a folder that goes when the demo ends."""
    with tempfile.TemporaryDirectory(prefix="tbmon-demo-") as folder:
        return serve(
            replace(
                config,
                db_path=f"{folder}/demo.db",
                key_dir="",
                log_dir="",
                container_name="demo-node",
            ),
            demo=True,
        )


def doctor(config: Config) -> int:
    """Check everything the monitor needs; 1 if something fails."""
    worst = 0
    for finding in findings(config):
        print(
            f"{finding.level:<4} {finding.what}"
            + (f"\n     -> {finding.remedy}" if finding.remedy else "")
        )
        worst = worst or int(finding.level == "FAIL")
    return worst


def findings(config: Config, demo: bool = False, store: Store | None = None) -> Iterator[Finding]:
    """All that doctor looks at, of a demo only what there is; `store` is that of who serves."""
    return itertools.chain(
        warnings_of(config) if demo else check_source(config),
        check_host(config, serving=store is not None),
        check_pruning(config, store),
    )


def check_pruning(config: Config, store: Store | None) -> Iterator[Finding]:
    """Whether something was deleted for its size within the last day, and how much task data there
    is.
    """
    first = store.first if store else functools.partial(peek, Path(config.db_path))
    at, used = pruned_at(first), first("task_data_bytes")
    for name, (words, remedy) in PRUNED.items():
        if time.time() * 1000 - at.get(name, -math.inf) < DAY_MS:
            yield Finding("WARN", words, remedy)
    if used is not None:
        most = config.max_db_bytes // 2
        yield Finding("OK", f"inputs and outputs of tasks: {used // MIB} of {most // MIB} MiB")


def check_source(config: Config) -> Iterator[Finding]:
    """Settings, and what the node's words come from."""
    yield Finding("OK", "settings")
    yield from warnings_of(config)
    if config.log_dir:
        names = choose_log_files(LocalFiles(Path(config.log_dir)).listed())
        good = bool(names) and all(os.access(name, os.R_OK) for name in names)
        remedy = (
            ""
            if good
            else "Name the folder of the node's logs in LOG_DIR, and let tbmon's user read them."
        )
        yield Finding(
            "OK" if good else "FAIL",
            f"{len(names)} log files under LOG_DIR={config.log_dir}",
            remedy,
        )
        if config.node_timezone == "auto":
            yield Finding("OK", "their times count as UTC, unless NODE_TIMEZONE names a zone")
        return
    engine = DockerEngine(config)
    try:
        engine.request("/version")
        yield Finding("OK", f"engine at {engine.url}")
        yield from check_container(config, engine)
    except DockerError as error:
        remedy = (
            "Start Docker; let tbmon's user reach it (group docker), or set DOCKER_HOST or LOG_DIR."
        )
        yield Finding("FAIL", str(error), remedy)


def check_container(config: Config, engine: DockerEngine) -> Iterator[Finding]:
    """The container, its log and its event database."""
    name = config.container_name
    container = engine.inspect(name)
    if container is None:
        others = engine.candidates()
        remedy = "Start the node, or set CONTAINER_NAME (docker ps shows names)."
        yield Finding("FAIL", f"no container {name}", name_candidates(others) if others else remedy)
        return
    running = container.running
    remedy = "" if running else f"Start it: docker start {name}"
    yield Finding("OK" if running else "WARN", f"container {name} is {container.state}", remedy)
    try:
        findings_of_log = [*check_log(config, engine, container)]
    except DockerError as error:
        if error.status != 501 and "not support reading" not in str(error):
            raise
        said = f"log driver {container.log_driver} cannot be read: {error}"
        yield Finding("FAIL", said, "Use json-file or local.")
        return
    yield Finding("OK", f"log driver {container.log_driver}")
    yield from findings_of_log
    yield check_event_db(engine, name)


def check_event_db(engine: DockerEngine, name: str) -> Finding:
    """What there is of an event database; its folder alone is none."""
    files = ContainerFiles(engine, name, EVENT_DB_PATH, Path()).sizes(threading.Event())
    sizes = [size for path, size in files.items() if path.endswith(EVENT_DB_NAME)]
    if sizes:
        number = "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
        return Finding("OK", f"event database found: {number}, {sum(sizes) / MIB:.1f} MiB")
    folder = "is not there"
    if resolve(engine, name, EVENT_DB_PATH) is not None:
        folder = f"holds no file *{EVENT_DB_NAME}" if files else "is empty"
    remedy = "Normal before the first task. No invoice is confirmed without it."
    return Finding("WARN", f"event database not found: {EVENT_DB_PATH} {folder}", remedy)


def check_log(config: Config, engine: DockerEngine, container: Container) -> Iterator[Finding]:
    """Read the last 500 lines as ingest would, and tell how many are recognised, and what their
    zone is.
    """
    lines = read_tail(engine, container, 500, finish=True)
    is_damaged = False
    with contextlib.suppress(DockerError):  # an engine that looks long for the place tells nothing
        is_damaged = is_cut(engine, container)
    if is_damaged:
        yield Finding(
            "WARN", f"{DAMAGED}: lines may be missing", "Recreate the container, for a new log."
        )
        lines = read_back(engine, container, lambda lines: len(lines) >= 500)
    stamped = [
        (body, parse_time(stamp.decode("ascii", "replace")), stamp) for _, stamp, body in lines
    ]
    entries = Assembler(Redactor(b"doctor")).feed(stamped)
    good = sum(is_recognised(entry.type, entry.text) for entry in entries)
    remedy = (
        "The node may be newer than tbmon, or this another container."
        if entries
        else "It may have just started."
    )
    is_good = bool(good) and good >= 0.95 * len(entries)
    said = f"{good} of the last {len(entries)} log entries recognised"
    yield Finding("OK" if is_good else "WARN", said, "" if is_good else remedy)
    zone = Zone(config.node_timezone, None, machine_zone())
    for entry in entries:
        if entry.head and entry.engine_ms:
            zone.learn(entry.second, entry.engine_ms)
    if zone.named is None:
        yield Finding("OK", zone.words())


def check_host(config: Config, serving: bool) -> Iterator[Finding]:
    """Database file, port and disk. Who has the file open must not open and close it: SQLite's
    locks would go.
    """
    path = Path(config.db_path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    if not serving and file_kind(path) in ("foreign", "unreadable"):
        yield Finding("FAIL", f"{path} is not a database of tbmon", "Set DB_PATH to a new file.")
    elif not os.access(path if path.exists() else folder, os.W_OK):
        yield Finding(
            "FAIL", f"{path} cannot be written", "Let tbmon's user write there, or set DB_PATH."
        )
    else:
        yield Finding("OK", f"database {path}" + ("" if path.exists() else " (will be made)"))
    if ask_health(config) == 200:
        yield Finding("OK", f"tbmon answers on port {config.port}")
    else:
        try:
            with listen(config):
                yield Finding("OK", f"port {config.port} is free")
        except UserError as error:
            yield Finding("FAIL", str(error).partition(";")[0], "Set PORT or HOST.")
    free = shutil.disk_usage(folder).free
    level = "FAIL" if free < 100 * MIB else "WARN" if free < 2048 * MIB else "OK"
    remedy = "" if level == "OK" else "Make room, or lower MAX_DB_BYTES and LOG_RETENTION_DAYS."
    yield Finding(level, f"{free // MIB} MiB free for the database", remedy)


def ask_health(config: Config) -> int | None:
    """The status of a running tbmon's /health on this host; None if nothing answers."""
    import http.client

    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(config.host, config.host)
    try:
        connection = http.client.HTTPConnection(host, config.port, timeout=5)
        connection.request("GET", "/health", headers={"Host": "localhost"})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return None


def healthcheck(config: Config) -> int:
    """For a container's HEALTHCHECK: 0 if tbmon answers."""
    status = ask_health(config)
    print(
        "ok"
        if status == 200
        else f"no healthy answer on port {config.port}: {status or 'nothing listens'}"
    )
    return 0 if status == 200 else 1


def main(words: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    commands: dict[str, Callable[[Config], int]] = {
        "serve": serve,
        "demo": run_demo,
        "doctor": doctor,
        "healthcheck": healthcheck,
    }
    parser = argparse.ArgumentParser(
        "tbmon",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=settings_help(),
        description="Watch one TrueBit node: serve (default), demo (no Docker needed), doctor, "
        "healthcheck.",
    )
    parser.add_argument("command", nargs="?", default="serve", choices=tuple(commands))
    parser.add_argument("--version", action="version", version=f"tbmon {__version__}")
    command = parser.parse_args(words).command
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    try:
        if missing and command != "healthcheck":
            ways = "`make run`, `uv run --script tbmon.py` or `pip install -r requirements.txt`"
            raise UserError(f"{', '.join(missing)} not installed: use {ways}")
        return commands[command](read_config(os.environ))
    except (UserError, OSError) as error:
        print(f"tbmon: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
