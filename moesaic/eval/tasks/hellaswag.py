"""HellaSwag: how does a description of an everyday event go on?

Rows in the reshaped form are asked as they stand. They differ from the hub's in one thing: the
harness begins the last piece of a context, which the reshaped form no longer marks, with a capital.

Source: Zellers et al. (arXiv 1905.07830); prompts as in lm-evaluation-harness (MIT), task
hellaswag, version 1.
"""

import re

from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.choice import ChoiceTask, choice_item, drawn_choice_task, indexed_choices
from moesaic.eval.tasks.files import Split
from moesaic.eval.tasks.options import Options

TASKS = ("hellaswag",)

_FIELDS = (
    "activity_label, ctx_a, ctx_b, endings and label; "
    "or query, endings (or choices) and label (or gold)"
)


def find_task(name: str, options: Options) -> ChoiceTask:
    """``hellaswag``, asked from its validation split: the test split's answers are secret.

    Raises:
        DataError: if the data is not there or not readable.
    """
    test = _split("validation", "hellaswag_val", "hellaswag")
    return drawn_choice_task(name, options, test, _split("train"), leaves_out_question=True)


def _split(part: str, *more: str) -> Split:
    names = (f"hellaswag_{part}", f"hellaswag/{part}", f"hellaswag/data/{part}", *more)
    return Split(f"hellaswag's {part} split", names, _FIELDS, _question)


def _question(row: Row) -> Item:
    names = (
        "endings" if row.has("endings") else "choices",
        "label" if row.has("label") else "gold",
    )
    choices, gold = indexed_choices(row, names)
    if row.has("query"):
        prompt = row.text("query")
    else:
        context = f"{row.text('ctx_a')} {row.text('ctx_b').capitalize()}"
        prompt = _without_marks(f"{row.text('activity_label')}: {context}")
        choices = [_without_marks(choice) for choice in choices]
    return {**choice_item(prompt, choices, gold), "row": row.digest}


def _without_marks(text: str) -> str:
    """Text of WikiHow without the marks of its headings."""
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")
