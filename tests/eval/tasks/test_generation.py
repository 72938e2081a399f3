"""How an answer is found in what a model wrote, and when two answers are the same."""

import pytest

from moesaic.eval.requests import Generation, GenerationAnswer
from moesaic.eval.tasks.generation import (
    FLEXIBLE_EXTRACT,
    Filter,
    GenerationTask,
    PlainText,
)
from moesaic.eval.tasks.prompts import Prompts

STRICT = Filter("strict-match", r"#### (\-?[0-9\.\,]+)")


@pytest.mark.parametrize(
    ("text", "strict", "flexible"),
    [
        ("so 3 + 4 = 7.\n#### 7", "7", "7"),
        ("#### 1,200 and #### 5", "1,200", "5"),
        ("It is $1,200.", "[invalid]", "$1,200."),
        ("minus -3 it is", "[invalid]", "-3"),
        ("none at all...", "[invalid]", "..."),
        ("none at all", "[invalid]", "[invalid]"),
        ("", "[invalid]", "[invalid]"),
    ],
)
def test_strict_wants_the_form_and_flexible_the_last_number(text: str, strict: str, flexible: str):
    assert STRICT.find(text) == strict
    assert FLEXIBLE_EXTRACT.find(text) == flexible


def test_no_pattern_takes_everything_without_space_around():
    assert Filter("remove_whitespace", None).find("  7 pens\n") == "7 pens"


def test_a_match_without_any_group_is_nothing():
    assert Filter("x", "(a)?|(b)?").find("c") == "[invalid]"


def test_what_is_ignored_is_taken_out():
    same = PlainText((",", r"\$", r"(?s).*#### ", r"\.$"))
    assert same("Steps.\nMore steps.\n#### $1,200.") == same("1200") == "1200"
    assert same("12.5") == "12.5"
    assert PlainText(has_punctuation=False)("The ANSWER: 12.5!") == "the answer 125"


TASK = GenerationTask(
    name="toy",
    items=[{"prompt": "Q:", "answer": "steps\n#### 7", "grade": "1"}],
    prompts=Prompts(),
    filters=(STRICT, FLEXIBLE_EXTRACT),
    stop=("Q:",),
    normalise=PlainText((r"(?s).*#### ",)),
    description={},
    group_by="grade",
)


def test_the_model_writes_until_a_stop_text():
    assert TASK.requests(TASK.items[0]) == [Generation("Q:", ("Q:",), 256)]


@pytest.mark.parametrize(
    ("text", "strict", "flexible", "said"),
    [("#### 7", 1.0, 1.0, "7"), ("it is 7", 0.0, 1.0, "7"), ("no", 0.0, 0.0, "[invalid]")],
)
def test_every_filter_is_a_metric(text: str, strict: float, flexible: float, said: str):
    judgement = TASK.judge(TASK.items[0], [GenerationAnswer(text, 1)])
    assert judgement.values == {
        "exact_match,strict-match": strict,
        "exact_match,flexible-extract": flexible,
    }
    assert (judgement.answer, judgement.target) == (said, "7")
    assert [metric.name for metric in TASK.metrics] == list(judgement.values)
    assert TASK.group(TASK.items[0]) == "1"
