"""The vocabulary head and its cross-entropy in chunks of tokens: all logits never exist at once.

Letters: T tokens, D hidden, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesaic.kernels.autocast import follows_autocast
from moesaic.kernels.matmul import matmul
from moesaic.kernels.native import rows
from moesaic.kernels.reference import IGNORED

_CHUNK_LOGITS = 2**23
"""Logits held at a time, 16 MiB in bfloat16: with fewer, adding up the weight's gradient, which
every chunk does, costs more than the cache of a CPU saves."""
_SMALLEST_CHUNK = 256
"""Tokens below which the matmul would be too thin to be fast."""


class _CrossEntropySum(torch.autograd.Function):
    """The gradient is computed with the loss, so that each chunk's logits are computed once."""

    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor, differentiable: bool
    ) -> Tensor:
        learned = (labels_T != IGNORED).nonzero().squeeze(1)
        wants_hidden, wants_weight = (need and differentiable for need in ctx.needs_input_grad[:2])
        weight = weight_VD.to(hidden_TD.dtype)
        wide = torch.float64 if hidden_TD.dtype == torch.float64 else torch.float32
        total = torch.zeros((), dtype=wide, device=hidden_TD.device)
        d_hidden = torch.zeros_like(hidden_TD) if wants_hidden else None
        d_weight = None
        chunk = max(_SMALLEST_CHUNK, _CHUNK_LOGITS // weight_VD.shape[0])
        for tokens in learned.split(chunk):
            hidden, labels = hidden_TD.index_select(0, tokens), labels_T[tokens].unsqueeze(1)
            loss, grad = _of_chunk(hidden, weight, labels, wide, wants_hidden or wants_weight)
            total += loss
            if d_hidden is not None:
                d_hidden.index_copy_(0, tokens, matmul(grad, weight))
            if wants_weight:
                if d_weight is None:
                    d_weight = torch.zeros(weight.shape, dtype=wide, device=weight.device)
                matmul(grad.t(), hidden, d_weight, adds=True)
            del grad  # before the next chunk's logits are made
        if wants_weight and d_weight is None:  # nothing was learned
            d_weight = torch.zeros_like(weight_VD)
        ctx.grads = (d_hidden, None if d_weight is None else d_weight.to(weight_VD.dtype))
        return total

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        if ctx.grads is None:
            raise RuntimeError(
                "the gradient of this loss was taken before and is gone; compute the loss again"
            )
        kept, ctx.grads = ctx.grads, None
        scaled = [None if d is None else d.mul_(grads[0].to(d.dtype)) for d in kept]
        return (*scaled, None, None)


def _of_chunk(
    hidden: Tensor, weight: Tensor, labels: Tensor, wide: torch.dtype, wants_grad: bool
) -> tuple[Tensor, Tensor]:
    """The loss of some tokens and, where it is wanted, the gradient of their logits."""
    logits = matmul(hidden, weight.t())
    if rows.serve(logits):
        loss = rows.cross_entropy(logits, labels.squeeze(1), wants_grad).sum()
        return loss, logits if wants_grad else hidden.new_empty(0)
    logits = logits.to(wide)
    log_shares = torch.log_softmax(logits, dim=-1)
    del logits
    loss = -log_shares.gather(1, labels).sum()
    if not wants_grad:
        return loss, hidden.new_empty(0)
    grad = log_shares.exp_()
    grad.scatter_add_(1, labels, grad.new_full((), -1.0).expand_as(labels))
    return loss, grad.to(hidden.dtype)


@follows_autocast
def cross_entropy_sum(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """`reference.cross_entropy_sum` with bounded memory. It can be differentiated once."""
    return _CrossEntropySum.apply(hidden_TD, weight_VD, labels_T, torch.is_grad_enabled())
