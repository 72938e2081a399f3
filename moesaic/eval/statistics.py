"""How far a score may be off, and whether two models differ on the same items.

Errors are over items: how much a score would change with other items of the same kind. Intervals
are of 95 %.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import log, sqrt
from statistics import NormalDist
from typing import Literal

import torch
from torch import Tensor

Pair = tuple[float, float]
"""Log-probability of an item, and the units it is spread over."""
Ratio = Literal["weighted_perplexity", "bits_per_byte", "nats_per_unit"]

_Z = NormalDist().inv_cdf(0.975)
_DRAWS = 10_000
"""Of a bootstrap or a permutation test."""
_AT_ONCE = 2**22
"""Items drawn at a time."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number and how far it may be off; the error is None where there is one item only."""

    value: float
    stderr: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """A model's score minus the base's on the same items."""

    base: float
    difference: float
    stderr: float | None
    low: float | None
    high: float | None
    p: float | None
    """How often a difference at least as large would come about by chance between two models that
    are equally good."""
    test: str
    """How p was found."""


def mean_estimate(values: Sequence[float], groups: Sequence[str | None] = ()) -> Estimate:
    """The mean of items with its error; for values of 0 and 1 the interval is Wilson's.

    Args:
        values: one per item.
        groups: the part of the task each belongs to; parts of their own difficulty do not count
            as chance.
    """
    mean = sum(values) / len(values)
    stderr = standard_error(values, groups)
    if _are_binary(values):
        return Estimate(mean, stderr, *wilson(round(sum(values)), len(values)))
    return Estimate(mean, stderr, *_normal(mean, stderr))


def standard_error(values: Sequence[float], groups: Sequence[str | None] = ()) -> float | None:
    """Standard error of a mean; of several groups together, from the variance inside groups.

    Returns:
        None where no group has two items.

    Source: Cochran, Sampling Techniques (1977), chapter 2; pooled over groups as
        lm-evaluation-harness does for MMLU (``pooled_sample_stderr``).
    """
    parts: dict[str | None, list[float]] = {}
    for value, group in zip(values, groups or [None] * len(values), strict=True):
        parts.setdefault(group, []).append(value)
    freedom = len(values) - len(parts)
    if not freedom:
        return None
    means = {group: sum(part) / len(part) for group, part in parts.items()}
    squares = sum((value - means[group]) ** 2 for group, part in parts.items() for value in part)
    return sqrt(squares / freedom / len(values))


def wilson(successes: int, n: int) -> Pair:
    """95 % interval of a share; unlike mean ± 1.96 errors, it has a width at 0 and at 1 too.

    Source: Wilson 1927 (Journal of the American Statistical Association 22:209-212).
    """
    share, square = successes / n, _Z**2
    centre = (share + square / (2 * n)) / (1 + square / n)
    half = _Z / (1 + square / n) * sqrt(share * (1 - share) / n + square / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)


def ratio_estimate(pairs: Sequence[Pair], kind: Ratio, generator: torch.Generator) -> Estimate:
    """Perplexity or bits per unit of all items together, with the bootstrap's error and interval.

    Args:
        pairs: one per item.
        kind: what to make of nats per unit.
        generator: draws items, with repetition.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 6 and 13.
    """
    of = _RATIOS[kind]
    value = _overall(of, pairs)
    if len(pairs) < 2:
        return Estimate(value)
    drawn = [_nats(items) for items in _bootstrap(_tensor(pairs), generator)]
    return Estimate(value, *_spread(of(torch.cat(drawn))))


def mean_difference(
    values: Sequence[float],
    base: Sequence[float],
    groups: Sequence[str | None],
    generator: torch.Generator,
) -> Difference:
    """How two models differ on the same items.

    Args:
        values: one per item.
        base: the other model's, of the same items.
        groups: see `mean_estimate`.
        generator: draws signs for the permutation test of values that are not 0 and 1.

    Source: Miller 2024 (arXiv 2411.00640) section 4 for the paired error.
    """
    changes = [value - other for value, other in zip(values, base, strict=True)]
    mean, stderr = sum(changes) / len(changes), standard_error(changes, groups)
    before = sum(base) / len(base)
    if _are_binary(values) and _are_binary(base):
        gained, lost = changes.count(1), changes.count(-1)
        interval = paired_interval(gained, lost, len(changes))
        return Difference(before, mean, stderr, *interval, mcnemar(gained, lost), "exact McNemar")
    p = None if len(changes) < 2 else _sign_test(_tensor(changes), generator)
    return Difference(before, mean, stderr, *_normal(mean, stderr), p, "paired permutation")


