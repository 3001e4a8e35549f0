"""From a name and a qualifier to a snapshot, on a real PostgreSQL with real notifications."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from psycopg.types.json import Jsonb

from nova.clock import SYSTEM_CLOCK
from nova.config import PoolSettings
from nova.domain.function import CompileStatus, FunctionSnapshot, NetworkPolicy
from nova.domain.identity import Scope
from nova.domain.version import FunctionSettings, Recorded, VersionConfig
from nova.errors import NovaError
from nova.execution.boots import Booter
from nova.execution.catalog import Catalog
from nova.execution.executor import Executor
from nova.execution.fleet import InstanceFleet
from nova.execution.rollover import Rollover
from nova.execution.snapshots import SnapshotMaker
from nova.store.blobs import BlobStore
from nova.store.db import Database
from nova.store.functions import FunctionStore, announce
from nova.store.listen import Listener
from nova.store.versions import VersionStore
from tests.execution.fakes import FakeArtifacts, FakeBackend, OneBackend, make_call
from tests.mock_clock import settle

pytestmark = pytest.mark.anyio
ARTIFACT = "sha256:" + "a" * 64


@dataclass(frozen=True)
class Runtime:
    runtime: str
    version: str


class Runtimes:
    """Knows python; everything else has no toolchain here."""

    def resolve(self, runtime: str) -> Runtime:
        if not runtime.startswith("python"):
            raise NovaError("runtime_unavailable", f"{runtime} is not installed")
        return Runtime("python", "3.11")


class Networks:
    def default_network(self, backend: str, runtime: str) -> NetworkPolicy:
        return NetworkPolicy(isolation_mode="strict")

    async def ready(self, backend: str, runtime: str) -> None: ...


class Deployer:
    """What the control plane would write, in as few words."""

    def __init__(self, database: Database) -> None:
        self.db = database
        self.functions = FunctionStore(database)
        self.versions = VersionStore(database, BlobStore(database))
        self.queries = 0
        self._count(database)

    def _count(self, database: Database) -> None:
        connection = database.connection

        def counted() -> Any:
            self.queries += 1
            return connection()

        database.connection = counted  # type: ignore[method-assign]

    async def deploy(
        self,
        name: str = "hello",
        scope: Scope = Scope(),
        *,
        status: CompileStatus = "not_required",
        live: bool = True,
        recorded: Recorded = Recorded(),
        **config: Any,
    ) -> int:
        """A new version, live at once when it is built; its number."""
        settings = FunctionSettings(recorded)
        values = {"runtime": "python3.11", "handler": "main.handler", "entry": "main.py", "entry_kind": "handler"}
        built = status in ("not_required", "success")
        async with self.db.transaction() as conn:
            found = await self.functions.lock(conn, scope, name)
            if found is None:
                function_id = await self.functions.insert(conn, scope, name, settings, "test")
                assert function_id is not None
            else:
                function_id = found.id
            number = await self.functions.take_number(conn, function_id)
            await self.versions.insert(
                conn,
                function_id,
                number,
                config=VersionConfig(**{**values, **config}),
                code_hash=ARTIFACT,
                code_size=1,
                source_code="",
                artifact=ARTIFACT if built else None,
                compile_status=status,
                description="",
                created_by="test",
            )
            before = found.live_version if found is not None else None
            generation = await self.functions.save(
                conn, function_id, settings=settings, head=number, live=number if built and live else before
            )
            await announce(conn, scope, name, generation)
        return number

    async def finish_build(self, version: int, *, failed: str | None = None, name: str = "hello") -> None:
        async with self.db.transaction() as conn:
            found = await self.functions.lock(conn, Scope(), name)
            assert found is not None
            await conn.run(
                "UPDATE function_code SET compile_status = %(status)s, compile_error = %(error)s"
                " WHERE function_id = %(id)s AND version = %(version)s",
                id=found.id,
                version=version,
                status="failed" if failed else "success",
                error=failed,
            )
            if failed is None:
                await conn.run(
                    "UPDATE function_versions SET artifact = %(artifact)s"
                    " WHERE function_id = %(id)s AND version = %(version)s",
                    id=found.id,
                    version=version,
                    artifact=ARTIFACT,
                )
            live = found.live_version if failed else version
            generation = await self.functions.save(
                conn, found.id, settings=found.settings, head=found.head_version, live=live
            )
            await announce(conn, Scope(), name, generation)

    async def alias(self, alias: str, split: dict[int, int], name: str = "hello") -> None:
        async with self.db.transaction() as conn:
            found = await self.functions.lock(conn, Scope(), name)
            assert found is not None
            data = {"split": {str(version): weight for version, weight in split.items()}}
            await conn.run(
                "INSERT INTO function_aliases (function_id, name, data, etag) VALUES (%(id)s, %(name)s, %(data)s, 'x')"
                " ON CONFLICT (function_id, name) DO UPDATE SET data = excluded.data",
                id=found.id,
                name=alias,
                data=Jsonb(data),
            )
            await announce(conn, Scope(), name, await self.functions.touch(conn, found.id))

    async def delete(self, name: str = "hello") -> None:
        async with self.db.transaction() as conn:
            found = await self.functions.lock(conn, Scope(), name)
            assert found is not None
            await self.functions.delete(conn, found.id)
            await announce(conn, Scope(), name, 0)


class Rig:
    def __init__(self, database: Database, listener: Listener, **options: Any) -> None:
        self.control = Deployer(database)
        self.listener = listener
        self.changes: list[str] = []
        maker = SnapshotMaker(Runtimes(), Networks())
        self.catalog = Catalog(self.control.functions, self.control.versions, maker, listener, **options)
        self.catalog.on_change(lambda scope, name: self.changes.append(name))

    async def get(self, qualifier: str | None = None, name: str = "hello", **call: Any) -> FunctionSnapshot:
        request = make_call(name, qualifier=qualifier, **call)
        return self.catalog.peek(request) or await self.catalog.resolve(request)

    async def noticed(self, change: Any) -> None:
        """Wait until a notification of this change has arrived."""
        seen = len(self.changes)
        await change
        async with asyncio.timeout(10):
            while len(self.changes) == seen:
                await asyncio.sleep(0.002)


@pytest.fixture
async def listener(pg_dsn: str) -> AsyncIterator[Listener]:
    listener = Listener(pg_dsn)
    await listener.start()
    yield listener
    await listener.close()


@pytest.fixture
async def rig(database: Database, listener: Listener) -> AsyncIterator[Rig]:
    rig = Rig(database, listener)
    await rig.catalog.start()
    yield rig
    await rig.catalog.close()


async def test_an_unqualified_call_runs_the_live_version(rig: Rig) -> None:
    await rig.control.deploy(env={"A": "1"}, timeout_s=7)
    snapshot = await rig.get()
    assert (snapshot.version, snapshot.runtime, snapshot.runtime_version) == (1, "python", "3.11")
    assert (dict(snapshot.env), snapshot.timeout_s, snapshot.artifact) == ({"A": "1"}, 7, ARTIFACT)
    assert snapshot.network.offline, "the backend's default for a function that names no policy"


async def test_a_deployed_version_is_what_the_next_call_runs(rig: Rig) -> None:
    await rig.noticed(rig.control.deploy())
    before = await rig.get()
    await rig.noticed(rig.control.deploy(env={"B": "2"}))
    after = await rig.get()
    assert (before.version, after.version) == (1, 2)
    assert before.pool_key != after.pool_key


async def test_who_was_told_of_a_change_meets_it(rig: Rig) -> None:
    """What this process commits it also notices at once: no call in between runs the old version."""
    rig.control.db.on_commit = rig.listener.deliver
    for number in range(1, 30):
        await rig.control.deploy()
        assert (await rig.get()).version == number


async def test_a_qualifier_runs_exactly_the_version_it_names(rig: Rig) -> None:
    """EX4: version 3's own configuration, whatever is live and whatever others ask for."""
    for number in range(1, 6):
        await rig.control.deploy(env={"N": str(number)}, handler=f"main.handler{number}")
    wanted = [*"35231", "$LATEST", "live"]
    got = await asyncio.gather(*(rig.get(qualifier) for qualifier in wanted))
    assert [snapshot.env["N"] for snapshot in got] == [*"35231", "5", "5"]
    assert got[0].handler == "main.handler3"
    assert len({snapshot.pool_key for snapshot in got}) == 4


