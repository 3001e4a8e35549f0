"""The ``config`` table: its handlers, and its copy in each process."""

from collections.abc import Callable, Iterable
from typing import Any

import structlog
from pydantic.json_schema import models_json_schema

from nova.api.system import Setting, SettingsChange, SettingsSchema, SettingsView
from nova.api.table import Empty
from nova.config import KEYS, Key, Section
from nova.config_sources import ConfigError, Loaded, apply_table, check_value, plain, unknown
from nova.errors import FieldError, NovaError, invalid, not_found
from nova.http.handler import Req, handles
from nova.store.db import Database
from nova.store.listen import Channel, Listener
from nova.store.mirror import Mirror
from nova.store.settings import SettingsStore

log = structlog.get_logger(__name__)


class LiveSettings:
    """Keeps this process's settings in step with the table. ``changed`` hears the keys whose value is new."""

    def __init__(
        self,
        loaded: Loaded,
        store: SettingsStore,
        listener: Listener,
        changed: Callable[[list[str]], None] = lambda _keys: None,
    ) -> None:
        self.loaded = loaded
        self._store = store
        self._changed = changed
        self._mirror = Mirror("settings", listener, Channel.CONFIG, self._refresh)

    async def start(self) -> None:
        await self._mirror.start()

    async def close(self) -> None:
        await self._mirror.close()

    async def refresh(self) -> None:
        """Read the table again after a change made here."""
        await self._mirror.changed("")

    async def _refresh(self, _what: frozenset[str] | None) -> None:
        try:
            keys = apply_table(self.loaded, await self._store.all())
        except ConfigError as exc:  # written by another version; the settings in force stay
            log.error("a row of the config table is not acceptable", error=str(exc))
            return
        if keys:
            self._changed(keys)


class SettingsHandlers:
    def __init__(self, db: Database, store: SettingsStore, live: LiveSettings) -> None:
        self._db = db
        self._store = store
        self._live = live

    @handles("config.get")
    async def get(self, req: Req[Empty, Empty]) -> SettingsView:
        return SettingsView({name: self._view(key) for name, key in KEYS.items()})

    @handles("config.set")
    async def set(self, req: Req[SettingsChange, Empty]) -> SettingsView:
        values = {name: self._checked(name, value) for name, value in req.body.root.items()}
        if not values:
            raise invalid("body", "name at least one setting")
        async with self._db.transaction() as conn:
            await self._store.put(conn, values, req.identity.subject)
        await self._live.refresh()
        return SettingsView({name: self._view(KEYS[name]) for name in values})

    @handles("config.schema")
    async def schema(self, req: Req[Empty, Empty]) -> SettingsSchema:
        return _schema(KEYS.values())

    @handles("config.unset")
    async def unset(self, req: Req[Empty, Empty]) -> None:
        name = req.params["key"]
        if name not in KEYS:
            raise not_found("setting", name)
        async with self._db.transaction() as conn:
            if not await self._store.delete(conn, name):
                raise NovaError("not_found", f"setting {name!r} was not changed here")
        await self._live.refresh()

    def _checked(self, name: str, value: Any) -> Any:
        """The value as the table keeps it. Only hot keys, and only where neither flag nor environment decides."""
        key = KEYS.get(name)
        if key is None:
            raise NovaError("unknown_field", unknown(name), errors=[FieldError(name, "no such setting")])
        if not key.hot:
            raise invalid(name, "takes effect at start only: set it in the file, the environment or by flag")
        if self._live.loaded.fixed(name):
            source = self._live.loaded.source(name)
            raise NovaError(
                "invalid_state", f"{name} is fixed by {'a flag' if source == 'flag' else 'the environment'}"
            )
        try:
            return check_value(name, value)
        except ConfigError as exc:
            message = str(exc).removeprefix(f"{name}: ")
            raise invalid(name, message) from None

    def _view(self, key: Key) -> Setting:
        loaded = self._live.loaded
        return Setting(
            value=loaded.shown(key.name),
            default=plain(key.default),
            source=loaded.source(key.name),
            hot=key.hot,
            secret=key.secret,
        )


def _schema(keys: Iterable[Key]) -> SettingsSchema:
    rows = list(keys)
    sections: list[type[Section]] = list(dict.fromkeys(key.section for key in rows))
    references, document = models_json_schema([(section, "validation") for section in sections])
    defs = document.get("$defs", {})
    names = {section: references[(section, "validation")]["$ref"].rpartition("/")[2] for section in sections}
    properties = {key.name: {**defs[names[key.section]]["properties"][key.attribute], "hot": key.hot} for key in rows}
    used = {name: schema for name, schema in defs.items() if name not in names.values()}
    return SettingsSchema(type="object", properties=properties, defs=used)
