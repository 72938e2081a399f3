"""`MergeConfig`: how shards become one checkpoint, whose are taken, and what a merge may cost."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from moesaic.config.card import CardConfig
from moesaic.config.settings import Settings

Method = Literal["mean", "sum", "ties"]


class RetainConfig(Settings):
    """Text that the merged model must still predict as the base does."""

    data: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    """Files, patterns or ``corpus:NAME``, each judged by itself. Of files every document is read,
    of a corpus those held out."""
    most_rise: NonNegativeFloat = 0.02
    """How much higher than the base's the loss may be, in nats per token."""
    tokens: PositiveInt = 65_536
    """Positions to read of each, where there are as many."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What both models are held and run in."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where they are run."""


class Conditions(Settings):
    """Whose work is merged into a checkpoint, at what cost, and whether that can be undone."""

    trusted: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Files with Ed25519 public keys, in PEM; with some, only what is signed with one is merged.
    Needs ``moesaic[sign]``."""
    keep_undo: bool = False
    """Whether the base's bytes of every changed tensor are kept beside the merged ones."""
    retain: RetainConfig | None = None
    """What the merged model must still predict; None asks for nothing."""
    card: CardConfig = CardConfig()
    """What the card of the merged model says."""


class MergeConfig(Conditions):
    """What is made of the shards, and on what conditions."""

    method: Method = "mean"
    """What becomes of an expert that several trained: ``mean``, their mean by tokens; ``sum``, the
    base and all changes; ``ties``, the base and the mean of large changes that agree in sign."""
    scale: PositiveFloat | None = None
    """λ, what ``sum`` and ``ties`` multiply changes by; None takes 1."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of a tensor's changes, the largest, that ``ties`` keeps; None takes 0.2."""
    only: str | None = None
    """A JSON file that names the experts to take of the shards, in the published form; None takes
    all they hold."""

    @model_validator(mode="after")
    def _has_what_the_method_reads(self) -> Self:
        if self.scale is not None and self.method == "mean":
            raise ValueError(
                f"scale={self.scale:g} has no use with method='mean'; remove it, or set method to "
                "'sum' or 'ties'"
            )
        if self.density is not None and self.method != "ties":
            raise ValueError(
                f"density={self.density:g} has no use with method={self.method!r}; remove it, or "
                "set method to 'ties'"
            )
        return self
