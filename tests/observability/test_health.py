"""The probes, as an orchestrator and an operator see them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from nova.api.system import HEALTH_ROUTES, Standing
from nova.observability import health
from nova.observability.health import HealthHandlers
from nova.store.db import Database
from nova.store.embedded import EmbeddedPostgres
from nova.store.migrate import migrate, pending
from tests.execution.observed import pool_row
from tests.http.harness import Api, management
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio


@dataclass
class State:
    draining: bool = False
    migrated: bool = True
    answers: bool = True
    planes: dict[str, Standing] = field(default_factory=lambda: {"nova": "ok", "comet": "ok"})
    clock: MockClock = field(default_factory=MockClock)

    async def ping(self) -> bool:
        return self.answers

    async def is_migrated(self) -> bool:
        return self.migrated


def _handlers(state: State, **changes: Any) -> HealthHandlers:
    values: dict[str, Any] = {
        "ping": state.ping,
        "migrated": state.is_migrated,
        "draining": lambda: state.draining,
        "planes": lambda: state.planes,
        "fleet": lambda: {"pools": [pool_row(instances=3, busy=1, ready=2, waiting=4)]},
        "clock": state.clock,
    }
    return HealthHandlers(**{**values, **changes})


@asynccontextmanager
async def _serving(database: Database, handlers: HealthHandlers) -> AsyncIterator[Api]:
    async with management(database, [handlers], HEALTH_ROUTES) as api:
        yield api


async def test_probes_are_public_and_say_ok(database: Database) -> None:
    async with _serving(database, _handlers(State())) as api:
        for path in ("/health/live", "/health/ready", "/health/startup", "/live", "/ready", "/startup"):
            answer = await api.remote.get(path)
            assert (answer.status_code, answer.json()["status"]) == (200, "ok"), path


async def test_a_draining_server_is_alive_and_not_ready(database: Database) -> None:
    async with _serving(database, _handlers(State(draining=True))) as api:
        assert (await api.remote.get("/live")).status_code == 200
        ready = await api.remote.get("/ready")
        assert (ready.status_code, ready.json()) == (503, {"status": "down", "reason": "the server is shutting down"})
        assert (await api.client.get("/health")).json()["status"] == "degraded"


async def test_startup_waits_for_the_schema_once(database: Database) -> None:
    state = State(migrated=False)
    async with _serving(database, _handlers(state)) as api:
        assert (await api.remote.get("/startup")).status_code == 503
        state.migrated = True
        assert (await api.remote.get("/startup")).status_code == 200
        state.answers = False
        assert (await api.remote.get("/startup")).status_code == 200
        assert (await api.remote.get("/ready")).status_code == 503


async def test_strangers_learn_the_status_and_nothing_else(database: Database) -> None:
    state = State()
    async with _serving(database, _handlers(state)) as api:
        shown = {name: value for name, value in (await api.remote.get("/health")).json().items() if value is not None}
        assert shown == {"status": "ok"}
        state.clock._monotonic += 60
        detail = (await api.client.get("/health")).json()
        assert detail["uptime_s"] == 60
        assert detail["postgres"]["ok"] is True
        assert detail["pool"] == {"pools": 1, "instances": 3, "busy": 1, "queued": 4}
        assert detail["planes"] == {"nova": "ok", "comet": "ok"}


async def test_health_names_the_plane_that_fails(database: Database) -> None:
    """GW12: the answer says which part is down, and is a 503."""
    state = State()
    async with _serving(database, _handlers(state)) as api:
        state.planes["comet"] = "down"
        answer = await api.client.get("/health")
        assert (answer.status_code, answer.json()["status"], answer.json()["planes"]["comet"]) == (503, "down", "down")
        state.planes["comet"] = "degraded"
        answer = await api.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")


async def test_readiness_asks_for_nova_and_comet_and_only_shows_the_workers(database: Database) -> None:
    """GW12: a plane that nothing works without takes the process out; a worker does not."""
    state = State(planes={"nova": "ok", "comet": "ok", "corona": "down", "aurora": "degraded"})
    async with _serving(database, _handlers(state)) as api:
        assert (await api.remote.get("/health/ready")).status_code == 200
        answer = await api.client.get("/health")
        assert (answer.status_code, answer.json()["status"]) == (200, "degraded")
        state.planes["comet"] = "down"
        ready = await api.remote.get("/health/ready")
        assert (ready.status_code, ready.json()["reason"]) == (503, "comet cannot take requests")
        assert (await api.remote.get("/health/live")).status_code == 200
        state.planes["comet"] = "ok"
        assert (await api.remote.get("/health/ready")).status_code == 200


async def test_a_process_without_pools_shows_none(database: Database) -> None:
    async def planes() -> dict[str, Standing]:
        return {"aurora": "down"}

    async with _serving(database, _handlers(State(), planes=planes, fleet=None, needed=("aurora",))) as api:
        answer = await api.client.get("/health")
        assert (answer.status_code, answer.json()["pool"], answer.json()["planes"]) == (503, None, {"aurora": "down"})


async def test_a_database_that_hangs_is_not_ready(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang() -> bool:
        await asyncio.Event().wait()
        return True

    monkeypatch.setattr(health, "PING_TIMEOUT_S", 0.05)
    async with _serving(database, _handlers(State(), ping=hang)) as api:
        assert (await api.remote.get("/ready")).status_code == 503


async def test_readiness_follows_postgresql(database: Database, tmp_path: Path) -> None:
    """GW12: readiness turns false when PostgreSQL is gone and true when it is back."""
    server = EmbeddedPostgres(tmp_path)
    await asyncio.to_thread(server.start)
    await migrate(server.dsn)

    async def migrated() -> bool:
        return not await pending(server.dsn)

    try:
        async with Database(server.dsn, min_conns=1) as watched:
            handlers = _handlers(State(), ping=watched.ping, migrated=migrated)
            async with _serving(database, handlers) as api:
                assert (await api.remote.get("/startup")).status_code == 200
                assert (await api.remote.get("/ready")).status_code == 200
                await asyncio.to_thread(server.stop)
                assert (await api.remote.get("/ready")).status_code == 503
                assert (await api.remote.get("/health")).status_code == 503
                await asyncio.to_thread(server.start)
                async with asyncio.timeout(20):
                    while (await api.remote.get("/ready")).status_code != 200:
                        await asyncio.sleep(0.05)
    finally:
        await asyncio.to_thread(server.stop)
