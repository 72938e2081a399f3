"""Counting parameters."""

import json
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import pytest

import moesaic
from moesaic.config.model import ModelConfig
from moesaic.config.presets import DEEPSEEK_MOE_2B_DENSE, DEEPSEEK_V2_LITE, PRESETS, TINY_V2
from moesaic.config.published import published_config
from moesaic.errors import CheckpointError, ConfigError
from moesaic.planner.inventory import tensors
from moesaic.planner.params import params, plan

Tiny = Callable[..., ModelConfig]


@pytest.mark.parametrize("name", PRESETS)
def test_counts_are_the_sums_of_the_inventory(name: str):
    size, specs = plan(name, train_experts=None), list(tensors(PRESETS[name]))
    main = [spec for spec in specs if (spec.layer or 0) < PRESETS[name].num_hidden_layers]
    assert size.total == sum(spec.size for spec in main)
    assert size.total_with_mtp == sum(spec.size for spec in specs)
    assert size.mtp_copies == sum(spec.size for spec in specs if spec.copy_of)
    for role, counted in size.roles.items():
        assert counted == sum(spec.size for spec in main if spec.role == role)


def test_layers_with_experts_may_alternate_with_dense_ones(tiny_config: Tiny):
    config = tiny_config("v2", num_hidden_layers=6, moe_layer_freq=2)
    size = params(config, train_experts=3)
    assert config.moe_layers == (2, 4)
    assert size.total == sum(spec.size for spec in tensors(config))
    assert size.trained == 2 * 3 * (3 * 16 * 8)


def test_a_slice_holds_backbone_shared_and_its_experts():
    size = plan("deepseek-v2-lite", train_experts=8, frozen_experts=4)
    assert size.held == size.backbone + size.shared + 12 * size.per_expert_slot
    assert size.trained == 8 * size.per_expert_slot
    assert size.held + size.parked == size.total


def test_the_whole_model_holds_and_trains_everything():
    size = plan("tiny-v3", train_experts=None)
    assert size.held == size.trained == size.total
    assert size.parked == 0


def test_a_model_may_be_a_preset_a_folder_a_file_or_a_configuration(tmp_path: Path):
    config_json = tmp_path / "config.json"
    config_json.write_text(json.dumps(published_config(TINY_V2, "float32")))
    sizes = [plan(model) for model in ("tiny-v2", TINY_V2, tmp_path, str(tmp_path), config_json)]
    assert {size.total for size in sizes} == {3_339_520}
    assert [size.name for size in sizes[:3]] == ["tiny-v2", "tiny", str(tmp_path)]


def test_the_public_name_is_the_same_function():
    assert moesaic.plan is plan


def test_an_unknown_model_gets_a_suggestion_and_the_list():
    with pytest.raises(ConfigError, match="neither a preset nor a folder; did you mean 'tiny-v3'"):
        plan("tiny-v33")
    with pytest.raises(ConfigError, match=r"the presets are tiny, tiny-v1, .*deepseek-v3$"):
        plan("llama")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        plan(tmp_path)


def test_a_dense_model_has_no_slice():
    with pytest.raises(ConfigError, match="is dense and has no experts to choose; use train_expe"):
        plan("deepseek-moe-2b-dense")
    size = params(DEEPSEEK_MOE_2B_DENSE, train_experts=None)
    assert size.backbone == size.total
    assert size.choices == 0


@pytest.mark.parametrize(
    ("train_experts", "frozen_experts", "message"),
    [
        (60, 8, "make 68 experts, a layer of deepseek-v2-lite has n_routed_experts=64; lower one"),
        (4, 1, "leave the router 5 experts, it chooses num_experts_per_tok=6; raise one of them"),
        (0, 8, "are no slice; train at least 1 expert"),
        (8, -1, "are no slice; train at least 1 expert"),
        (None, 8, "frozen_experts=8 has no meaning when the whole model is trained; give train_ex"),
    ],
)
def test_a_slice_that_cannot_be_trained_is_refused(
    train_experts: int | None, frozen_experts: int, message: str
):
    with pytest.raises(ConfigError, match=message):
        params(DEEPSEEK_V2_LITE, train_experts, frozen_experts, name="deepseek-v2-lite")


@pytest.mark.parametrize(("groups", "kept"), [(1, 1), (2, 1), (2, 2), (4, 2), (4, 3)])
def test_choices_are_the_sets_a_router_can_return(tiny_config: Tiny, groups: int, kept: int):
    config = tiny_config("v3", n_group=groups, topk_group=kept, num_experts_per_tok=2)
    size = 8 // groups
    sets = [
        chosen
        for chosen in combinations(range(8), 2)
        if len({expert // size for expert in chosen}) <= kept
    ]
    assert params(config, train_experts=2).choices == len(sets)


def test_a_tied_embedding_is_multiplied_with_as_the_head(tiny_config: Tiny):
    tied = params(tiny_config("v2", tie_word_embeddings=True), train_experts=3)
    free = params(tiny_config("v2"), train_experts=3)
    assert free.total - tied.total == 64 * 16
    assert free.activated == tied.activated
