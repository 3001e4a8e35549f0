"""Lists of every kind: one page, a number of items, or everything."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from nova.cli.session import CliError
from nova.client import Client, Json, Value
from nova.config import seconds

Limit = Annotated[int | None, typer.Option("--limit", min=1, max=500, help="At most this many (100).")]
All = Annotated[bool, typer.Option("--all", help="Everything, page by page.")]
PathParams = Mapping[str, str | int]


def since(ago: str | None) -> str | None:
    """``10m`` ago as a time of the API."""
    if ago is None:
        return None
    try:
        return (datetime.now(UTC) - timedelta(seconds=seconds(ago))).isoformat()
    except (ValueError, OverflowError) as exc:
        raise CliError(f"--since: {exc}", 2) from None


def fetch(
    client: Client,
    op: str,
    path: PathParams | None = None,
    query: Mapping[str, Value] | None = None,
    *,
    limit: int | None = None,
    everything: bool = False,
) -> Json:
    """A list in the form the API gives one page: ``items`` and ``next_cursor``."""
    wanted = {**(query or {}), "limit": 500 if everything and limit is None else limit}
    if not everything:
        return client.call(op, path, wanted)
    items = [item for page in client.pages(op, path, wanted) for item in page["items"]]
    return {"items": items, "next_cursor": None}
