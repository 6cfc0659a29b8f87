"""Measures what tbmon promises, each figure beside its target and the last committed table of
docs/benchmarks.md.

A script, no test: `python tests/bench.py [--quick] [--only NAME ...] [--write] [--growth] [--json
FILE]`, with the packages of the tests and a Docker Engine. Every figure comes from a real process,
its database and /proc. A missed target is marked in the table and is no failure: the exit code is 1
only if something could not be measured.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import platform
import py_compile
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import bench_asking
import bench_hub
import bench_page
import bench_reading
import bench_running
import bench_table
import pytest
from bench_table import Figure
from support import ROOT
from support.engine import docker, make_image

Measure = Callable[[Path, bool], Iterator[Figure]]
MEASURES: dict[str, Measure] = {
    "files": bench_reading.files,
    "engine": bench_reading.engine,
    "idle": bench_running.idle,
    "start": bench_running.start,
    "latency": bench_running.latency,
    "broadcast": bench_running.broadcast,
    "api": bench_asking.api,
    "search": bench_asking.search,
    "page": bench_page.page,
    "counting": bench_hub.counting,
    "publication": bench_hub.publication,
    "network": bench_hub.network,
}
GROWTH: dict[str, Measure] = {
    "files": bench_reading.files_growth,
    "api": bench_asking.api_growth,
    "aggregator": bench_hub.hub_growth,
}
IN_CONTAINER = ("engine", "idle", "start", "latency", "broadcast", "page")


def surroundings() -> dict[str, object]:
    """Where the figures are taken."""
    model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    engine_version = (
        docker("version", "-f", "{{.Server.Version}}", check=False)
        if shutil.which("docker")
        else ""
    )
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "cores": os.cpu_count(),
        "CPU": model or platform.machine(),
        "load": round(os.getloadavg()[0], 1),
        "Python": platform.python_version(),
        "engine": engine_version or "none",
    }


def measure(measures: Mapping[str, Measure], quick: bool) -> tuple[list[Figure], list[str]]:
    """All figures, and the names of what could not be measured; whatever fails, the others go
    on.
    """
    figures, failed = list[Figure](), list[str]()
    with tempfile.TemporaryDirectory(prefix="tbmon-bench-") as base:
        for name, work in measures.items():
            folder, begun = Path(base, name), time.monotonic()
            folder.mkdir()
            try:
                if name in IN_CONTAINER:
                    make_image()
                figures += work(folder, quick)
            except (Exception, pytest.skip.Exception, pytest.fail.Exception) as error:
                failed.append(name)
                print(f"{name}: could not be measured: {error!r}", flush=True)
            shutil.rmtree(folder)
            print(f"{name}: {time.monotonic() - begun:.0f} s", file=sys.stderr, flush=True)
    return figures, failed


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="measure tbmon against its targets")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size or less")
    parser.add_argument(
        "--soak", action="store_true", help="the long forms: ten minutes of a network"
    )
    parser.add_argument(
        "--growth", action="store_true", help="a tenth of the size, the size and ten times it"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[*MEASURES, *(GROWTH.keys() - MEASURES.keys())],
        metavar="NAME",
        help="some of: " + " ".join(MEASURES) + "; of the growth: " + " ".join(GROWTH),
    )
    parser.add_argument(
        "--write", action="store_true", help="put the table into docs/benchmarks.md"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    given = parser.parse_args()
    if given.write and (given.quick or given.only):
        parser.error("only a whole table is written: --write goes without --quick and --only")
    return given


def main() -> int:
    given = arguments()
    signal.signal(
        signal.SIGTERM, lambda number, frame: sys.exit(128 + number)
    )  # so that containers and folders go
    sys.setswitchinterval(
        0.0005
    )  # a thread that waits for an answer must not wait for another thread of ours
    py_compile.compile(
        str(ROOT / "tbmon.py")
    )  # as its first start leaves it: compiling takes 10 MiB
    if given.soak:
        MEASURES["network"] = functools.partial(bench_hub.network, minutes=10)
    known = GROWTH if given.growth else MEASURES
    where = surroundings()
    print(", ".join(f"{name} {value}" for name, value in where.items()), flush=True)
    chosen = {name: work for name, work in known.items() if name in (given.only or known)}
    figures, failed = measure(chosen, given.quick)
    if given.growth:
        print(
            bench_table.columns(
                [("what", "a tenth", "the size", "ten times"), *bench_table.grown(figures)]
            )
        )
    else:
        print(bench_table.printed(figures, bench_table.last_figures()))
    if given.write and not failed:
        (bench_table.write_growth if given.growth else bench_table.write_figures)(where, figures)
    if given.json:
        given.json.write_text(
            json.dumps({**where, "figures": [asdict(one) for one in figures]}, indent=1) + "\n"
        )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
