"""A server process for tests of handover: ``python -m tests.http.handing OFFER_PATH [PORT]``.

It takes over from whoever offers at the path, else uses what the service manager opened, else listens on the port; says ``ready
PID PORT`` on standard output, answers every request with its process id, and ends when a successor has taken over or on
SIGTERM.
"""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import uvloop

from nova.handover import Offer, take_over
from nova.http.protocol import ConnectionLimits
from nova.http.server import HttpServer
from nova.listen import Address, activated, listening_socket


async def _app(scope: Any, receive: Any, send: Any) -> None:
    if scope["path"] == "/slow":
        await asyncio.sleep(0.3)
    body = str(os.getpid()).encode()
    head = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": head})
    await send({"type": "http.response.body", "body": body})


async def _main(path: Path, port: int) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    inherited = take_over(path)
    sockets = inherited.sockets if inherited else activated() or [listening_socket(Address("127.0.0.1", port))]
    if os.environ.get("FAIL_BEFORE_READY"):
        sys.exit(3)
    port = sockets[0].getsockname()[1]
    offer = Offer(path, sockets, stop.set)
    server = HttpServer(_app, sockets, limits=ConnectionLimits(), drain_s=10, idle_grace_s=0.3)
    await server.start()
    await offer.start()
    if inherited is not None:
        inherited.ready()
    print("ready", os.getpid(), port, flush=True)
    await stop.wait()
    await server.close()
    await offer.close()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0))
