"""`KeyValueCache`: what attention keeps of the positions fed before.

Letters: B sequences, S positions fed, C positions held, Z key-value latent, R rotary width.
"""

import torch
from torch import Tensor

from moesaic.errors import RequestError


class KeyValueCache:
    """Keys and values per layer, or with latent attention the latent and its rotated key alone.

    Latent attention keeps Z + R values per token and layer, however many heads there are. A pass
    that fails half-way leaves the cache as it was.

    Args:
        capacity: positions to make room for; the room doubles whenever it runs out.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.1.4, table 1.
    """

    visible: Tensor | None = None
    """Earlier positions of the same document are seen."""

    def __init__(self, capacity: int = 256) -> None:
        self.length = 0
        self.documents: Tensor | None = None
        self._capacity = capacity
        self._layers: dict[int, tuple[Tensor, ...]] = {}

    @property
    def n_bytes(self) -> int:
        """Bytes of the room made, used or not."""
        return sum(room.nbytes for rooms in self._layers.values() for room in rooms)

    @property
    def bytes_per_token(self) -> int:
        """Bytes that one position of one sequence takes in all layers; 0 before the first pass."""
        return sum(room[0, 0].nbytes for rooms in self._layers.values() for room in rooms)

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        """Add the fed positions' ``parts``, each [B, S, …]; returns all held, each [B, C, …].

        Raises:
            RequestError: if the batch is not the one the cache was begun with, or gradients are
                asked for: the cache is written in place and keeps none.
        """
        self._check(layer, parts)
        end = self.length + parts[0].shape[1]
        rooms = self._make_room(layer, parts, end)
        for room, part in zip(rooms, parts, strict=True):
            room[:, self.length : end] = part
        return tuple(room[:, :end] for room in rooms)

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        """Count the fed positions as held: once per pass, after every layer was extended."""
        self.length += n_positions
        if documents_BS is not None:
            before = () if self.documents is None else (self.documents,)
            self.documents = torch.cat((*before, documents_BS), dim=1)

    def _check(self, layer: int, parts: tuple[Tensor, ...]) -> None:
        if torch.is_grad_enabled() and any(part.requires_grad for part in parts):
            raise RequestError(
                "a cache keeps no gradients; run the model under torch.no_grad(), or without cache"
            )
        held = self._layers.get(layer)
        if held is not None and held[0].shape[0] != parts[0].shape[0]:
            raise RequestError(
                f"the cache holds {held[0].shape[0]} sequences and {parts[0].shape[0]} were fed; "
                "feed the same batch, or begin a new cache"
            )

    def _make_room(self, layer: int, parts: tuple[Tensor, ...], end: int) -> tuple[Tensor, ...]:
        """Tensors of this layer with at least ``end`` positions."""
        while self._capacity < end:
            self._capacity *= 2
        rooms = self._layers.get(layer)
        if rooms is None or rooms[0].shape[1] < end:
            wider = tuple(
                part.new_empty((part.shape[0], self._capacity, *part.shape[2:])) for part in parts
            )
            for room, new in zip(rooms or (), wider, strict=False):
                new[:, : self.length] = room[:, : self.length]
            rooms = self._layers[layer] = wider
        return rooms
