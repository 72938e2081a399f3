"""Balance losses on a layer's `Routing`, unweighted, one value per sequence.

All have the form sum of f·P: f is the share of tokens sent somewhere (no gradient), P the mean
score of what is there. Both are taken over the tokens of one sequence, as the reports define T and
the published configurations say (``seq_aux``); their sum over a step is then the same however the
step is cut into micro-batches. Perfect balance gives 1 where scores add up to 1.

Letters: B sequences, S positions, T tokens (B·S), E experts, G devices, K experts per token.
"""

import torch
from torch import Tensor

from moesaic.model.routing import Routing


def expert_loss(routing: Routing, rows: int, real_T: Tensor | None = None) -> Tensor:
    """How unevenly each sequence loads the experts, as [B].

    Args:
        routing: of a batch of ``rows`` sequences, in row order.
        rows: number of sequences B.
        real_T: tokens that count; None for all. Padding is left out this way.

    Source: DeepSeek-V2 (arXiv 2405.04434) eq. 23–25; DeepSeekMoE (arXiv 2401.06066) eq. 12–14.
    """
    load_BE = _load(routing.ids_TK, routing.scores_TE.shape[1], rows, real_T)
    score_BE = _mean(routing.scores_TE, rows, real_T)
    return (load_BE * score_BE).sum(-1)


def device_loss(routing: Routing, rows: int, devices: int, real_T: Tensor | None = None) -> Tensor:
    """How unevenly each sequence loads devices that hold equal, consecutive parts of the experts.

    Source: DeepSeek-V2 (arXiv 2405.04434) eq. 26–28; DeepSeekMoE (arXiv 2401.06066) eq. 15–17.
    """
    load_BE = _load(routing.ids_TK, routing.scores_TE.shape[1], rows, real_T)
    score_BE = _mean(routing.scores_TE, rows, real_T)
    load_BG = load_BE.unflatten(1, (devices, -1)).mean(-1)
    score_BG = score_BE.unflatten(1, (devices, -1)).sum(-1)
    return (load_BG * score_BG).sum(-1)


def communication_loss(
    routing: Routing, rows: int, devices: int, most_devices: int, real_T: Tensor | None = None
) -> Tensor:
    """How unevenly each sequence's hidden states are sent to the devices.

    Args:
        routing: of a batch of ``rows`` sequences, in row order.
        rows: number of sequences B.
        devices: D, holding equal, consecutive parts of the experts.
        most_devices: M, the devices one token can be sent to.
        real_T: tokens that count; None for all.

    Source: DeepSeek-V2 (arXiv 2405.04434) eq. 29–31.
    """
    tokens, experts = routing.scores_TE.shape
    device_TK = routing.ids_TK // (experts // devices)
    sent_TG = routing.scores_TE.new_zeros(tokens, devices).scatter_(1, device_TK, 1.0)
    sent_BG = _mean(sent_TG, rows, real_T) * (devices / most_devices)
    score_BE = _mean(routing.scores_TE, rows, real_T)
    score_BG = score_BE.unflatten(1, (devices, -1)).sum(-1)
    return (sent_BG * score_BG).sum(-1)


def sequence_loss(routing: Routing, rows: int, real_T: Tensor | None = None) -> Tensor:
    """V3's complementary loss: as `expert_loss`, on scores normalised over all experts.

    The load counts the K best *scores*: the choice bias, and any limit to groups, is left out.

    Source: DeepSeek-V3 (arXiv 2412.19437) eq. 17–20.
    """
    scores_TE = routing.scores_TE
    best_TK = scores_TE.detach().topk(routing.ids_TK.shape[1], dim=-1, sorted=False).indices
    load_BE = _load(best_TK, scores_TE.shape[1], rows, real_T)
    score_BE = _mean(scores_TE / scores_TE.sum(-1, keepdim=True), rows, real_T)
    return (load_BE * score_BE).sum(-1)


def _load(ids_TK: Tensor, experts: int, rows: int, real_T: Tensor | None) -> Tensor:
    """f: tokens each expert gets of a sequence, relative to an even load, as [B, E]."""
    tokens, chosen = ids_TK.shape
    chosen_TE = torch.zeros(tokens, experts, device=ids_TK.device).scatter_(1, ids_TK, 1.0)
    return _mean(chosen_TE, rows, real_T) * (experts / chosen)


def _mean(values: Tensor, rows: int, real_T: Tensor | None) -> Tensor:
    """Mean of [T, …] over the counted tokens of each sequence; 0 where none counts."""
    if real_T is None:
        return values.unflatten(0, (rows, -1)).mean(1)
    real_TE = real_T.to(values.dtype).unsqueeze(1)
    total = (values * real_TE).unflatten(0, (rows, -1)).sum(1)
    return total / real_TE.unflatten(0, (rows, -1)).sum(1).clamp(min=1)
