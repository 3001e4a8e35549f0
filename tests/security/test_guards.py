"""Who comes in: the local operator, keys, proxies, scopes."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta

import pytest

from nova.config import ApiKeySettings, AuthSettings, HttpSettings, Settings, StaticKey
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.security.guards import Door
from nova.security.identity import new_key, same_key
from nova.store.apikeys import KeyGrant, KeySettings, KeyStore
from nova.store.db import Database
from nova.store.tenants import TenantStore
from tests.http.harness import Security, security
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio
LOCAL = "127.0.0.1"
REMOTE = "203.0.113.7"


def h(host: str = "localhost:9000", **more: str) -> dict[bytes, bytes]:
    return {b"host": host.encode()} | {name.replace("_", "-").encode(): value.encode() for name, value in more.items()}


@pytest.fixture
async def guards(database: Database) -> AsyncIterator[Security]:
    async with security(database) as found:
        yield found


@asynccontextmanager
async def door_with(database: Database, **settings: object) -> AsyncIterator[Security]:
    async with security(database, Settings(**settings)) as found:
        yield found


def refused(door: Door, headers: Mapping[bytes, bytes], peer: str | None) -> str:
    with pytest.raises(NovaError) as caught:
        door.identify(headers, peer)
    return caught.value.code


async def add_key(
    guards: Security, *, tenant: str = "default", role: str = "admin", namespaces: tuple[str, ...] = (), **more: object
) -> tuple[str, str]:
    """A key's text and name."""
    text, secret = new_key()
    key_id = new_id()
    values: dict[str, object] = {
        "tier": "standard",
        "enabled": True,
        "permissions": (KeyGrant(role),),
        "namespaces": namespaces,
        "ip_allow": (),
        "description": "",
        "expires_at": None,
        **more,
    }
    store = KeyStore(guards.database)
    async with guards.database.transaction() as conn:
        await store.insert(conn, key_id, tenant, f"k-{key_id[-12:]}", secret, KeySettings(**values), "test")  # type: ignore[arg-type]
    await guards.keys.changed(key_id)
    return text, f"k-{key_id[-12:]}"


async def test_a_direct_loopback_caller_is_the_operator(guards: Security) -> None:
    """ID1: auth.enabled auto lets the person at the machine in."""
    for peer in ("127.0.0.1", "127.8.8.8", "::1", "::ffff:127.0.0.1"):
        for host in ("localhost:9000", "127.0.0.1:9000", "[::1]:9000", "app.localhost", "LOCALHOST"):
            assert guards.door.identify(h(host), peer).identity.subject == "operator"


async def test_everybody_else_needs_a_key(guards: Security) -> None:
    """ID1: no forwarded, rebound or foreign request passes for the operator."""
    strangers: list[tuple[str | None, dict[bytes, bytes]]] = [
        (REMOTE, h()),
        (None, h()),
        (LOCAL, h("nova.example")),
        (LOCAL, h("127.0.0.1.evil.example")),
        (LOCAL, h("localhost.evil.example")),
        (LOCAL, {}),
        (LOCAL, h(forwarded="for=1.2.3.4")),
        (LOCAL, h(x_forwarded_for="127.0.0.1")),
        (LOCAL, h(x_forwarded_proto="https")),
        (LOCAL, h(via="1.1 proxy")),
        (LOCAL, h(x_real_ip="127.0.0.1")),
        (LOCAL, h(origin="https://evil.example")),
        (LOCAL, h(origin="http://localhost:3000")),
        (LOCAL, h(origin="null")),
    ]
    for peer, headers in strangers:
        assert refused(guards.door, headers, peer) == "unauthenticated", (peer, headers)


async def test_the_own_page_of_the_platform_is_no_foreign_origin(guards: Security) -> None:
    assert guards.door.identify(h(origin="http://localhost:9000"), LOCAL).identity.subject == "operator"


async def test_auth_true_asks_the_operator_too(database: Database) -> None:
    async with door_with(database, auth=AuthSettings(enabled="true")) as guards:
        assert refused(guards.door, h(), LOCAL) == "unauthenticated"


async def test_auth_false_lets_everyone_in_but_strangers_pages(database: Database) -> None:
    async with door_with(database, auth=AuthSettings(enabled="false")) as guards:
        assert guards.door.identify(h("nova.example"), REMOTE).identity.platform
        assert guards.door.identify(h(), LOCAL).identity.platform
        assert refused(guards.door, h(origin="https://evil.example"), LOCAL) == "unauthenticated"
        assert refused(guards.door, h("rebound.example"), LOCAL) == "unauthenticated"


@pytest.mark.parametrize("form", ["x-api-key", "ApiKey", "apikey", "Bearer"])
async def test_a_key_proves_its_bearer_in_every_form(guards: Security, form: str) -> None:
    text, name = await add_key(guards)
    headers = {b"x-api-key": text.encode()} if form == "x-api-key" else {b"authorization": f"{form} {text}".encode()}
    assert guards.door.identify(headers, REMOTE).identity.subject == f"key:{name}"
    assert guards.door.identify(headers | h(), LOCAL).identity.subject == f"key:{name}"


