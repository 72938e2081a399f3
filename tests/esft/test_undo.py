"""Undoing a merge gives the base back, bit for bit, or says why it cannot."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors, write_safetensors
from moesaic.config.merge import MergeConfig
from moesaic.errors import CheckpointError
from moesaic.esft.merge import merge_shards
from moesaic.esft.undo import undo_merge

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]

KEEP = MergeConfig(keep_undo=True)


def _merged(base: Path, make_shard: MakeShard, out: Path) -> Path:
    shards = [make_shard(f"shard{i}", base, step=0.5 + i) for i in range(2)]
    merge_shards(base, shards, out, config=KEEP)
    return out


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("v1", "float16"), ("v2", "bfloat16"), ("v3", "float32"), ("v3", "float8_e4m3fn")],
)
def test_the_base_comes_back_bit_for_bit(
    family: str, dtype: str, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base(family, dtype)
    merged = _merged(base, make_shard, tmp_path / "merged")
    assert digest(merged) != digest(base)
    assert undo_merge(merged, tmp_path / "back") == digest(base)
    assert digest(tmp_path / "back", verify=True) == digest(base, verify=True)
    for path in base.iterdir():
        if path.name != "digest.json":  # which holds times
            assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_only_what_changed_is_kept_and_where_no_reader_of_checkpoints_looks(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    merged = _merged(make_base("v2"), make_shard, tmp_path / "merged")
    record = json.loads((merged / "merge.json").read_text())
    assert set(read_safetensors(merged / "undo" / "base.safetensors")) == set(record["parts"])
    assert check(merged).is_sound
    assert not check(merged).warnings


def test_a_merge_that_kept_nothing_cannot_be_undone(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2")
    merge_shards(base, [make_shard("shard", base)], tmp_path / "merged")
    with pytest.raises(
        CheckpointError, match=r"keeps nothing of its base, \w{12}; fetch that, or merge again with"
    ):
        undo_merge(tmp_path / "merged", tmp_path / "back")


def test_a_checkpoint_that_was_not_merged_cannot_be_undone(
    make_base: MakeBase, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=r"has no merge\.json or adapter\.json; give"):
        undo_merge(make_base("v2"), tmp_path / "back")


def test_what_was_kept_and_changed_since_is_refused_and_nothing_is_left(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    merged = _merged(make_base("v2"), make_shard, tmp_path / "merged")
    path = merged / "undo" / "base.safetensors"
    kept = read_safetensors(path)
    kept[next(iter(kept))] += 1
    write_safetensors(path, kept)
    with pytest.raises(CheckpointError, match="it changed since it was merged: fetch the base"):
        undo_merge(merged, tmp_path / "back")
    assert not list(tmp_path.glob("back*"))


@pytest.mark.parametrize("name", ["model.layers.1.mlp.experts.2.up_proj.weight", "strange"])
def test_what_was_kept_of_another_form_is_refused(
    name: str, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    merged = _merged(make_base("v2"), make_shard, tmp_path / "merged")
    path = merged / "undo" / "base.safetensors"
    write_safetensors(path, {**read_safetensors(path), name: torch.ones(3)})
    with pytest.raises(CheckpointError, match=f"tensor {name} is not like one of .*merged; fetch"):
        undo_merge(merged, tmp_path / "back")
