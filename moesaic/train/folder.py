"""`RunFolder`: where a run keeps what, and whether it may go on there."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moesaic.checkpoint.atomic import PARTIAL, remove_partials
from moesaic.config.train import TrainConfig
from moesaic.errors import ConfigError, TrainingError
from moesaic.runlog import read_run
from moesaic.train.state import read_counts, saved_states

_FREE = (
    "folder",
    "checkpoint",
    "evaluation",
    "logging",
    "card",
    "optimizer.on_non_finite",
    "optimizer.most_skipped",
    "optimizer.offload",
    "esft.sign_with",
)
"""Settings that change nothing about the steps: a run may go on with others."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """The parts of a run's folder."""

    path: Path

    @property
    def record(self) -> Path:
        """What happened, one JSON object per line."""
        return self.path / "record.jsonl"

    @property
    def checkpoints(self) -> Path:
        """What the run can go on from."""
        return self.path / "checkpoints"

    @property
    def tokenizer(self) -> Path:
        """The tokenizer it uses."""
        return self.path / "tokenizer"

    @property
    def model(self) -> Path:
        """The final model, in the published layout."""
        return self.path / "model"

    @property
    def tensorboard(self) -> Path:
        """TensorBoard files."""
        return self.path / "tensorboard"

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other processes from running here at the same time.

        Raises:
            TrainingError: if one does already.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            raise TrainingError(
                f"{self.path}: another process trains here; wait for it, or choose another folder"
            ) from None
        try:
            self._remove_unfinished()
            yield
        finally:
            os.close(handle)

    def _remove_unfinished(self) -> None:
        """Remove what processes that were killed were writing, or removing, here."""
        for place in (self.path, self.checkpoints):
            for left in place.glob(f"*{PARTIAL}*"):
                remove_partials(left.with_name(left.name.partition(PARTIAL)[0]))

    def to_resume(self, config: TrainConfig) -> Path | None:
        """The latest complete checkpoint; None where there is none yet.

        Raises:
            ConfigError: if the run here has other settings; names those that differ.
        """
        saved = saved_states(self.checkpoints)
        before = read_counts(saved[-1])["config"] if saved else self._recorded()
        if before is not None:
            differing = sorted(_differences(before, config.model_dump(mode="json")))
            if differing:
                raise ConfigError(
                    f"{self.path} holds a run with other settings: {'; '.join(differing)}. Change "
                    "them back to continue it, or choose another folder for a new run"
                )
        return saved[-1] if saved else None

    def _recorded(self) -> dict[str, Any] | None:
        has_record = self.record.exists() and b"\n" in self.record.read_bytes()
        return read_run(self.record).start["config"] if has_record else None


def _differences(before: Any, now: Any, key: str = "") -> Iterator[str]:
    """``key: old, now new`` of every setting that differs."""
    if key in _FREE:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for name in before.keys() | now.keys():
            inner = f"{key}.{name}" if key else name
            yield from _differences(before.get(name), now.get(name), inner)
    elif before != now:
        yield f"{key} was {before!r} and is {now!r}"
