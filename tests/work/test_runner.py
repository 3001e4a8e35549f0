import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

import pytest

from nova.store.db import Database
from nova.work.queue import WorkItem, WorkQueue, finish, withdraw
from nova.work.runner import Kind, Runner
from tests.work.conftest import Ears, add

pytestmark = pytest.mark.anyio


class Recorder:
    """A handler that does what the test says and remembers what happened."""

    def __init__(self, db: Database, work: Callable[[WorkItem], Awaitable[None]] | None = None) -> None:
        self._db = db
        self._work = work
        self.runs: asyncio.Queue[WorkItem] = asyncio.Queue()
        self.given_up: asyncio.Queue[tuple[WorkItem, str]] = asyncio.Queue()
        self.done: asyncio.Queue[WorkItem] = asyncio.Queue()

    async def run(self, item: WorkItem) -> None:
        self.runs.put_nowait(item)
        if self._work is not None:
            await self._work(item)
        async with self._db.transaction() as conn:
            await finish(conn, item)
        self.done.put_nowait(item)

    async def give_up(self, item: WorkItem, reason: str) -> None:
        async with self._db.transaction() as conn:
            await finish(conn, item)
        self.given_up.put_nowait((item, reason))


async def get(queue: "asyncio.Queue[object]") -> object:
    async with asyncio.timeout(20):
        return await queue.get()


class Begun(asyncio.Future[None]):
    """What a kind gives a runner that began an item's work without a task of the runner's."""

    def __init__(self, work: Coroutine[None, None, None]) -> None:
        super().__init__()
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(self._ended)

    def _ended(self, task: "asyncio.Task[None]") -> None:
        if self.done() or task.cancelled():
            return
        if (error := task.exception()) is not None:
            self.set_exception(error)
        else:
            self.set_result(None)

    def cancel(self, msg: object = None) -> bool:
        self._task.cancel()
        return super().cancel(msg)


@pytest.fixture(params=["task", "begun"], autouse=True)
def begins(request: pytest.FixtureRequest) -> Iterator[bool]:
    """Whether kinds begin their work themselves: nothing but that may be different."""
    kept = BEGINS.set(request.param == "begun")
    yield request.param == "begun"
    BEGINS.reset(kept)


BEGINS: ContextVar[bool] = ContextVar("begins")


@asynccontextmanager
async def running(
    db: Database, ears: Ears, handler: Recorder, *, concurrency: int = 4, max_attempts: int = 3, **settings: float
) -> AsyncIterator[Runner]:
    begin = (lambda item: Begun(handler.run(item))) if BEGINS.get() else None
    kind = Kind(handler, concurrency, max_attempts=max_attempts, backoff_s=0.01, begin=begin)
    runner = Runner(db, ears, {"thing": kind}, **settings)  # type: ignore[arg-type]
    await runner.start()
    try:
        yield runner
    finally:
        await runner.close()


async def rows(db: Database) -> int:
    row = await db.one("SELECT count(*) AS n FROM work")
    return int(row["n"]) if row else 0


async def test_work_starts_when_it_is_enqueued(database: Database, ears: Ears) -> None:
    """DB3: a notification starts the work; the poll (an hour here) has no part in it."""
    handler = Recorder(database)
    async with running(database, ears, handler, poll_s=3600):
        await asyncio.sleep(0)
        subject = await add(database)
        item = await get(handler.runs)
        assert item.subject == subject
        await get(handler.done)
        assert await rows(database) == 0


async def test_work_starts_though_notifications_are_lost(database: Database, ears: Ears) -> None:
    """DB3: the poll is the net."""
    ears.deaf = True
    handler = Recorder(database)
    async with running(database, ears, handler, poll_s=0.05):
        await add(database)
        await get(handler.done)


async def test_a_job_longer_than_its_lease_runs_once(database: Database, ears: Ears) -> None:
    """EV1: heartbeats keep the lease of a job that outlives it."""
    release = asyncio.Event()

    async def work(_item: WorkItem) -> None:
        await release.wait()

    handler = Recorder(database, work)
    async with running(database, ears, handler, lease_s=2, poll_s=0.05) as runner:
        await add(database)
        await get(handler.runs)
        first = await database.one("SELECT lease_until FROM work")
        assert first is not None
        while await database.fetch("SELECT 1 FROM work WHERE now() < %(until)s", until=first["lease_until"]):
            assert await WorkQueue(database, "thief").claim("thing", 1) == []
            await asyncio.sleep(0.05)
        assert await WorkQueue(database, "thief").claim("thing", 1) == []
        release.set()
        await get(handler.done)
        assert handler.runs.empty()
        assert runner.queue.lease_s == 2


