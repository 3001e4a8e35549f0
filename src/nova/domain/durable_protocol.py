"""Executions and operations as the Lambda durable-execution protocol writes them."""

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from nova import payload
from nova.domain.durable import Execution, Operation, Token, arn, callback_id

Moment = Callable[[datetime], float]


def shown_operation(execution_id: str, operation: Operation, moment: Moment) -> dict[str, Any]:
    """An operation as the protocol has it; ``moment`` writes a time: answers have seconds, a run's input milliseconds."""
    shown: dict[str, Any] = {
        "Id": operation.id,
        "Type": operation.type,
        "Status": operation.status,
        "StartTimestamp": moment(operation.started_at),
    }
    for name, value in (
        ("ParentId", operation.parent_id),
        ("Name", operation.name),
        ("SubType", operation.sub_type),
        ("EndTimestamp", operation.ended_at and moment(operation.ended_at)),
    ):
        if value is not None:
            shown[name] = value
    ended: dict[str, Any] = {}
    if operation.result is not None:
        ended["Result"] = operation.result
    if operation.error is not None:
        ended["Error"] = payload.decode(operation.error)
    match operation.type:
        case "STEP":
            ended["Attempt"] = operation.attempt
            if operation.wake_at is not None:
                ended["NextAttemptTimestamp"] = moment(operation.wake_at)
            shown["StepDetails"] = ended
        case "CONTEXT":
            shown["ContextDetails"] = ended | ({"ReplayChildren": True} if operation.replay else {})
        case "WAIT":
            end = operation.wake_at or operation.ended_at
            shown["WaitDetails"] = {} if end is None else {"ScheduledEndTimestamp": moment(end)}
        case "CALLBACK":
            shown["CallbackDetails"] = ended | {"CallbackId": callback_id(execution_id, operation.id)}
        case _:
            shown["ChainedInvokeDetails"] = ended
    return shown


def millis(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def seconds(moment: datetime) -> float:
    return round(moment.timestamp(), 3)


def envelope(execution: Execution, token: Token, operations: Sequence[Operation], *, more: bool) -> bytes:
    """What a run's handler gets. ``more``: there are operations behind the last of these."""
    first = {
        "Id": execution.id,
        "Type": "EXECUTION",
        "Status": "STARTED",
        "StartTimestamp": millis(execution.created_at),
        "ExecutionDetails": {"InputPayload": execution.input},
    }
    shown = [first, *(shown_operation(execution.id, operation, millis) for operation in operations)]
    told = {
        "DurableExecutionArn": arn(
            execution.scope.tenant, execution.function, execution.version, execution.name, execution.id
        ),
        "CheckpointToken": token.text(),
        "InitialExecutionState": {"Operations": shown, "NextMarker": str(operations[-1].place) if more else ""},
    }
    return payload.encode(told)
