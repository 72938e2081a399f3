"""Which experts are chosen together.

Letters: E experts of a layer.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pair:
    """Two experts that tokens chose together."""

    experts: tuple[int, int]
    tokens: int
    """That chose both."""
    given_first: float
    """Share of the tokens of the first that chose the second too."""
    given_second: float
    """The other way round."""
    lift: float
    """How many times as many as if the choices did not depend on one another."""


def together(pairs_EE: Tensor) -> Tensor:
    """P(j | i): share of the tokens that chose expert i (row) that chose j (column) too, [E, E].

    Source: OLMoE (arXiv 2409.02060) section 5.2, expert co-activation, over all pairs of a token's
    choices. The diagonal is 1 where the expert was chosen.
    """
    return pairs_EE.double() / pairs_EE.diagonal().clamp(min=1)[:, None]


def lift(pairs_EE: Tensor, tokens: int) -> Tensor:
    """P(i and j) over P(i)·P(j), [E, E]; 0 where an expert was not chosen.

    Choices that do not depend on one another but are never the same expert have `even_lift`.
    """
    load_E = pairs_EE.diagonal().double()
    expected_EE = load_E[:, None] * load_E[None, :] / max(1, tokens)
    return torch.where(expected_EE > 0, pairs_EE / expected_EE.clamp(min=1e-300), 0.0)


def even_lift(experts: int, chosen: int) -> float:
    """The lift of every pair where all sets of experts are equally likely."""
    return experts * (chosen - 1) / (chosen * max(1, experts - 1))


def top_pairs(pairs_EE: Tensor, tokens: int, count: int) -> list[Pair]:
    """The pairs with most tokens beyond those that independent choices would give them.

    By tokens rather than by lift, which is highest for experts that hardly any token chose.
    """
    experts = len(pairs_EE)
    load_E, lift_EE, given_EE = pairs_EE.diagonal(), lift(pairs_EE, tokens), together(pairs_EE)
    excess_EE = pairs_EE - load_E[:, None].double() * load_E[None, :] / max(1, tokens)
    above = torch.ones(experts, experts, dtype=torch.bool, device=pairs_EE.device).triu(1)
    order = excess_EE.masked_fill(~above, float("-inf")).flatten().argsort(descending=True)
    found: list[Pair] = []
    for place in order[:count].tolist():
        i, j = divmod(place, experts)
        if i < j and excess_EE[i, j] > 0:
            shares = given_EE[i, j].item(), given_EE[j, i].item()
            found.append(Pair((i, j), int(pairs_EE[i, j]), *shares, lift_EE[i, j].item()))
    return found


def strongest(pairs_EE: Tensor) -> float:
    """How often an expert's most frequent companion is with it, mean over the experts chosen.

    Where all sets of experts are equally likely, it is little above (K - 1) / (E - 1).
    """
    load_E = pairs_EE.diagonal()
    others_EE = together(pairs_EE).fill_diagonal_(0.0)
    used = load_E > 0
    return others_EE.amax(1)[used].mean().item() if bool(used.any()) else 0.0


def closest(pairs_EE: Tensor, count: int) -> list[int]:
    """The experts with the strongest companions, ascending, for a matrix that can be read."""
    best_E = together(pairs_EE).fill_diagonal_(0.0).amax(1)
    return sorted(best_E.argsort(descending=True, stable=True)[:count].tolist())
