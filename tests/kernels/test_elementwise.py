"""RMSNorm and SwiGLU with their own backward passes."""

from functools import partial

import pytest
import torch
from kernels.agreement import DTYPES, assert_agree, assert_only_asked, run
from torch import Tensor

from moesaic.kernels import elementwise, reference

SHAPES = [(5,), (1, 2), (3, 7), (2, 3, 16), (2, 3, 4, 33), (0, 8)]
NORM = partial(elementwise.rms_norm, eps=1e-6)
EXACT_NORM = partial(reference.rms_norm, eps=1e-6)


def random(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    values = torch.randn(shape, generator=generator, dtype=torch.float64)
    return values.to(dtype).requires_grad_()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rms_norm_equals_reference(dtype: torch.dtype, shape: tuple, generator: torch.Generator):
    x = random(generator, *shape, dtype=dtype)
    weight = random(generator, shape[-1], dtype=dtype)
    assert_agree(NORM, EXACT_NORM, [x, weight], generator, dtype)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_swiglu_equals_reference(dtype: torch.dtype, shape: tuple, generator: torch.Generator):
    gate, up = (random(generator, *shape, dtype=dtype) for _ in range(2))
    assert_agree(elementwise.swiglu, reference.swiglu, [gate, up], generator, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_without_gradients_the_numbers_are_the_same(dtype: torch.dtype, generator: torch.Generator):
    x, gate, up = (random(generator, 3, 24, dtype=dtype) for _ in range(3))
    weight = random(generator, 24, dtype=dtype)
    with torch.no_grad():
        plain = NORM(x, weight), elementwise.swiglu(gate, up), NORM(x[:, ::2], weight[::2])
    learning = NORM(x, weight), elementwise.swiglu(gate, up), NORM(x[:, ::2], weight[::2])
    for without, tensor in zip(plain, learning, strict=True):
        assert not without.requires_grad
        assert torch.equal(without, tensor)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_float32_weight_serves_activations_of_any_dtype(
    dtype: torch.dtype, generator: torch.Generator
):
    x = random(generator, 4, 16, dtype=dtype)
    weight = random(generator, 16, dtype=torch.float32)
    assert_agree(NORM, EXACT_NORM, [x, weight], generator, dtype)


def test_inputs_that_are_views_of_a_wider_tensor_give_the_same(generator: torch.Generator):
    wide = random(generator, 6, 4, 20).detach()
    x = wide.transpose(0, 1)[..., ::2].requires_grad_()
    weight = random(generator, 10)
    assert_agree(NORM, EXACT_NORM, [x, weight], generator, torch.float64)
    halves = [half.detach().requires_grad_() for half in wide.chunk(2, dim=-1)]
    assert_agree(elementwise.swiglu, reference.swiglu, halves, generator, torch.float64)


def test_a_row_of_zeros_is_normalised_to_zeros(generator: torch.Generator):
    x, weight = torch.zeros(2, 8), random(generator, 8, dtype=torch.float32)
    assert not NORM(x, weight).any()


def test_rms_norm_does_not_change_its_input(generator: torch.Generator):
    x, weight = random(generator, 3, 8), random(generator, 8)
    before = x.detach().clone()
    NORM(x, weight).sum().backward()
    assert torch.equal(x, before)


@pytest.mark.parametrize("trained", [(True, False), (False, True)], ids=str)
def test_rms_norm_gives_only_the_gradients_asked_for(
    trained: tuple[bool, bool], generator: torch.Generator
):
    x, weight = random(generator, 3, 8), random(generator, 8)
    whole = run(NORM, [x, weight], torch.ones(3, 8))
    inputs = zip((x, weight), trained, strict=True)
    part = run(NORM, [x.detach().requires_grad_(asked) for x, asked in inputs], torch.ones(3, 8))
    assert_only_asked(part, whole)


def test_gradients_are_the_derivatives(generator: torch.Generator):
    x, weight = random(generator, 3, 5), random(generator, 5)
    assert torch.autograd.gradcheck(NORM, (x, weight))
    gate, up = random(generator, 3, 5), random(generator, 3, 5)
    assert torch.autograd.gradcheck(elementwise.swiglu, (gate, up))


def test_a_second_derivative_of_the_norm_is_refused_not_wrong(generator: torch.Generator):
    x, weight = random(generator, 3, 5), random(generator, 5)
    out = NORM(x, weight).square().sum()
    (first,) = torch.autograd.grad(out, x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
