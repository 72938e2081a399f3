"""How a model continues a text, and how it is held meanwhile."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveInt

from moesaic.config.memory import Memory
from moesaic.config.settings import Settings

Speculate = Literal["never", "auto", "always"]
"""Whether a prediction module drafts tokens: ``auto`` stops where that gains no time."""


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


class HeldConfig(GenerateConfig):
    """How a model continues a text, and how it is held."""

    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights, products and caches."""
    device: str = "cpu"
    """Where the model is held: cpu, cuda, cuda:1, …"""
    form: Literal["weights", "lossless", "int8", "int4"] = "weights"
    """How matrices are held on a CPU: weights as they are stored; lossless the same bfloat16
    numbers in 12 bits each, which takes less memory, and less time where reading it decides; int8
    or int4 in integers with a scale per group."""
    memory: Memory | None = None
    """Most bytes of weights, as 8GiB: experts that do not fit are read when they are chosen. None
    holds all."""
    speculate: Speculate = "never"
    """Whether the model's prediction module drafts tokens, which the model then checks two in a
    pass: always, never, or as long as that is measured to be faster. A seed gives the same tokens
    in any of these ways."""


class TextConfig(HeldConfig):
    """A text that is continued, and what it has to be."""

    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of weights, products and caches."""
    regex: str | None = None
    """A regular expression that matches what is written as a whole; None for any text."""
    choice: Annotated[tuple[str, ...] | None, Field(strict=False)] = None
    """Texts of which one is written; None for any text."""
    grammar: str | None = None
    """A file with a context-free grammar of what is written, in the form of Lark or of llama.cpp
    (GBNF); None for any text."""
