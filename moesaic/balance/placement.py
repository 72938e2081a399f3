"""Which device holds which experts when the busiest have copies, from a measured load.

A *slot* is room for the weights of one expert; a device has equally many. Tokens of an expert are
taken to divide evenly among its copies.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import product
from pathlib import Path
from typing import Any

from moesaic.errors import ConfigError, DataError

Slots = tuple[int, ...]
"""The expert in every slot: those of the first device, then those of the next."""


@dataclass(frozen=True, slots=True)
class Devices:
    """Where experts go."""

    devices: int
    redundant: int = 0
    """Slots beyond one per expert, on all devices together."""
    nodes: int = 1
    """Machines that the devices are spread over evenly; links inside one are faster."""
    groups: int = 1
    """Groups of neighbouring experts (``n_group``), of which a token reaches only a few."""

    @property
    def keeps_groups(self) -> bool:
        """Whether a group stays on one node, so that a token crosses to few of them."""
        return self.nodes > 1 and self.groups % self.nodes == 0

    def check(self, n_experts: int) -> None:
        """See that slots and devices come out even.

        Raises:
            ConfigError: if they do not.
        """
        if self.devices < 1 or self.nodes < 1 or self.groups < 1 or self.redundant < 0:
            raise ConfigError(
                f"devices={self.devices}, nodes={self.nodes}, groups={self.groups}, "
                f"redundant={self.redundant}: give at least 1 of each, and no fewer than 0 copies"
            )
        surplus = (n_experts + self.redundant) % self.devices
        if surplus:
            raise ConfigError(
                f"{n_experts} experts and redundant={self.redundant} do not fill "
                f"devices={self.devices} evenly; set redundant to "
                f"{self.redundant + self.devices - surplus}"
            )
        if self.devices % self.nodes:
            raise ConfigError(
                f"devices={self.devices} do not divide among nodes={self.nodes}; give a multiple"
            )
        if n_experts % self.groups:
            raise ConfigError(
                f"{n_experts} experts do not divide into groups={self.groups}; give the model's "
                "n_group"
            )


def place(loads: Sequence[float], where: Devices) -> Slots:
    """Copy the busiest experts of a layer and spread all over the devices.

    If the groups divide among several nodes, groups are packed onto nodes first, and experts are
    copied and packed within their node; else both happen over all devices at once.

    Args:
        loads: of every expert, in any unit.
        where: devices and slots.

    Raises:
        ConfigError: if slots and devices do not come out even.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 3.4.1; the two policies are those that the README
    of EPLB describes (github.com/deepseek-ai/EPLB). Unlike there, packings are improved by swaps.
    """
    where.check(len(loads))
    if not where.keeps_groups:
        return _place_on_node(range(len(loads)), loads, where.devices, where.redundant)
    width = len(loads) // where.groups
    groups = [range(first, first + width) for first in range(0, len(loads), width)]
    group_loads = [sum(loads[expert] for expert in group) for group in groups]
    n_slots = (len(loads) + where.redundant) // where.nodes
    slots: list[int] = []
    for node in pack(group_loads, where.nodes):
        experts = [expert for group in sorted(node) for expert in groups[group]]
        redundant = n_slots - len(experts)
        slots += _place_on_node(experts, loads, where.devices // where.nodes, redundant)
    return tuple(slots)


def _place_on_node(
    experts: Sequence[int], loads: Sequence[float], n_devices: int, redundant: int
) -> Slots:
    """Copy the busiest of some experts, and pack all of them onto devices."""
    copies = count_copies([loads[expert] for expert in experts], len(experts) + redundant)
    held = [expert for expert, n in zip(experts, copies, strict=True) for _ in range(n)]
    of = dict(zip(experts, copies, strict=True))
    devices = pack([loads[expert] / of[expert] for expert in held], n_devices)
    return tuple(held[item] for device in devices for item in sorted(device))


def count_copies(loads: Sequence[float], n_slots: int) -> list[int]:
    """How many slots each expert gets, at least one, so that the busiest copy has least load.

    Giving every further slot to the expert whose copies are busiest attains that minimum.

    Source: the README of EPLB, "replicate the experts".
    """
    assert n_slots >= len(loads)
    copies = [1] * len(loads)
    if not loads:
        return copies
    busiest = [(-load, expert) for expert, load in enumerate(loads)]
    heapify(busiest)
    for _ in range(n_slots - len(loads)):
        expert = busiest[0][1]
        copies[expert] += 1
        heapreplace(busiest, (-loads[expert] / copies[expert], expert))
    return copies


def pack(loads: Sequence[float], n_bins: int) -> list[list[int]]:
    """Put items into bins of equally many, so that the fullest bin has little more than its share.

    The heaviest item first, each into the bin with least load that has room; then items of the
    fullest bin are exchanged with others for as long as that helps.

    Returns:
        The items of every bin.

    Source: longest processing time first, Graham 1969 (SIAM J. Appl. Math. 17(2)), with bins of a
    fixed number of items.
    """
    room, rest = divmod(len(loads), n_bins)
    assert not rest
    bins: list[list[int]] = [[] for _ in range(n_bins)]
    totals = [0.0] * n_bins
    for item in sorted(range(len(loads)), key=lambda item: -loads[item]):
        into = min((b for b in range(n_bins) if len(bins[b]) < room), key=totals.__getitem__)
        bins[into].append(item)
        totals[into] += loads[item]
    while _swap_(bins, loads):
        pass
    return bins


def _swap_(bins: list[list[int]], loads: Sequence[float]) -> bool:
    """Make the best exchange between the fullest bin and another; False if none helps."""
    totals = [sum(loads[item] for item in each) for each in bins]
    fullest = max(range(len(bins)), key=totals.__getitem__)
    best, chosen = totals[fullest] * (1 - 1e-12), None  # rounding is no improvement
    for other in range(len(bins)):
        if other == fullest:
            continue
        for mine, theirs in product(range(len(bins[fullest])), range(len(bins[other]))):
            moved = loads[bins[fullest][mine]] - loads[bins[other][theirs]]
            higher = max(totals[fullest] - moved, totals[other] + moved)
            if higher < best:
                best, chosen = higher, (mine, other, theirs)
    if chosen is None:
        return False
    mine, other, theirs = chosen
    bins[fullest][mine], bins[other][theirs] = bins[other][theirs], bins[fullest][mine]
    return True


def balancedness(loads: Sequence[float], slots: Slots, n_devices: int) -> float:
    """Mean load of the devices over that of the busiest: 1 is even, and its inverse is by how much
    the busiest holds the others up."""
    room = len(slots) // n_devices
    each = [loads[expert] / slots.count(expert) for expert in slots]
    devices = [sum(each[first : first + room]) for first in range(0, len(each), room)]
    busiest = max(devices)
    return sum(devices) / n_devices / busiest if busiest > 0 else 1.0


def without_copies(n_experts: int, n_devices: int) -> Slots | None:
    """Experts in their order, one slot each; None if the devices would have unlike numbers."""
    return None if n_experts % n_devices else tuple(range(n_experts))


def read_loads(path: Path) -> dict[int, list[float]]:
    """Loads of the experts by layer.

    Args:
        path: a ``routing.json`` with loads over all its domains, or a JSON list with a list of
            loads for every layer, empty for one without experts.

    Raises:
        DataError: if it is neither.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict) and found.get("kind") == "routing":
            ahead = found["prediction_layers"]
            pairs = zip(found["layers"], found["all_loads"]["choices"], strict=True)
            loads = {layer: values for layer, values in pairs if layer not in ahead}
        else:
            listed = enumerate(found if isinstance(found, list) else ())
            loads = {layer: values for layer, values in listed if values}
        return _checked(loads)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} has no loads ({type(error).__name__}: {error}); give the routing.json of "
            "`moesaic routing --out`, or a JSON list of one list of loads per layer"
        ) from None


def _checked(loads: Mapping[int, Any]) -> dict[int, list[float]]:
    found = {layer: [float(load) for load in values] for layer, values in loads.items()}
    if len({len(values) for values in found.values()}) != 1 or not all(found.values()):
        raise ValueError("layers have no experts, or unlike numbers of them")
    if not all(0 <= load < float("inf") for values in found.values() for load in values):
        raise ValueError("a load is negative or not a number")
    return found


def expert_locations(placed: Mapping[int, Slots], n_experts: int) -> dict[str, list[list[int]]]:
    """What SGLang reads from the file of ``--init-expert-location``: a row for every layer of the
    model up to the last placed one. Layers without experts have the experts in turn, as there.

    Source: ``compute_initial_expert_location_metadata`` of sglang/srt/eplb/expert_location.py.
    """
    n_slots = len(next(iter(placed.values())))
    in_turn = tuple(slot % n_experts for slot in range(n_slots))
    rows = [list(placed.get(layer, in_turn)) for layer in range(max(placed) + 1)]
    return {"physical_to_logical_map": rows}
