"""What a run yields: rows, ratios, and the machine they were measured on. This is the format of the JSON file."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

Better = Literal["lower", "higher"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Bar(_Record):
    """A number to reach. ``must`` is promised in SPECIFICATION.md; ``aim`` is a direction without a verdict."""

    limit: float
    kind: Literal["must", "aim"] = "must"

    def met(self, value: float, better: Better) -> bool:
        return value <= self.limit if better == "lower" else value >= self.limit


class Row(_Record):
    """One measured number of one subject. ``rounds`` are its values per round, for judging noise; ``facts`` are
    by-products of the same measurement (phases of a call, counts) in the units their names say; ``note`` says what a
    number cannot, such as the first wrong answer of those that were counted."""

    measure: str
    metric: str
    subject: str
    value: float
    unit: str
    better: Better
    bar: Bar | None = None
    rounds: list[float] = Field(default_factory=list)
    facts: dict[str, float] = Field(default_factory=dict)
    note: str = ""

    @property
    def key(self) -> tuple[str, str, str]:
        return self.measure, self.metric, self.subject


class Ratio(_Record):
    """Nova beside a peer for one metric; ``times_better`` above 1 means that Nova is ahead."""

    measure: str
    metric: str
    peer: str
    ours: float
    theirs: float
    unit: str
    times_better: float
    bar: Bar | None = None


class Problem(_Record):
    """Something that was not measured, and why: a missing number is never silent."""

    subject: str
    measure: str
    reason: str


class Machine(_Record):
    cpu: str
    cores: int
    memory_mb: int
    kernel: str
    system: str
    python: str
    load_before: float
    load_after: float = 0.0


class Report(_Record):
    format: Literal[1] = 1
    taken_at: str
    revision: str
    quick: bool
    crowd_driver: str
    machine: Machine
    subjects: dict[str, str]
    """name → version and how it was served"""
    rows: list[Row] = Field(default_factory=list)
    ratios: list[Ratio] = Field(default_factory=list)
    problems: list[Problem] = Field(default_factory=list)

    def missed(self) -> list[Row | Ratio]:
        """Every promised number that was measured and not reached."""
        rows = [r for r in self.rows if r.bar and r.bar.kind == "must" and not r.bar.met(r.value, r.better)]
        ratios = [r for r in self.ratios if r.bar and r.bar.kind == "must" and not r.bar.met(r.times_better, "higher")]
        return [*rows, *ratios]
