"""One decoder layer.

Letters: B sequences, S positions, D hidden.
"""

from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.model.attention import MultiHeadAttention
from moesaic.model.context import Context
from moesaic.model.ffn import FeedForward
from moesaic.model.mla import LatentAttention
from moesaic.model.moe import MoE
from moesaic.model.norm import RMSNorm
from moesaic.model.residency import Residency
from moesaic.model.routing import Routing


class Block(nn.Module):
    """Attention, then feed-forward or experts, each on normalised input and added to the stream."""

    def __init__(self, config: ModelConfig, layer: int, residency: Residency) -> None:
        super().__init__()
        attention = LatentAttention if config.is_latent else MultiHeadAttention
        self.self_attn = attention(config, layer)
        if config.has_experts(layer):
            self.mlp = MoE(config, layer, residency)
        else:
            self.mlp = FeedForward(config.hidden_size, config.intermediate_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x_BSD: Tensor, context: Context) -> tuple[Tensor, Routing | None]:
        """The stream after this layer, and its routing where it has experts."""
        x_BSD = x_BSD + self.self_attn(self.input_layernorm(x_BSD), context)
        normed_BSD = self.post_attention_layernorm(x_BSD)
        if isinstance(self.mlp, MoE):
            out_BSD, routing = self.mlp(normed_BSD, context)
            return x_BSD + out_BSD, routing
        return x_BSD + self.mlp(normed_BSD), None
