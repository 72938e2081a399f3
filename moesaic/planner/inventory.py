"""Every tensor of a model: published name, shape, role, layer and expert, without building it.

Counting, memory tables, checkpoint checks, choosing experts, shard manifests and merging all read
this one list.
"""

from collections.abc import Container, Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from moesaic.config.model import ModelConfig

Role = Literal[
    "embedding", "norm", "attention", "dense", "router", "shared", "routed", "mtp", "head"
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor as it is published."""

    name: str
    shape: tuple[int, ...]
    role: Role
    layer: int | None = None
    expert: int | None = None
    copy_of: str | None = None
    """Name of the tensor this one repeats: a prediction module's embedding and head."""

    @property
    def size(self) -> int:
        """Number of elements."""
        return prod(self.shape)

    @property
    def is_router_bias(self) -> bool:
        """Whether this is the choice bias: kept in float32, moved by the load and not by AdamW."""
        return self.name.endswith("e_score_correction_bias")

    @property
    def may_be_quantised(self) -> bool:
        """Whether published FP8 checkpoints store it in blocks: the linear layers of a block."""
        return len(self.shape) == 2 and self.role in ("attention", "dense", "shared", "routed")


def tensors(config: ModelConfig, layers: Container[int] | None = None) -> Iterator[TensorSpec]:
    """Every tensor of the model in the published order, prediction modules last.

    Args:
        config: the model.
        layers: leave out the tensors of all other layers; None leaves out none.

    Source: the published checkpoints; DeepSeek-V3 (arXiv 2412.19437) section 2.2 for the modules.
    """
    vocabulary = (config.vocab_size, config.hidden_size)
    yield TensorSpec("model.embed_tokens.weight", vocabulary, "embedding")
    for layer in range(config.num_hidden_layers):
        if layers is None or layer in layers:
            yield from _layer(config, layer)
    yield TensorSpec("model.norm.weight", (config.hidden_size,), "norm")
    if not config.tie_word_embeddings:
        yield TensorSpec("lm_head.weight", vocabulary, "head")
    for depth in range(config.num_nextn_predict_layers):
        layer = config.num_hidden_layers + depth
        if layers is None or layer in layers:
            yield from _prediction_module(config, layer)


def _prediction_module(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    width, prefix = config.hidden_size, f"model.layers.{layer}"
    vocabulary = (config.vocab_size, width)
    embedding = "model.embed_tokens.weight"
    head = embedding if config.tie_word_embeddings else "lm_head.weight"
    yield TensorSpec(f"{prefix}.embed_tokens.weight", vocabulary, "mtp", layer, copy_of=embedding)
    yield TensorSpec(f"{prefix}.enorm.weight", (width,), "mtp", layer)
    yield TensorSpec(f"{prefix}.hnorm.weight", (width,), "mtp", layer)
    yield TensorSpec(f"{prefix}.eh_proj.weight", (width, 2 * width), "mtp", layer)
    yield from _layer(config, layer)
    yield TensorSpec(f"{prefix}.shared_head.norm.weight", (width,), "mtp", layer)
    yield TensorSpec(f"{prefix}.shared_head.head.weight", vocabulary, "mtp", layer, copy_of=head)


def _layer(config: ModelConfig, layer: int) -> Iterator[TensorSpec]:
    width, prefix = config.hidden_size, f"model.layers.{layer}"
    yield from _attention(config, layer, f"{prefix}.self_attn")
    if config.has_experts(layer):
        yield from _experts(config, layer, f"{prefix}.mlp")
    else:
        yield from _feed_forward(config, f"{prefix}.mlp", config.intermediate_size, "dense", layer)
    yield TensorSpec(f"{prefix}.input_layernorm.weight", (width,), "norm", layer)
    yield TensorSpec(f"{prefix}.post_attention_layernorm.weight", (width,), "norm", layer)


def _attention(config: ModelConfig, layer: int, prefix: str) -> Iterator[TensorSpec]:
    width, heads = config.hidden_size, config.num_attention_heads
    queries, values = heads * config.qk_head_dim, heads * config.value_dim

    def linear(name: str, rows: int, columns: int) -> TensorSpec:
        return TensorSpec(f"{prefix}.{name}.weight", (rows, columns), "attention", layer)

    def norm(name: str, size: int) -> TensorSpec:
        return TensorSpec(f"{prefix}.{name}.weight", (size,), "norm", layer)

    if config.kv_lora_rank is None:
        key_values = config.num_key_value_heads * config.qk_head_dim
        yield linear("q_proj", queries, width)
        yield linear("k_proj", key_values, width)
        yield linear("v_proj", key_values, width)
    else:
        latent = config.kv_lora_rank
        if config.q_lora_rank is None:
            yield linear("q_proj", queries, width)
        else:
            yield linear("q_a_proj", config.q_lora_rank, width)
            yield norm("q_a_layernorm", config.q_lora_rank)
            yield linear("q_b_proj", queries, config.q_lora_rank)
        yield linear("kv_a_proj_with_mqa", latent + config.rope_dim, width)
        yield norm("kv_a_layernorm", latent)
        unrotated = config.qk_head_dim - config.rope_dim
        yield linear("kv_b_proj", heads * (unrotated + config.value_dim), latent)
    yield linear("o_proj", width, values)


def _experts(config: ModelConfig, layer: int, prefix: str) -> Iterator[TensorSpec]:
    expert_width = config.moe_intermediate_size or 0
    if config.topk_method != "hash":
        gate = (config.experts, config.hidden_size)
        yield TensorSpec(f"{prefix}.gate.weight", gate, "router", layer)
    if config.topk_method == "noaux_tc":
        bias = f"{prefix}.gate.e_score_correction_bias"
        yield TensorSpec(bias, (config.experts,), "router", layer)
    for expert in range(config.experts):
        name = f"{prefix}.experts.{expert}"
        yield from _feed_forward(config, name, expert_width, "routed", layer, expert)
    if config.n_shared_experts:
        joint = expert_width * config.n_shared_experts
        yield from _feed_forward(config, f"{prefix}.shared_experts", joint, "shared", layer)


def _feed_forward(
    config: ModelConfig,
    prefix: str,
    inner: int,
    role: Role,
    layer: int,
    expert: int | None = None,
) -> Iterator[TensorSpec]:
    outer = config.hidden_size
    shapes = (("gate_proj", inner, outer), ("up_proj", inner, outer), ("down_proj", outer, inner))
    for name, rows, columns in shapes:
        yield TensorSpec(f"{prefix}.{name}.weight", (rows, columns), role, layer, expert)
