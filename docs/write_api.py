"""Print docs/api.md, from the tables that the program itself answers by: python docs/write_api.py >
docs/api.md
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tbmon

DEFAULTS = tbmon.Config()
BASE = f"http://localhost:{DEFAULTS.port}"
PASSWORD = '-H "X-Task-Data-Password: $(cat data/task-data.password)"'
BODIES = {  # what the curl line sends, as the shell takes it
    "LoginBody": '"{\\"secret\\": \\"$(cat data/task-data.password)\\"}"',
    "SharingBody": """'{"privacyLevel": "balanced"}'""",
}
KIB, MIB = tbmon.KIB, tbmon.MIB

KIND_WORDS = {  # of KINDS; the others say it in their description
    "text": "text",
    "int": "a whole number",
    "number": "a number",
    "bool": "true or false",
    "any": "any JSON",
    "uuid": "36 characters, as in `0a1b2c3d-0a1b-0a1b-0a1b-0a1b2c3d4e5f`",
    "hash": "64 hexadecimal digits",
    "time": "UTC, as in `2026-01-31T12:00:00.000Z`",
}
# of fields that do not say it themselves; `Shape.field`, or `field` wherever it stands
MEANINGS = {
    "docker": "`disabled` where tbmon uses no Docker",
    "address": "the node's wallet, as `wallet:self`",
    "AuditEntry.address": "who asked: the address that counts for the limits",
    "AuditEntry.event": "`login`, `logout`, `refused` or `settings`",
    "TaskEvent.event": "what happened, as a log entry's `type`, or `lost`",
    "registered": "whether the node said that it is registered",
    "current_slots": "slots in use, of all subscribers",
    "total_slots": "slots in all, of all subscribers",
    "Slots.current": "slots in use",
    "Slots.total": "slots in all",
    "Semaphore.current": "slots in use",
    "Semaphore.total": "slots in all",
    "Summary.total": "tasks in all",
    "Node.started_at": "when the container started",
    "last_seen": "time of the node's newest words",
    "cpu": "percent of one processor core",
    "usage": "MiB in use, page cache left out; null where the kernel does not count it",
    "Memory.limit": "MiB",
    "percent": "of the limit",
    "advice": "what to do",
    "since": "when this state began, by the node's own traces where there are any",
    "remembered": "true until the first look: this is from before tbmon was started",
    "as_of": "when it was so; null unless `remembered`",
    "Health.node": "only with `node=1`, and for whoever may read the verdict",
    "up_24h_min": "minutes up, of those that are known",
    "watched_24h_min": "minutes of which it is known whether the node was up",
    "recognised": "share of the last 500 log entries that tbmon understands",
    "demo": "true for the simulated node",
    "Status.timestamp": "time of this answer",
    "tasks_24h": "received in the last 24 hours",
    "success_rate": "percent of the finished tasks",
    "avg_gas_used": "steps",
    "gas_limit": "steps",
    "gas_used": "steps",
    "memory_limit": "pages of 64 KiB",
    "memory_peak": "pages of 64 KiB",
    "elapsed_ms": "milliseconds, as the node measured them",
    "avg_elapsed_ms": "milliseconds",
    "cached": "whether the prepared module came from the node's cache",
    "Summary.cached": "tasks whose prepared module came from the node's cache",
    "Task.error": "why it failed, in one word",
    "TaskDetail.error": "why it failed, in one word",
    "Error.error": "a sentence that says what would be right",
    "task_hash": "of the task's code, from its task id",
    "hasSensitiveData": "whether there is input, output or an error text",
    "sensitiveDataRequiresAuth": "always true: it asks for the password",
    "errorText": "what the task wrote to its error output, or why it failed",
    "operation": "what the node's own line says: `pay`, `penalty`, or null if no line is its own",
    "LineItem.operation": "what the line is for",
    "account": "a pseudonym; `wallet:self` is the node's own",
    "step_gas_price": "price of a step",
    "gas_units": "steps times the price of a step; a unit, no amount of money",
    "gas_units_paid": "of invoices that paid the node",
    "gas_units_penalised": "of invoices that took from it",
    "InvoiceSummary.confirmed": "invoices that the node's event database holds",
    "Invoice.confirmed": "whether the node's event database holds it",
    "paid": "invoices that paid the node",
    "penalised": "invoices that took from it",
    "tasks_without_invoice": "completed tasks that no invoice names",
    "invoices_without_task": "invoices of tasks that tbmon does not know",
    "month": "as in `2026-01`, in UTC; null for invoices without a time",
    "timestamp_original": "as the node wrote it, in its own time zone",
    "message": "as the node wrote it, wallets replaced, a NUL as U+2400",
    "data": "what the message holds as JSON, if it does",
    "source": "where it was read",
    "LogStatus.source": "`engine` follows the container, `directory` the files in LOG_DIR",
    "suspect": "true if the line may not be the node's own",
    "LogStatus.suspect": "entries that may not be the node's own",
    "unrecognised": "entries of unknown wording",
    "gaps": "times when lines may be missing, newest first",
    "limit": "rows asked for",
    "offset": "rows passed over",
    "hasMore": "whether there is a next page",
    "next": "what `cursor` takes for the next page",
    "open": "which classes are open to you",
    "session": "whether your cookie belongs to a session",
    "secret": "API key, task-data password or stream token",
    "enabled": "whether the federation is on",
    "SharingBody.enabled": "true opts in, false opts out",
    "nodeId": (
        "id of this installation; null until the first connection, and after a reset until the next"
    ),
    "privacyLevel": "longest delay of a task or invoice message: `minimal` 60 minutes, `balanced` "
    "24 hours; `maximum`"
    " sends none",
    "shareTasks": "whether task messages are sent",
    "shareStats": "whether invoice messages are sent",
    "Sharing.natsServers": "hubs, tried in turn",
    "SharingBody.natsServers": (
        "hubs, tried in turn, ten at most; an empty list is FEDERATION_NATS_URL"
    ),
    "Done.message": "what was done",
    "connected": "whether the hub is connected to now",
    "healthy": "connected, or off",
    "FederationStatus.status": "`failing` where the last attempt failed; `consent needed` where "
    "another hub is configured than you opted in to: nothing is sent",
    "hub": "the hub that is configured now, tried in turn",
    "consentedTo": "the hub you opted in to; empty while off",
    "messagesSent": "messages that left, repeats included",
    "messagesReceived": "statistics taken from the hub",
    "errors": "connections that failed or broke",
    "reconnections": "connections that were made",
    "queued": "messages that wait",
    "Preview.queued": "messages that wait, the next first, 1000 at most",
    "refused": "messages that the gate did not let out",
    "dropped": "messages that waited too long, or were too many",
    "ignored": "statistics that did not fit or came too often",
    "lastError": "why the hub is not connected; null if it is, and while off",
    "lastRefusal": "why the gate refused a message: a bug of tbmon",
    "NetworkStats.status": "`awaiting_data` until figures came",
    "lastUpdated": "when they came",
    "totalTasks": "tasks received",
    "completedTasks": "tasks that completed",
    "failedTasks": "tasks that failed",
    "cachedTasks": "tasks whose prepared module came from a node's cache",
    "tasksLast24h": "tasks received in the last 24 hours",
    "totalInvoices": "invoices",
    "invoicesLast24h": "invoices of the last 24 hours",
    "executionTimeDistribution": "tasks by range of time",
    "gasUsageDistribution": "tasks by range of gas used",
    "stepsComputedDistribution": "invoices by range of steps",
    "taskTypeDistribution": "tasks by language",
    "memoryUsedDistribution": "tasks by range of memory",
    "peers": "handles of nodes seen lately, not their ids",
    "Peer.handle": "16 digits that stand for a node, for one UTC day",
    "snapshotAt": "when the task and invoice figures were counted",
    "Peers.count": "how many",
    "successRate": "percent of the finished tasks",
    "cacheHitRate": "percent of the finished tasks",
    "NetworkHistory.history": f"{tbmon.SNAPSHOTS} at most",
    "ReceivedMessages.messages": "100 at most, newest first",
    "ReceivedMessage.timestamp": "when it came",
    "subject": "the NATS subject",
    "ReceivedMessage.data": "the figures, as they came",
    "dueAt": "when it leaves; null for an example",
    "payload": "the exact bytes",
    "examples": (
        "what a heartbeat, your newest task and your newest invoice look like, with keys "
        "made for this answer"
    ),
    "SentMessage.timestamp": "when it left last",
    "times": "how many times it left; of presence messages, how many that day",
    "connectsTo": "hubs; none while off",
    "installationId": "whether there is an id of this installation",
    "kindsShared": "kinds of messages that may leave now",
    "delayUpToMinutes": "longest delay of a task or invoice message; null if none is sent",
    "messagesWaiting": "messages that wait",
    "messagesRefused": "messages that the gate did not let out",
    "Now.timestamp": "time of this answer",
    "Now.usage": "of the last 24 hours, or of the last three while less is known",
    "Now.activity": "tasks of the last 24 hours, by when they were received",
    "recent": "the last twelve things that happened, newest first",
    "stream": "where the live stream goes on from here: what `Last-Event-ID` takes",
    "invoices_24h": "of the last 24 hours",
    "waiting_24h": "completed tasks of the last 24 hours that no invoice names",
    "percent_24h": "of the minutes known, those with the node up; null if less than a tenth of the "
    "span is known",
    "percent_7d": "the same of 7 days",
    "percent_30d": "the same of 30 days",
    "outages": "in 30 days; silence is one, from the last line on",
    "longest_outage_min": "minutes",
    "Uptime.from": "when the first cell begins",
    "Consumption.from": "when the first cell begins",
    "Activity.from": "when the first cell begins",
    "TaskChart.from": "when the first cell begins",
    "LogChart.from": "when the first cell begins",
    "cell_s": "length of a cell in seconds",
    "cells": "oldest first",
    "UptimeCell.up": "minutes",
    "UptimeCell.down": "minutes",
    "UptimeCell.unknown": "minutes in which tbmon did not run, or could not see",
    "UsageCell.cpu": "percent of one processor core, the mean",
    "memory_mb": "MiB in use, the mean",
    "TaskCell.open": "tasks without an outcome so far",
    "TimedCell.open": "tasks without an outcome so far",
    "p50_ms": "half of the tasks took at most this long",
    "p95_ms": "19 of 20 tasks took at most this long",
    "Recent.what": "a task's status, `pay`, `penalty`, `invoice`, `start` (of the node) or `gap`",
    "Recent.detail": "the task's language, or why lines may be missing",
    "failures": "failed tasks by reason, the most frequent first",
    "Failures.reason": "as a task's `error`; `unknown` where the log says none",
    "LogChart.most": "entries counted of one cell at most",
    "limit_bytes": "MAX_DB_BYTES",
    "retention_days": "LOG_RETENTION_DAYS",
    "Database.tasks": "tasks kept",
    "Database.invoices": "invoices kept",
    "Database.gaps": "times when log lines may be missing",
    "memory_bytes": "memory that tbmon holds",
    "Setup.source": "`engine` follows the container, `directory` the files in LOG_DIR",
    "Setup.container": "CONTAINER_NAME",
    "strangers": "what whoever reaches the port may read and change; null if that is nobody else "
    "than this machine, or API_KEY is set",
    "apiKey": "whether API_KEY is set",
    "passwordFrom": "whether TASK_DATA_PASSWORD was set, or tbmon made one and keeps it in a file",
    "streamToken": "whether the live stream asks for its token",
    "dockerUrl": "null where tbmon uses no Docker",
    "dockerCalls": "the paths asked for, with GET and HEAD only",
    "dockerFolders": "folders of the container that files are read from",
    "remedy": "what to do; empty if nothing",
    "dayKeysKept": "keys of days of which a message waits, and of today",
}
EXAMPLES = {  # what the curl line of a path has beside the path and the password
    "/api/tasks": "?status=failed&limit=10",
    "/api/invoices": "?operation=pay&limit=10",
    "/api/logs": "?level=error&limit=10",
    "/api/audit-log": "?limit=10",
    "/api/federation/sent": "?limit=10",
    "/api/tasks/stats/chart": "?span=7d",
    "/api/logs/chart": "?span=7d",
}
OPTIONS = {
    "/api/events": "-N --max-time 2",
    "/api/auth/login": "-c cookies.txt",
    "/api/auth/logout": "-b cookies.txt",
    "/api/auth/status": "-b cookies.txt",
    "/api/tasks/{execution_id}/artifacts/{hash}": "-o module.wasm",
}
EVENTS = {  # of the live stream: the shape of what it carries, and when it comes
    "task": ("Task", "a task is new or has changed"),
    "invoice": ("Invoice", "an invoice is new or has changed"),
    "semaphore": ("Semaphore", "a slot was taken or given back"),
    "node_status": ("Status", "the container, its figures or the verdict were looked at"),
    "network_stats": ("NetworkStats", "figures of the network came from the hub"),
    "gap": ("Gap", "log lines may be missing"),
    "log": ("Entry", "a log entry is new; for those only who gave the task-data password"),
    "reset": ("Reset", "events were missed or older logs were read: ask again for what you show"),
}
STATUSES = {
    200: "Here it is.",
    204: "The answer to a browser's preflight request.",
    304: "You have it already: your `If-None-Match` names it.",
    400: "A parameter or the body is wrong. The sentence names the parameter and what it takes.",
    401: "A credential is missing or wrong. The sentence names the header.",
    403: "Another site's page asked.",
    404: "There is nothing at this path, or no such task or artifact.",
    405: "The path does not take this method. The header `Allow` says which it takes.",
    409: "The demo cannot opt in: demo data is not shared.",
    410: "The original monitor had this path; tbmon has not.",
    413: "The body is too large, or the artifact is larger than MAX_ARTIFACT_BYTES.",
    415: "The body is not JSON.",
    421: "tbmon does not answer to this host name. Name it in ALLOWED_HOSTS.",
    429: "Too many requests or wrong secrets. `Retry-After` says how many seconds to wait.",
    431: "The headers are too large.",
    503: (
        "The database, the engine, a live stream or a large list cannot be had now. Try again after "
        "`Retry-After` seconds."
    ),
}
SETTINGS = (
    "host",
    "port",
    "api_key",
    "task_data_password",
    "allowed_hosts",
    "allowed_origins",
    "trusted_proxy",
    "api_rate_limit",
    "ws_auth_required",
    "ws_auth_token",
    "ws_max_connections",
    "ws_max_per_ip",
    "ws_auth_timeout",
    "max_output_data_bytes",
    "max_artifact_bytes",
)


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [" | ".join(row) for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(f"| {line} |".replace("|  |", "| |") for line in lines) + "\n"


def words_of(kind: str) -> str:
    """A kind of SHAPES in words."""
    plain = kind.removesuffix("?")
    inner = plain.strip("[]{}")
    if plain[0] == "[":
        words = "list" if inner in tbmon.SHAPES else f"list of {inner}"
    elif plain[0] == "{":
        words = "object with any names" if inner in tbmon.SHAPES else f"object of {inner}"
    elif plain[0].isupper():
        words = "object"
    elif "|" in plain:
        words = ", ".join(f"`{word}`" for word in plain.split("|"))
    else:
        words = plain
    return f"{words} or null" if kind.endswith("?") else words


def field_rows(shape: str, before: str = "") -> Iterator[tuple[str, str, str]]:
    """(place, kind, meaning) of every field of a shape and of what is in it."""
    for told, kind in tbmon.fields_of(shape).items():
        name = told.removesuffix("?")
        meaning = MEANINGS.get(f"{shape}.{name}", MEANINGS.get(name, ""))
        yield f"`{before}{name}`", words_of(kind), meaning
        plain = kind.removesuffix("?")
        inner, after = plain.strip("[]{}"), {"[": "[].", "{": ".NAME."}.get(plain[0], ".")
        if inner in tbmon.SHAPES:
            yield from field_rows(inner, f"{before}{name}{after}")


def parameter_rows(route: tbmon.Route) -> Iterator[tuple[str, str, str]]:
    for name in re.findall(r"{(\w+)}", route.path):
        yield f"`{name}` in the path", KIND_WORDS["hash" if name == "hash" else "uuid"], ""
    for name, given in route.query.items():
        default = str(given.schema.get("default", ""))
        if name == "limit" and route.rows:
            default += "; 1000 as CSV"
        yield f"`{name}`", given.takes, default


def body_rows(route: tbmon.Route) -> Iterator[tuple[str, str, str, str]]:
    for told, (name, kind, meaning) in zip(
        tbmon.fields_of(route.body), field_rows(route.body), strict=True
    ):
        yield name, kind, "yes" if told.endswith("?") else "no", meaning


def curl_line(route: tbmon.Route) -> str:
    path = route.path.replace("{execution_id}", "$ID").replace("{hash}", "$HASH")
    url = f"{BASE}{path}{EXAMPLES.get(route.path, '')}"
    private = PASSWORD if route.access == "private" else ""
    method = (
        ""
        if route.method == "GET" or (route.method == "POST" and route.body)
        else f"-X {route.method}"
    )
    body = f"-H 'Content-Type: application/json' -d {BODIES[route.body]}" if route.body else ""
    parts = (
        "curl",
        OPTIONS.get(route.path, ""),
        method,
        body,
        private,
        f"'{url}'" if "?" in url else url,
    )
    return " ".join(part for part in parts if part)


def section(route: tbmon.Route) -> str:
    """What is said of one route."""
    text = [f"### {route.method} {route.path}\n", f"Class: {route.access}. {route.text}\n"]
    rows = list(parameter_rows(route))
    if rows or not route.body:
        text.append(
            table(("Parameter", "Takes", "Default"), rows) if rows else "It takes no parameters.\n"
        )
    if route.body:
        text.append("The body is a JSON object.\n")
        text.append(
            table(("Field of the body", "Type", "May be left out", "Meaning"), body_rows(route))
        )
    if route.shows in tbmon.SHAPES:
        text.append(table(("Field", "Type", "Meaning"), field_rows(route.shows)))
    elif "/" in route.shows:
        text.append(f"The answer is `{route.shows}`.\n")
    else:
        text.append("The answer is an OpenAPI 3.1 document.\n")
    text.append(f"    {curl_line(route)}\n")
    return "\n".join(text)


def class_rows() -> Iterator[tuple[str, str]]:
    asked = {
        "local": "if API_KEY is set",
        "private": "always",
        "stream": "if WS_AUTH_REQUIRED is true",
    }
    for access, grants in tbmon.NEEDS.items():
        names = [f"the {tbmon.CREDENTIALS[grant][0]} ({asked[grant]})" for grant in grants]
        yield access, " and ".join(names) or "nothing"


def setting_rows() -> Iterator[tuple[str, str, str]]:
    known = {item.name: item for item in fields(tbmon.Config)}
    for name in SETTINGS:
        default = str(known[name].default)
        yield (
            name.upper(),
            known[name].metadata["help"],
            {"": "", "False": "false"}.get(default, default),
        )


def kind_rows() -> Iterator[tuple[str, str]]:
    for name, schema in tbmon.KINDS.items():
        yield name, KIND_WORDS.get(name) or schema["description"]


def event_rows() -> Iterator[tuple[str, str, str]]:
    for name, (shape, when) in EVENTS.items():
        yield f"`{name}`", ", ".join(f"`{field}`" for field in tbmon.fields_of(shape)), when


def introduction() -> str:
    gone = [
        (f"`{path.translate(str.maketrans('<>', '{}'))}`", words)
        for path, words in tbmon.GONE.items()
    ]
    next_page = (
        f"""$(curl '{BASE}/api/tasks?limit=1' | grep -o '"next": "[^"]*' | cut -d '"' -f 4)"""
    )
    return f"""\
