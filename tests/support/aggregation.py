"""Running the aggregator at a hub under load."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable

from support.federation_feed import Aggregation, Feed, Publisher, Said
from support.hub_conf import Server
from support.machine import wait_for

Hubs = Callable[..., Server]
Aggregators = Callable[..., Aggregation]


def now_ms() -> int:
    return int(time.time() * 1000)


def settle(one: Aggregation, count: int, timeout_s: float = 20) -> None:
    wait_for(lambda: one.code() is not None or one.counted() >= count, timeout_s)
    assert one.code() is None, one.text()


class Load(threading.Thread):
    """Publishes by the hundred until told to end; what may have been lost with a hub is sent again,
    as monitors do.
    """

    def __init__(self, server: Server, seed: int) -> None:
        super().__init__(daemon=True)
        self.server, self.feed = server, Feed(seed)
        self.sent: list[Said] = []
        self.enough, self.failure = threading.Event(), ""

    def run(self) -> None:
        try:
            while not self.enough.is_set():
                with contextlib.suppress(OSError):
                    self.send(Publisher(self.server.address))
                self.enough.wait(0.05)
            self.again()
        except Exception as error:
            self.failure = repr(error)

    def send(self, monitor: Publisher) -> None:
        monitor.publish(*self.sent[-500:])
        while not self.enough.wait(0.02):
            batch = [self.feed.work(now_ms()) for _ in range(40)]
            self.sent += batch
            monitor.publish(*batch)

    def again(self) -> None:
        monitor = Publisher(self.server.address)
        monitor.publish(*self.sent[-500:])

    def finish(self) -> list[Said]:
        self.enough.set()
        self.join(20)
        assert not self.is_alive() and not self.failure, self.failure
        return self.sent
