"""Docker by published ports, in the network where the engine is: ``published.py FOLDER NODE`` prints what came of it.

It has to run there because the ports, the bridge and its packet filter are that network's.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

from nova.domain.function import NetworkPolicy
from nova.errors import NovaError
from nova.execution.backends.docker.place import Place
from nova.execution.backends.docker.published import Published
from nova.telemetry import configure_logging
from tests.backends.cases import Case as AnyCase
from tests.backends.docker import ground
from tests.backends.docker.case import Case
from tests.backends.harness import Maker

CODE = """
import socket


def reach(host, port):
    try:
        socket.create_connection((host, port), 0.5).close()
    except ConnectionRefusedError:
        return "refused"
    except OSError as error:
        return type(error).__name__
    return "reached"


def handler(event):
    if "reach" in event:
        return [reach(*target) for target in event["reach"]]
    return {"length": len(event["text"]), "text": "x" * event["answer"]}
"""


async def main(folder: Path, node: str) -> None:
    backend = ground.backend(folder, node, published=Published("nova-test-net", 21000, 21099))
    await backend.start()
    found = cast(AnyCase, Case())
    maker = Maker(found, backend, folder, found.artifact(CODE, folder))
    report: dict[str, Any] = {}
    try:
        capabilities = await backend.capabilities()
        report["available"], report["reason"] = capabilities.available, capabilities.reason
        report["rules"], report["template"] = capabilities.enforces["network_rules"], capabilities.template
        one, two = await maker.load(), await maker.load()
        answer = await one.do("", text="y" * 3_000_000, answer=2_000_000)
        report["answer"] = [answer["length"], len(answer["text"])]
        place = one.instance
        assert isinstance(place, Place)
        shown = ground.ask(f"/containers/{place.container}/json")
        report["port"] = shown["NetworkSettings"]["Ports"]["9999/tcp"]
        network = shown["NetworkSettings"]["Networks"]["nova-test-net"]
        targets = [[network["Gateway"], 22000], [network["IPAddress"], 9999], ["192.0.2.1", 80]]
        listener = await asyncio.start_server(lambda _reader, writer: writer.close(), network["Gateway"], 22000)
        report["reached"] = await two.do("", reach=targets)
        listener.close()
        try:
            await backend.create(maker.spec(network=NetworkPolicy()))
        except NovaError as error:
            report["egress"] = [error.code, error.detail.split(":")[0]]
        await one.stop()
        await two.stop()
    finally:
        await backend.close()
    report["left"] = len(ground.containers(node))
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    configure_logging("error")
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))
