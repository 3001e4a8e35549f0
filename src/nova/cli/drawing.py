"""A run of a workflow on the terminal: each node with its state and its times."""

from collections.abc import Iterable, Iterator
from datetime import datetime

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from nova.cli.output import cell
from nova.client import Json

ENDED = ("succeeded", "failed", "cancelled", "timed_out")
_MARKS = {
    "pending": ("·", "dim"),
    "ready": ("·", "yellow"),
    "running": ("▶", "cyan"),
    "waiting": ("◷", "yellow"),
    "paused": ("‖", "yellow"),
    "compensating": ("↺", "yellow"),
    "succeeded": ("✔", "green"),
    "failed": ("✘", "red"),
    "timed_out": ("✘", "red"),
    "skipped": ("↷", "dim"),
    "cancelled": ("■", "yellow"),
}
_BAR = 24


def run(found: Json, *, wide: bool = False) -> RenderableType:
    """The run's line, and one for each of its nodes in the order of the definition."""
    return Group(_head(found), _nodes(found["nodes"], wide=wide), *_ending(found))


def _head(found: Json) -> Text:
    mark, style = _MARKS[found["status"]]
    name = found["run_id"] or found["id"]
    line = Text.assemble(
        (f"{mark} ", style),
        (f"{found['workflow']} v{found['version']}", "bold"),
        f"  {name}  ",
        (found["status"], style),
    )
    if found["duration_ms"] is not None:
        line.append(f"  {duration(found['duration_ms'])}", style="dim")
    return line


def _nodes(nodes: Iterable[Json], *, wide: bool) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    for _ in range(5):
        table.add_column(overflow="fold")
    for node in nodes:
        mark, style = _MARKS[node["status"]]
        key = Text.assemble((f"  {mark} ", style), (node["node_key"], "dim" if node["status"] == "skipped" else ""))
        took = duration(node["duration_ms"]) if node["duration_ms"] is not None else ""
        table.add_row(key, Text(node["node_type"], style="dim"), Text(node["status"], style=style), took, _remark(node))
        if wide:
            for attempt in node["attempts"]:
                error = attempt["error"]
                table.add_row(
                    Text(f"      attempt {attempt['no']}", style="dim"),
                    Text(attempt["purpose"], style="dim"),
                    Text("failed" if error else "succeeded", style="dim"),
                    duration(attempt["duration_ms"]),
                    Text(f"{error['type']}: {error['message']}" if error else "", style="dim"),
                )
    return table


def _remark(node: Json) -> Text:
    """What is special about a node at this moment."""
    parts: list[Text] = []
    if items := node["items"]:
        parts.append(_bar(items))
    if node["attempt"] > 1:
        parts.append(Text(f"attempt {node['attempt']}", style="yellow"))
    if node["status"] == "waiting":
        if node["approval_id"]:
            parts.append(Text(f"approval {node['approval_id']}", style="yellow"))
        if node["waits_until"]:
            parts.append(Text(f"until {_clock(node['waits_until'])}", style="dim"))
    if node["child_run_id"]:
        parts.append(Text(f"run {node['child_run_id']}", style="dim"))
    if node["compensation"]:
        undone = node["compensation"] == "succeeded"
        parts.append(Text("undone" if undone else "could not be undone", style="yellow" if undone else "red"))
    if error := node["error"]:
        parts.append(Text(f"{error['type']}: {error['message']}", style="red"))
    return Text("  ").join(parts)


def _bar(items: Json) -> Text:
    done, total = items["succeeded"] + items["failed"], items["total"]
    filled = min(_BAR, _BAR * done // total) if total else 0
    line = Text.assemble(("━" * filled, "green"), ("━" * (_BAR - filled), "dim"), f" {done}/{total or '?'}")
    if items["failed"]:
        line.append(f", {items['failed']} failed", style="red")
    return line


def _ending(found: Json) -> Iterator[RenderableType]:
    if error := found["error"]:
        where = f" at {error['node_key']}" if error["node_key"] else ""
        yield Text(f"{error['type']}{where}: {error['message']}", style="red")
    elif found["status"] == "succeeded" and found["output"] is not None:
        yield Text.assemble(("output  ", "bold"), cell(found["output"]))


def duration(milliseconds: float) -> str:
    """``850 ms``, ``2.5 s``, ``3 min 20 s``."""
    if milliseconds < 1000:
        return f"{milliseconds:.0f} ms"
    seconds = milliseconds / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def _clock(text: str) -> str:
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")
