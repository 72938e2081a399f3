"""Experts whose frozen weights are brought back a piece at a time, against whole stacks of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from kernels.agreement import DTYPES, assert_agree
from kernels.test_adapted import of, random_factors, summed
from kernels.test_grouped import N_EXPERTS, Load, every_third, random_inputs, skewed
from memory_meter import most_allocated
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from moesaic.kernels import grouped, reference
from moesaic.kernels.adapted import adapted_experts
from moesaic.kernels.grouped import experts
from moesaic.kernels.groupwise import GROUP, Bits, dequantise_groups
from moesaic.model.quantised import QuantisedExperts, Scratch

BITS: tuple[Bits, ...] = (4, 8)
N_TRAINED = 3
HIDDEN = 4 * GROUP
WIDTHS = [4 * GROUP, 3 * GROUP]
"""Of an expert: in two halves of whole groups, and not so."""
SMALLEST = 0
"""Of pieces: as few columns as can be."""
Stacks = tuple[Tensor, Tensor]


def quantised(
    stacks: Stacks, n_trained: int, bits: Bits, dtype: torch.dtype = torch.float32
) -> tuple[QuantisedExperts, Stacks]:
    """All experts but the first as integers, and stacks of all with what these stand for."""
    gate_up, down = (stack.detach() for stack in stacks)
    _, hidden, width = down.shape
    scratch = Scratch(dtype, down.device, SMALLEST)
    found = QuantisedExperts(n_trained, N_EXPERTS - n_trained, hidden, width, bits, scratch)
    for slot in range(found.count):
        parts = gate_up[n_trained + slot], down[n_trained + slot]
        found.put_(slot, *parts, f"expert {slot}")
    whole = [stack.clone() for stack in (gate_up, down)]
    for stack, store in zip(whole, found.stores, strict=True):
        stack[n_trained:] = dequantise_groups(store)
    return found, (whole[0], whole[1])


def check_experts(
    inputs: list[Tensor], slots_TK: Tensor, bits: Bits, generator: torch.Generator
) -> None:
    """Value and gradients, of the trained experts too, are those of `reference.experts`."""
    dtype = inputs[0].dtype
    held, whole = quantised((inputs[2], inputs[3]), N_TRAINED, bits, dtype)

    def pieces(x_TD: Tensor, weights_TK: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
        return experts(x_TD, slots_TK, weights_TK, gate_up, down, frozen=held)

    def exact(x_TD: Tensor, weights_TK: Tensor, *trained: Tensor) -> Tensor:
        pairs = zip(trained, whole, strict=True)
        stacks = [torch.cat((part, all_of[N_TRAINED:].to(part))) for part, all_of in pairs]
        return reference.experts(x_TD, slots_TK, weights_TK, stacks[0], stacks[1])

    few = [stack.detach()[:N_TRAINED].clone().requires_grad_() for stack in inputs[2:]]
    assert_agree(pieces, exact, [*inputs[:2], *few], generator, dtype)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("load", [skewed, every_third], ids=lambda load: load.__name__)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_experts_in_pieces_equals_reference(
    dtype: torch.dtype, bits: Bits, load: Load, width: int, generator: torch.Generator
):
    slots_TK = load(50, 3, generator)
    inputs = random_inputs(slots_TK, HIDDEN, width, dtype, generator)
    check_experts(inputs, slots_TK, bits, generator)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_made_some_columns_at_a_time_have_the_sums_of_the_reference(
    dtype: torch.dtype, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(grouped, "_SUMMED", 1)
    slots_TK = skewed(50, 3, generator)
    inputs = random_inputs(slots_TK, 600, 32, dtype, generator)

    def form(through: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda x_TD, weights_TK, *stacks: through(x_TD, slots_TK, weights_TK, *stacks)

    assert_agree(form(experts), form(reference.experts), inputs, generator, dtype)


@pytest.mark.gpu
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_experts_in_pieces_on_a_gpu_equals_reference(
    dtype: torch.dtype, bits: Bits, width: int, generator: torch.Generator
):
    slots_TK = skewed(300, 3, generator)
    inputs = random_inputs(slots_TK, HIDDEN, width, dtype, generator)
    inputs = [x.detach().cuda().requires_grad_() for x in inputs]
    check_experts(inputs, slots_TK.cuda(), bits, generator)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_adapters_beside_pieces_equals_reference(
    dtype: torch.dtype, bits: Bits, generator: torch.Generator
):
    slots, slots_TK = [1, 9], skewed(50, 3, generator)
    x_TD, weights_TK, gate_up, down = random_inputs(slots_TK, HIDDEN, WIDTHS[0], dtype, generator)
    held, whole = quantised((gate_up, down), 0, bits, dtype)
    factors = random_factors(slots, HIDDEN, WIDTHS[0], 8, dtype, generator)
    none = gate_up.detach()[:0], down.detach()[:0]

    def pieces(x_TD: Tensor, weights_TK: Tensor, *factors: Tensor) -> Tensor:
        return adapted_experts(x_TD, slots_TK, weights_TK, *none, of(slots, *factors), held)

    def exact(x_TD: Tensor, weights_TK: Tensor, *factors: Tensor) -> Tensor:
        weights = summed(slots, *(stack.to(x_TD) for stack in whole), *factors)
        return reference.experts(x_TD, slots_TK, weights_TK, *weights)

    assert_agree(pieces, exact, [x_TD, weights_TK, *factors], generator, dtype)


def step_of(bits: Bits, generator: torch.Generator) -> tuple[Callable[[], None], int]:
    """A forward and backward pass, and how large all experts are in its type."""
    slots_TK = skewed(20, 2, generator)
    x_TD, weights_TK, *stacks = random_inputs(slots_TK, 1024, 128, torch.float32, generator)
    held, _ = quantised((stacks[0], stacks[1]), N_TRAINED, bits)
    trained = [stack.detach()[:N_TRAINED].clone() for stack in stacks]

    def work() -> None:
        out_TD = experts(x_TD, slots_TK, weights_TK, trained[0], trained[1], frozen=held)
        out_TD.sum().backward()

    return work, sum(stack.nbytes for stack in stacks)


@pytest.mark.parametrize("bits", BITS)
def test_a_step_makes_nothing_of_the_size_of_a_layers_experts(
    bits: Bits, generator: torch.Generator
):
    work, size = step_of(bits, generator)
    work()
    # The scratch was there before. Of a piece there are the shifted codes, and rows of 20 tokens.
    assert most_allocated(work) < size / 10


class _Waits(TorchDispatchMode):
    """Notes operations whose result the host has to have."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.found.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("bits", BITS)
def test_nothing_in_a_step_over_sorted_rows_waits_for_the_device(
    bits: Bits, generator: torch.Generator
):
    """How many rows an expert has is asked of nobody: float32 takes them sorted, as a GPU does."""
    work, _ = step_of(bits, generator)
    with _Waits() as waits:
        work()
    assert waits.found == set()
