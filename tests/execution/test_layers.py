"""Functions that mount layers, in real instances."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nova.domain.layer import LayerRef
from nova.domain.tree import SourceFile, Tree, pack
from tests.execution.stack import RealStack, real_stack

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

PYTHON = """
import os, subprocess
import greeting, other
def handler(event, context):
    try:
        open("/layers/0/python/new", "w")
        writable = True
    except OSError as error:
        writable = str(error)
    told = subprocess.run(["tool"], capture_output=True, text=True)
    return {"greeting": greeting.TEXT, "other": other.TEXT, "tool": told.stdout, "writable": writable}
"""
NODE = """
exports.handler = async () => ({ said: require("greeting").text });
"""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path) as running:
        yield running


async def layer(stack: RealStack, name: str, files: dict[str, str], version: int = 1) -> LayerRef:
    tree = Tree(SourceFile(path, 0o755, text.encode()) for path, text in files.items())
    artifact = await stack.blobs.put(pack(tree, None), "application/x-tar")
    return LayerRef(name, version, artifact, tree.size)


async def test_python_imports_from_layers_and_the_later_one_wins(stack: RealStack) -> None:
    """BE9: functions with other layers have other instances."""
    first = await layer(
        stack,
        "first",
        {"python/greeting.py": "TEXT = 'first'", "other.py": "TEXT = 'flat'", "bin/tool": "#!/bin/sh\necho -n one"},
    )
    second = await layer(stack, "second", {"python/greeting.py": "TEXT = 'second'"})
    await stack.deploy(PYTHON, layers=(first, second))
    result = await stack.invoke()
    assert result.output is not None, result.error
    answer = json.loads(result.output)
    assert answer.pop("writable").startswith("[Errno 30]")
    assert answer == {"greeting": "second", "other": "flat", "tool": "one"}
    other = await stack.deploy(PYTHON, layers=(second, first))
    result = await stack.invoke(qualifier=str(other))
    assert result.output is not None
    assert json.loads(result.output)["greeting"] == "first", "another order is another instance"


async def test_node_requires_from_a_layer(stack: RealStack) -> None:
    module = "exports.text = 'from a layer';"
    mounted = await layer(stack, "modules", {"nodejs/node_modules/greeting/index.js": module})
    await stack.deploy(NODE, runtime="node", entry="main.js", layers=(mounted,))
    result = await stack.invoke()
    assert result.output is not None, result.error
    assert json.loads(result.output) == {"said": "from a layer"}
