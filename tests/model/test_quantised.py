"""Frozen experts and linear layers as integers, brought back where they are used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from memory_meter import most_allocated
from model.list_cache import ListCache
from models import random_ids, random_model
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError
from moesaic.kernels.groupwise import (
    GROUP,
    Bits,
    bits_per_weight,
    dequantise_groups,
    quantise_groups,
)
from moesaic.kernels.pieces import by_columns
from moesaic.model.build import empty_model
from moesaic.model.linear import Linear
from moesaic.model.quantised import (
    LinearRole,
    QuantisedExperts,
    QuantisedLinear,
    QuantisedStack,
    Scratch,
    quantise_linears_,
)
from moesaic.model.transformer import Transformer
from moesaic.planner.holding import PIECE
from moesaic.planner.inventory import tensors

BITS: tuple[Bits, ...] = (4, 8)
WIDTH, INNER = 6 * GROUP, 3 * GROUP
SMALLEST = 0
"""Of pieces: as few columns as can be."""
MIDDLE = 5 * 2 * INNER * 300
"""300 columns of gate and up of five experts."""
Stacks = tuple[Tensor, Tensor]


def _stacks(count: int, generator: torch.Generator) -> Stacks:
    gate_up = torch.randn(count, 2 * INNER, WIDTH, generator=generator)
    return gate_up, torch.randn(count, WIDTH, INNER, generator=generator)


def _store(
    stacks: Stacks, scratch: Scratch, bits: Bits = 4, n_stacked: int = 2
) -> QuantisedExperts:
    found = QuantisedExperts(n_stacked, len(stacks[0]), WIDTH, INNER, bits, scratch)
    for slot, (gate_up, down) in enumerate(zip(*stacks, strict=True)):
        found.put_(slot, gate_up, down, f"expert {slot}")
    return found


def _put_together(stack: QuantisedStack) -> Tensor:
    """All pieces of a stack beside each other: [e, a, b]."""
    n_experts = len(stack.trained) + stack.stored.shape[0]
    rows = by_columns(stack, lambda piece: piece.flatten(0, 1).clone())
    return rows.unflatten(0, (n_experts, -1))


def _brought_back(store: QuantisedExperts, trained: Stacks) -> list[Tensor]:
    return [_put_together(stack) for stack in store.beside(*trained)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("most", [SMALLEST, MIDDLE, PIECE])
@pytest.mark.parametrize("n_trained", [0, 2])
@pytest.mark.parametrize("bits", BITS)
def test_beside_is_the_trained_experts_then_what_the_integers_stand_for(
    bits: Bits, n_trained: int, most: int, dtype: torch.dtype, generator: torch.Generator
) -> None:
    trained, frozen = _stacks(n_trained, generator), _stacks(3, generator)
    store = _store(frozen, Scratch(dtype, "cpu", most), bits, n_trained)
    for stack, first, rest in zip(store.beside(*trained), trained, frozen, strict=True):
        stored = torch.stack([dequantise_groups(quantise_groups(one, bits)) for one in rest])
        expected = torch.cat((first, stored)).to(dtype)
        assert torch.equal(_put_together(stack), expected)
        assert torch.equal(_put_together(stack.mT), expected.mT)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize(
    ("most", "columns"), [(SMALLEST, [128, 128, 128]), (MIDDLE, [256, 128]), (PIECE, [384])]
)
def test_a_piece_has_as_many_columns_as_are_asked_for_or_the_fewest(
    most: int, columns: list[int], bits: Bits, generator: torch.Generator
) -> None:
    store = _store(_stacks(3, generator), Scratch(torch.float32, "cpu", most), bits)
    gate_up, _ = store.beside(*_stacks(2, generator))
    for stack in (gate_up, gate_up.mT):
        assert [piece.shape[2] for _, piece in stack] == columns


def test_rows_that_cannot_be_cut_into_whole_groups_are_brought_back_whole(
    generator: torch.Generator,
) -> None:
    """Of 4 bit, where codes of both halves of a row share bytes: three groups have no halves."""
    scratch = Scratch(torch.float32, "cpu", SMALLEST)
    _, down = _store(_stacks(3, generator), scratch, 4).beside(*_stacks(2, generator))
    assert [piece.shape[2] for _, piece in down] == [INNER]
    assert [piece.shape[2] for _, piece in down.mT] == [128] * 3


def test_all_layers_share_a_scratch_as_large_as_the_largest_piece(
    generator: torch.Generator,
) -> None:
    scratch = Scratch(torch.bfloat16, "cpu", SMALLEST)
    stores = [_store(_stacks(count, generator), scratch) for count in (3, 6, 1)]
    trained = _stacks(2, generator)
    stacks = [stack for store in stores for stack in store.beside(*trained)]
    pieces = [piece for stack in stacks for each in (stack, stack.mT) for _, piece in each]
    assert {piece.untyped_storage().data_ptr() for piece in pieces} == {pieces[0].data_ptr()}
    assert scratch.bytes == max(piece.nbytes for piece in pieces)
    assert scratch.bytes == (2 + 6) * WIDTH * INNER * 2  # a whole down projection in bfloat16


def test_layers_that_take_turns_get_their_own_experts_each_time(
    generator: torch.Generator,
) -> None:
    scratch, trained = Scratch(torch.float32, "cpu", SMALLEST), _stacks(2, generator)
    stores = [_store(_stacks(count, generator), scratch) for count in (3, 5)]
    first = [_brought_back(store, trained) for store in stores]
    for store, expected in zip(stores, first, strict=True):
        for found, before in zip(_brought_back(store, trained), expected, strict=True):
            assert torch.equal(found, before)


def test_a_change_of_the_trained_experts_is_seen_however_it_was_made(
    generator: torch.Generator,
) -> None:
    store = _store(_stacks(3, generator), Scratch(torch.float32, "cpu"))
    trained = _stacks(2, generator)
    _brought_back(store, trained)
    trained[0].data.fill_(3.0)  # leaves the tensor's version as it was
    assert bool((_brought_back(store, trained)[0][:2] == 3.0).all())


def test_an_expert_that_is_put_anew_is_brought_back(generator: torch.Generator) -> None:
    store, trained = (
        _store(_stacks(3, generator), Scratch(torch.float32, "cpu")),
        _stacks(2, generator),
    )
    _brought_back(store, trained)
    store.put_(1, torch.zeros(2 * INNER, WIDTH), torch.zeros(WIDTH, INNER), "expert 1")
    assert not _brought_back(store, trained)[0][3].any()


@pytest.mark.parametrize("bits", BITS)
def test_a_store_takes_the_bytes_that_the_formula_says(
    bits: Bits, generator: torch.Generator
) -> None:
    store = _store(_stacks(3, generator), Scratch(torch.float32, "cpu"), bits)
    assert store.bytes * 8 == 3 * 3 * WIDTH * INNER * bits_per_weight(bits)
    assert store.bytes == sum(part.values.nbytes + part.scales.nbytes for part in store.stores)


def test_an_expert_that_is_not_finite_is_refused_by_name(generator: torch.Generator) -> None:
    gate_up, down = _stacks(1, generator)
    down[0, 3, 4] = torch.nan
    with pytest.raises(CheckpointError, match="expert 0 holds values that are not finite"):
        _store((gate_up, down), Scratch(torch.float32, "cpu"))


def _quantised_pair(
    config: ModelConfig, bits: Bits, roles: tuple[LinearRole, ...]
) -> tuple[Transformer, Transformer, tuple[str, ...]]:
    """A frozen model with quantised linear layers, and one with the weights they stand for."""
    model, like = random_model(config), random_model(config)
    model.requires_grad_(False)
    like.requires_grad_(False)
    names = quantise_linears_(model, bits, roles)
    for name in names:
        weight = like.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.copy_(dequantise_groups(quantise_groups(weight, bits)))
    for each in (model, like):
        each.model.embed_tokens.requires_grad_()
    return model, like, names


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("family", ["v1", "v2", "v3"])
def test_a_model_with_quantised_layers_has_loss_and_gradients_of_what_they_stand_for(
    tiny_config: Callable[..., ModelConfig], family: str, bits: Bits
) -> None:
    config = tiny_config(family)
    model, like, _ = _quantised_pair(config, bits, ("attention", "dense", "shared"))
    ids_BS = random_ids(config, 2, 12)
    found, expected = (each.loss(ids_BS, ids_BS).next_token for each in (model, like))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    found.backward()
    expected.backward()
    grads = [each.model.embed_tokens.weight.grad for each in (model, like)]
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("latent", [2, 64])
def test_a_model_with_quantised_layers_decodes_in_both_forms_of_latent_attention(
    tiny_config: Callable[..., ModelConfig], latent: int
) -> None:
    config = tiny_config("v2", kv_lora_rank=latent)
    model, like, _ = _quantised_pair(config, 8, ("attention",))
    ids_BS, caches = random_ids(config, 1, 9), (ListCache(), ListCache())
    for start in range(9):
        one = ids_BS[:, start : start + 1]
        found, expected = (
            each(one, cache=cache) for each, cache in zip((model, like), caches, strict=True)
        )
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


ROLES: tuple[LinearRole, ...] = ("attention", "dense", "shared")


@pytest.mark.parametrize("role", ROLES)
def test_the_linear_layers_of_a_part_and_no_others_are_replaced(
    tiny_config: Callable[..., ModelConfig], role: LinearRole
) -> None:
    config = tiny_config("v3")
    model, _, names = _quantised_pair(config, 4, (role,))
    of_part = {
        spec.name
        for spec in tensors(config)
        if spec.role == role and len(spec.shape) == 2 and spec.expert is None
    }
    assert {f"{name}.weight" for name in names} == of_part
    kinds = {name: type(module) for name, module in model.named_modules()}
    assert {name for name, kind in kinds.items() if kind is QuantisedLinear} == set(names)


def test_each_weight_goes_when_its_layer_is_replaced(
    tiny_config: Callable[..., ModelConfig],
) -> None:
    config = tiny_config("v2", hidden_size=128, num_hidden_layers=12)
    whole = sum(p.nbytes for p in random_model(config).parameters())

    def work() -> None:
        model = empty_model(config, torch.float32).requires_grad_(False)
        for parameter in model.parameters():
            parameter.zero_()
        quantise_linears_(model, 8, ROLES)

    assert most_allocated(work) < 1.1 * whole


def test_a_trained_layer_stays_as_it_is(tiny_config: Callable[..., ModelConfig]) -> None:
    model = random_model(tiny_config("v2"))
    model.requires_grad_(False)
    trained = "model.layers.1.self_attn.o_proj"
    model.get_submodule(trained).requires_grad_()
    assert trained not in quantise_linears_(model, 4, ["attention"])
    assert isinstance(model.get_submodule(trained), Linear)


def test_a_quantised_weight_is_no_parameter_and_in_no_state(
    tiny_config: Callable[..., ModelConfig],
) -> None:
    config = tiny_config("v2")
    before = set(random_model(config).state_dict())
    model, _, names = _quantised_pair(config, 4, ("attention", "shared"))
    left = before - {f"{name}.weight" for name in names}
    assert set(model.state_dict()) == left
    assert {name for name, _ in model.named_parameters()} <= left


def _bytes_of(module: nn.Module) -> int:
    held: list[Any] = [*module.parameters(), *module.buffers()]
    return sum(tensor.nbytes for tensor in held)


@pytest.mark.parametrize("bits", BITS)
def test_a_quantised_layer_takes_the_bytes_that_the_formula_says(bits: Bits) -> None:
    weight = torch.ones(24, 3 * GROUP)
    layer = QuantisedLinear(quantise_groups(weight, bits))
    assert 8 * _bytes_of(layer) == bits_per_weight(bits) * weight.numel()
    assert torch.equal(layer.weight, weight)
