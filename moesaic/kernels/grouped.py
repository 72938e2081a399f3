"""The feed-forwards of all resident experts at once, over rows that a `Layout` arranges.

Letters: T tokens, D hidden, K experts per token, e resident experts, F expert width.
"""

from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.autocast import follows_autocast
from moesaic.kernels.elementwise import (
    gated_halves,
    gated_halves_backward,
    halves,
    swiglu_backward,
)
from moesaic.kernels.layout import Layout, SortedLayout, TieredLayout
from moesaic.kernels.native import panels
from moesaic.kernels.pieces import Matrices, by_columns

_FEW_PAIRS = 32
"""Without gradients, up to this many pairs are computed one by one."""
_COPIED = 4 << 20
"""Without gradients, up to this many bytes of the pairs' experts are copied side by side."""
_COLUMNS = 256
"""Sums of a token's rows are made of no fewer columns at a time: smaller products would read the
rows from memory more often than they can be multiplied."""
_SUMMED = 2**25
"""Values of rows, with all columns or a multiple of those, that are made before they are summed up
for each token."""


class FrozenExperts(Protocol):
    """Experts held beside those of the stacks, in whatever form; nothing here has a gradient."""

    @property
    def count(self) -> int:
        """How many they are."""
        ...

    def beside(self, gate_up: Tensor, down: Tensor) -> tuple[Matrices, Matrices]:
        """Both stacks of all experts: those given, then these.

        The result is read before any other ``beside`` is called, and may be overwritten by it; of
        what comes in pieces one stack is read at a time. It is asked for twice in a step: once
        forward, once backward.
        """
        ...


