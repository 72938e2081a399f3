"""`TextStream`: tokens in, text out as soon as it is certain; `Written`: where a text ends."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Self

from moesaic.config.infer import GenerateConfig
from moesaic.config.model import ModelConfig
from moesaic.data.tokenizer import Tokenizer
from moesaic.infer.grammar import Course, Grammar

Ending = Literal["eos", "stop", "length", "complete"]
"""Why a text ends: a token that ends texts, a stop text, as many tokens as were allowed, or
nothing that may follow, by its grammar or since it is only read."""

_REPLACEMENT = "\ufffd"
"""What the bytes of an unfinished character decode to."""


class TextStream:
    """The text of one sequence, token by token.

    A character comes out when its last byte is there, and nothing of a stop text ever does. The
    pieces joined are the text of all tokens, up to the stop.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self.stopped = False
        """Whether a stop text was reached; nothing comes out afterwards."""
        self._tokenizer, self._stop = tokenizer, tuple(stop)
        self._ids: list[int] = []
        self._start = self._shown = 0
        self._held = ""

    def push(self, token: int) -> str:
        """Add a token; returns the text that became certain, often none."""
        self._ids.append(token)
        text = self._decoded()
        if text.endswith(_REPLACEMENT):
            return ""
        return self._release(text, final=False)

    def finish(self) -> str:
        """The text that was held back, when no token follows."""
        return self._release(self._decoded(), final=True)

    def _decoded(self) -> str:
        """Text of the tokens that have not come out; decoded with the ones before, since a
        tokenizer may treat the first token differently."""
        before = self._tokenizer.decode(self._ids[self._start : self._shown])
        return self._tokenizer.decode(self._ids[self._start :])[len(before) :]

    def _release(self, text: str, final: bool) -> str:
        """Take ``text`` as read; returns what of it and of the text held can come out."""
        if text:
            self._start, self._shown = self._shown, len(self._ids)
        held, self._held = ("" if self.stopped else self._held + text), ""
        found = [place for place in map(held.find, self._stop) if place >= 0]
        if found:
            self.stopped = True
            return held[: min(found)]
        if not final:
            kept = max((_overlap(held, stop) for stop in self._stop), default=0)
            held, self._held = held[: len(held) - kept], held[len(held) - kept :]
        return held


@dataclass(slots=True)
class Written:
    """One text while it is written."""

    stream: TextStream | None
    ends: frozenset[int]
    """Tokens that end it."""
    room: int
    """Tokens that may still be drawn."""
    course: Course | None = None
    """Where it is in the grammar that it follows."""
    ending: Ending | None = None

    @classmethod
    def begin(
        cls,
        model: ModelConfig,
        tokenizer: Tokenizer | None,
        config: GenerateConfig,
        grammar: Grammar | None = None,
    ) -> Self:
        """A text that nothing was written of yet; without a tokenizer there are only its tokens."""
        further = tokenizer.eos_ids if tokenizer else ()
        ends = frozenset((*model.eos_token_ids, *further))
        stream = TextStream(tokenizer, config.stop) if tokenizer else None
        return cls(stream, ends, config.max_new_tokens, grammar.begin() if grammar else None)

    def add(self, token: int) -> str:
        """Take a token and see whether it is the last; returns the text that is certain now."""
        self.room -= 1
        certain = self.stream.push(token) if self.stream else ""
        if self.course:
            self.course.take(token)
        if self.stream and self.stream.stopped:
            self.ending = "stop"
        elif token in self.ends:
            self.ending = "eos"
        elif self.course and self.course.is_complete:
            self.ending = "complete"
        elif not self.room:
            self.ending = "length"
        if self.ending and self.stream:
            certain += self.stream.finish()
        return certain


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of ``text`` with which ``stop`` could begin."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
