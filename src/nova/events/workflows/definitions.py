"""Definitions as this process has read them. A version never changes, so what was compiled once holds."""

import asyncio
from collections import OrderedDict

from nova import payload
from nova.domain.workflows.definition import Definition, parse
from nova.errors import not_found
from nova.store.workflow_runs import RunStore

_KEPT = 256
_ANY = 1_000_000
"""What was published was within the limit of its day."""


class Definitions:
    def __init__(self, store: RunStore) -> None:
        self._store = store
        self._kept: OrderedDict[tuple[str, int], Definition] = OrderedDict()

    async def get(self, workflow_id: str, version: int) -> Definition:
        """Raises ``not_found``."""
        key = (workflow_id, version)
        if (found := self._kept.get(key)) is not None:
            self._kept.move_to_end(key)
            return found
        text = await self._store.definition(workflow_id, version)
        if text is None:
            raise not_found("version", str(version))
        # a large one takes half a second, in which others have to be answered
        definition = await asyncio.to_thread(lambda: parse(payload.decode(text), max_nodes=_ANY))
        self._kept[key] = definition
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return definition
