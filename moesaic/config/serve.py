"""`ServeConfig`: how many requests a model answers at once, and what it refuses."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

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
    timeout_s: PositiveFloat = 600.0
    """Seconds from a request's arrival after which it is given up."""
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
    dtype: Literal["float32", "bfloat16", "float16"] = "bfloat16"
    """Of weights, products and caches."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""
    form: Literal["weights", "int8", "int4"] = "weights"
    """How matrices are held on a CPU: as they are, or in integers with a scale per group."""
