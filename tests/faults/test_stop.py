"""Told to end at any moment, tbmon ends well; a thread that dies ends it, and one that stands still
is noticed.
"""

from __future__ import annotations

import contextlib
import random
import re
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

from support.deployment import PATIENCE_S, Systemd
from support.engine import Node
from support.hubs import Hub
from support.machine import length, wait_for
from support.node_words import header
from support.programs import SIGNALS, Program, begin, has_handlers
from support.programs import made_over_files as over_files
from support.sharing import at_hub, change, connected, see
from support.streams import OPEN, Stream
from support.writer import compare, disturb, is_sound, moments, telling

# Python reports, and goes on, where a signal's exit is raised in a destructor.
IGNORED = re.compile(r"Exception ignored in.*\nTraceback .*\n(?:  .*\n)*SystemExit: 0\n")
Figure = Callable[[str, object], None]
Make = Callable[..., Program]


def is_ready_to_end(program: Program) -> bool:
    """False before the program's own first words, when a signal does what it does to any process."""
    with contextlib.suppress(AssertionError):
        return has_handlers(program)
    return False


def end_at_once(program: Program, dice: random.Random, impatient: bool) -> float:
    """Send a signal, or one after the other until it ends; returns how long it took."""
    ready, said = is_ready_to_end(program), program.log.stat().st_size
    number, asked = dice.choice(SIGNALS), time.monotonic()
    program.process.send_signal(number)
    while impatient and program.process.poll() is None:
        threading.Event().wait(dice.uniform(0, 0.02))
        program.process.send_signal(dice.choice(SIGNALS))
    code = program.process.wait(15)
    words = program.log.read_bytes()[said:].decode()
    assert code == 0 or not ready, (code, words)
    said_by_us = IGNORED.sub("", words)
    assert not ready or ("Traceback" not in said_by_us and "CRITICAL" not in said_by_us), words
    return time.monotonic() - asked


class Clients:
    """Live streams, some of which never read, and threads that ask as fast as they are answered."""

    PATHS = (
        "/api/tasks?limit=1000",
        "/api/logs?limit=1000",
        "/api/status",
        "/metrics",
        "/api/tasks/stats/summary",
    )

    def __init__(self, program: Program) -> None:
        self.program, self.ended = program, threading.Event()
        self.streams = [Stream(program, OPEN, reads=bool(number % 3)) for number in range(6)]
        self.threads = [
            threading.Thread(target=self.ask, args=(path,), daemon=True) for path in self.PATHS
        ]
        for thread in self.threads:
            thread.start()

    def ask(self, path: str) -> None:
        with contextlib.suppress(
            OSError, ValueError, AssertionError
        ):  # what an end in the middle of an answer makes
            while not self.ended.is_set():
                self.program.get(path, X_Task_Data_Password="open sesame")

    def close(self) -> None:
        self.ended.set()
        for stream in self.streams:
            stream.connection.close()
        for thread in self.threads:
            thread.join(10)
            assert not thread.is_alive()


def end_under_load(program: Program, dice: random.Random, count: int) -> list[float]:
    """Have it joined and busy, and end it; so many times."""
    took = []
    change(program.start(), "enable")
    connected(program)
    for number in range(count):
        with contextlib.closing(Clients(program)):
            threading.Event().wait(dice.uniform(0, 0.5))
            took.append(end_at_once(program, dice, number % 3 == 2))
        assert is_sound(program)
        program.start()
    assert see(program, "status")["enabled"]
    assert program.end() == 0
    return took


def test_signals_at_any_moment(
    engine: None, program: Make, hub: Callable[..., Hub], tmp_path: Path, figure: Figure
) -> None:
    took, server = list[float](), hub()
    for turn in range(length(1, 10)):
        dice = random.Random(turn)
        with telling(tmp_path / f"io{turn}", 100 + turn) as told:
            one = program(CONTAINER_NAME=told.node.name, API_RATE_LIMIT="0", **at_hub(server))
            for number, moment in enumerate(moments(length(17, 20), dice)):
                disturb(one, moment, dice)
                took.append(end_at_once(one, dice, number % 3 == 2))
                assert moment == "start" or is_sound(one)
            took += end_under_load(one, dice, 3)
            told.hurry()
            compare(one.start(), told)
    figure("signals: ends", len(took))
    figure(
        "signals: time to end, median and slowest s",
        (round(statistics.median(took), 2), round(max(took), 2)),
    )
    assert max(took) < 10


SWALLOWED = """
import os, signal, sys, tbmon
tbmon.ServerBeat = lambda monitor: os.kill(os.getpid(), signal.SIGTERM)  # waitress hides what this raises
sys.exit(tbmon.main(["serve"]))
"""


def test_a_signal_that_comes_where_the_server_hides_its_exception_ends_it_too(
    program: Make,
) -> None:
    one = begin(over_files(program, WATCHDOG_USEC="3000000"), "-c", SWALLOWED)
    assert one.process.wait(10) == 0


