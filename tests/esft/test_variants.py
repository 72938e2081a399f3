"""Variants of a slice: the same experts trained, the others parked, kept or natural."""

from typing import get_args

import pytest
import torch
from slices import TRAINED, MakeBase, MakeBatch, assert_same_lesson, loss_of, natural
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.config.esft import EsftConfig, Hold, Part
from moesaic.errors import ConfigError
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.model.build import load_model
from moesaic.model.experts import Experts
from moesaic.planner.inventory import tensors

KEPT = Selection(experts={1: (5, 2, 1), 2: (0, 3, 7)}, frozen={1: (0, 4), 2: (6,)})
EXACT: tuple[Hold, ...] = ("weights", "cpu", "disk")
FAMILIES = ("v1", "v2", "v3")


@pytest.mark.parametrize("hold", EXACT)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_natural_slice_has_the_full_models_loss_and_gradients(
    family: str,
    recompute: bool,
    hold: Hold,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base(family), make_batch(3, 16, generator)
    full, part = load_model(base), load_slice(base, natural(base), recompute=recompute, hold=hold)
    assert_same_lesson(part, full, batch)


@pytest.mark.parametrize("hold", EXACT)
def test_a_kept_slice_computes_what_one_with_all_of_them_trained_does(
    hold: Hold, make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base, batch = make_base("v2"), make_batch(3, 16, generator)
    both = {layer: (*ids, *KEPT.frozen[layer]) for layer, ids in KEPT.experts.items()}
    expected = loss_of(load_slice(base, Selection(experts=both)), batch)
    assert torch.equal(loss_of(load_slice(base, KEPT, hold=hold), batch), expected)


@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("hold", EXACT)
def test_a_change_of_the_trained_experts_is_seen_at_once(
    hold: Hold,
    dtype: str,
    compute: str | None,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base("v2", dtype), make_batch(2, 12, generator)
    part = load_slice(base, natural(base), dtype, compute_dtype=compute, hold=hold)
    full = load_model(base, dtype, compute_dtype=compute)
    before = loss_of(part, batch).item()
    with torch.no_grad():
        for layer, ids in TRAINED.experts.items():
            whole, stack = full.moe_layers()[layer].experts, part.moe_layers()[layer].experts
            for name in ("gate_up_proj", "down_proj"):
                getattr(stack, name).mul_(3.0)
                getattr(whole, name)[sorted(ids)] *= 3.0
    after = loss_of(part, batch)
    assert abs(after.item() - before) > 1e-3
    torch.testing.assert_close(after, loss_of(full, batch), rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("hold", EXACT)
def test_a_step_of_a_fused_optimizer_is_seen_at_once(
    hold: Hold, make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base, batch = make_base("v2"), make_batch(2, 12, generator)
    part = load_slice(base, natural(base), compute_dtype="bfloat16", hold=hold)
    trained = [p for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)  # which leaves no trace of a change
    loss_of(part, batch).backward()
    optimizer.step()
    for moe in part.moe_layers().values():
        stacks, parameters = _stacks_of(moe.experts), (*moe.experts.parameters(),)
        for stack, parameter in zip(stacks, parameters, strict=True):
            assert torch.equal(stack[: len(parameter)], parameter.bfloat16())


@pytest.mark.parametrize("hold", EXACT)
def test_a_step_leaves_every_frozen_expert_as_it_was(
    hold: Hold, make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base = make_base("v3")
    part, batch = load_slice(base, natural(base), hold=hold), make_batch(2, 16, generator)
    stores = {layer: moe.experts for layer, moe in part.moe_layers().items()}
    held = {layer: _frozen_of(experts) for layer, experts in stores.items()}
    optimizer = torch.optim.AdamW([p for p in part.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        loss_of(part, batch).backward()
        optimizer.step()
    for layer, experts in stores.items():
        for now, before in zip(_frozen_of(experts), held[layer], strict=True):
            assert torch.equal(now, before)


def _stacks_of(experts: Experts) -> tuple[Tensor, Tensor]:
    assert experts.frozen is not None
    gate_up, down = experts.frozen.beside(experts.gate_up_proj, experts.down_proj)
    assert isinstance(gate_up, Tensor)
    assert isinstance(down, Tensor)
    return gate_up, down


def _frozen_of(experts: Experts) -> list[Tensor]:
    stacks = _stacks_of(experts)
    return [stack[len(experts.stacked) :].clone() for stack in stacks]


def test_a_layer_without_trained_experts_holds_them_all_frozen(make_base: MakeBase) -> None:
    base = make_base("v2")
    selection = Selection(experts={2: (0, 3, 7)}).natural(Reader(base).config)
    part = load_slice(base, selection)
    assert part.moe_layers()[1].experts.stacked == ()
    assert part.moe_layers()[1].experts.resident == tuple(range(8))
    trained = {name for name, parameter in part.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[2] for name in trained} == {"2"}


def test_trained_and_frozen_experts_of_one_type_are_held_once(make_base: MakeBase) -> None:
    base = make_base("v1", "bfloat16")
    part = load_slice(base, natural(base), "bfloat16")
    for moe in part.moe_layers().values():
        stacks = _stacks_of(moe.experts)
        assert stacks[0].data_ptr() == moe.experts.gate_up_proj.data_ptr()
        assert stacks[1].data_ptr() == moe.experts.down_proj.data_ptr()


@pytest.mark.parametrize("part", get_args(Part))
def test_a_part_is_trained_if_selected(part: str, make_base: MakeBase) -> None:
    model = load_slice(make_base("v2"), TRAINED.changed(modules=(part,)))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    of_part = {spec.name for spec in tensors(model.config) if spec.role == part}
    assert of_part
    assert {name for name in trained if ".mlp.experts." not in name} == of_part


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"variant": "frozen-kept"},
            "frozen-kept' needs one of frozen_experts and frozen_coverage, not none of them; set",
        ),
        (
            {"variant": "frozen-kept", "frozen_experts": 4, "frozen_coverage": 0.8},
            "needs one of .*, not frozen_experts=4, frozen_coverage=0.8; set how many",
        ),
        ({"frozen_experts": 4}, "variant='masked' has no use for frozen_experts=4; remove that"),
        ({"frozen_coverage": 1.5}, "frozen_coverage=1.5 is not allowed; it should be less than"),
        ({"hold": "int8"}, "has no use with variant='masked'"),
        ({"variant": "natura"}, "did you mean 'natural'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        EsftConfig.parse({"experts": 4, **settings})


def test_an_expert_is_trained_or_frozen_not_both() -> None:
    with pytest.raises(ConfigError, match=r"frozen.1=\[2\] names \[2\], which are trained"):
        Selection.parse({"experts": {1: [1, 2]}, "frozen": {1: [2]}})
