"""orbit runs: what workflows are doing and have done, and how to steer it."""

import time
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.live import Live
from rich.text import Text

from nova.cli import definitions, drawing, lists
from nova.cli.output import Column, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

_REDRAW_S = 0.15
"""Between two looks at a run that is watched: several events of one moment are drawn together."""

Id = Annotated[str, typer.Argument(metavar="RUN", help="Its id.", show_default=False)]
Input = Annotated[
    str | None, typer.Option("--input", "-d", metavar="JSON", help="JSON, @FILE (JSON or YAML), or - for stdin.")
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it live until it has ended.")]
COLUMNS = (
    Column("created", when("created_at")),
    Column("workflow", "workflow"),
    Column("version", "version", right=True),
    Column("status", status("status")),
    Column("took", lambda run: drawing.duration(run["duration_ms"]) if run["duration_ms"] is not None else None),
    Column("error", lambda run: run["error"] and run["error"]["type"]),
    Column("id", "id"),
    Column("name", "run_id", wide=True),
    Column("source", "source", wide=True),
    Column("caller", "caller", wide=True),
)
ITEM_COLUMNS = (
    Column("item", "item", right=True),
    Column("status", status("status")),
    Column("attempt", "attempt", right=True),
    Column("took", lambda node: drawing.duration(node["duration_ms"]) if node["duration_ms"] is not None else None),
    Column("error", lambda node: node["error"] and f"{node['error']['type']}: {node['error']['message']}"),
    Column("output", "output", wide=True),
)


def find(session: Session, run: str) -> Json:
    return session.client.call("run.find", {"id": run})


def path_of(session: Session, run: str) -> dict[str, str]:
    """The path parameters of a run."""
    found = find(session, run)
    return {"name": found["workflow"], "id": found["id"]}


def show(session: Session, found: Json) -> None:
    """A run as people or machines want it."""
    if session.out.for_people:
        session.out.console.print(drawing.run(found, wide=session.out.format == "wide"))
    else:
        session.out.item(found, name="id")


def follow(session: Session, path: dict[str, str]) -> Json:
    """Draw a run until it has ended; on something that is no terminal, one line for each event. The run at its end."""
    found = session.client.call("run.get", path)
    out = session.out
    if not out.for_people or out.quiet or not out.console.is_terminal:
        for event in session.client.events("run.events", path):
            if event.event != "end" and out.for_people and not out.quiet:
                out.line(_line(event.data))
        return session.client.call("run.get", path)
    with Live(drawing.run(found), console=out.console, transient=True, refresh_per_second=10) as live:
        drawn = time.monotonic()
        for event in session.client.events("run.events", path):
            if event.event == "end" or time.monotonic() - drawn >= _REDRAW_S:
                live.update(drawing.run(session.client.call("run.get", path)))
                drawn = time.monotonic()
    return session.client.call("run.get", path)


def finish(session: Session, found: Json) -> None:
    """Show a run that was waited for; its failure is the command's."""
    show(session, found)
    if found["status"] not in ("succeeded", *_UNDER_WAY):
        raise CliError(f"the run {found['status'].replace('_', ' ')}", 7 if found["status"] == "timed_out" else 6)


_UNDER_WAY = ("pending", "running", "paused", "compensating")


def _line(data: Json) -> str:
    """One event in words."""
    where = data.get("node_key") or "run"
    item = f"[{data['item']}]" if data.get("item") is not None else ""
    error = data.get("error")
    more = f"  {error['type']}: {error['message']}" if error else ""
    undone = {"succeeded": "undone", "failed": "could not be undone"}.get(data.get("compensation") or "")
    at = datetime.fromisoformat(data["at"]).astimezone().strftime("%H:%M:%S.%f")[:-3] if data["at"] else " " * 12
    return f"{at}  {where}{item}  {undone or data['status']}{more}"


@command
def list_runs(
    session: Session,
    workflow: Annotated[str | None, typer.Option("--workflow", metavar="NAME", help="Only of this workflow.")] = None,
    only: Annotated[str | None, typer.Option("--status", metavar="running,failed,…", help="Only these.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="AGO", help="Not older: 30s, 10m, 2h, 7d.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Runs, newest first."""
    query = {"workflow": workflow, "status": only, "since": lists.since(since)}
    page = lists.fetch(session.client, "run.all", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no runs")


@command
def get(session: Session, run: Id, watch: Watch = False) -> None:
    """A run with its nodes: states, attempts, times, errors; -o wide shows each attempt."""
    found = find(session, run)
    if watch:
        found = follow(session, {"name": found["workflow"], "id": found["id"]})
    show(session, found)


@command
def items(
    session: Session,
    run: Id,
    node: Annotated[str, typer.Argument(help="The map's node_key.", show_default=False)],
    only: Annotated[str | None, typer.Option("--status", metavar="failed,…", help="Only these.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What a map did for each item."""
    path = {**path_of(session, run), "node": node}
    page = lists.fetch(session.client, "run.items", path, {"status": only}, limit=limit, everything=everything)
    session.out.items(page, ITEM_COLUMNS, name="item", empty="no items")


@command
def tail(session: Session, run: Id) -> None:
    """What happens in a run, from its beginning to its end, as it happens."""
    for event in session.client.events("run.events", path_of(session, run)):
        if not session.out.for_people:
            session.out.data(event.data)
        elif event.event != "end":
            session.out.line(_line(event.data))


@command
def cancel(
    session: Session,
    run: Id,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Kept with the run.")] = "",
    compensate: Annotated[bool, typer.Option("--compensate/--no-compensate", help="Undo what was done.")] = True,
) -> None:
    """End a run, and the calls that it waits for."""
    body = {"reason": reason, "compensate": compensate}
    _steered(session, session.client.call("run.cancel", path_of(session, run), body=body))


@command
def pause(session: Session, run: Id) -> None:
    """Begin no further node; what runs finishes."""
    _steered(session, session.client.call("run.pause", path_of(session, run)))


@command
def resume(session: Session, run: Id) -> None:
    """Go on with a paused run."""
    _steered(session, session.client.call("run.resume", path_of(session, run)))


@command
def retry(
    session: Session,
    run: Id,
    from_: Annotated[str, typer.Option("--from", metavar="NODE", help="failed, start, or a node_key.")] = "failed",
    data: Input = None,
    watch: Watch = False,
) -> None:
    """Go on with a run that has ended; what had succeeded is not done again."""
    path = path_of(session, run)
    found = session.client.call("run.retry", path, body={"from": from_, **_input(data)})
    if watch:
        finish(session, follow(session, path))
    else:
        _steered(session, found)


@command
def fork(
    session: Session,
    run: Id,
    from_: Annotated[str, typer.Option("--from", metavar="NODE", help="start, or a node_key.")] = "start",
    data: Input = None,
    version: Annotated[int | None, typer.Option("--version", min=1, help="Default: the run's own.")] = None,
    watch: Watch = False,
) -> None:
    """A new run that begins at a node with the results of the nodes before it."""
    path = path_of(session, run)
    body: dict[str, Any] = {"from": from_, **_input(data)}
    if version is not None:
        body["version"] = version
    found = session.client.call("run.fork", path, body=body)
    if watch:
        finish(session, follow(session, {**path, "id": found["id"]}))
    else:
        _steered(session, found)


@command
def send(
    session: Session,
    run: Id,
    key: Annotated[str, typer.Argument(help="What the node waits for.", show_default=False)],
    data: Annotated[str, typer.Option("--data", "-d", metavar="JSON", help="The node's output.")] = "{}",
) -> None:
    """Send what a node waits for, or will wait for."""
    body = {"payload": definitions.value(data, "--data")}
    session.client.call("run.send", {**path_of(session, run), "key": key}, body=body)
    session.out.done(f"sent {key}")


def _input(data: str | None) -> Json:
    return {} if data is None else {"input": definitions.value(data, "--input")}


def _steered(session: Session, found: Json) -> None:
    if session.out.for_people:
        session.out.console.print(
            Text.assemble("run ", (found["id"], "bold"), "  ", status("status")(found)), soft_wrap=True
        )
    else:
        session.out.item(found, name="id")


def register(app: typer.Typer) -> None:
    runs = typer.Typer(no_args_is_help=True, help="Runs of workflows.")
    runs.command("list")(list_runs)
    runs.command("get")(get)
    runs.command("items")(items)
    runs.command("tail")(tail)
    runs.command("cancel")(cancel)
    runs.command("pause")(pause)
    runs.command("resume")(resume)
    runs.command("retry")(retry)
    runs.command("fork")(fork)
    runs.command("send")(send)
    app.add_typer(runs, name="runs")
