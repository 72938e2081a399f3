"""Softmax attention: the framework's fused kernels, and on a CPU a blockwise form that is faster.

Letters: B sequences, H heads, S positions fed, C positions visible, Q query-key width, U values.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from moesaic.kernels.matmul import matmul
from moesaic.kernels.native import rows

_BLOCK = 128
"""Queries handled at a time."""
_AT_ONCE = 16
"""The same where all heads share keys: the scores of every head are in memory together."""


def attention(
    q_BHSQ: Tensor, k_BHCQ: Tensor, v_BHCU: Tensor, scale: float, visible: Tensor | None
) -> Tensor:
    """`reference.attention`, in the form that suits the device and the shape."""
    if q_BHSQ.shape[2] > 1 and q_BHSQ.device.type == "cpu":
        return _Blockwise.apply(q_BHSQ, k_BHCQ, v_BHCU, scale, visible)
    return fused(q_BHSQ, k_BHCQ, v_BHCU, scale, visible)


def fused(
    q_BHSQ: Tensor, k_BHCQ: Tensor, v_BHCU: Tensor, scale: float, visible: Tensor | None
) -> Tensor:
    """The framework's form. Values are padded to the width of the keys: with unequal widths it
    falls back to one that writes all scores to memory."""
    missing = q_BHSQ.shape[-1] - v_BHCU.shape[-1]
    v_padded = F.pad(v_BHCU, (0, missing)) if missing > 0 else v_BHCU
    fed, held = q_BHSQ.shape[2], k_BHCQ.shape[2]
    if visible is None and 1 < fed < held:
        visible = torch.ones(fed, held, dtype=torch.bool, device=q_BHSQ.device).tril(held - fed)
    causal = visible is None and 1 < fed == held
    out = F.scaled_dot_product_attention(
        q_BHSQ, k_BHCQ, v_padded, attn_mask=visible, is_causal=causal, scale=scale
    )
    return out[..., : v_BHCU.shape[-1]]


def shared_attention(
    q_BHSQ: Tensor, k_BCQ: Tensor, v_BCU: Tensor, scale: float, visible: Tensor | None
) -> Tensor:
    """`attention` of few positions, with one key and one value per position for all heads.

    Heads are taken for further queries: two products of matrices, and keys are read once for all.
    """
    fed, held = q_BHSQ.shape[2], k_BCQ.shape[1]
    if visible is None and fed > 1:
        visible = torch.ones(fed, held, dtype=torch.bool, device=q_BHSQ.device).tril(held - fed)
    if fed <= _AT_ONCE:
        return _shared(q_BHSQ * scale, k_BCQ, v_BCU, visible)
    some = [slice(start, start + _AT_ONCE) for start in range(0, fed, _AT_ONCE)]
    masks = [None if visible is None else visible[..., part, :] for part in some]
    out = [
        _shared(q_BHSQ[:, :, part] * scale, k_BCQ, v_BCU, mask)
        for part, mask in zip(some, masks, strict=True)
    ]
    return torch.cat(out, dim=2)


def _shared(q_BHSQ: Tensor, k_BCQ: Tensor, v_BCU: Tensor, visible: Tensor | None) -> Tensor:
    scores = q_BHSQ.flatten(1, 2) @ k_BCQ.transpose(1, 2)
    scores_BHSC = scores.unflatten(1, q_BHSQ.shape[1:3])
    if visible is not None:
        scores_BHSC = scores_BHSC.masked_fill_(~visible, float("-inf"))
    wide = torch.promote_types(scores.dtype, torch.float32)
    weights_BHSC = scores_BHSC.softmax(-1, dtype=wide).to(scores.dtype)
    return (weights_BHSC.flatten(1, 2) @ v_BCU).unflatten(1, q_BHSQ.shape[1:3])


class _Blockwise(torch.autograd.Function):
    """Causal attention of the last positions, a block of queries at a time against the blocks of
    keys it can see.

    At most half the products of a full score matrix, each one large batched matmul. Nothing of the
    scores is kept: the backward pass computes each block again.

    Source: Dao et al. 2022 (arXiv 2205.14135) section 3.1 for the recomputation.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float, visible: Tensor | None
    ) -> Tensor:
        shape = (*q.shape[:3], v.shape[3])
        heads = q.shape[1]
        q, k, v = (part.flatten(0, 1) for part in (q * scale, k, v))
        out = q.new_empty(shape).flatten(0, 1)
        blocks = _blocks(q.shape[1], k.shape[1], visible)
        for fed, seen in blocks:
            matmul(_weights(q, k, fed, seen, visible), v[:, seen], out[:, fed])
        ctx.save_for_backward(q, k, v)
        ctx.rest = (scale, visible, heads, blocks)
        return out.view(shape)

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor | None, ...]:
        q, k, v = ctx.saved_tensors
        scale, visible, heads, blocks = ctx.rest
        grad = grads[0].flatten(0, 1)
        wide = torch.float64 if q.dtype == torch.float64 else torch.float32
        d_queries = torch.empty_like(q)
        d_keys, d_values = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        for fed, seen in blocks:
            weights = _weights(q, k, fed, seen, visible)
            d_out = grad[:, fed]
            matmul(weights.transpose(1, 2), d_out, d_values[:, seen], adds=True)
            d_scores = _softmax_backward(matmul(d_out, v[:, seen].transpose(1, 2)), weights)
            matmul(d_scores, k[:, seen], d_queries[:, fed])
            matmul(d_scores.transpose(1, 2), q[:, fed], d_keys[:, seen], adds=True)
        parts = (d_queries.mul_(scale), d_keys.to(k.dtype), d_values.to(v.dtype))
        return (*(part.unflatten(0, (-1, heads)) for part in parts), None, None)


def _blocks(fed: int, held: int, visible: Tensor | None) -> list[tuple[slice, slice]]:
    """Blocks of queries, and for each the keys from the first block that any of them sees."""
    blocks: list[tuple[slice, slice]] = []
    for start in range(0, fed, _BLOCK):
        end, first = min(start + _BLOCK, fed), 0
        last = held - fed + end
        if visible is not None and last > _BLOCK:
            seen_C = visible[:, 0, start:end, :last].flatten(0, 1).any(0)
            first = int(seen_C.int().argmax()) // _BLOCK * _BLOCK
        blocks.append((slice(start, end), slice(first, last)))
    return blocks


def _weights(q: Tensor, k: Tensor, fed: slice, seen: slice, visible: Tensor | None) -> Tensor:
    """Attention weights of one block: [B·H, fed, seen]."""
    scores = matmul(q[:, fed], k[:, seen].transpose(1, 2))
    if visible is not None:
        per_row = scores.unflatten(0, (visible.shape[0], -1))
        per_row.masked_fill_(~visible[:, :, fed, seen], float("-inf"))
    size = fed.stop - fed.start
    if rows.serve(scores):
        rows.softmax_(scores, scores.shape[2] - size + 1)
        return scores
    if visible is None:
        scores[:, :, -size:] += scores.new_full((size, size), float("-inf")).triu_(1)
    return torch.softmax(scores, dim=-1)


def _softmax_backward(d_weights: Tensor, weights: Tensor) -> Tensor:
    """Gradient of the scores; ``d_weights`` may be overwritten."""
    if rows.serve(d_weights, weights):
        rows.softmax_backward_(d_weights, weights)
        return d_weights
    return torch.ops.aten._softmax_backward_data(d_weights, weights, -1, weights.dtype)
