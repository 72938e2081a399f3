"""How alike two domains are in the experts that they go to.

Letters: E experts of a layer.
"""

from math import log
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Overlap(NamedTuple):
    """Two domains in one layer."""

    shared: int
    """Of the busiest experts of each, those that are the same."""
    jaccard: float
    """The same over all that are busiest in one or the other."""
    cosine: float
    """Of the loads."""
    divergence: float
    """Jensen–Shannon divergence of the loads in bits: 0 for the same, 1 where none is common."""


def overlap(one_E: Tensor, other_E: Tensor, top: int) -> Overlap:
    """Compare the loads of two domains, tokens or shares alike.

    Args:
        one_E: load of every expert in one domain.
        other_E: in the other.
        top: busiest experts to compare; of equals, those with the lower id.
    """
    one, other = busiest(one_E, top), busiest(other_E, top)
    shared, all_of_both = len(one & other), len(one | other)
    return Overlap(
        shared,
        shared / max(1, all_of_both),
        float(F.cosine_similarity(one_E.double(), other_E.double(), dim=0)),
        divergence(one_E, other_E),
    )


def busiest(load_E: Tensor, top: int) -> set[int]:
    """The experts with the highest load; those without any are none of them."""
    order = load_E.argsort(descending=True, stable=True)[:top]
    return {expert for expert in order.tolist() if load_E[expert] > 0}


def divergence(one_E: Tensor, other_E: Tensor) -> float:
    """Jensen–Shannon divergence of two loads, in bits.

    Source: Lin, Divergence measures based on the Shannon entropy (1991), eq. 4.1.
    """
    one_E, other_E = (
        load_E.double() / load_E.sum().clamp(min=1e-300) for load_E in (one_E, other_E)
    )
    mean_E = (one_E + other_E) / 2
    within = (torch.special.entr(one_E).sum() + torch.special.entr(other_E).sum()) / 2
    return max(0.0, float(torch.special.entr(mean_E).sum() - within) / log(2))


def by_chance(experts: int, top: int) -> float:
    """Busiest experts that two domains would share if each had drawn them."""
    top = min(top, experts)
    return top * top / experts
