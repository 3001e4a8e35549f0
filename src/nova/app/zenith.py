"""``zenith``: the one public door as a process of its own. It runs nothing itself."""

from collections.abc import Mapping, Sequence

import structlog

from nova.api.system import Standing
from nova.api.table import Plane, routes
from nova.app.asking import Asking
from nova.app.cluster import own_exposition, register, telling
from nova.app.control import health_handlers
from nova.app.control_plane import HEALTH
from nova.app.core import front_door, open_known, open_settings, open_stores, open_trust
from nova.app.http import HttpSide
from nova.app.process import Process, Progress
from nova.app.remote import open_comets
from nova.app.rpc import READINGS
from nova.app.triggers import hooks
from nova.clock import SYSTEM_CLOCK
from nova.config_sources import Loaded
from nova.events.accept import Queue
from nova.events.accepting import AcceptHandlers
from nova.execution.metrics import Metrics
from nova.execution.prewarm import PrewarmHandlers
from nova.gateway.forward import forwarding
from nova.gateway.front import Front
from nova.gateway.health import WORKERS, Standings, standing_of
from nova.gateway.modes import UrlModes
from nova.gateway.tracing import at_the_door
from nova.http.bind import bind
from nova.http.proxy import HttpProxy
from nova.listen import Address
from nova.observability.merged import MergedHandlers
from nova.observability.spans import SpanWriter
from nova.store.nodes import NodeStore
from nova.store.spans import SpanStore
from nova.tracing import open_tracing
from nova.work.membership import advertised, node_name
from nova.work.notices import Notices

log = structlog.get_logger(__name__)
MERGED = frozenset({*READINGS, "stats.get"})
"""What zenith answers by asking every comet."""
ACCEPTED = frozenset({"function.invoke_async"})
"""What zenith puts into the queue itself: it takes a database and nobody else."""
SHARED = frozenset({"function.prewarm"})
"""What every comet does its share of."""


class Zenith(Process):
    def __init__(
        self,
        loaded: Loaded,
        *,
        address: Address,
        nova_url: str,
        comets: Sequence[str] | None,
        take_over: bool,
        on_progress: Progress = lambda _step: None,
    ) -> None:
        super().__init__(loaded, on_progress=on_progress)
        self._address = address
        self._nova_url = nova_url
        self._comets = comets or ()
        self._take_over = take_over

    async def compose(self) -> None:
        settings, services = self.settings, self.services
        side = HttpSide(self, "zenith", self._address, public=True, inherit=self._take_over)
        stores = await open_stores(self, alone=False)
        await open_settings(self, stores)
        trust = await open_trust(self, stores)
        metrics = Metrics(settings.metrics)
        door = front_door(self, await open_known(self, stores), metrics)
        comets = await open_comets(self, stores, trust, self._comets)
        nova = await services.start(HttpProxy(self._nova_url, trust.token, trust.assertions, name="nova"))
        asking = Asking(comets, trust, stores, namespace=settings.metrics.namespace)
        nodes = NodeStore(stores.db)
        queue = await services.start(Queue(stores.db, await services.start(Notices(stores.db)), events=metrics))

        async def workers() -> Mapping[str, Standing]:
            return {name: "ok" for name in WORKERS if await nodes.alive(name)}

        async def comet() -> Standing:
            return comets.standing()

        standings = Standings({"nova": lambda: standing_of(nova), "comet": comet}, workers, SYSTEM_CLOCK)
        table = list(routes())
        here = HEALTH | MERGED | ACCEPTED | SHARED | set(Front.OPS)
        application = bind(
            table,
            [
                MergedHandlers(asking, asking.scrape),
                AcceptHandlers(queue),
                PrewarmHandlers(comets),
                health_handlers(stores, draining=lambda: side.draining, planes=standings),
            ],
            door=door,
            audit=stores.audit,
            limits=settings.limits,
            elsewhere=Front.OPS,
            endpoints=forwarding(
                table,
                {Plane.EXECUTION: comets.proxy, Plane.CONTROL: nova},
                here=here,
                door=door,
                audit=stores.audit,
                limits=settings.limits,
            ),
        )
        spans = await services.start(SpanWriter(SpanStore(stores.db)))
        tracing = open_tracing(settings.tracing, node=node_name(settings.cluster.node_id), sinks=(spans.add,))
        if tracing is not None:
            await services.start(tracing)
        front = Front(
            at_the_door(comets, tracing),
            door,
            stores.audit,
            application,
            limits=settings.limits,
            acceptor=queue,
            overhead=metrics.overhead,
            modes=UrlModes(stores.functions, stores.listener),
            hooks=await hooks(settings, stores, services, comets, queue, metrics),
        )
        await side.serve(front, hand_over=True)
        address = advertised("", side.address.host, side.address.port)
        await register(self, stores, "zenith", address, load=telling(own_exposition(self, metrics)))
        log.info("ready", plane="zenith", url=side.url)
