"""What the server commands share: their options, their settings, and how they end."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

import psycopg
import typer
from rich.console import Console
from rich.text import Text

from nova.config_sources import ConfigError, Loaded, load
from nova.errors import NovaError, as_refusal
from nova.telemetry import LogFormat

DataDir = Annotated[Path | None, typer.Option("--data-dir", metavar="DIR", help="What is kept; default ~/.nova.")]
Dsn = Annotated[
    str | None, typer.Option("--pg-dsn", metavar="DSN", help="Your PostgreSQL; default: one of Nova's own.")
]
Config = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", envvar="NOVA_CONFIG", help="Settings in YAML or JSON.")
]
Logs = Annotated[LogFormat | None, typer.Option("--log-format", help="How the server's own log looks.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="Allow an address that others reach although authentication is off.")
]


def load_settings(file: Path | None, flags: Mapping[str, Any]) -> Loaded:
    """The settings of a server started here; ends the program when they are not acceptable."""
    try:
        return load(flags=dict(flags), file=file)
    except ConfigError as exc:
        fail(str(exc), 2)


def end(work: Callable[[], int]) -> NoReturn:
    """Do the work and leave with its exit code; what can go wrong in an ordinary way is one line, not a traceback."""
    try:
        code = work()
    except ConfigError as exc:
        fail(str(exc), 2)
    except NovaError as exc:
        fail(exc.detail, 2 if exc.status == 400 else 1)
    except (RuntimeError, OSError, psycopg.OperationalError) as exc:
        refusal = as_refusal(exc)
        fail(refusal.detail if refusal else str(exc).strip(), 1)
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def fail(message: str, code: int) -> NoReturn:
    Console(stderr=True, highlight=False).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(code)
