"""Schedules that fire: once per instant, by their policies, whatever the clock and the leader do."""

import asyncio
from datetime import timedelta

import pytest

from nova.clock import SYSTEM_CLOCK
from nova.scheduling.firing import Firing
from nova.scheduling.timing import jitter
from nova.store.db import Database
from nova.store.listen import Listener
from nova.store.schedules import RunStatus
from nova.work.leader import Duty, Leases
from nova.work.queue import LeaseLost
from tests.scheduling.support import NOON, HandClock, Stage, function, seconds

pytestmark = pytest.mark.anyio


async def test_every_second_fires_every_second_with_an_envelope(stage: Stage) -> None:
    """SC4: an interval of one second is one job each second."""
    record = await stage.schedule("@every 1s", name="tick")
    async with stage.leading():
        for count in range(1, 6):
            stage.hand.move(1)
            await stage.settled(record, count)
    assert seconds(await stage.runs(record), "fired") == [1, 2, 3, 4, 5]
    jobs = await stage.jobs()
    assert {(job["function_name"], job["source"], job["caller"]) for job in jobs} == {
        ("f", "schedule:tick", "key:test")
    }
    event = jobs[0]["payload"]
    assert (event["specversion"], event["type"], event["subject"]) == ("1.0", "nova.schedule.fired", "tick")
    assert (event["source"], event["id"]) == (f"/schedules/{record.id}", "2026-11-22T12:00:01.000Z")
    assert event["data"] == {
        "schedule": "tick",
        "scheduled_at": "2026-11-22T12:00:01.000Z",
        "fired_at": "2026-11-22T12:00:01.000Z",
        "catch_up": False,
    }


async def test_the_given_input_qualifier_and_attempts_reach_the_job(stage: Stage) -> None:
    record = await stage.schedule(input='{"a": [1, 2.50]}', qualifier="prod", max_attempts=7)
    async with stage.leading():
        stage.hand.move(1)
        await stage.settled(record, 1)
    (job,) = await stage.jobs()
    assert (job["payload"], job["qualifier"], job["max_attempts"]) == ({"a": [1, 2.50]}, "prod", 7)
    (run,) = await stage.runs(record)
    assert (run["invocation_id"], run["fired_at"]) == (job["id"], stage.clock.now())
    stored = await stage.db.one("SELECT last_run_at, last_status, last_invocation_id FROM schedules")
    assert stored == {
        "last_run_at": stage.clock.now(),
        "last_status": "fired",
        "last_invocation_id": job["id"],
    }


async def test_overlap_skip(stage: Stage) -> None:
    record = await stage.schedule(overlap_policy="skip")
    async with stage.leading():
        stage.hand.move(1)
        await stage.settled(record, 1)
        stage.hand.move(1)
        await stage.settled(record, 2)
        await stage.end_jobs()
        stage.hand.move(1)
        rows = await stage.settled(record, 3)
    assert [row["status"] for row in rows] == ["fired", "skipped", "fired"]
    assert rows[1]["reason"] == "the run before it had not ended"
    assert stage.counted.statuses == ["fired", "skipped", "fired"]


async def test_overlap_allow(stage: Stage) -> None:
    record = await stage.schedule(overlap_policy="allow")
    async with stage.leading():
        for count in (1, 2, 3):
            stage.hand.move(1)
            await stage.settled(record, count)
    assert len(await stage.jobs()) == 3


async def test_overlap_queue_runs_one_after_the_other_in_order(stage: Stage) -> None:
    record = await stage.schedule(overlap_policy="queue", end_at=NOON + timedelta(seconds=3))
    async with stage.leading():
        for count in (1, 2, 3):
            stage.hand.move(1)
            await stage.settled(record, count)
        for jobs in (1, 2, 3):
            async with asyncio.timeout(20):
                while len(await stage.jobs()) < jobs:
                    await asyncio.sleep(0.01)
            rows = await stage.runs(record)
            assert [row["status"] for row in rows] == ["fired"] * jobs + ["queued"] * (3 - jobs)
            await stage.end_jobs()
    fired = [(await stage.jobs())[n]["payload"]["data"]["scheduled_at"] for n in range(3)]
    assert fired == sorted(fired)


async def test_overlap_cancel_previous_ends_the_run_before(stage: Stage) -> None:
    record = await stage.schedule(overlap_policy="cancel_previous")
    async with stage.leading():
        for count in (1, 2):
            stage.hand.move(1)
            await stage.settled(record, count)
    assert [job["status"] for job in await stage.jobs()] == ["cancelled", "queued"]
    assert await stage.db.one("SELECT count(*) AS n FROM work WHERE kind = 'async'") == {"n": 1}


