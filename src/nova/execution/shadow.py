"""Shadow traffic: after a call has ended, a copy of it runs another version in instances of its own.

Copies begin where a call's end is recorded, so they are on no call's way; a function without a shadow policy pays for one
look at its snapshot. Copies leave no call record and count in no series of the function: what they show is in the policy's
report. Nothing that becomes of a copy reaches anybody but the report.
"""

import asyncio
from collections import Counter
from collections.abc import Mapping
from typing import Any

import structlog

from nova import payload
from nova.clock import Clock, rfc3339
from nova.domain.alias import WHOLE, sampled
from nova.domain.call import CallRequest, CallResult
from nova.domain.documents import ABSENT, Difference, differences
from nova.domain.function import Capture, FunctionSnapshot
from nova.domain.identity import Scope
from nova.domain.ports import Invoker
from nova.domain.shadow import MAX_SAMPLES, Shadow
from nova.errors import NovaError
from nova.execution.executor import Recorder, Refused
from nova.ids import new_id
from nova.logcontext import CALL
from nova.service import Background
from nova.store.shadows import ShadowStore, Tally

log = structlog.get_logger(__name__)
FLUSH_S = 1.0
_SHOWN = 20
"""Places of one difference that a sample names."""
_MAX_VALUE = 1024
"""Bytes of a value that a sample shows."""
_MAX_PATH = 256
_ASIDE = 65_536
"""Bytes of two outputs above which they are compared in a thread: the event loop has calls to serve."""
_STREAMED = b'{"streamed":{"pieces":'
_NOT_COPIED = frozenset({"Nova.Cancelled", "Nova.InstanceLost"})
"""Ends that say nothing about the version."""


