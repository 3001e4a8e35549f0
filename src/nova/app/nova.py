"""``nova up``: every plane in one process. Calls, and everything else between planes, stay in it; with ``--workers``, as far as
the process owns the functions they are for."""

import structlog

from nova.api.system import Standing
from nova.api.table import routes
from nova.app.cluster import advertisement, register
from nova.app.control import control_handlers, health_handlers
from nova.app.core import Known, Stores, front_door, open_known, open_settings, open_stores
from nova.app.duties import observe, open_leases, schedule
from nova.app.events import Accepting, work_off
from nova.app.execution import ExecutionPlane
from nova.app.home import take_home
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.app.reach import Reach, Seat, alone
from nova.app.triggers import hooks
from nova.app.workshop import Workshop
from nova.config_sources import Loaded
from nova.control.settings import LiveSettings
from nova.domain.ownership import Ownership
from nova.execution.backends.listing import BackendHandlers
from nova.execution.executor import Executor
from nova.execution.metrics import Metrics
from nova.gateway.forward import carried
from nova.gateway.front import Front
from nova.gateway.modes import UrlModes
from nova.gateway.tracing import at_the_door
from nova.http.bind import bind
from nova.listen import Address
from nova.security.guards import Door
from nova.store.embedded import EmbeddedPostgres
from nova.work.membership import advertised

log = structlog.get_logger(__name__)


class Nova(Process):
    """Every plane in this process. ``seat``: it is one of several workers; the first of them also does what is done once,
    background work and builds. ``database``: the embedded server, if somebody has begun to start it."""

    def __init__(
        self,
        loaded: Loaded,
        *,
        address: Address,
        seat: Seat | None = None,
        database: EmbeddedPostgres | None = None,
        on_progress: Progress = lambda _step: None,
    ) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._address = address
        self._seat = seat
        self._database = database
        self._url = f"http://{address.shown}"
        self.default_network: str = ""
        """The isolation that functions without a network policy get on this host."""

    @property
    def url(self) -> str:
        """Where the platform answers; the real port, also when 0 was asked for."""
        return self._url

    async def compose(self) -> None:
        settings, services, seat = self.settings, self.services, self._seat
        given, share = (seat.sockets, seat.shares.of(seat.number)) if seat else ((), None)
        side = HttpSide(self, "nova", self._address, public=True, given=given, share=share)
        self._url = side.url
        stores = await open_stores(self, alone=True, workers=seat.count if seat else 0, server=self._database)
        live = await open_settings(self, stores)
        self.say("preparing the sandbox")
        metrics = Metrics(settings.metrics)
        known = await open_known(self, stores)
        door = front_door(self, known, metrics)
        execution = self._execution(stores, metrics)
        await execution.start(services)
        self.default_network = execution.router.default_network("auto").isolation_mode
        accepting = Accepting(stores, metrics)
        await accepting.start(services)
        execution.guests.acceptor = accepting.queue
        reach = await self._reach(stores, known, execution, accepting, metrics)
        execution.guests.invoker = reach.invoker
        application = bind(
            routes(),
            [*self._handlers(stores, known, live, execution, reach), *accepting.handlers()],
            door=door,
            audit=stores.audit,
            limits=settings.limits,
            elsewhere=Front.OPS,
            endpoints=carried(routes(), reach.elsewhere, door=door, audit=stores.audit, limits=settings.limits),
        )
        front = Front(
            at_the_door(reach.invoker, execution.tracing),
            door,
            stores.audit,
            application,
            limits=settings.limits,
            acceptor=accepting.queue,
            overhead=metrics.overhead,
            modes=UrlModes(stores.functions, stores.listener),
            hooks=await hooks(settings, stores, services, reach.invoker, accepting.queue, metrics),
        )
        if seat is None or seat.first:
            leases = await open_leases(self, stores)
            shop = Workshop(
                settings,
                stores,
                metrics,
                services,
                accepting.notices,
                reach.invoker,
                accepting.queue,
                leases,
                execution.durable,
            )
            await work_off(shop)
            await schedule(self, stores, leases, reach.scaler, metrics)
            await observe(self, stores, leases, metrics)
        if settings.grpc.enabled:
            from nova.app.rpc import serve_execution  # takes its time, and most never need it

            await serve_execution(self, stores, known, execution, accepting, metrics)
        await side.serve(front, hand_over=False)
        reporter = execution.reporter()
        member = await register(
            self,
            stores,
            "nova",
            advertised("", side.address.host, side.address.port),
            node_id=reporter.node_id,
            info=advertisement(execution.router),
            load=reporter.load,
        )
        reporter.joined(member)
        execution.router.on_change(lambda: member.tell(advertisement(execution.router)))
        execution.router.explore()
        services.callback(lambda: _drain(door, execution.executor))
        log.info("ready" if seat is None else "worker ready", url=self.url)

    def _execution(self, stores: Stores, metrics: Metrics) -> ExecutionPlane:
        """The execution plane; of a worker, in its own place of the data directory."""
        settings, seat = self.settings, self._seat
        if seat is None:
            return ExecutionPlane(settings, stores, metrics, settings.data_dir)
        home = take_home(settings.data_dir, seat.number)
        self.services.callback(home.release)
        ownership = Ownership(seat.number, seat.count)
        ledger = seat.ledger.of(seat.number)
        return ExecutionPlane(settings, stores, metrics, home.path, home.place, ownership=ownership, ledger=ledger)

    async def _reach(
        self, stores: Stores, known: Known, execution: ExecutionPlane, accepting: Accepting, metrics: Metrics
    ) -> Reach:
        if self._seat is None:
            return alone(self.settings, stores, execution)
        from nova.app.crew import join  # as above

        return await join(self, self._seat, stores, known, execution, accepting, metrics)

    def _handlers(
        self, stores: Stores, known: Known, live: LiveSettings, execution: ExecutionPlane, reach: Reach
    ) -> list[object]:
        return [
            *control_handlers(self.settings, stores, known, live, execution.runtimes, execution.router),
            BackendHandlers(execution.router),
            *reach.handlers,
            health_handlers(
                stores,
                draining=lambda: execution.executor.draining,
                planes=lambda: _standing(stores, execution, reach),
                fleet=reach.pools,
            ),
        ]


def _drain(door: Door, executor: Executor) -> None:
    """The first step of a shutdown: say so to probes and to whoever knocks, while calls in flight go on."""
    door.draining = True
    executor.drain()


def _standing(stores: Stores, execution: ExecutionPlane, reach: Reach) -> dict[str, Standing]:
    """How each plane of this process stands. Zenith is the one that answers."""
    return {
        "zenith": "ok",
        "nova": "ok" if stores.listener.connected else "degraded",
        "comet": reach.standing(),
        "corona": "ok",
        "nebula": "ok",
        "aurora": "degraded" if execution.logs.in_outage else "ok",
    }
