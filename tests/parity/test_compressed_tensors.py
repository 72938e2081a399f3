"""The package compressed-tensors reads what we write, to the same values."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import Form, quantise_folder
from moesaic.checkpoint.save import save
from moesaic.config.model import ModelConfig
from moesaic.model.build import build_model

quantization = pytest.importorskip("compressed_tensors.quantization")
pack_quantized = pytest.importorskip("compressed_tensors.compressors.pack_quantized")
pytestmark = pytest.mark.parity


@pytest.mark.parametrize("form", ["4", "8"])
def test_compressed_tensors_reads_the_same_weights_and_writes_the_same_words(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], form: Form
) -> None:
    config = tiny_config("v3", hidden_size=64, moe_intermediate_size=32, intermediate_size=96)
    save(tmp_path / "base", config, build_model(config).state_dict(), "float32")
    folder = tmp_path / "quantised"
    quantise_folder(Reader(tmp_path / "base"), folder, form, 32, lambda spec: None)
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    scheme = quantization.QuantizationConfig.model_validate(told).config_groups["group_0"]
    stored, reader = read_safetensors(folder / "model.safetensors"), Reader(folder)
    compressor = pack_quantized.PackedQuantizationCompressor
    packed = [name.removesuffix("_packed") for name in stored if name.endswith("_packed")]
    assert packed
    for name in packed:
        parts = {f"weight{part}": stored[name + part] for part in ("_packed", "_shape")}
        scale = {"weight_scale": stored[f"{name}_scale"].float()}
        weight = compressor.decompress({**parts, **scale}, scheme)["weight"]
        assert torch.equal(weight, reader.read(name))
        again = compressor.compress({"weight": weight, **scale}, scheme)
        assert torch.equal(again["weight_packed"], parts["weight_packed"])
        assert again["weight_shape"].tolist() == parts["weight_shape"].tolist()
