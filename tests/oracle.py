"""What a node's log says of its tasks, read by the plainest means: the whole log at once, every rule by trial.

Written from docs/node-data.md alone, so that it can be wrong only where that page is. It is slow, keeps
everything in memory, and never takes a decision back, since it decides when it has seen all. Section numbers
are those of the page. Where the page is silent it takes the reading that never guesses.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

IN_WORK_AFTER_TIMEOUT_S = 60 + 3600  # 7.2: the minute behind its time, and the hour after that
DEFAULT_TIMEOUT_S = 600
LONGEST_TIMEOUT_S = 86400
UNKNOWN_TASKS_S = 71 * 60
FIRST_LINE_AFTER_START_S = 15
OVERTAKING_S = 0.25
KINDS = ("download", "start", "stdout", "stderr")  # of lines that name no task

UUID = r"[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
HEADER = re.compile(
    r"(?P<stamp>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d) (?P<level>info|warn|error|debug|verbose|http|silly): "
    r"@truebit/worker-runner-node(?:-(?P<wallet>0x[0-9a-fA-F]{40}))?"
    r":(?P<version>\d+\.\d+\.\d+(?:-beta\.\d+)?)(?: (?P<message>.*))?$"
)
BEFORE_HEADER = re.compile(r"(?:runner-node +\| )?(?:\d{4}-\d\d-\d\dT[0-9:.]+Z )?$")
OUTPUT = re.compile(r"Command execution (stdout|stderr):")
ENTRY_KINDS = [
    ("received", re.compile(r"Message received from task_created:")),
    ("download", re.compile(r"Task (?P<program>\S+) downloaded successfully")),
    ("start", re.compile(r"Starting task execution")),
    ("stdout", re.compile(r"Command execution stdout:")),
    ("stderr", re.compile(r"Command execution stderr:")),
    ("completed", re.compile(rf"Execution (?P<execution>{UUID}) completed")),
    ("failed", re.compile(rf"Execution (?P<execution>{UUID}) failed(?:: *(?P<words>.*))?")),
    ("invoice", re.compile(r"InvoiceSubscriber\b.*?\binvoice\b")),
]
NAMES_IN_PAYLOAD = {
    "received": {"payload", "executionId"},
    "stdout": {"elapsed", "wasi", "metering", "execution", "executionId"},
    "stderr": {"executionId"},
    "invoice": {"invoiceId", "lineItem"},
}
# 4.4; only the first of these names is written down in section 7.5.
REASONS = [("gas", "gas_limit"), ("memory", "memory_limit"), ("timeout", "timeout")]


class Line(NamedTuple):
    """A physical line without its newline. `at` is the engine's stamp in seconds, None in files."""

    text: str
    stream: str = "file"
    at: float | None = None


@dataclass(eq=False)
class Entry:
    """A header line with its continuation lines, or a line that begins an entry without a header."""

    order: int  # among the entries: one line can hold two
    position: int  # of its first line
    stream: str
    stamp: float | None  # of its header
    at: float | None  # of the engine
    wallet: str | None
    text: str
    seconds: float = 0.0  # the log's own time: its stamp, or that of the entry before it
    kind: str = "other"
    match: re.Match[str] | None = None
    payload: object = None


@dataclass(eq=False)
class Task:
    """What is known of one execution. `lines` holds its own line of each kind that names no task."""

    execution_id: str
    status: str = "received"
    received_at: float | None = None
    started_at: float | None = None
    completed_at: float | None = None
    exit_code: int | None = None
    elapsed_ms: float | None = None
    gas_used: int | None = None
    memory_peak: int | None = None
    cached: bool | None = None
    error: str | None = None
    output: str | None = None
    error_text: str | None = None

    task_id: str | None = None
    received: Entry | None = None
    ended: Entry | None = None
    failed: Entry | None = None
    completed: Entry | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    has_outcome: bool = False
    operations: set[str] = field(default_factory=set)
    ends_in_work: bool = False
    lines: dict[str, Entry] = field(default_factory=dict)
    possible: list[Entry] = field(default_factory=list)  # outputs that can be its own


class Invoice(NamedTuple):
    execution_id: str | None
    operation: str | None  # the node's own


class Reading(NamedTuple):
    tasks: dict[str, Task]
    invoices: dict[str, Invoice]


# 2.2, 2.3 and 7.1: entries


def utc_seconds(stamp: str) -> float:
    return datetime.strptime(stamp, "%Y-%m-%d %H:%M:%S").replace(tzinfo=UTC).timestamp()


