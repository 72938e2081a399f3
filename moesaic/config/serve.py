"""`ServeConfig`: how many requests a model answers at once, and what it refuses."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from moesaic.config.chat import TemplateName
from moesaic.config.infer import Speculate
from moesaic.config.memory import Memory
from moesaic.config.settings import Settings

Key = Annotated[str, Field(min_length=1, pattern=r"^[!-~]+$")]
"""What a header can carry."""


class ServeConfig(Settings):
    """How a model is held, how many requests it answers at once, and what it refuses."""

    cache_tokens: PositiveInt = 16384
    """Positions that all requests together may have cached; memory is their bytes."""
    max_running: PositiveInt = 32
    """Requests that are answered at the same time; others wait."""
    max_queue: NonNegativeInt = 256
    """Requests that may wait; further ones are refused."""
    prefill_tokens: PositiveInt = 256
    """Tokens of prompts that are read between two tokens of the running answers: fewer keep answers
    flowing evenly, more begin new ones sooner."""
    deterministic: bool = False
    """Whether a request's numbers are the same to the last bit whatever else is asked. Sequences
    then go through the model one by one, prompts are read anew, and a request waits for all the
    room it could need."""
    speculate: Speculate = "auto"
    """Whether the model's prediction module, if it has one, drafts tokens, which the model then
    checks together with the next: always, never, or as long as that is measured to be faster, by
    the number of sequences in a pass. No token is another for it. With ``deterministic`` time
    decides nothing, and ``auto`` makes no drafts."""
    chat_template: TemplateName | None = None
    """How conversations are written; None follows the tokenizer's own template."""
    timeout_s: PositiveFloat = 600.0
    """Seconds from a request's arrival after which it is given up."""
    arrival_s: PositiveFloat = 30.0
    """Seconds in which a request has to begin on an open connection, and again those in which the
    rest of it has to be here."""
    unread_s: PositiveFloat = 60.0
    """Seconds after which a client that takes nothing of its answer is given up."""
    closing_s: NonNegativeFloat = 30.0
    """Seconds that running requests have to end when the server is stopped."""
    max_new_tokens: PositiveInt = 512
    """Tokens of an answer where the request does not say how many."""
    max_choices: PositiveInt = 16
    """Answers that one request may ask for."""
    max_body_bytes: PositiveInt = 4_000_000
    """Bytes of a request that are read."""
    api_keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    """Keys that are let in, as ``Authorization: Bearer KEY``; none lets everybody in."""
    admin_keys: Annotated[tuple[Key, ...], Field(strict=False)] = ()
    """Keys that may load and unload shards while the server runs, and ask for answers; without
    any nobody may."""
    shards_folder: str | None = None
    """Where shards may be loaded from while the server runs: folders in this one."""
    spare_experts: NonNegativeInt = 0
    """Experts of each layer for which there is room besides those of the shards given at the
    start."""
    trusted: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """PEM files of public keys; with some, only shards signed with one of them are loaded."""
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights, products and caches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""
    form: Literal["weights", "lossless", "int8", "int4"] = "weights"
    """How matrices are held on a CPU: weights as they are stored; lossless the same bfloat16
    numbers in 12 bits each, which takes less memory, and less time where reading it decides; int8
    or int4 in integers with a scale per group."""
    memory: Memory | None = None
    """Most bytes of weights, as 8GiB: experts that do not fit are read when they are chosen. Those
    of shards have their room in it; what else shards change comes on top. None holds all."""

    @model_validator(mode="after")
    def _shards_come_from_somewhere(self) -> Self:
        if bool(self.admin_keys) != (self.shards_folder is not None):
            raise ValueError(
                "admin_keys say who may load shards and shards_folder from where; set both, or none"
            )
        if self.admin_keys and not self.spare_experts:
            raise ValueError(
                "admin_keys let shards be loaded and there is room for none; set spare_experts to "
                "the most experts of a layer that they train together"
            )
        return self
