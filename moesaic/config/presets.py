"""Models by name: the published ones, the validation models of the first paper, small ones for CPU.

A published model has the values of its ``config.json``. That includes `initializer_range` 0.02,
the default of the library that wrote the file; the reports trained from 0.006, which the models
without a published file have here.
"""

from pathlib import Path
from typing import Any

from moesaic.config.model import Fp8Blocks, ModelConfig, RopeScaling
from moesaic.config.published import read_config
from moesaic.errors import ConfigError, suggest

_V2_YARN = RopeScaling(
    factor=40.0, original_max_position_embeddings=4096, mscale=0.707, mscale_all_dim=0.707
)
_V3_YARN = RopeScaling(
    factor=40.0, original_max_position_embeddings=4096, mscale=1.0, mscale_all_dim=1.0
)
_V2_TOKENS: dict[str, Any] = {"vocab_size": 102400, "bos_token_id": 100000, "eos_token_id": 100001}
_LATENT: dict[str, Any] = {
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "v_head_dim": 128,
}

_SOFTMAX_GATE: dict[str, Any] = {
    "scoring_func": "softmax",
    "topk_method": "greedy",
    "norm_topk_prob": False,
    "routed_scaling_factor": 1.0,
}
_SIX_OF_64: dict[str, Any] = {
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_experts_per_tok": 6,
    "first_k_dense_replace": 1,
}

DEEPSEEK_MOE_16B = ModelConfig(
    model_type="deepseek",
    hidden_size=2048,
    num_hidden_layers=28,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_attention_heads=16,
    num_key_value_heads=16,
    rope_interleave=False,
    max_position_embeddings=4096,
    initializer_range=0.02,
    **_SIX_OF_64,
    **_SOFTMAX_GATE,
    **_V2_TOKENS,
)
"""DeepSeekMoE 16B. Source: deepseek-ai/deepseek-moe-16b-base; arXiv 2401.06066 table 7."""

DEEPSEEK_MOE_2B = ModelConfig(
    model_type="deepseek",
    vocab_size=8192,
    hidden_size=1280,
    num_hidden_layers=9,
    intermediate_size=3424,
    moe_intermediate_size=856,
    n_routed_experts=63,
    n_shared_experts=1,
    num_experts_per_tok=7,
    num_attention_heads=10,
    num_key_value_heads=10,
    rope_interleave=False,
    max_position_embeddings=2048,
    **_SOFTMAX_GATE,
)
"""The validation model of the first paper.

Printed: 9 layers, hidden 1280, 10 heads of 128, 63 routed and 1 shared experts of a quarter
feed-forward, 7 chosen, every layer with experts, a vocabulary of "8K", sequences of 2048; 2.0 B
parameters, 0.3 B activated; experts 1.89 B, activated 0.24 B; 2.9 T to 4.3 T FLOPs per 2K tokens.

Chosen: a feed-forward of 3424. The printed expert totals allow 3409 to 3427, near 8/3 of the hidden
size; grouped matmuls in BF16 want a quarter that is a multiple of 8. Rounder widths miss the print:
3392 makes 1.88 B of experts, 3456 makes 1.91 B. Also chosen: 8192 for "8K", a head of its own.

Source: DeepSeekMoE (arXiv 2401.06066) section 4.1 and tables 1, 2 and 7.
"""

DEEPSEEK_MOE_2B_DENSE = DEEPSEEK_MOE_2B.changed(
    n_routed_experts=None,
    n_shared_experts=None,
    num_experts_per_tok=None,
    moe_intermediate_size=None,
)
"""The dense baseline, 0.2 B: one whole feed-forward. Source: arXiv 2401.06066 section 4.2."""

DEEPSEEK_MOE_2B_SWITCH = DEEPSEEK_MOE_2B.changed(
    n_routed_experts=16,
    n_shared_experts=None,
    num_experts_per_tok=1,
    moe_intermediate_size=3424,
)
"""Switch: the best of 16 whole feed-forwards. Source: arXiv 2401.06066 section 4.2; 2101.03961."""

