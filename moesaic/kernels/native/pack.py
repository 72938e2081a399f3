"""Weights as the compiled functions read them: floats as they lie, codes as they are stored."""

import ctypes
from ctypes import byref, c_int32, c_int64, c_void_p
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.errors import CheckpointError, RequestError
from moesaic.kernels.groupwise import GROUP, Bits, codes_of, quantise_groups
from moesaic.kernels.large_pages import empty_in_large_pages
from moesaic.kernels.native import lossless
from moesaic.kernels.native.build import library
from moesaic.kernels.quantise import BLOCK, FP8

Form = Literal["weights", "lossless", "int8", "int4"]
"""How weights are held for decoding: as they are, the same bfloat16 in 12 bits, or as integers."""
Kind = Literal["float32", "bfloat16", "float16", "float64", "int8", "int4", "float8", "lossless"]
"""What the rows of a weight consist of; float16 and float64 have no compiled form."""

FLOAT_KINDS: dict[torch.dtype, Kind] = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.float16: "float16",
    torch.float64: "float64",
}

FLOAT_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
_CODE_FORMATS = {"int8": 2, "int4": 3, "float8": 4, "lossless": 5}
_SCALES = {
    "int8": torch.bfloat16,
    "int4": torch.bfloat16,
    "float8": torch.float32,
    "lossless": torch.uint8,
}
"""Types of what stands beside the codes of a row."""
BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
"""Of the codes of integers."""
_AT_ONCE = 2**20
"""Weights that are made integers in one go, so that little memory is taken besides."""


