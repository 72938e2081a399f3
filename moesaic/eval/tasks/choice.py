"""`ChoiceTask`: which of several answers does a model find most probable?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.eval.items import Row
from moesaic.eval.requests import Answer, Likelihood, LikelihoodAnswer
from moesaic.eval.task import Item, Judgement, Metric
from moesaic.eval.tasks.drawn import ask
from moesaic.eval.tasks.files import Split
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts

ACC = Metric("acc")
ACC_NORM = Metric("acc_norm")
"""As `ACC`, with every log-probability divided by the answer's length in characters."""


@dataclass(frozen=True, slots=True)
class ChoiceTask:
    """A task of items with ``choices`` and ``gold``, the place of the right one."""

    name: str
    items: Sequence[Item]
    prompts: Prompts
    metrics: Sequence[Metric]
    """`ACC`, or both."""
    description: Mapping[str, Any]
    group_by: str | None = None
    """The field that says which part of the task an item belongs to."""

    def group(self, item: Item) -> str | None:
        """The part of the task an item belongs to."""
        return item[self.group_by] if self.group_by else None

    def requests(self, item: Item) -> Sequence[Likelihood]:
        """How probable is each choice behind the question?"""
        context = self.prompts.text(item)
        return [Likelihood(context, f" {choice}") for choice in item["choices"]]

    def judge(self, item: Item, answers: Sequence[Answer]) -> Judgement:
        """Whether the right choice is the most probable; of equals the first counts."""
        choices, gold = item["choices"], item["gold"]
        log_p = [a.log_probability for a in answers if isinstance(a, LikelihoodAnswer)]
        per_character = [p / max(len(c), 1) for p, c in zip(log_p, choices, strict=True)]
        taken = {"acc": _first_of_most(log_p), "acc_norm": _first_of_most(per_character)}
        values = {metric.name: float(taken[metric.name] == gold) for metric in self.metrics}
        return Judgement(values, answer=choices[taken["acc"]], target=choices[gold])


def drawn_choice_task(
    name: str,
    options: Options,
    test: Split,
    train: Split,
    metrics: Sequence[Metric] = (ACC, ACC_NORM),
    version: int = 1,
    leaves_out_question: bool = False,
) -> ChoiceTask:
    """A task that shows no examples unless asked, and then draws them from another split.

    Args:
        name: of the task.
        options: how it is asked for.
        test: the questions.
        train: the examples.
        metrics: what it gives.
        version: of the task in lm-evaluation-harness.
        leaves_out_question: see `draw_examples`.

    Raises:
        DataError: if the data is not there or not readable.
    """
    asked = ask(options, test, train, version, leaves_out_question=leaves_out_question)
    return ChoiceTask(name, asked.items, Prompts(asked.pool), metrics, asked.description)


def choice_item(prompt: str, choices: Sequence[str], gold: int) -> dict[str, Any]:
    """An item that serves as question and as example."""
    return {"prompt": prompt, "choices": list(choices), "gold": gold, "answer": choices[gold]}


def labelled_choices(row: Row) -> tuple[list[str], int]:
    """Choices as the hub's ARC and OpenBookQA have them, and the place of the right one."""
    part = row.part("choices")
    return part.texts("text"), row.one_of("answerKey", part.texts("label"))


def indexed_choices(
    row: Row, names: tuple[str, str] = ("choices", "gold")
) -> tuple[list[str], int]:
    """A list of choices, and the place of the right one, as two fields."""
    choices = row.texts(names[0])
    return choices, row.index(names[1], len(choices))


def _first_of_most(values: Sequence[float]) -> int:
    return max(range(len(values)), key=values.__getitem__)
