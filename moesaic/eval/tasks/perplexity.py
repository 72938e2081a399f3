"""Perplexity and bits per byte of any text: how well a model predicts it.

Words and bytes are those of the text itself, so these numbers compare models whatever their
tokenizers; nats per token compares only models with the same one. Words are what stands between
spaces: of Chinese and other scripts without them take the bytes.

Source: the words, the bytes and the three metrics over them as in lm-evaluation-harness (MIT), task
wikitext, version 2, without its changes to the spaces of WikiText.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Self

from moesaic.config.data import HELD_OUT_SHARE, SourceConfig
from moesaic.data.sources import CORPUS_PREFIX, Source
from moesaic.errors import ConfigError, DataError
from moesaic.eval.requests import Answer, Rolling, RollingAnswer
from moesaic.eval.task import Item, Judgement, Metric
from moesaic.eval.tasks.options import Options

TASKS = ("perplexity",)

_VERSION = 1
_METRICS = (
    Metric("bits_per_byte", is_higher_better=False, aggregate="bits_per_byte"),
    Metric("byte_perplexity", is_higher_better=False, aggregate="weighted_perplexity"),
    Metric("word_perplexity", is_higher_better=False, aggregate="weighted_perplexity"),
    Metric("nats_per_token", is_higher_better=False, aggregate="nats_per_unit"),
)
_SHOWN = 200


@dataclass(frozen=True, slots=True)
class PerplexityTask:
    """Documents, each predicted from its first token to its last."""

    items: Sequence[Item]
    """Each has a ``text`` and ``where`` it stands."""
    description: Mapping[str, Any]
    name: str = "perplexity"
    metrics: Sequence[Metric] = _METRICS

    def named(self) -> Self:
        """The same by a name that tells it from those of other texts: ``perplexity_english``."""
        text = Path(str(self.description["data"]).removeprefix(CORPUS_PREFIX)).name.split(".")[0]
        return replace(self, name=f"{self.name}_{text}")

    def group(self, item: Item) -> str | None:
        """No parts."""
        return None

    def requests(self, item: Item) -> Sequence[Rolling]:
        """How probable is the document?"""
        return [Rolling(item["text"])]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        """The document's log-probability, to be spread over its words, bytes and tokens."""
        [answer] = answers
        if not isinstance(answer, RollingAnswer):
            raise TypeError(f"{answer} does not answer a Rolling request")
        text = item["text"]
        units = {
            "bits_per_byte": len(text.encode()),
            "byte_perplexity": len(text.encode()),
            "word_perplexity": len(re.split(r"\s+", text)),
            "nats_per_token": answer.tokens,
        }
        nats = -answer.log_probability
        return Judgement(
            {name: (answer.log_probability, count) for name, count in units.items()},
            answer=f"{nats:.4f} nats over {answer.tokens} tokens",
            target=text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…",
        )


def find_task(name: str, options: Options) -> PerplexityTask:
    """``perplexity`` over the documents of a source: a file, a pattern or ``corpus:NAME``.

    Of the shipped corpus only the held-out documents are read, as in a run with default settings.

    Raises:
        ConfigError: if examples are asked for.
        DataError: if the source cannot be read or has no document.
    """
    if options.shots:
        raise ConfigError(f"shots={options.shots}: perplexity has no examples; leave shots out")
    path = str(options.data)
    split = "held_out" if path.startswith(CORPUS_PREFIX) else "all"
    source = Source(SourceConfig(path=path, split=split), HELD_OUT_SHARE)
    items = list(islice(_documents(source), options.limit))
    if not items:
        raise DataError(f"{path} has no document with text; name another source")
    return PerplexityTask(
        items, {"version": _VERSION, "data": path, "split": split, "digest": source.digest}
    )


def _documents(source: Source) -> Iterator[Item]:
    for document, _ in source.read():
        if document.content.strip():
            yield {"text": document.content, "where": document.where}
