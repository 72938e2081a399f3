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

SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 8,
    "max_position_embeddings": 128,
}
V1: dict[str, Any] = {"model_type": "deepseek", **SIZES}
V3: dict[str, Any] = {
    "model_type": "deepseek_v3",
    **SIZES,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}
FP8_BLOCKS: dict[str, Any] = {
    "activation_scheme": "dynamic",
    "fmt": "e4m3",
    "quant_method": "fp8",
    "weight_block_size": [128, 128],
}
KIMI_K2: dict[str, Any] = {
    "architectures": ["DeepseekV3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "auto_map": {"AutoConfig": "configuration_deepseek.DeepseekV3Config"},
    "aux_loss_alpha": 0.001,
    "bos_token_id": 163584,
    "eos_token_id": 163585,
    "first_k_dense_replace": 1,
    "hidden_act": "silu",
    "hidden_size": 7168,
    "initializer_range": 0.02,
    "intermediate_size": 18432,
    "kv_lora_rank": 512,
    "max_position_embeddings": 131072,
    "model_type": "kimi_k2",
    "moe_intermediate_size": 2048,
    "moe_layer_freq": 1,
    "n_group": 1,
    "n_routed_experts": 384,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 8,
    "num_hidden_layers": 61,
    "num_key_value_heads": 64,
    "num_nextn_predict_layers": 0,
    "pretraining_tp": 1,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64,
    "quantization_config": FP8_BLOCKS,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {
        "beta_fast": 1.0,
        "beta_slow": 1.0,
        "factor": 32.0,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
        "original_max_position_embeddings": 4096,
        "type": "yarn",
    },
    "rope_theta": 50000.0,
    "routed_scaling_factor": 2.827,
    "scoring_func": "sigmoid",
    "seq_aux": True,
    "tie_word_embeddings": False,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.3",
    "use_cache": True,
    "v_head_dim": 128,
    "vocab_size": 163840,
}
MOONLIGHT: dict[str, Any] = {
    **{key: value for key, value in KIMI_K2.items() if key != "quantization_config"},
    "model_type": "deepseek_v3",
    "ep_size": 1,
    "hidden_size": 2048,
    "intermediate_size": 11264,
    "max_position_embeddings": 8192,
    "moe_intermediate_size": 1408,
    "n_routed_experts": 64,
    "n_shared_experts": 2,
    "num_attention_heads": 16,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 27,
    "num_key_value_heads": 16,
    "q_lora_rank": None,
    "rms_norm_eps": 1e-05,
    "rope_scaling": None,
    "routed_scaling_factor": 2.446,
}


def message(published: dict[str, Any], **changes: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config({**published, **changes})
    return str(caught.value)


def test_kimi_k2_is_a_v3_of_384_experts_in_one_group():
    config = parse_config(KIMI_K2)
    assert config.model_type == "deepseek_v3"
    assert (config.experts, config.groups) == (384, 1)
    assert config.quantization_config is not None
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 32


def test_moonlight_is_a_v3_without_query_latent():
    config = parse_config(MOONLIGHT)
    assert config.q_lora_rank is None
    assert config.rope_scaling is None
    assert config.routed_scaling_factor == 2.446
    assert len(config.moe_layers) == 26


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_what_is_written_reads_back(tiny_config: Build, family: str):
    config = tiny_config(family)
    assert parse_config(published_config(config, "bfloat16")) == config


def test_fp8_blocks_read_back(tiny_config: Build):
    config = tiny_config("v3", quantization_config=FP8_BLOCKS)
    assert parse_config(published_config(config, "bfloat16")) == config


@given(
    experts=st.none() | st.integers(2, 512),
    tied=st.booleans(),
    theta=st.floats(1e3, 1e7),
    ends=st.none() | st.integers(0, 63) | st.lists(st.integers(0, 63), min_size=1),
)
def test_any_model_reads_back(experts: int | None, tied: bool, theta: float, ends: Any):
    sizes = {**V1, "rope_theta": theta, "tie_word_embeddings": tied, "eos_token_id": ends}
    if experts is None:
        for key in ("n_shared_experts", "num_experts_per_tok", "moe_intermediate_size"):
            sizes[key] = None
    config = parse_config({**sizes, "n_routed_experts": experts})
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


def test_null_is_the_same_as_left_out():
    silent = {**V3, "norm_topk_prob": None, "attention_bias": None, "pad_token_id": None}
    assert parse_config({**silent, "rope_parameters": None}) == parse_config(V3)


@pytest.mark.parametrize("alias", ["num_experts", "num_local_experts"])
def test_other_names_of_the_number_of_experts_are_known(alias: str):
    renamed = {key: value for key, value in V3.items() if key != "n_routed_experts"}
    assert parse_config({**renamed, alias: 8}) == parse_config(V3)


def test_another_name_of_the_number_of_prediction_modules_is_known():
    assert parse_config({**V3, "num_mtp_layers": 1}).num_nextn_predict_layers == 1


YARN = {"factor": 4.0, "original_max_position_embeddings": 32}


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
def test_yarn_reads_the_same_in_each_form_it_is_written_in(rope: dict[str, Any]):
    config = parse_config({**V3, **rope})
    assert config.rope_theta == 5e4
    assert config.rope_scaling is not None
    assert config.rope_scaling.factor == 4


@pytest.mark.parametrize("scaling", [{}, {"rope_type": "default"}, {"type": "default"}])
def test_default_scaling_is_none(scaling: dict[str, Any]):
    assert parse_config({**V3, "rope_scaling": scaling}).rope_scaling is None


@pytest.mark.parametrize(
    "extra",
    [
        {"scale_fmt": "ue8m0"},
        {"modules_to_not_convert": ["lm_head"], "dequantize": False, "expert_dtype": "fp8"},
        {"ignored_layers": None},
    ],
)
def test_fp8_blocks_read_the_same_with_what_others_write_beside_them(extra: dict[str, Any]):
    config = parse_config({**V3, "quantization_config": {**FP8_BLOCKS, **extra}})
    assert config == parse_config({**V3, "quantization_config": FP8_BLOCKS})


def test_values_that_follow_from_others_may_be_written_out():
    derived = {"qk_head_dim": 12, "head_dim": 4, "mlp_layer_types": ["dense", "sparse"]}
    assert parse_config({**V3, **derived}) == parse_config(V3)


@pytest.mark.parametrize(
    ("published", "changes", "text"),
    [
        (
            V3,
            {"model_type": "deepseekv3"},
            "config.json: model_type='deepseekv3' is not a DeepSeek architecture; did you mean "
            "'deepseek_v3'?; one of deepseek, deepseek_v2, deepseek_v3 is needed",
        ),
        (
            V3,
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "model_type='llama' is not a DeepSeek architecture; one of",
        ),
        (V3, {"model_type": None}, "model_type=None is not a DeepSeek architecture"),
        (V3, {"model_type": ["deepseek_v3"]}, "is not a DeepSeek architecture"),
        (
            V3,
            {"n_routed_expert": 8},
            "n_routed_expert is not a setting of deepseek_v3 models; did you mean "
            "'n_routed_experts'?",
        ),
        (V3, {"sliding_window": 4}, "sliding_window is not a setting of deepseek_v3 models"),
        (
            V3,
            {"hidden_act": "gelu"},
            "hidden_act='gelu' is not supported; these models are published with 'silu'",
        ),
        (V3, {"attention_bias": True}, "attention_bias=True is not supported"),
        (V3, {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        (V3, {"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config="),
        (
            V3,
            {"rope_scaling": "yarn"},
            "rope_scaling='yarn' is not an object; write its settings in braces",
        ),
        (
            V3,
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling.type='linear' is not one of 'yarn'",
        ),
        (
            V3,
            {"rope_parameters": {"rope_type": "yarn", "attention_factor": 1.2, **YARN}},
            "rope_scaling.attention_factor is not a setting",
        ),
        (
            V3,
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config.quant_method='gptq' is not supported; convert the weights to "
            "'fp8' blocks or to bfloat16",
        ),
        (
            V3,
            {"quantization_config": {**FP8_BLOCKS, "expert_dtype": "fp4"}},
            "quantization_config.expert_dtype is not a setting",
        ),
        (V3, {"quantization_config": "fp8"}, "quantization_config='fp8' is not an object"),
        (
            V3,
            {"qk_head_dim": 16},
            "qk_head_dim=16 contradicts the other settings, which make it 12; remove qk_head_dim "
            "or correct them",
        ),
        (V1, {"head_dim": 64}, "head_dim=64 contradicts the other settings, which make it 8"),
        (
            V3,
            {"mlp_layer_types": ["sparse", "sparse"]},
            "contradicts the other settings, which make it ['dense', 'sparse']",
        ),
        (V3, {"layer_types": ["sliding_attention"] * 2}, "layer_types=['sliding_attention', "),
    ],
)
def test_a_file_that_is_wrong_says_what_to_do(
    published: dict[str, Any], changes: dict[str, Any], text: str
):
    assert text in message(published, **changes)


def test_a_folder_or_the_file_itself_is_read(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps(V3))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json") == parse_config(V3)


def test_a_message_names_the_file(tmp_path: Path):
    (tmp_path / "config.json").write_text(json.dumps({**V3, "hidden_act": "gelu"}))
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
