"""orbit layers: files that many functions mount."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, when
from nova.cli.project import IGNORE, Project
from nova.cli.session import CliError, Session, command
from nova.client import Json

Layer = Annotated[str, typer.Argument(metavar="LAYER", help="The layer.", show_default=False)]
Number = Annotated[int | None, typer.Option("--version", min=1, metavar="N", help="One version of it.")]
_IGNORED = (".git/", "__pycache__/", "*.pyc", f"/{IGNORE}")
"""What stays behind. Installed packages are what layers are for, so their folders do not."""

COLUMNS = (
    Column("name", "name"),
    Column("version", "version", right=True),
    Column("files", "files", right=True),
    Column("bytes", "size", right=True),
    Column("runtimes", lambda layer: ", ".join(layer["runtimes"]) or "every"),
    Column("created", when("created_at")),
    Column("digest", lambda layer: layer["digest"][:19], wide=True),
    Column("description", "description", wide=True),
)
USERS = (
    Column("function", "function"),
    Column("version", "version", right=True),
    Column("layer", "layer_version", right=True),
    Column("live", "live"),
)
MOUNTED = (
    Column("path", "path"),
    Column("name", "name"),
    Column("version", "version", right=True),
    Column("bytes", "size", right=True),
)


@command
def publish(
    session: Session,
    layer: Layer,
    source: Annotated[Path, typer.Argument(help="A folder, or a zip, tar or tar.gz.", show_default=False)],
    runtime: Annotated[
        list[str] | None, typer.Option("--runtime", help="Only functions of this runtime may mount it; repeatable.")
    ] = None,
    description: Annotated[str, typer.Option("--description")] = "",
) -> None:
    """Publish a version of a layer. What is there already makes no new version."""
    if source.is_dir():
        archive = Project(source, layer, {}, _IGNORED).archive()
    elif source.is_file():
        archive = source.read_bytes()
    else:
        raise CliError(f"{source} is neither a folder nor an archive", 2)
    meta: dict[str, Any] = {"name": layer, "runtimes": runtime or [], "description": description}
    made = session.client.upload("layer.publish", archive, meta=meta, filename="layer")
    _said(session, made, f"{layer}@{made['version']}: {made['files']} files, {made['size']} bytes")


@command
def list_layers(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """The newest version of each layer."""
    page = lists.fetch(session.client, "layer.list", limit=limit, everything=everything)
    session.out.items(page, COLUMNS, empty="no layers")


@command
def get(session: Session, layer: Layer, version: Number = None) -> None:
    """A layer: its newest version, or the one named."""
    if version is None:
        session.out.item(session.client.call("layer.get", {"layer": layer}))
    else:
        session.out.item(session.client.call("layer.version", {"layer": layer, "version": version}))


@command
def functions(session: Session, layer: Layer, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """The versions of functions that mount a layer."""
    page = lists.fetch(session.client, "layer.functions", {"layer": layer}, limit=limit, everything=everything)
    session.out.items(page, USERS, name="function", empty="nothing mounts it")


@command
def delete(session: Session, layer: Layer, version: Number = None) -> None:
    """Delete a layer, or one version of it. What is mounted stays."""
    said = layer if version is None else f"{layer}@{version}"
    session.confirm(f"Delete the layer {said}?")
    if version is None:
        session.client.call("layer.delete", {"layer": layer})
    else:
        session.client.call("layer.delete_version", {"layer": layer, "version": version})
    session.out.done(f"deleted {said}")


@command
def mount(
    session: Session,
    function: Name,
    layers: Annotated[
        list[str] | None, typer.Argument(metavar="[LAYER[@N]]…", help="All of them, in order.", show_default=False)
    ] = None,
    publish_only: Annotated[bool, typer.Option("--publish", help="Make the version, do not activate it.")] = False,
) -> None:
    """Set the layers of a function; none takes all away. Later layers win."""
    body: dict[str, Any] = {"layers": layers or [], **({"deploy": "publish"} if publish_only else {})}
    made = session.client.call("function.set_layers", {"name": function}, body=body)
    _said(session, made, f"{function} version {made['version']} mounts {len(made['layers'])} layers")


@command
def mounted(session: Session, function: Name) -> None:
    """The layers of a function."""
    found = session.client.call("function.layers", {"name": function})
    if session.out.for_people:
        session.out.items({"items": found["layers"]}, MOUNTED, empty=f"{function} has no layers")
    else:
        session.out.item(found, name="version")


def _said(session: Session, made: Json, text: str) -> None:
    if session.out.for_people:
        session.out.done(text)
    else:
        session.out.item(made, name="version")


def register(app: typer.Typer) -> None:
    layers = typer.Typer(no_args_is_help=True, help="Files that many functions mount.")
    layers.command("publish")(publish)
    layers.command("list")(list_layers)
    layers.command("get")(get)
    layers.command("functions")(functions)
    layers.command("delete")(delete)
    layers.command("mount")(mount)
    layers.command("mounted")(mounted)
    app.add_typer(layers, name="layers")
