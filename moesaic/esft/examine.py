"""Look at the folder of a shard or an adapter by itself: what it says, and whether it is whole."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from moesaic.checkpoint.digest import digest, root
from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.folder import inside
from moesaic.checkpoint.header import StoredTensor, read_header
from moesaic.checkpoint.load import Reader
from moesaic.errors import CheckpointError, ShardError
from moesaic.esft import peft, shard
from moesaic.esft.adapter import AdapterManifest, read_adapter
from moesaic.esft.check import check_shard
from moesaic.esft.manifest import (
    MANIFEST,
    Manifest,
    check_origin,
    check_signature,
    read_named,
)
from moesaic.units import count, gb


@dataclass(frozen=True, slots=True)
class Examined:
    """A shard or an adapter that is whole."""

    folder: Path
    kind: Literal["shard", "adapter"]
    manifest: Manifest | None
    """None for an adapter from elsewhere."""
    tensors: Mapping[str, StoredTensor]

    @property
    def n_bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.n_bytes for tensor in self.tensors.values())

    def to_json(self) -> dict[str, Any]:
        """What there is to say; of an adapter from elsewhere that is little."""
        said: dict[str, Any] = {}
        if self.manifest is not None:
            work, signature = self.manifest.work, self.manifest.signature
            said = {
                "digest": self.manifest.digest,
                "signed_by": signature and signature.key,
                "selection": self.manifest.selection.model_dump(mode="json"),
                **work.model_dump(mode="json", exclude={"run"}),
            }
        sizes = {"tensors": len(self.tensors), "bytes": self.n_bytes}
        return {"folder": str(self.folder), "kind": self.kind, "sound": True, **sizes, **said}

    def text(self) -> str:
        """The same in a few lines."""
        held = f"{len(self.tensors):,} tensors | {gb(self.n_bytes)}"
        if self.manifest is None:
            return f"{self.folder}: adapter of PEFT, without a {MANIFEST}\n{held}\nsound"
        work, signature = self.manifest.work, self.manifest.signature
        chosen = self.manifest.selection.experts
        others = "" if work.variant == "masked" else f", others held as {work.hold}"
        experts = f"{sum(map(len, chosen.values()))} experts in {len(chosen)} layers"
        signed = "not signed" if signature is None else f"signed with {signature.key[:12]}"
        return (
            f"{self.folder}: {self.kind} of base {work.base[:12]}, {signed}\n"
            f"{experts} | {held} | {work.variant}{others}\n"
            f"{count(work.tokens)} tokens | {work.steps} steps | {', '.join(work.data)}\n"
            f"sound\ndigest {self.manifest.digest}"
        )


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a shard or an adapter, and not a checkpoint."""
    return any((folder / name).exists() for name in (MANIFEST, shard.TENSORS, peft.CONFIG))


def examine(folder: Path, base: Path | None = None) -> Examined:
    """Read every byte of a shard or an adapter, and hold it against what it says of itself.

    Args:
        folder: the shard or adapter.
        base: the checkpoint that it should be of; None leaves names and shapes unchecked, which
            only that knows.

    Raises:
        ConfigError: if it is signed and the package that verifies is not installed.
        ShardError: if it is not whole, was changed after training, or is of another base.
        CheckpointError: if an adapter is damaged.
    """
    if (folder / peft.CONFIG).exists():
        return _examine_adapter(folder, base)
    manifest = shard.ShardManifest.read(folder)
    check_signature(folder, manifest, ())
    if base is not None:
        found = check_shard(folder, Reader(base), digest(base))
        return Examined(folder, "shard", manifest, found.tensors)
    stored = _stored(folder, shard.TENSORS)
    _check_named(folder, manifest, stored)
    return Examined(folder, "shard", manifest, stored)


def _examine_adapter(folder: Path, base: Path | None) -> Examined:
    manifest = AdapterManifest.read(folder) if (folder / MANIFEST).exists() else None
    if manifest is not None:
        check_signature(folder, manifest, ())
    if base is not None:
        read_adapter(folder, Reader(base).config)
        if manifest is not None:
            check_origin(folder, manifest, Reader(base), digest(base))
    scaling, stored = peft.read_scaling(folder), _stored(folder, peft.TENSORS)
    if manifest is None:
        _check_finite(stored)
        return Examined(folder, "adapter", None, stored)
    if (scaling.rank, scaling.scale) != (manifest.lora.rank, manifest.lora.scale):
        raise ShardError(
            f"{folder / peft.CONFIG} does not say the rank and scale that {MANIFEST} names; it was "
            "changed after training: fetch the adapter again"
        )
    _check_named(folder, manifest, stored)
    return Examined(folder, "adapter", manifest, stored)


def _stored(folder: Path, name: str) -> Mapping[str, StoredTensor]:
    try:
        return read_header(inside(folder, name)).tensors
    except CheckpointError as error:
        raise ShardError(str(error)) from None


def _check_named(folder: Path, manifest: Manifest, stored: Mapping[str, StoredTensor]) -> None:
    same = stored.keys() == manifest.tensors.keys()
    if not same or root(stored, manifest.tensors) != manifest.root:
        raise ShardError(
            f"{folder}: the tensors are not those that {MANIFEST} names; they were changed after "
            f"training: fetch the {manifest.kind} again"
        )
    for one in stored.values():
        read_named(manifest, one)


def _check_finite(stored: Mapping[str, StoredTensor]) -> None:
    for one in stored.values():
        if not read_tensor(one).isfinite().all():
            raise CheckpointError(
                f"{one.path}: {one.name} holds values that are not finite; train it again"
            )
