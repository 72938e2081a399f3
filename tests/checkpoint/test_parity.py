"""Checkpoints go to transformers and come back."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from moesaic.checkpoint.check import check
from moesaic.checkpoint.fresh import fresh_tensor
from moesaic.checkpoint.load import Reader, load_into
from moesaic.checkpoint.names import state_shapes
from moesaic.checkpoint.save import save, write
from moesaic.config.model import ModelConfig
from moesaic.kernels.quantise import Fp8Weight, dequantise, quantise

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.parity

Fresh = Callable[..., Path]
CLASSES = {"v2": "DeepseekV2ForCausalLM", "v3": "DeepseekV3ForCausalLM"}
CASES = pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("v2", {}),
        ("v2", {"tie_word_embeddings": True, "q_lora_rank": 8}),
        ("v3", {}),
        ("v3", {"tie_word_embeddings": True, "q_lora_rank": None, "rope_scaling": None}),
    ],
)


def _theirs(folder: Path, family: str) -> Any:
    return getattr(transformers, CLASSES[family]).from_pretrained(folder, dtype="float32")


def _ours(folder: Path) -> dict[str, Tensor]:
    reader = Reader(folder)
    state = {name: torch.empty(shape) for name, shape in state_shapes(reader.config).items()}
    load_into(reader, state)
    return state


def _compare(theirs: Any, ours: dict[str, Tensor], config: ModelConfig) -> None:
    """Every weight of theirs is ours, and ours has no more but prediction modules."""
    found = dict(theirs.state_dict())
    if config.tie_word_embeddings:
        found.pop("lm_head.weight")
    extra = ours.keys() - found.keys()
    assert found.keys() <= ours.keys()
    assert all(name.startswith(f"model.layers.{config.num_hidden_layers}.") for name in extra)
    for name, tensor in found.items():
        assert torch.equal(tensor, ours[name]), name


@CASES
def test_what_is_written_here_loads_there(
    fresh: Fresh, family: str, changes: dict[str, Any]
) -> None:
    folder = fresh(family, **changes)
    _compare(_theirs(folder, family), _ours(folder), Reader(folder).config)


@CASES
@pytest.mark.parametrize("file_size", ["5GB", "20KB"])
def test_what_is_written_there_loads_here(
    fresh: Fresh, tmp_path: Path, family: str, changes: dict[str, Any], file_size: str
) -> None:
    theirs = _theirs(fresh(family, **changes), family)
    theirs.save_pretrained(tmp_path / "theirs", max_shard_size=file_size)
    report = check(tmp_path / "theirs")
    assert report.is_sound
    assert (len(report.files) > 1) == (file_size == "20KB")
    _compare(theirs, _ours(tmp_path / "theirs"), report.config)


def test_many_files_written_here_load_there(fresh: Fresh, tmp_path: Path) -> None:
    reader = Reader(fresh("v2"))
    folder = tmp_path / "split"
    write(folder, reader.config, lambda spec: reader.read(spec.name), "float32", file_bytes=9000)
    _compare(_theirs(folder, "v2"), _ours(folder), reader.config)


def test_what_went_there_and_back_is_the_same_checkpoint(fresh: Fresh, tmp_path: Path) -> None:
    base = fresh("v2", "bfloat16")
    theirs = transformers.DeepseekV2ForCausalLM.from_pretrained(base, dtype="auto")
    theirs.save_pretrained(tmp_path / "theirs")
    there = Reader(tmp_path / "theirs")
    root = save(tmp_path / "back", there.config, {}, "bfloat16", source=tmp_path / "theirs")
    assert root == json.loads((base / "digest.json").read_text())["root"]


def test_generation_settings_are_read_there(fresh: Fresh) -> None:
    settings = transformers.GenerationConfig.from_pretrained(fresh("v2"))
    assert (settings.bos_token_id, settings.eos_token_id) == (0, 1)


@pytest.mark.parametrize("shape", [(128, 128), (256, 384), (128, 640)])
def test_fp8_blocks_mean_the_same_there(shape: tuple[int, int], generator: torch.Generator) -> None:
    """On whole blocks: theirs takes rows / scales for the block, which needs them."""
    fp8 = pytest.importorskip("transformers.integrations.finegrained_fp8")
    stored: Fp8Weight = quantise(torch.randn(shape, generator=generator))
    theirs = fp8.Fp8Dequantize(None)._dequantize_one(
        stored.weight, stored.weight_scale_inv, torch.float32
    )
    assert torch.equal(theirs, dequantise(stored))


def test_fp8_settings_are_read_there(fresh: Fresh) -> None:
    config = transformers.AutoConfig.from_pretrained(fresh("v3", "float8_e4m3fn"))
    settings = transformers.FineGrainedFP8Config(**config.quantization_config)
    assert tuple(settings.weight_block_size) == (128, 128)


def test_their_fresh_default_configuration_is_read_here(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], generator: torch.Generator
) -> None:
    """Its config.json names a prediction module that its weights do not have."""
    config = tiny_config("v3", num_nextn_predict_layers=0)
    folder = tmp_path / "ours"
    write(folder, config, lambda spec: fresh_tensor(spec, 1, torch.float32, generator), "float32")
    data = json.loads((folder / "config.json").read_text())
    del data["num_nextn_predict_layers"]
    theirs = transformers.DeepseekV3ForCausalLM(transformers.DeepseekV3Config(**data))
    theirs.save_pretrained(tmp_path / "theirs")
    report = check(tmp_path / "theirs")
    assert report.is_sound
    _compare(theirs, _ours(tmp_path / "theirs"), report.config)
