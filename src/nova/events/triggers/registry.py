"""Which module a type of trigger is. They are loaded when they are first needed: some bring a broker's library with them."""

import asyncio
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import import_module
from typing import Any, Protocol, get_args

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from nova.api.problem import from_validation
from nova.domain.trigger import TriggerType
from nova.errors import FieldError, NovaError, invalid
from nova.events.triggers.base import SECRET, SECRET_URL, Context, Source, SourceError
from nova.payload import encode

MASK = "***"
_MODULES: Mapping[TriggerType, str] = {
    "rabbitmq": "rabbitmq",
    "redis_stream": "redis_stream",
    "nats": "nats",
    "mqtt": "mqtt",
    "webhook": "webhook_config",
    "filesystem": "filesystem",
    "http_poll": "http_poll",
    "postgres": "postgres",
}


class Module(Protocol):
    """A module of :mod:`nova.events.triggers`."""

    Config: type[BaseModel]

    def make(self, config: Any, context: Context) -> Source: ...


@cache
def load(type: TriggerType) -> Module:
    module: Any = import_module(f"nova.events.triggers.{_MODULES[type]}")
    return module  # type: ignore[no-any-return]


_loaded: set[TriggerType] = set()


async def prepare(types: Iterable[TriggerType]) -> None:
    """Load the modules of these types beside the event loop, where a broker's library would hold up everything else."""
    for type in set(types) - _loaded:
        await asyncio.to_thread(load, type)
        _loaded.add(type)


def place(type: TriggerType) -> tuple[str, ...]:
    """The fields of a type's config that say where it reads: with other values it is another source, read from anew. A module
    names them in ``PLACE``; else it is all of them."""
    module = load(type)
    return tuple(getattr(module, "PLACE", module.Config.model_fields))


def checked(type: TriggerType, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as it is stored: complete, and only what was said. Raises ``validation_failed`` or ``unknown_field`` naming the
    member, such as ``config.url``."""
    model = load(type).Config
    try:
        found = model.model_validate_json(encode(dict(config)), strict=True)
    except ValidationError as exc:
        raise _of_config(from_validation(exc, "config.")) from None
    return found.model_dump(mode="json", exclude_unset=True)


def _of_config(refusal: NovaError) -> NovaError:
    """What is wrong with the config as a whole is wrong with ``config``."""
    errors = [FieldError(error.field.rstrip("."), error.message) for error in refusal.errors]
    return NovaError(refusal.code, refusal.detail.replace("config.: ", "config: "), errors=errors)


def source_of(type: TriggerType, config: Mapping[str, Any], context: Context) -> Source:
    """Raises :class:`SourceError` for a config that another release has stored and this one does not take."""
    module = load(type)
    try:
        checked_config = module.Config.model_validate_json(encode(dict(config)))
    except ValidationError as exc:
        raise SourceError(f"the configuration is not for this release: {from_validation(exc).detail}") from None
    return module.make(checked_config, context)


def masked(type: TriggerType, config: Mapping[str, Any]) -> dict[str, Any]:
    """A config as people see it."""
    secret = _secrets(type)
    return {name: _map(value, secret[name]) if name in secret else value for name, value in config.items()}


def merged(type: TriggerType, stored: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """A merge patch on a config. A value that is what people are shown of the stored one leaves it as it is."""
    shown = masked(type, stored)
    result = dict(stored)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif isinstance(value, dict) and isinstance(stored.get(name), dict):
            result[name] = _members(stored[name], shown[name], value)
        elif name not in stored or value != shown[name]:
            result[name] = value
    for name, kind in _secrets(type).items():
        if name in result and _holds_mask(result[name], kind):
            raise invalid(f"config.{name}", f"holds {MASK}, which stands for a password that is not known here")
    return result


def _members(stored: Mapping[str, Any], shown: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    result = dict(stored)
    for name, value in patch.items():
        if value is None:
            result.pop(name, None)
        elif name not in stored or value != shown[name]:
            result[name] = value
    return result


@cache
def _secrets(type: TriggerType) -> dict[str, str]:
    """The fields that hold secrets, and of which kind they are."""
    found = {}
    for name, field in load(type).Config.model_fields.items():
        kinds = _marks(field)
        if SECRET in kinds or SECRET_URL in kinds:
            found[name] = SECRET if SECRET in kinds else SECRET_URL
    return found


def _marks(field: FieldInfo) -> set[str]:
    """Marks on the field, or on what it is a list, a mapping or a choice of."""
    marks = {mark for mark in field.metadata if isinstance(mark, str)}
    waiting = [field.annotation]
    while waiting:
        kind = waiting.pop()
        marks |= {mark for mark in getattr(kind, "__metadata__", ()) if isinstance(mark, str)}
        waiting += get_args(kind)
    return marks


def _map(value: Any, kind: str) -> Any:
    if isinstance(value, list):
        return [_map(item, kind) for item in value]
    if isinstance(value, dict):
        return {name: _map(item, kind) for name, item in value.items()}
    if not isinstance(value, str):
        return value
    return MASK if kind == SECRET else without_password(value)


def without_password(url: str) -> str:
    """``amqp://user:***@host``. A name without a password is masked too: some servers take a token there."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return MASK if "password" in url.lower() else url
    end = min((rest.find(mark) for mark in "/?#" if mark in rest), default=len(rest))
    if "@" in rest[end:] and "@" not in rest[:end]:
        end = rest.rindex("@") + 1  # a password that should have been escaped, and was not
    user, at, hosts = rest[:end].rpartition("@")
    tail = rest[end:]
    if "password" in tail.lower():
        tail = tail.partition("?")[0] + f"?{MASK}"
    name, colon, _ = user.partition(":")
    shown = f"{name}:{MASK}" if colon else MASK if user else ""
    return f"{scheme}://{shown}{at}{hosts}{tail}"


def _holds_mask(value: Any, kind: str) -> bool:
    if isinstance(value, list):
        return any(_holds_mask(item, kind) for item in value)
    if isinstance(value, dict):
        return any(_holds_mask(item, kind) for item in value.values())
    return isinstance(value, str) and (value == MASK if kind == SECRET else MASK in value)
