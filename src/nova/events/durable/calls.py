"""Functions that durable executions call: work of kind ``durable_call``. What they answer becomes the operation's result."""

from collections.abc import Callable
from typing import Final

from nova import payload
from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import CallRequest
from nova.domain.durable import MAX_OUTPUT, Execution, error_text
from nova.domain.ports import Invoker
from nova.errors import NovaError
from nova.events.acting import acting_for
from nova.ids import new_id
from nova.store import durable
from nova.store.db import Database
from nova.store.durable import DurableStore
from nova.store.durable_rows import CALL_KIND
from nova.work import queue
from nova.work.notices import Notices
from nova.work.queue import WorkItem
from nova.work.runner import Kind

_NOT_YET: Final = frozenset({429, 503})
_WAIT_S: Final = 1.0
_GAP_S: Final = 0.001
"""Between claims: executions wait for these calls."""
_ATTEMPTS: Final = 10
"""Of a call whose instance, or whose worker here, is lost each time: over about ten minutes."""


class DurableCallWork:
    """One call of a function by an execution. It may run more than once; its result is written once."""

    def __init__(self, db: Database, invoker: Invoker, notices: Notices, clock: Clock = SYSTEM_CLOCK) -> None:
        self._db = db
        self._store = DurableStore(db)
        self._invoker = invoker
        self._notices = notices
        self._clock = clock

    def kind(self, workers: int | Callable[[], int]) -> Kind:
        return Kind(self, workers, max_attempts=_ATTEMPTS, gap_s=_GAP_S)

    async def run(self, item: WorkItem) -> None:
        """Raises NovaError when the call has to be tried again."""
        told = item.payload
        try:
            execution = await self._store.get(item.scope, told["execution"])
        except NovaError as error:
            if error.code != "not_found":
                raise
            await self._settle(item, None, "null", None)
            return
        try:
            result = await self._invoker.invoke(self._request(item, execution))
        except NovaError as refusal:
            if (refusal.code == "timeout" and "execution_id" in refusal.extra) or refusal.status in _NOT_YET:
                # a durable function goes on by itself: the same call finds it again
                await self._later(item, _WAIT_S if refusal.retry_after_s is None else refusal.retry_after_s)
                return
            if refusal.code == "instance_lost" and item.attempt < _ATTEMPTS:
                raise
            kind = "".join(part.capitalize() for part in refusal.code.split("_"))
            await self._settle(item, execution, None, _told(f"Nova.{kind}", refusal.detail))
            return
        if result.error is not None:
            await self._settle(item, execution, None, _told(result.error.type, result.error.message))
            return
        output = result.output or b"null"
        if len(output) > MAX_OUTPUT:
            detail = f"the answer cannot be kept: at most {MAX_OUTPUT} bytes"
            await self._settle(item, execution, None, _told("Nova.OutputTooLarge", detail))
            return
        await self._settle(item, execution, output.decode(), None)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        execution = await self._store.get(item.scope, item.payload["execution"])
        await self._settle(item, execution, None, _told("Nova.InstanceLost", reason))

    def _request(self, item: WorkItem, execution: Execution) -> CallRequest:
        told = item.payload
        given: str | None = told["payload"]
        return CallRequest(
            request_id=new_id(),
            scope=item.scope,
            function=told["function"],
            payload=payload.check((given or "null").encode(), limit=MAX_OUTPUT),
            identity=acting_for(f"function:{execution.function}", item.scope),
            received=self._clock.monotonic(),
            qualifier=told["qualifier"],
            trigger="function",
            traceparent=execution.traceparent,
            tracestate=execution.tracestate,
            attempt=item.attempt,
            caller=f"durable:{execution.id}/{told['operation']}",
            chain=(*execution.chain, execution.function),
        )

    async def _later(self, item: WorkItem, pause_s: float) -> None:
        async with self._db.transaction() as conn:
            await queue.hold(conn, item)
            await queue.release(conn, item, delay_s=pause_s, counts=False)
        self._notices.work(CALL_KIND, pause_s)

    async def _settle(self, item: WorkItem, execution: Execution | None, result: str | None, error: str | None) -> None:
        async with self._db.transaction() as conn:
            await queue.finish(conn, item)
            if execution is not None:
                await durable.settle_call(conn, item.scope, execution.id, item.payload["operation"], result, error)


def _told(kind: str, message: str) -> str:
    return error_text({"ErrorType": kind, "ErrorMessage": message})
