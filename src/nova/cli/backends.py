"""orbit backends: where functions can run."""

from collections.abc import Callable

import typer

from nova.cli.output import Column
from nova.cli.session import Session, command
from nova.client import Json

_SHORT = {
    "memory": "mem",
    "network_rules": "network",
    "read_only_root": "root",
    "net_io": "bandwidth",
    "disk_io": "drives",
}


def _enforced(level: str) -> Callable[[Json], str]:
    def shown(backend: Json) -> str:
        return " ".join(_SHORT.get(name, name) for name, held in backend["enforces"].items() if held == level)

    return shown


def _can(backend: Json) -> str:
    return " ".join(what for what in ("snapshot", "template", "reload", "layers", "volumes") if backend[what])


COLUMNS = (
    Column("name", "name"),
    Column("available", lambda backend: "yes" if backend["available"] else "no"),
    Column("rank", "rank", right=True),
    Column("isolation", "isolation"),
    Column("can", _can),
    Column("softly", _enforced("soft")),
    Column("not held", lambda backend: _enforced("no")(backend) if backend["available"] else ""),
    Column("reason", "reason"),
    Column("held", _enforced("hard"), wide=True),
    Column(
        "runtimes", lambda backend: "all" if backend["runtimes"] is None else ", ".join(backend["runtimes"]), wide=True
    ),
)


@command
def list_backends(session: Session) -> None:
    """Every backend, strongest first, with what it holds and why one is not available."""
    found = session.client.call("backend.list")
    session.out.items(found, COLUMNS, name="name", empty="no backends")
    if session.out.for_people:
        session.out.done(f"functions that name no backend: {found['default_backend']}")


def register(app: typer.Typer) -> None:
    backends = typer.Typer(no_args_is_help=True, help="Where functions can run.")
    backends.command("list")(list_backends)
    app.add_typer(backends, name="backends")
