"""`ask`: questions of one split, each behind examples drawn from another."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from moesaic.eval.task import Item
from moesaic.eval.tasks.files import Split, load
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import draw_examples


@dataclass(frozen=True, slots=True)
class Asked:
    """What a task asks about."""

    items: Sequence[Item]
    pool: Sequence[Item]
    """What the examples of items are taken from."""
    description: dict[str, Any]
    """Of the task, as JSON values."""


def ask(
    options: Options,
    test: Split,
    train: Split,
    version: int,
    shots: int = 0,
    leaves_out_question: bool = False,
) -> Asked:
    """Read the questions and, if examples are shown, draw them.

    Args:
        options: how the task is asked for.
        test: the questions.
        train: the examples; not looked for if none are shown.
        version: of the task in lm-evaluation-harness.
        shots: examples before each question, if the options do not say.
        leaves_out_question: see `draw_examples`.

    Raises:
        DataError: if the data is not there or not readable.
    """
    shots = shots if options.shots is None else options.shots
    questions = load(test, options.data)
    items = options.first(questions.items)
    description = {"version": version, "shots": shots, "data": {"test": questions.origin}}
    if not shots:
        return Asked(items, (), description)
    examples = load(train, options.data)
    description |= {
        "seed": options.seed,
        "data": {"test": questions.origin, "train": examples.origin},
    }
    drawn = draw_examples(items, examples.items, shots, options.seed, leaves_out_question)
    return Asked(drawn, examples.items, description)
