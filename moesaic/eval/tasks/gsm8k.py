"""GSM8K: word problems of primary school, with steps that lead to a number.

``gsm8k`` draws five examples from the training split. ``gsm8k_cot`` has eight examples of its own.

Source: Cobbe et al. (arXiv 2110.14168); prompts, patterns and what is ignored as in
lm-evaluation-harness (MIT), tasks gsm8k and gsm8k_cot, version 3.
"""

from collections.abc import Callable

from moesaic.errors import ConfigError
from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.drawn import ask
from moesaic.eval.tasks.files import Split, load
from moesaic.eval.tasks.generation import (
    ENDS_OF_TURN,
    FLEXIBLE_EXTRACT,
    Filter,
    GenerationTask,
    PlainText,
)
from moesaic.eval.tasks.gsm8k_examples import CHAIN_OF_THOUGHT
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts, first_examples

TASKS = ("gsm8k", "gsm8k_cot")

_FIELDS = "question and answer, whose last line is '#### ' and the number"
_NORMALISE = PlainText((",", r"\$", r"(?s).*#### ", r"\.$"))
_VERSION = 3


def find_task(name: str, options: Options) -> GenerationTask:
    """``gsm8k`` or ``gsm8k_cot``.

    Raises:
        DataError: if the data is not there or not readable.
        ConfigError: if there are not so many examples.
    """
    return _with_chain_of_thought(options) if name == "gsm8k_cot" else _with_drawn_examples(options)


def _with_drawn_examples(options: Options) -> GenerationTask:
    test, train = _split("test", _question), _split("train", _question)
    asked = ask(options, test, train, _VERSION, shots=5)
    return GenerationTask(
        name="gsm8k",
        items=asked.items,
        prompts=Prompts(asked.pool),
        filters=(Filter("strict-match", r"#### (\-?[0-9\.\,]+)"), FLEXIBLE_EXTRACT),
        stop=("Question:", *ENDS_OF_TURN),
        normalise=_NORMALISE,
        description=asked.description,
    )


def _with_chain_of_thought(options: Options) -> GenerationTask:
    shots = len(CHAIN_OF_THOUGHT) if options.shots is None else options.shots
    if shots > len(CHAIN_OF_THOUGHT):
        raise ConfigError(f"shots={shots}: gsm8k_cot has {len(CHAIN_OF_THOUGHT)} examples, no more")
    test = load(_split("test", _dialogue), options.data)
    pool = [{"prompt": _dialogue_prompt(q), "answer": a} for q, a in CHAIN_OF_THOUGHT]
    return GenerationTask(
        name="gsm8k_cot",
        items=first_examples(options.first(test.items), pool, shots),
        prompts=Prompts(pool),
        filters=(Filter("strict-match", r"The answer is (\-?[0-9\.\,]+)."), FLEXIBLE_EXTRACT),
        stop=("Q:", *ENDS_OF_TURN),
        normalise=_NORMALISE,
        description={"version": _VERSION, "shots": shots, "data": {"test": test.origin}},
    )


def _split(part: str, item: Callable[[Row], Item]) -> Split:
    names = (f"gsm8k_{part}", f"gsm8k/{part}", f"gsm8k/main/{part}")
    return Split(f"gsm8k's {part} split", names, _FIELDS, item)


def _question(row: Row) -> Item:
    return {"prompt": f"Question: {row.text('question')}\nAnswer:", "answer": row.text("answer")}


def _dialogue(row: Row) -> Item:
    number = row.text("answer").split("####")[-1].strip()
    return {"prompt": _dialogue_prompt(row.text("question")), "answer": number}


def _dialogue_prompt(question: str) -> str:
    return f"Q: {question}\nA:"
