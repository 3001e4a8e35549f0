"""What the door refuses is counted."""

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.config import MetricsSettings, Settings
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.execution.metrics import Metrics
from nova.security.guards import Door
from nova.security.limits import RateLimiter
from nova.store.db import Database
from tests.http.harness import security

pytestmark = pytest.mark.anyio


async def test_refused_credentials_and_rates_reach_the_metrics(database: Database) -> None:
    """OB1: auth_failures_total and rate_limited_total move with what they count."""
    settings = Settings()
    settings.rate_limit.enabled = True
    settings.rate_limit.tiers["standard"].burst_size = 2
    settings.rate_limit.tiers["standard"].requests_per_second = 0.001
    metrics = Metrics(MetricsSettings())
    async with security(database, settings) as guards:
        limiter = RateLimiter(settings.rate_limit, SYSTEM_CLOCK)
        door = Door(settings.auth, settings.http, guards.keys, guards.directory, limiter, SYSTEM_CLOCK, events=metrics)
        with pytest.raises(NovaError, match="unauthenticated"):
            door.identify({b"x-api-key": b"nk_no_such"}, "203.0.113.7")
        operator = door.identify({b"host": b"localhost:9000"}, "127.0.0.1")
        for _ in range(2):
            door.charge(operator, Scope())
        with pytest.raises(NovaError, match="rate_limited"):
            door.charge(operator, Scope())
    assert dict(metrics.counters.auth_failures) == {("unauthenticated",): 1}
    assert dict(metrics.counters.rate_limited) == {("default",): 1}
