"""Writing what runs have come to: what several runs write in one moment shares a transaction."""

import asyncio
import json
from collections.abc import Sequence

import psycopg
import structlog
from tenacity import AsyncRetrying, retry_if_exception, stop_after_delay, wait_exponential, wait_random

from nova.errors import NovaError
from nova.service import Background
from nova.store import workflow_writes
from nova.store.db import Database
from nova.store.jobs import JobStore
from nova.store.listen import Channel
from nova.store.workflow_runs import KIND
from nova.store.workflow_writes import RunWrite, Written
from nova.work.grouping import GroupCommit
from nova.work.notices import Notices
from nova.work.queue import LeaseLost, newest

log = structlog.get_logger(__name__)
_SOON_S = 60.0
"""Timers that ring later are found by looking."""
_WRITERS = 2
_WRITE_FOR_S = 25.0
_SWEEP_AFTER = 4000
"""Runs whose rows in the queue are rubbish now."""


class Writer:
    """Tells others what they have to do because of it."""

    def __init__(self, db: Database, notices: Notices) -> None:
        self._db = db
        self._notices = notices
        self._group: GroupCommit[RunWrite, Written] = GroupCommit("runs", self._write, writers=_WRITERS, weigh=_weight)
        self._tasks = Background("workflows")
        self._left = 0
        """runs that ended or were given back since the queue was swept"""
        self._rubbish = asyncio.Event()

    async def start(self) -> None:
        self._tasks.spawn("sweep", self._sweep())

    async def close(self) -> None:
        await self._group.close()
        await self._tasks.close()

    async def commit(self, write: RunWrite) -> Written:
        """Raises :class:`LeaseLost`."""
        return await self._group.put(write)

    async def _write(self, batch: Sequence[RunWrite]) -> Sequence[Written | BaseException]:
        answers: dict[str, Written | BaseException] = {}
        # this process may have claimed a run again before its former attempt noticed: only the newer fence writes
        fences = newest((write.run.id, write.run.fence) for write in batch)
        current = [write for write in batch if write.run.fence == fences[write.run.id]]
        for owner in {write.owner for write in current}:
            mine = [write for write in current if write.owner == owner]
            try:
                written = await self._persist(mine)
            except psycopg.DataError as error:
                # something that PostgreSQL does not take must not keep other runs from being written
                answers |= {mine[0].run.id: error} if len(mine) == 1 else await self._alone(mine)
                continue
            self._tell(mine, written)
            answers |= {
                write.run.id: written if write.run.id in written.ids else LeaseLost(write.run.id) for write in mine
            }
        return [
            answers[write.run.id] if write.run.fence == fences[write.run.id] else LeaseLost(write.run.id)
            for write in batch
        ]

    async def _alone(self, writes: Sequence[RunWrite]) -> dict[str, Written | BaseException]:
        found: dict[str, Written | BaseException] = {}
        for write in writes:
            try:
                (found[write.run.id],) = await self._write([write])
            except NovaError as error:
                found[write.run.id] = error
        return found

    def _tell(self, writes: Sequence[RunWrite], written: Written) -> None:
        self._left += sum(write.then != "go on" for write in writes)
        if self._left >= _SWEEP_AFTER:
            self._rubbish.set()
        if written.begun or written.told:
            self._notices.work(KIND)
        for write in writes:
            if write.waits:
                self._notices.tell(Channel.RUNS, json.dumps({"run": write.run.id, "waits": len(write.waits)}))
        if written.told:
            for write in writes:
                if write.then == "finish" and write.run.parent is not None:
                    self._notices.tell(Channel.RUNS, json.dumps({"run": write.run.parent.run_id, "told": "child"}))
        for delay_s in {write.wake_s for write in writes if write.then == "release" and write.wake_s is not None}:
            if delay_s < _SOON_S:
                self._notices.work(KIND, delay_s)

    async def _persist(self, writes: Sequence[RunWrite]) -> Written:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception(_away),
            wait=wait_exponential(multiplier=0.05, max=2) + wait_random(0, 0.1),
            stop=stop_after_delay(_WRITE_FOR_S),
            reraise=True,
        ):
            with attempt:
                return await workflow_writes.write(self._db, writes)
        raise AssertionError("unreachable")

    async def _sweep(self) -> None:
        """What a busy minute leaves is too much to wait for the database's own housekeeping."""
        while True:
            await self._rubbish.wait()
            self._rubbish.clear()
            self._left = 0
            try:
                await JobStore(self._db).sweep()
            except NovaError as error:
                log.warning("the queue cannot be swept", error=error.detail)


def _away(error: BaseException) -> bool:
    return isinstance(error, NovaError) and error.code == "dependency_unavailable"


def _weight(write: RunWrite) -> int:
    return sum(len(node.input or b"") + len(node.output or b"") for node in write.nodes) + len(write.output or b"")
