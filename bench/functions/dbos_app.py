"""The peer's application: a workflow of trivial steps, and one of a single step. Runs as ``python dbos_app.py``.

One JSON command on stdin, ``{"steps", "rounds", "workflows", "at_once"}``; one JSON answer on stdout, ``{"chain_ms": [per run],
"per_s"}``. Its database is ``BENCH_DSN``.
"""

import asyncio
import json
import os
import sys
from time import perf_counter

from dbos import DBOS  # type: ignore[import-not-found, unused-ignore]


@DBOS.step()
async def hello(name: str) -> dict[str, str]:
    return {"hello": name}


@DBOS.workflow()
async def chain(steps: int) -> int:
    for _ in range(steps):
        await hello("bench")
    return steps


async def run(command: dict[str, int]) -> dict[str, object]:
    await chain(command["steps"])
    times = []
    for _ in range(command["rounds"]):
        start = perf_counter()
        await chain(command["steps"])
        times.append((perf_counter() - start) * 1000)
    numbers = iter(range(command["workflows"]))

    async def caller() -> None:
        for _ in numbers:
            await chain(1)

    start = perf_counter()
    await asyncio.gather(*(caller() for _ in range(command["at_once"])))
    return {"chain_ms": times, "per_s": command["workflows"] / (perf_counter() - start)}


async def main() -> None:
    DBOS(config={"name": "bench", "system_database_url": os.environ["BENCH_DSN"], "console_log_level": "ERROR"})
    DBOS.launch()
    print(json.dumps(await run(json.loads(sys.stdin.readline()))), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
    os._exit(0)  # it would wait for its own threads
