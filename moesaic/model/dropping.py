"""Token dropping: each device computes at most its share of the token-expert pairs.

Letters: B sequences, T tokens, K experts per token, P token-expert pairs.
"""

from dataclasses import dataclass
from math import ceil
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Dropping:
    """How many pairs each device computes, and which go first when there are more.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.2.4 for ``order="score"``; GShard (arXiv
    2006.16668) section 2.2 and Switch (arXiv 2101.03961) section 2.2 for ``order="position"`` with
    one device per expert.
    """

    capacity_factor: float
    """Capacity of a device over its average number of pairs."""
    devices: int
    """Parts the experts are divided into, in order."""
    order: Literal["score", "position"] = "score"
    """Keep the highest scores; or earlier tokens, all first choices before all second ones."""
    exempt_B: Tensor | None = None
    """bool, sequences from which nothing is dropped."""

    def kept(self, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """bool [T, K]: which pairs are computed."""
        n_experts, (n_tokens, n_chosen) = scores_TE.shape[1], ids_TK.shape
        capacity = ceil(self.capacity_factor * n_tokens * n_chosen / self.devices)
        device_P = (ids_TK * self.devices // n_experts).flatten()
        rank_P = self._rank(scores_TE, ids_TK)
        by_device_P = rank_P[torch.sort(device_P[rank_P], stable=True).indices]
        sorted_device_P = device_P[by_device_P]
        first_P = torch.searchsorted(sorted_device_P, sorted_device_P)
        place_P = torch.arange(len(device_P), device=device_P.device) - first_P
        kept_P = torch.empty_like(device_P, dtype=torch.bool)
        kept_P[by_device_P] = place_P < capacity
        kept_TK = kept_P.view_as(ids_TK)
        return kept_TK if self.exempt_B is None else kept_TK | self._exempt(n_tokens)

    def _rank(self, scores_TE: Tensor, ids_TK: Tensor) -> Tensor:
        """Indices of the pairs, those to keep first."""
        n_tokens, n_chosen = ids_TK.shape
        if self.order == "position":
            return torch.arange(n_tokens * n_chosen, device=ids_TK.device).view(
                n_tokens, n_chosen
            ).t().flatten()  # fmt: skip
        score_TK = scores_TE.detach().gather(1, ids_TK)
        if self.exempt_B is not None:
            score_TK = score_TK.masked_fill(self._exempt(n_tokens), float("inf"))
        return torch.sort(score_TK.flatten(), descending=True, stable=True).indices

    def _exempt(self, n_tokens: int) -> Tensor:
        assert self.exempt_B is not None
        return self.exempt_B.repeat_interleave(n_tokens // len(self.exempt_B)).unsqueeze(1)
