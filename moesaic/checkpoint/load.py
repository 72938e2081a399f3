"""Read a checkpoint: one tensor at a time, only those asked for, into memory that is there."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from moesaic.checkpoint.check import check
from moesaic.checkpoint.compressed import PACKED, read_packed
from moesaic.checkpoint.files import fill_, read_tensor
from moesaic.checkpoint.header import StoredTensor
from moesaic.checkpoint.names import SCALE, Place, Resident, places, state_shapes
from moesaic.checkpoint.quantised import StoredWeight, plain, read_fp8
from moesaic.config.model import Fp8Blocks
from moesaic.config.packed import PackedGroups
from moesaic.errors import CheckpointError, suggest
from moesaic.kernels.quantise import BLOCK, FP8
from moesaic.planner.inventory import TensorSpec, tensors


class Reader:
    """A checkpoint folder that has been checked in full, read one tensor at a time.

    No file stays open, and nothing but headers is in memory.
    """

    def __init__(self, folder: Path | str) -> None:
        """Check the folder.

        Raises:
            CheckpointError: if anything is missing, unexpected, damaged, or of the wrong shape or
                type; the message lists what.
        """
        report = check(folder)
        if not report.is_sound:
            raise report.error()
        self.report = report
        self.folder = report.folder
        self.config = report.config
        self._specs = {spec.name: spec for spec in tensors(report.config)}
        quantised = report.config.quantization_config
        self._block = quantised.weight_block_size if isinstance(quantised, Fp8Blocks) else BLOCK
        self._packed = quantised.weights if isinstance(quantised, PackedGroups) else None

    @property
    def names(self) -> tuple[str, ...]:
        """The published names of the model's tensors."""
        return tuple(self._specs)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, however it is stored.

        Raises:
            CheckpointError: if the model has no such tensor.
        """
        return self._spec(name).shape

    def locate(self, name: str) -> StoredTensor:
        """Where a tensor is stored, or its codes where those of integers are; one that repeats
        another may be where that one is.

        Raises:
            CheckpointError: if the model has no such tensor.
        """
        spec, stored = self._spec(name), self.report.stored
        places = (name, name + PACKED, spec.copy_of or name)
        return stored[next(place for place in places if place in stored)]

    def stored(self, name: str) -> StoredWeight:
        """One tensor as it is stored, on the CPU."""
        found = self.locate(name)
        if found.dtype == FP8:
            return read_fp8(found, self.report.stored[found.name + SCALE], self._block)
        if self._packed is not None and found.name == name + PACKED:
            return read_packed(self.report.stored, name, self.shape(name), self._packed)
        return read_tensor(found)

    def read(self, name: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, on the CPU.

        Args:
            name: its published name.
            dtype: None keeps the stored type, and makes FP8 blocks and integers float32.

        Raises:
            CheckpointError: if the model has no such tensor.
        """
        tensor = plain(self.stored(name))
        return tensor if dtype is None else tensor.to(dtype)

    def read_into_(self, out: Tensor, name: str) -> None:
        """Fill ``out`` with one tensor, in the type and on the device of ``out``."""
        found = self.locate(name)
        same = out.dtype == found.dtype != FP8 and out.device.type == "cpu"
        if same and out.is_contiguous():
            fill_(out, found)
        else:
            out.detach().copy_(self.read(name))

    def _spec(self, name: str) -> TensorSpec:
        spec = self._specs.get(name)
        if spec is None:
            raise CheckpointError(f"{self.folder} has no tensor {name}{suggest(name, self._specs)}")
        return spec


def load_into(
    reader: Reader, state: Mapping[str, Tensor], resident: Resident | None = None
) -> None:
    """Fill a model's tensors in place, reading from disk only what they hold.

    Args:
        reader: the checkpoint.
        state: the model's tensors, or some of them, by their names in the model.
        resident: which experts the stacks hold.

    Raises:
        CheckpointError: if ``state`` has a tensor that the checkpoint's model has not, or one of
            another shape; nothing has been read then.
    """
    _check_state(reader, state, resident)
    wanted: list[tuple[StoredTensor, str, Place]] = []
    for spec, found in places(reader.config, resident):
        if found.name in state:
            wanted.append((reader.locate(spec.name), spec.name, found))
    wanted.sort(key=lambda one: (one[0].path, one[0].start))
    for _, name, found in wanted:
        reader.read_into_(found.of(state[found.name].detach()), name)


def _check_state(reader: Reader, state: Mapping[str, Tensor], resident: Resident | None) -> None:
    shapes = state_shapes(reader.config, resident)
    for name, tensor in state.items():
        if name not in shapes:
            raise CheckpointError(
                f"the model has a tensor {name}, the checkpoint {reader.folder} has none"
                f"{suggest(name, shapes)}; build the model from the checkpoint's config.json"
            )
        if tuple(tensor.shape) != shapes[name]:
            raise CheckpointError(
                f"{name} has shape {list(tensor.shape)} in the model, {list(shapes[name])} in "
                f"{reader.folder}; build the model from the checkpoint's config.json, with the "
                "same resident experts"
            )
