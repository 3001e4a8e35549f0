"""``nova runtime``: images of runtimes on this node, for containers and machines."""

import json
from dataclasses import asdict
from enum import StrEnum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from nova.cli.progress import Activity
from nova.cli.running import Config, DataDir, end, load_settings
from nova.config import Settings
from nova.execution.images import Form, Images
from nova.execution.images.images import FORMS
from nova.runtimes.registry import Runtimes

runtime = typer.Typer(no_args_is_help=True, help="Images of runtimes on this node.")


class FormOption(StrEnum):
    TAR = "tar"
    EXT4 = "ext4"
    ALL = "all"


class Shape(StrEnum):
    TABLE = "table"
    JSON = "json"


def images_of(settings: Settings) -> Images:
    return Images(settings.images_dir, Runtimes())


@runtime.command()
def build(
    runtime: Annotated[str, typer.Argument(metavar="ID", help="python, node, custom, provided; or all.")],
    form: Annotated[
        FormOption, typer.Option("--form", help="tar: for container engines; ext4: for machines.")
    ] = FormOption.ALL,
    data_dir: DataDir = None,
    config: Config = None,
) -> None:
    """Make the image of a runtime, from Debian packages. What is there already is left alone."""
    settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
    forms = tuple(one for one in FORMS if form in (one, FormOption.ALL))
    end(lambda: _build(settings, runtime, forms))


def _build(settings: Settings, name: str, forms: tuple[Form, ...]) -> int:
    images = images_of(settings)
    names = [name] if name != "all" else packaged()
    console = Console(stderr=True, highlight=False)
    for one in names:
        for form in forms:
            with Activity(console) as activity:
                activity.step(f"image of {one}, {form}")
                made = images.build_now(one, form, activity.step)
            typer.echo(str(made.path))
    return 0


def packaged() -> list[str]:
    """The runtimes of this host that can have an image."""
    return [one.id for one in Runtimes().list() if one.toolchain is not None and one.manifest.image is not None]


@runtime.command("list")
def list_images(
    data_dir: DataDir = None,
    config: Config = None,
    output: Annotated[Shape, typer.Option("--output", "-o")] = Shape.TABLE,
) -> None:
    """Every runtime, and its images on this node; an image of older parts is marked so."""
    settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
    end(lambda: _list(settings, output))


@runtime.command()
def clean(data_dir: DataDir = None, config: Config = None) -> None:
    """Remove images of older parts. What runs from one goes on: its files are open."""
    settings = load_settings(config, {"daemon.data_dir": data_dir}).settings
    end(lambda: _clean(settings))


def _clean(settings: Settings) -> int:
    for place in images_of(settings).clean():
        typer.echo(f"removed {place}")
    return 0


def _list(settings: Settings, output: Shape) -> int:
    rows = described(images_of(settings))
    if output is Shape.JSON:
        typer.echo(json.dumps(rows, indent=2))
        return 0
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("RUNTIME", "VERSION", "FORM", "STANDING", "MB", "FILE"):
        table.add_column(title, overflow="fold")
    for row in rows:
        size = str(row["size_bytes"] >> 20) if row["size_bytes"] else ""
        table.add_row(row["runtime"], row["version"], row["form"], row["standing"], size, row["path"])
    Console(highlight=False).print(table)
    return 0


def described(images: Images) -> list[dict[str, Any]]:
    """What is there and what could be: ``current``, ``outdated`` (of older parts, used by nothing new), ``missing``."""
    found = list(images.list())
    rows = []
    for name in packaged():
        digest = images.digest(name)
        for form in FORMS:
            there = [image for image in found if (image.runtime, image.form) == (name, form)]
            for image in there:
                standing = "current" if image.digest == digest else "outdated"
                rows.append({**asdict(image), "path": str(image.path), "standing": standing})
            if not any(image.digest == digest for image in there):
                empty = {"runtime": name, "version": "", "digest": digest, "path": "", "form": form, "size_bytes": 0}
                rows.append({**empty, "standing": "missing"})
    return rows
