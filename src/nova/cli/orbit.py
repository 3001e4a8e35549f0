"""``orbit``: the command line for people who use a Nova server.

Exit codes: 0 done, 1 failure, 2 wrong usage, 3 not found, 4 denied, 5 conflict, 6 the function failed, 7 out of time,
8 throttled.
"""

import sys

import typer

from nova.cli import (
    admin,
    approvals,
    asyncs,
    backends,
    calls,
    charts,
    describing,
    durable,
    functions,
    layers,
    nodes,
    platform,
    preparing,
    prewarming,
    rollouts,
    runs,
    schedules,
    snapshots,
    state,
    subscriptions,
    topics,
    triggers,
    versions,
    volumes,
    workflows,
)
from nova.cli.output import Format, Output
from nova.cli.session import CliError, root
from nova.client import ApiError, ClientError, TimedOut, UsageError

app = typer.Typer(
    name="orbit",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Deploy, call and look after functions on a Nova server.",
    epilog="Global options may stand before or after the command.",
)
app.callback()(root)
for _noun in (
    functions,
    describing,
    calls,
    prewarming,
    asyncs,
    durable,
    versions,
    rollouts,
    schedules,
    topics,
    subscriptions,
    workflows,
    runs,
    approvals,
    triggers,
    snapshots,
    state,
    layers,
    volumes,
    platform,
    backends,
    preparing,
    nodes,
    charts,
    admin,
):
    _noun.register(app)

_BY_STATUS = {
    401: 4,
    403: 4,
    404: 3,
    408: 7,
    409: 5,
    410: 3,
    412: 5,
    428: 5,
    429: 8,
    499: 7,
    502: 6,
    503: 8,
    504: 7,
}
_BY_CODE = {"dependency_unavailable": 1, "upstream_failed": 1}


def exit_code(problem: Exception) -> int:
    """What a failure means for the shell."""
    match problem:
        case CliError():
            return problem.exit_code
        case ApiError():
            return _BY_CODE.get(problem.code) or _BY_STATUS.get(problem.status, 1)
        case UsageError():
            return 2
        case TimedOut():
            return 7
        case _:
            return 1


def main() -> None:
    try:
        app()
    except (ApiError, ClientError, CliError) as exc:
        Output(Format.TABLE, no_color="--no-color" in sys.argv).failure(exc)
        sys.exit(exit_code(exc))
