"""Weights as integers in 32 bit words: the ``pack-quantized`` layout of compressed-tensors.

A weight ``X.weight`` [O, D] is three tensors. ``X.weight_packed`` holds the codes of a row one
after the other, lowest bits first, each plus half the number of codes so that it is not negative.
``X.weight_scale`` has a column per group of neighbours, ``X.weight_shape`` the shape.
"""

from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from moesaic.checkpoint.files import LazyTensor, read_tensor
from moesaic.checkpoint.folder import Contents, Problem
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor
from moesaic.checkpoint.quantised import StoredWeight, plain
from moesaic.config.model import ModelConfig
from moesaic.config.packed import PackedGroups, PackedIntegers
from moesaic.errors import CheckpointError
from moesaic.kernels.groupwise import GroupwiseWeight, codes_of, of_codes, quantise_groups
from moesaic.planner.inventory import TensorSpec

PACKED, SCALES, SHAPE = "_packed", "_scale", "_shape"
"""What the names of a weight's codes, scales and shape end in, after the weight's own."""
WORD_BITS = 32
_DTYPES = {
    PACKED: (torch.int32,),
    SCALES: (torch.bfloat16, torch.float16, torch.float32),
    SHAPE: (torch.int64, torch.int32),
}


def pack_codes(codes: Tensor, bits: int) -> Tensor:
    """int8 codes as words, int32; the last word of a row may be partly empty."""
    per_word = WORD_BITS // bits
    filled = F.pad(codes, (0, -codes.shape[-1] % per_word))
    shifted = (filled.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 4:
        shifted = shifted[..., 0::2] | (shifted[..., 1::2] << 4)
    return shifted.contiguous().view(torch.int32)


def unpack_codes(words: Tensor, bits: int, width: int) -> Tensor:
    """The int8 codes of rows of words."""
    found = words.contiguous().view(torch.uint8)
    if bits == 4:
        found = torch.stack((found & 15, found >> 4), dim=-1).flatten(-2)
    return (found[..., :width].to(torch.int16) - 2 ** (bits - 1)).to(torch.int8)


def packed_parts(
    name: str,
    shape: tuple[int, ...],
    make: Callable[[], StoredWeight],
    form: PackedIntegers,
) -> tuple[LazyTensor, LazyTensor, LazyTensor]:
    """A weight to be written as integers: words, scales and shape.

    ``make`` is called once, when the words are written.
    """
    scales: list[Tensor] = []
    sizes = _sizes(shape, form)

    def make_words() -> Tensor:
        made = quantise_groups(plain(make()), form.num_bits, form.group_size, name)
        scales.append(made.scales)
        return pack_codes(codes_of(made), form.num_bits)

    return (
        LazyTensor(name + PACKED, torch.int32, sizes[PACKED], make_words),
        LazyTensor(name + SCALES, torch.bfloat16, sizes[SCALES], scales.pop),
        LazyTensor(name + SHAPE, torch.int64, sizes[SHAPE], lambda: torch.tensor(shape)),
    )


def read_packed(
    stored: Mapping[str, StoredTensor], name: str, shape: tuple[int, ...], form: PackedIntegers
) -> GroupwiseWeight:
    """A weight as it is stored.

    Raises:
        CheckpointError: if the shape stored beside the codes is another than the model's.
    """
    told = tuple(read_tensor(stored[name + SHAPE]).tolist())
    if told != shape:
        raise CheckpointError(
            f"{name + SHAPE} says {list(told)}, config.json makes it {list(shape)}; fetch the "
            "config.json that belongs to these weights"
        )
    codes = unpack_codes(read_tensor(stored[name + PACKED]), form.num_bits, shape[-1])
    scales = read_tensor(stored[name + SCALES])
    return of_codes(codes, scales, form.num_bits, form.group_size)


def weight_of_part(name: str) -> str | None:
    """The weight that a stored tensor is a part of; None if it is none."""
    for ending in (PACKED, SCALES, SHAPE):
        if name.endswith(f".weight{ending}"):
            return name.removesuffix(ending)
    return None


def compare_packed(spec: TensorSpec, contents: Contents, config: ModelConfig) -> Iterator[Problem]:
    """What is wrong with a weight whose codes are stored as words."""
    groups = config.quantization_config
    if not isinstance(groups, PackedGroups) or len(spec.shape) != 2:
        text = (
            f"{spec.name} is stored as packed integers, config.json has no quantization_config "
            "that tells their bits; fetch the config.json that belongs to these weights"
        )
        yield Problem("wrong type", spec.name, text)
        return
    for ending, shape in _sizes(spec.shape, groups.weights).items():
        name = spec.name + ending
        stored = contents.tensors.get(name)
        if stored is not None:
            yield from _compare_part(spec, stored, ending, shape, groups.weights)
        elif name not in contents.excused:
            text = f"{name} is missing, a part of the packed integers of {spec.name}; fetch it"
            yield Problem("missing", name, text)


def _compare_part(
    spec: TensorSpec,
    stored: StoredTensor,
    ending: str,
    shape: tuple[int, ...],
    form: PackedIntegers,
) -> Iterator[Problem]:
    if stored.shape != shape:
        text = (
            f"{stored.name} has shape {list(stored.shape)}, {list(spec.shape)} in "
            f"{form.num_bits} bits and groups of {form.group_size} needs {list(shape)}; fetch it "
            "again, or correct quantization_config in config.json"
        )
        yield Problem("wrong shape", stored.name, text)
    elif stored.dtype not in _DTYPES[ending]:
        wanted = " or ".join(DTYPE_NAMES[dtype] for dtype in _DTYPES[ending])
        text = (
            f"{stored.name} is stored as {DTYPE_NAMES[stored.dtype]}, it should be {wanted}; "
            "fetch it again"
        )
        yield Problem("wrong type", stored.name, text)


def _sizes(shape: tuple[int, ...], form: PackedIntegers) -> dict[str, tuple[int, ...]]:
    """The shape of each part of a weight."""
    rows, width = shape
    return {
        PACKED: (rows, -(-width * form.num_bits // WORD_BITS)),
        SCALES: (rows, -(-width // form.group_size)),
        SHAPE: (2,),
    }
