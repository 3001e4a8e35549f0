"""Idempotency keys of synchronous calls, on a real database, in front of a scripted executor."""

import asyncio
import time

import pytest

from nova.domain.call import CallRequest, CallResult
from nova.domain.identity import Scope
from nova.errors import FunctionError, NovaError
from nova.execution.idempotent import IdempotentInvoker
from nova.ids import new_id
from nova.store.db import Database
from nova.store.idempotency import IdempotencyStore
from tests.events.support import IDENTITY, Calls, failing, result
from tests.execution.sinks import Reader

pytestmark = pytest.mark.anyio


def call(
    key: str | None = "k",
    payload: bytes = b"1",
    *,
    scope: Scope = Scope(),
    function: str = "f",
    qualifier: str | None = None,
) -> CallRequest:
    return CallRequest(
        new_id(), scope, function, payload, IDENTITY, time.monotonic(), qualifier=qualifier, idempotency_key=key
    )


@pytest.fixture
async def store(database: Database) -> IdempotencyStore:
    return IdempotencyStore(database)


async def refusal(invoker: IdempotentInvoker, request: CallRequest) -> NovaError:
    with pytest.raises(NovaError) as refused:
        await invoker.invoke(request)
    return refused.value


async def test_a_hundred_duplicates_run_once(store: IdempotencyStore) -> None:
    """EX15: one execution; whoever comes while it runs is told to come back, whoever comes later gets its answer."""
    go = asyncio.Event()

    async def script(request: CallRequest) -> CallResult:
        await go.wait()
        return result(request, b'{"x": 1.0}')

    calls = Calls(script)
    invoker = IdempotentInvoker(calls, store)
    tasks = [asyncio.create_task(invoker.invoke(call())) for _ in range(100)]
    while sum(task.done() for task in tasks) < 99:
        await asyncio.sleep(0.01)
    go.set()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    answers = [outcome for outcome in outcomes if isinstance(outcome, CallResult)]
    refusals = [outcome for outcome in outcomes if isinstance(outcome, NovaError)]
    assert (len(answers), len(calls.seen)) == (1, 1)
    assert {(error.code, error.retry_after_s) for error in refusals} == {("idempotency_in_progress", 1)}
    again = await invoker.invoke(call())
    assert (again.deduplicated, again.output, again.request_id) == (True, b'{"x": 1.0}', answers[0].request_id)
    assert not answers[0].deduplicated
    assert len(calls.seen) == 1


async def test_an_error_of_the_function_is_the_answer_too(store: IdempotencyStore) -> None:
    calls = Calls(failing(FunctionError("ValueError", "no \x00\ud800", ("main.py:1",))))
    invoker = IdempotentInvoker(calls, store)
    first, again = await invoker.invoke(call()), await invoker.invoke(call())
    assert first.error is not None
    assert again.error == FunctionError("ValueError", "no \x00?", ("main.py:1",))
    assert (again.deduplicated, again.version, len(calls.seen)) == (True, first.version, 1)


async def test_a_call_that_ran_out_of_time_is_not_run_again(store: IdempotencyStore) -> None:
    calls = Calls(failing(NovaError("timeout", "30 s are up")))
    invoker = IdempotentInvoker(calls, store)
    assert (await refusal(invoker, call())).code == "timeout"
    again = await refusal(invoker, call())
    assert (again.code, again.detail, again.extra["deduplicated"]) == ("timeout", "30 s are up", True)
    assert len(calls.seen) == 1


@pytest.mark.parametrize("code", ["rate_limited", "queue_full", "not_found", "instance_lost"])
async def test_what_did_not_run_to_its_end_frees_the_key(store: IdempotencyStore, code: str) -> None:
    invoker = IdempotentInvoker(Calls(failing(NovaError(code, "no"))), store)
    assert (await refusal(invoker, call())).code == code
    assert not (await invoker.invoke(call())).deduplicated


