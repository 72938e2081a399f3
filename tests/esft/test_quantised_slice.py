"""Slices whose frozen experts are integers: a full model with the weights that these stand for."""

from pathlib import Path

import pytest
import torch
from slices import TRAINED, MakeBase, MakeBatch, assert_same_lesson, loss_of, natural
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.config.esft import Hold
from moesaic.esft.hold import BITS
from moesaic.esft.park import load_slice
from moesaic.esft.select import Selection
from moesaic.kernels.groupwise import (
    Bits,
    GroupwiseWeight,
    dequantise_groups,
    quantise_groups,
)
from moesaic.model.adapt import adapt_, fresh_factors
from moesaic.model.build import load_model
from moesaic.model.quantised import QuantisedExperts, quantise_linears_
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import tensors

HOLDS: tuple[Hold, ...] = ("int8", "int4")
STACKS = ("gate_up_proj", "down_proj")


def _with_rounded_experts(base: Path, bits: Bits, trained: Selection = TRAINED) -> Transformer:
    """The full model, with every expert that is not trained as integers stand for it."""
    full = load_model(base)
    for layer, moe in full.moe_layers().items():
        kept = trained.experts.get(layer, ())
        for name in STACKS:
            for expert, weight in enumerate(getattr(moe.experts, name).detach()):
                if expert not in kept:
                    weight.copy_(dequantise_groups(quantise_groups(weight, bits)))
    return full


def _stores(model: Transformer) -> dict[int, QuantisedExperts]:
    found: dict[int, QuantisedExperts] = {}
    for layer, moe in model.moe_layers().items():
        assert isinstance(moe.experts.frozen, QuantisedExperts)
        found[layer] = moe.experts.frozen
    return found


def _weights(model: Transformer) -> list[GroupwiseWeight]:
    return [weight for store in _stores(model).values() for weight in store.stores]


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_it_has_loss_and_gradients_of_the_model_with_what_the_integers_stand_for(
    family: str,
    recompute: bool,
    hold: Hold,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base(family), make_batch(3, 16, generator)
    full = _with_rounded_experts(base, BITS[hold])
    part = load_slice(base, natural(base), recompute=recompute, hold=hold)
    assert_same_lesson(part, full, batch)


@pytest.mark.parametrize("compute", [None, "bfloat16"])
@pytest.mark.parametrize("hold", HOLDS)
def test_a_step_leaves_every_byte_of_the_integers_and_moves_the_loss(
    hold: Hold,
    compute: str | None,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base("v3"), make_batch(2, 16, generator)
    part = load_slice(base, natural(base), compute_dtype=compute, hold=hold)
    before = [(weight.values.clone(), weight.scales.clone()) for weight in _weights(part)]
    trained = [p for p in part.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.1, fused=True)
    losses: list[float] = []
    for _ in range(3):
        loss = loss_of(part, batch)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    for weight, (values, scales) in zip(_weights(part), before, strict=True):
        assert torch.equal(weight.values, values)
        assert torch.equal(weight.scales, scales)
    assert len(set(losses)) == 3


@pytest.mark.parametrize("hold", HOLDS)
def test_it_holds_the_same_state_as_one_with_weights(hold: Hold, make_base: MakeBase) -> None:
    base = make_base("v2")
    dense, part = (load_slice(base, natural(base), hold=each) for each in ("weights", hold))
    assert dense.state_dict().keys() == part.state_dict().keys()
    for name, tensor in dense.state_dict().items():
        assert torch.equal(part.state_dict()[name], tensor)


@pytest.mark.parametrize(("hold", "bits"), [("int8", 8), ("int4", 4)])
def test_its_frozen_experts_take_the_bytes_of_codes_and_scales(
    hold: Hold, bits: int, make_base: MakeBase
) -> None:
    base = make_base("v1")
    part = load_slice(base, natural(base), hold=hold)
    width, inner = 16, 8
    rows = {width: 2 * inner, inner: width}  # of gate_up and down, by the width of a row
    an_expert = sum(count * (row * bits // 8 + 2) for row, count in rows.items())
    for store in _stores(part).values():
        assert store.bytes == 5 * an_expert


@pytest.mark.parametrize(("hold", "most"), [("int8", 0.003), ("int4", 0.05)])
def test_its_loss_is_near_that_of_the_weights(
    hold: Hold,
    most: float,
    make_base: MakeBase,
    make_batch: MakeBatch,
    generator: torch.Generator,
) -> None:
    base, batch = make_base("v2"), make_batch(4, 32, generator)
    exact, rounded = (
        loss_of(load_slice(base, natural(base), hold=each), batch).item()
        for each in ("weights", hold)
    )
    assert 0 < abs(rounded - exact) < most * exact


@pytest.mark.parametrize("bits", [8, 4])
def test_adapters_beside_integers_learn_as_beside_what_these_stand_for(
    bits: Bits, make_base: MakeBase, make_batch: MakeBatch, generator: torch.Generator
) -> None:
    base, batch = make_base("v2"), make_batch(2, 16, generator)
    hold: Hold = "int8" if bits == 8 else "int4"
    config = Reader(base).config
    part = load_slice(base, Selection(experts={}).natural(config), hold=hold)
    full = _with_rounded_experts(base, bits, trained=Selection(experts={}))
    for name in quantise_linears_(part, bits, ["attention"]):
        weight = full.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.detach().copy_(dequantise_groups(quantise_groups(weight, bits)))
    adapted = [
        spec
        for spec in tensors(config)
        if spec.name.endswith("o_proj.weight") or (spec.expert in (1, 4) and spec.layer == 2)
    ]
    grads: list[list[Tensor]] = []
    for model in (part, full):
        make = fresh_factors(2, torch.Generator().manual_seed(3))
        adapt_(model, adapted, make, 2.0, torch.float32)
        loss_of(model, batch).backward()
        grads.append([p.grad for p in model.parameters() if p.grad is not None])
    assert len(grads[0]) == 2 * (config.num_hidden_layers + 3)
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
