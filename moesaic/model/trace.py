"""`RoutingTrace`: pass one into a forward pass and read every layer's `Routing` afterwards."""

from dataclasses import dataclass, field

from moesaic.model.routing import Routing


@dataclass(slots=True)
class RoutingTrace:
    """The one window on routing: balance losses, scores and analysis all read it."""

    layers: dict[int, Routing] = field(default_factory=dict)
    """Layer index → what its router decided in the last pass this trace was given to."""
