"""orbit approvals: questions that runs of workflows ask people."""

from typing import Annotated

import typer

from nova.cli import definitions, lists
from nova.cli.output import Column, status, when
from nova.cli.session import Session, command
from nova.client import Json

Id = Annotated[str, typer.Argument(metavar="APPROVAL", help="Its id.", show_default=False)]
Comment = Annotated[str, typer.Option("--comment", metavar="TEXT", help="Kept with the answer.")]
Data = Annotated[
    str | None, typer.Option("--data", "-d", metavar="JSON", help="What the form asks for, for the nodes that follow.")
]
COLUMNS = (
    Column("asked", when("created_at")),
    Column("title", "title"),
    Column("workflow", "workflow"),
    Column("status", status("status")),
    Column("approvers", "approvers"),
    Column("by", "decided_by"),
    Column("until", when("expires_at"), wide=True),
    Column("run", "run", wide=True),
    Column("id", "id"),
)


@command
def list_approvals(
    session: Session,
    only: Annotated[str, typer.Option("--status", metavar="pending|approved|rejected|all")] = "pending",
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="Only of this run.")] = None,
    limit: lists.Limit = None,
    everything: lists.All = False,
) -> None:
    """What waits for an answer."""
    query = {"status": None if only == "all" else only, "run": run}
    page = lists.fetch(session.client, "approval.list", query=query, limit=limit, everything=everything)
    session.out.items(page, COLUMNS, name="id", empty="nothing waits for an answer")


@command
def get(session: Session, approval: Id) -> None:
    """One approval, with the form that its answer fills in."""
    session.out.item(session.client.call("approval.get", {"id": approval}), name="id")


@command
def approve(session: Session, approval: Id, comment: Comment = "", data: Data = None) -> None:
    """Say yes; the run goes on."""
    _decide(session, "approve", approval, comment, data)


@command
def reject(session: Session, approval: Id, comment: Comment = "", data: Data = None) -> None:
    """Say no."""
    _decide(session, "reject", approval, comment, data)


def _decide(session: Session, verb: str, approval: str, comment: str, data: str | None) -> None:
    body: Json = {"comment": comment}
    if data is not None:
        body["payload"] = definitions.value(data, "--data")
    found = session.client.call(f"approval.{verb}", {"id": approval}, body=body)
    if session.out.for_people:
        session.out.done(f"{found['status']}: {found['title']}")
    else:
        session.out.item(found, name="id")


def register(app: typer.Typer) -> None:
    approvals = typer.Typer(no_args_is_help=True, help="Questions that runs of workflows ask people.")
    approvals.command("list")(list_approvals)
    approvals.command("get")(get)
    approvals.command("approve")(approve)
    approvals.command("reject")(reject)
    app.add_typer(approvals, name="approvals")
