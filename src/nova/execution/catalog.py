"""What every function is, from memory: the one place where a name and a qualifier become a snapshot.

An entry is dropped when PostgreSQL says that its function changed. While the listener has no connection, the generations of
everything cached are compared once a second instead. A function that is not there is never cached: whoever was told
that a function exists can call it in the next moment.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from nova.clock import SYSTEM_CLOCK, Clock
from nova.domain.alias import NOT_STICKY, WHOLE, Split, Sticky, choose
from nova.domain.call import CallRequest
from nova.domain.function import FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.names import LATEST, LIVE
from nova.domain.rollout import Routing
from nova.errors import NovaError, draining, not_found
from nova.execution.snapshots import SnapshotMaker, record_weight, shadowed, weight
from nova.payload import decode
from nova.service import Background
from nova.store.functions import FunctionRecord
from nova.store.listen import Channel
from nova.store.versions import VersionRecord

log = structlog.get_logger(__name__)

RECHECK_S = 1.0
_POLL_BUILD_S = 1.0
"""A call that waits for a build looks again this often, should a notification be lost."""

Name = tuple[str, str, str]
"""tenant, namespace, function"""


class Functions(Protocol):
    async def lookup(self, scope: Scope, name: str) -> FunctionRecord | None: ...

    async def generations(self, function_ids: Sequence[str]) -> dict[str, int]: ...


class Versions(Protocol):
    async def version(self, function_id: str, version: int) -> VersionRecord | None: ...


class Notifications(Protocol):
    @property
    def connected(self) -> bool: ...

    def on(self, channel: str, callback: Callable[[str], None]) -> None: ...

    def on_reconnect(self, callback: Callable[[], None]) -> None: ...


class Entry:
    """One function as it was at ``record.generation``, with the snapshots of the versions that were asked for.

    ``snapshots`` has what runs copies of calls (shadow traffic) under the negative number of its version. ``live`` is there
    only while every call without a qualifier runs the same version.
    """

    __slots__ = ("changed", "live", "record", "rollout", "shadows", "snapshots", "weight")

    def __init__(self, record: FunctionRecord) -> None:
        self.record = record
        self.snapshots: dict[int, FunctionSnapshot] = {}
        self.live: FunctionSnapshot | None = None
        self.rollout = _in_force(record)
        self.shadows = self._shadow_versions()
        self.changed = asyncio.Event()
        self.weight = record_weight(record)

    def routed(self) -> set[int]:
        """The versions that calls without a number may run, and those that copies of calls may."""
        record = self.record
        numbers = {version for alias in record.aliases.values() for version in alias.versions} | self.shadows
        if self.rollout is not None:
            numbers.add(self.rollout.target)
        return numbers | {version for version in (record.live_version, record.latest_built) if version is not None}

    def target(self, call: CallRequest) -> int:
        """The version this call is for; of an alias with several, one is drawn. Raises ``not_found``."""
        record, qualifier = self.record, call.qualifier
        if qualifier is None or qualifier == LIVE:
            if self.rollout is not None and self.rollout.alias == LIVE:
                return self._drawn(call, LIVE, self.rollout.split, self.rollout.sticky)
            return record.live_version or record.head_version
        if qualifier == LATEST:
            return record.latest_built or record.head_version
        alias = record.aliases.get(qualifier)
        if alias is not None:
            if alias.match and (version := alias.matched(call)) is not None:
                return version
            if self.rollout is not None and self.rollout.alias == qualifier:
                sticky = self.rollout.sticky if self.rollout.sticky != NOT_STICKY else alias.sticky
                return self._drawn(call, qualifier, self.rollout.split, sticky)
            return self._drawn(call, qualifier, alias.split, alias.sticky)
        if qualifier.isascii() and qualifier.isdigit():
            return int(qualifier)
        raise not_found("version or alias", qualifier)

    def _drawn(self, call: CallRequest, qualifier: str, split: Split, sticky: Sticky) -> int:
        """Without anything to hold on to, the call's own id decides: it meets one version however often it is looked up."""
        if len(split) == 1:
            return split[0][0]
        key = sticky.key(call)
        return choose(split, f"{self.record.id}\0{qualifier}\0{call.request_id if key is None else key}")

    def find(self, call: CallRequest) -> FunctionSnapshot | None:
        number = self.target(call)
        return self.snapshots.get(-number if call.trigger == "shadow" else number)

    def keep(self, snapshot: FunctionSnapshot) -> None:
        version = snapshot.version
        self.snapshots[version] = snapshot
        self.weight += weight(snapshot)
        if version in self.shadows:
            self.snapshots[-version] = shadowed(snapshot)
            self.weight += weight(snapshot)
        if version == self.record.live_version and (self.rollout is None or self.rollout.alias != LIVE):
            self.live = snapshot

    def _shadow_versions(self) -> frozenset[int]:
        """The versions that copies of calls may run."""
        record = self.record
        if record.shadow is None:
            return frozenset()
        target = record.shadow.target
        if target.isdigit():
            return frozenset((int(target),))
        alias = record.aliases.get(target)
        numbers: set[int | None] = {record.latest_built} if target == LATEST else {record.live_version}
        if alias is not None:
            numbers = set(alias.versions)
        if self.rollout is not None and self.rollout.alias == target:
            numbers.add(self.rollout.target)
        return frozenset(version for version in numbers if version is not None)


