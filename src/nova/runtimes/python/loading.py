"""Turning a blank worker into one that has a function loaded."""

import gc
import importlib
import importlib.machinery
import inspect
import io
import logging
import os
import resource
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
_HIDDEN: Final[list[types.ModuleType]] = []
_STDLIB: Final = os.path.dirname(os.__file__)
_STDLIB_PATH: Final = [path for path in sys.path if path.startswith(_STDLIB) or path.endswith(".zip")]


@dataclass(slots=True)
class Function:
    """A loaded function. ``call`` always takes event and context, whatever the user's signature is."""

    call: Handler
    is_async: bool
    module: types.ModuleType


def prepare() -> None:
    """Make this process, which workers are forked from, look like a plain interpreter as far as that does not depend on the
    function. What is done here once, no worker has to touch memory for. Nothing of the platform can be imported afterwards,
    and nothing of a function: agents are forked from here, too."""
    os.environ["TZ"] = "UTC"
    time.tzset()
    del os.environ["TZ"]
    sys.path[:] = _STDLIB_PATH
    sys.argv = [""]
    _hide_modules()
    _open_streams()
    logging.getLogger().handlers[:] = [_HANDLER]


def become(init: dict[str, Any], request_id: Callable[[], str]) -> None:
    """The rest of that, for one function. ``request_id`` names the running call in its log."""
    env: dict[str, str] = init["env"]
    _set_environment(env)
    if env["TZ"] != "UTC":
        time.tzset()
    sys.path[:] = [*env["PYTHONPATH"].split(":"), *_STDLIB_PATH]
    _limit_open_files(init["open_files"])
    os.chdir(init["code_dir"])
    _HANDLER.call = request_id
    deps = init["code_dir"] + "/deps"
    if os.access(deps, os.F_OK):
        site.addsitedir(deps)  # for the .pth files of installed packages; the folder itself is on the path already


def _set_environment(env: dict[str, str]) -> None:
    """The whole environment, as ``os.environ.update`` would set it: that is Python code which no worker has run yet."""
    known: dict[bytes, bytes] = os.environ._data  # type: ignore[attr-defined]
    for name in known:
        os.unsetenv(name)
    known.clear()
    for text, value in env.items():
        name, known[name] = text.encode("utf-8", "surrogateescape"), value.encode("utf-8", "surrogateescape")
        os.putenv(name, known[name])


def _limit_open_files(most: int) -> None:
    """Soft and hard, never above the hard limit that there is: code may lower its own further, and no more."""
    while True:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        value = most if hard == resource.RLIM_INFINITY else min(most, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (value, value))
        except ValueError:  # the agent may lower it at any moment, this one too
            if resource.getrlimit(resource.RLIMIT_NOFILE)[1] == hard:
                raise
        else:
            return


def rehearse_becoming() -> None:
    """:func:`become` on made-up data, in the worker: the memory that it writes to is copied now, off any caller's path.
    The limit of open files stays where it is: once lowered it could not rise to the function's."""
    names = (
        "PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "NODE_PATH",
        "LD_LIBRARY_PATH",
        *(f"NOVA_{number}" for number in range(20)),
    )
    env = dict.fromkeys(names, "/tmp") | {"PYTHONPATH": "/code:/code/deps", "TZ": "UTC"}
    become({"env": env, "code_dir": "/", "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[1]}, str)


def _hide_modules() -> None:
    """The platform's modules cannot be imported any more. They stay alive for those who have them."""
    ours = [name for name in sys.modules if name == "nova" or name.startswith("nova.")]
    _HIDDEN.extend(sys.modules.pop(name) for name in (*ours, "__main__") if name in sys.modules)
    sys.modules["__main__"] = types.ModuleType("__main__")


def _open_streams() -> None:
    """Fresh text streams on 1 and 2, flushed at each line so that a crash loses no print. They are made on a pipe, as those
    descriptors are in a worker: a stream remembers whether it can seek."""
    reading, writing = os.pipe()
    for fd, name in ((1, "stdout"), (2, "stderr")):
        kept = os.dup(fd)
        os.dup2(writing, fd)
        raw = io.FileIO(fd, "w", closefd=False)
        stream = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding="utf-8", errors="backslashreplace", line_buffering=True
        )
        os.dup2(kept, fd)
        os.close(kept)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    os.close(reading)
    os.close(writing)


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


def load(handler: str, context: Callable[[], Context]) -> Function:
    """Import the handler's module, find the handler in it, run ``on_init`` with what ``context`` makes. Raises InitError or
    what the code raised."""
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
        hook(*(context(),)[: _positional(hook)])
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
    if len(parts) == 2 and (module := _plain_module(parts[0])) is not None:
        return module, parts[1:]
    for cut in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:cut])
        try:
            return importlib.import_module(name), parts[cut:]
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise
    raise InitError(f"handler {handler!r} does not exist: there is no module {parts[0]!r} in the code")


def _plain_module(name: str) -> types.ModuleType | None:
    """What ``import name`` gives where that is a lone source file in the function's folder, the first on the path: by far the
    commonest case, and a quarter of the memory that importlib would touch. None in any other case."""
    folder = os.getcwd()
    if name in sys.modules or name in sys.builtin_module_names or sys.path[0] != folder:
        return None
    for other in os.listdir():
        # a package or an extension of that name goes first; compiled code is quicker; packages may change how imports work
        if other.partition(".")[0] in (name, "deps", "__pycache__") and other != f"{name}.py":
            return None
    file = f"{folder}/{name}.py"
    try:
        with io.FileIO(file) as source:
            text = source.readall()
    except OSError:
        return None
    module = types.ModuleType(name)
    loader = importlib.machinery.SourceFileLoader(name, file)
    module.__spec__ = spec = importlib.machinery.ModuleSpec(name, loader, origin=file)
    spec.has_location = True
    module.__dict__.update(__loader__=loader, __file__=file, __cached__=spec.cached, __package__="")
    sys.modules[name] = module
    try:
        exec(compile(text, file, "exec", dont_inherit=True), module.__dict__)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return sys.modules[name]


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
