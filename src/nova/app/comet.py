"""``comet``: the execution plane as a process of its own. It is spoken to over gRPC only."""

from collections.abc import Mapping

import structlog

from nova.api.table import Plane, Route, routes
from nova.app.cluster import advertisement, grpc_address, register
from nova.app.core import inner_door, open_known, open_settings, open_stores, open_trust
from nova.app.events import Accepting
from nova.app.execution import ExecutionPlane
from nova.app.home import take_home
from nova.app.process import Process
from nova.app.series import series_handlers
from nova.execution.metrics import Metrics
from nova.execution.node import NodeReporter
from nova.gateway.front import Front
from nova.http.bind import bind
from nova.http.inner import Inner
from nova.observability.readings import ReadingHandlers
from nova.rpc.server import RpcServer
from nova.work.membership import node_name

log = structlog.get_logger(__name__)
READINGS = frozenset({"metrics.get", "metrics.prometheus"})
"""Operations of observability that every comet answers for itself; whoever asks adds up."""


def table() -> list[Route]:
    """What a comet answers behind ProxyHTTP."""
    mine = (row for row in routes() if row.plane is Plane.EXECUTION or row.op in READINGS)
    return [row for row in mine if row.op not in Front.OPS]


class Comet(Process):
    async def compose(self) -> None:
        settings, services = self.settings, self.services
        stores = await open_stores(self, alone=False)
        await open_settings(self, stores)
        home = take_home(settings.data_dir)
        services.callback(home.release)
        self.say("preparing the sandbox")
        metrics = Metrics(settings.metrics)
        execution = ExecutionPlane(settings, stores, metrics, home.path, home.place)
        await execution.start(services)
        trust = await open_trust(self, stores)
        known = await open_known(self, stores)
        door = inner_door(self, known, trust, metrics)
        accepting = Accepting(stores, metrics)
        await accepting.start(services)
        application = bind(
            table(),
            [
                *execution.handlers(),
                *accepting.handlers(),
                *series_handlers(settings, stores, execution.spans),
                ReadingHandlers(execution.exposition),
            ],
            door=door,
            audit=stores.audit,
            limits=settings.limits,
        )

        async def healthy() -> Mapping[str, bool]:
            return {"": await stores.db.ping() and stores.listener.connected and execution.able}

        reporter = NodeReporter(
            execution.executor.stats,
            lambda: execution.exposition.totals(None),
            execution.working_backends,
            name=node_name(settings.cluster.node_id),
        )
        server = await services.start(
            RpcServer(
                settings.grpc.addr,
                trust.token,
                trust.assertions,
                invoker=execution.invoker,
                acceptor=accepting.queue,
                scaler=execution.scaler,
                evict=lambda scope, function: execution.fleet.evict(scope, function, ()),
                report=reporter.report,
                application=Inner(application, trust.token.proven_by),
                healthy=healthy,
                drain_s=settings.daemon.drain_s,
            )
        )
        address = grpc_address(self, settings.grpc.addr, server.port)
        member = await register(
            self,
            stores,
            "comet",
            address,
            node_id=reporter.node_id,
            info=advertisement(execution.router),
            load=reporter.load,
        )
        reporter.joined(member)
        services.callback(execution.executor.drain)
        log.info("ready", plane="comet", address=address)
