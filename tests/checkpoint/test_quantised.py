"""FP8 blocks on disk."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.load import Reader, load_into
from moesaic.checkpoint.names import places, state_shapes
from moesaic.checkpoint.save import save
from moesaic.errors import CheckpointError
from moesaic.kernels.quantise import dequantise, quantise
from moesaic.planner.inventory import tensors

Fresh = Callable[..., Path]


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_the_linear_layers_of_blocks_are_in_fp8_and_nothing_else(fresh: Fresh, family: str) -> None:
    folder = fresh(family, "float8_e4m3fn")
    found = read_safetensors(folder / "model.safetensors")
    for spec in tensors(Reader(folder).config):
        stored, scale = found.pop(spec.name), found.pop(f"{spec.name}_scale_inv", None)
        assert (scale is not None) == spec.may_be_quantised
        wanted = torch.float32 if spec.is_router_bias else torch.bfloat16
        assert stored.dtype == (wanted if scale is None else torch.float8_e4m3fn)
        assert scale is None or scale.dtype == torch.float32
    assert found == {}
    data = json.loads((folder / "config.json").read_text())
    assert data["torch_dtype"] == "bfloat16"
    assert data["quantization_config"] == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
    }


def test_weights_come_back_as_the_values_their_blocks_stand_for(fresh: Fresh) -> None:
    plain, fp8 = Reader(fresh("v3")), Reader(fresh("v3", "float8_e4m3fn", name="fp8"))
    state = {name: torch.empty(shape) for name, shape in state_shapes(fp8.config).items()}
    load_into(fp8, state)
    for spec, found in places(fp8.config):
        original, loaded = plain.read(spec.name), found.of(state[found.name])
        if spec.may_be_quantised:
            assert torch.equal(loaded, dequantise(quantise(original)))
        elif not spec.is_router_bias:
            assert torch.equal(loaded, original.bfloat16().float())
        assert torch.equal(fp8.read(spec.name, torch.bfloat16).float(), loaded.bfloat16().float())


def test_an_fp8_checkpoint_saved_in_bfloat16_has_no_blocks(fresh: Fresh, tmp_path: Path) -> None:
    base = fresh("v2", "float8_e4m3fn")
    save(tmp_path / "plain", Reader(base).config, {}, "bfloat16", source=base)
    plain, fp8 = Reader(tmp_path / "plain"), Reader(base)
    assert plain.config.quantization_config is None
    for name in plain.names:
        assert torch.equal(plain.read(name), fp8.read(name, torch.bfloat16))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_without_an_fp8_form_are_refused(fresh: Fresh, tmp_path: Path, value: float) -> None:
    reader, name = Reader(fresh("v2")), "model.layers.0.mlp.up_proj.weight"
    state = {name: torch.empty(shape) for name, shape in state_shapes(reader.config).items()}
    load_into(reader, state)
    state[name][3, 5] = value
    with pytest.raises(CheckpointError, match=f"{name} holds values that are not finite"):
        save(tmp_path / "new", reader.config, state, "float8_e4m3fn")
    assert not (tmp_path / "new").exists()
