"""Fuzzing: a fast mutator with a seed, the corpus, and the runs over the targets of
fuzz_targets.py.

By hand: `python tests/support/fuzz.py TARGET FILE...` replays inputs, `python tests/support/fuzz.py
TARGET --count 100000 --seed 7` mutates. An input that found a fault is kept in corpus/TARGET/,
beside small seeds.
"""

from __future__ import annotations

import argparse
import random
import resource
import signal
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

CORPUS = Path(__file__).parents[1] / "faults" / "corpus"
MOST = 64 * 1024  # bytes of an input
HANG_S = 10.0  # of CPU time for one input
POOL = 400  # inputs that are mutated further
Draw = Callable[[], float]  # from 0 to 1
Check = Callable[[bytes], None]


class Target(NamedTuple):
    """What is fuzzed: `make` returns a check that raises if the program breaks a promise for an
    input.
    """

    make: Callable[[Path], Check]
    seeds: Sequence[bytes]
    words: Sequence[bytes]  # what mutations put in
    weight: int  # its share of all inputs


class Told(NamedTuple):
    """What a run saw: CPU time, and by how much the process's most ever of memory grew."""

    inputs: int
    seconds: float
    slowest_s: float
    grown_kib: int

    def __str__(self) -> str:
        rate, slowest_ms = self.inputs / max(self.seconds, 1e-9), 1000 * self.slowest_s
        return (
            f"{self.inputs} inputs, {rate:.0f} a CPU second, the slowest took {slowest_ms:.1f} ms"
        )


class Fault(AssertionError):
    """An input for which a promise was broken; it is kept, and the text says how to replay it."""


