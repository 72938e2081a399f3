"""Reading: only what is asked for, into the memory that is there."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from moesaic.checkpoint.files import read_safetensors
from moesaic.checkpoint.fresh import fresh_tensor
from moesaic.checkpoint.load import Reader, load_into
from moesaic.checkpoint.names import places, state_shapes
from moesaic.checkpoint.save import write
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError

Fresh = Callable[..., Path]
FAMILIES = ("v1", "v2", "v3")
GATE_UP = "model.layers.1.mlp.experts.gate_up_proj"
DOWN = "model.layers.1.mlp.experts.down_proj"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_loading_fills_every_tensor_in_place(fresh: Fresh, family: str, dtype: torch.dtype) -> None:
    folder = fresh(family)
    reader, published = Reader(folder), read_safetensors(folder / "model.safetensors")
    state = {
        name: torch.full(shape, torch.nan, dtype=dtype)
        for name, shape in state_shapes(reader.config).items()
    }
    where = {name: tensor.data_ptr() for name, tensor in state.items()}
    load_into(reader, state)
    for spec, found in places(reader.config):
        assert torch.equal(found.of(state[found.name]), published[spec.name].to(dtype))
    assert where == {name: tensor.data_ptr() for name, tensor in state.items()}


def test_a_subset_of_experts_equals_that_part_of_all(fresh: Fresh) -> None:
    reader, resident = Reader(fresh("v2")), {1: (0, 3, 7), 2: ()}
    whole, part = _empty(reader.config), _empty(reader.config, resident)
    load_into(reader, whole)
    load_into(reader, part, resident)
    for name, tensor in part.items():
        layer = int(name.split(".")[2]) if "experts." in name else None
        slots = resident.get(layer) if layer is not None and "_proj.weight" not in name else None
        assert torch.equal(tensor, whole[name] if slots is None else whole[name][list(slots)])


def test_tensors_of_a_model_that_learns_are_filled(fresh: Fresh) -> None:
    reader = Reader(fresh("v2"))
    weight = torch.nn.Parameter(torch.zeros(state_shapes(reader.config)[DOWN]))
    load_into(reader, {DOWN: weight})
    assert weight.grad_fn is None
    assert weight.abs().sum() > 0


def test_what_is_not_asked_for_is_not_read(
    tmp_path: Path, tiny_config: Callable[..., ModelConfig], generator: torch.Generator
) -> None:
    folder = tmp_path / "base"
    write(
        folder,
        tiny_config("v2"),
        lambda spec: fresh_tensor(spec, 0.1, torch.float32, generator),
        "float32",
        file_bytes=1,  # every tensor in a file of its own
    )
    reader, resident = Reader(folder), {1: (2,)}
    wanted = [spec.name for spec, found in places(reader.config, resident) if found.name == DOWN]
    assert wanted == ["model.layers.1.mlp.experts.2.down_proj.weight"]
    kept = reader.locate(wanted[0]).path
    for path in folder.glob("*.safetensors"):
        if path != kept:
            path.unlink()
    state = {DOWN: torch.zeros(1, 16, 8)}
    load_into(reader, state, resident)
    assert torch.equal(state[DOWN][0], reader.read(wanted[0]))


def test_reading_keeps_the_stored_type_or_gives_the_one_asked_for(fresh: Fresh) -> None:
    reader = Reader(fresh("v3", "bfloat16"))
    norm, bias = "model.norm.weight", "model.layers.1.mlp.gate.e_score_correction_bias"
    assert reader.read(norm).dtype == torch.bfloat16
    assert reader.read(norm, torch.float16).dtype == torch.float16
    assert reader.read(bias).dtype == torch.float32
    assert norm in reader.names


def test_a_name_the_checkpoint_does_not_know_is_refused(fresh: Fresh) -> None:
    with pytest.raises(CheckpointError, match=r"has no tensor model.norm; did you mean"):
        Reader(fresh("v2")).read("model.norm")


def test_a_state_of_another_model_is_refused_before_anything_is_read(fresh: Fresh) -> None:
    reader = Reader(fresh("v2"))
    state = {"model.norm.weight": torch.zeros(16)}
    with pytest.raises(CheckpointError, match=r"the model has a tensor model.norm.bias, the check"):
        load_into(reader, {**state, "model.norm.bias": torch.zeros(16)})
    with pytest.raises(CheckpointError, match=r"has shape \[8, 16, 16\] in the model, \[2, 16, 16"):
        load_into(reader, {**state, GATE_UP: torch.zeros(8, 16, 16)}, {1: (0, 1)})
    assert not state["model.norm.weight"].any()


def _empty(
    config: ModelConfig, resident: dict[int, tuple[int, ...]] | None = None
) -> dict[str, torch.Tensor]:
    return {name: torch.empty(shape) for name, shape in state_shapes(config, resident).items()}
