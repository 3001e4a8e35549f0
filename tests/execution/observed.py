"""Everything that watches calls, put together as the application does, on the test's own database."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nova.api.invocations import ROUTES as RECORD_ROUTES
from nova.api.system import METRICS_ROUTES
from nova.clock import SYSTEM_CLOCK
from nova.config import Settings
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.execution.exposition import Exposition
from nova.execution.figures import FigureHandlers
from nova.execution.logs import LogBatcher
from nova.execution.metrics import Metrics
from nova.execution.recorder import CallRecorder
from nova.execution.records import RecordHandlers
from nova.execution.tail import LogFeed
from nova.observability.readings import ReadingHandlers
from nova.service import ServiceGroup
from nova.store.db import Database
from nova.store.invocations import InvocationStore
from nova.store.listen import Listener
from tests.execution.finished import finished
from tests.http.harness import Api, management


@dataclass(slots=True)
class Observed:
    """``call`` records a finished call; ``pools`` is what the fleet says."""

    api: Api
    logs: LogBatcher
    metrics: Metrics
    recorder: CallRecorder
    feed: LogFeed
    store: InvocationStore
    pools: list[dict[str, Any]] = field(default_factory=list)

    def call(self, snapshot: FunctionSnapshot, payload: bytes = b"{}", **changes: Any) -> CallRequest:
        request, result = finished(snapshot, payload, version=snapshot.version, **changes)
        request.received = SYSTEM_CLOCK.monotonic()
        self.recorder.record(request, snapshot, result)
        return request


@asynccontextmanager
async def observing(database: Database, folder: Path, settings: Settings | None = None) -> AsyncIterator[Observed]:
    settings = settings or Settings()
    store = InvocationStore(database)
    metrics = Metrics(settings.metrics)
    pools: list[dict[str, Any]] = []
    async with ServiceGroup() as group:
        listener = await group.start(Listener(database.dsn))
        logs = await group.start(LogBatcher(store, settings.executor, folder / "spill"))
        feed = LogFeed(store, listener)
        fleet = lambda: {"pools": pools}  # noqa: E731
        exposition = Exposition(metrics, logs.counts, fleet, namespace=settings.metrics.namespace)
        owners = [
            RecordHandlers(store, feed, logs.settle),
            FigureHandlers(store, exposition, fleet, logs.settle, SYSTEM_CLOCK),
            ReadingHandlers(exposition),
        ]
        async with management(database, owners, (*RECORD_ROUTES, *METRICS_ROUTES), settings=settings) as api:
            recorder = CallRecorder(metrics, logs)
            yield Observed(api, logs, metrics, recorder, feed, store, pools)


def pool_row(name: str = "hello", tenant: str = "default", **numbers: int) -> dict[str, Any]:
    """A pool as the fleet describes it."""
    zeros = dict.fromkeys(
        ("instances", "booting", "ready", "busy", "draining", "stopping", "inflight", "free", "waiting"), 0
    )
    return {"tenant": tenant, "namespace": "default", "function": name, "version": 1, **zeros, **numbers}
