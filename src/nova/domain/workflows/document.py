"""What may stand in a definition: the shape of nodes, edges and their fields. What they mean together is checked in
:mod:`nova.domain.workflows.definition`.
"""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from nova.domain.message import TOPIC
from nova.domain.names import NAME
from nova.domain.schemas import check_schema

MAX_WAIT_S = 365 * 86_400
"""Seconds that anything in a run may last or wait."""
MAX_CALL_S = 900
MAX_ATTEMPTS = 100
MAX_BRANCHES = 100
"""Of a choice or a parallel node."""
MAX_CONCURRENCY = 1000
"""Of a map."""

Name = Annotated[str, Field(pattern=NAME)]
ErrorKind = Annotated[str, Field(min_length=1, max_length=128)]
LongTimeout = Annotated[float, Field(gt=0, le=MAX_WAIT_S)]


class Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, populate_by_name=True)


class RetryPolicy(Part):
    """``max_attempts`` counts the first. Pauses begin at about ``base_ms`` and grow by ``factor`` up to ``max_backoff_ms``;
    ``jitter`` moves each by up to a quarter. ``on``: the types of error that are worth another attempt; default: all."""

    max_attempts: int = Field(1, ge=1, le=MAX_ATTEMPTS)
    base_ms: int = Field(1000, ge=0, le=3_600_000)
    max_backoff_ms: int = Field(60_000, ge=0, le=86_400_000)
    factor: float = Field(2.0, ge=1, le=10)
    jitter: bool = True
    on: list[ErrorKind] = Field(default=[], max_length=64)


class Catch(Part):
    """Goes on at ``goto`` after an error whose type is in ``on`` (default: any)."""

    on: list[ErrorKind] = Field(default=[], max_length=64)
    goto: str


class Compensate(Part):
    """The function that undoes what a node did. It gets ``{input, output}`` of the node unless ``input_mapping`` says else."""

    function_name: Name
    input_mapping: Any = None


class _Node(Part):
    node_key: Name
    input_mapping: Any = None
    when: Any = None
    join: Literal["all", "any"] = "all"


class _Working(_Node):
    """A node that can fail."""

    output_mapping: Any = None
    catch: list[Catch] = Field(default=[], max_length=32)
    continue_on_error: bool = False


class _Function(Part):
    node_type: Literal["function"]
    function_name: Name
    qualifier: str | None = None
    timeout_s: float = Field(30.0, gt=0, le=MAX_CALL_S)
    retry_policy: RetryPolicy = RetryPolicy()


class _SubWorkflow(Part):
    node_type: Literal["sub_workflow"]
    workflow_name: Name
    version: int | None = Field(None, ge=1)
    timeout_s: LongTimeout | None = None
    retry_policy: RetryPolicy = RetryPolicy()


class FunctionNode(_Function, _Working):
    compensate: Compensate | None = None


class SubWorkflowNode(_SubWorkflow, _Working):
    compensate: Compensate | None = None


class EachFunction(_Function):
    """What a map does with each item."""

    input_mapping: Any = None
    output_mapping: Any = None


class EachSubWorkflow(_SubWorkflow):
    input_mapping: Any = None
    output_mapping: Any = None


class MapNode(_Working):
    """``items`` is a path to a list, or a list. With a ``batch_size`` above 1 each call gets a list of so many items and
    answers a list of as many outputs."""

    node_type: Literal["map"]
    items: Any
    do: Annotated[EachFunction | EachSubWorkflow, Field(discriminator="node_type")]
    max_concurrency: int = Field(10, ge=1, le=MAX_CONCURRENCY)
    batch_size: int = Field(1, ge=1, le=1000)
    tolerated_failure_pct: float = Field(0, ge=0, le=100)
    timeout_s: LongTimeout | None = None
    compensate: Compensate | None = None


class Branch(Part):
    when: Any
    goto: str


class ChoiceNode(_Node):
    node_type: Literal["choice"]
    branches: list[Branch] = Field(min_length=1, max_length=MAX_BRANCHES)
    default: str | None = None


class ParallelNode(_Working):
    """Each branch is a definition whose input is this node's. ``complete``: how many must succeed."""

    node_type: Literal["parallel"]
    branches: list["DefinitionDocument"] = Field(min_length=1, max_length=MAX_BRANCHES)
    complete: Any = "all"
    timeout_s: LongTimeout | None = None

    @field_validator("complete")
    @classmethod
    def _complete(cls, value: Any) -> Any:
        if value not in ("all", "any") and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError("all, any, or the number of branches that must succeed")
        return value


class WaitNode(_Node):
    """``seconds`` is a number and ``until`` a time (RFC 3339), or a path to one."""

    node_type: Literal["wait"]
    seconds: Any = None
    until: Any = None


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    check_schema(schema)
    return schema


class Approval(Part):
    """``approvers`` are subjects such as ``key:alice``; empty: whoever holds ``workflow:approve``. ``form_schema`` (JSON Schema
    2020-12): what the payload of an approval must fit."""

    title: str = Field(min_length=1, max_length=256)
    form_schema: Annotated[dict[str, Any], AfterValidator(_schema)] | None = None
    approvers: list[Annotated[str, Field(min_length=1, max_length=256)]] = Field(default=[], max_length=100)


class WaitEventNode(_Working):
    """For an event that is sent (``key``), for a message of a topic that its ``filters`` let through, or for a person."""

    node_type: Literal["wait_event"]
    key: str | None = Field(None, min_length=1, max_length=256)
    topic: Annotated[str, Field(pattern=TOPIC)] | None = None
    filters: list[dict[str, Any]] = Field(default=[], max_length=100)
    approval: Approval | None = None
    timeout_s: LongTimeout | None = None


class PassNode(_Node):
    node_type: Literal["pass"]
    value: Any = None


class SucceedNode(_Node):
    node_type: Literal["succeed"]


class FailNode(_Node):
    node_type: Literal["fail"]
    error: str = Field("WorkflowFailed", min_length=1, max_length=128)
    cause: str = Field("", max_length=4096)


NodeDocument = Annotated[
    FunctionNode
    | SubWorkflowNode
    | MapNode
    | ChoiceNode
    | ParallelNode
    | WaitNode
    | WaitEventNode
    | PassNode
    | SucceedNode
    | FailNode,
    Field(discriminator="node_type"),
]
NODE_TYPES = (
    "function",
    "sub_workflow",
    "map",
    "choice",
    "parallel",
    "wait",
    "wait_event",
    "pass",
    "succeed",
    "fail",
)


class EdgeDocument(Part):
    from_: str = Field(alias="from")
    to: str
    when: Any = None


class DefinitionDocument(Part):
    nodes: list[NodeDocument] = Field(min_length=1)
    edges: list[EdgeDocument] = []
    output: Any = None


ParallelNode.model_rebuild()
