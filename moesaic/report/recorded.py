"""What the sections of a page rely on in the record of a run."""

from typing import Any

from moesaic.report.forms import Form


class RecordedSource(Form):
    """Where text lies."""

    path: str


class RecordedData(Form):
    """What a run reads."""

    sources: tuple[RecordedSource, ...]
    seq_len: int


class RecordedRows(Form):
    """How many sequences a step has at the beginning."""

    start: float


class RecordedBatch(Form):
    """Sequences of a step."""

    rows: RecordedRows
    micro_rows: int | None


class RecordedOptimizer(Form):
    """What memory depends on."""

    states: str
    gradients: str
    offload: bool


class RecordedEsft(Form):
    """How the experts of a slice are held."""

    variant: str
    hold: str
    lora: dict[str, Any] | None


class RecordedDomains(Form):
    """What is held out."""

    rows: int
    domains: dict[str, RecordedSource]


class RecordedConfig(Form):
    """The settings in a run's record, as far as sections rely on them."""

    model: str | dict[str, Any]
    steps: int
    data: RecordedData
    batch: RecordedBatch
    optimizer: RecordedOptimizer
    precision: str
    recompute: bool
    esft: RecordedEsft | None
    evaluation: RecordedDomains | None


class RecordedStep(Form):
    """A line of the kind ``step``."""

    step: int
    time_s: float
    tokens: int
    tokens_per_s: float
    memory_bytes: int


class RecordedEvaluation(Form):
    """A line of the kind ``evaluation``."""

    step: int
    domain: str
    loss: float


class RecordedText(Form):
    """What was read of one source."""

    path: str
    documents: int
    split: int
    truncated: int
    tokens: int
    learned: int
    left_out: int


class RecordedReport(Form):
    """A line of the kind ``data``."""

    padding_share: float
    sources: tuple[RecordedText, ...]
