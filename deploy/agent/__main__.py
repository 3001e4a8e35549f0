"""``nova-agent FD CONFIG``: the agent of one instance, as one file that needs nothing but Python.

FD is the number of a connected stream socket to the host, CONFIG a JSON object: ``token_sha256`` (hex), ``instance_id``,
``runtime``, ``worker`` (the launch of docs/agent.md), ``code_dir`` and, where code may be replaced, ``reload_dir``. It is for
whoever builds an instance around it; the sandbox starts its agents itself.
"""

import json
import socket
import sys

from nova.agent import preload, supervisor
from nova.agent.config import AgentConfig, WorkerLaunch


def main(argv: list[str]) -> None:
    """Never returns once the agent runs; exit code 1 for a wrong command line."""
    try:
        control, text = argv
        given = json.loads(text)
        config = AgentConfig(
            token_sha256=bytes.fromhex(given["token_sha256"]),
            instance_id=given["instance_id"],
            runtime=given["runtime"],
            worker=WorkerLaunch.of(given["worker"]),
            code_dir=given["code_dir"],
            reload_dir=given.get("reload_dir"),
        )
        connection = socket.socket(fileno=int(control))
    except (KeyError, TypeError, ValueError, OSError) as exc:
        sys.exit(f"nova-agent: usage: nova-agent FD CONFIG; {type(exc).__name__}: {exc}".replace("\n", " "))
    preload.warm_up([config.worker.module] if config.worker.kind == "fork" else [])
    supervisor.run(connection, config)


if __name__ == "__main__":
    main(sys.argv[1:])
