"""The domains that are compared: a name and where its text, or its recorded routing, lies."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from moesaic.config.data import DataConfig
from moesaic.data.batch import Batch
from moesaic.data.loader import Loader
from moesaic.data.sources import CORPUS_PREFIX
from moesaic.data.tokenizer import Tokenizer
from moesaic.errors import ConfigError
from moesaic.esft.score import first_tokens

TRACE_PREFIX = "trace:"
ROW, _BATCH = 2048, 4096
"""Tokens of a row, where the model sees as many, and of a batch."""
_BATCHES = 16
"""Batches to read at least where rows are short enough: errors are taken over batches."""


@dataclass(frozen=True, slots=True)
class Source:
    """One domain."""

    name: str
    place: str
    """A file, a pattern, ``corpus:NAME``, or ``trace:FOLDER``."""

    @property
    def trace(self) -> Path | None:
        """The folder of recorded routing; None where there is text."""
        if not self.place.startswith(TRACE_PREFIX):
            return None
        return Path(self.place.removeprefix(TRACE_PREFIX))

    def batches(self, tokenizer: Tokenizer, seq_len: int, tokens: int) -> Iterator[Batch]:
        """The first learned tokens of the text, always the same; of a corpus those held out.

        Raises:
            DataError: if there is no such file.
        """
        split = "held_out" if self.place.startswith(CORPUS_PREFIX) else "all"
        sources = [{"path": self.place, "split": split}]
        config = DataConfig.parse({"sources": sources, "seq_len": seq_len, "epochs": 1})
        rows = max(1, min(_BATCH, tokens // _BATCHES) // seq_len)
        return first_tokens(Loader(config, tokenizer, rows), tokens)


def parse_sources(texts: Sequence[str]) -> tuple[Source, ...]:
    """The domains that texts like ``english=corpus:english`` name.

    ``corpus:english`` alone names itself.

    Raises:
        ConfigError: if a text is of another form, two domains have one name, or some are recorded
            and others not.
    """
    found = tuple(_parse(text) for text in texts)
    twice = [name for name, count in Counter(source.name for source in found).items() if count > 1]
    if twice:
        raise ConfigError(f"two domains are called {twice[0]!r}; give each a name of its own")
    if len({source.trace is None for source in found}) > 1:
        raise ConfigError(
            "some domains are recorded routing (trace:) and some are text, which may not be of the "
            "same model; give only one kind"
        )
    return found


def _parse(text: str) -> Source:
    name, equals, place = text.partition("=")
    if not equals and text.startswith(CORPUS_PREFIX):
        return Source(text.removeprefix(CORPUS_PREFIX), text)
    if not (name and place):
        raise ConfigError(
            f"--data {text}: not a domain; write NAME=FILE, NAME=PATTERN, NAME=corpus:NAME or "
            "NAME=trace:FOLDER"
        )
    return Source(name, place)
