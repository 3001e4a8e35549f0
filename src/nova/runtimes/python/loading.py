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
_OURS: Final[list[str]] = []
_HIDDEN: Final[list[types.ModuleType]] = []
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
    hide_modules()
    sys.argv = [""]
    os.chdir(init["code_dir"])
    open_streams()
    set_up_logging(request_id)
    deps = os.path.join(init["code_dir"], "deps")
    if os.path.isdir(deps):
        site.addsitedir(deps)  # for the .pth files of installed packages; the folder itself is on the path already


def rehearse_becoming() -> None:
    """:func:`become` on made-up data, in the worker: the memory that it writes to is copied now, off any caller's path."""
    names = (
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "NODE_PATH",
        "LD_LIBRARY_PATH",
        *(f"NOVA_{number}" for number in range(20)),
    )
    env = dict.fromkeys(names, "/tmp") | {"PYTHONPATH": "/tmp:/tmp/deps", "TZ": "UTC"}
    become({"env": env, "code_dir": "/"}, str)


def note_modules() -> None:
    """Remember which modules a function must not see. In the zygote: to look through all of them costs a worker 0.5 ms of
    page faults."""
    _OURS[:] = [name for name in sys.modules if name == "nova" or name.startswith("nova.")]


def hide_modules() -> None:
    """The platform's modules cannot be imported any more. They stay alive: freeing them would touch shared memory, too."""
    _HIDDEN.extend(sys.modules.pop(name) for name in (*_OURS, "__main__") if name in sys.modules)
    sys.modules["__main__"] = types.ModuleType("__main__")


def open_streams() -> None:
    """Fresh text streams on 1 and 2, flushed at each line so that a crash loses no print."""
    for fd, name in ((1, "stdout"), (2, "stderr")):
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


class _CurrentStderr(logging.StreamHandler[Any]):
    """Writes where ``sys.stderr`` points now, not where it pointed at the start. ``call`` names the running call."""

    call: Callable[[], str] = str

    @property
    def stream(self) -> Any:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: Any) -> None:
        """The base class assigns one; there is nothing to keep."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.aws_request_id = record.request_id = self.call()
        return super().filter(record)


def _log_handler() -> _CurrentStderr:
    handler = _CurrentStderr()
    text = "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s"
    formatter = logging.Formatter(text, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    return handler


_HANDLER: Final = _log_handler()


def set_up_logging(request_id: Callable[[], str]) -> None:
    """The root logger writes to stderr, each record with its call."""
    _HANDLER.call = request_id
    logging.getLogger().handlers[:] = [_HANDLER]


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
        if _is_async(hook):
            raise InitError("on_init must not be asynchronous")
        hook(*(context,)[: _positional(hook)])
    return Function(_with_arity(target, _positional(target)), _is_async(target), module)


def run_hook(module: types.ModuleType, name: str) -> None:
    """Run a hook beside the handler, if there is one. Raises InitError or what it raised."""
    hook = getattr(module, name, None)
    if callable(hook):
        if _is_async(hook):
            raise InitError(f"{name} must not be asynchronous")
        hook()


def renew() -> None:
    """In a fork of a loaded function: nothing random may come out as in another fork."""
    if (numbers := sys.modules.get("numpy.random")) is not None:
        numbers.seed()
    if (tls := sys.modules.get("_ssl")) is not None:
        tls.RAND_add(os.urandom(48), 48.0)


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


def _is_async(target: Any) -> bool:
    """A coroutine function or an asynchronous generator, or an object whose ``__call__`` is one."""
    if isinstance(target, types.FunctionType):
        return bool(target.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    called = getattr(target, "__call__", None)  # noqa: B004
    return any(inspect.iscoroutinefunction(some) or inspect.isasyncgenfunction(some) for some in (target, called))


def _positional(target: Any) -> int:
    """How many positional arguments it takes, 2 when it cannot be told."""
    if isinstance(target, types.FunctionType):  # the usual case, at a fraction of the price
        return 2 if target.__code__.co_flags & inspect.CO_VARARGS else target.__code__.co_argcount
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
