"""A beside B: what changed between two reports, and whether it is more than noise."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.model import Report, Row
from bench.stats import spread
from bench.table import number

Change = Literal["better", "worse", "noise", "unclear"]
STYLE: dict[Change, str] = {"better": "bold green", "worse": "bold red", "noise": "dim", "unclear": "yellow"}


@dataclass(frozen=True, slots=True)
class Difference:
    """One number in both reports. ``percent`` is positive when B is larger, whatever better means for it."""

    a: Row
    b: Row
    percent: float
    change: Change


def differences(a: Report, b: Report, noise_percent: float) -> list[Difference]:
    """Every row that both reports have, in A's order."""
    right = {row.key: row for row in b.rows}
    return [difference(row, right[row.key], noise_percent) for row in a.rows if row.key in right]


def difference(a: Row, b: Row, noise_percent: float) -> Difference:
    """More than noise is: beyond ``noise_percent``, and no round of A lies among B's.

    A time or a rate that has no rounds on one side is "unclear"; memory does not depend on how busy the machine is and
    is judged by ``noise_percent`` alone.
    """
    percent = (b.value - a.value) / a.value * 100 if a.value else 0.0
    if abs(percent) <= noise_percent or overlap(a.rounds, b.rounds):
        return Difference(a, b, percent, "noise")
    if a.unit != "MiB" and min(len(a.rounds), len(b.rounds)) < 2:
        return Difference(a, b, percent, "unclear")
    return Difference(a, b, percent, "better" if (percent > 0) == (a.better == "higher") else "worse")


def overlap(a: Sequence[float], b: Sequence[float]) -> bool:
    if len(a) < 2 or len(b) < 2:
        return False
    (low_a, high_a), (low_b, high_b) = spread(a), spread(b)
    return low_a <= high_b and low_b <= high_a


def caveats(a: Report, b: Report) -> list[str]:
    """Why the two may not be comparable."""
    found = []
    for what, one, other in (
        ("processor", a.machine.cpu, b.machine.cpu),
        ("cores", a.machine.cores, b.machine.cores),
        ("kernel", a.machine.kernel, b.machine.kernel),
        ("Python", a.machine.python, b.machine.python),
        ("quick mode", a.quick, b.quick),
        ("crowd driver", a.crowd_driver, b.crowd_driver),
    ):
        if one != other:
            found.append(f"different {what}: {one} and {other}")
    for name in sorted(a.subjects.keys() & b.subjects.keys()):
        if a.subjects[name] != b.subjects[name]:
            found.append(f"different {name}: {a.subjects[name]} and {b.subjects[name]}")
    return found


def show(a: Report, b: Report, noise_percent: float, console: Console) -> list[Difference]:
    """Print the differences, peers included: what the peers changed by is what the machine changed by."""
    found = differences(a, b, noise_percent)
    table = Table(title=f"A {a.revision} {a.taken_at}   B {b.revision} {b.taken_at}", title_justify="left")
    for name in ("measure", "subject"):
        table.add_column(name, no_wrap=True)
    for name in ("A", "B", "change"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for entry in found:
        table.add_row(
            f"{entry.a.measure} {entry.a.metric}",
            entry.a.subject,
            f"{number(entry.a.value)} {entry.a.unit}",
            f"{number(entry.b.value)} {entry.b.unit}",
            f"{entry.percent:+.1f} %",
            Text(entry.change, style=STYLE[entry.change]),
        )
    console.print(table)
    _show_ratios(a, b, console)
    missing = {row.key for row in a.rows} ^ {row.key for row in b.rows}
    for measure, metric, subject in sorted(missing):
        console.print(f"only in one of them: {measure} {metric}, {subject}", style="yellow", highlight=False)
    for caveat in caveats(a, b):
        console.print(caveat, style="yellow", highlight=False)
    return found


def _show_ratios(a: Report, b: Report, console: Console) -> None:
    right = {(r.measure, r.metric, r.peer): r for r in b.ratios}
    both = [(r, right[key]) for r in a.ratios if (key := (r.measure, r.metric, r.peer)) in right]
    if not both:
        return
    table = Table(title="Times better than the peer of the same run", title_justify="left")
    for name in ("measure", "peer"):
        table.add_column(name)
    for name in ("A", "B", "change"):
        table.add_column(name, justify="right")
    for one, other in both:
        percent = (other.times_better / one.times_better - 1) * 100
        table.add_row(
            f"{one.measure} {one.metric}",
            one.peer,
            f"{one.times_better:.2f}×",
            f"{other.times_better:.2f}×",
            f"{percent:+.1f} %",
        )
    console.print(table)