def put_byte(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at = int(draw() * len(data))
    return b"%b%c%b" % (data[:at], int(draw() * 256), data[at + 1 :])


def flip_bit(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at = int(draw() * len(data))
    return (
        b"%b%c%b" % (data[:at], data[at] ^ 1 << int(draw() * 8), data[at + 1 :]) if data else data
    )


def put_word(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at = int(draw() * (len(data) + 1))
    return data[:at] + words[int(draw() * len(words))] + data[at:]


def replace_span(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at = int(draw() * (len(data) + 1))
    return data[:at] + words[int(draw() * len(words))] + data[at + int(draw() * 20) :]


def cut_span(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at = int(draw() * (len(data) + 1))
    return data[:at] + data[at + 1 + int(draw() ** 3 * len(data)) :]


def repeat_span(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at, length = int(draw() * (len(data) + 1)), 1 + int(draw() * 60)
    return data[:at] + data[at : at + length] * (2 + int(draw() ** 4 * 60)) + data[at + length :]


def splice(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    return data[: int(draw() * (len(data) + 1))] + other[int(draw() * (len(other) + 1)) :]


def put_part(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    at, begin = int(draw() * (len(data) + 1)), int(draw() * (len(other) + 1))
    return data[:at] + other[begin : begin + int(draw() * 80)] + data[at:]


def count_on(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """Change a digit: times, counts and ids are what most values are made of."""
    at = int(draw() * (len(data) + 1))
    end = next(
        (place for place in range(at, min(at + 40, len(data))) if 48 <= data[place] <= 57), None
    )
    return data if end is None else data[:end] + b"%d" % int(draw() * 10) + data[end + 1 :]


CHANGES = (
    put_byte,
    flip_bit,
    put_word,
    put_word,
    replace_span,
    cut_span,
    repeat_span,
    splice,
    put_part,
    count_on,
)


def mutate(draw: Draw, data: bytes, other: bytes, words: Sequence[bytes]) -> bytes:
    """One to four changes; mostly one, so that what was valid is nearly so."""
    for _ in range(1 + int(draw() ** 2 * 4)):
        data = CHANGES[int(draw() * len(CHANGES))](draw, data, other, words)
    return data[:MOST]


def corpus_of(name: str) -> list[Path]:
    """The kept inputs of a target."""
    return sorted(path for path in (CORPUS / name).glob("*") if path.is_file())


def inputs(target: Target, name: str, seed: int, count: int) -> Iterator[bytes]:
    """`count` mutations, the same for the same seed; some of them are mutated further."""
    dice = random.Random(f"{name} {seed}")
    draw, words = dice.random, target.words
    pool = [*target.seeds, *(path.read_bytes() for path in corpus_of(name))]
    first = len(pool)
    for number in range(count):
        data = mutate(draw, pool[int(draw() * len(pool))], pool[int(draw() * len(pool))], words)
        if number % 16 == 0 and len(data) < 1024:
            if len(pool) < first + POOL:
                pool.append(data)
            else:
                pool[first + int(draw() * POOL)] = data
        yield data


@contextmanager
def ending_hangs() -> Iterator[None]:
    """An input that takes HANG_S ends in TimeoutError; the interpreter's regular expressions hear
    of it too.
    """

    def end(number: int, frame: object) -> None:
        raise TimeoutError(f"it took more than {HANG_S} s")

    before = signal.signal(signal.SIGPROF, end)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def keep(name: str, data: bytes) -> Path:
    """Save an input that found a fault."""
    folder = Path(tempfile.gettempdir(), "tbmon-fuzz", name)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{zlib.crc32(data):08x}"
    path.write_bytes(data)
    return path


def attack(target: Target, name: str, folder: Path, seed: int, count: int) -> Told:
    """Check `count` mutations; raise Fault at the first that breaks a promise."""
    folder.mkdir(parents=True, exist_ok=True)
    check, clock, slowest_s = target.make(folder), time.thread_time, 0.0
    began, most_kib = clock(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with ending_hangs():
        for data in inputs(target, name, seed, count):
            signal.setitimer(signal.ITIMER_PROF, HANG_S)
            before = clock()
            try:
                check(data)
            except Exception as error:
                how = f"replay: python tests/support/fuzz.py {name} {keep(name, data)}"
                raise Fault(
                    f"{error!r:.1000}\nseed {seed}; {how}\nMended, it belongs into {CORPUS / name}"
                ) from error
            slowest_s = max(slowest_s, clock() - before)
    grown_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - most_kib
    return Told(count, clock() - began, slowest_s, grown_kib)


def attack_with(
    target: Target, name: str, folder: Path, seed: int, count: int, processes: int
) -> Told:
    """The same in several processes, each with a seed of its own."""
    if processes == 1:
        return attack(target, name, folder, seed, count)
    with ProcessPoolExecutor(processes, get_context("fork")) as pool:
        parts = [
            pool.submit(attack, target, name, folder / str(part), seed + part, count // processes)
            for part in range(processes)
        ]
        told = [part.result() for part in parts]
    return Told(
        sum(one.inputs for one in told),
        sum(one.seconds for one in told),
        max(one.slowest_s for one in told),
        max(one.grown_kib for one in told),
    )


def replay(target: Target, folder: Path, paths: Sequence[Path]) -> None:
    """Check kept inputs and the seeds as they stand."""
    folder.mkdir(parents=True, exist_ok=True)
    check = target.make(folder)
    with ending_hangs():
        kept = [(str(path), path.read_bytes()) for path in paths]
        for place, data in [*(("a seed", seed) for seed in target.seeds), *kept]:
            signal.setitimer(signal.ITIMER_PROF, HANG_S)
            try:
                check(data)
            except Exception as error:
                raise Fault(f"{place}: {error!r:.1000}") from error


def main() -> None:
    """Replay files, or mutate."""
    from support.fuzz_targets import TARGETS

    parser = argparse.ArgumentParser(description="fuzz one part of tbmon")
    parser.add_argument("target", choices=sorted(TARGETS))
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**9))
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        if given.files:
            replay(TARGETS[given.target], Path(folder), given.files)
        else:
            told = attack(
                TARGETS[given.target], given.target, Path(folder), given.seed, given.count
            )
            print(f"{told}, seed {given.seed}")


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))
    main()