class _Experts(torch.autograd.Function):
    """Keeps the hidden states (shared with the residual stream) and the inner rows before the
    activation; the rest is computed again. Weight gradients only where they are asked for. Rows of
    all pairs are the largest temporaries of a training step: each is let go after its last use."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TD: Tensor,
        weights_TK: Tensor,
        gate_up: Tensor,
        down: Tensor,
        layout: Layout,
        frozen: FrozenExperts | None,
        accumulate: bool,
    ) -> Tensor:
        dtype = x_TD.dtype
        all_gate_up, all_down = all_stacks(gate_up, down, frozen)
        inner = products(layout, x_TD.index_select(0, layout.token_of_row), all_gate_up.mT)
        weighted = gated_halves(inner, weight_of_row(layout, weights_TK, dtype))
        out_TD = summed_products(layout, weighted, all_down.mT)
        ctx.save_for_backward(x_TD, weights_TK, gate_up, down, inner)
        ctx.layout, ctx.frozen = layout, frozen
        # The stacks themselves: what is saved may be a view without the gradient.
        ctx.stacks = tuple(w if accumulate and w.is_leaf else None for w in (gate_up, down))
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, gate_up, down, inner = ctx.saved_tensors
        layout: Layout = ctx.layout
        wants_x, wants_weights, wants_gate_up, wants_down, *_ = ctx.needs_input_grad
        dtype = x_TD.dtype
        all_gate_up, all_down = all_stacks(gate_up, down, ctx.frozen)
        weight = weight_of_row(layout, weights_TK, dtype)
        grad_rows = grads[0].index_select(0, layout.token_of_row)
        d_active = products(layout, grad_rows, all_down)
        d_x_TD = d_gate_up = d_down = None
        swept = gated_halves_backward(d_active, inner, weight, wants_weights, wants_down)
        d_weight, active = (
            swept[1:] if swept else _active(d_active, inner, weight, wants_weights, wants_down)
        )
        if active is not None:
            d_down = _outer(layout, grad_rows, active, down, ctx.stacks[1])
        del grad_rows, active
        d_inner = swept[0] if swept else _d_inner(d_active, inner, weight)
        del d_active, swept
        if wants_gate_up:
            rows = x_TD.index_select(0, layout.token_of_row)
            d_gate_up = _outer(layout, d_inner, rows, gate_up, ctx.stacks[0])
            del rows
        if wants_x:
            d_x_TD = summed_products(layout, d_inner, all_gate_up)
        d_weights_TK = None if d_weight is None else weight_of_pair(layout, d_weight, weights_TK)
        return d_x_TD, d_weights_TK, d_gate_up, d_down, None, None, None


@follows_autocast
def experts(
    x_TD: Tensor,
    slots_TK: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    *,
    frozen: FrozenExperts | None = None,
    accumulate: bool = False,
) -> Tensor:
    """`reference.experts` as two grouped products forward and four backward.

    Slots count the experts of the stacks first, then the frozen ones. Weights of frozen experts
    take part in the two forward products and in the two that lead back to the input, and in none of
    the two for weight gradients.

    With ``accumulate`` the gradient of a stack that has one already, in ``.grad``, is added there
    piece by piece, and autograd gets none: beside the sum no second gradient of its size exists.
    That serves ``backward()`` alone: other ways to ask for gradients, and hooks, would miss it.
    """
    few = slots_TK.numel() <= _FEW_PAIRS and frozen is None and not torch.is_grad_enabled()
    if few and x_TD.device.type == "cpu":
        return _pair_by_pair(x_TD, slots_TK, weights_TK, gate_up, down)
    layout = arrange(x_TD, slots_TK, count_experts(down, frozen), down.shape[2])
    return arranged(x_TD, weights_TK, gate_up, down, layout, frozen, accumulate)


def arranged(
    x_TD: Tensor,
    weights_TK: Tensor,
    gate_up: Tensor,
    down: Tensor,
    layout: Layout,
    frozen: FrozenExperts | None = None,
    accumulate: bool = False,
) -> Tensor:
    """`experts`, with the pairs in a given arrangement."""
    return _Experts.apply(x_TD, weights_TK, gate_up, down, layout, frozen, accumulate)


def all_stacks(
    gate_up: Tensor, down: Tensor, frozen: FrozenExperts | None
) -> tuple[Matrices, Matrices]:
    """Both stacks of all experts, with those held beside them."""
    return (gate_up, down) if frozen is None else frozen.beside(gate_up, down)


def count_experts(down: Tensor, frozen: FrozenExperts | None) -> int:
    """How many experts these are together."""
    return len(down) + (0 if frozen is None else frozen.count)


def _active(
    d_active: Tensor, inner: Tensor, weight: Tensor, wants_weight: bool, wants_active: bool
) -> tuple[Tensor | None, Tensor | None]:
    """Gradient of each row's weight, and the weighted activation again, where they are wanted."""
    if not (wants_weight or wants_active):
        return None, None
    gate, up = halves(inner)
    active = F.silu(gate).mul_(up)
    wide = torch.promote_types(active.dtype, torch.float32)
    d_weight = (d_active * active).sum(-1, dtype=wide) if wants_weight else None
    return d_weight, active.mul_(weight) if wants_active else None


def _d_inner(d_active: Tensor, inner: Tensor, weight: Tensor) -> Tensor:
    """Gradient of the inner rows; ``d_active`` is overwritten."""
    return torch.cat(swiglu_backward(d_active.mul_(weight), *halves(inner)), dim=-1)


def _outer(
    layout: Layout, left: Tensor, right: Tensor, weights: Tensor, stack: Tensor | None
) -> Tensor | None:
    """The gradient of a stack; None if it has been added to the one that ``stack`` has."""
    dtype = weights.dtype if stack is None else stack.grad_dtype
    total = None if stack is None else stack.grad
    if total is not None:
        layout.add_outer(left, right, total)
        return None
    if dtype in (None, left.dtype) or panels.serve(left, right):
        return layout.outer(left, right, len(weights), dtype or left.dtype)
    found = torch.zeros_like(weights, dtype=dtype)
    layout.add_outer(left, right, found)
    return found


def arrange(
    x_TD: Tensor, slots_TK: Tensor, n_experts: int, inner: int, rank: int | None = None
) -> Layout:
    """The faster arrangement of pairs for experts of a width, and adapters of a rank."""
    width = x_TD.shape[1]
    if _one_row_per_pair_serves(x_TD, (width, inner) if rank is None else (width, inner, rank)):
        return SortedLayout.of(slots_TK, n_experts)
    return TieredLayout.of(slots_TK, n_experts, 4 * width * inner)


