"""The parts of result files that a report reads; whatever else they hold is left alone."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Form(BaseModel):
    """Part of a file: what is named here must be there and of this type."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Selected(Form):
    """Which experts a run trains and which it holds beside them."""

    experts: dict[int, tuple[int, ...]]
    frozen: dict[int, tuple[int, ...]] = {}
    shared_experts: bool = False
    non_expert_modules: bool = False
    modules: tuple[str, ...] = ()


class Sliced(Form):
    """``slice.json``."""

    base: str
    selection: Selected


class Scores(Form):
    """``scores.json``: how often and with what gate values each expert is chosen."""

    token: dict[int, tuple[float, ...]]
    gate: dict[int, tuple[float, ...]]
    chosen_per_token: int
    tokens: int
    loss: float


class Held(Form):
    """Shares of the natural routing that some experts hold."""

    choices: float
    gate: float
    tokens: float


class HeldInLayer(Held):
    """The same in one layer."""

    held: int


class HeldEverywhere(Held):
    """The same over all layers."""

    everywhere: float


class Coverage(Form):
    """``coverage.json``: what a slice holds of the natural routing before it is trained."""

    tokens: int
    held_out: bool
    natural_loss: float
    held_loss: float
    gap: float
    gap_error: float | None
    overall: HeldEverywhere
    curve: tuple[HeldEverywhere, ...]
    layers: dict[int, HeldInLayer]


class Shard(Form):
    """What a merge says of one shard."""

    variant: str
    hold: str
    data: tuple[str, ...]
    fed: str
    tokens: int
    steps: int
    signed_by: str | None = None


class Pair(Form):
    """How the changes of two shards compare."""

    shards: tuple[str, str]
    cosine: float | None
    opposed: float | None


class Overlap(Form):
    """What two or more shards trained, and whether they agree."""

    experts: int
    others: int
    cosine: float | None
    opposed: float | None
    pairs: tuple[Pair, ...]


class Retained(Form):
    """Loss on one text before and after a merge."""

    tokens: int
    before: float
    after: float


class Merged(Form):
    """``merge.json``."""

    base: str
    digest: str
    config: dict[str, Any]
    shards: dict[str, Shard]
    parts: dict[str, dict[str, float]]
    """Tensor → shard → what its change was multiplied by."""
    overlap: Overlap
    layers: dict[str, Overlap]
    retained: dict[str, Retained]


class Score(Form):
    """One number of a task, with its 95 % interval where there is one."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    higher_is_better: bool = True


class Against(Form):
    """A score minus the base's on the same items."""

    base: float
    difference: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    test: str | None = None
    verdict: str | None = None


class TaskResult(Form):
    """What an evaluation says of one task; the first metric is the one to quote."""

    n: int
    description: dict[str, Any] = {}
    metrics: Annotated[dict[str, Score], Field(min_length=1)]
    against: dict[str, Against] | None = None


class Evaluated(Form):
    """``results.json``."""

    kind: Literal["evaluation"]
    model: dict[str, Any]
    settings: dict[str, Any]
    tasks: dict[str, TaskResult]
    base: dict[str, Any] | None = None
    """What it was held against: folder and digest."""
    versions: dict[str, Any] = {}
    hardware: dict[str, Any] = {}
    seconds: float | None = None


class Judged(Form):
    """What became of an item."""

    values: dict[str, Any]
    answer: str
    target: str


class Sample(Form):
    """One line of ``samples/<task>.jsonl``."""

    item: int
    group: str | None = None
    requests: tuple[dict[str, Any], ...]
    judgement: Judged


class Outcome(Form):
    """What one seed of a variant came to; losses by domain, in nats per token."""

    as_trained: dict[str, float]
    merged: dict[str, float]
    tokens_per_s: float
    peak_over_start_bytes: int


class VariantRuns(Form):
    """A variant's seeds."""

    runs: Annotated[tuple[Outcome, ...], Field(min_length=1)]
    rise: dict[str, Any]
    """Its keys are the domains that are to be retained."""
    setting: dict[str, Any] = {}
    """What differs between variants: the ``esft`` table, the learning rate."""


class StudyStart(Form):
    """What all variants start from and have in common."""

    loss: dict[str, float]
    base_steps: int
    steps: int
    rows: int
    seq_len: int
    held_out_rows: int
    setting: dict[str, Any] = {}


class VariantStudy(Form):
    """A result of ``python -m benchmarks.variants``."""

    kind: Literal["variants"]
    hardware: dict[str, Any]
    versions: dict[str, Any]
    threads: int
    cases: dict[str, Any]
    """``base``, and the variants by name; see `base` and `variants`."""

    @property
    def base(self) -> StudyStart:
        """What they start from."""
        return StudyStart.model_validate(self.cases["base"])

    @property
    def variants(self) -> dict[str, VariantRuns]:
        """Name → seeds."""
        return {
            name: VariantRuns.model_validate(case)
            for name, case in self.cases.items()
            if name != "base"
        }
