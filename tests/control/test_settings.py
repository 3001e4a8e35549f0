"""Settings over HTTP: shown with their source, changed while running, in every process."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from nova.api.system import CONFIG_ROUTES
from nova.config import KEYS
from nova.config_sources import load
from nova.control.settings import LiveSettings, SettingsHandlers
from nova.store.db import Database
from nova.store.settings import SettingsStore
from tests.http.harness import Api, management, security

pytestmark = pytest.mark.anyio


@pytest.fixture
async def live(database: Database) -> AsyncIterator[LiveSettings]:
    loaded = load(environ={"NOVA_POOL_MAX_QUEUE_DEPTH": "7"}, flags={"postgres.dsn": "postgresql://u:planted@h/d"})
    async with security(database) as guards:
        live = LiveSettings(loaded, SettingsStore(database), guards.listener)
        await live.start()
        yield live
        await live.close()


@pytest.fixture
async def api(database: Database, live: LiveSettings) -> AsyncIterator[Api]:
    handlers = SettingsHandlers(database, SettingsStore(database), live)
    async with management(database, [handlers], CONFIG_ROUTES) as found:
        yield found


async def test_every_setting_is_shown_with_its_source_and_secrets_masked(api: Api) -> None:
    """SE1: no secret is in an answer about configuration."""
    answer = await api.client.get("/config")
    assert answer.json().keys() == KEYS.keys()
    assert answer.json()["pool.max_queue_depth"] == {
        "value": 7,
        "default": 1000,
        "source": "env",
        "hot": True,
        "secret": False,
    }
    assert answer.json()["postgres.dsn"]["value"] == "***"
    assert "planted" not in answer.text


async def test_a_hot_key_acts_at_once_and_goes_back(api: Api, live: LiveSettings) -> None:
    """DB1, DB9: the table is over the default, and its rows are gone with DELETE."""
    answer = await api.client.post("/config", json={"pool.idle_ttl": "5m", "rate_limit.enabled": True})
    assert answer.status_code == 200
    assert answer.json()["pool.idle_ttl"]["value"] == 300.0
    assert answer.json()["pool.idle_ttl"]["source"] == "db"
    assert live.loaded.settings.pool.idle_ttl == 300.0
    assert (await api.client.delete("/config/pool.idle_ttl")).status_code == 204
    assert (await api.client.delete("/config/pool.idle_ttl")).status_code == 404
    assert live.loaded.settings.pool.idle_ttl == 60.0
    assert live.loaded.settings.rate_limit.enabled
    actions = [row["action"] for row in await api.audit()]
    assert actions == ["config.update", "config.delete"]


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"pool.idle_tll": 1}, 400, "unknown_field"),
        ({"pool.idle_ttl": "soon"}, 400, "validation_failed"),
        ({"pool.idle_ttl": 0}, 400, "validation_failed"),
        ({"daemon.http_addr": ":1"}, 400, "validation_failed"),
        ({"pool.max_queue_depth": 9}, 409, "invalid_state"),
        ({"rate_limit.tiers": {}}, 400, "validation_failed"),
        ({}, 400, "validation_failed"),
        ([], 400, "validation_failed"),
    ],
)
async def test_what_may_not_be_changed_is_refused_and_changes_nothing(
    api: Api, live: LiveSettings, body: Any, status: int, code: str
) -> None:
    """DB10: all values of a request are taken or none."""
    if isinstance(body, dict) and body:
        body = {"executor.log_retention_days": 9, **body}
    answer = await api.client.post("/config", json=body)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert live.loaded.settings.executor.log_retention_days == 30
    assert await SettingsStore(api.guards.database).all() == {}


async def test_an_unknown_key_is_answered_with_the_nearest(api: Api) -> None:
    answer = await api.client.post("/config", json={"pool.idle_tll": 1})
    assert "pool.idle_ttl" in answer.json()["detail"]
    assert (await api.client.delete("/config/nothing")).status_code == 404


async def test_other_processes_follow(api: Api, database: Database) -> None:
    """DB1: a change acts in every process within a second."""
    heard = asyncio.Event()
    async with security(database) as guards:
        other = LiveSettings(load(environ={}), SettingsStore(database), guards.listener, lambda _keys: heard.set())
        await other.start()
        await api.client.post("/config", json={"pool.max_queue_wait": 3})
        async with asyncio.timeout(20):
            await heard.wait()
        assert other.loaded.settings.pool.max_queue_wait == 3
        await other.close()


async def test_a_row_of_another_version_does_not_stop_the_platform(database: Database) -> None:
    await database.run("INSERT INTO config (key, value, updated_by) VALUES ('pool.idle_ttl', '\"never\"', 'x')")
    await database.run("INSERT INTO config (key, value, updated_by) VALUES ('gone.key', '1', 'x')")
    async with security(database) as guards:
        live = LiveSettings(load(environ={}), SettingsStore(database), guards.listener)
        await live.start()
        assert live.loaded.settings.pool.idle_ttl == 60.0
        await live.close()


async def test_the_schema_describes_every_setting(api: Api) -> None:
    schema = (await api.client.get("/config/schema")).json()
    assert schema["properties"].keys() == KEYS.keys()
    assert schema["properties"]["pool.idle_ttl"]["description"]
    assert "Tier" in schema["$defs"]


async def test_only_the_platform_may_see_or_change_settings(api: Api) -> None:
    """ID9: a tenant's administrator may not."""
    admin = {"X-API-Key": await api.key("admin")}
    boss = {"X-API-Key": await api.key("platform-admin")}
    assert (await api.remote.get("/config", headers=admin)).status_code == 403
    assert (await api.remote.post("/config", json={"pool.idle_ttl": 9}, headers=admin)).status_code == 403
    assert (await api.remote.get("/config", headers=boss)).status_code == 200
