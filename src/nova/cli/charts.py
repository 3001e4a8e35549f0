"""orbit's pictures: calls over time, a heatmap of the week, one call as a tree of its spans."""

import os
from datetime import date
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import typer
from rich.text import Text
from rich.tree import Tree

from nova.cli.output import Column, when
from nova.cli.session import Session, command
from nova.client import Json, Value

Of = Annotated[str | None, typer.Argument(metavar="NAME", help="A function; without it: the whole namespace.")]

_BARS = "▁▂▃▄▅▆▇█"
_SHADES = "·░▒▓█"
_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_ZONES = "/zoneinfo/"

POINT_COLUMNS = (
    Column("from", when("ts")),
    Column("calls", "invocations", right=True),
    Column("failed", "errors", right=True),
    Column("cold", "cold_starts", right=True),
    Column("avg ms", "avg_duration_ms", right=True),
    Column("p95 ms", "p95_duration_ms", right=True),
)


@command
def series(
    session: Session,
    name: Of = None,
    period: Annotated[str, typer.Option("--range", metavar="AGO", help="How far back: 90m, 24h, 7d.")] = "24h",
    step: Annotated[str, typer.Option("--step", metavar="LENGTH", help="Length of a bucket: 5m, 1h, 1d.")] = "1h",
) -> None:
    """Calls, failures and latencies over time."""
    query = {"range": period, "step": step, "function": name}
    found = session.client.call("metrics.timeseries", query=query)
    if not session.out.for_people:
        session.out.data(found)
        return
    points = found["points"]
    session.out.line(f"{name or 'all functions'}, the last {period} in steps of {step}")
    for title, member in (("calls", "invocations"), ("failed", "errors"), ("p95 ms", "p95_duration_ms")):
        values = [point[member] or 0 for point in points]
        session.out.line(f"{title:>7} {sparkline(values)} {max(values):,.0f}")
    busy = [point for point in points if point["invocations"]]
    if busy:
        session.out.line("")
        session.out.table(busy, POINT_COLUMNS)


@command
def heatmap(
    session: Session,
    name: Of = None,
    weeks: Annotated[int, typer.Option("--weeks", min=1, max=104, help="How far back.")] = 52,
    timezone: Annotated[
        str | None, typer.Option("--timezone", metavar="ZONE", help="Whose days and hours count; yours unless said.")
    ] = None,
) -> None:
    """Calls by day of the week and hour."""
    query: dict[str, Value] = {"weeks": weeks, "timezone": timezone or local_timezone()}
    if name is None:
        found = session.client.call("metrics.heatmap", query=query)
    else:
        found = session.client.call("function.heatmap", {"name": name}, query)
    if not session.out.for_people:
        session.out.data(found)
        return
    week = by_weekday(found["days"])
    highest = max(max(hours) for hours in week)
    since = found["kept_from"]
    session.out.line(f"{name or 'all functions'}, since {since}, hours of {found['timezone']}")
    session.out.line("    " + "".join(f"{hour:<6}" for hour in range(0, 24, 3)).rstrip())
    for day, hours in zip(_DAYS, week, strict=True):
        session.out.line(f"{day} " + "".join(shade(count, highest) * 2 for count in hours) + f" {sum(hours):>8,}")
    session.out.line(f"busiest hour {highest:,} calls")


@command
def trace(
    session: Session,
    id: Annotated[str, typer.Argument(metavar="ID", help="A trace id or a request id.", show_default=False)],
) -> None:
    """The spans of one call as a tree."""
    found = session.client.call("trace.get", {"id": id})
    if not session.out.for_people:
        session.out.item(found, name="trace_id")
        return
    title = Text.assemble(("trace ", "bold"), found["trace_id"], f"  {found['duration_ms']:.2f} ms")
    root = Tree(title, guide_style="dim")
    for span in found["spans"]:
        _grow(root, span)
    session.out.console.print(root)


def _grow(parent: Tree, span: Json) -> None:
    branch = parent.add(_line(span))
    for child in span["children"]:
        _grow(branch, child)


def _line(span: Json) -> Text:
    """Name, duration, when it began, where it ran, what went wrong."""
    line = Text.assemble((span["name"], "bold"), f"  {span['duration_ms']:.2f} ms")
    line.append(f"  +{span['offset_ms']:.2f}", style="dim")
    line.append(f"  {span['plane']}@{span['node']}", style="dim")
    if span["function"] and span["name"] in ("gateway.request", "nova.invoke"):
        line.append(f"  {span['function']}")
    if span["attributes"].get("faas.coldstart"):
        line.append("  cold", style="yellow")
    if span["error"]:
        line.append(f"  {span['error']}", style="red")
    return line


def sparkline(values: list[float]) -> str:
    """One character per value; the highest is a full bar, nothing a space."""
    highest = max(values, default=0)
    if not highest:
        return " " * len(values)
    return "".join(_BARS[min(len(_BARS) - 1, int(v / highest * len(_BARS)))] if v else " " for v in values)


def by_weekday(days: list[Any]) -> list[list[int]]:
    """Seven times 24 counts, Monday first."""
    week = [[0] * 24 for _ in _DAYS]
    for day in days:
        row = week[date.fromisoformat(day["date"]).weekday()]
        for hour, count in enumerate(day["hours"]):
            row[hour] += count
    return week


def shade(count: int, highest: int) -> str:
    """Darker for more; a dot for none."""
    if not count:
        return _SHADES[0]
    return _SHADES[max(1, min(len(_SHADES) - 1, round(count / highest * (len(_SHADES) - 1))))]


def local_timezone() -> str:
    """The IANA name of this machine's time zone, UTC when it has none."""
    named = os.environ.get("TZ", "").removeprefix(":")
    linked = str(Path("/etc/localtime").resolve()).partition(_ZONES)[2]
    for name in (named, linked):
        try:
            return ZoneInfo(name).key
        except (KeyError, ValueError, OSError):
            continue
    return "UTC"


def register(app: typer.Typer) -> None:
    app.command("series")(series)
    app.command("heatmap")(heatmap)
    app.command("trace")(trace)
