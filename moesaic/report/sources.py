"""`Sources`: everything that was found to report, and what was left out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesaic.report.forms import (
    Coverage,
    Evaluated,
    Merged,
    Sample,
    Scores,
    Sliced,
    VariantStudy,
)
from moesaic.report.routed import Routed
from moesaic.runlog import RunRecord


@dataclass(frozen=True, slots=True)
class Run:
    """A training run."""

    name: str
    folder: Path
    record: RunRecord
    slice: Sliced | None
    """Which experts it trains; None where it trains the whole model."""
    scores: Scores | None
    coverage: Coverage | None

    @property
    def config(self) -> dict[str, Any]:
        """Its settings."""
        return self.record.start["config"]


@dataclass(frozen=True, slots=True)
class Scored:
    """Experts scored on some data."""

    name: str
    folder: Path
    scores: Scores
    coverage: Coverage | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Scores of a checkpoint on tasks."""

    name: str
    folder: Path
    results: Evaluated
    samples: dict[str, tuple[Sample, ...]]
    """Task → answers, in the order of the items."""


@dataclass(frozen=True, slots=True)
class Merge:
    """A merged checkpoint."""

    name: str
    folder: Path
    record: Merged


@dataclass(frozen=True, slots=True)
class RoutingResult:
    """An analysis of a checkpoint's routing."""

    name: str
    folder: Path
    found: Routed


@dataclass(frozen=True, slots=True)
class Study:
    """Variants trained with several seeds."""

    name: str
    folder: Path
    found: VariantStudy


@dataclass(slots=True)
class Sources:
    """Everything that was found."""

    runs: list[Run] = field(default_factory=list)
    scored: list[Scored] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    merges: list[Merge] = field(default_factory=list)
    routings: list[RoutingResult] = field(default_factory=list)
    studies: list[Study] = field(default_factory=list)
    not_shown: list[str] = field(default_factory=list)
    """What was left out, and why, a sentence each."""

    @property
    def judged(self) -> list[Evaluation]:
        """The evaluations but for those that others are held against."""
        bases = {one.results.base["digest"] for one in self.evaluations if one.results.base}
        return [one for one in self.evaluations if one.results.model.get("digest") not in bases]

    @property
    def shown(self) -> dict[str, list[str]]:
        """Names of what is on the page, by what it is."""
        kinds = {
            "runs": self.runs,
            "scored experts": self.scored,
            "evaluations": self.evaluations,
            "merged checkpoints": self.merges,
            "routing analyses": self.routings,
            "studies of variants": self.studies,
        }
        return {kind: [one.name for one in found] for kind, found in kinds.items() if found}
