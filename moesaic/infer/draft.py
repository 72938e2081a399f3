"""A drafted token, and whether it is kept.

Letters: T tokens fed, V vocabulary, B sequences.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.infer.sample import check_finite, distribution, draw


@dataclass(frozen=True, slots=True)
class Draft:
    """A token that was guessed."""

    token: int
    probs_V: Tensor | None
    """What it was drawn with; None where the likeliest token is taken."""


def guess(logits_V: Tensor, config: GenerateConfig, generator: torch.Generator) -> Draft:
    """Draw a draft as a token is drawn."""
    check_finite(logits_V)
    if config.temperature == 0:
        return Draft(int(logits_V.argmax()), None)
    probs_BV = distribution(logits_V.unsqueeze(0), config)
    return Draft(int(draw(probs_BV, [generator])), probs_BV[0])


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
    check_finite(logits_TV)
    if draft.probs_V is None:
        own, after = logits_TV.argmax(dim=-1).tolist()
        return (own, after) if own == draft.token else (own,)
    probs_TV = distribution(logits_TV, config)
    probs_V = probs_TV[0]
    uniform = torch.rand(1, dtype=torch.float64, generator=generator, device=generator.device)
    if float(uniform) * float(draft.probs_V[draft.token]) < float(probs_V[draft.token]):
        return draft.token, int(draw(probs_TV[1:], [generator]))
    missed_V = (probs_V - draft.probs_V).clamp(min=0)
    if not missed_V.any():  # p and q differ by rounding only
        missed_V = probs_V
    return (int(draw(missed_V.unsqueeze(0), [generator])),)
