"""CMATH: problems of Chinese primary schools, by grade.

Prompt and patterns are moesaic's own, because lm-evaluation-harness has no such task. The model is
asked, without examples, to end with 答案是 and the result. Results are the same if their values
are: 2/6 and 1/3, 12% and 0.12.

Source: Wei et al. (arXiv 2306.16636) for the problems.
"""

import re
import unicodedata
from fractions import Fraction

from moesaic.errors import ConfigError
from moesaic.eval.items import Row
from moesaic.eval.task import Item
from moesaic.eval.tasks.files import Split, load
from moesaic.eval.tasks.generation import ENDS_OF_TURN, Filter, GenerationTask
from moesaic.eval.tasks.options import Options
from moesaic.eval.tasks.prompts import Prompts

TASKS = ("cmath",)

_VERSION = 1
_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:[/／]\d+)?[%％]?"  # noqa: RUF001
_STRICT = Filter("strict-match", rf"答案(?:是|为)?[^\d\n-]{{0,8}}({_NUMBER})", take=-1)
_FLEXIBLE = Filter("flexible-extract", _NUMBER, take=-1)
_FIELDS = "input (or question), golden and grade"
_PROMPT = "问题：{}\n请写出计算过程，最后一行写“答案是”和得数。\n解答："  # noqa: RUF001


def find_task(name: str, options: Options) -> GenerationTask:
    """``cmath``, in groups by grade.

    Raises:
        DataError: if the data is not there or not readable.
        ConfigError: if examples are asked for.
    """
    if options.shots:
        raise ConfigError(
            f"shots={options.shots}: cmath is asked without examples; leave shots out"
        )
    names = (
        "cmath_test",
        "cmath/test",
        "cmath_validation",
        "cmath/validation",
        "cmath_dev",
        "cmath",
    )
    problems = load(Split("cmath's problems", names, _FIELDS, _problem), options.data)
    return GenerationTask(
        name=name,
        items=options.first(problems.items),
        prompts=Prompts(),
        filters=(_STRICT, _FLEXIBLE),
        stop=("问题：", *ENDS_OF_TURN),  # noqa: RUF001
        normalise=value_of,
        description={"version": _VERSION, "shots": 0, "data": {"test": problems.origin}},
        group_by="grade",
    )


def value_of(text: str) -> str:
    """A number's value as a whole number or a fraction; other text as it is."""
    text = unicodedata.normalize("NFKC", text).replace(",", "")
    match = re.fullmatch(r"(-?\d+(?:\.\d+)?)(?:/(\d+))?(%?)", text)
    if match is None or (match[2] and not int(match[2])):
        return text
    return str(Fraction(match[1]) / int(match[2] or 1) / (100 if match[3] else 1))


def _problem(row: Row) -> Item:
    question = row.text("question" if row.has("question") else "input")
    return {
        "prompt": _PROMPT.format(question),
        "answer": row.text("golden"),
        "grade": f"grade {row.number('grade')}",
    }
