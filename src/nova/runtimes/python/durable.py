"""Durable functions: a handler's runs, over the public Lambda durable-execution protocol.

The handler runs from its top each time. What it did before is answered from the record, what is new is recorded before the
next begins (:mod:`nova.runtimes.python.durable_context`).
"""

import sys
from collections.abc import Callable
from typing import Any, Final

from nova.runtimes.python.context import Context
from nova.runtimes.python.durable_context import DurableContext, encoded, error_of
from nova.runtimes.python.durable_line import HostLine
from nova.runtimes.python.durable_run import NonDeterministic, Run, RunLost, Suspend

Handler = Callable[[Any, Context], Any]
_LIBRARIES: Final = ("aws_durable_execution_sdk_python", "async_durable_execution")
"""They speak the protocol themselves; a handler that they have wrapped gets what the platform sends."""


def speaks_itself() -> bool:
    """The code has loaded a library that speaks the protocol."""
    return any(name in sys.modules for name in _LIBRARIES)


def wrap(call: Handler, is_async: bool, line: HostLine | None) -> Handler:
    """The handler of one run, out of a handler that knows nothing of runs. ``line``: the worker's, where it may ask."""

    def durable(event: Any, context: Context) -> Any:
        run = Run(event, str(context.request_id), line if context._parsed().get("asks") else None)
        own = DurableContext(context._text, run, is_async)
        if is_async:
            return _async_run(run, call, own)
        try:
            run.load_rest()
            return _succeeded(call(run.input, own))
        except BaseException as error:
            return _ended(error)
        finally:
            run.close()

    return durable


async def _async_run(run: Run, call: Handler, context: DurableContext) -> Any:
    try:
        run.load_rest()
        return _succeeded(await call(run.input, context))
    except BaseException as error:
        return _ended(error)
    finally:
        run.close()


def _succeeded(value: Any) -> dict[str, Any]:
    return {"Status": "SUCCEEDED", "Result": encoded("the result", value)}


def _ended(error: BaseException) -> dict[str, Any]:
    """Raises what is not the handler's own end: the run was lost, or its process is to end."""
    if isinstance(error, Suspend):
        return {"Status": "PENDING"}
    if isinstance(error, NonDeterministic):
        return {"Status": "FAILED", "Error": {"ErrorType": "Nova.NonDeterministic", "ErrorMessage": str(error)}}
    if isinstance(error, RunLost) or not isinstance(error, Exception):
        raise error
    return {"Status": "FAILED", "Error": error_of(error)}
