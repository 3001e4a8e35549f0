"""Who calls: API keys, the local operator, and the address a request came from."""

import hashlib
import ipaddress
import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from nova.clock import Clock
from nova.config import ApiKeySettings, StaticKey
from nova.domain.identity import DEFAULT_NAMESPACE, Grant, Identity, Scope
from nova.errors import NovaError
from nova.security import access
from nova.service import Background
from nova.store.apikeys import KeyRecord, KeySecret, KeyStore
from nova.store.listen import Channel, Listener
from nova.store.mirror import Mirror

_KEY = re.compile(r"(nk_[0-9a-f]{16})_[A-Za-z0-9_-]{43}")
_LAST_USED_INTERVAL_S = 30.0
_MAX_KEY_CHARS = 512

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
OPERATOR = Identity("operator", frozenset(), grants=(Grant(frozenset({access.ALL})),), platform=True)
"""The person at this machine, and everybody where ``auth.enabled`` is false."""


def new_key() -> tuple[str, KeySecret]:
    """A key to show once, and what is stored of it."""
    prefix = f"nk_{secrets.token_hex(8)}"
    text = f"{prefix}_{secrets.token_urlsafe(32)}"
    return text, KeySecret(prefix, digest(text))


def same_key(prefix: str) -> tuple[str, bytes]:
    """A new secret under the prefix of a key that is rotated: the text, and its hash."""
    text = f"{prefix}_{secrets.token_urlsafe(32)}"
    return text, digest(text)


def digest(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="replace")).digest()


def credential(headers: Mapping[bytes, bytes], *, lenient: bool = False) -> str | None:
    """The API key that a request presents, or None when it presents no credential.

    ``lenient`` lets an Authorization header of another kind pass as no credential (it may be meant for the function behind
    a URL); otherwise it raises ``unauthenticated``.
    """
    if (key := headers.get(b"x-api-key")) is not None:
        return key.decode("latin-1")
    value = headers.get(b"authorization")
    if value is None:
        return None
    scheme, _, rest = value.decode("latin-1").partition(" ")
    rest = rest.strip()
    if scheme.lower() == "apikey" or (scheme.lower() == "bearer" and rest.startswith("nk_")):
        return rest
    if lenient:
        return None
    raise NovaError("unauthenticated", "the Authorization header has no API key")


@dataclass(frozen=True, slots=True)
class _Entry:
    record: KeyRecord
    identity: Identity
    networks: tuple[Network, ...]


