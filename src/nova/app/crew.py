"""The workers of a ``nova up --workers N`` seen from one of them: its reach is what all of them together have and do."""

import asyncio
from typing import Any

import structlog
from tenacity import AsyncRetrying, retry_if_exception_type, stop_after_delay, wait_fixed

from nova.api.system import PoolHealth, Standing
from nova.app.asking import Asking
from nova.app.core import Known, Stores, Trust, open_trust
from nova.app.events import Accepting
from nova.app.execution import ExecutionPlane
from nova.app.process import Process
from nova.app.reach import Reach, Seat
from nova.app.rpc import far_side
from nova.app.series import series_handlers
from nova.app.talking import Answerer, Listening, Others
from nova.domain.ownership import Ownership
from nova.errors import NovaError
from nova.execution.figures import FigureHandlers
from nova.execution.homes import Home
from nova.execution.metrics import Metrics
from nova.execution.spreading import Spreading
from nova.http.handler import handlers_of
from nova.http.inner import Inner
from nova.observability.merged import MergedFunction, MergedHandlers, MergedSnapshots
from nova.rpc.comets import Comets
from nova.rpc.methods import Ports
from nova.rpc.owned import LocalConnection, OwnedInvoker, OwnerPlacement, OwnerProxy, address_of
from nova.rpc.remote import CometConnection
from nova.rpc.server import RpcServer

log = structlog.get_logger(__name__)
OWNED = frozenset({"snapshot.create", "snapshot.delete", "function.readiness"})
"""About the instances of one function: answered by its owner."""
ADDED_UP = frozenset({"snapshot.list", "function.metrics", "stats.get"})
"""Answered by all workers, and then made one answer."""
ADOPT_S = 5.0
"""A worker that was restarted waits so long for the others to tell what is spread."""


async def join(
    process: Process,
    seat: Seat,
    stores: Stores,
    known: Known,
    execution: ExecutionPlane,
    accepting: Accepting,
    metrics: Metrics,
) -> Reach:
    """Be there for the other workers on a unix socket, and find them on theirs."""
    assert execution.ownership is not None
    ownership, services = execution.ownership, process.services
    trust = await open_trust(process, stores)
    workers: Comets
    spreading: Spreading

    async def answer(said: dict[str, Any]) -> dict[str, Any]:
        if "settle" in said:
            await asyncio.gather(execution.logs.settle(), execution.spans.settle())
            return {}
        if "mine" in said:  # it is back
            await workers.renew(address_of(said["mine"]))
        return await spreading.said(said)

    ports = _ports(process, stores, known, trust, execution, accepting, metrics, answer)
    workers = _workers(seat, ownership, trust, ports)
    others = Others(workers, address_of(seat.number), seat.count)
    spreading = Spreading(ownership, execution.catalog, execution.fleet, others, busy=process.settings.daemon.spread_at)
    await services.start(_server(process, seat, stores, trust, execution, ports))
    await services.start(workers)
    if seat.again:
        await _adopt(spreading)
    await services.start(spreading)
    if Home.fits(seat.demands):
        await services.start(Home(seat.number, seat.demands, spreading))

    def standing() -> Standing:
        return workers.standing() if execution.able else "down"

    asking = Asking(workers, trust, stores, namespace=process.settings.metrics.namespace)

    async def pools() -> PoolHealth:
        stats = await asking.stats(joined=True)
        counts = {"instances": stats.instances, "busy": stats.busy, "queued": stats.queue_depth}
        return PoolHealth(pools=stats.total_pools, **counts)

    handlers = _handlers(process, stores, execution, asking, others, workers)
    invoker = OwnedInvoker(ownership, execution.invoker, workers)
    owner = OwnerProxy(ownership, workers)
    return Reach(invoker, workers, handlers, pools, standing, dict.fromkeys(OWNED, owner))


def _ports(
    process: Process,
    stores: Stores,
    known: Known,
    trust: Trust,
    execution: ExecutionPlane,
    accepting: Accepting,
    metrics: Metrics,
    answer: Answerer,
) -> Ports:
    """What this worker does for the others: it runs what it is given, and answers for itself alone."""
    application = far_side(process, stores, known, trust, execution, accepting, metrics)
    return Ports(
        execution.invoker,
        accepting.queue,
        execution.scaler,
        lambda scope, function: execution.fleet.evict(scope, function, ()),
        Listening(Inner(application, trust.token.proven_by), answer),
        execution.reporter().report,
    )


def _workers(seat: Seat, ownership: Ownership, trust: Trust, ports: Ports) -> Comets:
    own = address_of(seat.number)

    def connect(address: str) -> LocalConnection | CometConnection:
        if address == own:
            return LocalConnection(ports, trust.token, trust.assertions)
        return CometConnection(f"unix:{seat.meeting}/{address}", trust.token, trust.assertions)

    addresses = [address_of(number) for number in range(seat.count)]
    return Comets(connect, addresses=addresses, placement=OwnerPlacement(ownership))


def _server(
    process: Process, seat: Seat, stores: Stores, trust: Trust, execution: ExecutionPlane, ports: Ports
) -> RpcServer:
    async def healthy() -> dict[str, bool]:
        return {"comet": await stores.db.ping() and stores.listener.connected and execution.able}

    path = seat.meeting / address_of(seat.number)
    path.unlink(missing_ok=True)
    return RpcServer(
        f"unix:{path}",
        trust.token,
        trust.assertions,
        invoker=ports.invoker,
        acceptor=ports.acceptor,
        scaler=ports.scaler,
        evict=ports.evict,
        report=ports.report,
        application=ports.application,
        healthy=healthy,
        drain_s=process.settings.daemon.drain_s,
    )


def _handlers(
    process: Process, stores: Stores, execution: ExecutionPlane, asking: Asking, others: Others, workers: Comets
) -> list[object]:
    """What is answered for all workers, whichever of them a client has reached."""

    async def settle() -> None:
        own = execution.logs.settle(), execution.spans.settle()
        await asyncio.gather(*own, others.tell_those_there({"settle": True}))

    handlers = execution.handlers(settle, workers)
    figures = next(one for one in handlers if isinstance(one, FigureHandlers))
    return [
        *(one for one in handlers if not handlers_of(one).keys() <= OWNED | ADDED_UP),
        *series_handlers(process.settings, stores, execution.spans, settle),
        MergedHandlers(asking, asking.scrape, joined=True),
        MergedFunction(asking, figures.function),
        MergedSnapshots(asking),
    ]


async def _adopt(spreading: Spreading) -> None:
    """Ask the others what is spread, while they may be coming up themselves."""
    try:
        async for attempt in AsyncRetrying(
            retry=retry_if_exception_type(NovaError),
            stop=stop_after_delay(ADOPT_S),
            wait=wait_fixed(0.05),
            reraise=True,
        ):
            with attempt:
                await spreading.adopt()
    except NovaError as error:
        log.warning("not every worker is there to tell what is spread", error=error.detail)
