"""A process that publishes numbers and relays the outbox, until it is killed: ``publisher.py DSN FIRST``.

It prints a number when its publication was answered. Every third one waits in the outbox for a moment.
"""

import asyncio
import sys

from nova.domain.identity import Scope
from nova.events.bus.outbox import Relay
from nova.events.bus.publish import TopicPublisher
from nova.service import Background
from nova.store.db import Connection, Database
from nova.store.listen import Listener
from nova.work.notices import Notices
from tests.events.bus.topics import message

AT_ONCE = 20


class Charged:
    """A fence of whoever is always in charge: rows are taken once all the same."""

    async def check(self, conn: Connection) -> None:
        return


async def main(dsn: str, first: int) -> None:
    async with Database(dsn) as db:
        listener = Listener(dsn)
        await listener.start()
        db.on_commit = listener.deliver
        notices = Notices(db)
        publisher = TopicPublisher(db, notices)
        Background("test").spawn("relay", Relay(db, notices, listener).lead(Charged()))

        async def publish(number: int) -> None:
            delay_s = 0.01 if number % 3 == 0 else 0.0
            sent = message(b"%d" % number, dedup_id=str(number), delay_s=delay_s)
            await publisher.publish(Scope(), "numbers", [sent], caller="test")
            print(number, flush=True)

        while True:
            await asyncio.gather(*(publish(number) for number in range(first, first + AT_ONCE)))
            first += AT_ONCE


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2])))
