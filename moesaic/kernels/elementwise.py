"""RMSNorm and SwiGLU with hand-written backward passes: fewer sweeps over memory, less kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.native import rows


class _RmsNorm(torch.autograd.Function):
    """Keeps the input and one scale per row; plain autograd keeps four copies of the input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        x, weight, scale = ctx.saved_tensors
        if x.is_contiguous() and rows.serve(x):
            grad = grads[0].contiguous()
            d_x, d_weight = rows.norm_backward(grad, x, weight.to(x.dtype), scale)
            return d_x, d_weight.to(weight.dtype), None
        wide = scale.dtype
        normed = x.to(wide) * scale
        grad = grads[0].to(wide)
        d_weight = None
        if ctx.needs_input_grad[1]:
            d_weight = (grad * normed).reshape(-1, x.shape[-1]).sum(0).to(weight.dtype)
        inner = grad * weight.to(wide)
        along = (inner * normed).mean(-1, keepdim=True)
        d_x = inner.addcmul_(normed, along, value=-1).mul_(scale)
        return d_x.to(x.dtype), d_weight, None


class _SwiGlu(torch.autograd.Function):
    """Keeps its two inputs only; the activation is computed again in the backward pass."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        if gate.is_contiguous() and up.is_contiguous() and rows.serve(gate, up):
            found = torch.empty_like(gate), torch.empty_like(up)
            parts = (grads[0].contiguous(), gate, up, *found)
            grad, gate, up, d_gate, d_up = (x.view(-1, gate.shape[-1]) for x in parts)
            rows.gated_backward(grad, gate, up, d_gate, d_up)
            return found
        return swiglu_backward(grads[0], gate, up)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """`reference.rms_norm`, faster in training; of a few rows, what asks for a gradient takes half
    the time."""
    return _RmsNorm.apply(x, weight, eps) if torch.is_grad_enabled() else _normed(x, weight, eps)[0]


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """`reference.swiglu`, keeping less for the backward pass."""
    return _SwiGlu.apply(gate, up) if torch.is_grad_enabled() else _gated(gate, up)


def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The result, and the scale of each row."""
    if x.is_contiguous() and rows.serve(x):
        return rows.norm(x, weight.to(x.dtype), eps)
    wide = x if x.dtype == torch.float64 else x.float()
    norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(eps))
    return (wide * scale).to(x.dtype).mul_(weight.to(x.dtype)), scale


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    if gate.is_contiguous() and up.is_contiguous() and rows.serve(gate, up):
        width = gate.shape[-1]
        return rows.gated(gate.view(-1, width), up.view(-1, width)).view_as(gate)
    return F.silu(gate).mul_(up)


def swiglu_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of `swiglu` with respect to ``gate`` and ``up``."""
    d_up = F.silu(gate).mul_(grad)
    d_gate = torch.ops.aten.silu_backward(grad * up, gate)
    return d_gate, d_up


def gated_halves(inner: Tensor, weight: Tensor) -> Tensor:
    """`swiglu` of the halves of each row, gate first, times the row's weight.

    Args:
        inner: [rows, 2F].
        weight: [rows, 1], of the same dtype.
    """
    if rows.serve(inner):
        gate, up = inner.chunk(2, dim=-1)
        return rows.gated(gate, up, weight.float().squeeze(1))
    gate, up = halves(inner)
    return F.silu(gate).mul_(up).mul_(weight)


def gated_halves_backward(
    grad: Tensor, inner: Tensor, weight: Tensor, wants_weight: bool, wants_active: bool
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """Everything of the backward pass of `gated_halves` in one sweep; None where that is not to be
    had, and each part has to be computed by itself.

    Args:
        grad: [rows, F], of its result before the weight.
        inner: what it was applied to.
        weight: of each row.
        wants_weight: whether the weight's gradient is needed.
        wants_active: whether the result of `gated_halves` is needed again.

    Returns:
        The gradient of ``inner``; float32 [rows] of the weight; the result. The last two are None
        unless wanted.
    """
    if not rows.serve(inner):
        return None
    d_inner = torch.empty_like(inner)
    d_weight = torch.empty(len(inner)) if wants_weight else None
    active = torch.empty_like(grad) if wants_active else None
    (gate, up), (d_gate, d_up) = inner.chunk(2, dim=-1), d_inner.chunk(2, dim=-1)
    weights = weight.float().squeeze(1)
    rows.gated_backward(grad, gate, up, d_gate, d_up, weights, active, d_weight)
    return d_inner, d_weight, active


def halves(inner: Tensor) -> tuple[Tensor, Tensor]:
    """Gate and up of inner rows. The gate is copied: its activation runs three to ten times as fast
    over memory without gaps."""
    gate, up = inner.chunk(2, dim=-1)
    return gate.contiguous(), up


def add_(sums: Tensor, values: Tensor) -> None:
    """``sums += values``, where the sums may be of a wider type.

    Args:
        sums: a matrix or a stack of them; its first axis may have gaps.
        values: of the same shape, contiguous.
    """
    if sums.dtype == torch.float32 and rows.serve(values):
        rows.add_(sums, values)
    else:
        sums += values
