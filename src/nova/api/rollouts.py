"""Rollouts and shadow traffic: how a new version of a function meets its calls."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from nova.api.aliases import Sticky, VersionNumber, Weight
from nova.api.functions import POINTER
from nova.api.table import Empty, Model, Plane, Route
from nova.domain.names import ALIAS, LIVE, is_qualifier
from nova.domain.rollout import MAX_STEPS, Status
from nova.domain.shadow import Compare

MAX_HOLD_S = 7 * 86_400


def _rising(steps: list["Step"]) -> list["Step"]:
    percents = [step.percent for step in steps]
    if percents != sorted(set(percents)):
        raise ValueError("each step has a higher percent than the one before")
    return steps


def require_qualifier(target: str) -> str:
    if not is_qualifier(target):
        raise ValueError("a version number, an alias, live or $LATEST")
    return target


class Step(Model):
    """``percent`` of the alias's calls (two decimals) run the new version for at least ``hold_s`` seconds."""

    percent: Weight
    hold_s: float = Field(60, ge=0, le=MAX_HOLD_S)


class Guard(Model):
    """What the new version may not exceed in any step; without a limit nothing is judged.

    Nothing is judged before ``min_samples`` of its calls have ended, and a step with a limit does not end before that.
    ``vs_baseline_pct``: its p95 may be that many percent above the old version's, its error rate that many percentage points.
    """

    min_samples: int = Field(50, ge=1, le=1_000_000)
    max_error_rate_pct: float | None = Field(None, ge=0, le=100)
    max_p95_ms: float | None = Field(None, gt=0, le=900_000)
    vs_baseline_pct: float | None = Field(None, ge=0, le=10_000)


class RolloutSpec(Model):
    """Moves an alias, step by step, to another version.

    After the last step all calls go to ``to_version`` (``auto_promote``) or the rollout waits. When the guard finds a breach
    all calls go back to the version of before (``auto_rollback``) or the rollout waits.
    """

    alias: Annotated[str, Field(pattern=ALIAS)] = LIVE
    to_version: VersionNumber
    steps: Annotated[list[Step], Field(min_length=1, max_length=MAX_STEPS), AfterValidator(_rising)] = [
        Step(percent=5),
        Step(percent=25),
        Step(percent=50),
    ]
    guard: Guard = Guard()
    auto_promote: bool = True
    auto_rollback: bool = True
    sticky: Sticky = Sticky()


class Rollout(RolloutSpec):
    """A rollout as it is. ``enabled``: it is under way, running or paused. ``from_version`` is what the alias led to."""

    enabled: bool
    status: Status
    from_version: int
    created_by: str
    created_at: datetime
    ended_at: datetime | None


class Arm(Model):
    """Calls of one version in the present step, or in the last. ``p95_ms`` is of those that met a warm instance."""

    version: int
    percent: float
    calls: int
    errors: int
    error_pct: float
    p95_ms: float | None


class RolloutDecision(Model):
    """``by``: who ordered it, or ``guard`` and ``steps`` for what the platform decided."""

    at: datetime
    action: Literal["start", "advance", "pause", "resume", "promote", "rollback", "abort"]
    step: int
    percent: float
    reason: str
    by: str


class RolloutStatus(Model):
    """``step`` counts from 1. ``held_s`` is how long the present step has lasted."""

    status: Status
    alias: str
    step: int
    steps: int
    percent: float
    held_s: float
    hold_s: float
    baseline: Arm
    target: Arm
    history: list[RolloutDecision]


class ShadowSpec(Model):
    """Copies ``percent`` of a function's calls (two decimals) to another of its versions; nobody sees the answers.

    ``compare``: ``output`` compares outcome and output, but for what the pointers of ``ignore`` name; ``status`` the outcome
    only. ``max_inflight`` bounds the copies that run at once in one process; calls beyond it are not copied.
    """

    enabled: bool = True
    target: Annotated[str, Field(max_length=64), AfterValidator(require_qualifier)]
    percent: Weight = 100
    compare: Compare = "output"
    ignore: list[Annotated[str, Field(max_length=256, min_length=1, pattern=POINTER)]] = Field([], max_length=100)
    max_inflight: int = Field(10, ge=1, le=1000)


