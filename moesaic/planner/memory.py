"""Bytes to train and to serve a model: weights, gradients, optimizer, activations, cache."""

from dataclasses import dataclass
from typing import Literal

from moesaic.config.model import ModelConfig
from moesaic.planner.activations import Activations, activations
from moesaic.planner.holding import frozen_bytes, rest_bytes, room_bytes
from moesaic.planner.params import Plan
from moesaic.planner.precision import PRECISIONS, Precision
from moesaic.planner.timeline import Peak, peak
from moesaic.planner.working import optimizer_working


@dataclass(frozen=True, slots=True)
class TrainMemory:
    """Bytes on the device while a model, or a slice of it, is trained."""

    weights: int
    """In the form that each is held in."""
    room: int
    """What frozen experts are brought back or brought into, see `planner.holding`."""
    gradients: int
    """Of everything trained; not all of them are there at the peak."""
    optimizer: int
    """AdamW's moments on the device."""
    activations: Activations
    """Not all of them are there at the peak."""
    peak: Peak
    """What of the last two is."""

    @property
    def states(self) -> int:
        """Everything that does not depend on the batch."""
        return self.weights + self.room + self.gradients + self.optimizer

    @property
    def total(self) -> int:
        """The peak."""
        return self.weights + self.room + self.optimizer + self.peak.total


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
    passes: int = 1,
    offload: bool = False,
) -> TrainMemory:
    """Peak bytes of a training step with AdamW, from the second step on, when its moments exist.

    A slice holds no prediction modules; the whole model trains its own along, without the copies
    of embedding and head.

    Args:
        plan: the model, or the slice of it.
        precision: bytes per value.
        batch: sequences in one pass.
        sequence: tokens in each.
        recompute: keep only the layers' inputs for the backward pass.
        passes: forward and backward passes whose gradients are added up before a step.
        offload: keep the moments in the memory of the CPU.
    """
    whole = plan.train_experts is None
    extra = plan.mtp - plan.mtp_copies if whole else 0
    trained = plan.trained + extra
    earlier = passes > 1
    parts = activations(plan, batch * sequence, precision, recompute, earlier)
    gradients = precision.gradients * trained
    return TrainMemory(
        weights=precision.weights * trained
        + (0 if whole else rest_bytes(plan, precision) + frozen_bytes(plan, precision)),
        room=room_bytes(plan, precision),
        gradients=gradients,
        optimizer=0 if offload else round(2 * precision.states * trained),
        activations=parts,
        peak=peak(parts, gradients, optimizer_working(plan, precision, offload), earlier),
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
