"""A process that works off runs of workflows, made to be killed: ``python -m tests.events.workflows.worker DSN SEED``.

It also hands them messages of topics, when it leads that duty. Its functions write each execution to the table ``effects`` and
fail now and then, so that retries are part of it.
"""

import asyncio
import json
import random
import signal
import sys

from nova.clock import SYSTEM_CLOCK
from nova.domain.call import CallRequest, CallResult
from nova.errors import FunctionError
from nova.events.workflows import topic_waits
from nova.events.workflows.engine import Engine
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.workflow_runs import KIND
from nova.work.leader import Duty, Leases
from nova.work.notices import Notices
from nova.work.runner import Runner

LEASE_S = 1.0
FAILURES = 0.1


class Effects:
    def __init__(self, db: Database, chance: random.Random) -> None:
        self._db = db
        self._chance = chance

    async def invoke(self, call: CallRequest) -> CallResult:
        given = json.loads(call.payload)
        await asyncio.sleep(self._chance.uniform(0, 0.02))
        await self._db.run(
            "INSERT INTO effects (run_id, node_key, item) VALUES (%(run)s, %(node)s, %(item)s)",
            run=given["run"],
            node=given["node"],
            item=given.get("item", -1),
        )
        failed = self._chance.random() < FAILURES
        error = FunctionError("ValueError", "by chance") if failed else None
        return CallResult(call.request_id, 1, None if failed else call.payload, error, 100, False, "i")


async def main(dsn: str, seed: int) -> None:
    async with ServiceGroup() as group:
        db = await group.start(Database(dsn, min_conns=2, max_conns=6))
        listener = await group.start(Listener(dsn))
        db.on_commit = listener.deliver
        notices = await group.start(Notices(db))
        functions = Effects(db, random.Random(seed))
        engine = await group.start(
            Engine(db, functions, notices, listener, max_items=lambda: 100, max_depth=lambda: 16)
        )
        await group.start(Runner(db, listener, {KIND: engine.kind(lambda: 16)}, lease_s=LEASE_S, poll_s=0.2))
        leases = await group.start(Leases(dsn, listener, node="worker"))
        waits = topic_waits.TopicWaits(db, notices, listener, SYSTEM_CLOCK)
        await group.start(Duty(topic_waits.DUTY, waits.lead, leases))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
