"""Multi-head attention, as in DeepSeekMoE-16B.

Letters: B sequences, S positions fed, C positions visible, D hidden, H heads, J key-value heads,
Q query-key width.
"""

from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.kernels.attention import attention
from moesaic.model.context import Context
from moesaic.model.linear import Linear


class MultiHeadAttention(nn.Module):
    """Softmax attention; several query heads may share a key-value head."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.qk_head_dim
        self.repeats = config.num_attention_heads // config.num_key_value_heads
        key_values = config.num_key_value_heads * self.head_dim
        self.q_proj = Linear(config.hidden_size, config.num_attention_heads * self.head_dim)
        self.k_proj = Linear(config.hidden_size, key_values)
        self.v_proj = Linear(config.hidden_size, key_values)
        self.o_proj = Linear(config.num_attention_heads * self.head_dim, config.hidden_size)

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Attend to the visible positions: [B, S, D]."""
        q_BSHQ, k_BSJQ, v_BSJQ = (
            project(x_BSD).unflatten(-1, (-1, self.head_dim))
            for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        q_BSHQ, k_BSJQ = context.rotation(q_BSHQ), context.rotation(k_BSJQ)
        keys, values = k_BSJQ, v_BSJQ
        if context.cache is not None:
            keys, values = context.cache.extend(self.layer, keys, values)
        if self.repeats > 1:
            keys, values = (part.repeat_interleave(self.repeats, 2) for part in (keys, values))
        out_BHSQ = attention(
            q_BSHQ.transpose(1, 2),
            keys.transpose(1, 2),
            values.transpose(1, 2),
            self.head_dim**-0.5,
            context.visible,
        )
        return self.o_proj(out_BHSQ.transpose(1, 2).flatten(2))
