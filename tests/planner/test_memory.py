"""Bytes to train and to serve."""

import pytest

from moesaic.config.presets import DEEPSEEK_MOE_16B, DEEPSEEK_V2_LITE, DEEPSEEK_V3, TINY_V3
from moesaic.planner.memory import (
    PRECISIONS,
    PrecisionName,
    cache_values,
    serve_memory,
    train_memory,
)
from moesaic.planner.params import params

SLICE = params(DEEPSEEK_V2_LITE, train_experts=8, frozen_experts=16)


@pytest.mark.parametrize(
    ("precision", "held", "trained"),
    [
        ("bfloat16", 2, 2 + 4),
        ("bfloat16-float32-states", 2, 2 + 8),
        ("mixed", 4, 4 + 8),
        ("float32", 4, 4 + 8),
    ],
)
def test_held_weights_cost_their_dtype_and_trained_ones_gradient_and_two_moments(
    precision: PrecisionName, held: int, trained: int
):
    memory = train_memory(SLICE, PRECISIONS[precision])
    assert memory.states == held * SLICE.held + trained * SLICE.trained
    assert memory.total == memory.states + memory.activations.total


def test_the_whole_model_trains_its_prediction_modules_and_a_slice_leaves_them_out():
    whole, part = params(TINY_V3, train_experts=None), params(TINY_V3, train_experts=8)
    assert train_memory(whole).weights == 2 * (whole.total + whole.mtp - whole.mtp_copies)
    assert train_memory(part).weights == 2 * part.held


def test_recomputing_leaves_the_states_alone():
    kept, recomputed = train_memory(SLICE), train_memory(SLICE, recompute=True)
    assert recomputed.states == kept.states
    assert recomputed.total < kept.total


def test_a_batch_of_two_keeps_as_much_as_a_sequence_twice_as_long():
    rows, length = (train_memory(SLICE, batch=2), train_memory(SLICE, sequence=8192))
    assert rows.activations.kept == length.activations.kept


def test_multi_head_attention_caches_keys_and_values():
    assert cache_values(DEEPSEEK_MOE_16B) == 2 * 16 * 128


def test_float8_halves_the_linear_layers_and_adds_a_scale_per_block():
    size = params(DEEPSEEK_V3, train_experts=None)
    wide = serve_memory(size, "bfloat16", cached_tokens=0)
    narrow = serve_memory(size, "float8", cached_tokens=0)
    blocks = size.total - sum(size.roles[role] for role in ("embedding", "head", "router", "norm"))
    assert wide.weights - narrow.weights == blocks - 4 * blocks // 128**2


def test_the_convention_can_be_printed():
    assert str(PRECISIONS["mixed"]) == (
        "4 B a weight, 4 B a gradient, AdamW with two moments of 4 B, activations of 2 B"
    )
