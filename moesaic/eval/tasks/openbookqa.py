"""OpenBookQA: elementary science, asked as the beginning of a sentence.

Source: Mihaylov et al. (arXiv 1809.02789); prompts as in lm-evaluation-harness (MIT), task
openbookqa, version 1.
"""

from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.choice import (
    ChoiceTask,
    choice_item,
    drawn_choice_task,
    indexed_choices,
    labelled_choices,
)
from moesaic.eval.tasks.files import Split
from moesaic.eval.tasks.options import Options

TASKS = ("openbookqa",)

_FIELDS = "question_stem, choices (text, label) and answerKey; or query, choices and gold"


def find_task(name: str, options: Options) -> ChoiceTask:
    """``openbookqa``.

    Raises:
        DataError: if the data is not there or not readable.
    """
    return drawn_choice_task(
        name, options, _split("test", "openbookqa", "openbook_qa"), _split("train")
    )


def _split(part: str, *more: str) -> Split:
    names = (f"openbookqa_{part}", f"openbookqa/{part}", f"openbookqa/main/{part}", *more)
    return Split(f"openbookqa's {part} split", names, _FIELDS, _question)


def _question(row: Row) -> Item:
    if row.has("query"):
        return choice_item(row.text("query"), *indexed_choices(row))
    return choice_item(row.text("question_stem"), *labelled_choices(row))
