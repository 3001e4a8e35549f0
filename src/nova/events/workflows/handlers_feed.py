"""What happened in a run, as a feed tells it: made of what its nodes have come to since one last looked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from nova.events.workflows.handlers_views import ENDED, duration_ms, failure, run_view
from nova.http.sse import Batch, Event
from nova.store.db import Row

_SKIPPED = ("skipped", "pending")


@dataclass(frozen=True, slots=True)
class _Known:
    """What was told of a node, or of one item of a map."""

    status: str
    attempt: int
    started_at: datetime | None
    finished_at: datetime | None
    compensation: str | None


class Feed:
    """One reader's. A change that was overtaken by another before one looked is told as far as it left a time behind.

    The last event of a batch has the run's revision as its id, those before it the revision that was told before: whoever goes
    on from any id misses nothing.
    """

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self._nodes: dict[tuple[str, int], _Known] = {}
        self._status: str | None = None

    def batch(self, run: Row, changes: Sequence[Row], now: datetime) -> Batch | None:
        """What is new of the nodes, and of the run while it has not ended; None when nothing is."""
        found = [*self._of_run(run), *(event for row in changes for event in self._of_node(row, now))]
        if changes:
            before, self.revision = self.revision, changes[-1]["revision"]
        else:
            before = self.revision
        if not found:
            return None
        found.sort(key=_order)
        ids = [before] * (len(found) - 1) + [self.revision]
        return Batch([Event(data, kind, str(no)) for (_, kind, data), no in zip(found, ids, strict=True)])

    def end(self, run: Row) -> Batch:
        """Of a run that has ended."""
        last = Event(self._run_data(run, run["status"], run["finished_at"]), "run", str(self.revision))
        return Batch([last, Event(run_view(run), "end", str(self.revision))])

    def _of_run(self, run: Row) -> Iterator[tuple[datetime, str, Any]]:
        if self._status is None and self.revision == 0 and run["started_at"] is not None:
            yield run["started_at"], "run", self._run_data(run, "running", run["started_at"])
            self._status = "running"
        if run["status"] not in (*ENDED, self._status):
            at = run["started_at"] or run["created_at"]
            yield at, "run", self._run_data(run, run["status"], None)
            self._status = run["status"]

    def _run_data(self, run: Row, status: str, at: datetime | None) -> dict[str, Any]:
        return {"at": at, "status": status, "error": failure(run["error"]) if status in ENDED else None}

    def _of_node(self, row: Row, now: datetime) -> Iterator[tuple[datetime, str, Any]]:
        key, status = (row["node_key"], row["item"]), row["status"]
        known = self._nodes.get(key)
        started, finished = row["started_at"], row["finished_at"]
        self._nodes[key] = _Known(status, row["attempt"], started, finished, row["compensation"])
        begun = started is not None and (known is None or known.started_at != started)
        if begun and finished not in (None, started) and status not in _SKIPPED:
            yield started, "node", _data(row, "running", started)
        if known is None or (known.status, known.attempt, known.finished_at) != (status, row["attempt"], finished):
            at = finished or started or now
            yield at, "node", _data(row, status, at)
        if row["compensation"] is not None and (known is None or known.compensation != row["compensation"]):
            at = row["compensated_at"] or now
            yield at, "node", _data(row, status, at, compensation=row["compensation"])


def _order(event: tuple[datetime, str, Any]) -> tuple[datetime, int]:
    """By time; of one moment the run comes first, and what ended before what began by that."""
    at, kind, data = event
    return at, 0 if kind == "run" else 2 if data["status"] in ("running", "ready", "waiting") else 1


def _data(row: Row, status: str, at: datetime, *, compensation: str | None = None) -> dict[str, Any]:
    """``compensation``: the event is about that."""
    ended = status == row["status"] and row["finished_at"] is not None
    error = row["compensation_error"] if compensation else row["error"] if ended else None
    return {
        "at": at,
        "node_key": row["node_key"],
        "item": None if row["item"] < 0 else row["item"],
        "status": status,
        "attempt": row["attempt"],
        "duration_ms": duration_ms(row["started_at"], row["finished_at"]) if ended else None,
        "error": failure(error),
        "compensation": compensation,
    }
