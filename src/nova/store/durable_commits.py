"""Lone steps of durable functions, each committed by one prepared statement on a connection kept for it.

It is what durable functions do most, and a handler waits for each.
"""

from collections.abc import Callable
from typing import Any, Final

import psycopg
import structlog
from psycopg.pq.abc import PGresult

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.durable import MAX_OPERATIONS
from nova.store.durable_rows import sql
from nova.store.durable_runs import Checkpoint
from nova.store.lines import Lines, Prepared

log = structlog.get_logger(__name__)

_LINES: Final = 2
"""Steps beyond them gather and share a transaction."""
STEP: Final = Prepared.of("nova_step", sql.checkpoint_one)

Done = Callable[[int | None], None]
"""Called in the callback of a socket: it does not raise."""


class StepCommits:
    """Commits steps on connections of its own."""

    def __init__(self, dsn: str, clock: Clock = SYSTEM_CLOCK) -> None:
        self._lines = Lines(dsn, "nova steps", most=_LINES, clock=clock)

    def commit(self, one: Checkpoint, done: Done) -> bool:
        """Begin to commit a lone step that has succeeded; ``done`` hears the new revision of the execution, or None. False, and
        None: write it in the general way, which also tells why it is refused.

        That way is right whatever happened here: an update that is recorded already changes nothing.
        """
        if len(one.updates) != 1 or one.updates[0].status != "SUCCEEDED":
            return False
        try:
            values = STEP.values(_parameters(one))
        except psycopg.DataError:
            return False
        return self._lines.ask(STEP, values, lambda answer: done(_revision(answer)))

    async def close(self) -> None:
        """Whoever waits is told to write in the general way."""
        await self._lines.close()


def _revision(answer: PGresult | psycopg.Error) -> int | None:
    if isinstance(answer, psycopg.Error):
        # The general way will tell whether that is the step's fault.
        log.warning("a durable step was not committed on its own connection", error=str(answer).strip())
        return None
    return int(answer.get_value(0, 0) or 0) if answer.ntuples else None


def _parameters(one: Checkpoint) -> dict[str, Any]:
    update = one.updates[0]
    return {
        "most": MAX_OPERATIONS,
        "execution": one.execution,
        "function": one.function_id,
        "epoch": one.epoch,
        "id": update.id,
        "parent": update.parent_id,
        "name": update.name,
        "type": update.type,
        "sub_type": update.sub_type,
        "status": update.status,
        "tries": update.tries,
        "result": update.result,
        "replay": update.replay,
        "started_ms": update.started_ms,
    }
