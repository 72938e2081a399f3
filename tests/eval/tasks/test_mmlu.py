"""MMLU: subjects, their parts, and the examples of each."""

from typing import Any

import pytest

from moesaic.errors import DataError
from moesaic.eval.requests import Likelihood
from moesaic.eval.tasks.mmlu import SUBJECT_TASKS, SUBJECTS
from moesaic.eval.tasks.mmlu_subjects import PARTS
from moesaic.eval.tasks.registry import find_task

from .conftest import Write


def rows(subject: str, split: str, count: int) -> list[dict[str, Any]]:
    return [
        {
            "subject": subject,
            "split": split,
            "question": f" {subject} {split} {n}? ",
            "choices": [f"{letter}{n}" for letter in "wxyz"],
            "answer": n % 4,
        }
        for n in range(count)
    ]


def one_file(write: Write, *subjects: str) -> Any:
    both = [row for s in subjects for row in rows(s, "test", 3) + rows(s, "dev", 5)]
    return write("eval/mmlu.jsonl", both + rows("anatomy", "validation", 2))


def test_there_are_57_subjects_in_four_parts():
    assert len(SUBJECTS) == len(set(SUBJECTS)) == len(SUBJECT_TASKS) == 57
    assert {part: len(subjects) for part, subjects in PARTS.items()} == {
        "humanities": 13,
        "other": 13,
        "social_sciences": 12,
        "stem": 19,
    }


def test_a_question_follows_the_first_examples_of_its_subject(write: Write):
    task = find_task(
        "mmlu_us_foreign_policy", one_file(write, "anatomy", "us_foreign_policy"), shots=2
    )
    requests = task.requests(task.items[1])
    subject = "us_foreign_policy"
    assert requests == [
        Likelihood(
            "The following are multiple choice questions (with answers) about us foreign policy."
            f"\n\n{subject} dev 0?\nA. w0\nB. x0\nC. y0\nD. z0\nAnswer: A"
            f"\n\n{subject} dev 1?\nA. w1\nB. x1\nC. y1\nD. z1\nAnswer: B"
            f"\n\n{subject} test 1?\nA. w1\nB. x1\nC. y1\nD. z1\nAnswer:",
            f" {letter}",
        )
        for letter in "ABCD"
    ]
    assert task.items[1]["gold"] == 1
    assert task.group(task.items[1]) == subject


def test_five_examples_are_shown(write: Write):
    task = find_task("mmlu_anatomy", one_file(write, "anatomy"))
    assert task.description["shots"] == 5
    assert task.items[0]["examples"] == [0, 1, 2, 3, 4]


def test_without_examples_the_heading_stays(write: Write):
    task = find_task("mmlu_anatomy", write("mmlu_test.jsonl", rows("anatomy", "test", 1)), shots=0)
    [request, *_] = task.requests(task.items[0])
    assert isinstance(request, Likelihood)
    assert request.context.endswith(
        "about anatomy.\n\nanatomy test 0?\nA. w0\nB. x0\nC. y0\nD. z0\nAnswer:"
    )
    assert task.description["data"].keys() == {"test"}


def test_all_subjects_are_asked_each_within_the_limit(write: Write):
    task = find_task("mmlu", one_file(write, *SUBJECTS), limit=2)
    assert [item["subject"] for item in task.items[:3]] == ["abstract_algebra"] * 2 + ["anatomy"]
    assert len(task.items) == 2 * 57
    stem = find_task("mmlu_stem", one_file(write, *SUBJECTS), limit=2)
    assert {item["subject"] for item in stem.items} == set(PARTS["stem"])


def test_files_are_found_where_the_hub_has_them(write: Write):
    for split in ("test", "dev"):
        found = rows("anatomy", split, 5)
        data = write(f"mmlu/anatomy/{split}-00000-of-00001.jsonl", found)
    task = find_task("mmlu_anatomy", data)
    assert task.description["data"]["dev"]["files"] == ["mmlu/anatomy/dev-00000-of-00001.jsonl"]
    assert len(task.items) == 5


def test_an_absent_subject_is_named(write: Write):
    data = one_file(write, *(set(SUBJECTS) - {"virology", "anatomy"}))
    with pytest.raises(DataError, match="mmlu's test split has no questions of anatomy, virology;"):
        find_task("mmlu", data)


def test_a_subject_needs_its_examples(write: Write):
    data = write("mmlu.jsonl", rows("anatomy", "test", 1) + rows("virology", "dev", 5))
    with pytest.raises(
        DataError, match="5 shots need 5 examples of subject 'anatomy', the data has 0"
    ):
        find_task("mmlu_anatomy", data)


def test_a_question_has_four_choices(write: Write):
    [row] = rows("anatomy", "test", 1)
    data = write("mmlu.jsonl", [{**row, "choices": ["w", "x", "y"]}])
    with pytest.raises(DataError, match=r"mmlu.jsonl:1: 3 choices; a question of MMLU has 4"):
        find_task("mmlu_anatomy", data, shots=0)
