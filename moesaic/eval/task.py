"""`Task`: items of a data set, what is asked about each, and how an answer is judged."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from moesaic.eval.requests import Answer, Request

Item = Mapping[str, Any]
"""One row of a data set, as JSON values."""


@dataclass(frozen=True, slots=True)
class Metric:
    """A number that an evaluation gives."""

    name: str
    """As published: ``acc_norm``, or ``exact_match,strict-match`` with the answer's filter."""
    is_higher_better: bool = True
    aggregate: Literal["mean", "weighted_perplexity", "bits_per_byte", "nats_per_unit"] = "mean"
    """How items' values become one: their mean; or all nats by all units, as exp of it, in bits, or
    as it is."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of one item."""

    values: Mapping[str, float | tuple[float, float]]
    """By the name of a metric; a pair is (log-probability, units it is spread over)."""
    answer: str
    """What the model said, as a person reads it: the choice taken, the number found, the code."""
    target: str
    """What would have been right."""


class Task(Protocol):
    """An evaluation."""

    @property
    def name(self) -> str:
        """As published, and as ``--tasks`` names it."""
        ...

    @property
    def metrics(self) -> Sequence[Metric]:
        """What it gives; the first is the one to quote."""
        ...

    @property
    def items(self) -> Sequence[Item]:
        """What it asks about, in the order of the data."""
        ...

    @property
    def description(self) -> Mapping[str, Any]:
        """Version, shots, data and whatever else changes a score, as JSON values."""
        ...

    def group(self, item: Item) -> str | None:
        """The part of the task an item belongs to, as MMLU's subject; None without parts."""
        ...

    def requests(self, item: Item) -> Sequence[Request]:
        """What to ask the model about an item."""
        ...

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        """Judge the answers to the item's requests, in their order."""
        ...
