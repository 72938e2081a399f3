"""How alike the weights of a layer's experts are, one layer in memory at a time.

Letters: E experts of a layer, D hidden.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from moesaic.checkpoint.load import Reader

PROJECTIONS = ("gate_proj", "up_proj", "down_proj")
_BLOCK_BYTES = 1 << 30
"""Weights held at once; a layer that is larger is read several times."""
_BINS = 24
_QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def expert_cosines(reader: Reader, layer: int, block_bytes: int = _BLOCK_BYTES) -> Tensor:
    """Cosine between the weights of every two experts of a layer, [E, E].

    The three matrices of an expert are taken as one vector. Neurons are compared by their place:
    two experts with the same neurons in another order are not alike by this measure.

    Args:
        reader: the checkpoint.
        layer: one that has experts.
        block_bytes: how much of the weights to hold at once.
    """
    experts = reader.config.experts
    products_EE = torch.zeros(experts, experts, dtype=torch.float64)
    for projection in PROJECTIONS:
        names = [
            f"model.layers.{layer}.mlp.experts.{i}.{projection}.weight" for i in range(experts)
        ]
        _add_products_(products_EE, reader, names, block_bytes)
    return _cosines(products_EE)


def router_cosines(reader: Reader, layer: int) -> Tensor:
    """Cosine between the directions that stand for every two experts in a router, [E, E]."""
    weight_ED = reader.read(f"model.layers.{layer}.mlp.gate.weight", torch.float64)
    return _cosines(weight_ED @ weight_ED.T)


def moved(before: Reader, after: Reader, layer: int) -> list[float]:
    """How far each expert's weights moved, over their length before; by the experts' ids."""
    found: list[float] = []
    for expert in range(before.config.experts):
        stem = f"model.layers.{layer}.mlp.experts.{expert}"
        pairs = [_pair(before, after, f"{stem}.{name}.weight") for name in PROJECTIONS]
        found.append(_change(pairs))
    return found


def routers_moved(before: Reader, after: Reader, layer: int) -> list[float]:
    """The same of the direction that stands for each expert in the router."""
    old_ED, new_ED = _pair(before, after, f"model.layers.{layer}.mlp.gate.weight")
    return [_change([pair]) for pair in zip(old_ED, new_ED, strict=True)]


def likeness(
    reader: Reader, layers: Sequence[int], on_layer: Callable[[int], None] | None = None
) -> dict[str, Any]:
    """The cosines of every layer, summed up; see `routing`.

    Args:
        reader: the checkpoint.
        layers: those with experts.
        on_layer: called before a layer is read.
    """
    experts, routers = [], []
    for layer in layers:
        if on_layer is not None:
            on_layer(layer)
        experts.append(expert_cosines(reader, layer))
        if reader.config.topk_method != "hash":
            routers.append(router_cosines(reader, layer))
    return {"experts": summed_up(experts), "router": summed_up(routers) if routers else None}


def drift_of_weights(
    before: Reader,
    after: Reader,
    layers: Sequence[int],
    on_layer: Callable[[int], None] | None = None,
) -> dict[str, list[list[float]]]:
    """What `moved` and `routers_moved` say of every layer."""
    experts, routers = [], []
    for layer in layers:
        if on_layer is not None:
            on_layer(layer)
        experts.append(moved(before, after, layer))
        routers.append(routers_moved(before, after, layer))
    return {"moved": experts, "router": routers}


def summed_up(layers: Sequence[Tensor]) -> dict[str, Any]:
    """Cosines [E, E] of some layers as mean, deviation, quantiles, nearest pair and histogram."""
    pairs = [between(cosines_EE) for cosines_EE in layers]
    low, high = min(float(one.min()) for one in pairs), max(float(one.max()) for one in pairs)
    edges = torch.linspace(low, max(high, low + 1e-6), _BINS + 1, dtype=torch.float64)
    shares = torch.tensor(_QUANTILES, dtype=torch.float64)
    return {
        "mean": [float(one.mean()) for one in pairs],
        "deviation": [float(one.std(correction=0)) for one in pairs],
        "quantiles": [one.quantile(shares).tolist() for one in pairs],
        "nearest": [_nearest(cosines_EE) for cosines_EE in layers],
        "edges": edges.tolist(),
        "histogram": [_histogram(one, edges) for one in pairs],
    }


def between(cosines_EE: Tensor) -> Tensor:
    """The cosines of different experts, each pair once."""
    rows, columns = torch.triu_indices(*cosines_EE.shape, offset=1)
    return cosines_EE[rows, columns]


def _add_products_(
    products_EE: Tensor, reader: Reader, names: Sequence[str], block_bytes: int
) -> None:
    """Add the inner products of every two of some tensors, a block of them in memory."""
    width = reader.shape(names[0])
    at_once = max(1, block_bytes // (4 * width[0] * width[1]))
    for start in range(0, len(names), at_once):
        block = _vectors(reader, names[start : start + at_once])
        stop = start + len(block)
        products_EE[start:stop, start:stop] += (block @ block.T).double()
        for other in range(stop, len(names)):
            found = (block @ reader.read(names[other], torch.float32).flatten()).double()
            products_EE[start:stop, other] += found
            products_EE[other, start:stop] += found


def _vectors(reader: Reader, names: Sequence[str]) -> Tensor:
    """float32, a row for each tensor."""
    shape = reader.shape(names[0])
    found = torch.empty(len(names), *shape)
    for row, name in zip(found, names, strict=True):
        reader.read_into_(row, name)
    return found.flatten(1)


def _cosines(products_EE: Tensor) -> Tensor:
    length_E = products_EE.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    return products_EE / length_E[:, None] / length_E[None, :]


def _nearest(cosines_EE: Tensor) -> list[int]:
    """The two experts that are most alike."""
    others_EE = cosines_EE.clone().fill_diagonal_(-2.0)
    return sorted(divmod(int(others_EE.argmax()), len(others_EE)))


def _histogram(values: Tensor, edges: Tensor) -> list[int]:
    """How many values lie from each edge up to the next; the last includes its end."""
    bins = torch.bucketize(values, edges[1:-1], right=True)
    return bins.bincount(minlength=len(edges) - 1).tolist()


def _pair(before: Reader, after: Reader, name: str) -> tuple[Tensor, Tensor]:
    return before.read(name, torch.float32), after.read(name, torch.float32)


def _change(pairs: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Length of what was added to some tensors, over the length that they had."""
    added = sum(float((new - old).square().sum(dtype=torch.float64)) for old, new in pairs)
    had = sum(float(old.square().sum(dtype=torch.float64)) for old, _ in pairs)
    return (added / had) ** 0.5 if had else 0.0
