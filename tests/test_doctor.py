"""What doctor says is there, is there."""

from __future__ import annotations

from support.engine import Node
from support.node_words import WALLET

import tbmon


def test_doctor_finds_an_event_database_only_where_one_is(node: Node) -> None:
    node.run()
    engine = tbmon.DockerEngine(tbmon.Config(container_name=node.name))
    folder = "/app/build/datadb"
    found = tbmon.check_event_db(engine, node.name)
    assert (found.level, found.what) == ("WARN", f"event database not found: {folder} is not there")
    node.shell("mkdir -p /app/build/datadb")
    found = tbmon.check_event_db(engine, node.name)
    assert (found.level, found.what) == ("WARN", f"event database not found: {folder} is empty")
    node.put(f"{folder}/notes.txt", b"hello")
    found = tbmon.check_event_db(engine, node.name)
    assert found.what == f"event database not found: {folder} holds no file *-eventDB.json"
    node.put(f"{folder}/{WALLET}-eventDB.json", b"x" * 2 * tbmon.MIB)
    found = tbmon.check_event_db(engine, node.name)
    assert (found.level, found.what) == ("OK", "event database found: 1 file, 2.0 MiB")
