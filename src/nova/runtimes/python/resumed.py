"""A loaded worker whose whole machine is kept in a snapshot, and goes on as the worker of other instances."""

import gc
import json
import os
import random
import types
from typing import Any, Final

from nova.runtimes.python import answers
from nova.runtimes.python.loading import renew, run_hook

_READY: Final = b'{"ready": {"concurrency": 1}}\n'


class Resumed:
    """What a worker answers to lines that are no calls."""

    def __init__(self, module: types.ModuleType, env: dict[str, str], code_dir: str) -> None:
        self._module = module
        self._env = env
        self._code_dir = code_dir

    def answer(self, line: bytes) -> bytes:
        """``{"hook": name}`` runs that hook. A second ``{"init": …}`` comes after the snapshot: take over the environment
        that this instance has, renew what must not come out as in another, and run ``after_restore``."""
        try:
            message: dict[str, Any] = json.loads(line)
            if "hook" in message:
                run_hook(self._module, message["hook"])
                gc.collect()
            else:
                take_over(self._env, message["init"]["env"])
                self._env = message["init"]["env"]
                random.seed()
                renew()
                run_hook(self._module, "after_restore")
        except BaseException as error:
            return answers.of_exception(error, self._code_dir)
        return _READY


def take_over(old: dict[str, str], new: dict[str, str]) -> None:
    """Change the environment from what one instance was told to what another is; what the function has set itself stays."""
    for name, value in new.items():
        if old.get(name) != value:
            os.environ[name] = value
