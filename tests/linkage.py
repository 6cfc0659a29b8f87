"""Who can tell whose message it is: a simulation over the real builders and delays.

The network's tasks are public with their wallet, times, language, outcome and steps. Some wallets
have a monitor, and every monitor says what tbmon says. An observer names the wallet of each message
as well as he can:

* the outsider has the public transcripts and, more than any outsider gets, the whole stream of
  messages with the exact times of sending;
* the peer has the transcripts and the published statistics;
* the hub's operator has all of it, and sees by which connection a message came: one connection, one
  monitor.

The crowd of a message is every public event that could have caused it: of its content, within the
delay before it. The chance of a guess is the share that the guessed wallet has among those events
of the crowd that were told: what the same guess is worth if nothing but delay and content speaks.
An observer whose hits are not significantly more than the sum of these chances has learned nothing
else from the message.

`python tests/linkage.py [--wallets N] [--monitors N] [--days N] [--level L] [--seed N]` prints a
longer run.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import itertools
import json
import math
import random
import statistics
import sys
from bisect import bisect_left, bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import tbmon
from tbmon import ANONYMOUS, DAY_MS, DELAY_MS, HOUR_MS, WINDOW_MS, Task, Words

BEGAN = 1_790_000_100_000  # ms
TASKS_A_DAY, SPREAD = 8, 1.0  # of a wallet: median, and sigma of the log-normal
SNAPSHOT_MS, NEW_TASKS, ROUND_TO = 24 * HOUR_MS, 20, 10  # the aggregator's defaults
LANGUAGES = {"rust": 5, "javascript": 3, "python": 2, "go": 1}
CHECKPOINTS = (1, 2, 4, 8, 16, 32, 64)
Content = tuple[object, ...]  # what a message says that the transcripts say too
Delay = Callable[[int, str, float], int]


class Public(NamedTuple):
    """An event of the public transcripts: when (ms), whose, of which id; and, unknown to observers,
    if it was told.
    """

    at: int
    wallet: int
    name: str
    told: bool


class Sent(NamedTuple):
    """A message as it left, and the truth that observers want to know."""

    due: int
    wallet: int
    message: dict[str, Any]


class World(NamedTuple):
    """What happened: the public transcripts by content, and the stream of messages by time of
    sending.
    """

    level: str
    events: dict[Content, list[Public]]
    stream: list[Sent]


class Result(NamedTuple):
    """How well an observer did."""

    observer: str
    guesses: int
    hits: int
    chance: float  # the sum of all guesses' chances
    deviation: float  # one standard deviation of the hits, were they chance

    @property
    def sigmas(self) -> float:
        return (self.hits - self.chance) / max(self.deviation, 1e-9)

    def __str__(self) -> str:
        rates = (
            f"{self.hits / self.guesses:7.2%} right, by chance {self.chance / self.guesses:7.2%}"
        )
        return (
            f"{self.observer:32} {self.guesses:6} guesses {rates} ({self.sigmas:+.1f} standard "
            f"deviations)"
        )


def result_of(observer: str, guesses: Iterable[tuple[bool, float]]) -> Result:
    """The sum of guesses, each (right, chance of being right)."""
    tried = list(guesses)
    variance = sum(chance * (1 - chance) for _, chance in tried)
    sums = sum(right for right, _ in tried), sum(chance for _, chance in tried)
    return Result(observer, len(tried), *sums, math.sqrt(variance))


def content_of(message: dict[str, Any]) -> Content:
    """What a message says that the transcripts say too; the other measures are seen by the node
    alone.
    """
    data = message["data"]
    shown = ("taskType", "status", "gasUsedBucket", "stepsComputedBucket")
    return (message["type"], *(data[name] for name in shown if name in data))


def task_at(dice: random.Random, at: int, wallet: int) -> Task:
    """A task as nodes have them; its program's cost spreads over the published ranges."""
    elapsed_ms = int(10 ** dice.gauss(3.7, 0.6))
    return Task(
        f"{dice.getrandbits(128):032x}",
        task_type=dice.choices(list(LANGUAGES), list(LANGUAGES.values()))[0],
        status="failed" if dice.random() < 0.05 else "completed",
        received_at=at,
        completed_at=at + elapsed_ms,
        elapsed_ms=elapsed_ms,
        gas_used=int(10 ** dice.gauss(9.2, 1)),
        memory_peak=int(10 ** dice.gauss(2.6, 0.4)),
        cached=dice.choice((0, 1, None)),
        task_hash=str(wallet),
    )


def moments(dice: random.Random, per_day: float, days: float) -> Iterator[int]:
    at = 0.0
    while (at := at + dice.expovariate(per_day)) < days:
        yield BEGAN + int(at * DAY_MS)


