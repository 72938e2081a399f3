"""A cache that keeps every tensor it is given: what a cache means, whatever a faster one does."""

import torch
from torch import Tensor


class ListCache:
    """Everything fed so far, per layer."""

    def __init__(self) -> None:
        self.layers: dict[int, list[tuple[Tensor, ...]]] = {}
        self.fed: list[Tensor] = []
        self.length = 0

    visible: Tensor | None = None

    @property
    def documents(self) -> Tensor | None:
        return torch.cat(self.fed, dim=1) if self.fed else None

    def extend(self, layer: int, *parts: Tensor) -> tuple[Tensor, ...]:
        self.layers.setdefault(layer, []).append(parts)
        return tuple(torch.cat(held, dim=1) for held in zip(*self.layers[layer], strict=True))

    def advance(self, n_positions: int, documents_BS: Tensor | None) -> None:
        self.length += n_positions
        if documents_BS is not None:
            self.fed.append(documents_BS)
