"""Adapters: written and read in PEFT's form, trained by a run, merged into a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from esft.adapters import (
    GOLDEN,
    MakeBase,
    adapted_base,
    held_in,
    rewritten,
    written,
)
from models import random_ids, random_model
from slices import flip_last_bit
from torch import Tensor

from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, MoesaicError, ShardError
from moesaic.esft.absorb import merge_adapter, stack_adapter
from moesaic.esft.adapter import load_adapter_, read_adapter
from moesaic.model.adapt import adapters_of
from moesaic.model.build import load_model
from moesaic.planner.inventory import tensors


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_an_adapter_read_again_is_the_same_to_the_last_bit(
    family: str, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base(family)
    model = adapted_base(base)
    adapter = written(tmp_path / "adapter", base, model)
    again = load_model(base)
    load_adapter_(again, adapter)
    expected, found = adapters_of(model), adapters_of(again)
    assert found.keys() == expected.keys()
    for name, factors in expected.items():
        assert all(map(torch.equal, found[name], factors))
    ids_BS = random_ids(model.config, 2, 12)
    assert torch.equal(again(ids_BS), model(ids_BS))


def test_an_adapter_has_the_names_and_settings_of_peft(make_base: MakeBase, tmp_path: Path) -> None:
    adapter = written(tmp_path / "adapter", make_base("v2"))
    held = read_safetensors(adapter / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.1"
    assert held[f"{stem}.self_attn.kv_b_proj.lora_A.weight"].shape == (4, 8)
    assert held[f"{stem}.mlp.experts.5.gate_proj.lora_A.weight"].shape == (4, 16)
    assert held[f"{stem}.mlp.experts.5.down_proj.lora_B.weight"].shape == (16, 4)
    assert f"{stem}.mlp.experts.0.gate_proj.lora_A.weight" not in held
    settings = json.loads((adapter / "adapter_config.json").read_text())
    assert (settings["peft_type"], settings["r"], settings["lora_alpha"]) == ("LORA", 4, 6.0)
    assert {"q_proj", "kv_b_proj", "o_proj"} < set(settings["target_modules"])
    assert "layers.1.mlp.experts.5.gate_proj" in settings["target_modules"]
    assert set(settings["target_parameters"]) == {
        f"{place}.{part}_proj.weight"
        for place in ("mlp", "shared_experts")
        for part in ("gate", "up", "down")
    }


@pytest.mark.parametrize("family", ["v2", "v3"])
def test_an_adapter_that_peft_wrote_gives_its_logits(
    family: str, tiny_config: Callable[..., ModelConfig]
) -> None:
    config = tiny_config(family)
    model = random_model(config)
    load_adapter_(model, GOLDEN / family)
    logits = model(random_ids(config, 1, 12))[0, -1, :8]
    expected = torch.tensor(json.loads((GOLDEN / family / "logits.json").read_text()))
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_merged_checkpoint_has_the_logits_of_the_model_with_adapters(
    family: str, dtype: str, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base(family, dtype)
    model = adapted_base(base)
    found = merge_adapter(base, written(tmp_path / "adapter", base, model), tmp_path / "merged")
    assert check(tmp_path / "merged").is_sound
    assert found.digest == digest(tmp_path / "merged", verify=True)
    ids_BS = random_ids(model.config, 2, 12)
    logits, expected = load_model(tmp_path / "merged")(ids_BS), model(ids_BS)
    if dtype == "float32":
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    else:  # sums are stored with 8 bits; a router may choose another expert for single tokens
        assert (logits - expected).norm() < 0.15 * expected.norm()


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_a_merge_leaves_every_other_tensor_its_bytes(
    dtype: str, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("v3", dtype)
    adapter = written(tmp_path / "adapter", base)
    names: list[str] = []
    merge_adapter(base, adapter, tmp_path / "merged", names.append)
    before, after = held_in(base), held_in(tmp_path / "merged")
    assert set(names) == before.keys() == after.keys()
    adapted = read_adapter(adapter, Reader(base).config).factors
    for name, value in before.items():
        same = torch.equal(*(part.view(-1).view(torch.uint8) for part in (value, after[name])))
        assert same == (name.removesuffix("_scale_inv") not in adapted), name
    assert json.loads((tmp_path / "merged" / "adapter.json").read_text())["base"] == digest(base)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn"])
def test_merging_an_adapter_that_adds_nothing_returns_the_base(
    dtype: str, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("v2", dtype)
    adapter = written(tmp_path / "adapter", base, adapted_base(base, scale=0.0))
    assert merge_adapter(base, adapter, tmp_path / "merged").digest == digest(base)


def test_an_adapter_for_stacked_experts_has_zeros_for_those_without(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("v3")
    config = Reader(base).config
    adapter = written(tmp_path / "adapter", base)
    stack_adapter(adapter, config, tmp_path / "stacked")
    sparse, full = read_adapter(adapter, config), read_adapter(tmp_path / "stacked", config)
    layers = config.num_hidden_layers
    specs = [spec for spec in tensors(config) if spec.layer is not None and spec.layer < layers]
    routed = {spec.name for spec in specs if spec.role == "routed"}
    assert routed < full.factors.keys()
    for spec in specs:
        if spec.name in sparse.factors:
            assert all(map(torch.equal, full.read(spec.name), sparse.read(spec.name)))
        elif spec.name in routed:
            assert not full.change(spec.name).any()
    assert {name for name in full.factors if f"layers.{layers}" in name} == set()
    merge_adapter(base, tmp_path / "stacked", tmp_path / "merged")
    ids_BS = random_ids(config, 2, 12)
    expected = adapted_base(base)(ids_BS)
    assert (load_model(tmp_path / "merged")(ids_BS) - expected).norm() < 0.15 * expected.norm()


A_NAME = "base_model.model.model.layers.1.self_attn.kv_b_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("settings", "changes", "message"),
    [
        ({"use_dora": True}, {}, "use_dora=True is not computed here, only plain LoRA"),
        ({"rank_pattern": {"q_proj": 2}}, {}, r"rank_pattern={'q_proj': 2} is not computed here"),
        ({"bias": "all"}, {}, "bias='all' is not computed here"),
        ({"init_lora_weights": "pissa"}, {}, "init_lora_weights='pissa' is not computed here"),
        ({"peft_type": "IA3"}, {}, "peft_type='IA3' is not computed here"),
        ({"r": 0}, {}, "r=0 is no rank; give a whole number from 1 up"),
        ({"lora_alpha": None}, {}, "lora_alpha=None is no number"),
        ({"r": 2}, {}, r"has shape \[4, \d+\], the rank in adapter_config.json and the model make"),
        ({}, {A_NAME: None}, f"{A_NAME} is missing, its other half is there"),
        ({}, {A_NAME: torch.ones(4, 9)}, r"has shape \[4, 9\], .* make it \[4, 8\]"),
        ({}, {A_NAME: torch.ones(4, 8).int()}, "is torch.int32; give one of floats"),
        (
            {},
            {A_NAME.replace("kv_b", "kv_c"): torch.ones(4, 8)},
            "kv_c_proj.* is no adapter of this model; did you mean '.*kv_b_proj",
        ),
        (
            {},
            {"base_model.model.model.layers.1.mlp.experts.lora_A.weight": torch.ones(4, 8)},
            "adapts the experts of a layer as one stack, as transformers 5 holds them",
        ),
        ({}, {A_NAME: torch.full((4, 8), torch.nan)}, "holds values that are not finite"),
    ],
)
def test_an_adapter_that_is_not_understood_is_refused(
    settings: dict[str, Any],
    changes: dict[str, Tensor | None],
    message: str,
    make_base: MakeBase,
    tmp_path: Path,
) -> None:
    base = make_base("v2")
    adapter = rewritten(written(tmp_path / "adapter", base), settings, **changes)
    with pytest.raises(CheckpointError, match=message):
        merge_adapter(base, adapter, tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_of_another_base_or_model_is_refused(
    make_base: MakeBase, tmp_path: Path, built_base: MakeBase
) -> None:
    base = make_base("v2")
    adapter = written(tmp_path / "adapter", base)
    with pytest.raises(ShardError, match=r"trained from base .*; fetch the base that the ad"):
        merge_adapter(built_base("v2", "float32"), adapter, tmp_path / "merged")
    with pytest.raises(ShardError, match="trained for a model with other settings"):
        merge_adapter(built_base("v3", "bfloat16"), adapter, tmp_path / "merged")
    with pytest.raises(CheckpointError, match=r"adapter_config.json is missing; give the"):
        merge_adapter(base, base, tmp_path / "merged")


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("adapter_config.json", '"lora_alpha": 6.0', '"lora_alpha": 9.0', "do not say and hold"),
        ("adapter_model.safetensors", None, None, "does not have the sha256 that the manifest"),
        ("manifest.json", '"rank": 4', '"rank": 0', "the manifest is damaged: fetch the adapter"),
    ],
)
def test_a_tampered_adapter_is_refused(
    file: str, old: str | None, new: str | None, message: str, make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("v2")
    path = written(tmp_path / "adapter", base) / file
    if old is None or new is None:
        flip_last_bit(path)
    else:
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
    with pytest.raises(MoesaicError, match=message):
        merge_adapter(base, tmp_path / "adapter", tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_that_is_not_finite_is_not_written(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("v2")
    model = adapted_base(base)
    with torch.no_grad():
        adapters_of(model)["model.layers.1.mlp.experts.5.up_proj.weight"].a[0, 0] = torch.inf
    with pytest.raises(CheckpointError, match=r"experts.5.up_proj.lora_A.weight holds values that"):
        written(tmp_path / "adapter", base, model)
    assert not (tmp_path / "adapter").exists()
