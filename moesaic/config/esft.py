"""`EsftConfig`: which experts of a checkpoint a run trains while the others stay on disk."""

from typing import Annotated, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moesaic.config.settings import Settings

Score = Literal["token", "gate"]
SCORE_TOKENS = 32 * 4096
"""Tokens experts are scored on unless a run says otherwise: those of ESFT, section 3.3."""


class EsftConfig(Settings):
    """Train a few experts of every layer; the router may choose no others, and no others are held.

    One of `experts`, `p` and `selection` says which.

    Source: ESFT (arXiv 2407.01906) section 3.3, with the router restricted to what is trained.
    """

    experts: PositiveInt | None = None
    """How many of each layer, those with the highest scores."""
    p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Score that a layer's trained experts add up to; ESFT took 0.2 of the token score, 0.1 of the
    gate score. Never fewer than a token needs, num_experts_per_tok."""
    selection: str | None = None
    """A JSON file that names them, in the published form."""
    score: Score = "token"
    """``token``: how often a token chooses the expert; ``gate``: with what gate values."""
    score_tokens: PositiveInt = SCORE_TOKENS
    """Learned tokens of the run's data to score experts on."""
    shared_experts: bool = False
    """Whether shared experts are trained too."""
    non_expert_modules: bool = False
    """Whether everything else is: attention, dense layers, routers, norms, embedding and head."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        ways = {name: getattr(self, name) for name in ("experts", "p", "selection")}
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            found = (
                ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
            )
            raise ValueError(f"give one of experts, p and selection, not {found}")
        if self.selection is not None:
            for name in ("shared_experts", "non_expert_modules"):
                if getattr(self, name):
                    raise ValueError(f"{name} is said by the file in selection; remove it here")
        return self