@pytest.mark.parametrize(
    ("catch_up", "fired"),
    [("none", []), ("last", [7200]), ("all", [60 * n for n in range(90, 121)])],
)
async def test_catch_up_after_downtime(stage: Stage, catch_up: str, fired: list[float]) -> None:
    """Two hours without a leader, half an hour of window."""
    record = await stage.schedule("* * * * *", catch_up=catch_up, catch_up_window_s=1815)
    stage.hand.move(7215)
    async with stage.leading():
        await stage.idle()
        rows = await stage.runs(record)
        assert seconds(rows, "fired") == fired
        assert seconds(rows, "missed") == [60]
        assert all(row["catch_up"] for row in rows if row["status"] == "fired")
        stage.hand.move(45)
        rows = await stage.settled(record, len(rows) + 1)
    assert rows[-1]["scheduled_for"] == NOON + timedelta(seconds=7260)
    assert not rows[-1]["catch_up"]


async def test_what_is_older_than_the_window_is_missed(stage: Stage) -> None:
    record = await stage.schedule("0 13 * * *", catch_up="last", catch_up_window_s=600)
    stage.hand.move(2 * 3600)
    async with stage.leading():
        await stage.idle()
    (row,) = await stage.runs(record)
    assert (row["status"], row["scheduled_for"]) == ("missed", NOON + timedelta(hours=1))
    assert "catch_up_window_s" in row["reason"]


async def test_a_change_of_leaders_misses_nothing(stage: Stage) -> None:
    """A gap within the grace is not downtime: every instant fires, whatever catch_up says."""
    record = await stage.schedule("@every 1s", catch_up="none")
    stage.hand.move(5)
    async with stage.leading():
        await stage.settled(record, 5)
    assert seconds(await stage.runs(record), "fired") == [1, 2, 3, 4, 5]


async def test_a_clock_that_jumps_ahead_and_back_fires_nothing_twice(stage: Stage) -> None:
    """No storm while it is ahead, no silence when it is back, no instant twice."""
    record = await stage.schedule("@every 1s")
    async with stage.leading():
        stage.hand.move(1)
        await stage.settled(record, 1)
        stage.hand.jump(3600)
        await stage.idle()
        ahead = len(await stage.runs(record))
        assert ahead <= 13  # what lies within the grace, and one row for all the missed
        stage.hand.jump(-3600)
        stage.ears.tell()
        for _ in range(3):
            stage.hand.move(1)
            before = len(await stage.jobs())
            async with asyncio.timeout(20):
                while len(await stage.jobs()) == before:
                    await asyncio.sleep(0.005)
    jobs = [job["payload"]["data"]["scheduled_at"] for job in await stage.jobs()]
    assert len(jobs) == len(set(jobs))
    assert {f"2026-11-22T12:00:0{n}.000Z" for n in (1, 2, 3, 4)} <= set(jobs)


async def test_the_window_of_a_schedule_holds(stage: Stage) -> None:
    record = await stage.schedule("@every 1s", start_at=NOON + timedelta(seconds=3), end_at=NOON + timedelta(seconds=5))
    async with stage.leading():
        for _ in range(8):
            stage.hand.move(1)
            await stage.idle()
    assert seconds(await stage.runs(record)) == [4, 5] or seconds(await stage.runs(record)) == [3, 4, 5]
    left = await stage.db.one("SELECT next_run_at, due_at FROM schedules")
    assert left == {"next_run_at": None, "due_at": None}


async def test_jitter_delays_each_instant_by_an_amount_of_its_own(stage: Stage) -> None:
    record = await stage.schedule("* * * * *", jitter_s=30)
    minute = NOON + timedelta(minutes=1)
    delays = [jitter(record.id, 30, minute + timedelta(minutes=n)).total_seconds() for n in range(50)]
    assert len(set(delays)) == 50
    assert all(0 <= delay < 30 for delay in delays)
    assert max(delays) > 20 > 10 > min(delays)
    async with stage.leading():
        stage.hand.move(60 + delays[0] - 0.5)
        await stage.idle()
        assert await stage.runs(record) == []
        stage.hand.move(1)
        (row,) = await stage.settled(record, 1)
    assert row["scheduled_for"] == minute
    assert row["fired_at"] == stage.clock.now()


async def test_ten_thousand_that_are_due_in_one_second_all_fire(stage: Stage) -> None:
    """SC4, SC8: the number of schedules has no limit."""
    record = await stage.schedule("@every 1h")
    await stage.db.run(
        "INSERT INTO schedules SELECT (r).* FROM (SELECT jsonb_populate_record(s, jsonb_build_object("
        "'id', gen_random_uuid(), 'name', 'n' || n)) AS r FROM schedules s, generate_series(2, 10000) n) t"
    )
    stage.hand.move(3600)
    async with stage.leading():
        async with asyncio.timeout(60):
            while await stage.db.one("SELECT 1 FROM schedules WHERE due_at <= %(now)s LIMIT 1", now=stage.clock.now()):
                await asyncio.sleep(0.05)
    assert await stage.db.one("SELECT count(*) AS n FROM work WHERE kind = 'async'") == {"n": 10_000}
    assert await stage.db.one("SELECT count(*) AS n FROM schedule_runs WHERE status = 'fired'") == {"n": 10_000}
    assert len(await stage.runs(record)) == 1


