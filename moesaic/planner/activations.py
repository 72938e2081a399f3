"""Bytes of activations in a training step of this implementation.

One list of what each operation keeps for the backward pass; a test holds it to what autograd keeps.
Attention is counted in the fused form of a GPU; the blockwise form of a CPU keeps less, while the
experts there keep some padding, which is not counted. Nor is the visibility mask of packed
documents, one byte for each pair of positions.
"""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.planner.params import Plan

CHUNK_LOGITS = 2**20
"""Logits of the loss that exist at a time, as in `kernels.cross_entropy`."""
SMALLEST_CHUNK = 256
"""Tokens in a chunk at least, however large the vocabulary is."""


@dataclass(frozen=True, slots=True)
class Activations:
    """Bytes beside weights, gradients and optimizer at the peak of a step."""

    kept: int
    """What the layers keep for the backward pass."""
    casts: int
    """Weights kept in the dtype of the products, where that is not their own."""
    working: int
    """The largest temporary: a chunk of logits, or the rows of one layer's experts."""

    @property
    def total(self) -> int:
        """All of them: the temporary falls in the time when everything else is kept."""
        return self.kept + self.casts + self.working


def activations(
    plan: Plan, tokens: int, compute: int, weights: int, recompute: bool
) -> Activations:
    """Activations of one pass over ``tokens`` tokens.

    Args:
        plan: the model, or the slice of it.
        tokens: in the pass.
        compute: bytes of an activation.
        weights: bytes of a weight.
        recompute: keep only the layers' inputs, and the rest of one layer at a time.
    """
    config, whole = plan.config, plan.train_experts is None
    first = 0 if whole else config.moe_layers[0]
    layers = range(first, config.num_hidden_layers)
    kept = [_layer(config, layer, compute, whole, layer > first or whole) for layer in layers]
    casts = [_casts(plan, layer, compute, weights) for layer in layers if layer > first or whole]
    per_token, cast = sum(kept), sum(casts)
    if recompute:
        per_token = len(layers) * config.hidden_size * compute + max(kept)
        cast = max(casts, default=0)
    per_token += _norm(config.hidden_size, compute) + config.hidden_size * compute
    if compute == 4:
        per_token += 4 * config.rope_dim  # cosines and sines, shared by all layers
    if whole:
        modules, joined = config.num_nextn_predict_layers, 2 * config.hidden_size**2
        per_token += modules * _prediction(config, compute)
        cast += modules * _casts(plan, config.num_hidden_layers, compute, weights, joined)
    working = max(_loss(plan, tokens, compute, weights), _rows(plan, tokens, compute, weights))
    return Activations(tokens * per_token, cast, working)


def _layer(config: ModelConfig, layer: int, compute: int, whole: bool, below: bool) -> int:
    """Bytes per token that one layer keeps.

    Args:
        whole: whether all weights are trained: then the inputs of the linear layers are kept too.
        below: whether anything below this layer is trained: else only its experts keep anything.
    """
    width = config.hidden_size
    normed = width * compute
    if not config.has_experts(layer):
        dense = _feed_forward(config.intermediate_size, compute, whole)
        return _attention(config, compute, whole) + _norm(width, compute) + normed * whole + dense
    if not below:
        return normed + _experts(config, compute)
    shared = (config.n_shared_experts or 0) * (config.moe_intermediate_size or 0)
    return (
        _attention(config, compute, whole)
        + _norm(width, compute)
        + normed
        + _router(config, compute, whole)
        + _experts(config, compute)
        + _feed_forward(shared, compute, whole)
    )


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


def _router(config: ModelConfig, compute: int, whole: bool) -> int:
    """Scores and chosen ids; its float32 input where it is trained and not float32 already."""
    chosen = config.num_experts_per_tok or 0
    if config.topk_method == "hash":
        return 0
    scores = 4 * config.experts + 8 * chosen
    normalised = 4 * (chosen + 1) if config.norm_topk_prob else 0
    wide = 4 * config.hidden_size if whole and compute < 4 else 0
    return scores + normalised + wide


def _experts(config: ModelConfig, compute: int) -> int:
    """Gate and up of every chosen expert, its gate value, and where its rows lie."""
    chosen = config.num_experts_per_tok or 0
    return chosen * (2 * (config.moe_intermediate_size or 0) * compute + 4 + 16)


def _prediction(config: ModelConfig, compute: int) -> int:
    """One prediction module: three norms, the joined input, its layer, and the loss's gradient."""
    width = config.hidden_size
    layer = _layer(config, config.num_hidden_layers, compute, whole=True, below=True)
    return 3 * _norm(width, compute) + 2 * width * compute + layer + width * compute


def _casts(plan: Plan, layer: int, compute: int, weights: int, further: int = 0) -> int:
    """Copies of one layer's weights that the backward pass needs, the experts' not among them."""
    config = plan.config
    total = 0
    if config.has_experts(layer) and config.topk_method != "hash" and weights < 4:
        total += 4 * config.experts * config.hidden_size
    if weights != compute:
        inner = config.intermediate_size
        if config.has_experts(layer):
            inner = (config.n_shared_experts or 0) * (config.moe_intermediate_size or 0)
        attention = plan.roles["attention"] // config.num_hidden_layers
        total += compute * (attention + 3 * config.hidden_size * inner + further)
    return total


def _loss(plan: Plan, tokens: int, compute: int, weights: int) -> int:
    """A chunk of logits and of their logarithms, then gradients, all float32; the gradients in the
    dtype of the products; and the head's float32 gradient before it is cast."""
    vocabulary = plan.config.vocab_size
    chunk = min(tokens, max(SMALLEST_CHUNK, CHUNK_LOGITS // vocabulary))
    logits = chunk * vocabulary * (8 if compute == 4 else 8 + compute)
    head = 4 * vocabulary * plan.config.hidden_size
    return logits + (head if plan.train_experts is None and weights < 4 else 0)


def _rows(plan: Plan, tokens: int, compute: int, weights: int) -> int:
    """The backward pass of one layer's experts: two rows of the hidden size and four of theirs for
    each chosen expert, and the stacks in the dtype of the products."""
    config = plan.config
    inner, width = config.moe_intermediate_size or 0, config.hidden_size
    rows = tokens * (config.num_experts_per_tok or 0) * (2 * width + 4 * inner) * compute
    resident = config.experts
    if plan.train_experts is not None:
        resident = plan.train_experts + plan.frozen_experts
    stacks = 3 * resident * width * inner * compute if weights != compute else 0
    return rows + stacks
