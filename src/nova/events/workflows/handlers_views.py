"""Runs as the API shows them."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from math import ceil
from typing import Any

from nova.api import runs as api
from nova.store.db import Row
from nova.store.workflow_views import Inside

ENDED = frozenset({"succeeded", "failed", "cancelled", "timed_out"})
_SAME = ("id", "version", "status", "caller", "source", "parent_run_id", "forked_from", "deadline_at")
_TIMES = ("created_at", "started_at", "finished_at")


def run_members(row: Row) -> dict[str, Any]:
    """The members of :class:`nova.api.runs.Run`."""
    return {
        **{name: row[name] for name in (*_SAME, *_TIMES)},
        "workflow": row["workflow_name"],
        "run_id": row["key"],
        "error": failure(row["error"]),
        "duration_ms": duration_ms(row["started_at"], row["finished_at"]),
    }


def run_view(row: Row) -> api.Run:
    return api.Run(**run_members(row))


def run_detail(row: Row, inside: Inside, *, payloads: bool) -> api.RunDetail:
    """``payloads``: inputs and outputs may be seen."""
    rows = {found["node_key"]: found for found in inside.nodes}
    attempts = _by_key(inside.attempts)
    progress = {found["node_key"]: found for found in inside.progress}
    nodes = []
    for path, defined in outline(inside.definition):
        found, node_type = rows.get(path), defined["node_type"]
        more: dict[str, Any] = {"child_run_id": inside.children.get(path), "approval_id": inside.approvals.get(path)}
        if node_type == "map":
            more["items"] = _items(found, progress.get(path), defined.get("batch_size", 1))
        if found is None:
            nodes.append(_pending(path, node_type))
        else:
            nodes.append(node_view(found, node_type, attempts.get(path, ()), payloads=payloads, **more))
    seen = {"input": row["input"], "output": row["output"]} if payloads else {}
    return api.RunDetail(**run_members(row), nodes=nodes, **seen)


def node_view(
    row: Row,
    node_type: str,
    attempts: Iterable[Row],
    *,
    payloads: bool,
    child_run_id: str | None = None,
    approval_id: str | None = None,
    items: api.MapItems | None = None,
) -> api.Node:
    item = row["item"]
    return api.Node(
        node_key=row["node_key"],
        node_type=node_type,
        item=None if item < 0 else item,
        status=row["status"],
        attempt=row["attempt"],
        started_at=row["started_at"],
        finished_at=row["finished_at"],
        duration_ms=duration_ms(row["started_at"], row["finished_at"]),
        waits_until=row["wake_at"],
        child_run_id=child_run_id,
        approval_id=approval_id,
        error=failure(row["error"]),
        compensation=row["compensation"],
        compensation_error=failure(row["compensation_error"]),
        items=items,
        attempts=[_attempt(found) for found in attempts],
        input=row["input"] if payloads else None,
        output=row["output"] if payloads else None,
    )


def outline(definition: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Path and definition of each node, those inside of a parallel node after it."""
    for node in definition["nodes"]:
        path = prefix + node["node_key"]
        yield path, node
        if node["node_type"] == "parallel":
            for number, branch in enumerate(node["branches"]):
                yield from outline(branch, f"{path}/{number}/")


def map_at(definition: Mapping[str, Any], path: str, prefix: str = "") -> str | None:
    """What the map with this path does with each item, as a node type; None when there is no such map."""
    for node in definition["nodes"]:
        here = prefix + node["node_key"]
        if here == path:
            return str(node["do"]["node_type"]) if node["node_type"] == "map" else None
        if node["node_type"] == "parallel" and path.startswith(here + "/"):
            number, slash, _ = path.removeprefix(here + "/").partition("/")
            if slash and number.isdecimal() and int(number) < len(node["branches"]):
                return map_at(node["branches"][int(number)], path, f"{here}/{number}/")
    return None


def approval_view(row: Row, *, payloads: bool) -> api.Approval:
    return api.Approval(
        id=row["id"],
        workflow=row["workflow_name"],
        run=row["run_id"],
        node_key=row["node_key"],
        title=row["title"],
        form_schema=row["form_schema"],
        approvers=row["approvers"],
        status=row["status"],
        decided_by=row["decided_by"],
        decided_at=row["decided_at"],
        comment=row["comment"] or "",
        input=row["input"] if payloads else None,
        payload=row["payload"] if payloads else None,
        expires_at=row["expires_at"],
        created_at=row["created_at"],
    )


def failure(error: Mapping[str, Any] | None) -> api.Failure | None:
    if error is None:
        return None
    return api.Failure(type=error["type"], message=error["message"], node_key=error.get("node_key"))


def duration_ms(start: datetime | None, end: datetime | None) -> float | None:
    """None while it lasts, and when it never began."""
    return None if start is None or end is None else round((end - start).total_seconds() * 1000, 3)


def _attempt(row: Row) -> api.NodeAttempt:
    return api.NodeAttempt(
        no=row["attempt"],
        generation=row["generation"],
        purpose=row["purpose"],
        started_at=row["started_at"],
        duration_ms=row["duration_ms"],
        request_id=row["request_id"],
        error=failure(row["error"]),
    )


def _pending(path: str, node_type: str) -> api.Node:
    """A node that nothing has happened to yet."""
    return api.Node(
        node_key=path,
        node_type=node_type,
        item=None,
        status="pending",
        attempt=0,
        started_at=None,
        finished_at=None,
        duration_ms=None,
        waits_until=None,
        child_run_id=None,
        approval_id=None,
        error=None,
        compensation=None,
        compensation_error=None,
        items=None,
        attempts=[],
    )


def _items(node: Row | None, progress: Row | None, batch_size: int) -> api.MapItems:
    """``total`` is known once the map has its items: they are its input."""
    counts = progress or {"succeeded": 0, "failed": 0, "running": 0}
    items = None if node is None else node["input"]
    return api.MapItems(
        total=ceil(len(items) / batch_size) if isinstance(items, list) else None,
        succeeded=counts["succeeded"],
        failed=counts["failed"],
        running=counts["running"],
    )


def _by_key(rows: Iterable[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["node_key"], []).append(row)
    return found
