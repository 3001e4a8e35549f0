"""Maps: the same call for each item of a list, so many at a time, the results in the list's order."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from nova import payload
from nova.domain.workflows.board import Board, MapState
from nova.domain.workflows.definition import Node
from nova.domain.workflows.frames import decoded, encoded
from nova.domain.workflows.mapping import MappingFailed
from nova.domain.workflows.state import ITSELF, CallEnd, Failure, NodeState

MAX_OUTPUT = 32 << 20
"""Bytes of all results of one map together."""
_list = msgspec.json.Decoder(list[msgspec.Raw]).decode


class Maps:
    """``ended`` hears how a map came out: its output or what made it fail."""

    def __init__(self, board: Board, ended: Callable[[int, bytes | None, Failure | None, datetime], None]) -> None:
        self._board = board
        self._ended = ended

    def begin(self, node: Node, now: datetime) -> None:
        """Raises MappingFailed when there is no list to go over."""
        assert node.value is not None
        state = self._board.states[node.index]
        try:
            given = state.given
            items = decoded(given) if given is not None else node.value(self._board.eyes.context(node))
        except MappingFailed as exc:
            raise MappingFailed(f"items: {exc}") from None
        if not isinstance(items, list):
            raise MappingFailed("items: this is no list")
        state.status, state.input, state.started_at = "running", encoded(items), now
        self._board.touch((node.index, ITSELF))
        if len(items) > (most := self._board.facts.max_items):
            message = f"{len(items)} items; the limit is {most} (limits.map_items)"
            self._ended(node.index, None, Failure("Nova.TooManyItems", message, node.path), now)
            return
        kept = self._board.maps.get(node.index)
        found = MapState(items, node.spec.batch_size)
        if kept is not None:  # what an earlier generation of the run has finished
            found.states = kept.states
            self._count(node, found)
        self._board.maps[node.index] = found
        self.fill(node, now)

    def restore(self, node: Node, states: dict[int, NodeState]) -> None:
        """After a load: what items have come to. The list is the node's input."""
        data = self._board.states[node.index].input
        running = self._board.states[node.index].status == "running" and data is not None
        found = MapState(payload.decode(data) if running and data is not None else [], node.spec.batch_size)
        found.states = states
        self._board.maps[node.index] = found
        if running:
            self._count(node, found)

    def _count(self, node: Node, found: MapState) -> None:
        for item, state in found.states.items():
            if state.status in ("succeeded", "failed"):
                found.done += 1
                found.failed += self._size(node, found, item) if state.status == "failed" else 0
            else:
                found.running += 1

    def fill(self, node: Node, now: datetime) -> None:
        """Begin as many as may run at once, and end the map when all are done."""
        found = self._board.maps[node.index]
        while found.running < node.spec.max_concurrency and found.next < found.total:
            item = found.next
            found.next += 1
            if item in found.states:
                continue
            found.states[item] = NodeState()
            found.running += 1
            self.begin_item(node, item, now)
            if self._board.states[node.index].ended:
                return
        if found.done >= found.total:
            self._end(node, found, now)

    def begin_item(self, node: Node, item: int, now: datetime) -> None:
        """Also for another attempt."""
        ref = (node.index, item)
        state = self._board.state(ref)
        try:
            data = state.input if state.input is not None else self._input(node, item)
            failure = self._board.begin_unit(ref, data, now)
        except MappingFailed as exc:
            failure = Failure("Nova.MappingFailed", str(exc), self._board.path(ref))
        if failure is not None:
            self._item_failed(node, item, failure, now)

    def _input(self, node: Node, item: int) -> bytes:
        found, batch = self._board.maps[node.index], node.spec.batch_size
        if batch == 1:
            return self._one(node, found.items[item], item)
        first = item * batch
        parts = [self._one(node, one, first + no) for no, one in enumerate(found.items[first : first + batch])]
        return b"[" + b",".join(parts) + b"]"

    def _one(self, node: Node, value: Any, index: int) -> bytes:
        if node.each_input is None:
            return encoded(value)
        return self._board.eyes.make(node, node.each_input, "do.input_mapping", item=value, index=index)

    def call_ended(self, node: Node, item: int, end: CallEnd, now: datetime) -> None:
        ref = (node.index, item)
        if self._board.refused(ref, end, now):
            return
        if self._board.spec(ref).node_type == "function":
            self._board.tried(ref, end, self._board.state(ref).attempt)
        error = end.error
        if error is None and end.output is not None:
            try:
                self._item_succeeded(node, item, self._output(node, item, end.output), now)
                return
            except MappingFailed as exc:
                error = Failure("Nova.MappingFailed", str(exc))
            except msgspec.DecodeError:
                error = Failure("Nova.InvalidOutput", "a batch is answered with a list of as many outputs")
        assert error is not None
        failure = Failure(error.type, error.message, self._board.path(ref))
        if not self._board.again(ref, failure, now):
            self._item_failed(node, item, failure, now)

    def _output(self, node: Node, item: int, output: bytes) -> bytes:
        """For a batch: the outputs with commas between them."""
        found, batch = self._board.maps[node.index], node.spec.batch_size
        if batch == 1:
            return self._mapped(node, found.items[item], item, output)
        first, outputs = item * batch, _list(output)
        if len(outputs) != self._size(node, found, item):
            raise msgspec.DecodeError
        parts = [self._mapped(node, found.items[first + no], first + no, bytes(one)) for no, one in enumerate(outputs)]
        return b"[" + b",".join(parts) + b"]"

    def _mapped(self, node: Node, value: Any, index: int, output: bytes) -> bytes:
        if node.each_output is None:
            return output
        return self._board.eyes.make(
            node, node.each_output, "do.output_mapping", item=value, index=index, output=decoded(output)
        )

    def _size(self, node: Node, found: MapState, item: int) -> int:
        batch: int = node.spec.batch_size
        return min(batch, len(found.items) - item * batch)

    def _item_succeeded(self, node: Node, item: int, output: bytes, now: datetime) -> None:
        found = self._board.maps[node.index]
        state = found.states[item]
        state.status, state.output, state.error, state.finished_at = "succeeded", output, None, now
        self._item_ended(node, found, item, now)

    def _item_failed(self, node: Node, item: int, failure: Failure, now: datetime) -> None:
        found = self._board.maps[node.index]
        state = found.states[item]
        state.status, state.output, state.error, state.finished_at = "failed", None, failure, now
        found.failed += self._size(node, found, item)
        self._item_ended(node, found, item, now)
        if found.failed * 100 > node.spec.tolerated_failure_pct * len(found.items):
            self.drop(node, now)
            self._ended(node.index, None, failure, now)

    def _item_ended(self, node: Node, found: MapState, item: int, now: datetime) -> None:
        found.running -= 1
        found.done += 1
        self._board.touch((node.index, item))

    def drop(self, node: Node, now: datetime) -> None:
        """Whatever runs for items is not wanted any more."""
        found = self._board.maps.get(node.index)
        for item, state in found.states.items() if found is not None else ():
            if not state.ended:
                self._board.drop_unit((node.index, item))
                state.status, state.finished_at = "cancelled", now
                self._board.touch((node.index, item))

    def _end(self, node: Node, found: MapState, now: datetime) -> None:
        parts: list[bytes] = []
        size = 0
        for item in range(found.total):
            output = found.states[item].output
            if output is None:
                output = b",".join([b"null"] * self._size(node, found, item))
            elif node.spec.batch_size > 1:
                output = output[1:-1]
            size += len(output) + 1
            parts.append(output)
        if size > MAX_OUTPUT:
            message = f"the results have {size} bytes together; the limit is {MAX_OUTPUT}"
            self._ended(node.index, None, Failure("Nova.OutputTooLarge", message, node.path), now)
            return
        self._ended(node.index, b"[" + b",".join(parts) + b"]", None, now)
