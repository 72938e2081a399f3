"""Variants trained with several seeds: what each learns, forgets and costs, and which to use."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

from moesaic.report.estimate import Estimate, estimate
from moesaic.report.forms import Outcome, VariantStudy


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to fine-tune, over its seeds; losses in nats per token."""

    name: str
    before: Mapping[str, float]
    """Domain → loss of the base."""
    task: tuple[str, ...]
    """Domains that are learned."""
    retained: tuple[str, ...]
    """Domains that are to be kept."""
    runs: tuple[Outcome, ...]

    @property
    def as_trained(self) -> Estimate:
        """Loss of the task with the routing of training."""
        return estimate([self._task_loss(run.as_trained) for run in self.runs])

    @property
    def merged(self) -> Estimate:
        """Loss of the task with all experts, as in use."""
        return estimate([self._task_loss(run.merged) for run in self.runs])

    @property
    def gap(self) -> Estimate:
        """What merging adds to the task's loss."""
        pairs = [
            (self._task_loss(run.merged), self._task_loss(run.as_trained)) for run in self.runs
        ]
        return estimate([merged - trained for merged, trained in pairs])

    @property
    def each_learned(self) -> list[float]:
        """By how much the task's loss fell, merged, by seed."""
        before = self._task_loss(self.before)
        return [before - self._task_loss(run.merged) for run in self.runs]

    @property
    def each_forgot(self) -> list[float]:
        """By how much the loss of the other domains rose, merged, on average, by seed."""
        return [
            fmean(run.merged[domain] - self.before[domain] for domain in self.retained)
            for run in self.runs
        ]

    @property
    def learned(self) -> Estimate:
        """`each_learned` over seeds."""
        return estimate(self.each_learned)

    @property
    def forgot(self) -> Estimate:
        """`each_forgot` over seeds."""
        return estimate(self.each_forgot)

    def rise(self, domain: str) -> Estimate:
        """By how much the loss of one domain rose, merged."""
        return estimate([run.merged[domain] - self.before[domain] for run in self.runs])

    @property
    def peak_bytes(self) -> int:
        """Most memory that training took, above what the process had before."""
        return max(run.peak_over_start_bytes for run in self.runs)

    def _task_loss(self, losses: Mapping[str, float]) -> float:
        return fmean(losses[domain] for domain in self.task)


class Preference(NamedTuple):
    """The variant to use where forgetting weighs so much."""

    variant: Variant
    low: float
    """Nats of the task that one nat of the other domains is worth, at least."""
    high: float | None
    """At most; None without bound."""
    equals: tuple[Variant, ...]
    """Variants whose difference to it, in both respects, may as well be chance."""


def variants_of(found: VariantStudy) -> list[Variant]:
    """The variants of a study."""
    before = found.base.loss
    variants: list[Variant] = []
    for name, case in found.variants.items():
        retained = tuple(domain for domain in before if domain in case.rise)
        task = tuple(domain for domain in before if domain not in case.rise)
        variants.append(Variant(name, before, task, retained, case.runs))
    return variants


def net(variant: Variant, weight: float) -> list[float]:
    """What was learned less what was forgotten times a weight, by seed."""
    pairs = zip(variant.each_learned, variant.each_forgot, strict=True)
    return [learned - weight * forgot for learned, forgot in pairs]


def difference(one: Sequence[float], other: Sequence[float]) -> Estimate:
    """Mean of the differences of runs with the same seed."""
    if len(one) != len(other):
        return Estimate(fmean(one) - fmean(other))
    return estimate([a - b for a, b in zip(one, other, strict=True)])


def equals(variant: Variant, variants: Sequence[Variant]) -> tuple[Variant, ...]:
    """The other variants that seeds do not tell from one in what is learned or forgotten."""
    return tuple(
        other
        for other in variants
        if other.name != variant.name
        and difference(variant.each_learned, other.each_learned).is_zero
        and difference(variant.each_forgot, other.each_forgot).is_zero
    )


def preferences(variants: Sequence[Variant]) -> list[Preference]:
    """Which variant is best for every weight of forgetting, from 0 up.

    The best is the highest of the lines ``learned - weight · forgot``. Of variants that seeds do
    not tell apart, one stands for all.
    """
    steps = list(_envelope(variants))
    kept: list[tuple[Variant, float]] = []
    for variant, low in steps:
        if not kept or variant not in equals(kept[-1][0], variants):
            kept.append((variant, low))
    ends = [low for _, low in kept[1:]] + [None]
    return [
        Preference(variant, low, high, equals(variant, variants))
        for (variant, low), high in zip(kept, ends, strict=True)
    ]


def _envelope(variants: Sequence[Variant]) -> Iterator[tuple[Variant, float]]:
    """The variants on the upper envelope, each with the weight from which it is the best."""
    line = {one.name: (one.learned.value, one.forgot.value) for one in variants}
    best = max(variants, key=lambda one: (line[one.name][0], -line[one.name][1]))
    weight = 0.0
    while True:
        yield best, weight
        learned, forgot = line[best.name]
        crossings = [
            ((learned - line[one.name][0]) / (forgot - line[one.name][1]), one.name, one)
            for one in variants
            if line[one.name][1] < forgot
        ]
        if not crossings:
            return
        weight, _, best = min(crossings, key=lambda crossing: (crossing[0], line[crossing[1]][1]))
