"""`TrainConfig`: everything a training run does, as a run file (TOML) writes it."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BeforeValidator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from moesaic.config.balance import BalanceConfig
from moesaic.config.card import CardConfig
from moesaic.config.data import DataConfig, SourceConfig
from moesaic.config.esft import EsftConfig
from moesaic.config.model import ModelConfig
from moesaic.config.presets import get_preset
from moesaic.config.published import parse_config
from moesaic.config.schedule import Curve, ScheduleConfig
from moesaic.config.settings import Settings

Precision = Literal["float32", "bfloat16", "mixed", "autocast"]
Destination = Literal["tensorboard", "trackio", "wandb"]


def _read_model(value: Any) -> Any:
    """A table is a ``config.json``, or the changes to a preset it names."""
    if not isinstance(value, dict):
        return value
    if "preset" in value:
        changes = {key: part for key, part in value.items() if key != "preset"}
        preset = get_preset(str(value["preset"])).model_dump()
        return ModelConfig.parse({**preset, **changes}, "model")
    return parse_config(value, "model")


class BatchConfig(Settings):
    """Sequences of a step, and how many of them are in memory at once."""

    rows: Curve
    """Sequences per optimiser step; in between, a whole number of `micro_rows`."""
    micro_rows: PositiveInt | None = None
    """Sequences per forward and backward pass; None takes as many as the first step has."""

    @model_validator(mode="after")
    def _rows_divide(self) -> Self:
        if self.rows.start < 1 or self.rows.start % 1:
            raise ValueError(f"rows={self.rows.start:g} is no number of sequences; give 1 or more")
        if self.rows.start % self.at_once:
            raise ValueError(
                f"rows={self.rows.start:g} is not a multiple of micro_rows={self.micro_rows}; "
                "change one of them"
            )
        return self

    @property
    def at_once(self) -> int:
        """Sequences per forward and backward pass."""
        return self.micro_rows or int(self.rows.start)


class OptimizerConfig(Settings):
    """AdamW, and what is done with gradients before it."""

    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        Field(strict=False),
    ] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares."""
    eps: PositiveFloat = 1e-8
    """Added to the root of the mean square."""
    weight_decay: NonNegativeFloat = 0.1
    """Decay per step, times the learning rate; of matrices only, not of norms."""
    states: Literal["weights", "float32", "bfloat16", "int8"] = "weights"
    """Type of both running means: that of the weights; ``float32``; ``bfloat16``; or ``int8``, 8
    bits a value and one float32 scale for 256 of them."""
    stochastic_rounding: bool = False
    """Whether weights in bfloat16, and means in bfloat16 or int8, are rounded up or down at random,
    right in the mean. Rounded to the nearest, updates below half of a weight's last place are
    lost."""
    gradients: Literal["weights", "float32"] = "weights"
    """Type gradients are added up in over micro-batches: that of the weights, or ``float32``."""
    offload: bool = False
    """Whether running means lie in the memory of the CPU and visit the GPU for the update."""
    clip_norm: PositiveFloat | None = 1.0
    """Longest gradient, over all parameters together; None leaves it as it is."""
    on_non_finite: Literal["stop", "skip"] = "stop"
    """What to do when a loss or the gradient is not finite: end the run, or leave the step out."""
    most_skipped: NonNegativeInt = 10
    """Steps that ``on_non_finite = "skip"`` may leave out in a run before it ends."""


class EvaluationConfig(Settings):
    """Held-out loss while training."""

    every_steps: PositiveInt
    """Steps between evaluations; the last step is always evaluated."""
    rows: PositiveInt
    """Most rows of each domain."""
    domains: dict[str, SourceConfig]
    """Name → documents. A path alone means the held-out documents there."""

    @model_validator(mode="before")
    @classmethod
    def _paths_are_held_out(cls, data: Any) -> Any:
        if not isinstance(data, dict) or not isinstance(data.get("domains"), dict):
            return data
        domains = {
            name: {"path": value, "split": "held_out"} if isinstance(value, str) else value
            for name, value in data["domains"].items()
        }
        return {**data, "domains": domains}

    @model_validator(mode="after")
    def _are_not_trained_on(self) -> Self:
        for name, source in self.domains.items():
            if source.split == "train":
                raise ValueError(
                    f"domain {name!r} has split='train', documents that are learned; set split to "
                    "'held_out', or to 'all' for documents that no run trains on"
                )
        return self


class CheckpointConfig(Settings):
    """What is written to go on from, and at the end."""

    every_steps: PositiveInt = 100
    """Steps between checkpoints to resume from."""
    keep: PositiveInt = 2
    """How many of them stay, the latest ones."""
    export_dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Type of the weights in the final model; None for the one they were trained in."""


class LoggingConfig(Settings):
    """What is written down."""

    every_steps: PositiveInt = 1
    """Steps between lines of the record."""
    load_every_steps: PositiveInt | None = None
    """Steps between lines with every expert's load; None writes none."""
    to: Annotated[tuple[Destination, ...], Field(strict=False)] = ()
    """Where the numbers of the record go too: ``tensorboard``, to files in the run's folder;
    ``trackio``, to its database; ``wandb``, to Weights & Biases. Needs ``moesaic[track]``."""
    project: Annotated[str, Field(min_length=1)] = "moesaic"
    """What trackio and wandb file the run under."""

    @model_validator(mode="before")
    @classmethod
    def _tensorboard_has_moved(cls, data: Any) -> Any:
        if isinstance(data, dict) and "tensorboard" in data:
            raise ValueError(
                "tensorboard is no setting any more but a place to write to; replace "
                "tensorboard = true by to = ['tensorboard'], and remove tensorboard = false"
            )
        return data


class TrainConfig(Settings):
    """One run: from nothing, or from a checkpoint."""

    folder: str
    """Where the run is kept: record, checkpoints, and the final model."""
    model: Annotated[str | ModelConfig, BeforeValidator(_read_model)]
    """A preset for fresh weights; a folder to go on from its weights; or a table: the keys of a
    ``config.json``, or ``preset`` and what differs from it."""
    tokenizer: str | None = None
    """Folder or ``tokenizer.json``; None takes the one beside the weights, or for fresh weights
    trains one on the data."""
    data: DataConfig
    """What is read."""
    batch: BatchConfig
    """How much of it per step."""
    steps: PositiveInt
    """Optimiser steps."""
    schedule: ScheduleConfig
    """Learning rate."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """How gradients move the weights."""
    mtp_weight: Curve = Curve(start=0.3)
    """λ, weight of the mean loss of the prediction modules, where the model has some."""
    balance: BalanceConfig = BalanceConfig()
    """How experts are kept evenly loaded."""
    precision: Precision = "float32"
    """``float32``; ``bfloat16`` for everything, weights and optimiser states too; ``mixed`` for
    float32 weights and states with bfloat16 activations and products; ``autocast`` for torch's own
    mixture, which keeps the residual stream and norms in float32."""
    recompute: bool = False
    """Whether layers are computed again in the backward pass, to save memory."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train; ``auto`` takes a GPU if there is one."""
    seed: NonNegativeInt = 0
    """Decides fresh weights and which sequences are exempt from dropping; `data` has its own."""
    esft: EsftConfig | None = None
    """Which experts of the checkpoint in `model` to train; None trains the whole model."""
    evaluation: EvaluationConfig | None = None
    """Held-out loss while training; None evaluates nothing."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """What is saved."""
    logging: LoggingConfig = LoggingConfig()
    """What is recorded."""
    card: CardConfig = CardConfig()
    """What the final model's card says."""