async def test_latest_is_the_newest_built_version_not_the_live_one(rig: Rig) -> None:
    await rig.control.deploy()
    await rig.control.deploy(live=False)
    await rig.control.deploy(status="pending")
    assert (await rig.get()).version == 1
    assert (await rig.get("$LATEST")).version == 2


@pytest.mark.parametrize("qualifier", ["7", "no-such-alias", "0", "99999999999999999999", "-1", "１"])
async def test_an_unknown_version_or_alias_is_not_found(rig: Rig, qualifier: str) -> None:
    await rig.control.deploy()
    with pytest.raises(NovaError) as refused:
        await rig.get(qualifier)
    assert refused.value.code == "not_found"


async def test_an_alias_splits_by_weight_and_keeps_sticky_callers(rig: Rig) -> None:
    """EX5: 90/10 gives 90 ± 1 % over 10 000 calls, and a sticky key always the same side."""
    await rig.control.deploy()
    await rig.control.deploy()
    await rig.control.alias("canary", {1: 9000, 2: 1000})
    sticky = {key: (await rig.get("canary", sticky_key=key)).version for key in map(str, range(50))}
    for key, version in sticky.items():
        assert (await rig.get("canary", sticky_key=key)).version == version
    counted = Counter([(await rig.get("canary", sticky_key=str(number))).version for number in range(10_000)])
    assert counted[1] / 10_000 == pytest.approx(0.9, abs=0.01)
    drawn = Counter([(await rig.get("canary")).version for _ in range(10_000)])
    assert drawn[1] / 10_000 == pytest.approx(0.9, abs=0.02)


