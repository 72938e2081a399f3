"""`EvalResult`: the scores of a model on some tasks, as ``results.json`` holds them."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import new_file
from moesaic.eval.statistics import Difference, Estimate

RESULTS, SAMPLES = "results.json", "samples"
_CERTAIN = 0.05
"""p below which a difference is not put down to chance."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a model comes from."""

    folder: str | None
    """None for a model in memory."""
    digest: str
    """Of its tensors."""


@dataclass(frozen=True, slots=True)
class Score:
    """A metric of a task."""

    estimate: Estimate
    higher_is_better: bool
    is_share: bool
    """Whether it is a mean of values from 0 to 1, which is read in per cent."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The metrics of some items."""

    n: int
    """Items."""
    metrics: Mapping[str, Score]
    """The first is the one to quote."""

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``."""
        return {
            "n": self.n,
            "metrics": {
                name: {**asdict(score.estimate), "higher_is_better": score.higher_is_better}
                for name, score in self.metrics.items()
            },
        }


@dataclass(frozen=True, slots=True)
class TaskResult:
    """What an evaluation says of one task."""

    scores: Scores
    description: Mapping[str, Any]
    """The task's own: version, shots, data."""
    groups: Mapping[str, Scores] = field(default_factory=dict)
    """The parts of the task, if it has parts."""
    against: Mapping[str, Difference] = field(default_factory=dict)
    """By the name of a metric, if there is a base."""

    def verdict(self, metric: str) -> str:
        """``better`` or ``worse`` than the base, or ``cannot tell apart``."""
        change = self.against[metric]
        if change.p is None or change.p >= _CERTAIN:
            return "cannot tell apart"
        is_better = (change.difference > 0) == self.scores.metrics[metric].higher_is_better
        return "better" if is_better else "worse"

    def to_json(self) -> dict[str, Any]:
        """As in ``results.json``."""
        found = {"description": dict(self.description), **self.scores.to_json()}
        if self.groups:
            found["groups"] = {name: group.to_json() for name, group in self.groups.items()}
        if self.against:
            found["against"] = {
                metric: {**asdict(change), "verdict": self.verdict(metric)}
                for metric, change in self.against.items()
            }
        return found


@dataclass(frozen=True, slots=True)
class EvalResult:
    """What an evaluation found."""

    model: Source
    settings: Mapping[str, Any]
    """Those of `EvalConfig`."""
    tasks: Mapping[str, TaskResult]
    base: Source | None
    """What the model was compared with."""
    seconds: float
    """Of this run: what was answered before took none."""
    versions: Mapping[str, str]
    hardware: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """``results.json``; a number that is not finite is a word."""
        found = {
            "kind": "evaluation",
            "model": asdict(self.model),
            "settings": dict(self.settings),
            "tasks": {name: task.to_json() for name, task in self.tasks.items()},
            "versions": dict(self.versions),
            "hardware": dict(self.hardware),
            "seconds": round(self.seconds, 3),
        }
        if self.base is not None:
            found["base"] = asdict(self.base)
        return encodable(found)

    def save(self, folder: Path) -> None:
        """Write ``results.json`` into a folder: whole, or not at all.

        Raises:
            CheckpointError: if the disk is full or refuses.
        """
        with new_file(folder / RESULTS) as file:
            text = json.dumps(self.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
            file.write(text.encode() + b"\n")


def encodable(value: Any) -> Any:
    """The same value with floats that JSON does not have as words: ``inf``."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {str(name): encodable(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [encodable(part) for part in value]
    return value
