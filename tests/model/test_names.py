"""The state of a model is what the inventory of its tensors says, experts stacked."""

from math import prod

import pytest
import torch

from moesaic.config.model import ModelConfig
from moesaic.config.presets import PRESETS
from moesaic.model.build import empty_model
from moesaic.model.residency import Residency
from moesaic.planner.inventory import tensors


def stacked_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of the inventory, without copies and with the experts of a layer stacked."""
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in tensors(config):
        if spec.copy_of is not None:
            continue
        if spec.expert is None:
            shapes[spec.name] = spec.shape
        elif spec.expert == 0 and not spec.name.endswith("up_proj.weight"):
            stem, _, part = spec.name.removesuffix("_proj.weight").rpartition(".")
            rows, columns = spec.shape
            name = f"{stem.removesuffix('.0')}.{'gate_up' if part == 'gate' else 'down'}_proj"
            rows = 2 * rows if part == "gate" else rows
            shapes[name] = (config.experts, rows, columns)
    return shapes


@pytest.mark.parametrize("name", PRESETS)
def test_names_and_shapes_equal_the_inventory(name: str):
    config = PRESETS[name]
    model = empty_model(config, device="meta")
    state = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    assert state == stacked_shapes(config)


@pytest.mark.parametrize("name", PRESETS)
def test_as_many_parameters_as_the_inventory_counts(name: str):
    config = PRESETS[name]
    model = empty_model(config, device="meta")
    held = sum(tensor.numel() for tensor in model.state_dict().values())
    assert held == sum(spec.size for spec in tensors(config) if spec.copy_of is None)


@pytest.mark.parametrize("name", ["tiny-v1", "tiny-v2", "tiny-v3"])
def test_a_tied_model_has_no_head_of_its_own(name: str):
    config = PRESETS[name].changed(tie_word_embeddings=True)
    state = empty_model(config, device="meta").state_dict()
    assert "lm_head.weight" not in state
    assert {n: tuple(t.shape) for n, t in state.items()} == stacked_shapes(config)


def test_parking_changes_no_name():
    config = PRESETS["tiny-v2"]
    parked = empty_model(config, device="meta", residency=Residency.only({2: range(6)}))
    whole = empty_model(config, device="meta")
    assert list(parked.state_dict()) == list(whole.state_dict())
    assert prod(parked.get_parameter("model.layers.2.mlp.experts.down_proj").shape) == 6 * 128 * 32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
def test_every_parameter_has_the_dtype_asked_for_and_the_choice_bias_float32(dtype: str):
    model = empty_model(PRESETS["tiny-v3"], dtype, device="meta")
    for name, tensor in model.state_dict().items():
        is_bias = name.endswith("e_score_correction_bias")
        assert tensor.dtype == (torch.float32 if is_bias else getattr(torch, dtype))
