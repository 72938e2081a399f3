"""The values of rows of codes, made by expand.cpp in one sweep."""

import ctypes
from ctypes import byref, c_int32, c_void_p

import torch
from torch import Tensor

from moesaic.kernels.native.build import library
from moesaic.kernels.native.pack import Rows

_SUFFIXES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


def expand(rows: Rows, out: Tensor) -> Tensor:
    """`Rows.floats` in another type, rounded to the nearest: the same bits, made at the speed of
    memory where there is a compiler.

    Args:
        rows: of any kind.
        out: [rows, width], contiguous; it is overwritten and given back.
    """
    assert out.shape == (len(rows.values), rows.width)
    assert out.is_contiguous()
    if rows.values.is_floating_point():
        return out.copy_(rows.values)
    found = library() if out.device.type == "cpu" else None
    if not isinstance(found, ctypes.CDLL) or out.dtype not in _SUFFIXES:
        return out.copy_(rows.floats())
    function = getattr(found, f"moesaic_expand_{_SUFFIXES[out.dtype]}")
    function.argtypes, function.restype = (c_void_p, c_void_p, c_int32), None
    function(byref(rows.matrix()), out.data_ptr(), torch.get_num_threads())
    return out
