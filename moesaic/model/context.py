"""What every layer sees of a forward pass besides the hidden states.

Letters: B sequences, S positions fed, C positions visible.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from moesaic.errors import RequestError
from moesaic.model.ablation import NOTHING_ABLATED, Ablation
from moesaic.model.dropping import Dropping
from moesaic.model.rope import Rotation


class Cache(Protocol):
    """Keys and values, or latents, of the positions fed before."""

    @property
    def length(self) -> int:
        """Positions held for every layer."""
        ...

    @property
    def documents(self) -> Tensor | None:
        """Document of each position held, [B, C]; None when all are of one document."""
        ...

    @property
    def visible(self) -> Tensor | None:
        """bool [B, 1, S, C], where the cache itself knows what a pass sees; None otherwise."""
        ...

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Add the fed positions' ``parts``, each [B, S, …]; returns all held, each [B, C, …]."""
        ...

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Call once per pass, after all layers have been extended."""
        ...


@dataclass(frozen=True, slots=True)
class Context:
    """One forward pass."""

    ids_BS: Tensor
    rotation: Rotation
    visible: Tensor | None
    """bool [B, 1, S, C], which positions attention sees; None for plain causal attention."""
    cache: Cache | None = None
    dropping: Dropping | None = None
    ablation: Ablation = NOTHING_ABLATED


def visible_positions(documents_BS: Tensor | None, cache: Cache | None) -> Tensor | None:
    """bool [B, 1, S, C]: earlier positions of the same document; None where that is all of them.

    Raises:
        RequestError: if some passes of a cache name documents and others do not.
    """
    if cache is not None and cache.visible is not None:
        return cache.visible
    held = cache.length if cache is not None else 0
    before = cache.documents if cache is not None else None
    if documents_BS is None and before is None:
        return None
    if documents_BS is None or (held and before is None):
        raise RequestError("documents_BS must be given in every pass of a cache, or in none")
    documents_BC = documents_BS if before is None else torch.cat((before, documents_BS), 1)
    same = documents_BS[:, None, :, None] == documents_BC[:, None, None, :]
    return same & same.new_ones(same.shape[-2:]).tril(held)
