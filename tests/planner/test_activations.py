"""The planner's list of activations against what autograd keeps."""

import pytest
import torch
from models import random_ids, random_model

from moesaic.config.model import ModelConfig
from moesaic.config.presets import (
    DEEPSEEK_MOE_2B_GSHARD,
    DEEPSEEK_V2_LITE,
    PRESETS,
    TINY_V1,
    TINY_V2,
    TINY_V3,
)
from moesaic.kernels import cross_entropy, grouped, layout
from moesaic.kernels.attention import fused
from moesaic.model.residency import Residency
from moesaic.model.trace import RoutingTrace
from moesaic.planner import working
from moesaic.planner.activations import activations, fused_attention
from moesaic.planner.params import params
from moesaic.planner.precision import PRECISIONS, Precision

ROWS, LENGTH = 2, 128
TOKENS = ROWS * LENGTH
GSHARD = DEEPSEEK_MOE_2B_GSHARD.changed(
    hidden_size=64,
    num_attention_heads=2,
    num_key_value_heads=2,
    intermediate_size=32,
    moe_intermediate_size=32,
    num_hidden_layers=3,
)
BYTES = {"float32": 4, "bfloat16": 2}
BFLOAT16 = PRECISIONS["bfloat16"]


def precision_of(weights: str, compute: str) -> Precision:
    """All weights in one type, also those that are not trained."""
    held = BYTES[weights]
    return Precision(held, held, held, BYTES[compute], held)


def kept_by_autograd(
    config: ModelConfig, train_experts: int | None, weights: str, compute: str, recompute: bool
) -> float:
    """Bytes that one loss keeps for its backward pass, beside weights. Padding is not counted."""
    residency = None
    if train_experts is not None:
        residency = Residency.only({layer: range(train_experts) for layer in config.moe_layers})
    model = random_model(
        config, dtype=weights, compute_dtype=compute, residency=residency, recompute=recompute
    )
    if train_experts is not None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".experts." in name)
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}
    pairs = TOKENS * (config.num_experts_per_tok or 0)

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in known:
            kept.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids_BS = random_ids(config, ROWS, LENGTH)
    positions_BS = torch.arange(LENGTH).expand(ROWS, LENGTH)
    trace = RoutingTrace()
    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        model.loss(ids_BS, ids_BS, positions_BS, trace=trace)
    for routing in trace.layers.values():
        remember(routing.scores_TE)
        remember(routing.ids_TK)
    total = 0.0
    for tensor in kept.values():
        padded = tensor.shape[0] / pairs if tensor.ndim == 2 and tensor.shape[0] > pairs else 1
        total += tensor.untyped_storage().nbytes() / padded
    return total


def unseen(config: ModelConfig, compute: int, train_experts: int | None) -> int:
    """Bytes the formula counts and autograd's hooks on a CPU do not see: where the rows of the
    experts lie (two int64 a pair); the gradient of the hidden states that each loss computes; and
    what the fused attention keeps more than the blockwise one does."""
    further = config.num_nextn_predict_layers
    pairs = TOKENS * (config.num_experts_per_tok or 0) * (len(config.moe_layers) + further)
    losses = (1 + further) * TOKENS * config.hidden_size * compute
    heads, value = config.num_attention_heads, config.value_dim
    blockwise = heads * (2 * config.qk_head_dim + value) * compute
    if train_experts is None and not config.is_latent:
        blockwise += heads * value * compute  # the output, which the fused form has kept already
    first = 0 if train_experts is None else config.moe_layers[0] + 1
    layers = config.num_hidden_layers + further - first
    return pairs * 16 + losses + layers * TOKENS * (fused_attention(config, compute) - blockwise)


@pytest.mark.parametrize("train_experts", [None, 8])
@pytest.mark.parametrize(
    ("weights", "compute"),
    [("float32", "float32"), ("bfloat16", "bfloat16"), ("float32", "bfloat16")],
)
@pytest.mark.parametrize("config", [TINY_V1, TINY_V2, TINY_V3, GSHARD])
def test_the_formula_counts_what_autograd_keeps(
    config: ModelConfig, weights: str, compute: str, train_experts: int | None
):
    if train_experts is not None:  # a slice is trained without prediction modules
        config = config.changed(num_nextn_predict_layers=0)
    size = params(config, train_experts)
    counted = activations(size, TOKENS, precision_of(weights, compute), recompute=False)
    seen = kept_by_autograd(config, train_experts, weights, compute, recompute=False)
    seen += unseen(config, BYTES[compute], train_experts)
    assert counted.kept + counted.casts == pytest.approx(seen, rel=0.01)


@pytest.mark.parametrize("config", [TINY_V1, TINY_V2])
def test_the_formula_counts_what_fused_attention_keeps(config: ModelConfig):
    heads, width = config.num_attention_heads, config.qk_head_dim
    shape = (ROWS, heads, LENGTH)
    q, k = (torch.zeros(*shape, width, requires_grad=True) for _ in range(2))
    v = torch.zeros(*shape, config.value_dim, requires_grad=True)
    kept: dict[int, int] = {}

    def remember(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        fused(q, k, v, 1.0, None)
    assert sum(kept.values()) == TOKENS * fused_attention(config, compute=4)


def test_recomputing_keeps_one_layer_and_the_inputs_of_all():
    size = params(TINY_V2, train_experts=None)
    counted = activations(size, TOKENS, PRECISIONS["float32"], recompute=True)
    seen = kept_by_autograd(TINY_V2, None, "float32", "float32", recompute=True)
    one_layer = counted.kept - seen - TOKENS * TINY_V2.hidden_size * 4
    everything = activations(size, TOKENS, PRECISIONS["float32"], recompute=False).kept
    assert everything / 4 < one_layer < everything / 3  # the first, dense layer keeps the most


def test_the_chunks_of_the_loss_are_those_of_the_kernel():
    assert cross_entropy._CHUNK_LOGITS == working.CHUNK_LOGITS
    assert cross_entropy._SMALLEST_CHUNK == working.SMALLEST_CHUNK


def test_what_is_added_at_a_time_is_as_in_the_kernels():
    assert layout._COLUMNS == working.ADDED_ROWS
    assert grouped._SUMMED == working.SUMMED


@pytest.mark.parametrize("name", ["deepseek-v2-lite", "deepseek-v2", "deepseek-v3"])
@pytest.mark.parametrize("train_experts", [None, 8])
def test_activations_grow_with_tokens_and_shrink_with_recomputation(
    name: str, train_experts: int | None
):
    size = params(PRESETS[name], train_experts)
    short, long = (activations(size, tokens, BFLOAT16, recompute=False) for tokens in (4096, 8192))
    assert long.kept == 2 * short.kept
    assert long.casts == short.casts
    assert activations(size, 4096, BFLOAT16, recompute=True).kept < short.kept / 5


def test_a_slice_keeps_less_than_the_whole_model():
    whole = activations(params(DEEPSEEK_V2_LITE, None), 4096, BFLOAT16, recompute=False)
    part = activations(params(DEEPSEEK_V2_LITE, 8), 4096, BFLOAT16, recompute=False)
    assert part.kept < whole.kept
    assert part.total < whole.total
