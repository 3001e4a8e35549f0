"""Triggers: how many messages of a real broker reach a function in a second."""

from collections.abc import Collection
from contextlib import ExitStack
from datetime import datetime
from time import monotonic, sleep, time

from bench.driving import DriveError, burst
from bench.measures import Run
from bench.processes import calm
from bench.stats import middle
from bench.subjects.control import python
from bench.subjects.nova import NAME, Nova

MEASURE = "trigger_rate"
_FUNCTION = "on-message"
_INFLIGHT = 50
_POLL_S = 0.2


def triggers(run: Run, only: Collection[str]) -> None:
    """One ``nova up`` and one broker at a time, each with what it needs to lose nothing."""
    if MEASURE not in only:
        return
    from tests.events.triggers import brokers

    with ExitStack() as stack, run.attempt(NAME, MEASURE):
        run.say("starting nova up")
        nova = stack.enter_context(Nova(run.command, run.folder, "triggers", {"NOVA_EGRESS_ALLOW": "127.0.0.0/8"}))
        nova.ready()
        burst(nova.deploy(_FUNCTION, python("message.py")), run.plan.callers, 2_000, max_s=run.plan.job_limit_s)
        for kind in (brokers.Redis, brokers.Nats, brokers.RabbitMQ, brokers.Mosquitto):
            with run.attempt(NAME, MEASURE), kind(run.folder / kind.__name__) as broker:
                _broker(run, nova, broker)


def _broker(run: Run, nova: Nova, broker: object) -> None:
    """The messages wait at the broker; from the moment the trigger may begin until the function has had the last."""
    from tests.events.triggers import brokers
    from tests.events.triggers.feeding import config, feed, prepare

    assert isinstance(broker, brokers.Broker)
    plan, name = run.plan, "bench"
    prepare(broker, name)
    type, settings = config(broker, name)
    body = {"name": type, "type": type, "target": _FUNCTION, "config": settings, "max_inflight": _INFLIGHT}
    trigger = nova.call("POST", "/triggers", 201, body)["id"]
    _until(nova, trigger, 0, plan.job_limit_s)
    rates, done = [], 0
    for number in range(plan.job_rounds):
        run.say(f"{type}: messages, round {number + 1}/{plan.job_rounds}")
        nova.call("POST", f"/triggers/{trigger}/pause", 200)
        feed(broker, name, range(plan.trigger_messages))
        calm()
        done += plan.trigger_messages
        start = time()
        nova.call("POST", f"/triggers/{trigger}/resume", 200)
        rates.append(plan.trigger_messages / (_until(nova, trigger, done, plan.job_limit_s) - start))
    nova.call("DELETE", f"/triggers/{trigger}", 204)
    facts = {"messages": plan.trigger_messages, "max_inflight": _INFLIGHT}
    run.add(MEASURE, type, NAME, middle(rates), "messages/s", better="higher", rounds=rates, facts=facts)


def _until(nova: Nova, trigger: str, processed: int, limit_s: float) -> float:
    """When the last event was processed, in seconds since 1970; DriveError when they were not all by then."""
    deadline = monotonic() + limit_s
    while True:
        status = nova.call("GET", f"/triggers/{trigger}/status", 200)
        if status["state"] == "running" and status["processed"] >= processed:
            last = status["last_event_at"]
            return datetime.fromisoformat(last).timestamp() if last else time()
        if monotonic() > deadline:
            raise DriveError(f"{status['processed']} of {processed} messages: {status['last_error']}")
        sleep(_POLL_S)
