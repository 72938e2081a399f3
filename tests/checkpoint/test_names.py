"""Stacked experts ⇄ one tensor per expert."""

from collections.abc import Callable

import pytest
import torch

from moesaic.checkpoint.names import places, state_shapes
from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.model.build import empty_model
from moesaic.model.residency import Residency
from moesaic.planner.inventory import tensors

FAMILIES = ("v1", "v2", "v3")
RESIDENT = {1: (0, 2, 7), 2: (1,)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("resident", [None, RESIDENT, {1: ()}])
def test_published_tensors_fill_every_element_of_the_state_once(
    tiny_config: Callable[..., ModelConfig], family: str, resident: dict[int, tuple[int, ...]]
) -> None:
    config = tiny_config(family)
    state = {name: torch.zeros(shape) for name, shape in state_shapes(config, resident).items()}
    for spec, found in places(config, resident):
        part = found.of(state[found.name])
        assert part.shape == spec.shape
        part += 1
    assert all(bool((tensor == 1).all()) for tensor in state.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_state_is_that_of_the_model(
    tiny_config: Callable[..., ModelConfig], family: str
) -> None:
    config = tiny_config(family)
    chosen = {layer: (1, 3, 6, 7) for layer in config.moe_layers}
    for resident in (None, chosen):
        model = empty_model(config, residency=Residency.only(resident) if resident else None)
        found = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        assert found == state_shapes(config, resident)


def test_gate_rows_come_before_up_rows(tiny_config: Callable[..., ModelConfig]) -> None:
    found = {spec.name: place for spec, place in places(tiny_config("v2"), {1: (4, 5)})}
    gate = found["model.layers.1.mlp.experts.5.gate_proj.weight"]
    up = found["model.layers.1.mlp.experts.5.up_proj.weight"]
    assert gate.name == up.name == "model.layers.1.mlp.experts.gate_up_proj"
    assert (gate.slot, gate.first_row, up.slot, up.first_row) == (1, 0, 1, 8)
    assert "model.layers.1.mlp.experts.1.gate_proj.weight" not in found


def test_an_expert_with_the_number_of_its_layer_keeps_its_name(
    tiny_config: Callable[..., ModelConfig],
) -> None:
    found = {spec.name: place for spec, place in places(tiny_config("v1"))}
    down = found["model.layers.2.mlp.experts.2.down_proj.weight"]
    assert (down.name, down.slot) == ("model.layers.2.mlp.experts.down_proj", 2)


def test_repeated_embeddings_have_no_place(tiny_config: Callable[..., ModelConfig]) -> None:
    config = tiny_config("v3")
    placed = {spec.name for spec, _ in places(config)}
    assert {spec.name for spec in tensors(config)} - placed == {
        "model.layers.3.embed_tokens.weight",
        "model.layers.3.shared_head.head.weight",
    }


@pytest.mark.parametrize(
    ("resident", "message"),
    [
        ({0: (1,)}, "layer 0 has no experts"),
        ({9: (1,)}, "layer 9 has no experts"),
        ({1: (3, 3)}, r"resident\[1\]: expert 3 follows 3; give ids that ascend"),
        ({1: (3, 8)}, "expert 8 follows 3; .* below n_routed_experts=8"),
        ({1: (-1,)}, "expert -1 follows -1"),
    ],
)
def test_a_residency_the_model_cannot_have_is_refused(
    tiny_config: Callable[..., ModelConfig], resident: dict[int, tuple[int, ...]], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        list(places(tiny_config("v2"), resident))
