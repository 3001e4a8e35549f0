"""Which process serves a function, and what it is told when it loads.

Most functions run in their runtime's own worker. Plain scripts, programs that speak lines on stdin and stdout, and process
mode of runtimes that cannot fork a loaded worker are served by a small language-neutral *runner* of the agent instead: a
worker like any other, seen from the host.
"""

import functools
import importlib
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

from nova.agent import environment, lambda_api, oneshot, script, stdio
from nova.agent.config import AgentConfig
from nova.agent.messages import InitHead
from nova.agent.process import exec_program


class Bootstrap(Protocol):
    """A module that can be a worker of kind ``fork``."""

    def main(self) -> NoReturn: ...

    def preload(self) -> None: ...

    def rehearse(self) -> None: ...

    def prepare(self) -> None: ...

    def replace_rehearsal(self, have: Callable[[], None] | None) -> None: ...


_bootstraps: dict[str, Bootstrap] = {}


def bootstrap(module: str) -> Bootstrap:
    """Kept here: a module that has prepared this process for functions cannot be imported any more."""
    found = _bootstraps.get(module)
    if found is None:
        loaded: Any = importlib.import_module(module)
        found = _bootstraps[module] = loaded
    return found


def standing_main(config: AgentConfig) -> Callable[[], NoReturn]:
    """What a worker of the runtime runs when it boots without a function."""
    launch = config.worker
    if launch.kind == "fork":
        return bootstrap(launch.module).main
    return lambda: exec_program(launch.argv, environment.base(config.code_dir) | dict(launch.env))


def runner_main(config: AgentConfig, init: InitHead) -> Callable[[], NoReturn] | None:
    """The runner that serves this function, or None: the runtime's own worker does."""
    launch = config.worker
    if init.entry_kind == "script" or (launch.kind == "none" and init.mode == "process"):
        return functools.partial(script.main, launch.script)
    if launch.kind == "lambda":
        return functools.partial(lambda_api.main, config.guest_port, launch.argv)
    if launch.kind == "none":
        return functools.partial(stdio.main, launch.argv)
    if launch.kind == "exec" and init.mode == "process":
        return functools.partial(oneshot.main, launch)
    return None