DEEPSEEK_MOE_2B_HASH = DEEPSEEK_MOE_2B_SWITCH.changed(topk_method="hash")
"""Hash Layer: one of 16, fixed by the token. Source: arXiv 2401.06066 section 4.2; 2106.04426."""

DEEPSEEK_MOE_2B_GSHARD = DEEPSEEK_MOE_2B_SWITCH.changed(num_experts_per_tok=2, norm_topk_prob=True)
"""GShard: two of 16, gate values normalised. Source: arXiv 2401.06066 section 4.2; 2006.16668."""

DEEPSEEK_V2_LITE = ModelConfig(
    model_type="deepseek_v2",
    hidden_size=2048,
    num_hidden_layers=27,
    intermediate_size=10944,
    moe_intermediate_size=1408,
    num_attention_heads=16,
    num_key_value_heads=16,
    n_group=1,
    topk_group=1,
    rope_interleave=True,
    rope_scaling=_V2_YARN,
    max_position_embeddings=163840,
    initializer_range=0.02,
    **_LATENT,
    **_SIX_OF_64,
    **_SOFTMAX_GATE,
    **_V2_TOKENS,
)
"""DeepSeek-V2-Lite. Source: deepseek-ai/DeepSeek-V2-Lite; arXiv 2405.04434 appendix B."""

DEEPSEEK_V2 = DEEPSEEK_V2_LITE.changed(
    hidden_size=5120,
    num_hidden_layers=60,
    intermediate_size=12288,
    moe_intermediate_size=1536,
    n_routed_experts=160,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    topk_method="group_limited_greedy",
    n_group=8,
    topk_group=3,
    routed_scaling_factor=16.0,
)
"""DeepSeek-V2, 236 B. Source: deepseek-ai/DeepSeek-V2; arXiv 2405.04434 section 3.1.2."""

DEEPSEEK_V3 = ModelConfig(
    model_type="deepseek_v3",
    vocab_size=129280,
    hidden_size=7168,
    num_hidden_layers=61,
    first_k_dense_replace=3,
    intermediate_size=18432,
    moe_intermediate_size=2048,
    n_routed_experts=256,
    n_shared_experts=1,
    num_experts_per_tok=8,
    num_attention_heads=128,
    num_key_value_heads=128,
    q_lora_rank=1536,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    n_group=8,
    topk_group=4,
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    num_nextn_predict_layers=1,
    rope_interleave=True,
    rope_scaling=_V3_YARN,
    max_position_embeddings=163840,
    initializer_range=0.02,
    bos_token_id=0,
    eos_token_id=1,
    quantization_config=Fp8Blocks(),
    **_LATENT,
)
"""DeepSeek-V3 and R1, 671 B. Source: deepseek-ai/DeepSeek-V3; arXiv 2412.19437 section 4.2."""


def _small(
    hidden_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    vocab_size: int,
    widths: tuple[int, int],
    latent: tuple[int, int, int],
) -> tuple[ModelConfig, ModelConfig, ModelConfig]:
    """One size as V1, V2 and V3: 64 experts of which 6 are chosen, 2 shared, first layer dense.

    Args:
        widths: feed-forward width of the dense layer and of one expert.
        latent: key-value latent, and query-key width without and with rotary position; values are
            as wide as the part without.
    """
    latent_rank, unrotated, rotated = latent
    v2 = ModelConfig(
        model_type="deepseek_v2",
        vocab_size=vocab_size,
        hidden_size=hidden_size,
        num_hidden_layers=num_hidden_layers,
        intermediate_size=widths[0],
        moe_intermediate_size=widths[1],
        num_attention_heads=num_attention_heads,
        num_key_value_heads=num_attention_heads,
        rope_interleave=True,
        kv_lora_rank=latent_rank,
        qk_nope_head_dim=unrotated,
        qk_rope_head_dim=rotated,
        v_head_dim=unrotated,
        max_position_embeddings=8192,
        bos_token_id=0,
        eos_token_id=1,
        **_SIX_OF_64,
        **_SOFTMAX_GATE,
    )
    no_latent = dict.fromkeys(_LATENT)
    v1 = v2.changed(model_type="deepseek", rope_interleave=False, **no_latent)
    v3 = v2.changed(
        model_type="deepseek_v3",
        q_lora_rank=hidden_size * 3 // 8,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        n_group=8,
        topk_group=4,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        num_nextn_predict_layers=1,
    )
    return v1, v2, v3


