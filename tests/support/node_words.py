"""The node's words, as it writes them into its log."""

from __future__ import annotations

import json
import time
from typing import Any

import tbmon
from support.machine import BEGUN

WALLET = "0x558fA1b2C3d4E5f60718293a4B5c6D7e8F901234"
VERSION = "1.120.0-beta.275"


def header(message: str, at: float | None = None, level: str = "info", wallet: str = WALLET) -> str:
    """A line as the node writes it, now or at `at` (seconds since 1970)."""
    stamp = tbmon.second_text(int(time.time() if at is None else at))
    return f"{stamp} {level}: @truebit/worker-runner-node-{wallet}:{VERSION} {message}"


IDS = [f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(6)]
UNKNOWN = f"/api/tasks/{IDS[0][:-1]}0"  # the path of a task that never was
REQUESTER = "0xAbCdEf0123456789aBcDeF0123456789ABCDEF01"
HASH = "4be1" * 16
HUGE = 2**60 + 1
START = int(BEGUN) - 7200


def at(second: int) -> str:
    return str(tbmon.utc((START + second) * 1000))


def received(name: str, language: str = "js", timeout_ms: int = 10**9, **message: Any) -> str:
    message = {
        "taskId": f"{language}_{HASH}",
        "econParams": {"executionTimeout": timeout_ms},
        **message,
    }
    payload = {"type": "task_created", "executionId": name, "message": message}
    return "Message received from task_created: " + json.dumps({"payload": payload})


def output(cached: bool, code: int = 0, **more: Any) -> str:
    metering = {"last": {"steps": HUGE}, "peak": {"memory": 87}}
    body = {"elapsed": "1500000000", "wasi": {"exitCode": code}, "metering": metering}
    return "Command execution stdout: " + json.dumps(
        {**body, "execution": {"prepare": {"cached": cached}}, **more}
    )


def invoice(name: str, operation: str, number: str, price: float = 3) -> str:
    items = [
        {
            "operation": "charge",
            "account": REQUESTER,
            "total_steps_computed": 9,
            "peak_memory_used": 87,
        },
        {
            "operation": operation,
            "account": WALLET,
            "total_steps_computed": HUGE,
            "peak_memory_used": 88,
        },
    ]
    body = {
        "type": "invoice",
        "executionId": name,
        "invoiceId": number,
        "stepGasPrice": price,
        "lineItem": items,
    }
    return "InvoiceSubscriber got " + json.dumps(body)


LIMITS = {"gas": str(2**60), "memory": "1024"}
BLOCK: dict[str, Any] = {
    "chainId": "43114",
    "blockNumber": 2**53 + 1,
    "blockHash": "0x" + "ab" * 32,
}
STORY = [  # (second after START, level, message)
    (0, "info", "Starting services"),
    (1, "info", f"Node with address {WALLET} registered successfully"),
    (2, "info", "Semaphore InvoiceSubscriber processing started - Using slot 1/4"),
    (10, "info", received(IDS[0], limits=LIMITS, **BLOCK, input="canary input")),
    (11, "info", f"Task js_{HASH} downloaded successfully"),
    (12, "info", f"Starting task execution {IDS[0]}"),
    (15, "info", output(True, executionId=IDS[0], note="canary output")),
    (16, "info", f"Execution {IDS[0]} completed"),
    (19, "info", invoice(IDS[0], "pay", "7123456717698608000004")),
    (20, "info", received(IDS[1], "rs")),
    (21, "error", "Command execution stderr: canary stderr"),
    (22, "error", f"Execution {IDS[1]} failed: memory canary"),
    (30, "info", received(IDS[2], "py")),
    (31, "info", output(False, executionId=IDS[2])),
    (32, "info", invoice(IDS[2], "penalty", "9", price=0.5)),
    (40, "info", received(IDS[3], "cpp", timeout_ms=1000)),
    (200, "warn", "100% of a_b"),
    (201, "info", "100 of aXb"),
    (202, "info", "Größe überschritten"),
    (203, "info", f"balance of {WALLET} and of {REQUESTER}"),
    (
        204,
        "info",
        f'odd numbers {{"x": NaN, "y": 1e999, "z": [-Infinity], "gas": {HUGE}, "debt": -{HUGE}}}',
    ),
    (210, "info", received(IDS[4], "zz")),
    (220, "info", received(IDS[5], "js")),
    (221, "info", f"Starting task execution {IDS[5]}"),
]


NAME = "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"


def task(name: str, **message: Any) -> str:
    payload = {
        "type": "task_created",
        "executionId": name,
        "message": {"taskId": "js_" + "4b" * 32, **message},
    }
    return "Message received from task_created: " + json.dumps({"payload": payload})
