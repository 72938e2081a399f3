"""BoolQ: questions that people asked a search engine, answered by yes or no from a passage.

Source: Clark et al. (arXiv 1905.10044), in the form of SuperGLUE (arXiv 1905.00537); prompts as in
lm-evaluation-harness (MIT), task boolq, version 2.
"""

from moesaic.errors import DataError
from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.choice import ACC, ChoiceTask, choice_item, drawn_choice_task
from moesaic.eval.tasks.files import Split
from moesaic.eval.tasks.options import Options

TASKS = ("boolq",)

_FIELDS = "passage, question and label (0, 1) or answer (true, false); or query and gold"
_CHOICES = ("no", "yes")


def find_task(name: str, options: Options) -> ChoiceTask:
    """``boolq``, asked from its validation split: the test split's answers are secret.

    Raises:
        DataError: if the data is not there or not readable.
    """
    return drawn_choice_task(
        name,
        options,
        test=_split("validation", "boolq"),
        train=_split("train"),
        metrics=(ACC,),
        version=2,
        leaves_out_question=True,
    )


def _split(part: str, *more: str) -> Split:
    names = (f"boolq_{part}", f"boolq/{part}", *more)
    return Split(f"boolq's {part} split", names, _FIELDS, _question)


def _question(row: Row) -> Item:
    if row.has("query"):
        passage, question = _passage_and_question(row)
        gold = row.index("gold", 2)
    else:
        passage, question = row.text("passage"), row.text("question")
        gold = row.index("answer" if row.has("answer") else "label", 2)
    item = choice_item(f"{passage}\nQuestion: {question}?\nAnswer:", _CHOICES, gold)
    return {**item, "row": row.digest}


def _passage_and_question(row: Row) -> tuple[str, str]:
    """The two parts of a reshaped row's query."""
    passage, mark, question = row.text("query").rpartition("\nQuestion: ")
    if not mark:
        raise DataError(f"{row.where}: query has no line that begins with 'Question: '")
    return passage.removeprefix("Passage: "), question.removesuffix("?")
