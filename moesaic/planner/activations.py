"""Bytes of activations in a training step of this implementation, layer by layer.

One list of what each operation keeps for the backward pass; a test holds it to what autograd keeps.
Attention is counted in the fused form of a GPU; the blockwise form of a CPU keeps less, while the
experts there keep some padding, which is not counted. Nor is the visibility mask of packed
documents, one byte for each pair of positions.
"""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.planner.params import Plan
from moesaic.planner.precision import Precision
from moesaic.planner.working import (
    experts_working,
    feed_forward_working,
    loss_working,
    shared_width,
)


@dataclass(frozen=True, slots=True)
class Stage:
    """What one layer has in memory in a step, in bytes."""

    kept: int
    """From its forward pass to its backward pass."""
    cast: int
    """Copies of its weights, for as long."""
    stays: int
    """The part of `kept` that is there until the whole backward pass is over: the routing, and
    where the rows of the experts lie."""
    working: int
    """Temporaries at the worst moment of its backward pass, beside what is kept."""
    gradients: int
    """Of its weights, where they are made anew."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes beside weights, gradients and optimizer in a step."""

    stages: tuple[Stage, ...]
    """From the first layer that keeps anything to the last, prediction modules included."""
    loss: Stage
    """The last norm and the loss, after all layers."""
    inputs: int | None
    """What recomputing keeps of each stage, its input; None keeps it all."""

    @property
    def kept(self) -> int:
        """What is kept for the backward pass; when recomputing, with all of the largest layer."""
        kept = [stage.kept for stage in self.stages]
        if self.inputs is None:
            return self.loss.kept + sum(kept)
        return self.loss.kept + sum(self.inputs + stage.stays for stage in self.stages) + max(kept)

    @property
    def casts(self) -> int:
        """Weights kept in the dtype of the products, where that is not their own."""
        casts = [stage.cast for stage in self.stages]
        return sum(casts) if self.inputs is None else max(casts, default=0)

    @property
    def working(self) -> int:
        """The largest temporary."""
        return max(stage.working for stage in (*self.stages, self.loss))

    @property
    def total(self) -> int:
        """All of them, each part at its largest."""
        return self.kept + self.casts + self.working


def activations(
    plan: Plan, tokens: int, precision: Precision, recompute: bool, earlier: bool = False
) -> Activations:
    """Activations of one pass over ``tokens`` tokens.

    Args:
        plan: the model, or the slice of it.
        tokens: in the pass.
        precision: bytes per value.
        recompute: keep only the layers' inputs, and the rest of one layer at a time.
        earlier: whether gradients are there from a pass before, so that these are added to them.
    """
    config, whole = plan.config, plan.train_experts is None
    layers = range(plan.lowest, config.num_hidden_layers)
    stages = [_stage(plan, layer, tokens, precision, earlier) for layer in layers]
    if whole:
        module = _prediction(plan, tokens, precision, earlier)
        stages += [module] * config.num_nextn_predict_layers
    inputs = tokens * config.hidden_size * precision.compute if recompute else None
    return Activations(tuple(stages), _loss(plan, tokens, precision), inputs)


def _stage(plan: Plan, layer: int, tokens: int, precision: Precision, earlier: bool) -> Stage:
    """One layer of the decoder."""
    config, compute = plan.config, precision.compute
    below = not plan.is_slice or layer > plan.lowest or plan.are_adapted("attention")
    stays = working = 0
    if config.has_experts(layer):
        stays = _routing(config) + _rows(config)
        working = experts_working(plan, tokens, precision, below, earlier)
    else:
        working = feed_forward_working(config, tokens, compute)
    return Stage(
        kept=tokens * _layer(plan, layer, compute, below),
        cast=_casts(plan, layer, precision) if below else 0,
        stays=tokens * stays,
        working=working,
        gradients=0 if earlier else precision.gradients * plan.trained_in(layer),
    )


def _layer(plan: Plan, layer: int, compute: int, below: bool) -> int:
    """Bytes per token that one layer keeps. Inputs of linear layers are kept too where these or
    their adapters are trained.

    Args:
        plan: the model, or the slice of it.
        layer: which.
        compute: bytes of an activation.
        below: whether anything below its experts is trained: else only they keep anything.
    """
    config, whole = plan.config, not plan.is_slice
    width = config.hidden_size
    normed = width * compute
    attention = _attention(config, compute, whole or plan.are_adapted("attention"))
    narrow = compute * plan.narrow_in(layer)
    if not config.has_experts(layer):
        fed = whole or plan.are_adapted("dense")
        dense = _feed_forward(config.intermediate_size, compute, fed)
        return attention + _norm(width, compute) + normed * fed + dense + narrow
    experts = normed + _routing(config) + _experts(config, compute)
    if not below:
        return experts
    shared = _feed_forward(shared_width(config), compute, whole or plan.are_adapted("shared"))
    router = _router(config, compute, whole)
    return attention + _norm(width, compute) + router + experts + shared + narrow


