"""What a model is, in the keys of GGUF that llama.cpp reads; and what it cannot compute.

Source: ``conversion/deepseek.py``, ``src/models/deepseek.cpp`` and ``src/models/deepseek2.cpp`` of
llama.cpp, in the version that llama-cpp-python 0.3.36 carries.
"""

import math
from collections.abc import Iterator

import gguf

from moesaic.config.model import ModelConfig, RopeScaling
from moesaic.errors import ConfigError

_LATENT_EPS = 1e-6
_MOST_EXPERTS, _MOST_LAYERS = 1024, 512


def architecture(config: ModelConfig) -> gguf.MODEL_ARCH:
    """Multi-head attention is ``deepseek`` there, latent attention ``deepseek2``."""
    return gguf.MODEL_ARCH.DEEPSEEK2 if config.is_latent else gguf.MODEL_ARCH.DEEPSEEK


def check_shape(config: ModelConfig) -> None:
    """See that llama.cpp computes such a model.

    Raises:
        ConfigError: if it does not; the message says what it lacks.
    """
    reason = next(_obstacles(config), None)
    if reason is not None:
        raise ConfigError(
            f"llama.cpp cannot run this model: {reason}; serve it here, or in another engine with "
            "`moesaic launch`"
        )


def _obstacles(config: ModelConfig) -> Iterator[str]:
    if config.rope_scaling is not None and config.rope_scaling.factor < 1:
        yield f"rope_scaling.factor={config.rope_scaling.factor} shortens the context"
    if config.num_hidden_layers > _MOST_LAYERS:
        yield f"num_hidden_layers={config.num_hidden_layers} is more than its {_MOST_LAYERS}"
    if _is_taken_for_lite(config) and config.q_lora_rank is not None:
        yield (
            f"it takes one of num_hidden_layers={config.num_hidden_layers} for V2-Lite, which has "
            f"no query latent, and this has q_lora_rank={config.q_lora_rank}"
        )
    if config.experts:
        yield from _obstacles_of_experts(config)


def _obstacles_of_experts(config: ModelConfig) -> Iterator[str]:
    if config.topk_method == "hash":
        yield "it has no topk_method='hash'"
    if config.experts > _MOST_EXPERTS:
        yield f"n_routed_experts={config.experts} is more than its {_MOST_EXPERTS}"
    if config.moe_layer_freq != 1:
        yield f"it has experts in every layer after the dense ones, here {config.moe_layer_freq=}"
    if not config.n_shared_experts:
        yield "its DeepSeek models have shared experts, and this has n_shared_experts=0"
    if config.groups == config.experts:
        yield f"it scores a group by two experts, and n_group={config.groups} leaves them one"
    if not config.is_latent and (config.scoring_func != "softmax" or config.norm_topk_prob):
        yield (
            f"with multi-head attention it has softmax scores that are not normalised, this has "
            f"scoring_func={config.scoring_func!r} and norm_topk_prob={config.norm_topk_prob}"
        )


def differences(config: ModelConfig) -> Iterator[str]:
    """What llama.cpp computes otherwise, or leaves out."""
    if config.num_nextn_predict_layers:
        yield "the prediction modules are left out: llama.cpp does not run them for DeepSeek models"
    if _limits_groups(config) and config.topk_method == "group_limited_greedy":
        yield (
            "llama.cpp scores a group of experts by the sum of its best two, as V3, not by its "
            "best, as V2: some tokens get other experts"
        )
    if config.is_latent and config.rms_norm_eps != _LATENT_EPS:
        yield (
            f"llama.cpp norms latents with rms_norm_eps={config.rms_norm_eps}, the published code "
            f"with {_LATENT_EPS}"
        )