def header_in(text: str) -> tuple[str, re.Match[str]] | None:
    """The header in a line, and the words before it that do not belong to it."""
    found = HEADER.search(text)
    if found is None:
        return None
    before = text[: found.start()]
    return ("" if BEFORE_HEADER.match(before) else before), found


def entries_of(lines: Sequence[Line], gaps: Sequence[int] = ()) -> list[Entry]:
    entries: list[Entry] = []
    open_entry: dict[str, Entry] = {}  # by stream

    def begin(position: int, line: Line, text: str, header: re.Match[str] | None) -> None:
        stamp = utc_seconds(header["stamp"]) if header else None
        wallet = header["wallet"] if header else None
        entry = Entry(len(entries), position, line.stream, stamp, line.at, wallet, text)
        open_entry[line.stream] = entry
        entries.append(entry)

    for position, line in enumerate(lines):
        if position in gaps:
            open_entry.clear()  # what follows a gap continues nothing that stands before it
        for piece in COLOUR.sub("", line.text).split("\r"):
            if not piece:
                continue
            entry = open_entry.get(line.stream)
            found = header_in(piece)
            if found and found[0] and (entry is None or is_open(entry)):
                # A header inside a payload is the payload's text. Where nothing was seen before, a
                # payload may be open.
                found = None
            words = piece if found is None else found[0]
            if words and OUTPUT.match(words):
                begin(position, line, words, None)
            elif words and entry is not None:
                entry.text += "\n" + words
            if found is not None:
                begin(position, line, found[1]["message"] or "", found[1])

    seconds = next((entry.stamp for entry in entries if entry.stamp is not None), 0.0)
    for entry in entries:
        if entry.stamp is not None:
            seconds = entry.stamp
        entry.seconds = seconds
        if entry.stamp is None and entry.at is not None:
            entry.seconds = entry.at  # without a header, the engine tells when it came
        for kind, pattern in ENTRY_KINDS:
            entry.match = pattern.match(entry.text)
            if entry.match:
                entry.kind = kind
                break
        if entry.kind in NAMES_IN_PAYLOAD:
            entry.payload = payload_of(entry.text, NAMES_IN_PAYLOAD[entry.kind])
    return entries


def is_open(entry: Entry) -> bool:
    """Whether a payload of this entry has begun and not ended."""
    for kind, pattern in ENTRY_KINDS:
        if kind in NAMES_IN_PAYLOAD and pattern.match(entry.text):
            is_complete = payload_of(entry.text, NAMES_IN_PAYLOAD[kind]) is not None
            return "{" in entry.text and not is_complete and kind != "stderr"
    return False


# 2.2: payloads, as JSON or as JavaScript prints objects

TOKEN = re.compile(
    r"""\s*(?:(?P<mark>[{}\[\],:+])|"(?P<double>(?:[^"\\]|\\.)*)"|'(?P<single>(?:[^'\\]|\\.)*)'"""
    r"""|`(?P<back>(?:[^`\\]|\\.)*)`|(?P<bare>[^\s{}\[\],:+"'`]+))""",
    re.S,
)
ESCAPE = re.compile(r"\\(u[0-9a-fA-F]{4}|x[0-9a-fA-F]{2}|.)", re.S)
NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?n?$")


class NotAnObject(Exception):
    pass


def unescape(text: str) -> str:
    def one(match: re.Match[str]) -> str:
        word = match[1]
        if word[0] in "ux" and len(word) > 1:
            return chr(int(word[1:], 16))
        return {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}.get(word, word)

    return ESCAPE.sub(one, text)


