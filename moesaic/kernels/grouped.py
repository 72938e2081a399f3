"""The feed-forwards of all resident experts at once: every token-expert pair becomes a row, rows of
one expert lie together, and each projection is one grouped matmul.

Letters: T tokens, D hidden, K experts per token, e resident experts, F expert width. A row is one
token-expert pair, or padding.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.elementwise import swiglu_backward

_PAD_TO = 32
"""Padded groups are a multiple of this many rows, so that few shapes occur."""
_MOST_PADDING = 1.5
"""Padding is worth it up to this many rows per pair: above, the wasted products cost more."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Where each token-expert pair lies."""

    token_of_row: Tensor
    """[rows] token a row is copied from; any token for padding."""
    row_TK: Tensor
    """Row of each pair."""
    ends_e: Tensor | None
    """int32, row after the last of each expert; None where all experts have as many rows."""

    @classmethod
    def of(cls, slots_TK: Tensor, n_experts: int, may_pad: bool, must_pad: bool) -> "Layout":
        """Sort the pairs by expert.

        Args:
            slots_TK: resident expert of each pair.
            n_experts: how many are resident.
            may_pad: whether equal, padded groups may be used where they waste little.
            must_pad: whether they have to be, whatever they waste.
        """
        slots_P = slots_TK.flatten()
        n_chosen = slots_TK.shape[1]
        sorted_P, order_P = torch.sort(slots_P, stable=True)
        experts_e = torch.arange(n_experts, device=slots_P.device)
        ends_e = torch.searchsorted(sorted_P, experts_e, right=True)
        row_P = torch.empty_like(order_P)
        rows = torch.arange(len(slots_P), device=slots_P.device)
        if may_pad or must_pad:
            starts_e = F.pad(ends_e[:-1], (1, 0))
            most = int((ends_e - starts_e).max())
            height = -(-most // _PAD_TO) * _PAD_TO
            if must_pad or height * n_experts <= _MOST_PADDING * len(slots_P):
                row_P[order_P] = rows + (experts_e * height - starts_e)[sorted_P]
                token_of_row = slots_P.new_zeros(n_experts * height)
                token_of_row[row_P] = rows // n_chosen
                return cls(token_of_row, row_P.view_as(slots_TK), None)
        row_P[order_P] = rows
        return cls(order_P // n_chosen, row_P.view_as(slots_TK), ends_e.int())

    def rows_of(self, x_TD: Tensor) -> Tensor:
        """Each row's token: [rows, D]."""
        return x_TD.index_select(0, self.token_of_row)

    def weight_of_row(self, weights_TK: Tensor, dtype: torch.dtype) -> Tensor:
        """[rows, 1]; padding has weight 0, so nothing it holds reaches a result or a gradient."""
        weight = torch.zeros(len(self.token_of_row), dtype=dtype, device=weights_TK.device)
        weight[self.row_TK.flatten()] = weights_TK.flatten().to(dtype)
        return weight.unsqueeze(1)

    def sum_of_rows(self, rows: Tensor) -> Tensor:
        """For each token the sum of its K rows, added in float32: [T, D]."""
        return F.embedding_bag(self.row_TK, rows, mode="sum")

    def matmul(self, rows: Tensor, matrices: Tensor) -> Tensor:
        """Each row times its expert's matrix: [rows, a] and [e, a, b] to [rows, b]."""
        if self.ends_e is not None:
            return F.grouped_mm(rows, matrices, offs=self.ends_e)
        grouped = rows.unflatten(0, (matrices.shape[0], -1))
        return torch.bmm(grouped, matrices).flatten(0, 1)

    def outer(self, left: Tensor, right: Tensor, n_experts: int) -> Tensor:
        """Sum of outer products over each expert's rows: [rows, a], [rows, b] to [e, a, b]."""
        if self.ends_e is not None:
            return F.grouped_mm(left.t(), right, offs=self.ends_e)
        left, right = (rows.unflatten(0, (n_experts, -1)) for rows in (left, right))
        return torch.bmm(left.transpose(1, 2), right)


class _Experts(torch.autograd.Function):
    """Keeps the hidden states (shared with the residual stream) and the inner rows before the
    activation; the rest is computed again. Weight gradients only where they are asked for."""

    @staticmethod
    def forward(
        ctx: Any, x_TD: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor, layout: Layout
    ) -> Tensor:
        dtype = x_TD.dtype
        inner = layout.matmul(layout.rows_of(x_TD), gate_up.to(dtype).transpose(1, 2))
        gate, up = inner.chunk(2, dim=-1)
        weighted = F.silu(gate).mul_(up).mul_(layout.weight_of_row(weights_TK, dtype))
        out_TD = layout.sum_of_rows(layout.matmul(weighted, down.to(dtype).transpose(1, 2)))
        ctx.save_for_backward(x_TD, weights_TK, gate_up, down, inner)
        ctx.layout = layout
        return out_TD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_TD, weights_TK, gate_up, down, inner = ctx.saved_tensors
        layout: Layout = ctx.layout
        _, wants_weights, wants_gate_up, wants_down, _ = ctx.needs_input_grad
        dtype, n_experts = x_TD.dtype, down.shape[0]
        gate, up = inner.chunk(2, dim=-1)
        weight = layout.weight_of_row(weights_TK, dtype)
        grad_rows = layout.rows_of(grads[0])
        d_active = layout.matmul(grad_rows, down.to(dtype))
        d_weights_TK = d_gate_up = d_down = None
        if wants_weights or wants_down:
            active = F.silu(gate).mul_(up)
            if wants_weights:
                d_weight = (d_active * active).sum(-1, dtype=weights_TK.dtype)
                d_weights_TK = d_weight[layout.row_TK]
            if wants_down:
                d_down = layout.outer(grad_rows, active.mul_(weight), n_experts).to(down.dtype)
        d_inner = torch.cat(swiglu_backward(d_active.mul_(weight), gate, up), dim=-1)
        if wants_gate_up:
            d_gate_up = layout.outer(d_inner, layout.rows_of(x_TD), n_experts).to(gate_up.dtype)
        d_x_TD = layout.sum_of_rows(layout.matmul(d_inner, gate_up.to(dtype)))
        return d_x_TD, d_weights_TK, d_gate_up, d_down, None


def experts(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """`reference.experts` as three grouped matmuls forward and five backward."""
    width = down.shape[2]
    aligned = (
        width * x_TD.element_size() % 16 == 0 and x_TD.shape[1] * x_TD.element_size() % 16 == 0
    )
    supported = aligned and x_TD.dtype in (torch.float32, torch.bfloat16)
    layout = Layout.of(slots_TK, down.shape[0], x_TD.device.type == "cpu", not supported)
    return _Experts.apply(x_TD, weights_TK, gate_up, down, layout)  # type: ignore[return-value]
