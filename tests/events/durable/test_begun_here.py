"""Executions that run in the process in which they begin: nobody claims them, and nobody loses them."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from nova.domain.call import CallRequest, CallResult
from nova.domain.durable import Token
from nova.domain.identity import Identity, Scope
from nova.events.durable.runs import DurableRuns
from nova.events.observers import NoEvents
from nova.execution.durable import DurableCalls
from nova.ids import new_id
from nova.payload import decode, encode
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.durable import DurableStore, NewExecution
from nova.store.durable_commits import StepCommits
from nova.store.durable_rows import KIND
from nova.store.durable_runs import DurableRunStore
from nova.store.durable_waits import DurableWaits
from nova.store.listen import Listener
from nova.store.work import Taker
from nova.work.handover import Handover
from nova.work.notices import Notices
from nova.work.queue import WorkItem
from nova.work.runner import Runner
from tests.agent.harness import snapshot_of, spec_of
from tests.events.support import Calls, result

pytestmark = pytest.mark.anyio
SNAPSHOT = snapshot_of(spec_of("python", function_id=new_id()))


class _Told(NoEvents):
    def execution_ended(self, scope: Scope, status: str) -> None:
        return None


class Plane:
    """Begins executions and runs them; ``claimed`` is what it had to ask the queue for."""

    def __init__(self, database: Database, calls: DurableCalls, runner: Runner) -> None:
        self.db = database
        self.calls = calls
        self.store = DurableStore(database)
        self.runner = runner
        self.claimed: list[WorkItem] = []

    async def call(self, payload: object) -> CallResult:
        me = Identity("me", frozenset())
        request = CallRequest(new_id(), Scope(), SNAPSHOT.name, encode(payload), me, time.monotonic())
        return await self.calls.call(request, SNAPSHOT, None)


@asynccontextmanager
async def plane(database: Database, calls: Calls, *, workers: int = 4) -> AsyncIterator[Plane]:
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        database.on_commit = listener.deliver
        notices = await group.start(Notices(database))
        store = DurableStore(database)
        durable = DurableCalls(
            store, DurableRunStore(database), StepCommits(database.dsn), DurableWaits(store, listener), notices
        )
        runs = DurableRuns(database, calls, notices, events=_Told())
        runner = Runner(database, listener, {KIND: runs.kind(workers)}, poll_s=0.2, grace_s=0.5)
        durable.hand_to(Handover(runner.lane(KIND), runner.queue.owner, 30))
        made = Plane(database, durable, runner)
        claim = runner.queue.claim

        async def watched(kind: str, batch: int, *, per_tenant: int | None = None) -> Sequence[WorkItem]:
            found = await claim(kind, batch, per_tenant=per_tenant)
            made.claimed += found
            return found

        runner.queue.claim = watched  # type: ignore[method-assign,assignment]
        await group.start(durable)
        await group.start(runner)
        while not runner.lane(KIND).open:  # the first claim sees that nothing waits
            await asyncio.sleep(0.01)
        yield made

    await asyncio.sleep(0.01)


def succeeds(value: object) -> bytes:
    return encode({"Status": "SUCCEEDED", "Result": encode(value).decode()})


async def test_an_execution_runs_where_it_began_and_nobody_asks_the_queue(database: Database) -> None:
    rows: list[tuple[int, int, str]] = []
    tokens: list[Token] = []

    async def answer(call: CallRequest) -> CallResult:
        found = await database.fetch(
            "SELECT w.fence, e.epoch, w.owner FROM work w JOIN durable_executions e ON e.id = w.subject"
        )
        rows.extend((row["fence"], row["epoch"], row["owner"]) for row in found)
        tokens.append(Token.of(decode(call.payload)["CheckpointToken"]))
        return result(call, succeeds(7))

    async with plane(database, Calls(answer)) as here:
        ended = await here.call({"n": 1})
        assert (ended.output, ended.error) == (b"7", None)
        assert rows == [(1, 1, here.runner.queue.owner)]
        assert (tokens[0].epoch, tokens[0].seen) == (1, 1)
        assert here.claimed == []
    assert await database.fetch("SELECT id FROM work") == []


async def test_what_has_no_place_here_is_claimed_like_any_other_work(database: Database) -> None:

    gate = asyncio.Event()

    async def answer(call: CallRequest) -> CallResult:
        await gate.wait()
        return result(call, succeeds(None))

    async with plane(database, Calls(answer), workers=2) as here:
        calls = [asyncio.create_task(here.call(number)) for number in range(5)]
        while len(await database.fetch("SELECT id FROM work")) < 5:
            await asyncio.sleep(0.01)
        gate.set()
        assert [ended.output for ended in await asyncio.gather(*calls)] == [b"null"] * 5
        assert len(here.claimed) == 3


async def test_an_execution_whose_process_died_is_run_by_another_under_the_next_epoch(database: Database) -> None:
    store, number = DurableStore(database), new_id()
    new = NewExecution(
        number, Scope(), SNAPSHOT.function_id, SNAPSHOT.name, 1, None, "{}", "me", "http", (), None, None, 60
    )
    answers, taken = await store.start([new], Taker("dead", 0.1, 1))
    assert (answers, [one.execution.epoch for one in taken]) == ([number], [1])
    epochs: list[int] = []

    async def answer(call: CallRequest) -> CallResult:
        epochs.append(Token.of(decode(call.payload)["CheckpointToken"]).epoch)
        return result(call, succeeds("done"))

    async with plane(database, Calls(answer)) as here:
        ended = await here.calls.waits.end(Scope(), number, time.monotonic() + 10)
    assert (ended.status, ended.output, epochs) == ("completed", '"done"', [2])
