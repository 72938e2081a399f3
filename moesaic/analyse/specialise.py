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
    """What knowing a token's group tells about the expert it goes to, in bits."""

    bits: float
    """As counted, which is too much: of a sample, groups differ by chance too."""
    corrected: float
    """Less what chance is expected to add. Near 0, and a little below, is none."""
    experts: float
    """Entropy of the expert over all groups: the most there is to tell."""

    @property
    def explained(self) -> float:
        """Share of what there is to tell that the group tells."""
        return self.corrected / self.experts if self.experts > 0 else 0.0


def information(counts: Tensor, tokens: Tensor, chosen: int = 1) -> Information:
    """Mutual information between a token's group and one of its choices, each group alike.

    The correction takes tokens as independent of one another and a token's choices as different
    experts. Neighbours in a text are alike, so that it corrects too little: compare with what two
    halves of one domain differ by.

    Args:
        counts: tokens of each group that chose each expert.
        tokens: tokens of each group; every one chose ``chosen`` experts.
        chosen: experts per token, K.

    Source: Shannon (1948), mutual information; Miller (1955) and Paninski, Estimation of entropy
    and mutual information (2003), section 4, the first-order bias, by the variance of each share.
    """
    return weighted_information(
        counts, tokens, torch.ones_like(tokens, dtype=torch.float64), chosen
    )


def weighted_information(
    counts: Tensor, tokens: Tensor, weights: Tensor, chosen: int = 1
) -> Information:
    """The same with groups of different weight; see `information`."""
    kept = tokens > 0
    counts, tokens = counts[kept].double(), tokens[kept].double()
    weights = weights[kept].double() / weights[kept].sum().clamp(min=_TINY)
    shares = counts / (chosen * tokens)[:, None]
    mean_E = (weights[:, None] * shares).sum(0)
    experts = torch.special.entr(mean_E).sum()
    within = (weights * torch.special.entr(shares).sum(1)).sum()
    variance = shares * (1 - chosen * shares) / (chosen * tokens)[:, None]
    of_groups = (weights[:, None] * variance / shares.clamp(min=_TINY)).sum()
    of_mean = (weights[:, None].square() * variance / mean_E.clamp(min=_TINY)).sum()
    found, bias = experts - within, (of_groups - of_mean) / 2
    bits, corrected, all_bits = (
        (value / log(2)).item() for value in (found, found - bias, experts)
    )
    return Information(bits, corrected, all_bits)


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
