"""A comet of a process of its own: a real RPC server around an invoker that waits as long as the payload says.

Arguments: address, name. Prints its port when it serves; SIGTERM drains it.
"""

import asyncio
import json
import signal
import sys

from nova.domain.call import CallRequest, CallResult
from nova.domain.node import NodeReport
from tests.rpc.planes import serving


class Waiting:
    def __init__(self, name: str) -> None:
        self.name = name
        self.running = 0

    async def invoke(self, call: CallRequest) -> CallResult:
        self.running += 1
        try:
            await asyncio.sleep(json.loads(call.payload).get("wait_s", 0))
        finally:
            self.running -= 1
        return CallResult(call.request_id, 1, json.dumps(self.name).encode(), None, 1000, False, self.name)


async def main(address: str, name: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    invoker = Waiting(name)

    def report() -> NodeReport:
        return NodeReport(f"{name}-id", name, address, inflight=invoker.running)

    async with serving(address, invoker=invoker, report=report, drain_s=20) as server:
        print(server.port, flush=True)
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
