"""The side of a run: it begins, records operations, and ends or waits.

A run is owned by whoever holds its work; the work's fence is the run's ``epoch``. What a run writes carries its epoch and is
refused when another run has begun since, or the execution has ended.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from nova.domain.durable import EVENT, MAX_OPERATIONS, Execution, Operation, Target, Update, non_deterministic, stale
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.store import work
from nova.store.db import Connection, Database, Row
from nova.store.durable_rows import CALL_KIND, execution_of, operation_of, settle
from nova.store.durable_rows import sql as _sql
from nova.store.lines import Prepared
from nova.store.listen import Channel

BEGIN = Prepared.of("nova_durable_begin", _sql.begin)
END = Prepared.of("nova_durable_end", _sql.end_run)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """What one run writes. ``seen``: the revision of the operations that it knows."""

    execution: str
    function_id: str
    epoch: int
    seen: int
    scope: Scope
    updates: tuple[Update, ...]


@dataclass(frozen=True, slots=True)
class Written:
    """``rev`` is what the run has seen by now; ``changed`` every operation that is not as it knew it."""

    rev: int
    changed: tuple[Operation, ...]


@dataclass(frozen=True, slots=True)
class Begun:
    """A run: the execution as it is now, and its first operations. ``more``: there are others."""

    execution: Execution
    expired: bool
    operations: tuple[Operation, ...]
    more: bool


class DurableRunStore:
    """What runs write. Each checkpoint is a transaction, or shares one with others."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def checkpoint(self, given: Sequence[Checkpoint]) -> list[Written | NovaError]:
        """Each is written as a whole or refused. All of them are one transaction."""
        if len(given) == 1 and (done := await self._one(given[0])) is not None:
            return [done]
        if not any(update.type in ("CHAINED_INVOKE", "CALLBACK") for one in given for update in one.updates):
            async with self._db.connection() as conn:  # one statement is a transaction
                return await self._checkpoint(conn, given)
        async with self._db.transaction() as conn:
            return await self._checkpoint(conn, given)

    async def _one(self, one: Checkpoint) -> Written | None:
        """The commonest checkpoint by far, at half the price: one step that is done. None: it is not that, after all."""
        if len(one.updates) != 1 or (update := one.updates[0]).status != "SUCCEEDED":
            return None
        row = await self._db.one(
            _sql.checkpoint_one,
            most=MAX_OPERATIONS,
            execution=one.execution,
            function=one.function_id,
            epoch=one.epoch,
            id=update.id,
            parent=update.parent_id,
            name=update.name,
            type=update.type,
            sub_type=update.sub_type,
            status=update.status,
            tries=update.tries,
            result=update.result,
            replay=update.replay,
            started_ms=update.started_ms,
        )
        if row is None:
            return None
        if row["rev"] - 1 > one.seen:
            others = await self._db.fetch(_sql.changed, execution=one.execution, after=one.seen)
            return Written(row["rev"], tuple(operation_of(other) for other in others))
        operation = Operation(
            id=update.id,
            type=update.type,
            status=update.status,
            started_at=row["started_at"],
            parent_id=update.parent_id,
            name=update.name,
            sub_type=update.sub_type,
            attempt=row["attempt"],
            result=update.result,
            replay=update.replay,
            ended_at=row["ended_at"],
            place=row["place"],
        )
        return Written(row["rev"], (operation,))

    async def _checkpoint(self, conn: Connection, given: Sequence[Checkpoint]) -> list[Written | NovaError]:
        flat = [(one, number, update) for one in given for number, update in enumerate(one.updates)]
        calls = {(one.execution, u.id): new_id() for one, _, u in flat if u.type == "CHAINED_INVOKE"}
        rows = await conn.fetch(
            _sql.checkpoint,
            most=MAX_OPERATIONS,
            executions=[one.execution for one in given],
            functions=[one.function_id for one in given],
            epochs=[one.epoch for one in given],
            progress=[any(update.progress for update in one.updates) for one in given],
            u_execution=[one.execution for one, _, _ in flat],
            u_ord=[number for _, number, _ in flat],
            u_id=[u.id for _, _, u in flat],
            u_parent=[u.parent_id for _, _, u in flat],
            u_name=[u.name for _, _, u in flat],
            u_type=[u.type for _, _, u in flat],
            u_sub_type=[u.sub_type for _, _, u in flat],
            u_status=[u.status for _, _, u in flat],
            u_tries=[u.tries for _, _, u in flat],
            u_result=[u.result for _, _, u in flat],
            u_error=[u.error for _, _, u in flat],
            u_replay=[u.replay for _, _, u in flat],
            u_wake_s=[u.wake_s for _, _, u in flat],
            u_timeout_s=[u.timeout_s for _, _, u in flat],
            u_heartbeat_s=[u.heartbeat_s for _, _, u in flat],
            u_call=[calls.get((one.execution, u.id)) for one, _, u in flat],
            u_started_ms=[u.started_ms for _, _, u in flat],
            u_ended=[u.ended for _, _, u in flat],
        )
        by_execution: defaultdict[str, list[Row]] = defaultdict(list)
        for row in rows:
            by_execution[str(row["execution"])].append(row)
        return [await self._written(conn, one, by_execution[one.execution], calls) for one in given]

    async def _written(
        self, conn: Connection, one: Checkpoint, rows: Sequence[Row], calls: dict[tuple[str, str], str]
    ) -> Written | NovaError:
        first = rows[0]
        if first["rev"] is None:
            return _refusal(first)
        changed = {row["id"]: operation_of(row) for row in rows if row["id"] is not None}
        known = {update.id: update for update in one.updates}
        again = False
        for operation in changed.values():
            update = known[operation.id]
            if operation.type == "CHAINED_INVOKE" and update.target is not None:
                call = calls[one.execution, operation.id]
                await _enqueue_call(conn, one, operation.id, call, update.target, update.payload)
            elif operation.type == "CALLBACK" and operation.sub_type == EVENT:
                again |= await _take_event(conn, one.execution, operation, first["rev"])
        if again or first["rev"] - 1 > one.seen or len(changed) < len(one.updates):
            others = await conn.fetch(_sql.changed, execution=one.execution, after=one.seen)
            changed |= {row["id"]: operation_of(row) for row in others}
        return Written(first["rev"], tuple(sorted(changed.values(), key=lambda operation: operation.place)))

    async def ripen(self, execution_id: str, function_id: str, epoch: int) -> None:
        """Let time do its work on the operations of a run's execution; the next checkpoint tells of it."""
        async with self._db.transaction() as conn:
            row = await conn.one(_sql.own, id=execution_id, epoch=epoch)
            if row is not None and str(row["function_id"]) == function_id:
                await conn.one(_sql.stir, id=execution_id)
                await conn.run(_sql.ripen, execution=execution_id)

    async def operations(
        self, execution_id: str, function_id: str, epoch: int, *, after: int, limit: int
    ) -> list[Operation]:
        """Of the execution that a run owns; none when it does not any more."""
        rows = await self._db.fetch(
            _sql.operations, execution=execution_id, function_id=function_id, epoch=epoch, after=after, limit=limit
        )
        return [operation_of(row) for row in rows]

    async def begin(self, execution_id: str, epoch: int, limit: int) -> Begun | None:
        """Take an execution for a run. None: it has ended, or a later run owns it."""
        begun = await self._db.quick(BEGIN, id=execution_id, epoch=epoch)
        if not begun:
            return None
        row = begun[0]
        if row["steps"] == 0:  # only runs record, and none has
            return Begun(execution_of(row), row["expired"], (), more=False)
        # what comes in between these statements is told to the run by its next checkpoint
        await self._db.run(_sql.ripen, execution=execution_id)
        rows = await self._db.fetch(_sql.first_page, execution=execution_id, limit=limit + 1)
        shown = tuple(operation_of(row) for row in rows[:limit])
        return Begun(execution_of(row), row["expired"], shown, len(rows) > limit)

    async def end(
        self, execution: Execution, work: tuple[str, str, int], status: str, output: str | None, error: str | None
    ) -> bool:
        """The end of an execution by its run, and of its work (id, owner, fence); False: another run owns it."""
        work_id, owner, fence = work
        ended = await self._db.quick(
            END,
            work=work_id,
            owner=owner,
            fence=fence,
            epoch=execution.epoch,
            status=status,
            output=output,
            error=error,
            channel=Channel.DURABLE.value,
        )
        if ended and self._db.on_commit is not None:
            self._db.on_commit(Channel.DURABLE, execution.id)
        return bool(ended)


