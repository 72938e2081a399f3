"""An embedding that stays in the memory of the CPU while the model computes elsewhere.

Letters: B sequences, S positions, D hidden.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError
from moesaic.model.transformer import Transformer


class ParkedEmbedding(nn.Module):
    """The rows of a pass are looked up on the CPU and brought to the device of the ids.

    The weight is no parameter, in no state, and does not move with the model. A pass begins by
    waiting for its ids; the rows of 4,096 tokens of DeepSeek-V2-Lite are 17 MB.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight.detach().cpu()

    @property
    def weight(self) -> Tensor:
        """The whole table, on the CPU."""
        return self._weight

    def forward(self, ids_BS: Tensor) -> Tensor:
        """Rows of the table: [B, S, D]."""
        return F.embedding(ids_BS.cpu(), self._weight).to(ids_BS.device, non_blocking=True)


def park_embedding_(model: Transformer) -> None:
    """Take a frozen embedding off the model's device.

    Raises:
        ConfigError: if it is trained, or is the head as well.
    """
    check_parkable(model.config)
    weight = model.model.embed_tokens.weight
    if weight.requires_grad:
        raise ConfigError(
            "park_embedding keeps the embedding off the device, where it is to be trained; "
            "remove park_embedding, or do not train the embedding"
        )
    model.set_submodule("model.embed_tokens", ParkedEmbedding(weight))


def check_parkable(config: ModelConfig) -> None:
    """Refuse a model that needs its embedding on the device.

    Raises:
        ConfigError: if the head is the embedding.
    """
    if config.tie_word_embeddings:
        raise ConfigError(
            "park_embedding keeps the embedding off the device, where this model needs it as its "
            "head (tie_word_embeddings=true); remove park_embedding"
        )
