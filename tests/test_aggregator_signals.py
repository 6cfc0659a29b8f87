"""Told to end at any moment from the first line of its main to the last, the aggregator ends well."""

from __future__ import annotations

import contextlib
import itertools
import random
import re
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.federation_feed import Aggregation
from support.hub_conf import Server
from support.machine import length, wait_for

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PATIENCE_S = 10.0
AT_ONCE = 3  # aggregators that run beside each other
Figure = Callable[[str, object], None]
Make = Callable[..., Aggregation]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Server]:
    with contextlib.closing(Server(tmp_path)) as made:
        yield made.start()


@pytest.fixture
def aggregation(tmp_path: Path) -> Iterator[Make]:
    """Makes Aggregations, and ends what is left of them."""
    made: list[Aggregation] = []
    numbers = itertools.count()  # several threads make them

    def make(url: str = "nats://127.0.0.1:1", more: str = "", **settings: str) -> Aggregation:
        one = Aggregation(tmp_path / f"aggregator{next(numbers)}", url, more, **settings)
        made.append(one)
        return one

    yield make
    for one in made:
        one.close()


def is_in_main(one: Aggregation) -> bool:
    """True when the process catches SIGHUP, which is the last of the three to be caught."""
    assert one.process is not None
    with contextlib.suppress(OSError):
        status = Path(f"/proc/{one.process.pid}/status").read_text()
        caught = re.search(r"SigCgt:\s*(\w+)", status)
        return caught is not None and bool(int(caught[1], 16) >> signal.SIGHUP - 1 & 1)
    return False


def wait_for_main(one: Aggregation) -> None:
    wait_for(lambda: is_in_main(one) or one.code() is not None)
    assert one.code() is None, one.text()


def end_code(one: Aggregation) -> int:
    """The exit code of one that was told to end, in good time."""
    assert one.process is not None
    return one.process.wait(PATIENCE_S)


def end_at(one: Aggregation, dice: random.Random) -> float:
    """Start it, send it a signal at some moment, or one after the other from then on; returns the
    seconds that it took to end.
    """
    said = len(one.text())
    one.launch()
    moment = dice.choice(("any", "start", "work", "work"))
    if moment != "any":
        wait_for_main(one)
    threading.Event().wait(dice.uniform(0, 0.05 if moment == "start" else 1.2))
    was_in_main, asked = is_in_main(one), time.monotonic()
    one.tell(dice.choice(SIGNALS))
    for _ in range(dice.choice((0, 1, 400))):
        threading.Event().wait(dice.uniform(0, 0.02))
        if one.code() is not None:
            break
        one.tell(dice.choice(SIGNALS))
    code = end_code(one)
    if was_in_main:  # before, a signal does what it does to any process
        words = one.text()[said:]
        assert code == 0, (moment, code, words)
        assert "Traceback" not in words, words
        assert "stopped" in words, words
    return time.monotonic() - asked


def test_signals_at_any_moment(hub: Server, aggregation: Make, figure: Figure) -> None:
    """Each has a hub that answers, or none; one at a hub, since a second is refused."""
    urls = [hub.url(), *["nats://127.0.0.1:1"] * (AT_ONCE - 1)]
    turns = length(20, 120)

    def end_often(number: int) -> list[float]:
        dice, took = random.Random(number), list[float]()
        for _ in range(turns):
            one = aggregation(urls[number])
            took.append(end_at(one, dice))
        return took

    with ThreadPoolExecutor(AT_ONCE) as pool:
        took = [seconds for some in pool.map(end_often, range(AT_ONCE)) for seconds in some]
    figure("aggregator, signals: ends", len(took))
    worst = (round(statistics.median(took), 2), round(max(took), 2))
    figure("aggregator, signals: time to end, median and slowest s", worst)
    assert max(took) < PATIENCE_S


SIGNAL_AFTER_CONNECT = """
import asyncio, os, signal
from nats.aio.client import Client
connect = Client.connect
async def connect_and_signal(self, *given, **named):
    await connect(self, *given, **named)
    os.kill(os.getpid(), signal.SIGTERM)
    for turn in range({turns}):
        await asyncio.sleep(0)
Client.connect = connect_and_signal
"""


