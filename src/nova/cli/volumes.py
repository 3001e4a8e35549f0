"""orbit volumes: folders that outlive the instances that mount them."""

from typing import Annotated, Any

import typer

from nova.cli import lists
from nova.cli.functions import Name
from nova.cli.output import Column, when
from nova.cli.session import CliError, Session, command

Volume = Annotated[str, typer.Argument(metavar="VOLUME", help="The volume.", show_default=False)]
Size = Annotated[int, typer.Option("--size", min=1, metavar="MB", help="Size in MiB, at most 10240.")]
NewSize = Annotated[int | None, typer.Option("--size", min=1, metavar="MB", help="Grow to so many MiB.")]

COLUMNS = (
    Column("name", "name"),
    Column("size", lambda volume: f"{volume['size_mb']} MiB", right=True),
    Column("used", lambda volume: f"{volume['used_mb']:g} MiB", right=True),
    Column("shared", "shared"),
    Column("node", "node"),
    Column("mounted by", "mounted_by"),
    Column("created", when("created_at"), wide=True),
    Column("description", "description", wide=True),
)
MOUNTED = (Column("path", "path"), Column("volume", "volume"), Column("read only", "read_only"))


@command
def create(
    session: Session,
    volume: Volume,
    size: Size,
    shared: Annotated[bool, typer.Option("--shared", help="Several instances may write at once.")] = False,
    description: Annotated[str, typer.Option("--description")] = "",
) -> None:
    """Create a volume."""
    body = {"name": volume, "size_mb": size, "shared": shared, "description": description}
    made = session.client.call("volume.create", body=body)
    if session.out.for_people:
        session.out.done(f"created {volume}: {size} MiB")
    else:
        session.out.item(made)


@command
def list_volumes(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """Every volume."""
    page = lists.fetch(session.client, "volume.list", limit=limit, everything=everything)
    session.out.items(page, COLUMNS, empty="no volumes")


@command
def get(session: Session, volume: Volume) -> None:
    """One volume."""
    session.out.item(session.client.call("volume.get", {"volume": volume}))


@command
def update(
    session: Session,
    volume: Volume,
    size: NewSize = None,
    description: Annotated[str | None, typer.Option("--description")] = None,
) -> None:
    """Let a volume grow, or describe it."""
    body = {name: value for name, value in (("size_mb", size), ("description", description)) if value is not None}
    if not body:
        raise CliError("give --size or --description", 2)
    session.out.item(session.client.call("volume.patch", {"volume": volume}, body=body))


@command
def delete(session: Session, volume: Volume) -> None:
    """Delete a volume with its files. What is mounted stays."""
    session.confirm(f"Delete the volume {volume} with its files?")
    session.client.call("volume.delete", {"volume": volume})
    session.out.done(f"deleted {volume}")


@command
def mount(
    session: Session,
    function: Name,
    mounts: Annotated[
        list[str] | None,
        typer.Argument(metavar="[VOLUME:PATH[:ro]]…", help="All of them, such as data:/mnt/data.", show_default=False),
    ] = None,
    publish_only: Annotated[bool, typer.Option("--publish", help="Make the version, do not activate it.")] = False,
) -> None:
    """Set the volumes that a function mounts; none takes all away."""
    body: dict[str, Any] = {"mounts": [_mount(text) for text in mounts or []]}
    if publish_only:
        body["deploy"] = "publish"
    made = session.client.call("function.set_mounts", {"name": function}, body=body)
    if session.out.for_people:
        session.out.done(f"{function} version {made['version']} mounts {len(made['mounts'])} volumes")
    else:
        session.out.item(made, name="version")


@command
def mounted(session: Session, function: Name) -> None:
    """The volumes that a function mounts."""
    found = session.client.call("function.mounts", {"name": function})
    if session.out.for_people:
        session.out.items({"items": found["mounts"]}, MOUNTED, empty=f"{function} mounts no volumes")
    else:
        session.out.item(found, name="version")


def _mount(text: str) -> dict[str, Any]:
    volume, _, place = text.partition(":")
    path, _, mode = place.partition(":")
    if not volume or not path or mode not in ("", "ro", "rw"):
        raise CliError(f"{text!r}: a mount is VOLUME:PATH or VOLUME:PATH:ro", 2)
    return {"volume": volume, "path": path, "read_only": mode == "ro"}


def register(app: typer.Typer) -> None:
    volumes = typer.Typer(no_args_is_help=True, help="Folders that outlive the instances that mount them.")
    volumes.command("create")(create)
    volumes.command("list")(list_volumes)
    volumes.command("get")(get)
    volumes.command("update")(update)
    volumes.command("delete")(delete)
    volumes.command("mount")(mount)
    volumes.command("mounted")(mounted)
    app.add_typer(volumes, name="volumes")
