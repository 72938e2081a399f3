"""Every operation written to be read: the meaning of all faster forms, which are tested against it.

Letters: T tokens, D hidden, K experts per token, e resident experts, F expert width, V vocabulary,
B sequences, S positions fed, C positions visible, H heads, Q query-key width, U value width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

IGNORED = -100
"""Label of a position from which nothing is learned."""


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``x`` divided by its root mean square over the last axis, times ``weight``.

    The division happens in float32 (float64 for float64 input), the product in the input's dtype.

    Source: Zhang and Sennrich 2019 (arXiv 1910.07467) eq. 4.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (wide * scale).to(x.dtype) * weight.to(x.dtype)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) · up``, elementwise.

    Source: Shazeer 2020 (arXiv 2002.05202) eq. 6.
    """
    return F.silu(gate) * up


def experts(
    x_TD: Tensor, slots_TK: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor
) -> Tensor:
    """Sum over each token's experts of gate value times the expert's feed-forward.

    Args:
        x_TD: hidden states.
        slots_TK: which of the resident experts each token goes to, in 0 … e-1.
        weights_TK: gate values, float32.
        gate_up: [e, 2F, D]; rows before F are the gate projection, the rest the up projection.
        down: [e, D, F].

    Source: DeepSeekMoE (arXiv 2401.06066) eq. 9.
    """
    out_TD = torch.zeros_like(x_TD)
    for slot in range(down.shape[0]):
        tokens, choice = torch.where(slots_TK == slot)
        gate, up = F.linear(x_TD[tokens], gate_up[slot].to(x_TD.dtype)).chunk(2, dim=-1)
        weighted = swiglu(gate, up) * weights_TK[tokens, choice, None].to(x_TD.dtype)
        out_TD = out_TD.index_add(0, tokens, F.linear(weighted, down[slot].to(x_TD.dtype)))
    return out_TD


def attention(
    q_BHSQ: Tensor, k_BHCQ: Tensor, v_BHCU: Tensor, scale: float, visible: Tensor | None
) -> Tensor:
    """Softmax attention. The last S of the C visible positions are the ones fed.

    Args:
        q_BHSQ: queries.
        k_BHCQ: keys.
        v_BHCU: values.
        scale: factor on the scores.
        visible: bool [B, 1, S, C], never true after the fed position; None for plain causal
            attention.

    Returns:
        [B, H, S, U].
    """
    fed, held = q_BHSQ.shape[2], k_BHCQ.shape[2]
    if visible is None:
        visible = torch.ones(fed, held, dtype=torch.bool, device=q_BHSQ.device).tril(held - fed)
    scores = (q_BHSQ @ k_BHCQ.transpose(-1, -2)).mul(scale).masked_fill(~visible, float("-inf"))
    wide = torch.float64 if scores.dtype == torch.float64 else torch.float32
    return torch.softmax(scores, dim=-1, dtype=wide).to(v_BHCU.dtype) @ v_BHCU


def cross_entropy_sum(hidden_TD: Tensor, weight_VD: Tensor, labels_T: Tensor) -> Tensor:
    """Sum over learned positions of -log p(label), with logits ``hidden · weightᵀ``.

    Args:
        hidden_TD: hidden states after the last norm.
        weight_VD: the vocabulary head.
        labels_T: ids to be predicted; `IGNORED` where nothing is learned.
    """
    logits_TV = F.linear(hidden_TD, weight_VD.to(hidden_TD.dtype))
    wide = logits_TV if logits_TV.dtype == torch.float64 else logits_TV.float()
    return F.cross_entropy(wide, labels_T, ignore_index=IGNORED, reduction="sum")
