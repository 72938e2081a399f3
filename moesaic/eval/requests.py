"""What an evaluation asks of a model, in the three forms that published evaluations use."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Likelihood:
    """How probable is a continuation?"""

    context: str
    """What comes before; empty for a continuation at the beginning of a text."""
    continuation: str


@dataclass(frozen=True, slots=True)
class LikelihoodAnswer:
    """What a model gives to a `Likelihood`."""

    log_probability: float
    """Sum over the continuation's tokens, in nats."""
    is_greedy: bool
    """Whether every token of it is the model's first choice."""
    tokens: int
    """Tokens of the continuation."""


@dataclass(frozen=True, slots=True)
class Rolling:
    """How probable is a whole text, however long?"""

    text: str


@dataclass(frozen=True, slots=True)
class RollingAnswer:
    """What a model gives to a `Rolling`."""

    log_probability: float
    """Sum over all tokens of the text, in nats; each token is predicted once."""
    tokens: int


@dataclass(frozen=True, slots=True)
class Generation:
    """What does the model write?"""

    prompt: str
    stop: tuple[str, ...]
    """Texts that end it; none of them is part of the answer."""
    max_new_tokens: int
    temperature: float = 0.0
    """0 takes the most probable token."""


@dataclass(frozen=True, slots=True)
class GenerationAnswer:
    """What a model gives to a `Generation`."""

    text: str
    tokens: int
    """Tokens drawn, those that ended the text too."""


Request = Likelihood | Rolling | Generation
Answer = LikelihoodAnswer | RollingAnswer | GenerationAnswer
