"""Parts of a model held as `Rows`: what the compiled decoder reads, and torch can apply.

Letters: T tokens, D hidden, E experts of the layer, K experts chosen per token, P token-expert
pairs, F expert width.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from moesaic.infer.beside import ExpertsBeside
from moesaic.infer.offload import ExpertCache
from moesaic.kernels.elementwise import swiglu
from moesaic.kernels.matmul import linear
from moesaic.kernels.native.pack import Rows
from moesaic.model.routing import Routing
from moesaic.model.transformer import Transformer


class HeldLinear(nn.Module):
    """``x · weightᵀ`` with a weight that is no parameter."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """The float32 weight, made anew where it is held as codes."""
        return self.rows.floats()

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return linear(x, self.weight.to(x.dtype))


class HeldExperts(nn.Module):
    """The routed experts of a layer: all of them in rows, or those that are needed in a cache."""

    def __init__(
        self,
        layer: int,
        rows_in: Rows,
        rows_out: Rows,
        cache: ExpertCache | ExpertsBeside | None = None,
    ) -> None:
        """Take what holds them.

        Args:
            layer: whose experts they are.
            rows_in: gate and up of one expert after the other, or of one slot of the cache.
            rows_out: down, likewise.
            cache: which of them are there, if not all.
        """
        super().__init__()
        self.layer, self.rows_in, self.rows_out, self.cache = layer, rows_in, rows_out, cache
        self.slot_of_expert: Tensor | None = None
        """Of each expert its slot, int64 [E]; None where slot and expert are the same."""

    def of_slot(self, slot: int) -> tuple[Rows, Rows]:
        """Gate and up, and down, of what is in a slot."""
        n_in, n_out = 2 * self.rows_out.width, self.rows_in.width
        rows_in = self.rows_in.part(slot * n_in, (slot + 1) * n_in)
        return rows_in, self.rows_out.part(slot * n_out, (slot + 1) * n_out)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's experts, one expert after the other: [T, D].

        The sum is the same in whatever order the experts come.
        """
        n_chosen = routing.ids_TK.shape[1]
        ids_P = routing.ids_TK.flatten()
        weights_P = routing.weights_TK.flatten().to(x_TD.dtype)
        out_PD = x_TD.new_empty(len(ids_P), x_TD.shape[1])
        with nullcontext() if self.cache is None else self.cache.lock:
            for expert, rows_in, rows_out in self._each(Counter(ids_P.tolist())):
                pairs = (ids_P == expert).nonzero().squeeze(1)
                inner = linear(x_TD[pairs // n_chosen], _floats(rows_in, x_TD))
                active = swiglu(*inner.chunk(2, dim=-1)) * weights_P[pairs].unsqueeze(1)
                out_PD[pairs] = linear(active, _floats(rows_out, x_TD))
        wide = torch.promote_types(x_TD.dtype, torch.float32)
        return out_PD.unflatten(0, (-1, n_chosen)).sum(1, dtype=wide).to(x_TD.dtype)

    def _each(self, uses: Counter[int]) -> Iterator[tuple[int, Rows, Rows]]:
        """The experts that are used, in any order."""
        if self.cache is not None:
            yield from self.cache.each(self.layer, dict(sorted(uses.items())))
            return
        slots = self.slot_of_expert
        for expert in sorted(uses):
            yield expert, *self.of_slot(expert if slots is None else int(slots[expert]))


def cache_of(model: Transformer) -> ExpertCache | None:
    """What holds a model's experts, if not all of them are held."""
    found = bringer_of(model)
    assert not isinstance(found, ExpertsBeside), "a variant's experts are told of by its base"
    return found


def bringer_of(model: Transformer) -> ExpertCache | ExpertsBeside | None:
    """What brings a model's experts, if not all of them are held."""
    for moe in model.moe_layers().values():
        if isinstance(moe.experts, HeldExperts):
            return moe.experts.cache
    return None


def holds_codes(model: Transformer) -> bool:
    """Whether some weights are held as codes."""
    parts = [each.rows for each in model.modules() if isinstance(each, HeldLinear)]
    for moe in model.moe_layers().values():
        if isinstance(experts := moe.experts, HeldExperts):
            parts += [experts.rows_in, experts.rows_out]
    return any(rows.scales is not None for rows in parts)


def _floats(rows: Rows, like: Tensor) -> Tensor:
    return (rows.values if rows.scales is None else rows.floats()).to(like.dtype)
