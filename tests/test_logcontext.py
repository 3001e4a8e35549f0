"""Lines of the log name the call they are about."""

import asyncio

import pytest
import structlog

from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.errors import NovaError
from nova.logcontext import about, add_call
from tests.execution.fakes import make_call
from tests.execution.test_executor import Rig

pytestmark = pytest.mark.anyio
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


async def test_calls_side_by_side_keep_their_own_names() -> None:
    lines: list[structlog.typing.EventDict] = []

    def keep(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        lines.append(event)
        raise structlog.DropEvent

    log = structlog.wrap_logger(None, processors=[add_call, keep])

    async def run(name: str, traceparent: str | None) -> str:
        call = make_call(name, traceparent=traceparent)
        with about(call):
            await asyncio.sleep(0)
            log.info("halfway")
            await asyncio.sleep(0)
            log.info("done", function="said by the line itself")
        log.info("afterwards")
        return call.request_id

    first, second = await asyncio.gather(run("a", TRACE), run("b", None))
    halfway = [line for line in lines if line["event"] == "halfway"]
    common = {"event": "halfway", "tenant": "default", "namespace": "default"}
    assert halfway == [
        {**common, "request_id": first, "function": "a", "trace_id": TRACE[3:35]},
        {**common, "request_id": second, "function": "b"},
    ]
    assert {line["function"] for line in lines if line["event"] == "done"} == {"said by the line itself"}
    assert [line for line in lines if line["event"] == "afterwards"] == [{"event": "afterwards"}] * 2


async def test_what_the_executor_s_parts_log_is_about_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two calls of one task, one after the other: each names itself, and nothing is named between them."""
    rig = Rig()
    seen: list[str | None] = []
    whole = rig.shelf.resolve

    def logged() -> str | None:
        return add_call(None, "info", {}).get("request_id")

    async def resolve(call: CallRequest, deadline: float | None = None) -> FunctionSnapshot:
        seen.append(logged())
        found: FunctionSnapshot = await whole(call, deadline)
        return found

    monkeypatch.setattr(rig.shelf, "resolve", resolve)
    for call in (first := make_call("nobody"), second := make_call("nobody")):
        with pytest.raises(NovaError, match="not_found"):
            await rig.executor.invoke(call)
        assert logged() is None
    assert seen == [first.request_id, second.request_id]
