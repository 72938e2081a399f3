"""Bytes of the temporaries of a training step: what exists only while one operation works.

Each function lists what its operation holds at its worst moment, beside what was kept for it.
"""

from moesaic.config.model import ModelConfig
from moesaic.planner.params import Plan
from moesaic.planner.precision import Precision

CHUNK_LOGITS = 2**23
"""Logits of the loss that exist at a time, as in `kernels.cross_entropy`."""
SMALLEST_CHUNK = 256
"""Tokens in a chunk at least, however large the vocabulary is."""
ADDED_ROWS = 256
"""Rows of gradients are added in a multiple of this many, as in `kernels.grouped`."""
SUMMED = 2**25
"""Values of rows that are made before they are summed up for each token, as there; their columns
are a multiple of the number above."""
PIECE = 2**21
"""Weights that AdamW moves at a time on a GPU: operations on them outlast their start."""


def experts_working(
    plan: Plan, tokens: int, precision: Precision, below: bool, earlier: bool
) -> int:
    """The backward pass of a layer's experts, less what is not made yet of their gradients.

    Args:
        plan: the model, or the slice of it.
        tokens: in the pass.
        precision: bytes per value.
        below: whether a gradient is passed on to the layers below.
        earlier: whether the gradients are there from the pass before.
    """
    if plan.are_adapted("routed"):
        return _adapted_working(plan, tokens, precision)
    config, compute = plan.config, precision.compute
    hidden = tokens * config.hidden_size * compute
    chosen = (config.num_experts_per_tok or 0) * tokens * compute
    wide, inner = chosen * config.hidden_size, chosen * (config.moe_intermediate_size or 0)
    weights = _weights_of_down(plan)
    of_down = 0 if earlier else precision.gradients * weights
    of_gate_up, cast = 2 * of_down, 2 * compute * weights * _is_cast(plan, precision)
    is_direct = precision.gradients == compute and not earlier
    piece = (
        0 if is_direct else compute * _in_piece(2 * (config.moe_intermediate_size or 0), weights)
    )
    moments = [
        3 * inner + wide - of_gate_up,  # gate, activation and its gradient: down's own gradient
        5 * inner - of_gate_up,  # the same before the activation, of gate and up
        2 * inner + wide + piece,  # joined, and the input: their own gradient
    ]
    if below:
        moments.append(4 * inner + wide - of_gate_up - of_down)  # the gate values' gradient
        share = _summed_at_once(config, tokens)  # the input's gradient, row by row
        summed = hidden if share == 1 else round(hidden * (1 + share))
        moments.append(2 * inner + round(wide * share) + max(summed, round(cast * share)))
    shared = shared_width(config) if below else 0
    freed = (2 + (plan.train_experts is None)) * shared * tokens * compute
    return max(moments) + hidden * (1 + bool(shared)) - freed


def _adapted_working(plan: Plan, tokens: int, precision: Precision) -> int:
    """The same with adapters beside experts, in the order of `kernels.adapted`."""
    config, compute = plan.config, precision.compute
    hidden = tokens * config.hidden_size * compute
    chosen = (config.num_experts_per_tok or 0) * tokens * compute
    wide, inner = chosen * config.hidden_size, chosen * (config.moe_intermediate_size or 0)
    moments = (
        4 * inner + wide,  # gate, activation, its gradient with the share of the adapters
        5 * inner,  # gate and up before the activation, and their gradients
        2 * inner + 2 * wide,  # joined, the input, and the gradient that leads back
    )
    return max(moments) + hidden * (1 + bool(shared_width(config)))


def feed_forward_working(config: ModelConfig, tokens: int, compute: int) -> int:
    """The backward pass of a dense layer's feed-forward."""
    return tokens * compute * (3 * config.intermediate_size + 2 * config.hidden_size)


def loss_working(plan: Plan, tokens: int, precision: Precision) -> int:
    """A chunk of logits and their logarithms, both in float32; or, where the head is trained, their
    gradients and the product that is added to the head's, which is summed in float32."""
    vocabulary, compute = plan.config.vocab_size, precision.compute
    chunk = min(tokens, max(SMALLEST_CHUNK, CHUNK_LOGITS // vocabulary))
    logits = 2 * 4 * chunk * vocabulary
    if plan.train_experts is not None:
        return logits
    weights, modules = vocabulary * plan.config.hidden_size, plan.config.num_nextn_predict_layers
    adding = compute * (chunk * vocabulary + weights)
    return max(logits, adding) + (4 + modules * precision.gradients) * weights


def shared_width(config: ModelConfig) -> int:
    """Width of a layer's shared experts together."""
    return (config.n_shared_experts or 0) * (config.moe_intermediate_size or 0)


def optimizer_working(plan: Plan, precision: Precision, offload: bool) -> int:
    """AdamW on one piece of a tensor: nothing where weights, gradients and moments have one type.
    Else the root and float32 copies of what is not in float32; three more to write 8-bit moments;
    and where moments are offloaded those of three pieces."""
    if precision.weights == precision.gradients == precision.states and not offload:
        return 0
    piece = min(PIECE, _largest(plan))
    copies = 1 + (precision.gradients < 4) + (precision.weights < 4) + 2 * (precision.states != 4)
    copies += 3 * (precision.states < 2)
    carried = 3 * 2 * precision.states if offload else 0
    return round((4 * copies + carried) * piece)


def _largest(plan: Plan) -> int:
    """Weights of the largest tensor that is trained."""
    config, stacks = plan.config, 2 * _weights_of_down(plan)
    if plan.adapters is not None:
        return plan.adapters.lora.rank * max(config.intermediate_size, stacks // config.hidden_size)
    return stacks if plan.is_slice else max(stacks, config.vocab_size * config.hidden_size)


def _summed_at_once(config: ModelConfig, tokens: int) -> float:
    """Share of the hidden size that rows of all pairs have before they are summed up."""
    rows = max(1, tokens * (config.num_experts_per_tok or 0))
    columns = max(ADDED_ROWS, SUMMED // rows // ADDED_ROWS * ADDED_ROWS)
    return min(1, columns / config.hidden_size)


def _in_piece(rows: int, weights_of_down: int) -> int:
    """Weights of gate and up whose gradients are added in one go: a quarter, or some more."""
    width = -(-rows // (4 * ADDED_ROWS)) * ADDED_ROWS
    return round(2 * weights_of_down * min(1, width / rows))


def _weights_of_down(plan: Plan) -> int:
    """Trained weights of one layer's down projections; gate and up together have twice as many."""
    config = plan.config
    experts = plan.train_experts or config.experts
    return experts * config.hidden_size * (config.moe_intermediate_size or 0)


def _is_cast(plan: Plan, precision: Precision) -> bool:
    """Whether a layer's experts are cast for each product. Where experts are frozen beside them
    they lie together in the dtype of the products, see `planner.holding`."""
    return precision.weights != precision.compute and not plan.beside
