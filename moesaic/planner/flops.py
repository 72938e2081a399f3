"""Floating-point operations per token: forward, backward, prefill and decode.

Only matrix products are counted, a multiplication and an addition as two; norms, activations,
softmax and the optimizer are left out.
"""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.planner.params import Plan


@dataclass(frozen=True, slots=True)
class Flops:
    """Operations for one token."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def mean_context(sequence: int) -> float:
    """Positions a token of a causal sequence sees on average, itself included."""
    return (sequence + 1) / 2


def forward_flops(plan: Plan, context: float, absorbed: bool = False) -> float:
    """Operations of one token's pass through the decoder and the head.

    Args:
        plan: the model.
        context: positions it sees on average. Papers that count attention over the whole sequence,
            masked half included, pass the sequence length.
        absorbed: latent attention on the latents themselves, the form for decoding.
    """
    config = plan.config
    return 2 * linear_weights(plan) + config.num_hidden_layers * attention_flops(
        config, context, absorbed
    )


def train_flops(plan: Plan, context: float) -> Flops:
    """Operations of one token in training, nothing computed twice.

    Training the whole model, every product of the forward pass has two in the backward pass, and
    the prediction modules are trained along. Training a slice, frozen weights need no gradient:
    they only pass it on, and those below the first trained ones not even that. Tokens are taken to
    choose evenly among the resident experts. The products of adapters, about one in a hundred, are
    left out.

    Source: Kaplan et al. 2020 (arXiv 2001.08361) section 2.1 for the factor of two.
    """
    forward = forward_flops(plan, context)
    if plan.train_experts is None:
        forward += _prediction_flops(plan, context)
        return Flops(forward, 2 * forward)
    config = plan.config
    later = range(plan.lowest + 1, config.num_hidden_layers)
    passed_on = config.vocab_size * config.hidden_size
    passed_on += sum(layer_weights(plan, layer) for layer in later)
    if plan.are_adapted("attention"):
        passed_on += layer_weights(plan, plan.lowest)
    else:  # through the first layer's down projections only
        passed_on += _chosen_weights(plan) // 3
    trained = _chosen_weights(plan) * len(config.moe_layers) * _trained_share(plan)
    attention = 2 * len(later) * attention_flops(config, context)
    return Flops(forward, 2 * passed_on + 2 * trained + attention)


def attention_flops(config: ModelConfig, context: float, absorbed: bool = False) -> float:
    """Scores and weighted values of one token in one layer, without the projections.

    Source: DeepSeek-V2 (arXiv 2405.04434) section 2.1; appendix C for the absorbed form.
    """
    if absorbed and config.is_latent:
        width = 2 * (config.kv_lora_rank or 0) + config.rope_dim
    else:
        width = config.qk_head_dim + config.value_dim
    return 2 * config.num_attention_heads * width * context


def linear_weights(plan: Plan) -> int:
    """Weights that one token is multiplied with, head included."""
    config = plan.config
    layers = sum(layer_weights(plan, layer) for layer in range(config.num_hidden_layers))
    return layers + config.vocab_size * config.hidden_size


def layer_weights(plan: Plan, layer: int) -> int:
    """Weights of one layer that one token is multiplied with."""
    config = plan.config
    attention = plan.roles["attention"] // config.num_hidden_layers
    if not config.has_experts(layer):
        return attention + 3 * config.hidden_size * config.intermediate_size
    gate = 0 if config.topk_method == "hash" else config.experts * config.hidden_size
    shared = (config.n_shared_experts or 0) * _expert_weights(config)
    return attention + gate + shared + _chosen_weights(plan)


def _chosen_weights(plan: Plan) -> int:
    """Weights of the routed experts one token passes in a layer."""
    return (plan.config.num_experts_per_tok or 0) * _expert_weights(plan.config)


def _expert_weights(config: ModelConfig) -> int:
    return 3 * config.hidden_size * (config.moe_intermediate_size or 0)


def _trained_share(plan: Plan) -> float:
    """Share of a token's experts that are trained."""
    return plan.stacked / (plan.stacked + plan.beside)


def _prediction_flops(plan: Plan, context: float) -> float:
    """Operations of one token in all prediction modules, each with the head.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 2.2, eq. 21-23.
    """
    config = plan.config
    joined = 2 * config.hidden_size**2
    head = config.vocab_size * config.hidden_size
    per_module = 2 * (joined + layer_weights(plan, config.num_hidden_layers) + head)
    per_module += attention_flops(config, context)
    return config.num_nextn_predict_layers * per_module
