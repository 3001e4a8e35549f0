"""orbit nodes: the processes of the platform, for its administrators."""

from typing import Annotated

import typer

from nova.cli import lists
from nova.cli.output import Column, status, when
from nova.cli.session import CliError, Session, command
from nova.client import Json

Which = Annotated[
    str, typer.Argument(metavar="NODE", help="Its id, or its name where that is unique.", show_default=False)
]
State = Annotated[str | None, typer.Option("--state", metavar="active|cordoned|draining|gone")]
OfPlane = Annotated[str | None, typer.Option("--plane", help="zenith, nova, comet, corona, nebula or aurora.")]


def _memory(node: Json) -> str:
    used, total = node["load"]["memory_usage"], node["memory_mb"]
    if total is None:
        return ""
    return f"{total} MiB" if used is None else f"{used * total:.0f} of {total} MiB"


def _cpu(node: Json) -> str:
    used, cores = node["load"]["cpu_usage"], node["cpu_cores"]
    if cores is None:
        return ""
    return f"{cores:g}" if used is None else f"{used * cores:.1f} of {cores:g}"


def _instances(node: Json) -> str:
    return "" if node["active_vms"] is None else f"{node['active_vms']} of {node['max_vms']}"


COLUMNS = (
    Column("name", "name"),
    Column("plane", "plane"),
    Column("state", status("state")),
    Column("address", "address"),
    Column("cores", _cpu, right=True),
    Column("memory", _memory, right=True),
    Column("instances", _instances, right=True),
    Column("running", lambda node: node["load"]["inflight"], right=True),
    Column("waiting", "queue_depth", right=True),
    Column("heartbeat", when("last_heartbeat")),
    Column("version", "version", wide=True),
    Column("arch", "arch", wide=True),
    Column("backends", "backends", wide=True),
    Column("labels", "labels", wide=True),
    Column("started", when("started_at"), wide=True),
    Column("id", "id"),
)
LEADER_COLUMNS = (
    Column("duty", "duty"),
    Column("node", "node"),
    Column("fence", "fence", right=True),
    Column("since", when("acquired_at")),
    Column("until", when("until"), wide=True),
    Column("process", "owner", wide=True),
)


def _find(session: Session, which: str) -> str:
    """The id of a node that is named by its id or its name. Several processes of one host share a name."""
    found = []
    for page in session.client.pages("node.list"):
        for node in page["items"]:
            if node["id"] == which:
                return which
            if node["name"] == which:
                found.append(node)
    if not found:
        raise CliError(f"there is no node {which!r}", 3)
    if len(found) > 1:
        listed = ", ".join(f"{node['id']} ({node['plane']}, {node['state']})" for node in found)
        raise CliError(f"{which!r} is the name of several: {listed}", 2)
    return str(found[0]["id"])


@command
def list_nodes(
    session: Session,
    state: State = None,
    plane: OfPlane = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """The processes of the platform, newest first."""
    query = {"state": state, "plane": plane}
    page = lists.fetch(session.client, "node.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="no nodes")


@command
def get(session: Session, node: Which) -> None:
    """One process, with what it has warm."""
    session.out.item(session.client.call("node.get", {"id": _find(session, node)}), name="id")


def _change(session: Session, node: str, state: str) -> None:
    changed = session.client.call("node.patch", {"id": _find(session, node)}, body={"state": state})
    if session.out.for_people:
        session.out.done(f"{changed['name']} ({changed['plane']}) is {changed['state']}")
    else:
        session.out.item(changed, name="id")


@command
def drain(session: Session, node: Which) -> None:
    """Give it nothing new, so that it can be stopped when what it has is done."""
    _change(session, node, "draining")


@command
def cordon(session: Session, node: Which) -> None:
    """Give it nothing new for now."""
    _change(session, node, "cordoned")


@command
def activate(session: Session, node: Which) -> None:
    """Let it have calls again."""
    _change(session, node, "active")


@command
def delete(session: Session, node: Which) -> None:
    """Forget a process that is gone."""
    node_id = _find(session, node)
    session.client.call("node.delete", {"id": node_id})
    session.out.done(f"deleted {node_id}")


@command
def leaders(session: Session) -> None:
    """Which process is in charge of each duty."""
    session.out.items(session.client.call("cluster.leaders"), LEADER_COLUMNS, name="duty", empty="nobody leads")


def register(app: typer.Typer) -> None:
    nodes = typer.Typer(no_args_is_help=True, help="Processes of the platform.")
    nodes.command("list")(list_nodes)
    nodes.command("get")(get)
    nodes.command("drain")(drain)
    nodes.command("cordon")(cordon)
    nodes.command("activate")(activate)
    nodes.command("delete")(delete)
    nodes.command("leaders")(leaders)
    app.add_typer(nodes, name="nodes")