def _norm(width: int, compute: int) -> int:
    """The input, and one float32 per row."""
    return width * compute + 4


def _attention(config: ModelConfig, compute: int, whole: bool) -> int:
    """The norm before it, the projections and the kernel."""
    heads, width = config.num_attention_heads, config.hidden_size
    total = _norm(width, compute) + width * compute * whole + fused_attention(config, compute)
    if compute < 4:  # cosines and sines, once for queries and once for keys
        total += 2 * config.rope_dim * compute
    if config.is_latent:
        for latent in (config.q_lora_rank or 0, config.kv_lora_rank or 0):
            if latent:
                total += _norm(latent, compute) + latent * compute * whole
        total += heads * config.value_dim * compute * whole
    return total


def fused_attention(config: ModelConfig, compute: int) -> int:
    """Queries, keys, values and output, all padded to one width, and a float32 sum per head."""
    heads = config.num_attention_heads
    return 4 * heads * max(config.qk_head_dim, config.value_dim) * compute + 4 * heads


def _feed_forward(inner: int, compute: int, whole: bool) -> int:
    """Gate and up before the activation; the input of the down projection where it is trained."""
    return (2 + whole) * inner * compute


def _routing(config: ModelConfig) -> int:
    """Scores and chosen ids, which the trace of the pass holds too."""
    return 4 * config.experts + 8 * (config.num_experts_per_tok or 0)


def _router(config: ModelConfig, compute: int, whole: bool) -> int:
    """Gate values before they are normalised; the float32 input where the router is trained and
    that is a copy."""
    normalised = 4 * ((config.num_experts_per_tok or 0) + 1) if config.norm_topk_prob else 0
    copied = whole and compute < 4 and config.topk_method != "hash"
    return normalised + 4 * config.hidden_size * copied


def _experts(config: ModelConfig, compute: int) -> int:
    """Gate and up of every chosen expert, and its row."""
    chosen = config.num_experts_per_tok or 0
    return chosen * 2 * (config.moe_intermediate_size or 0) * compute + _rows(config)


def _rows(config: ModelConfig) -> int:
    """Every chosen expert's gate value, and where its row lies."""
    return (config.num_experts_per_tok or 0) * (4 + 16)


def _prediction(plan: Plan, tokens: int, precision: Precision, earlier: bool) -> Stage:
    """One prediction module: three norms, the joined input, its layer, its loss with the gradients
    of hidden states and head."""
    config, compute = plan.config, precision.compute
    width, layer = config.hidden_size, config.num_hidden_layers
    kept = _layer(plan, layer, compute, below=True)
    kept += 3 * _norm(width, compute) + 3 * width * compute
    joined = 2 * width**2
    head = 0 if config.tie_word_embeddings else precision.gradients * config.vocab_size * width
    return Stage(
        kept=tokens * kept,
        cast=_casts(plan, layer, precision, joined),
        stays=tokens * (_routing(config) + _rows(config)),
        working=experts_working(plan, tokens, precision, True, earlier) + head,
        gradients=0 if earlier else precision.gradients * (plan.trained_in(layer) + joined),
    )


def _casts(plan: Plan, layer: int, precision: Precision, further: int = 0) -> int:
    """Copies of one layer's weights that the backward pass needs, the experts' not among them."""
    config, compute = plan.config, precision.compute
    weights = precision.weights if plan.train_experts is None else precision.frozen
    total = 0
    if config.has_experts(layer) and config.topk_method != "hash" and weights < 4:
        total += 4 * config.experts * config.hidden_size
    if weights != compute:
        inner = shared_width(config) if config.has_experts(layer) else config.intermediate_size
        attention = plan.roles["attention"] // config.num_hidden_layers
        total += compute * (attention + 3 * config.hidden_size * inner + further)
    return total


def _loss(plan: Plan, tokens: int, precision: Precision) -> Stage:
    """The last norm, and the loss with its gradient, which is made with it."""
    config, compute = plan.config, precision.compute
    width = config.hidden_size
    kept = _norm(width, compute) + width * compute
    if compute == 4:
        kept += 4 * config.rope_dim  # cosines and sines, shared by all layers
    head = precision.gradients * config.vocab_size * width if plan.train_experts is None else 0
    return Stage(tokens * kept, 0, 0, loss_working(plan, tokens, precision), head)
