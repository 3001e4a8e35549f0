"""Rollouts: a new version gets a growing share of an alias's calls, and loses it again when it does worse than it may."""

from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from nova.domain.alias import NOT_STICKY, WHOLE, Split, Sticky

Status = Literal["running", "paused", "promoted", "rolled_back", "aborted"]
ACTIVE: tuple[Status, ...] = ("running", "paused")
Action = Literal["advance", "promote", "rollback", "pause"]
MAX_STEPS = 20
MAX_HISTORY = 100
"""Decisions that a rollout remembers, the newest."""


@dataclass(frozen=True, slots=True)
class Step:
    """``weight`` of all calls, in hundredths of a percent, for at least ``hold_s`` seconds."""

    weight: int
    hold_s: float


@dataclass(frozen=True, slots=True)
class Guard:
    """What the new version may not exceed; a limit that is None does not hold.

    Nothing is judged before ``min_samples`` of its calls have ended. ``vs_baseline_pct`` bounds how much worse than the old
    version it may be: its p95 by that part of the old one's, its error rate by that many percentage points.
    """

    min_samples: int = 50
    max_error_rate_pct: float | None = None
    max_p95_ms: float | None = None
    vs_baseline_pct: float | None = None


@dataclass(frozen=True, slots=True)
class RolloutPolicy:
    steps: tuple[Step, ...]
    guard: Guard = field(default_factory=Guard)
    auto_promote: bool = True
    auto_rollback: bool = True
    sticky: Sticky = NOT_STICKY


@dataclass(frozen=True, slots=True)
class Routing:
    """What a call has to know of a rollout that is under way."""

    alias: str
    baseline: int
    target: int
    weight: int
    sticky: Sticky = NOT_STICKY

    @property
    def split(self) -> Split:
        return split(self.baseline, self.target, self.weight)


@dataclass(frozen=True, slots=True)
class Rollout:
    """``held_s`` is how long the present step has lasted; ``moved``: the alias leads elsewhere than when it began."""

    id: str
    alias: str
    baseline: int
    target: int
    policy: RolloutPolicy
    status: Status
    step: int
    weight: int
    step_seq: int
    held_s: float
    history: tuple[dict[str, Any], ...]
    created_by: str
    created_at: datetime
    ended_at: datetime | None
    moved: bool = False

    @property
    def active(self) -> bool:
        return self.status in ACTIVE


@dataclass(frozen=True, slots=True)
class Arm:
    """Calls of one version in one step. ``p95_ms`` is of those that met a warm instance; None without any."""

    calls: int = 0
    errors: int = 0
    p95_ms: float | None = None

    @property
    def error_pct(self) -> float:
        return 100 * self.errors / self.calls if self.calls else 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    action: Action
    reason: str


def split(baseline: int, target: int, weight: int) -> Split:
    if weight <= 0:
        return ((baseline, WHOLE),)
    if weight >= WHOLE:
        return ((target, WHOLE),)
    return tuple(sorted(((baseline, WHOLE - weight), (target, weight))))


def decide(rollout: Rollout, target: Arm, baseline: Arm) -> Decision | None:
    """What is to happen to a running rollout now; None: wait.

    A breach ends or stops it at once. Otherwise a step ends when it has been held long enough and, where the guard has a
    limit, enough calls have ended to be judged: a version is never promoted because nobody called it.
    """
    policy = rollout.policy
    breach = breached(policy.guard, target, baseline)
    if breach is not None:
        return Decision("rollback" if policy.auto_rollback else "pause", breach)
    if rollout.held_s < policy.steps[rollout.step].hold_s:
        return None
    if _judges(policy.guard) and target.calls < policy.guard.min_samples:
        return None
    if rollout.step + 1 < len(policy.steps):
        return Decision("advance", _fared(target))
    if policy.auto_promote:
        return Decision("promote", _fared(target))
    return Decision("pause", f"the last step is over: promote or abort; {_fared(target)}")


def breached(guard: Guard, target: Arm, baseline: Arm) -> str | None:
    """Which limit the new version exceeds, as a sentence; None when it keeps them all."""
    if target.calls < guard.min_samples or not target.calls:
        return None
    rate, p95 = target.error_pct, target.p95_ms
    if guard.max_error_rate_pct is not None and rate > guard.max_error_rate_pct:
        return f"{rate:.1f} % of {target.calls} calls failed, above {guard.max_error_rate_pct:g} %"
    if guard.max_p95_ms is not None and p95 is not None and p95 > guard.max_p95_ms:
        return f"p95 of {p95:.1f} ms, above {guard.max_p95_ms:g} ms"
    if guard.vs_baseline_pct is None or baseline.calls < guard.min_samples:
        return None
    if rate > baseline.error_pct + guard.vs_baseline_pct:
        return f"{rate:.1f} % of its calls failed, {baseline.error_pct:.1f} % of the baseline's"
    if p95 is not None and baseline.p95_ms is not None and p95 > baseline.p95_ms * (1 + guard.vs_baseline_pct / 100):
        return f"p95 of {p95:.1f} ms, {baseline.p95_ms:.1f} ms of the baseline's"
    return None


def _judges(guard: Guard) -> bool:
    return any(limit is not None for limit in (guard.max_error_rate_pct, guard.max_p95_ms, guard.vs_baseline_pct))


def _fared(target: Arm) -> str:
    p95 = "" if target.p95_ms is None else f", p95 {target.p95_ms:.1f} ms"
    return f"{target.calls} calls, {target.error_pct:.1f} % errors{p95}"
