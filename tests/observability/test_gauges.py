"""The platform's own state as series, each moved by what it counts."""

from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client.parser import text_string_to_metric_families
from psycopg.types.json import Jsonb

from nova.ids import new_id
from nova.observability.gauges import SERIES, PlatformGauges
from nova.store.db import Database
from nova.store.gauges import GaugeStore
from nova.store.invocations import InvocationStore
from nova.store.series import SeriesStore
from tests.events.bus.dispatching import subscription
from tests.events.bus.topics import topic
from tests.execution.fakes import make_snapshot
from tests.observability.records import row, unfenced, write

pytestmark = pytest.mark.anyio


async def _read(database: Database, *tenants: str) -> dict[tuple[str, ...], float]:
    text = await PlatformGauges(GaugeStore(database), namespace="nova").read(tenants or None)
    return {
        (sample.name.removeprefix("nova_"), *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def _job(database: Database, tenant: str, status: str) -> None:
    await database.run(
        "INSERT INTO async_invocations (id, tenant_id, namespace, function_id, function_name, payload, status,"
        " max_attempts, backoff_base_ms, backoff_max_ms, max_age_s, source, caller, error)"
        " VALUES (%(id)s, %(tenant)s, 'default', %(id)s, 'f', '{}', %(status)s, 3, 1, 1, 1, 'api', 'operator', '{}')",
        id=new_id(),
        tenant=tenant,
        status=status,
    )


async def test_every_series_moves(database: Database) -> None:
    """OB1: every declared metric has a sample, and each says what is there."""
    before = await _read(database)
    assert (before["dlq_size", "async"], before["rollup_lag_seconds",]) == (0, 0)
    for tenant, status in (("default", "queued"), ("default", "queued"), ("acme", "queued"), ("acme", "dlq")):
        await _job(database, tenant, status)
    await _job(database, "default", "succeeded")
    await database.run(
        "INSERT INTO event_outbox (id, tenant_id, namespace, source, function_id, target_type, target, caller, event,"
        " status) VALUES (%(id)s, 'default', 'default', 's', %(id)s, 'webhook', 'x', 'o', '{}', 'dead')",
        id=new_id(),
    )
    for duty, seconds in (("rollup", 3), ("retention", -3)):
        await database.run(
            "INSERT INTO leases (duty, owner, node, fence, until)"
            " VALUES (%(duty)s, 'x', 'n1', 1, now() + make_interval(secs => %(s)s))",
            duty=duty,
            s=seconds,
        )
    for plane, state, seconds in (("comet", "active", 9), ("comet", "draining", 9), ("comet", "active", -9)):
        await database.run(
            "INSERT INTO cluster_nodes (id, plane, name, address, state, info, lease_until)"
            " VALUES (%(id)s, %(plane)s, 'n', 'a:1', %(state)s, %(info)s, now() + make_interval(secs => %(s)s))",
            id=new_id(),
            plane=plane,
            state=state,
            info=Jsonb({}),
            s=seconds,
        )
    snapshot = make_snapshot(function_id=new_id())
    await write(InvocationStore(database), [row(snapshot, datetime.now(UTC) - timedelta(seconds=60))])

    made = await subscription(database, await topic(database))
    await database.run("UPDATE event_heads SET last_sequence = 7")
    await database.run(
        "INSERT INTO event_deliveries (subscription_id, sequence, generation, tenant_id, namespace, topic_id, status, attempts,"
        " replay) SELECT id, 1, 0, tenant_id, namespace, topic_id, 'dlq', 3, false FROM event_subscriptions"
        " WHERE id = %(id)s",
        id=made,
    )

    found = await _read(database)
    assert (found["subscription_lag", "s", "default", "orders"], found["dlq_size", "message"]) == (7, 1)
    assert {name[0] for name in found} == set(SERIES)
    assert (found["async_backlog", "queued", "default"], found["async_backlog", "queued", "acme"]) == (2, 1)
    assert (found["dlq_size", "async"], found["dlq_size", "delivery"]) == (1, 1)
    assert (found["leader", "rollup", "n1"], found["leader", "retention", "n1"]) == (1, 0)
    assert {name[2]: value for name, value in found.items() if name[0] == "cluster_nodes"} == {
        "active": 1, "draining": 1, "gone": 1,
    }  # fmt: skip
    assert 59 < found["rollup_lag_seconds",] < 120

    await SeriesStore(database).roll_up(unfenced, limit=10)
    assert (await _read(database))["rollup_lag_seconds",] == 0
    own = await _read(database, "acme")
    assert not [name for name in own if name[0] == "subscription_lag"]
    assert [name for name in own if name[0] == "async_backlog"] == [("async_backlog", "queued", "acme")]
