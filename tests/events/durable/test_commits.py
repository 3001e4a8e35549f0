"""Lone steps on connections of their own: committed or not, whatever becomes of the connection."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from nova.domain.durable import Token, updates
from nova.domain.durable_protocol import envelope
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.durable import DurableCalls
from nova.payload import decode, encode
from nova.store.db import Database
from nova.store.durable_commits import StepCommits
from nova.store.durable_runs import Checkpoint, DurableRunStore, Written
from nova.store.durable_waits import DurableWaits
from nova.store.listen import Listener
from nova.work.notices import Notices
from tests.agent.harness import snapshot_of, spec_of
from tests.events.durable.test_checkpoints import FUNCTION, Runs, step

pytestmark = pytest.mark.anyio
_END_BACKENDS = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nova steps'"
    " AND datname = current_database()"
)


class Steps:
    """Steps of one execution, committed on connections of their own."""

    def __init__(self, database: Database) -> None:
        self.runs = Runs(database)
        self.db = database
        self.commits = StepCommits(database.dsn)

    def checkpoint(self, number: str, *, epoch: int = 1, seen: int | None = None, **more: Any) -> Checkpoint:
        given = updates([step(number, Payload=f'"{number}"', **more)])
        return Checkpoint(self.runs.id, FUNCTION, epoch, self.runs.seen if seen is None else seen, Scope(), given)

    async def ask(self, one: Checkpoint) -> int | None:
        """The revision; None: the general way has to do."""
        told: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        if not self.commits.commit(one, lambda rev: None if told.done() else told.set_result(rev)):
            return None
        return await told

    async def commit(self, number: str) -> int | None:
        rev = await self.ask(self.checkpoint(number))
        if rev is not None:
            self.runs.seen = rev
        return rev

    async def committed(self, number: str) -> int:
        """As soon as there is a connection."""
        async with asyncio.timeout(30):
            while (rev := await self.commit(number)) is None:
                await asyncio.sleep(0.01)
        return rev

    async def count(self) -> int:
        row = await self.db.one(
            "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'nova steps'"
            " AND datname = current_database()"
        )
        assert row is not None
        return int(row["n"])

    async def blocked(self, number: int) -> None:
        """So many steps wait for a row."""
        async with asyncio.timeout(30):
            while True:
                row = await self.db.one(
                    "SELECT count(*) AS n FROM pg_stat_activity WHERE application_name = 'nova steps'"
                    " AND datname = current_database() AND wait_event_type = 'Lock'"
                )
                assert row is not None
                if row["n"] == number:
                    return
                await asyncio.sleep(0.01)


@pytest.fixture
async def steps(database: Database) -> AsyncIterator[Steps]:
    made = Steps(database)
    await made.runs.start()
    await made.runs.begin(1)
    yield made
    await made.commits.close()


async def test_a_step_is_committed_once_and_only_by_the_run_that_owns_the_execution(steps: Steps) -> None:
    assert await steps.commit("1") is None, "there is no connection yet: the general way has to do"
    first = await steps.committed("1")
    assert await steps.committed("2") == first + 1
    awkward = 'quote" back\\slash \u2028 😀 ' * 3000
    large = steps.checkpoint("3", Name="é")
    large = Checkpoint(large.execution, FUNCTION, 1, first + 1, Scope(), updates([step("3", Payload=awkward)]))
    assert await steps.ask(large) == first + 2
    for refused in (steps.checkpoint("4", epoch=2), steps.checkpoint("1"), steps.checkpoint("1", Name="another")):
        assert await steps.ask(refused) is None
    assert await steps.ask(Checkpoint(steps.runs.id, "0" * 36, 1, 0, Scope(), large.updates)) is None
    assert await steps.runs.recorded() == [(number, "SUCCEEDED", 1) for number in "123"]
    recorded = await steps.runs.store.steps(steps.runs.id, after=0, limit=10)
    assert [operation.result for operation in recorded] == ['"1"', '"2"', awkward]
    assert all(operation.ended_at is not None for operation in recorded)


async def test_what_an_execution_has_recorded_goes_with_it(steps: Steps) -> None:
    """DB6: no foreign key does it, a trigger does; another execution's steps stay."""
    await steps.committed("1")
    other = Steps(steps.db)
    await other.runs.start()
    await other.runs.begin(1)
    await other.committed("1")
    await steps.db.run("DELETE FROM durable_executions WHERE id = %(id)s", id=steps.runs.id)
    assert await steps.runs.recorded() == []
    assert await other.runs.recorded() == [("1", "SUCCEEDED", 1)]
    await other.commits.close()


async def test_a_connection_that_is_lost_loses_no_step_and_is_replaced(steps: Steps) -> None:
    await steps.committed("1")
    async with steps.db.transaction() as held:
        await held.one("SELECT * FROM durable_executions WHERE id = %(id)s FOR UPDATE", id=steps.runs.id)
        waiting = asyncio.create_task(steps.ask(steps.checkpoint("2")))
        await steps.blocked(1)
        await steps.db.run(_END_BACKENDS)
        assert await waiting is None, "nobody is told that it is committed"
    assert await steps.runs.recorded() == [("1", "SUCCEEDED", 1)]
    written = await steps.runs.runs.checkpoint([steps.checkpoint("2")])
    assert isinstance(written[0], Written)
    steps.runs.seen = written[0].rev
    await steps.committed("3")
    await steps.db.run(_END_BACKENDS)  # and one that is idle
    await steps.committed("4")
    assert [number for number, _, _ in await steps.runs.recorded()] == list("1234")


