"""Writing what runs have come to: whose write counts."""

import asyncio

import pytest

from nova.events.workflows.writing import Writer
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.workflow_runs import RunStore
from nova.store.workflow_writes import NodeRow, RunWrite, Written
from nova.work.notices import Notices
from nova.work.queue import LeaseLost
from tests.events.workflows.support import chain, function, nebula, workflow

pytestmark = pytest.mark.anyio


async def test_of_two_claims_by_one_process_only_the_newer_writes(database: Database) -> None:
    """EV14: a process that stood still has claimed its own run again, and both attempts write in the same moment."""
    await workflow(database, "w", chain(function("a")))
    async with nebula(database, work=False) as n:
        run_id = await n.start("w")
        store = RunStore(database)
        (former,), _ = await store.claim("me", 1, 30)
        await database.run("UPDATE work SET lease_until = now() - interval '1 s'")
        (latter,), _ = await store.claim("me", 1, 30)
        assert latter.fence > former.fence
        async with ServiceGroup() as group:
            writer = Writer(database, await group.start(Notices(database)))
            writes = [
                RunWrite(run, "me", nodes=[NodeRow("a", -1, "running", 1, 1, 1, output=output)])
                for run, output in ((former, b'"stale"'), (latter, b'"good"'))
            ]
            answers = await asyncio.gather(*(writer.commit(one) for one in writes), return_exceptions=True)
            await writer.close()
        assert isinstance(answers[0], LeaseLost)
        assert isinstance(answers[1], Written)
        assert (await n.nodes(run_id))["a"]["output"] == "good"
