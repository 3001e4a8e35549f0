"""When a step of a rollout ends, and what its guard calls a breach."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from nova.domain.rollout import Arm, Guard, Rollout, RolloutPolicy, Step, breached, decide, split

POLICY = RolloutPolicy((Step(1000, 60), Step(5000, 60)), Guard(10, max_error_rate_pct=5))
ROLLOUT = Rollout(
    id="r",
    alias="live",
    baseline=1,
    target=2,
    policy=POLICY,
    status="running",
    step=0,
    weight=1000,
    step_seq=0,
    held_s=0.0,
    history=(),
    created_by="test",
    created_at=datetime(2026, 11, 22, tzinfo=UTC),
    ended_at=None,
)
WELL, BAD, FEW = Arm(20, 1, 5.0), Arm(20, 2, 5.0), Arm(9, 9, 5.0)


@pytest.mark.parametrize(
    ("held_s", "step", "target", "action"),
    [
        (0, 0, WELL, None),
        (59.9, 0, WELL, None),
        (60, 0, WELL, "advance"),
        (60, 1, WELL, "promote"),
        (3600, 0, FEW, None),
        (0, 0, BAD, "rollback"),
        (60, 1, BAD, "rollback"),
    ],
)
def test_time_and_calls_end_a_step_and_a_breach_ends_it_at_once(
    held_s: float, step: int, target: Arm, action: str | None
) -> None:
    decision = decide(replace(ROLLOUT, held_s=held_s, step=step), target, Arm())
    assert (decision and decision.action) == action


def test_without_a_limit_time_alone_decides() -> None:
    unguarded = replace(ROLLOUT, held_s=60, policy=replace(POLICY, guard=Guard()))
    decision = decide(unguarded, Arm(), Arm())
    assert decision is not None
    assert decision.action == "advance"


def test_what_waits_for_a_person() -> None:
    careful = replace(ROLLOUT, held_s=60, step=1, policy=replace(POLICY, auto_promote=False, auto_rollback=False))
    for target in (WELL, BAD):
        decision = decide(careful, target, Arm())
        assert decision is not None
        assert decision.action == "pause"


@pytest.mark.parametrize(
    ("guard", "target", "baseline", "breach"),
    [
        (Guard(10, max_error_rate_pct=5), Arm(20, 1, None), Arm(), False),
        (Guard(10, max_error_rate_pct=0), Arm(20, 1, None), Arm(), True),
        (Guard(10, max_p95_ms=5), Arm(20, 0, 5.0), Arm(), False),
        (Guard(10, max_p95_ms=4.9), Arm(20, 0, 5.0), Arm(), True),
        (Guard(10, max_p95_ms=1), Arm(20, 0, None), Arm(), False),
        (Guard(10, vs_baseline_pct=50), Arm(20, 0, 15.0), Arm(20, 0, 10.0), False),
        (Guard(10, vs_baseline_pct=50), Arm(20, 0, 15.1), Arm(20, 0, 10.0), True),
        (Guard(10, vs_baseline_pct=50), Arm(20, 0, 99.0), Arm(9, 0, 10.0), False),
        (Guard(10, vs_baseline_pct=50), Arm(20, 0, 99.0), Arm(20, 0, None), False),
        (Guard(10, vs_baseline_pct=5), Arm(20, 2, 1.0), Arm(20, 1, 1.0), False),
        (Guard(10, vs_baseline_pct=5), Arm(20, 3, 1.0), Arm(20, 1, 1.0), True),
        (Guard(10), Arm(20, 20, 9999.0), Arm(20, 0, 1.0), False),
    ],
)
def test_a_breach_is_more_than_the_limit(guard: Guard, target: Arm, baseline: Arm, breach: bool) -> None:
    assert (breached(guard, target, baseline) is not None) is breach


def test_the_arms_are_whole_in_any_order_of_versions() -> None:
    assert split(1, 2, 1050) == ((1, 8950), (2, 1050))
    assert split(5, 2, 1050) == ((2, 1050), (5, 8950))
    assert (split(1, 2, 0), split(1, 2, 10_000)) == (((1, 10_000),), ((2, 10_000),))
