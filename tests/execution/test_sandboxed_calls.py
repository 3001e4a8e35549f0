"""Calls into real isolated instances, through catalog, pool and executor."""

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from nova.config import PoolSettings
from nova.domain.call import CallResult
from nova.domain.function import Limits
from nova.domain.identity import Scope
from nova.domain.version import Recorded
from nova.errors import NovaError
from nova.payload import decode, encode
from nova.store.functions import announce
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

HELLO = "def handler(event, context):\n    return {'hello': event.get('name', 'world')}\n"
COUNTING = """
import os, time
count = 0
def handler(event, context):
    global count
    count += 1
    open('/tmp/trace', 'a').write('x')
    time.sleep(event.get('sleep', 0))
    return {'count': count, 'pid': os.getpid(), 'trace': open('/tmp/trace').read()}
"""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    settings = PoolSettings(max_queue_depth=20_000, max_queue_wait=60)
    async with real_stack(pg_dsn, tmp_path, settings) as stack:
        yield stack
    assert stack.executor.active == 0
    assert stack.fleet.size == 0


def output(result: CallResult) -> Any:
    assert result.error is None, result.error
    assert result.output is not None
    return decode(result.output)


async def until(condition: Any, limit_s: float = 10) -> None:
    async with asyncio.timeout(limit_s):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_first_call_is_cold_and_the_next_is_warm(stack: RealStack) -> None:
    await stack.deploy(HELLO)
    first, second = await stack.invoke(b'{"name": "nova"}'), await stack.invoke()
    assert (output(first), output(second)) == ({"hello": "nova"}, {"hello": "world"})
    assert (first.cold_start, second.cold_start) == (True, False)
    assert first.source in ("template", "boot")
    assert first.instance_id == second.instance_id
    assert first.phases.init_us > first.phases.import_us > 0


async def test_a_delivered_call_is_never_sent_again(stack: RealStack) -> None:
    """EX1: the instance dies under the call; the caller is told so, and no other instance gets it."""
    await stack.deploy(COUNTING)
    warm = await stack.invoke()
    call = stack.invoking(encode({"sleep": 30}))
    await until(lambda: stack.fleet.stats()["inflight"] == 1)
    (pool,) = stack.fleet._pools.values()
    (member,) = pool.members.values()
    member.instance.kill()  # type: ignore[attr-defined]
    with pytest.raises(NovaError) as refused:
        await call
    assert (refused.value.code, refused.value.status) == ("instance_lost", 502)
    assert stack.fleet.created == 1, "no other instance was asked"
    after = await stack.invoke()
    assert output(after)["count"] == 1
    assert after.instance_id != warm.instance_id


async def test_ten_thousand_concurrent_calls_see_only_their_own(stack: RealStack) -> None:
    """EX2: each answer belongs to its caller; the snapshot is as it was; instances stay within their bound."""
    await stack.deploy(
        "def handler(event, context):\n    return [event['n'], context.request_id]\n", recorded=Recorded(max_replicas=4)
    )
    await stack.invoke(b'{"n": -1}')
    snapshot = stack.records[0][1]
    before = repr(snapshot)
    results = await asyncio.gather(*(stack.invoke(encode({"n": number})) for number in range(10_000)))
    assert [output(result) for result in results] == [[n, result.request_id] for n, result in enumerate(results)]
    assert repr(snapshot) == before
    assert stack.fleet.created <= 4
    assert len({record[0].request_id for record in stack.records}) == 10_001


async def test_each_qualifier_runs_its_own_version(stack: RealStack) -> None:
    """EX4: code, files and environment are those of the version that was asked for, at the same time as others."""
    code = "import os\ndef handler(event, context):\n    return [{n}, os.environ['V'], context.function_version]\n"
    for number in (1, 2, 3):
        await stack.deploy(code.replace("{n}", str(number)), env={"V": f"v{number}"})
    wanted = ["3", "1", "2"] * 20
    results = await asyncio.gather(*(stack.invoke(qualifier=qualifier) for qualifier in wanted))
    assert [output(result) for result in results] == [[int(q), f"v{q}", q] for q in wanted]
    assert [str(result.version) for result in results] == wanted


