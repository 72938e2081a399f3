"""Merge an adapter into a checkpoint, or write it for tools that stack the experts of a layer."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.atomic import new_folder, refuse_filled
from moesaic.checkpoint.card import write_card
from moesaic.checkpoint.digest import digest
from moesaic.checkpoint.files import LazyTensor, read_tensor, write_safetensors
from moesaic.checkpoint.header import DTYPE_NAMES, StoredTensor
from moesaic.checkpoint.load import Reader
from moesaic.checkpoint.names import SCALE
from moesaic.config.lora import LoraConfig
from moesaic.config.merge import Conditions
from moesaic.config.model import Fp8Blocks, ModelConfig
from moesaic.errors import CheckpointError
from moesaic.esft.adapter import Adapter, read_adapter
from moesaic.esft.cards import made_of_adapter
from moesaic.esft.manifest import check_origin, read_keys
from moesaic.esft.peft import CONFIG, TENSORS, factor_names, peft_config
from moesaic.esft.retention import Gate, Retained
from moesaic.esft.rewrite import OnTensor, rewrite
from moesaic.esft.undo import ABSORBED, keep
from moesaic.kernels.quantise import BLOCK, FP8, quantise
from moesaic.planner.inventory import TensorSpec, tensors


@dataclass(frozen=True, slots=True)
class Absorption:
    """What adapter was merged into what."""

    folder: Path
    base: str
    """Digest of the base."""
    digest: str
    """Digest of the merged checkpoint."""
    adapter: Adapter
    retained: tuple[Retained, ...]
    """What the retention gate measured; empty without one."""

    def record(self) -> dict[str, Any]:
        """The merge as JSON; of an adapter from elsewhere there is nothing to say."""
        said = self.adapter.manifest
        return {
            "base": self.base,
            "digest": self.digest,
            "adapter": None if said is None else said.model_dump(mode="json"),
            "retained": {one.data: one.to_json() for one in self.retained},
        }


def merge_adapter(
    base: Path | str,
    adapter: Path | str,
    out: Path | str,
    on_tensor: OnTensor | None = None,
    conditions: Conditions | None = None,
) -> Absorption:
    """Add an adapter to the weights of a checkpoint: ``W + scale · B · A``.

    The sum is taken in float64 and stored in the base's type. One tensor is in memory at a time;
    what has no adapter, or one that adds nothing, keeps its bytes.

    Args:
        base: the checkpoint it was trained from.
        adapter: its folder.
        out: where to; it must be empty or not exist, and appears when it is complete.
        on_tensor: called with the name of each tensor that was written.
        conditions: on which it is merged; None asks for nothing and keeps nothing.

    Raises:
        ConfigError: if a file that ``conditions`` names cannot be read.
        DataError: if the text of the retention gate cannot be read.
        ShardError: if the adapter was trained from another base or is not signed as it should be,
            or if the retention gate refuses the merge.
        CheckpointError: if base or adapter is damaged, ``out`` is not empty, or the disk is full.

    Source: LoRA (arXiv 2106.09685) section 4.1.
    """
    out, conditions = Path(out), conditions or Conditions()
    refuse_filled(out)
    trusted, reader = read_keys(conditions.trusted), Reader(base)
    found, base_digest = read_adapter(adapter, reader.config, trusted), digest(base)
    if found.manifest is not None:
        check_origin(found.folder, found.manifest, reader, base_digest)
    absorber = _Absorber(reader, found)
    gate = None if conditions.retain is None else Gate(conditions.retain, reader.folder)
    with new_folder(out) as partial:
        made = rewrite(reader, partial, absorber.make, on_tensor)
        retained = () if gate is None else gate.judge(partial, "train the adapter for fewer steps")
        absorption = Absorption(out, base_digest, made, found, retained)
        if conditions.keep_undo:
            keep(absorber.changed.values(), partial, reader.folder)
        text = json.dumps(absorption.record(), indent=1) + "\n"
        (partial / ABSORBED).write_text(text, encoding="utf-8")
        card = made_of_adapter(reader, base_digest, found.manifest, conditions)
        write_card(partial, card, conditions.card, out.resolve().name, digest=made)
    return absorption


def stack_adapter(adapter: Path | str, model: ModelConfig, out: Path | str) -> None:
    """Write an adapter so that PEFT loads it into a model of transformers 5.

    That holds the experts of a layer as one stack, and PEFT stacks their adapters as it loads
    them: it needs one for every expert. Those without get zeros, which add nothing; adapters of
    prediction modules, which such a model has not, are left out.

    Args:
        adapter: its folder.
        model: the model it is for.
        out: where to; it must be empty or not exist.

    Raises:
        CheckpointError: if the adapter is damaged or fits another model, or the disk is full.
    """
    found = read_adapter(adapter, model)
    routed = any(".mlp.experts." in name for name in found.factors)
    adapted = [
        spec
        for spec in tensors(model)
        if (spec.name in found.factors or (routed and spec.role == "routed"))
        and (spec.layer is None or spec.layer < model.num_hidden_layers)
    ]
    rank, scale = found.scaling.rank, found.scaling.scale
    values = peft_config(LoraConfig(rank=rank, alpha=scale * rank), adapted)
    pending = [half for spec in adapted for half in _halves(found, spec)]
    with new_folder(Path(out)) as partial:
        write_safetensors(partial / TENSORS, pending, {"format": "pt"})
        (partial / CONFIG).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _halves(adapter: Adapter, spec: TensorSpec) -> list[LazyTensor]:
    """Both factors for a weight, as they are or zeros."""
    dtype = next(iter(adapter.factors.values()))[0].dtype
    shapes = (adapter.scaling.rank, spec.shape[1]), (spec.shape[0], adapter.scaling.rank)

    def make(half: int) -> Tensor:
        if spec.name in adapter.factors:
            return adapter.read(spec.name)[half].to(dtype)
        return torch.zeros(shapes[half], dtype=dtype)

    return [
        LazyTensor(name, dtype, shapes[half], lambda half=half: make(half))
        for half, name in enumerate(factor_names(spec))
    ]


class _Absorber:
    """Makes the tensors of a checkpoint with an adapter merged into it."""

    def __init__(self, reader: Reader, adapter: Adapter) -> None:
        self._reader, self._adapter = reader, adapter
        blocks = reader.config.quantization_config
        self._block = blocks.weight_block_size if isinstance(blocks, Fp8Blocks) else BLOCK
        self.changed: dict[str, StoredTensor] = {}
        """What is not the base's any more, where the base has it."""

    def make(self, stored: StoredTensor) -> Tensor:
        """What there is to be where the base has this."""
        name = stored.name.removesuffix(SCALE)
        if name not in self._adapter.factors:
            return read_tensor(stored)
        change = self._adapter.change(name)
        if not change.any():
            return read_tensor(stored)
        self.changed[stored.name] = stored
        summed = self._reader.read(name).double() + change
        made = self._in_form_of(stored, summed)
        if not made.float().isfinite().all():
            raise CheckpointError(
                f"{stored.name}: base and adapter add up to {summed.abs().max():.4g}, more than "
                f"{DTYPE_NAMES[stored.dtype]} can hold; leave this adapter out"
            )
        return made

    def _in_form_of(self, stored: StoredTensor, summed: Tensor) -> Tensor:
        if stored.name.endswith(SCALE):
            return quantise(summed, self._block).weight_scale_inv
        if stored.dtype == FP8:
            return quantise(summed, self._block).weight
        return summed.to(stored.dtype)
