from collections.abc import Callable
from typing import Any

import pytest

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError

Build = Callable[..., ModelConfig]

DENSE: dict[str, Any] = {
    "n_routed_experts": None,
    "n_shared_experts": None,
    "num_experts_per_tok": None,
    "moe_intermediate_size": None,
}
WITHOUT_LATENT: dict[str, Any] = {
    "kv_lora_rank": None,
    "q_lora_rank": None,
    "qk_nope_head_dim": None,
    "qk_rope_head_dim": None,
    "v_head_dim": None,
}


@pytest.mark.parametrize(
    ("family", "changes", "message"),
    [
        (
            "v1",
            {"q_lora_rank": 8},
            "q_lora_rank=8 has no meaning without kv_lora_rank; set kv_lora_rank, or leave both "
            "out for multi-head attention",
        ),
        ("v1", {"v_head_dim": 8}, "v_head_dim=8 has no meaning without kv_lora_rank"),
        (
            "v1",
            {"num_attention_heads": 3},
            "hidden_size=16 is not a multiple of num_attention_heads=3; change one of them",
        ),
        (
            "v1",
            {"num_attention_heads": 4, "num_key_value_heads": 3},
            "num_attention_heads=4 is not a multiple of num_key_value_heads=3; change one of them",
        ),
        (
            "v1",
            {"num_attention_heads": 16},
            "hidden_size / num_attention_heads=1 is odd; rotary position turns pairs, make it even",
        ),
        ("v2", {"qk_rope_head_dim": 3}, "qk_rope_head_dim=3 is odd; rotary position turns pairs"),
        (
            "v2",
            {"v_head_dim": None},
            "kv_lora_rank=8 needs v_head_dim; give it a width",
        ),
        (
            "v2",
            {"num_key_value_heads": 1},
            "num_key_value_heads=1 contradicts kv_lora_rank: latent attention has as many as "
            "num_attention_heads=2",
        ),
        (
            "v1",
            {**DENSE, "n_shared_experts": 2},
            "n_shared_experts=2 has no meaning without n_routed_experts; set n_routed_experts, or "
            "leave both out for a dense model",
        ),
        ("v1", {"num_experts_per_tok": None}, "n_routed_experts=8 needs num_experts_per_tok"),
        ("v1", {"moe_intermediate_size": None}, "n_routed_experts=8 needs moe_intermediate_size"),
        (
            "v1",
            {"num_experts_per_tok": 9},
            "num_experts_per_tok=9 is more than n_routed_experts=8; lower num_experts_per_tok",
        ),
        (
            "v1",
            {"topk_method": "hash", "num_experts_per_tok": 2},
            "num_experts_per_tok=2 contradicts topk_method='hash', which sends every token to one "
            "expert; set num_experts_per_tok to 1",
        ),
        (
            "v3",
            {"scoring_func": "softmax"},
            "scoring_func='softmax' contradicts topk_method='noaux_tc', whose choice bias is "
            "defined on sigmoid scores; set scoring_func to 'sigmoid'",
        ),
        (
            "v2",
            {"topk_method": "greedy"},
            "n_group=4 has no effect with topk_method='greedy'; set topk_method to "
            "'group_limited_greedy', or n_group to 1",
        ),
        (
            "v3",
            {"n_group": 3},
            "n_routed_experts=8 is not a multiple of n_group=3; change one of them",
        ),
        ("v3", {"topk_group": 5}, "topk_group=5 is more than n_group=4; lower topk_group"),
        (
            "v3",
            {"topk_group": 1},
            "topk_group=1 groups of 2 experts hold fewer than num_experts_per_tok=3; raise "
            "topk_group or lower num_experts_per_tok",
        ),
        (
            "v2",
            {"num_nextn_predict_layers": 1},
            "num_nextn_predict_layers=1 needs model_type='deepseek_v3', this is 'deepseek_v2'; "
            "set it to 0",
        ),
        (
            "v3",
            {"bos_token_id": 64},
            "bos_token_id=64 is outside the vocabulary; vocab_size=64 allows ids below it",
        ),
        ("v3", {"eos_token_id": (1, 70)}, "eos_token_id=70 is outside the vocabulary"),
        ("v3", {"pad_token_id": 99}, "pad_token_id=99 is outside the vocabulary"),
        ("v3", {"hidden_size": 0}, "hidden_size=0 is not allowed; it should be greater than 0"),
        ("v3", {"n_routed_experts": -1}, "n_routed_experts=-1 is not allowed"),
        ("v3", {"model_type": "deepseek_v4"}, "did you mean 'deepseek_v3'?"),
    ],
)
def test_a_contradiction_names_the_settings_and_the_fix(
    tiny_config: Build, family: str, changes: dict[str, Any], message: str
):
    with pytest.raises(ConfigError) as caught:
        tiny_config(family, **changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_model_without_experts_is_dense_throughout(tiny_config: Build, family: str):
    config = tiny_config(family, **DENSE, n_group=None, topk_group=None)
    assert config.experts == 0
    assert config.moe_layers == ()


def test_what_a_file_leaves_out_is_what_its_familys_code_assumes(tiny_config: Build):
    v1, v3 = tiny_config("v1"), tiny_config("v3")
    assert (v1.scoring_func, v1.topk_method, v1.norm_topk_prob) == ("softmax", "greedy", False)
    assert (v3.scoring_func, v3.topk_method, v3.norm_topk_prob) == ("sigmoid", "noaux_tc", True)
    assert (v1.routed_scaling_factor, v3.routed_scaling_factor) == (1.0, 2.5)
    assert (v1.rope_interleave, v3.rope_interleave) == (False, True)


def test_a_familys_assumption_can_be_overruled(tiny_config: Build):
    assert tiny_config("v1", norm_topk_prob=True).norm_topk_prob
    assert tiny_config("v3", routed_scaling_factor=1.0).routed_scaling_factor == 1.0


def test_there_are_as_many_key_value_heads_as_heads_unless_said(tiny_config: Build):
    assert tiny_config("v1").num_key_value_heads == 2
    assert tiny_config("v1", num_key_value_heads=1).num_key_value_heads == 1


def test_widths_per_head_with_latent_attention(tiny_config: Build):
    config = tiny_config("v2")
    assert (config.qk_head_dim, config.rope_dim, config.value_dim) == (12, 4, 8)


def test_widths_per_head_with_multi_head_attention(tiny_config: Build):
    config = tiny_config("v1")
    assert not config.is_latent
    assert (config.qk_head_dim, config.rope_dim, config.value_dim) == (8, 8, 8)


def test_the_later_families_may_have_multi_head_attention(tiny_config: Build):
    assert not tiny_config("v2", **WITHOUT_LATENT).is_latent


def test_the_first_layers_are_dense_and_then_every_nth_has_experts(tiny_config: Build):
    config = tiny_config("v3", num_hidden_layers=8, first_k_dense_replace=3, moe_layer_freq=2)
    assert config.moe_layers == (4, 6)


def test_prediction_modules_have_experts_wherever_they_fall(tiny_config: Build):
    config = tiny_config("v3", num_hidden_layers=3, moe_layer_freq=2)
    assert config.has_experts(3)
    assert 3 not in config.moe_layers


def test_groups_count_only_where_the_choice_is_limited_to_them(tiny_config: Build):
    assert tiny_config("v3").groups == 4
    assert tiny_config("v1", n_group=1, topk_group=1).groups == 1
    assert tiny_config("v2", topk_method="greedy", n_group=4, topk_group=4).groups == 1


def test_one_end_token_or_several(tiny_config: Build):
    assert tiny_config("v1").eos_token_ids == (1,)
    assert tiny_config("v1", eos_token_id=[1, 5]).eos_token_ids == (1, 5)
    assert tiny_config("v1", eos_token_id=None).eos_token_ids == ()


def test_equal_configurations_have_equal_hashes(tiny_config: Build):
    assert hash(tiny_config("v3")) == hash(tiny_config("v3"))


def test_a_configuration_needs_its_sizes():
    with pytest.raises(ConfigError, match="hidden_size is missing; give it a value"):
        ModelConfig.parse({"model_type": "deepseek", "vocab_size": 64})
