"""The dashboard in a real browser, on a real tbmon."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Program, chromium, header, wait_for

NAME = "3f1c9d2e-5b7a-4c11-9a60-0d5e8f7a1b2c"
CANARY = "<img src=x onerror=\"document.title='taken'\">"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


@pytest.fixture
def site(program: Callable[..., Program]) -> Program:
    one = program()
    (one.folder / "logs").mkdir()
    one.env["LOG_DIR"] = str(one.folder / "logs")
    payload = {"payload": {"type": "task_created", "executionId": NAME, "message": {"taskId": "js_" + "4b" * 32}}}
    said = ["Message received from task_created: " + json.dumps(payload), f"a {CANARY} b"]
    said.append(f"Execution {NAME} completed")
    lines = [header(words, time.time() - 9 + second) for second, words in enumerate(said)]
    (one.folder / "logs" / "a.log").write_text("\n".join(lines) + "\n")
    one.start()
    wait_for(lambda: one.get("/api/tasks/stats/summary")[1]["completed"] == 1)
    return one


def open_page(browser: Any, site: Program) -> tuple[Any, list[str]]:
    """The page, and what the browser complains of."""
    page, complaints = browser.new_page(), []
    page.on("console", lambda message: complaints.append(message.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(f"http://127.0.0.1:{site.port}/")
    return page, complaints


def test_the_page_shows_the_verdict_and_the_task(browser: Any, site: Program) -> None:
    page, complaints = open_page(browser, site)
    page.locator("#verdict").get_by_text(re.compile("^working$", re.I)).wait_for()
    page.get_by_text("javascript").first.wait_for()
    assert (complaints, page.title()) == ([], "working · tbmon")


def test_the_log_opens_with_the_password_and_stays_text(browser: Any, site: Program) -> None:
    page, complaints = open_page(browser, site)
    field = page.get_by_label("Task-data password")
    field.fill("open sesame")
    field.press("Enter")
    page.get_by_text(f"a {CANARY} b").first.wait_for()
    assert (complaints, "taken" in page.title(), page.locator("img").count()) == ([], False, 0)


def test_the_page_loads_nothing_from_elsewhere(browser: Any, site: Program) -> None:
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"http://127.0.0.1:{site.port}/", wait_until="networkidle")
    assert asked and all(url.startswith(f"http://127.0.0.1:{site.port}/") for url in asked)


def test_the_page_says_that_tbmon_does_not_answer(browser: Any, site: Program, tmp_path: Path) -> None:
    page, _ = open_page(browser, site)
    page.locator("#verdict").get_by_text(re.compile("^working$", re.I)).wait_for()
    assert site.end() == 0
    page.get_by_text("tbmon does not answer").first.wait_for()