# In a transaction of the run's owner


async def own(conn: Connection, execution_id: str, epoch: int) -> tuple[Execution, bool, bool] | None:
    """The execution, whether its time is up, and whether something came in since the run began; None: not ours any more."""
    row = await conn.one(_sql.own, id=execution_id, epoch=epoch)
    return None if row is None else (execution_of(row), row["expired"], row["fresh"])


async def next_wake(conn: Connection, execution_id: str) -> tuple[float | None, bool]:
    """Seconds until time changes an operation, and whether anything is awaited."""
    row = await conn.one(_sql.next_wake, execution=execution_id)
    assert row is not None
    return row["seconds"], row["awaited"]


async def suspend(conn: Connection, execution_id: str, delay_s: float | None) -> float:
    """Seconds until the execution has something to do, its own end included."""
    row = await conn.one(_sql.suspend, id=execution_id, delay_s=delay_s)
    assert row is not None
    return max(0.0, float(row["seconds"]))


async def forgive(conn: Connection, execution_id: str) -> None:
    """The run did not begin: it does not count as lost."""
    await conn.run(_sql.forgive, id=execution_id)


async def _take_event(conn: Connection, execution_id: str, operation: Operation, rev: int) -> bool:
    row = await conn.one(_sql.take_event, execution=execution_id, name=operation.name)
    if row is None:
        return False
    return await settle(conn, execution_id, operation.id, "CALLBACK", "SUCCEEDED", row["payload"], None, rev)


async def _enqueue_call(
    conn: Connection, one: Checkpoint, operation_id: str, call_id: str, target: Target, payload: str | None
) -> None:
    told = {
        "execution": one.execution,
        "operation": operation_id,
        "function": target.function,
        "qualifier": target.qualifier,
        "payload": payload,
    }
    await work.enqueue(conn, CALL_KIND, one.scope, call_id, told)


def _refusal(row: Row) -> NovaError:
    if not row["ours"]:
        return stale()
    if row["differs"]:
        return non_deterministic(
            "another operation is recorded at this place; the code has to do the same things again"
        )
    return NovaError("quota_exceeded", f"an execution has at most {MAX_OPERATIONS} operations", status=413)
