"""Handlers of rollouts and shadow policies. A rollout's steps are taken by a duty (:mod:`nova.scheduling.rollouts`)."""

from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

from nova.api import aliases as alias_api
from nova.api import rollouts as api
from nova.api.table import Empty
from nova.control.aliases import sticky_of
from nova.control.versions import require_built
from nova.domain.identity import Scope
from nova.domain.rollout import Arm, Guard, Rollout, RolloutPolicy, Step
from nova.domain.shadow import Shadow
from nova.errors import NovaError, invalid, not_found
from nova.http.handler import Answer, Req, handles
from nova.ids import new_id
from nova.security import access
from nova.store.db import Connection
from nova.store.functions import FunctionRecord, announce
from nova.store.rollouts import RolloutStore, StepCounts, single_version
from nova.store.shadows import ShadowPolicy, ShadowRecord, ShadowStore

_UNSET = {"enabled": False}
Change = Callable[[Connection, FunctionRecord, Rollout], Coroutine[Any, Any, None]]


class RolloutHandlers:
    """Orders act in their own transaction and reach every process with it: they wait for no leader."""

    def __init__(self, rollouts: RolloutStore) -> None:
        self._rollouts = rollouts
        self._functions = rollouts.functions
        self._counts = StepCounts(rollouts)

    @handles("rollout.put")
    async def put(self, req: Req[api.RolloutSpec, Empty]) -> Answer:
        spec = req.body
        async with self._locked(req) as (conn, function):
            current = await self._rollouts.get(function.id, conn)
            if current is not None and current.active:
                raise NovaError("invalid_state", "a rollout is under way: promote or abort it first")
            if single_version(function, spec.alias) == spec.to_version:
                raise invalid("to_version", f"{spec.alias} leads there already")
            version = await self._rollouts.versions.version(function.id, spec.to_version, conn)
            if version is None:
                raise invalid("to_version", f"version {spec.to_version} does not exist")
            require_built(version)
            await self._rollouts.start(conn, function, spec.alias, spec.to_version, _policy(spec), req.identity.subject)
            started = await self._current(function, conn)
        return Answer(_view(started))

    @handles("rollout.get")
    async def get(self, req: Req[None, Empty]) -> Answer:
        function = await self._function(req.scope, req.params["name"])
        rollout = await self._rollouts.get(function.id)
        return Answer(_UNSET if rollout is None else _view(rollout))

    @handles("rollout.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._locked(req) as (conn, function):
            if not await self._rollouts.delete(conn, function):
                raise not_found("rollout of", function.name)

    @handles("rollout.status")
    async def status(self, req: Req[None, Empty]) -> api.RolloutStatus:
        function = await self._function(req.scope, req.params["name"])
        return await self._status(function, await self._current(function))

    @handles("rollout.pause")
    async def pause(self, req: Req[None, Empty]) -> api.RolloutStatus:
        async def change(conn: Connection, function: FunctionRecord, rollout: Rollout) -> None:
            if rollout.status != "running":
                raise NovaError("invalid_state", "the rollout stands still already")
            await self._rollouts.pause(conn, function, rollout, "", req.identity.subject)

        return await self._ordered(req, change)

    @handles("rollout.resume")
    async def resume(self, req: Req[None, Empty]) -> api.RolloutStatus:
        async def change(conn: Connection, function: FunctionRecord, rollout: Rollout) -> None:
            if rollout.status != "paused":
                raise NovaError("invalid_state", "the rollout runs already")
            await self._rollouts.step(conn, function, rollout, rollout.step, "resume", "", req.identity.subject)

        return await self._ordered(req, change)

    @handles("rollout.promote")
    async def promote(self, req: Req[None, Empty]) -> api.RolloutStatus:
        async def change(conn: Connection, function: FunctionRecord, rollout: Rollout) -> None:
            if single_version(function, rollout.alias) != rollout.baseline:
                raise NovaError("invalid_state", f"{rollout.alias} leads elsewhere than when the rollout began")
            await self._rollouts.promote(conn, function, rollout, "", req.identity.subject)

        return await self._ordered(req, change)

    @handles("rollout.abort")
    async def abort(self, req: Req[None, Empty]) -> api.RolloutStatus:
        async def change(conn: Connection, function: FunctionRecord, rollout: Rollout) -> None:
            await self._rollouts.end(conn, function, rollout, "aborted", "", req.identity.subject)

        return await self._ordered(req, change)

    async def _ordered(self, req: Req[None, Empty], change: Change) -> api.RolloutStatus:
        """Change a rollout that is under way; ``invalid_state`` for one that has ended."""
        async with self._locked(req) as (conn, function):
            rollout = await self._current(function, conn)
            if not rollout.active:
                raise NovaError("invalid_state", f"the rollout has ended: it was {rollout.status.replace('_', ' ')}")
            await change(conn, function, rollout)
            changed = await self._current(function, conn)
        return await self._status(function, changed)

    @asynccontextmanager
    async def _locked(self, req: Req[Any, Empty]) -> AsyncIterator[tuple[Connection, FunctionRecord]]:
        async with self._rollouts.db.transaction() as conn:
            function = await self._functions.lock(conn, req.scope, req.params["name"])
            if function is None:
                raise not_found("function", req.params["name"])
            yield conn, function

    async def _function(self, scope: Scope, name: str) -> FunctionRecord:
        function = await self._functions.lookup(scope, name)
        if function is None:
            raise not_found("function", name)
        return function

    async def _current(self, function: FunctionRecord, conn: Connection | None = None) -> Rollout:
        rollout = await self._rollouts.get(function.id, conn)
        if rollout is None:
            raise not_found("rollout of", function.name)
        return rollout

    async def _status(self, function: FunctionRecord, rollout: Rollout) -> api.RolloutStatus:
        target, baseline = await self._counts.arms(function.id, rollout)
        return api.RolloutStatus(
            status=rollout.status,
            alias=rollout.alias,
            step=rollout.step + 1,
            steps=len(rollout.policy.steps),
            percent=rollout.weight / 100,
            held_s=round(rollout.held_s, 3),
            hold_s=rollout.policy.steps[rollout.step].hold_s,
            baseline=_arm(rollout.baseline, 100 - rollout.weight / 100, baseline),
            target=_arm(rollout.target, rollout.weight / 100, target),
            history=[api.RolloutDecision.model_validate(entry) for entry in rollout.history],
        )


class ShadowHandlers:
    def __init__(self, rollouts: RolloutStore, shadows: ShadowStore) -> None:
        self._db = rollouts.db
        self._functions = rollouts.functions
        self._versions = rollouts.versions
        self._shadows = shadows

    @handles("shadow.put")
    async def put(self, req: Req[api.ShadowSpec, Empty]) -> api.ShadowPolicy:
        spec = req.body
        shadow = Shadow(
            new_id(), spec.target, round(spec.percent * 100), spec.compare, tuple(spec.ignore), spec.max_inflight
        )
        async with self._db.transaction() as conn:
            function = await self._functions.lock(conn, req.scope, req.params["name"])
            if function is None:
                raise not_found("function", req.params["name"])
            await self._require_target(conn, function, spec.target)
            await self._shadows.put(conn, function.id, ShadowPolicy(shadow, spec.enabled), req.identity.subject)
            await announce(conn, req.scope, function.name, await self._functions.touch(conn, function.id))
        return _shadow_view(await self._record(function))

    @handles("shadow.get")
    async def get(self, req: Req[None, Empty]) -> Answer:
        record = await self._shadows.get((await self._function(req)).id)
        return Answer(_UNSET if record is None else _shadow_view(record))

    @handles("shadow.delete")
    async def delete(self, req: Req[None, Empty]) -> None:
        async with self._db.transaction() as conn:
            function = await self._functions.lock(conn, req.scope, req.params["name"])
            if function is None:
                raise not_found("function", req.params["name"])
            if not await self._shadows.delete(conn, function.id):
                raise not_found("shadow policy of", function.name)
            await announce(conn, req.scope, function.name, await self._functions.touch(conn, function.id))

    @handles("shadow.report")
    async def report(self, req: Req[None, Empty]) -> api.ShadowReport:
        function = await self._function(req)
        record = await self._record(function)
        tally = record.tally
        compared = tally.matched + tally.differed
        primary, shadow = [round(ms / compared, 3) if compared else None for ms in (tally.primary_ms, tally.shadow_ms)]
        samples = [api.ShadowSample.model_validate(sample) for sample in tally.samples]
        if not access.allowed(req.identity, "payload:read", function.name):
            hidden = [[{"path": found["path"]} for found in sample.differences] for sample in samples]
            samples = [s.model_copy(update={"differences": paths}) for s, paths in zip(samples, hidden, strict=True)]
        return api.ShadowReport(
            enabled=record.policy.enabled,
            target=record.policy.shadow.target,
            since=record.created_at,
            compared=compared,
            matched=tally.matched,
            differed=tally.differed,
            errors=tally.errors,
            skipped=tally.skipped,
            uncompared=tally.uncompared,
            primary_ms=primary,
            shadow_ms=shadow,
            difference_ms=None if primary is None or shadow is None else round(shadow - primary, 3),
            samples=samples,
        )

    async def _require_target(self, conn: Connection, function: FunctionRecord, target: str) -> None:
        if target.isdigit():
            if await self._versions.version(function.id, int(target), conn) is None:
                raise invalid("target", f"version {target} does not exist")
        elif target not in function.aliases and target not in ("live", "$LATEST"):
            raise invalid("target", f"alias {target!r} does not exist")

    async def _function(self, req: Req[None, Empty]) -> FunctionRecord:
        function = await self._functions.lookup(req.scope, req.params["name"])
        if function is None:
            raise not_found("function", req.params["name"])
        return function

    async def _record(self, function: FunctionRecord) -> ShadowRecord:
        record = await self._shadows.get(function.id)
        if record is None:
            raise not_found("shadow policy of", function.name)
        return record


def _policy(spec: api.RolloutSpec) -> RolloutPolicy:
    return RolloutPolicy(
        steps=tuple(Step(round(step.percent * 100), step.hold_s) for step in spec.steps),
        guard=Guard(**spec.guard.model_dump()),
        auto_promote=spec.auto_promote,
        auto_rollback=spec.auto_rollback,
        sticky=sticky_of(spec.sticky),
    )


def _view(rollout: Rollout) -> api.Rollout:
    policy = rollout.policy
    guard = policy.guard
    return api.Rollout(
        alias=rollout.alias,
        to_version=rollout.target,
        steps=[api.Step(percent=step.weight / 100, hold_s=step.hold_s) for step in policy.steps],
        guard=api.Guard(
            min_samples=guard.min_samples,
            max_error_rate_pct=guard.max_error_rate_pct,
            max_p95_ms=guard.max_p95_ms,
            vs_baseline_pct=guard.vs_baseline_pct,
        ),
        auto_promote=policy.auto_promote,
        auto_rollback=policy.auto_rollback,
        sticky=alias_api.Sticky(by=policy.sticky.by, name=policy.sticky.name),
        enabled=rollout.active,
        status=rollout.status,
        from_version=rollout.baseline,
        created_by=rollout.created_by,
        created_at=rollout.created_at,
        ended_at=rollout.ended_at,
    )


def _arm(version: int, percent: float, arm: Arm) -> api.Arm:
    p95 = None if arm.p95_ms is None else round(arm.p95_ms, 3)
    return api.Arm(
        version=version,
        percent=round(percent, 2),
        calls=arm.calls,
        errors=arm.errors,
        error_pct=round(arm.error_pct, 2),
        p95_ms=p95,
    )


def _shadow_view(record: ShadowRecord) -> api.ShadowPolicy:
    shadow = record.policy.shadow
    return api.ShadowPolicy(
        enabled=record.policy.enabled,
        target=shadow.target,
        percent=shadow.weight / 100,
        compare=shadow.compare,
        ignore=list(shadow.ignore),
        max_inflight=shadow.max_inflight,
        created_by=record.created_by,
        created_at=record.created_at,
    )
