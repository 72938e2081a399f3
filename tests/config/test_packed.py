"""The quantization_config of compressed-tensors."""

from collections.abc import Callable
from typing import Any

import pytest

from moesaic.config.packed import PackedGroups, packed_groups
from moesaic.config.published import parse_config, published_config
from moesaic.errors import ConfigError

WEIGHTS: dict[str, Any] = {
    "num_bits": 4,
    "type": "int",
    "symmetric": True,
    "strategy": "group",
    "group_size": 128,
}


def published(weights: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """As llm-compressor writes it."""
    weights = {**WEIGHTS, "actorder": None, "dynamic": False, "observer": "minmax"} | (
        weights or {}
    )
    group = {"input_activations": None, "targets": ["Linear"], "weights": weights}
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "global_compression_ratio": 1.8,
        "kv_cache_scheme": None,
        "version": "0.9.0",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
        **changes,
    }


def test_the_configuration_of_others_is_read(publish: Callable[..., dict[str, Any]]):
    config = parse_config(publish("v3", quantization_config=published()))
    assert config.quantization_config == packed_groups(4, 128, ("lm_head",))


def test_what_is_written_is_read_again(publish: Callable[..., dict[str, Any]]):
    groups = packed_groups(8, 64, ("lm_head", r"re:.*\.gate$"))
    config = parse_config(publish("v2")).model_copy(update={"quantization_config": groups})
    assert parse_config(published_config(config, "bfloat16")) == config
    assert isinstance(config.quantization_config, PackedGroups)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (published({"symmetric": False}), "weights.symmetric=False is not one of True"),
        (published({"num_bits": 3}), "weights.num_bits=3 is not one of 4 or 8"),
        (published({"strategy": "channel"}), "weights.strategy='channel' is not one of 'group'"),
        (published({"actorder": "group"}), "weights.actorder is not a setting"),
        (published(format="marlin-24"), "quantization_config.format='marlin-24' is not one of"),
        (published(config_groups={}), "config_groups has 0 forms of weights, one is read"),
        (published(sparsity_config={"format": "dense"}), "sparsity_config is not a setting"),
        (published(kv_cache_scheme={"num_bits": 8}), "kv_cache_scheme is not a setting"),
    ],
)
def test_what_is_stored_otherwise_is_refused(
    publish: Callable[..., dict[str, Any]], changes: dict[str, Any], text: str
):
    with pytest.raises(ConfigError) as caught:
        parse_config(publish("v3", quantization_config=changes))
    assert text in str(caught.value)
