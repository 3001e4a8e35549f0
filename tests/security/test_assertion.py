"""Assertions between planes: they carry the caller whole, nobody else can make them, and they do not live long."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest

from nova.domain.identity import ANONYMOUS, Grant, Identity, Scope
from nova.errors import NovaError
from nova.security import assertion
from nova.security.assertion import HEADER, LIFE_S, SIGN_AGAIN_S, SKEW_S, AssertedCaller, Assertions
from nova.security.guards import Caller
from nova.security.identity import OPERATOR
from nova.security.service import ServiceToken, load_token
from nova.security.service_door import ServiceDoor
from nova.store.db import Database
from tests.http.harness import security

TOKEN = ServiceToken(b"a-token-for-these-tests")
PLACE = Scope("acme", "prod")
BOB = Identity(
    "key:bob",
    frozenset({"acme"}),
    frozenset({"prod", "test"}),
    (Grant(frozenset({"function:invoke", "log:read"}), ("a*", "b?")), Grant(frozenset({"log:read"}), effect="deny")),
    tier="pro",
    default_scope=None,
)


class WallClock:
    def __init__(self) -> None:
        self.time = datetime(2026, 11, 22, 12, 0, 0, 700_000, tzinfo=UTC)

    def now(self) -> datetime:
        return self.time

    def unix(self) -> float:
        return self.time.timestamp()

    def monotonic(self) -> float:
        return 0.0

    async def sleep(self, seconds: float) -> None:
        raise AssertionError("nobody sleeps here")

    def step(self, seconds: float) -> None:
        self.time += timedelta(seconds=seconds)


def pair() -> tuple[WallClock, Assertions, Assertions]:
    """Both ends, each with a memory of its own, on one clock."""
    clock = WallClock()
    return clock, Assertions(TOKEN, clock), Assertions(TOKEN, clock)


def refused(verifier: Assertions, text: str | bytes) -> bool:
    try:
        verifier.verify(text)
    except NovaError as exc:
        return exc.code == "unauthenticated"
    return False


@pytest.mark.parametrize("identity", [BOB, OPERATOR, ANONYMOUS, Identity("service:corona", frozenset({"acme"}))])
@pytest.mark.parametrize("scope", [PLACE, None])
@pytest.mark.parametrize("address", ["2001:db8::1", None])
def test_a_caller_arrives_whole(identity: Identity, scope: Scope | None, address: str | None) -> None:
    _, signer, verifier = pair()
    text = signer.sign(Caller(identity, address), scope)
    assert text.isascii()
    assert text.isprintable()
    for form in (text, text.encode(), text):
        caller, place = verifier.verify(form)
        assert (caller.identity, caller.address, place) == (identity, address, scope)
    if identity in (OPERATOR, ANONYMOUS):
        assert caller.identity is identity, "known by identity elsewhere"


def test_an_assertion_is_made_again_before_it_expires() -> None:
    clock, signer, verifier = pair()
    caller = Caller(BOB, None)
    first = signer.sign(caller, PLACE)
    clock.step(SIGN_AGAIN_S - 1)
    assert signer.sign(caller, PLACE) == first
    clock.step(2)
    second = signer.sign(caller, PLACE)
    assert second != first
    clock.step(LIFE_S + SKEW_S + 1)
    assert refused(verifier, first)
    assert refused(verifier, second)
    assert not refused(verifier, signer.sign(caller, PLACE))


def test_an_assertion_that_was_accepted_expires_all_the_same() -> None:
    clock, signer, verifier = pair()
    text = signer.sign(Caller(BOB, None), PLACE)
    assert not refused(verifier, text)
    clock.step(LIFE_S + SKEW_S + 1)
    assert refused(verifier, text)


@pytest.mark.parametrize("jump", [3600, -3600])
def test_a_clock_that_jumps_on_both_ends_stops_nobody(jump: float) -> None:
    clock, signer, verifier = pair()
    caller = Caller(BOB, None)
    before = signer.sign(caller, PLACE)
    assert not refused(verifier, before)
    clock.step(jump)
    assert refused(verifier, before)
    assert not refused(verifier, signer.sign(caller, PLACE))


def test_clocks_may_differ_a_little() -> None:
    _, signer, _ = pair()
    text = signer.sign(Caller(BOB, None), PLACE)
    for offset, fine in (
        (-SKEW_S + 2, True),
        (-SKEW_S - 2, False),
        (LIFE_S + SKEW_S - 2, True),
        (LIFE_S + SKEW_S + 2, False),
    ):
        clock = WallClock()
        clock.step(offset)
        assert refused(Assertions(TOKEN, clock), text) is not fine


def test_each_identity_scope_and_address_has_its_own() -> None:
    _, signer, verifier = pair()
    twin = Identity("key:eve", frozenset({"acme"}))
    texts = {
        signer.sign(Caller(identity, address), scope)
        for identity in (BOB, twin)
        for address in ("1.1.1.1", "2.2.2.2", None)
        for scope in (PLACE, Scope(), None)
    }
    assert len(texts) == 18
    for _ in range(3):  # identities that come and go may share a place in memory, never an assertion
        fleeting = Identity(f"key:{_}", frozenset())
        assert verifier.verify(signer.sign(Caller(fleeting, None), None))[0].identity.subject == f"key:{_}"
        del fleeting


def forge(claims: dict[str, Any], key: bytes | None, algorithm: str = "HS256") -> str:
    return jwt.encode({"sub": "operator", "platform": True, **claims}, key, algorithm=algorithm)


@pytest.mark.filterwarnings("ignore:The HMAC key")
def test_nobody_else_can_make_one() -> None:
    clock, signer, verifier = pair()
    now = int(clock.now().timestamp())
    times = {"iat": now, "exp": now + 60}
    good = signer.sign(Caller(BOB, None), PLACE)
    head, body, signature = good.split(".")
    changed = json.loads(base64.urlsafe_b64decode(body + "==")) | {"platform": True}
    other_body = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
    key = verifier._key
    bad = [
        "",
        "x",
        "a.b.c",
        "\u00e9",
        f"{head}.{other_body}.{signature}",
        f"{head}.{body}.",
        forge(times, b"k" * 32),
        forge(times, None, "none"),
        forge(times, key, "HS512"),
        forge({"iat": now}, key),
        forge({"exp": now + 60}, key),
        forge({"iat": now, "exp": now + 86_400}, key),
        forge({**times, "grants": [[["*"], [], "maybe"]]}, key),
        forge({**times, "grants": [1]}, key),
        forge({**times, "scope": ["only-one"]}, key),
    ]
    for text in bad:
        assert refused(verifier, text), text
    assert refused(Assertions(ServiceToken(b"another-token-here"), clock), good)
    assert not refused(verifier, forge(times, key)), "the other cases differ from this one in one thing each"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assertion, "_REMEMBERED", 20)
    _, signer, verifier = pair()
    for number in range(50):
        verifier.verify(signer.sign(Caller(BOB, str(number)), None))
    assert len(signer._signed) == len(verifier._seen) == 20


def test_the_token_shows_nowhere_and_is_compared_whole() -> None:
    assert "a-token" not in repr(TOKEN)
    assert TOKEN.proven_by(b"Bearer a-token-for-these-tests")
    for wrong in (None, b"", b"a-token-for-these-tests", b"Bearer a-token", b"Bearer a-token-for-these-testsx"):
        assert not TOKEN.proven_by(wrong)


@pytest.mark.anyio
async def test_all_processes_get_the_same_token(database: Database) -> None:
    first = await load_token(database, "")
    assert first == await load_token(database, "")
    assert len(first.value) >= 32
    assert first.value.isascii()
    assert (await load_token(database, "configured-by-hand-0")).value == b"configured-by-hand-0"
    for bad in ("short", "with space in the middle", "ü" * 20):
        with pytest.raises(NovaError) as caught:
            await load_token(database, bad)
        assert caught.value.errors[0].field == "grpc.service_token"


@pytest.mark.anyio
async def test_the_service_door(database: Database) -> None:
    _, signer, verifier = pair()
    async with security(database) as guards:
        door = ServiceDoor(TOKEN, verifier, guards.directory, origins=["https://ui.example/"])
        alice = Identity("key:alice", frozenset({"default"}), grants=(Grant(frozenset({"log:read"}), ("a*",)),))
        text = signer.sign(Caller(alice, "203.0.113.5"), Scope()).encode()
        headers = {b"authorization": TOKEN.bearer, HEADER: text}
        caller = door.identify(headers, "127.0.0.1")
        assert isinstance(caller, AssertedCaller)
        assert (caller.identity, caller.address) == (alice, "203.0.113.5")
        assert door.client_address(headers, "127.0.0.1") == "203.0.113.5"
        assert door.scope(caller, None, None) == Scope()
        assert door.scope(caller, "default", "default") == Scope()
        assert door.charge(caller, Scope()) is None
        door.authorize(caller, "log:read", "abc")
        door.authorize_somewhere(caller, "log:read")
        door.check_tenant(caller)
        _refuses("scope_forbidden", door.scope, caller, "other", None)
        _refuses("scope_forbidden", door.scope, caller, None, "other")
        _refuses("forbidden", door.authorize, caller, "log:read", "xyz")
        _refuses("forbidden", door.authorize, caller, "log:read", "abc", platform=True)
        _refuses("forbidden", door.authorize_somewhere, caller, "code:read")
        nowhere = AssertedCaller(OPERATOR, None, Scope("gone", "gone"))
        _refuses("not_found", door.scope, nowhere, None, None)
        for wrong in (
            {},
            {HEADER: text},
            {b"authorization": TOKEN.bearer},
            {b"authorization": b"Bearer no", HEADER: text},
            {**headers, HEADER: text[:-1]},
            {b"x-api-key": b"nk_0"},
        ):
            _refuses("unauthenticated", door.identify, wrong, "127.0.0.1")
            assert door.identify_if_possible(wrong, "127.0.0.1").identity is ANONYMOUS
        assert door.identify_if_possible(headers, None) == caller
        assert not door.trusts("127.0.0.1")
        assert door.allows_origin(b"https://ui.example")
        assert not door.allows_origin(b"https://evil.example")
        door.draining = True
        _refuses("draining", door.identify, headers, None)


def _refuses(code: str, work: Any, *args: Any, **values: Any) -> None:
    with pytest.raises(NovaError) as caught:
        work(*args, **values)
    assert caught.value.code == code