class Tokens:
    """The words of a payload from a place in the text on."""

    def __init__(self, text: str, place: int) -> None:
        self.text = text
        self.place = place

    def take(self) -> tuple[str, str]:
        match = TOKEN.match(self.text, self.place)
        if match is None:
            raise NotAnObject
        self.place = match.end()
        kind = match.lastgroup or ""
        return kind, match[kind]

    def sees(self, mark: str) -> bool:
        match = TOKEN.match(self.text, self.place)
        return match is not None and match["mark"] == mark

    def value(self) -> object:
        kind, word = self.take()
        if kind == "mark" and word == "{":
            return self.read_object()
        if kind == "mark" and word == "[":
            return self.read_list()
        if kind == "mark":
            raise NotAnObject
        if kind != "bare":
            text = unescape(word)
            while self.sees("+"):  # JavaScript prints long text in parts
                self.take()
                text += unescape(self.take()[1])
            return text
        if word in ("true", "false"):
            return word == "true"
        if NUMBER.match(word):
            digits = word.rstrip("n")
            return float(digits) if re.search("[.eE]", digits) else int(digits)
        return None

    def read_object(self) -> dict[str, object]:
        members: dict[str, object] = {}
        while not self.sees("}"):
            kind, name = self.take()
            if kind == "mark" or not self.sees(":"):
                raise NotAnObject
            self.take()
            members[name] = self.value()
            if self.sees(","):
                self.take()
            elif not self.sees("}"):
                raise NotAnObject
        self.take()
        return members

    def read_list(self) -> list[object]:
        items: list[object] = []
        while not self.sees("]"):
            items.append(self.value())
            if self.sees(","):
                self.take()
            elif not self.sees("]"):
                # `[Object]` and `... 2 more items` are words, not values.
                while not self.sees("]"):
                    self.take()
        self.take()
        return items


def payload_of(text: str, names: set[str]) -> dict[str, object] | None:
    """The first object, in braces, that has one of these names."""
    place = text.find("{")
    while place >= 0:
        try:
            found = Tokens(text, place).value()
        except NotAnObject:
            found = None
        if isinstance(found, dict) and names & found.keys():
            return found
        place = text.find("{", place + 1)
    return None


def inside(payload: object, *path: str) -> object:
    for name in path:
        payload = payload.get(name) if isinstance(payload, dict) else None
    return payload


