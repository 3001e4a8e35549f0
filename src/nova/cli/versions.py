"""orbit versions and orbit aliases."""

from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, Output, status, when
from nova.cli.rollouts import Sticky, sticky_of
from nova.cli.session import CliError, Session, command
from nova.client import ApiError, Json

Number = Annotated[int, typer.Argument(min=1, help="The version's number.", show_default=False)]
AliasName = Annotated[str, typer.Argument(metavar="ALIAS", help="The alias.", show_default=False)]
Version = Annotated[int | None, typer.Option("--version", min=1, help="Point it at one version.")]
Weight = Annotated[str | None, typer.Option("--weight", metavar="V=PCT,…", help="Spread it: 3=90,4=10.")]
Match = Annotated[
    list[str] | None,
    typer.Option(
        "--match", metavar="BY:NAME=VALUE:V", help="header:X-Beta=1:4 or query:beta=1:4; several times. - for none."
    ),
]
Description = Annotated[str | None, typer.Option("--description")]

COLUMNS = (
    Column("version", "version", right=True),
    Column("live", lambda v: "live" if v["live"] else ""),
    Column("aliases", "aliases"),
    Column("build", status("compile_status")),
    Column("created", when("created_at")),
    Column("by", "created_by"),
    Column("runtime", "runtime", wide=True),
    Column("handler", "handler", wide=True),
    Column("code", lambda v: v["code_hash"][:19], wide=True),
    Column("description", "description"),
)

ALIAS_COLUMNS = (
    Column("name", "name"),
    Column("version", lambda a: a["version"] or _split(a)),
    Column("updated", when("updated_at")),
    Column("description", "description"),
)


def _split(alias: Json) -> str:
    return ", ".join(f"{version}={weight:g}" for version, weight in (alias["traffic_split"] or {}).items())


