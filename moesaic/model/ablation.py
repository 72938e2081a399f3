"""`Ablation`: what of the routing is switched off in a pass, to see what it was good for."""

from dataclasses import dataclass

from moesaic.config.model import ModelConfig
from moesaic.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Ablation:
    """How a pass routes otherwise than the model was trained to; weights stay as they are.

    Source: DeepSeekMoE (arXiv 2401.06066) section 4.5.
    """

    skipped: int = 0
    """Experts that every token passes over, those it would have gone to first."""
    chosen: int | None = None
    """Experts a token goes to; None for the model's own number."""
    shared: bool = True
    """Whether shared experts take part."""

    def check(self, config: ModelConfig) -> None:
        """Hold this against a model whose every expert is allowed.

        Raises:
            ConfigError: if tokens have not as many experts to choose from.
        """
        chosen = self.chosen or config.num_experts_per_tok or 0
        if config.topk_method == "hash" and (self.skipped or chosen != 1):
            raise ConfigError(
                f"skipped={self.skipped} and chosen={chosen} are not possible with "
                "topk_method='hash', which knows no second choice; leave them out"
            )
        if self.skipped + chosen > config.experts:
            raise ConfigError(
                f"skipped={self.skipped} leaves {config.experts - self.skipped} of "
                f"{config.experts} experts, a token goes to {chosen}; lower one of them"
            )


NOTHING_ABLATED = Ablation()
"""Routing as the model was trained to."""
