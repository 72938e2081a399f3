"""The routed experts resident here, stacked for grouped matmul.

Letters: T tokens, D hidden, E experts of the layer, e those resident, K experts chosen per token,
F expert width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.kernels.grouped import experts
from moesaic.model.routing import Routing


class Experts(nn.Module):
    """One stack per projection; slot s of the stack is expert ``resident[s]``."""

    gate_up_proj: Tensor
    down_proj: Tensor
    slot_of_expert: Tensor | None

    def __init__(self, config: ModelConfig, resident: Sequence[int]) -> None:
        super().__init__()
        assert config.moe_intermediate_size
        width, inner = config.hidden_size, config.moe_intermediate_size
        self.resident = tuple(resident)
        held = len(self.resident)
        self.gate_up_proj = nn.Parameter(torch.empty(held, 2 * inner, width))
        self.down_proj = nn.Parameter(torch.empty(held, width, inner))
        slots = None
        if held < config.experts:
            slots = torch.full((config.experts,), -1)
            slots[list(self.resident)] = torch.arange(held)
        self.register_buffer("slot_of_expert", slots, persistent=False)

    def forward(self, x_TD: Tensor, routing: Routing) -> Tensor:
        """Weighted sum of each token's experts: [T, D]. See `kernels.reference.experts`."""
        slots_TK = routing.ids_TK
        if self.slot_of_expert is not None:
            slots_TK = self.slot_of_expert[slots_TK]
        return experts(x_TD, slots_TK, routing.weights_TK, self.gate_up_proj, self.down_proj)
