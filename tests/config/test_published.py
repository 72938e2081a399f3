import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesaic.config.model import ModelConfig
from moesaic.config.published import parse_config, published_config, read_config
from moesaic.errors import CheckpointError, ConfigError

Build = Callable[..., ModelConfig]
Publish = Callable[..., dict[str, Any]]

HERE = Path(__file__).parent / "published"
FP8_BLOCKS: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32}


def test_kimi_k2_is_a_v3_of_384_experts_in_one_group():
    config = read_config(HERE / "kimi_k2.json")
    assert config.model_type == "deepseek_v3"
    assert (config.experts, config.groups) == (384, 1)
    assert config.quantization_config is not None
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 32


def test_moonlight_is_a_v3_without_query_latent():
    config = read_config(HERE / "moonlight.json")
    assert config.q_lora_rank is None
    assert config.rope_scaling is None
    assert config.routed_scaling_factor == 2.446
    assert len(config.moe_layers) == 26


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_what_is_written_reads_back(tiny_config: Build, family: str):
    config = tiny_config(family)
    assert parse_config(published_config(config, "bfloat16")) == config


def test_experts_without_groups_are_written_as_one_group(tiny_config: Build):
    """vLLM computes groups of V2 and V3 without looking at ``topk_method``, and takes no null."""
    ungrouped = {"topk_method": "greedy", "n_group": None, "topk_group": None}
    written = published_config(tiny_config("v2", **ungrouped), "bfloat16")
    assert (written["n_group"], written["topk_group"]) == (1, 1)
    assert parse_config(written).groups == 1
    assert "n_group" not in published_config(tiny_config("v1"), "bfloat16")


def test_fp8_blocks_read_back(tiny_config: Build):
    config = tiny_config("v3", quantization_config=FP8_BLOCKS)
    assert parse_config(published_config(config, "bfloat16")) == config


@given(
    experts=st.none() | st.integers(3, 512),
    tied=st.booleans(),
    theta=st.floats(1e3, 1e7),
    ends=st.none() | st.integers(0, 63) | st.lists(st.integers(0, 63), min_size=1),
)
def test_any_model_reads_back(
    publish: Publish, experts: int | None, tied: bool, theta: float, ends: Any
):
    changes = {"rope_theta": theta, "tie_word_embeddings": tied, "eos_token_id": ends}
    if experts is None:
        for key in ("n_shared_experts", "num_experts_per_tok", "moe_intermediate_size"):
            changes[key] = None
    config = parse_config(publish("v1", n_routed_experts=experts, **changes))
    written = json.loads(json.dumps(published_config(config, "float32")))
    assert parse_config(written) == config


@pytest.mark.parametrize(
    ("family", "architecture"),
    [
        ("v1", "DeepseekForCausalLM"),
        ("v2", "DeepseekV2ForCausalLM"),
        ("v3", "DeepseekV3ForCausalLM"),
    ],
)
def test_the_written_form_is_the_published_one(tiny_config: Build, family: str, architecture: str):
    written = published_config(tiny_config(family), "bfloat16")
    assert written["architectures"] == [architecture]
    assert written["torch_dtype"] == "bfloat16"
    assert written["hidden_act"] == "silu"
    assert ("kv_lora_rank" in written) == (family != "v1")
    assert ("num_nextn_predict_layers" in written) == (family == "v3")
    assert "quantization_config" not in written


def test_null_is_the_same_as_left_out(publish: Publish):
    silent = publish("v3", norm_topk_prob=None, attention_bias=None, pad_token_id=None)
    assert parse_config({**silent, "rope_parameters": None}) == parse_config(publish("v3"))


@pytest.mark.parametrize("alias", ["num_experts", "num_local_experts"])
def test_other_names_of_the_number_of_experts_are_known(publish: Publish, alias: str):
    renamed = publish("v3")
    renamed[alias] = renamed.pop("n_routed_experts")
    assert parse_config(renamed) == parse_config(publish("v3"))


