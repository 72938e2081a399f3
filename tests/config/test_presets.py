"""The presets against what is published."""

import json
from pathlib import Path

import pytest

from moesaic.config import presets
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.config.presets import PRESETS, find_model, get_preset
from moesaic.config.published import parse_config, published_config, read_config
from moesaic.errors import ConfigError

PUBLISHED = Path(__file__).parent / "published"
SIZES = {
    "tiny": (128, 32, 352, 4, 4, 32, 32, 16, 2048),
    "small": (256, 88, 1408, 6, 4, 64, 64, 32, 8192),
    "mid": (512, 176, 2752, 8, 8, 128, 64, 32, 16384),
}
"""Hidden size, expert and dense width, layers, heads, latent, both query-key widths, vocabulary."""


@pytest.mark.parametrize(
    "name", ["deepseek-moe-16b", "deepseek-v2-lite", "deepseek-v2", "deepseek-v3"]
)
def test_a_published_model_is_what_its_config_json_says(name: str):
    assert read_config(PUBLISHED / f"{name.replace('-', '_')}.json") == PRESETS[name]


def test_v3_is_published_in_blocks_of_float8():
    blocks = presets.DEEPSEEK_V3.quantization_config
    assert isinstance(blocks, Fp8Blocks)
    assert blocks.weight_block_size == (128, 128)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_survives_its_config_json(name: str):
    config = PRESETS[name]
    published = json.loads(json.dumps(published_config(config, "bfloat16")))
    if config.is_latent and config.n_group is None:
        config = config.changed(n_group=1, topk_group=1)  # as published
    assert parse_config(published) == config


def test_the_2b_baselines_differ_from_it_in_their_experts_only():
    fine = presets.DEEPSEEK_MOE_2B
    changed = {
        name: {key for key, value in PRESETS[name] if value != getattr(fine, key)}
        for name in PRESETS
        if name.startswith("deepseek-moe-2b-")
    }
    experts = {"n_routed_experts", "n_shared_experts", "num_experts_per_tok"}
    experts |= {"moe_intermediate_size"}
    assert changed == {
        "deepseek-moe-2b-dense": experts,
        "deepseek-moe-2b-hash": experts | {"topk_method"},
        "deepseek-moe-2b-switch": experts,
        "deepseek-moe-2b-gshard": experts | {"norm_topk_prob"},
    }


def test_the_baselines_choose_one_or_two_of_sixteen():
    names = ("hash", "switch", "gshard")
    chosen = {name: PRESETS[f"deepseek-moe-2b-{name}"].num_experts_per_tok for name in names}
    assert chosen == {"hash": 1, "switch": 1, "gshard": 2}
    assert {PRESETS[f"deepseek-moe-2b-{name}"].n_routed_experts for name in names} == {16}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_the_small_models_have_v2_lites_proportions(size: str, version: str):
    config = PRESETS[f"{size}-{version}"]
    hidden, expert, dense, layers, heads, latent, unrotated, rotated, vocabulary = SIZES[size]
    assert config.hidden_size == hidden
    assert config.moe_intermediate_size == expert
    assert config.intermediate_size == dense
    assert (config.num_hidden_layers, config.first_k_dense_replace) == (layers, 1)
    assert config.num_attention_heads == heads
    assert config.vocab_size == vocabulary
    experts = (config.n_routed_experts, config.num_experts_per_tok, config.n_shared_experts)
    assert experts == (64, 6, 2)
    if version == "v1":
        assert not config.is_latent
        assert config.qk_head_dim == hidden // heads
    else:
        assert config.kv_lora_rank == latent
        widths = (config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim)
        assert widths == (unrotated, rotated, unrotated)


@pytest.mark.parametrize("size", SIZES)
def test_the_small_v3_models_have_all_of_v3(size: str):
    config = PRESETS[f"{size}-v3"]
    assert config.q_lora_rank == config.hidden_size * 3 // 8
    assert (config.scoring_func, config.topk_method) == ("sigmoid", "noaux_tc")
    assert (config.n_group, config.topk_group, config.routed_scaling_factor) == (8, 4, 2.5)
    assert config.norm_topk_prob
    assert config.num_nextn_predict_layers == 1


def test_a_size_without_a_version_is_v2():
    assert all(PRESETS[size] is PRESETS[f"{size}-v2"] for size in SIZES)


def test_a_preset_is_found_by_name():
    assert get_preset("deepseek-v3") is presets.DEEPSEEK_V3
    with pytest.raises(ConfigError, match="'tinyv3' is not a preset; did you mean 'tiny-v3'"):
        get_preset("tinyv3")


def test_a_preset_goes_before_a_folder_of_the_same_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "tiny"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(published_config(presets.MID_V3, "float32")))
    monkeypatch.chdir(tmp_path)
    assert find_model("tiny") == ("tiny", presets.TINY_V2)
    assert find_model("./tiny") == ("./tiny", presets.MID_V3)


def test_a_configuration_of_no_preset_is_called_by_its_family():
    config: ModelConfig = presets.TINY_V3.changed(vocab_size=77)
    assert find_model(config) == ("deepseek_v3", config)
    assert find_model(presets.TINY_V3) == ("tiny-v3", presets.TINY_V3)
