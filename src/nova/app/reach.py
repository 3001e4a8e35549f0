"""Where the calls of a ``nova up`` run: in this process, or in it and the other workers of its supervisor."""

import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from starlette.types import ASGIApp

from nova.api.system import Standing
from nova.app.core import Stores
from nova.app.execution import ExecutionPlane
from nova.app.series import series_handlers
from nova.config import Settings
from nova.domain.ports import Invoker, Scaler
from nova.execution.homes import Demands
from nova.execution.ledger import Ledger
from nova.http.shares import Shares
from nova.observability.gauges import PlatformGauges
from nova.observability.health import Pools
from nova.observability.readings import ReadingHandlers
from nova.store.gauges import GaugeStore


@dataclass(frozen=True, slots=True)
class Seat:
    """What a supervisor gives a worker. ``meeting`` is the directory of the workers' sockets, under a name that is short enough
    for them, ``ledger``, ``shares`` and ``demands`` what they count together; ``again``: there was a worker in this seat
    before."""

    number: int
    count: int
    sockets: Sequence[socket.socket]
    meeting: Path
    ledger: Ledger
    shares: Shares
    demands: Demands
    again: bool

    @property
    def first(self) -> bool:
        """Is this the worker that does what is done once?"""
        return self.number == 0


@dataclass(frozen=True, slots=True)
class Reach:
    """Who runs calls and keeps instances ready, who answers for what has been counted and recorded, and how instances are.
    ``elsewhere`` are operations that are carried on, and where to."""

    invoker: Invoker
    scaler: Scaler
    handlers: Sequence[object]
    pools: Pools
    standing: Callable[[], Standing]
    elsewhere: Mapping[str, ASGIApp] = field(default_factory=dict)


def alone(settings: Settings, stores: Stores, execution: ExecutionPlane) -> Reach:
    """Everything in this process."""
    gauges = PlatformGauges(GaugeStore(stores.db), namespace=settings.metrics.namespace)
    return Reach(
        execution.invoker,
        execution.scaler,
        [
            *execution.handlers(),
            *series_handlers(settings, stores, execution.spans),
            ReadingHandlers(execution.exposition, gauges.read),
        ],
        execution.executor.stats,
        lambda: "ok" if execution.able else "down",
    )
