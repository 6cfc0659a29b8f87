"""Random lives of a node, each with its log, its event database, and the truth of which task wrote what.

All of it follows docs/node-data.md. The truth is known because the lines are made here; nobody has to read
them for it. A history is made from its seed alone.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

BEGIN_S = 1_767_700_000.0  # in January 2026
TIMEOUTS_MS = (27_000, 30_000, 30_000, 60_000, 600_000, None)
RUNNING_AT_MOST = 4
SETTLED_S = 1000  # after a start; by then a version has been heard for long
LIMITS = {"gas": "60000000000", "call": "65536", "frame": "524288", "memory": "1024"}
FAILED_WORDS = ("gas limit exceeded", "module trapped", "")


class Said(NamedTuple):
    """A physical line. `at` is when the engine got it, in seconds; `task` is who caused it."""

    at: float
    stream: str
    text: str
    task: str | None


@dataclass
class Truth:
    """What a reader of the whole log can know at best of one task, with the names of the figures."""

    execution_id: str
    status: str = "received"
    received_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    exit_code: int | None = None
    elapsed_ms: float | None = None
    gas_used: int | None = None
    memory_peak: int | None = None
    cached: bool | None = None
    error: str | None = None
    output: str | None = None
    error_text: str | None = None

    created_at: float | None = None  # by the event database
    stdout_at: float | None = None  # the stamp of its stdout
    failed_words: str = ""  # of its line that says `failed`
    operation: str | None = None
    has_outcome: bool = False
    timeout_s: float = 600


@dataclass
class History:
    seed: int
    wallet: str
    said: list[Said]  # as the engine got them
    written: list[Said]  # the same in the order of the node's files
    starts: list[float]  # of the container
    records: list[dict[str, object]]
    truths: dict[str, Truth]
    invoices: dict[str, tuple[str, str]]  # execution and the node's own operation
    overtakes: bool  # whether the two orders can differ


@dataclass
class Message:
    """An entry that the node writes."""

    at: float
    text: str  # behind the header; lines of a payload parted by newlines
    level: str = "info"
    task: str | None = None
    kind: str = ""
    has_header: bool = True
    has_wallet: bool = True
    before: str = ""  # words that stand before the header on its line
    said_late_s: float = 0.0


@dataclass
class Plan:
    """One task as the node lives through it, before restarts cut it short."""

    truth: Truth
    message: dict[str, object]
    succeeds: bool
    received_s: float
    stdout_payload: dict[str, object] | None
    messages: list[Message] = field(default_factory=list)

    def ends_s(self) -> float:
        return max(message.at for message in self.messages)


def inspected(value: object, indent: int = 0, depth: int = 2) -> str:
    """As JavaScript prints an object that is nested deeper than it shows."""
    inner = "  " * (indent + 1)
    if isinstance(value, dict):
        if depth < 0:
            return "[Object]"
        members = [
            f"{inner}{name}: {inspected(item, indent + 1, depth - 1)}"
            for name, item in value.items()
        ]
        return "{\n" + ",\n".join(members) + "\n" + "  " * indent + "}"
    if isinstance(value, list):
        if depth < 0:
            return "[Array]"
        items = [inner + inspected(item, indent + 1, depth - 1) for item in value]
        return "[\n" + ",\n".join(items) + "\n" + "  " * indent + "]"
    if isinstance(value, str):
        return "'" + value.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    return json.dumps(value)


class Maker:
    """Makes one history. Everything it draws comes from `chance`."""

    def __init__(self, seed: int, tasks: int, begin_s: float, is_brief: bool) -> None:
        self.seed = seed
        self.chance = random.Random(seed)
        self.tasks = tasks
        self.begin_s = begin_s
        self.is_brief = is_brief  # all within seconds, for an engine that stamps lines itself
        self.wallet = "0x" + self.hexadecimal(40)
        self.programs = [
            f"{language}_{self.hexadecimal(64)}"
            for language in self.chance.sample(["rs", "js", "py", "cpp"], 3)
        ]
        self.has_two_streams = not is_brief and self.chance.random() < 0.4
        # Outputs without headers are believed only of a node that writes none with headers.
        self.has_bare_outputs = not self.has_two_streams and self.chance.random() < 0.15
        self.pace = 0.02 if is_brief else 1.0
        self.messages: list[Message] = []
        self.marker = 1000

    def hexadecimal(self, digits: int) -> str:
        return "".join(self.chance.choice("0123456789abcdef") for _ in range(digits))

    def mixed(self, text: str) -> str:
        return "".join(self.chance.choice((one, one.upper())) for one in text[2:])

    def happens(self, share: float) -> bool:
        return self.chance.random() < share

    def between(self, low: float, high: float) -> float:
        return self.chance.uniform(low, high) * self.pace

    def uuid(self) -> str:
        digits = self.hexadecimal(32)
        return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))

    def payload(self, before: str, payload: dict[str, object], is_shallow: bool = True) -> str:
        """A message with its payload in one of the ways in which it can be printed.

        Only a shallow one may be printed without what lies deep in it.
        """
        mark = self.chance.choice(("", "", "", "[queue-1] ", "{queue 1} "))
        form = self.chance.choice(["compact"] * 9 + ["pretty", "next line", "inspect"])
        if form == "compact":
            return f"{before} {mark}{json.dumps(payload)}"
        if form == "pretty":
            return f"{before} {mark}{json.dumps(payload, indent=2)}"
        if form == "next line":
            return f"{before}\n{json.dumps(payload, indent=2)}"
        return f"{before} {mark}{inspected(payload, depth=self.chance.choice((2, 9)) if is_shallow else 9)}"

    # tasks

    def plan(self, received_s: float) -> Plan:
        execution_id = self.uuid()
        truth = Truth(execution_id)
        program = self.chance.choice(self.programs)
        timeout_ms = self.chance.choice(TIMEOUTS_MS)
        truth.timeout_s = 600.0 if timeout_ms is None else timeout_ms / 1000
        message: dict[str, object] = {
            "type": "dispatch_task",
            "taskId": program,
            "executionId": execution_id,
            "chainId": self.chance.choice(("43113", "43114")),
            "blockNumber": self.chance.randrange(70_000_000, 80_000_000),
            "blockHash": "0x" + self.hexadecimal(64),
            "input": self.input(),
            "limits": LIMITS,
        }
        if timeout_ms is not None:
            message["econParams"] = {"reward": "0", "executionTimeout": timeout_ms}
        plan = Plan(truth, message, self.has_bare_outputs or self.happens(0.75), received_s, None)
        self.live(plan, program)
        return plan

    def input(self) -> str:
        words = ["22", '{"Input": "22", "list": [1, 2]}', "it's {odd", "two\nlines"]
        if self.happens(0.1):
            # What only looks like the node's own line is the text of a payload.
            return f"{self.header(self.begin_s, 'info', True)} Execution {self.uuid()} completed"
        return self.chance.choice(words)

    def live(self, plan: Plan, program: str) -> None:
        """Writes down what this task would say if nothing came between."""
        task = plan.truth.execution_id
        now = plan.received_s

        def say(kind: str, text: str, level: str = "info") -> Message:
            message = Message(now, text, level, task, kind)
            plan.messages.append(message)
            return message

        created: dict[str, object] = {
            "type": "task_created",
            "executionId": task,
            "timestamp": int((now - 0.4) * 1000),
            "message": plan.message,
        }
        # Where its time is hidden in the log, it is the usual one.
        words = "Message received from task_created:"
        say("received", self.payload(words, {"payload": created}, "econParams" not in plan.message))
        if self.happens(0.03):
            plan.messages.append(Message(now, plan.messages[0].text, "info", task, "received"))
        if self.happens(0.6):
            now += self.between(0.1, 2)
            say("download", f"Task {program} downloaded successfully")
        if self.happens(0.95):
            now += self.between(0.05, 1.5)
            say("start", "Starting task execution")

        fate = self.chance.choices(("ends", "lost", "late", "very late"), (88, 5, 4, 3))[0]
        if self.is_brief and fate in ("late", "very late"):
            fate = "ends"
        longest_s = plan.truth.timeout_s - 1
        now += self.between(0.2, min(self.chance.choice((5, 30, 30, 400)), longest_s))
        if fate == "late":
            now = plan.received_s + plan.truth.timeout_s + 60 + self.chance.uniform(20, 3400)
        elif fate == "very late":
            # Nobody could say whose its output is, so it writes none.
            now = plan.received_s + plan.truth.timeout_s + 3660 + self.chance.uniform(60, 3000)
        if fate != "very late" and not (fate == "lost" and self.happens(0.7)):
            now = self.write_outputs(plan, now)
        if fate == "lost":
            return
        is_overtaken = bool(plan.messages[-1].said_late_s)
        now += self.between(0.01, 0.05 if is_overtaken else 1.2)
        has_failed = not plan.succeeds and self.happens(0.5)
        if has_failed:
            reason = self.chance.choice(FAILED_WORDS)
            say("failed", f"Execution {task} failed" + (f": {reason}" if reason else ""), "error")
        else:
            say("completed", f"Execution {task} completed")
            if self.happens(0.05):
                say("completed", f"Execution {task} completed")
        end = plan.messages[-1]
        if has_failed and self.has_two_streams:
            pass  # it may be the first line of its stream, where a payload may be open
        elif self.happens(0.06):
            end.before = "progress 10%\rprogress 100%\r"
        elif self.happens(0.06):
            end.before = self.chance.choice(("done.", "almost there ", "result = ok;"))
        if not has_failed and self.happens(0.8):
            now += self.between(0.01, 0.3)
            say("published", "Message published to compute_outcome")

    def write_outputs(self, plan: Plan, now: float) -> float:
        """The stdout and the stderr of a task, either of which may be missing."""
        task = plan.truth.execution_id
        self.marker += 1
        has_stdout = self.happens(0.88)
        has_stderr = not self.has_bare_outputs and self.happens(0.1 if plan.succeeds else 0.6)
        outputs = [
            kind for kind, is_there in (("stdout", has_stdout), ("stderr", has_stderr)) if is_there
        ]
        self.chance.shuffle(outputs)
        for kind in outputs:
            now += self.between(0.001, 0.8)
            if kind == "stdout":
                plan.stdout_payload = self.figures(plan)
                text = self.payload("Command execution stdout:", plan.stdout_payload)
                if self.happens(0.03):
                    plan.stdout_payload = {}
                    text = f"Command execution stdout: out of paper {self.marker}"
                message = Message(now, text, "info", task, kind)
            else:
                text = f"Command execution stderr: panic {self.marker}: index out of range"
                if self.happens(0.4):
                    text += "\n    at main (task.wasm:0x1f3)\n    at _start (task.wasm:0x0a1)"
                message = Message(now, text, "error", task, kind)
                if self.has_two_streams and self.happens(0.4):
                    message.said_late_s = self.chance.uniform(0.05, 0.2)
            message.has_header = not self.has_bare_outputs
            plan.messages.append(message)
        return now

    def figures(self, plan: Plan) -> dict[str, object]:
        elapsed_ns = self.chance.randrange(10**6, 10**11)
        payload: dict[str, object] = {
            "elapsed": self.chance.choice((elapsed_ns, str(elapsed_ns))),
            "wasi": {"exitCode": 0 if plan.succeeds else self.chance.choice((1, 1, 2, 101))},
            "metering": {
                "limits": {"gas": 60_000_000_000, "memory": 1024, "call": 65536, "frame": 524288},
                "last": {"steps": self.chance.randrange(10**3, 10**10)},
                "peak": {"memory": self.chance.randrange(17, 900), "call": 41},
            },
            "execution": {
                "wasm": {"size": 1843200, "hash": self.hexadecimal(64)},
                "prepare": {"cached": self.happens(0.5)},
            },
        }
        if self.happens(0.1):
            payload["executionId"] = plan.truth.execution_id
        return payload

    def arrivals(self) -> list[Plan]:
        plans: list[Plan] = []
        now = self.begin_s + 60 * self.pace
        while len(plans) < self.tasks:
            pauses = (5, 20, 60, 500) if self.is_brief else (5, 20, 20, 900, 2000, 5000, 10_000)
            now += self.between(0, 1) * self.chance.choice(pauses)
            running = [plan for plan in plans if now < plan.ends_s() and plan.ends_s() < now + 700]
            if len(running) < RUNNING_AT_MOST:
                plans.append(self.plan(now))
        return plans

    # the node

    def header(
        self, at: float, level: str, has_wallet: bool, version: str = "1.120.0-beta.275"
    ) -> str:
        stamp = datetime.fromtimestamp(int(at), UTC).strftime("%Y-%m-%d %H:%M:%S")
        wallet = f"-{self.wallet}" if has_wallet else ""
        return f"{stamp} {level}: @truebit/worker-runner-node{wallet}:{version}"

    def restarts(self, end_s: float) -> list[tuple[float, float]]:
        """When the node died and when its container started again."""
        if self.is_brief:
            return []
        moments = sorted(
            self.chance.uniform(self.begin_s + 600, end_s)
            for _ in range(self.chance.choice((0, 0, 1, 1, 2, 3)))
        )
        far_apart = [
            moment
            for number, moment in enumerate(moments)
            if number == 0 or moment - moments[number - 1] > 2 * SETTLED_S
        ]
        return [(died, died + self.chance.uniform(2, 10)) for died in far_apart]

    def make(self) -> History:
        plans = self.arrivals()
        end_s = max(plan.ends_s() for plan in plans)
        deaths = self.restarts(end_s)
        starts = [self.begin_s] + [started for _, started in deaths]
        for died, started in deaths:
            plans = [plan for plan in plans if not died - 1 <= plan.received_s <= started + 40]
        for plan in plans:
            next_death = min((died for died, _ in deaths if died > plan.received_s), default=None)
            if next_death is not None:
                plan.messages = [one for one in plan.messages if one.at < next_death - 0.5]
            self.messages += plan.messages
        self.starts = starts
        self.versions = ["1.120.0-beta.275"]
        for number, start in enumerate(starts):
            self.say_start(start)
            if number > 0 and self.happens(0.5):
                self.versions.append(f"1.{121 + number}.{self.chance.randrange(9)}")
                self.say_much(start)
            elif number > 0:
                self.versions.append(self.versions[-1])
        records = self.money(plans, end_s)
        self.say_noise(end_s)
        # Nothing is written while the node is down.
        self.messages = [
            message
            for message in self.messages
            if not any(died <= message.at < started for died, started in deaths)
        ]
        self.messages.sort(key=lambda message: message.at)
        said, written = self.lines()
        last_s = max(message.at for message in self.messages)
        truths = {plan.truth.execution_id: self.truth(plan, deaths, last_s) for plan in plans}
        invoices = {
            str(one[0]): (str(one[1]), str(one[2])) for one in self.invoices if one[2] is not None
        }
        return History(
            self.seed,
            self.wallet,
            said,
            written,
            starts,
            records,
            truths,
            invoices,
            any(message.said_late_s for message in self.messages),
        )

    def say_start(self, start: float) -> None:
        now = start + self.between(0.5, 6)
        self.messages.append(Message(now, "Starting services", has_wallet=False))
        now += self.between(0.1, 2)
        self.messages.append(Message(now, "Connected to hub", has_wallet=False))
        now += self.between(0.1, 2)
        for word in ("requested registration", "registered successfully"):
            self.messages.append(Message(now, f"Node with address {self.wallet} {word}"))
            now += self.between(0.1, 10)

    def say_much(self, start: float) -> None:
        """What a node says while a reader of files learns that its new version is the node's own."""
        for number in range(25):
            now = start + 30 + number * (SETTLED_S - 60) / 25
            self.messages.append(Message(now, f"Heartbeat {number} sent"))

    def say_noise(self, end_s: float) -> None:
        slots = (
            "Semaphore InvoiceSubscriber message received - Processing immediately (0/4 slots used)",
            "Semaphore InvoiceSubscriber processing started - Using slot 1/4",
            "Semaphore InvoiceSubscriber processing completed - Released slot (0/4 now active)",
        )
        for _ in range(self.chance.randrange(8, 16)):
            now = self.chance.uniform(self.begin_s + 30 * self.pace, end_s)
            self.messages += [Message(now, text) for text in slots]
            if self.happens(0.3):
                self.messages.append(Message(now, slots[1]))
        for _ in range(self.chance.randrange(3, 9)):
            now = self.chance.uniform(self.begin_s + 30 * self.pace, end_s)
            text = self.chance.choice(
                ("Heartbeat sent", "cache lookup", "Health check passed", "cache entry removed")
            )
            level = self.chance.choice(("info", "debug", "warn"))
            self.messages += [Message(now, text, level)] * self.chance.choice((1, 1, 2))
        settled_s = self.starts[-1] + SETTLED_S if len(self.starts) > 1 else end_s
        pause_s = self.between(5, 6) if self.is_brief else self.chance.choice((5, 30, 1200, 5000))
        last = max(end_s, settled_s) + pause_s
        self.messages.append(Message(last, "Heartbeat sent"))

    def money(self, plans: Sequence[Plan], end_s: float) -> list[dict[str, object]]:
        """Invoices in log and event database, and the other records of the database."""
        self.invoices: list[tuple[str, str, str | None]] = []
        records: list[dict[str, object]] = []
        share = self.chance.choice((0, 0.5, 1))
        for plan in plans:
            truth = plan.truth
            kinds = {message.kind for message in plan.messages}
            if self.happens(share):
                created_s = round(plan.received_s - self.chance.uniform(0.1, 0.9), 3)
                form = self.chance.choice(("text", "milliseconds"))
                stamp: object = round(created_s * 1000)
                if form == "text":
                    moment = datetime.fromtimestamp(created_s, UTC)
                    stamp = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
                truth.created_at = created_s
                created = {
                    "type": "task_created",
                    "executionId": truth.execution_id,
                    "timestamp": stamp,
                    "message": plan.message,
                }
                records.append({"payload": created})
                if plan.succeeds and "completed" in kinds and self.happens(0.5):
                    truth.has_outcome = True
                    outcome = {
                        "type": "computed_outcome",
                        "executionId": truth.execution_id,
                        "senderAddress": self.wallet,
                        "signature": "0x" + self.hexadecimal(20),
                    }
                    records.append({"payload": outcome})
            records += self.invoice(plan, kinds, share, end_s)
        self.chance.shuffle(records)
        return records

    def invoice(
        self, plan: Plan, kinds: set[str], share: float, end_s: float
    ) -> list[dict[str, object]]:
        """The invoice of a task, written to the log or the event database or both."""
        is_paid = plan.succeeds and "completed" in kinds
        operation = "pay" if is_paid else "penalty"
        if not self.happens(0.5 if is_paid else 0.3):
            return []
        if is_paid and self.happens(0.1):
            operation = "penalty"
        truth = plan.truth
        at = plan.ends_s() + self.between(1, 300)
        invoice_id = f"{self.chance.randrange(10**8)}{int(at * 1000)}4"
        account = "0x" + self.mixed(self.wallet)
        invoice: dict[str, object] = {
            "type": "invoice",
            "executionId": truth.execution_id,
            "taskId": plan.message["taskId"],
            "taskCreated_timeStamp": int(plan.received_s * 1000),
            "invoiceId": invoice_id,
            "stepGasPrice": 5e-07,
            "lineItem": [
                self.line_item("charge", "0x" + self.hexadecimal(40)),
                self.line_item(operation, account),
                self.line_item("pay", "0x" + self.hexadecimal(40)),
            ],
        }
        is_in_records = self.happens(share)
        is_in_log = at < end_s and (not is_in_records or self.happens(0.6))
        if not is_in_log and not is_in_records:
            return []
        truth.operation = operation
        self.invoices.append((invoice_id, truth.execution_id, operation))
        if is_in_log:
            mark = self.chance.choice(("", "", "[queue-1] "))
            words = f"InvoiceSubscriber {mark}invoice received:"
            text = self.payload(words, invoice)
            self.messages.append(Message(at, text, "info", truth.execution_id, "invoice"))
        return [{"payload": invoice}] if is_in_records else []

    def line_item(self, operation: str, account: str) -> dict[str, object]:
        return {
            "operation": operation,
            "account": account,
            "total_steps_computed": 1998161723,
            "peak_memory_used": 87,
        }

    def lines(self) -> tuple[list[Said], list[Said]]:
        said: list[tuple[float, int, Said]] = []
        written: list[Said] = []
        last_said: dict[str, float] = {}
        glued = ""
        for number, message in enumerate(self.messages):
            version = self.versions[sum(start <= message.at for start in self.starts) - 1]
            header = self.header(message.at, message.level, message.has_wallet, version)
            text = f"{header} {message.text}" if message.has_header else message.text
            text = glued + (message.before if not glued else "") + text
            glued = ""
            following = self.messages[number + 1 : number + 2]
            can_glue = (
                not message.has_header
                and not self.has_two_streams
                and "\n" not in message.text
                and bool(following)
                and following[0].has_header
                and message.kind == "stdout"
            )
            if can_glue and self.happens(0.5):
                glued = text  # an output without a newline: the next header stands behind it
                continue
            is_error = self.has_two_streams and message.level == "error"
            stream = "stderr" if is_error else "stdout"
            at = message.at + message.said_late_s + self.chance.uniform(0.0005, 0.002)
            at = max(at, last_said.get(stream, 0.0) + 1e-5)
            for line in text.split("\n"):
                one = Said(at, stream, line, message.task)
                written.append(one)
                said.append((at, len(written), one))
                last_said[stream] = at
                at += 1e-5
        said.sort(key=lambda each: each[:2])
        return [one for _, _, one in said], written

    def truth(self, plan: Plan, deaths: Sequence[tuple[float, float]], last_s: float) -> Truth:
        """The best that can be known of a task, from the lines that it did write."""
        truth = plan.truth
        first: dict[str, Message] = {}
        for message in plan.messages:
            first.setdefault(message.kind, message)
        truth.received_at = float(int(plan.received_s))
        if "start" in first:
            truth.started_at = float(int(first["start"].at))
        has_completed = "completed" in first
        is_ended = has_completed or "failed" in first
        if is_ended:
            truth.completed_at = float(int(first["completed" if has_completed else "failed"].at))
        if "stdout" in first and plan.stdout_payload is not None:
            self.take_figures(truth, plan.stdout_payload, first["stdout"], is_ended)
        if "stderr" in first:
            truth.error_text = first["stderr"].text.partition(":")[2].strip()
        is_nonzero = truth.exit_code not in (None, 0)
        is_late = int(last_s) > int(plan.received_s) + truth.timeout_s + 60
        is_cut_short = any(died > plan.received_s for died, _ in deaths)
        words = first["failed"].text if "failed" in first else ""
        if is_nonzero or words or (truth.operation == "penalty" and not has_completed):
            truth.status = "failed"
            truth.failed_words = words.partition("failed")[2].lstrip(": ")
            if "gas limit" in words:
                truth.error = "gas_limit"
            elif is_nonzero:
                truth.error = "exit_code"
            else:
                truth.error = "other" if words else "penalty"
        elif truth.operation == "pay" or truth.has_outcome:
            truth.status = "completed"
        elif has_completed:
            says_nothing = "stdout" not in first and "stderr" not in first
            truth.status = "completed" if truth.exit_code == 0 or says_nothing else "ended"
        elif is_late or is_cut_short:
            truth.status = "lost"
        elif truth.started_at is not None:
            truth.status = "executing"
        return truth

    def take_figures(
        self, truth: Truth, payload: dict[str, object], stdout: Message, is_ended: bool
    ) -> None:
        truth.output = stdout.text.partition(":")[2].strip()
        if stdout.has_header:
            truth.stdout_at = float(int(stdout.at))
        if not payload:
            return
        truth.elapsed_ms = int(str(payload["elapsed"])) / 1e6
        flat = json.dumps(payload)
        truth.exit_code = int(re.findall(r'"exitCode": (\d+)', flat)[0])
        truth.gas_used = int(re.findall(r'"steps": (\d+)', flat)[0])
        truth.memory_peak = int(re.findall(r'"peak": {"memory": (\d+)', flat)[0])
        truth.cached = '"cached": true' in flat
        if truth.exit_code != 0 and not is_ended:
            truth.completed_at = truth.stdout_at


def make(
    seed: int, tasks: int = 25, begin_s: float | None = None, is_brief: bool = False
) -> History:
    """The history of this seed. A brief one lasts some seconds and has no restarts."""
    begins = BEGIN_S + seed % 1000 if begin_s is None else begin_s
    return Maker(seed, tasks, begins, is_brief).make()
