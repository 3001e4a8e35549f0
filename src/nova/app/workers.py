"""``corona`` and ``nebula``: the planes that work in the background, as processes of their own."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import structlog

from nova.app.cluster import grpc_address, own_exposition, register, telling
from nova.app.core import Stores, Trust, open_settings, open_stores, open_trust
from nova.app.duties import open_leases, schedule
from nova.app.events import work_off
from nova.app.execution import ExecutionPlane
from nova.app.home import take_home
from nova.app.process import Process, Progress
from nova.app.remote import open_comets
from nova.app.workshop import Workshop
from nova.config_sources import Loaded
from nova.domain.ports import Invoker, Scaler
from nova.events.accept import Queue
from nova.execution.exposition import Exposition
from nova.execution.metrics import Metrics
from nova.rpc.server import RpcServer
from nova.work.notices import Notices

log = structlog.get_logger(__name__)


class Worker(Process):
    """A plane without requests of its own: it serves grpc.health.v1, and works.

    ``comets`` are addresses to run calls on, none of them: those that registered; None: this process runs calls itself.
    """

    plane = ""

    def __init__(
        self,
        loaded: Loaded,
        *,
        comets: Sequence[str] | None,
        health: str,
        on_progress: Progress = lambda _step: None,
    ) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._comets = comets
        self._health = health

    async def compose(self) -> None:
        stores = await open_stores(self, alone=False)
        await open_settings(self, stores)
        trust = await open_trust(self, stores)
        metrics = Metrics(self.settings.metrics)
        invoker, scaler, exposition = await self._runners(stores, trust, metrics)
        await self.work(stores, invoker, scaler, metrics)

        async def healthy() -> Mapping[str, bool]:
            return {self.plane: await stores.db.ping() and stores.listener.connected}

        server = await self.services.start(
            RpcServer(
                self._health,
                trust.token,
                trust.assertions,
                healthy=healthy,
                drain_s=self.settings.daemon.drain_s,
            )
        )
        address = grpc_address(self, self._health, server.port)
        await register(self, stores, self.plane, address, load=telling(exposition))
        log.info("ready", plane=self.plane, address=address)

    async def _runners(self, stores: Stores, trust: Trust, metrics: Metrics) -> tuple[Invoker, Scaler, Exposition]:
        """Who runs calls, who keeps instances ready, and what this process counts: comets do the first two, or it does."""
        if self._comets is not None:
            comets = await open_comets(self, stores, trust, self._comets)
            return comets, comets, own_exposition(self, metrics)
        home = take_home(self.settings.data_dir)
        self.services.callback(home.release)
        self.say("preparing the sandbox")
        execution = ExecutionPlane(self.settings, stores, metrics, home.path, home.place)
        await execution.start(self.services)
        return execution.invoker, execution.scaler, execution.exposition

    @abstractmethod
    async def work(self, stores: Stores, invoker: Invoker, scaler: Scaler, metrics: Metrics) -> None:
        """Start what this plane is there for."""


class Corona(Worker):
    plane = "corona"

    async def work(self, stores: Stores, invoker: Invoker, scaler: Scaler, metrics: Metrics) -> None:
        await schedule(self, stores, await open_leases(self, stores), scaler, metrics)


class Nebula(Worker):
    plane = "nebula"

    async def work(self, stores: Stores, invoker: Invoker, scaler: Scaler, metrics: Metrics) -> None:
        notices = await self.services.start(Notices(stores.db))
        queue = await self.services.start(Queue(stores.db, notices, events=metrics))
        leases = await open_leases(self, stores)
        await work_off(Workshop(self.settings, stores, metrics, self.services, notices, invoker, queue, leases))
