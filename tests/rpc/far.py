"""A comet in a process of its own that answers by itself, for tests that stop and kill it. Run with an address; says its port.

A call's payload is ``[seconds, bytes]``: how long it takes, and how long the text is that it answers.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nova.domain.call import CallRequest, CallResult
from nova.domain.node import NodeReport
from tests.rpc.planes import serving


class Sleeper:
    async def invoke(self, call: CallRequest) -> CallResult:
        seconds, size = json.loads(call.payload)
        await asyncio.sleep(seconds)
        output = b'"%s"' % (b"o" * size)
        return CallResult(call.request_id, 1, output, None, 1, False, f"pid-{os.getpid()}")


async def _serve(address: str) -> None:
    async with serving(address, invoker=Sleeper(), report=lambda: NodeReport("far", "far", address)) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


@dataclass(slots=True)
class Far:
    process: "subprocess.Popen[str]"
    port: int

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    @property
    def memory_mb(self) -> float:
        """Resident memory."""
        fields = Path(f"/proc/{self.process.pid}/statm").read_text().split()
        return int(fields[1]) * os.sysconf("SC_PAGE_SIZE") / (1 << 20)


@contextmanager
def far(port: int = 0) -> Iterator[Far]:
    command = [sys.executable, "-m", "tests.rpc.far", f"127.0.0.1:{port}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield Far(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1]))
