"""Counting operations."""

import pytest

from moesaic.config.presets import (
    DEEPSEEK_MOE_2B_DENSE,
    DEEPSEEK_MOE_2B_HASH,
    DEEPSEEK_V2,
    DEEPSEEK_V2_LITE,
    PRESETS,
    TINY_V1,
    TINY_V2,
    TINY_V3,
)
from moesaic.planner.flops import (
    attention_flops,
    forward_flops,
    linear_weights,
    mean_context,
    train_flops,
)
from moesaic.planner.params import params, plan

WHOLE = params(DEEPSEEK_V2_LITE, train_experts=None)
CONTEXT = mean_context(4096)


@pytest.mark.parametrize("name", PRESETS)
def test_a_token_is_multiplied_with_what_is_activated_but_norms_and_biases(name: str):
    size = plan(name, train_experts=None)
    biases = 0
    if size.config.topk_method == "noaux_tc":
        biases = len(size.config.moe_layers) * size.config.experts
    assert linear_weights(size) == size.activated - size.roles["norm"] - biases


def test_a_forward_pass_is_two_operations_per_weight_and_attention():
    without_context = forward_flops(WHOLE, context=0)
    assert without_context == 2 * linear_weights(WHOLE)
    assert forward_flops(WHOLE, 100) - without_context == 27 * 2 * 16 * (192 + 128) * 100


def test_absorbed_attention_works_on_the_latents():
    assert attention_flops(DEEPSEEK_V2, 1, absorbed=True) == 2 * 128 * (512 + 64 + 512)
    assert attention_flops(DEEPSEEK_V2, 1) == 2 * 128 * (128 + 64 + 128)


def test_multi_head_attention_has_no_absorbed_form():
    assert attention_flops(TINY_V1, 7, absorbed=True) == attention_flops(TINY_V1, 7)


def test_a_causal_sequence_sees_half_of_itself():
    for length in (1, 2, 7, 100):
        assert mean_context(length) == sum(range(1, length + 1)) / length


def test_training_the_whole_model_takes_three_forward_passes():
    work = train_flops(WHOLE, CONTEXT)
    assert work.total == 3 * work.forward == 3 * forward_flops(WHOLE, CONTEXT)


def test_frozen_weights_save_their_gradient_and_the_layers_below_save_all():
    size = params(DEEPSEEK_V2_LITE, train_experts=8)
    work, whole = train_flops(size, CONTEXT), train_flops(WHOLE, CONTEXT)
    chosen = 6 * 8_650_752  # weights of one layer's chosen experts
    attention = attention_flops(DEEPSEEK_V2_LITE, CONTEXT)
    bottom = 13_762_560 + 67_239_936  # attention and feed-forward of the dense layer
    first = 13_762_560 + 64 * 2048 + 2 * 8_650_752 + chosen * 2 // 3  # all but down projections
    not_passed_on = 2 * (bottom + first) + 2 * 2 * attention
    no_weight_gradient = 2 * (linear_weights(WHOLE) - 26 * chosen)
    assert work.forward == whole.forward
    assert whole.backward - work.backward == not_passed_on + no_weight_gradient


def test_more_frozen_experts_leave_less_to_train():
    backward = [
        train_flops(params(DEEPSEEK_V2_LITE, 8, frozen), CONTEXT).backward for frozen in (0, 16, 56)
    ]
    assert backward == sorted(backward, reverse=True)
    experts = 26 * 6 * 8_650_752
    assert backward[0] - backward[1] == pytest.approx(2 * experts * (1 - 8 / 24))


def test_prediction_modules_are_trained_along_with_the_whole_model():
    with_module = params(TINY_V3, train_experts=None)
    without = params(TINY_V3.changed(num_nextn_predict_layers=0), train_experts=None)
    extra = train_flops(with_module, 10).forward - train_flops(without, 10).forward
    layer = (linear_weights(without) - 2048 * 128 - 3 * 128 * 352 - 184_320 // 4) // 3
    head_and_join = 2048 * 128 + 2 * 128**2
    assert extra == 2 * (layer + head_and_join) + attention_flops(TINY_V3, 10)
    assert train_flops(params(TINY_V3, 8), 10) == train_flops(params(without.config, 8), 10)


def test_a_hash_router_multiplies_nothing():
    hashed = params(DEEPSEEK_MOE_2B_HASH, train_experts=None)
    dense = params(DEEPSEEK_MOE_2B_DENSE, train_experts=None)
    assert linear_weights(hashed) == linear_weights(dense)


def test_a_v1_model_trains_like_a_v2_model():
    for config in (TINY_V1, TINY_V2):
        work = train_flops(params(config, train_experts=8), 10)
        assert 0 < work.backward < 2 * work.forward
