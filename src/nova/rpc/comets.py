"""All comets behind one Invoker: whom a call goes to, and what may be sent again elsewhere.

A call is sent again, twice at most, only when it certainly did not begin or carries an idempotency key. A comet that refuses a
connection gets nothing for a second, one that fails again and again is left out for longer each time. Placing a call reads
no database.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import structlog
from starlette.types import Message, Receive, Send
from starlette.types import Scope as AsgiScope

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.call import TAKEN_OVER, Accepted, AsyncOptions, CallRequest, CallResult
from nova.domain.identity import Scope
from nova.domain.node import NodeReport
from nova.domain.ports import Warmth
from nova.domain.stream import Sink
from nova.errors import NovaError
from nova.rpc.failures import delivered, out_of_time, remote_failure
from nova.rpc.placement import Key, Placement, key_of
from nova.rpc.roster import Comet, Connection, Roster, Standing
from nova.rpc.streams import Once
from nova.standstill import Standstill, stood_still
from nova.store.nodes import NodeStore
from nova.work.runner import Notifications

log = structlog.get_logger(__name__)
T = TypeVar("T")
PATIENCE_S = 3.0
"""While nobody takes calls, a call waits so long for somebody: one comet may just be handing over to its successor."""
REFUSED_S = 1.0
FAILURES = 5
"""in a row make an outlier"""
MAX_EJECTED_S = 30.0
_LAST_TRY = (False, False, True)
_GONE = frozenset({"dependency_unavailable", "draining"})
_SHED = frozenset({"queue_full", "queue_timeout", "capacity"})
_BROKEN = frozenset({"dependency_unavailable", "instance_lost", "internal", "timeout"})


class Comets:
    """Implements the ports Invoker, Streamer, Acceptor and Scaler over every comet there is; a service.

    ``addresses`` names them; with none they are found in ``cluster_nodes`` through ``nodes`` and ``notifications``. ``name`` and
    ``zone`` (a node label) say where this process is; ``placement`` chooses among them.
    """

    def __init__(
        self,
        connect: Callable[[str], Connection],
        *,
        addresses: Sequence[str] = (),
        nodes: NodeStore | None = None,
        notifications: Notifications | None = None,
        name: str = "",
        zone: str = "",
        clock: Clock = SYSTEM_CLOCK,
        placement: Placement[Comet] | None = None,
    ) -> None:
        self._roster = Roster(
            connect, addresses, nodes, notifications, name=name, zone=zone, clock=clock, placement=placement
        )
        self._placement = self._roster.placement
        self._clock = clock
        self._standstill = Standstill(clock)
        self._wishes: dict[tuple[str, Scope, str], int] = {}
        """instances that each comet was last asked to keep ready"""

    async def start(self) -> None:
        """Begin to connect. Comets that are not there yet are no error: calls wait a moment for them."""
        await self._standstill.start()
        await self._roster.start()

    async def close(self) -> None:
        """Calls still on their way end as ``instance_lost``: close after whoever makes calls."""
        await self._roster.close()
        await self._standstill.close()

    # The ports

    async def invoke(self, call: CallRequest) -> CallResult:
        """Run one call on the best comet. Raises NovaError; see :class:`~nova.domain.ports.Invoker`."""
        return await self._place(
            key_of(call), call, lambda comet: comet.connection.invoke(call), repeatable=call.idempotency_key is not None
        )

    async def stream(self, call: CallRequest, sink: Sink) -> CallResult:
        """The same for a call that answers piece by piece; see :class:`~nova.domain.ports.Streamer`."""
        once = Once(sink)

        async def work(comet: Comet) -> CallResult:
            try:
                return await comet.connection.stream(call, once)
            except NovaError as error:
                raise once.judge(error) from None

        return await self._place(key_of(call), call, work, repeatable=False)

    async def accept(self, call: CallRequest, options: AsyncOptions) -> Accepted:
        """Let some comet commit the call to the queue; see :class:`~nova.domain.ports.Acceptor`."""
        repeatable = options.idempotency_key is not None
        return await self._place(
            None, call, lambda comet: comet.connection.accept(call, options), repeatable=repeatable
        )

    async def scale(self, scope: Scope, function: str, replicas: int, *, ttl_s: float) -> int:
        """Ask every comet for its share of ``replicas``; what they have together.

        Raises NovaError when nobody did its part: what the last one refused with, or ``dependency_unavailable``.
        """
        steady = [comet for comet in self._placement.usable if not comet.doubtful]
        failure = _nobody() if replicas and not steady else None
        total = done = 0
        key = scope.tenant, scope.namespace, function
        for comet, share in self._placement.shares(steady, key, replicas).items():
            wish = (comet.address, scope, function)
            if not share and wish not in self._wishes:
                continue
            try:
                total += await comet.connection.scale(scope, function, share, ttl_s=ttl_s)
            except NovaError as error:
                failure = error
                log.warning("a comet did not scale", address=comet.address, function=function, error=error.detail)
                continue
            done += 1
            self._wishes[wish] = share
            if not share:
                del self._wishes[wish]
        if failure is not None and not done:
            raise failure
        return total

    async def prewarm(
        self, scope: Scope, function: str, replicas: int, *, qualifier: str | None, ttl_s: float
    ) -> Warmth:
        """Ask every comet for its share of ``replicas``; what they have together. Raises what the first of them refuses with,
        or ``dependency_unavailable``."""
        steady = [comet for comet in self._placement.usable if not comet.doubtful]
        if not steady:
            raise _nobody()
        shares = self._placement.shares(steady, (scope.tenant, scope.namespace, function), replicas)
        asked = [
            comet.connection.prewarm(scope, function, share, qualifier=qualifier, ttl_s=ttl_s)
            for comet, share in shares.items()
        ]
        answers = await asyncio.gather(*asked)
        return Warmth(sum(answer.ready for answer in answers), sum(answer.starting for answer in answers))

    async def evict(self, scope: Scope, function: str) -> int:
        """Drain the function's instances on every comet; how many they are. Comets that do not answer are passed over: a
        change of the function reaches them through the database as well."""
        asked = [comet.connection.evict(scope, function) for comet in self._roster if comet.speaks]
        total = 0
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, int):
                total += answer
            elif not isinstance(answer, NovaError):
                raise answer
        return total

    async def proxy(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        """An ASGI application: the data-plane routes of some comet. Raises NovaError while no answer has begun."""
        until = self._clock.monotonic() + PATIENCE_S
        exchange = _Exchange(receive, send)
        for last in _LAST_TRY:
            comet = min(self._placement.usable, key=_least_streams, default=None) or await self._first(until)
            comet.streams += 1
            try:
                await comet.connection.proxy(scope, exchange.receive, exchange.send)
            except NovaError as error:
                if not self._gone(comet, error) or exchange.touched or last:
                    raise
            else:
                return
            finally:
                comet.streams -= 1

    async def renew(self, address: str) -> None:
        """A comet says that it has been started again."""
        await self._roster.renew(address)

    # What is known of them

    def standing(self) -> Standing:
        """down: nobody takes calls. degraded: somebody does not, though no operator took him out."""
        return self._roster.standing()

    def connections(self) -> dict[str, Connection]:
        """The comets that speak, by the address they are reached at."""
        return {comet.address: comet.connection for comet in self._roster if comet.speaks}

    def reports(self) -> list[NodeReport]:
        """What each comet last said, of those that speak."""
        return [comet.report for comet in self._roster if comet.speaks and comet.report is not None]

    # Placing

    async def _place(
        self, key: Key | None, call: CallRequest, work: Callable[[Comet], Awaitable[T]], *, repeatable: bool
    ) -> T:
        """Do ``work`` on the best comet; on another one when it may be done again."""
        tried: list[Comet] = []
        refused: NovaError | None = None
        for last in _LAST_TRY:
            comet = self._placement.choose(key, tried)
            if comet is None:
                if refused is not None and tried:
                    raise refused
                comet = await self._first(self._clock.monotonic() + PATIENCE_S, key, call)
            if call.trigger in TAKEN_OVER and self._standstill.doubts(call.received):
                raise stood_still()
            warm = False
            comet.begin(key)
            try:
                answer = await work(comet)
            except NovaError as error:
                if not self._again(comet, error, tried, repeatable=repeatable) or last:
                    raise
                refused = error
            else:
                comet.failures = comet.ejections = 0
                warm = getattr(answer, "error", None) is None
                return answer
            finally:
                comet.end(key, warm=warm)
        raise refused or _nobody()

    def _again(self, comet: Comet, error: NovaError, tried: list[Comet], *, repeatable: bool) -> bool:
        """May the call be sent elsewhere after this? Also draws the conclusions for the comet."""
        if self._gone(comet, error):
            return True
        tried.append(comet)
        began = delivered(error)
        if began == "no":
            return error.code in _SHED
        if began == "yes" or error.code not in _BROKEN:
            comet.failures = 0
            return False
        self._failed(comet)
        return repeatable and error.code != "timeout"

    def _gone(self, comet: Comet, error: NovaError) -> bool:
        """Did the comet take no call at all? Then it is left out for a moment."""
        if error.code not in _GONE or delivered(error) != "no":
            return False
        self._roster.leave_out(comet, REFUSED_S)
        return True

    def _failed(self, comet: Comet) -> None:
        comet.failures += 1
        if comet.failures >= FAILURES and self._placement.alternatives:
            seconds = min(MAX_EJECTED_S, 2.0**comet.ejections)
            comet.ejections += 1
            log.warning("a comet fails again and again", address=comet.address, left_out_s=seconds)
            self._roster.leave_out(comet, seconds)

    async def _first(self, until: float, key: Key | None = None, call: CallRequest | None = None) -> Comet:
        """The best comet as soon as there is one, by ``until`` (monotonic) and within the caller's time.

        Raises ``dependency_unavailable`` or ``timeout``.
        """
        own = float("inf")
        if call is not None and call.timeout_ms is not None:
            own = call.received + call.timeout_ms / 1000
        while True:
            comet = self._placement.choose(key)
            if comet is not None:
                return comet
            try:
                async with asyncio.timeout(min(own, until) - self._clock.monotonic()):
                    await self._roster.change()
            except TimeoutError:
                raise (out_of_time("no") if own < until else _nobody()) from None


class _Exchange:
    """Knows whether a request has been touched: one that has cannot be sent to another comet."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self.touched = False

    async def receive(self) -> Message:
        self.touched = True
        return await self._receive()

    async def send(self, message: Message) -> None:
        self.touched = True
        await self._send(message)


def _least_streams(comet: Comet) -> tuple[bool, int, int, str]:
    return comet.doubtful, comet.streams, comet.inflight, comet.address


def _nobody() -> NovaError:
    return remote_failure("dependency_unavailable", "no comet takes calls at the moment", "no", retry_after_s=1)
