"""`ExpertLoad`: how many tokens each expert received since a server began.

Letters: L layers, E experts of a layer, K experts chosen per token, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.model.residency import layers_with_experts
from moesaic.model.trace import RoutingTrace


@dataclass(frozen=True, slots=True)
class LayerLoad:
    """One layer, in few numbers."""

    layer: int
    pairs: int
    """Tokens of all experts together."""
    imbalance: float
    """The greatest load over the mean load."""
    hottest: int
    """The expert with the greatest."""


class ExpertLoad:
    """Loads of all layers; decoders add to them. Passes that a GPU repeats without the host are not
    seen."""

    def __init__(self, config: ModelConfig) -> None:
        self._layers = layers_with_experts(config)
        depth = config.num_hidden_layers + config.num_nextn_predict_layers
        self._counts_LE = torch.zeros(depth, config.experts, dtype=torch.int64)

    def add_trace(self, trace: RoutingTrace) -> None:
        """Count a pass of the model."""
        for layer, routing in trace.layers.items():
            self._counts_LE[layer] += routing.load_E.to("cpu")

    def add_chosen(self, first: int, chosen_LTK: Tensor) -> None:
        """Count what some layers chose.

        Args:
            first: the first of the layers.
            chosen_LTK: experts, in any integer type; what layers without experts have is ignored.
        """
        depth, experts = self._counts_LE.shape
        rows = [layer for layer in self._layers if first <= layer < first + len(chosen_LTK)]
        if rows:
            ids = chosen_LTK[[row - first for row in rows]].flatten(1).long()
            places = ids + experts * torch.tensor(rows).unsqueeze(1)
            counted = torch.bincount(places.flatten(), minlength=depth * experts)
            self._counts_LE += counted.view(depth, experts)

    def layers(self) -> Iterator[LayerLoad]:
        """Those with experts that received some tokens."""
        for layer in self._layers:
            counts_E = self._counts_LE[layer]
            if pairs := int(counts_E.sum()):
                imbalance = float(counts_E.max()) * len(counts_E) / pairs
                yield LayerLoad(layer, pairs, imbalance, int(counts_E.argmax()))
