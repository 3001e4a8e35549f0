"""Equal shares of the duties for processes that join: whoever has too few asks, and whoever has most gives one up, drained.

Only while nobody asks is a free duty anybody's. One who asked finds the others holding back for a moment.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from nova.errors import NovaError
from nova.service import Background
from nova.store.db import Database
from nova.store.leases import leaders
from nova.store.listen import Channel, Listener
from nova.work.leader import Duty, Lead, Leases

log = structlog.get_logger(__name__)
LOOK_S = 2.0
"""Between two looks at who has how many; a process that has all of them does not look."""
_ASKS = "subscriptions?"
_YIELD_S = 6.0
"""So long others leave a free duty to whoever asked. No shorter than a duty takes to be drained and claimed, mostly."""
_GIVE_S = 30.0
_POLL_S = 0.05
_UNEVEN = 2
"""A difference of one is as even as it gets."""


class Shared(Duty):
    """``yields``: is it to be left to others just now? ``given``: it ends because another process is to have it."""

    def __init__(self, name: str, lead: Lead, leases: Leases, yields: Callable[[], bool]) -> None:
        super().__init__(name, lead, leases)
        self._yields = yields
        self.given = False

    @property
    def stands_by(self) -> bool:
        return super().stands_by and not self._yields()


class Shares:
    def __init__(self, db: Database, listener: Listener, owner: str, *, look_s: float = LOOK_S) -> None:
        self._db = db
        self._owner = owner
        self._look_s = look_s
        self._duties: Sequence[Shared] = ()
        self._names: frozenset[str] = frozenset()
        self._yield_until = float("-inf")
        self._giving = False
        self._tasks = Background("shares")
        listener.on(Channel.LEASES, self._heard)

    def start(self, duties: Sequence[Shared]) -> None:
        """``duties``: all there are of the kind."""
        self._duties = duties
        self._names = frozenset(duty.name for duty in duties)
        self._tasks.spawn("look", self._look())

    async def close(self) -> None:
        await self._tasks.close()

    def yields(self) -> bool:
        return asyncio.get_running_loop().time() < self._yield_until

    async def _held(self) -> Counter[str]:
        """How many each process has, by its lease owner."""
        return Counter(leader.owner for leader in await leaders(self._db) if leader.duty in self._names)

    def _mine(self) -> list[Shared]:
        return [duty for duty in self._duties if duty.leading]

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self._look_s * random.uniform(0.75, 1.25))
            if len(self._mine()) == len(self._duties) or self._giving:
                continue
            try:
                held = await self._held()
                if max(held.values(), default=0) - held[self._owner] >= _UNEVEN:
                    async with self._db.transaction() as conn:
                        await conn.notify(Channel.LEASES, _ASKS + self._owner)
            except NovaError as error:
                log.warning("shares of subscriptions cannot be looked at", error=error.detail)

    def _heard(self, payload: str) -> None:
        asker = payload.removeprefix(_ASKS)
        if asker in (payload, self._owner) or not self._mine():
            return
        self._yield_until = asyncio.get_running_loop().time() + _YIELD_S
        if not self._giving:
            self._giving = True
            self._tasks.spawn("give", self._give(asker))

    async def _give(self, asker: str) -> None:
        try:
            held = await self._held()
            mine, most = held[self._owner], max(held.values(), default=0)
            first = min((owner for owner, count in held.items() if count == most), default="")
            leading = self._mine()
            if leading and first == self._owner and mine - held[asker] >= _UNEVEN:
                await self._leave(random.choice(leading), asker)
        except NovaError as error:
            log.warning("shares of subscriptions cannot be looked at", error=error.detail)
        finally:
            self._giving = False

    async def _leave(self, duty: Shared, asker: str) -> None:
        """Returns when somebody else may have it, and is seen to have it or not."""
        fence = duty.fence
        if fence is None:
            return
        log.info("gives a duty to another process", duty=duty.name, to=asker)
        duty.given = True
        try:
            duty.stop()
            async with asyncio.timeout(_GIVE_S):
                while duty.fence is fence or fence.held:
                    await asyncio.sleep(_POLL_S)
        except TimeoutError:
            log.warning("a duty takes long to be drained", duty=duty.name)
        finally:
            duty.given = False
        self._yield_until = max(self._yield_until, asyncio.get_running_loop().time() + self._look_s)