def _one_row_per_pair_serves(x_TD: Tensor, widths: tuple[int, ...]) -> bool:
    """Whether there are compiled products for such rows, or the framework's grouped matmul takes
    them and is the faster form."""
    if panels.serve(x_TD, x_TD):
        return True
    if any(width * x_TD.element_size() % 16 for width in widths):
        return False
    on_cpu = x_TD.device.type == "cpu"
    return x_TD.dtype == torch.float32 or (x_TD.dtype == torch.bfloat16 and not on_cpu)


def _pair_by_pair(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """For the few tokens of a decoding step: only the chosen experts' weights are touched."""
    if slots_TK.numel() * (gate_up[0].nbytes + down[0].nbytes) <= _COPIED:
        return _side_by_side(x_TD, slots_TK, weights_TK, gate_up, down)
    out_TD = torch.zeros_like(x_TD)
    for token, (slots, weights) in enumerate(zip(slots_TK.tolist(), weights_TK, strict=True)):
        x = x_TD[token : token + 1]
        for slot, weight in zip(slots, weights.to(x.dtype), strict=True):
            gate, up = F.linear(x, gate_up[slot].to(x.dtype)).chunk(2, dim=-1)
            out_TD[token] += F.linear(F.silu(gate) * up * weight, down[slot].to(x.dtype))[0]
    return out_TD


def _side_by_side(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """The same in two products for all pairs: where experts are small, a call takes longer than
    copying the chosen ones side by side."""
    slots_P, weights_P, (_, width, inner) = slots_TK.flatten(), weights_TK.flatten(), down.shape
    first = gate_up.index_select(0, slots_P).to(x_TD.dtype)
    first = first.view(len(x_TD), slots_TK.shape[1] * 2 * inner, width)
    second = down.index_select(0, slots_P).to(x_TD.dtype)
    gate, up = (
        torch.bmm(x_TD.unsqueeze(1), first.transpose(1, 2)).view(-1, 1, 2 * inner).chunk(2, -1)
    )
    active = F.silu(gate) * up * weights_P.to(x_TD.dtype).view(-1, 1, 1)
    rows = torch.bmm(active, second.transpose(1, 2))
    return rows.view(*slots_TK.shape, width).sum(1)


def weight_of_row(layout: Layout, weights_TK: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1]; padding has weight 0, so nothing it holds reaches a result or a gradient."""
    weight = torch.zeros(len(layout.token_of_row), dtype=dtype, device=weights_TK.device)
    weight.scatter_(0, layout.row_TK.flatten(), weights_TK.flatten().to(dtype))
    return weight.unsqueeze(1)


def weight_of_pair(layout: Layout, per_row: Tensor, like_TK: Tensor) -> Tensor:
    """What rows have, brought back to the pairs: [T, K]."""
    return per_row.to(like_TK.dtype).index_select(0, layout.row_TK.flatten()).view_as(like_TK)


def products(layout: Layout, rows: Tensor, matrices: Matrices) -> Tensor:
    """Each row times its expert's matrix: [rows, a] and [e, a, b] to [rows, b]."""
    return by_columns(matrices, lambda part: layout.matmul(rows, part))


def summed_products(layout: Layout, rows: Tensor, matrices: Matrices) -> Tensor:
    """`sum_of_rows` of `products`, of which not all columns exist at a time: [T, b]."""
    at_once = max(_COLUMNS, _SUMMED // max(1, len(rows)) // _COLUMNS * _COLUMNS)
    return by_columns(
        matrices, lambda part: sum_of_rows(layout, layout.matmul(rows, part)), at_once
    )


def sum_of_rows(layout: Layout, rows: Tensor) -> Tensor:
    """For each token the sum of its K rows, added in float32: [T, D]."""
    return F.embedding_bag(layout.row_TK, rows, mode="sum")
