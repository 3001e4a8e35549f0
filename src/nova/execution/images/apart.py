"""Making an image in a process of its own, which can be ended with all that it started."""

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

from nova.errors import NovaError

_MODULE: Final = "nova.execution.images"
_FAILED: Final = "failed"
_STEP: Final = "step"


async def build(folder: Path, runtime: str, form: str, say: Callable[[str], None]) -> None:
    """Raises NovaError as the build does. Cancelled, it kills the process and what that started."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", _MODULE, str(folder), runtime, form),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout is not None
    failure: NovaError | None = None
    try:
        async for line in process.stdout:
            told = json.loads(line)
            if _STEP in told:
                say(told[_STEP])
            else:
                failure = NovaError(told[_FAILED], told["detail"])
        code = await process.wait()
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    if failure is not None:
        raise failure
    if code != 0:
        raise NovaError("internal", f"the process that makes images ended with exit code {code}")


def tell_step(step: str) -> None:
    print(json.dumps({_STEP: step}), flush=True)


def tell_failure(error: NovaError) -> None:
    print(json.dumps({_FAILED: error.code, "detail": error.detail}), flush=True)
