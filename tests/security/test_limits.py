"""Token buckets against a clock that the test moves."""

import pytest

from nova.config import RateLimitSettings, Tier
from nova.errors import NovaError
from nova.security.limits import Bucket, Buckets, FailureLimiter, RateLimiter
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio


def test_a_bucket_empties_and_refills_at_its_rate() -> None:
    bucket = Bucket(Tier(requests_per_second=2, burst_size=3), 0)
    assert [bucket.take(0) for _ in range(4)] == [True, True, True, False]
    assert bucket.wait_s() == pytest.approx(0.5)
    assert bucket.take(0.5)
    assert not bucket.take(0.6)
    assert [bucket.take(100) for _ in range(4)] == [True, True, True, False]


def test_identities_have_buckets_of_their_own_and_tiers_decide() -> None:
    clock = MockClock()
    settings = RateLimitSettings(
        enabled=True,
        tiers={
            "standard": Tier(requests_per_second=1, burst_size=1),
            "gold": Tier(requests_per_second=1, burst_size=2),
        },
    )
    limiter = RateLimiter(settings, clock)
    limiter.charge("t/key:a", "standard")
    limiter.charge("t/key:b", "standard")
    with pytest.raises(NovaError) as refused:
        limiter.charge("t/key:a", "standard")
    assert refused.value.code == "rate_limited"
    assert refused.value.retry_after_s is not None
    assert refused.value.retry_after_s >= 1
    limiter.charge("t/key:c", "gold")
    limiter.charge("t/key:c", "gold")
    limiter.charge("t/key:d", "no such tier")
    with pytest.raises(NovaError):
        limiter.charge("t/key:d", "no such tier")


async def test_a_changed_tier_acts_on_the_next_request() -> None:
    settings = RateLimitSettings(enabled=True, tiers={"standard": Tier(requests_per_second=1, burst_size=1)})
    clock = MockClock()
    limiter = RateLimiter(settings, clock)
    limiter.charge("k", None)
    settings.tiers = {"standard": Tier(requests_per_second=10, burst_size=10)}
    await clock.advance(0.5)
    for _ in range(5):
        limiter.charge("k", None)


def test_full_buckets_are_forgotten_and_empty_ones_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nova.security.limits._MAX_BUCKETS", 10)
    buckets = Buckets(lambda: 0.0)
    tier = Tier(requests_per_second=1, burst_size=1)
    buckets.get("spent", tier).take(0)
    for number in range(50):
        buckets.get(f"full-{number}", tier)
    kept = buckets.find("spent")
    assert kept is not None
    assert not kept.take(0)


async def test_an_address_that_guesses_is_shut_out_and_let_in_again() -> None:
    """ID6: wrong credentials are slowed per address."""
    clock = MockClock()
    failures = FailureLimiter(clock)
    for _ in range(20):
        failures.check("203.0.113.7")
        failures.failed("203.0.113.7")
    with pytest.raises(NovaError, match="too many"):
        failures.check("203.0.113.7")
    failures.check("203.0.113.8")
    await clock.advance(3.1)
    failures.check("203.0.113.7")
