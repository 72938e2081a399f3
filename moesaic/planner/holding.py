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
PIECE = 2**26
"""Weights of a layer's experts that are brought back at a time, unless they are of fewer columns
than `COLUMNS`."""
COLUMNS = 2 * GROUP
"""Columns of a piece are a multiple of this many: whole groups of both codes that share a byte."""
_BITS: dict[Hold, int] = {"int8": 8, "int4": 4}


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

    Weights of another dtype than the products' have a copy of the trained experts beside them;
    streamed layers alternate between room for two; and integers are brought back into room for a
    piece, which all layers share.
    """
    if not plan.beside:
        return 0
    stacked = plan.stacked * plan.per_expert_slot
    if plan.hold == "weights":
        return precision.compute * stacked if precision.weights != precision.compute else 0
    if plan.is_streamed:
        layer = (plan.stacked + plan.beside) * plan.per_expert_slot // len(plan.config.moe_layers)
        return 2 * precision.compute * layer
    return precision.compute * _piece(plan, _BITS[plan.hold])


def _piece(plan: Plan, bits: int) -> int:
    """Weights of the largest piece: of some rows of a stack, or of some of its columns where these
    are whole groups."""
    width, inner = plan.config.hidden_size, plan.config.moe_intermediate_size or 0
    experts, whole = plan.stacked + plan.beside, GROUP * 8 // bits
    pieces = [
        experts * others * (columns_at_once(columns, experts * others) if can_cut else columns)
        for rows, row in ((2 * inner, width), (width, inner))
        for columns, others, can_cut in ((rows, row, True), (row, rows, row % whole == 0))
    ]
    return max(pieces)


def columns_at_once(columns: int, height: int, most: int = PIECE) -> int:
    """Columns of a piece; all pieces of a matrix have about as many.

    Args:
        columns: of the whole.
        height: weights of a column, of all experts.
        most: weights of a piece.
    """
    if columns * height <= most:
        return columns
    steps = -(-columns // COLUMNS)
    n_pieces = -(-steps // max(1, most // (COLUMNS * height)))
    return min(columns, COLUMNS * -(-steps // n_pieces))


def _rows(rows: int, width: int, bits: int) -> int:
    """Codes and scales of a matrix, group by group along its rows."""
    return rows * (-(-width * bits // 8) + -(-width // GROUP) * SCALE_BITS // 8)
