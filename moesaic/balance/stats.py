"""How even the load is: violation, entropy, dropped share.

Letters: E experts, K experts per token, T tokens.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from moesaic.model.moe import MoE
from moesaic.model.router import Router
from moesaic.model.routing import Routing


def counted_load(routing: Routing, counted_T: Tensor | None = None) -> Tensor:
    """Tokens that chose each expert, of those that count, int64; None counts all."""
    if counted_T is None:
        return routing.load_E
    return torch.bincount(routing.ids_TK[counted_T].flatten(), minlength=len(routing.load_E))


def reachable_loads(layers: Mapping[int, MoE], loads: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """The loads of those experts that each layer's router may choose."""
    found = {}
    for layer, load_E in loads.items():
        gate = layers[layer].gate
        allowed_E = gate.allowed if isinstance(gate, Router) else None
        found[layer] = load_E if allowed_E is None else load_E[allowed_E]
    return found


def max_violation(load_E: Tensor) -> float:
    """MaxVio: how far the busiest expert is above the mean load; 0 is perfect, 1 is twice the mean.

    Source: arXiv 2408.15664 eq. 4.
    """
    load_E = load_E.double()
    mean = load_E.mean()
    return float(load_E.max() / mean - 1) if mean > 0 else 0.0


def load_entropy(load_E: Tensor) -> float:
    """Entropy of the load over its greatest possible value: 1 is even, 0 is all on one expert."""
    share_E = load_E.double() / load_E.sum().clamp(min=1)
    most = torch.tensor(float(max(share_E.numel(), 2))).log()
    return float(torch.special.entr(share_E).sum() / most)


def dropped_share(kept_TK: Tensor | None) -> float:
    """Share of token-expert pairs that capacity dropped; 0 where nothing is dropped."""
    return 0.0 if kept_TK is None else float(1 - kept_TK.double().mean())
