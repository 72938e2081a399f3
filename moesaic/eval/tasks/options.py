"""`Options`: how a task is asked for, whatever its data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.errors import ConfigError
from moesaic.eval.task import Item
from moesaic.eval.tasks.prompts import HARNESS_SEED


@dataclass(frozen=True, slots=True)
class Options:
    """What is left to whoever runs a task."""

    data: Path
    """Folder that holds the files of data sets."""
    limit: int | None = None
    """Only so many of the first items, of every part in a task with parts; None for all."""
    shots: int | None = None
    """Examples before each question; None for the task's own number."""
    seed: int = HARNESS_SEED
    """Of the draws of examples."""
    allow_code: bool = False
    """Whether programs that the model writes may be run on this machine."""

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            ConfigError: if one is out of range.
        """
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit={self.limit} leaves no items; give at least 1")
        if self.shots is not None and self.shots < 0:
            raise ConfigError(f"shots={self.shots} is less than 0; give 0 for no examples")

    def first(self, items: Sequence[Item]) -> Sequence[Item]:
        """The items within the limit."""
        return items[: self.limit]
