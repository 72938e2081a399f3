"""Balance without a loss: after each step the choice bias of every expert moves by a fixed amount.

Letters: E experts, L layers with experts, T tokens.
"""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from moesaic.model.moe import MoE
from moesaic.model.router import Router


def bias_step_(bias_E: Tensor, load_E: Tensor, speed: float) -> None:
    """Raise the bias of experts below the mean load by ``speed`` and lower it above the mean.

    Source: arXiv 2408.15664 algorithm 1; DeepSeek-V3 (arXiv 2412.19437) section 2.1.2.
    """
    excess_E = load_E * load_E.numel() - load_E.sum()  # in whole tokens, so that even is exactly 0
    bias_E.sub_(excess_E.sign().to(bias_E.dtype), alpha=speed)


def move_biases_(layers: Mapping[int, MoE], loads: Mapping[int, Tensor], speed: float) -> None:
    """One bias step in every layer, among the experts its router may choose.

    Args:
        layers: the layers with experts, by index; each router has a choice bias.
        loads: tokens per expert of each layer over the whole step, all micro-batches and ranks.
        speed: gamma, how far a bias moves; 0 leaves all where they are.
    """
    if speed == 0:
        return
    for layer, load_E in loads.items():
        gate = layers[layer].gate
        assert isinstance(gate, Router)
        bias_E, allowed_E = gate.e_score_correction_bias, gate.allowed
        assert bias_E is not None
        if allowed_E is None:
            bias_step_(bias_E, load_E, speed)
        else:
            reachable = bias_E[allowed_E]
            bias_step_(reachable, load_E[allowed_E], speed)
            bias_E[allowed_E] = reachable


def sum_over_ranks(
    loads: Mapping[int, Tensor], group: dist.ProcessGroup | None = None
) -> dict[int, Tensor]:
    """The loads of all ranks together; those given, where there is one rank."""
    if not loads or not (dist.is_available() and dist.is_initialized()):
        return dict(loads)
    total_LE = torch.stack(list(loads.values()))
    dist.all_reduce(total_LE, group=group)
    return dict(zip(loads, total_LE.unbind(), strict=True))
