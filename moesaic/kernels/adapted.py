"""The feed-forwards of frozen experts, some of which have low-rank adapters that are trained.

The adapters multiply the rows that the experts multiply, so that neither a sum of weight and
adapter nor a gradient of a weight's size exists. A forward and backward pass over a layer of
DeepSeek-V2-Lite's sizes, 64 tokens in bfloat16, 8 experts with float32 adapters of rank 16, takes
24 MB at its peak this way and 299 MB with sums; with 56 more experts held, 52 MB.

Letters: T tokens, D hidden, K experts per token, F expert width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.autocast import follows_autocast
from moesaic.kernels.elementwise import swiglu_backward
from moesaic.kernels.grouped import (
    FrozenExperts,
    all_stacks,
    arrange,
    count_experts,
    halves,
    products,
    sum_of_rows,
    summed_products,
    weight_of_row,
)
from moesaic.kernels.layout import Layout, TieredLayout
from moesaic.kernels.pieces import Matrices


class LowRank(NamedTuple):
    """The two factors of what is added to a weight, or to each weight of a stack."""

    a: Tensor
    """[…, rank, width of the input]."""
    b: Tensor
    """[…, width of the output, rank]."""


@dataclass(frozen=True, slots=True)
class ExpertAdapters:
    """Additions to the three projections of some experts, of one rank."""

    gate: LowRank
    up: LowRank
    down: LowRank
    slots: Tensor
    """int64, which of all experts each stands beside."""
    scale: float
    """Factor on every product of two factors."""


@dataclass(frozen=True, slots=True)
class _Frozen:
    """What has no gradient."""

    gate_up: Tensor
    down: Tensor
    layout: Layout
    beside: FrozenExperts | None
    slots: Tensor
    scale: float

    def stacks(self) -> tuple[Matrices, Matrices]:
        return all_stacks(self.gate_up, self.down, self.beside)

    @property
    def n_experts(self) -> int:
        return count_experts(self.down, self.beside)


class _AdaptedExperts(torch.autograd.Function):
    """Keeps what `experts` keeps; both products with a rank are cheap and computed again. Here too
    each tensor with rows of all pairs is let go after its last use, and what experts and adapters
    give is added up for each token, not for each row."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, frozen: _Frozen, *parts: Tensor
    ) -> Tensor:
        dtype, layout = x_TD.dtype, frozen.layout
        all_gate_up, all_down = frozen.stacks()
        for_gate_up, for_down = _spread(frozen, parts, dtype)
        rows = x_TD.index_select(0, layout.token_of_row)
        inner = products(layout, rows, all_gate_up.mT)
        inner += _thin(layout, _narrowed(frozen, rows, for_gate_up), for_gate_up.b.mT)
        del rows
        gate, up = halves(inner)
        weighted = F.silu(gate).mul_(up).mul_(weight_of_row(layout, weights_TK, dtype))
        del gate
        out_TD = summed_products(layout, weighted, all_down.mT)
        narrowed = _narrowed(frozen, weighted, for_down)
        del weighted
        out_TD += sum_of_rows(layout, _thin(layout, narrowed, for_down.b.mT))
        ctx.save_for_backward(x_TD, weights_TK, inner, *parts)
        ctx.frozen = frozen
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, inner, *parts = ctx.saved_tensors
        frozen: _Frozen = ctx.frozen
        layout, dtype = frozen.layout, x_TD.dtype
        all_gate_up, all_down = frozen.stacks()
        for_gate_up, for_down = _spread(frozen, parts, dtype)
        weight = weight_of_row(layout, weights_TK, dtype)
        gate, up = halves(inner)
        active = F.silu(gate).mul_(up)
        grad_rows = grads[0].index_select(0, layout.token_of_row)
        d_low = _thin(layout, grad_rows, for_down.b).mul_(frozen.scale)
        d_active = products(layout, grad_rows, all_down).add_(_thin(layout, d_low, for_down.a))
        d_weight = (d_active * active).sum(-1, dtype=weights_TK.dtype)
        d_weights_TK = d_weight.index_select(0, layout.row_TK.flatten()).view_as(weights_TK)
        d_down = _factor_gradients(frozen, for_down, active.mul_(weight), grad_rows, d_low)
        del grad_rows, active
        d_gate, d_up = swiglu_backward(d_active.mul_(weight), gate, up)
        del gate, d_active
        d_inner = torch.cat((d_gate, d_up), dim=-1)
        del d_gate, d_up
        rows = x_TD.index_select(0, layout.token_of_row)
        d_low = _thin(layout, d_inner, for_gate_up.b).mul_(frozen.scale)
        d_gate_up = _factor_gradients(frozen, for_gate_up, rows, d_inner, d_low)
        del rows
        d_x_TD = None
        if ctx.needs_input_grad[0]:
            d_x_TD = summed_products(layout, d_inner, all_gate_up)
            del d_inner
            d_x_TD += sum_of_rows(layout, _thin(layout, d_low, for_gate_up.a))
        d_parts = (*_separate(d_gate_up), *d_down)
        typed = (d_part.to(part.dtype) for d_part, part in zip(d_parts, parts, strict=True))
        return d_x_TD, d_weights_TK, None, *typed


