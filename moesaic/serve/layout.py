"""How the weights and the cache of a model are spread over GPUs by vLLM and SGLang."""

from collections.abc import Iterator
from dataclasses import dataclass

from moesaic.checkpoint.quantise import may_be_packed
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.config.packed import PackedGroups
from moesaic.errors import ConfigError
from moesaic.planner.inventory import TensorSpec, tensors
from moesaic.planner.memory import cache_values

_SPLIT = ("embedding", "attention", "dense", "shared", "head")
_WHOLE = ("q_a_proj.weight", "kv_a_proj_with_mqa.weight")
"""Projections into latents, which every GPU has."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Which GPU has what: heads are spread inside a group of GPUs, sequences over groups."""

    tensor: int
    """GPUs of a group; it has the attention, and the feed-forward layers that all tokens pass."""
    data: int
    """Groups, each with sequences of its own."""
    spreads_experts: bool
    """Whether the experts of a layer are spread over all GPUs, or sliced inside each group."""

    @property
    def gpus(self) -> int:
        """All of them."""
        return self.tensor * self.data


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes on one GPU; estimated, without activations and what the engine itself takes."""

    weights: int
    cache_per_token: int
    groups: int

    def room(self, n_bytes: float) -> int:
        """Tokens that all groups together can cache where a GPU has so many bytes for both."""
        return self.groups * max(0, int((n_bytes - self.weights) / self.cache_per_token))


def choose_layout(
    config: ModelConfig, per_machine: int, machines: int, by_heads: bool, spreads_experts: bool
) -> Layout:
    """Spread heads over as many GPUs of a machine as can share them, sequences over the rest.

    Args:
        config: the model.
        per_machine: GPUs in each machine.
        machines: how many there are.
        by_heads: whether heads are spread at all.
        spreads_experts: whether each GPU has some experts, rather than a slice of all.
    """
    sizes = range(per_machine, 0, -1) if by_heads else (1,)
    tensor = next(
        n for n in sizes if per_machine % n == 0 and can_share(config, n, spreads_experts)
    )
    return Layout(tensor, per_machine // tensor * machines, spreads_experts)


def can_share(config: ModelConfig, n: int, spreads_experts: bool) -> bool:
    """Whether heads, and the feed-forward layers that are sliced, divide by so many GPUs."""
    heads, shared = config.num_attention_heads, config.num_key_value_heads
    if heads % n or (shared % n and n % shared):
        return False
    unit = n * _indivisible(config)
    return n == 1 or not any(width % unit for width in _sliced_widths(config, spreads_experts))


def _sliced_widths(config: ModelConfig, spreads_experts: bool) -> Iterator[int]:
    yield config.num_attention_heads * config.value_dim
    if not config.experts or config.first_k_dense_replace:
        yield config.intermediate_size
    if config.n_shared_experts:
        yield (config.moe_intermediate_size or 0) * config.n_shared_experts
    if config.experts and not spreads_experts:
        yield config.moe_intermediate_size or 0


def _indivisible(config: ModelConfig) -> int:
    """Neighbouring weights that have to stay together: those that share a scale."""
    quantised = config.quantization_config
    if isinstance(quantised, Fp8Blocks):
        return max(quantised.weight_block_size)
    return quantised.weights.group_size if isinstance(quantised, PackedGroups) else 1


def need(config: ModelConfig, layout: Layout, redundant: int) -> Need:
    """What one GPU holds: weights in BF16 or as they are quantised, and a cache in BF16.

    Args:
        config: the model.
        layout: how it is spread.
        redundant: copies of experts, in every layer on all GPUs together.
    """
    weights = 0.0
    for spec in tensors(config):
        if spec.copy_of is None and (spec.layer or 0) < config.num_hidden_layers:
            copies = 1 + redundant / config.experts if spec.role == "routed" else 1
            weights += copies * _stored_bytes(spec, config) / _sharers(spec, layout)
    per_token = 2 * config.num_hidden_layers * cache_values(config)
    split = 1 if config.is_latent else min(layout.tensor, config.num_key_value_heads)
    return Need(round(weights), per_token // split, layout.data)


def _sharers(spec: TensorSpec, layout: Layout) -> int:
    """GPUs that a tensor is spread over; each group has its own of all but spread experts."""
    if spec.role == "routed":
        return layout.gpus if layout.spreads_experts else layout.tensor
    is_split = spec.role in _SPLIT and not spec.name.endswith(_WHOLE)
    return layout.tensor if is_split else 1


def _stored_bytes(spec: TensorSpec, config: ModelConfig) -> float:
    quantised = config.quantization_config
    if isinstance(quantised, Fp8Blocks) and spec.may_be_quantised:
        rows, columns = quantised.weight_block_size
        return spec.size * (1 + 4 / (rows * columns))
    if isinstance(quantised, PackedGroups):
        form = quantised.weights
        if may_be_packed(spec, form.group_size):
            return spec.size * (form.num_bits / 8 + 2 / form.group_size)
    return 2.0 * spec.size


def check_fits(found: Need, context: int, n_bytes: float, layout: Layout) -> None:
    """See that weights and one whole context fit on every GPU.

    Raises:
        ConfigError: if they do not; the message says what would help.
    """
    if found.room(n_bytes) >= context * found.groups:
        return
    cache = context * found.cache_per_token
    raise ConfigError(
        f"one of {layout.gpus} GPUs would hold {found.weights / 1e9:.1f} GB of weights and "
        f"{cache / 1e9:.1f} GB for one context of {context}, it has {n_bytes / 1e9:.1f} GB for "
        "both; raise --gpus or --nodes, lower context, or quantise the model"
    )