@pytest.mark.parametrize("turns", range(5))
def test_a_signal_in_the_turn_in_which_it_is_connected_is_not_lost(
    hub: Server, aggregation: Make, turns: int
) -> None:
    """So many turns of the loop before asyncio.wait_for returns, which loses it in one of them."""
    one = aggregation(hub.url(), SIGNAL_AFTER_CONNECT.format(turns=turns)).launch()
    assert end_code(one) == 0
    assert "Traceback" not in one.text() and "stopped" in one.text()


LOSES = """
import asyncio
import tbmon
async def lose(self):
    for turn in range({count}):
        try:
            await asyncio.sleep(100)
        except asyncio.CancelledError:  # as asyncio.wait_for does at times
            print("lost", flush=True)
    await asyncio.sleep(100)
aggregator.Aggregator.session = lose
"""


def test_whatever_loses_the_order_is_given_it_again(aggregation: Make) -> None:
    one = aggregation(more=LOSES.format(count=2)).launch()
    wait_for(lambda: "INFO aggregator " in one.text())
    one.tell(signal.SIGTERM)
    assert end_code(one) == 0
    assert one.text().count("lost") == 2 and "stopped" in one.text()


DEAF = {
    "the session": LOSES.format(count=10**6),
    "a name server": """
import socket, time
socket.getaddrinfo = lambda *given, **named: time.sleep(60)
""",
}


@pytest.mark.parametrize("what", DEAF)
def test_what_does_not_end_at_all_is_not_waited_for(aggregation: Make, what: str) -> None:
    one = aggregation("nats://hub:4222", DEAF[what]).launch()
    wait_for(lambda: "INFO aggregator " in one.text())
    one.tell(signal.SIGTERM)
    assert end_code(one) == 0


MOMENTS = {  # what the signal comes in, of that which is not the loop's work
    "reading the settings": "tbmon.read_settings",
    "opening the database": "aggregator.Store.open",
    "closing the database": "aggregator.Store.close",
    "starting the loop": "asyncio.events.new_event_loop",
    "ending the loop": "asyncio.runners._cancel_all_tasks",
    "handling another signal": "aggregator.Ending.order",
}
SIGNAL_IN = """
import asyncio, os, signal, tbmon
real, signalled = {place}, []
def with_signal(*given, **named):
    if not signalled:
        signalled.append(True)
        os.kill(os.getpid(), signal.SIGTERM)
    return real(*given, **named)
{place} = with_signal
"""


@pytest.mark.parametrize("moment", MOMENTS)
def test_a_signal_outside_of_its_work_ends_it_too(
    hub: Server, aggregation: Make, moment: str
) -> None:
    one = aggregation(hub.url(), SIGNAL_IN.format(place=MOMENTS[moment])).launch()
    if moment in ("closing the database", "ending the loop", "handling another signal"):
        wait_for(lambda: "connected to" in one.text())
        one.tell(signal.SIGINT)
    assert end_code(one) == 0
    assert "Traceback" not in one.text()


AT_EXIT = """
import atexit, os, signal
atexit.register(lambda: [os.kill(os.getpid(), number) for number in (15, 2, 1)])
"""


def test_signals_in_the_interpreters_own_end_change_nothing(aggregation: Make) -> None:
    one = aggregation(more=AT_EXIT).launch()
    wait_for(lambda: "INFO aggregator " in one.text())
    one.tell(signal.SIGTERM)
    assert end_code(one) == 0


@pytest.mark.parametrize("command", ["healthcheck", "backup"])
def test_a_short_command_does_not_say_well_when_a_signal_ends_it(
    aggregation: Make, command: str
) -> None:
    more = SIGNAL_IN.format(place=MOMENTS["reading the settings"])
    more += f"sys.argv[1:] = [{command!r}, 'copy']\n"
    one = aggregation(more=more).launch()
    assert end_code(one) == -signal.SIGTERM
