"""What rows begin with alike: fed once, and seen by every row when its own end is fed.

Letters: B sequences, S positions fed.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.eval.encode import Ids
from moesaic.infer.prompts import PromptBatch
from moesaic.model.transformer import Transformer

_ALIKE = 0.75
"""Shortest beginning of a pass, by its longest: the rest of a row is padding."""


def feed_beginnings(model: Transformer, beginnings: Sequence[Ids], begins: Tensor) -> "Beginnings":
    """Feed some beginnings, those of like lengths together.

    Args:
        model: fed.
        beginnings: ids; at least one token each.
        begins: for each row that follows the place of its beginning.

    Returns:
        The cache with which the rows' ends are fed.
    """
    device, longest = begins.device, max(map(len, beginnings))
    passes: list[dict[int, tuple[Tensor, ...]]] = []
    documents: list[Tensor] = []
    order: list[int] = []
    for places in _alike(beginnings):
        fed, kept = PromptBatch.of([beginnings[place] for place in places], device), _Kept()
        model.hidden_states(fed.ids_BS, fed.positions_BS, fed.documents_BS, kept)
        own = torch.ones_like(fed.ids_BS) if fed.documents_BS is None else fed.documents_BS
        documents.append(_filled(own, longest))
        passes.append(kept.layers)
        order += places
    row_of = torch.tensor(order, device=device).argsort()
    layers = {
        layer: tuple(
            torch.cat([_filled(part, longest) for part in parts])
            for parts in zip(*(one[layer] for one in passes), strict=True)
        )
        for layer in passes[0]
    }
    return Beginnings(layers, torch.cat(documents), row_of[begins])


class Beginnings:
    """Keys and values of beginnings as a cache for one pass of rows, which it does not keep.

    Args:
        layers: of every layer, filled on the left.
        documents: 1 for the beginnings' tokens, 0 for what fills them.
        begins: for each row of the pass the row of these that it begins with.
    """

    visible = None

    def __init__(
        self, layers: dict[int, tuple[Tensor, ...]], documents: Tensor, begins: Tensor
    ) -> None:
        self.length = documents.shape[1]
        self.documents = documents[begins]
        self._layers, self._begins = layers, begins

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """What each row begins with before the fed positions' ``parts``."""
        held = (part[self._begins] for part in self._layers[layer])
        return tuple(torch.cat(pair, dim=1) for pair in zip(held, parts, strict=True))

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Nothing: what was fed is not kept."""


class _Kept:
    """Keeps the keys and values of one pass, before which nothing is held."""

    length, documents, visible = 0, None, None

    def __init__(self) -> None:
        self.layers: dict[int, tuple[Tensor, ...]] = {}

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        self.layers[layer] = parts
        return parts

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Nothing."""


def _alike(beginnings: Sequence[Ids]) -> Iterator[list[int]]:
    """Places of beginnings of like lengths, the longest first."""
    left = sorted(range(len(beginnings)), key=lambda place: -len(beginnings[place]))
    while left:
        least = _ALIKE * len(beginnings[left[0]])
        yield [place for place in left if len(beginnings[place]) >= least]
        left = [place for place in left if len(beginnings[place]) < least]


def _filled(part: Tensor, length: int) -> Tensor:
    """[B, S, …] filled on the left to a length."""
    return F.pad(part, (*[0, 0] * (part.ndim - 2), length - part.shape[1], 0))
