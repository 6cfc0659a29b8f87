"""The hub is part of the consent: another one than was opted in to is told nothing."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

import pytest
from support.asking import PASSWORD
from support.hubs import LOOPBACK, Hub, Listening, Station, Stepped
from support.machine import wait_for
from support.node_words import IDS, header, invoice, output, received
from support.pages import Tab
from support.programs import Program, end, write
from support.sharing import AWAY, at_hub, change, connected, see, soon

import tbmon

Make = Callable[..., Any]
OTHER = f"nats://{LOOPBACK}:2"
NAMES = [f"{number:08x}-1111-4000-8000-00000000abcd" for number in range(4)]


def opt_in(program: Program) -> None:
    assert change(program, "enable", X_Task_Data_Password=PASSWORD)["success"]


def work(program: Program, number: int) -> None:
    """Let the node do a task, and wait until it is known."""
    name = IDS[number]
    ended = output(False, executionId=name), f"Execution {name} completed"
    told = received(name, "rs"), *ended, invoice(name, "pay", f"7{name[:8]}")
    write(program, *(header(line, soon()) for line in told))
    wait_for(lambda: program.get("/api/invoices/count")[1]["count"] == number + 1)


def waiting(program: Program) -> int:
    return len(see(program, "preview")["queued"])


def restart(program: Stepped, url: str) -> None:
    end(program)
    program.env["FEDERATION_NATS_URL"] = url
    program.start()


def test_after_a_restart_with_another_hub_nothing_is_told_until_somebody_opts_in_to_it(
    hub: Make, listening: Make, stepped: Make
) -> None:
    first: Hub = hub()
    second: Listening = listening(Listening())
    other = f"nats://{LOOPBACK}:{second.port}"
    program = stepped(**at_hub(first)).start()
    opt_in(program)
    connected(program)
    work(program, 0)
    wait_for(lambda: waiting(program) == 3)

    restart(program, other)
    status = see(program, "status")
    assert (status["status"], status["enabled"], status["connected"], status["healthy"]) == (
        "consent needed",
        True,
        False,
        False,
    )
    assert (status["hub"], status["consentedTo"]) == ([other], [first.url])
    facts = see(program, "privacy")
    assert (facts["connectsTo"], facts["kindsShared"], facts["dayKeysKept"]) == ([], [], 0)
    work(program, 1)
    program.ahead(25 * 3600)
    change(program, "settings", {"shareStats": False})  # which opts in to nothing
    work(program, 2)
    assert waiting(program) == 0
    assert second.said == []
    said = program.log.read_text()
    assert first.url in said and other in said

    restart(program, first.url)  # the one that was opted in to
    connected(program)
    assert waiting(program) == 0

    restart(program, other)
    assert second.said == []
    opt_in(program)
    wait_for(lambda: second.said)
    status = see(program, "status")
    assert status["consentedTo"] == status["hub"] == [other]
    change(program, "disable")
    assert see(program, "status")["consentedTo"] == []
    end(program)


def test_the_default_hub_is_not_fallen_back_to(stepped: Make) -> None:
    program = stepped().start()
    opt_in(program)
    end(program)
    config = tbmon.Config(db_path=program.env["DB_PATH"])
    store = tbmon.Store(program.folder / "t.db", (program.folder / "local.key").read_bytes())
    keys, dice = tbmon.SharingKeys(program.folder), random.Random(1)
    outbox = tbmon.Outbox(store, keys, lambda: 1, dice, config.federation_nats_url)
    assert outbox.servers() == ("wss://f.tru.watch:9086",)
    assert (outbox.sharing.enabled, outbox.sharing.agreed) == (True, False)
    federation = tbmon.Federation(config, outbox, lambda payload: True, lambda: True)
    federation.start()
    assert federation.thread is None
    store.close()


def as_kept(here: Station) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(here.store.first("state", "federation"))
    return kept


def anew(here: Station, hub: str) -> tbmon.Outbox:
    """The outbox as the next start makes it."""
    here.outbox = tbmon.Outbox(
        here.store, here.outbox.keys, lambda: here.now, here.outbox.dice, hub
    )
    return here.outbox


def test_an_upgrade_takes_the_hub_in_use_at_its_first_start_and_no_later_one(
    station: Make,
) -> None:
    here: Station = station(AWAY).opt_in()
    assert len(here.queue(*NAMES[:2])) == 2
    old = {name: value for name, value in as_kept(here).items() if name not in ("hubs", "agreed")}
    with here.store.write() as db:
        here.store.put(db, "state", [("federation", json.dumps(old))])
    here.now += 1000
    upgraded = anew(here, AWAY)
    assert (upgraded.sharing.hubs, upgraded.sharing.agreed) == ((AWAY,), True)
    assert upgraded.sharing.joined_at == old["joined_at"]
    assert len(here.waiting()) == 2
    assert anew(here, AWAY).sharing == upgraded.sharing
    assert (anew(here, OTHER).sharing.agreed, here.waiting()) == (False, [])


def test_what_happened_while_another_hub_was_configured_is_not_told_to_the_old_one_later(
    station: Make,
) -> None:
    here: Station = station(AWAY).opt_in()
    anew(here, OTHER)
    assert here.queue(NAMES[0]) == []
    here.now += 1000
    anew(here, AWAY)
    task = here.store.task(NAMES[0])
    assert task is not None
    here.outbox.event_db = False
    with here.store.write() as db:
        here.outbox.offer(db, [task], ())
    assert here.waiting() == []
    assert len(here.queue(NAMES[1])) == 1


def test_what_waits_for_one_hub_is_not_sent_to_another(station: Make) -> None:
    here: Station = station(AWAY).opt_in(servers=(AWAY, OTHER))
    assert len(here.queue(*NAMES[:2])) == 2
    here.outbox.keep(servers=(OTHER,))  # one of those that it waited for
    assert len(here.waiting()) == 2
    here.outbox.keep(servers=("nats://127.0.0.1:3",), greeted=False)
    assert (here.waiting(), here.outbox.sharing.agreed) == ([], True)
    assert anew(here, OTHER).sharing.agreed  # servers that were named stand before the setting


def test_withdrawing_leaves_neither_consent_nor_messages_nor_id_nor_keys(station: Make) -> None:
    here: Station = station(AWAY).opt_in()
    here.queue(*NAMES[:2])
    here.outbox.keys.node_id(here.outbox.dice)
    here.outbox.withdraw()
    assert (here.outbox.sharing.enabled, here.outbox.sharing.hubs) == (False, ())
    assert (here.waiting(), here.outbox.keys.known_id(), here.outbox.keys.day_keys()) == (
        [],
        None,
        {},
    )
    assert anew(here, AWAY).sharing == here.outbox.sharing


@pytest.mark.parametrize("way", ["opt in", "leave"])
def test_the_page_names_both_hubs_and_both_ways(browser: Any, stepped: Make, way: str) -> None:
    program = stepped().start()
    opt_in(program)
    restart(program, OTHER)
    with Tab(browser, program) as tab:
        banner = tab.go("federation").page.get_by_role("alert").filter(has_text="Nothing is sent")
        banner.wait_for()
        text = banner.inner_text()
        assert AWAY in text and OTHER in text and "FEDERATION_NATS_URL" in text
        assert tab.violations() == [] and tab.complaints == []
        if way == "leave":
            banner.get_by_role("button", name="Disable Federation").click()
            tab.see("Before you join")
        else:
            banner.get_by_role("button", name="Opt in to the new hub").click()
            banner.wait_for(state="detached")
        assert see(program, "settings")["enabled"] is (way == "opt in")
    end(program)
