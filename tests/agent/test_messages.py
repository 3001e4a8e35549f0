"""Heads: both ends read what the other writes."""

import dataclasses
import inspect
import json

import pytest

from nova.agent import control, environment, guest, loading, messages, reload, runners, supervisor
from nova.agent.frames import FrameError
from nova.agent.messages import (
    DoneHead,
    FunctionRef,
    GuestAnswerHead,
    GuestError,
    HelloHead,
    InitHead,
    KillWorkerHead,
    LoadedHead,
    ReloadHead,
    WelcomeHead,
    WorkerExitHead,
    take,
)
from nova.execution import channel, channel_ends, channel_heads, channel_reload, channel_workers
from nova.execution.backends.base import InitSpec

INIT = InitHead(
    function=FunctionRef("id", "name", 2, "tenant", "ns"),
    instance_id="i",
    runtime="python",
    mode="persistent",
    handler="main.handler",
    entry="main.py",
    entry_kind="handler",
    env={"A": "1"},
    memory_mb=128,
    timeout_s=3,
    concurrency=1,
    open_files=64,
)
HEADS = [
    HelloHead(token="00", instance_id="i"),
    WelcomeHead(agent="1", runtimes=("python",), boot_us=5, fds=3),
    INIT,
    LoadedHead(ok=False, worker=0, error=GuestError("E", "m", ("s",))),
    LoadedHead(True, 1, fds=3, init_us=7, concurrency=4, multiplex=True, stdout="o", stderr="e", import_us=5),
    WorkerExitHead(worker=1, pid=7, exit_code=None, signal=9),
    KillWorkerHead(worker=2),
    ReloadHead("begin", "sha256:00", 5, "main.handler", "main.py"),
    DoneHead(ok=False, error=GuestError("E", "m", ("s",))),
    GuestAnswerHead(200, {"ETag": "1"}),
]


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_a_head_survives_the_wire(head: HelloHead) -> None:
    """AG15: every member that is sent is read at the other end."""
    wire = json.loads(json.dumps(head.as_head()))
    assert type(head).of(wire) == head
    assert set(wire) == {field.name for field in dataclasses.fields(head)}
    assert type(head).of(wire | {"member_of_a_later_version": 1}) == head


@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_a_wrong_type_is_refused(head: HelloHead) -> None:
    for name, value in head.as_head().items():
        if value is None:
            continue
        with pytest.raises(FrameError):
            type(head).of(head.as_head() | {name: object()}) if name != "error" else take({}, name, str)


def test_every_member_has_an_effect() -> None:
    """AG15: a member that nobody uses would be a promise that is not kept."""
    agent = "".join(
        inspect.getsource(module) for module in (supervisor, control, runners, environment, loading, reload, guest)
    )
    host = "".join(
        inspect.getsource(module) for module in (channel, channel_ends, channel_heads, channel_reload, channel_workers)
    )
    for kind, reader in (
        (HelloHead, agent),
        (InitHead, agent),
        (FunctionRef, agent),
        (WelcomeHead, host),
        (LoadedHead, host),
        (WorkerExitHead, host),
        (KillWorkerHead, agent),
        (ReloadHead, agent),
        (DoneHead, host),
        (GuestAnswerHead, agent),
    ):
        for field in dataclasses.fields(kind):
            assert f".{field.name}" in reader, f"{kind.__name__}.{field.name} is never read"


def test_the_host_sends_all_of_an_init_spec() -> None:
    source = inspect.getsource(channel_heads)
    chosen_with_the_instance = {"runtime_version"}
    for field in dataclasses.fields(InitSpec):
        if field.name in chosen_with_the_instance:
            continue
        assert f"spec.{field.name}" in source, f"{field.name} never reaches the agent"


def test_take_is_strict() -> None:
    assert take({"a": 1}, "a", int) == 1
    for head in ({}, {"a": "1"}, {"a": True}, {"a": None}):
        with pytest.raises(FrameError, match="a must be int"):
            take(head, "a", int)
    assert messages.clip("aé", 2) == "a"
