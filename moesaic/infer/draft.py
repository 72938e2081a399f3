"""Drafted tokens, and whether they are kept.

Letters: T tokens fed, V vocabulary, B sequences.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.infer.sample import check_finite, distribution, draw, likeliest


@dataclass(frozen=True, slots=True)
class Draft:
    """A token that was guessed."""

    token: int
    probs_V: Tensor | None
    """What it was drawn with; None where the likeliest token is taken."""


def guess(
    logits_BV: Tensor, config: GenerateConfig, generators: Sequence[torch.Generator]
) -> list[Draft]:
    """Draw a draft for every sequence as a token is drawn."""
    if config.temperature == 0:
        return [Draft(token, None) for token in likeliest(logits_BV)]
    check_finite(logits_BV)
    probs_BV = distribution(logits_BV, config)
    tokens = draw(probs_BV, generators).tolist()
    return [Draft(*drawn) for drawn in zip(tokens, probs_BV, strict=True)]


def verify(
    draft: Draft, logits_TV: Tensor, config: GenerateConfig, generator: torch.Generator
) -> tuple[int, ...]:
    """The draft and one more token if it is accepted, else the token in its place.

    With p the model's probabilities and q those of the draft, both as tokens are drawn from them, a
    draft x is accepted with probability min(1, p(x) / q(x)); a token in its place is drawn from
    max(0, p - q), divided by its sum. The result is distributed as p, whatever q is.

    Args:
        draft: what was guessed.
        logits_TV: before the draft and after it, T = 2.
        config: how tokens are drawn.
        generator: of the text.

    Source: Leviathan et al. 2023 (arXiv 2211.17192) section 2.3, algorithm 1.
    """
    if draft.probs_V is None:
        own, after = likeliest(logits_TV)
        return (own, after) if own == draft.token else (own,)
    check_finite(logits_TV)
    probs_TV = distribution(logits_TV, config)
    probs_V = probs_TV[0]
    uniform = torch.rand(1, dtype=torch.float64, generator=generator, device=generator.device)
    if float(uniform) * float(draft.probs_V[draft.token]) < float(probs_V[draft.token]):
        return draft.token, int(draw(probs_TV[1:], [generator]))
    missed_V = (probs_V - draft.probs_V).clamp(min=0)
    if not missed_V.any():  # p and q differ by rounding only
        missed_V = probs_V
    return (int(draw(missed_V.unsqueeze(0), [generator])),)
