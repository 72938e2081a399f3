"""The gated feed-forward of dense layers and shared experts."""

from torch import Tensor, nn

from moesaic.kernels.elementwise import swiglu
from moesaic.model.linear import Linear


class FeedForward(nn.Module):
    """``down(silu(gate(x)) · up(x))``. Shared experts are one of these, of their joint width."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, inner)
        self.up_proj = Linear(width, inner)
        self.down_proj = Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))
