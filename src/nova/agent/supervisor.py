"""The agent: first process of an instance and supervisor of its workers."""

import os
import socket
from typing import NoReturn

from nova.agent.config import AgentConfig


def run(control: socket.socket, config: AgentConfig) -> NoReturn:
    """Serve the host on ``control`` (a connected stream socket) until it goes away; never returns."""
    os._exit(0)
