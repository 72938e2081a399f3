"""ARC: questions of science tests at school, in an easy and a hard set.

Source: Clark et al. (arXiv 1803.05457); prompts as in lm-evaluation-harness (MIT), tasks arc_easy
and arc_challenge, version 1.
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

TASKS = ("arc_easy", "arc_challenge")

_FOLDER = {"arc_easy": "ARC-Easy", "arc_challenge": "ARC-Challenge"}
_FIELDS = "question, choices (text, label) and answerKey; or query, choices and gold"


def find_task(name: str, options: Options) -> ChoiceTask:
    """``arc_easy`` or ``arc_challenge``.

    Raises:
        DataError: if the data is not there or not readable.
    """
    return drawn_choice_task(name, options, _split(name, "test"), _split(name, "train"))


def _split(name: str, part: str) -> Split:
    names = [f"{name}_{part}", f"{name}/{part}", f"{_FOLDER[name]}/{part}"]
    if part == "test":
        names.append(name)
    return Split(f"{name}'s {part} split", names, _FIELDS, _question)


def _question(row: Row) -> Item:
    if row.has("query"):
        question = row.text("query").removeprefix("Question: ")
        choices, gold = indexed_choices(row)
    else:
        question = row.text("question")
        choices, gold = labelled_choices(row)
    return choice_item(f"Question: {question}\nAnswer:", choices, gold)
