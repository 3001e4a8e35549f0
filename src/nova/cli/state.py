"""orbit state: what functions keep between their calls."""

import json
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

Key = Annotated[str, typer.Argument(metavar="KEY", show_default=False)]
Ttl = Annotated[int | None, typer.Option("--ttl", metavar="SECONDS", help="Gone after this time.")]
Expected = Annotated[
    int | None, typer.Option("--expected-version", metavar="N", help="Only over this version; 0: only if new.")
]

COLUMNS = (
    Column("key", "key"),
    Column("bytes", "size"),
    Column("version", "version"),
    Column("updated", when("updated_at")),
    Column("expires", when("expires_at")),
    Column("created", when("created_at"), wide=True),
)


def _shown(session: Session, entry: Json) -> None:
    """The value alone for people; everything for programs."""
    if session.out.for_people:
        session.out.line(json.dumps(entry["value"], ensure_ascii=False))
    else:
        session.out.item(entry, name="key")


def _value(text: str) -> Any:
    """JSON, or the text itself when it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


@command
def get(session: Session, function: Name, key: Key) -> None:
    """The value of a key."""
    _shown(session, session.client.call("state.get", {"name": function}, {"key": key}))


@command
def put(
    session: Session,
    function: Name,
    key: Key,
    value: Annotated[str, typer.Argument(metavar="VALUE", help="JSON; anything else is text.", show_default=False)],
    ttl: Ttl = None,
    expected_version: Expected = None,
) -> None:
    """Set a key."""
    given = {"value": _value(value), "ttl_s": ttl, "expected_version": expected_version}
    body = {name: item for name, item in given.items() if item is not None or name == "value"}
    entry = session.client.call("state.put", {"name": function}, {"key": key}, body=body)
    if session.out.for_people:
        session.out.done(f"{key} has version {entry['version']}")
    else:
        session.out.item(entry, name="key")


@command
def list_keys(
    session: Session,
    function: Name,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Only keys that begin with this.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """The keys, in order."""
    path = {"name": function}
    page = lists.fetch(session.client, "state.get", path, {"prefix": prefix}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="key", empty="no state")


@command
def delete(
    session: Session,
    function: Name,
    key: Annotated[str | None, typer.Argument(metavar="KEY", show_default=False)] = None,
    prefix: Annotated[str | None, typer.Option("--prefix", help="Every key that begins with this instead.")] = None,
    expected_version: Expected = None,
) -> None:
    """Delete a key, or all with a prefix."""
    if (key is None) == (prefix is None):
        raise CliError("give a key or --prefix", 2)
    query = {"key": key, "prefix": prefix, "expected_version": expected_version}
    session.client.call("state.delete", {"name": function}, query)
    session.out.done(f"deleted {key if key is not None else prefix + '…' if prefix else ''}")


@command
def incr(
    session: Session,
    function: Name,
    key: Key,
    by: Annotated[int, typer.Option("--by", help="Add this much.")] = 1,
    ttl: Ttl = None,
) -> None:
    """Add to a number, and show the sum."""
    body = {"by": by} if ttl is None else {"by": by, "ttl_s": ttl}
    _shown(session, session.client.call("state.increment", {"name": function}, {"key": key}, body=body))


def register(app: typer.Typer) -> None:
    state = typer.Typer(no_args_is_help=True, help="What functions keep between their calls.")
    state.command("get")(get)
    state.command("put")(put)
    state.command("list")(list_keys)
    state.command("delete")(delete)
    state.command("incr")(incr)
    app.add_typer(state, name="state")
