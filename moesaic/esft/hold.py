"""Hold what a slice does not train, in the form a run asks for: experts, and the rest.

Letters: D hidden, F expert width.
"""

from collections.abc import Sequence
from functools import partial
from typing import get_args

import torch
from torch import Tensor

from moesaic.checkpoint.load import Reader
from moesaic.config.esft import Hold, HoldLinears
from moesaic.errors import ConfigError
from moesaic.kernels.groupwise import Bits
from moesaic.model.experts import Experts
from moesaic.model.frozen import DenseExperts
from moesaic.model.parked import park_embedding_
from moesaic.model.quantised import LinearRole, QuantisedExperts, Scratch, quantise_linears_
from moesaic.model.streamed import FrozenLayer, Ring, StreamedExperts
from moesaic.model.transfer import InMemory, OnDisk, Stacks, empty_stacks
from moesaic.model.transformer import Transformer

BITS: dict[str, Bits] = {"int8": 8, "int4": 4}
"""Of a frozen expert's weights, by how it is held."""


def hold_frozen_(model: Transformer, reader: Reader, hold: Hold, dtype: torch.dtype) -> None:
    """Read the frozen experts of every layer, one expert in memory at a time.

    Args:
        model: built with a residency; where parameters and frozen experts have one type, the
            parameters get new memory, so load them afterwards.
        reader: the checkpoint.
        hold: in what form.
        dtype: of the products.
    """
    layers = [
        (moe.experts, FrozenReader(reader, layer))
        for layer, moe in model.moe_layers().items()
        if moe.experts.apart
    ]
    if not layers:
        return
    if hold in BITS:
        _quantise_(layers, BITS[hold], dtype)
    elif hold == "weights" or is_at_hand(hold, _device(layers[0][0])):
        for experts, of_layer in layers:
            experts.frozen = _dense(experts, of_layer, dtype)
    elif hold in ("cpu", "disk"):
        _stream_(layers, hold, dtype)
    else:
        raise ConfigError(
            f"hold={hold!r} is not one of weights, int8, int4, cpu, disk; set hold to one of them"
        )


def is_at_hand(hold: Hold, device: torch.device) -> bool:
    """Whether experts are computed with where they are held: nothing has to bring them."""
    return hold == device.type == "cpu"


def hold_rest_(model: Transformer, linears: HoldLinears, park_embedding: bool) -> None:
    """Hold the frozen linear layers as integers and the embedding on the CPU, where it is asked.

    Args:
        model: with its weights, what is trained requiring a gradient; adapters come afterwards.
        linears: the form of attention, dense layers and shared experts.
        park_embedding: whether the embedding leaves the device.

    Raises:
        CheckpointError: if a weight holds values that are not finite.
        ConfigError: if the embedding is trained, or is the head as well.
    """
    if linears != "weights":
        quantise_linears_(model, BITS[linears], get_args(LinearRole))
    if park_embedding:
        park_embedding_(model)


class FrozenReader:
    """Reads the experts of one layer from a checkpoint."""

    def __init__(self, reader: Reader, layer: int) -> None:
        self._reader, self._stem = reader, f"model.layers.{layer}.mlp.experts"

    def name(self, expert: int) -> str:
        """What the names of an expert's weights begin with."""
        return f"{self._stem}.{expert}"

    def read_into_(self, expert: int, gate_up: Tensor, down: Tensor) -> None:
        """Fill [2F, D] and [D, F] with one expert, in their type and on their device."""
        inner = len(gate_up) // 2
        parts = {"gate": gate_up[:inner], "up": gate_up[inner:], "down": down}
        for name, part in parts.items():
            self._reader.read_into_(part, f"{self.name(expert)}.{name}_proj.weight")

    def read_all_into_(self, experts: Sequence[int], gate_up: Tensor, down: Tensor) -> None:
        """Fill [e, 2F, D] and [e, D, F] with some experts."""
        for expert, *stacks in zip(experts, gate_up, down, strict=True):
            self.read_into_(expert, *stacks)


def _quantise_(
    layers: Sequence[tuple[Experts, FrozenReader]], bits: Bits, dtype: torch.dtype
) -> None:
    """Keep the frozen experts as integers, which are brought back a piece at a time."""
    scratch = Scratch(dtype, _device(layers[0][0]))
    for experts, reader in layers:
        n_frozen, width, inner = len(experts.apart), *experts.down_proj.shape[1:]
        found = QuantisedExperts(len(experts.stacked), n_frozen, width, inner, bits, scratch)
        one = _float32(experts.gate_up_proj), _float32(experts.down_proj)
        for slot, expert in enumerate(experts.apart):
            reader.read_into_(expert, *one)
            found.put_(slot, *one, reader.name(expert))
        experts.frozen = found


def _float32(stack: Tensor) -> Tensor:
    """Room for one expert of a stack."""
    return torch.empty(stack.shape[1:], dtype=torch.float32, device=stack.device)


def _dense(experts: Experts, reader: FrozenReader, dtype: torch.dtype) -> DenseExperts:
    stacks = experts.gate_up_proj, experts.down_proj
    n_frozen, width, inner = len(experts.apart), *stacks[1].shape[1:]
    found = DenseExperts(len(stacks[0]), n_frozen, width, inner, dtype, stacks[0].device)
    for parameter, slots in zip(stacks, found.stacked_slots(), strict=True):
        if parameter.dtype == dtype:
            parameter.data = slots
    reader.read_all_into_(experts.apart, *found.frozen_slots())
    return found


def _stream_(
    layers: Sequence[tuple[Experts, FrozenReader]], hold: Hold, dtype: torch.dtype
) -> None:
    """Keep the frozen experts of all layers in the CPU's memory or on disk."""
    found: list[FrozenLayer] = []
    for experts, reader in layers:
        on_disk = OnDisk(partial(reader.read_all_into_, experts.apart))
        source = on_disk if hold == "disk" else _in_memory(on_disk, experts, dtype)
        found.append(FrozenLayer(len(experts.stacked), len(experts.apart), source))
    ring = Ring(found, _stacks(layers[0][0]), dtype)
    for place, (experts, _) in enumerate(layers):
        experts.frozen = StreamedExperts(ring, place)


def _in_memory(on_disk: OnDisk, experts: Experts, dtype: torch.dtype) -> InMemory:
    """Read from disk once and for all."""
    pinned = _device(experts).type == "cuda"
    stacks = empty_stacks(len(experts.apart), _stacks(experts), dtype, "cpu", pinned)
    on_disk.read_into_(*stacks)
    return InMemory(stacks)


def _stacks(experts: Experts) -> Stacks:
    return experts.gate_up_proj, experts.down_proj


def _device(experts: Experts) -> torch.device:
    return experts.down_proj.device