def ratio_difference(
    pairs: Sequence[Pair], base: Sequence[Pair], kind: Ratio, generator: torch.Generator
) -> Difference:
    """How two models' perplexities or bits per unit differ over the same items.

    The interval is the bootstrap's, drawing items; the test exchanges the models item by item.

    Args:
        pairs: one per item.
        base: the other model's, of the same items.
        kind: see `ratio_estimate`.
        generator: draws items and exchanges.
    """
    of = _RATIOS[kind]
    before = _overall(of, base)
    difference = _overall(of, pairs) - before
    if len(pairs) < 2:
        return Difference(before, difference, None, None, None, None, "paired permutation")
    both = torch.cat((_tensor(pairs), _tensor(base)), dim=1)
    drawn = [
        of(_nats(items[..., :2])) - of(_nats(items[..., 2:]))
        for items in _bootstrap(both, generator)
    ]
    p = _sign_test(both[:, 0] - both[:, 2], generator)
    return Difference(before, difference, *_spread(torch.cat(drawn)), p, "paired permutation")


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided p that two models are equally good, from the items that one alone has right.

    Source: McNemar 1947 (Psychometrika 12:153-157), with the exact binomial distribution.
    """
    n = gained + lost
    ways, below = 1, 0
    for k in range(min(gained, lost) + 1):
        below += ways
        ways = ways * (n - k) // (k + 1)
    return min(1.0, 2 * below / 2**n)


def paired_interval(gained: int, lost: int, n: int) -> Pair:
    """95 % interval of the difference of two shares of the same items.

    It has a width even where the models agree on every item.

    Source: Bonett and Price 2012 (Journal of Educational and Behavioral Statistics 37:479-488).
    """
    up, down = (gained + 1) / (n + 2), (lost + 1) / (n + 2)
    half = _Z * sqrt((up + down - (up - down) ** 2) / (n + 2))
    return max(-1.0, up - down - half), min(1.0, up - down + half)


_RATIOS: dict[Ratio, Callable[[Tensor], Tensor]] = {
    "weighted_perplexity": torch.exp,
    "bits_per_byte": lambda nats: nats / log(2),
    "nats_per_unit": lambda nats: nats,
}
"""From nats per unit."""


def _tensor(values: Sequence[float] | Sequence[Pair]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def _are_binary(values: Sequence[float]) -> bool:
    return set(values) <= {0.0, 1.0}


def _normal(mean: float, stderr: float | None) -> tuple[float | None, float | None]:
    """The interval of a mean of many items."""
    return (None, None) if stderr is None else (mean - _Z * stderr, mean + _Z * stderr)


def _nats(pairs: Tensor) -> Tensor:
    """Nats per unit of every draw: [draws, items, 2] to [draws]."""
    sums = pairs.sum(dim=-2)
    return -sums[..., 0] / sums[..., 1]


def _overall(of: Callable[[Tensor], Tensor], pairs: Sequence[Pair]) -> float:
    return float(of(_nats(_tensor(pairs))))


def _bootstrap(items: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
    """As many items as there are, drawn with repetition many times: [draws, items, values]."""
    n, left = len(items), _DRAWS
    while left:
        draws = min(left, max(1, _AT_ONCE // n))
        yield items[torch.randint(n, (draws, n), generator=generator)]
        left -= draws


def _spread(drawn: Tensor) -> tuple[float, float, float]:
    """Standard deviation and the middle 95 % of what was drawn."""
    ends = torch.quantile(drawn, torch.tensor([0.025, 0.975], dtype=drawn.dtype))
    return float(drawn.std()), float(ends[0]), float(ends[1])


def _sign_test(changes: Tensor, generator: torch.Generator) -> float:
    """p of a sum of changes, against those with the two models exchanged at random per item.

    Source: Good, Permutation Tests (2000), chapter 3; with the observed sum among those drawn, as
        Phipson and Smyth 2010 (arXiv 1603.05766) advise.
    """
    moved = changes[changes != 0]
    if not len(moved):
        return 1.0
    sizes = moved.abs()
    observed = float(moved.sum().abs()) * (1 - 1e-9)  # sums of the same numbers differ by rounding
    found, left = 1, _DRAWS
    while left:
        draws = min(left, max(1, _AT_ONCE // len(moved)))
        signs = torch.randint(2, (draws, len(moved)), generator=generator).to(sizes.dtype) * 2 - 1
        found += int(((signs @ sizes).abs() >= observed).sum())
        left -= draws
    return found / (_DRAWS + 1)
