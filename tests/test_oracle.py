"""The rules of docs/node-data.md against the truth: the oracle never tells what another task did."""

from __future__ import annotations

import histories
import oracle
import pytest
from histories import History
from truths import FIGURES, heard, read_in_files, untruths

SEEDS = range(100)


def check(history: History, reading: oracle.Reading, is_whole: bool, how: str) -> None:
    for execution_id, task in reading.tasks.items():
        wrong = untruths(task, history.truths[execution_id], is_whole)
        assert not wrong, f"seed {history.seed}, {how}, task {execution_id}: {wrong}"
    for invoice_id, invoice in reading.invoices.items():
        assert history.invoices[invoice_id][0] == invoice.execution_id
        assert invoice.operation in (None, history.invoices[invoice_id][1])


@pytest.mark.parametrize("block", range(0, len(SEEDS), 25))
def test_whole_logs_tell_nothing_but_the_truth(block: int) -> None:
    told = 0
    tellable = 0
    for seed in SEEDS[block : block + 25]:
        history = histories.make(seed)
        engine = oracle.read(heard(history.said), history.starts, records=history.records)
        check(history, engine, True, "by the engine")
        files = oracle.read(read_in_files(history.written), records=history.records)
        check(history, files, True, "by files")
        assert engine.tasks.keys() == files.tasks.keys() == history.truths.keys()
        assert set(engine.invoices) == set(history.invoices)
        for execution_id, truth in history.truths.items():
            for name in FIGURES:
                tellable += getattr(truth, name) is not None
                told += getattr(engine.tasks[execution_id], name) is not None
    assert told > 0.6 * tellable, "an oracle that says nothing is of no use"


@pytest.mark.parametrize("block", range(0, len(SEEDS), 25))
def test_cut_logs_tell_nothing_but_the_truth(block: int) -> None:
    for seed in SEEDS[block : block + 25]:
        history = histories.make(seed)
        lines = len(history.said)
        cut = seed * 7919 % lines
        beginning = oracle.read(heard(history.said)[cut:], history.starts, records=history.records)
        check(history, beginning, False, f"from line {cut}")
        gap = cut // 2
        behind = min(gap + seed % 60, lines - 1)
        parts = history.said[:gap] + history.said[behind:]
        if parts:
            missing = oracle.read(heard(parts), history.starts, (0, gap))
            check(history, missing, False, f"without lines {gap} to {behind}")
