"""The execution plane over gRPC: for ``comet``, and for a ``nova up`` that others may call too."""

from collections.abc import Mapping

from starlette.types import ASGIApp

from nova.api.table import Plane, Route, routes
from nova.app.cluster import advertisement, grpc_address, register
from nova.app.core import Known, Stores, Trust, inner_door, open_trust
from nova.app.events import Accepting
from nova.app.execution import ExecutionPlane
from nova.app.process import Process
from nova.app.series import series_handlers
from nova.execution.metrics import Metrics
from nova.gateway.front import Front
from nova.http.bind import bind
from nova.http.inner import Inner
from nova.observability.readings import ReadingHandlers
from nova.rpc.server import RpcServer

READINGS = frozenset({"metrics.get", "metrics.prometheus"})
"""Operations of observability that every comet answers for itself; whoever asks adds up."""


def table() -> list[Route]:
    """What a comet answers behind ProxyHTTP."""
    mine = (row for row in routes() if row.plane is Plane.EXECUTION or row.op in READINGS)
    return [row for row in mine if row.op not in Front.OPS]


def far_side(
    process: Process,
    stores: Stores,
    known: Known,
    trust: Trust,
    execution: ExecutionPlane,
    accepting: Accepting,
    metrics: Metrics,
) -> ASGIApp:
    """What answers behind ProxyHTTP: the data plane's operations, for this process alone."""
    return bind(
        table(),
        [
            *execution.handlers(),
            *accepting.handlers(),
            *series_handlers(process.settings, stores, execution.spans),
            ReadingHandlers(execution.exposition),
        ],
        door=inner_door(process, known, trust, metrics),
        audit=stores.audit,
        limits=process.settings.limits,
    )


async def serve_execution(
    process: Process,
    stores: Stores,
    known: Known,
    execution: ExecutionPlane,
    accepting: Accepting,
    metrics: Metrics,
) -> str:
    """Serve ``nova.v1.Execution`` at ``grpc.addr`` and join the cluster as a comet; where others reach it."""
    settings, services = process.settings, process.services
    trust = await open_trust(process, stores)
    application = far_side(process, stores, known, trust, execution, accepting, metrics)

    async def healthy() -> Mapping[str, bool]:
        return {"comet": await stores.db.ping() and stores.listener.connected and execution.able}

    reporter = execution.reporter()
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
    address = grpc_address(process, settings.grpc.addr, server.port)
    await execution.router.look()
    member = await register(
        process,
        stores,
        "comet",
        address,
        node_id=reporter.node_id,
        info=advertisement(execution.router),
        load=reporter.load,
        changed=lambda state: execution.executor.set_aside(state == "draining"),
    )
    reporter.joined(member)
    execution.router.on_change(lambda: member.tell(advertisement(execution.router)))
    services.callback(execution.executor.drain)
    return address
