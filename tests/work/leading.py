"""A process that stands by for a duty and says on stdout what becomes of it; :mod:`tests.work.test_leader` runs several.

Lines: ``ready``, ``leads <fence>``, ``refused <fence>``, ``stopped <fence>``. While it leads it writes a row each 20 ms, in a
transaction of its own with the fence checked first. ``stubborn`` as third argument: it also writes when it is told to stop.
"""

import asyncio
import signal
import sys

import psycopg

from nova.errors import NovaError
from nova.store.db import Database
from nova.store.listen import Listener
from nova.work.leader import Duty, Fence, LeaseLost, Leases

WRITE = "INSERT INTO written (fence, node) VALUES (%(fence)s, %(node)s)"


def say(what: str, fence: Fence | None = None) -> None:
    print(what if fence is None else f"{what} {fence.number}", flush=True)


async def main(dsn: str, node: str, *options: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    listener = Listener(dsn)
    async with Database(dsn, min_conns=1, max_conns=4) as db:

        async def write(fence: Fence) -> None:
            async with db.transaction() as conn:
                await fence.check(conn)
                await conn.run(WRITE, fence=fence.number, node=node)

        async def lead(fence: Fence) -> None:
            say("leads", fence)
            try:
                while True:
                    await write(fence)
                    await asyncio.sleep(0.02)
            except (LeaseLost, NovaError, psycopg.Error):
                say("refused", fence)
                raise
            except asyncio.CancelledError:
                if "stubborn" in options:
                    try:
                        await write(fence)
                    except LeaseLost:
                        say("refused", fence)
                raise
            finally:
                say("stopped", fence)

        await listener.start()
        leases = Leases(dsn, listener, node=node)
        duty = Duty("counting", lead, leases)
        await leases.start()
        await duty.start()
        say("ready")
        await stop.wait()
        await duty.close()
        await leases.close()
        await listener.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
