"""MGSM: 250 problems of GSM8K in other languages, asked directly or step by step.

Source: Shi et al. (arXiv 2210.03057); prompts and patterns as in lm-evaluation-harness (MIT), tasks
mgsm_direct_* and mgsm_native_cot_*, version 4. It shows no examples unless asked, and then draws
them from the training split, whose texts begin with their labels.
"""

from collections.abc import Callable
from dataclasses import dataclass

from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.drawn import ask
from moesaic.eval.tasks.files import Split
from moesaic.eval.tasks.generation import (
    ENDS_OF_TURN,
    FLEXIBLE_EXTRACT,
    Filter,
    GenerationTask,
    PlainText,
)
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts


@dataclass(frozen=True, slots=True)
class _Language:
    question: str
    """Label before a question."""
    answer: str
    """Label before an answer without steps."""
    steps: str
    """Label before an answer with steps."""
    pattern: str
    """Of the sentence that ends an answer with steps."""


_NUMBER = r"(\-?[0-9\.\,]+)"
LANGUAGES = {
    "de": _Language(
        "Frage:", "Antwort:", "Schritt-für-Schritt-Antwort:", f"Die Antwort lautet {_NUMBER}"
    ),
    "en": _Language("Question:", "Answer:", "Step-by-Step Answer:", f"The answer is {_NUMBER}"),
    "es": _Language(
        "Pregunta:", "Respuesta:", "Respuesta paso a paso:", f"La respuesta es {_NUMBER}"
    ),
    "fr": _Language(
        "Question :", "Réponse :", "Réponse étape par étape :", f"La réponse est {_NUMBER}"
    ),
    "ja": _Language("問題：", "Answer:", "ステップごとの答え:", f"答えは{_NUMBER}です。"),  # noqa: RUF001
    "ru": _Language("Задача:", "Answer:", "Пошаговоерешение:", f"Ответ — {_NUMBER}"),
    "zh": _Language("问题：", "Answer:", "逐步解答:", f"答案是 {_NUMBER}。"),  # noqa: RUF001
}
"""Labels and patterns, with the harness's own slips."""

_DIRECT, _STEPS = "mgsm_direct_", "mgsm_native_cot_"
TASKS = tuple(f"{kind}{language}" for kind in (_DIRECT, _STEPS) for language in LANGUAGES)

_FIELDS = "question and answer_number (and answer, in the training split)"
_COLUMNS = ("question", "answer_number")
_VERSION = 4
_NORMALISE = PlainText(has_punctuation=False)


def find_task(name: str, options: Options) -> GenerationTask:
    """One of `TASKS`.

    Raises:
        DataError: if the data is not there or not readable.
    """
    code = name.rpartition("_")[2]
    language, is_direct = LANGUAGES[code], name.startswith(_DIRECT)
    whole = Filter("remove_whitespace", None)
    sentence = Filter("strict-match", language.pattern)
    item = _reader(language, is_direct)
    test, train = _split(code, "test", item, f"mgsm_{code}"), _split(code, "train", item)
    asked = ask(options, test, train, _VERSION)
    return GenerationTask(
        name=name,
        items=asked.items,
        prompts=Prompts(asked.pool, delimiter="" if is_direct else " "),
        filters=(whole if is_direct else sentence, FLEXIBLE_EXTRACT),
        stop=(language.question, *ENDS_OF_TURN),
        normalise=_NORMALISE,
        description=asked.description,
    )


def _split(code: str, part: str, item: Callable[[Row], Item], *more: str) -> Split:
    names = (f"mgsm_{code}_{part}", f"mgsm/{code}/{part}", *more)
    return Split(f"mgsm_{code}'s {part} split", names, _FIELDS, item, _COLUMNS)


def _reader(language: _Language, is_direct: bool) -> Callable[[Row], Item]:
    """Makes items of rows; those of the training split have labels in their texts."""

    def item(row: Row) -> Item:
        question, number = row.text("question"), str(row.number("answer_number"))
        is_example = row.has("answer")
        asked = question if is_example else f"{language.question} {question}"
        steps = row.text("answer")[len(language.steps) + 1 :] if is_example else number
        label = language.answer if is_direct else language.steps
        return {"prompt": f"{asked}\n{label}", "answer": number if is_direct else steps}

    return item
