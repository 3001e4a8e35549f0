"""Which process serves a function, and what it is told when it loads.

Most functions run in their runtime's own worker. Plain scripts, programs that speak lines on stdin and stdout, and process
mode of runtimes that cannot fork a loaded worker are served by a small language-neutral *runner* of the agent instead: a
worker like any other, seen from the host.
"""

import functools
import importlib
import os
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

    def replace_rehearsal(self, have: Callable[[], None] | None) -> None: ...


def bootstrap(module: str) -> Bootstrap:
    loaded: Any = importlib.import_module(module)
    found: Bootstrap = loaded
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


def worker_init(config: AgentConfig, init: InitHead, api_token: str) -> dict[str, Any]:
    """The object of the init line. ``api_token``: what the worker shows to the guest API."""
    env = environment.build(init, config.code_dir) | environment.guest(config.guest_port, api_token)
    if init.mode == "durable":
        env = environment.durable(config.guest_port) | env
    return {
        "handler": init.handler,
        "entry": os.path.join(config.code_dir, init.entry),
        "code_dir": config.code_dir,
        "mode": init.mode,
        "concurrency": init.concurrency,
        "env": env,
    }
