"""Turning a blank worker into one that has a function loaded."""

import gc
import importlib
import inspect
import io
import logging
import os
import site
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from nova.runtimes.python.answers import InitError
from nova.runtimes.python.context import Context

Handler = Callable[[Any, Context], Any]
_STDLIB: Final = os.path.dirname(os.__file__)


@dataclass(slots=True)
class Function:
    """A loaded function. ``call`` always takes event and context, whatever the user's signature is."""

    call: Handler
    is_async: bool
    module: types.ModuleType


def become(init: dict[str, Any], request_id: Callable[[], str]) -> None:
    """Make this process look like a plain interpreter started in the code's folder with the function's environment."""
    os.environ.clear()
    os.environ.update(init["env"])
    time.tzset()
    stdlib = [path for path in sys.path if path.startswith(_STDLIB) or path.endswith(".zip")]
    sys.path[:] = [*os.environ["PYTHONPATH"].split(":"), *stdlib]
    for name in [name for name in sys.modules if name == "nova" or name.startswith("nova.")]:
        del sys.modules[name]
    sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv = [""]
    os.chdir(init["code_dir"])
    open_streams()
    set_up_logging(request_id)
    deps = os.path.join(init["code_dir"], "deps")
    if os.path.isdir(deps):
        site.addsitedir(deps)  # for the .pth files of installed packages; the folder itself is on the path already


def open_streams() -> None:
    """Fresh text streams on 1 and 2, flushed at each line so that a crash loses no print."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def set_up_logging(request_id: Callable[[], str]) -> None:
    class RequestFilter(logging.Filter):
        def filter(self, record: logging.LogRecord) -> bool:
            record.aws_request_id = record.request_id = request_id()
            return True

    class CurrentStderr(logging.StreamHandler[Any]):
        """Writes where ``sys.stderr`` points now, not where it pointed at the start."""

        @property
        def stream(self) -> Any:
            return sys.stderr

        @stream.setter
        def stream(self, _stream: Any) -> None:
            """The base class assigns one; there is nothing to keep."""

    handler = CurrentStderr()
    formatter = logging.Formatter(
        "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(RequestFilter())
    logging.getLogger().handlers[:] = [handler]


def load(handler: str, context: Context) -> Function:
    """Import the handler's module, find the handler in it, run ``on_init``. Raises InitError or what the code raised."""
    module, names = _import(handler)
    target: Any = module
    for name in names:
        if isinstance(target, type):
            target = target()  # once per worker; its method is the handler
        try:
            target = getattr(target, name)
        except AttributeError:
            raise InitError(f"handler {handler!r} does not exist: {module.__name__!r} has no {name!r}") from None
    if isinstance(target, type):
        target = target()
    if not callable(target):
        raise InitError(f"handler {handler!r} is not callable")
    hook = getattr(module, "on_init", None)
    if callable(hook):
        _adapt(hook, (context,), "on_init")()
    takes = _positional(target)
    return Function(_with_arity(target, takes), inspect.iscoroutinefunction(_inner(target)), module)


def settle() -> None:
    """What was loaded stays: keep it out of later collections, and collect again."""
    gc.freeze()
    gc.enable()


def _import(handler: str) -> tuple[types.ModuleType, list[str]]:
    """The longest importable module in a dotted handler, and the names after it."""
    parts = handler.replace("/", ".").split(".")
    if len(parts) < 2 or not all(parts):
        raise InitError(f"handler {handler!r} must look like module.function")
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            return importlib.import_module(name), parts[cut:]
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
    raise InitError(f"handler {handler!r} does not exist: there is no module {parts[0]!r} in the code")


def _inner(target: Any) -> Any:
    """What decides whether a callable is asynchronous: the function, or an object's ``__call__``."""
    return target if inspect.isroutine(target) else getattr(target, "__call__", target)  # noqa: B004


def _positional(target: Any) -> int:
    """How many positional arguments it takes, 2 when it cannot be told."""
    try:
        parameters = inspect.signature(target).parameters.values()
    except (TypeError, ValueError):
        return 2
    if any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        return 2
    return sum(
        parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) for parameter in parameters
    )


def _with_arity(target: Any, takes: int) -> Handler:
    if takes == 0:
        return lambda _event, _context: target()
    if takes == 1:
        return lambda event, _context: target(event)
    handler: Handler = target
    return handler


def _adapt(target: Any, arguments: tuple[Any, ...], name: str) -> Callable[[], Any]:
    takes = _positional(target)
    if inspect.iscoroutinefunction(target):
        raise InitError(f"{name} must not be asynchronous")
    return lambda: target(*arguments[:takes])
