"""The retention gate: what the base predicts well, the merged model must predict nearly as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.config.data import DataConfig
from moesaic.config.merge import RetainConfig
from moesaic.config.model import ModelConfig
from moesaic.config.published import read_config
from moesaic.data.loader import held_out_batches
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import DataError, ShardError
from moesaic.model.build import load_model
from moesaic.train.evaluate import HeldOut, evaluate, text_bytes
from moesaic.train.setup import choose_device

_ROW = 4096
"""Tokens of a row, and of a batch where the model's context is shorter."""


@dataclass(frozen=True, slots=True)
class Retained:
    """How well the base and the merged model predict one text."""

    data: str
    tokens: int
    """Learned tokens."""
    before: float
    """The base's loss, in nats per token."""
    after: float
    """The merged model's."""

    @property
    def rise(self) -> float:
        """How much the loss rose; negative where it fell."""
        return self.after - self.before

    def __str__(self) -> str:
        loss = f"{self.before:.4f} → {self.after:.4f}"
        return f"retained {self.data}: loss {loss} ({self.rise:+.4f})"

    def to_json(self) -> dict[str, Any]:
        """What the record of a merge says."""
        return {"tokens": self.tokens, "before": self.before, "after": self.after}


class Gate:
    """Holds a merged model against its base."""

    def __init__(self, config: RetainConfig, base: Path) -> None:
        """Read the text and measure the base.

        Raises:
            ConfigError: if the device is missing.
            DataError: if the text cannot be read.
        """
        self._config, self._device = config, choose_device(config.device)
        tokenizer, model = Tokenizer.load(base), read_config(base)
        self.held_out = {data: _read(data, config, model, tokenizer) for data in config.data}
        """Text → its rows."""
        self._before = self._losses(base)

    def judge(self, merged: Path, instead: str) -> tuple[Retained, ...]:
        """The losses of a merged checkpoint beside the base's.

        Args:
            merged: its folder.
            instead: what to do where the gate refuses, unless more is to be allowed.

        Raises:
            ShardError: if one rose by more than the bound, or is not finite.
        """
        after = self._losses(merged)
        found = tuple(
            Retained(data, tokens, self._before[data][0], loss)
            for data, (loss, tokens) in after.items()
        )
        refused = [one for one in found if not one.rise <= self._config.most_rise]
        if refused:
            raise ShardError(_refusal(refused, self._config.most_rise, instead))
        return found

    def _losses(self, folder: Path) -> dict[str, tuple[float, int]]:
        """Loss and learned tokens of every text."""
        model = load_model(folder, self._config.dtype, self._device)
        found = {data: evaluate(model, held_out) for data, held_out in self.held_out.items()}
        return {data: (one.loss, one.tokens) for data, one in found.items()}


def _read(data: str, config: RetainConfig, model: ModelConfig, tokenizer: Tokenizer) -> HeldOut:
    seq_len = min(_ROW, model.max_position_embeddings)
    split = "held_out" if data.startswith("corpus:") else "all"
    reading = DataConfig.parse(
        {"sources": [{"path": data, "split": split}], "seq_len": seq_len}, "retain"
    )
    rows = max(1, _ROW // seq_len)
    most = -(-config.tokens // (rows * seq_len))
    batches = tuple(held_out_batches(reading, tokenizer, rows, most))
    if not sum(batch.learned for batch in batches):
        raise DataError(f"{data} has no document to judge a merge by; name another in retain.data")
    return HeldOut(batches, sum(text_bytes(batch, tokenizer) for batch in batches))


def _refusal(refused: Sequence[Retained], most: float, instead: str) -> str:
    told = [
        f"the loss on {one.data} goes from {one.before:.4f} to {one.after:.4f}, up by "
        f"{one.rise:.4f} nats per token"
        for one in refused
    ]
    return (
        f"the merge is refused and nothing was written: {'; '.join(told)}, where "
        f"retain.most_rise={most:g} is allowed; {instead}, or allow more"
    )
