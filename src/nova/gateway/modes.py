"""How the URLs of functions answer: whole, or as the answer comes. From memory, but for a function's first call here."""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.identity import Scope
from nova.domain.version import UrlMode
from nova.errors import NovaError
from nova.payload import decode
from nova.store.listen import Channel

_KEPT = 10_000
_BLIND_S = 1.0
"""How long what is known counts while notifications may be missed."""

Name = tuple[str, str, str]
"""tenant, namespace, function"""


class UrlSettings(Protocol):
    async def url_mode(self, scope: Scope, name: str) -> UrlMode | None: ...


class Notifications(Protocol):
    @property
    def connected(self) -> bool: ...

    def on(self, channel: str, callback: Callable[[str], None]) -> None: ...

    def on_reconnect(self, callback: Callable[[], None]) -> None: ...


@dataclass(slots=True)
class _Known:
    mode: UrlMode
    read_at: float


class UrlModes:
    """What is kept is dropped when PostgreSQL says that the function changed, as the catalog of functions does."""

    def __init__(self, settings: UrlSettings, notifications: Notifications, clock: Clock = SYSTEM_CLOCK) -> None:
        self._settings = settings
        self._notifications = notifications
        self._now = clock.monotonic
        self._known: OrderedDict[Name, _Known] = OrderedDict()
        self._changes = 0
        notifications.on(Channel.FUNCTIONS, self._changed)
        notifications.on_reconnect(self._known.clear)

    async def streams(self, scope: Scope, name: str) -> bool:
        """Does the function's URL answer as the answer comes? False for one that does not exist.

        Raises ``dependency_unavailable`` when that is not known and the database does not answer.
        """
        key = scope.tenant, scope.namespace, name
        known = self._known.get(key)
        if known is None or not (self._notifications.connected or self._now() - known.read_at < _BLIND_S):
            try:
                known = await self._read(key, scope)
            except NovaError:
                if known is None:
                    raise
        return known is not None and known.mode == "stream"

    async def _read(self, key: Name, scope: Scope) -> _Known | None:
        before = self._changes
        mode = await self._settings.url_mode(scope, key[2])
        if mode is None:
            return None
        known = _Known(mode, self._now())
        if self._changes == before:  # else it may have changed while it was read
            self._known[key] = known
            if len(self._known) > _KEPT:
                self._known.popitem(last=False)
        return known

    def _changed(self, payload: str) -> None:
        self._changes += 1
        change = decode(payload)
        self._known.pop((change["tenant"], change["namespace"], change["name"]), None)
