"""How AdamW's running means lie in memory between steps: as floats, or in 8 bits.

A step reads a piece of one in float32, moves it, and writes it back. Pieces are vectors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

BLOCK = 256
"""Values that share a scale where they are held in 8 bits."""
SCALES = "_scale"
"""Ends the name of a tensor with one value per block."""
_SMALLEST_SCALE = torch.finfo(torch.float32).tiny

Held = Mapping[str, Tensor]
"""Tensors that hold running means, or a piece of each, by name."""
Zeros = Callable[[tuple[int, ...], torch.dtype], Tensor]
"""Makes a tensor of zeros where moments are kept."""


class Moment(Protocol):
    """A form of a running mean."""

    def empty(self, name: str, shape: tuple[int, ...], zeros: Zeros) -> dict[str, Tensor]:
        """The tensors that hold a mean of zeros."""
        ...

    def read(self, held: Held, name: str) -> Tensor:
        """The values in float32; they may be the tensor that holds them."""
        ...

    def write_(
        self, held: Held, name: str, values: Tensor, generator: torch.Generator | None
    ) -> None:
        """Hold these values from now on; they are used up. A generator rounds them at random."""
        ...


@dataclass(frozen=True, slots=True)
class Floats:
    """Every value in a floating-point type."""

    dtype: torch.dtype

    def empty(self, name: str, shape: tuple[int, ...], zeros: Zeros) -> dict[str, Tensor]:
        """See `Moment`."""
        return {name: zeros(shape, self.dtype)}

    def read(self, held: Held, name: str) -> Tensor:
        """See `Moment`."""
        return held[name].float()

    def write_(
        self, held: Held, name: str, values: Tensor, generator: torch.Generator | None
    ) -> None:
        """See `Moment`."""
        write_rounded_(held[name], values, generator)


@dataclass(frozen=True, slots=True)
class Codes:
    """Every value in 8 bits, and the largest size in each block of 256 in float32.

    Code c of a block with scale s stands for ``±s·(|c| / most)⁴``: steps are a few percent of a
    value over four orders of magnitude. A value other than 0 never becomes 0, which a mean of
    squares must not: the update is divided by its root.

    Source: 8-bit Optimizers via Block-wise Quantization (arXiv 2110.02861) section 2.1 for blocks;
        Memory Efficient Optimizers with 4-bit States (arXiv 2309.01507) for leaving out zero. The
        codes are fourth roots, not those papers' tables, because they need no search.
    """

    dtype: torch.dtype
    """int8 for a mean that has a sign, uint8 for one that has none."""

    def empty(self, name: str, shape: tuple[int, ...], zeros: Zeros) -> dict[str, Tensor]:
        """See `Moment`."""
        codes = zeros(shape, self.dtype)
        blocks = -(-codes.numel() // BLOCK)
        return {name: codes, f"{name}{SCALES}": zeros((blocks,), torch.float32)}

    def read(self, held: Held, name: str) -> Tensor:
        """See `Moment`."""
        roots = held[name].float().div_(self._most)
        values = roots.square().square_().copysign_(roots)
        for block, scale in _blocks(values, held[f"{name}{SCALES}"]):
            block.mul_(scale)
        return values

    def write_(
        self, held: Held, name: str, values: Tensor, generator: torch.Generator | None
    ) -> None:
        """See `Moment`."""
        for block, scale in _blocks(values, held[f"{name}{SCALES}"]):
            scale.copy_(block.abs().amax(dim=1, keepdim=True))
            block.div_(scale.clamp(min=_SMALLEST_SCALE))
        roots = values.abs().sqrt_().sqrt_().mul_(self._most)
        least = roots.sign()
        codes = roots.round_() if generator is None else _round_fourth_roots_(roots, generator)
        held[name].copy_(torch.maximum(codes, least).copysign_(values))

    @property
    def _most(self) -> int:
        return torch.iinfo(self.dtype).max


def write_rounded_(target: Tensor, values: Tensor, generator: torch.Generator | None) -> None:
    """Copy values into a tensor that may be of a narrower type.

    With a generator, bfloat16 gets one of the two nearest values at random, the closer one more
    often, so that what is written is right in the mean, and updates that are too small to change a
    weight change it now and then. Bfloat16 is the upper half of float32: the lower half carries
    into it when a random number is added.

    Args:
        target: written to; nothing happens if it is ``values`` itself.
        values: what is to be written, in float32.
        generator: on the device of the values; None rounds to the nearest.

    Source: Revisiting BFloat16 Training (arXiv 2010.06192) section 3, which shows both.
    """
    if values is target:
        return
    if generator is None or target.dtype != torch.bfloat16:
        target.copy_(values)
        return
    bits = values.view(torch.int32)
    noise = torch.randint(
        2**16, bits.shape, dtype=torch.int32, device=bits.device, generator=generator
    )
    target.copy_(noise.add_(bits).bitwise_and_(-(2**16)).view(torch.float32))


def _round_fourth_roots_(roots: Tensor, generator: torch.Generator) -> Tensor:
    """Whole numbers beside the roots, at random, so that the mean of their fourth powers is right.

    The probability of the upper one is the share of the way between both fourth powers.
    """
    lower = roots.floor()
    base = lower.square().square_()
    way = (lower + 1).square_().square_().sub_(base)
    share = roots.square_().square_().sub_(base).div_(way)
    return lower.add_(torch.rand(share.shape, device=share.device, generator=generator) < share)


def _blocks(values: Tensor, scales: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Views of all whole blocks, then of the shorter one at the end, each with their scales."""
    whole = len(values) // BLOCK
    if whole:
        yield values[: whole * BLOCK].view(whole, BLOCK), scales[:whole].unsqueeze(1)
    if len(values) % BLOCK:
        yield values[whole * BLOCK :].unsqueeze(0), scales[whole:].unsqueeze(1)
