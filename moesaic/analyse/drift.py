"""How differently two checkpoints route the same tokens.

Letters: T tokens, E experts of a layer, K experts chosen per token.
"""

from dataclasses import dataclass
from math import log
from typing import Self

import torch
from torch import Tensor

from moesaic.analyse.counts import Seen

_TINY = torch.finfo(torch.float64).tiny


@dataclass(slots=True)
class LayerDrift:
    """Sums over tokens of one layer."""

    before_E: Tensor
    """int64, tokens that chose each expert before."""
    first: int = 0
    """Tokens whose best choice is another expert."""
    choices: int = 0
    """Choices that fell on an expert the token did not go to before."""
    any: int = 0
    """Tokens with such a choice."""
    bits: float = 0.0
    """Sum of `score_divergence`."""
    tokens: int = 0
    pairs: int = 0
    """Choices."""

    @classmethod
    def zero(cls, experts: int, device: torch.device | str = "cpu") -> Self:
        """Of no tokens."""
        return cls(torch.zeros(experts, dtype=torch.int64, device=device))

    def add_(self, before: Seen, after: Seen) -> None:
        """Add the same tokens in both checkpoints."""
        assert before.scores_TE is not None
        assert after.scores_TE is not None
        self.before_E += before.ids_TK.flatten().bincount(minlength=len(self.before_E))
        kept_TK = (after.ids_TK[:, :, None] == before.ids_TK[:, None, :]).any(2)
        self.first += int((after.ids_TK[:, 0] != before.ids_TK[:, 0]).sum())
        self.choices += int((~kept_TK).sum())
        self.any += int((~kept_TK).any(1).sum())
        self.bits += float(score_divergence(before.scores_TE, after.scores_TE).sum())
        self.tokens += len(kept_TK)
        self.pairs += kept_TK.numel()

    @property
    def before(self) -> list[float]:
        """Share of the choices that fell on each expert before."""
        return (self.before_E.double() / self.before_E.sum().clamp(min=1)).tolist()

    @property
    def shares(self) -> dict[str, float]:
        """Shares of tokens and choices that moved, and the mean divergence in bits.

        One less ``choices`` is router saturation.

        Source: OLMoE (arXiv 2409.02060) section 5.1.
        """
        tokens = max(1, self.tokens)
        return {
            "first": self.first / tokens,
            "choices": self.choices / max(1, self.pairs),
            "tokens": self.any / tokens,
            "divergence": self.bits / tokens,
        }


def score_divergence(before_TE: Tensor, after_TE: Tensor) -> Tensor:
    """Kullback–Leibler divergence of every token's scores from those before, in bits.

    Scores are taken as shares of their sum, which sigmoid scores do not have by themselves.

    Source: Kullback and Leibler (1951), D(before ‖ after).
    """
    before_TE, after_TE = (
        scores_TE.double() / scores_TE.double().sum(1, keepdim=True).clamp(min=_TINY)
        for scores_TE in (before_TE, after_TE)
    )
    logs_TE = before_TE.clamp(min=_TINY).log() - after_TE.clamp(min=_TINY).log()
    return (before_TE * logs_TE).sum(1).clamp(min=0.0) / log(2)
