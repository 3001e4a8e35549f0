"""``nova``: the command line for whoever runs a Nova server.

Exit codes: 0 done, 1 failure, 2 wrong usage or a setting that is not acceptable, 130 interrupted.
"""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from nova import __version__
from nova.cli import doctor as findings
from nova.cli import images, planes, serving, setup
from nova.cli.running import Config, DataDir, Dsn, Insecure, Logs, end, load_settings
from nova.config import KEYS
from nova.config_sources import plain

app = typer.Typer(
    name="nova",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run a Nova server.",
)
config = typer.Typer(no_args_is_help=True, help="Settings, as a server started here would have them.")
app.add_typer(config, name="config")
app.add_typer(images.runtime, name="runtime")
app.add_typer(setup.setup, name="setup")


class Shape(StrEnum):
    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


Http = Annotated[str | None, typer.Option("--http", metavar="ADDR", help="Listen here: 127.0.0.1:9000, :9000.")]
Backend = Annotated[
    str | None, typer.Option("--backend", metavar="NAME", help="Isolation: auto, or the name of a backend.")
]
Input = Annotated[Path | None, typer.Option(metavar="FILE", help="Your own image, CSV or text for the demo.")]


@app.command()
def up(
    http: Http = None,
    data_dir: DataDir = None,
    pg_dsn: Dsn = None,
    config: Config = None,
    backend: Backend = None,
    log_format: Logs = None,
    insecure: Insecure = False,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", min=1, max=32, help="Serve with so many processes.")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="Deploy the examples and call each of them.")] = False,
    demo_input: Input = None,
) -> None:
    """Start the whole platform, and serve until Ctrl-C."""
    loaded = load_settings(
        config,
        {
            "daemon.http_addr": http,
            "daemon.data_dir": data_dir,
            "postgres.dsn": pg_dsn,
            "execution.backend": backend,
            "logging.format": log_format,
            "daemon.workers": workers,
        },
    )
    end(lambda: serving.up(loaded, insecure=insecure, demo=demo or demo_input is not None, demo_input=demo_input))


@app.command()
def demo(input: Input = None, backend: Backend = None, log_format: Logs = None) -> None:
    """Start on a throw-away directory and a free port, deploy and call the examples, end.

    Exit code 1 when a call failed.
    """
    loaded = load_settings(None, {"execution.backend": backend, "logging.format": log_format})
    end(lambda: serving.demo(loaded, input))


app.command("daemon")(planes.daemon)


@app.command()
def doctor(
    http: Http = None,
    data_dir: DataDir = None,
    pg_dsn: Dsn = None,
    config: Config = None,
    output: Annotated[Shape, typer.Option("--output", "-o")] = Shape.TABLE,
) -> None:
    """Look at what Nova needs of this host; exit code 1 when something essential is missing."""
    loaded = load_settings(config, {"daemon.http_addr": http, "daemon.data_dir": data_dir, "postgres.dsn": pg_dsn})
    found = findings.examine(loaded.settings)
    if output is Shape.TABLE:
        Console(highlight=False).print(findings.table(found))
    else:
        _print([finding.as_dict() for finding in found], output)
    raise typer.Exit(1 if any(finding.standing == "missing" for finding in found) else 0)


@app.command()
def migrate(
    pg_dsn: Dsn = None,
    data_dir: DataDir = None,
    config: Config = None,
    check: Annotated[bool, typer.Option("--check", help="Change nothing; exit code 1 when something is due.")] = False,
) -> None:
    """Bring the database's schema up to date. `nova up` does it too."""
    loaded = load_settings(config, {"postgres.dsn": pg_dsn, "daemon.data_dir": data_dir})
    end(lambda: serving.migrate(loaded.settings, check=check))


@config.command("show")
def show(
    file: Config = None,
    output: Annotated[Shape, typer.Option("--output", "-o")] = Shape.TABLE,
    changed: Annotated[bool, typer.Option("--changed", help="Only what is not the default.")] = False,
) -> None:
    """Every setting with its value, where that comes from, and the default; secrets masked.

    What was changed on a running server (orbit config set) is kept in its database and shown by: orbit config list.
    """
    loaded = load_settings(file, {})
    rows = [
        {"key": name, "value": loaded.shown(name), "source": loaded.source(name), "default": plain(key.default)}
        for name, key in KEYS.items()
        if not changed or loaded.source(name) != "default"
    ]
    if output is not Shape.TABLE:
        _print(rows, output)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("KEY", "VALUE", "SOURCE", "DEFAULT"):
        table.add_column(title, overflow="fold")
    for row in rows:
        style = "" if row["source"] == "default" else "bold"
        table.add_row(*(Text(_text(row[name]), style=style) for name in row))
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)


@app.command()
def version() -> None:
    """The version of Nova."""
    typer.echo(__version__)


def _text(value: Any) -> str:
    return value if isinstance(value, str) and value else json.dumps(value)


def _print(rows: list[dict[str, Any]], shape: Shape) -> None:
    if shape is Shape.JSON:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True), nl=False)


def main() -> None:
    app()
