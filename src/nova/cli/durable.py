"""orbit durable: executions that outlive their instances."""

import json
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, status, when
from nova.cli.session import CliError, Session, command

MAX_WAIT_S = 60.0
"""The longest that the server keeps one request."""

Id = Annotated[str, typer.Argument(metavar="ID", help="Of the execution.")]
CallbackId = Annotated[str, typer.Argument(metavar="CALLBACK", help="Shown by steps while it is waited for.")]
Payload = Annotated[str, typer.Option("-d", "--data", metavar="JSON", help="What it carries.")]
Wait = Annotated[
    float, typer.Option("--wait", metavar="SECONDS", min=0, max=MAX_WAIT_S, help="Until it has ended, at most this.")
]

COLUMNS = (
    Column("begun", when("created_at")),
    Column("status", status("status")),
    Column("steps", "steps", right=True),
    Column("goes on", when("wake_at")),
    Column("ended", when("ended_at")),
    Column("name", "name"),
    Column("id", "id"),
    Column("version", "version", right=True, wide=True),
)
STEP_COLUMNS = (
    Column("seq", "seq", right=True),
    Column("kind", "kind"),
    Column("name", "name"),
    Column("status", status("status")),
    Column("attempt", "attempt", right=True),
    Column("ms", "duration_ms", right=True),
    Column("goes on", when("wake_at")),
    Column("callback", "callback_id"),
    Column("output", lambda step: None if step["output"] is None else json.dumps(step["output"])[:80], wide=True),
    Column("error", lambda step: step["error"] and f"{step['error']['type']}: {step['error']['message']}"),
    Column("id", "id", wide=True),
)


@command
def start(
    session: Session,
    function: Name,
    data: Payload = "{}",
    name: Annotated[str | None, typer.Option("--name", help="A second start with it is the first one.")] = None,
    qualifier: Annotated[str | None, typer.Option("--qualifier", help="A version or an alias.")] = None,
    timeout: Annotated[int | None, typer.Option("--timeout", metavar="SECONDS", help="It fails after so long.")] = None,
    wait: Wait = 0,
) -> None:
    """Begin an execution of a durable function."""
    given = {"input": _json(data), "execution_id": name, "qualifier": qualifier, "timeout_s": timeout}
    body = {name: value for name, value in given.items() if value is not None}
    begun = session.client.call("function.invoke_durable", {"name": function}, {"wait_s": wait or None}, body)
    if session.out.for_people:
        session.out.done(f"{begun['status']}: {begun['execution_id']}")
    else:
        session.out.item(begun, name="execution_id")


@command
def list_executions(
    session: Session,
    function: Name,
    only: Annotated[
        str | None,
        typer.Option("--status", metavar="running,suspended,completed,failed,cancelled", help="Only these."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", help="Only the one that was begun with it.")] = None,
    since: Annotated[str | None, typer.Option("--since", metavar="AGO", help="Not older: 30s, 10m, 2h, 7d.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """Executions of a function, newest first."""
    query = {"status": only, "name": name, "since": lists.since(since)}
    path = {"name": function}
    page = lists.fetch(session.client, "function.durable", path, query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no executions")


@command
def get(session: Session, execution: Id, wait: Wait = 0) -> None:
    """One execution with its input and, once it has ended, what it ended with."""
    session.out.item(session.client.call("durable.get", {"id": execution}, {"wait_s": wait or None}), name="id")


@command
def steps(session: Session, execution: Id, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """What an execution has recorded."""
    page = lists.fetch(session.client, "durable.steps", {"id": execution}, limit=limit, everything=everything)
    session.out.items(page, STEP_COLUMNS, name="id", empty="nothing is recorded")


@command
def send(
    session: Session,
    execution: Id,
    event: Annotated[str, typer.Argument(metavar="EVENT", help="Its name.")],
    data: Payload = "null",
) -> None:
    """Send an event to an execution."""
    session.client.call("durable.send", {"id": execution}, body={"name": event, "payload": _json(data)})
    _said(session, f"sent {event}")


@command
def cancel(
    session: Session, execution: Id, reason: Annotated[str, typer.Option("--reason", help="Kept as its error.")] = ""
) -> None:
    """End an execution, also while it runs."""
    session.client.call("durable.cancel", {"id": execution}, body={"reason": reason})
    _said(session, f"cancelled {execution}")


@command
def retry(session: Session, execution: Id) -> None:
    """Go on with an execution that failed, from the first operation that did."""
    session.client.call("durable.retry", {"id": execution})
    _said(session, f"goes on: {execution}")


@command
def succeed(session: Session, callback: CallbackId, data: Payload = "null") -> None:
    """Complete a callback."""
    session.client.call("durable.callback_succeed", {"id": callback}, body={"payload": _json(data)})
    _said(session, "completed")


@command
def fail(
    session: Session,
    callback: CallbackId,
    message: Annotated[str, typer.Option("--message", help="What the handler is told.")] = "",
    kind: Annotated[str, typer.Option("--type", help="The kind of error.")] = "Error",
) -> None:
    """Let a callback fail."""
    session.client.call("durable.callback_fail", {"id": callback}, body={"type": kind, "message": message})
    _said(session, "failed")


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as exc:
        raise CliError(f"--data: {exc}", 2) from None


def _said(session: Session, done: str) -> None:
    if session.out.for_people:
        session.out.done(done)


def register(app: typer.Typer) -> None:
    durable = typer.Typer(no_args_is_help=True, help="Executions of durable functions.")
    for name, function in {
        "start": start,
        "list": list_executions,
        "get": get,
        "steps": steps,
        "send": send,
        "cancel": cancel,
        "retry": retry,
        "succeed": succeed,
        "fail": fail,
    }.items():
        durable.command(name)(function)
    app.add_typer(durable, name="durable")
