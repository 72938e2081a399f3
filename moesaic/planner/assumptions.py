"""`Assumptions`: what a plan takes for granted, changed with ``--set``."""

from typing import Annotated

from pydantic import Field, PositiveFloat, PositiveInt

from moesaic.config.esft import HoldLinears
from moesaic.config.lora import LoraConfig
from moesaic.config.model import ModelConfig
from moesaic.config.settings import Settings
from moesaic.errors import ConfigError
from moesaic.planner.precision import PRECISIONS, Gradients, Precision, PrecisionName, States

_USUAL_LENGTH = 4096


class Assumptions(Settings):
    """How a model is trained and served, as far as its numbers depend on it."""

    precision: PrecisionName = "bfloat16"
    """What training holds: weights, gradients and AdamW's states in bfloat16; float32 states; mixed
    (float32 weights, bfloat16 products); or all in float32."""
    states: States = "weights"
    """AdamW's moments in another form: ``float32``, ``bfloat16``, or ``int8``, 8 bits and a share
    of a scale; ``weights`` takes what `precision` says."""
    gradients: Gradients = "weights"
    """``float32`` adds gradients up in float32; ``weights`` takes what `precision` says."""
    offload: bool = False
    """Whether the moments lie in the memory of the CPU."""
    hold_linears: HoldLinears = "weights"
    """How a slice holds linear layers that are not trained, as in a run file."""
    park_embedding: bool = False
    """Whether a slice keeps its embedding in the memory of the CPU."""
    lora: LoraConfig | None = None
    """Adapters of the variants with LoRA; None takes the defaults of a run file, as far as the
    model has such parts."""
    batch: PositiveInt = 1
    """Sequences in one training pass."""
    passes: PositiveInt = 1
    """Passes whose gradients are added up before a step."""
    sequence: PositiveInt | None = None
    """Tokens in each; None for 4,096, or as many as the model can take."""
    recompute: bool = False
    """Whether training keeps only the layers' inputs and computes the rest again."""
    sequences: PositiveInt = 1
    """Sequences served together."""
    context: PositiveInt | None = None
    """Tokens each of them has in the cache; None as for `sequence`."""
    mfu: Annotated[float, Field(gt=0, le=1)] = 0.3
    """Share of a device's peak that training makes use of."""
    tokens_per_second: PositiveFloat | None = None
    """A measured training rate; None estimates one from `mfu`."""
    tokens: PositiveInt = 1_000_000_000
    """Tokens of the training run that hours are given for."""
    round_s: PositiveFloat = 6288.0
    """Seconds in a round of training between merges: 524 blocks of 12 seconds."""

    def formats(self) -> Precision:
        """`precision`, `states` and `gradients` as bytes per value."""
        return PRECISIONS[self.precision].changed(self.states, self.gradients)

    def lengths(self, config: ModelConfig) -> tuple[int, int]:
        """`sequence` and `context`, with the model's in place of None.

        Raises:
            ConfigError: if one is longer than the model can take.
        """
        longest = config.max_position_embeddings
        for name in ("sequence", "context"):
            if (getattr(self, name) or 0) > longest:
                raise ConfigError(
                    f"{name}={getattr(self, name)} is longer than the model can take; "
                    f"max_position_embeddings={longest}"
                )
        usual = min(_USUAL_LENGTH, longest)
        return self.sequence or usual, self.context or usual
