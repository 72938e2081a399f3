"""ARC, OpenBookQA, HellaSwag and BoolQ: the hub's rows and reshaped ones, as prompts."""

from typing import Any

import pytest

from moesaic.errors import DataError
from moesaic.eval.requests import Likelihood
from moesaic.eval.tasks.registry import find_task

from .conftest import Write

CHOICES = {"text": ["iron", "wool"], "label": ["A", "B"]}
ARC = {"id": "1", "question": "What rusts?", "choices": CHOICES, "answerKey": "A"}
OPENBOOKQA = {"id": "1", "question_stem": "What rusts is", "choices": CHOICES, "answerKey": " A"}
HELLASWAG = {
    "ind": 4,
    "activity_label": "Baking",
    "ctx_a": "A man [substep] stirs  dough. [title] How to bake",
    "ctx_b": "he Then",
    "ctx": "unused",
    "endings": ["eats [step] it.", " waits. "],
    "label": "1",
}
BOOLQ = {"passage": "Iron rusts.", "question": "does iron rust", "idx": 0, "label": 1}

FORMS: dict[str, tuple[str, dict[str, Any], str, list[str], int]] = {
    "arc of the hub": (
        "arc_easy_test",
        ARC,
        "Question: What rusts?\nAnswer:",
        ["iron", "wool"],
        0,
    ),
    "arc with numbers": (
        "arc_challenge_test",
        {**ARC, "choices": {**CHOICES, "label": ["1", "2"]}, "answerKey": "2"},
        "Question: What rusts?\nAnswer:",
        ["iron", "wool"],
        1,
    ),
    "arc reshaped": (
        "arc_easy",
        {"query": "Question: What rusts?", "choices": ["iron", "wool"], "gold": 0},
        "Question: What rusts?\nAnswer:",
        ["iron", "wool"],
        0,
    ),
    "openbookqa of the hub": (
        "openbookqa_test",
        OPENBOOKQA,
        "What rusts is",
        ["iron", "wool"],
        0,
    ),
    "openbookqa reshaped": (
        "openbook_qa",
        {"query": "What rusts is", "choices": ["iron", "wool"], "gold": 1},
        "What rusts is",
        ["iron", "wool"],
        1,
    ),
    "hellaswag of the hub": (
        "hellaswag_validation",
        HELLASWAG,
        "Baking: A man stirs dough.. How to bake He then",
        ["eats it.", "waits."],
        1,
    ),
    "hellaswag reshaped": (
        "hellaswag_val",
        {"query": "Baking: A man stirs. he", "endings": ["eats", "waits"], "label": 1},
        "Baking: A man stirs. he",
        ["eats", "waits"],
        1,
    ),
    "hellaswag reshaped like the others": (
        "hellaswag",
        {"query": "Baking: A man stirs. he", "choices": ["eats", "waits"], "gold": 0},
        "Baking: A man stirs. he",
        ["eats", "waits"],
        0,
    ),
    "boolq of the hub": (
        "boolq_validation",
        BOOLQ,
        "Iron rusts.\nQuestion: does iron rust?\nAnswer:",
        ["no", "yes"],
        1,
    ),
    "boolq as first published": (
        "boolq/validation",
        {"passage": "Iron rusts.", "question": "does iron rust", "answer": False},
        "Iron rusts.\nQuestion: does iron rust?\nAnswer:",
        ["no", "yes"],
        0,
    ),
    "boolq reshaped": (
        "boolq",
        {"query": "Passage: Iron rusts.\nQuestion: does iron rust?", "gold": 1},
        "Iron rusts.\nQuestion: does iron rust?\nAnswer:",
        ["no", "yes"],
        1,
    ),
}
TASK_OF = {"arc": "arc_easy", "open": "openbookqa", "hell": "hellaswag", "bool": "boolq"}


@pytest.mark.parametrize("form", FORMS)
def test_a_form_of_row_becomes_the_published_prompt(write: Write, form: str):
    file, row, prompt, choices, gold = FORMS[form]
    name = "arc_challenge" if "challenge" in file else TASK_OF[file[:4].rstrip("_")]
    task = find_task(name, write(f"{file}.jsonl", [row]))
    [item] = task.items
    assert task.requests(item) == [Likelihood(prompt, f" {choice}") for choice in choices]
    assert item["gold"] == gold
    assert task.group(item) is None


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("arc_easy", "ai2_arc/ARC-Easy/test-00000-of-00001"),
        ("arc_challenge", "ai2_arc/ARC-Challenge/test-00000-of-00001"),
        ("openbookqa", "openbookqa/main/test-00000-of-00001"),
        ("hellaswag", "hellaswag/data/validation-00000-of-00001"),
        ("boolq", "super_glue/boolq/validation-00000-of-00001"),
    ],
)
def test_files_are_found_where_the_hub_has_them(write: Write, name: str, file: str):
    rows = {"openbookqa": OPENBOOKQA, "hellaswag": HELLASWAG, "boolq": BOOLQ}
    task = find_task(name, write(f"{file}.jsonl", [rows.get(name, ARC)]))
    assert task.description["data"]["test"]["files"] == [f"{file}.jsonl"]


def test_metrics_are_the_published_ones(write: Write):
    data = write("arc_easy.jsonl", [ARC])
    write("boolq.jsonl", [BOOLQ])
    assert [metric.name for metric in find_task("arc_easy", data).metrics] == ["acc", "acc_norm"]
    assert [metric.name for metric in find_task("boolq", data).metrics] == ["acc"]


def test_no_examples_are_shown_unless_asked_for(write: Write):
    data = write("boolq_validation.jsonl", [BOOLQ] * 3)
    write("boolq_train.jsonl", [{**BOOLQ, "passage": f"P{n}.", "label": n % 2} for n in range(5)])
    assert find_task("boolq", data).description["shots"] == 0
    task = find_task("boolq", data, shots=2, seed=5)
    [request, _] = task.requests(task.items[0])
    assert isinstance(request, Likelihood)
    example, _, question = request.context.split("\n\n")
    assert example.startswith("P")
    assert example.endswith(("Answer: no", "Answer: yes"))
    assert question == "Iron rusts.\nQuestion: does iron rust?\nAnswer:"
    assert task.description["shots"] == 2
    assert task.description["seed"] == 5
    assert task.description["data"]["train"]["files"] == ["boolq_train.jsonl"]


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("arc_easy", {**ARC, "answerKey": "C"}, "answerKey is 'C', which is not one of A, B"),
        (
            "arc_easy",
            {"question": "Q"},
            "no field 'choices'; .* question, choices .text, label. and",
        ),
        ("hellaswag", {**HELLASWAG, "label": ""}, "label is '', which is not a whole number"),
        ("hellaswag", {**HELLASWAG, "label": 2}, "label is 2, which is not a number from 0 to 1"),
        ("boolq", {"query": "Iron rusts?", "gold": 1}, "query has no line that begins with"),
        ("boolq", {**BOOLQ, "label": -1}, "label is -1, which is not a number from 0 to 1"),
    ],
)
def test_a_wrong_row_is_refused(write: Write, name: str, row: dict[str, Any], message: str):
    with pytest.raises(DataError, match=rf"{name}.jsonl:1: {message}"):
        find_task(name, write(f"{name}.jsonl", [row]))
