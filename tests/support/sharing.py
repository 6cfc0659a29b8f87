"""The federation, as the pages and scripts of its operator use it."""

from __future__ import annotations

import http.client
import json
import time
from typing import Any

from support import contract
from support.asking import PASSWORD, Answer, elsewhere
from support.hubs import LOOPBACK, SECRET, Hub
from support.machine import wait_for
from support.programs import Program

HUB_USER = {"FEDERATION_NATS_USER": "monitor", "FEDERATION_NATS_PASSWORD": SECRET}
AWAY = f"nats://{LOOPBACK}:1"


def tell(program: Program, method: str, path: str, body: object = None, **headers: str) -> Answer:
    """Send a change as a page of tbmon's own or a script would."""
    connection = http.client.HTTPConnection(
        LOOPBACK, program.port, timeout=15, source_address=elsewhere()
    )
    named = {
        "Host": "localhost",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    sent = None if body is None else json.dumps(body).encode()
    connection.request(
        method, path, sent, {**named, **({"Content-Type": "application/json"} if sent else {})}
    )
    answer = connection.getresponse()
    found = Answer(answer.status, answer.headers, answer.read())
    connection.close()
    contract.check(method, path, *found)
    return found


def change(program: Program, path: str, body: object = None, **headers: str) -> Any:
    """A change that must be accepted: POST to /api/federation/`path`, or, with a body, PUT; with
    the task-data password, since it may let more out.
    """
    headers = {"X_Task_Data_Password": PASSWORD, **headers}
    answer = tell(program, "PUT" if body else "POST", f"/api/federation/{path}", body, **headers)
    assert answer.status == 200, answer.body
    return answer.json


def see(program: Program, path: str) -> Any:
    status, found = program.get(f"/api/federation/{path}")
    assert status == 200, found
    return found


def at_hub(made: Hub, **settings: str) -> dict[str, str]:
    return {"FEDERATION_NATS_URL": made.url, **HUB_USER, **settings}


def soon(seconds: float = 2) -> float:
    """A stamp, in whole seconds, surely after opting in."""
    return time.time() + seconds


def connected(program: Program) -> None:
    wait_for(lambda: see(program, "status")["status"] == "connected")


FIGURES: dict[str, Any] = {
    "activeNodes": 7,
    "totalNodes": 9,
    "totalTasks": 1000,
    "completedTasks": 900,
    "failedTasks": 50,
    "cachedTasks": 100,
    "tasksLast24h": 40,
    "totalInvoices": 800,
    "invoicesLast24h": 30,
    "successRate": 95,
    "cacheHitRate": 10.5,
    "executionTimeDistribution": {"1-5s": 700, "unknown": 3},
    "gasUsageDistribution": {"<1M": 5},
    "stepsComputedDistribution": {">100B": 8},
    "taskTypeDistribution": {"rust": 9, "other": 0},
    "memoryUsedDistribution": {"<8MB": 1},
    "peers": [{"handle": "0123456789abcdef", "seen": "today"}],
    "snapshotAt": "2026-01-31T12:00:00.000Z",
}
HEAD = {
    "version": "1.0",
    "type": "network_stats",
    "id": "ab" * 16,
    "timestamp": "2026-01-31T12:00:30.000Z",
}


def publication(head: dict[str, Any] | None = None, **figures: Any) -> bytes:
    return json.dumps({**HEAD, **(head or {}), "data": {**FIGURES, **figures}}).encode()
