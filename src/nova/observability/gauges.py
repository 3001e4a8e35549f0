"""The platform's own state as Prometheus series: read from the database when somebody asks, so that no process has to count
for others and a restart loses nothing."""

from collections.abc import Collection, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from nova.store.gauges import GaugeStore, PlatformNumbers

BACKLOG = "queued"
DEAD = "dlq"
SERIES = {
    "async_backlog": "Asynchronous calls that wait or run",
    "dlq_size": "Dead letters",
    "subscription_lag": "Messages that a subscription has not got yet",
    "leader": "1 where a process is in charge of the duty",
    "cluster_nodes": "Processes of the platform",
    "rollup_lag_seconds": "Age of the oldest call record that no time series counts yet",
}
"""Every series, without the prefix."""


class PlatformGauges:
    """:meth:`read` is a source for :class:`nova.observability.scrape.Scraper`."""

    def __init__(self, store: GaugeStore, *, namespace: str) -> None:
        self._store = store
        self._namespace = namespace

    async def read(self, tenants: Collection[str] | None = None) -> str:
        """The classic text format. Raises ``dependency_unavailable``."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_Reading(self._namespace, await self._store.read(tenants)))
        return generate_latest(registry).decode()


class _Reading(Collector):
    def __init__(self, namespace: str, numbers: PlatformNumbers) -> None:
        self._namespace = namespace
        self._numbers = numbers

    def collect(self) -> Iterator[Metric]:
        numbers = self._numbers
        backlog = self._family("async_backlog", "tenant", "status")
        dead = 0
        for tenant, status, jobs in numbers.jobs:
            if status == BACKLOG:
                backlog.add_metric([tenant, status], jobs)
            elif status == DEAD:
                dead += jobs
        letters = self._family("dlq_size", "kind")
        letters.add_metric(["async"], dead)
        letters.add_metric(["delivery"], sum(numbers.dead_deliveries.values()))
        letters.add_metric(["message"], numbers.dead_messages)
        lags = self._family("subscription_lag", "tenant", "topic", "subscription")
        for tenant, topic, name, behind in numbers.lags:
            lags.add_metric([tenant, topic, name], behind)
        leaders = self._family("leader", "duty", "leader_node")
        for duty, node, held in numbers.leaders:
            leaders.add_metric([duty, node], int(held))
        nodes = self._family("cluster_nodes", "plane", "state")
        for plane, state, count in numbers.nodes:
            nodes.add_metric([plane, state], count)
        lag = self._family("rollup_lag_seconds")
        lag.add_metric([], numbers.rollup_lag_s)
        yield from (backlog, letters, lags, leaders, nodes, lag)

    def _family(self, name: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"{self._namespace}_{name}", SERIES[name], labels=labels)
