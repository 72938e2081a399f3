"""A checkpoint with random weights, of any size, in the memory of one tensor."""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.card import Made, write_card
from moesaic.checkpoint.save import SAVE_DTYPES, write
from moesaic.config.card import CardConfig
from moesaic.config.model import ModelConfig
from moesaic.kernels.quantise import FP8
from moesaic.planner.inventory import TensorSpec

_CHUNK = 2**22


def write_fresh(
    folder: Path | str,
    config: ModelConfig,
    dtype: str,
    seed: int,
    made: Callable[[TensorSpec], None],
) -> str:
    """Write a checkpoint of fresh weights.

    Each tensor has a generator of its own, seeded from ``seed`` and its name, so the same tensor
    comes out whatever is written with it. See `fresh_tensor` for the values.

    Args:
        folder: where; it must be empty or not exist.
        config: the model.
        dtype: what to store weights in, one of `SAVE_DTYPES`.
        seed: any integer.
        made: told of every tensor when it has been made.

    Returns:
        The digest of the checkpoint.

    Raises:
        CheckpointError: if the folder is not empty or the disk is full.
    """
    stored = SAVE_DTYPES.get(dtype, torch.float32)
    drawn = torch.float32 if stored == FP8 else stored

    def make(spec: TensorSpec) -> Tensor:
        generator = torch.Generator().manual_seed(tensor_seed(seed, spec.name))
        tensor = fresh_tensor(spec, config.initializer_range, drawn, generator)
        made(spec)
        return tensor

    card = Made(how="with random weights, which know nothing yet", model=config)
    name = Path(folder).resolve().name
    finish = partial(write_card, made=card, asked=CardConfig(), name=name)
    return write(folder, config, make, dtype, finish=finish)


def tensor_seed(seed: int, name: str) -> int:
    """The seed of one tensor's generator."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:7], "big")


def fresh_tensor(
    spec: TensorSpec, std: float, dtype: torch.dtype, generator: torch.Generator
) -> Tensor:
    """One tensor as training begins with it.

    Matrices are drawn from a normal distribution in float32, norms are 1, router biases 0.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 4.2: standard deviation 0.006 for all parameters.
    """
    if spec.is_router_bias:
        return torch.zeros(spec.shape)
    if len(spec.shape) == 1:
        return torch.ones(spec.shape, dtype=dtype)
    tensor = torch.empty(spec.shape, dtype=dtype)
    for piece in tensor.view(-1).split(_CHUNK):
        piece.copy_(torch.empty(len(piece)).normal_(0.0, std, generator=generator))
    return tensor
