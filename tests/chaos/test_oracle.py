"""The oracle notices what must not happen, and does not mind what may."""

from collections import Counter

from tests.chaos.oracle import Account, Effect, judge


def effects(*numbers: int, key: str = "k", source: str = "s") -> list[Effect]:
    return [Effect(source, key, str(n), n, f"{key}-{n}-{place}") for place, n in enumerate(numbers)]


def account(*numbers: int, **fields: object) -> Account:
    return Account("s", {("k", str(n)) for n in numbers}, **fields)  # type: ignore[arg-type]


def test_a_clean_run_is_sound() -> None:
    row = judge(account(0, 1, 2, ordered=True), [*effects(0, 1, 2), *effects(7, source="other")])
    assert row.sound
    assert (row.accepted, row.effects, row.redelivered) == (3, 3, 0)


def test_a_lost_one_is_named() -> None:
    row = judge(account(0, 1, 2), effects(0, 2))
    assert list(row.lost) == [("k", "1")]
    assert not row.sound
    uncounted = judge(account(0, effects_counted=False), [])
    assert uncounted.sound, "of some sources only the ends count"


def test_a_redelivery_is_counted_and_allowed_and_a_line_that_was_sent_twice_is_one() -> None:
    row = judge(account(0, 1, ordered=True), effects(0, 1, 1))
    assert (row.redelivered, row.sound) == (1, True)
    one = effects(0)[0]
    assert judge(account(0), [one, one]).redelivered == 0


def test_an_inversion_is_noticed_within_a_key_and_only_there() -> None:
    row = judge(account(0, 1, ordered=True), effects(0, 1, 0))
    assert len(row.inversions) == 1
    assert not row.sound
    assert judge(account(0, 1), effects(1, 0)).sound, "nobody promised an order"
    apart = [*effects(1), *effects(0, key="other")]
    assert not judge(account(1, ordered=True), apart).inversions


def test_an_effect_that_is_nobodys_attempt_is_one_too_many() -> None:
    attempts = {("k", "0"): 2}
    assert judge(account(0, most=attempts), effects(0, 0)).sound
    row = judge(account(0, most=attempts), effects(0, 0, 0))
    assert list(row.twice) == ["k 0: 3 executions, 2 attempts"]


def test_a_second_end_is_noticed() -> None:
    row = judge(account(0, ends=Counter({"run-1": 1, "run-2": 2})), effects(0))
    assert list(row.twice) == ["run-2 ended 2 times"]


def test_followers_have_to_be_told_one_outcome_and_a_true_one() -> None:
    first = [Effect("s", "k", "a", 0, "t1"), Effect("s", "k", "a", 0, "t2")]
    wanted = Account("s", {("k", "a")})
    same = [*first, Effect("s", "k", "b", 1, "t3", {"a": "t2"}), Effect("s", "k", "c", 2, "t4", {"a": "t2"})]
    assert judge(wanted, same).sound
    two = [*same, Effect("s", "k", "d", 3, "t5", {"a": "t1"})]
    assert list(judge(wanted, two).twice) == ["k a: followers were told 2 outcomes"]
    false = [*first, Effect("s", "k", "b", 1, "t3", {"a": "t9"})]
    assert list(judge(wanted, false).twice) == ["k a: its followers were told an outcome that no execution had"]


def test_a_wrong_end_is_no_sound_one() -> None:
    assert not judge(account(0, wrong=["k is failed"]), effects(0)).sound
