"""The answers about runtimes."""

from typing import Any

import pytest

from nova.api.runtimes import RuntimeView
from nova.api.table import Empty, PageQuery
from nova.control.runtimes import RuntimeHandlers
from nova.domain.identity import Identity, Scope
from nova.errors import NovaError
from nova.http.handler import Req
from nova.runtimes.registry import Runtimes

pytestmark = pytest.mark.anyio
HANDLERS = RuntimeHandlers(Runtimes())


def request(query: Any, **params: str) -> Any:
    return Req(Identity("operator", frozenset()), Scope(), "0199", params, Empty(), query, http=None)  # type: ignore[arg-type]


async def test_the_list_pages_through_every_runtime() -> None:
    found: list[RuntimeView] = []
    cursor = None
    for _ in range(10):
        page = await HANDLERS.list(request(PageQuery(limit=1, cursor=cursor)))
        found += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    whole = await HANDLERS.list(request(PageQuery()))
    assert found == whole.items
    assert [item.id for item in found] == ["custom", "node", "provided", "python", "wasm"]


async def test_a_runtime_is_described() -> None:
    python = await HANDLERS.get(request(Empty(), id="python3.11"))
    assert python == await HANDLERS.get(request(Empty(), id="python"))
    assert (python.status, python.reason, python.family) == ("available", None, "interpreted")
    assert python.versions[0] == "python3.11"
    assert python.version is not None
    assert python.version.startswith("3.11.")
    assert (python.file_extension, python.default_handler) == (".py", "main.handler")
    assert python.manifests == ["requirements.txt"]
    assert python.template.startswith("def handler(event, context):")
    assert python.entrypoint[1:] == ["/code/main.py", "/tmp/input.json"]
    custom = await HANDLERS.get(request(Empty(), id="custom"))
    assert (custom.version, custom.entrypoint) == (None, ["/code/bootstrap", "/tmp/input.json"])


async def test_an_unknown_runtime_is_not_found() -> None:
    with pytest.raises(NovaError) as caught:
        await HANDLERS.get(request(Empty(), id="cobol"))
    assert caught.value.code == "not_found"
