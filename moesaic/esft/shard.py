"""A shard: the tensors that one slice trained, and a manifest that says from what and on what.

A shard is a folder with ``shard.safetensors``, published names and one tensor per expert, and
``manifest.json``.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_folder
from moesaic.checkpoint.digest import root
from moesaic.checkpoint.files import LazyTensor, read_tensor, write_safetensors
from moesaic.checkpoint.header import StoredTensor, read_header
from moesaic.checkpoint.names import places
from moesaic.errors import ShardError
from moesaic.esft.manifest import Manifest, Sign, Work, digest_of
from moesaic.esft.select import Selection
from moesaic.model.transformer import Transformer

TENSORS = "shard.safetensors"
ShardDtype = Literal["bfloat16", "float16", "float32"]


class ShardManifest(Manifest):
    """What a shard holds and where it comes from."""

    kind: ClassVar[str] = "shard"

    dtype: ShardDtype
    """What the tensors are stored in."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A shard that has been checked against its base."""

    folder: Path
    manifest: ShardManifest
    tensors: Mapping[str, StoredTensor]
    """Where each tensor lies, by its published name."""

    @property
    def tokens(self) -> int:
        """Positions it was trained on."""
        return self.manifest.work.tokens

    def read(self, name: str) -> Tensor:
        """One tensor as it is stored, on the CPU."""
        return read_tensor(self.tensors[name])


def write_shard(
    folder: Path | str,
    model: Transformer,
    selection: Selection,
    work: Work,
    dtype: ShardDtype = "bfloat16",
    sign: Sign | None = None,
) -> ShardManifest:
    """Write what a slice trained, whole or not at all, one expert in memory at a time.

    Args:
        folder: where to; new or empty.
        model: the slice.
        selection: what it trained.
        work: from what, on what, how long.
        dtype: what the tensors are stored in.
        sign: makes the signature; None leaves the shard unsigned.

    Raises:
        ShardError: if a trained tensor holds values that are not finite in ``dtype``.
        CheckpointError: if the folder is not empty, or the disk is full.
    """
    stored_dtype: torch.dtype = getattr(torch, dtype)
    state = model.state_dict()
    pending: list[LazyTensor] = []
    for spec, place in places(model.config, model.residency.stacks(model.config)):
        if selection.trains(spec):
            part = place.of(state[place.name])
            pending.append(_pending(spec.name, part, stored_dtype))
    with new_folder(Path(folder)) as partial:
        digests = write_safetensors(partial / TENSORS, pending, {"format": "pt"})
        manifest = ShardManifest(
            model=digest_of(model.config),
            work=work,
            selection=selection,
            dtype=dtype,
            tensors=digests,
            root=root(read_header(partial / TENSORS).tensors, digests),
        )
        return manifest.write(partial, sign)


def _pending(name: str, tensor: Tensor, dtype: torch.dtype) -> LazyTensor:
    def make() -> Tensor:
        converted = tensor.to(dtype)
        if not converted.isfinite().all():
            raise ShardError(
                f"{name} holds values that are not finite in {str(dtype).removeprefix('torch.')} "
                "and nothing was written; train again with a lower learning rate"
            )
        return converted

    return LazyTensor(name, dtype, tuple(tensor.shape), make)
