"""How even the load is, and how much of the gate mass few experts have.

Letters: E experts of a layer, K experts chosen per token.
"""

from dataclasses import dataclass

from torch import Tensor

from moesaic.analyse.counts import LayerCounts
from moesaic.balance.stats import load_entropy, max_violation


@dataclass(frozen=True, slots=True)
class Evenness:
    """The load of one layer."""

    max_violation: float
    """MaxVio."""
    entropy: float
    """Of the load; 1 is even."""
    unused: int
    """Experts that no token chose."""
    half: int
    """Fewest experts that have half the gate mass."""
    gate_by_rank: tuple[float, ...]
    """Share of a token's gate mass on its best expert, the next, and so on."""
    uncertainty: float | None
    """Mean entropy of the router's scores, 1 where it cannot tell experts apart."""


def evenness(counts: LayerCounts) -> Evenness:
    """Of the tokens counted."""
    load_E, gate_E = counts.load_E, counts.sums.gate_E
    of_token = counts.uncertainty
    return Evenness(
        max_violation(load_E),
        load_entropy(load_E),
        int((load_E == 0).sum()),
        fewest(gate_E, 0.5),
        tuple((counts.gate_K / counts.gate_K.sum().clamp(min=1e-300)).tolist()),
        None if of_token is None else of_token / max(1, counts.tokens),
    )


def fewest(mass_E: Tensor, share: float) -> int:
    """How many experts it takes to have a share of the mass; the heaviest ones are taken."""
    curve_E = mass_E.double().sort(descending=True).values.cumsum(0)
    return int((curve_E < share * curve_E[-1]).sum()) + 1 if curve_E[-1] > 0 else 0
