"""Write a checkpoint in the published layout: streamed, and under its name only when complete."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.files import LazyTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import Resident, check_resident, place, state_shapes
from moesaic.checkpoint.quantised import StoredWeight, fp8_pair, plain
from moesaic.checkpoint.write import FILE_BYTES, Finish, write_pending
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.errors import CheckpointError, ConfigError, suggest
from moesaic.kernels.quantise import BLOCK, FP8
from moesaic.planner.inventory import TensorSpec, tensors

SAVE_DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": FP8,
}
"""What weights can be stored in; FP8 for the linear layers of blocks, the rest BF16 with them."""
Make = Callable[[TensorSpec], StoredWeight]


def save(
    folder: Path | str,
    config: ModelConfig,
    state: Mapping[str, Tensor],
    dtype: str,
    source: Path | str | None = None,
    resident: Resident | None = None,
    finish: Finish | None = None,
) -> str:
    """Write a model's tensors as a checkpoint that loads here and in other tools.

    Args:
        folder: where; it must be empty or not exist.
        config: the model.
        state: its tensors by their names in the model, on any device.
        dtype: what to store weights in, one of `SAVE_DTYPES`.
        source: the checkpoint the model was loaded from. Tokenizer and generation settings are
            taken over from it, and the tensors that ``state`` lacks: experts that are not
            resident.
        resident: which experts the stacks hold.
        finish: writes a card beside the tensors.

    Returns:
        The digest of the checkpoint.

    Raises:
        CheckpointError: if the state does not fit the model, a tensor is in neither state nor
            source, or the disk is full; nothing is left under the folder's name then.
    """
    _check_state(config, state, resident)
    reader = Reader(source) if source is not None and _is_partial(config, state, resident) else None

    def make(spec: TensorSpec) -> StoredWeight:
        found = place(spec, resident)
        if found is not None and found.name in state:
            return found.of(state[found.name].detach())
        if reader is None:
            raise CheckpointError(
                f"{spec.name} is not in the model; give the checkpoint it was loaded from as source"
            )
        if reader.shape(spec.name) != spec.shape:
            raise CheckpointError(
                f"{source}: {spec.name} has another shape than {list(spec.shape)}; give the "
                "checkpoint this model was loaded from as source"
            )
        return reader.stored(spec.name)

    return write(folder, config, make, dtype, source, finish=finish)


def write(
    folder: Path | str,
    config: ModelConfig,
    make: Make,
    dtype: str,
    source: Path | str | None = None,
    file_bytes: int = FILE_BYTES,
    finish: Finish | None = None,
) -> str:
    """Write a checkpoint whose tensors are made one after the other, each dropped when written.

    Args:
        folder: where; it must be empty or not exist.
        config: the model.
        make: gives the tensor of a specification, in any float type, on any device, or as it is
            stored. Called once per tensor, and again for each tensor that repeats it.
        dtype: what to store weights in, one of `SAVE_DTYPES`.
        source: the checkpoint whose tokenizer and generation settings are taken over.
        file_bytes: most bytes of tensors in one file; a larger tensor has a file of its own.
        finish: writes a card beside the tensors.

    Returns:
        The digest of the checkpoint.

    Raises:
        CheckpointError: if the disk is full or a tensor has no form in ``dtype``; nothing is left
            under the folder's name then.
    """
    config = _stored_config(config, dtype)
    pending = _pending(config, make, dtype)
    return write_pending(folder, config, pending, _plain_dtype(dtype), source, file_bytes, finish)


def _stored_config(config: ModelConfig, dtype: str) -> ModelConfig:
    """The configuration as it is to be stored, with the blocks that FP8 weights are in."""
    if dtype not in SAVE_DTYPES:
        raise ConfigError(
            f"dtype={dtype!r} is not one of {', '.join(SAVE_DTYPES)}{suggest(dtype, SAVE_DTYPES)}"
        )
    found = config.quantization_config
    blocks = found if isinstance(found, Fp8Blocks) else Fp8Blocks()
    blocks = blocks if SAVE_DTYPES[dtype] == FP8 else None
    return config.model_copy(update={"quantization_config": blocks})


def _plain_dtype(dtype: str) -> str:
    """What tensors that are not in FP8 blocks are stored in."""
    return "bfloat16" if SAVE_DTYPES[dtype] == FP8 else dtype


def _pending(config: ModelConfig, make: Make, dtype: str) -> Iterator[tuple[LazyTensor, ...]]:
    """What is to be written for each tensor of the model: itself, or its FP8 blocks and scales."""
    originals = {spec.name: spec for spec in tensors(config)}
    blocks = config.quantization_config
    block = blocks.weight_block_size if isinstance(blocks, Fp8Blocks) else BLOCK
    quantised, stored = SAVE_DTYPES[dtype] == FP8, SAVE_DTYPES[_plain_dtype(dtype)]

    def convert(spec: TensorSpec, target: torch.dtype) -> Tensor:
        return _convert(spec.name, plain(make(spec)), target)

    for spec in originals.values():
        made = originals[spec.copy_of] if spec.copy_of else spec
        if quantised and spec.may_be_quantised:
            yield tuple(fp8_pair(spec.name, spec.shape, lambda made=made: make(made), block))
        else:
            target = torch.float32 if spec.is_router_bias else stored
            one = LazyTensor(
                spec.name, target, spec.shape, lambda made=made, to=target: convert(made, to)
            )
            yield (one,)


def _convert(name: str, tensor: Tensor, dtype: torch.dtype) -> Tensor:
    converted = tensor.to(dtype)
    if dtype == torch.float16 and converted.isinf().any() and not tensor.isinf().any():
        raise CheckpointError(
            f"{name} holds {tensor.abs().max().item():.4g}, more than float16 can; "
            "save it in bfloat16 or float32"
        )
    return converted


def _check_state(
    config: ModelConfig, state: Mapping[str, Tensor], resident: Resident | None
) -> None:
    """Refuse a tensor the model has not, or one of another shape."""
    shapes = state_shapes(config, resident)
    for name, tensor in state.items():
        if name not in shapes:
            raise CheckpointError(
                f"{name} is no tensor of this model{suggest(name, shapes)}; leave it out"
            )
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)}, the configuration makes it "
                f"{list(shapes[name])}; give the configuration and residency of this model"
            )


def _is_partial(
    config: ModelConfig, state: Mapping[str, Tensor], resident: Resident | None
) -> bool:
    """Whether the state lacks tensors of the model."""
    check_resident(config, resident)
    found = (place(spec, resident) for spec in tensors(config) if spec.copy_of is None)
    return any(one is None or one.name not in state for one in found)
