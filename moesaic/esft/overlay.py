"""What one shard makes of its base, without writing the merged checkpoint."""

from collections.abc import Iterator

from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import SCALE
from moesaic.config.merge import MergeConfig
from moesaic.config.model import Fp8Blocks
from moesaic.config.packed import PackedGroups
from moesaic.errors import ShardError
from moesaic.esft.merger import Merger
from moesaic.esft.shard import Shard
from moesaic.kernels.quantise import BLOCK, FP8, Fp8Weight
from moesaic.planner.inventory import TensorSpec, tensors


def overlay(reader: Reader, shard: Shard) -> Iterator[tuple[TensorSpec, Tensor | Fp8Weight]]:
    """The tensors that differ once a shard alone is merged, one in memory at a time.

    They are those that the merged checkpoint would store, to the last bit: in FP8 blocks where the
    base has such.

    Args:
        reader: the base.
        shard: checked against it.

    Raises:
        ShardError: if the base is stored in integers, or the shard's bytes changed since.
    """
    if isinstance(reader.config.quantization_config, PackedGroups):
        raise ShardError(
            f"{reader.folder} is stored in integers, and what a shard trained would be rounded to "
            "them; take the checkpoint that it was quantised from"
        )
    trained = {name: (shard,) for name in shard.tensors if shard.tokens}
    merger = Merger(reader, [shard], trained, MergeConfig())
    for spec in tensors(reader.config):
        if spec.name in trained:
            yield spec, _made(reader, merger, spec)


def _made(reader: Reader, merger: Merger, spec: TensorSpec) -> Tensor | Fp8Weight:
    stored = reader.locate(spec.name)
    weight = merger.make(stored)
    if stored.dtype != FP8:
        return weight
    blocks = reader.config.quantization_config
    block = blocks.weight_block_size if isinstance(blocks, Fp8Blocks) else BLOCK
    scale = merger.make(reader.report.stored[stored.name + SCALE])
    return Fp8Weight(weight, scale, block)
