"""A process of its own that deploys once and ends: ``python -m tests.control.deploying DSN PUT-BODY``."""

import asyncio
import sys

from nova.store.db import Database
from tests.control.support import control


async def main(dsn: str, body: str) -> None:
    async with Database(dsn, min_conns=1, max_conns=2) as database, control(database) as plane:
        answer = await plane.client.put("/functions/hello", content=body)
        sys.exit(0 if answer.status_code < 300 else answer.text)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
