"""Softmax attention through the framework's fused kernels.

Letters: B sequences, H heads, S positions fed, C positions visible, Q query-key width, U values.
"""

from torch import Tensor
from torch.nn import functional as F


def attention(
    q_BHSQ: Tensor, k_BHCQ: Tensor, v_BHCU: Tensor, scale: float, visible: Tensor | None
) -> Tensor:
    """`reference.attention`; values are padded to the width of the keys, which the kernels want.

    With unequal widths the framework falls back to a form that writes all scores to memory.
    """
    missing = q_BHSQ.shape[-1] - v_BHCU.shape[-1]
    v_padded = F.pad(v_BHCU, (0, missing)) if missing > 0 else v_BHCU
    fed, held = q_BHSQ.shape[2], k_BHCQ.shape[2]
    if visible is None and 1 < fed < held:
        visible = q_BHSQ.new_ones(fed, held).bool().tril(held - fed)
    out = F.scaled_dot_product_attention(
        q_BHSQ,
        k_BHCQ,
        v_padded,
        attn_mask=visible,
        is_causal=visible is None and fed == held and fed > 1,
        scale=scale,
    )
    return out[..., : v_BHCU.shape[-1]]
