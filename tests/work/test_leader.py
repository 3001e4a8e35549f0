"""One leader for each duty: real processes, killed, stopped and started twice; a server that restarts; clocks that jump."""

import asyncio
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from nova.clock import SystemClock
from nova.errors import NovaError
from nova.store import leases as store
from nova.store.db import Database
from nova.store.embedded import EmbeddedPostgres
from nova.store.listen import Listener
from nova.store.migrate import migrate
from nova.work.leader import LEASE_S, Duty, Fence, LeaseLost, Leases
from tests.work.leading import WRITE

pytestmark = pytest.mark.anyio
ROOT = Path(__file__).parents[2]


class Candidate:
    """One process of :mod:`tests.work.leading`."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def says(self, what: str) -> str:
        """Read on to the next line that begins so."""
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            async for line in self._process.stdout:
                text = line.decode().strip()
                if text.startswith(what):
                    return text
        raise AssertionError(f"it ended without saying {what!r}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    async def ended(self) -> int:
        async with asyncio.timeout(20):
            return await self._process.wait()


@asynccontextmanager
async def candidate(dsn: str, node: str, *options: str) -> AsyncIterator[Candidate]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.work.leading", dsn, node, *options, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    running = Candidate(process)
    try:
        await running.says("ready")
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def written(database: Database) -> Database:
    await database.run("CREATE TABLE written (id bigserial PRIMARY KEY, fence bigint NOT NULL, node text NOT NULL)")
    return database


async def writes(db: Database) -> list[tuple[int, str]]:
    return [(row["fence"], row["node"]) for row in await db.fetch("SELECT fence, node FROM written ORDER BY id")]


def in_terms(rows: list[tuple[int, str]]) -> bool:
    """Nothing was written under a fence after something was written under a later one."""
    return [fence for fence, _ in rows] == sorted(fence for fence, _ in rows)


async def test_started_twice_one_leads_and_a_killed_one_is_replaced(written: Database) -> None:
    """SC2: of two processes one leads; killed with SIGKILL, the other leads within five seconds."""
    dsn = written.dsn
    async with candidate(dsn, "a") as first:
        assert await first.says("leads") == "leads 1"
        async with candidate(dsn, "b") as second:
            first.signal(signal.SIGKILL)
            assert await second.says("leads") == "leads 2"
            assert LEASE_S < 5, "and whoever waits learns at once when a lease runs out"
            async with asyncio.timeout(10):
                while (2, "b") not in (rows := await writes(written)):
                    await asyncio.sleep(0.02)
            second.signal(signal.SIGTERM)
            assert await second.ended() == 0
    assert in_terms(rows)
    assert set(rows) == {(1, "a"), (2, "b")}


async def test_a_clean_end_hands_over_at_once(written: Database) -> None:
    """The lease is released and announced: the successor need not wait until it runs out."""
    async with candidate(written.dsn, "a") as first, candidate(written.dsn, "b") as second:
        await first.says("leads")
        first.signal(signal.SIGTERM)
        await first.says("stopped")
        assert await first.ended() == 0
        assert await written.fetch("SELECT 1 FROM leases WHERE node = 'a' AND until > now()") == []
        await second.says("leads 2")


async def test_a_stopped_leader_is_replaced_and_its_late_write_refused(written: Database) -> None:
    """SC2, SC3: SIGSTOP for longer than a lease: after SIGCONT it writes nothing, stops, and can lead again later."""
    async with candidate(written.dsn, "a", "stubborn") as first, candidate(written.dsn, "b") as second:
        await first.says("leads 1")
        first.signal(signal.SIGSTOP)
        await second.says("leads 2")
        first.signal(signal.SIGCONT)
        await first.says("refused 1")
        await first.says("stopped 1")
        second.signal(signal.SIGKILL)
        await first.says("leads 3")
    rows = await writes(written)
    assert in_terms(rows)
    assert {node for fence, node in rows if fence == 1} == {"a"}


@asynccontextmanager
async def member(
    dsn: str, node: str, lead: object, *, clock: SystemClock | None = None, name: str = "counting"
) -> AsyncIterator[tuple[Leases, Duty]]:
    """Leases with one duty, in this process."""
    listener = Listener(dsn)
    await listener.start()
    leases = Leases(dsn, listener, node=node, clock=clock)
    duty = Duty(name, lead, leases)  # type: ignore[arg-type]
    await leases.start()
    await duty.start()
    try:
        yield leases, duty
    finally:
        await duty.close()
        await leases.close()
        await listener.close()


class Terms:
    """A duty's work that does nothing but say when it begins and ends."""

    def __init__(self) -> None:
        self.begun: asyncio.Queue[Fence] = asyncio.Queue()
        self.ended: asyncio.Queue[Fence] = asyncio.Queue()

    async def __call__(self, fence: Fence) -> None:
        self.begun.put_nowait(fence)
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.put_nowait(fence)


async def next_of(queue: asyncio.Queue[Fence]) -> Fence:
    async with asyncio.timeout(20):
        return await queue.get()


async def test_the_leader_is_known_and_counted(database: Database) -> None:
    a, b = Terms(), Terms()
    async with member(database.dsn, "a", a) as (first, _):
        fence = await next_of(a.begun)
        async with member(database.dsn, "b", b) as (second, _):
            assert (first.leading(), second.leading()) == ({"counting": True}, {"counting": False})
            (leader,) = await store.leaders(database)
            assert (leader.duty, leader.owner, leader.node, leader.fence) == ("counting", first.owner, "a", 1)
            assert fence.held
        assert b.begun.empty()
    assert await store.leaders(database) == []
    assert not fence.held


