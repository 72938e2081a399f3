"""FP8 blocks against a second implementation, in numpy, from the definition of e4m3."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from moesaic.kernels.quantise import Fp8Weight, block_grid, dequantise, quantise

SHAPES = [(128, 128), (256, 384), (576, 200), (1, 1), (5, 300), (129, 127), (0, 4)]


def _e4m3_values() -> np.ndarray:
    """The value of each of the 256 codes: 4 exponent bits with bias 7, 3 fraction bits."""
    code = np.arange(256)
    exponent, fraction = (code >> 3) & 15, code & 7
    normal = (1 + fraction / 8) * 2.0 ** (exponent - 7)
    value = np.where(exponent == 0, fraction / 8 * 2.0**-6, normal) * np.where(code < 128, 1, -1)
    value[[127, 255]] = np.nan
    return value


def _round_to_e4m3(x: np.ndarray) -> np.ndarray:
    """The nearest e4m3 value, the one with the even code where two are as near."""
    values = _e4m3_values()[:127]
    above = np.clip(np.searchsorted(values, np.abs(x)), 1, 126)
    low, high = values[above - 1], values[above]
    to_low, to_high = np.abs(x) - low, high - np.abs(x)
    up = (to_high < to_low) | ((to_high == to_low) & (above % 2 == 0))
    return np.copysign(np.where(up, high, low), x)


def _quantise_by_hand(weight: np.ndarray, block: int) -> tuple[np.ndarray, np.ndarray]:
    """What each stored value and each scale should be, block by block."""
    values = np.zeros(weight.shape)
    scales = np.zeros([-(-size // block) for size in weight.shape], np.float32)
    for row, column in np.ndindex(scales.shape):
        part = np.s_[row * block : (row + 1) * block, column * block : (column + 1) * block]
        largest = np.abs(weight[part]).max()
        scales[row, column] = largest / np.float32(448)
        if largest:
            scaled = weight[part] / scales[row, column]
            values[part] = _round_to_e4m3(scaled.astype(np.float64))
    return values, scales


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1e-30, 0.006, 1.0, 1e30])
def test_quantising_equals_the_definition(
    shape: tuple[int, int], size: float, generator: torch.Generator
) -> None:
    weight = torch.randn(shape, generator=generator) * size
    weight[:128, 128:256] = 0
    stored = quantise(weight)
    values, scales = _quantise_by_hand(weight.numpy(), 128)
    assert np.array_equal(stored.weight.float().numpy(), values)
    zero = scales == 0
    assert np.array_equal(np.where(zero, 0, stored.weight_scale_inv.numpy()), scales)
    assert stored.weight_scale_inv.min() > 0 if stored.weight_scale_inv.numel() else True


@pytest.mark.parametrize("shape", SHAPES)
def test_dequantising_multiplies_each_value_by_the_scale_of_its_block(
    shape: tuple[int, int], generator: torch.Generator
) -> None:
    codes = torch.randint(0, 127, shape, generator=generator, dtype=torch.uint8)
    scale = torch.rand(block_grid(shape), generator=generator)
    found = dequantise(Fp8Weight(codes.view(torch.float8_e4m3fn), scale))
    values = _e4m3_values()[codes.numpy()].astype(np.float32)
    for row, column in np.ndindex(*shape):
        values[row, column] *= scale[row // 128, column // 128].item()
    assert np.array_equal(found.numpy(), values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_what_comes_back_is_within_half_a_step(
    dtype: torch.dtype, generator: torch.Generator
) -> None:
    weight = torch.randn(300, 260, generator=generator).to(dtype)
    stored = quantise(weight)
    error = (dequantise(stored).double() - weight.double()).abs()
    step = stored.weight_scale_inv.max().double() * 2**-9
    assert bool((error <= weight.double().abs() * 2**-4 + step / 2).all())


def test_quantising_twice_changes_nothing_more(generator: torch.Generator) -> None:
    once = quantise(torch.randn(256, 256, generator=generator))
    twice = quantise(dequantise(once))
    # 448 · scale / 448 may be one float32 step from scale
    assert torch.allclose(once.weight_scale_inv, twice.weight_scale_inv, rtol=2**-22, atol=0)
    assert torch.equal(once.weight.float(), twice.weight.float())


def test_blocks_of_other_sizes_are_kept_with_the_weight(generator: torch.Generator) -> None:
    weight = torch.randn(7, 9, generator=generator)
    stored = quantise(weight, (2, 4))
    assert stored.weight_scale_inv.shape == (4, 3)
    assert torch.allclose(dequantise(stored), weight, rtol=2**-4, atol=2**-9)
    values, _ = _quantise_by_hand(weight[:2, :4].numpy(), 4)
    assert np.array_equal(stored.weight[:2, :4].float().numpy(), values)


@given(st.floats(width=32, min_value=0, max_value=2.0**-100))
def test_the_smallest_values_never_overflow(value: float) -> None:
    stored = quantise(torch.full((2, 2), value))
    assert dequantise(stored).isfinite().all()
    assert dequantise(stored).max() <= value * (1 + 2**-4) + 2.0**-126


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_value_that_is_not_finite_shows_in_the_scale_of_its_block(value: float) -> None:
    weight = torch.ones(256, 128)
    weight[200, 3] = value
    assert quantise(weight).weight_scale_inv.isfinite().flatten().tolist() == [True, False]