async def test_what_is_not_a_good_key_is_refused_also_on_loopback(guards: Security) -> None:
    text, _ = await add_key(guards)
    wrong = text[:-1] + ("A" if text[-1] != "A" else "B")
    for value in (wrong, text + "x", text[:10], "", "nk_", "é", "x" * 10_000):
        assert refused(guards.door, h() | {b"x-api-key": value.encode()}, LOCAL) in ("unauthenticated", "rate_limited")
    assert refused(guards.door, h(authorization="Basic YTpi"), LOCAL) == "unauthenticated"


async def test_an_authorization_header_for_the_function_is_not_ours(guards: Security) -> None:
    headers = h(authorization="Bearer the.app.token")
    assert guards.door.identify(headers, LOCAL, lenient=True).identity.subject == "operator"


async def test_disabled_expired_and_misplaced_keys(database: Database) -> None:
    clock = MockClock()
    async with security(database, clock=clock) as guards:
        disabled, _ = await add_key(guards, enabled=False)
        assert refused(guards.door, {b"x-api-key": disabled.encode()}, REMOTE) == "unauthenticated"
        short, _ = await add_key(guards, expires_at=clock.now() + timedelta(seconds=10))
        assert guards.door.identify({b"x-api-key": short.encode()}, REMOTE)
        await clock.advance(10)
        assert refused(guards.door, {b"x-api-key": short.encode()}, REMOTE) == "unauthenticated"
        placed, _ = await add_key(guards, ip_allow=("198.51.100.0/24", "2001:db8::1"))
        assert refused(guards.door, {b"x-api-key": placed.encode()}, REMOTE) == "ip_denied"
        for address in ("198.51.100.9", "2001:db8::1", "::ffff:198.51.100.9"):
            assert guards.door.identify({b"x-api-key": placed.encode()}, address)


async def test_a_rotated_key_lives_for_its_grace(database: Database) -> None:
    """SE3: old and new are both good during the overlap."""
    clock = MockClock()
    async with security(database, clock=clock) as guards:
        store = KeyStore(database)
        old, name = await add_key(guards)
        record = await store.get("default", name)
        assert record is not None
        new, hashed = same_key(record.prefix)
        async with database.transaction() as conn:
            await store.rotate(conn, "default", name, hashed, 60)
            await conn.run("UPDATE api_keys SET previous_until = %(t)s", t=clock.now() + timedelta(seconds=60))
        await guards.keys.changed(record.id)
        for text in (old, new):
            assert guards.door.identify({b"x-api-key": text.encode()}, REMOTE)
        await clock.advance(60)
        assert refused(guards.door, {b"x-api-key": old.encode()}, REMOTE) == "unauthenticated"
        assert guards.door.identify({b"x-api-key": new.encode()}, REMOTE)


async def test_static_keys_and_switching_keys_off(database: Database) -> None:
    static = StaticKey(name="ci", key="a-long-static-key", role="platform-admin")
    async with door_with(database, auth=AuthSettings(api_keys=ApiKeySettings(static_keys=[static]))) as guards:
        identity = guards.door.identify({b"x-api-key": b"a-long-static-key"}, REMOTE).identity
        assert (identity.subject, identity.platform) == ("key:ci", True)
    off = AuthSettings(api_keys=ApiKeySettings(enabled=False, static_keys=[static]))
    async with door_with(database, auth=off) as guards:
        assert refused(guards.door, {b"x-api-key": b"a-long-static-key"}, REMOTE) == "unauthenticated"


async def test_too_many_bad_keys_are_429_before_they_are_looked_at(guards: Security) -> None:
    text, _ = await add_key(guards)
    for _ in range(20):
        refused(guards.door, {b"x-api-key": b"guess"}, REMOTE)
    assert refused(guards.door, {b"x-api-key": text.encode()}, REMOTE) == "rate_limited"
    assert guards.door.identify({b"x-api-key": text.encode()}, "203.0.113.8")
    assert guards.door.identify(h(), LOCAL).identity.subject == "operator"


async def test_a_change_made_elsewhere_acts_here(database: Database) -> None:
    """DB1: a key that another process makes, and deletes, is known here by notification."""
    async with security(database) as here, security(database) as there:
        text, name = await add_key(there)
        headers = {b"x-api-key": text.encode()}
        await eventually(lambda: here.door.identify(headers, REMOTE))
        async with database.transaction() as conn:
            await KeyStore(database).delete(conn, "default", name)
        await eventually(lambda: refused(here.door, headers, "203.0.113.99"))


async def test_changes_that_no_notification_told_are_seen_while_the_listener_is_cut(database: Database) -> None:
    """DB1: also after the listener's connection was cut."""
    async with security(database) as guards:
        text, _ = await add_key(guards)
        headers = {b"x-api-key": text.encode()}
        await database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nova listener'"
        )
        await database.run("DELETE FROM api_keys")
        await eventually(lambda: refused(guards.door, headers, "203.0.113.98"))


