"""How a process takes its place in the cluster: its row, and what the rows of others tell."""

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, fields
from typing import Any

import structlog

from nova import __version__
from nova.app.core import Stores
from nova.app.process import Process
from nova.domain.node import NodeState
from nova.execution.backends.advertised import AdvertisedBackends
from nova.execution.backends.base import Capabilities
from nova.execution.backends.router import BackendRouter
from nova.execution.exposition import Exposition
from nova.execution.logs import LogCounts
from nova.execution.metrics import Metrics
from nova.execution.node import HostCpu, HostMemory, architecture
from nova.store.listen import Channel
from nova.store.mirror import Mirror
from nova.store.nodes import NodeStore
from nova.work.membership import Membership, advertised, node_name

log = structlog.get_logger(__name__)


async def register(
    process: Process,
    stores: Stores,
    plane: str,
    address: str,
    *,
    node_id: str | None = None,
    info: Mapping[str, Any] | None = None,
    load: Callable[[], Mapping[str, Any]] = dict,
    changed: Callable[[NodeState], None] = lambda _state: None,
) -> Membership:
    """Write this process's row, and keep it while the process lives."""
    settings = process.settings
    return await process.services.start(
        Membership(
            NodeStore(stores.db),
            stores.listener,
            plane=plane,
            name=node_name(settings.cluster.node_id),
            address=address,
            labels=settings.cluster.labels,
            info={**host_info(), **(info or {})},
            load=load,
            changed=changed,
            node_id=node_id,
        )
    )


SERIES = "series"
"""Where a process that is asked by nobody leaves its series, in its row's load."""


def telling(exposition: Exposition) -> Callable[[], dict[str, Any]]:
    """The load of such a process."""
    return lambda: {SERIES: exposition.prometheus("", None)[0].decode()}


def own_exposition(process: Process, metrics: Metrics) -> Exposition:
    """The series of a process that runs no functions."""
    return Exposition(metrics, LogCounts(), lambda: {"pools": []}, namespace=process.settings.metrics.namespace)


def grpc_address(process: Process, listens: str, port: int) -> str:
    """Where others reach the gRPC server of this process, which listens on the address ``listens``."""
    if listens.startswith("unix:"):
        return listens
    host = listens.rpartition(":")[0].strip("[]") or "127.0.0.1"
    return advertised(process.settings.cluster.address, host, port)


def host_info() -> dict[str, Any]:
    return {
        "version": __version__,
        "arch": architecture(),
        "cpu_cores": HostCpu().cores,
        "memory_mb": HostMemory().usage_mb()[0],
        "pid": os.getpid(),
    }


def advertisement(router: BackendRouter) -> dict[str, Any]:
    """What a comet says of its backends, for planes that run no instances."""
    return {"backends": {name: _plain(found) for name, found in router.capabilities.items()}}


def _plain(found: Capabilities) -> dict[str, Any]:
    said = asdict(found)
    return {**said, "runtimes": None if found.runtimes is None else sorted(found.runtimes)}


class BackendNews:
    """Teaches :class:`AdvertisedBackends` what the newest comet enforces."""

    def __init__(self, stores: Stores, backends: AdvertisedBackends) -> None:
        self._nodes = NodeStore(stores.db)
        self._backends = backends
        self._mirror = Mirror("backends", stores.listener, Channel.NODES, self._refresh)

    async def start(self) -> None:
        await self._mirror.start()

    async def close(self) -> None:
        await self._mirror.close()

    async def _refresh(self, _changed: frozenset[str] | None) -> None:
        for comet in await self._nodes.alive("comet"):
            said = comet.info.get("backends", {})
            try:
                self._backends.learn({name: _capabilities(one) for name, one in said.items()})
            except TypeError as exc:
                log.warning("a comet of another version advertises what this one cannot read", error=str(exc))


_KNOWN = frozenset(field.name for field in fields(Capabilities))


def _capabilities(said: Mapping[str, Any]) -> Capabilities:
    """Of a comet of any version: what it leaves out it cannot do, and what is unknown here nobody asks for."""
    runtimes = said.get("runtimes")
    known = {name: value for name, value in said.items() if name in _KNOWN}
    return Capabilities(**{**known, "runtimes": None if runtimes is None else frozenset(runtimes)})
