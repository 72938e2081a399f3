"""How far experts are for one domain rather than another, and one token rather than another.

Tensors here have one row per group of tokens (a domain, or one word of the vocabulary) and one
column per expert.
"""

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor

_TINY = torch.finfo(torch.float64).tiny


@dataclass(frozen=True, slots=True)
class Information:
    """What knowing a token's domain tells about an expert that it goes to, in bits."""

    bits: float
    """As counted, which is too much: of a sample, domains differ by chance too."""
    corrected: float
    """Less what chance is expected to add. Near 0, and a little below, is none."""


def information(counts: Tensor, tokens: Tensor, chosen: int = 1) -> Information:
    """Mutual information between a token's domain and one of its choices, each domain alike.

    The correction takes tokens as independent of one another and a token's choices as different
    experts. Neighbours in a text are alike, so that it corrects too little: compare with what two
    halves of one domain differ by. Every domain must have many times as many tokens as there are
    experts.

    Args:
        counts: tokens of each domain that chose each expert.
        tokens: tokens of each domain; every one chose ``chosen`` experts.
        chosen: experts per token, K.

    Source: Shannon (1948), mutual information; Miller, Note on the bias of information estimates
    (1955), the first-order bias, from the variance of each share.
    """
    shares = counts.double() / (chosen * tokens)[:, None]
    mean_E = shares.mean(0)
    found = torch.special.entr(mean_E).sum() - torch.special.entr(shares).sum(1).mean()
    variance = shares * (1 - chosen * shares) / (chosen * tokens)[:, None]
    of_each = (variance / shares.clamp(min=_TINY)).sum(1).mean()
    of_mean = (variance.sum(0) / len(shares) ** 2 / mean_E.clamp(min=_TINY)).sum()
    return Information(float(found) / log(2), float(found - (of_each - of_mean) / 2) / log(2))


def specialisation(shares: Tensor) -> list[float | None]:
    """How far each expert is for one domain: 0 where all give it the same share, 1 for one alone.

    One less the entropy of the domain of an expert's tokens, each domain alike, over the greatest
    possible. None where no token chose the expert, or there is but one domain.

    Args:
        shares: of each domain's choices, the part that fell on each expert.
    """
    if len(shares) < 2:
        return [None] * shares.shape[1]
    total_E = shares.sum(0)
    of_domain = shares / total_E.clamp(min=_TINY)
    found_E = 1 - torch.special.entr(of_domain).sum(0) / log(len(shares))
    return [
        max(0.0, value) if used else None
        for value, used in zip(found_E.tolist(), (total_E > 0).tolist(), strict=True)
    ]


def favourite(counts: Tensor, at_least: int = 8) -> float | None:
    """How often a word goes to the expert that it goes to most, mean over words.

    Args:
        counts: of each word, the tokens whose best choice was each expert.
        at_least: tokens a word must have: of one that occurs once it says nothing.

    Source: OLMoE (arXiv 2409.02060) section 5.4, vocabulary specialization with k = 1.
    """
    tokens = counts.sum(1)
    counts, tokens = counts[tokens >= at_least], tokens[tokens >= at_least]
    return (counts.amax(1) / tokens).mean().item() if len(counts) else None


def foretold(halves: Tensor) -> float | None:
    """How often a token goes to the expert that the same word went to most in other text.

    Each half of the text foretells the other, so that rare words do not flatter it. None where no
    word is in both.

    Args:
        halves: of each word, the tokens whose best choice was each expert: [half, word, expert].
    """
    right, all_told = 0, 0
    for known, other in (halves, halves.flip(0)):
        met = known.sum(1) > 0
        right += int(other[met].gather(1, known[met].argmax(1, keepdim=True)).sum())
        all_told += int(other[met].sum())
    return right / all_told if all_told else None
