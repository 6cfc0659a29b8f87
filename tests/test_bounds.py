"""What is asked of tbmon needs no more memory than deploy/ gives it, whatever the node has said.

Each program runs in a memory cgroup of 192 MiB, as tbmon.service does, where one can be made; the
most it ever held (VmHWM) may be 128 MiB in any case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.asking import PASSWORD, Answer, ask
from support.limits import Limited, service
from support.machine import wait_for
from support.node_words import START, header
from support.programs import write
from support.streams import OPEN, Stream

import tbmon


def nested(depth: int) -> str:
    """`depth` lists, one in the other."""
    return "[" * depth + "]" * depth


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Limited]:
    with service(tmp_path / "limited") as made:
        yield made


def logs(program: Limited, query: str = "") -> Answer:
    return ask(program, f"/api/logs{query}", password=PASSWORD)


# Depth


DEEP = [  # as deep as Python reads and cannot write, as it cannot even read, and just too deep
    *(f'deep {number} {{"a":{nested(depth)}}}' for number, depth in enumerate((980, 990, 5000))),
    "objects " + '{"a":' * 980 + "1" + "}" * 980,
    f'just too deep {{"a":{nested(tbmon.PAYLOAD_DEPTH)}}}',
]
SHALLOW = f'just deep enough {{"a":{nested(tbmon.PAYLOAD_DEPTH - 1)}}}'


def test_a_line_too_deep_to_be_written_is_shown_as_text(limited: Limited) -> None:
    said = [*DEEP, SHALLOW, "the last"]
    write(limited, header("Starting services", START))
    limited.start()
    wait_for(lambda: logs(limited).json["logs"])
    with Stream(limited, OPEN) as stream:
        write(limited, *(header(words, START + 1 + at) for at, words in enumerate(said)))
        wait_for(lambda: [one for one in stream.of("log") if one["message"] == said[-1]])
        told = {one["message"]: one["data"] for one in stream.of("log")}
    answer = logs(limited)
    assert answer.status == 200, answer.body
    shown = {row["message"]: row["data"] for row in answer.json["logs"]}
    for rows in (shown, told):
        assert {words: rows[words] for words in DEEP} == dict.fromkeys(DEEP)
        assert rows[SHALLOW] == {"a": json.loads(nested(tbmon.PAYLOAD_DEPTH - 1))}
    assert "Traceback" not in limited.log.read_text()