# The API of tbmon

This file is printed by `python docs/write_api.py`. Do not edit it: change the tables in `tbmon.py`, or that program.
The same contract as an OpenAPI 3.1 document is at `/api/openapi.json`.

## How to ask

The base URL is `{BASE}`, unless PORT and HOST say otherwise. Answers are JSON in UTF-8.
Routes that say GET take HEAD too. Nothing here changes anything in the node.

The curl lines work as they stand, in the folder where tbmon was started. Some need an execution id or the hash of
a module. These lines find them:

    ID=$(curl '{BASE}/api/tasks?limit=1&format=csv' | tail -n 1 | cut -d , -f 2)
    HASH=$(curl {PASSWORD} {BASE}/api/tasks/$ID/artifacts | grep -o '[0-9a-f]\\{{64\\}}')

Where API_KEY is set, add `-H "Authorization: Bearer $API_KEY"` to each line:

    curl -H "Authorization: Bearer $API_KEY" {BASE}/api/status

## Errors

An error is a JSON object with the field `error`: a sentence that says what would be right. It never holds a secret.
Unknown paths, unknown parameters and parameters that are given twice are errors too.

{table(("Status", "Meaning"), ((str(status), words) for status, words in STATUSES.items()))}
## Types, times and numbers

{table(("Type", "What it is"), kind_rows())}
A field marked "or null" is null where nothing is known. Null is never the same as 0 or false.

