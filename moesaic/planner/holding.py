"""Bytes of frozen weights in each form they are held in, and of the room they are computed in."""

from moesaic.config.esft import Hold
from moesaic.planner.inventory import Role, tensors
from moesaic.planner.params import Plan, layers_alike
from moesaic.planner.precision import Precision

GROUP = 64
"""Weights of a row that share a scale, as in `kernels.groupwise`."""
SCALE_BITS = 16
"""Bits of a scale, as there."""
LINEAR_ROLES: tuple[Role, ...] = ("attention", "dense", "shared")
"""Parts that consist of linear layers, as in `model.quantised`."""
_BITS: dict[Hold, int] = {"int8": 8, "int4": 4}
_ROOMS: dict[Hold, int] = {"int8": 1, "int4": 1, "cpu": 2, "disk": 2}
"""How often there is room for all experts of one layer in the dtype of the products: integers are
brought back into one that all layers share, streamed layers alternate between two."""


def frozen_bytes(plan: Plan, precision: Precision) -> int:
    """Bytes on the device of the experts that a slice keeps frozen."""
    if plan.is_streamed:
        return 0
    if plan.hold == "weights":
        return precision.compute * plan.frozen
    width, inner = plan.config.hidden_size, plan.config.moe_intermediate_size or 0
    bits, experts = _BITS[plan.hold], plan.beside * len(plan.config.moe_layers)
    return experts * (2 * _rows(inner, width, bits) + _rows(width, inner, bits))


def rest_bytes(plan: Plan, precision: Precision) -> int:
    """Bytes on the device of what a slice holds and never trains, routed experts left out."""
    linears = sum(plan.roles.get(role, 0) for role in LINEAR_ROLES)
    parked = plan.roles["embedding"] if plan.park_embedding else 0
    as_weights = plan.backbone + plan.shared - parked
    if plan.hold_linears == "weights":
        return precision.frozen * as_weights
    return precision.frozen * (as_weights - linears) + _linear_bytes(plan, _BITS[plan.hold_linears])


def _linear_bytes(plan: Plan, bits: int) -> int:
    alike, depth = layers_alike(plan.config), plan.config.num_hidden_layers
    return sum(
        alike[spec.layer] * _rows(spec.shape[0], spec.shape[1], bits)
        for spec in tensors(plan.config, alike)
        if spec.role in LINEAR_ROLES and spec.layer is not None and spec.layer < depth
    )


def room_bytes(plan: Plan, precision: Precision) -> int:
    """Bytes that frozen experts take further, so that they can be computed with.

    Weights of another dtype than the products' have a copy of the trained experts beside them.
    """
    if not plan.beside:
        return 0
    stacked = plan.stacked * plan.per_expert_slot
    if plan.hold == "weights":
        return precision.compute * stacked if precision.weights != precision.compute else 0
    layer = (plan.stacked + plan.beside) * plan.per_expert_slot // len(plan.config.moe_layers)
    return _ROOMS[plan.hold] * precision.compute * layer


def _rows(rows: int, width: int, bits: int) -> int:
    """Codes and scales of a matrix, group by group along its rows."""
    return rows * (-(-width * bits // 8) + -(-width // GROUP) * SCALE_BITS // 8)
