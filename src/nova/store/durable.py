"""Durable executions in PostgreSQL: how they begin, and what people and other functions do to them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from nova.domain.durable import EVENT, MAX_EVENTS, Execution, Operation
from nova.domain.identity import Scope
from nova.errors import NovaError, not_found
from nova.ids import new_id
from nova.store import work
from nova.store.db import Connection, Database, Row
from nova.store.durable_rows import KIND, execution_of, of_scope, operation_of, settle
from nova.store.durable_rows import sql as _sql
from nova.store.lines import Prepared
from nova.store.listen import Channel

_START = Prepared.of("nova_durable_start", _sql.start)
GET = Prepared.of("nova_durable_get", _sql.get)


@dataclass(frozen=True, slots=True)
class NewExecution:
    """``name`` None: nobody will ask for it again. ``life_s``: seconds until it has to have ended."""

    id: str
    scope: Scope
    function_id: str
    function: str
    version: int
    name: str | None
    input: str
    caller: str
    source: str
    chain: tuple[str, ...]
    traceparent: str | None
    tracestate: str | None
    life_s: float


@dataclass(frozen=True, slots=True)
class Taken:
    """An execution whose first run is the taker's, with the lease of its work under fence 1."""

    work_id: str
    execution: Execution


class DurableStore:
    def __init__(self, db: Database) -> None:
        self._db = db

    # Beginning

    async def start(
        self, new: Sequence[NewExecution], taker: work.Taker = work.NOBODY
    ) -> tuple[list[Execution | str | NovaError], list[Taken]]:
        """For each: its id when it began; the execution that had its name before. And those that are ``taker``'s."""
        names: dict[tuple[Scope, str, str], str] = {}
        for one in new:  # two of one name in one batch: the first of them begins
            if one.name is not None:
                names.setdefault((one.scope, one.function_id, one.name), one.id)
        begin = [one for one in new if one.name is None or names[one.scope, one.function_id, one.name] == one.id]
        rows = await self._db.quick(
            _START,
            kind=KIND,
            ids=[one.id for one in begin],
            work_ids=[new_id() for _ in begin],
            tenants=[one.scope.tenant for one in begin],
            namespaces=[one.scope.namespace for one in begin],
            function_ids=[one.function_id for one in begin],
            functions=[one.function for one in begin],
            versions=[one.version for one in begin],
            names=[one.name for one in begin],
            inputs=[one.input for one in begin],
            callers=[one.caller for one in begin],
            sources=[one.source for one in begin],
            chains=[">".join(one.chain) for one in begin],
            traceparents=[one.traceparent for one in begin],
            tracestates=[one.tracestate for one in begin],
            lives=[one.life_s for one in begin],
            takes=[int(number < taker.most) for number in range(len(begin))],
            owner=taker.owner,
            lease_s=taker.lease_s,
        )
        made = {str(row["id"]) for row in rows}
        answers = [one.id if one.id in made else await self._named(one) for one in new]
        return answers, [Taken(str(row["work_id"]), execution_of(row)) for row in rows if row["taken"]]

    async def _named(self, new: NewExecution) -> Execution | NovaError:
        row = await self._db.one(_sql.named, **of_scope(new.scope), function_id=new.function_id, name=new.name)
        if row is None:  # it was removed in this moment
            return NovaError("dependency_unavailable", "the execution could not be begun; try again", retry_after_s=1)
        if row["input"] != new.input:
            return NovaError("idempotency_conflict", f"execution {new.name!r} began with another input")
        return execution_of(row)

    async def get(self, scope: Scope, execution_id: str) -> Execution:
        """Raises ``not_found``."""
        rows = await self._db.quick(GET, **of_scope(scope), id=execution_id)
        if not rows:
            raise no_execution(execution_id)
        return execution_of(rows[0])

    # Outsiders

    async def event(self, scope: Scope, execution_id: str, name: str, payload: str) -> None:
        """Complete the oldest wait for ``name``, or keep the event until one comes. Raises ``not_found``, ``invalid_state``,
        ``queue_full``."""
        async with self._db.transaction() as conn:
            rev = await _stirred(conn, scope, execution_id)
            row = await conn.one(_sql.waiting, execution=execution_id, sub_type=EVENT, name=name)
            if row is not None:
                await settle(conn, execution_id, row["id"], "CALLBACK", "SUCCEEDED", payload, None, rev)
                await wake(conn, scope, execution_id)
                return
            kept = await conn.one(
                _sql.keep_event, execution=execution_id, id=new_id(), name=name, payload=payload, most=MAX_EVENTS
            )
            if kept is None:
                raise NovaError("queue_full", f"the execution has {MAX_EVENTS} events that it did not ask for yet")

    async def settle_callback(
        self, scope: Scope, execution_id: str, operation_id: str, status: str, result: str | None, error: str | None
    ) -> None:
        """Raises ``not_found``; ``invalid_state`` when the callback or its execution has ended."""
        async with self._db.transaction() as conn:
            rev = await _stirred(conn, scope, execution_id)
            if not await settle(conn, execution_id, operation_id, "CALLBACK", status, result, error, rev):
                raise await _no_callback(conn, execution_id, operation_id)
            await wake(conn, scope, execution_id)

    async def beat(self, scope: Scope, execution_id: str, operation_id: str) -> None:
        """Raises as :meth:`settle_callback`."""
        async with self._db.transaction() as conn:
            await _stirred(conn, scope, execution_id)
            if not await conn.run(_sql.beat, execution=execution_id, id=operation_id):
                raise await _no_callback(conn, execution_id, operation_id)

    async def cancel(self, scope: Scope, execution_id: str, error: str) -> None:
        """Whoever runs it loses it at once. Raises ``not_found``, ``invalid_state``."""
        async with self._db.transaction() as conn:
            row = await conn.one(_sql.lock, **of_scope(scope), id=execution_id)
            _open(row, execution_id)
            await conn.run(_sql.end, id=execution_id, status="cancelled", output=None, error=error)
            await work.withdraw(conn, KIND, scope, execution_id)
            await conn.notify(Channel.DURABLE, execution_id)

    async def retry(self, scope: Scope, execution_id: str, life_s: float) -> None:
        """Go on with an execution that failed or was cancelled, from the first operation that failed.

        Raises ``not_found``, ``invalid_state``.
        """
        async with self._db.transaction() as conn:
            row = await conn.one(_sql.lock, **of_scope(scope), id=execution_id)
            if row is None:
                raise no_execution(execution_id)
            if row["status"] not in ("failed", "cancelled"):
                raise NovaError("invalid_state", f"the execution is {row['status']}; only what failed can be retried")
            await conn.run(_sql.forget_from, execution=execution_id)
            opened = await conn.one(_sql.reopen, id=execution_id, life_s=life_s)
            assert opened is not None
            await conn.run(
                _sql.requeue, work_id=new_id(), kind=KIND, **of_scope(scope), id=execution_id, epoch=opened["epoch"]
            )
            await conn.notify(work.CHANNEL, json.dumps({"kind": KIND}))

    async def page(
        self,
        scope: Scope,
        function: str,
        statuses: Sequence[str] | None,
        name: str | None,
        since: datetime | None,
        *,
        before: str | None,
        limit: int,
    ) -> list[Row]:
        return await self._db.fetch(
            _sql.page,
            **of_scope(scope),
            function=function,
            statuses=None if statuses is None else list(statuses),
            name=name,
            since=since,
            before=before,
            limit=limit,
        )

    async def steps(self, execution_id: str, *, after: int, limit: int) -> list[Operation]:
        rows = await self._db.fetch(_sql.steps, execution=execution_id, after=after, limit=limit)
        return [operation_of(row) for row in rows]

    async def sweep(self, before: datetime, limit: int) -> int:
        """Remove executions that ended before, with their operations; how many."""
        return await self._db.run(_sql.sweep, before=before, limit=limit)


