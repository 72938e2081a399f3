"""Sums of task vectors, TIES and grafts, from shards to a checkpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.load import Reader
from moesaic.config.merge import MergeConfig
from moesaic.errors import ShardError
from moesaic.esft.merge import Merge, merge_shards
from moesaic.esft.select import Selection, write_selection
from moesaic.esft.shard import ShardManifest

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]

METHODS = ("mean", "sum", "ties")
NAME = "model.layers.1.mlp.experts.5.gate_proj.weight"


def _merge(base: Path, shards: list[Path], out: Path, **settings: Any) -> Merge:
    return merge_shards(base, shards, out, config=MergeConfig.parse(settings))


@pytest.fixture
def base(make_base: MakeBase) -> Path:
    return make_base("v2", "float32")


@pytest.fixture
def shards(base: Path, make_shard: MakeShard) -> list[Path]:
    """Three, which share expert 5 of layer 1."""
    held = [(1, 2, 5), (3, 4, 5), (5, 6, 7)]
    return [
        make_shard(
            f"shard{i}",
            base,
            experts={1: ids},
            step=0.1 * (i - 0.7),
            tokens=10 + i,
            dtype="float32",
        )
        for i, ids in enumerate(held)
    ]


def test_the_sum_adds_every_shards_change(base: Path, shards: list[Path], tmp_path: Path) -> None:
    merge = _merge(base, shards, tmp_path / "merged", method="sum", scale=0.5)
    before, after = Reader(base), Reader(tmp_path / "merged")
    expected = before.read(NAME).double() + 0.5 * 0.1 * (-0.7 + 0.3 + 1.3)
    torch.testing.assert_close(after.read(NAME).double(), expected, rtol=0, atol=1e-7)  # float32
    assert set(merge.parts[NAME].values()) == {0.5}
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert record["config"] == {"method": "sum", "scale": 0.5}


def test_ties_takes_the_changes_of_the_elected_sign(
    base: Path, shards: list[Path], tmp_path: Path
) -> None:
    merge = _merge(base, shards, tmp_path / "merged", method="ties", density=1.0)
    before, after = Reader(base), Reader(tmp_path / "merged")
    expected = before.read(NAME).double() + 0.1 * (0.3 + 1.3) / 2
    torch.testing.assert_close(after.read(NAME).double(), expected, rtol=0, atol=1e-7)  # float32
    weights = [merge.parts[NAME][ShardManifest.read(shard).digest] for shard in shards]
    assert weights == pytest.approx([0.0, 0.5, 0.5])


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_shards_does_not_matter_to_the_last_bit(
    method: str, dtype: str, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1", dtype)
    shards = [
        make_shard(f"shard{i}", base, tokens=17 + 100 * i, step=0.1 * (i - 1.1) / 3, dtype=dtype)
        for i in range(4)
    ]
    digests, records = set(), set()
    for number, order in enumerate((shards, shards[::-1], shards[2:] + shards[:2])):
        out = tmp_path / f"merged{number}"
        digests.add(_merge(base, order, out, method=method).digest)
        records.add((out / "merge.json").read_text())
    assert len(digests) == len(records) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("method", METHODS)
def test_shards_that_changed_nothing_return_the_base(
    method: str, dtype: str, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v3", dtype)
    shards = [make_shard(f"shard{i}", base, step=0.0, tokens=i) for i in range(3)]
    assert _merge(base, shards, tmp_path / "merged", method=method).digest == digest(base)


@pytest.mark.parametrize("method", METHODS)
def test_a_shard_without_tokens_has_no_part(
    method: str, base: Path, shards: list[Path], make_shard: MakeShard, tmp_path: Path
) -> None:
    idle = make_shard("idle", base, tokens=0, step=9.0, dtype="float32")
    both = _merge(base, [idle, *shards], tmp_path / "both", method=method)
    assert both.digest == _merge(base, shards, tmp_path / "alone", method=method).digest


def test_a_graft_takes_the_named_experts_alone(
    base: Path, shards: list[Path], tmp_path: Path
) -> None:
    write_selection(tmp_path / "only.json", Selection(experts={1: (2, 6)}))
    only = str(tmp_path / "only.json")
    merge = _merge(base, shards, tmp_path / "merged", only=only)
    before, after = Reader(base), Reader(tmp_path / "merged")
    changed = {name for name in before.names if not before.read(name).equal(after.read(name))}
    assert {name.rpartition(".mlp.experts.")[2][0] for name in changed} == {"2", "6"}
    assert changed == set(merge.parts)


@pytest.mark.parametrize("experts", [{1: (0,)}, {2: (2,)}, {1: (2, 99)}])
def test_a_graft_of_what_no_shard_was_trained_on_is_refused(
    experts: dict[int, tuple[int, ...]], base: Path, shards: list[Path], tmp_path: Path
) -> None:
    write_selection(tmp_path / "only.json", Selection(experts=experts))
    message = r"only names expert \d+ of layer \d, which none of the shards was trained on; name"
    with pytest.raises(ShardError, match=message):
        _merge(base, shards, tmp_path / "merged", only=str(tmp_path / "only.json"))
    assert not (tmp_path / "merged").exists()
