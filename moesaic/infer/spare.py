"""`SpareExperts`: room in a model's stacks for experts of other weights, and models that use it.

Letters: E experts of a layer, e those in the stacks.
"""

from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from threading import Lock

import torch
from torch import Tensor, nn

from moesaic.checkpoint.names import place
from moesaic.errors import RequestError
from moesaic.model.transformer import Transformer
from moesaic.planner.inventory import TensorSpec

Slots = Mapping[int, Mapping[int, int]]
"""Layer → expert → the slot that holds other weights of it."""


class SpareExperts:
    """Slots behind those of a model's own experts, lent to one variant or another.

    A variant's model shares every tensor with the base but those that it changes; its tokens find
    the changed experts in these slots, and all others where the base has them.
    """

    def __init__(self, model: Transformer, room: Mapping[int, int]) -> None:
        """Make the room: the stacks are made anew, without values, their own experts first.

        Args:
            model: built and not filled; it holds every expert.
            room: layer → slots.
        """
        self.model = model
        self._free: dict[int, list[int]] = {}
        self._lock = Lock()
        for layer, n in room.items():
            experts = model.moe_layers()[layer].experts
            first = len(experts.stacked)
            assert first == model.config.experts
            experts.gate_up_proj = _wider(experts.gate_up_proj, n)
            experts.down_proj = _wider(experts.down_proj, n)
            self._free[layer] = list(range(first + n - 1, first - 1, -1))

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
    def variant(self, slots: Slots, tensors: Iterable[tuple[TensorSpec, Tensor]]) -> Transformer:
        """The model with other weights; while they are written, others may read the base.

        Args:
            slots: lent, for every expert among the tensors.
            tensors: the weights, each under what the inventory says of it.
        """
        model = _same_tensors(self.model)
        for layer, lent in slots.items():
            experts = model.moe_layers()[layer].experts
            places = torch.arange(model.config.experts, device=experts.down_proj.device)
            places[list(lent)] = torch.tensor(list(lent.values()), device=places.device)
            experts.slot_of_expert = places
        for spec, tensor in tensors:
            found = place(spec)
            assert found is not None
            if spec.expert is None or spec.layer is None:
                _replace(model, found.name, tensor)
            else:
                stack = model.get_parameter(found.name)
                slot = slots[spec.layer][spec.expert]
                stack[slot, found.first_row : found.first_row + found.rows] = tensor.to(stack)
        return model


def _wider(stack: Tensor, n: int) -> nn.Parameter:
    """Room for as many experts and some more."""
    wider = torch.empty(len(stack) + n, *stack.shape[1:], dtype=stack.dtype, device=stack.device)
    return nn.Parameter(wider, requires_grad=False)


def _same_tensors(model: Transformer) -> Transformer:
    """A model with modules of its own and the tensors of another."""
    return deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})


def _replace(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Give one module a parameter of its own."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    own = tensor.to(getattr(module, leaf), copy=True)
    setattr(module, leaf, nn.Parameter(own, requires_grad=False))
