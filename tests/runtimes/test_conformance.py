"""Every runtime in every mode that its manifest declares, with its real toolchain in the real sandbox."""

import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from nova.domain.call import CallResult
from nova.errors import NovaError
from nova.payload import encode
from nova.runtimes.registry import Runtimes
from tests.execution.stack import RealStack, real_stack
from tests.runtimes.samples import SAMPLES

pytestmark = [pytest.mark.anyio, pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="needs root")]

ALL = Runtimes().list()
MODULES = ("wasm",)
"""Runtimes whose functions are no text, tested on a backend of their own (``tests/backends/wasm``)."""
MODES = [
    (runtime.id, mode)
    for runtime in ALL
    if runtime.id in SAMPLES
    for mode in runtime.manifest.modes
    if mode != "durable"  # its calls are executions, which nebula runs: tests/e2e/test_durable.py
]
UNICODE = 'grüße 日本語 😀 \u2028 \u00a0 " \\ \t \x7f ﷽ e\u0301'
BIG = "0123456789abcdef" * (5 << 16)
"""5 MiB."""


@pytest.fixture
async def stack(pg_dsn: str, tmp_path: Path) -> AsyncIterator[RealStack]:
    async with real_stack(pg_dsn, tmp_path) as stack:
        yield stack


async def deploy(stack: RealStack, runtime: str, mode: str, *, script: bool = False) -> None:
    sample = SAMPLES[runtime]
    code = sample.script if script else sample.code_for(mode)
    kind = "script" if script and runtime != "custom" else "handler"
    await stack.deploy(
        code.lstrip(),
        runtime=runtime,
        entry=sample.entry,
        entry_mode=0o755,
        handler=sample.handler,
        mode=mode,
        entry_kind=kind,
        timeout_s=3,
    )


async def do(stack: RealStack, what: str, value: str = "") -> CallResult:
    return await stack.invoke(encode({"do": what, "value": value}))


def output(result: CallResult) -> Any:
    assert result.error is None, result.error
    assert result.output is not None
    return json.loads(result.output)


@pytest.mark.parametrize(("runtime", "mode"), MODES)
async def test_a_runtime_in_a_mode(runtime: str, mode: str, stack: RealStack) -> None:
    """AG26: hello, unicode, a big payload, prints, an error, a timeout; each leaves the next call in order."""
    await deploy(stack, runtime, mode)
    assert output(await do(stack, "hello", "nova")) == "nova"
    assert output(await do(stack, "echo", UNICODE)) == UNICODE
    assert output(await do(stack, "echo", BIG)) == BIG

    printed = await do(stack, "print", "some text")
    assert output(printed) == "printed"
    assert printed.stdout == 'some text\n{"output": "not mine"}\n'
    assert (await do(stack, "hello", "silent")).stdout == ""

    failed = await do(stack, "error", "it broke")
    assert failed.error is not None
    assert (failed.error.type, failed.error.message) == (SAMPLES[runtime].raised[mode], "it broke")
    assert failed.output is None
    assert output(await do(stack, "hello", "again")) == "again"

    with pytest.raises(NovaError) as late:
        await do(stack, "hang")
    assert late.value.code == "timeout"
    assert output(await do(stack, "hello", "after all")) == "after all"


@pytest.mark.parametrize("runtime", [runtime.id for runtime in ALL if "process" in runtime.manifest.modes])
async def test_a_plain_script(runtime: str, stack: RealStack) -> None:
    """AG26: a file without a handler gets the path of its input and prints one JSON document."""
    await deploy(stack, runtime, "process", script=True)
    for value in ("first", UNICODE):
        result = await do(stack, "script", value)
        assert output(result) == {"script": value}
        assert result.stdout == "a print\n"


def test_every_runtime_has_its_toolchain_here() -> None:
    """AG26: a missing toolchain would make the tests above fail; this names it."""
    assert {runtime.id: runtime.reason for runtime in ALL} == dict.fromkeys((*SAMPLES, *MODULES), "")
