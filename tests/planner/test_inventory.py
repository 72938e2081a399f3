"""The one list of tensors."""

from collections.abc import Callable

import pytest

from moesaic.config.model import ModelConfig
from moesaic.config.presets import DEEPSEEK_MOE_2B_HASH, DEEPSEEK_V3, PRESETS
from moesaic.planner.inventory import tensors

Tiny = Callable[..., ModelConfig]


@pytest.mark.parametrize("name", PRESETS)
def test_every_name_is_there_once(name: str):
    names = [spec.name for spec in tensors(PRESETS[name])]
    assert len(names) == len(set(names))


def test_v3_names_its_tensors_as_published():
    by_name = {spec.name: spec for spec in tensors(DEEPSEEK_V3)}
    assert by_name["model.layers.0.self_attn.kv_a_proj_with_mqa.weight"].shape == (576, 7168)
    assert by_name["model.layers.0.self_attn.kv_b_proj.weight"].shape == (128 * 256, 512)
    assert by_name["model.layers.60.mlp.experts.255.down_proj.weight"].shape == (7168, 2048)
    assert by_name["model.layers.60.mlp.experts.255.down_proj.weight"].expert == 255
    assert by_name["model.layers.3.mlp.gate.e_score_correction_bias"].is_router_bias
    assert by_name["model.layers.61.eh_proj.weight"].shape == (7168, 2 * 7168)
    assert by_name["model.layers.61.shared_head.head.weight"].copy_of == "lm_head.weight"


def test_layers_can_be_left_out(tiny_config: Tiny):
    config = tiny_config("v3")
    everything = list(tensors(config))
    chosen = list(tensors(config, layers={1, 3}))
    assert chosen == [spec for spec in everything if spec.layer in (None, 1, 3)]
    assert {spec.layer for spec in tensors(config, layers=())} == {None}


def test_a_hash_router_has_no_weights():
    assert not [spec for spec in tensors(DEEPSEEK_MOE_2B_HASH) if spec.role == "router"]


def test_a_tied_head_is_not_stored(tiny_config: Tiny):
    specs = list(tensors(tiny_config("v3", tie_word_embeddings=True)))
    assert not [spec for spec in specs if spec.role == "head"]
    copies = {spec.copy_of for spec in specs if spec.copy_of}
    assert copies == {"model.embed_tokens.weight"}
