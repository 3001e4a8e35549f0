"""Zenith's view of the other planes: real servers behind it, stopped and silent ones too."""

import asyncio
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any

import pytest

from nova.api.system import HEALTH_ROUTES, Standing
from nova.clock import SYSTEM_CLOCK
from nova.gateway import health
from nova.gateway.health import Standings, standing_of
from nova.http.proxy import HttpProxy
from nova.observability.health import HealthHandlers
from nova.store.db import Database
from tests.http.harness import management, serve
from tests.http.upstream import ASSERTIONS, TOKEN
from tests.mock_clock import MockClock

pytestmark = pytest.mark.anyio


async def _yes() -> bool:
    return True


async def _ok() -> Standing:
    return "ok"


async def _workers() -> Mapping[str, Standing]:
    return {"corona": "ok", "nebula": "degraded"}


@asynccontextmanager
async def _at(port: int) -> AsyncIterator[HttpProxy]:
    proxy = HttpProxy(f"http://127.0.0.1:{port}", TOKEN, ASSERTIONS, name="nova")
    try:
        yield proxy
    finally:
        await proxy.close()


def _handlers(**changes: Any) -> HealthHandlers:
    values: dict[str, Any] = {
        "ping": _yes,
        "migrated": _yes,
        "draining": lambda: False,
        "planes": dict,
        "clock": SYSTEM_CLOCK,
    }
    return HealthHandlers(**{**values, **changes})


async def test_every_plane_is_named_and_those_that_say_nothing_are_down() -> None:
    """GW12: zenith's page names each plane; a worker without a row is down."""
    found = await Standings({"nova": _ok, "comet": _ok}, _workers, SYSTEM_CLOCK)()
    assert found == {
        "zenith": "ok",
        "nova": "ok",
        "comet": "ok",
        "corona": "ok",
        "nebula": "degraded",
        "aurora": "down",
    }


async def test_a_plane_is_as_it_says(database: Database) -> None:
    """GW12: nova's own page decides, also while it drains; a port where nobody listens is down."""
    draining = False
    nova = _handlers(draining=lambda: draining)
    async with management(database, [nova], HEALTH_ROUTES) as api, serve(api.app) as port, _at(port) as plane:
        assert await standing_of(plane) == "ok"
        draining = True
        assert await standing_of(plane) == "degraded"
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        async with _at(unused.getsockname()[1]) as plane:
            found = await Standings({"nova": lambda: standing_of(plane), "comet": _ok}, _workers, SYSTEM_CLOCK)()
            assert (found["nova"], found["comet"]) == ("down", "ok")


async def test_a_plane_that_was_stopped_costs_a_bounded_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process under SIGSTOP accepts and never answers."""
    monkeypatch.setattr(health, "PROBE_S", 0.1)

    async def hang() -> Mapping[str, Standing]:
        await asyncio.Event().wait()
        return {}

    with socket.create_server(("127.0.0.1", 0)) as silent:
        async with _at(silent.getsockname()[1]) as plane:
            began = perf_counter()
            found = await Standings({"nova": lambda: standing_of(plane), "comet": _ok}, hang, SYSTEM_CLOCK)()
            assert perf_counter() - began < 20
            assert (found["nova"], found["comet"], found["corona"]) == ("down", "ok", "down")


async def test_what_is_no_health_page_is_down() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"<html>"})

    async with serve(app) as port, _at(port) as plane:
        assert await standing_of(plane) == "down"


async def test_many_callers_cost_the_planes_one_question() -> None:
    clock, asked = MockClock(), 0

    async def count() -> Standing:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return "ok"

    standings = Standings({"nova": count}, _workers, clock)
    await asyncio.gather(*(standings() for _ in range(50)))
    assert asked == 1
    await clock.advance(health.FRESH_S)
    await standings()
    assert asked == 2


async def test_zenith_is_ready_when_nova_and_comet_are(database: Database) -> None:
    """The whole way: zenith's probes over nova's real page."""
    comet: Standing = "ok"

    async def standing() -> Standing:
        return comet

    clock = MockClock()
    async with management(database, [_handlers()], HEALTH_ROUTES) as nova, serve(nova.app) as port, _at(port) as plane:
        probes = {"nova": lambda: standing_of(plane), "comet": standing}
        zenith = _handlers(planes=Standings(probes, _workers, clock))
        async with management(database, [zenith], HEALTH_ROUTES) as api:
            assert (await api.remote.get("/health/ready")).status_code == 200
            page = await api.client.get("/health")
            assert (page.status_code, page.json()["status"], page.json()["pool"]) == (200, "degraded", None)
            comet = "down"
            await clock.advance(health.FRESH_S)
            assert (await api.remote.get("/ready")).json()["reason"] == "comet cannot take requests"
            assert (await api.remote.get("/live")).status_code == 200
            assert (await api.client.get("/health")).status_code == 503
