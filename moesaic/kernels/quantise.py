"""Block-scaled FP8: float8 e4m3 values with one float32 scale per block of a weight."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

FP8 = torch.float8_e4m3fn
FP8_MAX = 448.0
"""Largest float8 e4m3 value."""
BLOCK = (128, 128)
"""Rows and columns that share a scale in the published checkpoints."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Fp8Weight:
    """A matrix stored in FP8 blocks, named as it is published."""

    weight: Tensor
    """float8 e4m3, the shape of the matrix."""
    weight_scale_inv: Tensor
    """float32, one per block: what a stored value is multiplied by to get it back."""
    block: tuple[int, int] = BLOCK
    """Rows and columns that share a scale."""


def block_grid(shape: tuple[int, ...], block: tuple[int, int] = BLOCK) -> tuple[int, int]:
    """Blocks along the rows and the columns of a matrix; the last ones may be cut off."""
    return -(-shape[0] // block[0]), -(-shape[1] // block[1])


def quantise(weight: Tensor, block: tuple[int, int] = BLOCK) -> Fp8Weight:
    """A matrix in FP8 blocks, each scaled so that its largest value becomes 448.

    A block of zeros stays zeros. A value that is not finite makes its block's scale not finite.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 3.3.2; scale amax/448 as in the published
        inference code (``act_quant_kernel``).
    """
    rows, columns = weight.shape
    (block_rows, block_columns), (down, across) = block, block_grid((rows, columns), block)
    missing = (0, across * block_columns - columns, 0, down * block_rows - rows)
    padded = F.pad(weight.detach().float(), missing)
    blocks = padded.view(down, block_rows, across, block_columns)
    largest = torch.maximum(blocks.amax(dim=(1, 3)), -blocks.amin(dim=(1, 3)))
    scale = (largest / FP8_MAX).clamp(min=_SMALLEST_SCALE)
    values = (blocks / scale[:, None, :, None]).to(FP8)
    return Fp8Weight(values.view(padded.shape)[:rows, :columns].contiguous(), scale, block)


def dequantise(stored: Fp8Weight) -> Tensor:
    """The float32 matrix that FP8 blocks stand for: every value times the scale of its block.

    Source: the published inference code of DeepSeek-V3 (``weight_dequant_kernel``).
    """
    rows, columns = stored.weight.shape
    scale = stored.weight_scale_inv.float()
    scale = scale.repeat_interleave(stored.block[0], dim=0)[:rows]
    scale = scale.repeat_interleave(stored.block[1], dim=1)[:, :columns]
    return stored.weight.float() * scale
