"""From the judgements of items to the scores of a task."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch

from moesaic.eval.results import Score, Scores, TaskResult
from moesaic.eval.samples import Sample
from moesaic.eval.statistics import (
    Difference,
    Estimate,
    Pair,
    mean_difference,
    mean_estimate,
    ratio_difference,
    ratio_estimate,
)
from moesaic.eval.task import Metric, Task

_SEED = 0
"""Of bootstraps and permutations: the same samples give the same numbers."""


def summarise(task: Task, samples: Sequence[Sample]) -> TaskResult:
    """The scores of a task, of all items and of each part."""
    parts: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.group is not None:
            parts.setdefault(sample.group, []).append(sample)
    return TaskResult(
        _scores(task.metrics, samples),
        task.description,
        {name: _scores(task.metrics, part) for name, part in parts.items()},
    )


def compare(
    task: Task, samples: Sequence[Sample], base: Mapping[str, Sample]
) -> dict[str, Difference]:
    """Each metric of a task minus the base's on the same items.

    Args:
        task: both were asked.
        samples: of the model.
        base: of the base, by question; all questions of the samples are there.
    """
    others = [base[sample.question] for sample in samples]
    return {metric.name: _difference(metric, samples, others) for metric in task.metrics}


def _scores(metrics: Sequence[Metric], samples: Sequence[Sample]) -> Scores:
    return Scores(
        len(samples),
        {
            metric.name: Score(
                _estimate(metric, samples), metric.is_higher_better, metric.aggregate == "mean"
            )
            for metric in metrics
        },
    )


def _estimate(metric: Metric, samples: Sequence[Sample]) -> Estimate:
    if metric.aggregate == "mean":
        return mean_estimate(_values(metric, samples), [sample.group for sample in samples])
    return ratio_estimate(_pairs(metric, samples), metric.aggregate, _generator())


def _difference(metric: Metric, samples: Sequence[Sample], base: Sequence[Sample]) -> Difference:
    if metric.aggregate == "mean":
        groups = [sample.group for sample in samples]
        values, others = _values(metric, samples), _values(metric, base)
        return mean_difference(values, others, groups, _generator())
    pairs, others = _pairs(metric, samples), _pairs(metric, base)
    return ratio_difference(pairs, others, metric.aggregate, _generator())


def _values(metric: Metric, samples: Sequence[Sample]) -> list[float]:
    return [cast(float, sample.judgement.values[metric.name]) for sample in samples]


def _pairs(metric: Metric, samples: Sequence[Sample]) -> list[Pair]:
    return [cast(Pair, sample.judgement.values[metric.name]) for sample in samples]


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(_SEED)
