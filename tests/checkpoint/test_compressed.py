"""Weights in integers on disk, in the layout of compressed-tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from moesaic.checkpoint.check import check
from moesaic.checkpoint.compressed import pack_codes, unpack_codes
from moesaic.checkpoint.files import read_safetensors, write_safetensors
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.quantise import Form, quantise_folder
from moesaic.errors import CheckpointError
from moesaic.kernels.groupwise import dequantise_groups, quantise_groups
from moesaic.kernels.quantise import dequantise, quantise
from moesaic.model.build import load_model
from moesaic.planner.inventory import TensorSpec, tensors

Fresh = Callable[..., Path]
WIDE = {"hidden_size": 64, "moe_intermediate_size": 32, "intermediate_size": 96}
"""Rows of whole groups of 32."""
DOWN = "model.layers.0.mlp.down_proj.weight"


def quantised(base: Path, form: Form, name: str = "quantised", group: int = 32) -> Path:
    folder = base.parent / name
    quantise_folder(Reader(base), folder, form, group, lambda spec: None)
    return folder


def is_packed(spec: TensorSpec) -> bool:
    return spec.may_be_quantised and "kv_b_proj" not in spec.name and spec.shape[1] % 32 == 0


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("width", [64, 20, 1])
def test_codes_come_back_from_their_words(
    bits: int, width: int, generator: torch.Generator
) -> None:
    half = 2 ** (bits - 1)
    codes = torch.randint(-half, half, (3, width), generator=generator).to(torch.int8)
    words = pack_codes(codes, bits)
    assert (words.dtype, words.shape) == (torch.int32, (3, -(-width * bits // 32)))
    assert torch.equal(unpack_codes(words, bits, width), codes)


def test_codes_lie_lowest_bits_first_and_are_moved_above_zero() -> None:
    codes = torch.tensor([[-8, -7, 0, 7, 1, -1, 2, -8]], dtype=torch.int8)
    assert pack_codes(codes, 4).view(torch.uint32).item() == 0x0A79F810
    assert pack_codes(codes[:, :4], 8).view(torch.uint32).item() == 0x87807978


@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
@pytest.mark.parametrize("form", ["4", "8"])
def test_every_tensor_comes_back_as_what_its_codes_stand_for(
    fresh: Fresh, family: str, form: Form
) -> None:
    base = fresh(family, "bfloat16", **WIDE)
    folder = quantised(base, form)
    plain, packed = Reader(base), Reader(folder)
    for spec in tensors(plain.config):
        wanted = plain.read(spec.name)
        if is_packed(spec):
            wanted = dequantise_groups(quantise_groups(wanted, 4 if form == "4" else 8, 32))
        assert torch.equal(packed.read(spec.name), wanted), spec.name
        assert packed.shape(spec.name) == spec.shape
    state = load_model(folder).state_dict()
    assert torch.equal(state[DOWN], packed.read(DOWN))


def test_the_linear_layers_of_blocks_are_packed_and_nothing_else(fresh: Fresh) -> None:
    folder = quantised(fresh("v3", **WIDE), "4")
    found = read_safetensors(folder / "model.safetensors")
    for spec in tensors(Reader(folder).config):
        if is_packed(spec):
            rows, width = spec.shape
            words, scales = found.pop(f"{spec.name}_packed"), found.pop(f"{spec.name}_scale")
            assert (words.dtype, words.shape) == (torch.int32, (rows, width // 8))
            assert (scales.dtype, scales.shape) == (torch.bfloat16, (rows, width // 32))
            assert found.pop(f"{spec.name}_shape").tolist() == [rows, width]
        else:
            wanted = torch.float32 if spec.is_router_bias else torch.bfloat16
            assert found.pop(spec.name).dtype == wanted
    assert found == {}


def test_config_json_tells_the_layout_and_what_is_left_out(fresh: Fresh) -> None:
    folder = quantised(fresh("v3", **WIDE, q_lora_rank=24), "4")
    told = json.loads((folder / "config.json").read_text())["quantization_config"]
    groups = told.pop("config_groups")
    assert groups["group_0"]["targets"] == ["Linear"]
    assert groups["group_0"]["weights"] == {
        "num_bits": 4,
        "type": "int",
        "symmetric": True,
        "strategy": "group",
        "group_size": 32,
        "dynamic": False,
    }
    left_out = told.pop("ignore")
    assert {"lm_head", r"re:.*\.mlp\.gate$", r"re:.*\.kv_b_proj$"} <= set(left_out)
    assert "model.layers.0.self_attn.q_b_proj" in left_out  # rows of 24 are no whole groups
    assert told == {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
    }


def test_fp8_blocks_are_those_of_the_published_form(fresh: Fresh) -> None:
    base = fresh("v2", "bfloat16")
    plain, blocks = Reader(base), Reader(quantised(base, "fp8"))
    for spec in tensors(plain.config):
        wanted = plain.read(spec.name)
        wanted = dequantise(quantise(wanted)) if spec.may_be_quantised else wanted
        assert torch.equal(blocks.read(spec.name), wanted)


def test_a_published_fp8_checkpoint_becomes_integers(fresh: Fresh) -> None:
    base = fresh("v3", "float8_e4m3fn", **WIDE)
    wanted = dequantise_groups(quantise_groups(Reader(base).read(DOWN), 4, 32))
    assert torch.equal(Reader(quantised(base, "4")).read(DOWN), wanted)


def test_quantising_what_was_quantised_is_refused(fresh: Fresh) -> None:
    folder = quantised(fresh("v2", **WIDE), "8")
    with pytest.raises(CheckpointError, match="is in integers already, and would lose twice; give"):
        quantised(folder, "4", "again")


@pytest.mark.parametrize(
    ("inner", "group", "instead"),
    [(48, 32, "--bits fp8"), (96, 64, "--set group=32 or --bits fp8")],
)
def test_experts_that_would_be_packed_in_part_are_refused(
    fresh: Fresh, inner: int, group: int, instead: str
) -> None:
    base = fresh("v3", **{**WIDE, "moe_intermediate_size": inner})
    widths = " and ".join(map(str, sorted((inner, 64))))
    message = (
        f"experts of .* have rows of {widths} weights, not all of whole groups of {group}, and "
        f"vLLM .*; give {instead}$"
    )
    with pytest.raises(CheckpointError, match=message):
        quantised(base, "4", group=group)
    assert sorted(path.name for path in base.parent.iterdir()) == ["base"]


def test_a_model_without_whole_groups_is_refused(fresh: Fresh) -> None:
    base = fresh("v2")
    message = r"no layer of .* has rows of whole groups of 128.*; give --bits fp8$"
    with pytest.raises(CheckpointError, match=message):
        quantised(base, "4", group=128)
    assert sorted(path.name for path in base.parent.iterdir()) == ["base"]


def test_a_sound_folder_says_so(fresh: Fresh) -> None:
    report = check(quantised(fresh("v3", **WIDE), "8"))
    assert report.is_sound
    assert not report.warnings
    assert report.dtypes()["I32"] > 0


def damaged(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    found = read_safetensors(folder / "model.safetensors")
    change(found)
    write_safetensors(folder / "model.safetensors", found)
    return folder


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda found: found.pop(f"{DOWN}_scale"),
            f"{DOWN}_scale is missing, a part of the packed integers of {DOWN}; fetch it",
        ),
        (
            lambda found: found.pop(f"{DOWN}_packed"),
            f"{DOWN} is missing; fetch the file that holds it",
        ),
        (
            lambda found: found.update({f"{DOWN}_packed": torch.zeros(64, 24, dtype=torch.int32)}),
            f"{DOWN}_packed has shape [64, 24], [64, 96] in 4 bits and groups of 32 needs "
            "[64, 12]; fetch it again, or correct quantization_config in config.json",
        ),
        (
            lambda found: found.update({f"{DOWN}_scale": torch.ones(64, 3, dtype=torch.int16)}),
            f"{DOWN}_scale is stored as I16, it should be BF16 or F16 or F32; fetch it again",
        ),
        (
            lambda found: found.update({DOWN: torch.ones(64, 96)}),
            f"{DOWN}_packed holds {DOWN}, which is stored as F32 too; remove one of them",
        ),
    ],
)
def test_what_is_wrong_with_packed_parts_is_told(
    fresh: Fresh, change: Callable[[dict[str, Any]], None], text: str
) -> None:
    folder = damaged(quantised(fresh("v2", **WIDE), "4"), change)
    with pytest.raises(CheckpointError) as caught:
        Reader(folder)
    assert text in str(caught.value)


def test_a_shape_that_contradicts_the_model_is_told(fresh: Fresh) -> None:
    def change(found: dict[str, Any]) -> None:
        found[f"{DOWN}_shape"] = torch.tensor([64, 95])

    folder = damaged(quantised(fresh("v2", **WIDE), "4"), change)
    with pytest.raises(CheckpointError, match=r"_shape says \[64, 95\], config.json makes it"):
        Reader(folder).read(DOWN)


def test_integers_without_their_configuration_are_told(fresh: Fresh) -> None:
    folder = quantised(fresh("v2", **WIDE), "4")
    told = json.loads((folder / "config.json").read_text())
    del told["quantization_config"]
    (folder / "config.json").write_text(json.dumps(told))
    with pytest.raises(CheckpointError, match=r"is stored as packed integers, config\.json has no"):
        Reader(folder)


def test_values_that_are_not_finite_are_refused_by_name(fresh: Fresh) -> None:
    def change(found: dict[str, Any]) -> None:
        found[DOWN][1, 2] = torch.nan

    base = damaged(fresh("v2", **WIDE), change)
    with pytest.raises(CheckpointError, match=f"{DOWN} holds values that are not finite"):
        quantised(base, "4")
    assert not (base.parent / "quantised").exists()


@pytest.mark.parametrize("bits", [4, 8])
def test_what_is_read_is_quantised_again_without_a_change(
    bits: Literal[4, 8], generator: torch.Generator
) -> None:
    """A decoder that holds integers computes with exactly the stored ones."""
    read = dequantise_groups(quantise_groups(torch.randn(64, 256, generator=generator), bits, 64))
    assert torch.equal(dequantise_groups(quantise_groups(read, bits, 64)), read)
