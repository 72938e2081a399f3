"""Products of matrices by panels.cpp: one for each expert, or for each head."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p
from functools import cache

import torch
from torch import Tensor

from moesaic.kernels.native.build import library

DTYPES = (torch.float32, torch.bfloat16)
"""Types of factors and results."""
_SUFFIXES = {
    (torch.float32, torch.float32): "float32",
    (torch.bfloat16, torch.bfloat16): "bfloat16",
    (torch.bfloat16, torch.float32): "mixed",
}
"""Of the names of functions, by the types of both factors."""
_NONE, _ROWS, _DEPTH = range(3)
_SIGNATURE = (*(c_void_p,) * 6, c_int64, c_void_p, *(c_int32,) * 4)


def serve(left: Tensor, right: Tensor) -> bool:
    """Whether these two are better multiplied here: on a CPU where `is_faster`, of one type or the
    right one float32, and with values that lie side by side in their rows or in their columns."""
    if not left.device.type == right.device.type == "cpu" or not is_faster():
        return False
    if (left.dtype, right.dtype) not in _SUFFIXES:
        return False
    return all(1 in x.stride()[-2:] for x in (left, right))


@cache
def is_faster() -> bool:
    """Whether there are compiled products, on a processor where the framework's are slower: one of
    AMD's. Intel's library uses the whole width of Intel's processors, and their matrix units."""
    found = library()
    return isinstance(found, ctypes.CDLL) and bool(found.moesaic_products_are_faster())


def multiply(left: Tensor, right: Tensor, out: Tensor, adds: bool = False) -> Tensor:
    """``left @ right`` of every pair: [n, a, k] and [n, k, b] into ``out``, [n, a, b].

    Args:
        left: float32 or bfloat16.
        right: of the same type, or float32: then it is rounded to bfloat16.
        out: float32 or bfloat16; its rows are contiguous.
        adds: add to what is there.
    """
    _, rows, depth = left.shape
    each = left.stride(0), right.stride(0), out.stride(0)
    _call(left, right, out, (rows, right.shape[2], depth), each, len(left), None, _NONE, adds)
    return out


def multiply_rows(left: Tensor, right: Tensor, ends: Tensor, out: Tensor) -> Tensor:
    """Rows of each group times its matrix: [rows, a] and [n, a, b] into ``out``, [rows, b].

    Args:
        left: see `multiply`.
        right: see `multiply`.
        ends: int32 [n], the row after the last of each group.
        out: see `multiply`.
    """
    sizes, each = (len(left), right.shape[2], left.shape[1]), (0, right.stride(0), 0)
    _call(left, right, out, sizes, each, len(right), ends, _ROWS, adds=False)
    return out


def multiply_columns(
    left: Tensor, right: Tensor, ends: Tensor, out: Tensor, adds: bool = False
) -> Tensor:
    """Sum of outer products over each group's rows: [rows, a], [rows, b] into ``out``, [n, a, b].

    Args:
        left: see `multiply`.
        right: see `multiply`.
        ends: see `multiply_rows`.
        out: see `multiply`.
        adds: add to what is there.
    """
    sizes, each = (left.shape[1], right.shape[1], 0), (0, 0, out.stride(0))
    _call(left.t(), right, out, sizes, each, len(ends), ends, _DEPTH, adds)
    return out


def _call(
    left: Tensor,
    right: Tensor,
    out: Tensor,
    sizes: tuple[int, int, int],
    each: tuple[int, int, int],
    count: int,
    ends: Tensor | None,
    cut: int,
    adds: bool,
) -> None:
    assert out.stride(-1) == 1
    assert out.dtype in DTYPES
    assert ends is None or (ends.dtype == torch.int32 and ends.is_contiguous())
    found = library()
    assert isinstance(found, ctypes.CDLL)
    function = getattr(found, f"moesaic_products_{_SUFFIXES[left.dtype, right.dtype]}")
    function.argtypes, function.restype = _SIGNATURE, None
    strides = (*left.stride()[-2:], *reversed(right.stride()[-2:]), out.stride(-2))
    numbers = [(c_int64 * len(each))(*each) for each in (sizes, strides, each)]
    addresses = (x.data_ptr() for x in (left, right, out))
    told = None if ends is None else ends.data_ptr()
    is_half = int(out.dtype == torch.bfloat16)
    threads = torch.get_num_threads()
    function(*addresses, *numbers, count, told, cut, is_half, int(adds), threads)
