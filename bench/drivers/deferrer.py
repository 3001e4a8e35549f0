"""Defers jobs with procrastinate and waits until its worker has done them all.

Runs as ``python deferrer.py`` in the folder of ``procrastinate_app.py``, with one JSON command on stdin:

    {"jobs", "deferrers": <how many defer at once>, "max_s"}
    → {"accepted_s": <until all were deferred>, "seconds": <until all had succeeded>, "left": <jobs not done>}
"""

import asyncio
import json
import os
import sys
from time import monotonic

import psycopg
from procrastinate_app import app, hello  # type: ignore[import-not-found]

POLL_S = 0.02
DONE = "SELECT count(*) FROM procrastinate_jobs WHERE status = 'succeeded'"


async def run(command: dict[str, float]) -> dict[str, float]:
    jobs, deadline = int(command["jobs"]), monotonic() + command["max_s"]
    async with (
        app.open_async(),
        await psycopg.AsyncConnection.connect(os.environ["BENCH_DSN"], autocommit=True) as conn,
    ):
        before = await _succeeded(conn)
        numbers = iter(range(jobs))

        async def defer() -> None:
            for _ in numbers:
                await hello.defer_async(name="bench")

        start = monotonic()
        await asyncio.gather(*(defer() for _ in range(int(command["deferrers"]))))
        accepted_s = monotonic() - start
        while (done := await _succeeded(conn) - before) < jobs and monotonic() < deadline:
            await asyncio.sleep(POLL_S)
    return {"accepted_s": accepted_s, "seconds": monotonic() - start, "left": jobs - done}


async def _succeeded(conn: "psycopg.AsyncConnection[tuple[int]]") -> int:
    row = await (await conn.execute(DONE)).fetchone()
    return row[0] if row else 0


if __name__ == "__main__":
    print(json.dumps(asyncio.run(run(json.loads(sys.stdin.readline())))))
