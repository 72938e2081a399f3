"""Answers to read: some right, some wrong, the same ones every time."""

from collections.abc import Sequence
from typing import Any

from moesaic.report.blocks import Block, Reading, Readings, Section, section
from moesaic.report.forms import Sample
from moesaic.report.sources import Sources
from moesaic.report.words import shortened

_EACH = 4
"""Right ones of a task, and as many wrong ones."""
_MOST_TASKS = 12
_ASKED, _ANSWERED = 1200, 1200
"""Characters of a text that are shown."""


def samples(sources: Sources) -> Section | None:
    """Answers of every evaluation."""
    blocks: list[Block | None] = []
    for evaluation in sources.judged:
        for task, found in evaluation.samples.items():
            if found and len(blocks) < _MOST_TASKS:
                metric = next(iter(evaluation.results.tasks[task].metrics))
                title = f"{task}, {evaluation.name}" if len(sources.judged) > 1 else task
                blocks.append(Readings(title, _chosen(found, metric)))
    return section("samples", "Samples to read", blocks)


def _chosen(found: Sequence[Sample], metric: str) -> list[Reading]:
    """Wrong answers first, which say more, each kind evenly spread over the items."""
    judged = [(sample, _is_right(sample, metric)) for sample in found]
    kinds = ([one for one in judged if one[1] is kind] for kind in (False, True, None))
    return [
        _reading(sample, is_right) for kind in kinds for sample, is_right in _spread(kind, _EACH)
    ]


def _spread(found: Sequence[Any], n: int) -> list[Any]:
    if len(found) <= n:
        return list(found)
    return [found[place * len(found) // n] for place in range(n)]


def _is_right(sample: Sample, metric: str) -> bool | None:
    value = sample.judgement.values.get(metric)
    return None if isinstance(value, list) or value not in (0, 1) else bool(value)


def _reading(sample: Sample, is_right: bool | None) -> Reading:
    group = f", {sample.group}" if sample.group else ""
    return Reading(
        title=f"item {sample.item}{group}",
        is_right=is_right,
        asked=_asked(sample),
        answered=shortened(sample.judgement.answer, _ANSWERED),
        target="" if is_right is None else shortened(sample.judgement.target, _ANSWERED),
    )


def _asked(sample: Sample) -> str:
    """The text that came before the answer, or the text that was scored."""
    if not sample.requests:
        return ""
    first = sample.requests[0]
    named = (first.get(key) for key in ("prompt", "context", "text"))
    asked = next((str(text) for text in named if text), "")
    choices = [str(one["continuation"]) for one in sample.requests if "continuation" in one]
    return "\n".join([_shortened(asked), *(f"  · {choice.strip()}" for choice in choices)])


def _shortened(asked: str) -> str:
    """The end of a prompt, where the question stands."""
    return asked if len(asked) <= _ASKED else f"[…] {asked[-_ASKED:]}"
