"""Calls that nobody waits for: how they are retried, where their outcome goes, what states they have."""

import random
from dataclasses import dataclass, field
from typing import Literal

JobStatus = Literal["queued", "running", "succeeded", "dlq", "cancelled"]
DestinationType = Literal["function", "topic", "workflow", "webhook"]
Outcome = Literal["succeeded", "dlq", "cancelled"]

MAX_PAYLOAD = 1 << 20
"""Bytes of an asynchronous payload."""
MAX_DEPTH = 32
"""Jobs that may cause one another in a row, by destinations."""
MAX_ATTEMPTS = 100
MAX_BACKOFF_MS = 86_400_000
MAX_AGE_S = 30 * 86_400
MAX_DELAY_S = 30 * 86_400
MAX_KEY = 256
"""Characters of an idempotency key."""
MAX_KEY_TTL_S = 7 * 86_400
MAX_AT_ONCE = 1000
"""Jobs that may run at once for one key, or of one function."""
MAX_RATE = 10_000
"""Jobs of one function that may start per second."""
MAX_KEEP_S = 90 * 86_400
Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
"""In the order in which they are taken; stored by their place in it."""


@dataclass(frozen=True, slots=True)
class AsyncPolicy:
    """How a function's jobs are tried. ``max_attempts`` counts executions, the first included.

    At most ``max_inflight`` of them run at once, and ``rate_limit_per_s`` start per second, everywhere together; None: as many as
    there is room for.
    """

    max_attempts: int = 3
    backoff_base_ms: int = 1_000
    backoff_max_ms: int = 60_000
    max_age_s: int = 86_400
    max_inflight: int | None = None
    rate_limit_per_s: float | None = None


@dataclass(frozen=True, slots=True)
class Destination:
    """``target`` is the name of a function, topic or workflow of the same scope, or the http(s) URL of a webhook."""

    type: DestinationType
    target: str


@dataclass(frozen=True, slots=True)
class AsyncDestinations:
    """Where the outcome of a function's jobs is sent; None: nowhere."""

    on_success: Destination | None = None
    on_failure: Destination | None = None


@dataclass(frozen=True, slots=True)
class JobError:
    """Why an attempt, or a whole job, failed. ``type`` is the function's class or a ``Nova.*`` type."""

    type: str
    message: str
    stack: tuple[str, ...] = field(default=())


def backoff_s(base_ms: int, max_ms: int, failed: int, *, jitter: float | None = None) -> float:
    """Seconds before the next attempt after ``failed`` of them: doubling up to ``max_ms``, ± 25 %."""
    # beyond 2^40 every base has reached its maximum
    delay_ms = min(float(max_ms), base_ms * 2.0 ** min(failed - 1, 40))
    return delay_ms / 1000 * (random.uniform(0.75, 1.25) if jitter is None else jitter)
