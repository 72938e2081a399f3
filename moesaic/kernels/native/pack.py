"""Weights as the compiled functions read them: floats as they lie, integers in groups of 64."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from moesaic.kernels.groupwise import GROUP, GroupwiseWeight, quantise_groups

Form = Literal["weights", "int8", "int4"]
"""How weights are held for decoding: as they are, or as integers."""

FLOAT_FORMATS = {torch.float32: 0, torch.bfloat16: 1}
_INT8, _INT4 = 2, 3


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


def as_matrix(weight: Tensor, form: Form, keep: list[Tensor]) -> Matrix:
    """A weight [rows, width], or a stack of them one after the other.

    Args:
        weight: float32 or bfloat16. Where it is held as it is, the result points into it.
        form: how to hold it.
        keep: receives the tensors that the result points into.
    """
    if form == "weights":
        flat = weight.detach().flatten(0, -2).contiguous()
        keep.append(flat)
        rows, width = flat.shape
        stride = width * flat.element_size()
        return Matrix(flat.data_ptr(), None, stride, rows, width, FLOAT_FORMATS[flat.dtype])
    stack = weight.detach().unsqueeze(0) if weight.ndim == 2 else weight.detach()
    parts = [_packed(quantise_groups(one, 8 if form == "int8" else 4, GROUP)) for one in stack]
    values, scales = (torch.cat(each) for each in zip(*parts, strict=True))
    keep += [values, scales]
    rows, stride = values.shape
    kind = _INT8 if form == "int8" else _INT4
    return Matrix(values.data_ptr(), scales.data_ptr(), stride, rows, weight.shape[-1], kind)


def _packed(stored: GroupwiseWeight) -> tuple[Tensor, Tensor]:
    """Codes in whole groups, and scales."""
    codes, width = stored.values, stored.shape[-1]
    if stored.bits == 4:
        codes = torch.cat(((codes << 4) >> 4, codes >> 4), dim=-1)[..., :width]
    codes = F.pad(codes, (0, -width % GROUP))
    if stored.bits == 4:
        low, high = codes.unflatten(-1, (-1, 2, GROUP // 2)).add(8).to(torch.uint8).unbind(-2)
        codes = (low | (high << 4)).flatten(-2)
    return codes.contiguous().view(torch.uint8), stored.scales.contiguous()
