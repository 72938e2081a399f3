"""What a person sees of an evaluation while it goes: a bar on a terminal, lines elsewhere."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from moesaic.units import duration

_SECONDS_BETWEEN_LINES = 10.0


class Display(Protocol):
    """Where an evaluation shows itself."""

    def begin(self, task: str, done: int, items: int) -> None:
        """A task begins, with some of its items answered before."""
        ...

    def answered(self) -> None:
        """One more item is."""
        ...

    def say(self, text: str) -> None:
        """Something worth a line of its own."""
        ...


class Silent:
    """Shows nothing."""

    def begin(self, task: str, done: int, items: int) -> None:
        """Nothing."""

    def answered(self) -> None:
        """Nothing."""

    def say(self, text: str) -> None:
        """Nothing."""


class Pace:
    """Items of one task, and how fast they come."""

    def __init__(self, task: str, done: int, items: int) -> None:
        self.task, self.done, self.items = task, done, items
        self._before, self._since = done, time.monotonic()

    @property
    def speed(self) -> float:
        """Items per second, of those answered now."""
        return (self.done - self._before) / max(time.monotonic() - self._since, 1e-9)

    def line(self) -> str:
        """``hellaswag 120/10042 | 22.5 items/s``."""
        width = len(str(self.items))
        return f"{self.task} {self.done:{width}d}/{self.items} | {self.speed:.1f} items/s"

    @property
    def left(self) -> str:
        """The time left at this speed."""
        ahead = self.items - self.done
        return f" | {duration(ahead / self.speed)} left" if ahead and self.speed else ""


class Lines:
    """A line every few seconds, with the time left at the speed so far."""

    def __init__(self, stream: TextIO, every_s: float = _SECONDS_BETWEEN_LINES) -> None:
        self._stream, self._every_s = stream, every_s
        self._pace = Pace("", 0, 0)
        self._shown_s = 0.0

    def begin(self, task: str, done: int, items: int) -> None:
        """Say what begins, if anything is left to do."""
        self._pace, self._shown_s = Pace(task, done, items), time.monotonic()
        if done < items:
            before = f", {done} of them answered before" if done else ""
            self.say(f"{task}: {items} items{before}")

    def answered(self) -> None:
        """Show where it stands if the last line is long ago, or this is the last item."""
        self._pace.done += 1
        now, is_last = time.monotonic(), self._pace.done == self._pace.items
        if is_last or now - self._shown_s >= self._every_s:
            self._shown_s = now
            self.say(self._pace.line() + self._pace.left)

    def say(self, text: str) -> None:
        """Print the line."""
        self._stream.write(text + "\n")
        self._stream.flush()


class Bars:
    """A progress bar per task."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._pace = Pace("", 0, 0)
        self._bar: TaskID | None = None

    def begin(self, task: str, done: int, items: int) -> None:
        """A bar for the task, in place of the last one."""
        if self._bar is not None:
            self._progress.remove_task(self._bar)
        self._pace = Pace(task, done, items)
        self._bar = self._progress.add_task(self._pace.line(), total=items, completed=done)

    def answered(self) -> None:
        """Move the bar."""
        assert self._bar is not None
        self._pace.done += 1
        self._progress.update(self._bar, advance=1, description=self._pace.line())

    def say(self, text: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(text, markup=False, highlight=False)


@contextmanager
def display(stream: TextIO) -> Iterator[Display]:
    """Bars where the stream is a terminal, lines elsewhere."""
    if not stream.isatty():
        yield Lines(stream)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=stream), transient=True) as progress:
        yield Bars(progress)
