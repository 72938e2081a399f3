"""The feed-forwards of all resident experts at once, over rows that a `Layout` arranges.

Letters: T tokens, D hidden, K experts per token, e resident experts, F expert width.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.autocast import follows_autocast
from moesaic.kernels.elementwise import swiglu_backward
from moesaic.kernels.layout import Layout, SortedLayout, TieredLayout


class _Experts(torch.autograd.Function):
    """Keeps the hidden states (shared with the residual stream) and the inner rows before the
    activation; the rest is computed again. Weight gradients only where they are asked for."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, layout: Layout
    ) -> Tensor:
        dtype = x_TD.dtype
        rows = x_TD.index_select(0, layout.token_of_row)
        inner = layout.matmul(rows, gate_up.to(dtype).transpose(1, 2))
        gate, up = inner.chunk(2, dim=-1)
        weighted = F.silu(gate).mul_(up).mul_(_weight_of_row(layout, weights_TK, dtype))
        out_TD = _sum_of_rows(layout, layout.matmul(weighted, down.to(dtype).transpose(1, 2)))
        ctx.save_for_backward(x_TD, weights_TK, gate_up, down, inner)
        ctx.layout = layout
        return out_TD

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, gate_up, down, inner = ctx.saved_tensors
        layout: Layout = ctx.layout
        wants_x, wants_weights, wants_gate_up, wants_down, _ = ctx.needs_input_grad
        dtype = x_TD.dtype
        gate, up = inner.chunk(2, dim=-1)
        weight = _weight_of_row(layout, weights_TK, dtype)
        grad_rows = grads[0].index_select(0, layout.token_of_row)
        d_active = layout.matmul(grad_rows, down.to(dtype))
        d_x_TD = d_weights_TK = d_gate_up = d_down = None
        if wants_weights or wants_down:
            active = F.silu(gate).mul_(up)
            if wants_weights:
                d_weight = (d_active * active).sum(-1, dtype=weights_TK.dtype)
                d_weights_TK = d_weight.index_select(0, layout.row_TK.flatten()).view_as(weights_TK)
            if wants_down:
                d_down = layout.outer(grad_rows, active.mul_(weight)).to(down.dtype)
        del grad_rows
        d_inner = torch.cat(swiglu_backward(d_active.mul_(weight), gate, up), dim=-1)
        if wants_gate_up:
            rows = x_TD.index_select(0, layout.token_of_row)
            d_gate_up = layout.outer(d_inner, rows).to(gate_up.dtype)
        if wants_x:
            d_x_TD = _sum_of_rows(layout, layout.matmul(d_inner, gate_up.to(dtype)))
        return d_x_TD, d_weights_TK, d_gate_up, d_down, None


@follows_autocast
def experts(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`reference.experts` as two grouped products forward and four backward."""
    n_experts, width, inner = down.shape
    if x_TD.device.type == "cpu":
        layout = TieredLayout.of(slots_TK, n_experts, 4 * width * inner)
    else:
        layout = SortedLayout.of(slots_TK, n_experts)
    return _Experts.apply(x_TD, weights_TK, gate_up, down, layout)


def _weight_of_row(layout: Layout, weights_TK: Tensor, dtype: torch.dtype) -> Tensor:
    """[rows, 1]; padding has weight 0, so nothing it holds reaches a result or a gradient."""
    weight = torch.zeros(len(layout.token_of_row), dtype=dtype, device=weights_TK.device)
    weight.scatter_(0, layout.row_TK.flatten(), weights_TK.flatten().to(dtype))
    return weight.unsqueeze(1)


def _sum_of_rows(layout: Layout, rows: Tensor) -> Tensor:
    """For each token the sum of its K rows, added in float32: [T, D]."""
    return F.embedding_bag(layout.row_TK, rows, mode="sum")
