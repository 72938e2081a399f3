"""Weights as the compiled functions read them: floats as they lie, codes as they are stored."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.groupwise import GROUP, Bits, codes_of, quantise_groups
from moesaic.kernels.large_pages import in_large_pages
from moesaic.kernels.quantise import BLOCK, FP8

Form = Literal["weights", "int8", "int4"]
"""How weights are held for decoding: as they are, or as integers."""
Kind = Literal["float32", "bfloat16", "float16", "float64", "int8", "int4", "float8"]
"""What the rows of a weight consist of; float16 and float64 have no compiled form."""

FLOAT_KINDS: dict[torch.dtype, Kind] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}

FLOAT_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
_CODE_FORMATS = {"int8": 2, "int4": 3, "float8": 4}
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
"""Of the codes of integers."""
_AT_ONCE = 2**20
"""Weights that are made integers in one go, so that little memory is taken besides."""


class Matrix(ctypes.Structure):
    """``Matrix`` of dot.h; the tensors it points into must outlive it."""

    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("stride", c_int64),
        ("rows", c_int64),
        ("width", c_int32),
        ("format", c_int32),
    )


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a weight, or of a stack of them one after the other."""

    values: Tensor
    """Floats [rows, width]; codes as bytes, those of integers in whole groups."""
    scales: Tensor | None
    """One per group, bfloat16; of 8-bit floats one per block of a row, float32; None for floats."""
    width: int
    kind: Kind

    @classmethod
    def empty(cls, n: int, width: int, kind: Kind, device: torch.device | str = "cpu") -> "Rows":
        """Room for some rows."""
        if kind in _CODE_FORMATS:
            scale = torch.float32 if kind == "float8" else torch.bfloat16
            scales = torch.empty(n, n_scales(width, kind), dtype=scale, device=device)
            codes = torch.empty(n, _code_bytes(width, kind), dtype=torch.uint8, device=device)
            return cls(in_large_pages(codes), scales, width, kind)
        dtype: torch.dtype = getattr(torch, kind)
        values = torch.empty(n, width, dtype=dtype, device=device)
        return cls(in_large_pages(values), None, width, kind)

    @property
    def n_bytes(self) -> int:
        """Memory of values and scales."""
        return self.values.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def part(self, start: int, stop: int) -> "Rows":
        """Some of them, in the same memory."""
        scales = None if self.scales is None else self.scales[start:stop]
        return Rows(self.values[start:stop], scales, self.width, self.kind)

    def put_(self, weight: Tensor, name: str = "the weight") -> None:
        """Take the values of a weight of as many rows; integers are the nearest to them.

        Raises:
            CheckpointError: if these are integers and a value is not finite.
        """
        if self.scales is None:
            self.values.copy_(weight.detach())
            return
        n = max(1, _AT_ONCE // self.width)
        parts = zip(
            weight.detach().split(n), self.values.split(n), self.scales.split(n), strict=True
        )
        for part, codes, scales in parts:
            made = quantise_groups(part, BITS[self.kind], GROUP, name)
            codes.copy_(_stored(codes_of(made), self.kind))
            scales.copy_(made.scales)

    def floats(self) -> Tensor:
        """What they stand for: [rows, width], float32."""
        if self.scales is None:
            return self.values.float()
        if self.kind == "float8":
            scales = self.scales.repeat_interleave(BLOCK[1], dim=-1)[:, : self.width]
            return self.values.view(FP8).float() * scales
        codes = self.values.to(torch.int16)
        if self.kind == "int4":
            codes = torch.stack((codes & 15, codes >> 4), dim=-1).flatten(-2)
        scales = self.scales.float().repeat_interleave(GROUP, dim=-1)
        return ((codes - 2 ** (BITS[self.kind] - 1)) * scales)[:, : self.width]

    def matrix(self) -> Matrix:
        """For the compiled functions; it points into these rows."""
        values = self.values
        scales = None if self.scales is None else self.scales.data_ptr()
        stride = values.shape[1] * values.element_size()
        found = _CODE_FORMATS.get(self.kind)
        kind = FLOAT_FORMATS[values.dtype] if found is None else found
        return Matrix(values.data_ptr(), scales, stride, len(values), self.width, kind)


def as_rows(weight: Tensor, form: Form) -> Rows:
    """The rows of a weight [rows, width], or of a stack of them.

    Args:
        weight: float32 or bfloat16. Where it is held as it is, the result is in its memory.
        form: how to hold it.
    """
    flat = weight.detach().flatten(0, -2).contiguous()
    if form == "weights":
        return Rows(flat, None, flat.shape[1], FLOAT_KINDS[flat.dtype])
    rows = Rows.empty(len(flat), flat.shape[1], form)
    rows.put_(flat)
    return rows


def row_bytes(width: int, kind: Kind) -> int:
    """Memory of a row."""
    if kind in _CODE_FORMATS:
        return _code_bytes(width, kind) + n_scales(width, kind) * (4 if kind == "float8" else 2)
    dtype: torch.dtype = getattr(torch, kind)
    return width * dtype.itemsize


def n_scales(width: int, kind: Kind) -> int:
    """How many scales a row of codes has."""
    return -(-width // (BLOCK[1] if kind == "float8" else GROUP))


def _code_bytes(width: int, kind: Kind) -> int:
    return width if kind == "float8" else n_scales(width, kind) * GROUP * BITS[kind] // 8


def _stored(codes: Tensor, kind: Kind) -> Tensor:
    """int8 codes as bytes, in whole groups."""
    padded = F.pad(codes, (0, -codes.shape[-1] % GROUP)).to(torch.int16)
    shifted = (padded + 2 ** (BITS[kind] - 1)).to(torch.uint8)
    return shifted if kind == "int8" else shifted[..., 0::2] | (shifted[..., 1::2] << 4)