class KeyRing:
    """Every API key, in memory: proving a caller costs one SHA-256 and no round trip."""

    def __init__(self, store: KeyStore, listener: Listener, settings: ApiKeySettings, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._settings = settings
        self._static = [(digest(key.key), _static_identity(key)) for key in settings.static_keys]
        self._entries: dict[str, _Entry] = {}
        self._prefixes: dict[str, str] = {}
        self._used: dict[str, datetime] = {}
        self._mirror = Mirror("api keys", listener, Channel.KEYS, self._refresh)
        self._background = Background("keyring")

    async def start(self) -> None:
        await self._mirror.start()
        self._background.spawn("last-used", self._record_use())

    async def close(self) -> None:
        await self._background.close()
        await self._mirror.close()
        await self._flush_use()

    async def changed(self, key_id: str) -> None:
        """Read one key again after a change made here."""
        await self._mirror.changed(key_id)

    def prove(self, key: str, address: str | None) -> Identity:
        """Whose key this is. Raises ``unauthenticated``, or ``ip_denied`` for a good key from the wrong place."""
        if not self._settings.enabled or len(key) > _MAX_KEY_CHARS:
            raise _refused()
        hashed = digest(key)
        match = _KEY.fullmatch(key)
        entry = self._entries.get(match[1]) if match else None
        if entry is None:
            return self._prove_static(hashed)
        now = self._clock.now()
        record = entry.record
        if not secrets.compare_digest(hashed, record.key_hash) and not _former(record, hashed, now):
            raise _refused()
        settings = record.settings
        if not settings.enabled or (settings.expires_at is not None and settings.expires_at <= now):
            raise _refused()
        if entry.networks and not within(address, entry.networks):
            raise NovaError("ip_denied", "this key may not be used from your address")
        self._used[record.id] = now
        return entry.identity

    def _prove_static(self, hashed: bytes) -> Identity:
        found: Identity | None = None
        for known, identity in self._static:  # all of them: the time says nothing about which one matched
            if secrets.compare_digest(hashed, known):
                found = identity
        if found is None:
            raise _refused()
        return found

    async def _refresh(self, changed: frozenset[str] | None) -> None:
        if changed is None:
            self._entries = {record.prefix: _entry(record) for record in await self._store.all()}
            self._prefixes = {entry.record.id: prefix for prefix, entry in self._entries.items()}
            return
        for key_id in changed:
            record = await self._store.by_id(key_id)
            if record is not None:
                self._entries[record.prefix] = _entry(record)
                self._prefixes[key_id] = record.prefix
            elif (prefix := self._prefixes.pop(key_id, None)) is not None:
                del self._entries[prefix]

    async def _record_use(self) -> None:
        while True:
            await self._clock.sleep(_LAST_USED_INTERVAL_S)
            await self._flush_use()

    async def _flush_use(self) -> None:
        used, self._used = self._used, {}
        if not used:
            return
        try:
            await self._store.touch(used)
        except NovaError:
            self._used = {**used, **self._used}  # the next round writes them


def key_identity(
    tenant: str, name: str, grants: tuple[Grant, ...], namespaces: Iterable[str], tier: str, *, platform: bool
) -> Identity:
    """What a key makes of its bearer."""
    held = frozenset(namespaces)
    scope: Scope | None = Scope(tenant, DEFAULT_NAMESPACE)
    if held and DEFAULT_NAMESPACE not in held:
        scope = Scope(tenant, next(iter(held))) if len(held) == 1 else None
    return Identity(
        subject=f"key:{name}",
        tenants=frozenset() if platform else frozenset({tenant}),
        namespaces=held,
        grants=grants,
        platform=platform,
        tier=tier,
        default_scope=scope,
    )


def record_identity(record: KeyRecord) -> Identity:
    rows = record.settings.permissions
    return key_identity(
        record.tenant,
        record.name,
        tuple(access.grant(row.role, row.functions, row.effect) for row in rows if row.role in access.ROLES),
        record.settings.namespaces,
        record.settings.tier,
        platform=any(row.role == access.PLATFORM_ADMIN and row.effect == "allow" for row in rows),
    )


def _entry(record: KeyRecord) -> _Entry:
    return _Entry(record, record_identity(record), networks(record.settings.ip_allow))


def _static_identity(key: StaticKey) -> Identity:
    grants = (access.grant(key.role),)
    return key_identity(key.tenant_id, key.name, grants, (), key.tier, platform=key.role == access.PLATFORM_ADMIN)


def _former(record: KeyRecord, hashed: bytes, now: datetime) -> bool:
    """Is this the key before the last rotation, in its grace?"""
    if record.previous_hash is None or record.previous_until is None or record.previous_until <= now:
        return False
    return secrets.compare_digest(hashed, record.previous_hash)


def _refused() -> NovaError:
    return NovaError("unauthenticated", "the API key is not valid")


def networks(texts: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and CIDR networks. Raises ValueError for anything else."""
    return tuple(ipaddress.ip_network(text, strict=False) for text in texts)


def within(address: str | None, allowed: Iterable[Network]) -> bool:
    """Is an address in one of the networks? IPv4 in IPv6 form counts as IPv4."""
    parsed = parse_address(address)
    return parsed is not None and any(parsed in network for network in allowed)


def parse_address(text: str | None) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if text is None:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
