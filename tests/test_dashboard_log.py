"""The dashboard's log in a real browser: following, pausing, filters, places in time, and a flood."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from support.machine import wait_for
from support.node_words import header
from support.pages import Tab
from support.programs import Program, discard, follow

LINES = 1500


def say(program: Program, *lines: str) -> None:
    with (Path(program.env["LOG_DIR"]) / "a.log").open("a") as file:
        file.write("".join(line + "\n" for line in lines))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """A log of four lines a minute for six hours, every hundredth of them an error."""
    one = Program(tmp_path_factory.mktemp("log") / "program", API_RATE_LIMIT="0")
    follow(one, "Starting services")
    begin = time.time() - LINES * 15
    levels = ("error" if number % 100 == 99 else "info" for number in range(LINES))
    say(
        one,
        *(
            header(f"line {number} of many", begin + number * 15, level)
            for number, level in enumerate(levels)
        ),
    )
    wait_for(lambda: one.private(f"/api/logs?search={quote(f'line {LINES - 1} of')}")["logs"])
    yield one
    discard([one])


@pytest.fixture
def tab(browser: Any, site: Program) -> Iterator[Tab]:
    with Tab(browser, site) as opened:
        yield opened.logged_in()


def rows(tab: Tab) -> list[str]:
    return list(tab.page.locator(".log-row .text").all_inner_texts())


def held(tab: Tab) -> int:
    """How many entries the page says it holds."""
    found = re.search(r"([\d,]+) here", tab.page.locator(".log-bar").inner_text())
    assert found
    return int(found[1].replace(",", ""))


def test_what_the_node_says_appears_by_itself_unless_paused(tab: Tab, site: Program) -> None:
    say(site, header("said while following"))
    tab.see("said while following")
    tab.page.get_by_role("button", name="Pause", exact=True).click()
    before = rows(tab)
    say(site, header("said while paused", level="error"))
    tab.see("Paused, 1 new entry")
    tab.see("1 new error")
    assert rows(tab) == before
    tab.page.get_by_role("button", name="Follow", exact=True).click()
    tab.see("said while paused")
    assert tab.complaints == []


def test_what_is_typed_stays_while_others_come(tab: Tab, site: Program) -> None:
    tab.page.get_by_label("Text").fill("half of a wo")
    say(site, header("said while somebody types"))
    tab.see("said while somebody types")
    tab.settle()
    assert tab.page.get_by_label("Text").input_value() == "half of a wo"


def test_what_was_said_while_another_page_was_shown_is_there_on_return(
    tab: Tab, site: Program
) -> None:
    tab.see("Following")
    tab.go("now")
    say(site, header("said while elsewhere"))
    wait_for(lambda: site.private("/api/logs?search=said+while+elsewhere")["logs"])
    tab.go("logs")
    say(site, header("said on return"))
    tab.see("said on return")
    assert rows(tab)[-2:] == ["said while elsewhere", "said on return"]


def test_without_a_stream_the_log_is_followed_too(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(WS_AUTH_REQUIRED="true", API_RATE_LIMIT="0"), "Starting services")
    with Tab(browser, one) as tab:
        tab.logged_in().see("Asking every 5 s", within="header")
        for words in (
            ["said at first"],
            [f"said in a flood {number}" for number in range(250)],
            ["said at last"],
        ):
            say(one, *map(header, words))
            tab.see(words[-1])
        assert held(tab) in (200, 201)  # a flood of more than a page: read anew
        tab.see("Following")
        assert tab.complaints == []


def test_the_focus_stays_on_an_entry_while_others_come(tab: Tab, site: Program) -> None:
    say(site, header("said to be held"))
    tab.see("said to be held")
    row = tab.page.locator(".log-row", has_text="said to be held")
    row.focus()
    for number in range(3):
        say(site, header(f"said meanwhile {number}"))
        tab.see(f"said meanwhile {number}")
    assert row.evaluate("row => row === document.activeElement")


def test_filters_stand_in_the_address_and_hold_for_what_comes(tab: Tab, site: Program) -> None:
    tab.page.get_by_label("Level").select_option("error")
    tab.page.locator(".log-row.error").first.wait_for()
    tab.page.get_by_label("Text").fill("OF MANY")
    tab.page.get_by_label("Text").press("Enter")
    tab.see(re.compile("line 1499 of many"))
    assert "level=error" in tab.page.url and "search=OF+MANY" in tab.page.url
    say(
        site,
        header("info of many"),
        header("error of few", level="error"),
        header("one Of Many", level="error"),
    )
    tab.see("one Of Many")
    assert not {"info of many", "error of few"} & set(rows(tab))
    tab.page.get_by_role("button", name="Clear filters").click()
    tab.see("error of few")


def test_older_entries_come_when_scrolled_to_and_the_place_stays(tab: Tab) -> None:
    log = tab.page.locator(".log")
    for goal in (300, 500, 700):
        log.evaluate("list => { list.scrollTop = 0; }")
        wait_for(lambda: held(tab) >= goal)  # noqa: B023
    numbers = [int(found[1]) for text in rows(tab) if (found := re.match(r"line (\d+) of", text))]
    assert (
        numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < LINES - 400
    )
    assert len(tab.page.locator(".log-row").all()) < 80
    tab.see(re.compile("Paused"))


def test_an_entry_opens_to_its_payload_and_has_an_address_of_its_own(
    browser: Any, tab: Tab, site: Program
) -> None:
    payload = json.dumps({"deep": {"words": "of the payload"}})
    say(site, header(f"Message received from somewhere: {payload}"), header("after the payload"))
    tab.see("after the payload")
    tab.page.locator(".log-row", has_text="of the payload").click()
    tab.see(re.compile(r'"deep": \{\n'))
    href = tab.page.get_by_role("link", name="Link to this entry").get_attribute("href")
    tab.page.goto(tab.base)
    tab.page.goto(f"{tab.base}{href}")
    tab.see(re.compile(r'"deep": \{\n'))
    tab.see("An earlier time")
    tab.page.get_by_role("button", name="Follow", exact=True).click()
    tab.see("Following")
    assert "at=" not in tab.page.url and tab.complaints == []


def test_a_place_in_time_is_gone_to_and_left_forwards(tab: Tab) -> None:
    begin = time.time() - 3 * 3600
    tab.go("logs?until=" + time.strftime("%Y-%m-%dT%H:%M", time.gmtime(begin)))
    tab.see("An earlier time")
    wait_for(lambda: rows(tab))
    last = int(re.findall(r"\d+", rows(tab)[-1])[0])
    assert LINES - 3 * 240 - 10 < last < LINES - 3 * 240 + 10
    tab.page.get_by_role("button", name="Later").click()
    wait_for(lambda: (shown := rows(tab)) and int(re.findall(r"\d+", shown[-1])[0]) > last + 20)


def test_a_click_on_the_strip_goes_there(tab: Tab) -> None:
    strip = tab.page.locator('[data-chart="density"]')
    strip.focus()
    tab.page.keyboard.press("End")
    for _ in range(6):
        tab.page.keyboard.press("ArrowLeft")
    assert re.search(
        r"Entries 1[12]\d, Errors [12]", tab.page.locator("figure output").inner_text()
    )
    tab.page.keyboard.press("Enter")
    tab.see("An earlier time")
    assert "until=" in tab.page.url


def test_a_flood_neither_grows_the_page_nor_its_memory(
    browser: Any, program: Callable[..., Program], site: Program
) -> None:
    one = follow(program(), "Starting services")
    with Tab(browser, one) as tab:
        tab.logged_in()
        before, sent = tab.heap_bytes(), 0
        wide = "w" * 300
        while sent < 4000:  # as fast as they are shown, which is several hundred lines a second
            say(one, *(header(f"flood {number} {wide}") for number in range(sent, sent + 500)))
            sent += 500
            tab.see(re.compile(f"flood {sent - 1} "))
        assert held(tab) == 2000
        assert tab.page.locator("body *").count() < 700
        assert tab.heap_bytes() - before < 8_000_000
        tab.see("Following")
        assert tab.complaints == []
