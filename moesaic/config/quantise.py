"""`QuantiseConfig`: how weights are grouped, and on how much data the result is held to them."""

from typing import Annotated, Literal

from pydantic import Field

from moesaic.config.esft import Hold
from moesaic.config.settings import Settings


class QuantiseConfig(Settings):
    """Groups of integers, and the comparison with the checkpoint that was quantised."""

    group: Literal[32, 64, 128] = 64
    """Neighbours of a row that share a scale, of integers; vLLM's kernels take these. Smaller ones
    cost 16 bits each and are closer to the weights."""
    tokens: Annotated[int, Field(ge=2)] = 8192
    """Tokens of --against-data to compare on, at least, if it has as many."""
    row: Annotated[int, Field(ge=2)] = 512
    """Tokens the models see at once; where the context is shorter, that. Errors are over rows."""
    hold: Hold = "weights"
    """How experts are held meanwhile; with ``disk`` a model is compared that is larger than the
    memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""
