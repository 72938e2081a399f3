"""Weights in 8 or 4 bit integers with one scale per group of neighbours, and products with them.

Only the weight is quantised: it is brought back to the dtype of the product before each use.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from moesaic.errors import CheckpointError
from moesaic.kernels import matmul
from moesaic.kernels.autocast import follows_autocast

Bits = Literal[4, 8]
GROUP = 64
"""Weights of a row that share a scale. Relative error on normal weights in 4 bit: 8.2 % with 32,
9.1 % with 64, 9.8 % with 128, for 4.5, 4.25 and 4.125 bits a weight."""
SCALE_BITS = 16
"""A scale is bfloat16: codes are chosen for the rounded scale, so that float32 would gain nothing,
and its range is that of float32."""
_DIVISORS: dict[int, tuple[float, ...]] = {4: (7.0, 7.5, 8.0, 8.5, 9.0), 8: (128.0,)}
"""Code of a group's largest value, tried in turn; above the last code it is cut off."""
_AT_ONCE_ON_CPU, _AT_ONCE_ON_GPU = 2**20, 2**26
"""Weights brought back in one go: what a cache holds, and what keeps a GPU busy."""


@dataclass(frozen=True, slots=True)
class GroupwiseWeight:
    """A weight, or a stack of them, whose last axis is cut into groups with one scale each."""

    values: Tensor
    """int8 codes. Of 4 bit two to a byte: the first half of a row in the low, the second in the
    high ones, so that both are written in one go."""
    scales: Tensor
    """bfloat16, one per group: what a code is multiplied by."""
    bits: Bits
    group: int
    """Neighbours that share a scale; the last group of a row may be shorter."""
    shape: tuple[int, ...]
    """Of the weight."""

    @classmethod
    def empty(
        cls, shape: tuple[int, ...], bits: Bits, group: int, device: torch.device | str
    ) -> "GroupwiseWeight":
        """Room for a weight of a shape."""
        *rows, width = shape
        values = torch.empty(*rows, -(-width * bits // 8), dtype=torch.int8, device=device)
        scales = torch.empty(*rows, -(-width // group), dtype=torch.bfloat16, device=device)
        return cls(values, scales, bits, group, shape)

    def __getitem__(self, index: int) -> "GroupwiseWeight":
        """One weight of a stack; it shares the stack's memory."""
        parts = self.values[index], self.scales[index]
        return GroupwiseWeight(*parts, self.bits, self.group, self.shape[1:])

    @property
    def runs(self) -> int:
        """Neighbouring codes of a row lie in neighbouring bytes within each of so many parts."""
        return 8 // self.bits

    def rows(self, start: int, end: int) -> "GroupwiseWeight":
        """Some rows of every matrix; they share the memory."""
        values, scales = self.values[..., start:end, :], self.scales[..., start:end, :]
        shape = *self.shape[:-2], end - start, self.shape[-1]
        return GroupwiseWeight(values, scales, self.bits, self.group, shape)

    def columns(self, start: int, end: int) -> "GroupwiseWeight":
        """Whole groups of every run of the rows; their codes share the memory.

        Args:
            start: the first column of a run.
            end: the column after the last.
        """
        n_columns = self.runs * (end - start)
        if n_columns == self.shape[-1]:
            return self
        groups = slice(start // self.group, end // self.group)
        scales = self.scales.unflatten(-1, (self.runs, -1))[..., groups].flatten(-2)
        shape = *self.shape[:-1], n_columns
        return GroupwiseWeight(self.values[..., start:end], scales, self.bits, self.group, shape)

    def copy_(self, other: "GroupwiseWeight") -> None:
        """Take the values of a weight of the same shape and form."""
        assert (self.bits, self.group, self.shape) == (other.bits, other.group, other.shape)
        self.values.copy_(other.values)
        self.scales.copy_(other.scales)

    @property
    def bytes(self) -> int:
        """Memory of codes and scales."""
        return self.values.nbytes + self.scales.nbytes


def bits_per_weight(bits: int, group: int = GROUP) -> float:
    """Memory of a weight in bits, with its share of a scale. Exact for rows of whole groups."""
    return bits + SCALE_BITS / group


def quantise_groups(
    weight: Tensor, bits: Bits, group: int = GROUP, name: str = "the weight"
) -> GroupwiseWeight:
    """A weight as integers, symmetric around 0, with one scale per group of its last axis.

    The largest value of a group becomes the lowest code, of which there is one more than above 0:
    the scale takes its sign. In 4 bit the scale is the one of five with the least squared error, 5
    to 12 % less than without: that and one number per group make symmetric codes better than
    codes with an offset for each group, byte for byte.

    Raises:
        CheckpointError: if a value is not finite.

    Source: groups with a signed scale as in ggml's ``Q4_0`` (quantize_row_q4_0_ref).
    """
    _check_finite(weight, name)
    width = weight.shape[-1]
    n_groups = -(-width // group)
    padded = F.pad(weight.detach().float(), (0, n_groups * group - width))
    grouped = padded.unflatten(-1, (n_groups, group))
    scales = _best_scales(grouped, bits)
    codes = _codes(grouped, scales, bits).to(torch.int8).flatten(-2)[..., :width]
    return of_codes(codes, scales, bits, group)


def dequantise_groups(stored: GroupwiseWeight) -> Tensor:
    """The float32 weight that is stood for: every code times the scale of its group."""
    width = stored.shape[-1]
    scales = stored.scales.float().repeat_interleave(stored.group, dim=-1)[..., :width]
    return codes_of(stored).float() * scales


def codes_of(stored: GroupwiseWeight) -> Tensor:
    """The int8 codes, one per value of the weight and in its shape."""
    if stored.bits == 8:
        return stored.values
    low = (stored.values + 8) % 16 - 8
    return torch.cat((low, stored.values // 16), dim=-1)[..., : stored.shape[-1]]


def of_codes(codes: Tensor, scales: Tensor, bits: Bits, group: int) -> GroupwiseWeight:
    """The weight with these int8 codes and these scales."""
    values = _pack(codes) if bits == 4 else codes.contiguous()
    return GroupwiseWeight(values, scales, bits, group, tuple(codes.shape))


def dequantise_groups_into_(out: Tensor, stored: GroupwiseWeight) -> None:
    """`dequantise_groups`, rounded to the dtype of ``out`` and written there.

    Args:
        out: of the weight's shape.
        stored: the weight.
    """
    assert tuple(out.shape) == stored.shape
    at_once = _AT_ONCE_ON_CPU if out.device.type == "cpu" else _AT_ONCE_ON_GPU
    for part, values, scales in _parts(at_once, out.detach(), stored.values, stored.scales):
        _write_codes_(part, values, stored.bits)
        _scale_(part, scales, stored.group)


def _parts(most: int, *whole: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Tensors that belong together, cut along their first axes until the first has few values."""
    first = whole[0]
    each = first[0].numel() if len(first) else 0
    if first.ndim > 2 and each > most:
        for one in zip(*whole, strict=True):
            yield from _parts(most, *one)
    else:
        yield from zip(*(x.split(max(1, most // max(1, each))) for x in whole), strict=True)


@follows_autocast
def linear(x: Tensor, stored: GroupwiseWeight) -> Tensor:
    """``x · weightᵀ`` over the last axis. Only ``x`` gets a gradient, and neither pass keeps the
    weight in the dtype of ``x``."""
    return _Linear.apply(x, stored)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, stored: GroupwiseWeight) -> Tensor:
        ctx.stored = stored
        return matmul.linear(x, _restored(stored, x))

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad: Tensor
    ) -> tuple[Tensor, None]:
        return matmul.linear(grad, _restored(ctx.stored, grad).t()), None


def _restored(stored: GroupwiseWeight, like: Tensor) -> Tensor:
    weight = torch.empty(stored.shape, dtype=like.dtype, device=like.device)
    dequantise_groups_into_(weight, stored)
    return weight


def _check_finite(weight: Tensor, name: str) -> None:
    if not weight.isfinite().all():
        raise CheckpointError(
            f"{name} holds values that are not finite, which no integer stands for; repair the "
            "checkpoint, or hold what is frozen as weights"
        )


def _best_scales(grouped: Tensor, bits: Bits) -> Tensor:
    """Of the scales tried for each group the one with the least squared error."""
    largest, smallest = grouped.amax(-1), grouped.amin(-1)
    extreme = torch.where(largest > -smallest, largest, smallest)
    first, *others = (_storable(-extreme / divisor) for divisor in _DIVISORS[bits])
    if not others:
        return first
    best, least = first, _squared_error(grouped, first, bits)
    for scales in others:
        error = _squared_error(grouped, scales, bits)
        best = torch.where(error < least, scales, best)
        least = torch.minimum(error, least)
    return best


def _storable(scales: Tensor) -> Tensor:
    """In bfloat16; a group of zeros gets a scale that can be divided by."""
    rounded = scales.to(torch.bfloat16)
    return torch.where(rounded == 0, torch.ones_like(rounded), rounded)


def _squared_error(grouped: Tensor, scales: Tensor, bits: Bits) -> Tensor:
    codes = _codes(grouped, scales, bits)
    return codes.mul_(scales.unsqueeze(-1)).sub_(grouped).square_().sum(-1)


def _codes(grouped: Tensor, scales: Tensor, bits: Bits) -> Tensor:
    """The nearest codes, as float32."""
    lowest = -(2 ** (bits - 1))
    return (grouped / scales.unsqueeze(-1)).round_().clamp_(lowest, -lowest - 1)


def _pack(codes: Tensor) -> Tensor:
    """Two codes of 4 bit in a byte; of an odd row the last byte is half empty."""
    width = codes.shape[-1]
    low, high = F.pad(codes, (0, width % 2)).chunk(2, dim=-1)
    return high.bitwise_left_shift(4).bitwise_or_(low.bitwise_and(15))


def _write_codes_(rows: Tensor, values: Tensor, bits: Bits) -> None:
    """The codes as numbers. Shifts of int8 keep the sign."""
    if bits == 8:
        rows.copy_(values)
        return
    half = values.shape[-1]
    rows[..., :half].copy_(values.bitwise_left_shift(4).bitwise_right_shift_(4))
    rows[..., half:].copy_(values[..., : rows.shape[-1] - half].bitwise_right_shift(4))


def _scale_(rows: Tensor, scales: Tensor, group: int) -> None:
    """Multiply every group by its scale; of a last group that is shorter, what there is."""
    n_whole = rows.shape[-1] // group
    whole = rows[..., : n_whole * group].unflatten(-1, (n_whole, group))
    whole.mul_(scales[..., :n_whole].unsqueeze(-1))
    rows[..., n_whole * group :].mul_(scales[..., n_whole:])