async def test_a_caller_who_leaves_frees_the_key(store: IdempotencyStore) -> None:
    running = asyncio.Event()

    async def script(request: CallRequest) -> CallResult:
        if running.is_set():
            return result(request)
        running.set()
        await asyncio.Event().wait()
        raise AssertionError

    invoker = IdempotentInvoker(Calls(script), store)
    task = asyncio.create_task(invoker.invoke(call()))
    await running.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not (await invoker.invoke(call())).deduplicated


async def test_a_key_is_bound_to_its_request_its_function_and_its_scope(store: IdempotencyStore) -> None:
    calls = Calls()
    invoker = IdempotentInvoker(calls, store)
    await invoker.invoke(call())
    for other in (call(payload=b"2"), call(qualifier="3")):
        assert (await refusal(invoker, other)).code == "idempotency_conflict"
    for free in (call(function="g", payload=b"2"), call(scope=Scope("other"), payload=b"2"), call(None), call("l")):
        assert not (await invoker.invoke(free)).deduplicated
    assert len(calls.seen) == 5


async def test_a_holder_that_died_is_followed_by_a_second_attempt(database: Database, store: IdempotencyStore) -> None:
    calls = Calls()
    await store.reserve(Scope(), "invoke/f", "k", b"?", new_id(), ttl_s=60, lease_s=30)
    invoker = IdempotentInvoker(calls, store)
    assert (await refusal(invoker, call())).code == "idempotency_conflict"
    await database.run("DELETE FROM idempotency_keys")
    blocked = IdempotentInvoker(Calls(_never), store)
    task = asyncio.create_task(blocked.invoke(call()))
    while not await database.fetch("SELECT key FROM idempotency_keys"):
        await asyncio.sleep(0.01)
    await database.run("UPDATE idempotency_keys SET lease_until = now()")
    assert not (await invoker.invoke(call())).deduplicated
    assert calls.seen[0].attempt == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # the one that was away changes nothing any more
    assert (await invoker.invoke(call())).deduplicated


async def test_a_call_longer_than_the_lease_keeps_its_key(database: Database, store: IdempotencyStore) -> None:
    blocked = IdempotentInvoker(Calls(_never), store, lease_s=0.3)
    await blocked.start()
    task = asyncio.create_task(blocked.invoke(call()))
    while not await database.fetch("SELECT key FROM idempotency_keys"):
        await asyncio.sleep(0.01)
    taken = await database.one("SELECT lease_until FROM idempotency_keys")
    assert taken is not None
    async with asyncio.timeout(10):
        while not await database.fetch(
            "SELECT 1 FROM idempotency_keys WHERE lease_until > %(was)s", was=taken["lease_until"]
        ):
            await asyncio.sleep(0.02)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await blocked.close()


async def test_keys_expire_and_are_swept(database: Database, store: IdempotencyStore) -> None:
    invoker = IdempotentInvoker(Calls(), store)
    for key in ("a", "b"):
        await invoker.invoke(call(key))
    await database.run("UPDATE idempotency_keys SET expires_at = now() WHERE key = 'a'")
    assert not (await invoker.invoke(call("a", b'"other"'))).deduplicated
    await database.run("UPDATE idempotency_keys SET expires_at = now() WHERE key = 'b'")
    assert await store.sweep(10) == 1
    assert await store.sweep(10) == 0


@pytest.mark.parametrize("key", ["", "a b", "ä", "x" * 257, "a\n"])
async def test_bad_keys_are_refused(store: IdempotencyStore, key: str) -> None:
    error = await refusal(IdempotentInvoker(Calls(), store), call(key))
    assert [field.field for field in error.errors] == ["Idempotency-Key"]


async def _never(_request: CallRequest) -> CallResult:
    await asyncio.Event().wait()
    raise AssertionError


async def test_a_stream_cannot_have_a_key(store: IdempotencyStore) -> None:
    """What went to one caller piece by piece is not kept, so it could not be repeated."""

    async def never(request: CallRequest) -> CallResult:
        raise AssertionError("it ran")

    with pytest.raises(NovaError) as refused:
        await IdempotentInvoker(Calls(never), store).stream(call(), Reader())
    assert refused.value.code == "validation_failed"
    assert [error.field for error in refused.value.errors] == ["Idempotency-Key"]
