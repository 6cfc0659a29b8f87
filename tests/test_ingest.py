"""What ingest makes of the node's words: tasks, invoices, trust and privacy, from files and from
the engine.
"""

from __future__ import annotations

import gzip
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node
from support.machine import wait_for
from support.node_words import (
    VERSION,
    WALLET,
    created_record,
    header,
    invoice_of,
    invoice_record,
    line_item,
    metering,
    output_of,
    receipt,
)
from support.programs import Program, Watch

import tbmon

IDS = [f"{number:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c" for number in range(9)]
TASK = "js_" + "4be1" * 16
OTHER = "0x" + "c4" * 20
REQUESTER = "0xAbCdEf0123456789aBcDeF0123456789ABCDEF01"


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Watch]:
    """A monitor of a folder of log files, started by the test."""
    (tmp_path / "logs").mkdir()
    made = Watch(tmp_path / "data", log_dir=str(tmp_path / "logs"))
    # Long before all else, so that no task of the time before the log can still be in work; too old
    # to be kept.
    write(made, header("Starting services", 1_700_000_000), name="worker-2023-11-14.log")
    yield made
    if made.threads:
        made.stop()


def write(watch: Watch, *lines: str, name: str = "worker-2026-01-01.log") -> None:
    """Append to a log file of the folder that `watch` follows."""
    with (Path(watch.config.log_dir) / name).open("a") as file:
        file.write("".join(line + "\n" for line in lines))


def received(name: str, **message: Any) -> str:
    return receipt({"payload": created_record(name, {"taskId": TASK, **message})}, indent=2)


def output(name: str | None = None, code: int = 0, steps: int = 5, elapsed_ms: int = 1500) -> str:
    body = metering(steps, elapsed_ms, code)
    return output_of({**body, **({"executionId": name} if name else {})})


def invoice(name: str, own: str, number: str = "7123456717698608000004") -> dict[str, Any]:
    items = [line_item("charge", REQUESTER, 9, 87), line_item(own, WALLET, 7, 88)]
    return invoice_record(name, items, invoiceId=number, stepGasPrice=2)


def story(watch: Watch, *steps: str) -> None:
    """Write one header line a second, ending now, and wait until all are stored."""
    start, before = time.time() - 100, watch.count()
    write(watch, *(header(step, start + number) for number, step in enumerate(steps)))
    wait_for(lambda: watch.count() == before + len(steps))


def test_a_task_goes_from_received_to_completed_with_the_times_of_the_log(files: Watch) -> None:
    limits = {"gas": "60000000000", "memory": "1024"}
    at = 1_763_992_534
    write(files, header(received(IDS[0], limits=limits, chainId="43114", blockNumber=7), at))
    with files:
        wait_for(lambda: files.task(IDS[0]))
        assert files.task(IDS[0]).status == "received"
        write(files, header("Starting task execution", at + 1))
        wait_for(lambda: files.task(IDS[0]).status == "executing")
        write(
            files,
            header(output(steps=28_584_970_692), at + 14),
            header(f"Execution {IDS[0]} completed", at + 15),
        )
        wait_for(lambda: files.task(IDS[0]).status == "completed")
        task = files.task(IDS[0])
    assert (task.received_at, task.started_at, task.completed_at) == (
        at * 1000,
        (at + 1) * 1000,
        (at + 15) * 1000,
    )
    assert (task.gas_used, task.elapsed_ms, task.exit_code) == (28_584_970_692, 1500, 0)
    assert (task.gas_limit, task.memory_limit, task.chain_id, task.block_number) == (
        60_000_000_000,
        1024,
        "43114",
        7,
    )


def test_of_four_tasks_at_once_each_gets_its_own_metrics_or_none(files: Watch) -> None:
    with files:
        story(
            files,
            *(received(name) for name in IDS[:4]),
            output(IDS[2], steps=2),  # names its task
            output(steps=1),  # one of three may have written it
            f"Execution {IDS[1]} completed",
            output(steps=71),
            output(steps=72),  # of the two that are left; so the one before was the other's
            f"Execution {IDS[0]} completed",
            f"Execution {IDS[2]} completed",
            f"Execution {IDS[3]} completed",
        )
        wait_for(lambda: files.task(IDS[3]).status == "completed")
        assert [files.task(name).gas_used for name in IDS[:4]] == [None, 1, 2, None]
        assert {files.task(name).status for name in IDS[:4]} == {"completed"}


