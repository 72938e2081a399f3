"""What the DeepSeekMoE report (arXiv 2401.06066) prints, computed from the configurations."""

import pytest

from moesaic.config import presets
from moesaic.config.model import ModelConfig
from moesaic.planner.flops import forward_flops, linear_weights
from moesaic.planner.params import Plan, params


def whole(config: ModelConfig) -> Plan:
    return params(config, train_experts=None)


def billions(value: float, digits: int = 1) -> float:
    return round(value / 1e9, digits)


def test_the_16b_model_has_the_size_of_its_checkpoint():
    size = whole(presets.DEEPSEEK_MOE_16B)
    assert size.total == 16_375_728_128  # printed 16.4 B


def test_the_print_of_2_8_b_activated_counts_the_embedding():
    # The V3 repository leaves it out, and so do we: one row of it is read.
    size = whole(presets.DEEPSEEK_MOE_16B)
    assert size.activated == 2_618_935_296
    assert billions(size.activated + size.roles["embedding"]) == 2.8


@pytest.mark.parametrize(
    ("config", "total", "activated"),
    [
        (presets.DEEPSEEK_MOE_2B_DENSE, 0.2, 0.2),
        (presets.DEEPSEEK_MOE_2B_HASH, 2.0, 0.2),
        (presets.DEEPSEEK_MOE_2B_SWITCH, 2.0, 0.2),
        (presets.DEEPSEEK_MOE_2B_GSHARD, 2.0, 0.3),
        (presets.DEEPSEEK_MOE_2B, 2.0, 0.3),
    ],
)
def test_the_validation_models_have_the_sizes_of_table_1(
    config: ModelConfig, total: float, activated: float
):
    size = whole(config)
    assert (billions(size.total), billions(size.activated)) == (total, activated)


def test_the_experts_of_the_2b_model_have_the_sizes_of_table_2():
    size = whole(presets.DEEPSEEK_MOE_2B)
    chosen = size.shared + 7 * size.per_expert_slot
    assert billions(size.shared + size.routed, 2) == 1.89
    assert billions(chosen, 2) == 0.24


def test_all_validation_models_have_equal_experts():
    fine, switch = whole(presets.DEEPSEEK_MOE_2B), whole(presets.DEEPSEEK_MOE_2B_SWITCH)
    dense, gshard = whole(presets.DEEPSEEK_MOE_2B_DENSE), whole(presets.DEEPSEEK_MOE_2B_GSHARD)
    assert fine.shared + fine.routed == switch.routed == gshard.routed == 16 * dense.roles["dense"]
    assert fine.shared + 7 * fine.per_expert_slot == 2 * gshard.per_expert_slot


def test_the_quarter_expert_suits_grouped_matmuls_in_bfloat16():
    # rows of a multiple of 16 bytes
    assert presets.DEEPSEEK_MOE_2B.moe_intermediate_size == 3424 // 4
    assert 3424 // 4 % 8 == 0


@pytest.mark.parametrize(
    ("config", "printed"),
    [
        (presets.DEEPSEEK_MOE_2B_DENSE, 2.9),
        (presets.DEEPSEEK_MOE_2B_HASH, 2.9),
        (presets.DEEPSEEK_MOE_2B_SWITCH, 2.9),
        (presets.DEEPSEEK_MOE_2B_GSHARD, 4.3),
    ],
)
def test_training_on_2k_tokens_takes_the_work_of_table_1(config: ModelConfig, printed: float):
    # The print counts forward and backward, the head, and the masked half of attention.
    work = 3 * 2048 * forward_flops(whole(config), context=2048)
    assert round(work / 1e12, 1) == printed


def test_the_print_of_4_3_t_leaves_the_gates_out():
    size = whole(presets.DEEPSEEK_MOE_2B)
    work = 3 * 2048 * forward_flops(size, context=2048)
    gates = 3 * 2048 * 2 * size.roles["router"]
    assert work / 1e12 == pytest.approx(4.3505, abs=1e-4)
    assert round((work - gates) / 1e12, 1) == 4.3


def test_seven_of_63_experts_make_half_a_billion_choices():
    assert whole(presets.DEEPSEEK_MOE_2B).choices == 553_270_671


def test_finer_experts_make_more_choices():
    # section 3.1: C(16, 2) = 120 against C(64, 8) = 4,426,165,368
    coarse = presets.DEEPSEEK_MOE_2B_GSHARD
    fine = coarse.changed(
        n_routed_experts=64, num_experts_per_tok=8, moe_intermediate_size=3424 // 4
    )
    assert whole(coarse).choices == 120
    assert whole(fine).choices == 4_426_165_368
    # as many weights per token, but for the 48 further rows of each of the 9 gates
    assert linear_weights(whole(fine)) - linear_weights(whole(coarse)) == 9 * 48 * 1280
