"""Token buckets in memory: how fast one identity may ask, and how often one address may fail to prove who it is."""

from collections.abc import Callable

from nova.clock import Clock
from nova.config import RateLimitSettings, Tier
from nova.errors import NovaError

_FAILURES = Tier(requests_per_second=20 / 60, burst_size=20)
"""Refused credentials per address: 20 at once, then one every three seconds."""
_MAX_BUCKETS = 20_000


class Bucket:
    """``tokens = min(burst, tokens + elapsed · rate)``; a request takes one."""

    __slots__ = ("_at", "_tokens", "tier")

    def __init__(self, tier: Tier, now: float) -> None:
        self.tier = tier
        self._tokens = float(tier.burst_size)
        self._at = now

    def refill(self, now: float) -> float:
        """Tokens at ``now``."""
        grown = self._tokens + (now - self._at) * self.tier.requests_per_second
        self._tokens = min(float(self.tier.burst_size), grown)
        self._at = now
        return self._tokens

    def take(self, now: float) -> bool:
        if self.refill(now) < 1:
            return False
        self._tokens -= 1
        return True

    def wait_s(self) -> float:
        """Seconds until the next token."""
        return max(0.0, (1 - self._tokens) / self.tier.requests_per_second)

    def headers(self) -> list[tuple[bytes, bytes]]:
        reset = (self.tier.burst_size - self._tokens) / self.tier.requests_per_second
        return [
            (b"x-ratelimit-limit", b"%d" % self.tier.burst_size),
            (b"x-ratelimit-remaining", b"%d" % self._tokens),
            (b"x-ratelimit-reset", b"%d" % (reset + 0.999)),
        ]


class Buckets:
    """Buckets by key. Full ones are forgotten when there are too many: a full bucket and no bucket are the same."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._buckets: dict[str, Bucket] = {}

    def get(self, key: str, tier: Tier) -> Bucket:
        """The bucket of a key, with the tier's present figures."""
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= _MAX_BUCKETS:
                self._forget_full()
            bucket = self._buckets[key] = Bucket(tier, self._now())
        bucket.tier = tier
        return bucket

    def find(self, key: str) -> Bucket | None:
        return self._buckets.get(key)

    def _forget_full(self) -> None:
        now = self._now()
        kept = {k: b for k, b in self._buckets.items() if b.refill(now) < b.tier.burst_size}
        if len(kept) >= _MAX_BUCKETS:  # all in use: forget the older half
            kept = dict(list(kept.items())[_MAX_BUCKETS // 2 :])
        self._buckets = kept


class RateLimiter:
    """Charges one token per admitted request while ``rate_limit.enabled`` says so."""

    def __init__(self, settings: RateLimitSettings, clock: Clock) -> None:
        self._settings = settings
        self._now = clock.monotonic
        self._buckets = Buckets(clock.monotonic)

    @property
    def enabled(self) -> bool:
        return self._settings.enabled

    def charge(self, key: str, tier: str | None) -> Bucket:
        """Take a token or raise ``rate_limited``. An unknown tier counts as the default one."""
        tiers = self._settings.tiers
        figures = tiers.get(tier or "") or tiers.get(self._settings.default_tier) or next(iter(tiers.values()))
        bucket = self._buckets.get(key, figures)
        if not bucket.take(self._now()):
            raise NovaError(
                "rate_limited",
                f"more than {figures.requests_per_second:g} requests per second",
                retry_after_s=bucket.wait_s() + 0.5,
            )
        return bucket


class FailureLimiter:
    """Slows down guessing: an address that failed too often is refused before its credential is looked at."""

    def __init__(self, clock: Clock) -> None:
        self._now = clock.monotonic
        self._buckets = Buckets(clock.monotonic)
        self._any = False

    def check(self, address: str) -> None:
        if not self._any:
            return
        bucket = self._buckets.find(address)
        if bucket is not None and bucket.refill(self._now()) < 1:
            raise NovaError("rate_limited", "too many refused credentials", retry_after_s=bucket.wait_s() + 0.5)

    def failed(self, address: str) -> None:
        self._any = True
        self._buckets.get(address, _FAILURES).take(self._now())
