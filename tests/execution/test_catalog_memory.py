"""What the catalog keeps of each function, measured in the bytes it really takes."""

import contextlib
import gc
import sys
import types
from collections.abc import Iterator
from typing import Any

import pytest
from psycopg.types.json import Jsonb

from nova.domain.function import EgressRule, NetworkPolicy
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.store.db import Database
from nova.store.functions import announce
from nova.store.listen import Listener
from tests.execution.fakes import make_call
from tests.execution.test_catalog import Rig, listener

pytestmark = pytest.mark.anyio
__all__ = ["listener"]
MARKER = "this is the source code of a function"
LIMIT = 250_000


def reachable(root: object) -> Iterator[object]:
    """Everything an object keeps alive, but what programs share anyway."""
    seen: set[int] = set()
    left = [root]
    while left:
        item = left.pop()
        if id(item) in seen or isinstance(
            item, type | types.ModuleType | types.FunctionType | types.BuiltinFunctionType
        ):
            continue
        seen.add(id(item))
        yield item
        left.extend(gc.get_referents(item))


async def kept(rig: Rig) -> tuple[int, str]:
    """Bytes that the entries take, and all text in them."""
    found = list(reachable(rig.catalog._entries))
    texts = [str(item) for item in found if isinstance(item, str | bytes)]
    return sum(sys.getsizeof(item) for item in found), "\n".join(texts)


async def add_code(rig: Rig, database: Database, name: str) -> None:
    await database.run(
        "UPDATE function_code SET source_code = %(code)s FROM functions"
        " WHERE functions.id = function_code.function_id AND functions.name = %(name)s",
        code=MARKER * 1000,
        name=name,
    )


async def decorate(rig: Rig, name: str) -> None:
    """Long tags and many aliases: what the catalog reads beside the versions."""
    control = rig.control
    async with control.db.transaction() as conn:
        found = await control.functions.lock(conn, Scope(), name)
        assert found is not None
        for number in range(20):
            await conn.run(
                "INSERT INTO function_aliases (function_id, name, data, etag) VALUES (%(id)s, %(name)s, %(data)s, 'x')",
                id=found.id,
                name=f"alias-{number}",
                data=Jsonb({"split": {"1": 10_000}, "description": "x" * 200}),
            )
        await announce(conn, Scope(), name, await control.functions.touch(conn, found.id))


@pytest.mark.parametrize(
    "deployed",
    [
        pytest.param({}, id="small"),
        pytest.param({"env": {f"NAME_{n}": "v" * 100 for n in range(20)}}, id="environment"),
        pytest.param(
            {"network": NetworkPolicy("strict", tuple(EgressRule(f"10.0.{n}.0/24", 443) for n in range(60)))},
            id="network",
        ),
        pytest.param({"aliased": True}, id="aliases"),
        pytest.param({"status": "failed"}, id="never built"),
    ],
)
async def test_the_byte_limit_holds_and_no_code_is_kept(
    deployed: dict[str, Any], database: Database, listener: Listener
) -> None:
    """DB2: measured, whatever functions are made of; also for functions without any version that runs."""
    rig = Rig(database, listener, max_bytes=LIMIT)
    aliased = deployed.pop("aliased", False)
    for number in range(150):
        name = f"f{number}"
        await rig.control.deploy(name, **deployed)
        if aliased:
            await decorate(rig, name)
        await add_code(rig, database, name)
        with contextlib.suppress(NovaError):  # of versions that were never built
            await rig.catalog.resolve(make_call(name))
    size, texts = await kept(rig)
    assert size <= LIMIT
    assert "f149" in texts
    assert MARKER not in texts
