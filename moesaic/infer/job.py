"""`Job`: what is asked of a `BatchEngine`, and `Stream`: what comes back, as it comes.

Letters: D hidden.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue

from torch import Tensor

from moesaic.config.infer import GenerateConfig
from moesaic.errors import RequestError
from moesaic.infer.grammar import Grammar
from moesaic.infer.text import Ending
from moesaic.infer.variant import Variant

MOST_TOP_LOGPROBS = 20
"""Likeliest tokens that are told at most."""


class BusyError(RequestError):
    """Too much is waiting, or no more is taken: the same request may be served later."""


class LateError(RequestError):
    """A request took longer than it may."""


@dataclass(frozen=True, slots=True)
class Job:
    """One text to be continued."""

    prompt_ids: tuple[int, ...]
    settings: GenerateConfig = field(default_factory=GenerateConfig)
    priority: int = 0
    """Lower ones go first, equal ones in the order they came."""
    top_logprobs: int | None = None
    """Of each token, of how many likeliest tokens to tell the log-probability; 0 tells that of the
    token alone, None nothing."""
    echoes: bool = False
    """Whether the tokens of the prompt come first, each with what `top_logprobs` asks for; the
    prompt is then computed anew."""
    grammar: Grammar | None = None
    """What the text has to be; None for any."""
    embeds: bool = False
    """Whether nothing is written: the prompt is read, and the one piece is its embedding."""
    variant: Variant | None = None
    """Whose weights continue it; None for those of the engine's own decoder."""

    def __post_init__(self) -> None:
        most = MOST_TOP_LOGPROBS
        if self.top_logprobs is not None and not 0 <= self.top_logprobs <= most:
            raise RequestError(
                f"top_logprobs={self.top_logprobs} is not from 0 to {most}; ask for fewer"
            )


@dataclass(frozen=True, slots=True)
class Piece:
    """What one new token adds to a text."""

    token: int
    text: str
    """The text that is certain now; empty inside a character, or without a tokenizer."""
    ending: Ending | None = None
    """Why this is the last piece; None while more follow."""
    logprob: float | None = None
    """Natural logarithm of the probability that the model gives the token, before temperature,
    top-k and top-p."""
    top_logprobs: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens with theirs."""
    of_prompt: bool = False
    """Whether the token was given, not drawn; the first one has no probability."""
    embedding_D: Tensor | None = None
    """Of a prompt that is embedded: the mean of its normed hidden states, divided by its length;
    float32."""


@dataclass(slots=True)
class Stream:
    """Pieces of one text. Any thread may read it or cancel it; one thread reads."""

    job: Job
    wake: Callable[[], object] | None = None
    """Called after something was put, by the thread that put it: for readers that cannot wait."""
    cached_tokens: int = 0
    """Tokens of the prompt that another request had computed before."""
    cancelled: bool = False
    _pieces: SimpleQueue[Piece | Exception | None] = field(default_factory=SimpleQueue)
    _ended: bool = False

    def __iter__(self) -> Iterator[Piece]:
        """Pieces as they come, until the last, or until the request is cancelled.

        Raises:
            RequestError: if the request could not be finished.
        """
        while not self._ended:
            piece = self._taken(self._pieces.get())
            if piece is not None:
                yield piece

    def ready(self) -> list[Piece]:
        """The pieces that are there, without waiting; see `ended`.

        Raises:
            RequestError: if the request could not be finished.
        """
        pieces: list[Piece] = []
        while not self._ended:
            try:
                item = self._pieces.get_nowait()
            except Empty:
                break
            if isinstance(item, Exception) and pieces:
                self.put(item)  # raised the next time; who waits has to be woken again for it
                break
            piece = self._taken(item)
            pieces += [] if piece is None else [piece]
        return pieces

    @property
    def ended(self) -> bool:
        """Whether everything was read."""
        return self._ended

    def cancel(self) -> None:
        """Ask for no more; what the request holds is given back before the next step."""
        self.cancelled = True

    def put(self, item: Piece | Exception | None) -> None:
        """Hand over a piece, an error, or None for the end after cancelling."""
        self._pieces.put(item)
        if self.wake is not None:
            with suppress(RuntimeError):  # the event loop of a reader that went away is closed
                self.wake()

    def _taken(self, item: Piece | Exception | None) -> Piece | None:
        if not isinstance(item, Piece) or item.ending is not None:
            self._ended = True
        if isinstance(item, Exception):
            raise item
        return item
