"""Frozen weights held as group-wise integers: the experts of a layer, and linear layers.

Letters: D hidden, F expert width.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Literal

import torch
from torch import Tensor, nn

from moesaic.checkpoint.names import places
from moesaic.kernels import groupwise
from moesaic.kernels.groupwise import GROUP, Bits, GroupwiseWeight
from moesaic.model.linear import Linear
from moesaic.model.transformer import Transformer
from moesaic.planner.holding import PIECE, columns_at_once

LinearRole = Literal["attention", "dense", "shared"]
"""Parts of a model that consist of linear layers: attention, dense layers, shared experts."""


class Scratch:
    """Memory for a piece of the experts' weights, in the dtype of the products.

    All layers of a model share it: it is as large as the largest piece of any of them.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device | str, most: int = PIECE) -> None:
        """Nothing is held yet.

        Args:
            dtype: of the products.
            device: where to.
            most: weights of a piece.
        """
        self._memory = torch.empty(0, dtype=dtype, device=device)
        self.most = most

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._memory.device

    @property
    def bytes(self) -> int:
        """How large it is."""
        return self._memory.nbytes

    def reserve_(self, size: int) -> None:
        """Have room for this many weights."""
        if size > self._memory.numel():
            self._memory = self._memory.new_empty(size)

    def room(self, *shape: int) -> Tensor:
        """Its beginning, as a tensor."""
        return self._memory[: prod(shape)].view(shape)


@dataclass(frozen=True, slots=True)
class QuantisedStack:
    """One projection of all experts of a layer, [e, rows, columns], brought back piece by piece.

    See `Pieces`. Transposed, its columns are rows of the weights.
    """

    trained: Tensor
    """The first experts, copied in every time: they are few, and nothing has to tell whether they
    changed."""
    stored: GroupwiseWeight
    """Those beside them."""
    scratch: Scratch
    is_transposed: bool = False

    @property
    def mT(self) -> "QuantisedStack":
        """The same weights transposed."""
        return replace(self, is_transposed=not self.is_transposed)

    @property
    def width(self) -> int:
        """Columns of the whole."""
        return self.stored.shape[1 if self.is_transposed else 2]

    @property
    def runs(self) -> int:
        """Equal parts of the columns, of each of which a piece has the same."""
        return 1 if self.is_transposed else self.stored.runs

    @property
    def at_once(self) -> int:
        """Columns of a piece, all pieces being of about as many."""
        height = self._height
        has_whole_groups = self.is_transposed or self.width % (self.runs * self.stored.group) == 0
        if not has_whole_groups:
            return self.width
        return columns_at_once(self.width, height, self.scratch.most)

    @property
    def largest(self) -> int:
        """Weights of a piece."""
        return self.at_once * self._height

    @property
    def _height(self) -> int:
        """Weights of a column, of all experts."""
        n_experts = len(self.trained) + self.stored.shape[0]
        return n_experts * self.stored.shape[2 if self.is_transposed else 1]

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        """See `Pieces`."""
        if self.at_once == self.width:
            yield 0, self._filled(self.trained, self.stored)
            return
        length, step = self.width // self.runs, self.at_once // self.runs
        for start in range(0, length, step):
            yield start, self._piece(start, min(start + step, length))

    def _piece(self, start: int, end: int) -> Tensor:
        if self.is_transposed:
            return self._filled(self.trained[:, start:end], self.stored.rows(start, end))
        by_run = self.trained.unflatten(2, (self.runs, -1))
        return self._filled(by_run[..., start:end], self.stored.columns(start, end))

    def _filled(self, trained: Tensor, stored: GroupwiseWeight) -> Tensor:
        n_frozen, *shape = stored.shape
        room = self.scratch.room(len(trained) + n_frozen, *shape)
        room[: len(trained)].view(trained.shape).copy_(trained.detach())
        groupwise.dequantise_groups_into_(room[len(trained) :], stored)
        return room.mT if self.is_transposed else room