Times are UTC, with milliseconds and `Z`. The parameters `since` and `until` also take other zones
(`2026-01-31T13:00:00+01:00`) and seconds since 1970. `since` is included, `until` is not.

Whole numbers beyond 2^53 come as text (`"1152921504606846977"`), because many JSON readers would round them.
Names say the unit: `_ms` is milliseconds, `_bytes` is bytes.

## Lists and their pages

`/api/tasks`, `/api/invoices`, `/api/logs`, `/api/audit-log` and `/api/federation/sent` are listed newest first.
`limit` is the number of rows, `offset` passes rows over. Filters add up: a row must meet all of them.

An answer holds `pagination`. If `hasMore` is true, send `next` as `cursor`, with the same filters, for the next page:

    curl '{BASE}/api/tasks?limit=1&cursor='{next_page}

Cursors stay right while rows arrive: no row comes twice and none is left out. `offset` moves with every new row.
A page of log entries ends before its messages have more than {tbmon.PAGE_BYTES // MIB} MiB in all, even if it has
fewer rows than `limit`. Follow `next`, not the number of rows.

## CSV

Tasks and invoices also come as CSV: add `format=csv`, or send `Accept: text/csv`. The first line names the columns.
Lists inside a row (`line_items`) are left out. A page has 1000 rows if `limit` does not say otherwise. If there are
more, the header `Link` has the address of the next page (`rel="next"`).

A text that a spreadsheet would take for a formula (it begins with `=`, `+`, `-`, `@`, a tab or a new line) gets an
apostrophe in front.

    curl -o invoices.csv '{BASE}/api/invoices?format=csv'
    curl -H 'Accept: text/csv' {BASE}/api/tasks

## What has not changed, and compression

Answers to GET carry an `ETag`. Send it back as `If-None-Match`: if nothing has changed, the answer is 304 and has no
body. The field `timestamp` of an answer alone is no change.

A list of more than {tbmon.LIST_BYTES // KIB} KiB is sent while it is made: in chunks, without a length, and the connection closes behind it. One
that is cut is not whole. {tbmon.LARGE_ANSWERS} such lists are sent at once; the next is refused with 503.

Answers of more than {tbmon.GZIP_BYTES // KIB} KiB come compressed to those who send `Accept-Encoding: gzip`. The live
stream and artifacts do not.

    curl --compressed --etag-save status.etag {BASE}/api/status
    curl --compressed --etag-compare status.etag {BASE}/api/status

## Credentials and sessions

Every route belongs to a class. The class says what it asks for.

{table(("Class", "Asks for"), class_rows())}
{table(("Credential", "Header"), ((name, f"`{header}`") for name, header in tbmon.CREDENTIALS.values()))}
tbmon makes the task-data password at its first start, if TASK_DATA_PASSWORD is not set. It keeps it in
`data/task-data.password` (beside DB_PATH, or in KEY_DIR). If the live stream asks for a token and WS_AUTH_TOKEN is
not set, tbmon keeps one in `stream.token` in that folder.

Never put a secret into an address: addresses end up in logs. tbmon refuses such parameters.

A browser can log in instead. `/api/auth/login` takes any of the three secrets and sets a cookie for
{tbmon.SESSION_MS // tbmon.HOUR_MS} hours. Log in again with another secret, and the same session opens more.
In a browser, the cookie counts for tbmon's own page only.
`/api/auth/logout` ends the session, and its live streams with it.

## Limits

* Wrong secrets: {tbmon.LOGIN_FAILURES} in {tbmon.LOGIN_WINDOW_S // 60} minutes from one address. The right one is
  taken at any time.
* Requests: {DEFAULTS.api_rate_limit} in a minute from one address (API_RATE_LIMIT). A session has a count of its own.
  `/health` and `/api/health` do not count.
* A request: {tbmon.BODY_BYTES // KIB} KiB of body and {tbmon.HEADER_BYTES // KIB} KiB of headers.
* An artifact: {DEFAULTS.max_artifact_bytes // MIB} MiB (MAX_ARTIFACT_BYTES).
* Live streams: {DEFAULTS.ws_max_connections} at once (WS_MAX_CONNECTIONS),
  {DEFAULTS.ws_max_per_ip} of them from one address (WS_MAX_PER_IP).
* A client that takes nothing of its answer for {tbmon.SLOW_S} seconds is cut.

tbmon answers to `localhost`, IP addresses, names without a dot, and the names in ALLOWED_HOSTS and ALLOWED_ORIGINS.
Requests of another site's page are refused, unless ALLOWED_ORIGINS names that site. Behind a proxy, name the proxy in
TRUSTED_PROXY, or all requests count for one address.

{table(("Setting", "Meaning", "Default"), setting_rows())}
A secret NAME may also come from the file named in NAME_FILE.

## The live stream

`/api/events` sends what happens as Server-Sent Events. Each event has a name, an id and one line of JSON:

    curl -N --max-time 2 {BASE}/api/events

Leave out `--max-time 2` to listen on. To get log entries as well, send the password:

    curl -N --max-time 2 {PASSWORD} {BASE}/api/events

{table(("Event", "Fields", "When it comes"), event_rows())}
The fields are those of the routes below that have the same names. Of several changes to the same thing, only the last
may be told. Every {tbmon.STREAM_BEAT_S} seconds without an event there is a comment line.

After a cut, send the last id as the header `Last-Event-ID`: what was missed follows. Browsers do so by themselves.
tbmon keeps the last {tbmon.Ring.SIZE:,} events. If more were missed, or tbmon was started again, `reset` says so.

## The federation

The routes below `/api/federation` are about sending coarse messages to a hub, and about the figures of the whole
network that come back. It is off until you opt in. [FEDERATION.md](FEDERATION.md) says what is sent, and what the
hub's operator can learn from it: read it before you opt in.

Whatever makes more leave asks for the task-data password: opting in, an earlier `privacyLevel`, more shares, another
hub, a new id while it is on. What is chosen while it is off counts as if it were on. Whatever makes less leave, opting
out above all, never does.

The curl line of `/api/federation/enable` opts in, those after it opt out again and delete the id.

## Metrics

`/metrics` is for Prometheus. Each metric comes with a line that says what it is.

    scrape_configs:
      - job_name: tbmon
        static_configs:
          - targets: ['localhost:{DEFAULTS.port}']
        authorization:  # only where API_KEY is set
          type: Bearer
          credentials_file: /etc/prometheus/tbmon.key

## What users of the original monitor will find gone

These paths answer 410.

{table(("Path", "Why"), gone)}
* The WebSocket is gone. `/api/events` stands for it, on the same port.
* WS_AUTH_TIMEOUT is taken and does nothing: a stream without its token is refused at once.
* The task-data password is taken from its header or a session, never from the address.
* Log entries and the audit log ask for the task-data password.
* Pages of other origins may not ask, unless ALLOWED_ORIGINS names them.
* An unknown path under `/api` is a 404 in JSON, not the dashboard. An unknown parameter is a 400.
* Wallet addresses are pseudonyms everywhere, except in the input and output of tasks.

## Routes
"""


def check() -> None:
    """Fail if a table here speaks of what tbmon has no longer."""
    pairs = [
        (shape, name.removesuffix("?")) for shape in tbmon.SHAPES for name in tbmon.fields_of(shape)
    ]
    known = {text for shape, name in pairs for text in (name, f"{shape}.{name}")}
    paths = {route.path for route in tbmon.ROUTES}
    stale = (MEANINGS.keys() - known) | ((EXAMPLES.keys() | OPTIONS.keys()) - paths)
    stale |= BODIES.keys() ^ {route.body for route in tbmon.ROUTES if route.body}
    if stale:
        raise SystemExit(
            f"docs/write_api.py speaks of what is not there: {', '.join(sorted(stale))}"
        )


def main() -> None:
    check()
    print("\n".join((introduction(), *map(section, tbmon.ROUTES))), end="")


if __name__ == "__main__":
    main()
