"""The page as it is sent: what stands in it without its script, what it weighs, and that words stay
words.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.asking import fetch
from support.machine import wait_for
from support.node_words import NAME, invoice_of, task
from support.pages import KEY, Tab
from support.programs import Program, discard, follow

CANARY = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A node that has done one task; nothing happens any more."""
    one = Program(tmp_path_factory.mktemp("page") / "program")
    follow(one, task(NAME), f"a {CANARY} b", f"Execution {NAME} completed")
    wait_for(lambda: one.get("/api/tasks/stats/summary")[1]["completed"] == 1)
    wait_for(lambda: (one.get("/api/status")[1]["verdict"] or {}).get("state") == "working")
    yield one
    discard([one])


def test_the_page_shows_the_verdict_and_the_task(browser: Any, site: Program) -> None:
    with Tab(browser, site) as tab:
        tab.verdict("working")
        tab.see(NAME[:8])
        tab.see("javascript")
        assert (tab.complaints, tab.page.title()) == ([], "working · tbmon")


def test_the_verdict_stands_in_the_page_that_is_sent(browser: Any, site: Program) -> None:
    with Tab(browser, site, java_script_enabled=False) as tab:
        words = tab.page.locator("#verdict").inner_text()
        assert (
            "Working" in words
            and "It had a task within 24 hours." in words
            and "Nothing to do." in words
        )
        assert tab.page.locator("#verdict use:visible").count() == 1


def test_what_is_not_open_to_the_reader_is_not_in_the_page(program: Callable[..., Program]) -> None:
    one = follow(program(API_KEY=KEY), task(NAME), f"Execution {NAME} completed")
    named = {"Authorization": f"Bearer {KEY}"}
    wait_for(lambda: one.get("/api/tasks/stats/summary", **named)[1]["completed"] == 1)
    wait_for(lambda: one.get("/api/status", **named)[1]["verdict"]["state"] == "working")
    without, given = fetch(one, "/"), fetch(one, "/", **named)
    assert NAME.encode() not in without.body and b"Working" not in without.body
    assert NAME.encode() in given.body and b">Working<" in given.body
    assert (without.headers["Cache-Control"], given.headers["Cache-Control"]) == (
        "no-store",
        "no-store",
    )


def test_a_page_of_another_site_gets_nothing_but_the_shell(site: Program) -> None:
    strange = fetch(site, "/", Sec_Fetch_Site="cross-site", Origin="https://evil.example")
    assert (
        strange.status == 200
        and NAME.encode() not in strange.body
        and NAME.encode() in fetch(site, "/").body
    )


def test_the_colours_chosen_are_in_the_page_that_is_sent(site: Program) -> None:
    assert (
        b'<html lang="en" data-theme="dark">'
        in fetch(site, "/", Cookie="a=b; tbmon-theme=dark").body
    )
    for cookie in (
        "tbmon-theme=",
        "tbmon-theme=darker",
        'tbmon-theme="dark"><script>',
        "x-tbmon-theme=dark",
    ):
        assert b'<html lang="en">' in fetch(site, "/", Cookie=cookie).body


def test_the_first_load_is_light(browser: Any, site: Program) -> None:
    with Tab(browser, site) as tab:
        tab.see(NAME[:8])
        tab.page.wait_for_load_state("load")
        first = [url.removeprefix(tab.base) for url in tab.asked if "/api/" not in url]
        assert sorted(set(first) | {"favicon.svg"}) == ["", "app.js", "favicon.svg", "style.css"]
    sent = [
        fetch(site, f"/{path}", Accept_Encoding="gzip").body
        for path in ("", "app.js", "style.css", "favicon.svg")
    ]
    raw = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in sent]
    assert sum(map(len, sent)) <= 35_000 and sum(map(len, raw)) <= 120_000


def test_the_page_loads_nothing_from_elsewhere(browser: Any, site: Program) -> None:
    with Tab(browser, site) as tab:
        for route in ("tasks", "invoices", "federation", "setup", "logs"):
            tab.go(route)
        assert tab.asked and all(url.startswith(tab.base) for url in tab.asked)


def test_the_log_opens_with_the_password_and_stays_text(browser: Any, site: Program) -> None:
    with Tab(browser, site) as tab:
        tab.go("logs").unlock()
        tab.see(f"a {CANARY} b")
        assert (tab.complaints, "taken" in tab.page.title(), tab.page.locator("img").count()) == (
            [],
            False,
            0,
        )


def test_no_words_of_a_log_become_markup(browser: Any, program: Callable[..., Program]) -> None:
    planted = {"input": CANARY, "taskId": f"js_{CANARY}", "chainId": CANARY, "blockHash": CANARY}
    items = [{"operation": CANARY, "account": CANARY, "total_steps_computed": 9}]
    bill = {"executionId": NAME, "invoiceId": CANARY, "stepGasPrice": 1, "lineItem": items}
    one = follow(
        program(),
        "Starting services",
        f"Node with address {CANARY} registered successfully",
        task(NAME, **planted),
        f"Command execution stderr: {CANARY}",
        f"Execution {NAME} failed: {CANARY}",
        f"Semaphore {CANARY} processing started - Using slot 1/4",
        invoice_of(bill),
        f"Message received from {CANARY}: {{}}",
        f"</script>{CANARY}",
    )
    wait_for(lambda: one.get("/api/tasks/stats/summary")[1]["failed"] == 1)
    wait_for(lambda: b"</script>" in fetch(one, "/api/logs").body)
    with Tab(browser, one) as tab:
        tab.logged_in()
        for row in range(tab.page.locator(".log-row").count()):
            tab.page.locator(".log-row").nth(row).click()
            tab.page.locator(".log-detail pre").first.wait_for()
        seen = CANARY in tab.text()
        for route in ("", "tasks", f"tasks/{NAME}", "invoices", "setup", "federation"):
            tab.go(route)
            seen = seen or CANARY in tab.text()
            assert (tab.page.locator("img").count(), "taken" in tab.page.title()) == (0, False)
        assert seen and tab.complaints == []


def test_the_page_says_that_tbmon_does_not_answer(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), "Starting services")
    with Tab(browser, one) as tab:
        tab.verdict("idle")
        assert one.end() == 0
        tab.see(re.compile("tbmon does not answer"))
        tab.see(re.compile("What stands here is from"))
        assert tab.page.title() == "no answer · tbmon"