def _in_force(record: FunctionRecord) -> Routing | None:
    """The rollout, while its alias still leads where it led when the rollout began: what a user says later counts more."""
    rollout = record.rollout
    if rollout is None or rollout.weight == 0:
        return None
    if rollout.alias == LIVE:
        return rollout if record.live_version == rollout.baseline else None
    alias = record.aliases.get(rollout.alias)
    return rollout if alias is not None and alias.split == ((rollout.baseline, WHOLE),) else None


class Catalog:
    """Snapshots by name and qualifier. :meth:`peek` answers from memory; :meth:`resolve` asks the store."""

    def __init__(
        self,
        functions: Functions,
        versions: Versions,
        snapshots: SnapshotMaker,
        notifications: Notifications,
        *,
        build_wait: Callable[[], float] = lambda: 60.0,
        max_bytes: int = 64 << 20,
        clock: Clock = SYSTEM_CLOCK,
    ) -> None:
        """``build_wait`` gives the longest wait for a build, in seconds, as it is set now."""
        self._functions = functions
        self._versions = versions
        self._snapshots = snapshots
        self._notifications = notifications
        self._build_wait = build_wait
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: dict[Name, Entry] = {}
        self._bytes = 0
        self._loading: dict[Name, asyncio.Task[Entry | None]] = {}
        self._outdated: set[Name] = set()
        self._closing = False
        self._listeners: list[Callable[[Scope, str], None]] = []
        self._tasks = Background("catalog")
        notifications.on(Channel.FUNCTIONS, self._on_notification)
        notifications.on_reconnect(self._on_reconnect)

    async def start(self) -> None:
        self._tasks.spawn("watch", self._watch())

    async def close(self) -> None:
        """Calls that still wait for a build are refused as ``draining``."""
        self._closing = True
        for entry in self._entries.values():
            entry.changed.set()
        await self._tasks.close()

    def on_change(self, callback: Callable[[Scope, str], None]) -> None:
        """Call ``callback`` on the event loop whenever a function changed or went."""
        self._listeners.append(callback)

    # Calls

    def peek(self, call: CallRequest) -> FunctionSnapshot | None:
        """The snapshot for this call if memory has it. The warm path: no await, no store."""
        scope = call.scope
        entry = self._entries.get((scope.tenant, scope.namespace, call.function))
        if entry is None:
            return None
        if call.qualifier is None and entry.live is not None:
            return entry.live
        return entry.find(call)

    async def resolve(self, call: CallRequest, deadline: float | None = None) -> FunctionSnapshot:
        """The snapshot for this call, waiting for a build in progress until ``deadline`` (monotonic) or ``build_wait``.

        Raises ``not_found``, ``build_pending``, ``build_failed``, ``timeout``, ``runtime_unavailable`` or
        ``dependency_unavailable``.
        """
        limit = self._clock.monotonic() + self._build_wait()
        while True:
            entry = await self.entry(call.scope, call.function)
            if entry is None:
                raise not_found("function", call.function)
            if (snapshot := entry.find(call)) is not None:
                return snapshot
            number = entry.target(call)
            version = await self._versions.version(entry.record.id, number)
            if version is None:
                raise not_found("version", str(number))
            if version.built:
                await self._snapshots.ready(version)
                snapshot = self._keep(entry, version)
                return shadowed(snapshot) if call.trigger == "shadow" else snapshot
            if version.compile_status == "failed":
                raise build_failed(version)
            await self._build_ended(entry, version, limit, deadline)

    async def entry(self, scope: Scope, function: str) -> Entry | None:
        """The function with all its routed versions; one load serves all who ask at the same time."""
        name = (scope.tenant, scope.namespace, function)
        entry = self._entries.get(name)
        if entry is not None:
            return entry
        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.create_task(self._load(name))
            loading.add_done_callback(lambda task: self._loaded(name, task))
        return await asyncio.shield(loading)

    async def _load(self, name: Name) -> Entry | None:
        while True:
            self._outdated.discard(name)
            record = await self._functions.lookup(Scope(name[0], name[1]), name[2])
            if record is None:
                return None
            entry = Entry(record)
            for number in entry.routed():
                version = await self._versions.version(record.id, number)
                if version is not None and version.built:
                    await self._snapshots.ready(version)
                    self._try_keep(entry, version)
            if name not in self._outdated:
                self._entries[name] = entry
                self._bytes += entry.weight
                self._make_room(entry)
                return entry

    def _try_keep(self, entry: Entry, version: VersionRecord) -> None:
        """A version that cannot run on this node must not hide the others; whoever asks for it is told why."""
        with contextlib.suppress(NovaError):
            entry.keep(self._snapshots.make(entry.record, version))

    def _loaded(self, name: Name, task: "asyncio.Task[Entry | None]") -> None:
        del self._loading[name]
        self._outdated.discard(name)
        if not task.cancelled():
            task.exception()  # whoever waits gets it; here it only counts as seen

    def _keep(self, entry: Entry, version: VersionRecord) -> FunctionSnapshot:
        snapshot = self._snapshots.make(entry.record, version)
        if not entry.changed.is_set():
            before = entry.weight
            entry.keep(snapshot)
            self._bytes += entry.weight - before
            self._make_room(entry)
        return snapshot

    def _make_room(self, newest: Entry) -> None:
        """Forget the entries that came first until the rest fits."""
        for name, entry in list(self._entries.items()):
            if self._bytes <= self._max_bytes:
                return
            if entry is not newest:
                self._drop(name)
        if self._bytes > self._max_bytes:
            self._drop((newest.record.scope.tenant, newest.record.scope.namespace, newest.record.name))

    async def _build_ended(self, entry: Entry, version: VersionRecord, limit: float, deadline: float | None) -> None:
        """Wait until the function changed, at most a moment, then look again."""
        if self._closing:
            raise draining()
        now = self._clock.monotonic()
        if deadline is not None and now >= deadline:
            raise NovaError("timeout", f"version {version.version} was still being built when the caller's time was up")
        if now >= limit:
            raise NovaError(
                "build_pending",
                f"version {version.version} is still being built",
                extra={"build_id": version.build_id},
                retry_after_s=5,
            )
        pause = min(_POLL_BUILD_S, limit - now, deadline - now if deadline is not None else limit - now)
        try:
            async with asyncio.timeout(pause):
                await entry.changed.wait()
        except TimeoutError:
            return

    # Changes

    def forget(self, scope: Scope, function: str) -> None:
        """The function changed: the next call asks the store. Whoever listens is told."""
        name = (scope.tenant, scope.namespace, function)
        if name in self._loading:
            self._outdated.add(name)
        self._drop(name)
        for callback in self._listeners:
            callback(scope, function)

    def _drop(self, name: Name) -> None:
        entry = self._entries.pop(name, None)
        if entry is not None:
            self._bytes -= entry.weight
            entry.changed.set()

    def _on_notification(self, payload: str) -> None:
        change = decode(payload)
        self.forget(Scope(change["tenant"], change["namespace"]), change["name"])

    def _on_reconnect(self) -> None:
        self._tasks.spawn("recheck", self._recheck())

    async def _watch(self) -> None:
        while True:
            await self._clock.sleep(RECHECK_S)
            if not self._notifications.connected:
                await self._recheck()

    async def _recheck(self) -> None:
        """Compare the generation of everything cached; keep serving what cannot be compared."""
        known = {entry.record.id: entry for entry in self._entries.values()}
        if not known:
            return
        try:
            current = await self._functions.generations(list(known))
        except NovaError:
            return
        for function_id, entry in known.items():
            if current.get(function_id) != entry.record.generation:
                self.forget(entry.record.scope, entry.record.name)


def build_failed(version: VersionRecord) -> NovaError:
    reason = version.compile_error or "no reason was recorded"
    return NovaError(
        "build_failed",
        f"the build of version {version.version} failed: {reason}",
        extra={"build_id": version.build_id},
    )