class QuantisedExperts:
    """The frozen experts of a layer in 8 or 4 bit, brought back piece by piece at each use."""

    def __init__(
        self, n_stacked: int, n_frozen: int, width: int, inner: int, bits: Bits, scratch: Scratch
    ) -> None:
        """Make room; `put_` fills it.

        Args:
            n_stacked: experts that are parameters.
            n_frozen: experts beside them.
            width: hidden size, D.
            inner: expert width, F.
            bits: of a code.
            scratch: shared by all layers of the model.
        """
        self.count, self._scratch = n_frozen, scratch
        self._stores = (
            GroupwiseWeight.empty((n_frozen, 2 * inner, width), bits, GROUP, scratch.device),
            GroupwiseWeight.empty((n_frozen, width, inner), bits, GROUP, scratch.device),
        )
        sizes = (torch.empty(n_stacked, *x.shape[1:], device="meta") for x in self._stores)
        for stack in self.beside(*sizes):
            scratch.reserve_(max(stack.largest, stack.mT.largest))

    @property
    def stores(self) -> tuple[GroupwiseWeight, GroupwiseWeight]:
        """What is held: [n, 2F, D] and [n, D, F]."""
        return self._stores

    @property
    def bytes(self) -> int:
        """Memory they take, without the scratch."""
        return sum(store.bytes for store in self._stores)

    def put_(self, slot: int, gate_up: Tensor, down: Tensor, name: str) -> None:
        """Quantise one expert and keep it.

        Args:
            slot: which of the frozen ones it is.
            gate_up: [2F, D].
            down: [D, F].
            name: of the expert, for the error.

        Raises:
            CheckpointError: if a value is not finite.
        """
        for store, weight in zip(self._stores, (gate_up, down), strict=True):
            store[slot].copy_(groupwise.quantise_groups(weight, store.bits, store.group, name))

    def beside(self, gate_up: Tensor, down: Tensor) -> tuple[QuantisedStack, QuantisedStack]:
        """See `FrozenExperts`."""
        of_gate_up, of_down = self._stores
        return (
            QuantisedStack(gate_up, of_gate_up, self._scratch),
            QuantisedStack(down, of_down, self._scratch),
        )


class QuantisedLinear(nn.Module):
    """``x · weightᵀ`` with a frozen weight in 8 or 4 bit, brought back at each use.

    The weight is no parameter and in no state: it comes from the checkpoint that the model came
    from.
    """

    values: Tensor
    scales: Tensor

    def __init__(self, stored: GroupwiseWeight) -> None:
        super().__init__()
        self.register_buffer("values", stored.values, persistent=False)
        self.register_buffer("scales", stored.scales, persistent=False)
        self._form = stored.bits, stored.group, stored.shape

    @property
    def stored(self) -> GroupwiseWeight:
        """What is held."""
        return GroupwiseWeight(self.values, self.scales, *self._form)

    @property
    def weight(self) -> Tensor:
        """The float32 weight it stands for, made anew."""
        return groupwise.dequantise_groups(self.stored)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return groupwise.linear(x, self.stored)


def quantise_linears_(
    model: Transformer, bits: Bits, roles: Collection[LinearRole]
) -> tuple[str, ...]:
    """Replace the frozen linear layers of some parts by quantised ones, one at a time.

    Trained ones stay as they are. Their weights have to be loaded, and adapters go around them
    afterwards.

    Args:
        model: its parameters that are not trained require no gradient.
        bits: of a code.
        roles: which parts.

    Returns:
        The names of the replaced layers.

    Raises:
        CheckpointError: if a weight holds values that are not finite.
    """
    modules, replaced = dict(model.named_modules()), []
    for spec, place in places(model.config, model.residency.stacks(model.config)):
        name = place.name.removesuffix(".weight")
        layer = modules.pop(name, None)  # so that its weight goes once it is replaced
        if spec.role in roles and isinstance(layer, Linear) and not layer.weight.requires_grad:
            stored = groupwise.quantise_groups(layer.weight, bits, name=place.name)
            model.set_submodule(name, QuantisedLinear(stored))
            replaced.append(name)
    return tuple(replaced)
