"""From logits to the next tokens.

Letters: B sequences, V vocabulary.
"""

from collections.abc import Sequence
from math import isfinite

import torch
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError


def sample(
    logits_BV: Tensor, settings: GenerateConfig, generators: Sequence[torch.Generator]
) -> Tensor:
    """The next token of every sequence, [B].

    Args:
        logits_BV: of the last position.
        settings: temperature, top-k and top-p.
        generators: one per sequence, so that a sequence's tokens do not depend on its neighbours.

    Raises:
        RequestError: if a logit is not a finite number.
    """
    check_finite(logits_BV)
    if settings.temperature == 0:
        return logits_BV.argmax(dim=-1)
    return draw(distribution(logits_BV, settings), generators)


def likeliest(logits_BV: Tensor) -> list[int]:
    """The token of the highest logit in every row, float32; a device is waited for once.

    Raises:
        RequestError: if a logit is not a finite number.
    """
    lowest_B, highest_B = logits_BV.aminmax(dim=-1)  # neither is a number if one logit is not
    ids_B = logits_BV.argmax(dim=-1).float()  # exact, up to 16 million
    sums, tokens = torch.stack((lowest_B + highest_B, ids_B)).tolist()
    if not all(map(isfinite, sums)):
        check_finite(logits_BV)
    return [int(token) for token in tokens]


def check_finite(logits: Tensor) -> None:
    """See that every logit is a number.

    Raises:
        RequestError: if one is not.
    """
    if not torch.isfinite(logits).all():
        raise RequestError(
            f"the model's logits are not finite in {str(logits.dtype).removeprefix('torch.')}; "
            "load it in float32, or run `moesaic check` on its folder"
        )


def distribution(logits_BV: Tensor, settings: GenerateConfig) -> Tensor:
    """Probabilities that tokens are drawn with, float64 [B, V]: those of the softmax at this
    temperature, cut to the likeliest tokens and divided by their sum. Of equally likely tokens the
    lower ids are kept.

    Source: top-k, Fan et al. 2018 (arXiv 1805.04833); top-p, Holtzman et al. 2020
    (arXiv 1904.09751) section 3.1, eq. 2-3.
    """
    if settings.top_k is None and settings.top_p == 1:
        wide_BV = logits_BV.double()
        above_BV = wide_BV - wide_BV.amax(dim=-1, keepdim=True)
        return (above_BV / settings.temperature).softmax(dim=-1)
    sorted_BV, ids_BV = logits_BV.double().sort(dim=-1, descending=True, stable=True)
    probs_BV = ((sorted_BV - sorted_BV[:, :1]) / settings.temperature).softmax(dim=-1)
    if settings.top_k is not None:
        probs_BV[:, settings.top_k :] = 0
        probs_BV /= probs_BV.sum(dim=-1, keepdim=True)
    if settings.top_p < 1:
        before_BV = probs_BV.cumsum(dim=-1) - probs_BV
        probs_BV[before_BV >= settings.top_p] = 0
        probs_BV /= probs_BV.sum(dim=-1, keepdim=True)
    return torch.zeros_like(probs_BV).scatter_(1, ids_BV, probs_BV)


def draw(probs_BV: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """One token per sequence, [B]: each takes a single random number, from its own generator."""
    uniform = [
        torch.rand(1, dtype=torch.float64, generator=generator, device=generator.device)
        for generator in generators
    ]
    cumulated_BV = probs_BV.cumsum(dim=-1)
    total = cumulated_BV[:, -1:]
    target = torch.stack(uniform).to(total.device) * total
    below_total = target.minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulated_BV, below_total, right=True).squeeze(1)
