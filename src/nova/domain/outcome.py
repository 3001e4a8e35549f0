"""How a call ended, in one word: reasons that call for different answers never share one."""

from collections.abc import Mapping
from typing import Final, Literal

from nova.errors import FunctionError

Outcome = Literal[
    "success",
    "handler_error",
    "init_error",
    "out_of_memory",
    "timeout",
    "crash",
    "cancelled",
    "instance_lost",
    "invalid_output",
    "output_too_large",
]

_BY_TYPE: Final[Mapping[str, Outcome]] = {
    "Nova.OutOfMemory": "out_of_memory",
    "Nova.Timeout": "timeout",
    "Nova.ExitError": "crash",
    "Nova.Signal": "crash",
    "Nova.WorkerLost": "crash",
    "Nova.Cancelled": "cancelled",
    "Nova.InstanceLost": "instance_lost",
    "Nova.InvalidOutput": "invalid_output",
    "Nova.OutputTooLarge": "output_too_large",
    "Nova.InitError": "init_error",
}


def outcome_of(error: FunctionError | None, *, loaded: bool = True) -> Outcome:
    """The outcome of a call that reached an instance. ``loaded`` False: its code did not load, whatever it raised.

    A type of the user's own (a class that was raised) is an error of the handler.
    """
    if error is None:
        return "success"
    known = _BY_TYPE.get(error.type)
    if not loaded and known in (None, "crash"):
        return "init_error"
    return known or "handler_error"
