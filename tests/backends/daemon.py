"""A daemon for the suite to kill: ``daemon.py CASE FOLDER NODE`` makes an instance that sleeps, says so and waits."""

import asyncio
import sys
from pathlib import Path

from nova.telemetry import configure_logging
from tests.backends.cases import case
from tests.backends.harness import Maker


async def main(name: str, folder: Path, node: str) -> None:
    found = case(name)
    async with found.backend(folder, node) as backend:
        function = await Maker(found, backend, folder).load()
        sleeping = asyncio.ensure_future(function.answer({"do": "sleep", "s": 600}, timeout_s=600))
        print("asleep", flush=True)
        await sleeping


if __name__ == "__main__":
    configure_logging("error")
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