def make_world(
    wallets: int = 300,
    monitors: int = 300,
    days: float = 3,
    level: str = "balanced",
    seed: int = 1,
    delay: Delay = tbmon.due_after,
    node_of: Callable[[int], str] = lambda wallet: ANONYMOUS,
) -> World:
    """Let all wallets work for some days; `delay` and `node_of` are there to plant a leak.

    The monitors join when one delay is over, so that the first messages have a whole crowd too.
    """
    dice, joined = random.Random(seed), BEGAN + DELAY_MS[level]
    events: dict[Content, list[Public]] = defaultdict(list)
    stream: list[Sent] = []
    for wallet in range(wallets):
        keys: dict[int, bytes] = defaultdict(lambda: dice.randbytes(32))

        def say(
            at: int, build: Callable[[Words], bytes], sender: int, keys: dict[int, bytes] = keys
        ) -> None:
            due = delay(at, level, dice.random())
            message = json.loads(build(Words(due, dice.randbytes(16).hex(), keys[at // DAY_MS])))
            stream.append(Sent(due, sender, {**message, "nodeId": node_of(sender)}))

        for at in moments(dice, dice.lognormvariate(math.log(TASKS_A_DAY), SPREAD), days):
            task = task_at(dice, at, wallet)
            ended = task.completed_at or at
            billed, invoice = ended + dice.randrange(60_000), f"{dice.getrandbits(128):032x}"
            told = wallet < monitors and at >= joined
            language, steps = tbmon.shared_language(task), tbmon.STEPS_SCALE.range_of(task.gas_used)
            for content, when, name in (
                (("task_received", language), at, task.execution_id),
                (("task_completed", language, task.status), ended, task.execution_id),
                (("task_completed", language, task.status, steps), ended, task.execution_id),
                (("invoice_created", steps), billed, invoice),
            ):
                events[content].append(Public(when, wallet, name, told))
            if told:
                choice = dice.choice(tuple(tbmon.MESSAGES["task_completed"].choices))
                say(at, functools.partial(tbmon.received_message, task), wallet)
                say(ended, functools.partial(tbmon.completed_message, task, choice=choice), wallet)
                say(
                    billed, functools.partial(tbmon.invoice_message, invoice, task.gas_used), wallet
                )
    return World(
        level, {key: sorted(found) for key, found in events.items()}, sorted(stream, key=due_of)
    )


def due_of(sent: Sent) -> int:
    return sent.due


def window_end(at: int) -> int:
    return at // WINDOW_MS * WINDOW_MS + WINDOW_MS


class Crowds:
    """The public events that could have caused a message."""

    def __init__(self, world: World) -> None:
        self.world, self.longest_ms = world, DELAY_MS[world.level]
        self.ends = {
            key: [window_end(one.at) for one in found] for key, found in world.events.items()
        }
        self.by_wallet: dict[tuple[Content, int], list[int]] = defaultdict(list)
        self.said: dict[int, list[int]] = defaultdict(
            list
        )  # wallet: when each of its messages is to be expected
        for key, found in world.events.items():
            for one in found:
                self.by_wallet[key, one.wallet].append(window_end(one.at))
                if one.told and len(key) < 4:  # the four-part key repeats the completions
                    self.said[one.wallet].append(window_end(one.at) + self.longest_ms // 2)
        for expected in self.said.values():
            expected.sort()

    def crowd(self, sent: Sent) -> list[Public]:
        key = content_of(sent.message)
        first = bisect_right(self.ends[key], sent.due - self.longest_ms)
        return self.world.events[key][first : bisect_right(self.ends[key], sent.due)]

    def events_of(self, wallet: int, sent: Sent) -> int:
        """How many events of a wallet could have caused the message."""
        ends = self.by_wallet.get((content_of(sent.message), wallet), ())
        return bisect_right(ends, sent.due) - bisect_right(ends, sent.due - self.longest_ms)

    def chance(self, wallet: int, crowd: Sequence[Public]) -> float:
        """What naming this wallet is worth if any event of the crowd that was told may be the
        cause.
        """
        told = [one.wallet for one in crowd if one.told]
        return told.count(wallet) / len(told)


def most_active(sent: Sent, crowd: Sequence[Public]) -> int:
    return Counter(one.wallet for one in crowd).most_common(1)[0][0]


def same_phase(sent: Sent, crowd: Sequence[Public]) -> int:
    """If the delay were whole windows, the event's place within its window would show."""
    return min(crowd, key=lambda one: abs(one.at % WINDOW_MS - sent.due % WINDOW_MS)).wallet


GUESSES: dict[str, Callable[[Sent, Sequence[Public]], int]] = {
    "most active": most_active,
    "same phase": same_phase,
    "first in, first out": lambda sent, crowd: crowd[0].wallet,
    "last in, first out": lambda sent, crowd: crowd[-1].wallet,
}


def outsider(world: World, crowds: Crowds, sample: int) -> Iterator[Result]:
    """Each message by itself, guessed in several ways."""
    some = random.Random(0).sample(world.stream, min(sample, len(world.stream)))
    for name, guess in GUESSES.items():
        tried = (
            (crowd, guess(sent, crowd), sent) for sent in some if (crowd := crowds.crowd(sent))
        )
        pairs = (
            (named == sent.wallet, crowds.chance(named, crowd)) for crowd, named, sent in tried
        )
        yield result_of(f"outsider, {name}", pairs)


def hashes_found(world: World) -> int:
    """How many hashes are those of a public id, plainly or under a key that can be guessed."""
    found = {
        value
        for sent in world.stream
        for name, value in sent.message["data"].items()
        if name.endswith("Hash")
    }
    names = {one.name.encode() for happened in world.events.values() for one in happened}
    days = {(tbmon.utc(sent.due) or "")[:10].encode() for sent in world.stream}
    kinds = [kind.encode() for kind in tbmon.MESSAGES]
    inputs = [*names, *(kind + b"\0" + name for kind in kinds for name in names)]
    plain = {hashlib.sha256(text).hexdigest() for text in inputs}
    guessed = {
        tbmon.keyed(key, kind.decode(), name.decode()).hex()
        for key in (b"", bytes(32), *days)
        for kind in kinds[3:]
        for name in names
    }
    return len(found & (plain | guessed))


def groups_of(world: World) -> list[list[Sent]]:
    """Messages that anything in them shows to be of one monitor or one task."""
    groups: dict[str, list[Sent]] = defaultdict(list)
    for sent in world.stream:
        data, node = sent.message["data"], sent.message["nodeId"]
        for value in (sent.message["id"], data.get("taskIdHash"), data.get("invoiceIdHash"), node):
            if value and value != ANONYMOUS:
                groups[value].append(sent)
    return [group for group in groups.values() if len(group) > 1]


def connections_of(world: World) -> list[list[Sent]]:
    """The hub's view: one connection, one monitor."""
    groups: dict[int, list[Sent]] = defaultdict(list)
    for sent in world.stream:
        groups[sent.wallet].append(sent)
    return list(groups.values())


def named_in(crowds: Crowds, group: Sequence[Sent]) -> dict[int, int | None]:
    """{messages seen so far: wallet most likely to have sent them all}, at each of CHECKPOINTS and
    at the end.

    A wallet's messages are a Poisson process whose rate is that of its events in the window of the
    delay.
    """
    scores, named = dict.fromkeys(crowds.said, 0.0), dict[int, int | None]()
    began = group[0].due
    for seen, sent in enumerate(group, 1):
        events = {wallet: crowds.events_of(wallet, sent) for wallet in scores}
        scores = {
            wallet: score + math.log(events[wallet])
            for wallet, score in scores.items()
            if events[wallet]
        }
        if seen in CHECKPOINTS or seen == len(group):
            until = sent.due if seen < len(group) else sys.maxsize
            expected = {wallet: expected_of(crowds.said[wallet], began, until) for wallet in scores}
            named[seen] = max(scores, key=lambda one: scores[one] - expected[one], default=None)
    return named


def expected_of(said: Sequence[int], began: int, until: int) -> int:
    """How many messages a wallet would have sent; all, of a connection that was seen to its end."""
    return bisect_right(said, until) - (0 if until == sys.maxsize else bisect_left(said, began))


def linked(
    name: str, crowds: Crowds, groups: Sequence[Sequence[Sent]]
) -> tuple[Result, dict[int, float]]:
    """How well groups of messages are named, counted by message; and how well after the first few,
    by group.
    """
    pairs: list[tuple[bool, float]] = []
    early: dict[int, list[bool]] = defaultdict(list)
    for group in groups:
        named = named_in(crowds, group)
        final = named[len(group)]
        for sent in group[
            :: max(1, len(group) // 5)
        ]:  # the chance is the crowd's as it is without the group
            pairs.append(
                (
                    final == sent.wallet,
                    crowds.chance(-1 if final is None else final, crowds.crowd(sent)),
                )
            )
        for seen, wallet in named.items():
            if seen in CHECKPOINTS:
                early[seen].append(wallet == group[0].wallet)
    return result_of(name, pairs), {
        seen: statistics.mean(right) for seen, right in sorted(early.items())
    }


def snapshots(stream: Sequence[Sent]) -> list[tuple[int, Counter[str]]]:
    """When the published figures changed, and what they said of languages: rounded down, as the
    contract has it.
    """
    published: list[tuple[int, Counter[str]]] = [(stream[0].due, Counter())]
    counted: Counter[str] = Counter()
    fresh = 0
    for sent in stream:
        if sent.message["type"] == "task_completed":
            counted[sent.message["data"]["taskType"]] += 1
            fresh += 1
        if sent.due - published[-1][0] >= SNAPSHOT_MS and fresh >= NEW_TASKS:
            rounded = Counter(
                {name: number // ROUND_TO * ROUND_TO for name, number in counted.items()}
            )
            published.append((sent.due, rounded))
            fresh = 0
    return published


def peer(world: World, crowds: Crowds) -> Result:
    """Names the wallet of a completion counted between two snapshots, by what the figures grew by."""
    pairs: list[tuple[bool, float]] = []
    completions = [
        (str(key[1]), one)
        for key, found in world.events.items()
        for one in found
        if key[0] == "task_completed" and len(key) == 3
    ]
    for (since, before), (until, after) in itertools.pairwise(snapshots(world.stream)):
        growth, scores, told = after - before, Counter[int](), dict[int, float]()
        weights: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
        for language, one in completions:
            shares = [(at - window_end(one.at)) / crowds.longest_ms for at in (since, until)]
            weight = min(max(shares[1], 0), 1) - min(
                max(shares[0], 0), 1
            )  # that it was counted between the two
            weights[language][one.wallet] += weight
            told[one.wallet] = told.get(one.wallet, 0) + weight * one.told
        for language, by_wallet in weights.items():
            total = sum(by_wallet.values()) or 1
            for wallet, weight in by_wallet.items():
                scores[wallet] += round(10**6 * growth[language] * weight / total)
        named = scores.most_common(1)[0][0]
        senders = [
            sent.wallet
            for sent in world.stream
            if since < sent.due <= until and sent.message["type"] == "task_completed"
        ]
        pairs += [(sender == named, told[named] / sum(told.values())) for sender in senders]
    return result_of("peer, by the statistics", pairs)


class Report(NamedTuple):
    """What each observer achieved."""

    level: str
    outsider: list[Result]
    joined: int  # groups of messages that an outsider can tell to belong together
    hashes: int  # hashes that an outsider can undo
    peer: Result
    operator: Result
    early: dict[int, float]  # operator: connections named after the first messages
    crowd: list[int]  # wallets in the crowd of a message, for a sample in ascending order

    def __str__(self) -> str:
        least, few, middle = (self.crowd[len(self.crowd) * share // 100] for share in (0, 5, 50))
        early = ", ".join(f"{seen}: {share:.0%}" for seen, share in self.early.items())
        lines = [
            (
                f"wallets that a message can be of: {least} at least, {few} at the 5th percentile, "
                f"{middle} in the middle"
            ),
            *(str(one) for one in self.outsider),
            str(self.peer),
            str(self.operator),
            (
                f"messages that belong together by their content: {self.joined}; hashes undone: "
                f"{self.hashes}"
            ),
            f"operator, connections named after so many messages: {early}",
        ]
        return "\n".join(lines)


def judge(world: World, sample: int = 2000, connections: int = 60) -> Report:
    """Let every observer try."""
    crowds = Crowds(world)
    groups = groups_of(world)
    some = random.Random(0).sample(world.stream, min(300, len(world.stream)))
    operator, early = linked(
        "hub's operator, by connection", crowds, connections_of(world)[:connections]
    )
    by_content = [linked("outsider, by what repeats", crowds, groups)[0]] if groups else []
    return Report(
        world.level,
        [*outsider(world, crowds, sample), *by_content],
        len(groups),
        hashes_found(world),
        peer(world, crowds),
        operator,
        early,
        sorted(len({one.wallet for one in crowds.crowd(sent)}) for sent in some),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    for name, default in (("wallets", 300), ("monitors", 100), ("days", 14), ("seed", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--level", choices=tuple(DELAY_MS), default="balanced")
    chosen = parser.parse_args()
    print(
        f"{chosen.monitors} of {chosen.wallets} wallets share for {chosen.days} days, "
        f"{chosen.level}"
    )
    print(
        judge(
            make_world(chosen.wallets, chosen.monitors, chosen.days, chosen.level, chosen.seed),
            5000,
            10**6,
        )
    )


if __name__ == "__main__":
    main()