async def test_work_that_fails_is_left_to_others(database: Database) -> None:
    """A process whose work raises does not keep the duty: another one gets it."""
    terms = Terms()

    tried = asyncio.Event()

    async def broken(fence: Fence) -> None:
        tried.set()
        raise RuntimeError("no")

    async with member(database.dsn, "a", broken):
        await tried.wait()
        async with member(database.dsn, "b", terms):
            assert (await next_of(terms.begun)).number >= 2


async def test_a_taken_lease_stops_the_work(database: Database) -> None:
    """The database's clock jumped an hour, say: others saw the lease as run out. The leader stops at its next renewal, and
    what it writes before is refused."""
    terms = Terms()
    async with member(database.dsn, "a", terms):
        fence = await next_of(terms.begun)
        await database.run("UPDATE leases SET owner = 'other', fence = fence + 1, until = now() + interval '1 hour'")
        with pytest.raises(LeaseLost):
            async with database.transaction() as conn:
                await fence.check(conn)
        assert await next_of(terms.ended) is fence
        await database.run("UPDATE leases SET until = now()")
        assert (await next_of(terms.begun)).number == 3


class JumpingClock(SystemClock):
    """Its wall clock and its monotonic time can be set forward."""

    def __init__(self) -> None:
        self.wall = timedelta()
        self.suspended = 0.0

    def now(self) -> datetime:
        return super().now() + self.wall

    def monotonic(self) -> float:
        return time.monotonic() + self.suspended


async def test_a_wall_clock_that_jumps_changes_nothing_and_a_suspended_machine_stops_the_work(
    database: Database,
) -> None:
    clock, terms = JumpingClock(), Terms()
    async with member(database.dsn, "a", terms, clock=clock):
        fence = await next_of(terms.begun)
        clock.wall = timedelta(hours=1)
        await renewed(fence)
        assert fence.held
        clock.suspended = 3600
        assert not fence.held
        assert await next_of(terms.ended) is fence
        with pytest.raises(LeaseLost):
            async with database.transaction() as conn:
                await fence.check(conn)
        assert (await next_of(terms.begun)).number == 2


async def test_a_checked_transaction_keeps_others_out_and_lets_renewals_pass(database: Database) -> None:
    """Between the check and the commit nobody can take the duty, though the lease ran out; renewing it still works."""
    terms = Terms()
    async with member(database.dsn, "a", terms):
        fence = await next_of(terms.begun)
        held = {fence.duty: fence.number}
        mine, other = (
            store.LeaseSession(database.dsn, fence.owner, "a"),
            store.LeaseSession(database.dsn, "other", "b"),
        )
        try:
            async with database.transaction() as conn:
                await fence.check(conn)
                assert await mine.renew(held, 3) == {"counting"}
                await database.run("UPDATE leases SET until = now() - interval '1 minute'")
                assert await other.claim(["counting"], 3) == {}
            assert await other.claim(["counting"], 30) == {"counting": 2}
        finally:
            await mine.close()
            await other.close()


async def test_a_leader_stopped_inside_a_transaction_does_not_keep_others_out(database: Database) -> None:
    """The server ends a checked transaction whose client fell silent."""
    fence = Fence("counting", "a", 1, SystemClock(), time.monotonic() + 60)
    other = store.LeaseSession(database.dsn, "other", "b")
    claimed = store.LeaseSession(database.dsn, "a", "a")
    await claimed.claim(["counting"], 0.1)
    with pytest.raises(NovaError, match="dependency_unavailable"):  # noqa: PT012
        async with database.transaction() as conn:
            assert await store.hold(conn, "counting", "a", 1, idle_s=0.3)
            async with asyncio.timeout(10):
                while not await other.claim(["counting"], 30):
                    await asyncio.sleep(0.05)
            await conn.run(WRITE, fence=1, node="a")
    with pytest.raises(LeaseLost):
        async with database.transaction() as conn:
            await fence.check(conn)
    await other.close()
    await claimed.close()


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    with tempfile.TemporaryDirectory(prefix="nova-test-") as folder:
        server = EmbeddedPostgres(Path(folder))
        server.start()
        try:
            yield server
        finally:
            server.stop()


async def renewed(fence: Fence) -> None:
    ends = fence.ends
    async with asyncio.timeout(10):
        while fence.ends == ends:
            await asyncio.sleep(0.02)


async def test_a_cut_connection_does_not_end_a_term(database: Database) -> None:
    """Only the lease counts: on a new connection it is renewed as before."""
    terms = Terms()
    async with member(database.dsn, "a", terms):
        fence = await next_of(terms.begun)
        await renewed(fence)
        await database.run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE application_name = 'nova leases' AND datname = current_database()"
        )
        await renewed(fence)
        assert fence.held
        assert terms.ended.empty()


async def test_without_the_server_nobody_leads_and_afterwards_somebody_does(own_server: EmbeddedPostgres) -> None:
    """A leader that cannot renew stops by itself; when PostgreSQL is back it leads again, in a new term."""
    await migrate(own_server.dsn)
    terms = Terms()
    async with member(own_server.dsn, "a", terms) as (leases, _):
        fence = await next_of(terms.begun)
        await asyncio.to_thread(own_server.stop)
        assert await next_of(terms.ended) is fence
        assert leases.leading() == {"counting": False}
        await asyncio.to_thread(own_server.start)
        assert (await next_of(terms.begun)).number == 2
