"""`RoutingConfig`: on how much text routing is looked at, and what is switched off to see why."""

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from moesaic.config.esft import Hold
from moesaic.config.settings import Settings


class AblationConfig(Settings):
    """Passes with experts switched off, as in DeepSeekMoE (arXiv 2401.06066) section 4.5."""

    tokens: PositiveInt = 16_384
    """Learned tokens of each domain, the first that are read, to measure the loss on."""
    disabled: Annotated[tuple[Annotated[float, Field(gt=0, lt=1)], ...], Field(strict=False)] = (
        0.0625,
        0.125,
        0.1875,
        0.25,
    )
    """Shares of a layer's routed experts that every token passes over, those it prefers."""
    chosen: Annotated[tuple[PositiveInt, ...], Field(strict=False)] | None = None
    """Experts per token to try; None tries every number up to the model's own and one more."""


class RoutingConfig(Settings):
    """What is read to see where tokens go, and how the model is held meanwhile."""

    tokens: PositiveInt = 32_768
    """Learned tokens to read of each domain; a domain that has fewer is read to its end."""
    seq_len: Annotated[int, Field(ge=2)] | None = None
    """Tokens that are seen together; None takes 2048, or what the model sees where that is less. A
    model that was trained on shorter sequences than it admits should be asked no longer ones."""
    hold: Hold = "weights"
    """How the experts are held: ``disk`` runs a model that is larger than the memory."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the rest of the weights is held and run in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where the model runs."""
    resident: str | None = None
    """A selection (JSON) or the folder of a shard, whose experts' part of the routing is told."""
    top: PositiveInt = 8
    """How many of a layer's busiest experts two domains are asked to share."""
    pairs: PositiveInt = 16
    """How many pairs of each layer, those chosen together most beyond chance, are listed."""
    token_ids: PositiveInt = 2048
    """How many different tokens, shared out over the domains, are followed by themselves."""
    ablation: AblationConfig | None = None
    """What is switched off; None measures with all experts only."""
