"""`EvalConfig`: how a model is asked, and what of a data set it is asked."""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from moesaic.config.esft import Hold
from moesaic.config.settings import Settings

TOKENS_AT_ONCE = {"cpu": 4096, "cuda": 16384}
"""Tokens of a batch unless `batch_tokens` says otherwise."""


class EvalConfig(Settings):
    """What of a data set is asked, how the model is loaded, and how much it is fed at once."""

    shots: NonNegativeInt | None = None
    """Worked examples before each question; None takes as many as are usual for the task."""
    limit: PositiveInt | None = None
    """Ask only this many items, the first ones; None asks all."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 1234
    """Draws the worked examples, and tokens where a task wants a temperature; the default is that
    of lm-evaluation-harness."""
    chat: bool = False
    """Whether a prompt to be continued is put to the model as the user's turn of its chat template;
    likelihoods are asked without."""
    allow_code: bool = False
    """Whether programs that the model writes may be run on this machine, which tasks of code
    need."""
    max_length: Annotated[int, Field(ge=2)] | None = None
    """Tokens the model may see at once: of a longer prompt the beginning is left out, and longer
    texts are read in windows. None takes the model's max_position_embeddings."""
    max_new_tokens: PositiveInt | None = None
    """Most tokens of an answer; None takes what is usual for the task."""
    batch_tokens: PositiveInt | None = None
    """Tokens fed at once, padding included; None takes 4096 on a CPU and 16384 on a GPU. It changes
    time and memory, scores only by rounding."""
    dtype: Literal["float32", "bfloat16", "float16", "float64"] = "float32"
    """Of weights and products."""
    hold: Hold = "weights"
    """How experts are held; with ``disk`` a model is run that is larger than the memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """``auto`` takes a GPU if there is one."""
