"""What a person sees of a run while it goes: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from moesaic.units import count, duration, gb

_SECONDS_BETWEEN_LINES = 10.0
_SMOOTHING = 0.1
"""Part of the newest step in the speed that is shown."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What is shown of one step."""

    step: int
    steps: int
    loss: float
    """Of the next token alone, as held-out losses are."""
    tokens_per_s: float
    memory_bytes: int

    def line(self, speed: float) -> str:
        """``step 120/500 | loss 2.3481 | 22.5 k tok/s | 20.9 GB``."""
        width = len(str(self.steps))
        return (
            f"step {self.step:{width}d}/{self.steps} | loss {self.loss:.4f} | "
            f"{count(round(speed))} tok/s | {gb(self.memory_bytes)}"
        )


class Display(Protocol):
    """Where a run shows itself."""

    def step(self, seen: Seen) -> None:
        """A step is done."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        ...


class Silent:
    """Shows nothing."""

    def step(self, seen: Seen) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Lines:
    """A line every few seconds, with the time left at the speed so far."""

    def __init__(self, stream: TextIO, every_s: float = _SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._every_s = stream, every_s
        self._speed: float | None = None
        self._first: tuple[int, float] | None = None
        self._shown_s = float("-inf")

    def step(self, seen: Seen) -> None:
        """Show the step if the last line is long ago, or this is the last step."""
        now = time.monotonic()
        self._speed = _smooth(self._speed, seen.tokens_per_s)
        if self._first is None:
            self._first = (seen.step, now)
        if now - self._shown_s < self._every_s and seen.step < seen.steps:
            return
        self._shown_s = now
        done, elapsed = seen.step - self._first[0], now - self._first[1]
        ahead = seen.steps - seen.step
        left = f" | {duration(elapsed / done * ahead)} left" if done and ahead else ""
        self.say(seen.line(self._speed) + left)

    def say(self, text: str) -> None:
        """Print the line."""
        self._stream.write(text + "\n")
        self._stream.flush()


class Bar:
    """A progress bar."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("", total=None)
        self._speed: float | None = None

    def step(self, seen: Seen) -> None:
        """Move the bar."""
        self._speed = _smooth(self._speed, seen.tokens_per_s)
        self._progress.update(
            self._task,
            total=seen.steps,
            completed=seen.step,
            description=seen.line(self._speed),
        )

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)


@contextmanager
def display(stream: TextIO) -> Iterator[Display]:
    """A bar where the stream is a terminal, lines elsewhere."""
    if not stream.isatty():
        yield Lines(stream)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield Bar(progress)


def _smooth(before: float | None, new: float) -> float:
    return new if before is None else (1 - _SMOOTHING) * before + _SMOOTHING * new
