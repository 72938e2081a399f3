"""Stacked experts ⇄ one tensor per expert: the only renaming between model and checkpoint.

A model holds the experts of layer ``i`` as ``model.layers.{i}.mlp.experts.gate_up_proj`` [e, 2F, D]
(rows of gate_proj, then of up_proj) and ``.down_proj`` [e, D, F]. A checkpoint holds
``model.layers.{i}.mlp.experts.{j}.{gate,up,down}_proj.weight``. Every other name is the same.
"""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.planner.inventory import TensorSpec, tensors

SCALE = "_scale_inv"
"""What the name of an FP8 weight's scales ends in, after the weight's own."""

Resident = Mapping[int, Sequence[int]]
"""Layer → ascending ids of the experts its stacks hold; a layer that is left out holds all."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a published tensor lies in a model's state."""

    name: str
    """The state's tensor."""
    slot: int | None = None
    """Which expert of a stack; None if the tensor is the whole one."""
    first_row: int = 0
    rows: int = 0
    """Where it begins in its slot, and how many rows it has."""

    def of(self, tensor: Tensor) -> Tensor:
        """The part of the state's tensor that is the published one, as a view."""
        if self.slot is None:
            return tensor
        return tensor[self.slot, self.first_row : self.first_row + self.rows]


def place(spec: TensorSpec, resident: Resident | None = None) -> Place | None:
    """Where a published tensor lies in a model's state.

    Returns:
        None for an expert that is not resident, and for a tensor that repeats another.
    """
    if spec.copy_of is not None:
        return None
    if spec.expert is None or spec.layer is None:
        return Place(spec.name)
    slot = _slot(spec.layer, spec.expert, resident)
    if slot is None:
        return None
    stacks, _, rest = spec.name.rpartition(f".{spec.expert}.")
    kind, rows = rest.removesuffix(".weight"), spec.shape[0]
    if kind == "down_proj":
        return Place(f"{stacks}.down_proj", slot, 0, rows)
    return Place(f"{stacks}.gate_up_proj", slot, 0 if kind == "gate_proj" else rows, rows)


def places(
    config: ModelConfig, resident: Resident | None = None
) -> Iterator[tuple[TensorSpec, Place]]:
    """Every published tensor that a model's state holds, with its place there.

    Raises:
        ConfigError: if ``resident`` names a layer or an expert that the model does not have.
    """
    check_resident(config, resident)
    for spec in tensors(config):
        found = place(spec, resident)
        if found is not None:
            yield spec, found


def state_shapes(
    config: ModelConfig, resident: Resident | None = None
) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model's state.

    Raises:
        ConfigError: if ``resident`` names a layer or an expert that the model does not have.
    """
    check_resident(config, resident)
    shapes: dict[str, tuple[int, ...]] = {}
    for spec in tensors(config):
        if spec.expert is None and spec.copy_of is None:
            shapes[spec.name] = spec.shape
        elif spec.expert == 0 and spec.layer is not None:
            held = (resident or {}).get(spec.layer)
            count = config.experts if held is None else len(held)
            stacks, _, kind = spec.name.removesuffix(".weight").rpartition(".0.")
            rows, columns = spec.shape
            if kind == "down_proj":
                shapes[f"{stacks}.down_proj"] = (count, rows, columns)
            else:
                shapes[f"{stacks}.gate_up_proj"] = (count, 2 * rows, columns)
    return shapes


def check_resident(config: ModelConfig, resident: Resident | None) -> None:
    """Raise a `ConfigError` unless every layer has experts and its ids exist and ascend."""
    for layer, ids in (resident or {}).items():
        last = config.num_hidden_layers + config.num_nextn_predict_layers - 1
        if not 0 <= layer <= last or not config.has_experts(layer):
            raise ConfigError(
                f"resident[{layer}]: layer {layer} has no experts; leave it out of the residency"
            )
        for before, expert in zip((-1, *ids), ids, strict=False):
            if not before < expert < config.experts:
                raise ConfigError(
                    f"resident[{layer}]: expert {expert} follows {before}; give ids that ascend "
                    f"and lie below n_routed_experts={config.experts}"
                )


def _slot(layer: int, expert: int, resident: Resident | None) -> int | None:
    held = (resident or {}).get(layer)
    if held is None:
        return expert
    slot = bisect_left(held, expert)
    return slot if slot < len(held) and held[slot] == expert else None
