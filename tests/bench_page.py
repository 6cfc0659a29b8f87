"""The dashboard in a real browser: what its first load weighs, when it is painted, and whether it
stays smooth.
"""

from __future__ import annotations

import gzip
import itertools
import random
import statistics
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench_asking import size
from bench_parts import PASSWORD, Monitor, Paced, container, laid_down, mixed
from bench_table import Figure
from support.engine import Node
from support.machine import wait_for
from support.node_words import header
from support.pages import Tab, chromium

PARTS = ("", "app.js", "style.css", "favicon.svg")
WATCH = """
window.painted = 0, window.long = [];
const watch = (type, take) => new PerformanceObserver((list) => list.getEntries().forEach(take))
    .observe({type, buffered: true});
watch('largest-contentful-paint', (entry) => { window.painted = entry.startTime; });
watch('longtask', (entry) => { window.long.push(entry.duration); });
"""


def page(folder: Path, quick: bool) -> Iterator[Figure]:
    place = laid_down(folder.parent, *size(quick))
    with (
        container(folder) as (node, _),
        Monitor(place, CONTAINER_NAME=node.name, API_RATE_LIMIT="0") as program,
    ):
        wait_for(lambda: program.get("/api/status")[1]["verdict"])
        yield from weight(program)
        with chromium() as browser:
            painted = [first_paint(browser, program) for _ in range(3 if quick else 7)]
            yield Figure(
                "dashboard: largest part painted, loopback", statistics.median(painted), "ms", 300
            )
            yield from smoothness(browser, program, node, 5 if quick else 20)


def weight(program: Monitor) -> Iterator[Figure]:
    sent = [fetch(program, f"/{part}") for part in PARTS]
    raw = [gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body for body in sent]
    whole, less = sum(map(len, raw)) / 1000, sum(map(len, sent)) / 1000
    yield Figure("dashboard: first load", whole, "kB", 120, replaced="888 kB and a 278 kB image")
    yield Figure(
        "dashboard: first load, compressed", less, "kB", 35, replaced="282 kB and the image"
    )


def fetch(program: Monitor, path: str) -> bytes:
    url = f"http://127.0.0.1:{program.port}{path}"
    with urllib.request.urlopen(
        urllib.request.Request(url, headers={"Accept-Encoding": "gzip"}), timeout=10
    ) as answer:
        body: bytes = answer.read()
    return body


def first_paint(browser: Any, program: Monitor) -> float:
    """Milliseconds from the navigation, with nothing cached, to the paint of what is largest in the
    window.
    """
    context = browser.new_context(viewport={"width": 1440, "height": 900})
    context.add_init_script(WATCH)
    tab = context.new_page()
    tab.goto(f"http://127.0.0.1:{program.port}/", wait_until="load")
    tab.locator("#verdict[data-state]").wait_for()
    tab.wait_for_function("() => window.painted > 0")
    tab.wait_for_timeout(500)  # until nothing larger is painted
    painted = float(tab.evaluate("() => window.painted"))
    context.close()
    return painted


def smoothness(browser: Any, program: Monitor, node: Node, seconds: int) -> Iterator[Figure]:
    """Tasks of the page's thread that take over 50 ms while the node says 100 lines/s."""
    source = mixed(random.Random(11))
    lines = itertools.chain.from_iterable(
        header(one).split("\n") for _, said in source for one in said
    )
    with Tab(browser, program) as tab, Paced(lambda: node.say(next(lines)), 0.01):
        tab.page.evaluate(WATCH)
        for name in ("now", "logs"):
            if name == "logs":
                tab.go("logs").unlock(PASSWORD)
                tab.page.locator(".log-row").first.wait_for()
            tab.settle()
            tab.page.evaluate("() => { window.long = []; }")
            time.sleep(seconds)
            long = tab.page.evaluate("() => window.long")
            print(
                f"dashboard: the long tasks of page {name}, in ms: {[round(one) for one in long]}",
                flush=True,
            )
            what = f"dashboard: long tasks of page {name} in {seconds} s of 100 lines/s"
            yield Figure(what, len(long), "tasks", 0)
