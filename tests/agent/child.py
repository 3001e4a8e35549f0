"""Runs one agent in this process, without any isolation: ``child.py <src folder> <control fd> <config json>``."""

import json
import socket
import sys

source, control, config_text = sys.argv[1:]
sys.path.insert(0, source)

from nova.agent import control as control_side  # noqa: E402
from nova.agent import preload, supervisor  # noqa: E402
from nova.agent.config import AgentConfig, WorkerLaunch  # noqa: E402

config = json.loads(config_text)
launch = WorkerLaunch.of(config["worker"])
control_side.HELLO_DEADLINE_S = config["hello_deadline_s"]  # type: ignore[misc]
preload.warm_up([launch.module] if launch.kind == "fork" else [])
supervisor.run(
    socket.socket(fileno=int(control)),
    AgentConfig(
        token_sha256=bytes.fromhex(config["token_sha256"]),
        instance_id=config["instance_id"],
        runtime=config["runtime"],
        worker=launch,
        code_dir=config["code_dir"],
        reload_dir=config["reload_dir"],
        guest_port=0,
        relayed=config.get("relayed", False),
    ),
)
