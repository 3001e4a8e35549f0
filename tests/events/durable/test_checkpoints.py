"""What a run writes: as a whole or not at all, once, and only while the execution is its own."""

import base64
from typing import Any

import pytest

from nova.domain.durable import MAX_OPERATIONS, MAX_OUTPUT, Token, updates
from nova.domain.identity import Scope
from nova.errors import NovaError
from nova.ids import new_id
from nova.store.db import Database
from nova.store.durable import DurableStore, NewExecution
from nova.store.durable_runs import Checkpoint, DurableRunStore, Written

pytestmark = pytest.mark.anyio
FUNCTION = new_id()


def step(number: str, action: str = "SUCCEED", **more: Any) -> dict[str, Any]:
    return {"Id": number, "Type": "STEP", "SubType": "Step", "Name": f"s{number}", "Action": action} | more


class Runs:
    """One execution and what runs write to it."""

    def __init__(self, database: Database) -> None:
        self.store = DurableStore(database)
        self.runs = DurableRunStore(database)
        self.id = new_id()
        self.seen = 0

    async def start(self) -> None:
        new = NewExecution(self.id, Scope(), FUNCTION, "f", 1, None, "{}", "me", "http", (), None, None, 3600)
        assert await self.store.start([new]) == ([self.id], [])

    async def begin(self, epoch: int) -> None:
        begun = await self.runs.begin(self.id, epoch, 1000)
        assert begun is not None
        self.seen = begun.execution.rev

    async def write(self, epoch: int, *given: dict[str, Any], function: str = FUNCTION) -> Written | NovaError:
        one = Checkpoint(self.id, function, epoch, self.seen, Scope(), updates(list(given)))
        (answer,) = await self.runs.checkpoint([one])
        if isinstance(answer, Written):
            self.seen = answer.rev
        return answer

    async def recorded(self) -> list[tuple[str, str, int]]:
        found = await self.store.steps(self.id, after=0, limit=100)
        return [(operation.id, operation.status, operation.attempt) for operation in found]


@pytest.fixture
async def runs(database: Database) -> Runs:
    made = Runs(database)
    await made.start()
    await made.begin(1)
    return made


def code(answer: Written | NovaError) -> str:
    assert isinstance(answer, NovaError), answer
    return answer.code


async def test_a_former_owner_writes_nothing(runs: Runs) -> None:
    assert isinstance(await runs.write(1, step("1", Payload="1")), Written)
    await runs.begin(2)
    for given in ([step("2")], [step("2"), step("3")]):
        assert code(await runs.write(1, *given)) == "version_conflict"
    assert code(await runs.write(2, step("2"), function=new_id())) == "version_conflict"
    assert await runs.recorded() == [("1", "SUCCEEDED", 1)]
    assert await runs.runs.operations(runs.id, FUNCTION, 1, after=0, limit=10) == []
    assert len(await runs.runs.operations(runs.id, FUNCTION, 2, after=0, limit=10)) == 1
    assert await runs.runs.begin(runs.id, 2, 10) is None, "a run begins once"
    await runs.store.cancel(Scope(), runs.id, "{}")
    assert code(await runs.write(2, step("2"))) == "version_conflict"


async def test_another_operation_at_a_recorded_place_refuses_all_of_the_checkpoint(runs: Runs) -> None:
    await runs.write(1, step("1"))
    other = step("1") | {"Name": "another"}
    for given in ([other], [step("2"), other], [step("2"), step("1") | {"Type": "CONTEXT"}]):
        answer = await runs.write(1, *given)
        assert code(answer) == "invalid_state"
        assert "Nova.NonDeterministic" in str(answer)
    assert [number for number, _, _ in await runs.recorded()] == ["1"]


async def test_what_has_ended_stays_as_it_is_and_attempts_are_counted(runs: Runs) -> None:
    error = {"ErrorType": "E", "ErrorMessage": "no"}
    await runs.write(1, step("1", "START"), step("1", "RETRY", Error=error, StepOptions={"NextAttemptDelaySeconds": 0}))
    assert await runs.recorded() == [("1", "PENDING", 1)]
    await runs.begin(2)
    assert await runs.recorded() == [("1", "READY", 1)], "time has passed"
    await runs.write(2, step("1", Payload="7"))
    again = await runs.write(2, step("1", "FAIL", Error=error))
    assert isinstance(again, Written)
    assert [(operation.status, operation.result) for operation in again.changed] == []
    assert await runs.recorded() == [("1", "SUCCEEDED", 2)]


