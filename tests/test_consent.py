"""Consent: to which hub, by whose leave; and what strangers are told to be able to do."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

import pytest
from support.asking import PASSWORD
from support.hubs import LOOPBACK, Hub, Listening, Station, Stepped
from support.machine import wait_for
from support.node_words import IDS, header, invoice, output, received
from support.pages import Tab
from support.programs import Program, end, write
from support.sharing import AWAY, at_hub, change, connected, see, soon, tell

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
            banner.get_by_label("Task-data password").fill(PASSWORD)
            banner.get_by_role("button", name="Opt in to the new hub").click()
            banner.wait_for(state="detached")
        assert see(program, "settings")["enabled"] is (way == "opt in")
    end(program)


# More leaves by the password only, less by nobody's leave

SETTINGS = "/api/federation/settings"
MORE: list[dict[str, Any]] = [
    {"enabled": True},
    {"privacyLevel": "minimal"},
    {"privacyLevel": "balanced"},
    {"shareTasks": True},
    {"shareStats": True},
    {"natsServers": [OTHER]},
    {"natsServers": [AWAY, OTHER]},
    {"enabled": False, "shareTasks": True},
]
LESS: list[dict[str, Any]] = [
    {"privacyLevel": "balanced"},
    {"privacyLevel": "maximum"},
    {"shareTasks": False},
    {"shareStats": False},
    {"natsServers": [AWAY]},
    {"natsServers": []},
    {"enabled": False},
]


@pytest.mark.parametrize("key", ["", "key of this test"], ids=["open", "with an API key"])
def test_what_makes_more_leave_needs_the_password_and_less_never_does(
    stepped: Make, key: str
) -> None:
    program = stepped(API_KEY=key).start()
    by_key = {"Authorization": f"Bearer {key}"} if key else {}

    def status(method: str, path: str, body: object = None, **headers: str) -> int:
        return tell(program, method, path, body, **by_key, **headers).status

    def settings() -> Any:
        return program.get(SETTINGS, **by_key)[1]

    least = {"privacyLevel": "maximum", "shareTasks": False, "shareStats": False}
    assert status("PUT", SETTINGS, least) == 200
    for is_on in (False, True):
        before = settings()
        assert before["enabled"] is is_on
        for body in MORE[is_on:]:
            assert status("PUT", SETTINGS, body) == 401, body
            wrong = {"X_Task_Data_Password": "wrong"}
            assert status("PUT", SETTINGS, body, **wrong) == 401, body
        assert status("POST", "/api/federation/enable") == 401
        assert status("POST", "/api/federation/reset") == (401 if is_on else 200)
        assert settings() == before
        if not is_on:
            opened = status("POST", "/api/federation/enable", X_Task_Data_Password=PASSWORD)
            assert (opened, settings()["enabled"]) == (200, True)
    assert status("POST", "/api/federation/reset", X_Task_Data_Password=PASSWORD) == 200
    most = {"privacyLevel": "minimal", "shareTasks": True, "shareStats": True}
    most_servers = {**most, "natsServers": [AWAY, OTHER]}
    assert status("PUT", SETTINGS, most_servers, X_Task_Data_Password=PASSWORD) == 200
    for body in LESS:
        assert status("PUT", SETTINGS, body) == 200, body
    assert settings()["enabled"] is False
    assert status("POST", "/api/federation/disable") == 200
    end(program)


def test_a_session_that_gave_the_password_may_let_more_out(stepped: Make) -> None:
    program = stepped().start()
    login = tell(program, "POST", "/api/auth/login", {"secret": PASSWORD})
    cookie = (login.headers["Set-Cookie"] or "").partition(";")[0]
    assert tell(program, "POST", "/api/federation/enable").status == 401
    assert tell(program, "POST", "/api/federation/enable", Cookie=cookie).status == 200
    assert tell(program, "PUT", SETTINGS, {"privacyLevel": "minimal"}, Cookie=cookie).status == 200
    end(program)


def test_a_reset_consents_to_no_other_hub(stepped: Make) -> None:
    program = stepped().start()
    opt_in(program)
    restart(program, OTHER)
    assert tell(program, "POST", "/api/federation/reset").status == 200  # nothing leaves by it
    status = see(program, "status")
    assert (status["status"], status["consentedTo"]) == ("consent needed", [AWAY])
    end(program)


def test_the_page_asks_for_the_password_where_more_leaves(browser: Any, stepped: Make) -> None:
    program = stepped().start()
    with Tab(browser, program) as tab:
        tab.opt_in("wrong")
        tab.see("The task-data password in the header")
        assert see(program, "settings")["enabled"] is False
        tab.complaints.clear()  # Chromium's word of the 401
        tab.opt_in()
        form = tab.page.locator('form[data-submit="sharing"]')
        form.wait_for()
        level = form.get_by_label("How late messages leave")
        level.select_option("maximum")
        form.get_by_role("button", name="Save").click()
        wait_for(lambda: see(program, "settings")["privacyLevel"] == "maximum")
        tab.see("Saved.")
        form.locator('[data-value="maximum"]').wait_for()  # the page has heard of it
        level.select_option("minimal")
        form.get_by_role("button", name="Save").click()
        tab.see("This needs the task-data password")
        assert see(program, "settings")["privacyLevel"] == "maximum"
        assert level.input_value() == "minimal"  # what was chosen is not lost by the refusal
        tab.complaints.clear()
        form.get_by_label("Task-data password").fill(PASSWORD)
        form.get_by_role("button", name="Save").click()
        wait_for(lambda: see(program, "settings")["privacyLevel"] == "minimal")
        form.get_by_label("Task-data password").fill(PASSWORD)
        form.get_by_role("button", name="New id and keys").click()
        tab.see("The id and the keys of this installation are new")
        assert tab.violations() == [] and tab.complaints == []
        tab.go("logs").unlock()
        tab.page.locator("#password").wait_for(state="detached")
        tab.go("federation")
        assert tab.page.get_by_label("Task-data password").count() == 0
        form.get_by_role("button", name="Disable Federation").click()
        tab.see("Before you join")
    end(program)


# A port that is open to others


OPEN = "can read the node's status, tasks and invoices, and change what the federation shares"


@pytest.mark.parametrize(
    ("settings", "is_told"),
    [
        ({"HOST": "0.0.0.0"}, True),
        ({"HOST": "0.0.0.0", "API_KEY": "key of this test"}, False),
        ({"HOST": "127.0.0.1"}, False),
        ({"HOST": "localhost"}, False),
    ],
    ids=str,
)
def test_an_open_port_says_on_now_and_setup_what_strangers_can_read_and_change(
    browser: Any, stepped: Make, settings: dict[str, str], is_told: bool
) -> None:
    program = stepped(**settings).start()
    key = {"Authorization": f"Bearer {settings['API_KEY']}"} if "API_KEY" in settings else {}
    for path in ("/api/now", "/api/setup"):
        words = program.get(path, **key)[1]["strangers"]
        assert (words is not None and OPEN in words) is is_told
    assert (OPEN in program.log.read_text()) is is_told
    if not key:
        with Tab(browser, program) as tab:
            for page in ("now", "setup"):
                tab.go(page).see("Uptime, 30 days" if page == "now" else "Who can read this page")
                if is_told:
                    tab.see(re.compile(OPEN))
                    tab.see(re.compile("Set API_KEY"))
                assert (OPEN in tab.text()) is is_told
    end(program)
