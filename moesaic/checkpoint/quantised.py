"""FP8 weights of a checkpoint: read, written, and carried over unchanged; and the values of any."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from moesaic.checkpoint.files import LazyTensor, read_tensor
from moesaic.checkpoint.header import StoredTensor
from moesaic.checkpoint.names import SCALE
from moesaic.errors import CheckpointError
from moesaic.kernels.groupwise import GroupwiseWeight, dequantise_groups
from moesaic.kernels.quantise import FP8, Fp8Weight, block_grid, dequantise, quantise

StoredWeight = Tensor | Fp8Weight | GroupwiseWeight
"""A tensor as a checkpoint stores it."""


def read_fp8(weight: StoredTensor, scale: StoredTensor, block: tuple[int, int]) -> Fp8Weight:
    """A weight and its scales as they are stored."""
    return Fp8Weight(read_tensor(weight), read_tensor(scale), block)


def plain(weight: StoredWeight) -> Tensor:
    """The values of a weight, in float32 where it is stored in FP8 blocks or as integers."""
    if isinstance(weight, GroupwiseWeight):
        return dequantise_groups(weight)
    return dequantise(weight) if isinstance(weight, Fp8Weight) else weight


def fp8_pair(
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], StoredWeight],
    block: tuple[int, int],
) -> Iterator[LazyTensor]:
    """A weight to be written in FP8 blocks, followed by its scales.

    ``make`` is called once, when the weight is written. What it returns in the same blocks
    already is written as it is, so weights that nobody changed keep their bytes.
    """
    scales: list[Tensor] = []

    def make_weight() -> Tensor:
        made = make()
        if not isinstance(made, Fp8Weight) or made.block != block:
            made = quantise(plain(made), block)
        if not made.weight_scale_inv.isfinite().all():
            raise CheckpointError(
                f"{name} holds values that are not finite and have no FP8 form; find out where "
                "they come from, or save it in bfloat16"
            )
        scales.append(made.weight_scale_inv)
        return made.weight

    yield LazyTensor(name, FP8, shape, make_weight)
    yield LazyTensor(name + SCALE, torch.float32, block_grid(shape, block), scales.pop)
