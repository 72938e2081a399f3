"""bfloat16 in 12 bits, no value changed: a row's exponents are nearly all among 15 neighbours.

Sign and mantissa take 8 bits; of the exponent is kept how far above the lowest of the neighbours
it is, in 4, or that it is 0. The few values of a row with other exponents are listed beside it:
weights are spread like a bell, and of 2,048 values one or none is so small. The layout is in
lossless.h. That exponents of trained weights carry little is known: DFloat11 (Zhang et al. 2025,
arXiv 2504.11651) writes them in codes of different lengths, 11 bits a value in all, which take
longer to read.
"""

import torch
from torch import Tensor

_WINDOW, _HALF, _LINE, _EXPONENTS = 128, 64, 64, 15
"""As in lossless.h."""


def bytes_of(width: int) -> int:
    """Memory of a row: three lines for each window, and two for half a one at the end."""
    return _windows(width) * 3 * _LINE + (2 * _LINE if _has_half(width) else 0)


def n_others(width: int) -> int:
    """For how many values of a row with other exponents there is room; a byte counts them."""
    return min(255, 8 + width // 256)


def values_of(rows: Tensor, heads: Tensor, others: Tensor, width: int) -> Tensor:
    """The values of rows, bfloat16 [rows, width].

    Args:
        rows: uint8 [rows, `bytes_of`].
        heads: uint8 [rows, 2], the lowest exponent and how many others there are.
        others: int32 [rows, `n_others`], each a place in the upper half and bits in the lower one.
        width: values of a row.
    """
    whole = _windows(width) * 3 * _LINE
    codes, bytes_ = _taken_apart(rows[:, :whole].unflatten(1, (-1, 3, _LINE)))
    if _has_half(width):
        half = rows[:, whole:]
        codes = torch.cat(
            (codes, half[:, _LINE : _LINE + 32] & 15, half[:, _LINE:][:, :32] >> 4), 1
        )
        bytes_ = torch.cat((bytes_, half[:, :_LINE:2], half[:, 1:_LINE:2]), 1)
    codes, bytes_ = codes.to(torch.int32), bytes_.to(torch.int32)
    exponents = torch.where(codes < _EXPONENTS, codes + heads[:, :1].to(torch.int32), 0)
    bits = (bytes_ & 0x80) << 8 | exponents << 7 | (bytes_ & 0x7F)
    row, which = (torch.arange(others.shape[1]) < heads[:, 1:]).nonzero(as_tuple=True)
    listed = others[row, which]
    bits[row, (listed >> 16 & 0xFFFF).long()] = listed & 0xFFFF
    return bits[:, :width].to(torch.int16).view(torch.bfloat16)


def _taken_apart(lines: Tensor) -> tuple[Tensor, Tensor]:
    """Codes, and signs with mantissas, of whole windows [rows, windows, 3, 64], in order."""
    pairs = lines.unflatten(3, (-1, 2)).transpose(3, 4)  # [rows, windows, line, byte, lane]
    codes = torch.stack((pairs[:, :, 0] & 15, pairs[:, :, 0] >> 4), 3)
    return codes.flatten(1), pairs[:, :, 1:].flatten(1)


def _windows(width: int) -> int:
    return (width + _HALF - 1) // _WINDOW


def _has_half(width: int) -> bool:
    return _windows(width) * _WINDOW < width
