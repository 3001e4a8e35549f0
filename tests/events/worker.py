"""A process that runs jobs and does nothing else, made to be killed: ``python -m tests.events.worker DSN SEED``.

Its execution plane writes each execution to the table ``effects``, in the order in which they are done, and fails now and
then, so that retries are part of it.
"""

import asyncio
import random
import signal
import sys

from nova.domain.call import CallRequest, CallResult
from nova.errors import FunctionError
from nova.events.jobs import AsyncJobs
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.jobs import JobStore
from nova.store.listen import Listener
from nova.work.notices import Notices
from nova.work.runner import Runner

LEASE_S = 1.5
FAILURES = 0.05


class Effects:
    def __init__(self, db: Database, chance: random.Random) -> None:
        self._db = db
        self._chance = chance

    async def invoke(self, call: CallRequest) -> CallResult:
        await asyncio.sleep(self._chance.uniform(0, 0.02))
        await self._db.run(
            "INSERT INTO effects (job, attempt) VALUES (%(job)s, %(n)s)", job=call.caller, n=call.attempt
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
        jobs = await group.start(AsyncJobs(JobStore(db), Effects(db, random.Random(seed)), notices))
        await group.start(Runner(db, listener, {"async": jobs.kind(32)}, lease_s=LEASE_S, poll_s=0.2))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
