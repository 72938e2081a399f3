"""An adapter: the low-rank factors that a run trained, in a folder that PEFT loads too.

Beside PEFT's two files lies ``manifest.json``, which says from what and on what it was trained.
Adapters from elsewhere have none, and nobody vouches for them.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_folder
from moesaic.checkpoint.digest import root
from moesaic.checkpoint.files import LazyTensor, read_tensor, write_safetensors
from moesaic.checkpoint.folder import inside
from moesaic.checkpoint.header import StoredTensor, read_header
from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.errors import CheckpointError, ShardError
from moesaic.esft.manifest import (
    MANIFEST,
    Manifest,
    Sign,
    Work,
    check_signature,
    digest_of,
    read_named,
)
from moesaic.esft.peft import (
    CONFIG,
    TENSORS,
    Factors,
    Scaling,
    factor_names,
    peft_config,
    read_factors,
    read_scaling,
)
from moesaic.esft.select import Selection
from moesaic.kernels.adapted import LowRank
from moesaic.model.adapt import adapt_, adapters_of
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import TensorSpec, tensors


class AdapterManifest(Manifest):
    """What an adapter was trained from, and what it holds."""

    kind: ClassVar[str] = "adapter"

    lora: LoraConfig
    """What was adapted."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter whose settings, names and shapes fit a model; nothing but headers is in memory."""

    folder: Path
    scaling: Scaling
    """Rank, and the factor on B · A."""
    factors: Factors
    """Where A and B of every adapted weight lie, in the published order."""
    manifest: AdapterManifest | None
    """None for an adapter from elsewhere."""

    def read(self, name: str) -> LowRank:
        """Both factors for a weight, as they are stored, on the CPU.

        Raises:
            ShardError: if the bytes are not those the manifest names, or not finite.
            CheckpointError: if there is no manifest and they are not finite.
        """
        return LowRank(*(self._read(stored) for stored in self.factors[name]))

    def change(self, name: str) -> Tensor:
        """What is added to a weight: ``scale · B · A``, in float64."""
        a, b = self.read(name)
        return (b.double() @ a.double()) * self.scaling.scale

    def _read(self, stored: StoredTensor) -> Tensor:
        if self.manifest is not None:
            return read_named(self.manifest, stored)
        tensor = read_tensor(stored)
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{stored.path}: {stored.name} holds values that are not finite; train it again"
            )
        return tensor


def write_adapter(
    folder: Path | str,
    model: Transformer,
    lora: LoraConfig,
    selection: Selection,
    work: Work,
    sign: Sign | None = None,
) -> AdapterManifest:
    """Write the adapters of a model, whole or not at all.

    Args:
        folder: where to; new or empty.
        model: with the adapters.
        lora: what was adapted.
        selection: the experts that were held, and which of them have adapters.
        work: from what, on what, how long.
        sign: makes the signature; None leaves the adapter unsigned.

    Raises:
        CheckpointError: if the folder is not empty, a factor holds values that are not finite, or
            the disk is full.
    """
    factors = adapters_of(model)
    adapted = [spec for spec in tensors(model.config) if spec.name in factors]
    pending: list[LazyTensor] = []
    for spec in adapted:
        halves = zip(factor_names(spec), factors[spec.name], strict=True)
        pending += (_pending(name, part.detach()) for name, part in halves)
    with new_folder(Path(folder)) as partial:
        digests = write_safetensors(partial / TENSORS, pending, {"format": "pt"})
        manifest = AdapterManifest(
            model=digest_of(model.config),
            work=work,
            selection=selection,
            lora=lora,
            tensors=digests,
            root=root(read_header(partial / TENSORS).tensors, digests),
        )
        text = json.dumps(peft_config(lora, adapted), indent=1) + "\n"
        (partial / CONFIG).write_text(text, encoding="utf-8")
        return manifest.write(partial, sign)


def read_adapter(folder: Path | str, model: ModelConfig, trusted: Collection[str] = ()) -> Adapter:
    """An adapter for a model, ours or PEFT's.

    Args:
        folder: the adapter.
        model: what it is for.
        trusted: public keys, in hexadecimal; with some, only an adapter signed with one of them.

    Raises:
        ConfigError: if it is signed and the package that verifies is not installed.
        CheckpointError: if it is damaged, is not plain LoRA, or has tensors that are none of the
            model's.
        ShardError: if its manifest is damaged, it was trained for another model, its signature
            does not verify, or it is none of those trusted.
    """
    folder = Path(folder)
    scaling, manifest = read_scaling(folder), _read_manifest(folder, trusted)
    if manifest is not None and manifest.model != digest_of(model):
        raise ShardError(
            f"{folder / MANIFEST}: trained for a model with other settings; give the adapter the "
            "model it was trained for"
        )
    factors = read_factors(folder, model, scaling.rank)
    if manifest is not None and not _is_whole(folder, manifest, scaling):
        raise CheckpointError(
            f"{folder}: {CONFIG} and {TENSORS} do not say and hold what {MANIFEST} names; they "
            "were changed after training: fetch the adapter again"
        )
    return Adapter(folder, scaling, factors, manifest)


def load_adapter_(model: Transformer, folder: Path | str, dtype: torch.dtype | None = None) -> None:
    """Put the adapters in a folder beside a model's weights, which are frozen.

    Args:
        model: it holds every expert that has adapters.
        folder: the adapter.
        dtype: of the factors; None for that of the model's embedding.

    Raises:
        CheckpointError: see `read_adapter`.
        ShardError: see `read_adapter`.
        ConfigError: if an adapted expert is not held, or the model has adapters already.
    """
    adapter = read_adapter(folder, model.config)
    adapted = [spec for spec in tensors(model.config) if spec.name in adapter.factors]

    def make(spec: TensorSpec) -> LowRank:
        return adapter.read(spec.name)

    adapt_(
        model, adapted, make, adapter.scaling.scale, dtype or model.model.embed_tokens.weight.dtype
    )


def _pending(name: str, tensor: Tensor) -> LazyTensor:
    def make() -> Tensor:
        if not tensor.isfinite().all():
            raise CheckpointError(
                f"{name} holds values that are not finite and nothing was written; train again "
                "with a lower learning rate"
            )
        return tensor

    return LazyTensor(name, tensor.dtype, tuple(tensor.shape), make)


def _is_whole(folder: Path, manifest: AdapterManifest, scaling: Scaling) -> bool:
    """Whether settings, names, types and shapes are those of the manifest; bytes are left."""
    stored, named = read_header(inside(folder, TENSORS)).tensors, manifest.tensors
    same = stored.keys() == named.keys() and root(stored, named) == manifest.root
    return same and scaling == Scaling(manifest.lora.rank, manifest.lora.scale)


def _read_manifest(folder: Path, trusted: Collection[str]) -> AdapterManifest | None:
    if (folder / MANIFEST).exists():
        manifest = AdapterManifest.read(folder)
        check_signature(folder, manifest, trusted)
        return manifest
    if trusted:
        raise ShardError(
            f"{folder} has no {MANIFEST}, and only adapters signed with a trusted key are merged "
            "here; ask for one that was trained with esft.sign_with, or leave it out"
        )
    return None
