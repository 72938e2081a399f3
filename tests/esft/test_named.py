"""Only what a slice names changes, from the base to the merged checkpoint: byte for byte, whatever
the variant, the part that is trained, an interruption, and the way of merging."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from slices import run_in, stop_after

from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.load import Reader
from moesaic.config.merge import MergeConfig
from moesaic.config.train import TrainConfig
from moesaic.esft.absorb import merge_adapter
from moesaic.esft.manifest import Work
from moesaic.esft.merge import merge_shards
from moesaic.esft.park import load_slice
from moesaic.esft.recipe import train_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import ShardManifest, write_shard
from moesaic.planner.inventory import tensors

MakeBase = Callable[..., Path]

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "masked": {},
    "kept": {"variant": "frozen-kept", "frozen_experts": 2},
    "natural": {"variant": "natural"},
    "natural in 8 bit": {"variant": "natural", "hold": "int8"},
    "natural in 4 bit": {"variant": "natural", "hold": "int4", "hold_linears": "int4"},
    "with a parked embedding": {"hold_linears": "int8", "park_embedding": True},
    "natural from memory": {"variant": "natural", "hold": "cpu"},
    "natural from disk": {"variant": "natural", "hold": "disk"},
    "with shared experts": {"shared_experts": True},
    "with attention and norms": {"modules": ["attention", "norm"]},
    "with everything": {"variant": "natural", "shared_experts": True, "non_expert_modules": True},
}


OPTIMIZERS: Mapping[str, Mapping[str, Any]] = {
    "float32 moments": {"states": "float32"},
    "rounded at random": {"states": "bfloat16", "stochastic_rounding": True},
    "8 bit, kept on the CPU": {"states": "int8", "offload": True},
}


def _config(home: Path, folder: Path, esft: Mapping[str, Any], **changes: Any) -> TrainConfig:
    return run_in(home, folder, {"experts": 3, "score_tokens": 200, **esft}, steps=3, **changes)


def _bytes(folder: Path) -> dict[str, bytes]:
    stored = check(folder).stored
    return {n: read_tensor(t).view(torch.uint8).numpy().tobytes() for n, t in stored.items()}


def _changed(base: Path, merged: Path) -> set[str]:
    before, after = _bytes(base), _bytes(merged)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def _named(base: Path, selection: Selection) -> set[str]:
    """What is trained, and what repeats it."""
    specs = list(tensors(Reader(base).config))
    trained = {spec.name for spec in specs if selection.trains(spec)}
    return trained | {spec.name for spec in specs if spec.copy_of in trained}


@pytest.mark.parametrize("variant", VARIANTS)
def test_only_what_a_slice_names_changes(variant: str, home: Path, tmp_path: Path) -> None:
    config = _config(home, tmp_path / "run", VARIANTS[variant])
    assert train_slice(config, stop_after(1)).shard is None
    shard = train_slice(config).shard
    assert shard is not None
    selection = ShardManifest.read(shard).selection
    for method in ("mean", "sum", "ties"):
        out = tmp_path / method
        merge_shards(home / "base", [shard], out, config=MergeConfig.parse({"method": method}))
        assert _changed(home / "base", out) == _named(home / "base", selection), method


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_only_the_named_changes_whatever_the_optimizer(
    optimizer: str, home: Path, tmp_path: Path
) -> None:
    settings = OPTIMIZERS[optimizer]
    config = _config(
        home,
        tmp_path / "run",
        VARIANTS["natural"],
        precision="bfloat16",
        optimizer=settings,
    )
    shard = train_slice(config).shard
    assert shard is not None
    merge_shards(home / "base", [shard], tmp_path / "merged")
    named = _named(home / "base", ShardManifest.read(shard).selection)
    assert _changed(home / "base", tmp_path / "merged") == named


@pytest.mark.parametrize("hold", ["weights", "int4"])
def test_only_weights_with_adapters_change(hold: str, home: Path, tmp_path: Path) -> None:
    lora = {"rank": 2, "targets": ["o_proj", "experts"]}
    natural = {"variant": "natural", "hold": hold, "hold_linears": hold, "lora": lora}
    found = train_slice(_config(home, tmp_path / "run", natural))
    assert found.shard is not None
    merge_adapter(home / "base", found.shard, tmp_path / "merged")
    chosen = found.selection.experts
    adapted = {
        spec.name
        for spec in tensors(Reader(home / "base").config)
        if spec.name.endswith("o_proj.weight") or spec.expert in chosen.get(spec.layer or 0, ())
    }
    assert _changed(home / "base", tmp_path / "merged") == adapted


_EXPERTS = st.sets(st.integers(0, 7), min_size=3, max_size=5).map(lambda ids: tuple(sorted(ids)))
_SELECTIONS = st.builds(
    Selection,
    experts=st.fixed_dictionaries({1: _EXPERTS, 2: _EXPERTS}),
    shared_experts=st.booleans(),
    modules=st.sets(st.sampled_from(["router", "attention", "norm", "dense", "head"])).map(tuple),
)


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(_SELECTIONS, min_size=1, max_size=3),
    st.sampled_from(["mean", "sum", "ties"]),
    st.data(),
)
def test_only_what_any_of_the_shards_names_changes(
    built_base: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
    selections: list[Selection],
    method: str,
    data: st.DataObject,
) -> None:
    base, home = built_base("v2", "bfloat16"), tmp_path_factory.mktemp("example")
    shards, named = [], set[str]()
    for number, selection in enumerate(selections):
        model = load_slice(base, selection)
        generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += torch.randn(parameter.shape, generator=generator)
        work = Work(base=digest(base), run={}, data=(), tokens=1 + number, steps=1)
        write_shard(home / f"shard{number}", model, selection, work)
        shards.append(home / f"shard{number}")
        named |= _named(base, selection)
    merge_shards(base, shards, home / "merged", config=MergeConfig.parse({"method": method}))
    assert _changed(base, home / "merged") == named
