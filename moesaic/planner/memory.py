"""Bytes to train and to serve a model: weights, gradients, optimizer, activations, cache."""

from dataclasses import dataclass
from typing import Literal

from moesaic.config.model import ModelConfig
from moesaic.planner.activations import Activations, activations
from moesaic.planner.params import Plan

PrecisionName = Literal["bfloat16", "bfloat16-float32-states", "mixed", "float32"]


@dataclass(frozen=True, slots=True)
class Precision:
    """Bytes per value of everything that training holds."""

    weights: int
    gradients: int
    states: int
    """Each of AdamW's two moments."""
    compute: int
    """Activations and products."""

    def __str__(self) -> str:
        return (
            f"{self.weights} B a weight, {self.gradients} B a gradient, AdamW with two moments of "
            f"{self.states} B, activations of {self.compute} B"
        )


PRECISIONS: dict[PrecisionName, Precision] = {
    "bfloat16": Precision(2, 2, 2, 2),
    "bfloat16-float32-states": Precision(2, 2, 4, 2),
    "mixed": Precision(4, 4, 4, 2),
    "float32": Precision(4, 4, 4, 4),
}
"""`mixed` keeps float32 weights and computes in bfloat16."""


@dataclass(frozen=True, slots=True)
class TrainMemory:
    """Bytes on the device while a model, or a slice of it, is trained."""

    weights: int
    gradients: int
    optimizer: int
    activations: Activations

    @property
    def states(self) -> int:
        """Everything that does not depend on the batch."""
        return self.weights + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The peak."""
        return self.states + self.activations.total


@dataclass(frozen=True, slots=True)
class ServeMemory:
    """Bytes on the device while a model generates."""

    weights: int
    cache_per_token: int
    """Keys and values, or latents, of one position in all layers."""
    cached_tokens: int

    @property
    def cache(self) -> int:
        """Bytes of all positions held."""
        return self.cache_per_token * self.cached_tokens

    @property
    def total(self) -> int:
        """Weights and cache; activations of a step are small beside them."""
        return self.weights + self.cache


def train_memory(
    plan: Plan,
    precision: Precision = PRECISIONS["bfloat16"],
    batch: int = 1,
    sequence: int = 4096,
    recompute: bool = False,
) -> TrainMemory:
    """Peak bytes of a training step with AdamW, gradients kept over the step.

    A slice holds no prediction modules; the whole model trains its own along, without the copies
    of embedding and head.

    Args:
        plan: the model, or the slice of it.
        precision: bytes per value.
        batch: sequences in one pass.
        sequence: tokens in each.
        recompute: keep only the layers' inputs for the backward pass.
    """
    whole = plan.train_experts is None
    extra = plan.mtp - plan.mtp_copies if whole else 0
    held, trained = plan.held + extra, plan.trained + extra
    return TrainMemory(
        weights=precision.weights * held,
        gradients=precision.gradients * trained,
        optimizer=2 * precision.states * trained,
        activations=activations(
            plan, batch * sequence, precision.compute, precision.weights, recompute
        ),
    )


def serve_memory(
    plan: Plan, weight_dtype: Literal["bfloat16", "float8"], cached_tokens: int
) -> ServeMemory:
    """Bytes to generate with the whole model, its cache in bfloat16, no prediction modules.

    Args:
        plan: the model.
        weight_dtype: ``float8`` stores the linear layers of the blocks as V3 publishes them, one
            float32 scale for 128 × 128 weights, and the rest in bfloat16.
        cached_tokens: positions held, over all sequences.
    """
    weights = 2 * plan.total
    if weight_dtype == "float8":
        roles = ("attention", "dense", "shared", "routed")
        in_blocks = sum(plan.roles.get(role, 0) for role in roles)
        weights += 4 * in_blocks // 128**2 - in_blocks
    per_token = 2 * plan.config.num_hidden_layers * cache_values(plan.config)
    return ServeMemory(weights, per_token, cached_tokens)


def cache_values(config: ModelConfig) -> int:
    """Values kept for one position in one layer.

    Source: DeepSeek-V2 (arXiv 2405.04434) table 1.
    """
    if config.is_latent:
        return (config.kv_lora_rank or 0) + config.rope_dim
    return 2 * config.num_key_value_heads * config.qk_head_dim