async def settle_call(
    conn: Connection, scope: Scope, execution_id: str, operation_id: str, result: str | None, error: str | None
) -> None:
    """What a called function answered."""
    row = await conn.one(_sql.stir, id=execution_id)
    if row is not None:
        status = "SUCCEEDED" if error is None else "FAILED"
        await settle(conn, execution_id, operation_id, "CHAINED_INVOKE", status, result, error, row["rev"])
        await wake(conn, scope, execution_id)


async def wake(conn: Connection, scope: Scope, execution_id: str) -> None:
    """There is something to do before its time."""
    await conn.run(_sql.wake, **of_scope(scope), kind=KIND, id=execution_id)
    await conn.notify(work.CHANNEL, json.dumps({"kind": KIND}))


async def _stirred(conn: Connection, scope: Scope, execution_id: str) -> int:
    _open(await conn.one(_sql.lock, **of_scope(scope), id=execution_id), execution_id)
    row = await conn.one(_sql.stir, id=execution_id)
    assert row is not None
    rev: int = row["rev"]
    return rev


async def _no_callback(conn: Connection, execution_id: str, operation_id: str) -> NovaError:
    row = await conn.one(_sql.operation, execution=execution_id, id=operation_id)
    if row is None or row["type"] != "CALLBACK":
        return NovaError("not_found", "there is no such callback")
    if row["status"] == "STARTED":
        return NovaError("invalid_state", "the callback has no heartbeat")
    return NovaError("invalid_state", f"the callback has ended: {row['status'].lower()}")


def no_execution(execution_id: str) -> NovaError:
    return not_found("durable execution", execution_id)


def _open(row: Row | None, execution_id: str) -> None:
    if row is None:
        raise no_execution(execution_id)
    if row["status"] not in ("running", "suspended"):
        raise NovaError("invalid_state", f"the execution has ended: {row['status']}")
