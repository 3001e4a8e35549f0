"""orbit describe: one function on one screen, and why it cannot be called when it cannot."""

from collections.abc import Callable

import typer
from rich.text import Text

from nova.cli.functions import Name
from nova.cli.output import Column, cell, when
from nova.cli.session import Session, command
from nova.client import Json

_COLOURS = {"warm": "green", "cold": "green", "not invokable": "red"}


@command
def describe(session: Session, name: Name) -> None:
    """Whether a function can be called, why not if it cannot, and how it is set up."""
    readiness = session.client.call("function.readiness", {"name": name})
    function = session.client.call("function.get", {"name": name})
    aliases = session.client.call("alias.list", {"name": name})["items"]
    if not session.out.for_people:
        session.out.data({"readiness": readiness, "function": function, "aliases": aliases})
        return
    session.out.pairs((column.title, column.of(readiness)) for column in _standing(readiness))
    session.out.line("")
    session.out.pairs((column.title, column.of(function)) for column in _set_up(session, function, aliases))


def _standing(readiness: Json) -> list[Column]:
    shown = [Column("state", lambda r: Text(r["state"], style=_COLOURS[r["state"]]))]
    for title, members, colour in (("why", "reasons", "red"), ("note", "warnings", "yellow")):
        shown += [Column(title, _told(reason, colour)) for reason in readiness[members]]
    if readiness["here"] is not None:
        shown.append(Column("instances", lambda r: _instances(r["here"])))
        shown.append(Column("backend", lambda r: r["here"]["backend"]))
    return shown


def _told(reason: Json, colour: str) -> Callable[[Json], Text]:
    field = f" ({reason['field']})" if reason["field"] else ""
    text = Text.assemble((reason["code"], colour), f"{field}: {reason['detail']}")
    return lambda _readiness: text


def _instances(here: Json) -> str:
    parts = [f"{here[state]} {state}" for state in ("ready", "busy", "booting") if here[state]]
    if here["waiting"]:
        parts.append(f"{here['waiting']} calls waiting")
    return ", ".join(parts) or "none; the next call starts one"


def _set_up(session: Session, function: Json, aliases: list[Json]) -> list[Column]:
    base = session.server.rstrip("/")
    limits = function["limits"]
    shown = [
        Column("function", "name"),
        Column("version", "version"),
        Column("runtime", lambda f: f"{f['runtime']}, {f['handler']}"),
        Column("mode", lambda f: f"{f['mode']}, {f['instance_concurrency']} at once in an instance"),
        Column("limits", lambda f: f"{f['memory_mb']} MiB, {f['timeout_s']} s, {_said(limits)}"),
        Column("instances", lambda f: f"{f['min_replicas']} to {f['max_replicas'] or 'what the node holds'}"),
        Column("updated", when("updated_at")),
        Column("invoke", lambda f: base + f["urls"]["invoke"]),
    ]
    if function["urls"]["function"]:
        shown.append(Column("url", lambda f: base + f["urls"]["function"]))
    shown += [Column(f"alias {alias['name']}", _fixed(_leads_to(alias))) for alias in aliases]
    return shown


def _fixed(text: str) -> Callable[[Json], Text]:
    return lambda _function: cell(text)


def _said(limits: Json) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in limits.items() if isinstance(value, int | float) and value)


def _leads_to(alias: Json) -> str:
    if alias["version"]:
        return f"version {alias['version']}"
    return ", ".join(f"version {version}: {weight:g} %" for version, weight in alias["traffic_split"].items())


def register(app: typer.Typer) -> None:
    app.command("describe")(describe)
