from collections.abc import Callable
from typing import Any

import pytest

from moesaic.config.published import parse_config
from moesaic.errors import ConfigError

YARN: dict[str, Any] = {"factor": 4.0, "original_max_position_embeddings": 32}


@pytest.mark.parametrize(
    ("family", "changes", "text"),
    [
        (
            "v3",
            {"model_type": "deepseekv3", "architectures": []},
            "config.json: model_type='deepseekv3' is not a DeepSeek architecture; did you mean "
            "'deepseek_v3'?; one of deepseek, deepseek_v2, deepseek_v3 is needed",
        ),
        (
            "v3",
            {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
            "model_type='llama' is not a DeepSeek architecture; one of",
        ),
        (
            "v3",
            {"model_type": None, "architectures": None},
            "model_type=None is not a DeepSeek architecture",
        ),
        (
            "v3",
            {"model_type": ["deepseek_v3"], "architectures": "?"},
            "is not a DeepSeek architecture",
        ),
        (
            "v3",
            {"n_routed_expert": 8},
            "n_routed_expert is not a setting of deepseek_v3 models; did you mean "
            "'n_routed_experts'?",
        ),
        ("v3", {"sliding_window": 4}, "sliding_window is not a setting of deepseek_v3 models"),
        (
            "v3",
            {"hidden_act": "gelu"},
            "hidden_act='gelu' is not supported; these models are published with 'silu'",
        ),
        ("v3", {"attention_bias": True}, "attention_bias=True is not supported"),
        ("v3", {"attention_dropout": 0.1}, "attention_dropout=0.1 is not supported"),
        ("v3", {"per_layer_config": {"0": {"hidden_size": 8}}}, "per_layer_config="),
        (
            "v3",
            {"rope_scaling": "yarn"},
            "rope_scaling='yarn' is not an object; write its settings in braces",
        ),
        (
            "v3",
            {"rope_scaling": {"type": "linear", "factor": 2.0}},
            "rope_scaling.type='linear' is not one of 'yarn'",
        ),
        (
            "v3",
            {"rope_parameters": {"rope_type": "yarn", "attention_factor": 1.2, **YARN}},
            "rope_scaling.attention_factor is not a setting",
        ),
        (
            "v3",
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            "quantization_config.quant_method='gptq' is not supported; convert the weights to "
            "'fp8' blocks or to bfloat16",
        ),
        (
            "v3",
            {"quantization_config": {"quant_method": "fp8", "expert_dtype": "fp4"}},
            "quantization_config.expert_dtype is not a setting",
        ),
        ("v3", {"quantization_config": "fp8"}, "quantization_config='fp8' is not an object"),
        (
            "v3",
            {"qk_head_dim": 16},
            "qk_head_dim=16 contradicts the other settings, which make it 12; remove qk_head_dim "
            "or correct them",
        ),
        ("v1", {"head_dim": 64}, "head_dim=64 contradicts the other settings, which make it 8"),
        (
            "v3",
            {"mlp_layer_types": ["sparse", "sparse", "sparse"]},
            "contradicts the other settings, which make it ['dense', 'sparse', 'sparse']",
        ),
        ("v3", {"layer_types": ["sliding_attention"] * 3}, "layer_types=['sliding_attention', "),
    ],
)
def test_a_file_that_is_wrong_says_what_to_do(
    publish: Callable[..., dict[str, Any]], family: str, changes: dict[str, Any], text: str
):
    with pytest.raises(ConfigError) as caught:
        parse_config(publish(family, **changes))
    assert text in str(caught.value)
