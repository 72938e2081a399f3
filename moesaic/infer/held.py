"""Parts of a model held as `Rows`: what the compiled decoder reads, and torch can apply.

Letters: T tokens, D hidden, E experts of the layer, K experts chosen per token, P token-expert
pairs, F expert width.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from moesaic.infer.beside import ExpertsBeside
from moesaic.infer.offload import ExpertCache
from moesaic.kernels.elementwise import gated_halves
from moesaic.kernels.grouped import sum_of_rows, weight_of_row
from moesaic.kernels.layout import SortedLayout
from moesaic.kernels.matmul import linear
from moesaic.kernels.native import panels
from moesaic.kernels.native.expand import expand
from moesaic.kernels.native.pack import Kind, Rows
from moesaic.model.routing import Routing
from moesaic.model.transformer import Transformer

_AT_ONCE = 2**23
"""Bytes of floats that codes are made at a time: they are multiplied before they leave the caches,
and the system need not give new memory for them."""


class HeldLinear(nn.Module):
    """``x · weightᵀ`` with a weight that is no parameter."""

    def __init__(self, rows: Rows) -> None:
        super().__init__()
        self.rows = rows

    @property
    def weight(self) -> Tensor:
        """The float32 weight, made anew where it is held as codes."""
        return _floats(self.rows, torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        if self.rows.values.dtype == x.dtype:
            return linear(x, self.rows.values)
        step = max(1, 2 * _AT_ONCE // (self.rows.width * x.element_size()))
        firsts = range(0, len(self.rows.values), step)
        parts = [linear(x, _floats(self.rows.part(i, i + step), x.dtype)) for i in firsts]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)


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

    @property
    def n_slots(self) -> int:
        """Experts that there is room for."""
        return len(self.rows_out.values) // self.rows_in.width

    def of_slot(self, slot: int) -> tuple[Rows, Rows]:
        """Gate and up, and down, of what is in a slot."""
        return self._of_slots(slot, slot + 1)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's experts, without a gradient: [T, D].

        The sum is the same in whatever order the experts come, and however many at a time.
        """
        assert not (torch.is_grad_enabled() and x_TD.requires_grad)
        slots_TK, n_groups = routing.ids_TK, len(routing.load_E)
        if self.cache is None:
            n_groups = self.n_slots
            if self.slot_of_expert is not None:
                slots_TK = self.slot_of_expert[slots_TK]
        layout = SortedLayout.of(slots_TK, n_groups)
        rows = x_TD.index_select(0, layout.token_of_row)
        weight = weight_of_row(layout, routing.weights_TK, x_TD.dtype)
        out = torch.empty_like(rows)
        with nullcontext() if self.cache is None else self.cache.lock:
            for span in self._spans(layout.ends_e, x_TD.dtype):
                of = span.rows
                inner = span.products(rows[of], span.rows_in)
                active = gated_halves(inner, weight[of])
                span.products(active, span.rows_out, out[of])
        return sum_of_rows(layout, out)

    def _of_slots(self, first: int, end: int) -> tuple[Rows, Rows]:
        """Gate and up, and down, of what is in slots that follow each other."""
        n_in, n_out = 2 * self.rows_out.width, self.rows_in.width
        rows_in = self.rows_in.part(first * n_in, end * n_in)
        return rows_in, self.rows_out.part(first * n_out, end * n_out)

    def _spans(self, ends_e: Tensor, dtype: torch.dtype) -> Iterator["_Span"]:
        """All experts that are used, in any order."""
        ends = [0, *ends_e.tolist()]
        if self.cache is not None:
            uses = {e: n for e in range(len(ends) - 1) if (n := ends[e + 1] - ends[e])}
            for expert, rows_in, rows_out in self.cache.each(self.layer, uses):
                yield _Span(rows_in, rows_out, ends[expert : expert + 2])
            return
        step = self.n_slots
        if not self.rows_in.values.dtype == self.rows_out.values.dtype == dtype:
            width, inner = self.rows_in.width, self.rows_out.width
            step = max(1, _AT_ONCE // (2 * width * inner * dtype.itemsize))
        for first in range(0, self.n_slots, step):
            end = min(first + step, self.n_slots)
            if ends[end] > ends[first]:
                yield _Span(*self._of_slots(first, end), ends[first : end + 1])


@dataclass(frozen=True, slots=True)
class _Span:
    """Experts that follow each other, and the rows of pairs that they are for."""

    rows_in: Rows
    rows_out: Rows
    ends: list[int]
    """Where the rows of the first expert begin, and those of each one end."""

    @property
    def rows(self) -> slice:
        """All of the pairs."""
        return slice(self.ends[0], self.ends[-1])

    def products(self, rows: Tensor, weights: Rows, out: Tensor | None = None) -> Tensor:
        """Each row with the weight of its expert: [rows, a] to [rows, b]."""
        n = len(self.ends) - 1
        matrices = _floats(weights, rows.dtype).unflatten(0, (n, -1))
        if out is None:
            out = rows.new_empty(len(rows), matrices.shape[1])
        ends = [end - self.ends[0] for end in self.ends]
        if panels.serve(rows, matrices):
            told = torch.tensor(ends[1:], dtype=torch.int32)
            return panels.multiply_rows(rows, matrices.mT, told, out)
        for matrix, start, end in zip(matrices, ends, ends[1:], strict=False):
            if end > start:
                out[start:end] = linear(rows[start:end], matrix)
        return out


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


def held_codes(model: Transformer) -> set[Kind]:
    """Of which kinds the codes are that some weights are held as."""
    parts = [each.rows for each in model.modules() if isinstance(each, HeldLinear)]
    for moe in model.moe_layers().values():
        if isinstance(experts := moe.experts, HeldExperts):
            parts += [experts.rows_in, experts.rows_out]
    return {rows.kind for rows in parts if not rows.values.is_floating_point()}


def _floats(rows: Rows, dtype: torch.dtype) -> Tensor:
    """What rows stand for, in a type: in their own memory if that is how they lie."""
    if rows.values.dtype == dtype:
        return rows.values
    out = torch.empty(len(rows.values), rows.width, dtype=dtype, device=rows.values.device)
    return expand(rows, out)
