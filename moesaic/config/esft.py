"""`EsftConfig`: which experts of a checkpoint a run trains while the others stay on disk."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from moesaic.config.lora import LoraConfig
from moesaic.config.settings import Settings

Score = Literal["token", "gate"]
Variant = Literal["masked", "frozen-kept", "natural"]
Hold = Literal["weights", "int8", "int4", "cpu", "disk"]
HoldLinears = Literal["weights", "int8", "int4"]
Part = Literal["router", "attention", "norm", "dense", "embedding", "head"]
SCORE_TOKENS = 32 * 4096
"""Tokens experts are scored on unless a run says otherwise: those of ESFT, section 3.3."""


class EsftConfig(Settings):
    """Train a few experts of every layer. `experts`, `p`, `budget` or `selection` says which.

    What becomes of the other experts is `variant` and `hold`.

    Source: ESFT (arXiv 2407.01906) section 3.3, which is the natural variant.
    """

    experts: PositiveInt | None = None
    """How many of each layer, those with the highest scores."""
    p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Score that a layer's trained experts add up to; ESFT took 0.2 of the token score, 0.1 of the
    gate score. Never fewer than a token needs, num_experts_per_tok."""
    budget: PositiveInt | None = None
    """How many of all layers together, shared out so that they cover most of the score. Never fewer
    of a layer than a token needs."""
    selection: str | None = None
    """A JSON file that names them, in the published form."""
    score: Score = "token"
    """``token``: how often a token chooses the expert; ``gate``: with what gate values."""
    score_tokens: PositiveInt = SCORE_TOKENS
    """Learned tokens of the run's data to score experts on."""
    score_hold: Hold = "weights"
    """How the experts, all of them, are held while they are scored, as in `hold`: ``disk`` scores a
    model that is larger than the memory."""
    variant: Variant = "masked"
    """Which experts the router may choose: ``masked`` only the trained ones, no others are held;
    ``frozen-kept`` also the next best of each layer, as many as `frozen_experts` or
    `frozen_coverage` says; ``natural`` all, as when the model is used afterwards."""
    frozen_experts: PositiveInt | None = None
    """How many experts of each layer ``frozen-kept`` holds beside the trained ones."""
    frozen_coverage: Annotated[float, Field(gt=0, le=1)] | None = None
    """Or the share of each layer's score that ``frozen-kept`` covers with as few of them as can."""
    hold: Hold = "weights"
    """How experts that are not trained are held: as ``weights``; as group-wise integers of 8 or 4
    bits (``int8``, ``int4``); or not on the device, brought layer by layer from the ``cpu``'s
    memory or the checkpoint on ``disk``. Where a CPU computes, ``cpu`` is the same as ``weights``.
    With `lora` that is all experts."""
    hold_linears: HoldLinears = "weights"
    """How linear layers that are not trained are held: those of attention, dense layers and shared
    experts, as ``weights`` or as such integers. With `lora` that is all of them."""
    park_embedding: bool = False
    """Whether the embedding stays in the memory of the CPU, and only the rows that a pass reads are
    brought to the device. For models with a head of their own."""
    lora: LoraConfig | None = None
    """Train low-rank adapters beside the weights instead of the weights; None trains these."""
    shared_experts: bool = False
    """Whether shared experts are trained too."""
    modules: Annotated[tuple[Part, ...], Field(strict=False)] = ()
    """What else is trained: router, attention, norm, dense, embedding, head."""
    non_expert_modules: bool = False
    """Whether everything that is no expert is: all of `modules`."""
    sign_with: str | None = None
    """A file with the Ed25519 private key, in PEM, that signs the shard or the adapter; None leaves
    it unsigned. Needs ``moesaic[sign]``."""

    @model_validator(mode="after")
    def _one_way_to_choose(self) -> Self:
        ways = ("experts", "p", "budget", "selection")
        if len(given := self._given(ways)) != 1:
            raise ValueError(f"give one of experts, p, budget and selection, not {_listed(given)}")
        if self.selection is not None:
            parts = ("shared_experts", "non_expert_modules", "modules")
            for name in (*parts, "frozen_experts", "frozen_coverage"):
                if getattr(self, name):
                    raise ValueError(f"{name} is said by the file in selection; remove it here")
        return self

    @model_validator(mode="after")
    def _variant_has_what_it_needs(self) -> Self:
        given = self._given(("frozen_experts", "frozen_coverage"))
        if self.variant != "frozen-kept" and given:
            raise ValueError(
                f"variant={self.variant!r} has no use for {_listed(given)}; remove that, or set "
                "variant to 'frozen-kept'"
            )
        if self.variant == "frozen-kept" and self.selection is None and len(given) != 1:
            raise ValueError(
                "variant='frozen-kept' needs one of frozen_experts and frozen_coverage, not "
                f"{_listed(given)}; set how many experts are kept, or what share they cover"
            )
        if self.variant == "masked" and self.hold != "weights" and self.lora is None:
            raise ValueError(
                f"hold={self.hold!r} has no use with variant='masked', which holds no experts but "
                "the trained ones; set variant to 'natural' or 'frozen-kept', or remove hold"
            )
        return self

    @model_validator(mode="after")
    def _holds_small_what_is_not_trained(self) -> Self:
        linears = self.non_expert_modules or {"attention", "dense"} <= set(self.modules)
        if self.hold_linears != "weights" and linears and self.shared_experts:
            raise ValueError(
                f"hold_linears={self.hold_linears!r} has no use where all linear layers are "
                "trained; remove it, or train fewer of modules"
            )
        embedding = self.non_expert_modules or "embedding" in self.modules
        if self.park_embedding and embedding:
            raise ValueError(
                "park_embedding keeps the embedding off the device, where it is to be trained; "
                "remove park_embedding, or 'embedding' from modules"
            )
        return self

    @model_validator(mode="after")
    def _adapters_alone(self) -> Self:
        for name in ("shared_experts", "modules", "non_expert_modules"):
            if self.lora is not None and getattr(self, name):
                raise ValueError(
                    f"{name} trains whole weights and lora only adapters; remove {name} and name "
                    "in lora.targets what has adapters, or remove lora"
                )
        return self

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        """Those of some settings that are set."""
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


def _listed(given: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in given.items()) or "none of them"
