"""The mixture layer: routed experts chosen per token, and shared experts that every token passes.

Letters: B sequences, S positions, T tokens, D hidden.
"""

from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.model.context import Context
from moesaic.model.experts import Experts
from moesaic.model.ffn import FeedForward
from moesaic.model.residency import Residency
from moesaic.model.router import HashRouter, Router
from moesaic.model.routing import Routing


class MoE(nn.Module):
    """Router, routed experts and shared experts of one layer.

    Source: DeepSeekMoE (arXiv 2401.06066) eq. 9.
    """

    def __init__(self, config: ModelConfig, layer: int, residency: Residency) -> None:
        super().__init__()
        assert config.moe_intermediate_size
        allowed = residency.allowed_in(config, layer)
        self.gate = (
            HashRouter(config, allowed, layer)
            if config.topk_method == "hash"
            else Router(config, allowed)
        )
        stacked, apart = residency.stacked_in(config, layer), residency.frozen.get(layer, ())
        self.experts = Experts(config, stacked, apart)
        self.shared_experts = None
        if config.n_shared_experts:
            inner = config.moe_intermediate_size * config.n_shared_experts
            self.shared_experts = FeedForward(config.hidden_size, inner)

    def forward(self, x_BSD: Tensor, context: Context) -> tuple[Tensor, Routing]:
        """The layer's output, [B, S, D], and where each token went."""
        x_TD = x_BSD.flatten(0, 1)
        routing = self.gate(x_TD, context)
        out_TD = self.experts(x_TD, routing)
        if self.shared_experts is not None and context.ablation.shared:
            out_TD = out_TD + self.shared_experts(x_TD)
        return out_TD.view_as(x_BSD), routing
