"""``aurora``: the observability plane as a process of its own."""

from collections.abc import Mapping, Sequence

import structlog

from nova.api.system import Standing
from nova.app.asking import Asking
from nova.app.cluster import register
from nova.app.core import front_door, open_known, open_settings, open_stores, open_trust
from nova.app.duties import observe, open_leases
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.app.remote import open_comets
from nova.config_sources import Loaded
from nova.execution.exposition import Exposition
from nova.execution.logs import LogCounts
from nova.execution.metrics import Metrics
from nova.listen import Address
from nova.observability.aurora import AuroraApp
from nova.observability.gauges import PlatformGauges
from nova.observability.scrape import Scraper, Source
from nova.store.gauges import GaugeStore
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
        asking = Asking(comets, trust, namespace=namespace)
        own = Exposition(metrics, LogCounts(), lambda: {"pools": []}, namespace=namespace)
        platform = PlatformGauges(GaugeStore(stores.db), namespace=namespace)

        async def sources() -> Sequence[Source]:
            async def here() -> str:
                return own.prometheus("", None)[0].decode()

            return [
                Source({"node": "platform"}, platform.read),
                Source({"node": "aurora"}, here),
                *await asking.sources(),
            ]

        def admit(headers: Mapping[bytes, bytes], peer: str | None) -> None:
            door.authorize(door.identify(headers, peer), "metrics:read", None, platform=True)

        def standing() -> Mapping[str, Standing]:
            return {"aurora": "ok" if stores.listener.connected else "degraded"}

        app = AuroraApp(Scraper(sources, namespace=namespace), admit=admit, standing=standing)
        await side.serve(app, hand_over=False)
        await register(self, stores, "aurora", advertised("", side.address.host, side.address.port))
        log.info("ready", plane="aurora", url=side.url)
