"""Whose turn it is, without a database."""

from datetime import UTC, datetime, timedelta

from nova.domain.turns import Asking, Gate, Standing, Waiting, decide, promote

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def asking(
    name: str,
    *,
    key: str = "",
    limit: int = 1,
    most: int | None = None,
    rate: float | None = None,
    at: int = 0,
    **more: int,
) -> Asking:
    return Asking(name, Gate(key, limit, most, rate, more.get("priority", 1), NOON + timedelta(seconds=at)))


def test_a_key_has_as_many_places_as_it_says_and_each_key_its_own() -> None:
    jobs = [asking(f"a{n}", key="a", limit=2, at=n) for n in range(4)] + [asking("b0", key="b")]
    decision = decide(jobs, Standing())
    assert decision.run == ["a0", "b0", "a1"]
    assert decision.hold == decision.run
    assert decision.wait == ["a2", "a3"]


def test_who_comes_later_does_not_pass_those_that_wait_for_the_key() -> None:
    decision = decide([asking("late", key="a", limit=5)], Standing(held={"a": 1}, waiting={"a"}))
    assert (decision.run, decision.wait) == ([], ["late"])


def test_a_function_has_a_number_of_its_own_whatever_the_keys() -> None:
    jobs = [asking(f"j{n}", key=f"k{n}", most=3, at=n) for n in range(3)]
    decision = decide(jobs, Standing(held={"": 1}))
    assert (decision.run, decision.wait) == (["j0", "j1"], ["j2"])


def test_the_higher_priority_has_the_place_and_then_who_was_due_first() -> None:
    jobs = [
        asking("normal", most=1, at=0),
        asking("high", most=1, at=5, priority=0),
        asking("low", most=1, at=-5, priority=2),
    ]
    decision = decide(jobs, Standing())
    assert (decision.run, decision.wait) == (["high"], ["normal", "low"])


def test_a_pace_gives_each_a_time_of_its_own_and_takes_it_once() -> None:
    standing = Standing(next_s=-5)
    decision = decide([asking(f"j{n}", rate=2, at=n) for n in range(4)], standing)
    assert decision.run == ["j0"]
    assert [round(delay, 2) for delay in decision.pace.values()] == [0.4, 0.9, 1.4]
    assert round(standing.next_s, 2) == 1.9
    again = Asking("j1", asking("j1", rate=2).gate, "paced")
    assert decide([again], standing).run == ["j1"], "its time has come: it waits for no second one"
    assert round(standing.next_s, 2) == 1.9


def test_who_holds_a_place_runs_again_after_its_worker_was_lost() -> None:
    held = Asking("j", asking("j", key="a").gate, "holding")
    decision = decide([held], Standing(held={"a": 1}))
    assert (decision.run, decision.hold) == (["j"], [])


def test_free_places_go_to_those_that_wait_in_their_order() -> None:
    waiting = [Waiting("a1", "a", 1), Waiting("a2", "a", 1), Waiting("b1", "b", 1), Waiting("c1", "", 1)]
    assert promote(waiting, {}, None) == ["a1", "b1", "c1"]
    assert promote(waiting, {"a": 1}, 2) == ["b1"]
    assert promote(waiting, {"": 2}, 2) == []
