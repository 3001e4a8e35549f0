"""What several comets count is one number to whoever asks."""

from nova.api.system import CallTotals, Metrics, PoolStats, Stats
from nova.observability.merged import joined_pools, merged_metrics, merged_stats


def totals(calls: int, low: float, high: float) -> dict[str, float]:
    return CallTotals(
        total_invocations=calls,
        success_invocations=calls,
        failed_invocations=0,
        cold_starts=1,
        warm_starts=calls - 1,
        total_latency_ms=calls * low,
        min_latency_ms=low,
        max_latency_ms=high,
    ).model_dump()


def metrics(calls: int, low: float, high: float, name: str) -> Metrics:
    one = totals(calls, low, high)
    return Metrics.model_validate(
        {**one, "vms_created": 1, "vms_stopped": 0, "vms_crashed": 0, "snapshots_hit": 0, "uptime_s": calls}
        | {"functions": {"shared": one, name: one}}
    )


def test_counts_add_up_and_extremes_are_those_of_all() -> None:
    merged = merged_metrics([metrics(10, 2.0, 9.0, "left"), metrics(5, 1.0, 4.0, "right")])
    assert (merged.total_invocations, merged.vms_created, merged.uptime_s) == (15, 2, 10)
    assert (merged.min_latency_ms, merged.max_latency_ms) == (1.0, 9.0)
    assert {name: row.total_invocations for name, row in merged.functions.items()} == {
        "left": 10,
        "right": 5,
        "shared": 15,
    }


def test_a_comet_without_calls_says_nothing_about_the_shortest_one() -> None:
    idle = CallTotals(**dict.fromkeys(CallTotals.model_fields, 0))
    quiet = metrics(1, 3.0, 3.0, "x").model_copy(update={**idle.model_dump(), "functions": {}})
    assert merged_metrics([quiet, metrics(2, 5.0, 6.0, "y")]).min_latency_ms == 5.0


def test_no_comet_is_zero_of_everything() -> None:
    assert merged_metrics([]).total_invocations == 0
    assert merged_stats([]).pools == []


def test_pools_of_every_node_are_shown() -> None:
    counts = dict.fromkeys(("booting", "idle", "busy", "draining", "stopping", "inflight", "queue_depth"), 1)
    pool = PoolStats(tenant="t", namespace="n", function="f", version=1, instances=5, **counts)
    one = Stats(instances=5, **counts, active_vms=5, total_pools=1, pools=[pool])
    both = merged_stats([one, one])
    assert (both.instances, both.total_pools, both.queue_depth, len(both.pools)) == (10, 2, 2, 2)


def test_what_workers_have_of_one_version_is_one_pool() -> None:
    counts = dict.fromkeys(("booting", "idle", "busy", "draining", "stopping", "inflight", "queue_depth"), 1)
    pools = [
        PoolStats(tenant="t", namespace="n", function=name, version=version, instances=5, **counts)
        for name, version in (("f", 1), ("f", 2), ("g", 1))
    ]
    one = Stats(instances=15, **counts, active_vms=15, total_pools=3, pools=pools)
    other = Stats(instances=5, **counts, active_vms=5, total_pools=1, pools=pools[:1])
    joined = joined_pools(merged_stats([one, other]))
    assert (joined.total_pools, joined.instances) == (3, 20)
    assert [(pool.function, pool.version, pool.instances, pool.busy) for pool in joined.pools] == [
        ("f", 1, 10, 2),
        ("f", 2, 5, 1),
        ("g", 1, 5, 1),
    ]
