"""Low-rank adapters beside frozen weights.

Letters: T tokens, D hidden, K experts chosen per token.
"""

from torch import Tensor, nn

from moesaic.kernels.adapted import ExpertAdapters, LowRank, adapted_experts
from moesaic.kernels.grouped import FrozenExperts
from moesaic.kernels.matmul import linear


class Adapter(nn.Module):
    """The factors A and B for one weight, or for each weight of a stack."""

    lora_A: Tensor
    lora_B: Tensor

    def __init__(self, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.lora_A, self.lora_B = nn.Parameter(a), nn.Parameter(b)

    @property
    def factors(self) -> LowRank:
        """A and B."""
        return LowRank(self.lora_A, self.lora_B)


class LoraLinear(nn.Module):
    """``base(x) + scale · B(A x)``; the base may be any frozen linear map without a bias.

    Source: LoRA (arXiv 2106.09685) eq. 3.
    """

    def __init__(self, base: nn.Module, adapter: Adapter, scale: float) -> None:
        super().__init__()
        self.base, self.adapter, self.scale = base, adapter, scale

    @property
    def weight(self) -> Tensor:
        """The sum of weight and adapter, for uses that need a matrix."""
        a, b = self.adapter.factors
        weight = self.base.weight
        assert isinstance(weight, Tensor)
        return weight + (b @ a) * self.scale

    def forward(self, x: Tensor) -> Tensor:
        """Apply to the last axis."""
        a, b = self.adapter.factors
        out = self.base(x)
        low = linear(x.to(out.dtype), a.to(out.dtype)) * self.scale
        return out + linear(low, b.to(out.dtype))


class LoraExperts(nn.Module):
    """Adapters for some experts of a layer, as a stack for each factor of each projection."""

    slots: Tensor

    def __init__(
        self,
        ids: tuple[int, ...],
        slots: Tensor,
        projections: tuple[Adapter, Adapter, Adapter],
        scale: float,
    ) -> None:
        """Take the parts.

        Args:
            ids: the experts.
            slots: where each lies among those held.
            projections: of gate, up and down.
            scale: factor on every product of two factors.
        """
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = projections
        self.ids, self.scale = ids, scale
        self.register_buffer("slots", slots, persistent=False)

    def forward(
        self,
        x_TD: Tensor,
        slots_TK: Tensor,
        weights_TK: Tensor,
        gate_up: Tensor,
        down: Tensor,
        frozen: FrozenExperts | None,
    ) -> Tensor:
        """What the experts compute with their adapters. See `kernels.adapted`."""
        projections = (self.gate_proj, self.up_proj, self.down_proj)
        gate, up, of_down = (projection.factors for projection in projections)
        adapters = ExpertAdapters(gate, up, of_down, self.slots, self.scale)
        return adapted_experts(x_TD, slots_TK, weights_TK, gate_up, down, adapters, frozen)
