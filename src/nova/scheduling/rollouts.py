"""The duty that moves rollouts: once a second it looks at how both versions of each do, and takes the next step.

Everything it knows is in PostgreSQL: the step with the moment and the position among the call records at which it began. What
a leader has counted of a step it keeps in memory only, so that each look reads what is new; the next leader counts the step
once from its beginning and goes on.
"""

import structlog

from nova.clock import Clock
from nova.domain.rollout import Decision, decide
from nova.errors import NovaError
from nova.scheduling.replicas import Fence
from nova.store.rollouts import RolloutStore, Running, StepCounts

log = structlog.get_logger(__name__)
INTERVAL_S = 1.0
_ACTORS = {"advance": "steps", "promote": "steps", "rollback": "guard", "pause": "guard"}


class Rollouts:
    """:meth:`lead` is the body of the duty."""

    def __init__(self, store: RolloutStore, clock: Clock, *, interval_s: float = INTERVAL_S) -> None:
        self._store = store
        self._clock = clock
        self._interval_s = interval_s
        self._counts = StepCounts(store)

    async def lead(self, fence: Fence) -> None:
        """Runs until it is cancelled or another process leads. Raises ``dependency_unavailable``."""
        self._counts.forget()
        while fence.held:
            for one in await self._store.running():
                await self._look(fence, one)
            await self._clock.sleep(self._interval_s)

    async def _look(self, fence: Fence, running: Running) -> None:
        """One rollout that cannot be moved keeps no other from it."""
        try:
            decision = await self._decide(running)
            if decision is not None:
                await self._apply(fence, running, decision)
        except NovaError as exc:
            if exc.status >= 500:
                raise
            log.warning("a rollout cannot be moved", function=running.function, error=str(exc))

    async def _decide(self, running: Running) -> Decision | None:
        rollout = running.rollout
        if rollout.moved:
            return Decision("rollback", f"{rollout.alias} leads elsewhere by now")
        return decide(rollout, *await self._counts.arms(running.function_id, rollout))

    async def _apply(self, fence: Fence, running: Running, decision: Decision) -> None:
        """Unless somebody was faster."""
        store, seen = self._store, running.rollout
        async with store.db.transaction() as conn:
            await fence.check(conn)
            function = await store.functions.lock(conn, running.scope, running.function)
            rollout = await store.get(running.function_id, conn)
            if function is None or rollout is None or rollout.status != "running":
                return
            if (rollout.id, rollout.step, rollout.step_seq) != (seen.id, seen.step, seen.step_seq):
                return
            reason, actor = decision.reason, _ACTORS[decision.action]
            if decision.action == "advance":
                await store.step(conn, function, rollout, rollout.step + 1, "advance", reason, actor)
            elif decision.action == "promote":
                await store.promote(conn, function, rollout, reason, actor)
            elif decision.action == "pause":
                await store.pause(conn, function, rollout, reason, actor)
            else:
                await store.end(conn, function, rollout, "aborted" if seen.moved else "rolled_back", reason, actor)
        log.info("rollout moved", function=running.function, action=decision.action, reason=reason)
