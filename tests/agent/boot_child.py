"""Runs the first process of a container in this process, without the container: ``boot_child.py <src> <description> <code>``
and, for one that can be kept in a snapshot, a file for what it is told when it goes on. With ``TEST_BLANK`` it is there for
nobody."""

import dataclasses
import functools
import json
import os
import sys
from typing import Any

blank = bool(os.environ.pop("TEST_BLANK", ""))
source, description, code_dir, *thaws = sys.argv[1:]
sys.path.insert(0, source)

from nova.agent import boot  # noqa: E402
from nova.agent.entry import Entry  # noqa: E402
from nova.agent.outpost import Outpost  # noqa: E402

_config = Entry.config


def _elsewhere(self: Entry, *args: Any, **options: Any) -> Any:
    """What a container has at ``/code`` is somewhere else here, and the guest API's port is anybody's."""
    return dataclasses.replace(_config(self, *args, **options), code_dir=code_dir, guest_port=0, blank=blank)


def _awaken(thaw: Any) -> None:
    """In place of the clock and the random numbers of a machine."""
    with open(thaws[0], "a") as file:
        file.write(json.dumps(thaw.as_head()) + "\n")


Entry.config = _elsewhere  # type: ignore[method-assign]
if thaws:
    vars(boot)["Outpost"] = functools.partial(Outpost, awaken=_awaken)
boot.main(description)