async def test_what_a_busy_leader_is_late_with_is_not_missed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is due at once than it can fire within the grace: each batch takes half a minute here."""
    monkeypatch.setattr("nova.scheduling.firing.BATCH", 1)
    records = [await stage.schedule("1 0 12 * * *", name=f"n{n}") for n in range(4)]
    decided = stage.counted.decided

    def slow(status: RunStatus) -> None:
        decided(status)
        stage.hand.move(30)

    monkeypatch.setattr(stage.counted, "decided", slow)
    async with stage.leading():
        await asyncio.sleep(0.05)
        stage.hand.move(1)
        for record in records:
            assert [row["status"] for row in await stage.settled(record, 1)] == ["fired"]


async def test_a_suspended_tenants_schedules_hold(stage: Stage) -> None:
    """ID10: nothing fires for a suspended tenant; when it is resumed it goes on."""
    record = await stage.schedule("@every 1s")
    await stage.db.run("UPDATE tenants SET status = 'suspended'")
    async with stage.leading():
        stage.hand.move(3)
        other = await function(stage.db, "g")
        assert other
        await asyncio.sleep(0.1)
        assert await stage.runs(record) == []
        await stage.db.run("UPDATE tenants SET status = 'active'")
        rows = await stage.settled(record, 3)
    assert [row["status"] for row in rows] == ["fired"] * 3


async def test_a_leader_without_its_lease_writes_nothing(stage: Stage) -> None:
    """SC2: fencing."""
    record = await stage.schedule()
    stage.fence.lost = True
    stage.hand.move(1)
    firing = Firing(stage.db, stage.ears, stage.clock)
    with pytest.raises(LeaseLost):
        await asyncio.wait_for(firing.lead(stage.fence), 20)
    assert await stage.runs(record) == []


async def test_deleting_the_function_removes_its_schedules(stage: Stage) -> None:
    record = await stage.schedule()
    await stage.db.run("DELETE FROM functions")
    assert await stage.db.fetch("SELECT id FROM schedules") == []
    async with stage.leading():
        stage.hand.move(1)
        await asyncio.sleep(0.05)
    assert await stage.runs(record) == []


async def test_one_that_cannot_be_fired_does_not_keep_the_others_from_it(stage: Stage) -> None:
    broken = await stage.schedule(name="broken")
    sound = await stage.schedule(name="sound")
    strange = await stage.schedule(name="strange")
    await stage.db.run("UPDATE schedules SET input = 'no json' WHERE id = %(id)s", id=broken.id)
    await stage.db.run("UPDATE schedules SET timezone = 'Gone/Away' WHERE id = %(id)s", id=strange.id)
    async with stage.leading():
        stage.hand.move(1)
        assert [row["status"] for row in await stage.settled(sound, 1)] == ["fired"]
        assert [row["status"] for row in await stage.settled(broken, 1)] == ["failed"]
        (row,) = await stage.settled(strange, 1)
    assert (row["status"], "Gone/Away" in row["reason"]) == ("failed", True)
    assert await stage.db.one("SELECT due_at FROM schedules WHERE id = %(id)s", id=strange.id) == {"due_at": None}


async def test_two_processes_fire_each_instant_once_on_time(database: Database, pg_dsn: str) -> None:
    """SC1: two copies, one leader, real time; a change acts within a second although the next look was later."""
    stage = Stage(database, SYSTEM_CLOCK, HandClock(), await function(database))
    listener = Listener(pg_dsn)
    await listener.start()
    stages = []
    duties: list[Duty | Leases] = []
    try:
        for number in (1, 2):
            leases = Leases(pg_dsn, listener, node=f"n{number}")
            await leases.start()
            copy = Stage(database, SYSTEM_CLOCK, HandClock(), stage.function_id)
            firing = Firing(database, listener, SYSTEM_CLOCK, lookahead_s=30, events=copy.counted)
            duty = Duty("schedules", firing.lead, leases)
            await duty.start()
            stages.append(copy)
            duties += [duty, leases]
        async with asyncio.timeout(20):
            while not any(isinstance(duty, Duty) and duty.leading for duty in duties):
                await asyncio.sleep(0.02)
        record = await stage.schedule("@every 1s")
        rows = await stage.settled(record, 3)
    finally:
        for started in duties:
            await started.close()
        await listener.close()
    assert [row["status"] for row in rows[:3]] == ["fired"] * 3
    assert len(await stage.jobs()) == len(await stage.runs(record))
    assert sum(len(copy.counted.statuses) > 0 for copy in stages) == 1
    lateness = sorted(stages[0].counted.lateness + stages[1].counted.lateness)
    assert 0 <= lateness[0] < 1000
