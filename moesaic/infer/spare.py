"""`SpareExperts`: room in a model's stacks for experts of other weights, and models that use it.

Letters: E experts of a layer, e those in the stacks.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from threading import Lock
from typing import Self

import torch
from torch import Tensor, nn

from moesaic.checkpoint.names import place
from moesaic.checkpoint.quantised import plain
from moesaic.errors import RequestError
from moesaic.infer.beside import ExpertsBeside
from moesaic.infer.held import HeldExperts, HeldLinear, bringer_of
from moesaic.infer.offload import ExpertCache
from moesaic.infer.stored import put_
from moesaic.kernels.native.pack import Rows
from moesaic.kernels.quantise import Fp8Weight
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import TensorSpec

Slots = Mapping[int, Mapping[int, int]]
"""Layer → expert → the slot that holds other weights of it."""


class SpareExperts:
    """Slots behind those of a model's own experts, lent to one variant or another.

    A variant's model shares every tensor with the base but those that it changes; its tokens find
    the changed experts in these slots, and all others where the base has them.
    """

    def __init__(self, model: Transformer, slots: Mapping[int, Sequence[int]]) -> None:
        """Begin with nothing lent.

        Args:
            model: it holds every expert, and has these slots besides.
            slots: layer → slots that may be lent.
        """
        self.model = model
        self._free = {layer: sorted(free, reverse=True) for layer, free in slots.items()}
        self._lock = Lock()

    @classmethod
    def behind_stacks(cls, model: Transformer, room: Mapping[int, int]) -> Self:
        """Make the room: the stacks are made anew, without values, their own experts first.

        Args:
            model: built and not filled; it holds every expert in stacks.
            room: layer → slots.
        """
        slots: dict[int, range] = {}
        for layer, n in room.items():
            experts = model.moe_layers()[layer].experts
            first = len(experts.stacked)
            assert first == model.config.experts
            experts.gate_up_proj = _wider(experts.gate_up_proj, n)
            experts.down_proj = _wider(experts.down_proj, n)
            slots[layer] = range(first, first + n)
        return cls(model, slots)

    def base_state(self) -> dict[str, Tensor]:
        """The base's own tensors by their names in the model: what a checkpoint fills."""
        experts, state = self.model.config.experts, self.model.state_dict()
        stacks = (".experts.gate_up_proj", ".experts.down_proj")
        return {name: t[:experts] if name.endswith(stacks) else t for name, t in state.items()}

    def n_free(self, layer: int) -> int:
        """Slots of a layer that are not lent."""
        return len(self._free.get(layer, ()))

    def lend(self, experts: Mapping[int, Sequence[int]]) -> Slots:
        """Slots for some experts, to be given back.

        Args:
            experts: layer → which of its experts.

        Raises:
            RequestError: if there are too few; none is lent then.
        """
        with self._lock:
            for layer, ids in experts.items():
                if len(ids) > (free := self.n_free(layer)):
                    raise RequestError(
                        f"{len(ids)} experts of layer {layer} need room, and there is room for "
                        f"{free} more; unload a shard and wait until its requests have ended, or "
                        "start the server with a larger spare_experts"
                    )
            return {
                layer: {expert: self._free[layer].pop() for expert in ids}
                for layer, ids in experts.items()
            }

    def give_back(self, slots: Slots) -> None:
        """Take slots back; nothing may read them any more."""
        with self._lock:
            for layer, lent in slots.items():
                self._free[layer].extend(lent.values())

    @torch.no_grad()
    def variant(
        self, slots: Slots, tensors: Iterable[tuple[TensorSpec, Tensor | Fp8Weight]]
    ) -> Transformer:
        """The model with other weights, held as its own are; while they are written, others may
        read the base.

        Args:
            slots: lent, for every expert among the tensors.
            tensors: the weights, each under what the inventory says of it.

        Raises:
            CheckpointError: if one cannot be held so: see `Rows.put_`.
        """
        model = _same_tensors(self.model)
        _point(model, slots)
        for spec, tensor in tensors:
            if spec.expert is None or spec.layer is None:
                _replace(model, spec.name, tensor)
            else:
                _put(model, spec, slots[spec.layer][spec.expert], tensor)
        return model


def _wider(stack: Tensor, n: int) -> nn.Parameter:
    """Room for as many experts and some more."""
    wider = torch.empty(len(stack) + n, *stack.shape[1:], dtype=stack.dtype, device=stack.device)
    return nn.Parameter(wider, requires_grad=False)


def _point(model: Transformer, slots: Slots) -> None:
    """Let tokens find some experts in other slots."""
    layers = {layer: moe.experts for layer, moe in model.moe_layers().items()}
    held = [each for each in layers.values() if isinstance(each, HeldExperts)]
    cache = bringer_of(model)
    if isinstance(cache, ExpertCache):
        beside = ExpertsBeside(cache, slots, held[0].of_slot)
        for experts in held:
            experts.cache = beside
        return
    for layer, lent in slots.items():
        experts = layers[layer]
        places = torch.arange(model.config.experts, device=model.model.embed_tokens.weight.device)
        places[list(lent)] = torch.tensor(list(lent.values()), device=places.device)
        experts.slot_of_expert = places


def _same_tensors(model: Transformer) -> Transformer:
    """A model with modules of its own and the weights of another."""
    shared: list[object] = [*model.parameters(), *model.buffers()]
    for module in model.modules():
        if isinstance(module, HeldLinear):
            shared.append(module.rows)
        elif isinstance(module, HeldExperts):
            shared += [module.rows_in, module.rows_out, *([module.cache] if module.cache else [])]
    return deepcopy(model, {id(each): each for each in shared})


def _put(model: Transformer, spec: TensorSpec, slot: int, weight: Tensor | Fp8Weight) -> None:
    """Write a matrix of an expert into a slot."""
    found = place(spec)
    assert found is not None
    path, _, stack = found.name.rpartition(".")
    experts = model.get_submodule(path)
    last = found.first_row + found.rows
    if isinstance(experts, HeldExperts):
        rows_in, rows_out = experts.of_slot(slot)
        rows = rows_out if stack == "down_proj" else rows_in
        put_(rows.part(found.first_row, last), weight, spec.name)
    else:
        part = model.get_parameter(found.name)[slot, found.first_row : last]
        part.copy_(plain(weight))


def _replace(model: nn.Module, name: str, weight: Tensor | Fp8Weight) -> None:
    """Give one module a weight of its own."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(module, HeldLinear):
        rows = Rows.empty(len(module.rows.values), module.rows.width, module.rows.kind)
        put_(rows, weight, name)
        model.set_submodule(path, HeldLinear(rows))
    else:
        own = plain(weight).to(getattr(module, leaf), copy=True)
        setattr(module, leaf, nn.Parameter(own, requires_grad=False))