def as_number(value: object) -> float | None:
    """Numbers may be text."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and NUMBER.match(value):
        return float(value)
    return float(value) if isinstance(value, (int, float)) else None


def as_whole(value: object) -> int | None:
    number = as_number(value)
    return None if number is None else int(number)


def as_text(value: object) -> str | None:
    return value if isinstance(value, str) else None


# 3 and 7.2: tasks, and when they are in work


def take_message(task: Task, message: object) -> None:
    task.task_id = task.task_id or as_text(inside(message, "message", "taskId"))
    timeout = as_number(inside(message, "message", "econParams", "executionTimeout"))
    if timeout is not None:
        task.timeout_s = min(timeout / 1000, LONGEST_TIMEOUT_S)


def event_seconds(value: object) -> float | None:
    """ISO text, seconds or milliseconds."""
    number = as_number(value)
    if number is not None:
        return number / 1000 if number > 1e11 else number
    if not isinstance(value, str):
        return None
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return round(moment.timestamp(), 3)


def has_started_between(starts: Iterable[float], earlier: Entry, later: Entry) -> bool:
    return any(
        earlier.at is not None and later.at is not None and earlier.at < start <= later.at
        for start in starts
    )


def is_within_time(task: Task, line: Entry, starts: Iterable[float]) -> bool:
    """Whether nothing but an end can have taken a task out of work before a line."""
    received = task.received
    if received is None or received.stamp is None or received.order >= line.order:
        return False
    if line.seconds > received.stamp + task.timeout_s + IN_WORK_AFTER_TIMEOUT_S:
        return False
    return not has_started_between(starts, received, line)


def is_in_work(task: Task, line: Entry, starts: Iterable[float]) -> bool:
    if not is_within_time(task, line, starts):
        return False
    end = task.ended
    if end is None or end.order > line.order:
        return True
    return (
        end.stream != line.stream
        and end.at is not None
        and line.at is not None
        and line.at - end.at < OVERTAKING_S
    )


def unknown_task_in_work(
    line: Entry, entries: Sequence[Entry], gaps: Iterable[int], starts: Sequence[float]
) -> bool:
    """Whether a task of which nothing was seen may be in work. `gaps` are the positions behind them."""
    for gap in gaps:
        first = next((entry for entry in entries if entry.position >= gap), None)
        if first is None or first.order > line.order:
            continue
        begins_with_start = any(
            first.at is not None and 0 <= first.at - start <= FIRST_LINE_AFTER_START_S
            for start in starts
        )
        if begins_with_start or has_started_between(starts, first, line):
            continue
        if line.seconds <= first.seconds + UNKNOWN_TASKS_S:
            return True
    return False


# 7.3: lines that name no task

Ways = dict[int, list[Task]]  # from the index of a line to the tasks that can have written it


def assignment(ways: Ways) -> dict[Task, int] | None:
    """One way to give each line a task of its own, None where there is no way."""
    owned: dict[Task, int] = {}

    def give(line: int, tried: set[Task]) -> bool:
        for task in ways[line]:
            if task in tried:
                continue
            tried.add(task)
            if task not in owned or give(owned[task], tried):
                owned[task] = line
                return True
        return False

    return owned if all(give(line, set()) for line in ways) else None


def without_impossible(ways: Ways) -> Ways:
    """Each line with the tasks that have it in some way to give every line a task."""
    left: Ways = {}
    for line, tasks in ways.items():
        left[line] = [task for task in tasks if assignment({**ways, line: [task]}) is not None]
    return left


def give_lines(kind: str, lines: Sequence[Entry], tasks: Sequence[Task], known: set[int]) -> None:
    """Binds the lines of one kind. `known` are those where no unknown task can be in work, by their order."""
    named: list[Entry] = []
    for line in lines:
        execution_id = inside(line.payload, "executionId")
        if not isinstance(execution_id, str):
            continue
        named.append(line)
        for task in tasks:
            if task.execution_id == execution_id.lower():
                task.lines.setdefault(kind, line)

    ways: Ways = {}
    for index, line in enumerate(lines):
        if line in named:
            continue
        owners = [task for task in tasks if kind not in task.lines and line in task.possible]
        if kind == "download" and line.match:
            owners = [task for task in owners if task.task_id == line.match["program"]]
        if line.order not in known or not owners:
            continue
        # Of two lines of one kind the second is not the task's own: it stays out, with no owner.
        # Its words still count against a success, since something is wrong with what is known.
        if assignment({**ways, index: owners}) is not None:
            ways[index] = owners
    for index, owners in without_impossible(ways).items():
        line = lines[index]
        for task in tasks:
            if task not in owners and line in task.possible:
                task.possible.remove(line)
        if len(owners) == 1:
            owners[0].lines[kind] = line
    for line in named:
        for task in tasks:
            if line in task.possible and task.lines.get(kind) is not line:
                task.possible.remove(line)


# 7.4 and 7.5: figures and status


def take_figures(task: Task) -> None:
    if task.received is not None:
        task.received_at = task.received.stamp
    start = task.lines.get("start")
    if start is not None:
        task.started_at = start.stamp if start.stamp is not None else start.at
    stderr = task.lines.get("stderr")
    if stderr is not None:
        task.error_text = stderr.text.partition(":")[2].strip()
    stdout = task.lines.get("stdout")
    if stdout is not None:
        task.output = stdout.text.partition(":")[2].strip()
        figures = stdout.payload
        elapsed_ns = as_number(inside(figures, "elapsed"))
        task.elapsed_ms = None if elapsed_ns is None else elapsed_ns / 1e6
        task.exit_code = exit_code_in(stdout)
        task.gas_used = as_whole(inside(figures, "metering", "last", "steps"))
        task.memory_peak = as_whole(inside(figures, "metering", "peak", "memory"))
        cached = inside(figures, "execution", "prepare", "cached")
        task.cached = cached if isinstance(cached, bool) else None
    if task.ended is not None:
        task.completed_at = task.ended.stamp
    elif stdout is not None and task.exit_code not in (None, 0):
        task.completed_at = stdout.stamp if stdout.stamp is not None else stdout.at


def exit_code_in(output: Entry) -> int | None:
    return as_whole(inside(output.payload, "wasi", "exitCode"))


def leaves_open(task: Task, gaps: Iterable[int]) -> bool:
    """Whether an output that can be this completed task's own does not say that it succeeded."""
    end = task.completed
    assert end is not None
    if task.exit_code == 0:
        return False
    for output in task.possible:
        own = task.lines.get(output.kind)
        if own is not None and own is not output:
            continue
        if output.kind == "stderr" or exit_code_in(output) != 0:
            return True
    # Its output may stand in what was not seen, or where nobody took it for a task in work. The page does
    # not speak of either.
    received = -1 if task.received is None else task.received.position
    is_unseen = any(received < gap <= end.position for gap in gaps)
    return "stdout" not in task.lines and (is_unseen or not task.ends_in_work)


