"""orbit prewarm and orbit windows: instances before there are calls."""

from typing import Annotated

import typer

from nova.cli.functions import Name
from nova.cli.output import Column, when
from nova.cli.session import Session, command

Replicas = Annotated[int, typer.Argument(min=0, help="At least so many; 0 takes it back.", show_default=False)]
COLUMNS = (
    Column("begins", when("begins_at")),
    Column("ends", when("ends_at")),
    Column("instances", "replicas", right=True),
    Column("name", "name"),
)


@command
def prewarm(
    session: Session,
    name: Name,
    replicas: Replicas,
    qualifier: Annotated[str | None, typer.Option("--qualifier", help="A version or an alias.")] = None,
    ttl: Annotated[
        int | None, typer.Option("--ttl", metavar="SECONDS", min=1, help="For so long; default 300.")
    ] = None,
) -> None:
    """Have instances ready for a while before calls come."""
    given = {"target_replicas": replicas, "qualifier": qualifier, "ttl_s": ttl}
    body = {key: value for key, value in given.items() if value is not None}
    there = session.client.call("function.prewarm", {"name": name}, body=body)
    if session.out.for_people:
        session.out.done(f"{there['ready']} of {there['target']} ready, {there['starting']} starting")
    else:
        session.out.item(there)


@command
def windows(
    session: Session,
    name: Name,
    count: Annotated[int, typer.Option("--count", min=1, max=100, help="How many.")] = 10,
) -> None:
    """How many instances stand ready now, and the next provisioned windows."""
    found = session.client.call("function.provisioned", {"name": name}, {"count": count})
    if session.out.for_people:
        session.out.line(f"{found['replicas']} stand ready now")
        session.out.items({"items": found["windows"]}, COLUMNS, empty="no windows")
    else:
        session.out.data(found)


def register(app: typer.Typer) -> None:
    app.command("prewarm")(prewarm)
    app.command("windows")(windows)
