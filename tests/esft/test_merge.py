"""Merging: what changes, what keeps its bytes, how means are taken, and what is refused."""

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import moesaic
from moesaic.checkpoint.check import check
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.load import Reader
from moesaic.data.batch import NOTHING_FED
from moesaic.errors import CheckpointError, ShardError
from moesaic.esft.manifest import Work
from moesaic.esft.merge import merge_shards
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import ShardManifest, write_shard

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]


def _bytes(folder: Path) -> dict[str, bytes]:
    """The bytes of every stored tensor."""
    stored = check(folder).stored
    return {
        name: read_tensor(tensor).view(torch.uint8).numpy().tobytes()
        for name, tensor in stored.items()
    }


def _changed(base: Path, merged: Path) -> set[str]:
    before, after = _bytes(base), _bytes(merged)
    assert before.keys() == after.keys()
    return {name for name in before if before[name] != after[name]}


def _experts(experts: dict[int, tuple[int, ...]]) -> set[str]:
    return {
        _name(layer, expert, kind)
        for layer, ids in experts.items()
        for expert in ids
        for kind in ("gate", "up", "down")
    }


def _name(layer: int, expert: int, kind: str = "up") -> str:
    return f"model.layers.{layer}.mlp.experts.{expert}.{kind}_proj.weight"


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_only_the_named_experts_change(
    family: str, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base(family)
    shard = make_shard("shard", base, experts={1: (1, 2, 5), 2: (0, 3, 7)})
    merge_shards(base, [shard], tmp_path / "merged")
    assert _changed(base, tmp_path / "merged") == _experts({1: (1, 2, 5), 2: (0, 3, 7)})


def test_one_shard_replaces_what_it_trained(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2")
    shard = make_shard("shard", base, step=0.25)
    moesaic.merge_shards(base, [shard], tmp_path / "merged")
    before, after = Reader(base), Reader(tmp_path / "merged")
    for name in _experts({1: (1, 2, 5), 2: (0, 3, 7)}):
        expected = (before.read(name, torch.float32) + 0.25).to(torch.bfloat16)
        assert torch.equal(after.read(name), expected)


def test_shards_with_different_experts_each_replace_their_own(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2")
    first = make_shard("first", base, experts={1: (1, 2, 5)}, step=0.25)
    second = make_shard("second", base, experts={1: (0, 3, 4), 2: (5, 6, 7)}, step=-0.5, tokens=7)
    merge_shards(base, [first, second], tmp_path / "merged")
    before, after = Reader(base), Reader(tmp_path / "merged")
    for expert, step in ((2, 0.25), (3, -0.5)):
        name = f"model.layers.1.mlp.experts.{expert}.up_proj.weight"
        expected = (before.read(name, torch.float32) + step).to(torch.bfloat16)
        assert torch.equal(after.read(name), expected)


def test_an_expert_that_several_trained_is_their_mean_by_tokens(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1", "float32")
    few = make_shard("few", base, tokens=100, step=0.4, dtype="float32")
    many = make_shard("many", base, tokens=300, step=-0.8, dtype="float32")
    merge_shards(base, [few, many], tmp_path / "merged")
    name = "model.layers.2.mlp.experts.3.down_proj.weight"
    got = Reader(tmp_path / "merged").read(name)
    expected = Reader(base).read(name).double() + 0.25 * 0.4 - 0.75 * 0.8
    torch.testing.assert_close(got.double(), expected, rtol=0, atol=1e-7)  # float32 weights near 1


def test_the_order_of_shards_does_not_matter_to_the_last_bit(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2", "float32")
    shards = [
        make_shard(f"shard{i}", base, tokens=17 + 100 * i, step=0.1 * (i + 1) / 3, dtype="float32")
        for i in range(3)
    ]
    digests, records = set(), set()
    for number, order in enumerate(itertools.permutations(shards)):
        out = tmp_path / f"merged{number}"
        digests.add(merge_shards(base, order, out).digest)
        records.add((out / "merge.json").read_text())
    assert len(digests) == len(records) == 1


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "float8_e4m3fn"])
@pytest.mark.parametrize("tokens", [0, 1000])
def test_merging_a_shard_that_changed_nothing_returns_the_base(
    dtype: str, tokens: int, make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v3", dtype)
    shard = make_shard("shard", base, step=0.0, tokens=tokens)
    merge = merge_shards(base, [shard], tmp_path / "merged")
    assert merge.digest == merge.base == digest(base)
    assert not _changed(base, tmp_path / "merged")


def test_equal_shards_of_different_work_return_what_each_holds(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1")
    one = merge_shards(base, [make_shard("one", base)], tmp_path / "one-merged")
    more = [make_shard(f"more{i}", base, tokens=3 + 10**i) for i in range(4)]
    assert merge_shards(base, more, tmp_path / "all-merged").digest == one.digest


def test_a_shard_without_tokens_has_no_part_in_a_mean(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1")
    idle = make_shard("idle", base, tokens=0, step=9.0)
    busy = make_shard("busy", base, tokens=5)
    both = merge_shards(base, [idle, busy], tmp_path / "both")
    assert both.digest == merge_shards(base, [busy], tmp_path / "alone").digest
    parts = json.loads((tmp_path / "both" / "merge.json").read_text())["parts"]
    name = "model.layers.1.mlp.experts.5.up_proj.weight"
    assert parts[name] == {ShardManifest.read(busy).digest: 1.0}


def test_experts_in_fp8_blocks_are_quantised_again_and_the_rest_keeps_its_bytes(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v3", "float8_e4m3fn")
    shard = make_shard("shard", base, step=0.5, dtype="float32")
    merge_shards(base, [shard], tmp_path / "merged")
    trained = _experts({1: (1, 2, 5), 2: (0, 3, 7)})
    assert trained <= _changed(base, tmp_path / "merged")
    assert _changed(base, tmp_path / "merged") <= trained | {f"{n}_scale_inv" for n in trained}
    before, after = Reader(base), Reader(tmp_path / "merged")
    for name in trained:
        expected = before.read(name) + 0.5
        # e4m3 keeps 3 bits after the leading one: values err by at most 1/16
        torch.testing.assert_close(after.read(name), expected, rtol=1 / 16, atol=1e-3)


def test_what_repeats_a_trained_tensor_changes_with_it(make_base: MakeBase, tmp_path: Path) -> None:
    base = make_base("v3", "float32")
    selection = Selection(
        experts={1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 2)}, non_expert_modules=True
    )
    model = load_slice(base, selection)
    with torch.no_grad():
        model.model.embed_tokens.weight += 1
    work = Work(base=digest(base), run={}, data=(), tokens=1, steps=1)
    write_shard(tmp_path / "shard", model, selection, work, "float32")
    merge_shards(base, [tmp_path / "shard"], tmp_path / "merged")
    names = {"model.embed_tokens.weight", "model.layers.3.embed_tokens.weight"}
    assert names & set(_bytes(base)) == names
    assert _changed(base, tmp_path / "merged") == names


def test_files_and_everything_beside_the_weights_stay_as_they_were(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2")
    merge_shards(base, [make_shard("shard", base)], tmp_path / "merged")
    before = {path.name: path.stat().st_size for path in base.iterdir()}
    after = {path.name: path.stat().st_size for path in (tmp_path / "merged").iterdir()}
    assert after.pop("merge.json")
    assert after.pop("README.md")
    assert before.keys() == after.keys()
    assert len(check(base).files) > 1
    for name in ("config.json", "generation_config.json", "tokenizer.json"):
        assert (tmp_path / "merged" / name).read_bytes() == (base / name).read_bytes()


def test_the_record_tells_every_shards_part_of_every_tensor(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1")
    first = make_shard("first", base, experts={1: (1, 2, 5)}, tokens=100)
    second = make_shard("second", base, experts={1: (5, 6, 7)}, tokens=300)
    merge = merge_shards(base, [first, second], tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    one, two = ShardManifest.read(first).digest, ShardManifest.read(second).digest
    assert record["base"] == digest(base)
    assert record["digest"] == merge.digest == digest(tmp_path / "merged", verify=True)
    assert record["shards"][two] == {
        "variant": "masked",
        "hold": "weights",
        "hold_linears": "weights",
        "data": ["math"],
        "fed": NOTHING_FED,
        "tokens": 300,
        "steps": 2,
        "signed_by": None,
    }
    assert set(record["parts"]) == _experts({1: (1, 2, 5, 6, 7)})
    assert record["parts"][_name(1, 1)] == {one: 1.0}
    assert record["parts"][_name(1, 5)] == {one: 0.25, two: 0.75}


def test_the_record_tells_where_shards_disagree(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1", "float32")
    first = make_shard("first", base, experts={1: (1, 2, 5)}, step=0.5, dtype="float32")
    second = make_shard("second", base, experts={1: (5, 6, 7)}, step=-0.25, dtype="float32")
    merge_shards(base, [first, second], tmp_path / "merged")
    record = json.loads((tmp_path / "merged" / "merge.json").read_text())
    assert (record["overlap"]["experts"], record["overlap"]["others"]) == (1, 0)
    (pair,) = record["layers"]["1"]["pairs"]
    assert sorted(pair["shards"]) == sorted(ShardManifest.read(s).digest for s in (first, second))
    assert (pair["cosine"], pair["opposed"]) == (pytest.approx(-1), 1.0)
    root = (3 * 16 * 8) ** 0.5
    assert sorted(pair["norms"]) == pytest.approx([0.25 * root, 0.5 * root])


def test_a_merged_checkpoint_is_the_base_of_the_next_round(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v2")
    merge_shards(base, [make_shard("shard", base)], tmp_path / "merged")
    again = make_shard("again", tmp_path / "merged", experts={2: (1, 2, 3)})
    merge_shards(tmp_path / "merged", [again], tmp_path / "twice")
    assert _changed(tmp_path / "merged", tmp_path / "twice") == _experts({2: (1, 2, 3)})
    with pytest.raises(ShardError, match="trained from base"):
        merge_shards(base, [again], tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_every_tensor_written_is_announced(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base, seen = make_base("v2"), []
    merge_shards(base, [make_shard("shard", base)], tmp_path / "merged", seen.append)
    assert sorted(seen) == sorted(check(base).stored)


def test_a_shard_given_twice_is_refused(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1")
    shard = make_shard("shard", base)
    with pytest.raises(ShardError, match=r"shard is the same shard as .*give it once"):
        merge_shards(base, [shard, shard], tmp_path / "merged")


def test_a_merge_of_no_shards_is_refused(make_base: MakeBase, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="no shard is given; give the folders of those to merge"):
        merge_shards(make_base("v1"), [], tmp_path / "merged")


def test_a_folder_that_is_not_empty_is_not_written_to(
    make_base: MakeBase, make_shard: MakeShard
) -> None:
    base = make_base("v1")
    before = _bytes(base)
    with pytest.raises(CheckpointError, match="base is not empty; give a new folder"):
        merge_shards(base, [make_shard("shard", base)], base)
    assert _bytes(base) == before


def test_a_mean_that_the_bases_type_cannot_hold_is_refused_and_nothing_is_left(
    make_base: MakeBase, make_shard: MakeShard, tmp_path: Path
) -> None:
    base = make_base("v1", "float16")
    shard = make_shard("shard", base, step=1e6, dtype="float32")
    with pytest.raises(ShardError, match=r"shards come to goes up to 1e\+06, more than .* F16 can"):
        merge_shards(base, [shard], tmp_path / "merged")
    assert not list(tmp_path.glob("merged*"))
