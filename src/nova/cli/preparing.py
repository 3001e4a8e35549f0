"""orbit images, orbit runtimes prepare: what containers and machines of a runtime start from."""

import time
from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.output import Column
from nova.cli.progress import Activity
from nova.cli.session import CliError, Session, command
from nova.client import Json

_ASK_EVERY_S = 0.5

COLUMNS = (
    Column("runtime", "runtime"),
    Column("version", "version"),
    Column("form", "form"),
    Column("status", "status"),
    Column("MB", "size_mb", right=True),
    Column("detail", "detail"),
    Column("digest", "digest", wide=True),
    Column("node", "node", wide=True),
)


@command
def list_images(session: Session, limit: lists.Limit = None, everything: lists.All = False) -> None:
    """The images of the answering node, those that are being made and those that could not be."""
    page = lists.fetch(session.client, "image.list", limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="runtime", empty="no images")


@command
def prepare(
    session: Session,
    runtime: Annotated[str, typer.Argument(metavar="ID")],
    backend: Annotated[str, typer.Option("--backend", metavar="NAME", help="docker, firecracker or qemu.")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Until the image is there.")] = True,
) -> None:
    """Make the image that a backend needs for a runtime, on the node that answers."""
    image = session.client.call("runtime.prepare", {"id": runtime}, body={"backend": backend})
    if wait:
        with Activity(session.out.error, quiet=session.out.quiet) as activity:
            image = _follow(session, image, activity)
    if session.out.for_people:
        session.out.done(f"the {image['form']} image of {image['runtime']} on {image['node']} is {image['status']}")
    else:
        session.out.item(image, name="runtime")


def _follow(session: Session, image: Json, activity: Activity) -> Json:
    """Its end: ready. Raises CliError with the reason when it could not be made."""
    step = None
    while image["status"] == "building":
        if image["detail"] != step:
            step = image["detail"]
            activity.step(f"{image['runtime']}, {image['form']}: {step}")
        time.sleep(_ASK_EVERY_S)
        image = _now(session, image)
    if image["status"] == "failed":
        raise CliError(f"the image could not be made: {image['detail']}")
    return image


def _now(session: Session, image: Json) -> Json:
    wanted = [image[name] for name in ("runtime", "form", "digest")]
    found: list[Json] = lists.fetch(session.client, "image.list", everything=True)["items"]
    for one in found:
        if [one[name] for name in ("runtime", "form", "digest")] == wanted:
            return one
    raise CliError(f"the node that answers now ({image['node']} did before) knows nothing of it")


def register(app: typer.Typer) -> None:
    images = typer.Typer(no_args_is_help=True, help="What containers and machines start from.")
    images.command("list")(list_images)
    app.add_typer(images, name="images")
