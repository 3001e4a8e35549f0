"""Handlers of state, for those outside the functions that keep it."""

from nova import payload
from nova.api import state as api
from nova.api.table import Page
from nova.domain.identity import Scope
from nova.domain.state import MAX_VALUE, Owner, StateValue, check_key, check_prefix
from nova.errors import NovaError, invalid, not_found
from nova.http import paging
from nova.http.handler import Answer, Req, handles
from nova.store.functions import FunctionStore
from nova.store.state import StateStore


class StateHandlers:
    def __init__(self, functions: FunctionStore, states: StateStore) -> None:
        self._functions = functions
        self._states = states

    @handles("state.get")
    async def get(self, req: Req[None, api.StateQuery]) -> api.StateFound:
        query = req.query
        if query.key is not None:
            if query.prefix is not None:
                raise _one_of()
            owner = await self._owner(req.scope, req.params["name"])
            return api.StateFound(_entry(await self._states.get(owner, check_key(query.key))))
        values = paging.decode(query.cursor, str)
        after = str(values[0]) if values else None
        prefix = check_prefix(query.prefix or "")
        owner = await self._owner(req.scope, req.params["name"])
        found = await self._states.page(owner, prefix, after=after, limit=query.limit + 1)
        shown = found[: query.limit]
        more = paging.encode([shown[-1].key]) if len(found) > len(shown) else None
        items = [
            api.StateItem(
                key=item.key,
                size=item.size,
                version=item.version,
                expires_at=item.expires_at,
                created_at=item.created_at,
                updated_at=item.updated_at,
            )
            for item in shown
        ]
        return api.StateFound(Page[api.StateItem](items=items, next_cursor=more))

    @handles("state.put")
    async def put(self, req: Req[api.StatePut, api.StateKey]) -> Answer:
        """201 when the key is new."""
        body, key = req.body, check_key(req.query.key)
        value = payload.encode(body.value)
        if len(value) > MAX_VALUE:
            raise payload.too_large(MAX_VALUE)
        owner = await self._owner(req.scope, req.params["name"])
        put = await self._states.put(owner, key, value, ttl_s=body.ttl_s, expected=body.expected_version)
        return Answer(_entry(put), status=201 if put.is_new else 200)

    @handles("state.increment")
    async def increment(self, req: Req[api.StateIncrement, api.StateKey]) -> api.StateEntry:
        key = check_key(req.query.key)
        owner = await self._owner(req.scope, req.params["name"])
        return _entry(await self._states.increment(owner, key, req.body.by, ttl_s=req.body.ttl_s))

    @handles("state.delete")
    async def delete(self, req: Req[None, api.StateDelete]) -> None:
        query = req.query
        if (query.key is None) == (query.prefix is None):
            raise _one_of()
        if query.prefix is not None and query.expected_version is not None:
            raise invalid("expected_version", "goes with key")
        owner = await self._owner(req.scope, req.params["name"])
        if query.key is not None:
            await self._states.delete(owner, check_key(query.key), expected=query.expected_version)
        elif query.prefix is not None:
            await self._states.delete_prefix(owner, check_prefix(query.prefix))

    async def _owner(self, scope: Scope, name: str) -> Owner:
        function = await self._functions.lookup(scope, name)
        if function is None:
            raise not_found("function", name)
        return Owner(scope, function.id)


def _one_of() -> NovaError:
    return invalid("key", "give one of key and prefix")


def _entry(found: StateValue) -> api.StateEntry:
    return api.StateEntry(
        key=found.key,
        value=payload.decode(found.value),
        version=found.version,
        expires_at=found.expires_at,
        created_at=found.created_at,
        updated_at=found.updated_at,
    )
