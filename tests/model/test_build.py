"""From a configuration or a folder to a model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from models import random_ids, random_model

from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.model.build import build_model, load_model
from moesaic.model.residency import Residency

Build = Callable[..., ModelConfig]

FAMILIES = pytest.mark.parametrize("family", ["v1", "v2", "v3"])


@FAMILIES
def test_fresh_weights_are_the_same_for_the_same_seed(tiny_config: Build, family: str):
    config = tiny_config(family)
    one, again, other = (build_model(config, seed=seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one if one[name].ndim > 1)


def test_a_model_can_be_made_fresh_again(tiny_config: Build):
    config = tiny_config("v3")
    used, fresh = random_model(config), build_model(config, seed=4)
    used.init_weights_(torch.Generator().manual_seed(4))
    for name, tensor in fresh.state_dict().items():
        assert torch.equal(used.state_dict()[name], tensor), name


@FAMILIES
def test_fresh_weights_do_not_touch_the_global_random_state(tiny_config: Build, family: str):
    before = torch.get_rng_state()
    build_model(tiny_config(family))
    assert torch.equal(torch.get_rng_state(), before)


@FAMILIES
def test_fresh_weights_have_the_configured_spread_and_norms_are_one(
    tiny_config: Build, family: str
):
    config = tiny_config(family, hidden_size=64, moe_intermediate_size=32, initializer_range=0.05)
    for name, tensor in build_model(config).state_dict().items():
        if name.endswith("e_score_correction_bias"):
            assert not tensor.any()
        elif tensor.ndim == 1:
            assert (tensor == 1).all()
        else:
            assert tensor.std().item() == pytest.approx(0.05, rel=0.15), name
            assert abs(tensor.mean().item()) < 0.01


def test_building_leaves_the_default_dtype_as_it_was(tiny_config: Build):
    build_model(tiny_config("v1"), dtype="bfloat16")
    assert torch.get_default_dtype() == torch.float32
    with pytest.raises(ConfigError):
        build_model(tiny_config("v1"), dtype="float64", residency=Residency.only({0: (0, 1, 2)}))
    assert torch.get_default_dtype() == torch.float32


def test_an_unknown_dtype_is_refused_with_the_known_ones(tiny_config: Build):
    message = (
        r"dtype='bfloat61' is not one of float32, bfloat16, float16, float64; "
        r"did you mean 'bfloat16'\?"
    )
    with pytest.raises(ConfigError, match=message):
        build_model(tiny_config("v1"), dtype="bfloat61")
    with pytest.raises(ConfigError, match=message):
        build_model(tiny_config("v1"), compute_dtype="bfloat61")


@FAMILIES
def test_a_saved_model_loads_as_it_was(tiny_config: Build, family: str, tmp_path: Path):
    config = tiny_config(family)
    model = random_model(config)
    save(tmp_path / "model", config, model.state_dict(), "float32")
    loaded = load_model(tmp_path / "model")
    ids_BS = random_ids(config, 2, 10)
    assert loaded.config == config
    assert torch.equal(loaded(ids_BS), model(ids_BS))


@FAMILIES
def test_loading_a_resident_subset_equals_building_the_whole(
    tiny_config: Build, family: str, tmp_path: Path
):
    config = tiny_config(family)
    residency = Residency.only({layer: (0, 3, 5, 6) for layer in config.moe_layers})
    model = random_model(config)
    save(tmp_path / "model", config, model.state_dict(), "float32")
    held = load_model(tmp_path / "model", residency=residency)
    for layer, moe in held.moe_layers().items():
        whole = model.moe_layers()[layer].experts
        slots = list(residency.resident_in(config, layer))
        assert torch.equal(moe.experts.gate_up_proj, whole.gate_up_proj[slots])
        assert torch.equal(moe.experts.down_proj, whole.down_proj[slots])


def test_a_model_loads_in_another_dtype(tiny_config: Build, tmp_path: Path):
    config = tiny_config("v3")
    model = random_model(config)
    save(tmp_path / "model", config, model.state_dict(), "float32")
    loaded = load_model(tmp_path / "model", dtype="bfloat16")
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name].to(tensor.dtype))
        assert (tensor.dtype == torch.float32) == name.endswith("e_score_correction_bias")