async def test_an_alias_really_splits_calls(stack: RealStack) -> None:
    """EX5: 90/10 gives 90 ± 1 % of 10 000 calls by key, and each key stays on its side; counted by version."""
    code = "def handler(event, context):\n    return {n}\n"
    for number in (1, 2):
        await stack.deploy(code.replace("{n}", str(number)), recorded=Recorded(max_replicas=2))
    async with stack.db.transaction() as conn:
        found = await stack.functions.lock(conn, Scope(), "hello")
        assert found is not None
        await conn.run(
            "INSERT INTO function_aliases (function_id, name, data, etag) VALUES (%(id)s, 'canary', %(data)s, 'x')",
            id=found.id,
            data=Jsonb({"split": {"1": 9000, "2": 1000}}),
        )
        await announce(conn, Scope(), "hello", await stack.functions.touch(conn, found.id))
    stack.catalog.forget(Scope(), "hello")
    keys = [f"user-{number}" for number in range(5000)] * 2
    answers = await asyncio.gather(*(stack.invoke(qualifier="canary", sticky_key=key) for key in keys))
    counted = Counter(output(answer) for answer in answers)
    assert counted[1] / 10_000 == pytest.approx(0.9, abs=0.01)
    assert [output(answer) for answer in answers[:5000]] == [output(answer) for answer in answers[5000:]]
    assert counted == Counter(record[2].version for record in stack.records)


async def test_a_client_that_leaves_frees_its_instance(stack: RealStack) -> None:
    """EX7: within a second nothing of the call is left, and the function can be called again."""
    await stack.deploy(COUNTING)
    first = await stack.invoke()
    call = stack.invoking(encode({"sleep": 600}))
    await until(lambda: stack.fleet.stats()["inflight"] == 1)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await until(lambda: stack.fleet.size == 0)
    again = await stack.invoke()
    assert again.instance_id != first.instance_id
    errors = [record[2].error.type for record in stack.records if record[2].error]
    assert errors == ["Nova.Cancelled"]


async def test_the_callers_deadline_holds_and_the_guest_knows_it(stack: RealStack) -> None:
    """EX7: the deadline of the request is the one enforced, and what the context tells the function."""
    await stack.deploy(
        "import time\ndef handler(event, context):\n"
        "    time.sleep(event.get('sleep', 0))\n    return context.get_remaining_time_in_millis()\n",
        timeout_s=30,
    )
    assert 25_000 < output(await stack.invoke()) <= 30_000
    assert 1_000 < output(await stack.invoke(timeout_ms=5_000)) <= 5_000
    with pytest.raises(NovaError) as refused:
        await stack.invoke(b'{"sleep": 20}', timeout_ms=300)
    assert (refused.value.code, refused.value.status) == ("timeout", 504)


ESCAPING = """
import os, time
def handler(event, context):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            open('/tmp/alive', 'w').write('x')
            while True:
                time.sleep(0.1)
        os._exit(0)
    while not os.path.exists('/tmp/alive'):
        time.sleep(0.01)
    time.sleep(600)
"""


def processes_of_instances() -> set[int]:
    """Processes on this machine that run as users of instances."""
    found = set()
    for entry in os.listdir("/proc"):
        try:
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid >= 200_000:
                found.add(int(entry))
        except FileNotFoundError:
            continue
    return found


async def test_after_a_timeout_no_descendant_is_alive(stack: RealStack) -> None:
    """AG10: even one that double-forked, changed its session and holds stdout open; the caller is answered on time."""
    await stack.deploy(ESCAPING, timeout_s=1)
    before = processes_of_instances()
    call = stack.invoking()
    await until(lambda: stack.fleet.stats()["inflight"] == 1)
    (pool,) = stack.fleet._pools.values()
    (member,) = pool.members.values()
    namespace = os.stat(f"/proc/{member.instance.pid}/ns/pid").st_ino  # type: ignore[attr-defined]
    with pytest.raises(NovaError, match="timeout"):
        await call
    await until(lambda: stack.fleet.size == 0)
    inside = set()
    for pid in processes_of_instances() - before:
        try:
            if os.stat(f"/proc/{pid}/ns/pid").st_ino == namespace:
                inside.add(pid)
        except FileNotFoundError:
            continue
    assert not inside