AGAIN = """
import os, signal, sys, threading, tbmon
def set_slowly(event, real=threading.Event.set):
    if sys._getframe(1).f_code.co_name != "end":  # the handler
        return real(event)
    with event._cond:
        os.kill(os.getpid(), signal.SIGTERM)
        event._flag = True
        event._cond.notify_all()
threading.Event.set = set_slowly
sys.exit(tbmon.main(["serve"]))
"""


def test_a_signal_that_comes_while_another_sets_the_event_does_not_stop_the_end(
    program: Make,
) -> None:
    one = begin(over_files(program), "-c", AGAIN)
    wait_for(one.answers)
    assert one.end() == 0


WHILE_STARTING = """
import os, signal, sys, threading, tbmon
start_thread, close = tbmon.start_thread, tbmon.Store.close
def start(*given):
    thread = start_thread(*given)
    os.kill(os.getpid(), signal.SIGTERM)
    threading.Event().wait(0.3)  # another thread may take the signal for this one
    return thread
def work(monitor):
    monitor.stop.wait()
    threading.Event().wait(1)
def closing(store):
    print("alive:", [one.name for one in threading.enumerate() if one.name in ("ingest", "upkeep")], flush=True)
    close(store)
tbmon.start_thread, tbmon.ingest, tbmon.upkeep, tbmon.Store.close = start, work, work, closing
sys.exit(tbmon.main(["serve"]))
"""


def test_a_signal_that_comes_while_threads_are_started_leaves_none_behind(program: Make) -> None:
    one = begin(over_files(program), "-c", WHILE_STARTING)
    assert one.process.wait(15) == 0
    assert "alive: []" in one.log.read_text()


# Threads that die


DIE = """
import sys, threading, waitress.wasyncore, tbmon
def fail(*given, **named):
    raise LookupError("told by the test")
def fail_as_reader(*given):
    return fail() if threading.current_thread().name == "reader" else []
{line}
sys.exit(tbmon.main([{command!r}]))
"""
DEATHS = {  # what dies: how, and the thread that says so; the server's is the program's own
    "ingest": ("tbmon.Recorder.commit = fail", "ingest"),
    "reader": ("tbmon.EngineStream.chunks = fail_as_reader", "ingest"),
    "demo": ("tbmon.SimulatedNode.script = fail", "ingest"),
    "upkeep": ("tbmon.sample_container = fail", "upkeep"),
    "federation": ("tbmon.Federation.note_error = fail", "federation"),
    "watchdog": (
        "tbmon.watchdog_s = lambda: 3\ntbmon.notify = lambda words: 'DOG' in words and fail()",
        "watchdog",
    ),
    "server": ("waitress.wasyncore.poll2 = fail", ""),
}


def test_whichever_thread_dies_ends_the_process_with_a_traceback(node: Node, program: Make) -> None:
    node.run()
    node.say(header("Starting services"))
    made = {}
    for name, (line, _) in DEATHS.items():
        one = made[name] = program(CONTAINER_NAME=node.name)
        if name == "federation":
            change(one.start(), "enable")
            assert one.end() == 0
        begin(one, "-c", DIE.format(line=line, command="demo" if name == "demo" else "serve"))
    codes = {name: one.process.wait(20) for name, one in made.items()}
    assert codes == dict.fromkeys(DEATHS, 1)
    for name, (_, thread) in DEATHS.items():
        said = made[name].log.read_text()
        assert "Traceback" in said and "LookupError: told by the test" in said
        assert not thread or f"CRITICAL {thread}: thread ended by an error" in said, said


# Threads that stand still


STICK = """
import pathlib, sys, threading, waitress.wasyncore, tbmon
gate, pause = pathlib.Path("stuck"), threading.Event()
def sticky(real):
    def stand(*given, **named):
        while gate.exists():
            pause.wait(0.05)
        return real(*given, **named)
    return stand
{place} = sticky({place})
sys.exit(tbmon.main(["serve"]))
"""
STUCK = {  # thread: what stands still in it
    "ingest": "tbmon.DirectoryFollower.step",
    "upkeep": "tbmon.set_verdict",
    "server": "waitress.wasyncore.poll2",
}


def is_fed(systemd: Systemd) -> None:
    wait_for(lambda: systemd.hears("WATCHDOG=1"))


def is_missed(name: str, one: Program) -> None:
    wait_for(lambda: f"no sign of life from {name} for" in one.log.read_text())


def test_whichever_fed_thread_stands_still_the_watchdog_is_not_fed_until_it_goes_on(
    program: Make, tmp_path: Path
) -> None:
    made = []
    for name, place in STUCK.items():
        systemd = Systemd(str(tmp_path / name))
        one = over_files(
            program, NOTIFY_SOCKET=systemd.address, WATCHDOG_USEC=str(PATIENCE_S * 10**6)
        )
        made.append((name, systemd, begin(one, "-c", STICK.format(place=place))))
    for _, systemd, one in made:
        is_fed(systemd)
        (one.folder / "stuck").touch()
    for name, _, one in made:
        is_missed(name, one)
    assert [name for name, systemd, _ in made if not systemd.is_silent(PATIENCE_S / 2)] == []
    for _, systemd, one in made:
        (one.folder / "stuck").unlink()
        is_fed(systemd)
        assert one.end() == 0
        systemd.end.close()
