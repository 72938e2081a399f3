"""Shards: what they hold, and every reason not to accept one, told."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from slices import flip_last_bit
from torch import Tensor

from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import read_safetensors, write_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError, ShardError
from moesaic.esft.check import check_shard
from moesaic.esft.manifest import Work, digest_of
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.esft.shard import ShardManifest, write_shard

MakeBase = Callable[..., Path]
MakeShard = Callable[..., Path]

GATE = "model.layers.1.mlp.experts.2.gate_proj.weight"


@pytest.fixture
def base(make_base: MakeBase) -> Path:
    return make_base("v2")


@pytest.fixture
def shard(built_shard: Path, tmp_path: Path) -> Path:
    return shutil.copytree(built_shard, tmp_path / "shard")


def _check(shard: Path, base: Path) -> None:
    check_shard(shard, Reader(base), digest(base))


def _change(shard: Path, **values: Any) -> None:
    """Change the manifest and leave all else."""
    path = shard / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def _replace(shard: Path, **tensors: Tensor | None) -> None:
    """Change, add or remove tensors, and name their new bytes in the manifest."""
    path = shard / "shard.safetensors"
    held: dict[str, Any] = read_safetensors(path) | {
        n.replace("__", "."): t for n, t in tensors.items()
    }
    digests = write_safetensors(path, {name: t for name, t in held.items() if t is not None})
    _change(shard, tensors=digests)


def test_a_shard_holds_the_trained_experts_under_their_published_names(
    shard: Path, base: Path
) -> None:
    held = read_safetensors(shard / "shard.safetensors")
    reader = Reader(base)
    assert len(held) == (3 + 3) * 3
    assert {tensor.dtype for tensor in held.values()} == {torch.bfloat16}
    for name, tensor in held.items():
        expected = (reader.read(name, torch.float32) + 0.5).to(torch.bfloat16)
        assert torch.equal(tensor, expected), name


def test_a_manifest_says_what_was_trained_from_what(shard: Path, base: Path) -> None:
    manifest = ShardManifest.read(shard)
    assert manifest.work.base == digest(base)
    assert manifest.model == digest_of(Reader(base).config)
    assert manifest.selection.experts == {1: (1, 2, 5), 2: (0, 3, 7)}
    assert (manifest.work.tokens, manifest.work.steps, manifest.work.data) == (100, 2, ("math",))
    assert manifest.dtype == "bfloat16"
    assert set(manifest.tensors) == set(read_safetensors(shard / "shard.safetensors"))


def test_a_manifest_is_written_and_read_back(shard: Path) -> None:
    text = json.loads((shard / "manifest.json").read_text())
    assert text["format"] == 3
    assert ShardManifest.parse(text) == ShardManifest.read(shard)


def test_the_digest_of_a_shard_sees_its_tensors_and_its_work(
    make_shard: MakeShard, base: Path
) -> None:
    first = ShardManifest.read(make_shard("a", base))
    again = ShardManifest.read(make_shard("b", base))
    assert first.digest == again.digest
    assert first.digest != ShardManifest.read(make_shard("c", base, tokens=101)).digest
    assert first.digest != ShardManifest.read(make_shard("d", base, step=0.25)).digest


def test_a_sound_shard_is_accepted(shard: Path, base: Path) -> None:
    checked = check_shard(shard, Reader(base), digest(base))
    assert checked.tokens == 100
    assert torch.equal(checked.read(GATE), read_safetensors(shard / "shard.safetensors")[GATE])


def test_a_shard_of_shared_experts_and_the_rest_is_accepted(
    make_base: MakeBase, tmp_path: Path
) -> None:
    base = make_base("v3", tie_word_embeddings=True)
    selection = Selection(
        experts={1: (0, 1, 2), 2: (0, 1, 2), 3: (0, 1, 2)},
        shared_experts=True,
        non_expert_modules=True,
    )
    work = Work(base=digest(base), run={}, data=(), tokens=1, steps=1)
    manifest = write_shard(tmp_path / "shard", load_slice(base, selection), selection, work)
    assert "model.embed_tokens.weight" in manifest.tensors
    assert "model.layers.1.mlp.shared_experts.up_proj.weight" in manifest.tensors
    assert not any("correction_bias" in name for name in manifest.tensors)
    _check(tmp_path / "shard", base)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_not_written(
    bad: float, base: Path, tmp_path: Path
) -> None:
    selection = Selection(experts={1: (1, 2, 5), 2: (0, 3, 7)})
    model = load_slice(base, selection)
    with torch.no_grad():
        model.moe_layers()[1].experts.gate_up_proj[1, 0, 0] = bad
    work = Work(base=digest(base), run={}, data=(), tokens=1, steps=1)
    message = f"{GATE} holds values that are not finite in bfloat16 .*; train again with a lower"
    with pytest.raises(ShardError, match=message):
        write_shard(tmp_path / "bad", model, selection, work)
    assert not (tmp_path / "bad").exists()


def test_a_shard_is_not_written_over_another(
    shard: Path, base: Path, make_shard: MakeShard
) -> None:
    before = (shard / "manifest.json").read_bytes()
    with pytest.raises(CheckpointError, match="shard is not empty; give a new folder"):
        make_shard("shard", base, step=1.0)
    assert (shard / "manifest.json").read_bytes() == before


def test_a_shard_of_another_base_is_refused(shard: Path, base: Path) -> None:
    reader = Reader(base)
    with pytest.raises(
        ShardError,
        match=r"manifest\.json: trained from base \w{12}, .*base is 111111111111; fetch the base",
    ):
        check_shard(shard, reader, "1" * 64)


def test_a_shard_of_a_model_with_other_settings_is_refused(shard: Path, base: Path) -> None:
    config = base / "config.json"
    config.write_text(config.read_text().replace("16.0", "8.0"))
    with pytest.raises(ShardError, match="trained from a model with the settings"):
        _check(shard, base)


@pytest.mark.parametrize(
    ("experts", "message"),
    [
        ({"1": [1, 2, 8], "2": [0, 3, 7]}, "expert 8 of layer 1 is not in .*, where .* has 8"),
        ({"1": [1, 2, 5], "3": [0, 3, 7]}, "expert 0 of layer 3 is not in .*, where .* has 0"),
        ({"0": [1, 2, 5], "2": [0, 3, 7]}, "expert 1 of layer 0 is not in .*, where .* has 0"),
    ],
)
def test_an_expert_that_the_base_has_not_is_refused(
    experts: dict[str, list[int]], message: str, shard: Path, base: Path
) -> None:
    _change(shard, selection={"experts": experts})
    with pytest.raises(ShardError, match=rf"manifest\.json: {message}.*fetch the shard again"):
        _check(shard, base)


def test_a_frozen_expert_that_the_base_has_not_is_refused(shard: Path, base: Path) -> None:
    _change(shard, selection={"experts": {"1": [1, 2, 5], "2": [0, 3, 7]}, "frozen": {"1": [9]}})
    with pytest.raises(ShardError, match=r"manifest\.json: expert 9 of layer 1 is not in"):
        _check(shard, base)


def test_a_tensor_that_is_missing_is_named(shard: Path, base: Path) -> None:
    _replace(shard, **{GATE: None})
    with pytest.raises(
        ShardError, match=rf"shard\.safetensors: tensor {GATE} is missing, .*fetch the shard again"
    ):
        _check(shard, base)


def test_a_tensor_that_the_manifest_does_not_name_is_refused(shard: Path, base: Path) -> None:
    named = json.loads((shard / "manifest.json").read_text())["tensors"]
    del named[GATE]
    _change(shard, tensors=named)
    with pytest.raises(ShardError, match=rf"manifest\.json: tensor {GATE} is missing"):
        _check(shard, base)


@pytest.mark.parametrize("name", ["model.norm.weight", GATE.replace("experts.2", "experts.3")])
def test_a_tensor_that_was_not_to_be_trained_is_refused(name: str, shard: Path, base: Path) -> None:
    _replace(shard, **{name: Reader(base).read(name)})
    with pytest.raises(ShardError, match=f"tensor {name} is none of those .*do not use this shard"):
        _check(shard, base)


def test_a_tensor_of_another_shape_is_refused(shard: Path, base: Path) -> None:
    _replace(shard, **{GATE: read_safetensors(shard / "shard.safetensors")[GATE].T.contiguous()})
    with pytest.raises(
        ShardError, match=rf"{GATE} has shape \[16, 8\], the base's is \[8, 16\]; it was changed"
    ):
        _check(shard, base)


def test_a_tensor_of_another_type_is_refused(shard: Path, base: Path) -> None:
    _replace(shard, **{GATE: read_safetensors(shard / "shard.safetensors")[GATE].float()})
    with pytest.raises(ShardError, match=f"{GATE} is F32, the manifest says bfloat16"):
        _check(shard, base)


@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_values_that_are_not_finite_are_refused(bad: float, shard: Path, base: Path) -> None:
    tensor = read_safetensors(shard / "shard.safetensors")[GATE]
    tensor[3, 4] = bad
    _replace(shard, **{GATE: tensor})
    with pytest.raises(ShardError, match=f"{GATE} holds values that are not finite; leave this"):
        _check(shard, base)


def test_one_changed_bit_is_found(shard: Path, base: Path) -> None:
    flip_last_bit(shard / "shard.safetensors")
    with pytest.raises(ShardError, match="does not have the sha256 that the manifest names"):
        _check(shard, base)


def test_a_root_that_does_not_stand_for_the_tensors_is_refused(shard: Path, base: Path) -> None:
    _change(shard, root="2" * 64)
    with pytest.raises(ShardError, match=r"manifest\.json: root is not the digest of the tensors"):
        _check(shard, base)


def test_a_file_cut_short_is_refused(shard: Path, base: Path) -> None:
    path = shard / "shard.safetensors"
    os.truncate(path, path.stat().st_size - 5)
    with pytest.raises(ShardError, match=r"shard\.safetensors.*cut short.*fetch it again"):
        _check(shard, base)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"format": 1},
            r"format=1 is not 3, the one that is read here; use the version of moesaic",
        ),
        ({"root": "abc"}, "root='abc' is not allowed; .* the manifest is damaged: fetch the shard"),
        ({"dtype": "int8"}, "dtype='int8' is not one of"),
        ({"extra": 1}, "extra is not a setting"),
        ({"work": {}}, r"work\.base is missing"),
    ],
)
def test_a_manifest_of_another_form_is_refused(
    values: dict[str, Any], message: str, shard: Path
) -> None:
    _change(shard, **values)
    with pytest.raises(ShardError, match=rf"manifest\.json: {message}"):
        ShardManifest.read(shard)


def test_a_manifest_cut_short_is_refused(shard: Path) -> None:
    path = shard / "manifest.json"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ShardError, match=r"manifest\.json is not JSON .*fetch it again"):
        ShardManifest.read(shard)


def test_a_folder_without_a_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"manifest\.json cannot be read .*give the folder of a"):
        ShardManifest.read(tmp_path)


def test_a_link_out_of_the_shard_is_refused(shard: Path, tmp_path: Path) -> None:
    (shard / "manifest.json").rename(tmp_path / "elsewhere.json")
    (shard / "manifest.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(ShardError, match=r"is a link to .*out of the folder"):
        ShardManifest.read(shard)