async def test_an_execution_has_at_most_so_many_operations_of_such_a_size(runs: Runs, database: Database) -> None:
    near = "UPDATE durable_executions SET steps = %(n)s WHERE id = %(id)s"
    await database.run(near, n=MAX_OPERATIONS - 1, id=runs.id)
    assert code(await runs.write(1, step("1"), step("2"))) == "quota_exceeded"
    assert isinstance(await runs.write(1, step("1")), Written)
    assert code(await runs.write(1, step("2"))) == "quota_exceeded"
    with pytest.raises(NovaError) as refused:
        updates([step("3", Payload="x" * (MAX_OUTPUT + 1))])
    assert refused.value.code == "payload_too_large"


async def test_an_event_that_comes_early_is_kept_and_what_others_change_is_told(runs: Runs) -> None:
    await runs.store.event(Scope(), runs.id, "go", '"early"')
    wait = {"Id": "1", "Type": "CALLBACK", "SubType": "WaitEvent", "Name": "go", "Action": "START"}
    answer = await runs.write(1, wait)
    assert isinstance(answer, Written)
    assert [(operation.status, operation.result) for operation in answer.changed] == [("SUCCEEDED", '"early"')]
    await runs.write(1, wait | {"Id": "2"})
    await runs.store.event(Scope(), runs.id, "go", '"late"')
    told = await runs.write(1, step("3"))
    assert isinstance(told, Written)
    assert [(operation.id, operation.result) for operation in told.changed] == [("2", '"late"'), ("3", None)]


@pytest.mark.parametrize(
    ("update", "refused"),
    [
        ({"Id": "1", "Type": "EXECUTION", "Action": "SUCCEED"}, "unsupported"),
        ({"Id": "1", "Type": "WAIT", "Action": "CANCEL"}, "unsupported"),
        ({"Id": "a b", "Type": "STEP", "Action": "START"}, "validation_failed"),
        ({"Id": "1", "Type": "WAIT", "Action": "START", "WaitOptions": {"WaitSeconds": 1e9}}, "validation_failed"),
        ({"Id": "1", "Type": "CHAINED_INVOKE", "Action": "START"}, "validation_failed"),
        (
            {
                "Id": "1",
                "Type": "CHAINED_INVOKE",
                "Action": "START",
                "ChainedInvokeOptions": {"FunctionName": "f", "TenantId": "t"},
            },
            "unsupported",
        ),
    ],
)
def test_what_the_protocol_has_and_nova_has_not_is_refused_by_name(update: dict[str, Any], refused: str) -> None:
    with pytest.raises(NovaError) as error:
        updates([update])
    assert error.value.code == refused


@pytest.mark.parametrize("text", ["", "&", "bm8=", base64.b64encode(f"r.{1 << 70}.0".encode()).decode()])
def test_a_token_that_was_never_given_is_a_stale_one(text: str) -> None:
    with pytest.raises(NovaError) as error:
        Token.of(text)
    assert error.value.code == "version_conflict"


async def test_only_the_run_of_an_execution_lets_time_pass_for_it(runs: Runs) -> None:
    wait = {
        "Id": "1",
        "Type": "WAIT",
        "SubType": "Wait",
        "Name": "w",
        "Action": "START",
        "WaitOptions": {"WaitSeconds": 0},
    }
    await runs.write(1, wait, step("2"))
    await runs.runs.ripen(runs.id, new_id(), 1)
    await runs.runs.ripen(runs.id, FUNCTION, 2)
    assert await runs.recorded() == [("1", "STARTED", 0), ("2", "SUCCEEDED", 1)]
    await runs.runs.ripen(runs.id, FUNCTION, 1)
    assert (await runs.recorded())[0] == ("1", "SUCCEEDED", 0)
