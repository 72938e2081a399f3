"""Merge shards into their base, and keep a record of who had what part in every tensor.

One tensor of the base is in memory at a time, and of the shards a stretch of it. What no shard
changed keeps its bytes, and the files their names.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import new_folder, refuse_filled
from moesaic.checkpoint.card import write_card
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.load import Reader
from moesaic.config.merge import MergeConfig
from moesaic.errors import ShardError
from moesaic.esft.cards import made_of_shards
from moesaic.esft.check import check_shard
from moesaic.esft.conflicts import Conflicts
from moesaic.esft.manifest import read_keys
from moesaic.esft.merger import Merger, Trained
from moesaic.esft.retention import Gate, Retained
from moesaic.esft.rewrite import OnTensor, rewrite
from moesaic.esft.select import Selection, read_selection
from moesaic.esft.shard import Shard
from moesaic.esft.undo import MERGED, keep
from moesaic.planner.inventory import tensors


@dataclass(frozen=True, slots=True)
class Merge:
    """What was merged into what."""

    folder: Path
    base: str
    """Digest of the base."""
    digest: str
    """Digest of the merged checkpoint."""
    config: MergeConfig
    """How."""
    shards: tuple[Shard, ...]
    """In the order of their digests."""
    trained: Trained
    """Who trained what."""
    parts: dict[str, dict[str, float]]
    """Tensor → shard's digest → what its change was multiplied by, on average over the values."""
    conflicts: Conflicts
    """Where they changed the same, and whether they agree."""
    retained: tuple[Retained, ...]
    """What the retention gate measured; empty without one."""

    def record(self) -> dict[str, Any]:
        """The merge as JSON: every shard, its part of every tensor, where shards disagree."""
        layers = self.conflicts.by_layer().items()
        return {
            "base": self.base,
            "digest": self.digest,
            "config": self.config.model_dump(mode="json", exclude_defaults=True),
            "shards": {shard.manifest.digest: _summary(shard) for shard in self.shards},
            "parts": self.parts,
            "overlap": self.conflicts.overall().to_json(),
            "layers": {str(layer): overlap.to_json() for layer, overlap in layers},
            "retained": {one.data: one.to_json() for one in self.retained},
        }


def merge_shards(
    base: Path | str,
    shards: Sequence[Path | str],
    out: Path | str,
    on_tensor: OnTensor | None = None,
    config: MergeConfig | None = None,
) -> Merge:
    """Merge shards into the checkpoint they were trained from.

    By default each tensor is the mean of the shards that trained it, by the tokens they were
    trained on. Whatever the method, it is computed in float64 and stored in the base's type, a
    shard without tokens changes nothing, and the order of the shards does not matter, to the last
    bit.

    Args:
        base: the checkpoint.
        shards: their folders.
        out: where to; it must be empty or not exist, and appears when it is complete.
        on_tensor: called with the name of each tensor that was written.
        config: how to merge and on what conditions; None takes the defaults.

    Raises:
        ConfigError: if a file that ``config`` names cannot be read.
        DataError: if the text of the retention gate cannot be read.
        ShardError: if a shard was trained from another base, is damaged, is not signed as it
            should be, or is given twice; or if the retention gate refuses the merge.
        CheckpointError: if the base is damaged, ``out`` is not empty, or the disk is full.
    """
    out, config = Path(out), config or MergeConfig()
    refuse_filled(out)
    trusted, only = read_keys(config.trusted), config.only and read_selection(config.only)
    reader, base_digest = Reader(base), digest(base)
    checked = _in_order([check_shard(shard, reader, base_digest, trusted) for shard in shards])
    trained = _trained(checked)
    if only:
        trained = _grafted(reader, trained, only)
    merger = Merger(reader, checked, trained, config)
    gate = None if config.retain is None else Gate(config.retain, reader.folder)
    with new_folder(out) as partial:
        found = rewrite(reader, partial, merger.make, on_tensor)
        merge = Merge(
            folder=out,
            base=base_digest,
            digest=found,
            config=config,
            shards=checked,
            trained=trained,
            parts=merger.parts,
            conflicts=merger.conflicts,
            retained=() if gate is None else gate.judge(partial, "leave out a shard, lower scale"),
        )
        if config.keep_undo:
            keep(merger.changed.values(), partial, reader.folder)
        text = json.dumps(merge.record(), indent=1) + "\n"
        (partial / MERGED).write_text(text, encoding="utf-8")
        made = made_of_shards(reader, base_digest, [one.manifest for one in checked], config)
        write_card(partial, made, config.card, out.resolve().name, digest=found)
    return merge


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
    """Who trained what, on at least one token."""
    found: dict[str, list[Shard]] = {}
    for shard in shards:
        for name in shard.tensors if shard.tokens else ():
            found.setdefault(name, []).append(shard)
    return {name: tuple(found[name]) for name in sorted(found)}


def _grafted(reader: Reader, trained: Trained, only: Selection) -> Trained:
    """What is taken of the shards where not all is."""
    held = {(spec.layer, spec.expert) for spec in tensors(reader.config) if spec.name in trained}
    for layer, ids in only.experts.items():
        for expert in ids:
            if (layer, expert) not in held:
                raise ShardError(
                    f"only names expert {expert} of layer {layer}, which none of the shards was "
                    "trained on; name experts that one of them holds"
                )
    wanted = {spec.name for spec in tensors(reader.config) if only.trains(spec)}
    return {name: shards for name, shards in trained.items() if name in wanted}


def _summary(shard: Shard) -> dict[str, Any]:
    manifest, work = shard.manifest, shard.manifest.work
    return {
        "variant": work.variant,
        "hold": work.hold,
        "hold_linears": work.hold_linears,
        "data": list(work.data),
        "fed": work.fed,
        "tokens": work.tokens,
        "steps": work.steps,
        "signed_by": manifest.signature and manifest.signature.key,
    }
