"""What is counted of the routing while tokens pass; figures are made of these counts alone.

Letters: T tokens, E experts of a layer, K experts chosen per token.
"""

from dataclasses import dataclass
from math import log
from typing import NamedTuple, Self

import torch
from torch import Tensor

from moesaic.data.batch import Batch
from moesaic.esft.score import Chosen, LayerSums, learned_at
from moesaic.model.ablation import Ablation
from moesaic.model.trace import RoutingTrace
from moesaic.model.transformer import ModelLoss, Transformer


class Seen(NamedTuple):
    """What the learned tokens of a batch did in one layer."""

    ids_TK: Tensor
    """int64 ids of the chosen experts, best first."""
    weights_TK: Tensor
    """Their gate values."""
    scores_TE: Tensor | None = None
    """The router's scores; None where only choices were recorded."""
    tokens_T: Tensor | None = None
    """The ids of the tokens; None where they were not recorded."""


def see_batch(
    model: Transformer, batch: Batch, ablation: Ablation | None = None
) -> tuple[ModelLoss, dict[int, Seen]]:
    """The loss of a batch, and what every layer did at the positions that are learned there.

    Prediction modules come after the layers; the tokens they see are not told, being others.
    """
    trace = RoutingTrace()
    rows = (batch.labels_BS, batch.positions_BS, batch.documents_BS)
    loss = model.loss(batch.ids_BS, *rows, trace=trace, ablation=ablation)
    seen: dict[int, Seen] = {}
    for layer, routing in trace.layers.items():
        learned_T = learned_at(model, batch, layer)
        is_last = layer < model.config.num_hidden_layers
        seen[layer] = Seen(
            routing.ids_TK[learned_T],
            routing.weights_TK[learned_T],
            routing.scores_TE[learned_T],
            batch.ids_BS.flatten()[learned_T] if is_last else None,
        )
    return loss, seen


@dataclass(slots=True)
class LayerCounts:
    """Sums over tokens of one layer. However many tokens, it is E·E numbers and a few more."""

    sums: LayerSums
    """Choices and gate values by expert."""
    first_E: Tensor
    """int64, tokens whose best choice is the expert."""
    pairs_EE: Tensor
    """int64, tokens that chose both experts; on the diagonal those that chose the one."""
    gate_K: Tensor
    """float64, sums of the largest gate value of a token, of the next, and so on."""
    uncertainty: float | None = None
    """Sum of the entropies of the router's scores, each as a share of the greatest possible; None
    where scores are not recorded."""

    @classmethod
    def zero(cls, experts: int, chosen: int, device: torch.device | str = "cpu") -> Self:
        """Of no tokens."""
        first_E = torch.zeros(experts, dtype=torch.int64, device=device)
        pairs_EE = torch.zeros(experts, experts, dtype=torch.int64, device=device)
        gate_K = torch.zeros(chosen, dtype=torch.float64, device=device)
        return cls(LayerSums.zero(experts, device), first_E, pairs_EE, gate_K)

    def add_(self, seen: Seen) -> None:
        """Add tokens."""
        ids_TK, experts = seen.ids_TK, len(self.first_E)
        self.sums.add_(Chosen(ids_TK, seen.weights_TK))
        self.first_E += ids_TK[:, 0].bincount(minlength=experts)
        ones_TE = torch.zeros(len(ids_TK), experts, device=ids_TK.device)
        ones_TE.scatter_(1, ids_TK, 1.0)
        self.pairs_EE += (ones_TE.T @ ones_TE).round().long()  # exact: a batch is below 2^24 tokens
        self.gate_K += seen.weights_TK.double().sort(1, descending=True).values.sum(0)
        if seen.scores_TE is not None:
            found = float(normalised_entropy(seen.scores_TE).sum())
            self.uncertainty = found + (self.uncertainty or 0.0)

    def joined(self, other: Self) -> Self:
        """The counts of both, as if all tokens had been added to one."""
        mine, its = self.sums, other.sums
        parts = [found for found in (self.uncertainty, other.uncertainty) if found is not None]
        return type(self)(
            LayerSums(
                mine.chosen_E + its.chosen_E, mine.gate_E + its.gate_E, mine.tokens + its.tokens
            ),
            self.first_E + other.first_E,
            self.pairs_EE + other.pairs_EE,
            self.gate_K + other.gate_K,
            sum(parts) if parts else None,
        )

    @property
    def tokens(self) -> int:
        """How many were added."""
        return self.sums.tokens

    @property
    def load_E(self) -> Tensor:
        """Tokens that chose each expert, int64."""
        return self.pairs_EE.diagonal()

    @property
    def share_E(self) -> Tensor:
        """Share of the choices that fell on each expert, float64; the token score."""
        return self.sums.chosen_E / self.sums.chosen_E.sum().clamp(min=1)


def normalised_entropy(scores_TE: Tensor) -> Tensor:
    """Of every token's scores, over the greatest possible: 1 cannot tell the experts apart."""
    scores_TE = scores_TE.double()
    share_TE = scores_TE / scores_TE.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    return torch.special.entr(share_TE).sum(1) / log(max(2, scores_TE.shape[1]))


class TokenCounts:
    """Which expert the same token goes to first, layer by layer, of the first tokens there are.

    Tokens are followed from when they are first met, as many different ones as there is room for:
    frequent ones are met soon. Occurrences go to two halves, to see whether the one tells the
    other.
    """

    def __init__(self, vocabulary: int, experts: int, device: torch.device | str = "cpu") -> None:
        self._row = torch.full((vocabulary,), -1, device=device)
        self._experts, self._used = experts, 0
        self.layers: dict[int, Tensor] = {}
        """Layer → int32 [half, token followed, expert]."""
        self.passed = 0
        """Tokens that passed, of which some are not followed; of the first layer."""

    def follow_(self, tokens_T: Tensor, most: int) -> None:
        """Follow the different ones of these too, up to this many tokens in all."""
        found, counts = tokens_T.unique(return_counts=True)
        fresh = self._row[found] < 0
        found, counts = found[fresh], counts[fresh]
        room = max(0, min(most - self._used, len(found)))
        taken = found[counts.argsort(descending=True, stable=True)[:room]]
        self._row[taken] = torch.arange(self._used, self._used + room, device=taken.device)
        self._used += room

    def add_(self, layer: int, seen: Seen, part: int = 0) -> None:
        """Add tokens of one layer; even parts to one half, odd ones to the other."""
        assert seen.tokens_T is not None
        row_T = self._row[seen.tokens_T]
        if layer == min(self.layers, default=layer):
            self.passed += len(row_T)
        places = (row_T * self._experts + seen.ids_TK[:, 0])[row_T >= 0]
        added = places.bincount(minlength=self._used * self._experts).view(-1, self._experts)
        both = added.new_zeros(2, *added.shape, dtype=torch.int32)
        both[part % 2] = added
        before = self.layers.get(layer)
        if before is not None:
            both[:, : before.shape[1]] += before
        self.layers[layer] = both