def test_failures_stay_failures(files: Watch) -> None:
    with files:
        story(
            files,
            received(IDS[0]),
            output(code=3),
            f"Execution {IDS[0]} completed",
            received(IDS[1]),
            f"Execution {IDS[1]} failed: memory limit exceeded",
            f"Execution {IDS[1]} completed",
            received(IDS[2]),
            invoice_of(invoice(IDS[2], "penalty")),
            received(IDS[3]),
            invoice_of(invoice(IDS[3], "pay", "9")),
        )
        wait_for(lambda: files.task(IDS[3]).status == "completed")
        found = [(files.task(name).status, files.task(name).error) for name in IDS[:3]]
    assert found == [("failed", "exit_code"), ("failed", "memory_limit"), ("failed", "penalty")]


def test_a_task_that_is_never_heard_of_again_is_lost_until_it_is(files: Watch) -> None:
    at = time.time() - 1000
    write(
        files,
        header(received(IDS[0], econParams={"executionTimeout": 30_000}), at),
        header("one", at + 80),
    )
    with files:
        wait_for(lambda: files.count() == 2)
        assert files.task(IDS[0]).status == "received"
        write(files, header("two", at + 92))
        wait_for(lambda: files.task(IDS[0]).status == "lost")
        write(files, header(f"Execution {IDS[0]} completed", at + 95))
        wait_for(lambda: files.task(IDS[0]).status == "completed")


def test_a_task_in_work_when_the_container_restarts_is_lost(node: Node, watch: Watch) -> None:
    node.run()
    node.say(header(received(IDS[0])))
    node.say(header(received(IDS[1])))
    with watch:
        node.say(header(f"Execution {IDS[1]} completed"))
        wait_for(lambda: watch.task(IDS[1]) and watch.task(IDS[1]).status == "completed")
        node.restart()
        wait_for(lambda: watch.task(IDS[0]).status == "lost")
        assert watch.task(IDS[1]).status == "completed"


def test_lines_that_a_task_prints_change_nothing(node: Node, watch: Watch) -> None:
    other = f"0x{'d' * 40}"
    forged = [
        f"Execution {IDS[0]} failed: forged",
        f"Execution {IDS[0]} completed",
        f"Node with address {OTHER} registered",
        invoice_of(invoice(IDS[0], "penalty")),
        received(IDS[5]),
        "Semaphore InvoiceSubscriber processing started - Using slot 4/4",
    ]
    node.run()
    node.say(header("Starting services"))
    node.say(header(f"Node with address {WALLET} registered successfully"))
    node.say(header("Semaphore InvoiceSubscriber processing started - Using slot 1/4"))
    node.say(header(received(IDS[0])))
    with watch:
        wait_for(lambda: watch.task(IDS[0]))
        node.say(header("Command execution stderr: thread panicked", level="error"))
        for line in forged:
            node.say(line)  # without a header
            node.say(header(line, wallet=other))
            node.say(header(line).replace(VERSION, "9.9.9"))
            node.say(header(line, time.time() - 3600))  # the node's own name, an hour ago
        node.say(output(steps=666, code=1))
        node.say(header("Heartbeat sent"))
        watch.wait_for_message("Heartbeat sent")
        task, facts = watch.task(IDS[0]), watch.store.node()
        assert (task.status, task.gas_used, watch.task(IDS[5])) == ("received", None, None)
        assert watch.store.first("invoice_count") == 0
        assert (facts["registered"], facts["current InvoiceSubscriber"], facts["version"]) == (
            True,
            1,
            VERSION,
        )
        assert dict(map(tuple, watch.store.get("counters")))["suspect"] == 3 * len(forged)
        node.say(header(f"Execution {IDS[0]} completed"))
        wait_for(lambda: watch.task(IDS[0]).status == "ended")  # its stderr leaves open how


def test_completions_of_unknown_executions_make_no_task(files: Watch) -> None:
    with files:
        story(files, f"Execution {IDS[0]} completed", f"Execution {IDS[1]} failed", output(IDS[2]))
        assert files.store.page("task", {}, None, 9, 0) == []