class ShadowPolicy(ShadowSpec):
    created_by: str
    created_at: datetime


class ShadowSample(Model):
    """One call whose copy ended otherwise. ``differences`` are ``{path, from, to}``; a side that has nothing there is left
    out. Values are there as far as the function's ``capture`` keeps payloads, for callers with ``payload:read``."""

    request_id: str
    at: datetime
    version: int
    shadow_version: int
    status: str
    shadow_status: str
    differences: list[dict[str, Any]]


class ShadowReport(Model):
    """What the copies have shown since the policy was put. ``errors`` are copies that the platform could not run, ``skipped``
    those that ``max_inflight`` left out. Times are averages of the handlers over the calls that were compared."""

    enabled: bool
    target: str
    since: datetime
    compared: int
    matched: int
    differed: int
    errors: int
    skipped: int
    uncompared: int
    primary_ms: float | None
    shadow_ms: float | None
    difference_ms: float | None
    samples: list[ShadowSample]


_ROLLOUT = "/functions/{name}/rollout"
_SHADOW = "/functions/{name}/shadow"


def _order(action: str, summary: str) -> Route:
    return Route(
        op=f"rollout.{action}",
        method="POST",
        path=f"{_ROLLOUT}/{action}",
        summary=summary,
        plane=Plane.CONTROL,
        permission="function:update",
        audit=f"rollout.{action}",
        answer=RolloutStatus,
        tag="rollouts",
    )


ROUTES = (
    Route(
        op="rollout.put",
        method="PUT",
        path=_ROLLOUT,
        summary="Start a rollout; 409 while one is under way",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="rollout.start",
        body=RolloutSpec,
        answer=Rollout,
        tag="rollouts",
    ),
    Route(
        op="rollout.get",
        method="GET",
        path=_ROLLOUT,
        summary='The rollout, or the last one; {"enabled": false} when there was none',
        plane=Plane.CONTROL,
        permission="function:read",
        answer=Rollout,
        tag="rollouts",
    ),
    Route(
        op="rollout.delete",
        method="DELETE",
        path=_ROLLOUT,
        summary="Abort the rollout if it is under way, and forget it",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="rollout.delete",
        query=Empty,
        status=204,
        tag="rollouts",
    ),
    Route(
        op="rollout.status",
        method="GET",
        path=f"{_ROLLOUT}/status",
        summary="Where it stands: step, share, how both versions do, what was decided",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=RolloutStatus,
        tag="rollouts",
    ),
    _order("pause", "Stay where it is, without judging, until resumed"),
    _order("resume", "Go on with the present step from its beginning"),
    _order("promote", "Send all calls to the new version now"),
    _order("abort", "Send all calls back to the version of before"),
    Route(
        op="shadow.put",
        method="PUT",
        path=_SHADOW,
        summary="Copy calls to another version; the report begins anew",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="shadow.set",
        body=ShadowSpec,
        answer=ShadowPolicy,
        tag="rollouts",
    ),
    Route(
        op="shadow.get",
        method="GET",
        path=_SHADOW,
        summary='The shadow policy; {"enabled": false} when there is none',
        plane=Plane.CONTROL,
        permission="function:read",
        answer=ShadowPolicy,
        tag="rollouts",
    ),
    Route(
        op="shadow.delete",
        method="DELETE",
        path=_SHADOW,
        summary="Copy nothing any more, and forget the report",
        plane=Plane.CONTROL,
        permission="function:update",
        audit="shadow.delete",
        query=Empty,
        status=204,
        tag="rollouts",
    ),
    Route(
        op="shadow.report",
        method="GET",
        path=f"{_SHADOW}/report",
        summary="What the copies have shown",
        plane=Plane.CONTROL,
        permission="function:read",
        answer=ShadowReport,
        tag="rollouts",
    ),
)