@command
def list_versions(session: Session, name: Name, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Versions, newest first."""
    page = lists.fetch(session.client, "version.list", {"name": name}, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="version")


@command
def get_version(session: Session, name: Name, version: Number) -> None:
    """One version: its frozen configuration and its files."""
    session.out.item(session.client.call("version.get", {"name": name, "version": version}), name="version")


@command
def publish(session: Session, name: Name, description: Description = None) -> None:
    """Freeze the function as it is now; says the same number when nothing changed."""
    body = {} if description is None else {"description": description}
    version = session.client.call("version.publish", {"name": name}, body=body)
    if session.out.for_people:
        session.out.done(f"{name} version {version['version']}")
    else:
        session.out.item(version, name="version")


@command
def activate(session: Session, name: Name, version: Number) -> None:
    """Make a version live, with the settings it recorded."""
    function = session.client.call("version.activate", {"name": name, "version": version})
    if session.out.for_people:
        session.out.done(f"{name}: version {version} is live")
    else:
        session.out.item(function)


@command
def diff(
    session: Session, name: Name, version: Number, other: Annotated[int, typer.Argument(min=1, help="And this one.")]
) -> None:
    """What changed from one version to another."""
    found = session.client.call("version.diff", {"name": name, "version": version, "other": other})
    if not session.out.for_people:
        session.out.data(found)
        return
    if not found["changes"] and not found["files"]:
        session.out.note("no difference")
    if found["changes"]:
        session.out.table(found["changes"], (Column("field", "field"), Column("from", "from"), Column("to", "to")))
    for file in found["files"]:
        _print_diff(session.out, file)


def _print_diff(out: Output, file: Json) -> None:
    out.console.print(f"{file['change']} {file['path']}", style="bold", markup=False)
    for line in (file["unified_diff"] or "").splitlines():
        style = {"+": "green", "-": "red", "@": "cyan"}.get(line[:1], "")
        out.console.print(line, style=style, markup=False)


@command
def delete_version(session: Session, name: Name, version: Number) -> None:
    """Delete a version that nothing uses."""
    session.confirm(f"Delete version {version} of {name}?")
    session.client.call("version.delete", {"name": name, "version": version})
    session.out.done(f"deleted version {version} of {name}")


@command
def list_aliases(session: Session, name: Name, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Aliases by name."""
    page = lists.fetch(session.client, "alias.list", {"name": name}, limit=limit, everything=everything)
    session.out.items(page, ALIAS_COLUMNS, empty="no aliases")


@command
def get_alias(session: Session, name: Name, alias: AliasName) -> None:
    """One alias."""
    session.out.item(session.client.call("alias.get", {"name": name, "alias": alias}))


@command
def create_alias(
    session: Session,
    name: Name,
    alias: AliasName,
    version: Version = None,
    weight: Weight = None,
    sticky: Sticky = None,
    match: Match = None,
    description: Description = None,
) -> None:
    """Create an alias for one version, or for several by weight."""
    body = _target(version, weight, sticky, match, description)
    _shown(session, session.client.call("alias.create", {"name": name}, body={"name": alias, **body}))


@command
def set_alias(
    session: Session,
    name: Name,
    alias: AliasName,
    version: Version = None,
    weight: Weight = None,
    sticky: Sticky = None,
    match: Match = None,
    description: Description = None,
) -> None:
    """Point an alias elsewhere; it is created if it is not there."""
    body = _target(version, weight, sticky, match, description)
    try:
        answer = session.client.call("alias.patch", {"name": name, "alias": alias}, body=body)
    except ApiError as exc:
        if exc.status != 404 or not ("version" in body or "traffic_split" in body):
            raise
        answer = session.client.call("alias.create", {"name": name}, body={"name": alias, **body})
    _shown(session, answer)


def _shown(session: Session, alias: Json) -> None:
    if session.out.for_people:
        session.out.done(f"{alias['name']} → {alias['version'] or _split(alias)}")
    else:
        session.out.item(alias)


def _target(
    version: int | None, weight: str | None, sticky: str | None, match: list[str] | None, description: str | None
) -> Json:
    if version is not None and weight is not None:
        raise CliError("say one of --version and --weight", 2)
    body: Json = {}
    if version is not None:
        body["version"] = version
    if weight is not None:
        body["traffic_split"] = _weights(weight)
    if sticky is not None:
        body["sticky"] = sticky_of(sticky)
    if match is not None:
        body["match"] = [] if match == ["-"] else [_rule(text) for text in match]
    if description is not None:
        body["description"] = description
    if not body:
        raise CliError("say --version, --weight, --sticky, --match or --description", 2)
    return body


def _rule(text: str) -> Json:
    by, _, rest = text.partition(":")
    condition, _, version = rest.rpartition(":")
    name, equals, value = condition.partition("=")
    if not equals or not version.isdigit():
        raise CliError(f"--match: {text!r} is not of the form header:X-Beta=1:4", 2)
    return {"by": by, "name": name, "value": value, "version": int(version)}


def _weights(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in text.split(","):
        version, equals, weight = part.strip().partition("=")
        try:
            if not equals or version in found:
                raise ValueError
            found[version] = float(weight)
        except ValueError:
            raise CliError(f"--weight: {text!r} is not of the form 3=90,4=10", 2) from None
    return found


@command
def delete_alias(session: Session, name: Name, alias: AliasName) -> None:
    """Delete an alias."""
    session.confirm(f"Delete the alias {alias} of {name}?")
    session.client.call("alias.delete", {"name": name, "alias": alias})
    session.out.done(f"deleted the alias {alias} of {name}")


def register(app: typer.Typer) -> None:
    versions = typer.Typer(no_args_is_help=True, help="Immutable versions of a function.")
    versions.command("list")(list_versions)
    versions.command("get")(get_version)
    versions.command("publish")(publish)
    versions.command("activate")(activate)
    versions.command("diff")(diff)
    versions.command("delete")(delete_version)
    app.add_typer(versions, name="versions")
    aliases = typer.Typer(no_args_is_help=True, help="Names for versions, with traffic split.")
    aliases.command("list")(list_aliases)
    aliases.command("get")(get_alias)
    aliases.command("create")(create_alias)
    aliases.command("set")(set_alias)
    aliases.command("delete")(delete_alias)
    app.add_typer(aliases, name="aliases")