def test_the_event_database_and_the_log_complete_each_other(files: Watch) -> None:
    created = {"type": "task_created", "executionId": IDS[0], "timestamp": "2026-01-01T00:00:00Z"}
    message = {"taskId": TASK, "input": "not {json", "limits": {"gas": "77"}}
    failing = {"type": "task_created", "executionId": IDS[1], "message": {"taskId": TASK}}
    records = [
        {
            "payload": {"type": "computed_outcome", "executionId": IDS[0], "senderAddress": WALLET}
        },  # before its task
        {"payload": {**created, "message": message}},
        {"payload": failing},
        {"payload": invoice(IDS[0], "pay")},
        {"payload": {"type": "computed_outcome", "executionId": IDS[1], "senderAddress": WALLET}},
        {"payload": {"type": "solutions_revealed"}},
        "odd",
    ]
    with files:
        story(
            files,
            received(IDS[1]),
            output(code=2),
            invoice_of(invoice(IDS[0], "pay")),
        )
        path = Path(files.config.log_dir) / "any-eventDB.json"
        path.write_text(json.dumps({"records": records}))
        wait_for(lambda: files.task(IDS[0]) and files.task(IDS[0]).status == "completed")
        task, failed = files.task(IDS[0]), files.task(IDS[1])
        assert (task.received_at, task.gas_limit, task.completed_at) == (
            1_767_225_600_000,
            77,
            None,
        )
        assert (failed.status, failed.exit_code) == ("failed", 2)
        assert files.store.get("task_data", IDS[0])[0]["input"] == "not {json"
        rows = files.store.read("SELECT * FROM invoice")
        assert [(row["operation"], row["steps"], row["confirmed"]) for row in rows] == [
            ("pay", 7, 1)
        ]