async def test_a_step_that_may_be_committed_is_written_again_and_changes_nothing(steps: Steps) -> None:
    before = steps.runs.seen
    await steps.committed("1")
    again = await steps.runs.runs.checkpoint([steps.checkpoint("1", seen=before)])
    assert isinstance(again[0], Written)
    assert [(operation.id, operation.status, operation.result) for operation in again[0].changed] == [
        ("1", "SUCCEEDED", '"1"')
    ]
    assert await steps.runs.recorded() == [("1", "SUCCEEDED", 1)]
    row = await steps.db.one("SELECT steps FROM durable_executions WHERE id = %(id)s", id=steps.runs.id)
    assert row == {"steps": 1}


async def test_steps_beyond_the_connections_go_the_general_way_and_one_who_leaves_disturbs_nobody(steps: Steps) -> None:
    await steps.committed("1")
    async with steps.db.transaction() as held:
        await held.one("SELECT * FROM durable_executions WHERE id = %(id)s FOR UPDATE", id=steps.runs.id)
        first = asyncio.create_task(steps.ask(steps.checkpoint("2")))
        await steps.blocked(1)
        second = asyncio.create_task(steps.committed("3"))  # one is busy: another is opened
        await steps.blocked(2)
        assert await steps.ask(steps.checkpoint("4")) is None
        second.cancel()
        await asyncio.gather(second, return_exceptions=True)
    assert await first is not None
    async with asyncio.timeout(30):
        while len(await steps.runs.recorded()) < 3:
            await asyncio.sleep(0.01)
    row = await steps.db.one("SELECT rev FROM durable_executions WHERE id = %(id)s", id=steps.runs.id)
    assert row is not None
    steps.runs.seen = row["rev"]
    await steps.committed("5")
    assert await steps.count() == 2


class Away(DurableRunStore):
    """A store whose database is away for the next ``times`` checkpoints, and forgets to say whether they were written."""

    times = 0

    async def checkpoint(self, given: Sequence[Checkpoint]) -> list[Written | NovaError]:
        written = await super().checkpoint(given)
        if self.times:
            self.times -= 1
            raise NovaError("dependency_unavailable", "the database does not answer", retry_after_s=1)
        return written


async def test_a_run_waits_for_a_database_that_is_away_and_counts_no_attempt_twice(steps: Steps) -> None:
    store = Away(steps.db)
    waits = DurableWaits(steps.runs.store, Listener(steps.db.dsn))
    calls = DurableCalls(steps.runs.store, store, steps.commits, waits, Notices(steps.db))
    snapshot = snapshot_of(spec_of("python", function_id=FUNCTION))
    arn = decode(await envelope_of(steps))["DurableExecutionArn"]

    async def write(*given: dict[str, Any]) -> tuple[int, Any]:
        token = Token("r", 1, steps.runs.seen).text()
        reply = await calls.checkpoint(snapshot, arn, encode({"CheckpointToken": token, "Updates": given}))
        return reply.status, decode(reply.body)

    store.times = 2
    status, told = await write(step("1", Payload="7"))
    assert (status, store.times) == (200, 0)
    assert [operation["StepDetails"]["Result"] for operation in told["NewExecutionState"]["Operations"]] == ["7"]
    store.times = 1
    again = {"Error": {"ErrorType": "E"}, "StepOptions": {"NextAttemptDelaySeconds": 60}}
    assert (await write(step("2", "RETRY", **again)))[0] == 503
    assert await steps.runs.recorded() == [("1", "SUCCEEDED", 1), ("2", "PENDING", 1)]
    await calls.close()


async def test_a_page_of_operations_holds_so_many_characters_and_the_rest_follows(steps: Steps) -> None:
    waits = DurableWaits(steps.runs.store, Listener(steps.db.dsn))
    calls = DurableCalls(steps.runs.store, steps.runs.runs, steps.commits, waits, Notices(steps.db))
    snapshot = snapshot_of(spec_of("python", function_id=FUNCTION))
    for number in range(6):
        await steps.runs.write(1, step(str(number), Payload='"' + "x" * 250_000 + '"'))
    arn = decode(await envelope_of(steps))["DurableExecutionArn"]
    head = {"arn": arn, "token": Token("r", 1, steps.runs.seen).text()}
    pages: list[list[str]] = []
    marker = ""
    while marker or not pages:
        reply = await calls.operations(snapshot, head | {"marker": marker})
        assert reply.status == 200
        page = decode(reply.body)
        pages.append([operation["Id"] for operation in page["Operations"]])
        marker = page.get("NextMarker", "")
    assert pages == [list("0123"), list("45")]
    await calls.close()


async def envelope_of(steps: Steps) -> bytes:
    execution = await steps.runs.store.get(Scope(), steps.runs.id)
    return envelope(execution, Token("r", 1, steps.runs.seen), (), more=False)
