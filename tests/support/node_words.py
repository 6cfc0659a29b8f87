"""The node's words, as it writes them into its log and its event database: the one place that has them."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

import tbmon
from support.machine import BEGUN

WALLET = "0x558fA1b2C3d4E5f60718293a4B5c6D7e8F901234"
VERSION = "1.120.0-beta.275"


def header(message: str, at: float | None = None, level: str = "info", wallet: str = WALLET) -> str:
    """A line as the node writes it, now or at `at` (seconds since 1970)."""
    stamp = tbmon.second_text(int(time.time() if at is None else at))
    return f"{stamp} {level}: @truebit/worker-runner-node-{wallet}:{VERSION} {message}"


# Records: payloads in the log, and what the event database holds


def created_record(name: str, message: Mapping[str, Any]) -> dict[str, Any]:
    """That of a task's receipt."""
    return {"type": "task_created", "executionId": name, "message": message}


def line_item(
    operation: str, account: str, steps: int, memory: int | None = None
) -> dict[str, Any]:
    """A part of an invoice."""
    item = {"operation": operation, "account": account, "total_steps_computed": steps}
    return item if memory is None else {**item, "peak_memory_used": memory}


def invoice_record(name: str, items: Sequence[object], **more: object) -> dict[str, Any]:
    return {"type": "invoice", "executionId": name, **more, "lineItem": items}


# Messages


def receipt(payload: object, between: str = " ", indent: int | None = None) -> str:
    return f"Message received from task_created:{between}" + json.dumps(payload, indent=indent)


def output_of(body: object, between: str = " ", indent: int | None = None) -> str:
    return f"Command execution stdout:{between}" + json.dumps(body, indent=indent)


def invoice_of(body: object, told: str = "got", indent: int | None = None) -> str:
    return f"InvoiceSubscriber {told} " + json.dumps(body, indent=indent)


def completed(name: str) -> str:
    return f"Execution {name} completed"


# What most tests let the node say of their tasks

IDS = [f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(6)]
UNKNOWN = f"/api/tasks/{IDS[0][:-1]}0"  # the path of a task that never was
NAME = "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"
REQUESTER = "0xAbCdEf0123456789aBcDeF0123456789ABCDEF01"
HASH = "4be1" * 16
HUGE = 2**60 + 1
START = int(BEGUN) - 7200


def at(second: int) -> str:
    return str(tbmon.utc((START + second) * 1000))


def task(name: str, **message: Any) -> str:
    """A receipt that says no more than the task's hash."""
    return receipt({"payload": created_record(name, {"taskId": "js_" + "4b" * 32, **message})})


def received(name: str, language: str = "js", timeout_ms: int = 10**9, **message: Any) -> str:
    usual = {"taskId": f"{language}_{HASH}", "econParams": {"executionTimeout": timeout_ms}}
    return receipt({"payload": created_record(name, {**usual, **message})})


def metering(steps: int, elapsed_ms: int = 1500, code: int = 0, **more: Any) -> dict[str, Any]:
    """The body of an execution's output."""
    metered = {"last": {"steps": steps}, **more}
    return {"elapsed": str(elapsed_ms * 10**6), "wasi": {"exitCode": code}, "metering": metered}


def output(cached: bool, code: int = 0, **more: Any) -> str:
    body = metering(HUGE, code=code, peak={"memory": 87})
    return output_of({**body, "execution": {"prepare": {"cached": cached}}, **more})


def invoice(name: str, operation: str, number: str, price: float = 3) -> str:
    items = [line_item("charge", REQUESTER, 9, 87), line_item(operation, WALLET, HUGE, 88)]
    return invoice_of(invoice_record(name, items, invoiceId=number, stepGasPrice=price))


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
