"""Long runs of hex digits in the log, which may hold the node's own address: found, and fast."""

from __future__ import annotations

import random
import time
from pathlib import Path

from support.machine import wait_for
from support.node_words import WALLET, header
from support.programs import Watch

import tbmon

DIGITS = WALLET[2:]
HEX = "".join(random.Random(7).choices("0123456789abcdefABCDEF", k=250_000))


def test_an_address_that_no_header_names_is_found_fast_in_long_hex(tmp_path: Path) -> None:
    """Its logger's name has no address, so that only its pseudonym and its mark are known."""
    (tmp_path / "logs").mkdir()
    log = tmp_path / "logs" / "a.log"
    log.write_text(f"{header('hello')}\n")
    watch = Watch(tmp_path / "data", log_dir=str(tmp_path / "logs"))
    with watch:
        watch.wait_for_message("hello")
    with log.open("a") as file:
        file.write(f"  {HEX}\n  {HEX[:60_000]}\n  {HEX[:300]}{DIGITS.upper()}{HEX[:300]}\n")
    begun = time.process_time()
    for at in range(len(HEX) // 10):
        tbmon.keyed(watch.key, "wallet", HEX[at : at + 40])
    to_name_all_s = 10 * (time.process_time() - begun)
    begun = time.process_time()
    with watch:
        wait_for(lambda: watch.messages()[0].count("\n") == 2)
        (message,) = watch.messages()
    assert time.process_time() - begun < to_name_all_s / 2
    assert DIGITS.upper() not in message
    (pseudonym,) = watch.store.own
    assert f"{HEX[:300]}{pseudonym}{HEX[:300]}" in message


def test_marks_tell_of_own_addresses_only_and_are_kept_when_many_others_are_named() -> None:
    redactor = tbmon.Redactor(b"k" * 32)
    own = redactor.clean(WALLET)
    redactor.own = frozenset({own})
    for number in range(3 * tbmon.MARKS):
        redactor.clean(f"0x{number:040x}")
    assert own in redactor.marks and len(redactor.marks) <= tbmon.MARKS
    assert redactor.anywhere is None
    hidden = redactor.clean(HEX[:3000] + DIGITS.lower() + HEX[:3000])
    assert hidden == HEX[:3000] + own + HEX[:3000]
