"""orbit snapshots: functions that are kept loaded."""

from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, when
from nova.cli.session import Session, command

Version = Annotated[int | None, typer.Option("--version", metavar="N", help="Which version.", show_default=False)]

COLUMNS = (
    Column("function", "function"),
    Column("version", "version"),
    Column("status", "status"),
    Column("hits", "hits"),
    Column("MB", "memory_mb"),
    Column("created", when("created_at")),
    Column("reason", "reason"),
    Column("node", "node", wide=True),
)


@command
def list_snapshots(
    session: Session,
    function: Annotated[str | None, typer.Option("--function", help="Only this function's.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What is kept loaded, and what cannot be."""
    page = lists.fetch(session.client, "snapshot.list", {}, {"function": function}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="function", empty="no snapshots")


@command
def create(session: Session, function: Name, version: Version = None) -> None:
    """Load a function once more and keep it."""
    found = session.client.call("snapshot.create", {"name": function}, {"version": version})
    if session.out.for_people:
        session.out.done(f"a snapshot of version {found['version']} of {function} is {found['status']}")
    else:
        session.out.item(found, name="function")


@command
def delete(session: Session, function: Name, version: Version = None) -> None:
    """Keep a function loaded no longer."""
    session.client.call("snapshot.delete", {"name": function}, {"version": version})
    session.out.done(f"deleted the snapshots of {function}")


def register(app: typer.Typer) -> None:
    snapshots = typer.Typer(no_args_is_help=True, help="Functions that are kept loaded.")
    snapshots.command("list")(list_snapshots)
    snapshots.command("create")(create)
    snapshots.command("delete")(delete)
    app.add_typer(snapshots, name="snapshots")