async def test_equal_functions_share_nothing(stack: RealStack) -> None:
    """PO1: same code, same settings, in one tenant or two: other instances, processes and /tmp."""
    async with stack.db.transaction() as conn:
        await conn.run("INSERT INTO tenants (id, name) VALUES ('acme', 'Acme')")
        await conn.run("INSERT INTO namespaces (tenant_id, name) VALUES ('acme', 'default')")
    places = [("one", Scope()), ("two", Scope()), ("one", Scope("acme"))]
    for name, scope in places:
        await stack.deploy(COUNTING, name, scope=scope)
    results = [await stack.invoke(name=name, scope=scope) for name, scope in places]
    assert [(output(result)["count"], output(result)["trace"]) for result in results] == [(1, "x")] * 3
    assert len({result.instance_id for result in results}) == 3


async def test_calls_at_once_in_one_instance(stack: RealStack) -> None:
    """PO16: with instance_concurrency 10, ten waiting calls share one instance."""
    await stack.deploy(
        "import asyncio\nhere = 0\ngate = None\nasync def handler(event, context):\n"
        "    global here, gate\n    gate = gate or asyncio.Event()\n    here += 1\n"
        "    if here == 10:\n        gate.set()\n    await gate.wait()\n    return here\n",
        concurrency=10,
        recorded=Recorded(max_replicas=1),
    )
    results = await asyncio.gather(*(stack.invoke() for _ in range(10)))
    assert [output(result) for result in results] == [10] * 10
    assert len({result.instance_id for result in results}) == 1


async def test_the_source_of_a_start_is_what_happened(stack: RealStack) -> None:
    """PO11: a claimed template says so; with no template left it is a boot."""
    await stack.deploy(HELLO)
    await until(lambda: all(len(shelf.ready) for shelf in stack.backend._templates._shelves.values()))
    first = await stack.invoke()
    assert first.source == "template"
    assert [record[2].source for record in stack.records] == ["template"]


async def test_code_that_does_not_load_says_why(stack: RealStack) -> None:
    """PO18: the user's own error, with what was printed, at once and for everybody who waits."""
    await stack.deploy("print('loading')\nimport no_such_module\n")
    results = await asyncio.gather(*(stack.invoke() for _ in range(5)))
    assert {result.error.type for result in results if result.error} == {"ModuleNotFoundError"}
    assert all("no_such_module" in result.error.message for result in results if result.error)
    assert any("loading" in result.stdout for result in results)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("import os; os._exit(3)", "Nova.ExitError"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "Nova.Signal"),
        ("x = bytearray(400 << 20)", "Nova.OutOfMemory"),
        ("raise ValueError('bad date')", "ValueError"),
        ("return object()", "Nova.InvalidOutput"),
    ],
)
async def test_a_function_that_breaks_harms_no_neighbour(stack: RealStack, body: str, error: str) -> None:
    await stack.deploy(f"def handler(event, context):\n    {body}\n", "broken", limits=Limits(memory_mb=128))
    await stack.deploy(COUNTING, "neighbour")
    before = await stack.invoke(name="neighbour")
    result = await stack.invoke(name="broken")
    assert result.error is not None
    assert result.error.type == error
    after = await stack.invoke(name="neighbour")
    assert (after.instance_id, output(after)["count"]) == (before.instance_id, 2)
    again = await stack.invoke(name="broken")
    assert again.error is not None
    assert again.error.type == error


async def test_a_new_version_takes_over_while_calls_run(stack: RealStack) -> None:
    """PO9: calls in flight finish on the old code, the next one runs the new, and the old instances go."""
    await stack.deploy("import time\ndef handler(event, context):\n    time.sleep(0.3)\n    return 1\n")
    await stack.invoke()
    running = stack.invoking()
    await until(lambda: stack.fleet.stats()["inflight"] == 1)
    await stack.deploy("def handler(event, context):\n    return 2\n")
    assert output(await stack.invoke()) == 2
    assert output(await running) == 1
    await until(lambda: len(stack.fleet.stats()["pools"]) == 1)