def add_shape(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Write what a model is."""
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_head_count(config.num_attention_heads)
    writer.add_rope_dimension_count(config.rope_dim)
    writer.add_rope_freq_base(config.rope_theta)
    if config.is_latent:
        _add_latent(writer, config)
    else:
        writer.add_head_count_kv(config.num_key_value_heads)
    _add_experts(writer, config)
    if config.rope_scaling is not None and config.rope_scaling.factor > 1:
        _add_yarn(writer, config.rope_scaling, config.is_latent)
    else:
        writer.add_rope_scaling_type(gguf.RopeScalingType.NONE)


def _add_latent(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    """Absorbed attention has one key-value head: the latent with the rotated part."""
    latent = config.kv_lora_rank or 0
    writer.add_head_count_kv(1)
    writer.add_kv_lora_rank(latent)
    writer.add_key_length(latent + config.rope_dim)
    writer.add_value_length(latent)
    writer.add_key_length_mla(config.qk_head_dim)
    writer.add_value_length_mla(config.value_dim)
    if not _is_taken_for_lite(config):
        writer.add_q_lora_rank(config.q_lora_rank or 0)


def _is_taken_for_lite(config: ModelConfig) -> bool:
    """Whether llama.cpp recognises the shape as one without a query latent."""
    layers = config.num_hidden_layers
    return config.is_latent and (
        layers in (26, 27) or (layers == 48 and config.vocab_size == 128256)
    )


def _add_experts(writer: gguf.GGUFWriter, config: ModelConfig) -> None:
    dense = min(config.first_k_dense_replace, config.num_hidden_layers)
    writer.add_leading_dense_block_count(dense if config.experts else config.num_hidden_layers)
    width = config.moe_intermediate_size or config.intermediate_size
    writer.add_expert_feed_forward_length(width)
    writer.add_expert_shared_count(config.n_shared_experts or 0)
    if not config.experts:
        return
    sigmoid = config.scoring_func == "sigmoid"
    functions = gguf.ExpertGatingFuncType
    is_scaled = config.model_type == "deepseek_v3" or not config.norm_topk_prob
    writer.add_expert_count(config.experts)
    writer.add_expert_used_count(config.num_experts_per_tok or 0)
    writer.add_expert_weights_scale(config.routed_scaling_factor if is_scaled else 1.0)
    writer.add_expert_weights_norm(config.norm_topk_prob)
    writer.add_expert_gating_func(functions.SIGMOID if sigmoid else functions.SOFTMAX)
    if _limits_groups(config):
        writer.add_expert_group_count(config.groups)
        writer.add_expert_group_used_count(config.topk_group or 1)


def _limits_groups(config: ModelConfig) -> bool:
    return config.groups > 1 and (config.topk_group or 1) < config.groups


def _add_yarn(writer: gguf.GGUFWriter, scaling: RopeScaling, is_latent: bool) -> None:
    """Frequencies, the length of rotated queries and keys, and the softmax temperature.

    With m(x) = 0.1·x·ln(factor) + 1, a rotated query or key is m(mscale) / m(mscale_all_dim) long,
    and scores are multiplied by m(mscale_all_dim)². llama.cpp has a factor r on the length, and
    multiplies the scores of ``deepseek2`` by (r·m(x))², so that m(x)·r = m(mscale_all_dim). It
    reads x ≠ 0 from a key; without the key r is multiplied by m(1), and scores by that length only.

    Source: YaRN (arXiv 2309.00071) section 3.4 for m; the key and its tenth: llama.cpp, pull
    request 17945.
    """
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(scaling.factor)
    writer.add_rope_scaling_orig_ctx_len(scaling.original_max_position_embeddings)
    writer.add_rope_scaling_yarn_beta_fast(scaling.beta_fast)
    writer.add_rope_scaling_yarn_beta_slow(scaling.beta_slow)
    per_unit = 0.1 * math.log(scaling.factor)
    temperature = 1 + per_unit * scaling.mscale_all_dim
    length = (1 + per_unit * scaling.mscale) / temperature
    remaining = (temperature / length - 1) / per_unit if is_latent else 0.0
    if abs(remaining) > 1e-6:
        writer.add_rope_scaling_yarn_log_mul(0.1 * remaining)
    else:
        length /= 1 + per_unit
    if abs(length - 1) > 1e-6:
        writer.add_rope_scaling_attn_factors(length)
