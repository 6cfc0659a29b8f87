"""The benchmark's figures as tables: beside their targets and the last committed ones, and in
docs/benchmarks.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from support import ROOT

DOCUMENT = ROOT / "docs" / "benchmarks.md"
CHANGED = 0.1  # of the last committed figure: what changed by more is marked


@dataclass(frozen=True)
class Figure:
    """One row of the table; `least` tells whether the target is a lower bound."""

    measure: str
    value: float
    unit: str
    target: float | None = None
    least: bool = False
    replaced: str = ""  # what the program that tbmon replaces does

    @property
    def shown(self) -> str:
        return f"{number(self.value)} {self.unit}"

    @property
    def bound(self) -> str:
        if self.target is None:
            return ""
        met = self.value >= self.target if self.least else self.value <= self.target
        return (
            f"{'>=' if self.least else '<='} {number(self.target)} "
            f"{self.unit}{'' if met else ' MISSED'}"
        )

    def change(self, last: Mapping[str, float]) -> str:
        """What the last table has, and by how much this differs if by more than CHANGED."""
        before = last.get(self.measure)
        if before is None:
            return ""
        share = (self.value - before) / before if before else float(self.value != before)
        return number(before) + (f" ({100 * share:+.0f} %)" if abs(share) > CHANGED else "")


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows of words as lines for a terminal: the first column to the left, figures to the right."""
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            f"{word:<{width}}" if at != 1 else f"{word:>{width}}"
            for at, (word, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def printed(figures: Iterable[Figure], last: Mapping[str, float]) -> str:
    rows = [(one.measure, one.shown, one.bound, one.change(last)) for one in figures]
    return columns([("measure", "value", "target", "last table"), *rows])


def marked(name: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- {name} -->\n).*?(?=<!-- end of {name} -->)", re.S)


def last_figures() -> dict[str, float]:
    """{measure: value} of the committed document; empty if it has none."""
    found = marked("figures").search(DOCUMENT.read_text("utf-8")) if DOCUMENT.exists() else None
    rows = re.findall(r"^\| ([^|]+?) \| (-?\d[\d.,e+-]*) [^|]*\|", found[0] if found else "", re.M)
    return {measure: float(value.replace(",", "")) for measure, value in rows}


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines).replace("|  |", "| |")


def write(
    name: str,
    surroundings: Mapping[str, object],
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
) -> None:
    """Put a table and where it was taken between the document's marks of this name."""
    where = ", ".join(f"{word} {value}" for word, value in surroundings.items())
    text, times = marked(name).subn(
        lambda _: f"\n{where}\n\n{markdown(head, rows)}\n", DOCUMENT.read_text("utf-8")
    )
    assert times == 1, f"{DOCUMENT} has no marks for {name}"
    DOCUMENT.write_text(text, "utf-8")


def write_figures(surroundings: Mapping[str, object], figures: Iterable[Figure]) -> None:
    head = ("what", "tbmon", "target", "the program it replaces")
    write(
        "figures",
        surroundings,
        head,
        ((one.measure, one.shown, one.bound, one.replaced) for one in figures),
    )


def grown(figures: Iterable[Figure]) -> list[list[str]]:
    """One row for each measure, its figures at each size beside each other; sizes stand after an
    @.
    """
    rows: dict[str, list[str]] = {}
    for one in figures:
        measure, _, size = one.measure.partition("@")
        rows.setdefault(measure.strip(), []).append(f"{size}: {one.shown}")
    return [[measure, *(found + [""] * 3)[:3]] for measure, found in rows.items()]


def write_growth(surroundings: Mapping[str, object], figures: Iterable[Figure]) -> None:
    write("growth", surroundings, ("what", "a tenth", "the size", "ten times"), grown(figures))


def percentile(values: Sequence[float], percent: int) -> float:
    """The least value that so many percent do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def spread(
    measure: str,
    taken: Sequence[float],
    unit: str,
    targets: Mapping[int, float | None],
    replaced: str = "",
    at: str = "",
) -> Iterable[Figure]:
    """A figure for each percentile named in `targets`."""
    for percent, target in targets.items():
        yield Figure(
            f"{measure}, p{percent}{at}",
            percentile(taken, percent),
            unit,
            target,
            replaced=replaced,
        )
