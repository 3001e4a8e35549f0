"""What a user reads about finished calls, over HTTP."""

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nova.domain.function import Capture
from nova.domain.identity import Scope
from nova.ids import new_id
from nova.store.apikeys import KeyGrant
from nova.store.db import Database
from tests.execution.finished import boom, deployed
from tests.execution.observed import Observed, observing

pytestmark = pytest.mark.anyio


@pytest.fixture
async def seen(database: Database, tmp_path: Path) -> AsyncIterator[Observed]:
    async with observing(database, tmp_path) as observed:
        yield observed


async def _get(seen: Observed, path: str, status: int = 200, **options: Any) -> Any:
    answer = await seen.api.client.get(path, **options)
    assert answer.status_code == status, answer.text
    return answer.json()


async def test_the_record_of_a_call_is_there_when_its_answer_is(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    call = seen.call(hello, b'{"n":1}', stdout="out\n", stderr="err\n", output=b"[1,2]")
    record = await _get(seen, f"/invocations/{call.request_id}")
    assert record["function"] == "hello"
    assert record["status"] == "success"
    assert (record["stdout"], record["stderr"]) == ("out\n", "err\n")
    assert (record["input"], record["output"], record["captured"]) == ({"n": 1}, [1, 2], ["input", "output"])
    assert record["duration_ms"] == 1.5
    assert record["error"] is None


async def test_the_logs_of_a_failed_call_name_its_error(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    call = seen.call(hello, error=boom(), stderr="Traceback\n")
    prints = await _get(seen, f"/invocations/{call.request_id}/logs")
    assert (prints["status"], prints["stderr"], prints["function"]) == ("error", "Traceback\n", "hello")
    [record] = (await _get(seen, "/functions/hello/logs"))["items"]
    assert record["error"] == {"type": "ValueError", "message": "bad date", "stack": ["main.py:12 in handler"]}


async def test_tail_gives_the_newest_calls_first_and_ten_by_default(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    ids = [seen.call(hello).request_id for _ in range(12)]
    newest = list(reversed(ids))
    by_default = await _get(seen, "/functions/hello/logs")
    assert [item["id"] for item in by_default["items"]] == newest[:10]
    assert by_default["next_cursor"] is None
    assert [item["id"] for item in (await _get(seen, "/functions/hello/logs?tail=3"))["items"]] == newest[:3]
    await _get(seen, "/functions/hello/logs?tail=3&limit=5", 400)
    await _get(seen, "/functions/hello/logs?tail=501", 400)


async def test_pages_are_complete_while_calls_go_on(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    ids = {seen.call(hello).request_id for _ in range(25)}
    found: list[str] = []
    cursor = None
    while True:
        query = {"limit": "7"} | ({"cursor": cursor} if cursor else {})
        page = await _get(seen, "/functions/hello/logs", params=query)
        found += [item["id"] for item in page["items"]]
        seen.call(hello)
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert len(found) == len(set(found)) == 25
    assert set(found) == ids


@pytest.mark.parametrize("cursor", ["x", "WzFd", "WzEsIm5vIl0", "WzkyMjMzNzIwMzY4NTQ3NzU4MDcsIm5vIl0"])
async def test_a_made_up_cursor_is_refused(seen: Observed, database: Database, cursor: str) -> None:
    await deployed(database)
    problem = await _get(seen, f"/functions/hello/logs?cursor={cursor}", 400)
    assert problem["code"] == "invalid_cursor"


async def test_each_filter_of_a_function_s_logs_selects(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    second = replace(hello, version=2)
    plain = seen.call(hello, stdout="needle in hay\n").request_id
    failed = seen.call(hello, error=boom()).request_id
    cold = seen.call(second, cold_start=True, stderr="50%_off\n").request_id
    record = await _get(seen, f"/invocations/{failed}")

    async def found(**query: str) -> set[str]:
        return {item["id"] for item in (await _get(seen, "/functions/hello/logs", params=query))["items"]}

    assert await found(status="error") == {failed}
    assert await found(status="success") == {plain, cold}
    assert await found(q="needle") == {plain}
    assert await found(q="%_off") == {cold}
    assert await found(version="2") == {cold}
    assert await found(cold_start="true") == {cold}
    assert await found(request_id=plain) == {plain}
    assert await found(since=record["created_at"]) >= {failed, cold}
    assert failed not in await found(until=record["created_at"])
    assert await found(until="2020-01-01T00:00:00Z") == set()


async def test_a_call_of_another_function_is_unknown_here(seen: Observed, database: Database) -> None:
    """OB7: a request's log through another function's name is a 404, like one that never was."""
    hello, other = await deployed(database), await deployed(database, "other")
    call = seen.call(hello)
    seen.call(other)
    for request_id in (call.request_id, new_id(), "what"):
        problem = await _get(seen, f"/functions/other/logs?request_id={request_id}", 404)
        assert problem["code"] == "not_found"
    assert len((await _get(seen, f"/functions/hello/logs?request_id={call.request_id}"))["items"]) == 1


@pytest.mark.parametrize(
    "path",
    ["/functions/nobody/logs", "/functions/nobody/logs/stream", "/functions/a%20b/metrics", "/invocations/x"],
)
async def test_what_does_not_exist_is_not_found(seen: Observed, path: str) -> None:
    assert (await _get(seen, path, 404))["code"] == "not_found"


async def test_invocations_cover_the_scope_and_filter(seen: Observed, database: Database) -> None:
    hello, other = await deployed(database), await deployed(database, "other", runtime="node")
    slow = seen.call(hello, duration_us=900_000).request_id
    failed = seen.call(other, error=boom(), stdout="needle\n").request_id

    async def found(**query: str) -> list[str]:
        return [item["id"] for item in (await _get(seen, "/invocations", params=query))["items"]]

    assert await found() == [failed, slow]
    assert await found(function="hello") == [slow]
    assert await found(runtime="node") == [failed]
    assert await found(status="error") == [failed]
    assert await found(min_duration_ms="500") == [slow]
    assert await found(q="needle") == [failed]
    assert await found(caller="operator") == [failed, slow]
    assert await found(caller="key:x") == []
    assert await found(version="2") == []
    assert await found(cold_start="true") == []
    assert await found(trace_id="ab" * 16) == []
    assert await found(since="2020-01-01T00:00:00Z", until="2020-01-02T00:00:00Z") == []
    [item] = (await _get(seen, "/invocations?limit=1"))["items"]
    assert "stdout" not in item
    assert "input" not in item


async def test_another_tenant_sees_none_of_it(seen: Observed, database: Database) -> None:
    await seen.api.tenant("acme")
    ours = await deployed(database)
    theirs = await deployed(database, tenant="acme", scope=Scope("acme", "default"))
    mine = seen.call(ours)
    call = seen.call(theirs)
    key = {"X-API-Key": await seen.api.key("admin", tenant="acme")}
    assert [item["id"] for item in (await _get(seen, "/invocations", headers=key))["items"]] == [call.request_id]
    await _get(seen, f"/invocations/{mine.request_id}", 404, headers=key)
    await _get(seen, f"/invocations/{call.request_id}", 404)


async def test_payloads_are_for_those_who_may_read_them(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    call = seen.call(hello, b'{"private":true}')
    viewer = {"X-API-Key": await seen.api.key("viewer")}
    record = await _get(seen, f"/invocations/{call.request_id}", headers=viewer)
    assert (record["input"], record["output"], record["captured"]) == (None, None, ["input", "output"])


async def test_a_key_that_is_denied_a_function_does_not_see_its_calls(seen: Observed, database: Database) -> None:
    hello, secret = await deployed(database), await deployed(database, "secret")
    shown, hidden = seen.call(hello), seen.call(secret)
    grants = [KeyGrant("viewer", ()), KeyGrant("viewer", ("secret",), "deny")]
    key = {"X-API-Key": await seen.api.key(grants=grants)}
    assert [i["id"] for i in (await _get(seen, "/invocations", headers=key))["items"]] == [shown.request_id]
    await _get(seen, f"/invocations/{hidden.request_id}", 404, headers=key)


async def test_an_answer_stands_whatever_payload_was_kept(seen: Observed, database: Database) -> None:
    hello = await deployed(database)
    for payload in (b"[" * 500 + b"]" * 500, b'{"n":1e400000}', b'{"a":"\\u0000\\ud800"}'):
        call = seen.call(hello, payload)
        record = await _get(seen, f"/invocations/{call.request_id}")
        assert "input" in record["captured"]


async def test_a_function_that_keeps_nothing_shows_nothing(seen: Observed, database: Database) -> None:
    quiet = await deployed(database, "quiet", capture=Capture("none"))
    call = seen.call(quiet, b'{"n":1}')
    record = await _get(seen, f"/invocations/{call.request_id}")
    assert (record["captured"], record["input"], record["input_size"]) == ([], None, 7)
