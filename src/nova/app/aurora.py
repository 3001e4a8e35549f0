"""``aurora``: the observability plane as a process of its own."""

from collections.abc import Mapping

import structlog

from nova.api.system import Standing
from nova.app.asking import Asking
from nova.app.cluster import own_exposition, register, telling
from nova.app.core import front_door, open_known, open_settings, open_stores, open_trust
from nova.app.duties import observe, open_leases
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.app.remote import open_comets
from nova.config_sources import Loaded
from nova.execution.metrics import Metrics
from nova.listen import Address
from nova.observability.aurora import AuroraApp
from nova.observability.scrape import Scraper
from nova.work.membership import advertised

log = structlog.get_logger(__name__)


class Aurora(Process):
    def __init__(self, loaded: Loaded, *, address: Address, on_progress: Progress = lambda _step: None) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._address = address

    async def compose(self) -> None:
        settings = self.settings
        side = HttpSide(self, "aurora", self._address, public=True)
        stores = await open_stores(self, alone=False)
        await open_settings(self, stores)
        trust = await open_trust(self, stores)
        metrics = Metrics(settings.metrics)
        door = front_door(self, await open_known(self, stores), metrics)
        comets = await open_comets(self, stores, trust, ())
        await observe(self, stores, await open_leases(self, stores), metrics)
        namespace = settings.metrics.namespace
        asking = Asking(comets, trust, stores, namespace=namespace)

        def admit(headers: Mapping[bytes, bytes], peer: str | None) -> None:
            door.authorize(door.identify(headers, peer), "metrics:read", None, platform=True)

        def standing() -> Mapping[str, Standing]:
            return {"aurora": "ok" if stores.listener.connected else "degraded"}

        app = AuroraApp(Scraper(asking.sources, namespace=namespace), admit=admit, standing=standing)
        await side.serve(app, hand_over=False)
        address = advertised("", side.address.host, side.address.port)
        await register(self, stores, "aurora", address, load=telling(own_exposition(self, metrics)))
        log.info("ready", plane="aurora", url=side.url)
