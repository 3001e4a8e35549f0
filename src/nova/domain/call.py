"""One call of a function: what goes in and what comes out, the same for every entry point and transport."""

from collections.abc import Mapping
from typing import Literal

from msgspec import Struct, field

from nova.domain.asyncs import Priority
from nova.domain.identity import Identity, Scope
from nova.errors import FunctionError, NovaError

Trigger = Literal[
    "http", "url", "grpc", "async", "schedule", "function", "shadow", "event", "workflow", "durable", "trigger"
]
TAKEN_OVER: frozenset[Trigger] = frozenset({"async", "schedule", "event", "workflow", "durable", "trigger"})
"""What makes such a call is work under a lease: while its process stands still, another may do it again and go on."""
StartSource = Literal["warm", "snapshot", "template", "boot"]
MAX_DEPTH = 32
"""Calls of functions by functions, one inside the other, at most."""
SAMPLED = 16
"""One call in this many has the platform's own stages timed: timing all of them would be a stage of its own."""


class CallRequest(Struct):
    """A call that passed the door. Per-call values live here and nowhere else.

    ``payload`` is checked JSON on one line (:mod:`nova.payload`). ``timeout_ms`` is the caller's remaining budget,
    queueing included; None leaves only the function's own timeout. ``received`` is the monotonic time of arrival.
    """

    request_id: str
    scope: Scope
    function: str
    payload: bytes
    identity: Identity
    received: float
    qualifier: str | None = None
    timeout_ms: int | None = None
    trigger: Trigger = "http"
    sticky_key: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    client_request_id: str | None = None
    source_address: str | None = None
    idempotency_key: str | None = None
    attempt: int = 1
    """counts from 1; above it for retries of work that was accepted before"""
    caller: str | None = None
    """what called, when it was no request: ``schedule:nightly``, ``async:<id>``, ``function:<name>``"""
    chain: tuple[str, ...] = ()
    """the functions that called one another down to this call, outermost first; its length is the depth"""
    hops: int = 0
    """deliveries of messages that led to this call, one after the other; what it publishes has as many behind it"""
    headers: Mapping[bytes, bytes] | None = None
    """the request's, names in lower case, for aliases that route by them; None when it was no request of ``invoke``"""


def check_chain(call: CallRequest) -> None:
    """Raise ``recursion`` when functions called one another too deep, or a function would come to call itself.

    A function that waits for itself holds the slot that it waits for, so a cycle is refused and not only bounded.
    """
    if len(call.chain) > MAX_DEPTH:
        raise NovaError("recursion", f"functions have called one another {MAX_DEPTH} times, which is the limit")
    if call.function in call.chain:
        way = " → ".join((*call.chain, call.function))
        raise NovaError("recursion", f"the call would close a circle: {way}")


def caller_of(chain: tuple[str, ...]) -> str:
    """What called, when functions did: ``function:a>b`` is b, which a had called. The inverse is :func:`chain_of`."""
    return f"function:{'>'.join(chain)}"


def chain_of(caller: str | None) -> tuple[str, ...]:
    """The chain that a caller stands for: calls that wait in a queue have no other memory of it."""
    if caller is None or not caller.startswith("function:"):
        return ()
    return tuple(caller.removeprefix("function:").split(">"))


class Phases(Struct):
    """Where the time of a call went, in microseconds."""

    queue_us: int = 0
    """waiting for a slot"""
    instance_us: int = 0
    """getting an isolated instance (zero when warm)"""
    init_us: int = 0
    """loading the user's code (zero when warm)"""
    handler_us: int = 0
    """from sending the input to having the result"""
    import_us: int = 0
    """the part of ``init_us`` in which the language imported the code"""
    runtime_us: int = 0
    """the part of ``instance_us`` in which the language started; zero when that was done beforehand"""

    def parts(self) -> tuple[tuple[str, float], ...]:
        """The time of the call in milliseconds, by what it went to; the parts add up to the whole."""
        return (
            ("queue", self.queue_us / 1000),
            ("instance", max(0, self.instance_us - self.runtime_us) / 1000),
            ("runtime", self.runtime_us / 1000),
            ("import", self.import_us / 1000),
            ("init", max(0, self.init_us - self.import_us) / 1000),
            ("handler", self.handler_us / 1000),
        )


class CallResult(Struct):
    """A finished call. Exactly one of ``output`` (checked JSON bytes) and ``error`` is set."""

    request_id: str
    version: int
    output: bytes | None
    error: FunctionError | None
    duration_us: int
    cold_start: bool
    instance_id: str
    source: StartSource = "warm"
    phases: Phases = field(default_factory=Phases)
    stdout: str = ""
    stderr: str = ""
    deduplicated: bool = False
    """the stored answer of an earlier call with the same idempotency key"""
    loaded: bool = True
    """False: the function's code did not load, so its handler never ran"""


class AsyncOptions(Struct, frozen=True):
    """How a call that nobody waits for is to be run; None means as the function's ``async_policy`` says."""

    max_attempts: int | None = None
    backoff_base_ms: int | None = None
    backoff_max_ms: int | None = None
    max_age_s: int | None = None
    delay_s: float = 0.0
    idempotency_key: str | None = None
    idempotency_ttl_s: int = 86_400
    priority: Priority = "normal"
    concurrency_key: str | None = None
    concurrency_limit: int = 1
    """jobs with this key that may run at once"""
    debounce_key: str | None = None
    debounce_s: float = 1.0
    """a job that nobody has taken is changed by the next one with its key, and put off by so much"""
    debounce_max_s: float | None = None
    """but never longer than this after the first"""
    callback_url: str | None = None
    keep_s: int | None = None


class Accepted(Struct, frozen=True):
    """A committed call. ``replayed``: an earlier one with the same idempotency key stands for it."""

    invocation_id: str
    status: str
    replayed: bool = False
