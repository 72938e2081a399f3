"""Makes the tensors of a merged checkpoint, each when its turn comes."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from moesaic.checkpoint.files import read_tensor
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import SCALE
from moesaic.config.merge import MergeConfig
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.errors import ShardError
from moesaic.esft.combine import Combined, elected_mean, task_sum, trim_threshold, weighted_mean
from moesaic.esft.conflicts import Conflicts
from moesaic.esft.pieces import VALUES_AT_ONCE, Piece, change, pieces
from moesaic.esft.shard import Shard
from moesaic.kernels.quantise import BLOCK, FP8, Fp8Weight, quantise
from moesaic.planner.inventory import tensors

DENSITY = 0.2
"""What TIES keeps unless a merge says otherwise."""

Trained = Mapping[str, tuple[Shard, ...]]
"""Tensor → the shards that trained it on at least one token, in the order of their digests."""


class Merger:
    """Combines what shards trained, and gathers what there is to say about it."""

    def __init__(
        self,
        reader: Reader,
        shards: Sequence[Shard],
        trained: Trained,
        config: MergeConfig,
        at_once: int = VALUES_AT_ONCE,
    ) -> None:
        self._reader, self._config, self._at_once = reader, config, at_once
        self._specs = {spec.name: spec for spec in tensors(reader.config)}
        self._repeats = _repeats(reader.config)
        self._place = {shard.manifest.digest: i for i, shard in enumerate(shards)}
        self.trained = trained
        self.parts: dict[str, dict[str, float]] = {}
        """Tensor → shard's digest → what its change was multiplied by, on average."""
        self.changed: dict[str, StoredTensor] = {}
        """What is not the base's any more, where the base has it."""
        self.conflicts = Conflicts(list(self._place))

    def make(self, stored: StoredTensor) -> Tensor:
        """What the merged checkpoint has where the base has this."""
        weight = stored.name.removesuffix(SCALE)
        name = self._repeats.get(weight, weight)
        if name not in self.trained:
            return read_tensor(stored)
        combined = self._combined(name)
        if combined is None:
            return read_tensor(stored)
        self.changed[stored.name] = stored
        if stored.name != weight:
            return self._quantised(combined).weight_scale_inv
        if stored.dtype == FP8:
            return self._quantised(combined).weight
        return combined.to(stored.dtype)

    def _combined(self, name: str) -> Tensor | None:
        """A tensor of all shards that trained it; None if none of them changed it.

        It is in the type it is stored in, and in float32 where that is FP8.
        """
        shards, base = self.trained[name], self._reader.read(name)
        thresholds = self._thresholds(name, base)
        result, is_changed = torch.empty_like(base), False
        totals = [0.0] * len(shards)
        gathers = len(shards) > 1 and name not in self.parts
        for piece in pieces(base, shards, name, self._at_once):
            combined = self._combine(piece, shards, thresholds)
            _store(result.view(-1)[piece.start : piece.stop], combined.values, name)
            is_changed = is_changed or any(bool(one.any()) for one in piece.changes)
            totals = [sum(pair) for pair in zip(totals, combined.weights, strict=True)]
            if gathers:
                self._gather(name, shards, piece)
        weights = (float(f"{total / max(base.numel(), 1):.6g}") for total in totals)
        self.parts[name] = {
            shard.manifest.digest: weight for shard, weight in zip(shards, weights, strict=True)
        }
        return result if is_changed else None

    def _thresholds(self, name: str, base: Tensor) -> list[float]:
        """For TIES, the magnitude below which each shard's changes do not count."""
        if self._config.method != "ties":
            return []
        density = self._config.density or DENSITY
        shards = self.trained[name]
        return [trim_threshold(change(shard.read(name), base), density) for shard in shards]

    def _combine(
        self, piece: Piece, shards: Sequence[Shard], thresholds: Sequence[float]
    ) -> Combined:
        scale = self._config.scale or 1.0
        if self._config.method == "sum":
            return task_sum(piece.base, piece.changes, scale)
        if self._config.method == "ties":
            return elected_mean(piece.base, piece.changes, thresholds, scale)
        return weighted_mean(piece.values, [shard.tokens for shard in shards])

    def _gather(self, name: str, shards: Sequence[Shard], piece: Piece) -> None:
        """Take in how the changes of a tensor that several shards trained agree."""
        spec = self._specs[name]
        self.conflicts.note(name, spec.layer, spec.expert)
        places = [self._place[shard.manifest.digest] for shard in shards]
        self.conflicts.add(places, piece.changes, spec.layer)

    def _quantised(self, tensor: Tensor) -> Fp8Weight:
        blocks = self._reader.config.quantization_config
        return quantise(
            tensor.float(), blocks.weight_block_size if isinstance(blocks, Fp8Blocks) else BLOCK
        )


def _store(out: Tensor, values: Tensor, name: str) -> None:
    """Write values in the type they are stored in."""
    out.copy_(values)
    if not out.isfinite().all():
        raise ShardError(
            f"{name}: what the shards come to goes up to {values.abs().max():.4g}, more than the "
            f"base's {DTYPE_NAMES[out.dtype]} can; leave out the shard that went so far"
        )


def _repeats(config: ModelConfig) -> dict[str, str]:
    """Tensors that repeat another, a tied head too where it is stored."""
    found = {spec.name: spec.copy_of for spec in tensors(config) if spec.copy_of is not None}
    if config.tie_word_embeddings:
        found["lm_head.weight"] = "model.embed_tokens.weight"
    return found
