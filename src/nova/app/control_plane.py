"""``nova daemon --planes control``: the control plane as a process of its own, behind zenith."""

import structlog

from nova.api.table import Plane, Route, routes
from nova.app.cluster import BackendNews, own_exposition, register, telling
from nova.app.control import control_handlers, health_handlers
from nova.app.core import inner_door, open_known, open_settings, open_stores, open_trust
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.config_sources import Loaded
from nova.execution.backends.advertised import AdvertisedBackends
from nova.execution.backends.listing import BackendHandlers
from nova.execution.metrics import Metrics
from nova.http.bind import bind
from nova.http.inner import Inner
from nova.listen import Address
from nova.runtimes.registry import Runtimes
from nova.work.membership import advertised

log = structlog.get_logger(__name__)
HEALTH = frozenset({"health.get", "health.live", "health.ready", "health.startup", "live", "ready", "startup"})
"""Every process that speaks HTTP answers these for itself."""


def table() -> list[Route]:
    """What the control plane answers."""
    return [row for row in routes() if row.plane is Plane.CONTROL or row.op in HEALTH]


class ControlPlane(Process):
    def __init__(
        self, loaded: Loaded, *, address: Address, take_over: bool, on_progress: Progress = lambda _step: None
    ) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._address = address
        self._take_over = take_over

    async def compose(self) -> None:
        settings, services = self.settings, self.services
        side = HttpSide(self, "nova", self._address, public=False, inherit=self._take_over)
        stores = await open_stores(self, alone=False)
        live = await open_settings(self, stores)
        trust = await open_trust(self, stores)
        metrics = Metrics(settings.metrics)
        known = await open_known(self, stores)
        door = inner_door(self, known, trust, metrics)
        backends = AdvertisedBackends(
            default=settings.execution.backend,
            default_isolation=settings.network_policy.default_isolation,
            strict_limits=settings.execution.strict_limits,
        )
        await services.start(BackendNews(stores, backends))
        application = bind(
            table(),
            [
                *control_handlers(settings, stores, known, live, Runtimes(), backends),
                BackendHandlers(backends),
                health_handlers(
                    stores,
                    draining=lambda: side.draining,
                    planes=lambda: {"nova": "ok" if stores.listener.connected else "degraded"},
                ),
            ],
            door=door,
            audit=stores.audit,
            limits=settings.limits,
        )
        await side.serve(Inner(application, trust.token.proven_by), hand_over=True)
        address = advertised("", side.address.host, side.address.port)
        await register(self, stores, "nova", address, load=telling(own_exposition(self, metrics)))
        log.info("ready", plane="nova", url=side.url)
