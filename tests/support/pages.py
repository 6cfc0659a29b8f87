"""What the dashboard's tests share: a tab of a real browser that notes what it complains of, and
axe-core.
"""

from __future__ import annotations

import contextlib
import http.client
import http.server
import importlib.util
import os
import re
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Locator, sync_playwright

from support.machine import missing, wait_for
from support.programs import Program

KEY = "key of this test"
PASSWORD = "open sesame"
WIDTHS = (360, 768, 1440)
SCHEMES = ("light", "dark")


def axe_source() -> str:
    """axe-core's script: the file that AXE_CORE names, or the one in the package
    axe_playwright_python.
    """
    named = os.environ.get("AXE_CORE", "")
    if not named and (found := importlib.util.find_spec("axe_playwright_python")) and found.origin:
        named = str(next(Path(found.origin).parent.glob("**/axe.min.js"), ""))
    if not named:
        missing("axe-core (AXE_CORE=.../axe.min.js, or the package axe-playwright-python)")
    return Path(named).read_text()


class Tab:
    """A page of `program` in a browser context of its own."""

    def __init__(self, browser: Any, program: Program, base: str = "", **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1440, "height": 900}, **options}
        )
        self.page, self.base = self.context.new_page(), base or f"http://127.0.0.1:{program.port}/"
        self.complaints: list[str] = []
        self.asked: list[str] = []
        self.page.on("console", self.hear)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.goto(self.base)

    def hear(self, message: Any) -> None:
        gone = (
            "net::ERR_NETWORK_CHANGED" in message.text
        )  # another test's container came or went; the page asks again
        if message.type in ("error", "warning") and not gone:
            self.complaints.append(message.text)

    def __enter__(self) -> Tab:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def go(self, route: str) -> Tab:
        """Open a page by its address, as a link would, and wait until what it asks for is there."""
        self.page.evaluate("route => { location.hash = `#/${route}`; }", route)
        name = route.partition("?")[0].partition("/")[0] or "now"
        self.page.locator(f'body[data-page="{name}"]').wait_for()
        self.settle()
        return self

    def settle(self) -> None:
        """Nothing is being asked for, and what was answered is drawn."""
        self.page.wait_for_function("() => !document.querySelector('.loading')")
        frames = "new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
        self.page.evaluate(frames)
        self.page.wait_for_function("() => !document.querySelector('.loading')")

    def unlock(self, secret: str = PASSWORD) -> None:
        field = self.page.locator("#password")
        field.fill(secret)
        field.press("Enter")

    def opt_in(self, secret: str = PASSWORD) -> None:
        """By the form of the page Federation."""
        self.go("federation").page.get_by_label("Task-data password").fill(secret)
        self.page.get_by_role("button", name="Enable Federation").click()

    def logged_in(self) -> Tab:
        """With the private class open."""
        self.go("logs").unlock()
        self.page.locator(".log-row").first.wait_for()
        return self

    def see(self, words: str | re.Pattern[str], within: str = "main") -> Locator:
        found: Locator = self.page.locator(within).get_by_text(words).first
        found.wait_for()
        return found

    def verdict(self, state: str) -> None:
        self.page.locator(f'#verdict[data-state="{state}"]').wait_for()

    def text(self) -> str:
        return str(self.page.locator("body").inner_text())

    def overflow(self) -> int:
        """By how much the page is wider than its window."""
        script = "() => document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(script))

    def look(self, width: int, scheme: str) -> None:
        self.page.set_viewport_size({"width": width, "height": 900})
        self.page.emulate_media(color_scheme=scheme)

    def violations(self) -> list[tuple[str, Any]]:
        """What axe-core finds; (rule, where) of each."""
        self.page.evaluate(axe_source())
        found = self.page.evaluate("() => axe.run(document, {resultTypes: ['violations']})")
        return [
            (one["id"], [node["target"] for node in one["nodes"][:3]])
            for one in found["violations"]
        ]

    def heap_bytes(self) -> int:
        """What the page's scripts hold, after a collection."""
        tools = self.context.new_cdp_session(self.page)
        tools.send("HeapProfiler.collectGarbage")
        tools.send("Performance.enable")
        metrics = {
            one["name"]: one["value"] for one in tools.send("Performance.getMetrics")["metrics"]
        }
        tools.detach()
        return int(metrics["JSHeapUsedSize"])


class SubPath(http.server.ThreadingHTTPServer):
    """A proxy that serves a program under /tbmon/, as an operator's web server may."""

    daemon_threads = True

    def __init__(self, program: Program) -> None:
        super().__init__(("127.0.0.1", 0), Passing)
        self.to = program.port
        self.base = f"http://127.0.0.1:{self.server_port}/tbmon/"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()


class Passing(http.server.BaseHTTPRequestHandler):
    """Passes a request on without the prefix, and its answer back as it comes."""

    server: SubPath

    def do_GET(self) -> None:
        if not self.path.startswith("/tbmon/"):
            self.send_error(404)
            return
        with contextlib.closing(
            http.client.HTTPConnection("127.0.0.1", self.server.to, timeout=30)
        ) as inner:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            inner.request(self.command, self.path.removeprefix("/tbmon"), body, dict(self.headers))
            answer = inner.getresponse()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                    self.send_header(name, value)
            self.end_headers()
            with contextlib.suppress(OSError):  # the browser has gone
                while piece := answer.read1(65536):
                    self.wfile.write(piece)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing: the tests say what they saw."""


def streams(program: Program) -> int:
    """How many live streams the program serves."""
    text = program.get("/metrics")[1]
    found = re.search(r"^tbmon_streams (\d+)", text, re.M)
    assert found
    return int(found[1])


def wait_for_streams(program: Program, number: int) -> None:
    wait_for(lambda: streams(program) == number)


@contextlib.contextmanager
def chromium(*words: str) -> Iterator[Any]:
    """A real browser, started with further words of its command line."""
    path = shutil.which("chromium")
    if path is None:
        missing("chromium")
    with sync_playwright() as playing:
        started = playing.chromium.launch(executable_path=path, args=["--no-sandbox", *words])
        yield started
        started.close()