async def eventually(check: object) -> None:
    """Until ``check`` no longer fails; at most 5 s."""
    import asyncio

    for _ in range(500):
        try:
            check()  # type: ignore[operator]
        except (NovaError, pytest.fail.Exception):
            await asyncio.sleep(0.01)
        else:
            return
    check()  # type: ignore[operator]


async def test_addresses_come_from_the_socket_or_a_trusted_proxy(database: Database) -> None:
    """GW9: a forged forwarded-for changes nothing."""
    cases = [
        (REMOTE, h(x_forwarded_for="1.1.1.1"), REMOTE),
        ("10.0.0.1", h(x_forwarded_for="1.1.1.1"), "1.1.1.1"),
        ("10.0.0.1", h(x_forwarded_for="9.9.9.9, 1.1.1.1, 10.0.0.2"), "1.1.1.1"),
        ("10.0.0.1", h(x_forwarded_for="nonsense, 10.0.0.2"), "10.0.0.1"),
        ("10.0.0.1", h(forwarded='for=9.9.9.9, for="[2001:db8::5]:80";proto=https'), "2001:db8::5"),
        ("10.0.0.1", h(), "10.0.0.1"),
    ]
    async with door_with(database, http=HttpSettings(trusted_proxies=["10.0.0.0/8"])) as guards:
        for peer, headers, address in cases:
            assert guards.door.client_address(headers, peer) == address, headers


async def test_headers_select_among_the_scopes_that_are_held(guards: Security) -> None:
    """GW9, DB5: a tenant header of a stranger is refused whether or not that tenant exists."""
    store = TenantStore(guards.database)
    async with guards.database.transaction() as conn:
        await store.insert(conn, "acme", "Acme", "active", "standard")
        await store.insert_namespace(conn, "acme", "dev", "")
        await store.insert_namespace(conn, "acme", "prod", "")
    await guards.directory.changed("acme")

    async def scope(caller_key: str | None, tenant: str | None, namespace: str | None) -> Scope | str:
        headers = h() if caller_key is None else {b"x-api-key": caller_key.encode()}
        caller = guards.door.identify(headers, LOCAL)
        try:
            return guards.door.scope(caller, tenant, namespace)
        except NovaError as exc:
            return exc.code

    whole, _ = await add_key(guards, tenant="acme")
    one, _ = await add_key(guards, tenant="acme", namespaces=("dev",))
    two, _ = await add_key(guards, tenant="acme", namespaces=("dev", "prod"))
    assert await scope(None, None, None) == Scope("default", "default")
    assert await scope(None, "acme", "dev") == Scope("acme", "dev")
    assert await scope(None, "acme", None) == Scope("acme", "default")
    assert await scope(None, "nobody", None) == "not_found"
    assert await scope(None, "acme", "nothing") == "not_found"
    assert await scope(None, "../x", None) == "scope_invalid"
    assert await scope(whole, None, None) == Scope("acme", "default")
    assert await scope(whole, None, "prod") == Scope("acme", "prod")
    assert await scope(whole, "default", None) == "scope_forbidden"
    assert await scope(whole, "nobody", None) == "scope_forbidden"
    assert await scope(one, None, None) == Scope("acme", "dev")
    assert await scope(one, None, "prod") == "scope_forbidden"
    assert await scope(two, None, None) == "scope_required"
    assert await scope(two, None, "prod") == Scope("acme", "prod")


async def test_a_suspended_tenant_is_shut_at_once(guards: Security) -> None:
    """ID10: every call of a suspended tenant is refused."""
    text, _ = await add_key(guards)
    caller = guards.door.identify({b"x-api-key": text.encode()}, REMOTE)
    async with guards.database.transaction() as conn:
        await TenantStore(guards.database).update(conn, "default", "Default", "suspended", "standard")
    await guards.directory.changed("default")
    with pytest.raises(NovaError, match="tenant_suspended"):
        guards.door.scope(caller, None, None)
    with pytest.raises(NovaError, match="tenant_suspended"):
        guards.door.check_tenant(caller)


async def test_a_draining_server_takes_nobody(guards: Security) -> None:
    guards.door.draining = True
    assert refused(guards.door, h(), LOCAL) == "draining"


async def test_the_last_use_of_a_key_is_recorded(database: Database) -> None:
    async with security(database) as guards:
        text, name = await add_key(guards)
        guards.door.identify({b"x-api-key": text.encode()}, REMOTE)
    record = await KeyStore(database).get("default", name)
    assert record is not None
    assert record.last_used_at is not None


async def test_a_proof_costs_no_round_trip(guards: Security, monkeypatch: pytest.MonkeyPatch) -> None:
    """EX16: the door answers from memory."""
    text, _ = await add_key(guards)

    def fail(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the door asked the database")

    monkeypatch.setattr(Database, "connection", fail)
    for _ in range(3):
        caller = guards.door.identify({b"x-api-key": text.encode()}, REMOTE)
        guards.door.scope(caller, None, None)
        guards.door.authorize(caller, "function:invoke", "a")
        guards.door.charge(caller, Scope())