async def test_a_process_that_claims_again_what_it_still_runs_keeps_the_two_apart(
    database: Database, ears: Ears
) -> None:
    """EV1: its lease ran out while it stood still, and it was the first to see that. The former attempt ends, the
    latter has a lease that is renewed."""
    release = asyncio.Event()
    ended: asyncio.Queue[int] = asyncio.Queue()

    async def work(item: WorkItem) -> None:
        try:
            await release.wait()
        finally:
            ended.put_nowait(item.fence)

    handler = Recorder(database, work)
    async with running(database, ears, handler, lease_s=3, poll_s=0.05):
        await add(database)
        first = await get(handler.runs)
        assert isinstance(first, WorkItem)
        over = "UPDATE work SET lease_until = now() - interval '1 s' WHERE fence = %(fence)s"
        async with asyncio.timeout(20):
            while handler.runs.empty():  # a heartbeat may come first
                await database.run(over, fence=first.fence)
                await asyncio.sleep(0.05)
        second = await get(handler.runs)
        assert isinstance(second, WorkItem)
        assert (second.id, second.fence) == (first.id, first.fence + 1)
        assert await get(ended) == first.fence, "the heartbeat finds that it has no lease"
        taken = await database.one("SELECT lease_until FROM work")
        assert taken is not None
        async with asyncio.timeout(20):
            while not await database.fetch(
                "SELECT 1 FROM work WHERE lease_until > %(then)s", then=taken["lease_until"]
            ):
                await asyncio.sleep(0.05)
        release.set()
        done = await get(handler.done)
        assert isinstance(done, WorkItem)
        assert done.fence == second.fence
        assert handler.runs.empty()


async def test_no_lease_is_spent_on_waiting(database: Database, ears: Ears) -> None:
    """EV1: no more is claimed than runs at once."""
    release = asyncio.Event()

    async def work(_item: WorkItem) -> None:
        await release.wait()

    handler = Recorder(database, work)
    async with running(database, ears, handler, concurrency=2):
        for _ in range(5):
            await add(database)
        await get(handler.runs)
        await get(handler.runs)
        row = await database.one("SELECT count(*) AS n FROM work WHERE owner IS NOT NULL")
        assert row == {"n": 2}
        release.set()
        for _ in range(5):
            await get(handler.done)


async def test_an_exception_is_tried_again_and_then_given_up(database: Database, ears: Ears) -> None:
    async def work(_item: WorkItem) -> None:
        raise ZeroDivisionError

    handler = Recorder(database, work)
    async with running(database, ears, handler, max_attempts=3):
        await add(database)
        item, reason = await get(handler.given_up)
    assert [handler.runs.get_nowait().attempt for _ in range(3)] == [1, 2, 3]
    assert handler.runs.empty()
    assert item.attempt == 3
    assert reason == "internal error (ZeroDivisionError)"


async def test_work_that_kills_its_worker_every_time_is_given_up(database: Database, ears: Ears) -> None:
    """EV3: attempts that nobody lived to count are counted by the claim."""
    await add(database)
    killed = WorkQueue(database, "killed")
    for _ in range(3):
        assert len(await killed.claim("thing", 1)) == 1
        await database.run("UPDATE work SET lease_until = now() - interval '1 second'")
    handler = Recorder(database)
    async with running(database, ears, handler, max_attempts=3):
        _, reason = await get(handler.given_up)
    assert reason == "the worker was lost in each of 3 attempts"
    assert handler.runs.empty()


async def test_withdrawn_work_stops_at_once(database: Database, ears: Ears) -> None:
    stopped = asyncio.Event()

    async def work(_item: WorkItem) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    handler = Recorder(database, work)
    async with running(database, ears, handler, lease_s=3600):
        await add(database)
        item = await get(handler.runs)
        async with database.transaction() as conn:
            await withdraw(conn, "thing", item.scope, item.subject)
        async with asyncio.timeout(10):
            await stopped.wait()
    assert handler.done.empty()


async def test_close_hands_back_what_it_could_not_finish(database: Database, ears: Ears) -> None:
    async def work(_item: WorkItem) -> None:
        await asyncio.Event().wait()

    handler = Recorder(database, work)
    async with running(database, ears, handler, grace_s=0.05):
        await add(database)
        await get(handler.runs)
    (item,) = await WorkQueue(database, "next").claim("thing", 1)
    assert item.attempt == 1


_VICTIM = """
import asyncio, sys
from nova.store.db import Database
from nova.work.queue import WorkQueue

async def main() -> None:
    async with Database(sys.argv[1], min_conns=1) as db:
        (item,) = await WorkQueue(db, "victim", lease_s=1.5).claim("thing", 1)
        print(item.subject, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_work_of_a_killed_process_is_taken_over(database: Database, pg_dsn: str, ears: Ears) -> None:
    """BU2: a worker that is killed loses its job to another when the lease ends."""
    subject = await add(database)
    victim = await asyncio.create_subprocess_exec(sys.executable, "-c", _VICTIM, pg_dsn, stdout=asyncio.subprocess.PIPE)
    assert victim.stdout is not None
    assert (await victim.stdout.readline()).decode().strip() == subject
    os.kill(victim.pid, signal.SIGKILL)
    await victim.wait()
    handler = Recorder(database)
    async with running(database, ears, handler, poll_s=0.1):
        item = await get(handler.done)
    assert (item.subject, item.attempt) == (subject, 2)
