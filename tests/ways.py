"""The ways in which tbmon comes to know a node's life, each over a history of `histories`.

The engine is a stand-in within the process that answers as tbmon's client of it does: with inspect answers,
with real multiplexed frames in pieces of any size, and with tar archives of the container's folders. Time
goes as the history's lines say; nothing sleeps.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import random
import tarfile
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import oracle
from histories import History, Said
from truths import heard, read_in_files

import tbmon

KEY = b"k" * 32
NAME = "runner-node"
CONTAINER_ID = "a1" * 32
LOGS = "/app/logs/@truebit"
DATABASE = "/app/build/datadb/node-eventDB.json"
RETENTION_DAYS = 36500


@dataclass
class Reading:
    """What tbmon knew in the end, and what an oracle has to be told so that it knows the same."""

    way: str
    tasks: dict[str, oracle.Task]
    invoices: dict[str, oracle.Invoice]
    expected: oracle.Reading
    whole: oracle.Reading  # what a reader of the whole log would know, with no more beside it
    is_whole: bool  # nothing of the log was kept from it
    is_equal: bool  # it knows just what the oracle was told
    whole_from_s: float = 0.0  # since when it saw all


@dataclass
class Known:
    """What is told to the oracle."""

    lines: list[oracle.Line] = field(default_factory=list)
    starts: set[float] = field(default_factory=set)
    gaps: list[int] = field(default_factory=lambda: [0])
    records: Sequence[object] = ()

    def read(self) -> oracle.Reading:
        return oracle.read(self.lines, sorted(self.starts), self.gaps, self.records)

    def read_whole(self, lines: list[oracle.Line]) -> oracle.Reading:
        return Known(lines, self.starts, records=self.records).read()


class StandIn:
    """Answers for a Docker Engine with one container; what it holds is changed between connections."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.said: Sequence[Said] = ()
        self.copies = 0
        self.created_at = 0.0
        self.started_at = 0.0
        self.is_running = True
        self.files: dict[str, bytes] = {}

    def inspect(self, name: str) -> tbmon.Container | None:
        state = {
            "Status": "running" if self.is_running else "exited",
            "Running": self.is_running,
            "StartedAt": engine_stamp(self.started_at),
        }
        config = {"Image": "truebitprotocol/runner-node:prod", "Tty": False}
        answer = {"Id": CONTAINER_ID, "Name": "/" + NAME, "State": state, "Config": config}
        answer["Created"] = engine_stamp(self.created_at)
        answer["HostConfig"] = {"LogConfig": {"Type": "json-file", "Config": {}}}
        return tbmon.read_container(answer)

    def logs(self, name: str, since_s: Any, follow: bool, tail: str = "all") -> StandInStream:
        said = [one for one in self.said if since_s is None or one.at >= float(since_s)]
        if tail != "all":
            said = said[-int(tail) :]
        return StandInStream(b"".join(map(frame, said)), self.chance)

    def stat(self, name: str, path: str) -> tbmon.PathStat | None:
        if path in self.files:
            content = self.files[path]
            return tbmon.PathStat(len(content), str(hash(content)), "", True)
        below = {one: hash(self.files[one]) for one in self.files if one.startswith(path + "/")}
        return tbmon.PathStat(4096, str(sorted(below)), "", False) if below else None

    @contextlib.contextmanager
    def archive(self, name: str, path: str) -> Iterator[tarfile.TarFile | None]:
        packed = io.BytesIO()
        parent = path.rpartition("/")[0]
        with tarfile.open(fileobj=packed, mode="w") as tar:
            for one, content in sorted(self.files.items()):
                if one == path or one.startswith(path + "/"):
                    member = tarfile.TarInfo(one[len(parent) + 1 :])
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
        packed.seek(0)
        with tarfile.open(fileobj=packed, mode="r|") as tar:
            yield tar