class Shadows:
    """Starts copies, compares how they end, adds that to the reports each :data:`FLUSH_S` seconds."""

    def __init__(self, store: ShadowStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._invoker: Invoker | None = None
        self._ended: dict[str, CallResult] = {}
        self._running: Counter[str] = Counter()
        self._tallies: dict[tuple[str, str], Tally] = {}
        self._tasks = Background("shadow")
        self._copies = Background("shadow.copies")

    def run_on(self, invoker: Invoker) -> None:
        """Copies go here: the executor itself, without keys and traces around it."""
        self._invoker = invoker

    async def start(self) -> None:
        self._tasks.spawn("flush", self._run())

    async def close(self) -> None:
        await self._copies.close()
        await self._tasks.close()
        await self._flush()

    def recorder(self, record: Recorder) -> Recorder:
        """What the executor is to call for each finished call instead of ``record``."""

        def recording(call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
            if call.trigger == "shadow":
                self._ended[call.request_id] = result
                return
            record(call, snapshot, result)
            if snapshot.shadow is not None:
                self._offer(snapshot.shadow, call, snapshot, result)

        return recording

    def refusals(self, refused: Refused) -> Refused:
        """The same for calls that were turned away."""

        def refusing(scope: Scope, function: str, code: str) -> None:
            call = CALL.get()
            if not isinstance(call, CallRequest) or call.trigger != "shadow":
                refused(scope, function, code)

        return refusing

    def _offer(self, shadow: Shadow, call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
        """Copy the call, if it is one of those to be copied. Never raises, never waits."""
        if shadow.target == str(snapshot.version) or (result.error is not None and result.error.type in _NOT_COPIED):
            return
        if shadow.weight < WHOLE and not sampled(shadow.weight, f"{shadow.id}\0{call.request_id}"):
            return
        if self._running[shadow.id] >= shadow.max_inflight:
            self._tally(snapshot, shadow).skipped += 1
            return
        self._running[shadow.id] += 1
        self._copies.spawn("copy", self._copy(shadow, call, snapshot, result))

    async def _copy(self, shadow: Shadow, call: CallRequest, snapshot: FunctionSnapshot, result: CallResult) -> None:
        copy = CallRequest(
            new_id(), call.scope, call.function, call.payload, call.identity, self._clock.monotonic(), shadow.target
        )
        copy.trigger = "shadow"
        copy.sticky_key = call.sticky_key
        copy.headers = call.headers
        copy.source_address = call.source_address
        copy.caller = f"shadow:{call.request_id}"
        copy.chain = call.chain
        try:
            ended = await self._end_of(copy)
            if ended is None:
                self._tally(snapshot, shadow).errors += 1
            elif ended.version != result.version:
                await self._compare(shadow, snapshot, result, ended)
        except NovaError as error:  # the server goes down
            log.debug("a copy was not run", function=call.function, error=error.detail)
        finally:
            self._running[shadow.id] -= 1
            if not self._running[shadow.id]:
                del self._running[shadow.id]
            self._ended.pop(copy.request_id, None)

    async def _end_of(self, copy: CallRequest) -> CallResult | None:
        """How the copy ended; None when the platform could not run it. A timeout is an end too."""
        assert self._invoker is not None
        try:
            return await self._invoker.invoke(copy)
        except NovaError as refusal:
            if refusal.code == "draining":
                raise
            ended = self._ended.get(copy.request_id)
            lost = ended is None or ended.error is None or ended.error.type in _NOT_COPIED
            return None if lost else ended

    async def _compare(self, shadow: Shadow, snapshot: FunctionSnapshot, result: CallResult, copy: CallResult) -> None:
        tally = self._tally(snapshot, shadow)
        if shadow.compare == "none":
            tally.uncompared += 1
            return
        status, found = _status(result), list[Difference]()
        same = status == _status(copy)
        before, after = result.output, copy.output
        if same and shadow.compare == "output" and before is not None and after is not None and not is_streamed(before):
            found = await _differences(before, after, shadow.ignore)
            same = not found
        tally = self._tally(snapshot, shadow)  # it may have been written away meanwhile
        tally.primary_ms += result.phases.handler_us / 1000
        tally.shadow_ms += copy.phases.handler_us / 1000
        if same:
            tally.matched += 1
            return
        tally.differed += 1
        sample = {
            "request_id": result.request_id,
            "at": rfc3339(self._clock.now()),
            "version": result.version,
            "shadow_version": copy.version,
            "status": _text(status),
            "shadow_status": _text(_status(copy)),
            "differences": [_shown(difference, snapshot.capture) for difference in found[:_SHOWN]],
        }
        tally.samples = [sample, *tally.samples[: MAX_SAMPLES - 1]]

    def _tally(self, snapshot: FunctionSnapshot, shadow: Shadow) -> Tally:
        return self._tallies.setdefault((snapshot.function_id, shadow.id), Tally())

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(FLUSH_S)
            await self._flush()

    async def _flush(self) -> None:
        """What cannot be written is lost: it is a report, and the database has been away."""
        if not self._tallies:
            return
        tallies, self._tallies = self._tallies, {}
        try:
            await self._store.count([(function, shadow, tally) for (function, shadow), tally in tallies.items()])
        except NovaError as error:
            log.warning("reports of shadow traffic could not be written", error=error.detail)


def is_streamed(output: bytes) -> bool:
    """Does this stand for a stream (:mod:`nova.execution.streams`), whose pieces nobody kept?"""
    return output.startswith(_STREAMED)


def _status(result: CallResult) -> str:
    return "success" if result.error is None else result.error.type


async def _differences(before: bytes, after: bytes, ignore: tuple[str, ...]) -> list[Difference]:
    if before == after:
        return []

    def compare() -> list[Difference]:
        try:
            return differences(payload.decode(before), payload.decode(after), ignore=ignore)
        except (ValueError, RecursionError):  # a number that no machine type holds: the texts differ, and that is all
            return [Difference("", ABSENT, ABSENT)]

    return await asyncio.to_thread(compare) if len(before) + len(after) > _ASIDE else compare()


def _shown(difference: Difference, capture: Capture) -> Mapping[str, Any]:
    """A difference as the function's capture policy lets it be kept."""
    shown: dict[str, Any] = {"path": _text(difference.path[:_MAX_PATH])}
    if capture.payloads != "all" or any(_covers(pointer, difference.path) for pointer in capture.redact):
        return shown
    for side, value in (("from", difference.before), ("to", difference.after)):
        if value is not ABSENT and (kept := _kept(value)) is not None:
            shown[side] = kept[0]
    return shown


def _covers(pointer: str, path: str) -> bool:
    """Does either lie within the other?"""
    return f"{path}/".startswith(f"{pointer}/") or f"{pointer}/".startswith(f"{path}/")


def _kept(value: Any) -> tuple[Any] | None:
    """The value if it is small and PostgreSQL can hold it."""
    try:
        text = payload.encode(value)
    except (ValueError, TypeError):
        return None
    return None if len(text) > _MAX_VALUE or b"\\u0000" in text else (value,)


def _text(text: str) -> str:
    """Without what PostgreSQL cannot hold."""
    return text.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