def decide(
    task: Task, gaps: Sequence[int], last_s: float, starts: Sequence[float], last: Entry
) -> None:
    failed_words = None
    if task.failed is not None and task.failed.match is not None:
        failed_words = task.failed.match["words"] or ""
    is_nonzero = task.exit_code not in (None, 0)
    if is_nonzero or task.failed or ("penalty" in task.operations and not task.completed):
        task.status = "failed"
        named = [name for word, name in REASONS if failed_words and word in failed_words.lower()]
        if named:
            task.error = named[0]
        elif is_nonzero:
            task.error = "exit_code"
        else:
            task.error = "other" if task.failed else "penalty"
    elif "pay" in task.operations or task.has_outcome:
        task.status = "completed"
    elif task.completed:
        task.status = "ended" if leaves_open(task, gaps) else "completed"
    elif task.received is not None and (
        has_started_between(starts, task.received, last)
        or last_s > (task.received.stamp or 0.0) + task.timeout_s + 60
    ):
        task.status = "lost"
    else:
        task.status = "received" if task.started_at is None else "executing"


def own_operation(invoice: object, wallet: str | None) -> str | None:
    items = inside(invoice, "lineItem")
    for item in items if isinstance(items, list) else []:
        account = inside(item, "account")
        if wallet and isinstance(account, str) and account.lower() == wallet.lower():
            operation = inside(item, "operation")
            if operation in ("pay", "penalty"):
                return str(operation)
    return None


def read(
    lines: Sequence[Line],
    starts: Sequence[float] = (),
    gaps: Sequence[int] = (0,),
    records: Sequence[object] = (),
) -> Reading:
    """Everything that a log and an event database say.

    `starts` are the container's starts that the reader knew of, in engine seconds. `gaps` are positions of
    lines before which others may have been: 0 is the log's own beginning, of which the page says when it
    does not count. `records` are those of the event database; their order means nothing.
    """
    entries = entries_of(lines, gaps)
    tasks: dict[str, Task] = {}
    invoices: dict[str, Invoice] = {}
    seen_invoices: list[object] = []
    wallet = next((entry.wallet for entry in reversed(entries) if entry.wallet), None)

    for entry in entries:
        if entry.kind == "received":
            created = inside(entry.payload, "payload") or entry.payload
            execution_id = inside(created, "executionId")
            if isinstance(execution_id, str):
                task = tasks.setdefault(execution_id.lower(), Task(execution_id.lower()))
                if task.received is None:
                    task.received = entry
                    take_message(task, created)
        elif entry.kind == "invoice":
            seen_invoices.append(entry.payload)

    created_at: dict[str, float | None] = {}
    outcomes: set[str] = set()
    for record in records:
        payload = inside(record, "payload")
        execution_id = inside(payload, "executionId")
        kind = inside(payload, "type")
        if kind == "invoice":
            seen_invoices.append(payload)
        if not isinstance(execution_id, str):
            continue
        if kind == "task_created":
            task = tasks.setdefault(execution_id.lower(), Task(execution_id.lower()))
            take_message(task, payload)
            created_at[task.execution_id] = event_seconds(inside(payload, "timestamp"))
        elif kind == "computed_outcome":
            outcomes.add(execution_id.lower())

    for invoice in seen_invoices:
        invoice_id = as_text(inside(invoice, "invoiceId"))
        execution_id = as_text(inside(invoice, "executionId"))
        if invoice_id is None:
            continue
        operation = own_operation(invoice, wallet)
        invoices[invoice_id] = Invoice(execution_id, operation)
        if execution_id in tasks and operation:
            tasks[execution_id].operations.add(operation)

    for entry in entries:
        if entry.kind in ("completed", "failed") and entry.match:
            ending = tasks.get(entry.match["execution"].lower())
            if ending is None:
                continue
            ending.ended = ending.ended or entry
            if entry.kind == "completed":
                ending.completed = ending.completed or entry
            else:
                ending.failed = ending.failed or entry

    everyone = list(tasks.values())
    nameless = [entry for entry in entries if entry.kind in KINDS]
    known = {
        entry.order for entry in nameless if not unknown_task_in_work(entry, entries, gaps, starts)
    }
    for task in everyone:
        task.has_outcome = task.execution_id in outcomes
        task.received_at = created_at.get(task.execution_id)
        task.possible = [line for line in nameless if is_in_work(task, line, starts)]
        task.ends_in_work = task.completed is not None and is_within_time(
            task, task.completed, starts
        )
    for kind in KINDS:
        give_lines(kind, [line for line in nameless if line.kind == kind], everyone, known)
    last_s = max((entry.seconds for entry in entries), default=0.0)
    for task in everyone:
        task.possible = [line for line in task.possible if line.kind in ("stdout", "stderr")]
        take_figures(task)
        decide(task, gaps, last_s, starts, entries[-1])
    return Reading(tasks, invoices)
