"""Matrix products: compiled here where they are faster than the framework's, which is on a CPU.

There the framework multiplies float32 with half of the width that AMD's processors have, and starts
every bfloat16 product of a batch anew.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.elementwise import add_
from moesaic.kernels.native import panels

_FEW_ROWS = 16
"""Below it, bringing a weight into another order takes longer than multiplying with it."""


def matmul(left: Tensor, right: Tensor, out: Tensor | None = None, adds: bool = False) -> Tensor:
    """``left @ right``, without a gradient of its own.

    Args:
        left: [..., a, k], of one or two axes before the rows or none.
        right: [..., k, b], of the same.
        out: where to write; None makes it.
        adds: whether to add to what is in ``out``, which may be wider than the factors.
    """
    if not _is_better_compiled(left, right, adds):
        product = left @ right
        if out is None:
            return product
        if adds:
            add_(out, product)
        else:
            out.copy_(product)
        return out
    if out is None:
        out = left.new_empty(*left.shape[:-1], right.shape[-1])
    if left.ndim == 2:
        panels.multiply(left[None], right[None], out[None], adds)
    else:
        panels.multiply(left, right, out, adds)
    return out


def _is_better_compiled(left: Tensor, right: Tensor, adds: bool) -> bool:
    if left.shape[-2] < _FEW_ROWS or not panels.serve(left, right):
        return False
    return left.dtype == torch.float32 or left.ndim == 3 or adds


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x · weightᵀ`` over the last axis."""
    rows = x.numel() // max(1, x.shape[-1])
    is_compiled = x.dtype == torch.float32 and rows >= _FEW_ROWS and panels.serve(weight, weight)
    if not is_compiled or x.dtype != weight.dtype or torch.is_autocast_enabled(x.device.type):
        return F.linear(x, weight)
    return _Linear.apply(x, weight)


class _Linear(torch.autograd.Function):
    """Keeps of its inputs what the gradients that are asked for need, as the framework's does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        wants_x, wants_weight = ctx.needs_input_grad
        ctx.save_for_backward(x if wants_weight else None, weight if wants_x else None)
        return matmul(_rows(x), weight.t()).view(*x.shape[:-1], len(weight))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        grad = _rows(grads[0])
        d_x = None
        if weight is not None:
            d_x = matmul(grad, weight).view(*grads[0].shape[:-1], weight.shape[1])
        return d_x, None if x is None else matmul(grad.t(), _rows(x))


def _rows(x: Tensor) -> Tensor:
    """[rows, width], with values side by side."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if 1 in rows.stride() else rows.contiguous()
