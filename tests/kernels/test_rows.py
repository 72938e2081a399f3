"""Sweeps over rows that are compiled give what the forms without a compiler give."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from moesaic.kernels.attention import attention
from moesaic.kernels.cross_entropy import cross_entropy_sum
from moesaic.kernels.elementwise import rms_norm, swiglu
from moesaic.kernels.grouped import experts
from moesaic.kernels.native import rows
from moesaic.kernels.native.build import library

pytestmark = pytest.mark.skipif(isinstance(library(), str), reason=f"not compiled: {library()}")

Operation = Callable[[Callable[..., Tensor]], tuple[Tensor, ...]]


def expert_rows(draw: Callable[..., Tensor]) -> Tensor:
    slots_TK = torch.arange(96).view(48, 2) * 7 % 5
    gate_up, down = draw(5, 2 * 24, 16), draw(5, 16, 24)
    return experts(draw(48, 16), slots_TK, draw(48, 2).abs(), gate_up, down)


def packed_attention(draw: Callable[..., Tensor]) -> Tensor:
    documents = (torch.arange(200) // 70).expand(2, -1)
    same = documents[:, None, :, None] == documents[:, None, None, :]
    parts = draw(2, 3, 200, 24), draw(2, 3, 200, 24), draw(2, 3, 200, 16)
    return attention(*parts, 0.3, same.tril())


OPERATIONS: dict[str, Callable[[Callable[..., Tensor]], Tensor]] = {
    "norm": lambda draw: rms_norm(draw(3, 11, 40), draw(40), 1e-6),
    "gated": lambda draw: swiglu(draw(3, 11, 40), draw(3, 11, 40)),
    "experts": expert_rows,
    "loss": lambda draw: cross_entropy_sum(draw(21, 16), draw(130, 16), torch.arange(21) * 6),
    "attention": lambda draw: attention(
        draw(2, 3, 200, 24), draw(2, 3, 200, 24), draw(2, 3, 200, 16), 0.3, None
    ),
    "attention of packed documents": packed_attention,
}


def computed(name: str, dtype: torch.dtype) -> list[Tensor]:
    """The result of an operation, and the gradients of all its inputs."""
    generator, inputs = torch.Generator().manual_seed(0), []

    def draw(*shape: int) -> Tensor:
        inputs.append(torch.randn(shape, generator=generator).to(dtype).requires_grad_())
        return inputs[-1]

    value = OPERATIONS[name](draw)
    upstream = torch.randn(value.shape, generator=generator).to(value.dtype)
    return [value.detach(), *torch.autograd.grad(value, inputs, upstream)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", OPERATIONS)
def test_with_a_compiler_and_without_it_is_the_same(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
):
    served = []
    real = rows.serve
    monkeypatch.setattr(rows, "serve", lambda *x: served.append(real(*x)) or served[-1])
    compiled = computed(name, dtype)
    assert any(served)
    monkeypatch.setattr(rows, "serve", lambda *x: False)
    for got, want in zip(compiled, computed(name, dtype), strict=True):
        # Of bfloat16 each form rounds a few times by 2^-9 where the other does not.
        tolerance = 2e-6 if dtype == torch.float32 else 3e-2
        assert got.dtype == want.dtype
        assert (got - want).abs().max() <= tolerance * want.abs().max()


def test_the_same_rows_give_the_same_bits_each_time():
    for name in OPERATIONS:
        for first, second in zip(
            computed(name, torch.bfloat16), computed(name, torch.bfloat16), strict=True
        ):
            assert torch.equal(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_far_from_0_are_shut_or_open(dtype: torch.dtype):
    """Below -88 the exponential of a gate is more than float32 holds."""
    gate = torch.tensor([[-1e30, -1000.0, -200.0, -100.0, -89.0, 89.0, 1000.0, 1e30]], dtype=dtype)
    gate.requires_grad_()
    active = swiglu(gate, torch.ones_like(gate))
    open_or_shut = (gate.detach() > 0).to(dtype)
    torch.testing.assert_close(active.detach(), gate.detach() * open_or_shut)
    [grad] = torch.autograd.grad(active.sum(), gate)
    torch.testing.assert_close(grad, open_or_shut)
