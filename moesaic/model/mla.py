"""Multi-head latent attention: keys and values are low-rank, and only the latent is cached.

Letters: B sequences, S positions fed, C positions visible, D hidden, H heads, N query-key width
without position, R with rotary position, Q both, U value width, Z key-value latent, A query latent.
"""

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.kernels.attention import attention, shared_attention
from moesaic.model.context import Context
from moesaic.model.linear import Linear
from moesaic.model.norm import RMSNorm
from moesaic.model.rope import softmax_scale

_LATENT_EPS = 1e-6
"""The published code leaves the norms of the latents at this, whatever ``rms_norm_eps`` says."""


class LatentAttention(nn.Module):
    """Two forms of one function: expanded (keys and values per head, for training and prefill) and
    absorbed (queries brought into the latent space, for decoding); the cheaper one is taken.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.1, eq. 9-19 and appendix C.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        assert config.kv_lora_rank
        assert config.qk_nope_head_dim
        assert config.qk_rope_head_dim
        self.layer, self.scale = layer, softmax_scale(config)
        self.n_heads, self.latent = config.num_attention_heads, config.kv_lora_rank
        self.unrotated, self.rotated = config.qk_nope_head_dim, config.qk_rope_head_dim
        self.value_dim = config.value_dim
        width, queries = config.hidden_size, self.n_heads * config.qk_head_dim
        if config.q_lora_rank is None:
            self.q_proj = Linear(width, queries)
        else:
            self.q_a_proj = Linear(width, config.q_lora_rank)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, _LATENT_EPS)
            self.q_b_proj = Linear(config.q_lora_rank, queries)
        self.has_query_latent = config.q_lora_rank is not None
        self.kv_a_proj_with_mqa = Linear(width, self.latent + self.rotated)
        self.kv_a_layernorm = RMSNorm(self.latent, _LATENT_EPS)
        self.kv_b_proj = Linear(self.latent, self.n_heads * (self.unrotated + self.value_dim))
        self.o_proj = Linear(self.n_heads * self.value_dim, width)

    def forward(self, x_BSD: Tensor, context: Context) -> Tensor:
        """Attend to the visible positions: [B, S, D]."""
        q_BSHN, q_BSHR = self._queries(x_BSD, context)
        latent_BSZ, k_BSR = self.kv_a_proj_with_mqa(x_BSD).split((self.latent, self.rotated), -1)
        latent = self.kv_a_layernorm(latent_BSZ.contiguous())
        k_rotated = context.rotation(k_BSR.unsqueeze(2)).squeeze(2)
        if context.cache is not None:
            latent, k_rotated = context.cache.extend(self.layer, latent, k_rotated)
        attend = self._absorbed if self._absorbing_pays(x_BSD, latent) else self._expanded
        out_BHSU = attend(q_BSHN, q_BSHR, latent, k_rotated, context)
        return self.o_proj(out_BHSU.transpose(1, 2).flatten(2))

    def _queries(self, x_BSD: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        if self.has_query_latent:
            q_BSO = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BSD)))
        else:
            q_BSO = self.q_proj(x_BSD)
        q_BSHQ = q_BSO.unflatten(-1, (self.n_heads, -1))
        q_BSHN, q_BSHR = q_BSHQ.split((self.unrotated, self.rotated), dim=-1)
        return q_BSHN, context.rotation(q_BSHR)

    def _absorbing_pays(self, x_BSD: Tensor, latent_BCZ: Tensor) -> bool:
        """Whether the absorbed form needs fewer multiplications per head."""
        fed, held = x_BSD.shape[1], latent_BCZ.shape[1]
        through = self.latent * (self.unrotated + self.value_dim)
        expanded = held * through + fed * held * (self.unrotated + self.rotated + self.value_dim)
        absorbed = fed * through + fed * held * (2 * self.latent + self.rotated)
        return absorbed < expanded

    def _expanded(
        self, q_BSHN: Tensor, q_BSHR: Tensor, latent_BCZ: Tensor, k_BCR: Tensor, context: Context
    ) -> Tensor:
        kv_BCHO = self.kv_b_proj(latent_BCZ).unflatten(-1, (self.n_heads, -1))
        k_BCHN, v_BCHU = kv_BCHO.split((self.unrotated, self.value_dim), dim=-1)
        k_BCHR = k_BCR.unsqueeze(2).expand(-1, -1, self.n_heads, -1)
        q_BSHQ = torch.cat((q_BSHN, q_BSHR), dim=-1)
        k_BCHQ = torch.cat((k_BCHN, k_BCHR), dim=-1)
        return attention(
            q_BSHQ.transpose(1, 2),
            k_BCHQ.transpose(1, 2),
            v_BCHU.transpose(1, 2),
            self.scale,
            context.visible,
        )

    def _absorbed(
        self, q_BSHN: Tensor, q_BSHR: Tensor, latent_BCZ: Tensor, k_BCR: Tensor, context: Context
    ) -> Tensor:
        per_head = self.kv_b_proj.weight.to(q_BSHN.dtype).unflatten(0, (self.n_heads, -1))
        to_key_HNZ, to_value_HUZ = per_head.split((self.unrotated, self.value_dim), dim=1)
        q_BHSZ = q_BSHN.transpose(1, 2) @ to_key_HNZ
        queries = torch.cat((q_BHSZ, q_BSHR.transpose(1, 2)), dim=-1)
        keys = torch.cat((latent_BCZ, k_BCR), dim=-1)
        out_BHSZ = shared_attention(queries, keys, latent_BCZ, self.scale, context.visible)
        return out_BHSZ @ to_value_HUZ.transpose(1, 2)