async def test_a_function_is_found_in_the_moment_it_exists(rig: Rig) -> None:
    """A name that was asked for in vain a moment ago is not remembered as missing."""
    with pytest.raises(NovaError, match="not_found"):
        await rig.get()
    await rig.control.deploy()
    assert (await rig.get()).version == 1


async def test_equal_functions_in_other_places_have_other_keys(rig: Rig) -> None:
    """PO1: equal code and settings, in one tenant or two: never one pool."""
    scopes = [Scope(), Scope("default", "other"), Scope("acme")]
    async with rig.control.db.transaction() as conn:
        await conn.run("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
        await conn.run("INSERT INTO namespaces (tenant_id, name) VALUES ('acme', 'default'), ('default', 'other')")
    keys = set()
    for scope in scopes:
        for name in ("one", "two"):
            await rig.control.deploy(name, scope)
            keys.add((await rig.get(name=name, scope=scope)).pool_key)
    assert len(keys) == 6


async def test_recorded_settings_change_without_a_new_pool(rig: Rig) -> None:
    """PO3: what does not shape an instance is not in the key."""
    await rig.control.deploy(recorded=Recorded(max_replicas=3))
    before = await rig.get()
    async with rig.control.db.transaction() as conn:
        found = await rig.control.functions.lock(conn, Scope(), "hello")
        assert found is not None
        changed = FunctionSettings(Recorded(max_replicas=9, idle_ttl_s=1.0))
        generation = await rig.control.functions.save(conn, found.id, settings=changed, head=1, live=1)
        await announce(conn, Scope(), "hello", generation)
    async with asyncio.timeout(10):
        while (after := await rig.get()).generation == before.generation:
            await asyncio.sleep(0.002)
    assert (before.max_replicas, after.max_replicas, after.idle_ttl_s) == (3, 9, 1.0)
    assert after.pool_key == before.pool_key


async def test_many_who_ask_at_once_cause_one_load(rig: Rig) -> None:
    await rig.noticed(rig.control.deploy())
    before = rig.control.queries
    await asyncio.gather(*(rig.get() for _ in range(100)))
    assert rig.control.queries - before == 2, "the function and its live version"


async def test_cancelling_the_first_who_asks_does_not_disturb_the_others(rig: Rig) -> None:
    await rig.control.deploy()
    first, second = (asyncio.create_task(rig.get()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).version == 1


async def test_a_call_waits_for_its_version_to_be_built(rig: Rig) -> None:
    """EX14: a call on a version still building waits and then answers."""
    await rig.control.deploy(status="pending")
    waiting = asyncio.create_task(rig.get())
    await rig.noticed(rig.control.finish_build(1))
    assert (await asyncio.wait_for(waiting, 10)).version == 1


async def test_a_failed_build_names_itself(rig: Rig) -> None:
    """EX14: 424 with the reason and the build."""
    await rig.control.deploy(status="pending")
    waiting = asyncio.create_task(rig.get())
    await rig.noticed(rig.control.finish_build(1, failed="no such package: left-pad"))
    with pytest.raises(NovaError, match="left-pad") as refused:
        await asyncio.wait_for(waiting, 10)
    assert (refused.value.status, "build_id" in refused.value.extra) == (424, True)


async def test_a_failed_deploy_leaves_the_good_version_serving(rig: Rig) -> None:
    """EX14: a function with an older good version goes on serving it, during and after the build."""
    await rig.control.deploy()
    await rig.control.deploy(status="pending")
    assert (await rig.get()).version == 1
    await rig.noticed(rig.control.finish_build(2, failed="broken"))
    assert (await rig.get()).version == 1
    with pytest.raises(NovaError, match="build_failed"):
        await rig.get("2")


async def test_waiting_for_a_build_ends(database: Database, listener: Listener) -> None:
    rig = Rig(database, listener, build_wait=lambda: 0.05)
    await rig.control.deploy(status="compiling")
    with pytest.raises(NovaError) as refused:
        await rig.get()
    assert (refused.value.code, refused.value.status, refused.value.retry_after_s) == ("build_pending", 503, 5)
    with pytest.raises(NovaError, match="timeout"):
        await rig.catalog.resolve(make_call(), SYSTEM_CLOCK.monotonic() - 1)


async def test_a_version_without_a_toolchain_hides_no_other(rig: Rig) -> None:
    await rig.control.deploy()
    await rig.control.deploy(runtime="cobol", live=False)
    assert (await rig.get()).version == 1
    with pytest.raises(NovaError, match="runtime_unavailable"):
        await rig.get("$LATEST")


async def test_a_change_during_a_load_is_not_lost(rig: Rig) -> None:
    """The row was read, then changed and announced, then cached: the cache must not keep what was read."""
    await rig.noticed(rig.control.deploy())
    lookup, began, go_on = rig.control.functions.lookup, asyncio.Event(), asyncio.Event()

    async def slow(scope: Scope, name: str) -> Any:
        record = await lookup(scope, name)
        began.set()
        await go_on.wait()
        return record

    rig.control.functions.lookup = slow  # type: ignore[method-assign, assignment]
    asking = asyncio.create_task(rig.get())
    await began.wait()
    rig.control.functions.lookup = lookup  # type: ignore[method-assign]
    await rig.noticed(rig.control.deploy())
    go_on.set()
    assert (await asking).version == 2
    assert (await rig.get()).version == 2


async def test_changes_made_while_the_listener_was_away_are_found(
    rig: Rig, pg_server: str, pg_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Notifications are lost with the connection; generations are not."""
    await rig.control.deploy()
    assert (await rig.get()).version == 1
    monkeypatch.setattr(type(rig.listener), "connected", property(lambda self: False))
    rig.listener._callbacks.clear()  # nothing arrives any more
    await rig.control.deploy()
    async with asyncio.timeout(10):
        while (await rig.get()).version != 2:
            await asyncio.sleep(0.02)


async def test_a_reconnected_listener_compares_everything(rig: Rig, pg_dsn: str) -> None:
    await rig.control.deploy()
    assert (await rig.get()).version == 1
    rig.listener._callbacks.clear()
    await rig.control.deploy()
    with psycopg.connect(pg_dsn, autocommit=True) as admin:
        admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'nova listener'")
    async with asyncio.timeout(10):
        while (await rig.get()).version != 2:
            await asyncio.sleep(0.02)


async def test_memory_is_bounded(database: Database, listener: Listener) -> None:
    rig = Rig(database, listener, max_bytes=20_000)
    for number in range(20):
        await rig.noticed(rig.control.deploy(f"f{number}"))
        await rig.get(name=f"f{number}")
    assert rig.catalog.peek(make_call("f0")) is None
    assert rig.catalog.peek(make_call("f19")) is not None
    assert (await rig.get(name="f0")).name == "f0"


class Stack:
    """Catalog, fleet and executor together, on a fake backend."""

    def __init__(self, rig: Rig) -> None:
        self.rig = rig
        self.backend = FakeBackend()
        booter = Booter(FakeArtifacts(), OneBackend(self.backend), SYSTEM_CLOCK)
        self.fleet = InstanceFleet(booter, PoolSettings())
        self.executor = Executor(rig.catalog, self.fleet, lambda *done: None)
        self.rollover = Rollover(rig.catalog, self.fleet)

    async def invoke(self, **call: Any) -> Any:
        return await self.executor.invoke(make_call(**call))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
async def stack(rig: Rig) -> AsyncIterator[Stack]:
    stack = Stack(rig)
    await stack.rollover.start()
    await stack.executor.start()
    yield stack
    await stack.rollover.close()
    await stack.executor.close()


async def test_warm_calls_make_no_round_trip(stack: Stack) -> None:
    """EX16: counted at the pool of connections."""
    await stack.rig.noticed(stack.rig.control.deploy())
    await stack.rig.noticed(stack.rig.control.alias("prod", {1: 10_000}))
    await stack.invoke()
    before = stack.rig.control.queries
    for _ in range(200):
        await stack.invoke()
        await stack.invoke(qualifier="prod")
    assert stack.rig.control.queries == before


async def test_after_a_hundred_deploys_one_version_has_instances(stack: Stack) -> None:
    """PO9: every deploy drains what it replaced."""
    for _ in range(100):
        await stack.rig.noticed(stack.rig.control.deploy())
        await stack.invoke()
    await stack.until(lambda: [pool["version"] for pool in stack.executor.stats()["pools"]] == [100])
    assert len(stack.backend.live) == 1


async def test_versions_behind_aliases_keep_their_instances(stack: Stack) -> None:
    await stack.rig.noticed(stack.rig.control.deploy())
    await stack.rig.noticed(stack.rig.control.alias("stable", {1: 10_000}))
    first = await stack.invoke(qualifier="stable")
    await stack.rig.noticed(stack.rig.control.deploy())
    await stack.invoke()
    await settle()
    again = await stack.invoke(qualifier="stable")
    assert (again.version, again.instance_id) == (1, first.instance_id)


async def test_deleting_a_function_drains_it(stack: Stack) -> None:
    await stack.rig.noticed(stack.rig.control.deploy())
    await stack.invoke()
    await stack.rig.noticed(stack.rig.control.delete())
    await stack.until(lambda: not stack.backend.live)
    with pytest.raises(NovaError, match="not_found"):
        await stack.invoke()