TINY_V1, TINY_V2, TINY_V3 = _small(128, 4, 4, 2048, (352, 32), (32, 32, 16))
"""About 3 M parameters, in V2-Lite's proportions."""
SMALL_V1, SMALL_V2, SMALL_V3 = _small(256, 6, 4, 8192, (1408, 88), (64, 64, 32))
"""About 30 M parameters, in V2-Lite's proportions."""
MID_V1, MID_V2, MID_V3 = _small(512, 8, 8, 16384, (2752, 176), (128, 64, 32))
"""About 150 M parameters, in V2-Lite's proportions."""

PRESETS: dict[str, ModelConfig] = {
    "tiny": TINY_V2,
    "tiny-v1": TINY_V1,
    "tiny-v2": TINY_V2,
    "tiny-v3": TINY_V3,
    "small": SMALL_V2,
    "small-v1": SMALL_V1,
    "small-v2": SMALL_V2,
    "small-v3": SMALL_V3,
    "mid": MID_V2,
    "mid-v1": MID_V1,
    "mid-v2": MID_V2,
    "mid-v3": MID_V3,
    "deepseek-moe-2b": DEEPSEEK_MOE_2B,
    "deepseek-moe-2b-dense": DEEPSEEK_MOE_2B_DENSE,
    "deepseek-moe-2b-hash": DEEPSEEK_MOE_2B_HASH,
    "deepseek-moe-2b-switch": DEEPSEEK_MOE_2B_SWITCH,
    "deepseek-moe-2b-gshard": DEEPSEEK_MOE_2B_GSHARD,
    "deepseek-moe-16b": DEEPSEEK_MOE_16B,
    "deepseek-v2-lite": DEEPSEEK_V2_LITE,
    "deepseek-v2": DEEPSEEK_V2,
    "deepseek-v3": DEEPSEEK_V3,
}
"""Every preset by name, the small ones first."""


def get_preset(name: str) -> ModelConfig:
    """The model of that name.

    Raises:
        ConfigError: if there is none; the message lists them.
    """
    if name in PRESETS:
        return PRESETS[name]
    raise ConfigError(
        f"{name!r} is not a preset{suggest(name, PRESETS)}; the presets are {', '.join(PRESETS)}"
    )


def find_model(model: str | Path | ModelConfig) -> tuple[str, ModelConfig]:
    """A model's name and configuration, from whatever names it.

    Args:
        model: a preset, a checkpoint folder, a ``config.json``, or the configuration itself. A
            folder that is called like a preset is reached as ``./tiny``.

    Raises:
        ConfigError: if it is none of them, or the file describes no model of this family.
        CheckpointError: if the folder has no readable ``config.json``.
    """
    if isinstance(model, ModelConfig):
        known = (name for name, preset in PRESETS.items() if preset == model)
        return next(known, model.model_type), model
    if str(model) in PRESETS:
        return str(model), PRESETS[str(model)]
    if Path(model).exists():
        return str(model), read_config(model)
    raise ConfigError(
        f"{str(model)!r} is neither a preset nor a folder{suggest(str(model), PRESETS)}; "
        f"the presets are {', '.join(PRESETS)}"
    )
