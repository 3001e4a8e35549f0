"""Where settings come from, and which source wins: flag, environment, ``config`` table, file, default."""

import difflib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ValidationError

from nova.config import KEYS, Settings, assign, get
from nova.telemetry import MASK

Source = Literal["flag", "env", "db", "file", "default"]
_SHORT = {
    "NOVA_PG_DSN": "postgres.dsn",
    "NOVA_HTTP_ADDR": "daemon.http_addr",
    "NOVA_LOG_LEVEL": "daemon.log_level",
    "NOVA_IDLE_TTL": "pool.idle_ttl",
    "NOVA_BACKEND": "execution.backend",
    "NOVA_DATA_DIR": "daemon.data_dir",
}
_NOT_SETTINGS = frozenset({"NOVA_API_KEY", "NOVA_TENANT", "NOVA_NAMESPACE", "NOVA_CONFIG", "NOVA_PROFILE"})
"""Variables of the clients, which share the prefix."""


class ConfigError(Exception):
    """A setting that does not exist or has a value that is not acceptable; the message names key and source."""


@dataclass(slots=True)
class Loaded:
    """The settings in force and where each key that is not a default came from."""

    settings: Settings
    sources: dict[str, Source] = field(default_factory=dict)
    beneath: dict[str, tuple[Any, Source]] = field(default_factory=dict)
    """What the table's rows lie over: value and source by key."""

    def source(self, key: str) -> Source:
        return self.sources.get(key, "default")

    def fixed(self, key: str) -> bool:
        """True when a flag or the environment decides, so that the table cannot."""
        return self.source(key) in ("flag", "env")

    def shown(self, key: str) -> Any:
        """The value as JSON can carry it, secrets masked."""
        value = get(self.settings, key)
        if KEYS[key].secret and value:
            return MASK
        return plain(value)


def plain(value: Any) -> Any:
    """A setting's value as JSON-compatible data."""
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value.model_dump(mode="json") if hasattr(value, "model_dump") else value


def load(
    *,
    flags: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] | None = None,
    file: Path | None = None,
) -> Loaded:
    """Settings from file, environment and flags (dotted keys; None = not given). The table joins by :func:`apply_table`."""
    loaded = Loaded(Settings())
    if file is not None:
        for key, value in _read_file(file).items():
            _set(loaded, key, value, "file", str(file))
    for name, key, text in _environment(os.environ if environ is None else environ):
        _set(loaded, key, parse_text(key, text), "env", name)
    for key, value in (flags or {}).items():
        if value is not None:
            _set(loaded, key, value, "flag", "the command line")
    return loaded


def apply_table(loaded: Loaded, rows: Mapping[str, Any]) -> list[str]:
    """Lay the ``config`` table over file and defaults, under flags and environment; returns the keys that changed.

    A row that was removed uncovers what the file said at start, or the default.
    """
    changed = []
    for key, value in rows.items():
        if key in KEYS and not loaded.fixed(key):
            before, source = get(loaded.settings, key), loaded.source(key)
            _set(loaded, key, value, "db", "the config table")
            if source != "db":
                loaded.beneath[key] = before, source
            if get(loaded.settings, key) != before:
                changed.append(key)
    for key in [k for k, source in loaded.sources.items() if source == "db" and k not in rows]:
        value, loaded.sources[key] = loaded.beneath.pop(key)
        assign(loaded.settings, key, value)
        changed.append(key)
    return changed


def parse_text(key: str, text: str) -> Any:
    """A value given as text (environment, ``--set``): lists by comma, maps and lists of objects as JSON."""
    default = KEYS[key].default
    if isinstance(default, dict) or text.startswith(("[", "{")):
        try:
            return json.loads(text)
        except json.JSONDecodeError as exc:
            raise ConfigError(f"{key}: {text!r} is not JSON: {exc}") from None
    if isinstance(default, list):
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def unknown(key: str, known: Iterable[str] = KEYS) -> str:
    """The message for a key that does not exist, with the nearest one that does."""
    near = difflib.get_close_matches(key, list(known), n=1)
    return f"{key}: no such setting" + (f"; did you mean {near[0]}?" if near else "")


def check_value(key: str, value: Any) -> Any:
    """Validate one value without applying it; returns it as stored. Raises :class:`ConfigError`."""
    if key not in KEYS:
        raise ConfigError(unknown(key))
    trial = Loaded(Settings())
    _set(trial, key, value, "db", "")
    return plain(get(trial.settings, key))


def _set(loaded: Loaded, key: str, value: Any, source: Source, where: str) -> None:
    if key not in KEYS:
        raise ConfigError(unknown(key) + (f" (from {where})" if where else ""))
    if key == "auth.enabled" and isinstance(value, bool):
        value = str(value).lower()
    try:
        assign(loaded.settings, key, value)
    except ValidationError as exc:
        message = exc.errors()[0]["msg"]
        raise ConfigError(f"{key}: {message}" + (f" (from {where})" if where else "")) from None
    loaded.sources[key] = source


def _read_file(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())  # JSON is YAML
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror}") from None
    except yaml.YAMLError as exc:
        raise ConfigError(f"{path}: not YAML or JSON: {exc}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: sections are expected at the top")
    return dict(_flatten(tree, ""))


def _flatten(tree: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if key in KEYS or not isinstance(value, dict):
            yield key, value
        else:
            yield from _flatten(value, f"{key}.")


def _environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, str]]:
    names = {"NOVA_" + key.replace(".", "_").upper(): key for key in KEYS} | _SHORT
    for name, text in environ.items():
        if not name.startswith("NOVA_") or name in _NOT_SETTINGS:
            continue
        if name not in names:
            raise ConfigError(unknown(name, names))
        yield name, names[name], text
