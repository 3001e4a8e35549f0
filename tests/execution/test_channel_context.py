"""Context objects as bytes."""

import json

import pytest

from nova.agent.worker import call_line, split_call
from nova.execution.channel_context import ContextEncoder
from tests.agent.harness import snapshot_of, spec_of


def test_a_context_holds_what_the_contract_names() -> None:
    encoder = ContextEncoder(snapshot_of(spec_of("python")))
    assert json.loads(encoder.encode("0199-a", 1234)) == {
        "request_id": "0199-a",
        "deadline_ms": 1234,
        "function_name": "hello",
        "function_id": "0199aaaa-0000-7000-8000-000000000001",
        "function_version": "3",
        "memory_limit_mb": 128,
        "timeout_s": 30,
        "runtime": "python",
        "mode": "persistent",
        "tenant": "acme",
        "namespace": "prod",
        "attempt": 1,
    }


@pytest.mark.parametrize("state", ["", 'a="b", "context": {', "é\n\u2028"])
def test_the_trace_is_there_when_the_call_has_one(state: str) -> None:
    encoder = ContextEncoder(snapshot_of(spec_of("python")))
    context = encoder.encode("0199-a", 1, "00-abc-def-01", state)
    assert b"\n" not in context
    decoded = json.loads(context)
    assert (decoded["traceparent"], decoded["tracestate"]) == ("00-abc-def-01", state)
    assert split_call(call_line(b"[1]", context)) == (b"[1]", context)


def test_a_call_that_is_tried_again_says_so() -> None:
    encoder = ContextEncoder(snapshot_of(spec_of("python")))
    assert json.loads(encoder.encode("0199-a", 1, attempt=3))["attempt"] == 3
