"""The dashboard's pages in a real browser: on the demo, with no data, with the node down and the
engine gone.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.engine import Node, Proxy, docker
from support.hubs import SECRET, Hub
from support.machine import wait_for
from support.modules import SMALL, digest, module_path
from support.node_words import NAME, header, output, task
from support.pages import KEY, SCHEMES, WIDTHS, SubPath, Tab, wait_for_streams
from support.programs import Program, discard, follow
from support.sharing import publication

PAGES = ("", "tasks", "tasks/TASK", "invoices", "logs", "federation", "setup")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    one = Program(tmp_path_factory.mktemp("demo") / "program", API_RATE_LIMIT="0").start("demo")
    wait_for(lambda: (one.get("/api/status")[1]["verdict"] or {}).get("state") == "working")
    yield one
    discard([one])


@pytest.fixture(scope="module")
def known(demo: Program) -> str:
    """The execution id of a task that has an invoice."""
    return str(
        demo.get("/api/invoices?matched=true&operation=pay&limit=1")[1]["invoices"][0][
            "execution_id"
        ]
    )


@pytest.fixture(scope="module")
def reader(browser: Any, demo: Program) -> Iterator[Tab]:
    """A tab that has logged in, for tests that change nothing."""
    with Tab(browser, demo) as opened:
        yield opened.logged_in()


@pytest.fixture
def tab(browser: Any, demo: Program) -> Iterator[Tab]:
    with Tab(browser, demo) as opened:
        yield opened


# Every page, in every size and colour


@pytest.mark.parametrize("name", PAGES)
def test_a_page_fits_every_window_without_a_complaint_or_a_barrier(
    reader: Tab, known: str, name: str
) -> None:
    tab = reader.go(name.replace("TASK", known))
    if name == "logs":
        tab.page.locator(".log-row").last.click()
    while (closed := tab.page.locator("figure details:not([open]) summary")).count():
        closed.first.click()
    for width in WIDTHS:
        for scheme in SCHEMES:
            tab.look(width, scheme)
            assert tab.overflow() == 0, (width, scheme)
            if (width, scheme) in ((360, "light"), (1440, "dark")):
                assert tab.violations() == [], (width, scheme)
    assert tab.complaints == []


def test_the_page_that_asks_for_a_password_has_no_barrier_either(tab: Tab) -> None:
    tab.go("logs").page.locator("#password").wait_for()
    assert tab.violations() == [] and tab.complaints == []


# Now


def test_now_tells_what_the_api_tells(tab: Tab, demo: Program) -> None:
    now = demo.get("/api/now")[1]
    tiles = tab.page.locator(".metrics").inner_text()
    assert all(
        word in tiles
        for word in ("Tasks", "Success", "Invoices", "Uptime, 30 days", "Slots in use")
    )
    assert f"{now['uptime']['percent_30d']:g}" in tiles and "2 outages" in tiles
    assert "Last sign of life" in tab.page.locator("#verdict").inner_text()
    tab.see("Demo", within="header")


def test_a_chart_can_be_read_by_keys_and_as_a_table(tab: Tab, demo: Program) -> None:
    chart = tab.page.locator('[data-chart="uptime"]')
    assert (
        "outages" in chart.locator("desc").text_content() and chart.locator("title").text_content()
    )
    chart.focus()
    tab.page.keyboard.press("End")
    last = demo.get("/api/now")[1]["uptime"]["cells"][-1]
    figure = tab.page.locator("figure", has=chart)
    assert re.search(
        rf"Minutes up {last['up']}\b|Minutes up {last['up'] - 1}\b",
        figure.locator("output").inner_text(),
    )
    tab.page.keyboard.press("ArrowLeft")
    assert "Minutes up 480" in figure.locator("output").inner_text()
    figure.locator("summary").click()
    wait_for(lambda: figure.locator("tbody tr").count() == 90)


# Tasks and invoices


def test_filters_of_tasks_stand_in_the_address_and_go_with_it(tab: Tab, demo: Program) -> None:
    tab.go("tasks?status=failed&span=all")
    failed = demo.get("/api/tasks?status=failed&limit=1000")[1]["tasks"]
    assert tab.page.locator(".cards tbody tr").count() == min(50, len(failed)) > 0
    tab.page.get_by_label("Status").select_option("lost")
    tab.page.locator(".cards .question").first.wait_for()
    assert "status=lost" in tab.page.url and tab.page.locator(".cards .cross").count() == 0
    tab.page.go_back()
    tab.page.locator(".cards .cross").first.wait_for()
    assert tab.page.get_by_label("Status").input_value() == "failed"
    tab.see("Why tasks failed")


def test_a_task_shows_its_measures_and_after_the_password_what_went_in_and_out(
    tab: Tab, known: str
) -> None:
    tab.go(f"tasks/{known}")
    tab.see(re.compile(r"of 64 MiB \("))
    assert "demo input" not in tab.text()
    tab.unlock()
    tab.see("demo input")
    tab.see(re.compile("metering"))
    tab.see("Log entries of this task")
    tab.see(re.compile(f"Execution {known} completed"))
    assert tab.complaints == []


def test_more_tasks_come_when_asked_for(tab: Tab) -> None:
    tab.go("tasks?span=all")
    tab.page.get_by_role("button", name="Show older ones").click()
    wait_for(lambda: tab.page.locator(".cards tbody tr").count() > 50)
    keys = tab.page.locator(".cards tbody tr").evaluate_all(
        "rows => rows.map((row) => row.dataset.key)"
    )
    assert len(keys) == len(set(keys))


def many(number: int) -> list[str]:
    return [task(f"{one:08x}-5b7a-4c11-9a60-0d5e8f7a1b2c") for one in range(number)]


def test_older_tasks_stay_when_the_list_is_read_again(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), *many(120))
    with Tab(browser, one) as tab:
        rows = tab.go("tasks?span=all").page.locator(".cards tbody tr")
        for goal in (100, 120):
            tab.page.get_by_role("button", name="Show older ones").click()
            wait_for(lambda: rows.count() == goal)  # noqa: B023
        assert tab.page.get_by_role("button", name="Show older ones").count() == 0
        (one.folder / "logs" / "b.log").write_text(header(task(NAME)) + "\n")
        tab.page.get_by_role("button", name="Show 1 new task").click()
        wait_for(lambda: rows.count() == 121)
        assert tab.complaints == []


def test_new_tasks_are_announced_only_until_they_are_shown(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), *many(3))
    with Tab(browser, one) as tab:
        rows = tab.go("tasks?span=all").page.locator(".cards tbody tr")
        (one.folder / "logs" / "b.log").write_text(header(task(NAME)) + "\n")
        announced = tab.see("Show 1 new task")
        tab.page.clock.install()
        tab.page.clock.fast_forward(70_000)  # the list is read again after a minute
        wait_for(lambda: rows.count() == 4)
        tab.settle()
        assert announced.count() == 0


def test_invoices_are_counted_by_month_and_can_be_downloaded(tab: Tab, demo: Program) -> None:
    tab.go("invoices?operation=penalty")
    summary = demo.get("/api/invoices/summary")[1]
    tab.see(re.compile(rf"{summary['total']} invoices in 12 months"))
    assert tab.page.locator(".cards tbody tr").count() == summary["penalised"] > 0
    with tab.page.expect_download() as waited:
        tab.page.get_by_role("link", name="Download the newest 1,000 as CSV").click()
    lines = Path(waited.value.path()).read_text().splitlines()
    assert lines[0].startswith("id,invoice_id") and len(lines) == summary["penalised"] + 1


# Federation, privacy and setup


def test_before_joining_the_limits_and_the_bytes_are_shown(tab: Tab) -> None:
    tab.go("federation")
    main = tab.page.locator("main").inner_text()
    places = [
        main.index(words)
        for words in ("operator sees your address", "truebit.heartbeat", "Enable Federation")
    ]
    assert places == sorted(places)
    shown = [json.loads(text) for text in tab.page.locator("main pre").all_inner_texts()]
    assert [one["type"] for one in shown] == [
        "heartbeat",
        "task_received",
        "task_completed",
        "invoice_created",
    ]
    assert not any(name in text for text in map(str, shown) for name in ("blockHash", "wallet"))
    tab.opt_in()
    tab.see("Demo data is not shared.")


def test_setup_says_that_nothing_leaves_and_who_can_read(tab: Tab) -> None:
    tab.go("setup")
    for words in (
        "Nothing. tbmon opens no connection",
        "No message has ever left.",
        "This machine only",
    ):
        tab.see(re.compile(re.escape(words)))
    tab.see(re.compile("not made, endorsed or supported by TrueBit"))
    assert "MiB free for the database" not in tab.text()
    tab.unlock()
    tab.see(re.compile("MiB free for the database"))
    tab.see(re.compile("login: opened private"))
    assert tab.complaints == []


def test_the_theme_chosen_stays(tab: Tab) -> None:
    dark = "() => getComputedStyle(document.body).backgroundColor"
    before = tab.page.evaluate(dark)
    tab.page.get_by_role("button", name="Theme: system").click()
    tab.page.get_by_role("button", name="Theme: light").click()
    tab.page.get_by_role("button", name="Theme: dark").wait_for()
    chosen = tab.page.evaluate(dark)
    assert chosen != before
    tab.page.reload()
    assert (tab.page.evaluate(dark), tab.page.locator("html").get_attribute("data-theme")) == (
        chosen,
        "dark",
    )


def test_the_pages_can_be_had_by_keys(tab: Tab) -> None:
    tab.page.keyboard.press("Tab")
    tab.page.keyboard.press("Enter")
    assert tab.page.evaluate("() => document.activeElement.id") == "main"
    for key, name in (("t", "tasks"), ("s", "setup"), ("n", "now")):
        tab.page.keyboard.type(f"g{key}")
        tab.page.locator(f'body[data-page="{name}"]').wait_for()
    tab.page.keyboard.press("?")
    tab.page.get_by_text("go to a page").wait_for()
    tab.page.get_by_label("Single keys work").uncheck()
    tab.page.keyboard.press("Escape")
    tab.page.keyboard.type("gt")
    assert tab.page.locator("body").get_attribute("data-page") == "now"


# A real container: no data yet, down, engine gone


def test_a_node_is_followed_from_idle_to_work_to_its_end(
    browser: Any, node: Node, program: Callable[..., Program], tmp_path: Path
) -> None:
    node.run()
    proxy = Proxy(tmp_path / "engine.sock", call=b"/")
    one = program(CONTAINER_NAME=node.name, DOCKER_HOST=proxy.url).start()
    with Tab(browser, one) as tab:
        node.say(header("Starting services"))
        tab.verdict("idle")
        tab.see(re.compile("idle days are normal"))
        for name, words in (
            ("tasks", "No task yet"),
            ("invoices", "No invoice here"),
            ("setup", "GET and HEAD only"),
        ):
            tab.go(name).see(re.compile(words))
        tab.go("logs").unlock()
        tab.see("Starting services")
        node.put(module_path(1), SMALL.content)
        ran = {"wasm": {"size": 1, "hash": digest(1)}, "prepare": {"cached": True}}
        for words in (
            task(NAME),
            output(True, executionId=NAME, execution=ran),
            f"Execution {NAME} completed",
        ):
            node.say(header(words))
        wait_for(lambda: one.get(f"/api/tasks/{NAME}")[1].get("status") == "completed")
        tab.go(f"tasks/{NAME}")
        with tab.page.expect_download() as waited:
            tab.page.get_by_role("link", name="Download the wasm module").click()
        assert Path(waited.value.path()).read_bytes() == SMALL.content
        tab.go("").verdict("working")
        assert tab.complaints == []
        docker("stop", "-t", "0", node.name)
        tab.verdict("down")
        tab.see(re.compile("The container has exited"))
        assert tab.page.title() == "down · tbmon"
        proxy.cut_after = lambda: 0  # on the connections that are open, too
        proxy.close()
        tab.verdict("blind")
        tab.see(re.compile("does not answer"))
        assert tab.complaints == []


def test_joining_the_federation_and_leaving_it(
    browser: Any, program: Callable[..., Program], tmp_path: Path
) -> None:
    hub = Hub(tmp_path).start()
    to_hub = {"FEDERATION_NATS_USER": "monitor", "FEDERATION_NATS_PASSWORD": SECRET}
    one = follow(program(FEDERATION_NATS_URL=hub.url, **to_hub), "Starting services")
    try:
        with Tab(browser, one) as tab:
            tab.opt_in()
            tab.see("No figures yet")
            tab.see("Connected")
            hub.peer().publish(publication())
            tab.see("Active nodes")
            for words in ("Time a task takes", "1-5s", "700 (100 %)", "Languages", "Nodes seen"):
                tab.see(words)
            assert tab.violations() == [] and tab.complaints == []
            tab.go("setup").see(re.compile("truebit.nodes.joined"))
            tab.go("federation").page.get_by_role("button", name="Disable Federation").click()
            tab.see("Before you join")
            assert one.get("/api/federation/settings")[1]["enabled"] is False
    finally:
        hub.close()


def test_what_is_chosen_to_be_shared_stays_chosen_until_it_is_sent(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), "Starting services")
    with Tab(browser, one) as tab:
        tasks = tab.go("federation").page.get_by_label("Tasks, in ranges")
        tasks.uncheck()
        tab.page.get_by_label("How late messages leave").select_option("maximum")
        for _ in range(2):
            tab.page.evaluate(
                "() => dispatchEvent(new Event('hashchange'))"
            )  # the page draws itself anew
            tab.settle()
        assert not tasks.is_checked()
        tab.opt_in()
        tab.page.get_by_role("button", name="Disable Federation").wait_for()
        kept = one.get("/api/federation/settings")[1]
        assert (kept["enabled"], kept["shareTasks"], kept["privacyLevel"]) == (
            True,
            False,
            "maximum",
        )


# Who may see, and how the page learns of it


def test_an_api_key_is_asked_for_without_losing_the_place(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(API_KEY=KEY), task(NAME))
    with Tab(browser, one, base=f"http://127.0.0.1:{one.port}/#/tasks?span=30d") as tab:
        field = tab.page.locator("#login #secret")
        field.fill("no such key")
        field.press("Enter")
        tab.see(re.compile("neither the API key"), within="#login")
        field.fill(KEY)
        field.press("Enter")
        tab.see("3f1c9d2e")
        tab.see("Live", within="header")
        assert tab.page.url.endswith("#/tasks?span=30d")
        tab.page.get_by_role("button", name="Log out").first.click()
        tab.page.locator("#login #secret").wait_for()
        assert "3f1c9d2e" not in tab.page.locator("main").inner_text()


def test_a_question_of_access_that_fails_once_is_asked_again(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(API_KEY=KEY), task(NAME))
    with Tab(browser, one) as tab:
        tab.page.locator("#login #secret").wait_for()
        tab.page.route("**/api/auth/status", lambda route: route.abort(), times=1)
        tab.page.reload()
        tab.page.locator("#login #secret").wait_for()


def test_an_address_that_means_nothing_breaks_no_page(tab: Tab) -> None:
    tab.page.goto(f"{tab.base}#/tasks/%E0")
    tab.see(re.compile("no task", re.I))
    tab.page.goto(f"{tab.base}#/logs?until=abc")
    tab.page.locator("#password").wait_for()
    assert not [one for one in tab.complaints if "URI malformed" in one or "Invalid time" in one]


def test_a_session_that_ends_hides_what_is_private_and_keeps_the_place(
    browser: Any, demo: Program
) -> None:
    with Tab(browser, demo) as tab:
        tab.logged_in().go("logs?level=error")
        tab.page.locator(".log-row.error").first.wait_for()
        tab.context.request.post(f"{tab.base}api/auth/logout")
        tab.page.locator("#password").wait_for()
        assert tab.page.locator(".log-row").count() == 0 and tab.page.url.endswith(
            "#/logs?level=error"
        )
        tab.unlock()
        tab.page.locator(".log-row.error").first.wait_for()
        assert tab.page.locator(".log-row:not(.error)").count() == 0


def test_without_room_for_a_stream_the_page_asks_again_and_again(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(WS_MAX_PER_IP="1"), "Starting services")
    with Tab(browser, one) as first, Tab(browser, one) as second:
        first.see("Live", within="header")
        second.see("Asking every 5 s", within="header")
        (one.folder / "logs" / "b.log").write_text(header(task(NAME)) + "\n")
        second.see("3f1c9d2e")
        second.verdict("working")


HIDE = """hidden => {
  Object.defineProperty(document, 'hidden', {configurable: true, get: () => hidden});
  document.dispatchEvent(new Event('visibilitychange'));
}"""


def test_a_hidden_page_holds_no_stream_and_misses_nothing(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), "Starting services")
    with Tab(browser, one) as tab:
        tab.see("Live", within="header")
        wait_for_streams(one, 1)
        tab.page.evaluate(HIDE, True)
        wait_for_streams(one, 0)
        (one.folder / "logs" / "b.log").write_text(header(task(NAME)) + "\n")
        wait_for(lambda: one.get("/api/tasks/stats/summary")[1]["total"] == 1)
        tab.page.evaluate(HIDE, False)
        tab.see("3f1c9d2e")
        wait_for_streams(one, 1)
        assert tab.complaints == []


def test_everything_works_under_a_path_of_a_proxy(
    browser: Any, program: Callable[..., Program]
) -> None:
    one = follow(program(), task(NAME), f"Execution {NAME} completed")
    with SubPath(one) as proxy, Tab(browser, one, base=proxy.base) as tab:
        tab.see("Live", within="header")
        tab.logged_in()
        for route, words in (
            ("tasks", NAME[:8]),
            (f"tasks/{NAME}", "Input and output"),
            ("setup", "This browser"),
        ):
            tab.go(route).see(words)
        assert tab.complaints == [] and all(url.startswith(proxy.base) for url in tab.asked)
