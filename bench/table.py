"""The tables a person reads."""

from collections.abc import Sequence

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.model import Bar, Better, Ratio, Report, Row
from bench.plan import MEASURES
from bench.stats import spread


def number(value: float) -> str:
    """Three significant digits or whole numbers, thousands set apart."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) < 10 else f"{value:.1f}"


def asked(bar: Bar | None, better: Better) -> str:
    if bar is None:
        return ""
    sign = "≤" if better == "lower" else "≥"
    return f"{sign} {number(bar.limit)}" + (" (aim)" if bar.kind == "aim" else "")


def verdict(bar: Bar | None, value: float, better: Better) -> Text:
    """pass or miss for what is promised; an aim is only said to be reached or not yet."""
    if bar is None:
        return Text("")
    met = bar.met(value, better)
    if bar.kind == "aim":
        return Text("reached" if met else "not yet", style="green" if met else "yellow")
    return Text("pass" if met else "MISS", style="bold green" if met else "bold red")


def ratio_table(ratios: Sequence[Ratio]) -> Table:
    table = Table(title="Nova beside its peers, same run, same driver", title_justify="left", caption_justify="left")
    for name, justify in (("measure", "left"), ("peer", "left"), ("Nova", "right"), ("peer's", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_column("times better", justify="right")
    table.add_column("asked", justify="right")
    table.add_column("")
    for ratio in ratios:
        ahead = ratio.times_better >= 1
        table.add_row(
            f"{ratio.measure} {ratio.metric}",
            ratio.peer,
            f"{number(ratio.ours)} {ratio.unit}",
            f"{number(ratio.theirs)} {ratio.unit}",
            Text(f"{ratio.times_better:.2f}×", style="bold green" if ahead else "bold yellow"),
            asked(ratio.bar, "higher") + ("×" if ratio.bar else ""),
            verdict(ratio.bar, ratio.times_better, "higher"),
        )
    return table


def row_table(rows: Sequence[Row], facts: bool) -> Table:
    """``facts``: with a last column of what the same measurement found besides; it wants a wide screen."""
    table = Table(title="All numbers", title_justify="left")
    for name in ("measure", "subject"):
        table.add_column(name, no_wrap=True)
    for name in ("value", "rounds", "asked"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    if facts:
        table.add_column("with it", style="dim")
    order = list(MEASURES)
    for row in sorted(rows, key=lambda row: order.index(row.measure)):
        low, high = spread(row.rounds) if len(row.rounds) > 1 else (0.0, 0.0)
        table.add_row(
            f"{row.measure} {row.metric}",
            row.subject,
            f"{number(row.value)} {row.unit}",
            f"{number(low)} – {number(high)}" if len(row.rounds) > 1 else "",
            asked(row.bar, row.better),
            verdict(row.bar, row.value, row.better),
            *([" ".join(f"{name}={number(value)}" for name, value in row.facts.items())] if facts else []),
        )
    return table


def show(report: Report, console: Console) -> None:
    machine = report.machine
    parts: list[RenderableType] = [
        Text(
            f"{report.taken_at}  {report.revision}{'  quick' if report.quick else ''}\n{machine.cpu}, {machine.cores} cores, "
            f"{machine.memory_mb:,} MiB, {machine.system}, Linux {machine.kernel}, Python {machine.python}, "
            f"load {machine.load_before:.1f} → {machine.load_after:.1f}, crowd driver {report.crowd_driver}"
        )
    ]
    parts += [Text(f"{name}: {how}", style="dim") for name, how in report.subjects.items()]
    if report.ratios:
        parts.append(ratio_table(report.ratios))
    if report.rows:
        parts.append(row_table(report.rows, facts=console.width >= 150))
    parts += [Text(f"not measured: {p.subject}, {p.measure}: {p.reason}", style="bold red") for p in report.problems]
    parts += [Text(f"{row.measure} {row.metric}: {row.note}", style="yellow") for row in report.rows if row.note]
    missed = report.missed()
    if missed:
        parts.append(Text(f"{len(missed)} of the promised numbers missed", style="bold red"))
    console.print(Group(*parts))
