"""Multi-token prediction: modules after the last layer that predict further tokens.

Letters: B sequences, S positions, D hidden.
"""

import torch
from torch import Tensor, nn

from moesaic.config.model import ModelConfig
from moesaic.model.block import Block
from moesaic.model.context import Context
from moesaic.model.linear import Linear
from moesaic.model.norm import RMSNorm
from moesaic.model.residency import Residency
from moesaic.model.routing import Routing


class PredictionModule(Block):
    """A decoder layer fed with the previous depth's output and the next token's embedding.

    Embedding and head are the model's own. The published projection takes the embedding first,
    where the report writes the hidden state first; the weights decide.

    Source: DeepSeek-V3 (arXiv 2412.19437) section 2.2, eq. 21-23.
    """

    def __init__(self, config: ModelConfig, layer: int, residency: Residency) -> None:
        super().__init__(config, layer, residency)
        self.enorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.hnorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.eh_proj = Linear(2 * config.hidden_size, config.hidden_size)
        self.shared_head = nn.ModuleDict({"norm": RMSNorm(config.hidden_size, config.rms_norm_eps)})

    def predict(
        self, previous_BSD: Tensor, embedded_BSD: Tensor, context: Context
    ) -> tuple[Tensor, Routing | None]:
        """Hidden states for the head, and the routing.

        Args:
            previous_BSD: output of the previous depth, or of the model, after its last norm.
            embedded_BSD: embedding of the token after the one that depth predicts from.
            context: the pass.
        """
        out_BSD, routing = self(self.join(previous_BSD, embedded_BSD), context)
        return self.shared_head["norm"](out_BSD), routing

    def join(self, previous: Tensor, embedded: Tensor) -> Tensor:
        """What its layer is fed: [..., D] of each to [..., D]. See `predict`."""
        return self.eh_proj(torch.cat((self.enorm(embedded), self.hnorm(previous)), dim=-1))
