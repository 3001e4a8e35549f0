"""Instances that are kept ready: who is asked for, how often, and what ends it."""

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from psycopg.types.json import Jsonb

from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.scheduling.replicas import TTL_S, Replicas
from nova.service import Background
from nova.store.db import Database
from tests.scheduling.support import NOON, HandClock, Held, function

pytestmark = pytest.mark.anyio


@dataclass
class Asked:
    """A scaler that remembers."""

    wishes: dict[str, int] = field(default_factory=dict)
    asked: int = 0
    refuse: set[str] = field(default_factory=set)

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        assert ttl_s == TTL_S
        self.asked += 1
        if function in self.refuse:
            raise NovaError("capacity", "full")
        self.wishes[f"{scope.tenant}/{function}"] = replicas
        return replicas

    async def rounds(self, count: int) -> None:
        before = self.asked
        async with asyncio.timeout(20):
            while self.asked < before + count:
                await asyncio.sleep(0.005)


async def test_every_function_that_wants_instances_gets_them(database: Database) -> None:
    """SC8: the 600th too; not the one without a version, nor those of a suspended tenant."""
    for n in range(600):
        await function(database, f"f{n}", min_replicas=2, max_replicas=100)
    await function(database, "idle")
    await function(database, "unbuilt", live=None, min_replicas=3)
    await database.run(
        "INSERT INTO tenants (id, name, status) VALUES ('acme', 'acme', 'suspended'), ('b', 'b', 'active')"
    )
    await database.run("INSERT INTO namespaces (tenant_id, name) VALUES ('acme', 'default'), ('b', 'default')")
    await function(database, "held", Scope("acme"), min_replicas=1)
    await function(database, "f0", Scope("b"), min_replicas=5, max_replicas=0)
    scaler, tasks = Asked(refuse={"f3"}), Background("test")
    tasks.spawn("lead", Replicas(database, scaler, HandClock()).lead(Held()))
    await scaler.rounds(1300)
    await tasks.close()
    assert scaler.wishes == {f"default/f{n}": 2 for n in range(600) if n != 3} | {"b/f0": 5}


async def test_a_wish_that_is_gone_is_taken_back_and_a_lost_lease_ends_the_duty(database: Database) -> None:
    await function(database, min_replicas=2)
    scaler, fence = Asked(), Held()
    task = asyncio.create_task(Replicas(database, scaler, HandClock()).lead(fence))
    await scaler.rounds(2)
    assert scaler.wishes == {"default/f": 2}
    await database.run("UPDATE functions SET data = jsonb_set(data, '{recorded,min_replicas}', '0')")
    await scaler.rounds(1)
    async with asyncio.timeout(20):
        while scaler.wishes != {"default/f": 0}:
            await asyncio.sleep(0.005)
    fence.lost = True
    await asyncio.wait_for(task, 20)


async def test_a_window_raises_the_wish_while_it_is_open(database: Database) -> None:
    """Two windows and min_replicas: the most counts, within max_replicas; afterwards the wish is what it was."""
    await function(database, min_replicas=1, max_replicas=5)
    await function(database, "seldom", max_replicas=3)
    noon = {"cron": "0 12 * * *", "duration_s": 600, "replicas": 4, "time_zone": "UTC", "name": ""}
    later = {"cron": "5 12 * * *", "duration_s": 60, "replicas": 9, "time_zone": "UTC", "name": ""}
    await database.run(
        "UPDATE functions SET data = jsonb_set(data, '{recorded,provisioned}', %(windows)s)",
        windows=Jsonb([noon, later]),
    )
    scaler, clock, tasks = Asked(), HandClock(NOON - timedelta(seconds=1)), Background("test")
    tasks.spawn("lead", Replicas(database, scaler, clock).lead(Held()))

    async def until(wishes: dict[str, int]) -> None:
        async with asyncio.timeout(20):
            while scaler.wishes != wishes:
                await asyncio.sleep(0.005)

    await until({"default/f": 1})
    clock.move(1)
    await until({"default/f": 4, "default/seldom": 3})
    clock.move(300)
    await until({"default/f": 5, "default/seldom": 3})
    clock.move(300)
    await until({"default/f": 1, "default/seldom": 0})
    await tasks.close()