class StandInStream:
    """A log connection that ends when all there is was sent."""

    def __init__(self, data: bytes, chance: random.Random) -> None:
        self.data = data
        self.chance = chance

    def chunks(self) -> Iterator[bytes]:
        place = 0
        while place < len(self.data):
            size = self.chance.choice((3, 1000, 30_000, 1_000_000))
            yield self.data[place : place + size]
            place += size

    def close(self) -> None:
        pass


def engine_stamp(at: float) -> str:
    whole, part = divmod(round(at * 1_000_000), 1_000_000)
    second = datetime.fromtimestamp(whole, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    return f"{second}.{part:06d}000Z"


def frame(one: Said) -> bytes:
    payload = f"{engine_stamp(one.at)} {one.text}\n".encode()
    stream = 2 if one.stream == "stderr" else 1
    return bytes((stream, 0, 0, 0)) + len(payload).to_bytes(4, "big") + payload


class Life:
    """A tbmon that can be ended and started again on its store."""

    def __init__(
        self, folder: Path, now: float, make: Callable[[tbmon.Monitor], Any], **settings: Any
    ) -> None:
        self.folder = folder
        self.make = make
        self.settings = settings
        self.now = now
        self.start()

    def start(self) -> None:
        self.store = tbmon.Store(self.folder / "t.db", KEY)
        config = tbmon.Config(
            container_name=NAME,
            node_timezone="UTC",
            log_retention_days=RETENTION_DAYS,
            **self.settings,
        )
        self.monitor = tbmon.Monitor(
            config,
            self.store,
            tbmon.Redactor(KEY),
            None,
            threading.Event(),
            clock=lambda: self.now,
        )
        self.follower = self.make(self.monitor)

    def restart(self) -> None:
        self.store.close()
        self.start()

    def step(self, now: float) -> None:
        self.now = now
        self.follower.events.next_s = 0.0
        self.follower.step()

    def end(self) -> tuple[dict[str, oracle.Task], dict[str, oracle.Invoice]]:
        """What it knew, in the oracle's words."""
        known = all_of(self.store)
        self.store.close()
        return known


def all_of(store: tbmon.Store) -> tuple[dict[str, oracle.Task], dict[str, oracle.Invoice]]:
    names = [row["execution_id"] for row in store.page("task", {}, None, 1000, 0)]
    invoices = {
        row["invoice_id"]: oracle.Invoice(row["execution_id"], row["operation"])
        for row in store.page("invoice", {}, None, 1000, 0)
    }
    return {name: as_oracle(store, name) for name in names}, invoices


def as_oracle(store: tbmon.Store, execution_id: str) -> oracle.Task:
    found = store.task(execution_id)
    assert found is not None
    words = next(iter(store.get("task_data", execution_id)), None)

    def seconds(ms: int | None) -> float | None:
        return None if ms is None else ms / 1000

    return oracle.Task(
        execution_id,
        found.status,
        seconds(found.received_at),
        seconds(found.started_at),
        seconds(found.completed_at),
        found.exit_code,
        found.elapsed_ms,
        found.gas_used,
        found.memory_peak,
        None if found.cached is None else bool(found.cached),
        found.error,
        words["output"] if words else None,
        words["error_text"] if words else None,
    )


# what the node's disk holds


def day_files(history: History, said: Sequence[Said], folder: str) -> dict[str, bytes]:
    """The node's log files, one for each day of the lines' own stamps."""
    days: dict[str, list[str]] = {}
    day = datetime.fromtimestamp(said[0].at, UTC).strftime("%Y-%m-%d") if said else ""
    for one in said:
        if one.text[:4].isdigit() and one.text[10:11] == " ":
            day = one.text[:10]
        days.setdefault(day, []).append(one.text)
    logger = f"worker-runner-node-{history.wallet}"
    return {
        f"{folder}/{logger}/debug/{day}.log": ("\n".join(lines) + "\n").encode()
        for day, lines in days.items()
    }


def database(history: History) -> bytes:
    return json.dumps({"records": history.records}).encode()


def write(files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ways by the engine


def follow(
    history: History,
    folder: Path,
    chance: random.Random,
    way: str,
    *,
    first: int = 0,
    gap: tuple[int, int] | None = None,
    with_files: Sequence[Said] | None = None,
    events: str = "",
) -> Reading:
    """Follows the engine's log from line `first` on over several connections.

    `gap`: lines that the engine dropped while tbmon was ended. `events`: when the event database is there:
    `before` the first line, `after` the last, or `between`. `with_files`: what the container's files hold
    in the end.
    """
    engine = StandIn(chance)
    engine.created_at = history.starts[0]
    life = Life(
        folder,
        history.starts[0],
        lambda monitor: tbmon.Follower(monitor, engine),  # type: ignore[arg-type]
    )
    known = Known(starts={engine.created_at})
    last = len(history.said)
    ends = sorted(chance.randrange(first + 1, last + 1) for _ in range(chance.choice((0, 1, 2, 4))))
    for start in history.starts[1:]:
        if chance.random() < 0.9:  # else tbmon was not there when the node started
            ends.append(sum(one.at < start for one in history.said))
    if gap is not None:
        ends = [end for end in ends if not gap[0] < end < gap[1]] + [gap[0]]
        known.gaps.append(gap[0] - first)
    ends = sorted({end for end in ends if first < end <= last} | {last})
    if events == "before":
        engine.files[DATABASE] = database(history)
        engine.started_at = history.starts[0]
        known.starts.add(engine.started_at)
        life.step(history.starts[0] + 0.1)
    begin = first
    for number, end in enumerate(ends):
        now = history.said[end - 1].at + 0.5
        engine.started_at = max(start for start in history.starts if start <= now)
        known.starts.add(engine.started_at)
        engine.said = history.said[first:end]
        written = [one for one in with_files or () if one.at <= now]  # no file tells the future
        engine.files |= day_files(history, written, LOGS) if written else {}
        if gap is not None and end > gap[0]:
            engine.said = history.said[gap[1] : end]
            begin = max(begin, gap[1])
        if events == "between" and number == len(ends) // 2:
            engine.files[DATABASE] = database(history)
        known.lines += heard(history.said[begin:end])
        begin = end
        life.step(now)
        if chance.random() < 0.4 or (gap is not None and end == gap[0]):
            life.restart()
    if events:
        engine.files[DATABASE] = database(history)
        known.records = history.records
    engine.is_running = False
    for _ in range(2):
        life.step(history.said[-1].at + 1)
    tasks, invoices = life.end()
    is_cut = first > 0 or gap is not None
    expected = known.read()
    return Reading(
        way,
        tasks,
        invoices,
        expected,
        known.read_whole(heard(history.said)) if is_cut else expected,
        not is_cut,
        not is_cut and not (with_files is not None and history.overtakes),
        history.said[gap[1] if gap else first].at if is_cut else 0.0,
    )


def engine_live(history: History, folder: Path, chance: random.Random) -> Reading:
    return follow(history, folder, chance, "engine, with restarts")


def engine_and_files(history: History, folder: Path, chance: random.Random) -> Reading:
    return follow(history, folder, chance, "engine and files", with_files=history.written)


def cut_line(history: History, chance: random.Random) -> int:
    return chance.randrange(1, len(history.said) - 1)


def engine_cut(history: History, folder: Path, chance: random.Random) -> Reading:
    first = cut_line(history, chance)
    events = chance.choice(("", "", "before", "after"))
    return follow(history, folder, chance, "cut engine", first=first, events=events)


def engine_cut_and_files(history: History, folder: Path, chance: random.Random) -> Reading:
    """The files go further back than the engine's log, or not, and not always to the beginning."""
    first = cut_line(history, chance)
    files = history.written[chance.choice((0, chance.randrange(len(history.written)))) :]
    return follow(history, folder, chance, "cut engine and files", first=first, with_files=files)


def engine_gap(history: History, folder: Path, chance: random.Random) -> Reading:
    begins = chance.randrange(1, len(history.said) - 1)
    ends = min(begins + chance.choice((1, 5, 40, 200)), len(history.said) - 1)
    # All that stands in the seconds of the last line is dropped too, else it would come again.
    while ends < len(history.said) - 1 and history.said[ends].at < history.said[begins - 1].at + 30:
        ends += 1
    events = chance.choice(("", "", "before", "after"))
    gap = begins, ends
    return follow(history, folder, chance, "engine with a gap", gap=gap, events=events)


def events_and_engine(history: History, folder: Path, chance: random.Random) -> Reading:
    events = chance.choice(("before", "after", "between"))
    return follow(history, folder, chance, f"engine, event database {events}", events=events)


# ways by files


def read_folder(
    history: History,
    folder: Path,
    chance: random.Random,
    way: str,
    *,
    said: Sequence[Said],
    growing: bool = False,
    events: str = "",
) -> Reading:
    """Reads a folder that has all at once, or that grows, now and then read by a new process."""
    logs = folder / "logs"
    logs.mkdir()
    life = Life(folder, history.said[-1].at, tbmon.DirectoryFollower, log_dir=str(logs))
    files = day_files(history, said, str(logs))
    records = {str(logs / "node-eventDB.json"): database(history)}
    last_s = history.said[-1].at + 1
    if events == "before":
        write(records)
        life.step(history.starts[0])
    if growing:
        grow(life, files, records if events == "between" else {}, chance)
    write(files)
    if chance.random() < 0.3:
        compress(sorted(files)[:-1])
    life.step(last_s)
    if events in ("after", "between"):
        write(records)
    life.step(last_s)
    tasks, invoices = life.end()
    known = Known(read_in_files(said), records=history.records if events else ())
    is_cut = len(said) < len(history.written)
    expected = known.read()
    return Reading(
        way,
        tasks,
        invoices,
        expected,
        known.read_whole(read_in_files(history.written)) if is_cut else expected,
        not is_cut,
        not is_cut,
        said[0].at if is_cut else 0.0,
    )


def grow(
    life: Life, files: dict[str, bytes], records: dict[str, bytes], chance: random.Random
) -> None:
    """Lets the files grow by some bytes at a time."""
    steps = chance.randrange(2, 9)
    total = sum(map(len, files.values()))
    for number, end in enumerate(sorted(chance.randrange(total) for _ in range(steps))):
        left = end
        for name, content in sorted(files.items()):
            write({name: content[:left]} if left > 0 else {})
            left -= len(content)
        if number == steps // 2:
            write(records)
        life.step(life.now)
        if chance.random() < 0.3:
            life.restart()


def compress(names: Sequence[str]) -> None:
    for name in names:
        path = Path(name)
        Path(name + ".gz").write_bytes(gzip.compress(path.read_bytes(), 1))
        path.unlink()


def files_at_once(history: History, folder: Path, chance: random.Random) -> Reading:
    return read_folder(history, folder, chance, "files at once", said=history.written)


def growing_folder(history: History, folder: Path, chance: random.Random) -> Reading:
    return read_folder(
        history, folder, chance, "growing folder", said=history.written, growing=True
    )


def events_and_files(history: History, folder: Path, chance: random.Random) -> Reading:
    events = chance.choice(("before", "after", "between"))
    way = f"files, event database {events}"
    return read_folder(
        history, folder, chance, way, said=history.written, growing=True, events=events
    )


def files_cut(history: History, folder: Path, chance: random.Random) -> Reading:
    said = history.written[cut_line(history, chance) :]
    growing = chance.random() < 0.5
    events = chance.choice(("", "", "before", "after"))
    return read_folder(
        history, folder, chance, "cut files", said=said, growing=growing, events=events
    )


WAYS = (
    engine_live,
    engine_and_files,
    events_and_engine,
    files_at_once,
    growing_folder,
    events_and_files,
    engine_cut,
    engine_cut_and_files,
    engine_gap,
    files_cut,
)
