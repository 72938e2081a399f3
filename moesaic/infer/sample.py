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
    """One token per sequence, [B]: each takes a single random number, from its own generator.

    Every token waits for a time that is exponentially distributed, with its probability as the
    rate, and the first one is drawn. With the same number, two distributions of distance d (in
    total variation) give the same token with probability (1 - d) / (1 + d) at least: what is drawn
    from one foretells what is drawn from the other.

    Source: Daliri, Musco and Suresh 2024 (arXiv 2408.07978), where logarithms are compared (Gumbel
    sampling).
    """
    numbers = [
        torch.randint(2**63 - 1, (1,), generator=generator, device=generator.device)
        for generator in generators
    ]
    n, device = probs_BV.shape[1], probs_BV.device
    waits_BV = torch.stack([waits(number.to(device), n) for number in numbers])
    return (probs_BV / waits_BV).argmax(dim=-1)


def waits(number: Tensor, n: int) -> Tensor:
    """Exponentially distributed with rate 1, float64 [n]: those of a random number.

    Source: Steele, Lea and Flood 2014 (OOPSLA) for the uniform bits, in the form of the published
    splitmix64.c (Vigna 2015); sums and products are modulo 2^64.
    """
    bits = torch.arange(1, n + 1, device=number.device).mul_(_GOLDEN).add_(number)
    for shift, factor in _MIXES:
        bits = bits.bitwise_xor_(_shifted(bits, shift)).mul_(factor)
    bits = bits.bitwise_xor_(_shifted(bits, 31))
    uniform = _shifted(bits, 12).double().add_(0.5).mul_(2.0**-52)  # neither 0 nor 1
    return uniform.log_().neg_()


def _shifted(bits: Tensor, by: int) -> Tensor:
    """Shifted to the right, as numbers without sign are."""
    return (bits >> by) & ((1 << 64 - by) - 1)


def _signed(bits: int) -> int:
    """The 64-bit integer of these bits."""
    return bits - (bits >> 63 << 64)


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIXES = (30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB))