class Matrix(ctypes.Structure):
    """``Matrix`` of dot.h; the tensors it points into must outlive it."""

    _fields_ = (
        ("values", c_void_p),
        ("scales", c_void_p),
        ("others", c_void_p),
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
    """One per group, bfloat16; of 8-bit floats one per block of a row, float32; of what is lossless
    uint8 [rows, 2]; None for floats."""
    width: int
    kind: Kind
    others: Tensor | None = None
    """What `lossless` lists beside a row."""

    @classmethod
    def empty(cls, n: int, width: int, kind: Kind, device: torch.device | str = "cpu") -> "Rows":
        """Room for some rows."""
        if kind in _CODE_FORMATS:
            codes = _room(n, _code_bytes(width, kind), torch.uint8, device)
            scales = torch.empty(n, n_scales(width, kind), dtype=_SCALES[kind], device=device)
            others = None
            if kind == "lossless":
                scales.zero_()  # rows that are not filled list nothing
                shape = n, lossless.n_others(width)
                others = torch.empty(shape, dtype=torch.int32, device=device)
            return cls(codes, scales, width, kind, others)
        return cls(_room(n, width, getattr(torch, kind), device), None, width, kind)

    @property
    def n_bytes(self) -> int:
        """Memory of values and what stands beside them."""
        parts = self.values, self.scales, self.others
        return sum(part.nbytes for part in parts if part is not None)

    def part(self, start: int, stop: int) -> "Rows":
        """Some of them, in the same memory."""
        tensors = self.values, self.scales, self.others
        values, scales, others = (None if each is None else each[start:stop] for each in tensors)
        assert values is not None
        return Rows(values, scales, self.width, self.kind, others)

    def put_(self, weight: Tensor, name: str = "the weight") -> None:
        """Take the values of a weight of as many rows; integers are the nearest to them.

        Raises:
            CheckpointError: if these are integers and a value is not finite, or lossless and there
                are too many other exponents.
            RequestError: if these are lossless and there is no compiled form.
        """
        if self.scales is None:
            self.values.copy_(weight.detach())
            return
        if self.kind == "lossless":
            self._put_lossless_(weight, name)
            return
        n = max(1, _AT_ONCE // self.width)
        parts = zip(
            weight.detach().split(n), self.values.split(n), self.scales.split(n), strict=True
        )
        for part, codes, scales in parts:
            made = quantise_groups(part, BITS[self.kind], GROUP, name)
            codes.copy_(_stored(codes_of(made), self.kind))
            scales.copy_(made.scales)

    def _put_lossless_(self, weight: Tensor, name: str) -> None:
        if self.width > 2**16:
            raise CheckpointError(
                f"rows of {name} have {self.width} values, and form=lossless takes at most "
                f"{2**16}; use form=weights"
            )
        found = _library()
        assert self.values.device.type == "cpu"
        values = weight.detach().to(torch.bfloat16).contiguous()
        assert values.shape == (len(self.values), self.width)
        put = found.moesaic_put_lossless
        put.argtypes, put.restype = (c_void_p, c_void_p, c_int64, c_int32), c_int64
        threads = torch.get_num_threads()
        failed = put(byref(self.matrix()), values.data_ptr(), self.width, threads)
        if failed >= 0:
            raise CheckpointError(
                f"row {failed} of {name} has over {lossless.n_others(self.width)} values whose "
                "exponents are not among 15 neighbours, and does not fit into 12 bits a value; use "
                "form=weights"
            )

    def floats(self) -> Tensor:
        """What they stand for: [rows, width], float32."""
        if self.scales is None:
            return self.values.float()
        if self.kind == "lossless":
            assert self.others is not None
            return lossless.values_of(self.values, self.scales, self.others, self.width).float()
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
        tensors = self.values, self.scales, self.others
        addresses = (None if each is None else each.data_ptr() for each in tensors)
        stride = self.values.shape[1] * self.values.element_size()
        found = _CODE_FORMATS.get(self.kind)
        kind = FLOAT_FORMATS[self.values.dtype] if found is None else found
        return Matrix(*addresses, stride, len(self.values), self.width, kind)


def as_rows(weight: Tensor, form: Form) -> Rows:
    """The rows of a weight [rows, width], or of a stack of them.

    Args:
        weight: float32 or bfloat16. Where it is held as it is, the result is in its memory.
        form: how to hold it.

    Raises:
        CheckpointError: if it is to be lossless and is not bfloat16; see `Rows.put_`.
    """
    if form == "lossless" and weight.dtype != torch.bfloat16:
        raise CheckpointError(f"form=lossless holds bfloat16 and no {weight.dtype}")
    flat = weight.detach().flatten(0, -2).contiguous()
    if form == "weights":
        return Rows(flat, None, flat.shape[1], FLOAT_KINDS[flat.dtype])
    rows = Rows.empty(len(flat), flat.shape[1], form)
    rows.put_(flat)
    return rows


def row_bytes(width: int, kind: Kind) -> int:
    """Memory of a row."""
    if kind in _CODE_FORMATS:
        others = 4 * lossless.n_others(width) if kind == "lossless" else 0
        return _code_bytes(width, kind) + n_scales(width, kind) * _SCALES[kind].itemsize + others
    dtype: torch.dtype = getattr(torch, kind)
    return width * dtype.itemsize


def n_scales(width: int, kind: Kind) -> int:
    """How many scales a row of codes has."""
    if kind == "lossless":
        return 2
    return -(-width // (BLOCK[1] if kind == "float8" else GROUP))


def _code_bytes(width: int, kind: Kind) -> int:
    if kind == "lossless":
        return lossless.bytes_of(width)
    return width if kind == "float8" else n_scales(width, kind) * GROUP * BITS[kind] // 8


def _stored(codes: Tensor, kind: Kind) -> Tensor:
    """int8 codes as bytes, in whole groups."""
    padded = F.pad(codes, (0, -codes.shape[-1] % GROUP)).to(torch.int16)
    shifted = (padded + 2 ** (BITS[kind] - 1)).to(torch.uint8)
    return shifted if kind == "int8" else shifted[..., 0::2] | (shifted[..., 1::2] << 4)


def _room(n: int, width: int, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    if torch.device(device).type == "cpu":
        return empty_in_large_pages(n, width, dtype=dtype)
    return torch.empty(n, width, dtype=dtype, device=device)


def _library() -> ctypes.CDLL:
    found = library()
    if isinstance(found, str):
        raise RequestError(f"form=lossless needs the compiled decoder: {found}")
    return found
