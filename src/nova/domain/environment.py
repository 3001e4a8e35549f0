"""A function's own environment variables: which names it may set, and how much."""

import re
from collections.abc import Mapping

from nova.domain.names import ENV_VAR

MAX_VARIABLES = 100
MAX_BYTES = 32 * 1024
"""Names and values together."""
SECRET_PREFIX = "$SECRET:"
_RESERVED = frozenset({"_HANDLER", "LAMBDA_TASK_ROOT", "LAMBDA_RUNTIME_DIR", "TRACEPARENT", "TRACESTATE"})
_RESERVED_PREFIXES = ("NOVA_", "AWS_LAMBDA_")
_name = re.compile(ENV_VAR[:-1] + r"\Z")


def is_reserved(name: str) -> bool:
    """Set by the platform in every worker."""
    return name in _RESERVED or name.startswith(_RESERVED_PREFIXES)


def check_environment(variables: Mapping[str, str | None]) -> None:
    """Raises ValueError with a sentence for the user. A value of None stands for a variable that is taken away."""
    if len(variables) > MAX_VARIABLES:
        raise ValueError(f"at most {MAX_VARIABLES} variables")
    if sum(len(name.encode()) + len((value or "").encode()) for name, value in variables.items()) > MAX_BYTES:
        raise ValueError(f"names and values together are over {MAX_BYTES // 1024} KiB")
    for name, value in variables.items():
        if _name.match(name) is None:
            raise ValueError(f"{name[:64]!r} is not a name: letters, digits and _, not beginning with a digit")
        if is_reserved(name):
            raise ValueError(f"{name!r} is set by the platform")
        if value is not None and value.startswith(SECRET_PREFIX):
            raise ValueError(f"{name!r} refers to a secret, which this server does not have")
        if value is not None and "\0" in value:
            raise ValueError(f"{name!r} has a NUL character")
