"""Hold a shard against its base before it is merged: nothing of it is trusted."""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from moesaic.checkpoint.digest import root
from moesaic.checkpoint.folder import inside
from moesaic.checkpoint.header import DTYPE_NAMES, read_header
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError, ShardError, suggest
from moesaic.esft.manifest import MANIFEST, check_origin, check_signature, read_named
from moesaic.esft.select import Selection
from moesaic.esft.shard import TENSORS, Shard, ShardManifest
from moesaic.planner.inventory import TensorSpec, tensors

_CHANGED = "it was changed after training: fetch the shard again"


def check_shard(
    folder: Path | str, base: Reader, base_digest: str, trusted: Collection[str] = ()
) -> Shard:
    """A shard that belongs to a base and is whole: every byte is read once.

    Args:
        folder: the shard.
        base: the checkpoint it is to be merged into.
        base_digest: the digest of that checkpoint.
        trusted: public keys, in hexadecimal; with some, only shards signed with one of them.

    Raises:
        ConfigError: if it is signed and the package that verifies is not installed.
        ShardError: if its signature does not verify, or is none of those trusted;
            if it was trained from another base, names an expert that the base has not,
            lacks a tensor or has one too many; or if a tensor has another type, shape or bytes
            than it should, or values that are not finite.
    """
    folder = Path(folder)
    manifest = ShardManifest.read(folder)
    check_signature(folder, manifest, trusted)
    check_origin(folder, manifest, base, base_digest)
    expected = _expected(folder / MANIFEST, manifest.selection, base)
    try:
        stored = read_header(inside(folder, TENSORS)).tensors
    except CheckpointError as error:
        raise ShardError(str(error)) from None
    shard = Shard(folder, manifest, stored)
    _check_names(shard, expected)
    for spec in expected.values():
        _check_tensor(shard, spec)
    if root(stored, manifest.tensors) != manifest.root:
        raise ShardError(
            f"{folder / MANIFEST}: root is not the digest of the tensors it names; {_CHANGED}"
        )
    return shard


def _expected(path: Path, selection: Selection, base: Reader) -> dict[str, TensorSpec]:
    """The tensors that a selection trains, by name."""
    specs = list(tensors(base.config))
    known: dict[int, int] = {}
    for spec in specs:
        if spec.layer is not None and spec.expert is not None:
            known[spec.layer] = base.config.experts
    named = (*selection.experts.items(), *selection.frozen.items())
    for layer, ids in named:
        for expert in ids:
            if expert >= known.get(layer, 0):
                raise ShardError(
                    f"{path}: expert {expert} of layer {layer} is not in {base.folder}, where that "
                    f"layer has {known.get(layer, 0)} experts; {_CHANGED}"
                )
    return {spec.name: spec for spec in specs if selection.trains(spec)}


def _check_names(shard: Shard, expected: Mapping[str, TensorSpec]) -> None:
    path, manifest = shard.folder / TENSORS, shard.folder / MANIFEST
    named = shard.manifest.tensors
    for name in expected:
        for where, held in ((path, shard.tensors), (manifest, named)):
            if name not in held:
                raise ShardError(
                    f"{where}: tensor {name} is missing, the manifest says that it was trained; "
                    "fetch the shard again"
                )
    for where, held in ((path, shard.tensors), (manifest, named)):
        for name in held:
            if name not in expected:
                raise ShardError(
                    f"{where}: tensor {name} is none of those that the manifest says were trained"
                    f"{suggest(name, expected)}; do not use this shard"
                )


def _check_tensor(shard: Shard, spec: TensorSpec) -> None:
    """Hold one tensor's type, shape, bytes and values against the manifest and the base."""
    stored, manifest = shard.tensors[spec.name], shard.manifest
    where = f"{stored.path}: tensor {spec.name}"
    if stored.shape != spec.shape:
        raise ShardError(
            f"{where} has shape {list(stored.shape)}, the base's is {list(spec.shape)}; {_CHANGED}"
        )
    if stored.dtype != getattr(torch, manifest.dtype):
        raise ShardError(
            f"{where} is {DTYPE_NAMES[stored.dtype]}, the manifest says {manifest.dtype}; "
            f"{_CHANGED}"
        )
    read_named(manifest, stored)