@follows_autocast
def adapted_experts(
    x_TD: Tensor,
    slots_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    adapters: ExpertAdapters,
    frozen: FrozenExperts | None = None,
) -> Tensor:
    """`reference.experts` with ``weight + scale · b · a`` for the weights that have adapters.

    The stacks and the frozen experts get no gradient; hidden states, gate values and the adapters'
    factors do.

    Source: LoRA (arXiv 2106.09685) eq. 3.
    """
    rank, inner = adapters.down.a.shape[-2], down.shape[2]
    layout = arrange(x_TD, slots_TK, count_experts(down, frozen), inner, rank)
    rest = _Frozen(gate_up, down, layout, frozen, adapters.slots, adapters.scale)
    parts = (*adapters.gate, *adapters.up, *adapters.down)
    return _AdaptedExperts.apply(x_TD, weights_TK, rest, *parts)


def _spread(
    frozen: _Frozen, parts: Sequence[Tensor], dtype: torch.dtype
) -> tuple[LowRank, LowRank]:
    """Adapters of gate and up as one of twice the rank, and of down, with zeros for the experts
    that have none: finding the rows of those that have some would wait for the device."""
    gate, up, down = LowRank(*parts[:2]), LowRank(*parts[2:4]), LowRank(*parts[4:])
    both = torch.cat((gate.a, up.a), dim=1)
    apart = torch.cat((F.pad(gate.b, (0, up.b.shape[2])), F.pad(up.b, (gate.b.shape[2], 0))), dim=1)

    def spread(part: Tensor) -> Tensor:
        out = torch.zeros(frozen.n_experts, *part.shape[1:], dtype=dtype, device=part.device)
        return out.index_copy_(0, frozen.slots, part.to(dtype))

    return LowRank(spread(both), spread(apart)), LowRank(spread(down.a), spread(down.b))


def _narrowed(frozen: _Frozen, rows: Tensor, pair: LowRank) -> Tensor:
    """Rows times ``scale · aᵀ``: of the width of a rank."""
    return _thin(frozen.layout, rows, pair.a.mT).mul_(frozen.scale)


def _factor_gradients(
    frozen: _Frozen, pair: LowRank, rows: Tensor, d_out: Tensor, d_low: Tensor
) -> LowRank:
    """Gradients of both factors, of the experts that have adapters."""
    layout, n_experts, dtype = frozen.layout, len(pair.a), rows.dtype
    narrowed = _narrowed(frozen, rows, pair)

    def outer(left: Tensor, right: Tensor) -> Tensor:
        sums = layout.outer(_for_thin(layout, left), _for_thin(layout, right), n_experts, dtype)
        return sums.index_select(0, frozen.slots)

    return LowRank(outer(d_low, rows), outer(d_out, narrowed))


def _thin(layout: Layout, rows: Tensor, matrices: Tensor) -> Tensor:
    """A product one of whose sides has the width of a rank."""
    return layout.matmul(_for_thin(layout, rows), matrices).to(rows.dtype)


def _for_thin(layout: Layout, rows: Tensor) -> Tensor:
    """Rows in the dtype for such products: float32 where each expert has rows of its own. A CPU
    compiles a bfloat16 product for every number of rows and keeps it, nearly a megabyte each, and
    adapters have three times as many different products as the experts they stand beside."""
    is_tiered = isinstance(layout, TieredLayout) and rows.dtype == torch.bfloat16
    return rows.float() if is_tiered else rows


def _separate(both: LowRank) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The factors of gate and of up from those of both together."""
    rank, inner = both.a.shape[1] // 2, both.b.shape[1] // 2
    gate = both.a[:, :rank], both.b[:, :inner, :rank]
    up = both.a[:, rank:], both.b[:, inner:, rank:]
    return (*gate, *up)
