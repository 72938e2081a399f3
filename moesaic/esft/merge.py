"""Merge shards into their base: every tensor becomes the mean of those that trained it.

One tensor is in memory at a time. What no shard changed keeps its bytes, and the files their names.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_folder, refuse_filled
from moesaic.checkpoint.digest import digest, store_digest
from moesaic.checkpoint.files import LazyTensor, read_metadata, read_tensor, write_safetensors
from moesaic.checkpoint.folder import INDEX, files_beside
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import SCALE
from moesaic.checkpoint.save import CARRIED_FILES
from moesaic.config.model import ModelConfig
from moesaic.errors import ShardError
from moesaic.esft.check import check_shard
from moesaic.esft.shard import Shard
from moesaic.kernels.quantise import BLOCK, FP8, Fp8Weight, quantise
from moesaic.planner.inventory import tensors

RECORD = "merge.json"

Trained = Mapping[str, tuple[Shard, ...]]
"""Tensor → the shards that trained it on at least one token, in the order of their digests."""


@dataclass(frozen=True, slots=True)
class Merge:
    """What was merged into what."""

    folder: Path
    base: str
    """Digest of the base."""
    digest: str
    """Digest of the merged checkpoint."""
    shards: tuple[Shard, ...]
    """In the order of their digests."""
    trained: Trained
    """Who trained what."""

    def record(self) -> dict[str, Any]:
        """The merge as JSON: every shard, and its part of every expert it trained."""
        parts: dict[str, dict[str, float]] = {}
        for name, shards in self.trained.items():
            tokens = sum(shard.tokens for shard in shards)
            expert = name.rsplit(".", 2)[0] if ".mlp.experts." in name else name
            parts[expert] = {shard.manifest.digest: shard.tokens / tokens for shard in shards}
        return {
            "base": self.base,
            "digest": self.digest,
            "shards": {shard.manifest.digest: _summary(shard) for shard in self.shards},
            "parts": parts,
        }


def merge_shards(
    base: Path | str,
    shards: Sequence[Path | str],
    out: Path | str,
    on_tensor: Callable[[str], None] | None = None,
) -> Merge:
    """Merge shards into the checkpoint they were trained from.

    Each tensor is the mean of the shards that trained it, by the tokens they were trained on; the
    mean is taken in float64 and stored in the base's type. A shard without tokens changes nothing.
    The order of the shards does not matter, to the last bit.

    Args:
        base: the checkpoint.
        shards: their folders.
        out: where to; it must be empty or not exist, and appears when it is complete.
        on_tensor: called with the name of each tensor that was written.

    Raises:
        ShardError: if a shard was trained from another base, is damaged, or is given twice.
        CheckpointError: if the base is damaged, ``out`` is not empty, or the disk is full.

    Source: FederatedAveraging (arXiv 1602.05629) algorithm 1, for each expert over those that
    trained it.
    """
    out = Path(out)
    refuse_filled(out)
    reader, base_digest = Reader(base), digest(base)
    checked = _in_order([check_shard(shard, reader, base_digest) for shard in shards])
    merger = _Merger(reader, _trained(checked), _repeats(reader.config))
    with new_folder(out) as partial:
        for path in files_beside(reader.folder, ("config.json", INDEX, *CARRIED_FILES)):
            shutil.copyfile(path, partial / path.name)
        digests: dict[str, str] = {}
        for path in reader.report.files:
            pending = merger.pending(path, on_tensor)
            digests |= write_safetensors(partial / path.name, pending, read_metadata(path))
        found = store_digest(partial, digests)
        merge = Merge(out, base_digest, found, checked, merger.trained)
        text = json.dumps(merge.record(), indent=1) + "\n"
        (partial / RECORD).write_text(text, encoding="utf-8")
    return merge


@dataclass(frozen=True, slots=True)
class _Merger:
    """Makes the tensors of the merged checkpoint, each when its turn comes."""

    reader: Reader
    trained: Trained
    repeats: Mapping[str, str]
    """Stored tensor → the one it repeats."""

    def pending(self, path: Path, on_tensor: Callable[[str], None] | None) -> list[LazyTensor]:
        """The tensors of one file of the base."""
        found: list[LazyTensor] = []
        for stored in self.reader.report.stored.values():
            if stored.path == path:
                found.append(self._pending(stored, on_tensor))
        return found

    def _pending(self, stored: StoredTensor, on_tensor: Callable[[str], None] | None) -> LazyTensor:
        def make() -> Tensor:
            made = self._make(stored)
            if on_tensor is not None:
                on_tensor(stored.name)
            return made

        return LazyTensor(stored.name, stored.dtype, stored.shape, make)

    def _make(self, stored: StoredTensor) -> Tensor:
        weight = stored.name.removesuffix(SCALE)
        mean = self._mean(self.repeats.get(weight, weight))
        if mean is None:
            return read_tensor(stored)
        if stored.name != weight:
            return self._quantised(mean).weight_scale_inv
        if stored.dtype == FP8:
            return self._quantised(mean).weight
        converted = mean.to(stored.dtype)
        if not converted.isfinite().all():
            raise ShardError(
                f"{stored.name}: the shards' mean goes up to {mean.abs().max():.4g}, more than the "
                f"base's {DTYPE_NAMES[stored.dtype]} can; leave out the shard that went so far"
            )
        return converted

    def _mean(self, name: str) -> Tensor | None:
        """Mean of a tensor over its shards, float64; None if none of them trained or changed it."""
        shards = self.trained.get(name)
        if shards is None:
            return None
        base = self.reader.read(name)
        total, is_changed = torch.zeros(base.shape, dtype=torch.float64), False
        for shard in shards:
            value = shard.read(name)
            is_changed = is_changed or not torch.equal(value, base.to(value.dtype))
            total.add_(value.double(), alpha=shard.tokens)
        return total / sum(shard.tokens for shard in shards) if is_changed else None

    def _quantised(self, mean: Tensor) -> Fp8Weight:
        blocks = self.reader.config.quantization_config
        return quantise(mean.float(), blocks.weight_block_size if blocks else BLOCK)


def _in_order(shards: Sequence[Shard]) -> tuple[Shard, ...]:
    """The shards by digest, so that sums are the same whatever order they were given in."""
    if not shards:
        raise ShardError("no shard is given; give the folders of those to merge")
    found: dict[str, Shard] = {}
    for shard in shards:
        other = found.setdefault(shard.manifest.digest, shard)
        if other is not shard:
            raise ShardError(
                f"{shard.folder} is the same shard as {other.folder}; give it once, or it counts "
                "twice"
            )
    return tuple(shard for _, shard in sorted(found.items()))


def _trained(shards: Sequence[Shard]) -> Trained:
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        for name in shard.tensors if shard.tokens else ():
            found.setdefault(name, []).append(shard)
    return {name: tuple(found[name]) for name in sorted(found)}


def _repeats(config: ModelConfig) -> dict[str, str]:
    """Tensors that repeat another, a tied head too where it is stored."""
    found = {spec.name: spec.copy_of for spec in tensors(config) if spec.copy_of is not None}
    if config.tie_word_embeddings:
        found["lm_head.weight"] = "model.embed_tokens.weight"
    return found


def _summary(shard: Shard) -> dict[str, Any]:
    work = shard.manifest.work
    return {"run": work.run, "data": list(work.data), "tokens": work.tokens, "steps": work.steps}
