"""Which version a call runs: weights, rules and what keeps a caller, on snapshots that the catalogue keeps."""

import json
from collections import Counter
from datetime import UTC, datetime
from typing import Any

import pytest

from nova.domain.alias import Alias, Match, Sticky, split_of
from nova.domain.call import CallRequest
from nova.domain.identity import Identity, Scope
from nova.domain.rollout import Routing
from nova.domain.shadow import Shadow
from nova.domain.version import FunctionSettings
from nova.execution.catalog import Entry
from nova.store.functions import FunctionRecord
from tests.execution.fakes import make_call, make_snapshot

HALF = split_of({1: 5000, 2: 5000})
NOW = datetime(2026, 11, 22, tzinfo=UTC)


def entry(*aliases: Alias, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "id": "f1",
        "scope": Scope(),
        "name": "hello",
        "generation": 1,
        "live_version": 1,
        "head_version": 3,
        "latest_version": 3,
        "latest_built": 3,
        "settings": FunctionSettings(),
        "aliases": {alias.name: alias for alias in aliases},
        "etag": "e",
        "created_by": "test",
        "created_at": NOW,
        "updated_at": NOW,
    }
    made = Entry(FunctionRecord(**{**values, **changes}))
    for version in sorted(made.routed()):
        made.keep(make_snapshot("hello", version=version))
    return made


def url_call(headers: dict[str, str] | None = None, cookies: list[str] | None = None, **query: str) -> CallRequest:
    event: dict[str, Any] = {"version": "2.0", "headers": headers or {}}
    if cookies:
        event["cookies"] = cookies
    if query:
        event["queryStringParameters"] = query
    return make_call(payload=json.dumps(event).encode(), trigger="url", qualifier="prod")


def prod_call(payload: Any = None, **changes: Any) -> CallRequest:
    return make_call(payload=json.dumps(payload).encode(), qualifier="prod", **changes)


def test_the_first_rule_that_fits_decides() -> None:
    """Header and query rules come before the weights, for ``invoke`` and for function URLs."""
    made = entry(
        Alias(
            "prod",
            split_of({1: 10_000}),
            match=(
                Match("header", "X-Beta", "yes", 2),
                Match("query", "v", "3", 3),
                Match("header", "x-beta", "yes", 3),
            ),
        )
    )
    assert made.routed() == {1, 2, 3}
    assert made.target(prod_call(headers={b"x-beta": b"yes"})) == 2
    assert made.target(prod_call(headers={b"x-beta": b"no"})) == 1
    assert made.target(prod_call(headers={b"x-alpha": b"yes"})) == 1
    assert made.target(prod_call()) == 1
    assert made.target(url_call({"x-beta": "yes"}, v="3")) == 2
    assert made.target(url_call(v="3")) == 3
    assert made.target(url_call(v="4")) == 1
    assert made.target(url_call()) == 1


SAME: dict[str, tuple[Sticky, Any]] = {
    "header": (Sticky("header", "X-User"), lambda key: prod_call(headers={b"x-user": key.encode()})),
    "cookie": (Sticky("cookie", "sid"), lambda key: prod_call(headers={b"cookie": b"a=b; sid=" + key.encode()})),
    "url header": (Sticky("header", "X-User"), lambda key: url_call({"x-user": key})),
    "url cookie": (Sticky("cookie", "sid"), lambda key: url_call(cookies=["a=b", f"sid={key}"])),
    "query": (Sticky("query", "user"), lambda key: url_call(user=key)),
    "ip": (Sticky("ip"), lambda key: prod_call(source_address=key)),
    "identity": (Sticky("identity"), lambda key: prod_call(identity=Identity(f"key:{key}", frozenset()))),
    "payload": (Sticky("payload", "/user/id"), lambda key: prod_call({"user": {"id": key}})),
    "number": (Sticky("payload", "/items/0"), lambda key: prod_call({"items": [int(key)]})),
    "own key": (Sticky("header", "X-User"), lambda key: prod_call(sticky_key=key, headers={b"x-user": b"same"})),
}


@pytest.mark.parametrize("by", SAME)
def test_a_caller_stays_by_what_it_carries(by: str) -> None:
    """One value always meets the same version; different ones spread by the weights."""
    sticky, call = SAME[by]
    made = entry(Alias("prod", HALF, sticky=sticky))
    first = {str(key): made.target(call(str(key))) for key in range(200)}
    assert {key: made.target(call(key)) for key in first} == first
    assert 60 < Counter(first.values())[1] < 140


def test_who_carries_nothing_is_drawn_for_each_call_and_once_for_each() -> None:
    made = entry(Alias("prod", HALF, sticky=Sticky("cookie", "sid")))
    calls = [prod_call(headers={b"cookie": b"other=1"}) for _ in range(400)]
    drawn = [made.target(call) for call in calls]
    assert 120 < Counter(drawn)[1] < 280
    assert [made.target(call) for call in calls] == drawn, "a call that is looked up again runs the same version"
    odd = [make_call(payload=body, qualifier="prod") for body in (b"[]", b"null", b"1e999")]
    made = entry(Alias("prod", HALF, sticky=Sticky("payload", "/a/b")))
    assert {made.target(call) for call in odd} <= {1, 2}


def test_a_rollout_takes_its_share_of_the_calls() -> None:
    """Of the alias it is for, with its own stickiness, and only while the alias leads where it led."""
    rollout = Routing("live", 1, 3, 1050, Sticky("header", "x-user"))
    made = entry(rollout=rollout)
    assert made.live is None, "no call may take the short way"
    drawn = Counter(made.target(make_call()) for _ in range(4000))
    assert drawn[3] / 4000 == pytest.approx(0.105, abs=0.03)
    by_user = [made.target(make_call(headers={b"x-user": str(user).encode()})) for user in range(300)]
    assert by_user == [made.target(make_call(headers={b"x-user": str(user).encode()})) for user in range(300)]
    assert {1, 3} == set(by_user)
    assert made.find(make_call(qualifier="3")) is made.snapshots[3]
    assert entry(rollout=Routing("live", 1, 3, 10_000)).target(make_call()) == 3
    for unmoved in (Routing("live", 1, 3, 0), Routing("live", 2, 3, 5000)):
        assert entry(rollout=unmoved).live is not None, unmoved
    prod = Alias("prod", split_of({1: 10_000}), match=(Match("header", "x-beta", "1", 2),))
    made = entry(prod, rollout=Routing("prod", 1, 3, 10_000))
    assert (made.target(prod_call()), made.target(make_call())) == (3, 1)
    assert made.target(prod_call(headers={b"x-beta": b"1"})) == 2


def test_copies_run_in_instances_of_their_own() -> None:
    made = entry(shadow=Shadow("s1", "2"))
    live, copy = made.find(make_call()), made.find(make_call(trigger="shadow", qualifier="2"))
    assert live is made.live
    assert live is not None
    assert copy is not None
    assert (copy.version, copy.env["NOVA_SHADOW"]) == (2, "1")
    direct = made.find(make_call(qualifier="2"))
    assert direct is not None
    assert "NOVA_SHADOW" not in direct.env
    assert copy.pool_key != direct.pool_key
