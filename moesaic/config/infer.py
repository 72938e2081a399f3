"""`GenerateConfig`: how a model continues a text."""

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt

from moesaic.config.settings import Settings


class GenerateConfig(Settings):
    """How long to go on, which tokens may be drawn, and where to stop."""

    max_new_tokens: PositiveInt = 128
    """Most tokens to draw for a prompt."""
    temperature: NonNegativeFloat = 0.7
    """Logits are divided by this; 1 keeps the model's distribution, 0 takes the likeliest token."""
    top_k: PositiveInt | None = None
    """Draw among this many likeliest tokens; None draws among all."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Draw among the fewest likeliest tokens that together have this probability; 1 is all."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Random seed of the first prompt; the one after it has the next seed, and so on. A prompt's
    text depends on its own seed alone, so copies of a prompt give different texts."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(strict=False)] = ()
    """Texts before which to stop, besides the tokens that end a text."""
