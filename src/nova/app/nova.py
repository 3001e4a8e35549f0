"""``nova up``: every plane in one process. Calls, and everything else between planes, stay in it."""

import structlog

from nova.api.system import Standing
from nova.api.table import routes
from nova.app.cluster import advertisement, register
from nova.app.control import control_handlers, health_handlers
from nova.app.core import Known, Stores, front_door, open_known, open_settings, open_stores
from nova.app.duties import observe, open_leases, schedule
from nova.app.events import Accepting, work_off
from nova.app.execution import ExecutionPlane
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.app.series import series_handlers
from nova.config_sources import Loaded
from nova.control.settings import LiveSettings
from nova.execution.executor import Executor
from nova.execution.metrics import Metrics
from nova.gateway.front import Front
from nova.gateway.modes import UrlModes
from nova.gateway.tracing import at_the_door
from nova.http.bind import bind
from nova.listen import Address
from nova.observability.gauges import PlatformGauges
from nova.observability.readings import ReadingHandlers
from nova.security.guards import Door
from nova.store.gauges import GaugeStore
from nova.work.membership import advertised

log = structlog.get_logger(__name__)


class Nova(Process):
    """Every plane in this process."""

    def __init__(self, loaded: Loaded, *, address: Address, on_progress: Progress = lambda _step: None) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._address = address
        self._url = f"http://{address.shown}"
        self.default_network: str = ""
        """The isolation that functions without a network policy get on this host."""

    @property
    def url(self) -> str:
        """Where the platform answers; the real port, also when 0 was asked for."""
        return self._url

    async def compose(self) -> None:
        settings, services = self.settings, self.services
        side = HttpSide(self, "nova", self._address, public=True)
        self._url = side.url
        stores = await open_stores(self, alone=True)
        live = await open_settings(self, stores)
        self.say("preparing the sandbox")
        metrics = Metrics(settings.metrics)
        known = await open_known(self, stores)
        door = front_door(self, known, metrics)
        execution = ExecutionPlane(settings, stores, metrics, settings.data_dir)
        await execution.start(services)
        self.default_network = execution.router.default_network("auto").isolation_mode
        accepting = Accepting(stores, metrics)
        await accepting.start(services)
        application = bind(
            routes(),
            [*self._handlers(stores, known, live, execution), *accepting.handlers()],
            door=door,
            audit=stores.audit,
            limits=settings.limits,
            elsewhere=Front.OPS,
        )
        front = Front(
            at_the_door(execution.invoker, execution.tracing),
            door,
            stores.audit,
            application,
            limits=settings.limits,
            acceptor=accepting.queue,
            overhead=metrics.overhead,
            modes=UrlModes(stores.functions, stores.listener),
        )
        await work_off(settings, stores, metrics, services, accepting.notices, execution.invoker)
        leases = await open_leases(self, stores)
        await schedule(self, stores, leases, execution.scaler, metrics)
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
        services.callback(lambda: _drain(door, execution.executor))
        log.info("ready", url=self.url)

    def _handlers(self, stores: Stores, known: Known, live: LiveSettings, execution: ExecutionPlane) -> list[object]:
        executor = execution.executor
        gauges = PlatformGauges(GaugeStore(stores.db), namespace=self.settings.metrics.namespace)
        return [
            *control_handlers(self.settings, stores, known, live, execution.runtimes, execution.router),
            *execution.handlers(),
            *series_handlers(self.settings, stores, execution.spans),
            health_handlers(
                stores,
                draining=lambda: executor.draining,
                planes=lambda: _standing(stores, execution),
                fleet=executor.stats,
            ),
            ReadingHandlers(execution.exposition, gauges.read),
        ]


def _drain(door: Door, executor: Executor) -> None:
    """The first step of a shutdown: say so to probes and to whoever knocks, while calls in flight go on."""
    door.draining = True
    executor.drain()


def _standing(stores: Stores, execution: ExecutionPlane) -> dict[str, Standing]:
    """How each plane of this process stands. Zenith is the one that answers."""
    return {
        "zenith": "ok",
        "nova": "ok" if stores.listener.connected else "degraded",
        "comet": "ok" if execution.able else "down",
        "corona": "ok",
        "nebula": "ok",
        "aurora": "degraded" if execution.logs.in_outage else "ok",
    }
