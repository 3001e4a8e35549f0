"""The other way to an agent: a port on this host's loopback, where no socket can be shared with containers.

A published port needs a network. So these containers share a bridge of their own, on which the host's packet filter lets them
answer and nothing else: they open no connection to anybody, neither beyond the host, nor to the host, nor to each other.
"""

import asyncio
import os
import socket
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception_type, wait_fixed

from nova.execution.backends.docker.engine import Engine
from nova.execution.backends.sandbox.nftables import Nftables
from nova.execution.channel_control import ControlLost
from nova.execution.relay import relayed

PORT: Final = 9999
"""Where the agent listens inside."""
_KEY: Final = f"{PORT}/tcp"
_AGAIN_S: Final = 0.02
_RULES: Final = """
add table inet {table}
delete table inet {table}
table inet {table} {{
  chain beyond {{
    type filter hook forward priority filter - 10; policy accept;
    iifname "{network}" ct state established,related accept
    iifname "{network}" drop
  }}
  chain host {{
    type filter hook input priority filter - 10; policy accept;
    iifname "{network}" ct state established,related accept
    iifname "{network}" drop
  }}
}}
"""


@dataclass(frozen=True, slots=True)
class Published:
    """``network`` names the engine's network and its bridge; ports of the host are between ``first`` and ``last``."""

    network: str
    first: int
    last: int

    async def close_off(self) -> None:
        """Install the rules, before the network is there. Raises OSError where this user or host cannot."""
        if os.geteuid() != 0:
            raise PermissionError(1, "the packet filter is root's")
        await asyncio.to_thread(self._install)

    def _install(self) -> None:
        table = "nova_docker_" + "".join(letter if letter.isalnum() else "_" for letter in self.network)
        nftables = Nftables()
        try:
            nftables.apply(_RULES.format(table=table, network=self.network))
        finally:
            nftables.close()

    async def ensure(self, engine: Engine) -> None:
        """Make the network unless it is there. Raises EngineLost, EngineRefused."""
        options = {
            "com.docker.network.bridge.name": self.network,
            "com.docker.network.bridge.enable_icc": "false",
            "com.docker.network.bridge.enable_ip_masquerade": "false",
        }
        await engine.ensure_network(
            {"Name": self.network, "Driver": "bridge", "CheckDuplicate": True, "Options": options}
        )

    def _isolate(self) -> None:
        """Every port of the bridge reaches the bridge alone. The new container's has just appeared, and no code runs there."""
        try:
            with IPRoute() as route:
                for bridge in route.link_lookup(ifname=self.network):
                    for link in route.get_links(master=bridge):
                        route.brport("set", index=link["index"], isolated=1)
        except NetlinkError as error:
            raise OSError(error.code, f"netlink: {error}") from error

    def ports(self) -> dict[str, Any]:
        """What publishes the agent's port on a free one of the range, as parts of a container's ``HostConfig``."""
        bound = {"HostIp": "127.0.0.1", "HostPort": f"{self.first}-{self.last}"}
        return {"NetworkMode": self.network, "PortBindings": {_KEY: [bound]}}

    async def dial(self, engine: Engine, container: str, ended: "asyncio.Future[Any]") -> socket.socket:
        """A control socket to the agent, through a relay. The engine's proxy takes connections before the agent does, so the
        first ones may end at once. Raises ControlLost when the container has ended, OSError."""
        await asyncio.to_thread(self._isolate)
        shown = await engine.inspect(container)
        bound = shown["NetworkSettings"]["Ports"].get(_KEY) or []
        if not bound:
            raise ControlLost("the container ended before it could be reached")
        address = ("127.0.0.1", int(bound[0]["HostPort"]))

        def gone(_state: RetryCallState) -> bool:
            return ended.done()

        again = retry_if_exception_type((ControlLost, OSError))
        async for attempt in AsyncRetrying(retry=again, stop=gone, wait=wait_fixed(_AGAIN_S), reraise=True):
            with attempt:
                return await _reach(address)
        raise AssertionError("unreachable")


async def _reach(address: tuple[str, int]) -> socket.socket:
    stream = socket.socket()
    try:
        stream.setblocking(False)
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(stream, address)
    except BaseException:
        stream.close()
        raise
    return await relayed(stream)
