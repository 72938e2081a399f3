"""`LaunchConfig`: how another engine serves a checkpoint, besides its GPUs."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from moesaic.config.settings import Settings

Port = Annotated[int, Field(ge=1, le=65535)]


class LaunchConfig(Settings):
    """What is told to vLLM or SGLang."""

    name: str | None = None
    """What requests call the model; None is the folder's name."""
    context: PositiveInt | None = None
    """Most tokens of a prompt and its answer; None is the model's ``max_position_embeddings``."""
    attention: Literal["tensor", "data"] = "tensor"
    """How GPUs of one machine share attention. Each has some of the heads and answers come sooner,
    or each has all of them for some of the sequences and more are cached: every GPU that has a part
    of the heads caches the whole latents."""
    device: str | None = None
    """The GPUs, by a name that `moesaic plan --device` knows; None leaves memory unchecked."""
    memory_share: Annotated[float, Field(gt=0, le=1)] = 0.9
    """Share of a GPU's memory for weights and cache; the rest is for activations."""
    host: str = "127.0.0.1"
    """Address that requests come to."""
    port: Port = 8000
    """Port that requests come to."""
    first_address: str | None = None
    """Address of the first machine, as the others reach it; needed for several."""
    first_port: Port = 13345
    """Port on which the machines find each other."""
    machine: NonNegativeInt = 0
    """Which machine this is, counted from 0; it matters where the command is run."""
    placement: str | None = None
    """What ``moesaic place --out`` wrote, for SGLang."""
