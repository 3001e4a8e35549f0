"""A process that delivers and does nothing else, made to be killed: ``python -m tests.events.bus.deliverer DSN SEED``.

Its execution plane writes each execution to the table ``effects``, in the order in which they are done, and fails now and then.
The message "poison" kills the process.
"""

import asyncio
import os
import random
import signal
import sys

from nova.clock import SYSTEM_CLOCK
from nova.config import EgressSettings
from nova.domain.call import CallRequest, CallResult
from nova.errors import FunctionError
from nova.events.bus.delivering import Delivering
from nova.events.bus.dispatch import Dispatcher
from nova.security.egress import client
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.listen import Listener
from nova.work.leader import Leases
from tests.events.bus.dispatching import data

FAILURES = 0.02


class Effects:
    def __init__(self, db: Database, chance: random.Random) -> None:
        self._db = db
        self._chance = chance

    async def invoke(self, call: CallRequest) -> CallResult:
        said = data(call)
        if said == "poison":
            os.kill(os.getpid(), signal.SIGKILL)
        key, number = said
        await asyncio.sleep(self._chance.uniform(0, 0.005))
        failed = self._chance.random() < FAILURES
        if not failed:
            await self._db.run("INSERT INTO effects (key, number) VALUES (%(k)s, %(n)s)", k=key, n=number)
        error = FunctionError("ValueError", "by chance") if failed else None
        return CallResult(call.request_id, 1, None if failed else b"null", error, 100, False, "i")


async def main(dsn: str, seed: int) -> None:
    async with ServiceGroup() as group:
        db = await group.start(Database(dsn, min_conns=2, max_conns=8))
        listener = await group.start(Listener(dsn))
        db.on_commit = listener.deliver
        leases = await group.start(Leases(dsn, listener, node=f"node-{os.getpid()}"))
        effects = Effects(db, random.Random(seed))
        delivering = Delivering(effects, lambda: client(EgressSettings(), timeout_s=5), SYSTEM_CLOCK)
        await group.start(Dispatcher(db, listener, leases, delivering, poll_s=1))
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
