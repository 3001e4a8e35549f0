"""One run in the memory of the process that has it: its machine, the calls under way, and what was heard meanwhile."""

import asyncio
from collections import deque
from datetime import datetime
from typing import Any

import msgspec

from nova import payload
from nova.domain.workflows.definition import Definition
from nova.domain.workflows.machine import Machine
from nova.domain.workflows.state import Call, CallEnd, Ending, Facts, Failure, NodeState, Purpose, Ref, Step
from nova.ids import new_id
from nova.store.db import Row
from nova.store.workflow_begin import NewRun, Parent
from nova.store.workflow_runs import ClaimedRun
from nova.store.workflow_writes import AttemptRow, NewApproval, NewWait, NodeRow, RunWrite

CALLS_AT_ONCE = 64
"""Functions that one run calls at the same time; the others wait for their turn."""


class Live:
    """``seen`` is the last that the run was told and this process has read; ``fence`` that of the claim it belongs to."""

    def __init__(self, claimed: ClaimedRun, owner: str, machine: Machine) -> None:
        self.claimed = claimed
        self.owner = owner
        self.machine = machine
        self.seen = 0
        self.revision = 0
        self.told = claimed.told
        self.heard = asyncio.Event()
        self.ended: deque[tuple[Call, CallEnd]] = deque()
        self.queued: deque[Call] = deque()
        self.tasks: dict[tuple[Ref, Purpose], asyncio.Task[None]] = {}
        self.notified = 0.0
        self._written: set[Ref] = set()
        """nodes whose input has been written"""

    def begin(self, rows: list[Row], now: datetime) -> None:
        self.revision = max((row["revision"] for row in rows), default=0)
        self._written = {
            (self.machine.board.definition.by_path[row["node_key"]], row["item"])
            for row in rows
            if row["input"] is not None and row["node_key"] in self.machine.board.definition.by_path
        }
        ending = self.claimed.ending
        self.machine.begin(
            ((row["node_key"], row["item"], _state(row)) for row in rows),
            self.claimed.status,
            None if ending is None else Ending(ending["status"], Failure.of(ending["error"]), ending["compensate"]),
            now,
        )

    def write(self, step: Step) -> RunWrite:
        """What is to be written of this moment."""
        self.revision += 1
        machine, run = self.machine, self.claimed
        write = RunWrite(run, self.owner, seen=self.seen)
        write.nodes = [self._row(ref) for ref in step.changed]
        write.attempts = [self._attempt(step, number) for number in range(len(step.tried))]
        write.consumed = step.consumed
        write.children = [self._child(start) for start in step.runs]
        write.approvals = [self._approval(ask) for ask in step.asked]
        write.waits = [NewWait(self._path(one.index), one.topic, one.filters) for one in step.listened]
        write.closed = [(self._path(index), status) for index, status in step.answered]
        if step.status or machine.ended is not None:
            write.status = machine.status
            write.ending = machine.ending.encoded() if machine.ending is not None else None
        if machine.ended is not None:
            write.then = "finish"
            write.output = machine.ended.output
            write.error = machine.ended.error.encoded() if machine.ended.error is not None else None
        return write

    def _path(self, index: int) -> str:
        return self.machine.board.definition.nodes[index].path

    def _row(self, ref: Ref) -> NodeRow:
        state = self.machine.board.state(ref)
        first = ref not in self._written and state.input is not None
        if first:
            self._written.add(ref)
        return NodeRow(
            path=self._path(ref[0]),
            item=ref[1],
            status=state.status,
            attempt=state.attempt,
            generation=self.claimed.generation,
            revision=self.revision,
            input=state.input if first else None,
            output=state.output,
            error=None if state.error is None else state.error.encoded(),
            taken=state.taken,
            wake_at=state.wake_at,
            child=state.child,
            completed_no=state.completed_no,
            compensation=state.compensation,
            compensation_error=None if state.compensation_error is None else state.compensation_error.encoded(),
            started_at=state.started_at,
            finished_at=state.finished_at,
        )

    def _attempt(self, step: Step, number: int) -> AttemptRow:
        tried = step.tried[number]
        return AttemptRow(
            path=self._path(tried.ref[0]),
            item=tried.ref[1],
            generation=self.claimed.generation,
            attempt=tried.attempt,
            purpose=tried.purpose,
            request_id=tried.request_id,
            started_at=tried.started_at,
            duration_ms=tried.duration_ms,
            error=None if tried.error is None else tried.error.encoded(),
        )

    def _child(self, start: Any) -> NewRun:
        run = self.claimed
        return NewRun(
            id=start.run_id,
            scope=run.scope,
            workflow=start.workflow,
            payload=start.payload,
            caller=run.caller,
            source=f"run:{run.id}",
            version=start.version,
            timeout_s=start.timeout_s,
            depth=run.depth + 1,
            parent=Parent(run.id, self._path(start.ref[0]), start.ref[1]),
            traceparent=run.traceparent,
            tracestate=run.tracestate,
            queue=True,
        )

    def _approval(self, ask: Any) -> NewApproval:
        spec = self.machine.board.definition.nodes[ask.index].spec.approval
        return NewApproval(
            id=new_id(),
            path=self._path(ask.index),
            title=spec.title,
            form_schema=None if spec.form_schema is None else payload.encode(spec.form_schema),
            approvers=payload.encode(spec.approvers),
            input=ask.input,
            expires_at=ask.expires_at,
        )


def facts_of(run: ClaimedRun, *, max_items: int, max_depth: int) -> Facts:
    return Facts(
        run_id=run.id,
        workflow=run.workflow,
        version=run.version,
        key=run.key,
        generation=run.generation,
        depth=run.depth,
        input=run.input,
        deadline_at=run.deadline_at,
        cancel_on_failure=run.on_failure == "cancel",
        max_items=max_items,
        max_depth=max_depth,
    )


def machine_of(definition: Definition, run: ClaimedRun, *, max_items: int, max_depth: int) -> Machine:
    return Machine(definition, facts_of(run, max_items=max_items, max_depth=max_depth))


def _state(row: Row) -> NodeState:
    error, undone = row["error"], row["compensation_error"]
    return NodeState(
        status=row["status"],
        attempt=row["attempt"],
        input=_bytes(row["input"]),
        output=_bytes(row["output"]),
        error=None if error is None else Failure.of(error),
        taken=None if row["taken"] is None else tuple(row["taken"]),
        wake_at=row["wake_at"],
        child=row["child"],
        completed_no=row["completed_no"],
        compensation=row["compensation"],
        compensation_error=None if undone is None else Failure.of(undone),
        started_at=row["started_at"],
        finished_at=row["finished_at"],
    )


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else text.encode()


class _Ended(msgspec.Struct):
    status: str
    output: msgspec.Raw
    error: dict[str, Any] | None


_told = msgspec.json.Decoder(_Ended).decode


def ended_run(told: bytes) -> tuple[str, bytes, Failure | None]:
    """What the end of a run below says: its status, output and error."""
    found = _told(told)
    return found.status, bytes(found.output), None if found.error is None else Failure.of(found.error)
