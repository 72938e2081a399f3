"""`GenerationTask`: is what a model writes, or what is found in it, the right answer?"""

import re
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.eval.requests import Answer, Generation, GenerationAnswer
from moesaic.eval.task import Item, Judgement, Metric
from moesaic.eval.tasks.prompts import Prompts

NOTHING_FOUND = "[invalid]"
"""What a filter gives if its pattern is nowhere; right for no item."""
ENDS_OF_TURN = ("</s>", "<|im_end|>")
"""Texts by which other models end; the harness stops at them in these tasks."""
MAX_NEW_TOKENS = 256
"""The harness's limit where a task names none."""
_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Filter:
    """Finds an answer in what a model wrote."""

    name: str
    pattern: str | None
    """None takes all of it, without the white space around."""
    take: int = 0
    """Which match counts: 0 the first, -1 the last."""

    def find(self, text: str) -> str:
        """The answer: of a pattern with groups the first group that is not empty."""
        if self.pattern is None:
            return text.strip()
        matches = re.findall(self.pattern, text)
        if not matches:
            return NOTHING_FOUND
        match = matches[self.take]
        if isinstance(match, tuple):
            match = next((group for group in match if group), NOTHING_FOUND)
        return match.strip()


FLEXIBLE_EXTRACT = Filter("flexible-extract", r"(-?[$0-9.,]{2,})|(-?[0-9]+)", take=-1)
"""The last thing that looks like a number."""


@dataclass(frozen=True, slots=True)
class PlainText:
    """Brings answers into the form in which they are compared: lower case, less what is ignored."""

    ignored: tuple[str, ...] = ()
    """Patterns that are taken out, one after the other."""
    has_punctuation: bool = True

    def __call__(self, text: str) -> str:
        """A text in that form."""
        for pattern in self.ignored:
            text = re.sub(pattern, "", text)
        text = text.lower()
        return text if self.has_punctuation else text.translate(_PUNCTUATION)


@dataclass(frozen=True, slots=True)
class GenerationTask:
    """A task of items with an ``answer`` that a model is to write."""

    name: str
    items: Sequence[Item]
    prompts: Prompts
    filters: Sequence[Filter]
    stop: tuple[str, ...]
    normalise: Callable[[str], str]
    """Two answers are the same if this makes the same of them."""
    description: Mapping[str, Any]
    group_by: str | None = None
    """The field that says which part of the task an item belongs to."""

    @property
    def metrics(self) -> Sequence[Metric]:
        """Exact match, by every filter."""
        return [Metric(_metric(found_by)) for found_by in self.filters]

    def group(self, item: Item) -> str | None:
        """The part of the task an item belongs to."""
        return item[self.group_by] if self.group_by else None

    def requests(self, item: Item) -> Sequence[Generation]:
        """What does the model write behind the question?"""
        return [Generation(self.prompts.text(item), self.stop, MAX_NEW_TOKENS)]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        """Whether what each filter finds is the answer."""
        text = "".join(answer.text for answer in answers if isinstance(answer, GenerationAnswer))
        target = self.normalise(item["answer"])
        found = {each.name: each.find(text) for each in self.filters}
        values = {
            _metric(each): float(self.normalise(found[each.name]) == target)
            for each in self.filters
        }
        said = next((f for f in found.values() if f != NOTHING_FOUND), NOTHING_FOUND)
        return Judgement(values, answer=said, target=target)


def _metric(found_by: Filter) -> str:
    return f"exact_match,{found_by.name}"