def test_another_name_of_the_number_of_prediction_modules_is_known(publish: Publish):
    renamed = publish("v3", num_mtp_layers=2)
    del renamed["num_nextn_predict_layers"]
    assert parse_config(renamed).num_nextn_predict_layers == 2


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e4, "rope_scaling": {"type": "yarn", **YARN}},
        {"rope_theta": 5e4, "rope_scaling": {"type": "yarn", "rope_type": "yarn", **YARN}},
        {"rope_parameters": {"rope_type": "yarn", "rope_theta": 5e4, **YARN}},
        {
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 5e4,
                "partial_rotary_factor": 1.0,
                "attention_factor": None,
                **YARN,
            }
        },
    ],
)
def test_yarn_reads_the_same_in_each_form_it_is_written_in(publish: Publish, rope: dict[str, Any]):
    config = parse_config(publish("v3", **rope))
    assert config.rope_theta == 5e4
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 4


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "default"}, {"type": "default"}])
def test_default_scaling_is_none(publish: Publish, scaling: dict[str, Any]):
    assert parse_config(publish("v3", rope_scaling=scaling)).rope_scaling is None


@pytest.mark.parametrize(
    "extra",
    [
        {"scale_fmt": "ue8m0"},
        {"modules_to_not_convert": ["lm_head"], "dequantize": False, "expert_dtype": "fp8"},
        {"ignored_layers": None},
    ],
)
def test_fp8_blocks_read_the_same_with_what_others_write_beside_them(
    publish: Publish, extra: dict[str, Any]
):
    config = parse_config(publish("v3", quantization_config={**FP8_BLOCKS, **extra}))
    assert config == parse_config(publish("v3", quantization_config=FP8_BLOCKS))


def test_values_that_follow_from_others_may_be_written_out(publish: Publish):
    layers = ["dense", "sparse", "sparse"]
    derived = publish("v3", qk_head_dim=12, head_dim=4, mlp_layer_types=layers)
    assert parse_config(derived) == parse_config(publish("v3"))


def test_a_folder_or_the_file_itself_is_read(publish: Publish, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(publish("v3")))
    config = parse_config(publish("v3"))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == config


def test_a_message_names_the_file(publish: Publish, tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(publish("v3", hidden_act="gelu")))
    with pytest.raises(ConfigError, match=str(tmp_path / "config.json")):
        read_config(tmp_path)


def test_a_folder_without_configuration_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="does not exist; give a checkpoint folder with a"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b'{"model_type": ', "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[1, 2]", "holds no JSON object; fetch it again"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: bytes, text: str):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        read_config(tmp_path)


@pytest.mark.parity
def test_every_key_that_transformers_writes_is_known():
    from transformers import DeepseekV2Config, DeepseekV3Config, GenerationConfig

    for written in (
        DeepseekV2Config(num_experts_per_tok=6, moe_intermediate_size=1408).to_dict(),
        DeepseekV3Config().to_dict(),
    ):
        generation = {
            key: value
            for key, value in GenerationConfig(temperature=0.7, num_beams=1).to_dict().items()
            if key in GenerationConfig._get_default_generation_params()
        }
        parse_config({**generation, **written})


@pytest.mark.parity
@pytest.mark.parametrize("family", ["v2", "v3"])
def test_what_transformers_writes_of_a_model_is_that_model(
    tiny_config: Build, tmp_path: Path, family: str
):
    from transformers import AutoConfig

    config = tiny_config(family, n_group=1, topk_group=1, initializer_range=0.02)
    (tmp_path / "config.json").write_text(json.dumps(published_config(config, "bfloat16")))
    theirs = AutoConfig.from_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path / "theirs")
    assert "rope_parameters" in json.loads((tmp_path / "theirs" / "config.json").read_text())
    assert read_config(tmp_path / "theirs") == config