def test_rotated_files_are_known_again(files: Watch) -> None:
    folder = Path(files.config.log_dir)
    start = time.time() - 1000
    lines = [header(f"line {number % 7}", start + number // 5) for number in range(50)]
    write(files, *lines[:30])
    with files:
        wait_for(lambda: files.count() == 30)
        write(files, *lines[30:40])
        wait_for(lambda: files.count() == 40)
        plain = folder / "worker-2026-01-01.log"
        (folder / "worker-2026-01-01.log.gz").write_bytes(gzip.compress(plain.read_bytes()))
        plain.unlink()
        write(files, *lines[40:], name="worker-2026-01-02.log")
        wait_for(lambda: files.count() == 50)
    os.rename(folder / "worker-2026-01-02.log", folder / "worker-2026-01-02.1.log")
    write(files, header("the last"), name="worker-2026-01-03.log")
    with files:
        files.wait_for_message("the last")
        said = Counter(line.partition(f":{VERSION} ")[2] for line in lines)
        assert Counter(files.messages()) == said + Counter(["the last"])


def test_an_unfinished_line_is_no_entry_yet(files: Watch) -> None:
    text = header("first")
    with (Path(files.config.log_dir) / "a.log").open("w") as file, files:
        file.write(f"{text}\n{text[:40]}")
        file.flush()
        files.wait_for_message("first")
        file.write(text[40:] + " and second\n")
        file.flush()
        files.wait_for_message("first and second")
        assert files.count() == 2


@pytest.mark.parametrize("length", [tbmon.HEAD_BYTES - 1, tbmon.HEAD_BYTES, 5 * tbmon.HEAD_BYTES])
def test_a_file_that_begins_with_a_long_line_is_read(files: Watch, length: int) -> None:
    words = "x" * (length - len(header("")))
    write(files, header(words), header("and another"))
    with files:
        files.wait_for_message("and another")
        assert files.messages() == [words, "and another"]


def test_no_docker_is_touched_with_log_dir(files: Watch) -> None:
    with files:
        assert files.monitor.engine is None
        story(files, "Heartbeat sent")
        wait_for(lambda: files.monitor.verdict and files.monitor.verdict.state == "idle")


def test_zone_of_the_node_is_found_from_the_engine(node: Node, watch: Watch) -> None:
    now = time.time()
    node.run()
    node.say(header("in Kathmandu", now + 20_700))
    with watch:
        watch.wait_for_message("in Kathmandu")
        (entry,) = watch.entries()
        assert abs(entry["at"] - now * 1000) < 2000


def canaries() -> list[str]:
    """The node's wallet and a stranger's, in every form that a log may have."""
    forms = []
    for wallet in (WALLET, REQUESTER):
        digits = wallet[2:]
        forms += [
            wallet,
            digits,
            wallet.lower(),
            digits.upper(),
            "0X" + digits,
            f"<{wallet}>",
            f"x{digits}x",
        ]
        forms += ["\x1b[1m".join((wallet[:20], wallet[20:])), "\x1b[31m" + wallet + "\x1b[0m"]
    return forms


def test_wallets_never_reach_the_disk(
    node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    lines = [header(f"seen {form} there") for form in canaries()]
    lines += canaries()
    lines += [header(f"Node with address {WALLET} registered successfully")]
    lines += [header(f"{WALLET.lower()}: {{"), WALLET, "}"]
    lines += [header(invoice_of(invoice(IDS[0], "pay")))]
    lines += [header(received(IDS[0], senderAddress=WALLET, taskId=f"js_{WALLET}"))]
    lines += [header("Command execution stderr: " + REQUESTER)]
    records = [
        {
            "payload": {
                "type": "computed_outcome",
                "executionId": IDS[0],
                "senderAddress": WALLET.upper(),
            }
        }
    ]
    records += [{"payload": invoice(IDS[0], "pay")}]
    node.run()
    node.put(
        f"/app/logs/@truebit/worker-runner-node-{WALLET}/debug/x.log",
        "\n".join(lines).encode() + b"\n",
    )
    node.put(f"/app/build/datadb/{WALLET}-eventDB.json", json.dumps({"records": records}).encode())
    tbmon = program(CONTAINER_NAME=node.name, NODE_ENV="development").start()
    for line in lines:
        node.say(line)
        node.say(line, "err")
    node.say(header("the last"))
    wait_for(lambda: tbmon.private("/api/logs?search=the+last")["logs"])
    wait_for(lambda: tbmon.get("/api/invoices/count")[1]["count"] == 1)
    wait_for(lambda: tbmon.get("/api/invoices")[1]["invoices"][0]["confirmed"])
    paths = ("status", "tasks", "invoices", "logs?limit=1000", "status/stats")
    answers = [tbmon.private(f"/api/{path}") for path in paths]
    running = {path.name: path.read_bytes() for path in tbmon.folder.iterdir() if path.is_file()}
    assert tbmon.end() == 0
    stopped = {path.name: path.read_bytes() for path in tbmon.folder.iterdir() if path.is_file()}
    assert "t.db-wal" in running
    everything = b"".join(
        [*running.values(), *stopped.values(), json.dumps(answers).encode()]
    ).lower()
    assert b"wallet:" in everything
    assert [
        address for address in (WALLET, REQUESTER) if address[2:].lower().encode() in everything
    ] == []
    assert answers[0]["node"]["address"] == "wallet:self"
    assert {
        item["account"] == "wallet:self" for item in answers[2]["invoices"][0]["line_items"]
    } == {True, False}


def test_history_gives_old_tasks_but_no_old_log_rows(node: Node, watch: Watch) -> None:
    old = time.time() - 40 * 86400
    lines = [header(received(IDS[0]), old), header(f"Execution {IDS[0]} completed", old + 9)]
    node.run()
    node.put(
        "/app/logs/@truebit/worker-runner-node/debug/worker-2026-01-01.log",
        "\n".join(lines).encode() + b"\n",
    )
    with watch:
        node.say(header("now"))
        wait_for(lambda: watch.task(IDS[0]) and watch.task(IDS[0]).status == "completed")
        wait_for(lambda: watch.messages() == ["now"])


def test_lines_without_an_id_are_bound_across_the_seam_of_history_and_engine(
    node: Node, watch: Watch
) -> None:
    now = time.time()
    history = [
        header("Starting services", now - 7200),
        header(received(IDS[0]), now - 30),
        header(output(steps=11), now - 20),
    ]
    node.run()
    node.put(
        "/app/logs/@truebit/worker-runner-node/debug/worker-2026-01-01.log",
        "\n".join(history).encode() + b"\n",
    )
    node.say(header(f"Execution {IDS[0]} completed", now - 19))  # all that the engine still holds
    with watch:
        wait_for(lambda: watch.task(IDS[0]) and watch.task(IDS[0]).status == "completed")
        assert watch.task(IDS[0]).gas_used == 11
        assert watch.task(IDS[0]).completed_at == int(now - 19) * 1000
